"""A run of V-JEPA pretraining: predict the features of masked tokens from those in sight."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jepa_jax.config.check import (
    AT_LEAST_ONE,
    NOT_NEGATIVE,
    RULES,
    OneOf,
    Rule,
    crop_fits,
    knows_time,
    transformer,
)
from jepa_jax.config.derived import encoder_shape, frame_counts
from jepa_jax.config.parts import (
    WITHOUT_PATH,
    AgainstCollapseConfig,
    DataConfig,
    EmaOptimConfig,
    EncoderConfig,
    LabelledListConfig,
    MaskConfig,
    MaskedPredictorConfig,
    ProbeConfig,
)
from jepa_jax.config.runs import RunConfig


@dataclass
class MaskedVideoConfig(RunConfig):
    """One run of V-JEPA pretraining."""

    version = '2.0'  # of the encoder that this objective trains

    objective: str = 'masked_video'
    # static: four compiled shapes | single: one, for trials | reference: one a step, for parity
    mask_sampler: str = 'static'
    masks: list[MaskConfig] = field(
        default_factory=lambda: [
            MaskConfig(num_blocks=8, spatial_scale=(0.15, 0.15)),
            MaskConfig(num_blocks=2, spatial_scale=(0.7, 0.7)),
        ]
    )
    loss_exponent: float = 1.0  # 1: L1; 2: half the squared error
    against_collapse: AgainstCollapseConfig = field(default_factory=AgainstCollapseConfig)
    # of V-JEPA 1's regulariser: predictions should vary by 1 over the tokens of a clip
    variance_weight: float = 0.0
    # what is predicted. features: of a moving average of the encoder, or of the teacher | pixels:
    # of each token, normalised, which trains a teacher of SALT
    target: str = 'features'
    # name or path of a frozen encoder whose features are predicted; empty: the moving average's;
    # 'random': for tests of the pipes
    teacher: str = ''
    teacher_encoder: EncoderConfig = field(default_factory=EncoderConfig)  # its shape
    teacher_other_view: bool = False  # also if it was trained at another crop or rate of frames
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: MaskedPredictorConfig = field(default_factory=MaskedPredictorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: EmaOptimConfig = field(default_factory=EmaOptimConfig)
    # what the probe and `evals` read unless they name clips of their own; `train` empty: the labels
    # of the first self-made list in data.lists, or else of the first list of videos
    labels: LabelledListConfig = field(default_factory=LabelledListConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def is_image(self, frames: int) -> bool:
        """Whether clips of so many frames are images, each frame a token in time."""
        del frames
        return False

    def tubelets(self, frames: int) -> int:
        """Tokens in time of a clip."""
        return frames // (1 if self.is_image(frames) else self.encoder.tubelet)

    def masks_of(self, frames: int) -> tuple[str, list[MaskConfig]]:
        """The field of the masks of clips of so many frames, and them."""
        del frames
        return 'masks', self.masks


# by method, the first is the default
VARIANTS = {
    'ema': (),
    'none': (),
    'vicreg': ('vicreg', 'eb_jepa'),
    'sigreg': ('lejepa', 'minimal', 'paper', 'stable_pretraining', 'lewm', 'eb_jepa'),
}
_TERMS = ('method', 'variant', 'stop_gradient', 'samples', 'positions', 'expander', 'space')
_TERMS += ('prediction_weight',)
# fields that mean something, by method
MEANT = {
    'ema': ('method', 'variant'),
    'none': ('method', 'variant', 'stop_gradient'),
    'vicreg': (*_TERMS, 'std_weight', 'covariance_weight'),
    'sigreg': (*_TERMS, 'sigreg_weight', 'directions'),
}
RULES[AgainstCollapseConfig] = {
    'method': OneOf(tuple(VARIANTS)),
    'samples': OneOf(('clips', 'positions', 'both')),
    'positions': AT_LEAST_ONE,
    'space': OneOf(('expanded', 'features')),
    'expander': Rule(
        lambda v: all(x > 0 for x in v) or not any(v), 'two widths, or (0, 0) for no expander'
    ),
    'prediction_weight': NOT_NEGATIVE,
    'std_weight': NOT_NEGATIVE,
    'covariance_weight': NOT_NEGATIVE,
    'sigreg_weight': NOT_NEGATIVE,
    'directions': NOT_NEGATIVE,
}
RULES[MaskedVideoConfig] = {
    'mask_sampler': OneOf(('static', 'single', 'reference')),
    'loss_exponent': AT_LEAST_ONE,
    'variance_weight': NOT_NEGATIVE,
    'target': OneOf(('features', 'pixels')),
}


def models(config: MaskedVideoConfig) -> tuple[str, ...]:
    """The teacher, if it has one."""
    return (config.teacher,)


def check(config: MaskedVideoConfig) -> Iterator[str]:
    """Complaints about what no single field is to blame for."""
    encoder, predictor, data = config.encoder, config.predictor, config.data
    shape, position = encoder_shape(encoder), encoder.position
    for name, part in (('encoder', shape), ('predictor', predictor)):
        yield from transformer(config, name, part.width, part.heads, position)
        if position == 'sincos' and not encoder.uniform_power and part.width % 8:
            yield f"{name}.width = {part.width}: must be a multiple of 8 for position 'sincos'"
    yield from crop_fits(data.crop, encoder)
    if config.teacher:
        yield from _teacher(config)
    for i, item in enumerate(data.lists):
        frames = item.frames or data.frames
        if frames % encoder.tubelet and not config.is_image(frames):
            name = f'data.lists[{i}].frames' if item.frames else 'data.frames'
            yield f'{name} = {frames}: must be a multiple of encoder.tubelet = {encoder.tubelet}'
        yield from knows_time(encoder, frames)
    yield from paths_named(data)
    yield from sampling_rate(data)
    if encoder.version != config.version:
        yield (
            f"encoder.version = '{encoder.version}': must be '{config.version}' with objective "
            f"'{config.objective}'"
        )
    yield from _against_collapse(config)
    counts = [n for n in frame_counts(data) if not config.is_image(n)]
    if predictor.tokens_of == 'masks' and len(config.masks) > predictor.mask_tokens:
        yield (
            f'predictor.mask_tokens = {predictor.mask_tokens}: must be at least '
            f'{len(config.masks)}, one for each of masks'
        )
    if predictor.tokens_of == 'frames' and len(counts) > predictor.mask_tokens:
        yield (
            f'predictor.mask_tokens = {predictor.mask_tokens}: must be at least {len(counts)}, '
            f'one for each frame count in data.lists: {", ".join(map(str, counts))}'
        )
    for frames in sorted(frame_counts(data)):  # fewest tokens first
        tokens = config.tubelets(frames) * (data.crop // encoder.patch) ** 2
        name, masks = config.masks_of(frames)
        if len({mask.tube > 0 for mask in masks}) > 1:
            yield f'{name}: either all have tube above 0, or none'
        for i, mask in enumerate(masks):
            # one token at least is left to predict
            if mask.max_keep >= tokens:
                yield (
                    f'{name}[{i}].max_keep = {mask.max_keep}: must be less than the {tokens} '
                    f'tokens of a clip of {frames} frames and {data.crop} pixels; 0 means no bound'
                )
            if mask.tube and not int((data.crop // encoder.patch) ** 2 * (1 - mask.tube)):
                yield f'{name}[{i}].tube = {mask.tube}: keeps no cell of a frame as context'
            if mask.full_complement and mask.pred_full_complement:
                yield f'{name}[{i}]: full_complement and pred_full_complement exclude each other'


def _against_collapse(config: MaskedVideoConfig) -> Iterator[str]:
    c = config.against_collapse
    field, variants = 'against_collapse', VARIANTS[c.method]
    if c.method != 'ema' and (config.teacher or config.target != 'features'):
        what = f'teacher {config.teacher!r}' if config.teacher else f"target '{config.target}'"
        yield f"{field}.method = '{c.method}': must be 'ema' with {what}, which cannot collapse"
    if c.variant and c.variant not in variants:
        one_of = ', '.join(variants) or 'none: leave it empty'
        yield f"{field}.variant = '{c.variant}': allowed with method '{c.method}': {one_of}"
    for name, usual in vars(AgainstCollapseConfig()).items():
        if (value := getattr(c, name)) != usual and name not in MEANT[c.method]:
            yield f"{field}.{name} = {value}: means nothing with method '{c.method}'"
    if c.method != 'ema' and config.variance_weight:
        yield f"variance_weight = {config.variance_weight}: must be 0 with method '{c.method}'"
    if not variants:
        return
    if not any(c.expander) and c.space == 'expanded':
        yield f"{field}.space = 'expanded': must be 'features' without an expander ({c.expander})"
    fsdp = config.mesh.fsdp or 1
    if any(width % fsdp for width in c.expander):
        yield f'mesh.fsdp = {fsdp}: must divide the widths of {field}.expander = {c.expander}'
    if config.optim.accumulate > 1:
        yield (
            f'optim.accumulate = {config.optim.accumulate}: must be 1 with {field}.method '
            f"'{c.method}', whose terms are of the whole batch"
        )
    if config.optim.batch < 2:
        yield f"optim.batch = 1: must be at least 2 with {field}.method '{c.method}'"
    weights: dict[int, float] = {}
    for entry in config.data.lists:
        frames = entry.frames or config.data.frames
        weights[frames] = weights.get(frames, 0.0) + entry.weight
    for frames, weight in weights.items() if len(weights) > 1 else ():
        if (rows := config.optim.batch * weight / sum(weights.values())) < 2:
            yield (
                f'data.lists: {rows:.2g} clips of {frames} frames a step: must be at least 2 with '
                f"{field}.method '{c.method}', whose terms compare clips of one frame count"
            )


def paths_named(data: DataConfig) -> Iterator[str]:
    """Complaints about lists that name nothing."""
    for i, item in enumerate(data.lists):
        if not item.path and item.kind not in WITHOUT_PATH:
            yield (
                f"data.lists[{i}].path is empty: kind '{item.kind}' needs a file or folder, "
                f'--config.data.lists[{i}].path=PATH'
            )


def sampling_rate(data: DataConfig) -> Iterator[str]:
    """Complaints where a clip's rate is not told, or told twice."""
    rates = {key: getattr(data, key) for key in ('fps', 'frame_step', 'duration')}
    if sum(value > 0 for value in rates.values()) != 1:
        told = ', '.join(f'{key} = {value}' for key, value in rates.items())
        yield f'data: exactly one of fps, frame_step, duration must be more than 0, found {told}'


def _teacher(config: MaskedVideoConfig) -> Iterator[str]:
    """What is wrong with a teacher of that shape for such a student."""
    encoder, teacher = config.encoder, config.teacher_encoder
    shape = encoder_shape(teacher)
    yield from transformer(config, 'teacher_encoder', shape.width, shape.heads, teacher.position)
    for name in ('version', 'patch', 'tubelet'):
        theirs, ours = getattr(teacher, name), getattr(encoder, name)
        if theirs != ours:
            yield (
                f'teacher_encoder.{name} = {theirs!r}: must be encoder.{name} = {ours!r}, so that '
                'each token of the student has one of the teacher'
            )
    if config.target != 'features':
        yield f"target = '{config.target}': must be 'features' with a teacher ({config.teacher!r})"
