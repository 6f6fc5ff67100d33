"""The encoder: a vision transformer over tubelets of video, or patches of images."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jepa_jax.models import tokens
from jepa_jax.models.layers import Block, LayerNorm, Linear, block_sharding
from jepa_jax.models.rope import angles
from jepa_jax.nets import fold, stack
from jepa_jax.sharding import VECTORS, Rules, batch_spec, gather

EPS = 1e-6  # of every LayerNorm in encoder and predictors


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """All that shapes an encoder. (reference: vjepa2 §1)"""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    patch: int = 16  # pixels, square
    tubelet: int = 2  # frames; 1: an image model, for clips of one frame
    mlp: str = 'gelu'  # a key of layers.MLPS
    position: str = 'rope'  # rope | sincos
    rope: str = 'tiled'  # flavour: a key word of rope.angles
    uniform_power: bool = True  # sincos: equal shares of the width for t, y, x
    image_size: int = 256  # sincos: pixels of the square table's grid
    frames: int = 16  # sincos: frames of the table's grid
    dtype: jnp.dtype = jnp.bfloat16  # of matmul inputs and of the residual stream
    remat: str = 'full'  # a key of nets.REMAT

    def grid(self, T: int, H: int, W: int) -> tuple[int, int, int]:
        """Token grid (t, h, w) of a clip; what does not fill a tubelet is dropped."""
        return T // self.tubelet, H // self.patch, W // self.patch


def sharding(config: ViTConfig) -> Rules:
    """Where the parameters of a ViT lie."""
    rule = (r'patch_embed/kernel', jax.P(None, 'fsdp'))
    return (*block_sharding(config.mlp), rule, *VECTORS)


class ViT(nnx.Module):
    """Clips -> features of all tokens, or of those kept."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        if c.position not in ('rope', 'sincos'):
            raise ValueError(f"position '{c.position}': allowed are rope, sincos")
        self.patch_embed = Linear(
            c.tubelet * c.patch * c.patch * 3, c.width, dtype=c.dtype, rngs=rngs
        )
        self.blocks = stack(
            lambda r, layer: Block(
                c.width, c.heads, c.mlp_ratio, c.mlp, EPS, dtype=c.dtype, layer=layer, rngs=r
            ),
            c.depth,
            rngs,
        )
        self.norm = LayerNorm(c.width, eps=EPS, rngs=rngs)

    def __call__(
        self, video: jax.Array, keep: jax.Array | None = None, levels: tuple[int, ...] = ()
    ) -> jax.Array | list[jax.Array]:
        """video [B, T, H, W, 3], uint8 or normalised float; keep [B, K] token ids or None for all
        N.

        Returns [B, N or K, D] float32. levels: block indices (from 0); then a list, the features
        after each of those blocks, all through the same final norm. Positions are indices on the
        clip's own grid, whatever its size.
        """
        c = self.config
        t, h, w = grid = c.grid(*video.shape[1:4])
        if 0 in grid:
            raise ValueError(
                f'clip {video.shape[1:4]} (frames, height, width) is smaller than one tubelet of '
                f'{c.tubelet} frames and {c.patch} pixels'
            )
        x = tokens.cut(video, c.tubelet, c.patch)
        if keep is not None:  # before the projection: what is masked costs nothing
            x = jnp.take_along_axis(x, keep[..., None], axis=1)
        x = gather(self.patch_embed)(tokens.normalise(x))
        ids = jnp.arange(t * h * w) if keep is None else keep
        if c.position == 'rope':
            rope = angles(tokens.coordinates(ids, h, w), c.width // c.heads, c.rope)
        else:
            rope, x = None, x + self._table(grid, ids, x)
        x = fold(self.blocks, x.astype(c.dtype), rope, remat=c.remat, levels=levels)
        return [self.norm(level) for level in x] if levels else self.norm(x)

    def _table(self, grid: tuple[int, int, int], ids: jax.Array, like: jax.Array) -> jax.Array:
        c = self.config
        home = c.grid(c.frames, c.image_size, c.image_size)
        if c.tubelet == 1:  # an image model's table knows no time
            home, grid = (0, *home[1:]), (0, *grid[1:])
        table = tokens.sincos_table(home, c.width, c.uniform_power)
        return pick_rows(tokens.resize_table(table, home, grid), ids, like)


def pick_rows(table, ids: jax.Array, like: jax.Array) -> jax.Array:
    """Rows of a constant table [N, D] at ids [N] or [B, K], sharded as `like` [B, K, D] where ids
    are per clip."""
    table = jnp.asarray(table)
    return table[ids] if ids.ndim == 1 else table.at[ids].get(out_sharding=batch_spec(like))
