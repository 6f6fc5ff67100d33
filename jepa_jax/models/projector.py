"""From an encoder's tokens to those that a language model reads. (reference: video_qa §1.2)"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jepa_jax.models.layers import Linear, block_sharding, gelu, keeping
from jepa_jax.models.pooler import AttentivePooler, PoolerConfig
from jepa_jax.sharding import VECTORS, Rules, batch_spec, gather

KINDS = ('mlp', 'pooler')


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """All that shapes a projector."""

    encoder_width: int
    width: int  # of the language model
    grid: tuple[int, int, int]  # (t, h, w) of a clip's tokens
    kind: str = 'mlp'
    hidden: int = 0  # mlp; 0: width
    pool: int = 1  # mlp: means over so many rows and columns of tokens
    joined: bool = False  # mlp: a place's tokens of all times, side by side, are one
    queries: int = 0  # pooler: tokens that come out
    depth: int = 1  # pooler: blocks
    heads: int = 16  # pooler
    dtype: jnp.dtype = jnp.bfloat16  # of matmul inputs
    remat: str = 'full'  # a key of nets.REMAT

    @property
    def tokens(self) -> int:
        """That come out, of a clip."""
        t, h, w = self.grid
        if self.kind == 'pooler':
            return self.queries
        return (1 if self.joined else t) * h * w // self.pool**2

    @property
    def read(self) -> tuple[int, int]:
        """Tokens that its first layer reads of a clip, and how wide they are."""
        t, h, w = self.grid
        times = t if self.joined else 1
        return t * h * w // times, times * self.encoder_width


def sharding(config: ProjectorConfig) -> Rules:
    """Where the parameters of a Projector lie."""
    if config.kind == 'mlp':
        return (
            (r'fc1/kernel', jax.P('fsdp', None)),
            (r'fc2/kernel', jax.P(None, 'fsdp')),
            *VECTORS,
        )
    blocks = block_sharding('gelu', 'pooler/') if config.depth > 1 else ()
    return (
        *blocks,
        (r'pooler/cross_attention_block/(xattn/(q|kv)|mlp/fc[12])/kernel', jax.P()),
        (r'pooler/query_tokens', jax.P()),
        (r'out/kernel', jax.P(None, 'fsdp')),
        *VECTORS,
    )


class Projector(nnx.Module):
    """mlp: Linear, GELU, Linear, and means over neighbouring tokens of a time; pooler: learned
    queries read all tokens, and a Linear."""

    def __init__(self, config: ProjectorConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        if c.kind not in KINDS:
            raise ValueError(f"kind '{c.kind}': allowed are {', '.join(KINDS)}")
        if c.kind == 'mlp':
            hidden = c.hidden or c.width
            wide = c.read[1]
            self.fc1 = Linear(wide, hidden, dtype=c.dtype, rngs=rngs, shrink=keeping(wide))
            self.fc2 = Linear(hidden, c.width, dtype=c.dtype, rngs=rngs, shrink=keeping(hidden))
        else:
            pooler = PoolerConfig(
                c.encoder_width, c.heads, c.depth, c.queries, dtype=c.dtype, remat=c.remat
            )
            self.pooler = AttentivePooler(pooler, rngs=rngs)
            self.out = Linear(
                c.encoder_width, c.width, dtype=c.dtype, rngs=rngs, shrink=keeping(c.encoder_width)
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [B, t h w, D] of clips -> [B, tokens, width]."""
        c, B = self.config, len(x)
        if c.kind == 'pooler':
            return gather(self.out)(self.pooler(x, spread=True))
        (t, h, w), p, spec = c.grid, c.pool, batch_spec(x)
        if c.joined:
            times = jnp.reshape(x, (B, t, h * w, c.encoder_width), out_sharding=spec)
            x, t = jnp.reshape(times.swapaxes(1, 2), (B, *c.read), out_sharding=spec), 1
        x = gather(self.fc2)(gelu(gather(self.fc1)(x)))
        if c.pool == 1:
            return x
        boxes = jnp.reshape(x, (B, t, h // p, p, w // p, p, c.width), out_sharding=spec)
        return jnp.reshape(boxes.mean((3, 5)), (B, c.tokens, c.width), out_sharding=spec)
