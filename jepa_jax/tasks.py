"""What a config trains: its objective and its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jepa_jax import distributed
from jepa_jax.checkpoint import find, read_manifest
from jepa_jax.config import ActionConditionedConfig, MaskedVideoConfig
from jepa_jax.data.features import FeatureStore, hash_weights
from jepa_jax.data.robot import Contract, open_recordings
from jepa_jax.data.trajectories import RobotStream
from jepa_jax.data.videos import VideoStream
from jepa_jax.metrics import Cost
from jepa_jax.models.ac_predictor import encode_frames
from jepa_jax.nets import ONCE
from jepa_jax.objectives.action_conditioned import ActionConditioned
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.recipes import read_config
from jepa_jax.start import cost, robot_cost


@dataclasses.dataclass(frozen=True)
class Task:
    """How to make what the loop runs."""

    objective: Callable[[Any], Any]  # config -> objective
    prepare: Callable[[Any, Any], Any]  # config, objective -> what is computed once, before all
    pipeline: Callable[[Any, Any], Any]  # config, what was prepared -> pipeline
    cost: Callable[[Any, Any], Callable[[int], Cost]]  # config, pipeline -> step -> its worth


def of(config: MaskedVideoConfig) -> Task:
    """By the type of the config."""
    return TASKS[type(config)]


def _placement() -> dict[str, int]:
    return dict(
        devices=jax.device_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _nothing(config: MaskedVideoConfig, objective: MaskedVideo) -> None:
    return None


def _videos(config: MaskedVideoConfig, prepared: None) -> VideoStream:
    return VideoStream(config, **_placement())


def _features(config: ActionConditionedConfig, objective: ActionConditioned) -> FeatureStore | None:
    """Computes the features of all recordings, if the config names a folder to keep them in.

    Raises:
      ConfigError: the run that this one starts from was on another robot.
    """
    settings = config.checkpoints
    if start := settings.resume_from or settings.init_from:
        stored = read_manifest(find(start))['extra'].get('config', {})
        if 'robot' in stored:
            before = Contract.of(read_config(stored).robot)
            Contract.of(config.robot).check(dataclasses.asdict(before))
    if not config.features:
        return None
    # the key of start.initial_state: a random encoder is the same there
    params = objective.given or jax.jit(objective.frozen, compiler_options=ONCE)(
        jax.random.key(config.seed)
    )
    store = FeatureStore(config, objective.encoder_config, hash_weights(params))

    @jax.jit
    def encode(params: dict, frames: jax.Array) -> jax.Array:
        tubelet = objective.encoder_config.tubelet
        return encode_frames(objective.encoder, params, frames[None], tubelet)[0]

    store.fill(
        open_recordings(config.robot),
        lambda frames: encode(params, frames),
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    distributed.any_process(False)  # each reads what the others computed, so waits for them
    return store


def _recordings(config: ActionConditionedConfig, store: FeatureStore | None) -> RobotStream:
    return RobotStream(config, store, **_placement())


TASKS = {
    MaskedVideoConfig: Task(MaskedVideo.of, _nothing, _videos, cost),
    ActionConditionedConfig: Task(ActionConditioned.of, _features, _recordings, robot_cost),
}
