"""Every implementation of attention against a float64 softmax in numpy, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.models import attention
from jepa_jax.models.attention import attend, block_size, choose
from jepa_jax.nets import ONCE
from jepa_jax.sharding import make_mesh, put_batch

# largest absolute difference, for inputs of deviation one: (output, gradients)
TOLERANCE = {jnp.float32: (2e-6, 2e-6), jnp.bfloat16: (6e-3, 1e-2)}
RUNS_HERE = {  # cuDNN does not; the kernels for TPUs do, interpreted
    'xla': attention._xla,
    'blockwise': attention._blockwise,
    'by_head': functools.partial(attention._by_head, rows=64),
    'splash': functools.partial(attention._splash, interpret=True),
}
NAMES = ('output', 'dq', 'dk', 'dv')


@pytest.fixture(params=RUNS_HERE)
def implementation(request, monkeypatch):
    """`attend` computes with this one, whatever the shapes."""
    monkeypatch.setattr(attention, 'choose', lambda *shape, **masks: request.param)
    monkeypatch.setattr(attention, 'IMPLEMENTATIONS', RUNS_HERE)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def exact(q, k, v, g, *, causal=False, lengths=None, segments=None):
    """Output and the gradients of q, k, v for the output's gradient g, in float64."""
    q, k, v, g = (np.moveaxis(np.asarray(a, np.float64), 2, 1) for a in (q, k, v, g))  # B A N C
    (B, A, N, C), (heads, S) = q.shape, k.shape[1:3]
    k, v = (np.repeat(x, A // heads, axis=1) for x in (k, v))
    query, key = np.arange(N)[:, None] + S - N, np.arange(S)
    length = S if lengths is None else np.asarray(lengths)[:, None, None, None]
    visible = np.broadcast_to(key < length, (B, 1, N, S))
    if segments is not None:
        ids = np.asarray(segments)[:, None]
        padding = (query >= length) & (key >= length)  # padding sees padding
        visible = (query < length) & visible & (ids[..., query] == ids[..., None, :]) | padding
    if causal:
        visible = visible & (key <= query)
    scores = np.where(visible, C**-0.5 * q @ k.swapaxes(-1, -2), -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = g @ v.swapaxes(-1, -2)
    ds = C**-0.5 * p * (dp - (dp * p).sum(-1, keepdims=True))
    dk, dv = (
        x.reshape(B, heads, A // heads, S, C).sum(2)
        for x in (ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g)
    )
    return [np.moveaxis(a, 1, 2) for a in (p @ v, ds @ k, dk, dv)]


def program(**settings):
    """(q, k, v, g, masks) -> output and gradients of `attend`."""

    def run(q, k, v, g, masks):
        out, pull = jax.vjp(lambda *x: attend(*x, **masks, **settings), q, k, v)
        return out, *pull(g)

    return jax.jit(run, compiler_options=ONCE)


def packed(B, S, *, seed=4):
    """Segment ids of three sequences a row, other lengths in each."""
    cuts = np.sort(np.random.default_rng(seed).integers(1, S, (B, 2)))
    return jnp.asarray((np.arange(S) >= cuts[..., None]).sum(1), jnp.int32)


@pytest.mark.parametrize(
    ('channels', 'dtype'),
    [(32, jnp.float32), (64, jnp.float32), (80, jnp.float32), (88, jnp.float32),
     (64, jnp.bfloat16), (88, jnp.bfloat16)],
)  # fmt: skip
def test_against_float64(implementation, channels, dtype):
    # more queries than a block of 128 and fewer keys than three: both are padded
    q = jnp.asarray(draw(0, 2, 140, 2, channels), dtype)
    k, v = (jnp.asarray(draw(seed, 2, 300, 2, channels), dtype) for seed in (1, 2))
    g = jnp.asarray(draw(3, *q.shape), dtype)
    lengths = jnp.asarray([300, 170], jnp.int32)

    run = program()
    result = run(q, k, v, g, {'lengths': lengths})
    expected = exact(q, k, v, g, lengths=lengths)
    for i, (ours, theirs) in enumerate(zip(result, expected, strict=True)):
        assert ours.dtype == dtype
        error = np.abs(np.asarray(ours, np.float64) - theirs).max()
        assert error < TOLERANCE[dtype][i > 0], NAMES[i]
    if dtype == jnp.float32:  # what lies beyond a clip's length is not looked at
        garbage = np.where(np.arange(300)[:, None, None] < 170, v[1], 1e4)
        again = run(q, k, v.at[1].set(garbage), g, {'lengths': lengths})
        np.testing.assert_array_equal(again[0], result[0])


def test_without_lengths(implementation):
    """Padding to a kernel's blocks is not seen either, and a fitting count needs none."""
    for tokens in (128, 130):
        q, k, v = (jnp.asarray(draw(i, 1, tokens, 1, 32), jnp.float32) for i in range(3))
        out = jax.jit(attend, compiler_options=ONCE)(q, k, v)
        np.testing.assert_allclose(out, exact(q, k, v, q)[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ('N', 'S', 'heads', 'causal', 'names'),
    [
        (70, 200, (4, 2), True, ('lengths',)),
        (140, 140, (3, 1), False, ('segments',)),
        (130, 200, (2, 2), True, ('segments', 'lengths')),
    ],
)
def test_masks_and_shared_heads(implementation, N, S, heads, causal, names):
    q, g = (jnp.asarray(draw(seed, 2, N, heads[0], 32), jnp.float32) for seed in (0, 3))
    k, v = (jnp.asarray(draw(seed, 2, S, heads[1], 32), jnp.float32) for seed in (1, 2))
    masks = {'lengths': jnp.asarray([S, S - 30], jnp.int32), 'segments': packed(2, S)}
    masks = {name: masks[name] for name in names}
    result = program(causal=causal)(q, k, v, g, masks)
    expected = exact(q, k, v, g, causal=causal, **masks)
    group = heads[0] // heads[1]
    for name, ours, theirs in zip(NAMES, result, expected, strict=True):
        atol = 2e-6 * (group if name in ('dk', 'dv') else 1)  # sums over the heads that share
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=name)


def test_one_query_at_the_end_sees_all():
    q, k, v = (jax.ShapeDtypeStruct((2, n, 2, 32), jnp.float32) for n in (1, 9, 9))
    plain = jax.jit(attend).lower(q, k, v).as_text()
    assert jax.jit(functools.partial(attend, causal=True)).lower(q, k, v).as_text() == plain


def test_masks_that_make_no_sense():
    q, k = jnp.zeros((1, 5, 3, 32)), jnp.zeros((1, 4, 3, 32))
    for masks in ({'causal': True}, {'segments': jnp.zeros((1, 4), jnp.int32)}):
        with pytest.raises(ValueError, match='5 queries for 4 keys: causal and segments allow at'):
            attend(q, k, k, **masks)
    with pytest.raises(ValueError, match='3 heads of queries: must be a multiple of the 2 of keys'):
        attend(q, k[:, :, :2], k[:, :, :2])


def test_what_cudnn_is_asked(monkeypatch):
    """It does not run here; its arguments must say what the caller asked for."""
    asked = []

    def record(q, *operands, mask=None, is_causal=False, key_value_seq_lengths=None, **kwargs):
        asked.append((kwargs['implementation'], mask is not None, is_causal, key_value_seq_lengths))
        return q

    monkeypatch.setattr(attention, 'platform', lambda: 'gpu')
    monkeypatch.setattr(jax.nn, 'dot_product_attention', record)
    q, k = (jnp.zeros((2, 24, n, 32), jnp.bfloat16) for n in (4, 2))
    lengths, segments = jnp.asarray([24, 11], jnp.int32), packed(2, 24)
    for queries, masks, expected in (
        (7, {'lengths': lengths}, ('cudnn', False, False, lengths)),
        (24, {'causal': True, 'lengths': lengths}, ('cudnn', False, True, lengths)),
        (1, {'causal': True}, ('cudnn', False, False, None)),
        (7, {'causal': True}, ('xla', True, False, None)),
        (24, {'segments': segments, 'lengths': lengths}, ('xla', True, False, None)),
    ):
        attend(q[:, -queries:], k, k, **masks)
        assert asked.pop() == expected, (queries, masks)


def test_platform_and_shape_choose():
    bf16, f32 = jnp.bfloat16, jnp.float32
    assert choose('tpu', bf16, 2048, 2048, 64) == 'splash'
    assert choose('tpu', f32, 495, 495, 32) == 'splash'
    assert choose('tpu', bf16, 64, 64, 64) == 'xla'
    assert choose('gpu', bf16, 2048, 2048, 88) == 'cudnn'
    assert choose('gpu', bf16, 2048, 2048, 64, causal=True) == 'cudnn'
    # cuDNN's causal mask would let the first of 64 queries see the first key alone
    assert choose('gpu', bf16, 64, 2048, 64, causal=True) == 'xla'
    assert choose('gpu', bf16, 2048, 2048, 64, segments=True) == 'blockwise'
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
    expected = exact(q, k, v, q, lengths=lengths)[0]
    mesh = make_mesh(fsdp=2)
    with jax.set_mesh(mesh):
        q, k, v, lengths = put_batch((q, k, v, lengths), mesh)
        out = jax.jit(attend)(q, k, v, lengths=lengths)
        assert out.sharding.spec[0] == ('data', 'fsdp')
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)


def test_masks_on_a_mesh():
    """Each device has its own clips' masks; v alone is the same for all."""
    q, k = (np.float32(draw(i, 8, 40, n, 32)) for i, n in enumerate((4, 2)))
    v = np.float32(draw(2, 1, 40, 2, 32))
    masks = {'lengths': np.arange(33, 41, dtype=np.int32), 'segments': np.asarray(packed(8, 40))}
    expected = exact(q, k, np.tile(v, (8, 1, 1, 1)), q, causal=True, **masks)
    mesh = make_mesh(fsdp=2)
    with jax.set_mesh(mesh):
        q, k, masks = put_batch((q, k, masks), mesh)
        v = jnp.broadcast_to(v, (8, *v.shape[1:]))
        result = program(causal=True)(q, k, v, q, masks)
        assert all(a.sharding.spec[0] == ('data', 'fsdp') for a in result[:3])
    for name, ours, theirs in zip(NAMES, result, expected, strict=True):
        atol = 2e-6 * (2 if name in ('dk', 'dv') else 1)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=name)


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
