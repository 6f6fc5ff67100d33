"""The programs of a run, a set of static shapes each: batches of noise, and what a step is worth.

Tools compile and time these; nothing is read from a run's lists.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import build, flops
from jepa_jax.config import (
    ActionConditionedConfig,
    MaskedPixelsConfig,
    MaskedVideoConfig,
    QuestionsConfig,
)
from jepa_jax.config.questions import media_places
from jepa_jax.data import Batch, Group
from jepa_jax.data.trajectories import RobotStream, Trajectories, random_prefix
from jepa_jax.data.videos import VideoStream, split_rows
from jepa_jax.flops import GroupShape
from jepa_jax.masks import Mask
from jepa_jax.masks.samplers import MaskSampler, mask_sampler, pixel_sampler
from jepa_jax.memory import rows_at_a_time
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives import Program

STEPS = 4  # the static sampler visits all of its shapes in four


def masked_video(config: MaskedVideoConfig, devices: int) -> list[Program]:
    """Of the first steps: up to four sets of token counts.

    Raises:
      ConfigError: the batch does not split over the devices.
    """
    parts = devices * config.optim.accumulate
    quotas = split_rows(config, rows_at_a_time(config.optim.batch, devices, parts // devices))
    rows = {frames: quota * parts for frames, quota in quotas.items()}
    samplers = {frames: mask_sampler(config, frames, rows[frames]) for frames in rows}
    vit = build.video_encoder(config)
    predictor = build.predictor(config, vit)
    programs: dict[tuple, Program] = {}
    for step in range(STEPS):
        groups = []
        for frames, sampler in samplers.items():
            tokens = math.prod(vit.grid(frames, config.data.crop, config.data.crop))
            groups.append(GroupShape(rows[frames], tokens, sampler.shapes(step), frames))
        lengths = {group.tokens for group in groups}
        for group in groups:
            lengths |= {n for k, m in group.masks for n in (k, k + m)}
        words = '; '.join(', '.join(f'{k} -> {m}' for k, m in group.masks) for group in groups)
        like = _masked(config.data.crop, samplers, groups)
        programs.setdefault(
            tuple(groups),
            Program(
                functools.partial(_noise_and_masks, like, samplers, step),
                _worth(config, vit, predictor, groups),
                frozenset(lengths),
                f'context -> target tokens {words}',
                like,
            ),
        )
    return list(programs.values())


def _worth(
    config: MaskedVideoConfig, vit: ViTConfig, predictor: PredictorConfig, groups: list[GroupShape]
) -> dict[str, int]:
    """FLOPs of a step, by what they are spent on."""
    through = build.through_targets(config)
    step = flops.pretraining_step(
        vit, predictor, groups, build.target(config), through_targets=through
    )
    worth = {'target': step.target, 'context': step.context, 'predictor': step.predictor}
    against = build.regulariser(config.against_collapse)
    if against.terms:
        expander = build.expander(config)
        width = expander.width if expander else vit.width
        columns = against.terms.columns(width)
        places = {'clips': 1, 'positions': against.positions}
        each = sum(places[kind] for kind in against.samples)
        samples = each * sum(group.clips for group in groups)
        if against.expanded:  # predictions, and all tokens, among which the samples are
            tokens = sum(g.clips * (g.tokens + sum(m for _, m in g.masks)) for g in groups)
            worth['regulariser'] = flops.regulariser(expander, vit.width, tokens, 0)
            worth['regulariser'] += flops.regulariser(None, width, samples, columns)
        else:
            worth['regulariser'] = flops.regulariser(expander, vit.width, samples, columns)
    return worth


def _masked(crop: int, frame_counts: Iterable[int], groups: list[GroupShape]) -> Batch:
    """The shapes of a batch."""
    made = []
    for group, frames in zip(groups, frame_counts, strict=True):
        masks = (Mask(*(_array(np.int32, group.clips, n) for n in pair)) for pair in group.masks)
        clips = _array(np.uint8, group.clips, frames, crop, crop, 3)
        made.append(Group(clips, tuple(masks)))
    return Batch(tuple(made))


def _array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _noise(rng: np.random.Generator, like: jax.ShapeDtypeStruct) -> np.ndarray:
    """Any bytes, or normal numbers."""
    if like.dtype == np.uint8:
        return rng.integers(0, 256, like.shape, np.uint8)
    return rng.standard_normal(like.shape, np.float32).astype(like.dtype)


def _noise_and_masks(like: Batch, samplers: dict[int, Any], step: int, seed: int) -> Batch:
    rng, made = np.random.default_rng(seed), []
    for group, sampler in zip(like.groups, samplers.values(), strict=True):
        drawn = zip(*(sampler.sample(step, row) for row in range(group.clips.shape[0])))
        masks = tuple(Mask(*map(np.stack, zip(*rows))) for rows in drawn)
        made.append(Group(_noise(rng, group.clips), masks))
    return Batch(tuple(made))


def masked_video_workload(
    config: MaskedVideoConfig, stream: VideoStream
) -> Callable[[int], tuple[int, int]]:
    """Step -> FLOPs and tokens, by its token counts."""
    vit = build.video_encoder(config)
    predictor = build.predictor(config, vit)

    @functools.lru_cache
    def of(shapes: tuple) -> tuple[int, int]:
        groups = []
        for clips, masks in zip(stream.groups, shapes, strict=True):
            tokens = math.prod(vit.grid(clips.frames, config.data.crop, config.data.crop))
            groups.append(GroupShape(clips.rows, tokens, masks, clips.frames))
        total = sum(_worth(config, vit, predictor, groups).values())
        return total, sum(group.clips * group.tokens for group in groups)

    return lambda step: of(stream.shapes(step))


def masked_pixels(config: MaskedPixelsConfig, devices: int) -> list[Program]:
    """The one program of a run of MAE or VideoMAE.

    Raises:
      ConfigError: the batch does not split over the devices.
    """
    rows_at_a_time(config.optim.batch, devices, config.optim.accumulate)
    vit = build.pixel_encoder(config)
    group, sampler = _pixels(config)
    ((kept, hidden),) = group.masks
    first = int(vit.class_token)
    like = _masked(config.data.crop, [group.frames], [group])
    return [
        Program(
            functools.partial(_noise_and_masks, like, {group.frames: sampler}, 0),
            flops.pixels_step(vit, build.pixel_decoder(config, vit), group),
            frozenset({kept + first, kept + hidden + first}),
            f'tokens in sight -> drawn {kept} -> {hidden}',
            like,
        )
    ]


def _pixels(config: MaskedPixelsConfig) -> tuple[GroupShape, MaskSampler]:
    vit = build.pixel_encoder(config)
    sampler = pixel_sampler(config, vit.frames)
    tokens = math.prod(vit.grid(vit.frames, config.data.crop, config.data.crop))
    return GroupShape(config.optim.batch, tokens, sampler.shapes(0), vit.frames), sampler


def masked_pixels_workload(
    config: MaskedPixelsConfig, stream: VideoStream
) -> Callable[[int], tuple[int, int]]:
    """Step -> FLOPs and tokens, the same for all."""
    del stream
    vit, (group, _) = build.pixel_encoder(config), _pixels(config)
    step = flops.pixels_step(vit, build.pixel_decoder(config, vit), group)
    worth = sum(step.values()), group.clips * group.tokens
    return lambda step: worth


def action_conditioned(config: ActionConditionedConfig, devices: int) -> list[Program]:
    """The one program of a run on recordings.

    Raises:
      ConfigError: the batch does not split over the devices.
    """
    rows_at_a_time(config.optim.batch, devices, config.optim.accumulate)
    vit = build.frame_encoder(config)
    predictor = build.ac_predictor(config, vit)
    size, frames = predictor.tokens_per_frame, config.robot.frames
    source = 'features' if config.features else 'pixels'
    lengths = {size * n for n in range(1, frames)}
    if not config.features:
        lengths.add(math.prod(predictor.grid))
    like = _pieces(config, math.prod(predictor.grid), vit.width)
    return [
        Program(
            functools.partial(_noise_and_actions, like, _prefix(config, 0)),
            {'step': _step_on_recordings(config, _prefix(config, 0))},
            frozenset(lengths),
            f'{frames} frames of {size} tokens, from {source}',
            like,
        )
    ]


def _prefix(config: ActionConditionedConfig, step: int) -> int:
    return 1 if config.rollout.prefix == 'first' else random_prefix(config, step)


def _step_on_recordings(config: ActionConditionedConfig, prefix: int) -> int:
    vit = build.frame_encoder(config)
    return flops.action_conditioned_step(
        build.ac_predictor(config, vit),
        config.optim.batch,
        config.robot.frames,
        rollout=config.rollout.steps,
        prefix=prefix,
        cut=config.rollout.stop_gradient,
        encode=None if config.features else vit,
    )


def _pieces(config: ActionConditionedConfig, tokens: int, width: int) -> Trajectories:
    """The shapes of a batch, of frames with so many tokens."""
    B, T, crop = config.optim.batch, config.robot.frames, config.data.crop
    stored = jnp.dtype(config.features_dtype)
    return Trajectories(
        actions=_array(np.float32, B, T - 1, 7),
        states=_array(np.float32, B, T, 7) if config.ac.use_states else None,
        prefix=_array(np.int32, B),
        frames=None if config.features else _array(np.uint8, B, T, crop, crop, 3),
        features=_array(stored, B, T, tokens, width) if config.features else None,
        extrinsics=_array(np.float32, B, T, 6) if config.ac.use_extrinsics else None,
    )


def _noise_and_actions(like: Trajectories, prefix: int, seed: int) -> Trajectories:
    batch = jax.tree.map(functools.partial(_noise, np.random.default_rng(seed)), like)
    return dataclasses.replace(
        batch,
        actions=batch.actions / 100,
        states=None if batch.states is None else batch.states / 10,
        prefix=np.full(like.prefix.shape, prefix, np.int32),
    )


def action_conditioned_workload(
    config: ActionConditionedConfig, stream: RobotStream
) -> Callable[[int], tuple[int, int]]:
    """Step -> FLOPs and tokens, by where its rollouts start."""
    del stream
    side = config.data.crop // config.encoder.patch
    tokens = config.optim.batch * config.robot.frames * side**2
    worth = functools.lru_cache(functools.partial(_step_on_recordings, config))
    return lambda step: (worth(_prefix(config, step)), tokens)


def questions(config: QuestionsConfig, devices: int) -> list[Program]:
    """The one program of a run on questions.

    Raises:
      ConfigError: the batch does not split over the devices.
    """
    rows_at_a_time(config.optim.batch, devices, config.optim.accumulate)
    objective, data = build.questions(config), config.data
    worth, tokens = _answering(config)
    like = _conversations(config, objective)
    source = 'features' if config.features else 'pixels'
    lengths = {data.length} | (set() if config.features else {tokens})
    return [
        Program(
            functools.partial(_noise_and_words, like, objective.decoder_config.vocabulary),
            dataclasses.asdict(worth),
            frozenset(lengths),
            f'sequences of {data.length:,} tokens, {media_places(config)} clips in each, from '
            f'{source}',
            like,
        )
    ]


def _answering(config: QuestionsConfig) -> tuple[flops.AnswerFlops, int]:
    """What a step is worth, and tokens of a clip."""
    o = build.questions(config)
    worth = flops.answering_step(
        None if config.features else o.encoder_config,
        o.projector_config,
        o.decoder_config,
        o.adapter_config,
        rows=config.optim.batch,
        length=config.data.length,
        clips=media_places(config),
        frames=config.clips.frames,
        train_encoder='encoder' in o.nets,
        train_decoder='decoder' in o.nets,
    )
    return worth, math.prod(o.projector_config.grid)


def _conversations(config: QuestionsConfig, objective: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch."""
    B, S, places = config.optim.batch, config.data.length, media_places(config)
    names = 'tokens', 'labels', 'positions', 'segments', 'visual'
    shapes = {name: _array(np.int32, B, S) for name in names}
    if config.features:
        tokens, width = math.prod(objective.projector_config.grid), objective.encoder_config.width
        shapes['table'] = _array(jnp.dtype(config.features_dtype), B, places, tokens, width)
    else:
        clips = config.clips
        shapes['table'] = _array(np.uint8, B, places, clips.frames, clips.crop, clips.crop, 3)
        if clips.images == 'tiles':
            shapes['tiles'] = _array(np.bool, B, places)
    return shapes


def _noise_and_words(like: dict, vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    """Rows of one conversation: noise to see first, then any words, all of them to be learnt."""
    rng = np.random.default_rng(seed)
    B, S = like['tokens'].shape
    words = rng.integers(0, vocabulary, (B, S), np.int32)
    row = np.broadcast_to(np.arange(S, dtype=np.int32), (B, S))
    tiles = {'tiles': np.zeros(like['tiles'].shape, bool)} if 'tiles' in like else {}
    return tiles | {
        'tokens': words,
        'labels': np.roll(words, -1, axis=1),
        'positions': np.ascontiguousarray(row),
        'segments': np.ones((B, S), np.int32),
        'visual': np.where(row < 1, row, -1).astype(np.int32),
        'table': _noise(rng, like['table']),
    }


def questions_workload(config: QuestionsConfig, stream: Any) -> Callable[[int], tuple[int, int]]:
    """Step -> FLOPs and tokens, the same for all."""
    del stream
    worth, tokens = _answering(config)
    clips = config.optim.batch * media_places(config)
    return lambda step: (worth.total, clips * tokens)
