"""A run of MAE or VideoMAE: draw the pixels of masked tokens from features of those in sight."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jepa_jax.config.check import (
    AT_LEAST_ONE,
    POSITIVE,
    RULES,
    OneOf,
    Rule,
    crop_fits,
    knows_time,
    transformer,
)
from jepa_jax.config.derived import encoder_shape, frame_counts
from jepa_jax.config.masked_video import paths_named, sampling_rate
from jepa_jax.config.parts import (
    DataConfig,
    EncoderConfig,
    LabelledListConfig,
    OptimConfig,
    ProbeConfig,
)
from jepa_jax.config.runs import RunConfig


@dataclass
class MaskedDecoderConfig:
    """The narrow transformer that draws pixels."""

    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0


@dataclass
class MaskedPixelsConfig(RunConfig):
    """One run of MAE's or VideoMAE's pretraining. (reference: family §3)"""

    objective: str = 'masked_pixels'
    # mae: single frames or images, a class token, each token masked by itself
    # videomae: clips, tubes through all frames, keys without bias
    kind: str = 'mae'
    mask_ratio: float = 0.75  # share of the tokens that is masked
    # mae: patches (each with mean 0 and variance 1) | pixels
    # videomae: cubes (likewise, by colour) | unit_pixels
    target: str = 'patches'
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(tubelet=1, position='sincos', axes='xy')
    )
    decoder: MaskedDecoderConfig = field(default_factory=MaskedDecoderConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(frames=1))
    optim: OptimConfig = field(default_factory=OptimConfig)
    # as MaskedVideoConfig's
    labels: LabelledListConfig = field(default_factory=LabelledListConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)


# kind -> targets, axes of its tables
KINDS = {'mae': (('patches', 'pixels'), 'xy'), 'videomae': (('cubes', 'unit_pixels'), 'flat')}
RULES[MaskedPixelsConfig] = {
    'kind': OneOf(tuple(KINDS)),
    'mask_ratio': Rule(lambda v: 0 < v < 1, 'above 0 and below 1'),
    'target': OneOf(tuple(target for targets, _ in KINDS.values() for target in targets)),
}
RULES[MaskedDecoderConfig] = {
    'width': POSITIVE,
    'depth': AT_LEAST_ONE,
    'heads': POSITIVE,
    'mlp_ratio': POSITIVE,
}


def check(config: MaskedPixelsConfig) -> Iterator[str]:
    """Complaints about what no single field is to blame for."""
    encoder, data = config.encoder, config.data
    targets, axes = KINDS[config.kind]
    for name, part in (('encoder', encoder_shape(encoder)), ('decoder', config.decoder)):
        yield from transformer(config, name, part.width, part.heads, 'sincos')
        if part.width % 4:
            yield f'{name}.width = {part.width}: must be a multiple of 4 for its table of positions'
    yield from crop_fits(data.crop, encoder)
    for key, value in (('position', 'sincos'), ('axes', axes), ('version', '2.0')):
        if (told := getattr(encoder, key)) != value:
            yield f"encoder.{key} = '{told}': must be '{value}' with kind '{config.kind}'"
    if config.target not in targets:
        yield (
            f"target = '{config.target}': allowed with kind '{config.kind}': {', '.join(targets)}"
        )
    if config.kind == 'mae' and encoder.tubelet != 1:
        yield f"encoder.tubelet = {encoder.tubelet}: must be 1 with kind 'mae'"
    counts = frame_counts(data)
    if len(counts) > 1:
        told = ', '.join(map(str, counts))
        yield f'data.lists: clips of {told} frames, must be of one frame count'
    frames = counts[0]
    if config.kind == 'mae' and frames != 1:
        yield f"data.frames = {frames}: must be 1 with kind 'mae'"
    if frames % encoder.tubelet:
        yield f'data.frames = {frames}: must be a multiple of encoder.tubelet = {encoder.tubelet}'
    yield from knows_time(encoder, frames)
    yield from paths_named(data)
    yield from sampling_rate(data)
    cells = (data.crop // encoder.patch) ** 2
    # as masks.random counts for either kind
    mae, ratio = config.kind == 'mae', config.mask_ratio
    kept = int(cells * (1 - ratio)) if mae else cells - int(ratio * cells)
    if not 0 < kept < cells:
        yield f'mask_ratio = {config.mask_ratio}: leaves nothing or all of {cells} tokens a frame'
