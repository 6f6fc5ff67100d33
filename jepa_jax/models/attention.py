"""The one attention call, and the five ways to compute it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.sharding import BATCH, platform

LANES = 128  # TPU kernels take token counts in multiples of this
QUERIES = 128  # that `_blockwise` answers at a time
ROWS = 256  # that `_by_head` answers at a time, at most
FEW_SCORES = 256**2  # of a head and clip, from which on `_by_head` is the fastest on a CPU
MOST_SCORES = (
    1024**2
)  # of a head and clip that `_xla` may store; beyond it `_blockwise` is faster, too


def _xla(q, k, v, lengths):
    """Stores the scores, [B, A, N, S] float32."""
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation='xla'
    )


def _cudnn(q, k, v, lengths):
    """Flash attention of cuDNN."""
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation='cudnn'
    )


def _blockwise(q, k, v, lengths):
    """A clip and a few queries at a time, again in the backward pass: scores take [A, QUERIES, S],
    whatever N and B are."""
    B, N, A, C = q.shape
    parts = -(-N // QUERIES)
    q = jnp.pad(q, ((0, 0), (0, parts * QUERIES - N), (0, 0), (0, 0)))
    q = q.reshape(B, parts, QUERIES, A, C)

    def clip(operands):
        q, k, v, *lengths = (a[None] for a in operands)

        @jax.checkpoint
        def answer(some):
            return _xla(some[None], k, v, *(lengths or [None]))[0]

        return jax.lax.map(answer, q[0])

    operands = (q, k, v) if lengths is None else (q, k, v, lengths)
    return jax.lax.map(clip, operands).reshape(B, parts * QUERIES, A, C)[:, :N]


def _by_head(q, k, v, lengths, *, rows: int = ROWS):
    """A clip, a head and a few queries at a time: on a CPU plain matrix products whose scores stay
    in the cache take a third of the time of batched ones."""
    B, N, A, C = q.shape
    S, parts = k.shape[1], -(-N // rows)
    rows = -(-N // parts)  # alike, so that 258 queries are not padded to 512
    q = jnp.pad(q, ((0, 0), (0, parts * rows - N), (0, 0), (0, 0)))

    def heads_first(x):  # -> [B * A, tokens, C]
        return x.swapaxes(1, 2).reshape(B * A, -1, C)

    operands = [heads_first(x) for x in (q, k, v)]
    if lengths is not None:
        operands.append(jnp.repeat(lengths, A))
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

    def head(operands):
        q, k, v, *length = operands

        @jax.checkpoint
        def answer(some):  # [rows, C]
            scores = product(some, k.T) * C**-0.5
            if length:
                scores = jnp.where(jnp.arange(S) < length[0], scores, -jnp.inf)
            largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
            weights = jnp.exp(scores - largest)
            total = weights.sum(-1, keepdims=True)
            return (product(weights.astype(v.dtype), v) / total).astype(v.dtype)

        return jax.lax.map(answer, q.reshape(parts, rows, C))

    out = jax.lax.map(head, tuple(operands)).reshape(B, A, parts * rows, C)
    return out.swapaxes(1, 2)[:, :N]


def _splash(q, k, v, lengths, *, interpret: bool = False):
    """The splash kernels of Pallas for TPUs, which take [A, N, C] and queries scaled before."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (N, A, C), S = q.shape[1:], k.shape[1]
    bq, bk = block_size(N), block_size(S)
    rows, columns = -(-N // bq) * bq, -(-S // bk) * bk
    kernel = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.FullMask((rows, columns))] * A),
        # the fused backward kernel would store a partial gradient of q for each block of keys
        block_sizes=splash.BlockSizes(
            block_q=bq, block_kv=bk, block_q_dkv=bq, block_kv_dkv=bk, block_q_dq=bq, block_kv_dq=bk
        ),
        interpret=interpret,
    )

    def heads_first(x, size):
        return jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

    scaled = (q.astype(jnp.float32) * C**-0.5).astype(q.dtype)
    operands = heads_first(scaled, rows), heads_first(k, columns), heads_first(v, columns)
    if lengths is None and columns == S:
        out = jax.vmap(kernel)(*operands)
    else:  # a query sees the keys that have its segment id
        limit = jnp.full(len(k), S) if lengths is None else lengths
        beyond = (jnp.arange(columns) >= limit[:, None]).astype(jnp.int32)
        ids = splash.SegmentIds(jnp.zeros((len(q), rows), jnp.int32), beyond)
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


def choose(platform: str, dtype: jnp.dtype, N: int, S: int, C: int) -> str:
    """The key of IMPLEMENTATIONS that serves N queries and S keys of C channels best."""
    if platform == 'tpu' and S >= LANES:  # shorter ones would be padded to it
        return 'splash'
    sixteen_bits = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    if platform == 'gpu' and sixteen_bits and C % 8 == 0 and C <= 128:
        return 'cudnn'
    if platform == 'cpu' and N * S >= FEW_SCORES:
        return 'by_head'
    return 'xla' if N * S <= MOST_SCORES else 'blockwise'


def attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """Bidirectional softmax attention, scaled by 1/sqrt(C), softmax in float32.

    q [B, N, A, C], k and v [B, S, A, C] of one dtype; lengths [B] int32, at least 1: keys at or
    beyond it are ignored. -> [B, N, A, C]. Runs inside shard_map over the batch when a mesh is set:
    a kernel's call would lose the sharding otherwise.
    """
    compute = IMPLEMENTATIONS[choose(platform(), q.dtype, q.shape[1], k.shape[1], q.shape[3])]

    def local(q, k, v, lengths=None):
        # float32 means float32 on accelerators too, where products are coarser unless asked
        with jax.default_matmul_precision('highest' if q.dtype == np.float32 else None):
            return compute(q, k, v, lengths)

    operands = (q, k, v) if lengths is None else (q, k, v, lengths)
    if jax.sharding.get_abstract_mesh().empty:
        return local(*operands)
    # v alone may be replicated over the batch (a probe's query, say): shard what the type says is
    # sharded
    specs = tuple(
        BATCH if jax.typeof(a).sharding.spec[0] is not None else jax.P() for a in operands
    )
    out = BATCH if BATCH in specs else jax.P()
    return jax.shard_map(local, in_specs=specs, out_specs=out, check_vma=False)(*operands)
