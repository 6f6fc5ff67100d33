"""Recordings as RLDS has them, prepared by tfds."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from jepa_jax import files
from jepa_jax.config import RobotConfig
from jepa_jax.data import prepared
from jepa_jax.data.robot import metadata
from jepa_jax.data.robot.contract import as_contract
from jepa_jax.data.robot.episodes import EncodedImages, Episode, state_of
from jepa_jax.errors import BadFile, ConfigError, allowed

MAGIC = b'\xff\xd8\xff', b'\x89PNG'  # JPEG, PNG: what tfds has pictures as
LOOKED_AT = 16  # episodes, for one whose names can be read


class Rlds:
    """Episodes as RLDS has them, prepared by tfds as ArrayRecord and read without TensorFlow.

    path: FOLDER[:SPLIT]. An episode has `steps`, and each of them an `observation`: `robot.camera`
    names an image in it, `robot.columns` what makes up the state (DROID's names if empty).
    """

    STATE = 'cartesian_position,gripper_position'

    def __init__(self, data: RobotConfig) -> None:
        folder, _, split = data.path.partition(':')
        self._data, self._split = data, split or 'train'
        try:
            self._folder = prepared.folder_of(folder)
            self._packed = prepared.packed(self._folder)
            self._length = len(self._records)
        except ConfigError as error:
            raise ConfigError(f'robot.path: {error}') from error
        if data.recorded_fps <= 0:
            raise ConfigError(
                f'robot.recorded_fps = {data.recorded_fps:g}: RLDS recordings do not say how many '
                'frames a second they have; DROID has 15'
            )
        self._columns = (data.columns or self.STATE).split(',')
        if not self._length:
            raise ConfigError(f'robot.path = {data.path!r}: no episode')
        for index in range(min(self._length, LOOKED_AT)):  # names are the same in all
            try:
                has = self._observation(index)
            except BadFile:
                continue
            if data.camera not in _cameras(has):
                raise ConfigError(metadata.no_camera(data.camera, _cameras(has)))
            for name in self._columns:
                if name not in has:
                    raise ConfigError(
                        f"robot.columns = '{name}': {allowed(name, has or ['(none)'])}"
                    )
            break

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != '_records'}

    @functools.cached_property
    def _records(self):
        return prepared.records(self._folder, self._split, 'steps')

    def _observation(self, index: int) -> dict[str, Any]:
        """The observations of an episode, a row a step. Raises BadFile."""
        name = self.name(index)
        with files.reading(name):
            record = self._records[index]
            observation = record['steps'].get('observation', {}) if 'steps' in record else {}
        if not isinstance(observation, dict):
            raise BadFile(name, 'corrupt', 'its observations have no names')
        return observation

    def name(self, index: int) -> str:
        return f'{self._folder}:{self._split}#{index}'

    def state(self, index: int) -> str:
        return self._state

    @functools.cached_property
    def _state(self) -> str:
        """Of the whole set: which of its files holds an episode is tfds's own matter."""
        return state_of(*sorted(entry.path for entry in os.scandir(self._folder)))

    def episode(self, index: int) -> Episode:
        observation, name = self._observation(index), self.name(index)
        for key in (self._data.camera, *self._columns):
            if key not in observation:
                raise BadFile(name, 'corrupt', f'no {key}; it has {", ".join(observation)}')
        with files.reading(name):
            images, used = observation[self._data.camera], map(observation.get, self._columns)
            if not (count := len(images)):
                raise BadFile(name, 'no_frames')
            if not all(isinstance(image, bytes) for image in images):
                words = metadata.no_camera(self._data.camera, _cameras(observation))
                raise BadFile(name, 'no_camera', f'it holds no image files; {words}')
            size = sum(map(len, images)) + 8 * sum(np.size(values) for values in used)
        files.bound(name, 'frames', count)
        files.bound_decoded(name, size, self._packed)
        with files.reading(name, 'bad_state'):
            parts = [np.asarray(observation[key], np.float64) for key in self._columns]
            states = np.concatenate([a.reshape(len(images), -1) for a in parts], axis=1)
        states = as_contract(name, states, self._data)
        pixels = EncodedImages(name, images)
        return Episode(name, states, fps=self._data.recorded_fps, pixels=pixels)


def _cameras(observation: dict[str, Any]) -> list[str]:
    """Names of what holds image files, though some of them may be damaged."""

    def images(values: Any) -> bool:
        try:
            return any(isinstance(value, bytes) and value.startswith(MAGIC) for value in values)
        except TypeError:  # a number
            return False

    return [name for name, values in observation.items() if images(values)]
