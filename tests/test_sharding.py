"""Where parameters lie: every tensor of ViT-g in a golden file, every kind of net on any mesh, and
bytes of a state a device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import HERE

from jepa_jax import optim
from jepa_jax.config import EmaOptimConfig
from jepa_jax.models import SIZES
from jepa_jax.models.ac_predictor import CONDITIONING, ACPredictorConfig
from jepa_jax.models.adapter import AdapterConfig
from jepa_jax.models.decoder import DecoderConfig
from jepa_jax.models.expander import ExpanderConfig
from jepa_jax.models.layers import MLPS
from jepa_jax.models.pixel_decoder import PixelDecoderConfig
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.projector import ProjectorConfig
from jepa_jax.models.rope import FLAVOURS
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import Net
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.sharding import (
    BATCH,
    MAX_FSDP,
    VECTORS,
    concrete,
    make_mesh,
    path_name,
    put_params,
    specs_for,
)
from jepa_jax.state import init_state
from jepa_jax.weights.parts import PARTS, net

GOLDEN = HERE / 'golden/vitg_parameters.txt'


@functools.cache
def vitg(width: int = 1408, patch: int = 16) -> MaskedVideo:
    """ViT-g; with another width the same tensors, and small enough to be drawn."""
    encoder = ViTConfig(width, 40, 22, 48 / 11, patch=patch, dtype=jnp.float32)
    return MaskedVideo(encoder, PredictorConfig(width, dtype=jnp.float32), groups=1)


def drawn(a: np.ndarray, stacked: bool) -> str:
    """How values were initialised, as the values say: 0, 1, or a deviation, of the first and last
    layer where they differ."""
    if (a == 0).all() or (a == 1).all():
        return str(int(a.flat[0]))
    ends = [f'{np.std(part):.2g}' for part in ((a[0], a[-1]) if stacked else (a,))]
    return 'normal ' + ' to '.join(dict.fromkeys(ends))


def laid(abstract, specs) -> list[tuple[str, jax.ShapeDtypeStruct, jax.P]]:
    """Name, shape and spec of every parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    each = jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, jax.P))
    return [(path_name(path), leaf, spec) for (path, leaf), spec in zip(leaves, each, strict=True)]


def table() -> str:
    """One line a parameter of ViT-g and its predictor: path, shape, spec, start, weight decay."""
    objective, small = vitg(), vitg(264, 4)
    decays = jax.tree.leaves(optim.decay_mask(objective.abstract, objective.unused))
    values = jax.tree.leaves(jax.jit(small.init)(jax.random.key(0)))
    lines = []
    for (name, leaf, spec), value, decay in zip(
        laid(objective.abstract, objective.specs), values, decays, strict=True
    ):
        spec = ', '.join(map(str, spec)) or 'replicated'
        start = drawn(np.asarray(value), 'blocks' in name)
        shape = 'x'.join(map(str, leaf.shape))
        lines.append(f'{name:48} {shape:14} {spec:18} {start:26} {"decay" if decay else "-"}')
    return '\n'.join(lines) + '\n'


def test_every_tensor_of_vitg():
    """On purpose changed? `python tests/test_sharding.py` writes the file anew; read its diff."""
    assert table() == GOLDEN.read_text()


def bytes_by_placement(state) -> tuple[int, int]:
    sharded = [leaf for leaf in jax.tree.leaves(state) if 'fsdp' in leaf.sharding.spec]
    every = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return (total := sum(a.size * a.dtype.itemsize for a in sharded)), every - total


@pytest.mark.parametrize('fsdp', [2, 8])
def test_a_device_holds_its_share(fsdp):
    """Exactly total / fsdp of what is sharded, and all of what is small: measured."""
    encoder = ViTConfig(96, 2, 4, patch=8, dtype=jnp.float32)
    predictor = PredictorConfig(96, 48, 2, 2, mask_tokens=2, dtype=jnp.float32)
    objective = MaskedVideo(encoder, predictor, groups=1)
    tx = optim.build(EmaOptimConfig(steps=2, warmup=0), objective).tx
    mesh = make_mesh(fsdp)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda key: init_state(objective, tx, key))(jax.random.key(0))
    sharded, replicated = bytes_by_placement(state)
    for device in jax.devices():
        held = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(state)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert held == sharded / fsdp + replicated
    # moments and averages lie as their parameters, and weights from the host where they do
    host = jax.device_get(state.params)
    copies = [state.opt_state[0].mu, state.opt_state[0].nu, put_params(host, objective.specs, mesh)]
    averaged = {'encoder': state.params['encoder']}
    for tree, like in (*((copy, state.params) for copy in copies), (state.ema, averaged)):
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def test_what_vitg_replicates_is_small():
    objective = vitg()
    tx = optim.build(EmaOptimConfig(), objective).tx
    mesh = make_mesh(8)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda k: init_state(objective, tx, k), jax.random.key(0))
        sharded, replicated = bytes_by_placement(concrete(state, mesh))
    trained = 1_012_173_952 + 22_381_312  # reference: vjepa2 §1.1, §2
    assert sharded + replicated == pytest.approx(4 * (3 * trained + 1_012_173_952), abs=64)
    assert replicated < 0.001 * sharded


# --- Every kind of net ---------------------------------------------------------------------------

WIDTH = 96


def kinds() -> dict[str, tuple[str, object]]:
    """A small net of every part, with all that changes which parameters it has."""
    made = {}
    for mlp in MLPS:
        for position in ('rope', 'sincos'):
            vit = ViTConfig(WIDTH, 1, 4, patch=8, mlp=mlp, position=position)
            made[f'encoder {mlp} {position}'] = 'encoder', vit
            predictor = PredictorConfig(WIDTH, 48, 1, 2, mask_tokens=2, mlp=mlp, position=position)
            made[f'predictor {mlp} {position}'] = 'predictor', predictor
        for conditioning in CONDITIONING:
            ac = ACPredictorConfig(WIDTH, 48, 1, 2, mlp=mlp, grid=(4, 4), conditioning=conditioning)
            made[f'ac_predictor {mlp} {conditioning}'] = 'ac_predictor', ac
            blind = dataclasses.replace(ac, state_width=0)
            made[f'ac_predictor {mlp} {conditioning} without states'] = 'ac_predictor', blind
    image = ViTConfig(WIDTH, 1, 4, patch=8, tubelet=1, position='sincos', class_token=True)
    made['encoder of MAE'] = 'encoder', dataclasses.replace(image, stored_table=True)
    made['encoder of VideoMAE'] = 'encoder', dataclasses.replace(image, tubelet=2, key_bias=False)
    for mae in (True, False):
        decoder = PixelDecoderConfig(
            WIDTH, 192, 48, 1, 2, grid=(0, 4, 4), class_token=mae, embed_bias=mae, key_bias=mae,
            stored_table=mae,
        )  # fmt: skip
        made['decoder of ' + ('MAE' if mae else 'VideoMAE')] = 'pixel_decoder', decoder
    for hidden in ((), (48, 48)):
        made[f'expander {hidden}'] = 'expander', ExpanderConfig(WIDTH, hidden, 48)
    for depth in (1, 2):
        pooler = PoolerConfig(WIDTH, heads=4, depth=depth, queries=2)
        made[f'probe of depth {depth}'] = 'probe', (pooler, {'motion': 2, 'shape': 3})
        projector = ProjectorConfig(WIDTH, 48, (2, 2, 2), 'pooler', queries=2, depth=depth, heads=4)
        made[f'projector, pooler of depth {depth}'] = 'projector', projector
    made['projector'] = 'projector', ProjectorConfig(WIDTH, 48, (2, 2, 2), pool=2)
    for tied in (False, True):
        llm = DecoderConfig(128, WIDTH, 160, 1, 4, 2, 24, tied=tied, bias=tied)
        made[f'decoder, tied {tied}'] = 'decoder', llm
    made['adapter'] = 'adapter', AdapterConfig.of(llm, 2, 4.0, '.*')
    return made


KINDS = kinds()


def test_every_part_is_among_the_kinds():
    assert {part for part, _ in KINDS.values()} == set(PARTS)


@pytest.mark.parametrize('kind', KINDS)
def test_every_parameter_has_a_rule_and_every_rule_a_parameter(kind):
    part = net(*KINDS[kind])
    parameters = laid(part.abstract, part.specs)  # refuses what does not fit
    assert parameters
    for name, leaf, spec in parameters:
        assert len(spec) <= leaf.ndim, name
        # along the width of the model, or of the encoder beside it
        assert all(leaf.shape[i] in (WIDTH, 48) for i, axis in enumerate(spec) if axis), name
        matrix = leaf.ndim - ('blocks/' in name) > 1
        whole = 'mask_', 'class_', 'table', 'action_', 'state_', 'pooler/'
        if matrix and part.part not in ('probe', 'adapter') and not name.startswith(whole):
            assert 'fsdp' in spec or 'extrinsics' in name, name


def test_rules_that_do_not_fit_are_refused():
    abstract = net(*KINDS['encoder gelu rope']).abstract
    rules = (r'.*kernel', jax.P()), *VECTORS
    specs_for(rules, abstract)
    with pytest.raises(ValueError, match="'blocks/attn/proj/kernel' matches no sharding rule"):
        specs_for(VECTORS, abstract)
    with pytest.raises(ValueError, match="sharding rule 'blocks/mlp/fc3/kernel' matches no par"):
        specs_for((*rules, (r'blocks/mlp/fc3/kernel', jax.P())), abstract)
    with pytest.raises(ValueError, match='no sharding rules'):
        Net(lambda rngs: None).specs  # noqa: B018


def shards_evenly(part: Net, fsdp: int) -> bool:
    return all(
        leaf.shape[axis] % fsdp == 0
        for _, leaf, spec in laid(part.abstract, part.specs)
        for axis, over in enumerate(spec)
        if over
    )


@pytest.mark.parametrize('mlp', MLPS)
def test_a_mesh_that_divides_the_widths_divides_every_parameter(mlp):
    """Two thirds of four times the width of ViT-L are rounded to 2,736, which 32 does not divide:
    no parameter may be cut along it."""
    encoders = [
        ViTConfig(s.width, 2, s.heads, s.mlp_ratio, mlp=mlp) for s in dict.fromkeys(SIZES.values())
    ]
    predictors = [PredictorConfig(1024, mlp=mlp, depth=2)]
    predictors.append(ACPredictorConfig(1024, depth=2, mlp=mlp))
    tried = 0
    for config in encoders + predictors:
        name = {ViTConfig: 'encoder', PredictorConfig: 'predictor'}.get(type(config))
        part = net(name or 'ac_predictor', config)
        for fsdp in range(1, MAX_FSDP + 1):
            if config.width % fsdp == 0 and getattr(config, 'encoder_width', 0) % fsdp == 0:
                assert shards_evenly(part, fsdp), (config, fsdp)
                tried += 1
    assert tried > 50


def test_a_hidden_width_that_the_mesh_does_not_divide_is_placed():
    """On eight devices, with 100 hidden channels."""
    part = net('encoder', ViTConfig(48, 1, 2, 100 / 48, patch=8, mlp='swiglu_full'))
    zeros = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), part.abstract)
    kernel = put_params(zeros, part.specs, make_mesh(8))['blocks']['mlp']['fc2']['kernel']
    assert kernel.shape == (1, 48, 100) and kernel.addressable_shards[0].data.shape == (1, 6, 100)


SEEN = np.zeros((1, 4, WIDTH), np.float32)  # of one clip
ONE_CLIP = {
    **{
        f'encoder {rope}': (
            ('encoder', ViTConfig(WIDTH, 1, 1, patch=8, rope=rope)),
            (np.zeros((1, 2, 16, 16, 3), np.float32),),
        )
        for rope in FLAVOURS
    },
    'predictor': (
        ('predictor', PredictorConfig(WIDTH, 48, 1, 1, mask_tokens=1)),
        (SEEN, np.arange(4, dtype=np.int32)[None], np.arange(4, 5, dtype=np.int32)[None], 0),
    ),
    **{
        f'ac_predictor {conditioning}, {heads} heads': (
            ('ac_predictor', ACPredictorConfig(
                WIDTH, 48, 1, heads, grid=(2, 2), conditioning=conditioning
            )),
            (SEEN, np.zeros((1, 1, 7), np.float32), np.zeros((1, 1, 7), np.float32)),
        )
        for conditioning in CONDITIONING
        for heads in (1, 2)
    },
    'projector': (
        ('projector', ProjectorConfig(WIDTH, 48, (1, 2, 2), 'pooler', queries=1, depth=2, heads=1)),
        (SEEN,),
    ),
    'decoder': (
        ('decoder', DecoderConfig(128, WIDTH, 160, 1, 1, 1, 24)),
        (SEEN, np.arange(4, dtype=np.int32)[None]),
    ),
}  # fmt: skip


@pytest.mark.parametrize('kind', ONE_CLIP)
def test_one_clip_of_one_head_or_frame_on_one_device(kind):
    """Neither gradient nor result loses where the batch lies: a mesh of one device forgets it where
    an axis of 1 is put beside a batch of 1."""
    which, inputs = ONE_CLIP[kind]
    part, mesh = net(*which), make_mesh(1, jax.devices()[:1])
    arrays = [a for a in inputs if hasattr(a, 'shape')]
    rest = inputs[len(arrays) :]

    def one(a, spec=BATCH):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=jax.NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        params = jax.tree.map(one, part.abstract, part.specs)

        def loss(params, *arrays):
            out = part(params, *arrays, *rest)
            assert jax.typeof(out).sharding.spec[0] == BATCH[0]
            return jnp.square(out).mean()

        jax.eval_shape(jax.grad(loss), params, *map(one, arrays))


if __name__ == '__main__':
    GOLDEN.write_text(table())
