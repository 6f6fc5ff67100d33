"""A run of V-JEPA 2.1: predict features of masked tokens and of those in sight, at several depths,
of videos and images in one step."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jepa_jax.config import masked_video
from jepa_jax.config.check import NOT_NEGATIVE, RULES, Rule
from jepa_jax.config.derived import frame_counts
from jepa_jax.config.masked_video import MaskedVideoConfig
from jepa_jax.config.parts import EncoderConfig, MaskConfig, MaskedPredictorConfig


@dataclass
class ContextLossConfig:
    """What the loss of tokens in sight weighs beside that of masked ones. (reference: vjepa2_1
    §6.2-6.4)"""

    weight: float = 0.5  # of videos
    image_weight: float = 0.5
    # steps without it, and from which on it weighs all of that; in between a straight line
    begin: int = 15_000
    full: int = 30_000
    by_distance: bool = True  # divided by the root of the distance to the nearest masked token


@dataclass
class DenseVideoConfig(MaskedVideoConfig):
    """One run of V-JEPA 2.1's pretraining. Lists of one frame are of images."""

    version = '2.1'

    objective: str = 'dense_video'
    image_masks: list[MaskConfig] = field(
        default_factory=lambda: [MaskConfig(num_blocks=10, spatial_scale=(0.15, 0.15))]
    )
    # what the images' mean loss weighs; the videos' weighs the rest, whatever their numbers are
    image_share: float = 0.5
    context_loss: ContextLossConfig = field(default_factory=ContextLossConfig)
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(version='2.1'))
    teacher_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(version='2.1'))
    predictor: MaskedPredictorConfig = field(
        # 8 tokens as the released files
        default_factory=lambda: MaskedPredictorConfig(depth=24, mask_tokens=8)
    )

    def is_image(self, frames: int) -> bool:
        return frames == 1

    def masks_of(self, frames: int) -> tuple[str, list[MaskConfig]]:
        if self.is_image(frames):
            return 'image_masks', self.image_masks
        return super().masks_of(frames)


RULES[DenseVideoConfig] = {
    'image_share': Rule(lambda v: 0 < v < 1, 'above 0 and below 1'),
}
RULES[ContextLossConfig] = {
    'weight': NOT_NEGATIVE,
    'image_weight': NOT_NEGATIVE,
    'begin': NOT_NEGATIVE,
    'full': NOT_NEGATIVE,
}


def check(config: DenseVideoConfig) -> Iterator[str]:
    """Complaints about what no single field is to blame for."""
    yield from masked_video.check(config)
    if all(map(config.is_image, frame_counts(config.data))):
        yield 'data.lists: only images (1 frame), at least one list must be of videos'
    if config.against_collapse.method != 'ema':
        yield (
            f"against_collapse.method = '{config.against_collapse.method}': must be 'ema' in "
            'V-JEPA 2.1'
        )
    if config.variance_weight:
        yield f'variance_weight = {config.variance_weight}: must be 0 in V-JEPA 2.1'
    if config.predictor.tokens_of != 'frames':
        tokens_of = config.predictor.tokens_of
        yield f"predictor.tokens_of = '{tokens_of}': must be 'frames' in V-JEPA 2.1"
    if config.encoder.position != 'rope':
        yield f"encoder.position = '{config.encoder.position}': must be 'rope' in V-JEPA 2.1"
    if config.target != 'features':
        yield f"target = '{config.target}': must be 'features' in V-JEPA 2.1"
    ramp = config.context_loss
    if ramp.full < ramp.begin:
        yield f'context_loss.full = {ramp.full}: must be at least context_loss.begin = {ramp.begin}'
