"""Every implementation of attention against a float64 softmax in numpy, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.models import attention
from jepa_jax.models.attention import attend, block_size, choose
from jepa_jax.sharding import make_mesh, put_batch

# largest absolute difference, for inputs of deviation one: (output, gradients)
TOLERANCE = {jnp.float32: (2e-6, 2e-6), jnp.bfloat16: (6e-3, 1e-2)}
RUNS_HERE = {  # cuDNN does not; the kernels for TPUs do, interpreted
    'xla': attention._xla,
    'blockwise': attention._blockwise,
    'by_head': functools.partial(attention._by_head, rows=64),
    'splash': functools.partial(attention._splash, interpret=True),
}


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def exact(q, k, v, lengths, g):
    """Output and the gradients of q, k, v for the output's gradient g, in float64."""
    q, k, v, g = (np.moveaxis(np.asarray(a, np.float64), 2, 1) for a in (q, k, v, g))  # B A N C
    scale = q.shape[-1] ** -0.5
    scores = scale * q @ k.swapaxes(-1, -2)
    visible = np.arange(k.shape[2]) < np.asarray(lengths)[:, None, None, None]
    scores = np.where(visible, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = g @ v.swapaxes(-1, -2)
    ds = scale * p * (dp - (dp * p).sum(-1, keepdims=True))
    found = p @ v, ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g
    return [np.moveaxis(a, 1, 2) for a in found]


@pytest.mark.parametrize('name', RUNS_HERE)
@pytest.mark.parametrize(
    ('channels', 'dtype'),
    [(32, jnp.float32), (64, jnp.float32), (80, jnp.float32), (88, jnp.float32),
     (64, jnp.bfloat16), (88, jnp.bfloat16)],
)  # fmt: skip
def test_against_float64(name, channels, dtype):
    # more queries than a block of 128 and fewer keys than three: both are padded
    q = jnp.asarray(draw(0, 2, 140, 2, channels), dtype)
    k, v = (jnp.asarray(draw(seed, 2, 300, 2, channels), dtype) for seed in (1, 2))
    g = jnp.asarray(draw(3, *q.shape), dtype)
    lengths = jnp.asarray([300, 170], jnp.int32)

    @jax.jit
    def run(q, k, v, g, lengths):
        out, pull = jax.vjp(lambda *x: RUNS_HERE[name](*x, lengths), q, k, v)
        return out, *pull(g)

    found = run(q, k, v, g, lengths)
    expected = exact(q, k, v, lengths, g)
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.dtype == dtype
        error = np.abs(np.asarray(ours, np.float64) - theirs).max()
        assert error < TOLERANCE[dtype][i > 0], ('output', 'dq', 'dk', 'dv')[i]
    if dtype == jnp.float32:  # what lies beyond a clip's length is not looked at
        garbage = np.where(np.arange(300)[:, None, None] < 170, v[1], 1e4)
        again = run(q, k, v.at[1].set(garbage), g, lengths)
        np.testing.assert_array_equal(again[0], found[0])


@pytest.mark.parametrize('name', RUNS_HERE)
def test_without_lengths(name):
    """Padding to a kernel's blocks is not seen either, and a fitting count needs none."""
    for tokens in (128, 130):
        q, k, v = (jnp.asarray(draw(i, 1, tokens, 1, 32), jnp.float32) for i in range(3))
        out = jax.jit(lambda *x: RUNS_HERE[name](*x, None))(q, k, v)
        expected = exact(q, k, v, [tokens], q)[0]
        np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)


def test_platform_and_shape_choose():
    bf16, f32 = jnp.bfloat16, jnp.float32
    assert choose('tpu', bf16, 2048, 2048, 64) == 'splash'
    assert choose('tpu', f32, 495, 495, 32) == 'splash'
    assert choose('tpu', bf16, 64, 64, 64) == 'xla'
    assert choose('gpu', bf16, 2048, 2048, 88) == 'cudnn'
    assert choose('gpu', f32, 512, 512, 64) == 'xla'
    assert choose('gpu', f32, 18_432, 18_432, 64) == 'blockwise'
    assert choose('gpu', bf16, 18_432, 18_432, 44) == 'blockwise'
    assert choose('cpu', f32, 129, 258, 64) == 'xla'
    assert choose('cpu', f32, 258, 258, 64) == 'by_head'
    assert choose('cpu', f32, 2048, 2048, 64) == 'by_head'


@pytest.mark.parametrize('tokens', [1, 127, 129, 495, 968, 1463, 2048, 8192, 18_432])
def test_blocks_waste_little(tokens):
    block = block_size(tokens)
    least = -(-tokens // 128) * 128
    assert block % 128 == 0 and least <= -(-tokens // block) * block <= least * 17 / 16
    assert block_size(18_432) == 512


def test_on_a_mesh():
    """Clips spread over eight devices give what one device gives, also for shared values."""
    q, k = (np.float32(draw(i, 8, 1100, 1, 32)) for i in range(2))
    v = np.float32(draw(2, 8, 1100, 1, 32))
    lengths = np.arange(1000, 1008, dtype=np.int32)
    assert choose('cpu', q.dtype, 1100, 1100, 32) == 'by_head'
    expected = exact(q, k, v, lengths, q)[0]
    mesh = make_mesh(fsdp=2)
    with jax.set_mesh(mesh):
        out = jax.jit(attend)(*put_batch((q, k, v, lengths), mesh))
        assert out.sharding.spec[0] == ('data', 'fsdp')
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)


def test_long_clips_store_no_scores():
    """18,432 tokens, 64 frames at 384 pixels: forward and backward, as XLA plans its memory."""
    tokens, clips, heads = 18_432, 2, 3
    like = jax.ShapeDtypeStruct((clips, tokens, heads, 64), jnp.bfloat16)

    def loss(q, k, v):
        return attend(q, k, v).astype(jnp.float32).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(like, like, like).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < tokens**2  # scores of one head would be four times that, all of them 24
    assert f'{tokens},{tokens}' not in compiled.as_text()
