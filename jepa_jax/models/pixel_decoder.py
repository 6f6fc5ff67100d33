"""The decoder of MAE and VideoMAE: features of tokens in sight -> pixels of the others.

(reference: family §3)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jepa_jax.models.layers import (
    INIT_STD,
    Block,
    LayerNorm,
    Linear,
    block_sharding,
    redraw,
)
from jepa_jax.models.vit import (
    EPS,
    check_choices,
    pick_rows,
    position_table,
    table_sharding,
)
from jepa_jax.nets import fold, stack
from jepa_jax.sharding import VECTORS, Rules, batch_spec, gather


@dataclasses.dataclass(frozen=True)
class PixelDecoderConfig:
    """All that shapes a decoder. Defaults: MAE."""

    encoder_width: int
    values: int  # of a token: tubelet * patch * patch * 3
    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    mlp: str = 'gelu'  # a key of layers.MLPS
    position: str = 'sincos'
    axes: str = 'xy'  # of the table, as ViTConfig's
    uniform_power: bool = True
    grid: tuple[int, int, int] = (0, 14, 14)  # (t, h, w) of the clips, t = 0 of images
    class_token: bool = True  # the context begins with one
    embed_bias: bool = True
    key_bias: bool = True
    stored_table: bool = False  # as ViTConfig's
    dtype: jnp.dtype = jnp.bfloat16  # of matmul inputs; the residual stream is float32
    remat: str = 'full'  # a key of nets.REMAT

    @property
    def home(self) -> tuple[int, int, int]:
        """As ViTConfig's."""
        return self.grid


def sharding(config: PixelDecoderConfig) -> Rules:
    """Where the parameters of a PixelDecoder lie."""
    return (
        *block_sharding(config.mlp, key_bias=config.key_bias),
        (r'embed/kernel', jax.P('fsdp', None)),
        # over its input, the width: what a token holds no mesh need divide
        (r'proj/kernel', jax.P('fsdp', None)),
        (r'mask_token', jax.P()),
        *table_sharding(config),
        *VECTORS,
    )


class PixelDecoder(nnx.Module):
    """Features of the context and the ids of targets -> values of the targets' pixels."""

    def __init__(self, config: PixelDecoderConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        check_choices(c, 'position', 'axes')
        self.embed = Linear(c.encoder_width, c.width, dtype=c.dtype, rngs=rngs, bias=c.embed_bias)
        self.mask_token = nnx.Param(INIT_STD * jax.random.normal(rngs.params(), (1, 1, c.width)))
        self.blocks = stack(
            lambda r, layer: Block(
                c.width, c.heads, c.mlp_ratio, c.mlp, EPS,
                dtype=c.dtype, layer=layer, rngs=r, key_bias=c.key_bias,
            ),
            c.depth,
            rngs,
        )  # fmt: skip
        self.norm = LayerNorm(c.width, eps=EPS, rngs=rngs)
        self.proj = Linear(c.width, c.values, dtype=c.dtype, rngs=rngs)
        redraw(self, rngs)
        if c.stored_table:
            self.table = nnx.Param(jnp.asarray(position_table(c, c.grid)))

    def __call__(
        self,
        context: jax.Array,
        context_ids: jax.Array,
        target_ids: jax.Array,
        return_all: bool = False,
    ) -> jax.Array:
        """context [B, K, D], of a class token first where there is one, context_ids [B, K] of the
        others, target_ids [B, M] -> [B, M, P] float32, in the order of target_ids.

        return_all: what it says of all tokens [B, K + M, P], ordered by id.
        """
        c = self.config
        B, M = target_ids.shape
        x = gather(self.embed)(context).astype(jnp.float32)
        queries = jnp.broadcast_to(
            self.mask_token[...], (B, M, c.width), out_sharding=batch_spec(x)
        )
        x = jnp.concatenate([x, queries], axis=1)
        ids = jnp.concatenate([context_ids, target_ids], axis=1)
        stored = c.stored_table
        table = jax.lax.stop_gradient(self.table[...]) if stored else position_table(c, c.grid)
        if c.class_token:  # which the first row is for
            first = jnp.zeros_like(ids[:, :1])
            ids = jnp.concatenate([first, ids + 1], axis=1)
        x = x + pick_rows(table, ids, x)
        x = self.norm(fold(self.blocks, x, None, remat=c.remat))
        if return_all:
            x, ids = (a[:, 1:] if c.class_token else a for a in (x, ids))
            x = jnp.take_along_axis(x, jnp.argsort(ids, axis=1)[..., None], axis=1)
        else:
            x = x[:, -M:]
        return gather(self.proj)(x).astype(jnp.float32)
