"""I-JEPA and V-JEPA 1 against arrays computed by the originals (tests/golden/README.md)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jepa_fill import filled, some
from torch_fill import assert_whole, mask_pair, normal

from jepa_jax.models.pooler import AttentivePooler, PoolerConfig
from jepa_jax.models.predictor import Predictor, PredictorConfig
from jepa_jax.models.tokens import sincos_table
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.weights.parts import net

CLOSE = 1e-5
F32 = dict(dtype=jnp.float32, position='sincos')
IMAGE = ViTConfig(48, 3, 4, patch=14, tubelet=1, frames=1, image_size=112, axes='xy', **F32)
VIDEO = ViTConfig(96, 3, 4, image_size=64, frames=8, shorter='resized', **F32)
OF_IMAGES = PredictorConfig(48, 24, 2, 4, mask_tokens=1, grid=(0, 8, 8), axes='xy', **F32)
OF_VIDEOS = PredictorConfig(96, 48, 2, 2, mask_tokens=3, grid=(4, 4, 4), **F32)

A, B = mask_pair(1, 2, 64, 20, 12)
C, D = mask_pair(2, 2, 64, 20, 12)


def run(part, config, x, *rest):
    """The output of a net; images and videos are the original's, channels first."""
    if part == 'encoder':
        x = np.moveaxis(x, 1, -1)
        x = x if x.ndim == 5 else x[:, None]
    return np.asarray(net(part, config)(filled(part, config), jnp.asarray(x), *rest))


def over(x, contexts, targets):
    """Features of the contexts, and ids: for every target mask all contexts."""
    repeated = [(c, t) for t in targets for c in contexts]
    return (
        np.concatenate([x] * len(targets)),
        np.concatenate([c for c, _ in repeated]),
        np.concatenate([t for _, t in repeated]),
    )


CASES = {
    'I1_encoder_patch14': lambda: run('encoder', IMAGE, normal(0, 2, 3, 112, 112)),
    'I2_encoder_masks_[a,c]': lambda: np.concatenate(
        [run('encoder', IMAGE, normal(0, 2, 3, 112, 112), ids) for ids in (A, C)]
    ),
    'I3_predictor_a_to_[b,d]': lambda: run(
        'predictor', OF_IMAGES, *over(normal(3, 2, 20, 48), [A], [B, D])
    ),
    'I3b_predictor_[a,c]_to_[b,d]': lambda: run(
        'predictor', OF_IMAGES, *over(normal(4, 4, 20, 48), [A, C], [B, D])
    ),
    'I8_hf_interpolated_140x112': lambda: run('encoder', IMAGE, normal(0, 1, 3, 140, 112)),
    'V1_encoder_4_frames_trilinear': lambda: run('encoder', VIDEO, normal(9, 1, 3, 4, 64, 64)),
    'V3_encoder_masked_a': lambda: run(
        'encoder', VIDEO, normal(0, 2, 3, 8, 64, 64), mask_pair(1, 2, 64, 20, 30)[0]
    ),
    'V2_encoder_8x48x80': lambda: run('encoder', VIDEO, normal(2, 1, 3, 8, 48, 80)),
}


@pytest.mark.parametrize('case', CASES)
def test_forward(case, golden_jepa):
    result = CASES[case]()
    np.testing.assert_allclose(some(result), golden_jepa[case], rtol=0, atol=CLOSE)
    assert_whole(golden_jepa, case, result, CLOSE)


def test_tables_put_x_first(golden_jepa):
    """Without it outputs are off by 2.0; the table is the original's, bit for bit."""
    expected = golden_jepa['I0_pos_embed_4x4_w32']
    whole = sincos_table((0, 4, 4), 32, True, 'xy')
    np.testing.assert_array_equal(some(whole), expected)
    assert_whole(golden_jepa, 'I0_pos_embed_4x4_w32', whole, 1e-7)
    table = sincos_table((0, 3, 5), 8, True, 'xy')
    other = sincos_table((0, 3, 5), 8, True, 'yx')
    np.testing.assert_array_equal(table, np.roll(other, 4, axis=1))
    first = np.float32([np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)])
    np.testing.assert_array_equal(table[1, :4], first)


def test_a_short_clip_is_resized_or_cut():
    """V-JEPA 1 spreads four frames over its table, V-JEPA 2 takes the first rows: 0.65 apart."""
    x = normal(9, 1, 3, 4, 64, 64)
    cut = run('encoder', dataclasses.replace(VIDEO, shorter='first'), x)
    assert abs(cut - run('encoder', VIDEO, x)).max() > 0.1


def test_a_stored_table_is_used_and_gets_no_gradient():
    """As it is for clips of its own size, resized for others as the formula is."""
    config = dataclasses.replace(IMAGE, stored_table=True)
    encoder, formula = net('encoder', config), sincos_table((0, 8, 8), 48, True, 'xy')
    params = filled('encoder', IMAGE) | {'table': jnp.asarray(formula)}
    image = jnp.asarray(np.moveaxis(normal(0, 1, 3, 140, 112), 1, -1)[:, None])
    plain, encoder = jax.jit(net('encoder', IMAGE)), jax.jit(encoder)
    for x in (image[:, :, :112], image):
        expected = plain(filled('encoder', IMAGE), x)
        np.testing.assert_allclose(encoder(params, x), expected, rtol=0, atol=CLOSE)
        moved = encoder(params | {'table': params['table'][::-1]}, x)
        assert float(jnp.abs(moved - expected).max()) > 0.1
    gradient = jax.jit(jax.grad(lambda p: encoder(p, image)[..., 0].sum()))(params)
    assert not gradient['table'].any() and gradient['blocks']['attn']['qkv']['kernel'].any()


@pytest.mark.parametrize('rescale', [True, False])
def test_deep_blocks_start_smaller_or_do_not(rescale):
    """I-JEPA and V-JEPA 1 draw the output layers of their blocks anew, at deviation .02."""
    expected = 0.02 / (np.sqrt(2 * np.arange(1, 4)) if rescale else np.ones(3))
    config = dataclasses.replace(IMAGE, rescale=rescale)
    blocks = jax.jit(net('encoder', config).init)(jax.random.key(0))['blocks']
    for name, layer in (('attn', 'proj'), ('mlp', 'fc2')):
        deviations = blocks[name][layer]['kernel'].std((1, 2))
        np.testing.assert_allclose(deviations, expected, rtol=0.05)


@pytest.mark.parametrize(
    'make, eps',
    [
        (lambda r: ViT(IMAGE, rngs=r), 1e-6),
        (lambda r: Predictor(OF_IMAGES, rngs=r), 1e-6),
        (lambda r: AttentivePooler(PoolerConfig(8, 2, 2, dtype=jnp.float32), rngs=r), 1e-5),
    ],
    ids=['encoder', 'predictor', 'probe'],
)
def test_epsilon_of_every_norm(make, eps):
    """Outputs hardly tell 1e-6 from 1e-5: norms of a row of small numbers do."""
    row = np.float32([1e-3, -1e-3, 2e-3, 0] * 12)
    expected = (row - row.mean()) / np.sqrt(row.var() + eps)
    norms = 0
    for _, module in nnx.iter_modules(nnx.eval_shape(lambda: make(nnx.Rngs(0)))):
        if isinstance(module, nnx.LayerNorm):
            norm = nnx.LayerNorm(48, epsilon=module.epsilon, rngs=nnx.Rngs(0))
            np.testing.assert_allclose(norm(row), expected, rtol=1e-4)
            norms += 1
    assert norms


def test_predictor_takes_the_token_of_its_mask(golden_jepa):
    context, target = mask_pair(1, 2, 64, 20, 30)
    result = run('predictor', OF_VIDEOS, normal(3, 2, 20, 96), context, target, 1)
    expected = golden_jepa['V4_predictor_index_1']
    np.testing.assert_allclose(some(result), expected, rtol=0, atol=CLOSE)
    assert_whole(golden_jepa, 'V4_predictor_index_1', result, CLOSE)


def test_probe_of_two_blocks_reads_first(golden_jepa):
    """Its second block attends to the one query; a layer that the file has is not used."""
    pooler = PoolerConfig(96, 4, 2, cross_first=True, spare_projection=True, dtype=jnp.float32)
    config = pooler, {'linear': 7}
    logits = net('probe', config)(filled('probe', config), jnp.asarray(normal(8, 2, 30, 96)))
    expected = golden_jepa['V5_classifier_depth_2']
    np.testing.assert_allclose(logits['linear'].ravel(), expected, rtol=0, atol=CLOSE)
