"""Two training steps of I-JEPA (I5) and of V-JEPA 1 (V6, V7) against the originals'."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jepa_fill import filled, names, some
from torch_fill import assert_whole, checksum, mask_pair, normal

from jepa_jax import optim
from jepa_jax.config import EmaOptimConfig, ImageMaskConfig
from jepa_jax.data import Batch, Group
from jepa_jax.masks import Mask
from jepa_jax.masks.draws import torch_stream
from jepa_jax.masks.image import ReferenceSampler
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives.masked_image import MaskedImage, smooth
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.sharding import make_mesh, place, put_batch
from jepa_jax.state import TrainState
from jepa_jax.step import make_step
from jepa_jax.weights import tables

CLOSE = 1e-5
F32 = dict(dtype=jnp.float32, remat='none', position='sincos')
OPTIM = EmaOptimConfig(
    batch=3, steps=20, warmup=5, start_lr=1e-4, lr=1e-3, final_lr=1e-5, weight_decay=0.04,
    final_weight_decay=0.4, ipe_scale=1.25, momentum=0.9, final_momentum=1.0,
)  # fmt: skip
IMAGES = (
    ViTConfig(32, 2, 2, patch=8, tubelet=1, frames=1, image_size=64, axes='xy', **F32),
    PredictorConfig(32, 24, 2, 2, mask_tokens=1, grid=(0, 8, 8), axes='xy', **F32),
)
VIDEOS = (
    ViTConfig(32, 2, 2, image_size=64, frames=4, **F32),
    PredictorConfig(32, 24, 2, 2, mask_tokens=2, grid=(2, 4, 4), **F32),
)


def images():
    """Batches: their masks are the original's, three calls with the global seed 239."""
    sampler, stream = ReferenceSampler(ImageMaskConfig(min_keep=4), (8, 8)), torch_stream(239)
    for step in range(3):
        context, targets = sampler(step, stream, 3)
        clips = np.moveaxis(normal(50 + step, 3, 3, 64, 64), 1, -1)[:, None]
        yield Batch((Group(clips, (Mask(context[0], targets.swapaxes(0, 1)),)),))


def videos():
    masks = tuple(Mask(*mask_pair(*key)) for key in ((1, 2, 32, 10, 12), (2, 2, 32, 6, 20)))
    for step in range(2):
        yield Batch((Group(np.moveaxis(normal(60 + step, 2, 3, 4, 64, 64), 1, -1), masks),))


def two_steps(objective, configs, batches, config=OPTIM):
    """Metrics of both steps, gradients of the first and parameters after both, by the original's
    names; and a step from there: batch -> its metrics."""
    params = {part: filled(part, c) for part, c in zip(('encoder', 'predictor'), configs)}
    optimizer = optim.build(config, objective)
    state = TrainState(
        jnp.zeros((), jnp.int32),
        params,
        {'encoder': jax.tree.map(jnp.copy, params['encoder'])},
        optimizer.tx.init(params),
    )
    step, metrics = jax.jit(make_step(objective, optimizer)), []
    for batch in batches:
        state, row = step(state, {}, batch)
        metrics.append(row)
        if len(metrics) == 1:  # Adam's first moment is then a tenth of the gradient
            gradients = jax.tree.map(lambda m: m / 0.1, state.opt_state[0].mu)
    links = {part: names(part, c) for part, c in zip(('encoder', 'predictor'), configs)}

    def theirs(trees):
        rows = {'encoder': 'encoder', 'predictor': 'predictor', 'target': 'encoder'}
        return {
            f'{name}/{key}': array
            for name, tree in trees.items()
            for key, array in tables.to_file(links[rows[name]], tree)
        }

    after = theirs(state.params | {'target': state.ema['encoder']})
    return metrics, theirs(gradients), after, lambda batch: step(state, {}, batch)[1]


def check_norms(gradients, golden, case):
    for name, expected in zip(golden[f'{case}_grad_names'], golden[f'{case}_grad_norms']):
        norm = float(np.linalg.norm(gradients[str(name)].astype(np.float64)))
        np.testing.assert_allclose(norm, expected, rtol=CLOSE, err_msg=str(name))


def test_steps_of_ijepa(golden_jepa):
    objective = MaskedImage(*IMAGES)
    *batches, third = images()
    metrics, gradients, after, another = two_steps(objective, IMAGES, batches)
    metrics.append(another(third))
    losses = [float(row['loss']) for row in metrics]
    np.testing.assert_allclose(losses, [0.42451775, 0.42199790, 0.41211075], rtol=0, atol=CLOSE)
    np.testing.assert_allclose(metrics[0]['grad_norm/encoder'], 0.0028314287, rtol=CLOSE)
    np.testing.assert_allclose(metrics[0]['grad_norm/predictor'], 0.31111067, rtol=CLOSE)
    rows = [[row[key] for key in ('lr', 'weight_decay', 'momentum')] for row in metrics]
    np.testing.assert_allclose(rows, golden_jepa['I5_lr_wd_m'], rtol=0, atol=1e-6)
    check_norms(gradients, golden_jepa, 'I5')
    expected = golden_jepa['I5_after2']
    result = np.concatenate([some(after[str(name)], 8) for name in golden_jepa['I5_after2_names']])
    np.testing.assert_allclose(result, expected, rtol=0, atol=CLOSE)


def test_features_that_ijepas_loss_compares(golden_jepa):
    """Predictions z and targets h of the first step, block after block as the original has them."""
    objective, batch = MaskedImage(*IMAGES), next(images())
    params = {part: filled(part, c) for part, c in zip(('encoder', 'predictor'), IMAGES)}
    ((group, mask),) = ((group, group.masks[0]) for group in batch.groups)

    @jax.jit
    def both(params):
        x = objective.nets['encoder'](params['encoder'], group.clips, mask.context)
        ema = {'encoder': params['encoder']}
        return objective.predicted(params, x, mask), objective.targets(ema, {}, group.clips)

    z, h = map(np.asarray, both(params))
    h = np.take_along_axis(h, mask.target.reshape(3, -1, 1), axis=1)
    for name, features in (('I5_z_it1', z), ('I5_h_it1', h)):
        features = features.reshape(3, 4, 12, 32).swapaxes(0, 1)
        np.testing.assert_allclose(some(features), golden_jepa[name], rtol=0, atol=CLOSE)
        assert_whole(golden_jepa, name, features, CLOSE)


# V6 has no regulariser; what it would be is told: with a weight that moves nothing
V6_TOLD = 1e-12


@pytest.mark.parametrize(
    'case, exponent, weight, clip', [('V6', 1, 0, 0), ('V6', 1, V6_TOLD, 0), ('V7', 2, 1, 0.05)]
)
def test_steps_of_vjepa1(case, exponent, weight, clip, golden_jepa):
    """Rows of the original: loss without and with the regulariser, norms before they are cut."""
    more = dict(exponent=exponent, variance_weight=weight, tokens_of_masks=2)
    objective = MaskedVideo(*VIDEOS, groups=1, **more)
    config = dataclasses.replace(OPTIM, clip=clip)
    metrics, gradients, after, _ = two_steps(objective, VIDEOS, videos(), config)
    for row, (error, spread, total, *norms) in zip(metrics, golden_jepa[f'{case}_losses']):
        np.testing.assert_allclose(row['loss'], total, rtol=0, atol=CLOSE)
        parts = (row['loss/group0_mask0'] + row['loss/group0_mask1']) / 2
        np.testing.assert_allclose(parts, error, rtol=0, atol=CLOSE)
        if weight:
            np.testing.assert_allclose(row['loss/variance'], spread, rtol=0, atol=CLOSE)
        if clip:
            result = [row['grad_norm/encoder'], row['grad_norm/predictor']]
            np.testing.assert_allclose(result, norms, rtol=CLOSE)
    check_norms(gradients, golden_jepa, case)
    stats = golden_jepa[f'{case}_after2_stats']
    for name, (mean, size, total) in zip(golden_jepa[f'{case}_after2_names'], stats):
        a = after[str(name)]
        result = a.mean(dtype=np.float64), np.abs(a).mean(dtype=np.float64), checksum(a)
        np.testing.assert_allclose(result, (mean, size, total), rtol=0, atol=CLOSE, err_msg=name)
    for row in (row for row in golden_jepa if row.startswith(f'{case}_after2/')):
        result = after[row.split('/', 1)[1]].reshape(golden_jepa[row].shape)
        np.testing.assert_allclose(result, golden_jepa[row], rtol=0, atol=CLOSE, err_msg=row)


def test_a_stored_table_neither_moves_nor_decays():
    encoder = dataclasses.replace(IMAGES[0], stored_table=True)
    objective = MaskedImage(encoder, IMAGES[1])
    mask = optim.decay_mask(objective.abstract, objective.unused)
    assert not mask['encoder']['table'] and mask['encoder']['patch_embed']['kernel']


def test_smooth_l1(golden_jepa):
    """Values and gradients of torch's, on both sides of 1 and at it."""
    x, value, slope = golden_jepa['I7_smooth_l1_in_out_grad'].reshape(3, -1)

    def loss(x):
        return smooth(jnp.abs(x), 1.0)

    np.testing.assert_allclose(loss(x), value, rtol=0, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(loss))(jnp.asarray(x)), slope, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(smooth(jnp.abs(x), 0.0), np.abs(x))


def test_clipping_begins_at_its_step():
    grads = {'a': {'w': jnp.full(4, 3.0)}, 'b': {'w': jnp.full(4, 0.01)}}
    norms = {name: jnp.linalg.norm(tree['w']) for name, tree in grads.items()}
    optimizer = optim.Optimizer(None, None, None, None, clip=3.0, clip_from=5)
    before, after = (optimizer.clipped(grads, norms, jnp.int32(step)) for step in (4, 5))
    np.testing.assert_array_equal(before['a']['w'], grads['a']['w'])
    np.testing.assert_allclose(after['a']['w'], 1.5, rtol=1e-5)  # each net by its own norm
    np.testing.assert_array_equal(after['b']['w'], grads['b']['w'])


def test_eight_devices_equal_one():
    """The targets of an image stay on its device, and parameters lie over `fsdp`."""
    objective = MaskedImage(*IMAGES)
    params = {part: filled(part, c) for part, c in zip(('encoder', 'predictor'), IMAGES)}
    sampler = ReferenceSampler(ImageMaskConfig(min_keep=4), (8, 8))
    context, targets = sampler(0, torch_stream(0), 8)
    clips = np.moveaxis(normal(50, 8, 3, 64, 64), 1, -1)[:, None]
    batch = Batch((Group(clips, (Mask(context[0], targets.swapaxes(0, 1)),)),))

    def loss(params, batch):
        ema = {'encoder': params['encoder']}
        return objective.loss(params, ema, {}, batch, jnp.int32(0))[0]

    grad = jax.value_and_grad(loss)
    value, gradient = jax.jit(grad)(params, batch)
    mesh = make_mesh(fsdp=2)
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
        spread = jax.jit(lambda p: place(p, objective.specs))(spread)
        many, gradients = jax.jit(grad)(spread, put_batch(batch, mesh))
    assert float(value) == pytest.approx(float(many), abs=1e-6)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradients)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
