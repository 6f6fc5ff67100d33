"""Probes: learned queries, or a mean, read a clip's features; linear heads name what they saw."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from jepa_jax.models.layers import (
    INIT_STD,
    Block,
    GeluMLP,
    LayerNorm,
    Linear,
    block_sharding,
    in_heads,
    joined,
    standardise,
)
from jepa_jax.nets import fold, stack
from jepa_jax.sharding import VECTORS, Rules, batch_spec

EPS = 1e-5  # of every LayerNorm of an attentive pooler; encoder and predictors have 1e-6
MEAN_EPS = 1e-6  # of the one of a mean
MLP_RATIO = 4.0  # whatever the encoder's ratio is


@dataclasses.dataclass(frozen=True)
class PoolerConfig:
    """All that shapes a pooler. The defaults are the released probes' (reference: vjepa2 §9.1)."""

    width: int  # of the features
    heads: int = 16  # also for ViT-g, whose encoder has 22
    depth: int = 4  # self-attention blocks and, last, one of cross-attention
    queries: int = 1
    # as V-JEPA 1: the self-attention comes after, on what the queries have read
    cross_first: bool = False
    spare_projection: bool = False  # a layer that V-JEPA 1's files have and its forward never uses
    # no attention: the mean over all tokens and a norm, as MAE and VideoMAE are fine-tuned (with
    # vit.ViTConfig.last_norm off); heads and depth mean nothing then, and are 1
    mean: bool = False
    dtype: jnp.dtype = jnp.bfloat16  # of matmul inputs
    remat: str = 'full'  # a key of nets.REMAT


class CrossAttention(nnx.Module):
    """Queries attend to tokens. No output projection: the heads' values are the result.

    The product is taken in another order than usual. One query among thousands of tokens needs no
    keys and values of all of them: (W_k x) q = x (W_k' q), and the weighted mean of W_v x is W_v
    times that of x. A head then costs 2 D a token instead of 2 D C, and the bias of the keys, which
    shifts all logits of a query alike, drops out of the softmax. `attend` has no part in it: with
    so few queries the scores, [B, A, Q, N], are smaller than x. Scale and bias of the tokens' norm
    go the same way: many heads that read the same tokens share the standardised ones.
    """

    def __init__(self, width: int, heads: int, *, dtype, rngs: nnx.Rngs, spare: bool = False):
        if width % heads:
            raise ValueError(f'width {width} is not a multiple of heads {heads}')
        self.heads, self.dtype = heads, dtype
        self.q = Linear(width, width, dtype=dtype, rngs=rngs)
        self.kv = Linear(width, 2 * width, dtype=dtype, rngs=rngs)
        if spare:
            self.proj = Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, queries: jax.Array, x: jax.Array, norm: nnx.LayerNorm) -> jax.Array:
        """queries [B, Q, D], x [B, N, D] standardised, its norm's scale and bias -> [B, Q, D]."""
        product = functools.partial(
            jnp.einsum, precision=self.q.precision, preferred_element_type=jnp.float32
        )
        x = x.astype(self.dtype)
        q = in_heads(self.q(queries), self.heads)
        q = q * q.shape[-1] ** -0.5
        kernel = self.kv.kernel[...].astype(self.dtype)
        kernel = rearrange(kernel, 'd (kv a c) -> d kv a c', kv=2, a=self.heads)
        scale, shift = norm.scale[...], norm.bias[...]
        asked = (product('bqac,dac->bqad', q, kernel[:, 0]) * scale).astype(self.dtype)
        weights = jax.nn.softmax(product('bqad,bnd->bqan', asked, x), axis=-1)
        read = product('bqan,bnd->bqad', weights.astype(self.dtype), x) * scale + shift
        bias = rearrange(self.kv.bias[...], '(kv a c) -> kv a c', kv=2, a=self.heads)[1]
        out = product('bqad,dac->bqac', read.astype(self.dtype), kernel[:, 1]) + bias
        return joined(out)


class CrossBlock(nnx.Module):
    """Pre-norm in the tokens but not in the queries, an oddity of the released probes."""

    def __init__(self, config: PoolerConfig, *, rngs: nnx.Rngs):
        c = config
        self.norm1 = LayerNorm(c.width, eps=EPS, rngs=rngs)
        spare = c.spare_projection
        self.xattn = CrossAttention(c.width, c.heads, dtype=c.dtype, rngs=rngs, spare=spare)
        self.norm2 = LayerNorm(c.width, eps=EPS, rngs=rngs)
        # the original rescales by the number of blocks before this one, as if this were the last of
        # those
        shrink = (2.0 * max(1, c.depth - 1)) ** 0.5
        hidden = int(c.width * MLP_RATIO)
        self.mlp = GeluMLP(c.width, hidden, dtype=c.dtype, rngs=rngs, shrink=shrink)

    def __call__(self, queries: jax.Array, x: jax.Array) -> jax.Array:
        seen = self.xattn(queries, standardise(x, EPS), self.norm1)
        q = queries + seen.astype(queries.dtype)
        return q + self.mlp(self.norm2(q)).astype(q.dtype)


class AttentivePooler(nnx.Module):
    """Features of all tokens -> one vector a query. Knows no positions: what the tokens say of them
    must suffice.
    """

    def __init__(self, config: PoolerConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        if c.depth < 1 or c.queries < 1:
            raise ValueError(f'pooler: depth {c.depth} and queries {c.queries} must be at least 1')
        self.query_tokens = nnx.Param(
            INIT_STD * jax.random.normal(rngs.params(), (1, c.queries, c.width))
        )
        if c.depth > 1:
            self.blocks = stack(
                lambda r, layer: Block(
                    c.width, c.heads, MLP_RATIO, 'gelu', EPS, dtype=c.dtype, layer=layer, rngs=r
                ),
                c.depth - 1,
                rngs,
            )
        self.cross_attention_block = CrossBlock(c, rngs=rngs)

    def __call__(self, x: jax.Array, spread: bool = False) -> jax.Array:
        """x [B, N, D], any N -> [B, queries, D] float32. spread: on a mesh, over the devices that x
        is spread over; else all of it on each."""
        c, x = self.config, x.astype(jnp.float32)
        if c.depth > 1 and not c.cross_first:
            x = fold(self.blocks, x, remat=c.remat)
        query = jnp.broadcast_to(self.query_tokens[...], (len(x), *self.query_tokens.shape[1:]))
        if spread and (spec := batch_spec(x)) is not None:
            query = jax.reshard(query, spec)
        result = self.cross_attention_block(query, x)
        if c.depth > 1 and c.cross_first:
            result = fold(self.blocks, result, remat=c.remat)
        return result


class MeanPooler(nnx.Module):
    """Features of all tokens -> their mean, normed. (reference: family §3, §6 M5)"""

    def __init__(self, config: PoolerConfig, *, rngs: nnx.Rngs):
        if config.queries != 1:
            raise ValueError(f'pooler: queries {config.queries} of a mean, must be 1')
        self.norm = LayerNorm(config.width, eps=MEAN_EPS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, N, D], any N -> [B, 1, D] float32."""
        return self.norm(x.astype(jnp.float32).mean(1, keepdims=True))


def pooler(config: PoolerConfig, *, rngs: nnx.Rngs) -> AttentivePooler | MeanPooler:
    """The pooler of a probe."""
    return (MeanPooler if config.mean else AttentivePooler)(config, rngs=rngs)


def averaged_grid(grid: tuple[int, int, int], most: int) -> tuple[int, int, int]:
    """The (t, h, w) grid of boxes whose means `average_tokens` takes; most: 0: all tokens.

    Time is kept as far as there are so many places; height and width share what is left.
    """
    t, h, w = grid
    if not most or t * h * w <= most:
        return grid
    t = min(t, most)
    share = (most // t / (h * w)) ** 0.5
    rows = max(1, min(h, round(h * share)))
    return t, rows, max(1, min(w, most // t // rows))


def average_tokens(x: jax.Array, grid: tuple[int, int, int], most: int) -> jax.Array:
    """Tokens [B, N, D] of a grid -> at most so many, each the mean over a box: [B, n, D]."""
    boxes = averaged_grid(grid, most)
    if boxes == tuple(grid):
        return x

    def means(size: int, count: int) -> jax.Array:
        edges = np.arange(count + 1) * size // count
        inside = (np.arange(size) >= edges[:-1, None]) & (np.arange(size) < edges[1:, None])
        return jnp.asarray(inside / inside.sum(1, keepdims=True), jnp.float32)

    # axis by axis: a reshape of several axes at once would ask for a sharding
    t, h, w = (means(size, count) for size, count in zip(grid, boxes))
    weights = jnp.einsum('at,bh,cw->abcthw', t, h, w, precision='highest')
    weights = weights.reshape(math.prod(boxes), math.prod(grid))
    return jnp.einsum('nm,bmd->bnd', weights, x, precision='highest')


def sharding(probe: tuple[PoolerConfig, dict[str, int]]) -> Rules:
    """Where the parameters of an AttentiveClassifier lie: what reads the blocks' tokens is small,
    and every device needs it whole."""
    heads = (r'heads/\w+/kernel', jax.P())
    if probe[0].mean:
        return (heads, *VECTORS)
    blocks = block_sharding('gelu', 'pooler/') if probe[0].depth > 1 else ()
    return (
        *blocks,
        (r'pooler/cross_attention_block/(xattn/(q|kv|proj)|mlp/fc[12])/kernel', jax.P()),
        heads,
        (r'pooler/query_tokens', jax.P()),
        *VECTORS,
    )


def classifier(probe: tuple[PoolerConfig, dict[str, int]], *, rngs: nnx.Rngs):
    """The AttentiveClassifier of a probe's two settings."""
    pooler, classes = probe
    return AttentiveClassifier(pooler, dict(classes), rngs=rngs)


class AttentiveClassifier(nnx.Module):
    """A pooler with one linear head a query; anticipation has three (verb, noun, action), a plain
    label has one.
    """

    def __init__(self, config: PoolerConfig, classes: dict[str, int], *, rngs: nnx.Rngs):
        if config.queries != len(classes):
            raise ValueError(f'{config.queries} queries for {len(classes)} heads {tuple(classes)}')
        self.pooler = pooler(config, rngs=rngs)
        self.order = tuple(classes)  # a dict of parameters comes back sorted by name
        self.heads = nnx.Dict({name: _head(config, count, rngs) for name, count in classes.items()})

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """x [B, N, D] -> for each head logits [B, classes] float32."""
        pooled = self.pooler(x)
        return {
            name: self.heads[name](pooled[:, i]).astype(jnp.float32)
            for i, name in enumerate(self.order)
        }


def _head(config: PoolerConfig, classes: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer that starts as PyTorch's does: weight and bias from U(+-1 / sqrt(D))."""
    bound = config.width**-0.5

    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(
        config.width, classes, dtype=config.dtype, kernel_init=uniform, bias_init=uniform,
        precision=jax.lax.Precision.HIGHEST if config.dtype == jnp.float32 else None, rngs=rngs,
    )  # fmt: skip
