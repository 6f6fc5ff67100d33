"""V-JEPA 2.1's encoder and predictor against arrays computed by the original
(tests/golden/README.md)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_fill import ENCODER, PREDICTOR, fill, wave
from flax import nnx
from torch_fill import assert_golden

from jepa_jax.models import SIZES, VERSIONS, rope
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import fold, fold_outputs
from jepa_jax.weights.parts import net

WHOLE = 1e-4  # design: whole encoder or predictor, float32 on CPU
VIDEO, IMAGE = wave((2, 3, 4, 96, 96), 0.3), wave((2, 3, 1, 96, 96), 0.9)


@functools.cache
def encoder():
    """(params, clips, ids or None, levels) -> features."""
    run = jax.jit(net('encoder', ENCODER), static_argnames='levels')
    return functools.partial(run, fill('encoder', ENCODER))


@functools.cache
def predictor(config=PREDICTOR):
    run = jax.jit(net('predictor', config), static_argnames=('mask_index', 'image'))
    return functools.partial(run, fill('predictor', config))


def joined(levels) -> jax.Array:
    return jnp.concatenate(levels, axis=-1)


def ids(golden, name: str) -> jax.Array:
    return jnp.asarray(golden[name], jnp.int32)


def hierarchical(golden, clips, keep: str):
    return joined(encoder()(clips, ids(golden, keep), levels=ENCODER.levels))


def test_one_chunk_of_rope(golden_dense):
    """Three axes of one position each give the chunk thrice."""
    x, at = golden_dense['rope_in'][0, 0], jnp.asarray(golden_dense['rope_pos'])
    tables = rope.angles((at, at, at), 60, 'paired')
    turned = rope.rotate(jnp.asarray(np.tile(x, 3))[None, :, None], tables)[0, :, 0]
    expected = np.tile(golden_dense['rope_out'][0, 0], 3)
    np.testing.assert_allclose(turned, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    'name, clips',
    [('video', VIDEO), ('image', IMAGE), ('rect', wave((1, 3, 4, 64, 96), 0.5))],
)
def test_encoder(name, clips, golden_dense):
    levels = encoder()(clips, levels=ENCODER.levels)
    assert_golden(golden_dense, f'{name}_final', levels[-1], WHOLE)
    if f'{name}_hier' in golden_dense:
        assert_golden(golden_dense, f'{name}_hier', joined(levels), WHOLE)


def test_the_plain_output_is_the_last_level(golden_dense):
    assert_golden(golden_dense, 'image_final', encoder()(IMAGE), WHOLE)


def test_masked_encoder_and_predictor(golden_dense):
    x = hierarchical(golden_dense, VIDEO, 'masks_enc')
    assert_golden(golden_dense, 'ctx_hier', x, WHOLE)
    at = ids(golden_dense, 'masks_enc'), ids(golden_dense, 'masks_pred')
    targets, context = predictor()(x, *at, mask_index=0)
    assert_golden(golden_dense, 'z_pred', targets, WHOLE)
    assert_golden(golden_dense, 'z_ctx', context, WHOLE)
    # slot 9 of 8 is slot 1
    assert_golden(golden_dense, 'z_pred_maskidx1', predictor()(x, *at, mask_index=9)[0], WHOLE)
    raw = dataclasses.replace(PREDICTOR, interpolate=False)
    assert_golden(golden_dense, 'z_pred_nointerp', predictor(raw)(x, *at, mask_index=0)[0], WHOLE)


def test_predictor_of_images(golden_dense):
    x = hierarchical(golden_dense, IMAGE, 'img_masks_enc')
    at = ids(golden_dense, 'img_masks_enc'), ids(golden_dense, 'img_masks_pred')
    targets, context = predictor()(x, *at, mask_index=0, image=True)
    assert_golden(golden_dense, 'img_z_pred', targets, WHOLE)
    assert_golden(golden_dense, 'img_z_ctx', context, WHOLE)


def test_an_odd_frame_is_refused():
    """The original drops it in silence (reference: vjepa2_1 §3)."""
    with pytest.raises(ValueError, match='5 frames: must be 1, an image, or a multiple of 2'):
        jax.eval_shape(encoder(), jnp.zeros((1, 5, 32, 32, 3)))


def test_levels_are_those_of_the_code():
    blocks = VERSIONS['2.1'].blocks
    assert blocks(12) == (2, 5, 8, 11) and blocks(24) == (5, 11, 17, 23)
    assert blocks(40) == (9, 19, 29, 39) and blocks(48) == (11, 23, 37, 47)
    assert blocks(2) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    'size, encoder, predictor',
    [
        ('vitb', 86_833_152, 22_874_752),
        ('vitl', 304_680_960, 22_973_056),
        ('vitg', 1_013_267_968, 55_400_704),
        ('gigantic', 1_845_216_768, 59_433_472),
    ],
)
def test_parameters_of_the_released_sizes(size, encoder, predictor):
    """reference: vjepa2_1 §1; B and L were distilled from G, into predictors of one level."""
    version = VERSIONS['2.1']
    s = version.sizes[size]
    config = ViTConfig(
        s.width, s.depth, s.heads, s.mlp_ratio, levels=version.blocks(s.depth), rope='paired',
        modalities=True,
    )  # fmt: skip
    assert count('encoder', config) == encoder
    distilled = size in ('vitb', 'vitl')
    shape = dict(depth=12, out_width=1664) if distilled else dict(depth=24, levels=4)
    config = dataclasses.replace(
        PREDICTOR, encoder_width=s.width, width=384, heads=12,
        **{'levels': 1, **shape},
    )  # fmt: skip
    assert count('predictor', config) == predictor
    assert SIZES['gigantic'].mlp_ratio == 4.0  # V-JEPA 2's


def count(part: str, config) -> int:
    made = net(part, config)
    assert jax.tree.structure(made.specs) == jax.tree.structure(made.abstract)
    return sum(leaf.size for leaf in jax.tree.leaves(made.abstract))


def test_outputs_of_one_scan_are_those_of_fold():
    config = dataclasses.replace(ENCODER, width=24, depth=3, heads=2, levels=(0, 0, 2))
    module = ViT(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 5, 24))
    kept, (first, last) = jax.jit(
        lambda x: (
            fold_outputs(module.blocks, x, None, levels=(0, 0, 2)),
            fold(module.blocks, x, None, levels=(0, 2)),
        )
    )(x)
    for ours, theirs in zip(kept, (first, first, last), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match='must ascend within 0..2'):
        fold_outputs(module.blocks, x, None, levels=(1, 3))
