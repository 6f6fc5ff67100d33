"""Weights both ways: the original's `.pt`, Hugging Face folders, our checkpoints.

    weights = convert.read('vitl.pt')
    params = weights.params('target')  # of Net(lambda rngs: ViT(weights.encoder, rngs=rngs))
    convert.write(weights, 'vitl', to='jax')

`read` takes anything, finds out what it is from names and shapes, and refuses what it does not know
completely. Arrays are read when they are wanted, so that files may be larger than memory.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jepa_jax import checkpoint
from jepa_jax.convert import hf_weights, orbax_weights, shapes, tables, torch_weights
from jepa_jax.convert.tables import Leaf, flatten
from jepa_jax.convert.weights import ENCODERS, PREDICTORS, Training, net
from jepa_jax.convert.weights import Weights as Weights
from jepa_jax.errors import ConvertError, Damaged

FORMATS = ('jax', 'torch', 'hf')
VERSION = '2.0'


def read(
    path: str | os.PathLike,
    *,
    crop: int | None = None,
    frames: int | None = None,
    heads: int | None = None,
    predictor_heads: int | None = None,
    probe_heads: int | None = None,
    position: str | None = None,
    extrinsics: bool | None = None,
    steps_per_epoch: int | None = None,
    weights_only: bool = False,
    allow_missing: Iterable[str] = (),
) -> Weights:
    """Weights of the original's `.pt`, of a Hugging Face folder, or of one of our checkpoints.

    Args:
      path: a file; or a folder, which may be a workdir.
      crop, frames, heads, predictor_heads, probe_heads, position, extrinsics: what shapes cannot
        say; a default taken in their place is in `notes`. Only for `.pt`: the others tell.
      steps_per_epoch: of the run that wrote a training checkpoint; its step is then epochs times
        this, else Adam's count.
      weights_only: leave training state out.
      allow_missing: names in the file, or patterns like `norm.*`, that may be missing; they get
        their initial values, which is in `notes`.

    Raises:
      ConvertError: not a checkpoint, unsafe, not understood completely, or of V-JEPA 2.1.
      CheckpointError: one of ours that is damaged or of a newer format.
    """
    path = pathlib.Path(path).expanduser()
    choices = shapes.Choices(
        crop, frames, heads, predictor_heads, probe_heads, position, extrinsics
    )
    if not path.exists():
        raise ConvertError(f'{path} does not exist')
    if path.is_file():
        found = _read_torch(path, choices, tuple(allow_missing), steps_per_epoch, weights_only)
    elif (
        (path / hf_weights.CONFIG).exists()
        and not (path / checkpoint.MANIFEST).exists()
        and not (path / 'checkpoints').exists()
    ):
        found = _read_hf(path, tuple(allow_missing))
    else:
        found = _read_orbax(path)
    _agree(found, choices)
    return dataclasses.replace(found, training=None) if weights_only else found


def _agree(found: Weights, choices: shapes.Choices) -> None:
    """Refuses a choice that contradicts what the source itself says."""
    said: dict[str, Any] = {}
    if found.encoder:
        e = found.encoder
        said |= {'crop': e.image_size, 'frames': e.frames, 'heads': e.heads, 'position': e.position}
    if found.predictor:
        said['predictor_heads'] = found.predictor.heads
        said['extrinsics'] = getattr(found.predictor, 'use_extrinsics', None)
    if found.probe:
        said['probe_heads'] = found.probe[0].heads
    for option, value in said.items():
        told = getattr(choices, option)
        if told is not None and told != value:
            raise ConvertError(f'{found.source} says {option} {value}, which {told} contradicts')


def _tree(
    where: str,
    part: str,
    config: Any,
    rules: tuple[tables.Rule, ...],
    sizes: Mapping[str, int],
    arrays: Mapping[str, Leaf],
    allow_missing: tuple[str, ...],
    notes: list[str],
) -> tuple[dict, list[tables.Link]]:
    """A part's leaves, strictly by its table, and the links to the file's arrays."""
    module = net(part, config)
    links = tables.bind(rules, module.abstract, sizes)
    forms = {name: leaf.shape for name, leaf in arrays.items()}
    missing = tables.compare(f'{where}: {part}', links, rules, forms, allow_missing)
    if missing:
        fresh = dict(tables.to_file(links, module.init(jax.random.key(0))))
        for name in sorted(missing):
            notes.append(f'{part}: {name} is missing and gets its initial value')
            value = np.ascontiguousarray(fresh[name])
            arrays = {
                **arrays,
                name: Leaf(value.shape, value.dtype, functools.partial(np.asarray, value)),
            }
    for name, why in tables.dropped(rules, forms).items():
        notes.append(f'{part}: {name} is dropped: {why}')
    return tables.from_file(links, arrays), links


def _read_torch(path, choices, allow_missing, steps_per_epoch, weights_only) -> Weights:
    content = torch_weights.take_apart(path)
    reader = shapes.Reader(str(path), choices)
    reader.notes += content.notes
    forms = {p: {n: a.shape for n, a in arrays.items()} for p, arrays in content.parts.items()}
    for part, form in forms.items():
        if name := shapes.newer(form):
            raise ConvertError(
                f'{path} holds V-JEPA 2.1 ({part}: {name}); only 2.0 can be converted'
            )
    configs = _configs(path, reader, content, forms)
    trees, links = {}, {}
    for part, arrays in content.parts.items():
        configs[part] = _with_table(f'{path}: {part}', part, configs[part], arrays)
        rules, sizes = torch_weights.table(part, configs[part])
        trees[part], links[part] = _tree(
            str(path), part, configs[part], rules, sizes, arrays, allow_missing, reader.notes
        )
    training = None
    if content.opt is not None and not weights_only:
        training = _training(path, content, links, steps_per_epoch, reader.notes)
    encoder = next((configs[part] for part in ENCODERS if part in configs), None)
    return Weights(
        path,
        'torch',
        VERSION,
        shapes.size_of(encoder),
        encoder,
        next((configs[part] for part in PREDICTORS if part in configs), None),
        configs.get('probe'),
        trees,
        training,
        {head: tuple(names) for head, names in content.ours.get('labels', {}).items()},
        tuple(reader.notes),
    )


def _configs(path, reader: shapes.Reader, content, forms) -> dict[str, Any]:
    """Of each part: as we wrote beside it, else as the shapes and the user say."""
    if content.ours:
        known = orbax_weights.configs_of(str(path), content.ours)
        if unknown := [p for p in forms if ('encoder' if p in ENCODERS else p) not in known]:
            raise ConvertError(f'{path}: entry {torch_weights.OURS} says nothing of {unknown[0]}')
        return {part: known['encoder' if part in ENCODERS else part] for part in forms}
    found: dict[str, Any] = {}
    for part in ENCODERS:
        if part in forms:
            found[part] = reader.encoder(part, forms[part])
    if len({found[part] for part in found}) > 1:
        raise ConvertError(f'{path}: encoder and target_encoder are of different sizes')
    if 'predictor' in forms:
        found['predictor'] = reader.predictor(forms['predictor'], next(iter(found.values()), None))
    if 'ac_predictor' in forms:
        found['ac_predictor'] = reader.ac_predictor(forms['ac_predictor'])
    if 'probe' in forms:
        found['probe'] = reader.probe(forms['probe'])
    for part in PREDICTORS:
        encoder = next((found[p] for p in ENCODERS if p in found), None)
        if encoder and part in found and found[part].encoder_width != encoder.width:
            raise ConvertError(
                f'{path}: {part} is for an encoder of width {found[part].encoder_width}, the '
                f'encoder beside it has {encoder.width}'
            )
    return found


def _with_table(where: str, part: str, config: Any, arrays: Mapping[str, Leaf]) -> Any:
    """The config that computes the sin-cos table of a file, of the two ways to share the width.

    Raises:
      ConvertError: neither does, or a model with such positions has no table.
    """
    if getattr(config, 'position', 'rope') != 'sincos':
        return config
    for uniform in (True, False):
        tried = dataclasses.replace(config, uniform_power=uniform)
        ((name, table),) = torch_weights.made(part, tried).items()
        if name not in arrays:
            raise ConvertError(f'{where}: {name} is missing, which sin-cos positions need')
        if arrays[name].shape == table.shape and np.allclose(
            arrays[name], table, rtol=0, atol=1e-6
        ):
            return tried
    raise ConvertError(f'{where}: {name} is no sin-cos table of these crop and frames: say them')


def _training(path, content, links, steps_per_epoch, notes: list[str]) -> Training:
    parts = [p for p in ('encoder', *PREDICTORS) if p in content.parts]
    order = {p: {n: a.shape for n, a in content.parts[p].items()} for p in parts}
    found = torch_weights.moments(str(path), content.opt, order)
    mu, nu = {}, {}
    for part in parts:
        if not found.mu[part]:
            notes.append(f'{part}: frozen in training, no optimizer state')
            continue
        for moments, tree_of in ((found.mu, mu), (found.nu, nu)):
            arrays = {}
            for name, shape in tables.expected(links[part]).items():
                arrays[name] = moments[part].get(name) or _zeros(shape)
            tree_of[part] = tables.from_file(links[part], arrays)
        idle = [n for n in tables.expected(links[part]) if n not in found.mu[part]]
        allowed = ('mask_tokens.', 'extrinsics_encoder.')
        if wrong := [n for n in idle if not n.startswith(allowed)]:
            raise ConvertError(
                f'{path}: opt: nothing for {part} {wrong[0]}; --weights-only leaves it out'
            )
    epoch = content.plain.get('epoch')
    counted = epoch * steps_per_epoch if steps_per_epoch and epoch is not None else None
    step = content.ours.get('step', found.count if counted is None else counted)
    if counted not in (None, step):
        raise ConvertError(
            f'{path} is of step {step}, which {epoch} epochs of {steps_per_epoch} steps contradict'
        )
    if counted is None and 'step' not in content.ours:
        notes.append(f"step {step} (Adam's count; --steps-per-epoch N makes it epochs x N)")
    return Training(
        step, found.count, mu, nu, found.hyper, content.plain, content.ours.get('config')
    )


def _zeros(shape: tuple[int, ...]) -> Leaf:
    return Leaf(shape, np.dtype('float32'), lambda: np.zeros(shape, np.float32))


def _read_hf(path: pathlib.Path, allow_missing) -> Weights:
    config = hf_weights.read_config(path)
    parts = hf_weights.take_apart(path)
    configs = hf_weights.configs(config, parts)
    encoder, notes, trees = configs['encoder'], [], {}
    if 'encoder' not in parts:
        raise ConvertError(f'{path}: no array of the encoder')
    for part, arrays in parts.items():
        trees[part], _ = _tree(
            str(path), part, configs[part], hf_weights.ROWS[part], hf_weights.sizes(encoder),
            arrays, allow_missing, notes,
        )  # fmt: skip
    labels = {}
    if 'probe' in parts:
        notes.append(
            'probe: transformers has eps 1e-6 in the pooler, here it is 1e-5 as in the original: '
            'logits differ in the fifth digit'
        )
        names = config.get('id2label') or {}
        labels = {'linear': tuple(names[key] for key in sorted(names, key=int))}
    return Weights(
        path, 'hf', VERSION, shapes.size_of(encoder), encoder, configs.get('predictor'),
        configs.get('probe'), trees, None, labels, tuple(notes),
    )  # fmt: skip


def _read_orbax(path: pathlib.Path) -> Weights:
    folder = checkpoint.find(path)
    manifest = checkpoint.read_manifest(folder)
    whole = folder != path.absolute()  # of a run, `find` takes the newest that it found intact
    if not whole and (found := checkpoint.problems(folder)):
        raise Damaged(found[0])
    rows, extra = manifest['leaves'], manifest['extra']
    configs = orbax_weights.configs_of(str(folder), extra)
    trees = orbax_weights.trees(folder, rows, configs)
    encoder = configs.get('encoder')
    return Weights(
        path,
        'jax',
        VERSION,
        shapes.size_of(encoder),
        encoder,
        next((configs[part] for part in PREDICTORS if part in trees), None),
        configs.get('probe') if 'probe' in trees else None,
        trees,
        orbax_weights.training(folder, rows, extra, trees),
        {head: tuple(names) for head, names in extra.get('labels', {}).items()},
    )


# Writing


def write(
    weights: Weights,
    dst: str | os.PathLike,
    to: str,
    *,
    encoder: str = 'target',
    steps_per_epoch: int | None = None,
    progress: Callable[[int], Any] = lambda size: None,
) -> list[str]:
    """Writes weights, an array at a time.

    Args:
      dst: a file for 'torch', a folder for the others; must not exist.
      to: torch | hf | jax.
      encoder: target | online: which one a Hugging Face folder gets, for it holds one.
      steps_per_epoch: of a training checkpoint for the original, which counts epochs.
      progress: called with numbers of bytes; their sum is `nbytes(weights, to, encoder)`.

    Returns:
      Lines that say what was dropped or assumed.

    Raises:
      ConvertError: dst exists, or the format cannot hold the weights.
      CheckpointError: the disk has not enough room.
    """
    dst = pathlib.Path(dst).expanduser().absolute()
    if to not in FORMATS:
        raise ConvertError(f"to '{to}': allowed are {', '.join(FORMATS)}")
    refuse_existing(dst)
    if to == 'jax':
        orbax_weights.write(weights, dst, progress)
        return []
    if to == 'torch':
        return _write_torch(weights, dst, steps_per_epoch, progress)
    return _write_hf(weights, dst, encoder, progress)


def refuse_existing(dst: str | os.PathLike) -> None:
    """Raises ConvertError if something is at `dst` already."""
    if pathlib.Path(dst).expanduser().exists():
        raise ConvertError(f'{dst} exists: choose a new name or move it away')


def nbytes(weights: Weights, to: str, encoder: str = 'target') -> int:
    """Bytes of the arrays that `write` would write."""
    if to == 'hf':
        trees = [tree for _, tree in _hf_parts(weights, encoder)]
    else:
        trees = list(weights.trees.values())
        if t := weights.training:
            trees += [*t.mu.values(), *t.nu.values()]
    return sum(leaf.nbytes for tree in trees for leaf in flatten(tree).values())


def add_probe(weights: Weights, probe: Weights) -> Weights:
    """Weights with the attentive probe of another file.

    Raises:
      ConvertError: there is no probe, or it is for features of another width.
    """
    if 'probe' not in probe.trees:
        raise ConvertError(f'{probe.source} holds {", ".join(probe.trees)}, but no probe')
    if weights.encoder is None or weights.encoder.width != probe.probe[0].width:
        raise ConvertError(
            f'{probe.source}: a probe of features of width {probe.probe[0].width}, '
            f'{weights.source} has {weights.encoder.width if weights.encoder else "no encoder"}'
        )
    return dataclasses.replace(
        weights,
        probe=probe.probe,
        trees={**weights.trees, 'probe': probe.trees['probe']},
        labels={**weights.labels, **probe.labels},
        notes=tuple(dict.fromkeys((*weights.notes, *probe.notes))),
    )


def _links(part: str, config: Any) -> list[tables.Link]:
    rules, sizes = torch_weights.table(part, config)
    return tables.bind(rules, net(part, config).abstract, sizes)


def _write_torch(weights: Weights, dst: pathlib.Path, steps_per_epoch, progress) -> list[str]:
    parts = {part: weights.config(part) for part in weights.trees}
    notes = [note for part, config in parts.items() for note in torch_weights.beyond(part, config)]
    if weights.training and 'target' not in weights.trees and 'predictor' in weights.trees:
        raise ConvertError(f'{weights.source}: a training checkpoint without a target encoder')
    made = {part: torch_weights.made(part, config) for part, config in parts.items()}
    tables_size = sum(table.nbytes for found in made.values() for table in found.values())
    scratch = torch_weights.prepare(dst, nbytes(weights, 'torch') + tables_size)
    links = {part: _links(part, config) for part, config in parts.items()}

    def tensors(part: str, tree: Mapping) -> Iterator[tuple[str, Any]]:
        for name, array in tables.to_file(links[part], tree):
            progress(array.nbytes)
            yield name, scratch.put(array)

    ac = 'ac_predictor' in weights.trees
    prefix = 'module.' if ac else 'module.backbone.'
    content: dict[str, Any] = {}
    order: dict[str, dict[str, tuple[int, ...]]] = {}
    for part, tree in weights.trees.items():
        arrays = dict(tensors(part, tree))
        arrays |= {name: scratch.put(table) for name, table in made[part].items()}
        names = [*made[part], *tables.file_order(links[part])]
        order[part] = {name: tuple(arrays[name].shape) for name in names}
        state = {name: arrays[name] for name in names}
        if part == 'probe':
            content['classifiers'] = [{f'module.{n}': a for n, a in state.items()}]
        else:
            content[_entry(part)] = {f'{prefix}{n}': a for n, a in state.items()}
    for one, other in (('encoder', 'target_encoder'), ('target_encoder', 'encoder')):
        if one in content and other not in content:
            content[other] = content[one]
            notes.append('one encoder in the source: the file names it encoder and target_encoder')
    content[torch_weights.OURS] = orbax_weights.extra(weights)
    if t := weights.training:
        order = {part: order[part] for part in ('encoder', *PREDICTORS) if part in order}
        mu, nu = {}, {}
        for part in t.mu:
            idle = _idle(part, links[part], t.nu[part])
            for tree, found in ((t.mu[part], mu), (t.nu[part], nu)):
                found |= {(part, n): a for n, a in tensors(part, tree) if n not in idle}
        content['opt'] = torch_weights.optimizer(scratch, order, mu, nu, t.count, t.hyper)
        content |= _plain(t, steps_per_epoch, notes)
        content[torch_weights.OURS]['step'] = t.step
    content[torch_weights.OURS] = json.dumps(content[torch_weights.OURS])
    torch_weights.save(content, dst)
    return notes


def _entry(part: str) -> str:
    return {'target': 'target_encoder', 'ac_predictor': 'predictor'}.get(part, part)


def _idle(part: str, links: list[tables.Link], nu: Mapping) -> set[str]:
    """Arrays that no gradient ever reached: PyTorch has no state for them, ours is zero."""
    leaves = flatten(nu)
    maybe = ('mask_tokens/', 'extrinsics_encoder/')
    return {
        name
        for link in links
        if link.path.startswith(maybe) and not np.asarray(leaves[link.path]).any()
        for names in link.keys
        for name in names
    }


def _plain(t: Training, steps_per_epoch: int | None, notes: list[str]) -> dict[str, Any]:
    """The entries of a training checkpoint beside nets and optimizer. (reference: vjepa2 §5.5)"""
    if t.original:
        return dict(t.original)
    epoch = steps_per_epoch or 300  # steps
    if steps_per_epoch is None:
        notes.append('steps_per_epoch 300 (as the released configs; --steps-per-epoch to change)')
    if t.step % epoch:
        notes.append(
            f'step {t.step} is not a whole number of epochs of {epoch}: the original goes on from '
            f'step {t.step // epoch * epoch} of its schedules'
        )
    batch = t.config['optim']['batch'] if t.config else None
    return {
        'scaler': torch_weights.fresh_scaler(),
        'epoch': t.step // epoch,
        'loss': None,
        'batch_size': batch,
        'world_size': 1,
        'lr': t.hyper['lr'],
    }


def _hf_parts(weights: Weights, encoder: str) -> list[tuple[str, dict]]:
    parts = [('encoder', weights.trees[weights.pick(encoder)])]
    return parts + [(p, weights.trees[p]) for p in ('predictor', 'probe') if p in weights.trees]


def _write_hf(weights: Weights, dst: pathlib.Path, encoder: str, progress) -> list[str]:
    chosen = weights.pick(encoder)
    parts = _hf_parts(weights, encoder)
    which = {'target': 'target', 'encoder': 'online one'}[chosen]
    if sum(part in weights.trees for part in ENCODERS) == 1:
        which = 'only one in the source'
    notes = [f'the encoder is the {which}']
    kept = {chosen, 'predictor', 'probe'}
    notes += [f'dropped: {orbax_weights.weights.NAMES[p]}' for p in weights.trees if p not in kept]
    if weights.training:
        notes.append('dropped: the optimizer')
    if 'predictor' not in weights.trees:
        notes.append('no predictor: transformers starts one at random, and says so')
    dst.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.check_room(dst.parent, nbytes(weights, 'hf', encoder))
    probe = weights.probe if 'probe' in weights.trees else None
    if probe and list(probe[1]) != ['linear']:
        raise ConvertError(f'{dst}: a probe with heads {", ".join(probe[1])}, must be one: linear')
    links, sizes = {}, {}
    for part, _ in parts:
        config = weights.config(part)
        rows, axes = hf_weights.ROWS[part], hf_weights.sizes(weights.encoder)
        links[part] = tables.bind(rows, net(part, config).abstract, axes)
        prefix = 'vjepa2.' if probe and part != 'probe' else ''
        stacked = {n for link in links[part] if link.index is not None for n in link.form()[0]}
        forms = tables.expected(links[part])
        for name in sorted(forms, key=lambda n: n in stacked):  # as tables.to_file yields them
            sizes[prefix + name] = 4 * int(np.prod(forms[name]))
    with hf_weights.folder_at(dst) as folder:
        predictor = weights.predictor if 'predictor' in weights.trees else None
        labels = weights.labels.get('linear', ())
        hf_weights.write_config(folder, weights.encoder, predictor, probe, labels)
        shards = hf_weights.Shards(folder, sizes)
        for part, tree in parts:
            prefix = 'vjepa2.' if probe and part != 'probe' else ''
            for name, array in tables.to_file(links[part], tree):
                shards.put(prefix + name, array)
                progress(array.nbytes)
        shards.close()
    return notes
