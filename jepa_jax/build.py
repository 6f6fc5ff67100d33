"""Configs of runs -> configs of models and objectives: the only place that does it."""

from __future__ import annotations

import jax.numpy as jnp

from jepa_jax.config import (
    ActionConditionedConfig,
    DenseVideoConfig,
    EncoderConfig,
    MaskedVideoConfig,
    RunConfig,
    encoder_shape,
    frame_counts,
)
from jepa_jax.models import VERSIONS
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives.action_conditioned import ACLoss, ActionConditioned
from jepa_jax.objectives.dense_video import ContextLoss, DenseVideo
from jepa_jax.objectives.masked_video import MaskedVideo


def masked_video(config: MaskedVideoConfig) -> MaskedVideo:
    """The objective of a pretraining run."""
    encoder = video_encoder(config)
    return MaskedVideo(
        encoder,
        predictor(config, encoder),
        groups=len(frame_counts(config.data)),
        exponent=config.loss_exponent,
        pixels=config.target == 'pixels',
        teacher=teacher(config),
    )


def dense_video(config: DenseVideoConfig) -> DenseVideo:
    """The objective of a run of V-JEPA 2.1."""
    encoder, loss, counts = video_encoder(config), config.context_loss, frame_counts(config.data)
    images = sum(map(config.is_image, counts))
    return DenseVideo(
        encoder,
        predictor(config, encoder),
        ContextLoss(loss.weight, loss.image_weight, loss.begin, loss.full, loss.by_distance),
        groups=len(counts) - images,
        image_share=config.image_share if images else 0.0,
        exponent=config.loss_exponent,
        teacher=teacher(config),
    )


def action_conditioned(config: ActionConditionedConfig) -> ActionConditioned:
    """The objective of a run on a robot's recordings."""
    encoder, rollout = frame_encoder(config), config.rollout
    return ActionConditioned(
        encoder,
        ac_predictor(config, encoder),
        ACLoss(
            config.loss_exponent,
            rollout.steps,
            rollout.prefix,
            rollout.stop_gradient,
            rollout.normalise,
        ),
        features=bool(config.features),
    )


def vit(config: RunConfig, encoder: EncoderConfig, crop: int, frames: int) -> ViTConfig:
    """An encoder for clips of `frames` frames and `crop` pixels."""
    shape = encoder_shape(encoder)
    return ViTConfig(
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        patch=encoder.patch,
        tubelet=encoder.tubelet,
        mlp=encoder.mlp,
        position=encoder.position,
        uniform_power=encoder.uniform_power,
        image_size=crop,
        frames=frames,
        dtype=jnp.dtype(config.compute_dtype),
        remat=config.mesh.remat,
        **VERSIONS[encoder.version].encoder(shape.depth),
    )


def video_encoder(config: MaskedVideoConfig) -> ViTConfig:
    """The encoder that a pretraining run trains."""
    return vit(config, config.encoder, config.data.crop, max(frame_counts(config.data)))


def teacher(config: MaskedVideoConfig) -> ViTConfig | None:
    """The frozen encoder whose features are predicted, if there is one."""
    if not config.teacher:
        return None
    return vit(config, config.teacher_encoder, config.data.crop, max(frame_counts(config.data)))


def target(config: MaskedVideoConfig) -> ViTConfig | None:
    """The encoder whose features are predicted; None: pixels are."""
    return None if config.target == 'pixels' else teacher(config) or video_encoder(config)


def predictor(config: MaskedVideoConfig, encoder: ViTConfig) -> PredictorConfig:
    """The predictor of masked tokens beside it, and of those in sight in V-JEPA 2.1. A teacher is
    met at its last level alone, from that of the student. (reference: vjepa2_1 §9.6)"""
    p, above = config.predictor, teacher(config)
    cube = encoder.tubelet * encoder.patch**2 * 3
    return PredictorConfig(
        encoder_width=encoder.width,
        width=p.width,
        depth=p.depth,
        heads=p.heads,
        mlp_ratio=p.mlp_ratio,
        mask_tokens=p.mask_tokens,
        zero_init_mask_tokens=p.zero_init_mask_tokens,
        mlp=p.mlp,
        position=encoder.position,
        uniform_power=encoder.uniform_power,
        grid=encoder.grid(encoder.frames, encoder.image_size, encoder.image_size),
        dtype=encoder.dtype,
        remat=encoder.remat,
        levels=1 if above else len(encoder.levels) or 1,
        out_width=above.width if above else cube if config.target == 'pixels' else 0,
        predict_context=bool(encoder.levels),
        **VERSIONS[config.encoder.version].predictor(),
    )


FRAMES = 16  # of clips that encoders of recordings were trained on, as far as sin-cos tables care


def frame_encoder(config: ActionConditionedConfig) -> ViTConfig:
    """The frozen encoder of a run on recordings."""
    return vit(config, config.encoder, config.data.crop, FRAMES)


def ac_predictor(config: ActionConditionedConfig, encoder: ViTConfig) -> ACPredictorConfig:
    """The action-conditioned predictor that a run on recordings trains."""
    ac = config.ac
    side = config.data.crop // encoder.patch
    return ACPredictorConfig(
        encoder_width=encoder.width,
        width=ac.width,
        depth=ac.depth,
        heads=ac.heads,
        mlp_ratio=ac.mlp_ratio,
        grid=(side, side),
        state_width=7 if ac.use_states else 0,
        use_extrinsics=ac.use_extrinsics,
        conditioning=ac.conditioning,
        action_scale=_factors(ac.action_scale),
        state_scale=_factors(ac.state_scale) if ac.use_states else (),
        residual=ac.residual,
        dtype=encoder.dtype,
        remat=encoder.remat,
    )


def _factors(scale: tuple[float, ...]) -> tuple[float, ...]:
    """Those of 1 as the released model has them: none."""
    return () if all(x == 1 for x in scale) else scale
