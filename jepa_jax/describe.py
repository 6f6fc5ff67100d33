"""What the numbers of a run mean in clips, beside the released recipe."""

from __future__ import annotations

from jepa_jax import build
from jepa_jax.config import (
    ActionConditionedConfig,
    DenseVideoConfig,
    EmaOptimConfig,
    MaskedImageConfig,
    MaskedPixelsConfig,
    MaskedVideoConfig,
    OptimConfig,
    QuestionsConfig,
    RunConfig,
    frame_counts,
    half_life,
)
from jepa_jax.config.questions import media_places, visual_tokens
from jepa_jax.optim import learning_rate

RELEASED = EmaOptimConfig()  # what runs of another batch are compared with


def run(config: RunConfig) -> list[str]:
    """Batch, length and learning rate."""
    c = config.optim
    return [f'batch {c.batch:,}, {c.steps:,} steps', _rate(c)]


def action_conditioned(config: ActionConditionedConfig) -> list[str]:
    """The same of a run on recordings of a robot."""
    c = config.optim
    return [
        f'batch {c.batch:,} pieces of {config.robot.frames} frames, {c.steps:,} steps '
        '(released: 256 of 8, 94,500)',
        _rate(c),
    ]


def questions(config: QuestionsConfig) -> list[str]:
    """The same of a run on questions: what is trained, and what is read of a video."""
    c, data, language = config.optim, config.data, config.language
    trained = ['projector']
    trained += ['encoder'] if config.train_encoder else []
    trained += {'nothing': [], 'adapter': ['adapter'], 'all': ['language model']}[language.trains]
    return [
        f'trained: {", ".join(trained)}; {visual_tokens(config):,} tokens of a video of '
        f'{config.clips.frames} frames, at most {media_places(config)} videos or images in a '
        f'sequence of {data.length:,}',
        f'batch {c.batch:,} sequences, {c.steps:,} steps',
        _rate(c),
    ]


def _rate(c: OptimConfig) -> str:
    first, last = (f'{float(learning_rate(c)(step)):.3g}' for step in (0, c.steps - 1))
    return (
        f'learning rate {first} at the first step, at most {max(c.lr, c.start_lr):.3g}, '
        f'{last} at the last ({c.schedule})'
    )


def masked_video(config: MaskedVideoConfig) -> list[str]:
    """What batch, schedule and moving average mean in clips, beside the released recipe."""
    c, released = config.optim, RELEASED
    parts = f' in {c.accumulate} parts of {c.batch // c.accumulate:,}' if c.accumulate > 1 else ''
    lines = [
        f'batch {c.batch:,} clips{parts}, {c.steps:,} steps = {c.batch * c.steps:,} clips '
        f'(released: {released.batch:,} x {released.steps:,} = '
        f'{released.batch * released.steps:,})',
        _rate(c),
    ]
    if c.warmup:
        lines[1] += (
            f'; warm-up {c.warmup:,} steps = {c.batch * c.warmup:,} clips '
            f'(released: {released.batch * released.warmup:,})'
        )
    if c.warmup >= c.steps:
        lines.append('the run ends inside its warm-up, as in the public ViT-L and ViT-H files')
    if c.batch != released.batch:
        lines.append(
            f'batch differs from the released {released.batch:,}: the authors do not advise '
            'scaling the learning rate linearly with it; '
            f'theirs is {released.lr:.3g}; rate and EMA momentum are what to vary first'
        )
    if (against := config.against_collapse).method != 'ema':
        variant = build.regulariser(against).terms
        cost = f', {variant.collapsed(c.batch):.2g} for samples all alike' if variant else ''
        lines.append(
            'no moving average: targets are of the encoder itself, '
            + ('without' if against.stop_gradient else 'with')
            + f' their gradient; against collapse: {variant or "nothing"}{cost}'
        )
        return lines
    lines += _averages(c) + _targets(config)
    if c.batch != released.batch:
        same = released.momentum ** (c.batch / released.batch)
        lines.append(
            f'EMA as released: half-life {half_life(released.momentum):,.0f} steps = '
            f'{half_life(released.momentum) * released.batch:,.0f} clips; the same number of clips '
            f'at batch {c.batch:,} takes momentum {same:.8g}'
        )
    return lines


def masked_pixels(config: MaskedPixelsConfig) -> list[str]:
    """Batch, length and learning rate of a run of MAE or VideoMAE, and what is masked."""
    c = config.optim
    return [
        f'batch {c.batch:,} {"images" if config.kind == "mae" else "clips"}, {c.steps:,} steps '
        f'(released: {"4,096" if config.kind == "mae" else "1,024 to 2,048"})',
        _rate(c),
        f'{config.mask_ratio:.0%} of the tokens are masked, their {config.target} are drawn',
    ]


def masked_image(config: MaskedImageConfig) -> list[str]:
    """The same of a run of I-JEPA."""
    c = config.optim
    images = f'batch {c.batch:,} images, {c.steps:,} steps = {c.batch * c.steps:,} images'
    return [images, _rate(c), *_averages(c)]


def dense_video(config: DenseVideoConfig) -> list[str]:
    """The same of a run of V-JEPA 2.1: how the losses are weighed."""
    c, loss, counts = config.optim, config.context_loss, frame_counts(config.data)
    lines = [f'batch {c.batch:,} clips and images, {c.steps:,} steps', _rate(c)]
    ramp = f', from 0 at step {loss.begin:,} to that at {loss.full:,}' if loss.full else ''
    near = ', less far from what is masked' if loss.by_distance else ''
    lines.append(f'the context weighs {loss.weight:g}{ramp}{near}')
    if any(map(config.is_image, counts)):
        lines.append(
            f'images weigh {config.image_share:g} of the loss, their context {loss.image_weight:g}'
        )
    return lines + _averages(c) + _targets(config)


def _targets(config: MaskedVideoConfig) -> list[str]:
    """What is predicted, where it is not the average's features."""
    if config.teacher:
        return [
            f'predicts features of the frozen teacher {config.teacher}; the average is what is '
            'evaluated and released, no loss reads it'
        ]
    return ['predicts normalised pixels of each token'] if config.target == 'pixels' else []


def _averages(c: EmaOptimConfig) -> list[str]:
    lines = []
    ends = dict.fromkeys((c.momentum, c.final_momentum))  # one if constant
    for momentum, where in zip(ends, ('', ' at the end')):
        steps = half_life(momentum)
        if momentum == 1:
            lines.append(f'EMA momentum 1{where}: the target no longer follows')
            continue
        lines.append(
            f'EMA momentum {momentum:.8g}{where}: half-life {steps:,.0f} steps = '
            f'{steps * c.batch:,.0f} clips = {steps / c.steps:.1%} of the run'
        )
    return lines
