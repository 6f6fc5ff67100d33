"""The one attention call."""

import jax
import jax.numpy as jnp

from jepa_jax.sharding import BATCH


def implementation(platform: str, dtype: jnp.dtype, head_dim: int) -> str:
    """Which kernel serves: 'cudnn' (flash attention) where it can, else 'xla', which stores [A, N,
    N] logits."""
    if platform in ('gpu', 'cuda') and dtype in (jnp.bfloat16, jnp.float16):
        if head_dim % 8 == 0 and head_dim <= 128:
            return 'cudnn'
    return 'xla'


def attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """Bidirectional softmax attention, scaled by 1/sqrt(C), softmax in float32.

    q [B, N, A, C], k and v [B, S, A, C] of one dtype; lengths [B] int32: keys at or beyond it are
    ignored. -> [B, N, A, C]. Runs inside shard_map over the batch when a mesh is set, because a
    bare cuDNN call loses the sharding.
    """
    kernel = implementation(jax.default_backend(), q.dtype, q.shape[-1])

    def local(q, k, v, lengths=None):
        return jax.nn.dot_product_attention(
            q, k, v, key_value_seq_lengths=lengths, implementation=kernel
        )

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
