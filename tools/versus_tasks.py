"""What tools.bench_vs_torch compares: a training step, attentive probes, converting a checkpoint.

Features are in tools.bench_embed, planning is in tools.bench_plan: they have flags of their own.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

from jepa_jax import cli
from jepa_jax.errors import BenchError

from .versus import GIB, Task

STEPS = 1000  # whose rates are handed over
# bfloat16 rounds at other places on either side
CLOSE = {'float32': {'loss': 1e-4}, 'bfloat16': {'loss': 2e-2}}


def _npz(folder: pathlib.Path, name: str, prefix: str = '') -> dict[str, Any]:
    import numpy as np

    with np.load(folder / f'{name}.npz') as file:
        return {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}


def drawn(net, seed: int = 0) -> dict:
    """Parameters as large as at the start of training, biases, scales and tokens moved off their 0
    and 1, so that none is without effect; without compiling anything."""
    import jax
    import numpy as np

    rng = np.random.default_rng(seed)

    def one(path, a):
        array = np.float32(0.02) * rng.standard_normal(a.shape, np.float32)
        return array + 1 if jax.tree_util.keystr(path).endswith("scale']") else array

    return jax.tree.map_with_path(one, net.abstract)


def _links(net) -> list:
    from jepa_jax.weights import tables

    return tables.bind(*_rules(net))


def _rules(net) -> tuple:
    from jepa_jax.weights import tables

    rules, sizes = tables.table(net.part, net.config, 'torch')
    return rules, net.abstract, sizes


def to_torch(net, params: dict) -> dict[str, Any]:
    """Parameters by the names of the released files."""
    from jepa_jax.weights import tables

    return dict(tables.to_file(_links(net), params))


def from_torch(net, arrays: dict[str, Any]) -> dict:
    """The way back."""
    from jepa_jax.weights import tables

    leaves = {k: tables.Leaf(a.shape, a.dtype, lambda a=a: a) for k, a in arrays.items()}
    return tables.from_file(_links(net), leaves)


def platform_is(platform: str) -> None:
    import jax

    if jax.default_backend() != platform:
        raise BenchError(f'JAX computes on {jax.default_backend()}, must be {platform}')


def device_of(platform: str, threads: int):
    """Of PyTorch; and so many threads."""
    import torch

    torch.set_num_threads(threads)
    return torch.device('cuda' if platform == 'gpu' else 'cpu')


def autocast(dtype: str, platform: str):
    import torch

    kind = 'cuda' if platform == 'gpu' else 'cpu'
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=dtype == 'bfloat16')


def synchronised(run: Callable, platform: str) -> Callable:
    """run, until the GPU has done it."""
    import torch

    def whole():
        output = run()
        if platform == 'gpu':
            torch.cuda.synchronize()
        return output

    return whole


# --- a training step ------------------------------------------------------------------------------


def _step_config(config: str, crop: int, frames: int, batch: int, dtype: str, remat: str):
    """A config on one device; 0: as it has it."""
    import jax

    from .steps import memory_of, settle

    c = cli.load(config)
    c.compute_dtype, c.mesh.remat, c.mesh.fsdp, c.optim.accumulate = dtype, remat, 1, 1
    c.data.crop, c.data.frames = crop or c.data.crop, frames or c.data.frames
    c.optim.batch = batch or c.optim.batch
    c.optim.steps = max(c.optim.steps, STEPS)
    return settle(c, 1, memory_of(jax.devices()[0].device_kind))


def _step_parts(o: dict):
    """The config, its step, and the program nearest to the mean."""
    import statistics

    import jax

    from .steps import Step, programs

    names = ('config', 'crop', 'frames', 'batch', 'dtype', 'remat')
    config = _step_config(**{name: o[name] for name in names})
    runs = programs(config, 1)
    mean = statistics.mean(program.total for program in runs)
    program = min(runs, key=lambda program: abs(program.total - mean))
    return config, Step.of(config, jax.devices()[:1]), program


def _write_step(folder: pathlib.Path, **o: Any) -> dict[str, Any]:
    import jax
    import numpy as np

    from jepa_jax import optim
    from jepa_jax.models.tokens import MEAN, STD

    config, step, program = _step_parts(o)
    optimizer, k = optim.build(config.optim, step.objective), np.arange(STEPS)
    rates = {
        'lr': optimizer.learning_rate, 'weight_decay': optimizer.weight_decay,
        'momentum': lambda k: 1 - optimizer.ema_rate(k),
    }  # fmt: skip
    np.savez(folder / 'rates.npz', **{n: jax.vmap(f)(k) for n, f in rates.items()})
    weights = {}
    for name, net in step.objective.nets.items():
        arrays = to_torch(net, drawn(net))
        weights |= {f'{name}/{key}': array for key, array in arrays.items()}
    np.savez(folder / 'weights.npz', **weights)
    (group,) = program.batch(0).groups
    pixels = ((group.clips / 255 - MEAN) / STD).astype(np.float32)
    masks = {f'{kind}{i}': getattr(m, kind) for i, m in enumerate(group.masks)
             for kind in ('context', 'target')}  # fmt: skip
    np.savez(folder / 'batch.npz', clips=np.moveaxis(pixels, -1, 1), **masks)
    return {
        'words': f'{o["config"]}, {group.clips.shape[0]} clips of {group.clips.shape[1]} frames, '
        f'{group.clips.shape[2]} pixels, {o["dtype"]}; {program.words}; ours with remat '
        f'{o["remat"]}',
        'flops': program.total,
        'tokens': sorted(program.tokens),
    }


def _step_ours(folder: pathlib.Path, **o: Any):
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    from jepa_jax import sharding

    platform_is(o['platform'])
    config, step, program = _step_parts(o)
    del config
    nets = step.objective.nets
    params = {n: from_torch(net, _npz(folder, 'weights', f'{n}/')) for n, net in nets.items()}
    with jax.set_mesh(step.mesh):
        compiled, costs = step.compile(program)
        params = {n: sharding.put_params(params[n], net.specs, step.mesh)
                  for n, net in nets.items()}  # fmt: skip
        ema = {name: jax.tree.map(jnp.copy, params[name]) for name in step.objective.ema}
        # the optimizer's state is zero at first, and so is the number of the step
        state = jax.tree.map(lambda a: jax.device_put(np.zeros(a.shape, a.dtype), a.sharding),
                             step.state)  # fmt: skip
        state = dataclasses.replace(state, params=params, ema=ema)
        batch = sharding.put_batch(program.batch(0), step.mesh)

    def run():
        nonlocal state
        with jax.set_mesh(step.mesh):
            state, metrics = compiled(state, {}, batch)
        return {'loss': jax.block_until_ready(metrics)['loss']}

    run.told = {'planned_bytes': costs.get('memory_bytes'), 'stages': costs['seconds']}
    return run


def _step_torch(
    folder: pathlib.Path, compiled: bool = False, again: bool = False, theirs: bool = False,
    **o: Any,
):  # fmt: skip
    """compiled: by torch.compile; again: activation checkpointing; theirs: the original's nets."""
    import copy

    import torch
    import torch.nn.functional as F

    from jepa_jax import build

    from . import torch_nets

    device = device_of(o['platform'], o['threads'])
    names = ('config', 'crop', 'frames', 'batch', 'dtype', 'remat')
    config = _step_config(**{name: o[name] for name in names})
    vit = build.video_encoder(config)
    shape = build.predictor(config, vit)
    clips, *masks = (torch.from_numpy(a).to(device) for a in _npz(folder, 'batch').values())
    masks = [mask.long() for mask in masks]
    pairs = list(zip(masks[::2], masks[1::2]))
    rates = _npz(folder, 'rates')
    if theirs:
        encoder, predictor = _original_nets(o['original'], vit, shape, config, again)
        weights = [{f'backbone.{k}': a for k, a in _npz(folder, 'weights', f'{net}/').items()}
                   for net in ('encoder', 'predictor')]  # fmt: skip
    else:
        encoder, predictor = torch_nets.Encoder(vit, again), torch_nets.Predictor(shape, again)
        weights = [_npz(folder, 'weights', f'{net}/') for net in ('encoder', 'predictor')]
    for net, arrays in zip((encoder, predictor), weights):
        torch_nets.fill(net, arrays).to(device).train()
    target = copy.deepcopy(encoder).requires_grad_(False)
    average = torch_nets.averages(encoder, target)
    nets = {'encoder': encoder, 'predictor': predictor}
    if compiled:
        encoder, predictor, target = map(torch.compile, (encoder, predictor, target))

    def forward():
        with autocast(o['dtype'], o['platform']):
            with torch.no_grad():
                h = target([clips])[0] if theirs else target(clips)
                h = F.layer_norm(h, h.shape[-1:])
            if theirs:
                context, hidden = ([list(side)] for side in zip(*pairs))
                predictions = predictor(encoder([clips], context), context, hidden)[0]
            else:
                predictions = [predictor(encoder(clips, c), c, t) for c, t in pairs]
            errors = [(z - torch_nets.pick(h, t)).abs() ** config.loss_exponent
                      for z, (_, t) in zip(predictions, pairs)]  # fmt: skip
            return sum(error.mean() / config.loss_exponent for error in errors) / len(pairs)

    step = torch_nets.training_step(nets, forward, average, rates, fused=not theirs)
    return synchronised(step, o['platform'])


def _original_nets(checkout: str, vit, shape, config, again: bool):
    """The original's two networks in their wrappers."""
    from . import torch_nets

    torch_nets.original(checkout)
    from src.models.predictor import VisionTransformerPredictor
    from src.models.vision_transformer import VisionTransformer
    from src.utils.wrappers import MultiSeqWrapper, PredictorMultiSeqWrapper
    from torch import nn

    size = {
        'img_size': (config.data.crop,) * 2, 'patch_size': vit.patch, 'tubelet_size': vit.tubelet,
        'num_frames': config.data.frames, 'embed_dim': vit.width, 'use_rope': True,
        'norm_layer': lambda width: nn.LayerNorm(width, eps=1e-6),
        'use_activation_checkpointing': again, 'qkv_bias': True,
    }  # fmt: skip
    encoder = VisionTransformer(
        **size, depth=vit.depth, num_heads=vit.heads, mlp_ratio=vit.mlp_ratio
    )
    predictor = VisionTransformerPredictor(
        **size, predictor_embed_dim=shape.width, depth=shape.depth, num_heads=shape.heads,
        mlp_ratio=shape.mlp_ratio, use_mask_tokens=True, num_mask_tokens=shape.mask_tokens,
    )  # fmt: skip
    return MultiSeqWrapper(encoder), PredictorMultiSeqWrapper(predictor)


def variants(make: Callable, **kinds: dict[str, bool]) -> dict[str, Callable]:
    """A maker of peers under a name each: `torch`, and with what the names say."""
    return {name: functools.partial(make, **how) for name, how in kinds.items()}


_KINDS: dict[str, dict[str, bool]] = {
    f'{who}{how}': options | ({'theirs': True} if who == 'original' else {})
    for who in ('torch', 'original')
    for how, options in (
        ('', {}), (', compiled', {'compiled': True}), (', checkpointing', {'again': True}),
    )
}  # fmt: skip
STEP = Task(
    _write_step,
    _step_ours,
    variants(_step_torch, **_KINDS),
    CLOSE,
    {'config': 'configs/vits.py', 'crop': 128, 'frames': 16, 'batch': 4, 'dtype': 'float32',
     'remat': 'none', 'original': ''},
)  # fmt: skip


# --- attentive probes -----------------------------------------------------------------------------


def _probe(o: dict):
    import jax.numpy as jnp

    from jepa_jax.evals import probes
    from jepa_jax.models.pooler import PoolerConfig

    pooler = PoolerConfig(
        o['width'], o['pooler_heads'], o['depth'], dtype=jnp.dtype(o['dtype']), remat='none'
    )
    return probes.Probe(pooler, (('linear', o['classes']),))


def _probe_net(o: dict):
    from jepa_jax.weights.parts import net

    probe = _probe(o)
    return net('probe', (probe.pooler, dict(probe.classes)))


def _settings(o: dict) -> list[tuple[float, float]]:
    """Learning rate and weight decay of each head, of the released grid. (reference: vjepa2
    §11)"""
    grid = [(lr, wd) for wd in (0.01, 0.1, 0.4, 0.8) for lr in (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)]
    return grid[2 : 2 + o['heads']]


def _write_probe(folder: pathlib.Path, **o: Any) -> dict[str, Any]:
    import jax
    import numpy as np

    from jepa_jax.evals import probes
    from jepa_jax.flops import TRAINED

    net = _probe_net(o)
    params = jax.device_get(jax.jit(net.init)(jax.random.key(0)))  # as probes.train starts
    np.savez(folder / 'weights.npz', **to_torch(net, params))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, o['classes'], o['clips']).astype(np.int32)
    means = rng.standard_normal((o['classes'], 1, o['width']), np.float32)
    noise = rng.standard_normal((o['clips'], o['tokens'], o['width']), np.float32)
    order = probes.orders(o['clips'], o['steps'], o['batch'], 0)
    np.savez(folder / 'features.npz', x=means[labels] * 0.3 + noise, labels=labels, order=order)
    d, n = o['width'], o['tokens']
    # keys and values of all tokens count, whatever order ours takes the products in
    block = 2 * n * (12 * d * d + 2 * n * d)
    cross = 2 * (2 * n * d * d + 9 * d * d + 2 * n * d)
    once = TRAINED * ((o['depth'] - 1) * block + cross)
    return {
        'words': f'{o["heads"]} heads of {o["depth"]} blocks, width {d}, {n} tokens; '
        f'{o["steps"]} steps of {o["batch"]} clips, {o["dtype"]}',
        'flops': once * o['batch'] * o['steps'] * o['heads'],
    }


def _probe_ours(folder: pathlib.Path, **o: Any):
    import numpy as np

    from jepa_jax.evals import probes

    platform_is(o['platform'])
    inputs, probe = _npz(folder, 'features'), _probe(o)
    settings = [probes.Setting(*each) for each in _settings(o)]

    def run():
        trained = probes.train(
            probe, probes.cross_entropy, inputs['x'].__getitem__, {'linear': inputs['labels']},
            settings, steps=o['steps'], batch=o['batch'],
        )  # fmt: skip
        return {'losses': np.asarray(trained.losses)}

    return run


def _probe_torch(folder: pathlib.Path, compiled: bool = False, theirs: bool = False, **o: Any):
    import math

    import torch
    import torch.nn.functional as F

    from . import torch_nets

    device = device_of(o['platform'], o['threads'])
    inputs, weights = _npz(folder, 'features'), _npz(folder, 'weights')
    x, labels = (torch.from_numpy(inputs[k]).to(device) for k in ('x', 'labels'))
    labels, heads = labels.long(), []
    for _ in _settings(o):
        if theirs:
            torch_nets.original(o['original'])
            from src.models.attentive_pooler import AttentiveClassifier

            head = AttentiveClassifier(
                o['width'], num_heads=o['pooler_heads'], depth=o['depth'],
                num_classes=o['classes'],
            )  # fmt: skip
        else:
            head = torch_nets.Classifier(o['width'], o['pooler_heads'], o['depth'], o['classes'])
        heads.append(torch_nets.fill(head, weights).to(device))
    programs = [torch.compile(head) if compiled else head for head in heads]

    def run():
        optimizers = []
        for head, (lr, decay) in zip(heads, _settings(o)):
            torch_nets.fill(head, weights)
            optimizers.append(torch.optim.AdamW(
                head.parameters(), lr=lr, weight_decay=decay, fused=not theirs
            ))  # fmt: skip
        losses = torch.zeros(len(heads), o['steps'])
        for k, rows in enumerate(inputs['order']):
            rows = torch.from_numpy(rows).to(device)
            batch, truth = x[rows], labels[rows]
            rate = 0.5 * (1 + math.cos(math.pi * k / o['steps']))
            for i, (program, optimizer) in enumerate(zip(programs, optimizers)):
                with autocast(o['dtype'], o['platform']):
                    loss = F.cross_entropy(program(batch), truth)
                optimizer.param_groups[0]['lr'] = rate * _settings(o)[i][0]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses[i, k] = loss.detach()
        return {'losses': losses}

    return synchronised(run, o['platform'])


PROBE = Task(
    _write_probe,
    _probe_ours,
    variants(_probe_torch, torch={}, **{'torch, compiled': {'compiled': True}},
             original={'theirs': True}),
    # Adam's first steps are nearly signs of gradients, so rounding grows over the steps
    {'float32': {'losses': 2e-3}, 'bfloat16': {'losses': 0.1}},
    {'width': 384, 'tokens': 512, 'pooler_heads': 6, 'depth': 4, 'classes': 10, 'clips': 64,
     'heads': 4, 'steps': 4, 'batch': 8, 'dtype': 'float32', 'original': ''},
)  # fmt: skip


# --- a checkpoint into a Hugging Face folder ------------------------------------------------------


def _write_convert(folder: pathlib.Path, **o: Any) -> dict[str, Any]:
    import numpy as np
    import torch

    from jepa_jax.pretrained import random_configs
    from jepa_jax.weights.parts import net

    content: dict[str, Any] = {'epoch': 1, 'loss': 0.5, 'batch_size': 8, 'world_size': 1, 'lr': 0.1}
    for name, config in zip(('encoder', 'predictor'), random_configs(o['size'])):
        made = net(name, config)
        arrays = to_torch(made, drawn(made))
        content[name] = {
            f'module.backbone.{k}': torch.from_numpy(np.ascontiguousarray(a))
            for k, a in arrays.items()
        }
    content['target_encoder'] = {k: a + 0.01 for k, a in content['encoder'].items()}
    torch.save(content, folder / 'checkpoint.pt')
    gib = (folder / 'checkpoint.pt').stat().st_size / GIB
    return {'words': f'{o["size"]}, .pt with both encoders and the predictor, {gib:.2f} GiB'}


def _emptied(folder: pathlib.Path, side: str) -> pathlib.Path:
    import shutil

    path = folder / side
    shutil.rmtree(path, ignore_errors=True)
    return path


def _content(path: pathlib.Path) -> dict[str, Any]:
    """Of a Hugging Face folder of one file or several: by name a sum of each array, weighed by
    place."""
    import numpy as np
    from safetensors.numpy import load_file

    arrays: dict[str, Any] = {}
    for file in path.glob('*.safetensors'):
        arrays |= load_file(file)
    sums = [float((a.ravel().astype(np.float64) * np.cos(np.arange(a.size))).sum())
            for _, a in sorted(arrays.items())]  # fmt: skip
    return {'sums': np.array(sums), 'names': np.frombuffer(
        '\n'.join(sorted(arrays)).encode(), np.uint8
    )}  # fmt: skip


def _convert_ours(folder: pathlib.Path, **o: Any):
    from jepa_jax.weights.read import read
    from jepa_jax.weights.write import write

    def run():
        path = _emptied(folder, 'ours')
        write(read(folder / 'checkpoint.pt'), path, 'hf')
        return {}

    run.outputs = lambda: _content(folder / 'ours')
    return run


def _convert_torch(folder: pathlib.Path, **o: Any):
    import torch
    from safetensors.torch import save_file

    def run():
        path = _emptied(folder, 'theirs')
        path.mkdir()
        stored = torch.load(folder / 'checkpoint.pt', mmap=True, weights_only=True)
        nets = {'encoder.': stored['target_encoder'], 'predictor.': stored['predictor']}
        save_file({new: a for prefix, arrays in nets.items()
                   for new, a in _renamed(prefix, arrays)}, path / 'model.safetensors')  # fmt: skip
        return {}

    run.outputs = lambda: _content(folder / 'theirs')
    return run


def _renamed(prefix: str, arrays: dict):
    """The names of transformers. (reference: vjepa2 §10.4)"""
    import torch

    tokens = {}
    for name, array in arrays.items():
        name = name.removeprefix('module.backbone.').removeprefix('predictor_')
        if name.startswith('mask_tokens.'):
            tokens[int(name.split('.')[1])] = array
        elif '.attn.qkv.' in name:
            _, layer, *_, kind = name.split('.')
            for part, piece in zip(('query', 'key', 'value'), array.chunk(3)):
                yield f'{prefix}layer.{layer}.attention.{part}.{kind}', piece.clone()
        else:
            for old, new in (
                ('patch_embed', 'embeddings.patch_embeddings'), ('blocks.', 'layer.'),
                ('attn.proj', 'attention.proj'), ('embed.', 'embeddings.predictor_embeddings.'),
            ):  # fmt: skip
                if name.startswith(old) or old == 'attn.proj':
                    name = name.replace(old, new, 1)
            if name.startswith('norm.'):
                name = name.replace('norm.', 'layernorm.')
            yield prefix + name, array.contiguous()
    if tokens:
        stacked = torch.stack([tokens[i] for i in sorted(tokens)])
        yield f'{prefix}embeddings.mask_tokens', stacked


CONVERT = Task(
    _write_convert,
    _convert_ours,
    {'torch': _convert_torch},
    {'float32': {'sums': 0.0, 'names': 0.0}},
    {'size': 'vitl', 'dtype': 'float32'},
)
