"""Configs of runs -> configs of models and objectives: the only place that does it."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jepa_jax.config import (
    ActionConditionedConfig,
    AgainstCollapseConfig,
    DenseVideoConfig,
    EncoderConfig,
    MaskedImageConfig,
    MaskedPixelsConfig,
    MaskedVideoConfig,
    QuestionsConfig,
    RunConfig,
    encoder_shape,
    frame_counts,
)
from jepa_jax.config.questions import clip_grid, language_shape, visual_tokens
from jepa_jax.models import VERSIONS
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.adapter import AdapterConfig
from jepa_jax.models.decoder import DecoderConfig
from jepa_jax.models.expander import ExpanderConfig
from jepa_jax.models.pixel_decoder import PixelDecoderConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.projector import ProjectorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives import regularisers
from jepa_jax.objectives.action_conditioned import ACLoss, ActionConditioned
from jepa_jax.objectives.dense_video import ContextLoss, DenseVideo
from jepa_jax.objectives.masked_image import MaskedImage
from jepa_jax.objectives.masked_pixels import MaskedPixels
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.objectives.questions import Questions
from jepa_jax.objectives.regularised_video import RegularisedVideo, Regulariser


def masked_video(config: MaskedVideoConfig) -> MaskedVideo:
    """The objective of a pretraining run."""
    encoder = video_encoder(config)
    settings = {
        'groups': len(frame_counts(config.data)),
        'exponent': config.loss_exponent,
        'tokens_of_masks': len(config.masks) if config.predictor.tokens_of == 'masks' else 0,
    }
    nets = encoder, predictor(config, encoder)
    if config.against_collapse.method == 'ema':
        return MaskedVideo(
            *nets,
            **settings,
            variance_weight=config.variance_weight,
            pixels=config.target == 'pixels',
            teacher=teacher(config),
        )
    against = regulariser(config.against_collapse), expander(config)
    return RegularisedVideo(*nets, *against, **settings, seed=config.seed)


def masked_pixels(config: MaskedPixelsConfig) -> MaskedPixels:
    """The objective of a run of MAE or VideoMAE."""
    encoder = pixel_encoder(config)
    return MaskedPixels(encoder, pixel_decoder(config, encoder), target=config.target)


def pixel_encoder(config: MaskedPixelsConfig) -> ViTConfig:
    """The encoder that a run of MAE or VideoMAE trains."""
    (frames,) = frame_counts(config.data)
    mae = config.kind == 'mae'
    return dataclasses.replace(
        vit(config, config.encoder, config.data.crop, frames),
        class_token=mae,
        key_bias=mae,
        glorot=True,
    )


def pixel_decoder(config: MaskedPixelsConfig, encoder: ViTConfig) -> PixelDecoderConfig:
    """The decoder beside it."""
    d, mae = config.decoder, config.kind == 'mae'
    return PixelDecoderConfig(
        encoder_width=encoder.width,
        values=encoder.tubelet * encoder.patch**2 * 3,
        width=d.width,
        depth=d.depth,
        heads=d.heads,
        mlp_ratio=d.mlp_ratio,
        axes=encoder.axes,
        grid=encoder.home,
        class_token=mae,
        embed_bias=mae,
        key_bias=mae,
        stored_table=encoder.stored_table,
        dtype=encoder.dtype,
        remat=encoder.remat,
    )


def regulariser(against: AgainstCollapseConfig) -> Regulariser:
    """What keeps features apart without a moving average."""
    c = against
    if c.method not in regularisers.VARIANTS:
        return Regulariser(None, stop_gradient=c.stop_gradient)
    variants = regularisers.VARIANTS[c.method]
    terms = variants[c.variant or next(iter(variants))]
    chosen = {
        'prediction': c.prediction_weight,
        'std': c.std_weight,
        'covariance': c.covariance_weight,
        'weight': c.sigreg_weight,
        'directions': c.directions,
    }
    own = {f.name for f in dataclasses.fields(terms)}  # the others are of another method
    terms = dataclasses.replace(terms, **{k: v for k, v in chosen.items() if v and k in own})
    samples = ('clips', 'positions') if c.samples == 'both' else (c.samples,)
    expanded = c.space == 'expanded' and any(c.expander)
    return Regulariser(terms, samples, c.positions, c.stop_gradient, expanded)


def expander(config: MaskedVideoConfig) -> ExpanderConfig | None:
    """What stands between features and terms against collapse, if any does."""
    c = config.against_collapse
    if c.method not in regularisers.VARIANTS or not any(c.expander):
        return None
    hidden, out = c.expander
    width = encoder_shape(config.encoder).width
    return ExpanderConfig(width, (hidden, hidden), out, jnp.dtype(config.compute_dtype))


def through_targets(config: MaskedVideoConfig) -> bool:
    """Whether a gradient passes through the encoder on all tokens."""
    c = config.against_collapse
    return c.method != 'ema' and (c.method != 'none' or not c.stop_gradient)


def masked_image(config: MaskedImageConfig) -> MaskedImage:
    """The objective of a run of I-JEPA."""
    encoder = video_encoder(config)
    return MaskedImage(encoder, image_predictor(config, encoder), beta=config.loss_beta)


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
        axes=encoder.axes,
        shorter=encoder.shorter,
        stored_table=encoder.stored_table,
        rescale=encoder.rescale,
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
    return _predictor(config, encoder, teacher(config), config.target == 'pixels')


def _predictor(
    config: MaskedVideoConfig | MaskedImageConfig,
    encoder: ViTConfig,
    above: ViTConfig | None = None,
    pixels: bool = False,
) -> PredictorConfig:
    p = config.predictor
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
        axes=encoder.axes,
        rescale=encoder.rescale,
        grid=encoder.grid(encoder.frames, encoder.image_size, encoder.image_size),
        dtype=encoder.dtype,
        remat=encoder.remat,
        levels=1 if above else len(encoder.levels) or 1,
        out_width=above.width if above else cube if pixels else 0,
        predict_context=bool(encoder.levels),
        **VERSIONS[config.encoder.version].predictor(),
    )


def image_predictor(config: MaskedImageConfig, encoder: ViTConfig) -> PredictorConfig:
    """The predictor of masked blocks beside an encoder of images."""
    return dataclasses.replace(_predictor(config, encoder), grid=encoder.home)


def questions(config: QuestionsConfig) -> Questions:
    """The objective of a run on questions."""
    language, encoder = decoder(config), clip_encoder(config)
    settings, lora = config.language, None
    if settings.trains == 'adapter':
        lora = AdapterConfig.of(language, settings.rank, settings.alpha, settings.kernels)
    return Questions(
        encoder,
        projector(config, encoder, language),
        language,
        lora,
        features=bool(config.features),
        train_encoder=config.train_encoder,
        train_decoder=settings.trains == 'all',
        rates={
            'encoder': config.encoder_rate,
            'decoder': settings.rate,
            'adapter': settings.rate,
        },  # fmt: skip
    )


def clip_encoder(config: QuestionsConfig) -> ViTConfig:
    """The encoder of a run on questions."""
    return vit(config, config.encoder, config.clips.crop, config.clips.frames)


def decoder(config: QuestionsConfig) -> DecoderConfig:
    """The language model of a run on questions: float32 where it is trained."""
    shape, trained = language_shape(config.language), config.language.trains == 'all'
    return DecoderConfig(
        **dataclasses.asdict(shape),
        dtype=jnp.dtype(config.compute_dtype),
        stored='float32' if trained else config.compute_dtype,
        remat=config.mesh.remat,
    )


def projector(
    config: QuestionsConfig, encoder: ViTConfig, language: DecoderConfig
) -> ProjectorConfig:
    """What makes visual tokens of the encoder's."""
    p = config.projector
    pooled = p.kind == 'pooler'
    return ProjectorConfig(
        encoder.width,
        language.width,
        clip_grid(config),
        kind=p.kind,
        hidden=0 if pooled else p.hidden,
        pool=1 if pooled else p.pool,
        joined=p.joined,
        queries=visual_tokens(config) if pooled else 0,
        depth=p.depth,
        heads=p.heads,
        dtype=language.dtype,
        remat=config.mesh.remat,
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
