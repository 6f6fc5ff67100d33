"""From an encoder's tokens to those that a language model reads. (reference: video_qa §1.2)"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jepa_jax.models.layers import Linear, block_sharding, gelu
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
    queries: int = 0  # pooler: tokens that come out
    depth: int = 1  # pooler: blocks
    heads: int = 16  # pooler
    dtype: jnp.dtype = jnp.bfloat16  # of matmul inputs
    remat: str = 'full'  # a key of nets.REMAT

    @property
    def tokens(self) -> int:
        """That come out, of a clip."""
        t, h, w = self.grid
        return self.queries if self.kind == 'pooler' else t * h * w // self.pool**2


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
    """mlp: Linear, GELU, Linear, and means over neighbouring tokens of a frame; pooler: learned
    queries read all tokens, and a Linear."""

    def __init__(self, config: ProjectorConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        if c.kind not in KINDS:
            raise ValueError(f"kind '{c.kind}': allowed are {', '.join(KINDS)}")
        if c.kind == 'mlp':
            hidden = c.hidden or c.width
            self.fc1 = Linear(c.encoder_width, hidden, dtype=c.dtype, rngs=rngs)
            self.fc2 = Linear(hidden, c.width, dtype=c.dtype, rngs=rngs)
        else:
            pooler = PoolerConfig(
                c.encoder_width, c.heads, c.depth, c.queries, dtype=c.dtype, remat=c.remat
            )
            self.pooler = AttentivePooler(pooler, rngs=rngs)
            self.out = Linear(c.encoder_width, c.width, dtype=c.dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [B, t h w, D] of clips -> [B, tokens, width]."""
        c, B = self.config, len(x)
        if c.kind == 'pooler':
            return gather(self.out)(self.pooler(x, spread=True))
        x = gather(self.fc2)(gelu(gather(self.fc1)(x)))
        if c.pool == 1:
            return x
        (t, h, w), p, spec = c.grid, c.pool, batch_spec(x)
        boxes = jnp.reshape(x, (B, t, h // p, p, w // p, p, c.width), out_sharding=spec)
        return jnp.reshape(boxes.mean((3, 5)), (B, c.tokens, c.width), out_sharding=spec)
