"""FLOPs that a training step is worth, counted from the models' shapes.

A product of [m, k] and [k, n] counts 2 m n k; everything else (norms, softmax, GELU, the update) is
left out, as is usual for MFU. The backward pass counts a product for every gradient it needs. What
is computed again to save memory is no use to the model and does not count.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.adapter import AdapterConfig
from jepa_jax.models.decoder import DecoderConfig
from jepa_jax.models.expander import ExpanderConfig
from jepa_jax.models.layers import MLPS
from jepa_jax.models.pixel_decoder import PixelDecoderConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.projector import ProjectorConfig
from jepa_jax.models.vit import ViTConfig

MLP_PRODUCTS = {'gelu': 2, 'swiglu': 3, 'swiglu_full': 3}
TRAINED = 3  # forward; backward: gradients of the weights (or of q, k, v) and of the input


@dataclasses.dataclass(frozen=True)
class GroupShape:
    """Clips of one frame count and how many tokens each of them has."""

    clips: int  # B
    tokens: int  # N
    masks: tuple[tuple[int, int], ...]  # (K context, M target) of every mask
    frames: int = 0  # of a clip, where images differ from videos


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step over all devices, by what they are spent on."""

    target: int  # encoder on all tokens, forward, and backward where a gradient passes
    context: int  # encoder on context tokens, forward and backward
    predictor: int  # forward and backward

    @property
    def total(self) -> int:
        return self.target + self.context + self.predictor


def blocks(config: ViTConfig | PredictorConfig | PixelDecoderConfig, tokens: int) -> int:
    """Forward FLOPs of all transformer blocks on one sequence of `tokens` tokens."""
    c = config
    hidden = MLPS[c.mlp][1](int(c.width * c.mlp_ratio))
    attention = 4 * c.width * c.width + 2 * tokens * c.width  # qkv, proj; scores, values
    return 2 * tokens * c.depth * (attention + MLP_PRODUCTS[c.mlp] * c.width * hidden)


def patch_embed(config: ViTConfig, tokens: int, frames: int = 0) -> int:
    """Forward FLOPs of the patch embedding of `tokens` tokens of a clip of so many frames."""
    return 2 * tokens * config.tubelet_of(frames) * config.patch**2 * 3 * config.width


def encoder(config: ViTConfig, tokens: int, frames: int = 0) -> int:
    """Forward FLOPs of the encoder on `tokens` tokens of one clip."""
    return patch_embed(config, tokens, frames) + blocks(config, tokens)


def predictor(config: PredictorConfig, context: int, target: int) -> int:
    """Forward FLOPs of the predictor on one clip's `context` tokens, predicting `target`."""
    c = config
    weights = c.encoder_width * c.width  # in
    if c.levels > 1:
        weights += c.in_width * c.encoder_width
    said = target + context * c.predict_context
    ends = context * weights + said * c.width * c.predicted_width
    return 2 * ends + blocks(config, context + target)


def pretraining_step(
    encoder_config: ViTConfig,
    predictor_config: PredictorConfig,
    groups: Sequence[GroupShape],
    target_config: ViTConfig | None,
    *,
    through_targets: bool = False,
) -> StepFlops:
    """FLOPs of one step of objectives.masked_video or dense_video; target_config: of the encoder
    whose features are predicted, None: pixels are; through_targets: a gradient passes there, too.
    """

    def trained(tokens: int, frames: int) -> int:
        once = TRAINED * encoder(encoder_config, tokens, frames)
        return once - patch_embed(encoder_config, tokens, frames)  # pixels need no gradient

    target = context = predicted = 0
    for group in groups:
        frames = group.frames
        if through_targets:
            target += group.clips * trained(group.tokens, frames)
        elif target_config:
            target += group.clips * encoder(target_config, group.tokens, frames)
        for kept, hidden in group.masks:
            context += group.clips * trained(kept, frames)
            predicted += group.clips * TRAINED * predictor(predictor_config, kept, hidden)
    return StepFlops(target, context, predicted)


def pixels_step(
    encoder_config: ViTConfig, decoder_config: PixelDecoderConfig, group: GroupShape
) -> dict[str, int]:
    """FLOPs of one step of objectives.masked_pixels, by what they are spent on."""
    e, d = encoder_config, decoder_config
    ((kept, hidden),) = group.masks
    seen = kept + e.class_token
    pixels = patch_embed(e, kept, group.frames)  # which need no gradient
    context = TRAINED * blocks(e, seen) + (TRAINED - 1) * pixels
    ends = 2 * (seen * d.encoder_width + hidden * d.values) * d.width
    return {
        'context': group.clips * context,
        'decoder': group.clips * TRAINED * (ends + blocks(d, seen + hidden)),
    }


def regulariser(expander: ExpanderConfig | None, width: int, samples: int, columns: int) -> int:
    """FLOPs, forward and backward, of terms of `samples` vectors of the encoder's width: projecting
    them, and their products with `columns` vectors (SIGReg's directions, which need no gradient;
    VICReg's other dimensions, which share theirs)."""
    widths = (width, *expander.hidden, expander.width) if expander else (width,)
    weights = sum(a * b for a, b in itertools.pairwise(widths))
    return 2 * samples * (TRAINED * weights + (TRAINED - 1) * widths[-1] * columns)


def _ac_layer(c: ACPredictorConfig) -> int:
    """Multiplications with weights in a block on one frame's tokens."""
    hidden = MLPS[c.mlp][1](int(c.width * c.mlp_ratio))
    total = c.tokens_per_frame * (4 * c.width * c.width + MLP_PRODUCTS[c.mlp] * c.width * hidden)
    return total + 6 * c.width * c.width * (c.conditioning == 'adaln')


def frames_after(config: ACPredictorConfig, past: int, frames: int, fixed: bool) -> int:
    """FLOPs, forward and backward, of predicting the frames after `frames` of one piece, which see
    themselves and `past` frames before; fixed: the frames need no gradient."""
    c = config
    patches, size = c.grid[0] * c.grid[1], c.tokens_per_frame
    conditions = c.action_width + c.state_width + c.use_extrinsics * c.extrinsics_width
    layer = _ac_layer(c)
    pairs = sum((past + frame + 1) * size * size for frame in range(frames))
    project = patches * c.encoder_width * c.width
    total = TRAINED * (c.depth * (frames * layer + 2 * pairs * c.width) + frames * project)
    total += (TRAINED - fixed) * frames * project
    total += (TRAINED - 1) * frames * conditions * c.width  # which need no gradient
    return 2 * total


def action_conditioned_step(
    config: ACPredictorConfig,
    clips: int,
    frames: int,
    *,
    rollout: int,
    prefix: int,
    cut: bool = False,
    encode: ViTConfig | None = None,
) -> int:
    """FLOPs of one step of objectives.action_conditioned, on pieces of so many frames.

    rollout: predictions in a row, after `prefix` true frames; cut: no gradient passes from one to
    the one before; encode: of the frozen encoder, where frames come in place of features.
    """
    total = frames_after(config, 0, frames - 1, fixed=True)
    for frame in range(prefix, prefix + rollout - 1):
        total += frames_after(config, frame, 1, fixed=cut)
    if encode is not None:
        total += frames * encoder(encode, config.grid[0] * config.grid[1])
    return clips * total


def ac_rollout(config: ACPredictorConfig, known: int, horizon: int) -> int:
    """Forward FLOPs of planning.world_model.ACWorldModel on one sample: `horizon` predictions after
    `known` frames, of which all but the last are the same for all samples and not counted."""
    c = config
    patches, size, layer = c.grid[0] * c.grid[1], c.tokens_per_frame, _ac_layer(c)
    conditions = c.action_width + c.state_width + c.use_extrinsics * c.extrinsics_width
    outside = (conditions + 2 * patches * c.encoder_width) * c.width
    pairs = sum(frames * size * size for frames in range(known, known + horizon))
    return 2 * (horizon * (outside + c.depth * layer) + 2 * c.depth * pairs * c.width)


@dataclasses.dataclass(frozen=True)
class AnswerFlops:
    """FLOPs of a step on questions, by what they are spent on."""

    encoder: int
    projector: int
    language: int

    @property
    def total(self) -> int:
        return self.encoder + self.projector + self.language


def language(
    c: DecoderConfig, tokens: int, adapter: AdapterConfig | None = None, trained: bool = False
) -> int:
    """FLOPs, forward and backward, of the language model on one sequence. Weights that are frozen
    need no gradient, but what comes before them does; a token sees those before it."""
    inner, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
    layer = c.width * (2 * inner + 2 * shared + 3 * c.hidden)
    products = tokens * (c.depth * layer + c.width * c.vocabulary)
    pairs = tokens * (tokens + 1) // 2
    total = (TRAINED if trained else TRAINED - 1) * products
    total += TRAINED * c.depth * 2 * pairs * inner
    if adapter:
        low = sum(adapter.rank * sum(adapter.form(name)) for name in adapter.kernels)
        total += TRAINED * tokens * c.depth * low
    return 2 * total


def projected(c: ProjectorConfig, clips: int, inputs_trained: bool) -> int:
    """FLOPs, forward and backward, of the projector on the tokens of so many clips."""
    if c.kind == 'mlp':
        hidden = c.hidden or c.width
        tokens, wide = c.read
        first, rest = wide * hidden, hidden * c.width
        once = (TRAINED if inputs_trained else TRAINED - 1) * first + TRAINED * rest
        return 2 * clips * tokens * once
    tokens, wide = math.prod(c.grid), c.encoder_width
    blocks = (c.depth - 1) * tokens * (12 * wide * wide + 2 * tokens * wide)
    # the pooler's products in their order: queries into the tokens' space and back, scores, means
    cross = c.queries * (3 * wide * wide + 8 * wide * wide + 2 * c.heads * tokens * wide)
    return 2 * clips * TRAINED * (blocks + cross + c.queries * wide * c.width)


def answering_step(
    encoder_config: ViTConfig | None,
    projector_config: ProjectorConfig,
    decoder_config: DecoderConfig,
    adapter: AdapterConfig | None,
    *,
    rows: int,
    length: int,
    clips: int,
    frames: int,
    train_encoder: bool,
    train_decoder: bool,
) -> AnswerFlops:
    """FLOPs of one step of objectives.questions on `rows` sequences of `length` tokens with room
    for `clips` clips each. encoder_config None: features were computed before."""
    seen = 0
    if encoder_config is not None:
        tokens = math.prod(projector_config.grid)
        seen = encoder(encoder_config, tokens, frames)
        if train_encoder:
            seen = TRAINED * seen - patch_embed(encoder_config, tokens, frames)
    return AnswerFlops(
        rows * clips * seen,
        rows * projected(projector_config, clips, train_encoder),
        rows * language(decoder_config, length, adapter, train_decoder),
    )
