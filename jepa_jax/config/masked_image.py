"""A run of I-JEPA's pretraining: predict the features of blocks of an image from the rest of it."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from jepa_jax.config.check import (
    NOT_NEGATIVE,
    POSITIVE,
    RATIOS,
    RULES,
    SHARES,
    OneOf,
    crop_fits,
    transformer,
)
from jepa_jax.config.derived import encoder_shape
from jepa_jax.config.parts import (
    WITHOUT_PATH,
    AugmentConfig,
    DataConfig,
    DataListConfig,
    EmaOptimConfig,
    EncoderConfig,
    LabelledListConfig,
    MaskedPredictorConfig,
    ProbeConfig,
)
from jepa_jax.config.runs import RunConfig


@dataclass
class ImageMaskConfig:
    """Blocks of an image: several targets of one size, and a context without them. (reference:
    family §1.3)"""

    targets: int = 4  # blocks to predict, each on its own
    target_scale: tuple[float, float] = (0.15, 0.2)  # share of the image that each covers
    aspect_ratio: tuple[float, float] = (0.75, 1.5)  # of the targets, height over width
    context_scale: tuple[float, float] = (0.85, 1.0)  # of a square block
    min_keep: int = 10  # tokens that are too few for a block
    allow_overlap: bool = False  # the context may hold what targets cover
    group: int = 128  # images over which the original takes its fewest tokens: those of one GPU


@dataclass
class MaskedImageConfig(RunConfig):
    """One run of I-JEPA's pretraining."""

    objective: str = 'masked_image'
    # static: four compiled shapes | single: one, for trials | reference: one a step, for parity
    mask_sampler: str = 'static'
    masks: ImageMaskConfig = field(default_factory=ImageMaskConfig)
    # the error at which the smooth L1 loss goes from half its square to straight; 0: L1
    loss_beta: float = 1.0
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(
            size='vith', patch=14, tubelet=1, position='sincos', axes='xy', rescale=False
        )
    )
    predictor: MaskedPredictorConfig = field(
        default_factory=lambda: MaskedPredictorConfig(
            heads=16, mask_tokens=1, tokens_of='masks', zero_init_mask_tokens=False
        )
    )
    # images, or single frames of videos
    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            lists=[DataListConfig(kind='images')],
            crop=224,
            frames=1,
            augment=AugmentConfig(ratio=(3 / 4, 4 / 3), flip=False, antialias=True),
        )
    )
    optim: EmaOptimConfig = field(default_factory=EmaOptimConfig)
    # what the probe and `evals` read, as in a run on videos
    labels: LabelledListConfig = field(default_factory=LabelledListConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)


RULES[ImageMaskConfig] = {
    'targets': POSITIVE,
    'target_scale': SHARES,
    'aspect_ratio': RATIOS,
    'context_scale': SHARES,
    'min_keep': POSITIVE,
    'group': POSITIVE,
}
RULES[MaskedImageConfig] = {
    'mask_sampler': OneOf(('static', 'single', 'reference')),
    'loss_beta': NOT_NEGATIVE,
}


def check(config: MaskedImageConfig) -> Iterator[str]:
    """Complaints about what no single field is to blame for."""
    encoder, predictor, data = config.encoder, config.predictor, config.data
    for name, part in (('encoder', encoder_shape(encoder)), ('predictor', predictor)):
        yield from transformer(config, name, part.width, part.heads, encoder.position)
        if encoder.position == 'sincos' and part.width % 4:
            yield f"{name}.width = {part.width}: must be a multiple of 4 for position 'sincos'"
    yield from crop_fits(data.crop, encoder)
    if encoder.tubelet != 1:
        yield f'encoder.tubelet = {encoder.tubelet}: must be 1, an image is one frame'
    if encoder.version != '2.0':
        yield (
            f"encoder.version = '{encoder.version}': must be '2.0' with objective "
            f"'{config.objective}', which knows one level and images alone"
        )
    for i, item in enumerate(data.lists):
        if (item.frames or data.frames) != 1:
            name = f'data.lists[{i}].frames' if item.frames else 'data.frames'
            yield f'{name} = {item.frames or data.frames}: must be 1, an image is one frame'
        if not item.path and item.kind not in WITHOUT_PATH:
            yield (
                f"data.lists[{i}].path is empty: kind '{item.kind}' needs a file or folder, "
                f'--config.data.lists[{i}].path=PATH'
            )
    if data.augment.motion_shift:
        yield 'data.augment.motion_shift: must be false, a single frame does not move'


def smoke(config: MaskedImageConfig) -> None:
    """24 steps of a tiny model on frames of self-made videos."""
    from jepa_jax.config import trials

    trials.tiny(config.encoder)
    config.predictor.width, config.predictor.depth, config.predictor.heads = 24, 2, 2
    # six patches a side: blocks of the released shares are of more than one
    config.data.crop = 6 * config.encoder.patch
    config.masks.min_keep = min(config.masks.min_keep, 3)
    config.masks.group = min(config.masks.group, 16)
    config.mask_sampler = 'single'
    config.data.lists = [
        dataclasses.replace(item, kind='synthetic_few', path='') for item in config.data.lists
    ]
    config.data.fps, config.data.frame_step, config.data.duration = 8, 0, 0.0
    trials.small_probe(config.probe)
