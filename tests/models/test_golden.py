"""Encoder and predictor against arrays computed by the original (tests/golden/README.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_fill import assert_golden, checksum, fill, mask_pair, normal

from jepa_jax.models import SIZES, rope
from jepa_jax.models.predictor import Predictor, PredictorConfig
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import Net

WHOLE = 1e-4  # design: whole encoder or predictor, float32 on CPU

TINY = dict(width=96, depth=3, heads=4, image_size=64, frames=8, dtype=jnp.float32)
SINCOS = dict(position='sincos', uniform_power=True)
IMAGE = dict(tubelet=1, frames=1)


def channels_last(x: np.ndarray) -> np.ndarray:
    """The original's [B, C, T, H, W] or [B, C, H, W] -> [B, T, H, W, C]."""
    return np.moveaxis(x, 1, -1) if x.ndim == 5 else np.moveaxis(x, 1, -1)[:, None]


def encode(x: np.ndarray, keep=None, **settings) -> np.ndarray:
    config = ViTConfig(**{**TINY, **settings})
    net = Net(lambda rngs: ViT(config, rngs=rngs))
    params = fill(net.abstract, sigma=0.05, tubelet=config.tubelet)
    return np.asarray(net(params, jnp.asarray(channels_last(x)), keep))


CASES = {
    'E1_encoder_rope': (normal(0, 2, 3, 8, 64, 64), {}),
    'E3_encoder_48x80': (normal(2, 1, 3, 8, 48, 80), {}),
    'E4_encoder_swiglu_wide': (normal(0, 2, 3, 8, 64, 64), dict(mlp='swiglu')),
    'E5_encoder_no-rope_uniform_power': (normal(0, 2, 3, 8, 64, 64), SINCOS),
    'E5b_encoder_no-rope_not_uniform': (
        normal(0, 2, 3, 8, 64, 64),
        dict(position='sincos', uniform_power=False),
    ),
    'E5c_no-rope,_16_frames_64x64': (normal(9, 1, 3, 16, 64, 64), SINCOS),
    'E5d_no-rope,_4_frames': (normal(9, 1, 3, 4, 64, 64), SINCOS),
    'E5e_no-rope,_8f_96x96': (normal(9, 1, 3, 8, 96, 96), SINCOS),
    'E6_encoder_2D_image_num_frames=1': (normal(3, 2, 3, 64, 64), {**SINCOS, **IMAGE}),
    'E7_encoder_2D_image_rope': (normal(3, 2, 3, 64, 64), IMAGE),
    'E7b_2D_no-rope_96x96_bicubic': (normal(3, 2, 3, 96, 96), {**SINCOS, **IMAGE}),
}


@pytest.mark.parametrize('case', CASES)
def test_encoder(case, golden_models):
    x, settings = CASES[case]
    assert_golden(golden_models, case, encode(x, **settings), WHOLE)


def test_rope_as_on_tpus(golden_models, monkeypatch):
    """There pairs of channels are swapped by a product: the same numbers, bit for bit."""
    x = normal(0, 2, 3, 8, 64, 64)
    here = encode(x)
    monkeypatch.setattr(rope, 'platform', lambda: 'tpu')
    there = encode(x)
    np.testing.assert_array_equal(there, here)
    assert_golden(golden_models, 'E1_encoder_rope', there, WHOLE)
    swaps = str(jax.make_jaxpr(rope.rotate)(jnp.ones((1, 2, 1, 24)), (jnp.ones((2, 24)),) * 2))
    assert 'dot_general' in swaps and ' rev' not in swaps


def test_masked_encoder(golden_models):
    x = normal(0, 2, 3, 8, 64, 64)
    a, _ = mask_pair(1, 2, 64, 20, 30)
    c, _ = mask_pair(2, 2, 64, 20, 12)
    out = np.concatenate([encode(x, jnp.asarray(keep)) for keep in (a, c)])
    assert_golden(golden_models, 'E2_encoder_masks=[a,c]', out, WHOLE)


@pytest.mark.parametrize(
    'case, index, settings',
    [
        ('P1_predictor_mask_index=0', 0, {}),
        ('P1_predictor_mask_index=1', 1, {}),
        ('P2_predictor_no-rope_uniform', 0, SINCOS),
    ],
)
def test_predictor(case, index, settings, golden_models):
    config = PredictorConfig(
        encoder_width=96, width=48, depth=2, heads=2, mask_tokens=3, grid=(4, 4, 4),
        dtype=jnp.float32, **settings,
    )  # fmt: skip
    net = Net(lambda rngs: Predictor(config, rngs=rngs))
    params = fill(net.abstract, sigma=0.05, predictor=True)
    a, b = mask_pair(1, 2, 64, 20, 30)
    out = net(params, jnp.asarray(normal(3, 2, 20, 96)), jnp.asarray(a), jnp.asarray(b), index)
    assert_golden(golden_models, case, out, WHOLE)


# F rows: (mean, mean of absolutes, checksum), first three, last two; seven digits
FULL = {
    'vitl': (
        (0.0002800735, 0.7989535, -0.8021115),
        (-0.056882, -0.346927, 1.9502),
        (-0.829558, -1.0707),
    ),
    'vith': (
        (-0.00085667, 0.7988726, 51.6779),
        (-0.294611, 0.0918626, -0.150373),
        (-0.877847, -0.963147),
    ),
    'vitg': (
        (-0.0001336284, 0.7980009, 14.73782),
        (3.17088, 0.338373, 0.404523),
        (-0.335839, 1.09716),
    ),
}


def assert_summary(out: np.ndarray, row: tuple) -> None:
    (mean, absolute, check), first, last = row
    flat = np.asarray(out, np.float64).ravel()
    assert abs(flat.mean() - mean) < 1e-6
    assert abs(np.abs(flat).mean() - absolute) < 1e-6
    assert abs(checksum(out) - check) < 2e-3 * max(1, abs(check) / 10)
    np.testing.assert_allclose(flat[:3], first, rtol=0, atol=WHOLE)
    np.testing.assert_allclose(flat[-2:], last, rtol=0, atol=WHOLE)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    'name', ['vitl', pytest.param('vith', marks=SLOW), pytest.param('vitg', marks=SLOW)]
)
def test_full_size(name):
    size = SIZES[name]
    config = ViTConfig(
        size.width, size.depth, size.heads, size.mlp_ratio, image_size=64, frames=4,
        dtype=jnp.float32,
    )  # fmt: skip
    net = Net(lambda rngs: ViT(config, rngs=rngs))
    params = fill(net.abstract, sigma=0.02)
    out = net(params, jnp.asarray(channels_last(normal(0, 1, 3, 4, 64, 64))))
    assert_summary(out, FULL[name])


def test_full_size_predictor():
    config = PredictorConfig(1024, grid=(2, 4, 4), dtype=jnp.float32)
    net = Net(lambda rngs: Predictor(config, rngs=rngs))
    params = fill(net.abstract, sigma=0.02, predictor=True)
    ids = np.random.RandomState(1).permutation(32).astype(np.int32)
    context, target = np.sort(ids[:12])[None], np.sort(ids[12:])[None]
    out = net(
        params, jnp.asarray(normal(3, 1, 12, 1024)), jnp.asarray(context), jnp.asarray(target), 0
    )
    assert_summary(
        out,
        ((-0.00355882, 0.3119929, 3.541118), (0.0339277, 0.34024, 0.118802), (-0.14369, -0.442514)),
    )
