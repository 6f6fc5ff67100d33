"""The one attention call, and the five ways to compute it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jepa_jax.nets import ATTENTION
from jepa_jax.sharding import BATCH, platform

LANES = 128  # TPU kernels take token counts in multiples of this
QUERIES = 128  # that `_blockwise` answers at a time
ROWS = 256  # that `_by_head` answers at a time, at most
FEW_SCORES = 256**2  # of a head and clip, from which on `_by_head` is the fastest on a CPU
MOST_SCORES = (
    1024**2
)  # of a head and clip that `_xla` may store; beyond it `_blockwise` is faster, too
BEYOND = -1  # segment id of tokens beyond a row's length
NOWHERE = -2  # of what fills up a kernel's block


def _positions(N: int, S: int, pad: int = 0) -> jax.Array:
    """Index among the S keys of each of the N queries, the last ones; then of the last `pad` times.

    What fills up a block of queries sees what the last query sees: a row that saw nothing would put
    NaN into the gradients."""
    return jnp.minimum(S - N + jnp.arange(N + pad), S - 1)


def _visible(at, S, causal, segments):
    """Which of the S keys the queries at positions `at` [n] see, bool [B or 1, 1, n, S]; None:
    all."""
    mask = None
    if causal:
        mask = (at[:, None] >= jnp.arange(S))[None, None]
    if segments is not None:
        same = (segments[:, at, None] == segments[:, None, :])[:, None]
        mask = same if mask is None else mask & same
    return mask


def _xla(q, k, v, *, causal, lengths, segments, at=None):
    """Stores the scores, [B, A, N, S] float32. at: positions of the queries, if not the last."""
    S = k.shape[1]
    # is_causal of JAX's own would count queries from the first key on, not to the last
    at = _positions(q.shape[1], S) if at is None else at
    return jax.nn.dot_product_attention(
        q, k, v, mask=_visible(at, S, causal, segments),
        key_value_seq_lengths=lengths, implementation='xla',
    )  # fmt: skip


def _cudnn(q, k, v, *, causal, lengths, segments):
    """Flash attention of cuDNN. Its causal mask counts queries from the first key on, and a mask
    of one's own would be an array of biases with a gradient: `choose` asks for neither."""
    assert segments is None and (not causal or q.shape[1] == k.shape[1])
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation='cudnn'
    )


def _blockwise(q, k, v, *, causal, lengths, segments):
    """A clip and a few queries at a time, again in the backward pass: scores take [A, QUERIES, S],
    whatever N and B are."""
    B, N, A, C = q.shape
    parts = -(-N // QUERIES)
    pad = parts * QUERIES - N
    q = jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0)))
    q = q.reshape(B, parts, QUERIES, A, C)
    at = _positions(N, k.shape[1], pad).reshape(parts, QUERIES)

    def clip(operands):
        q, k, v, lengths, segments = jax.tree.map(lambda a: a[None], operands)

        @jax.checkpoint
        def answer(some):
            q, at = some
            masks = dict(causal=causal, lengths=lengths, segments=segments, at=at)
            return _xla(q[None], k, v, **masks)[0]

        return jax.lax.map(answer, (q[0], at))

    out = jax.lax.map(clip, (q, k, v, lengths, segments))
    return out.reshape(B, parts * QUERIES, A, C)[:, :N]


def _by_head(q, k, v, *, causal, lengths, segments, rows: int = ROWS):
    """A clip, a head and a few queries at a time: on a CPU plain matrix products whose scores stay
    in the cache take a third of the time of batched ones."""
    B, N, A, C = q.shape
    parts = -(-N // rows)
    rows = -(-N // parts)  # alike, so that 258 queries are not padded to 512
    q = jnp.pad(q, ((0, 0), (0, parts * rows - N), (0, 0), (0, 0)))
    if k.shape[2] < A:
        k, v = (jnp.repeat(x, A // k.shape[2], axis=2) for x in (k, v))

    def heads_first(x):  # -> [B * A, tokens, C]
        return x.swapaxes(1, 2).reshape(B * A, -1, C)

    def for_heads(x):
        return None if x is None else jnp.repeat(x, A, axis=0)

    q = heads_first(q).reshape(B * A, parts, rows, C)
    out = _heads(causal, N, q, *map(heads_first, (k, v)), *map(for_heads, (lengths, segments)))
    return out.reshape(B, A, parts * rows, C).swapaxes(1, 2)[:, :N]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _heads(causal: bool, N: int, q, k, v, lengths, segments):
    """q [H, parts, rows, C], which hold N queries, k and v [H, S, C], lengths [H] and segments [H,
    S] or None -> [H, parts, rows, C]. The gradient computes the scores again, and keeps a number a
    query beside the result."""
    return _heads_forward(causal, N, q, k, v, lengths, segments)[0]


_product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


def _head_scores(q, k, at, length, segments, causal):
    """Of queries [rows, C] at positions `at`, masked, [rows, S] float32."""
    S = len(k)
    scores = _product(q, k.T) * k.shape[1] ** -0.5
    mask = _visible(at, S, causal, None if segments is None else segments[None])
    if mask is not None:
        scores = jnp.where(mask[0, 0], scores, -jnp.inf)
    if length is not None:
        scores = jnp.where(jnp.arange(S) < length, scores, -jnp.inf)
    return scores


def _parts_of(q, k, N: int) -> jax.Array:
    """Positions of the queries of each part, [parts, rows]."""
    _, parts, rows, _ = q.shape
    return _positions(N, k.shape[1], parts * rows - N).reshape(parts, rows)


def _heads_forward(causal: bool, N: int, q, k, v, lengths, segments):
    places = _parts_of(q, k, N)

    def head(operands):
        q, k, v, length, segments = operands

        def answer(some):
            q, at = some
            scores = _head_scores(q, k, at, length, segments, causal)
            largest = scores.max(-1, keepdims=True)
            weights = jnp.exp(scores - largest)
            total = weights.sum(-1, keepdims=True)
            out = (_product(weights.astype(v.dtype), v) / total).astype(v.dtype)
            return out, (largest + jnp.log(total))[:, 0]

        return jax.lax.map(answer, (q, places))

    out, sums = jax.lax.map(head, (q, k, v, lengths, segments))
    out, sums = (checkpoint_name(a, ATTENTION) for a in (out, sums))
    return out, (q, k, v, lengths, segments, out, sums)


def _heads_backward(causal: bool, N: int, kept, g):
    q, k, *_ = kept
    places = _parts_of(q, k, N)

    def head(operands):
        q, k, v, length, segments, out, sums, g = operands

        def answer(total, some):
            q, at, out, logsum, g = some
            weights = jnp.exp(_head_scores(q, k, at, length, segments, causal) - logsum[:, None])
            slope = (out.astype(jnp.float32) * g.astype(jnp.float32)).sum(-1, keepdims=True)
            back = weights * (_product(g, v.T) - slope) * k.shape[1] ** -0.5
            back, weights = back.astype(q.dtype), weights.astype(q.dtype)
            grads = _product(back.T, q), _product(weights.T, g)
            return jax.tree.map(jnp.add, total, grads), _product(back, k).astype(q.dtype)

        zeros = jnp.zeros(k.shape, jnp.float32)
        (dk, dv), dq = jax.lax.scan(answer, (zeros, zeros), (q, places, out, sums, g))
        return dq, dk.astype(k.dtype), dv.astype(v.dtype)

    return *jax.lax.map(head, (*kept, g)), None, None


_heads.defvjp(_heads_forward, _heads_backward)


def _splash(q, k, v, *, causal, lengths, segments, interpret: bool = False):
    """The splash kernels of Pallas for TPUs, which take [A, N, C] and queries scaled before."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (N, A, C), S = q.shape[1:], k.shape[1]
    bq, bk = block_size(N), block_size(S)
    rows, columns = -(-N // bq) * bq, -(-S // bk) * bk
    shape = rows, columns
    mask = masks.CausalMask(shape, offset=S - N) if causal else masks.FullMask(shape)
    kernel = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * A),
        # the fused backward kernel would store a partial gradient of q for each block of keys
        block_sizes=splash.BlockSizes(
            block_q=bq, block_kv=bk, block_q_dkv=bq, block_kv_dkv=bk, block_q_dq=bq, block_kv_dq=bk
        ),
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )

    def heads_first(x, size):
        return jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

    scaled = (q.astype(jnp.float32) * C**-0.5).astype(q.dtype)
    operands = heads_first(scaled, rows), heads_first(k, columns), heads_first(v, columns)
    # a query sees the keys that have its segment id
    if segments is not None:
        ids = splash.SegmentIds(
            segments[:, _positions(N, S, rows - N)],
            jnp.pad(segments, ((0, 0), (0, columns - S)), constant_values=NOWHERE),
        )
    elif lengths is not None or columns > S and not causal:  # causal: no query sees the padding
        limit = jnp.full(len(k), S) if lengths is None else lengths
        beyond = (jnp.arange(columns) >= limit[:, None]).astype(jnp.int32)
        ids = splash.SegmentIds(jnp.zeros((len(q), rows), jnp.int32), beyond)
    else:
        ids = None
    out = jax.vmap(kernel)(*operands, ids)
    return out.swapaxes(1, 2)[:, :N].astype(q.dtype)


def block_size(tokens: int) -> int:
    """Tokens that a splash kernel takes at once: the largest block that pads at most a sixteenth
    more than the smallest one does."""

    def padded(block: int) -> int:
        return -(-tokens // block) * block

    return max(b for b in (LANES, 256, 384, 512) if padded(b) * 16 <= padded(LANES) * 17)


IMPLEMENTATIONS: dict[str, Callable] = {
    'xla': _xla,
    'cudnn': _cudnn,
    'splash': _splash,
    'blockwise': _blockwise,
    'by_head': _by_head,
}


def choose(
    platform: str,
    dtype: jnp.dtype,
    N: int,
    S: int,
    C: int,
    *,
    causal: bool = False,
    segments: bool = False,
) -> str:
    """The key of IMPLEMENTATIONS that serves N queries and S keys of C channels best.

    All but cuDNN take every mask; it takes no segments, and a causal one for N = S alone."""
    if platform == 'tpu' and S >= LANES:  # shorter ones would be padded to it
        return 'splash'
    sixteen_bits = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    takes_mask = not segments and (N == S or not causal)
    if platform == 'gpu' and sixteen_bits and C % 8 == 0 and C <= 128 and takes_mask:
        return 'cudnn'
    if platform == 'cpu' and N * S >= FEW_SCORES:
        return 'by_head'
    return 'xla' if N * S <= MOST_SCORES else 'blockwise'


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    lengths: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention, scaled by 1/sqrt(C), softmax in float32; bidirectional unless causal.

    q [B, N, A, C], k and v [B, S, A / n, C] of one dtype: n neighbouring heads of q share a head of
    k and v (grouped queries). -> [B, N, A, C]. What a query sees must pass all that is given:

    causal: the queries are the last N of the S tokens; query i sees keys 0 to S - N + i.
    lengths [B] int32, at least 1: keys at or beyond it are not seen.
    segments [B, S] int32, at least 0: ids of the sequences packed into a row. Again the queries are
    the last N tokens; a token sees those of its own segment. With lengths too, what lies beyond
    them is one more segment: its outputs have no meaning, but are finite.

    ValueError: causal or segments with more queries than keys, heads that do not divide.
    Runs inside shard_map over the batch when a mesh is set: a kernel's call would lose the sharding
    otherwise.
    """
    (B, N, A, C), (S, heads) = q.shape, k.shape[1:3]
    if A % heads:
        raise ValueError(f'{A} heads of queries: must be a multiple of the {heads} of keys')
    if N > S and (causal or segments is not None):
        raise ValueError(f'{N} queries for {S} keys: causal and segments allow at most as many')
    causal = causal and N > 1  # the last token alone sees all
    if segments is not None:
        assert segments.shape == (B, S), (segments.shape, k.shape)
        if lengths is not None:
            segments = jnp.where(jnp.arange(S) < lengths[:, None], segments, BEYOND)
            lengths = None
    chosen = choose(platform(), q.dtype, N, S, C, causal=causal, segments=segments is not None)
    compute = functools.partial(IMPLEMENTATIONS[chosen], causal=causal)

    def local(q, k, v, masks):
        # float32 means float32 on accelerators too, where products are coarser unless asked
        with jax.default_matmul_precision('highest' if q.dtype == np.float32 else None):
            out = compute(q, k, v, **masks)
        return checkpoint_name(out, ATTENTION) if chosen in ('xla', 'blockwise') else out

    operands = q, k, v, {'lengths': lengths, 'segments': segments}
    if jax.sharding.get_abstract_mesh().empty:
        return local(*operands)

    def sharded(a):
        return jax.typeof(a).sharding.spec[0] is not None

    spec = jax.P()
    if any(map(sharded, jax.tree.leaves(operands))):  # some may be the same on all devices
        spec = BATCH
        operands = jax.tree.map(lambda a: a if sharded(a) else jax.reshard(a, BATCH), operands)
    return jax.shard_map(local, in_specs=spec, out_specs=spec, check_vma=False)(*operands)
