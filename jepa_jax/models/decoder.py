"""The language model: Llama 3.x and Qwen2 / Qwen2.5, which differ in three switches.

Tokens are embedded by `embed`, features of a video may take the place of some, and `__call__` reads
the row. Keys and values of a row can be kept, so that a token more costs one token's work.
(reference: video_qa §3.3)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax.models.attention import attend
from jepa_jax.models.layers import INIT_STD, Linear, in_heads, joined, keeping
from jepa_jax.nets import fold, stack
from jepa_jax.sharding import VECTORS, Rules, batch_spec, gather

# logits held at a time by the loss, float32 numbers of a device: 256 MiB
LOGITS = 2**26
KERNELS = ('attn/q', 'attn/k', 'attn/v', 'attn/o', 'mlp/gate', 'mlp/up', 'mlp/down')

# keys and values of every layer, each [L, B, S, K, C]
Cache = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """All that shapes a language model."""

    vocabulary: int
    width: int
    hidden: int  # of the MLP
    depth: int
    heads: int
    kv_heads: int  # each is shared by heads / kv_heads neighbouring heads
    head_dim: int
    eps: float = 1e-5
    theta: float = 500_000.0  # base of the rotary frequencies
    # of Llama 3.1 and later: factor, low, high, positions trained on before; (): none
    scaling: tuple[float, ...] = ()
    bias: bool = False  # of q, k and v: Qwen2
    tied: bool = False  # the embedding also makes the logits
    dtype: jnp.dtype = jnp.bfloat16  # of matmul inputs and of the residual stream
    stored: str = 'float32'  # type of the parameters; bfloat16 where they are frozen
    remat: str = 'full'  # a key of nets.REMAT


def frequencies(config: DecoderConfig) -> np.ndarray:
    """Rotary frequencies of a head's channel pairs [C / 2] float32, made in float64.

    Scaled as Llama 3.1 does: short waves stay, those beyond the positions that the model was first
    trained on are stretched by the factor, in between it is mixed. (reference: video_qa §3.3)
    """
    f = config.theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    if config.scaling:
        factor, low, high, positions = config.scaling
        turns = positions * f / (2 * np.pi)  # that a pair makes over those positions
        share = np.clip((turns - low) / (high - low), 0, 1)
        f = (1 - share) * f / factor + share * f
    return f.astype(np.float32)


def _turn(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns x [B, N, A, C], whose channels c and c + C / 2 are a pair, by tables [B, N, C / 2]."""
    cos, sin = (table[:, :, None] for table in tables)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) in float32, in x's type times a scale."""

    def __init__(self, width: int, eps: float, stored):
        self.scale, self.eps = nnx.Param(jnp.ones(width, stored)), eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


class _Attention(nnx.Module):
    def __init__(self, c: DecoderConfig, *, rngs: nnx.Rngs):
        how = dict(dtype=c.dtype, stored=jnp.dtype(c.stored), rngs=rngs)
        ins = dict(bias=c.bias, shrink=keeping(c.width), **how)
        inner, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.q = Linear(c.width, inner, **ins)
        self.k = Linear(c.width, shared, **ins)
        self.v = Linear(c.width, shared, **ins)
        self.o = Linear(inner, c.width, bias=False, shrink=keeping(inner), **how)


class _MLP(nnx.Module):
    def __init__(self, c: DecoderConfig, *, rngs: nnx.Rngs):
        how = dict(dtype=c.dtype, stored=jnp.dtype(c.stored), rngs=rngs, bias=False)
        self.gate = Linear(c.width, c.hidden, shrink=keeping(c.width), **how)
        self.up = Linear(c.width, c.hidden, shrink=keeping(c.width), **how)
        self.down = Linear(c.hidden, c.width, shrink=keeping(c.hidden), **how)


@dataclasses.dataclass(frozen=True)
class _Row:
    """What all layers are told of the tokens."""

    rope: tuple[jax.Array, jax.Array]
    segments: jax.Array | None  # [B, S] of keys and, the last of them, queries
    places: jax.Array | None  # [B] of the cache, where the one token's keys and values go
    scale: float  # of the adapter
    keep: bool  # return keys and values


class DecoderBlock(nnx.Module):
    """Pre-norm: attention with grouped queries, SwiGLU."""

    def __init__(self, c: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = c
        self.norm1 = RMSNorm(c.width, c.eps, c.stored)
        self.attn = _Attention(c, rngs=rngs)
        self.norm2 = RMSNorm(c.width, c.eps, c.stored)
        self.mlp = _MLP(c, rngs=rngs)

    def __call__(
        self, x: jax.Array, adapter: Mapping | None, cache: Cache | None, row: _Row
    ) -> tuple[jax.Array, Cache | None]:
        """x [B, N, D]; adapter: a layer of an Adapter's; cache: keys and values [B, S, K, C] of
        tokens before. -> x, and keys and values if they are kept."""

        def linear(name: str, x: jax.Array) -> jax.Array:
            group, kernel = name.split('/')
            y = getattr(getattr(self, group), kernel)(x)
            added = (adapter or {}).get(group, {}).get(kernel)
            if added is None:
                return y
            a, b = (added[side].astype(x.dtype) for side in ('a', 'b'))
            return y + (x @ a @ b * row.scale).astype(y.dtype)

        c, y = self.config, self.norm1(x)
        q, k, v = (linear(f'attn/{name}', y) for name in 'qkv')
        q, k, v = (in_heads(a, a.shape[-1] // c.head_dim) for a in (q, k, v))
        q, k = _turn(q, row.rope), _turn(k, row.rope)
        masks = dict(causal=True, segments=row.segments)
        if cache is not None and row.places is None:
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(cache, (k, v)))
        elif cache is not None:  # written by a comparison: a mesh cannot tell where a scatter goes
            here = jnp.arange(cache[0].shape[1]) == row.places[:, None]
            here = here[..., None, None]
            k, v = (jnp.where(here, new, old) for old, new in zip(cache, (k, v)))
            masks = dict(lengths=row.places + 1)
        mixed = joined(attend(q, k, v, **masks))
        x = x + linear('attn/o', mixed)
        y = self.norm2(x)
        y = jax.nn.silu(linear('mlp/gate', y)) * linear('mlp/up', y)
        return x + linear('mlp/down', y), (k, v) if row.keep else None


def sharding(config: DecoderConfig) -> Rules:
    """Where the parameters of a Decoder lie: over its width, which every mesh divides."""
    head = () if config.tied else ((r'head/kernel', jax.P('fsdp', None)),)
    return (
        (r'embed_tokens/embedding', jax.P(None, 'fsdp')),
        (r'blocks/(attn/[qkv]|mlp/(gate|up))/kernel', jax.P(None, 'fsdp', None)),
        (r'blocks/(attn/o|mlp/down)/kernel', jax.P(None, None, 'fsdp')),
        *head,
        *VECTORS,
    )


class _Table(nnx.Module):
    def __init__(self, c: DecoderConfig, *, rngs: nnx.Rngs):
        shape = c.vocabulary, c.width
        drawn = INIT_STD * jax.random.normal(rngs.params(), shape)
        self.embedding = nnx.Param(drawn.astype(c.stored))


class Decoder(nnx.Module):
    """Embeddings of tokens -> hidden states, of which `logits` and `loss` say what comes next."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        if c.heads % c.kv_heads or c.head_dim % 2:
            raise ValueError(
                f'heads {c.heads}, kv_heads {c.kv_heads}, head_dim {c.head_dim}: heads must be a '
                'multiple of kv_heads, head_dim even'
            )
        if c.scaling and (len(c.scaling) != 4 or not c.scaling[1] < c.scaling[2]):
            raise ValueError(f'scaling {c.scaling}: must be factor, low < high, positions')
        self.embed_tokens = _Table(c, rngs=rngs)
        self.blocks = stack(lambda r, layer: DecoderBlock(c, rngs=r), c.depth, rngs)
        self.norm = RMSNorm(c.width, c.eps, c.stored)
        if not c.tied:
            how = dict(dtype=c.dtype, stored=jnp.dtype(c.stored), rngs=rngs)
            self.head = Linear(c.width, c.vocabulary, bias=False, **how)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, S] -> [B, S, D]."""
        table = jnp.asarray(gather(self.embed_tokens).embedding[...], self.config.dtype)
        return table.at[tokens].get(out_sharding=batch_spec(tokens))

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segments: jax.Array | None = None,
        *,
        adapter: Mapping | None = None,
        scale: float = 1.0,
        cache: Cache | None = None,
        places: jax.Array | None = None,
        keep: bool = False,
    ) -> jax.Array | tuple[jax.Array, Cache]:
        """x [B, N, D] at positions [B, N] -> hidden states [B, N, D], after the last norm. No token
        sees a later one.

        segments: [B, N] int32, at least 0: a token sees those of its own alone; with a cache of S
        tokens [B, S + N].
        adapter: parameters of an Adapter; scale: its alpha / rank.
        cache: of a call with keep, for tokens before x. With places [B] it has room: x is one
        token, whose keys and values go there, and what lies behind is not seen.
        keep: also return keys and values, of the cache's tokens and these.
        """
        angle = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies(self.config))
        row = _Row((jnp.cos(angle), jnp.sin(angle)), segments, places, scale, keep)
        x = x.astype(self.config.dtype)
        x, kept = fold(self.blocks, x, row, beside=(adapter, cache), remat=self.config.remat)
        x = self.norm(x)
        return (x, kept) if keep else x

    def logits(self, x: jax.Array) -> jax.Array:
        """Hidden states [..., D] -> float32 [..., V]."""
        return self._product(x, self._head())

    def _head(self) -> jax.Array:
        """[V, D] or [D, V], whole on every device."""
        if self.config.tied:
            return gather(self.embed_tokens).embedding[...].astype(self.config.dtype)
        return gather(self.head).kernel[...].astype(self.config.dtype)

    def _product(self, x: jax.Array, head: jax.Array) -> jax.Array:
        exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        axes = '...d,vd->...v' if self.config.tied else '...d,dv->...v'
        return jnp.einsum(axes, x, head, precision=exact, preferred_element_type=jnp.float32)

    def loss(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        """Cross-entropy of every place, [B, S] float32, 0 where there is no label.

        x [B, S, D] hidden states; labels [B, S]: the token to come after each place, -1: none. A
        few places at a time, again in the backward pass: logits of all would be S V numbers a row.
        """
        (B, S, D), spec = x.shape, batch_spec(x)
        mesh = jax.sharding.get_abstract_mesh()
        rows = B if spec is None or spec[0] is None else max(1, B // mesh.size)
        size = max(1, min(S, LOGITS // (rows * self.config.vocabulary)))
        parts = -(-S // size)
        size = -(-S // parts)  # alike, so that few places are padding
        pad = parts * size - S
        x = jnp.pad(x, ((0, 0), (0, pad), (0, 0)))
        labels = jnp.pad(labels, ((0, 0), (0, pad)), constant_values=-1)
        head = self._head()

        @jax.checkpoint
        def some(x: jax.Array, labels: jax.Array) -> jax.Array:
            logits = self._product(x, head)
            one = jnp.arange(logits.shape[-1]) == labels[..., None]
            right = jnp.where(one, logits, 0).sum(-1)
            lost = jax.nn.logsumexp(logits, axis=-1) - right
            return jnp.where(labels >= 0, lost, 0)

        x = jnp.reshape(x, (B, parts, size, D), out_sharding=spec).swapaxes(0, 1)
        labels = jnp.reshape(labels, (B, parts, size), out_sharding=spec).swapaxes(0, 1)
        lost = jax.lax.map(lambda pair: some(*pair), (x, labels)).swapaxes(0, 1)
        return jnp.reshape(lost, (B, parts * size), out_sharding=spec)[:, :S]
