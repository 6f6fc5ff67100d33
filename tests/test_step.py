"""The training step against two steps of the original (J rows), and what must hold besides."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from torch_fill import checksum, fill, mask_pair, normal

from jepa_jax import optim
from jepa_jax.config import EmaOptimConfig
from jepa_jax.data import Batch, Group
from jepa_jax.masks import Mask
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.sharding import BATCH, make_mesh, path_name, place, put_batch
from jepa_jax.state import TrainState
from jepa_jax.step import first_nonfinite, gradients, make_step, parts_of

LOSS = 1e-5  # design: loss of a step, parameters after two steps
ENCODER = ViTConfig(96, 3, 4, image_size=64, frames=8, dtype=jnp.float32, remat='none')
PREDICTOR = PredictorConfig(
    96, 48, 2, 2, mask_tokens=4, grid=(4, 4, 4), dtype=jnp.float32, remat='none'
)
OPTIM = EmaOptimConfig(
    batch=4, steps=20, warmup=5, start_lr=1e-4, lr=1e-3, final_lr=1e-5, weight_decay=0.04,
    final_weight_decay=0.4, ipe_scale=1.25, momentum=0.9, final_momentum=1.0,
)  # fmt: skip

# exponent -> (loss 1, its parts, loss 2, gradient norms by parameter of the first step)
GOLDEN = {
    1.0: (
        0.84101754,
        (0.83524799, 0.84119433, 0.84675783, 0.84086996),
        0.83079600,
        {
            'encoder': 0.0096218367,
            'predictor': 0.27395189,
            'encoder/patch_embed/kernel': 0.0072518207,
            'encoder/blocks/attn/qkv/kernel/0': 9.2907748e-4,
            'predictor/embed/kernel': 0.0091033369,
            'predictor/mask_tokens/0': 0.065188914,
            'predictor/mask_tokens/1': 0.054279511,
        },
    ),
    2.0: (
        0.55164522,
        (0.54953057, 0.55119193, 0.55571687, 0.55014145),
        0.53873920,
        {
            'encoder': 0.011802878,
            'predictor': 0.34788845,
            'encoder/patch_embed/kernel': 0.0089895285,
            'encoder/blocks/attn/qkv/kernel/0': 1.1346256e-3,
            'predictor/embed/kernel': 0.011272830,
            'predictor/mask_tokens/0': 0.086335372,
            'predictor/mask_tokens/1': 0.069745152,
        },
    ),
}


def make_batch() -> Batch:
    def group(x, *pairs):
        return Group(np.moveaxis(x, 1, -1), tuple(Mask(*pair) for pair in pairs))

    eight = (mask_pair(1, 2, 64, 20, 30), mask_pair(2, 2, 64, 12, 40))
    four = (mask_pair(3, 3, 32, 10, 15), mask_pair(4, 3, 32, 8, 20))
    return Batch(
        (group(normal(0, 2, 3, 8, 64, 64), *eight), group(normal(10, 3, 3, 4, 64, 64), *four))
    )


@functools.cache  # compiling is what these tests take their time for
def make_run(exponent: float, groups: int = 2, accumulate: int = 1, averages: bool = False):
    """Objective, optimizer, state, and step(state, batch) -> state, metrics, and the gradients for
    parameters, which XLA computes once, and (asked for) for the averages."""
    objective = MaskedVideo(ENCODER, PREDICTOR, groups=groups, exponent=exponent)
    encoder = fill(objective.nets['encoder'].abstract, sigma=0.05)
    predictor = fill(objective.nets['predictor'].abstract, sigma=0.05, predictor=True)
    params = jax.tree.map(jnp.asarray, {'encoder': encoder, 'predictor': predictor})
    optimizer = optim.build(dataclasses.replace(OPTIM, accumulate=accumulate), objective)
    ema = {'encoder': jax.tree.map(jnp.copy, params['encoder'])}

    @jax.jit
    def step(state, batch):
        _, grads = gradients(objective, state, {}, batch, accumulate)
        through = jax.grad(lambda ema: objective.loss(state.params, ema, {}, batch, state.step)[0])
        stepped = make_step(objective, optimizer, accumulate)(state, {}, batch)
        return *stepped, grads, through(state.ema) if averages else {}

    state = TrainState(jnp.int32(0), params, ema, optimizer.tx.init(params))
    return objective, optimizer, state, step


@pytest.mark.parametrize('exponent', [1.0, 2.0])
def test_two_steps_of_the_original(exponent, golden_step):
    loss1, parts, loss2, norms = GOLDEN[exponent]
    _, _, initial, step = make_run(exponent, averages=exponent == 1.0)
    batch = make_batch()
    state, first, grads, through = step(initial, batch)
    leaves = {path_name(p): np.asarray(g) for p, g in jax.tree_util.tree_leaves_with_path(grads)}
    for name, expected in norms.items():
        if name in ('encoder', 'predictor'):
            result = float(optax.tree.norm(grads[name]))
        elif name.endswith('kernel/0'):
            result = np.linalg.norm(leaves[name.removesuffix('/0')][0])
        else:
            result = np.linalg.norm(leaves[name])
        assert result == pytest.approx(expected, rel=2e-5), name
    for unused in ('predictor/mask_tokens/2', 'predictor/mask_tokens/3'):
        assert not leaves[unused].any()
    assert jax.tree.leaves(through) or exponent != 1.0
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(through))  # none for the target

    before = np.asarray(initial.params['predictor']['mask_tokens']['2'])
    state, second, *_ = step(state, batch)
    assert float(first['loss']) == pytest.approx(loss1, abs=LOSS)
    assert float(second['loss']) == pytest.approx(loss2, abs=LOSS)
    result = [float(first[f'loss/group{g}_mask{m}']) for g in (0, 1) for m in (0, 1)]
    np.testing.assert_allclose(result, parts, rtol=0, atol=LOSS)
    assert float(first['lr']) == pytest.approx(2.8e-4, rel=1e-6)
    assert float(second['lr']) == pytest.approx(4.6e-4, rel=1e-6)
    assert float(first['weight_decay']) == pytest.approx(0.041419354, rel=1e-6)
    assert float(second['weight_decay']) == pytest.approx(0.045655031, rel=1e-6)
    assert float(first['momentum']) == pytest.approx(0.9, abs=1e-6)
    assert float(second['momentum']) == pytest.approx(0.904, abs=1e-6)
    assert float(first['grad_norm/encoder']) == pytest.approx(norms['encoder'], rel=2e-5)

    e, p = state.params['encoder'], state.params['predictor']
    target = state.ema['encoder']
    after = {
        'enc_backbone.blocks.0.attn.qkv.weight': e['blocks']['attn']['qkv']['kernel'][0].T,
        'enc_backbone.norm.bias': e['norm']['bias'],
        'tgt_backbone.blocks.0.attn.qkv.weight': target['blocks']['attn']['qkv']['kernel'][0].T,
        'pred_backbone.mask_tokens.0': p['mask_tokens']['0'],
        'pred_backbone.mask_tokens.2': p['mask_tokens']['2'],
        'pred_backbone.predictor_proj.weight': p['proj']['kernel'].T,
    }
    for name, value in after.items():
        golden = golden_step[f'J_exp={exponent}_after2_{name}']
        value = (
            value if value.shape == golden.shape else value[::3]
        )  # of large ones every third row
        np.testing.assert_allclose(value, golden, rtol=0, atol=LOSS, err_msg=name)
    np.testing.assert_array_equal(p['mask_tokens']['2'], before)  # neither moved nor decayed
    assert checksum(p['mask_tokens']['0']) == pytest.approx(
        {1.0: 0.09669798, 2.0: 0.09533094}[exponent], abs=1e-4
    )


def even_batch(size: int = 16) -> Batch:
    """One group of different clips and one mask, to be cut into parts and over devices."""
    return Batch((Group(normal(5, size, 4, 64, 64, 3), (Mask(*mask_pair(6, size, 32, 10, 15)),)),))


def largest_difference(a, b) -> float:
    return max(
        float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_accumulation_is_the_large_batch(accumulate=2):
    _, _, state, step = make_run(1.0, groups=1)
    batch = even_batch()
    whole, metrics, g1, _ = step(state, batch)
    *_, in_parts = make_run(1.0, groups=1, accumulate=accumulate)
    cut, cut_metrics, g2, _ = in_parts(state, batch)
    assert float(metrics['loss']) == pytest.approx(float(cut_metrics['loss']), abs=1e-6)
    assert largest_difference(g1, g2) < 1e-6
    assert largest_difference(whole.ema, cut.ema) < 1e-5
    # and it is no accident: a part alone, as often as makes a batch, gives another gradient
    part = jax.tree.map(lambda a: np.repeat(a[::accumulate], accumulate, axis=0), batch)
    _, _, g3, _ = step(state, part)
    assert largest_difference(g1, g3) > 1e-5


@pytest.mark.parametrize('fsdp', [1, 2, 8])
@pytest.mark.parametrize('rows', [8, 16, 64])
def test_parts_are_spread_over_all_devices(rows, fsdp):
    """With one row a device and part, too, whichever axes of the mesh have one device."""
    mesh, count = make_mesh(fsdp=fsdp), rows // 8 if rows < 64 else 2
    batch = np.arange(3 * rows).reshape(rows, 3)
    with jax.set_mesh(mesh):
        parts = jax.jit(parts_of, static_argnums=1)(put_batch(batch, mesh), count)
        assert jax.typeof(parts).sharding.spec == jax.P(None, BATCH[0], None)
    np.testing.assert_array_equal(parts, batch.reshape(-1, count, 3).swapaxes(0, 1))


@pytest.mark.parametrize('accumulate', [1, 2])
def test_mesh_of_eight_devices_equals_one(accumulate):
    objective, optimizer, state, step = make_run(1.0, groups=1, accumulate=accumulate)
    batch = even_batch()
    single, metrics, *_ = step(state, batch)
    mesh = make_mesh(fsdp=2)
    with jax.set_mesh(mesh):
        params = jax.device_put(state.params, jax.NamedSharding(mesh, jax.P()))
        params = jax.jit(lambda p: place(p, objective.specs))(params)
        spread = TrainState(
            jax.device_put(state.step, jax.NamedSharding(mesh, jax.P())),
            params,
            {'encoder': jax.jit(lambda p: jax.tree.map(jnp.copy, p))(params['encoder'])},
            jax.jit(optimizer.tx.init)(params),
        )
        qkv = spread.opt_state[0].mu['encoder']['blocks']['attn']['qkv']['kernel']
        assert qkv.sharding.spec == jax.P(None, 'fsdp', None)  # moments inherit the sharding
        many, many_metrics = jax.jit(make_step(objective, optimizer, accumulate))(
            spread, {}, put_batch(batch, mesh)
        )
    assert float(metrics['loss']) == pytest.approx(float(many_metrics['loss']), abs=1e-6)
    assert largest_difference(single.ema, many.ema) < 1e-5


def test_non_finite_batch_leaves_the_state_and_is_named():
    objective, _, state, step = make_run(1.0, averages=True)
    batch = make_batch()
    clips = np.array(batch.groups[1].clips)
    clips[0, 0, 0, 0] = np.nan
    bad = Batch((batch.groups[0], dataclasses.replace(batch.groups[1], clips=clips)))
    after, metrics, *_ = step(state, bad)
    assert not bool(metrics['finite'])
    assert largest_difference(state, after) == 0

    def less(batch: Batch) -> Batch:  # to compile: one mask a group; a row a part
        return jax.tree.map(
            lambda a: a[1::-1], Batch(tuple(Group(g.clips, g.masks[:1]) for g in batch.groups))
        )

    first = first_nonfinite(objective, state, {}, less(bad), 2)
    assert first == 'group1: target encoder block 00'  # of the second part
    broken = jax.tree.map(lambda a: a, state.params)
    broken['predictor']['proj']['kernel'] = (
        broken['predictor']['proj']['kernel'].at[0, 0].set(jnp.inf)
    )
    gone = dataclasses.replace(state, params=broken)
    name = first_nonfinite(objective, gone, {}, less(batch), 2)
    assert name == 'params/predictor/proj/kernel'
    _, metrics, *_ = step(state, batch)
    assert bool(metrics['finite'])
