"""The encoder: a vision transformer over tubelets of video, or patches of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax.models import tokens
from jepa_jax.models.layers import INIT_STD, Block, LayerNorm, Linear, block_sharding, redraw
from jepa_jax.models.rope import angles
from jepa_jax.nets import fold, fold_outputs, stack
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
    rope: str = 'tiled'  # flavour: a key of rope.FLAVOURS
    interpolate: bool = False  # rope: rows and columns of any grid spread over that of 256 pixels
    # clips of one frame are images, with a patchifier of their own; every token is told which
    modalities: bool = False
    # blocks, ascending, whose outputs have a norm each, the last one among them; (): one norm, of
    # the last
    levels: tuple[int, ...] = ()
    uniform_power: bool = True  # sincos: equal shares of the width for t, y, x
    # sincos: of images, what comes first, yx as in V-JEPA | xy as in I-JEPA, MAE; or flat, one line
    # of tokens, as in VideoMAE
    axes: str = 'yx'
    # sincos, clips of fewer frames: first, the table's first rows | resized, as in V-JEPA 1
    shorter: str = 'first'
    stored_table: bool = False  # sincos: the table is a weight that a file brought; never trained
    image_size: int = 256  # sincos: pixels of the square table's grid
    frames: int = 16  # sincos: frames of the table's grid
    class_token: bool = False  # one more token, as in MAE, whose features are not among the tokens'
    key_bias: bool = True  # False: attention's keys have none, as in VideoMAE
    glorot: bool = False  # weights start as MAE's, see layers.redraw
    # False: features as the last block leaves them, as in MAE and VideoMAE once fine-tuned: their
    # classifier has a norm, of the mean (pooler.PoolerConfig.mean)
    last_norm: bool = True
    dtype: jnp.dtype = jnp.bfloat16  # of matmul inputs and of the residual stream
    remat: str = 'full'  # a key of nets.REMAT
    rescale: bool = True  # how fresh weights are drawn: see config.EncoderConfig

    def grid(self, T: int, H: int, W: int) -> tuple[int, int, int]:
        """Token grid (t, h, w) of a clip; what does not fill a tubelet is dropped."""
        return T // self.tubelet_of(T), H // self.patch, W // self.patch

    @property
    def home(self) -> tuple[int, int, int]:
        """The grid that a sin-cos table is made for; an image model's knows no time: (0, h, w)."""
        t, h, w = self.grid(self.frames, self.image_size, self.image_size)
        return (0 if self.tubelet == 1 else t), h, w

    @property
    def still(self) -> bool:
        """Whether it reads single frames alone: its table of positions knows no time."""
        return self.position == 'sincos' and self.tubelet == 1

    def tubelet_of(self, T: int) -> int:
        """Frames in a token of a clip of T frames: 1 of an image, if there is a way for them."""
        return 1 if self.modalities and T == 1 else self.tubelet


def sharding(config: ViTConfig) -> Rules:
    """Where the parameters of a ViT lie."""
    patches = (r'patch_embed(_image)?/kernel', jax.P(None, 'fsdp'))
    more = (*modality_sharding(config), *table_sharding(config))
    more += ((r'class_token', jax.P()),) if config.class_token else ()
    return (*block_sharding(config.mlp, key_bias=config.key_bias), patches, *more, *VECTORS)


CHOICES = {
    'position': ('rope', 'sincos'),
    'axes': ('yx', 'xy', 'flat'),
    'shorter': ('first', 'resized'),
}


def check_choices(config, *fields: str) -> None:
    """Raises ValueError for a word of an encoder's or predictor's config that is not a choice."""
    for field in fields:
        words = CHOICES[field]
        if (value := getattr(config, field)) not in words:
            raise ValueError(f"{field} '{value}': allowed are {', '.join(words)}")


IMAGE, VIDEO = MODALITIES = 'image', 'video'


def modality_embeddings(width: int, rngs: nnx.Rngs) -> nnx.Dict:
    """What is added to every token of an image, and of a video: [1, 1, D] each."""
    return nnx.Dict(
        {name: nnx.Param(1e-6 * jax.random.normal(rngs.params(), (1, 1, width)))
         for name in MODALITIES}
    )  # fmt: skip


def modality_sharding(config) -> Rules:
    """Where they lie, in nets that have them."""
    return ((r'modality/\w+', jax.P()),) if config.modalities else ()


def table_sharding(config) -> Rules:
    """Where the table of positions lies, in nets that have one among their weights."""
    return ((r'table', jax.P()),) if config.stored_table else ()


def position_table(config, grid: tuple[int, int, int]) -> np.ndarray:
    """The sin-cos table [N, D] of an encoder or predictor whose home grid is `grid`; with a row of
    zeros before it for a class token."""
    table = tokens.sincos_table(grid, config.width, config.uniform_power, config.axes)
    if config.class_token:
        table = np.concatenate([np.zeros_like(table[:1]), table])
    return table


class ViT(nnx.Module):
    """Clips -> features of all tokens, or of those kept."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        check_choices(c, *CHOICES)
        self.patch_embed = Linear(
            c.tubelet * c.patch * c.patch * 3, c.width, dtype=c.dtype, rngs=rngs
        )
        self.blocks = stack(
            lambda r, layer: Block(
                c.width, c.heads, c.mlp_ratio, c.mlp, EPS, dtype=c.dtype, layer=layer, rngs=r,
                rescale=c.rescale, key_bias=c.key_bias,
            ),
            c.depth,
            rngs,
        )  # fmt: skip
        if c.levels:
            norms = (LayerNorm(c.width, eps=EPS, rngs=rngs) for _ in c.levels)
            self.norms = nnx.Dict({str(i): norm for i, norm in enumerate(norms)})
        elif c.last_norm:
            self.norm = LayerNorm(c.width, eps=EPS, rngs=rngs)
        if c.stored_table:
            self.table = nnx.Param(jnp.asarray(position_table(c, c.home)))
        if c.class_token:
            self.class_token = nnx.Param(
                INIT_STD * jax.random.normal(rngs.params(), (1, 1, c.width))
            )
        if c.glorot:
            redraw(self, rngs)
        if c.modalities:
            self.patch_embed_image = Linear(c.patch**2 * 3, c.width, dtype=c.dtype, rngs=rngs)
            self.modality = modality_embeddings(c.width, rngs)

    def __call__(
        self,
        video: jax.Array,
        keep: jax.Array | None = None,
        levels: tuple[int, ...] = (),
        whole: bool = False,
        apart: jax.Array | None = None,
    ) -> jax.Array | list[jax.Array]:
        """video [B, T, H, W, 3], uint8 or normalised float; keep [B, K] token ids or None for all
        N.

        Returns [B, N or K, D] float32. levels: block indices (from 0); then a list, the features
        after each of those blocks, through its own norm or, where it has none, the last. Positions
        are indices on the clip's own grid, whatever its size. whole: with the class token first,
        where there is one. apart [B] bool: clips of which every tubelet is read by itself, as if it
        were all there is; None: none is.
        """
        c = self.config
        T = video.shape[1]
        if c.still and T > 1:
            return self._frames(video, keep, levels)
        if apart is not None and c.class_token:
            raise ValueError('a class token belongs to all tubelets: none can be read by itself')
        tubelet = c.tubelet_of(T)
        t, h, w = grid = c.grid(*video.shape[1:4])
        if 0 in grid:
            raise ValueError(
                f'clip {video.shape[1:4]} (frames, height, width) is smaller than one tubelet of '
                f'{c.tubelet} frames and {c.patch} pixels'
            )
        if c.modalities and T % tubelet:
            raise ValueError(f'{T} frames: must be 1, an image, or a multiple of {tubelet}')
        x = tokens.cut(video, tubelet, c.patch)
        if keep is not None:  # before the projection: what is masked costs nothing
            x = jnp.take_along_axis(x, keep[..., None], axis=1)
        image = c.modalities and T == 1
        x = gather(self.patch_embed_image if image else self.patch_embed)(tokens.normalise(x))
        if c.modalities:
            x = x + self.modality[IMAGE if image else VIDEO][...]
        ids, segments = jnp.arange(t * h * w) if keep is None else keep, None
        if apart is not None:
            apart, size = apart[:, None], h * w
            segments = jnp.where(apart, ids // size, 0).astype(jnp.int32)
            ids = jnp.where(apart, ids % size, ids)  # a tubelet alone is the first
        if c.position == 'rope':
            rope = angles(positions(c, ids, h, w), c.width // c.heads, c.rope)
        else:
            rope, x = None, x + self._table(grid, ids, x)
        if c.class_token:
            first = jnp.broadcast_to(
                self._first(), (len(x), 1, c.width), out_sharding=batch_spec(x)
            )
            x = jnp.concatenate([first, x], axis=1)

        def of_tokens(x):
            return x[:, 1:] if c.class_token and not whole else x

        x, row = x.astype(c.dtype), (rope, None, segments)
        if not levels:
            return of_tokens(self._norm(c.depth - 1)(fold(self.blocks, x, *row, remat=c.remat)))
        if c.levels:  # a gradient may be asked for
            x = fold_outputs(self.blocks, x, *row, remat=c.remat, levels=levels)
        else:
            x = fold(self.blocks, x, *row, remat=c.remat, levels=levels)
        if levels == c.levels:  # several may be of one block
            norms = [self.norms[str(i)] for i in range(len(levels))]
        else:
            norms = map(self._norm, levels)
        return [of_tokens(norm(level)) for norm, level in zip(norms, x)]

    def _frames(
        self, video: jax.Array, keep: jax.Array | None, levels: tuple[int, ...]
    ) -> jax.Array | list[jax.Array]:
        """An image model's features of each frame by itself, one frame after the other: [B, T h w,
        D]."""
        if keep is not None:
            raise ValueError('an image model that masks takes clips of one frame')
        B, T, *frame = video.shape
        spec = batch_spec(video)
        images = jnp.reshape(video, (B * T, 1, *frame), out_sharding=spec)

        def joined(x):
            return jnp.reshape(x, (B, -1, x.shape[-1]), out_sharding=spec)

        features = self(images, levels=levels)
        return [joined(x) for x in features] if levels else joined(features)

    def _norm(self, block: int) -> Callable[[jax.Array], jax.Array]:
        """Of the output of a block."""
        levels = self.config.levels
        if not levels:
            return self.norm if self.config.last_norm else _float32
        last = len(levels) - 1
        return self.norms[str(last - levels[::-1].index(block) if block in levels else last)]

    def _table(self, grid: tuple[int, int, int], ids: jax.Array, like: jax.Array) -> jax.Array:
        c = self.config
        if c.tubelet == 1:
            grid = (0, *grid[1:])
        stored = c.stored_table
        table = jax.lax.stop_gradient(self.table[...]) if stored else position_table(c, c.home)
        table = table[1:] if c.class_token else table
        table = tokens.resize_table(table, c.home, grid, first=c.shorter == 'first')
        return pick_rows(table, ids, like)

    def _first(self) -> jax.Array:
        """The class token [1, 1, D] with what a stored table adds to it: computed ones add zero."""
        token = self.class_token[...]
        if self.config.stored_table:
            token = token + jax.lax.stop_gradient(self.table[...])[:1]
        return token


def _float32(x: jax.Array) -> jax.Array:
    """Features without a norm, in the type that a norm gives."""
    return x.astype(jnp.float32)


def positions(config, ids: jax.Array, h: int, w: int) -> tuple[jax.Array, ...]:
    """Where tokens of a grid h x w lie for RoPE: (t, y, x), as the config says."""
    at = tokens.coordinates(ids, h, w)
    return tokens.spread(at, h, w) if config.interpolate else at


def pick_rows(table, ids: jax.Array, like: jax.Array) -> jax.Array:
    """Rows of a constant table [N, D] at ids [N] or [B, K], sharded as `like` [B, K, D] where ids
    are per clip."""
    table = jnp.asarray(table)
    return table[ids] if ids.ndim == 1 else table.at[ids].get(out_sharding=batch_spec(like))
