"""The predictor: a narrow transformer that fills in the features of tokens the encoder has not
seen."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jepa_jax.models.layers import INIT_STD, Block, LayerNorm, Linear, block_sharding, gelu
from jepa_jax.models.rope import angles
from jepa_jax.models.vit import (
    EPS,
    IMAGE,
    VIDEO,
    check_choices,
    modality_embeddings,
    modality_sharding,
    pick_rows,
    position_table,
    positions,
    table_sharding,
)
from jepa_jax.nets import fold, stack
from jepa_jax.sharding import VECTORS, Rules, batch_spec, gather


@dataclasses.dataclass(frozen=True)
class PredictorConfig:
    """All that shapes a predictor. (reference: vjepa2 §2)"""

    encoder_width: int  # of each level
    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    mask_tokens: int = 10
    zero_init_mask_tokens: bool = True
    mlp: str = 'gelu'  # a key of layers.MLPS
    position: str = 'rope'  # rope | sincos
    rope: str = 'tiled'
    uniform_power: bool = True
    axes: str = 'yx'  # as ViTConfig's
    stored_table: bool = False  # as ViTConfig's
    grid: tuple[int, int, int] = (
        8,
        16,
        16,
    )  # (t, h, w) of the clips, t = 0 of images with sincos; rope needs h and w, sincos all
    dtype: jnp.dtype = (
        jnp.bfloat16
    )  # of matmul inputs; the residual stream is float32, as in the original
    remat: str = 'full'  # a key of nets.REMAT
    rescale: bool = True  # as ViTConfig's
    interpolate: bool = False  # as ViTConfig's; the original's hub has it off (vjepa2_1 §0.4)
    modalities: bool = False  # tokens are told whether they are of an image or a video
    levels: int = 1  # of the encoder that context features come from, one after the other
    out_width: int = 0  # of what is predicted, all levels; 0: of what comes in
    predict_context: bool = False  # also what tokens in sight are to the target, by another head

    class_token = False  # no field: none has one

    @property
    def home(self) -> tuple[int, int, int]:
        """As ViTConfig's."""
        return self.grid

    @property
    def in_width(self) -> int:
        return self.levels * self.encoder_width

    @property
    def predicted_width(self) -> int:
        return self.out_width or self.in_width


def sharding(config: PredictorConfig) -> Rules:
    """Where the parameters of a Predictor lie."""
    fuse = ((r'fuse/kernel', jax.P('fsdp', None)),) if config.levels > 1 else ()
    return (
        *block_sharding(config.mlp),
        (r'embed/kernel', jax.P('fsdp', None)),
        *fuse,
        (r'proj(_context)?/kernel', jax.P(None, 'fsdp')),
        (r'mask_tokens/\d+', jax.P()),
        *modality_sharding(config),
        *table_sharding(config),
        *VECTORS,
    )


class Predictor(nnx.Module):
    """Context features and the ids of targets -> features of the targets."""

    def __init__(self, config: PredictorConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        check_choices(c, 'position', 'axes')
        self.embed = Linear(c.encoder_width, c.width, dtype=c.dtype, rngs=rngs)
        if c.levels > 1:
            self.fuse = Linear(c.in_width, c.encoder_width, dtype=c.dtype, rngs=rngs)
        std = 0.0 if c.zero_init_mask_tokens else INIT_STD
        # leaves of their own: a token that no group of a run uses is not decayed
        self.mask_tokens = nnx.Dict(
            {
                str(i): nnx.Param(std * jax.random.normal(rngs.params(), (1, 1, c.width)))
                for i in range(c.mask_tokens)
            }
        )
        self.blocks = stack(
            lambda r, layer: Block(
                c.width, c.heads, c.mlp_ratio, c.mlp, EPS, dtype=c.dtype, layer=layer, rngs=r,
                rescale=c.rescale,
            ),
            c.depth,
            rngs,
        )  # fmt: skip
        self.norm = LayerNorm(c.width, eps=EPS, rngs=rngs)
        self.proj = Linear(c.width, c.predicted_width, dtype=c.dtype, rngs=rngs)
        if c.predict_context:
            self.proj_context = Linear(c.width, c.predicted_width, dtype=c.dtype, rngs=rngs)
        if c.modalities:
            self.modality = modality_embeddings(c.width, rngs)
        if c.stored_table:
            self.table = nnx.Param(jnp.asarray(position_table(c, c.grid)))

    def __call__(
        self,
        context: jax.Array,
        context_ids: jax.Array,
        target_ids: jax.Array,
        mask_index: int = 1,
        return_all: bool = False,
        image: bool = False,
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """context [B, K, D], context_ids [B, K], target_ids [B, M] -> [B, M, D] float32, in the
        order of target_ids; of a predictor with `predict_context` that, and [B, K, D] for the
        context. Where there are several levels, their D one after the other.

        mask_index selects the mask token, modulo their number: pretraining uses the position of the
        clip's frame-count group in the batch; 1 is the original's default elsewhere (reference:
        vjepa2 §3). Ids count on the grid of the config, also for clips of another size. return_all:
        all K + M tokens, ordered by id. image: the ids are of an image.
        """
        c = self.config
        B, M = target_ids.shape
        x = context
        if c.levels > 1:
            x = gelu(gather(self.fuse)(x))
        x = gather(self.embed)(x).astype(jnp.float32)
        token = self.mask_tokens[str(mask_index % c.mask_tokens)][...]
        # attention knows no order, so the original's sorting by id and back is left out
        queries = jnp.broadcast_to(token, (B, M, c.width), out_sharding=batch_spec(x))
        x = jnp.concatenate([x, queries], axis=1)
        if c.modalities:
            x = x + self.modality[IMAGE if image else VIDEO][...]
        ids = jnp.concatenate([context_ids, target_ids], axis=1)
        rope = None
        if c.position == 'rope':
            rope = angles(positions(c, ids, *c.grid[1:]), c.width // c.heads, c.rope)
        else:
            stored = c.stored_table
            table = jax.lax.stop_gradient(self.table[...]) if stored else position_table(c, c.grid)
            x = x + pick_rows(table, ids, x)
        x = self.norm(fold(self.blocks, x, rope, remat=c.remat))
        if c.predict_context:
            heads = (self.proj, x[:, -M:]), (self.proj_context, x[:, :-M])
            return tuple(gather(head)(part).astype(jnp.float32) for head, part in heads)
        if return_all:
            x = jnp.take_along_axis(x, jnp.argsort(ids, axis=1)[..., None], axis=1)
        else:
            x = x[:, -M:]
        return gather(self.proj)(x).astype(jnp.float32)
