"""Any run as a trial of a minute on two cores; and the arguments that ask for one."""

import math
from collections.abc import Sequence

from jepa_jax.config.action_conditioned import ActionConditionedConfig
from jepa_jax.config.conversations import MixtureConfig
from jepa_jax.config.dense_video import DenseVideoConfig
from jepa_jax.config.derived import cache_root, frame_counts
from jepa_jax.config.masked_pixels import MaskedPixelsConfig
from jepa_jax.config.masked_video import MaskedVideoConfig
from jepa_jax.config.parts import EncoderConfig, ProbeConfig
from jepa_jax.config.questions import QuestionsConfig
from jepa_jax.config.runs import RunConfig
from jepa_jax.errors import ConfigError, allowed

FEW = 24  # steps of a trial


def parse_arg(arg: str, *phases: str) -> tuple[str, bool]:
    """The argument of a config file, `PHASE,smoke` with both parts optional -> (phase, smoke).

    The first of `phases` is the default.

    Raises:
      ConfigError: another word, or a second phase.
    """
    phase, words = parse_words(arg, phases, ('smoke',))
    return phase, 'smoke' in words


def parse_words(
    arg: str, phases: Sequence[str], options: Sequence[str]
) -> tuple[str, frozenset[str]]:
    """The argument of a config file, a comma list -> (phase, the options named).

    The first of `phases` is the default.

    Raises:
      ConfigError: another word, or a second phase.
    """
    words = [word.strip() for word in arg.split(',') if word.strip()]
    for word in words:
        if word not in (*phases, *options):
            raise ConfigError(f"config argument '{word}': {allowed(word, (*phases, *options))}")
    chosen = [word for word in words if word in phases]
    if len(chosen) > 1:
        raise ConfigError(f"config argument '{arg}': choose one of {', '.join(phases)}")
    return (chosen or list(phases))[0], frozenset(words) - {*chosen}


def masked_video(config: MaskedVideoConfig) -> None:
    """24 steps of a tiny model on self-made videos.

    Widths, depths, pixels, frames and batch shrink; masks (but for the number of their shapes), the
    lists' weights and relative frame counts, schedules and saving keep their form. A cooldown
    starts from nothing unless `checkpoints.resume_from` and `checkpoints.restart_schedule` are
    given again.
    """
    encoder, data = config.encoder, config.data
    before = frame_counts(data), data.crop
    tiny(encoder)
    config.predictor.width, config.predictor.depth, config.predictor.heads = 24, 2, 2

    def shrink(size: int, unit: int, least: int) -> int:
        return max(least, round(size / 4 / unit)) * unit

    # four tokens a side are the fewest on which blocks of the released shares leave some context
    data.crop = shrink(data.crop, encoder.patch, 4)
    data.frames = shrink(data.frames, encoder.tubelet, 2)
    for item in data.lists:
        item.kind, item.path = 'synthetic_few', ''
        if not config.is_image(item.frames):
            item.frames = item.frames and shrink(item.frames, encoder.tubelet, 2)
    data.fps, data.frame_step, data.duration = 8, 0, 0.0  # the rate of the self-made videos
    if config.teacher:
        config.teacher = 'random'
        tiny(config.teacher_encoder)
        config.teacher_encoder.width, config.teacher_encoder.heads = 72, 3  # wider than the student
    config.mask_sampler = 'single'  # one program to compile, not four
    share = data.crop**2 * min(frame_counts(data)) / (before[1] ** 2 * min(before[0]))
    for mask in config.masks:
        mask.max_keep = mask.max_keep and max(2, int(mask.max_keep * share))
    small_probe(config.probe)


def dense_video(config: DenseVideoConfig) -> None:
    """Likewise; the loss of the context sets in at the same share of the run."""
    masked_video(config)
    tokens = (config.data.crop // config.encoder.patch) ** 2
    for mask in config.image_masks:
        mask.max_keep = min(mask.max_keep, tokens // 4)
    loss, share = config.context_loss, FEW / config.optim.steps
    loss.begin, loss.full = math.ceil(loss.begin * share), math.ceil(loss.full * share)


def masked_pixels(config: MaskedPixelsConfig) -> None:
    """Likewise; four tokens a side."""
    encoder, data, images = config.encoder, config.data, config.kind == 'mae'
    tiny(encoder)
    config.decoder.width, config.decoder.depth, config.decoder.heads = 24, 1, 2
    data.crop = 4 * encoder.patch
    data.frames = 1 if images else 2 * encoder.tubelet
    for item in data.lists:
        item.kind, item.path, item.frames = 'synthetic_few', '', 0
    data.fps, data.frame_step, data.duration = 8, 0, 0.0
    probe = config.probe
    probe.steps, probe.batch, probe.seeds, probe.bootstrap, probe.heads = 20, 32, 2, 100, 2


def action_conditioned(config: ActionConditionedConfig) -> None:
    """24 steps of a tiny predictor on self-made recordings and a random encoder."""
    tiny(config.encoder)
    config.ac.width, config.ac.depth, config.ac.heads = 48, 2, 2
    config.encoder_from = 'random'
    config.data.crop = 4 * config.encoder.patch
    robot = config.robot
    robot.kind, robot.path, robot.frames, robot.fps = 'synthetic', '', 4, 4.0
    config.rollout.steps = min(config.rollout.steps, 3)


def small_probe(probe: ProbeConfig) -> None:
    probe.steps, probe.batch, probe.seeds, probe.bootstrap, probe.heads = 20, 32, 2, 100, 2


def questions(config: QuestionsConfig) -> None:
    """24 steps of a tiny projector and language model, both drawn, on self-made conversations."""
    tiny(config.encoder)
    config.encoder_from = 'random'
    config.features = config.features and str(cache_root() / 'features')
    clips, data, language = config.clips, config.data, config.language
    clips.crop, clips.frames, clips.fps = 4 * config.encoder.patch, 2 * config.encoder.tubelet, 0.0
    config.projector.heads = 2
    data.length, data.visual = 192, 0
    data.mixture, config.heldout = [MixtureConfig('self_made')], 'self_made'
    language.path, language.tokenizer, language.size = 'random', 'self_made', 'tiny'


def tiny(encoder: EncoderConfig) -> None:
    encoder.width, encoder.depth, encoder.heads, encoder.mlp_ratio = 48, 2, 2, 4.0


def few_steps(config: RunConfig, accumulate: int) -> None:
    """What trials of all objectives have in common."""
    config.name = f'{config.name}-smoke'
    config.data.workers = 2
    optim = config.optim
    share, optim.steps = FEW / optim.steps, FEW
    for name in ('warmup', 'anneal', 'clip_from'):
        setattr(optim, name, math.ceil(getattr(optim, name) * share))
    optim.batch, optim.accumulate = 16, accumulate or min(max(1, optim.accumulate), 2)
    config.mesh.fsdp = 1
    saved = config.checkpoints
    saved.every, saved.keep_every = 6, 12 if saved.keep_every else 0
    saved.resume_from, saved.restart_schedule = '', False
    config.logging.every, config.logging.health_every = 1, 8
    for entry in config.evals:
        entry.every = entry.every and 12
