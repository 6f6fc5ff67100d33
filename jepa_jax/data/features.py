"""Features of a frozen encoder, computed once: the predictor then trains without it.

A folder holds a set of features of one encoder, crop, rate and set of recordings, all of which its
name is a hash of; change any and it is another folder. In it, a file an episode, the frames that
are kept: those at multiples of the step from one kept frame to the next, so pieces start there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from tqdm import tqdm

from jepa_jax.config import ActionConditionedConfig
from jepa_jax.data import npz, robot
from jepa_jax.data.clips import Timing
from jepa_jax.errors import BadFile
from jepa_jax.sharding import path_name
from jepa_jax.workdir import write_json

VERSION = 1  # part of the hash: change it with anything that changes a feature
BATCH = 32  # frames that are encoded together
DTYPES = {'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}

log = logging.getLogger(__name__)


def hash_weights(params) -> str:
    """A hash of names, shapes and values of parameters."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(jax.device_get(leaf))
        found.update(f'{path_name(path)} {array.dtype} {array.shape} '.encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


class FeatureStore:
    """The features of a run's recordings.

    Args:
      config: a run with `features` set.
      weights: hash of the encoder's parameters.
    """

    def __init__(self, config: ActionConditionedConfig, weights: str) -> None:
        self._config = config
        data = config.robot
        about = {
            'version': VERSION,
            'weights': weights,
            'crop': config.data.crop,
            'fps': data.fps,
            'dtype': config.features_dtype,
            'kind': data.kind,
            'path': os.path.abspath(data.path) if data.path else '',
            'camera': data.camera,
        }
        if data.recorded_fps:  # by which frames are chosen, too
            about['recorded_fps'] = data.recorded_fps
        self._about = about
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(config.features).expanduser().absolute() / name

    def file(self, name: str) -> Path:
        return self.folder / f'{hashlib.sha256(name.encode()).hexdigest()[:24]}.npy'

    def fill(
        self, recordings: robot.Recordings, encode: Callable[[np.ndarray], np.ndarray],
        *, process: int = 0, processes: int = 1,
    ) -> None:  # fmt: skip
        """Computes what is not there yet; a killed run goes on where it was.

        encode: frames [BATCH, crop, crop, 3] uint8 -> features [BATCH, N, D]. Of several processes
        each takes its share of the episodes. An episode that cannot be read is logged and left
        out; training then meets it as unreadable.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / 'about.json', self._about)
        names = [recordings.name(i) for i in range(len(recordings))]
        left = [
            i for i in range(process, len(names), processes) if not self.file(names[i]).exists()
        ]
        if not left:
            log.info('features: all %d episodes in %s', len(names), self.folder)
            return
        log.info('features: %d of %d episodes to encode, in %s', len(left), len(names), self.folder)
        bad = 0
        with tqdm(left, desc='features', unit='episode', file=sys.stderr) as bar:
            for i in bar:
                try:
                    frames, numbers = kept_frames(recordings.episode(i), self._config)
                except (BadFile, OSError) as error:
                    bad += 1
                    log.warning('features: %s', error)
                    continue
                self._write(self.file(names[i]), frames, numbers, encode)
        if bad == len(left):
            raise BadFile(
                self._config.robot.path or names[0], 'no_frames', 'no episode can be read'
            )

    def _write(self, path: Path, frames: np.ndarray, numbers: np.ndarray, encode) -> None:
        parts = []
        for start in range(0, len(frames), BATCH):
            part = frames[start : start + BATCH]
            full = np.zeros((BATCH, *part.shape[1:]), np.uint8)
            full[: len(part)] = part  # one shape, one program
            parts.append(np.asarray(encode(full))[: len(part)])
        features = np.concatenate(parts).astype(DTYPES[self._config.features_dtype])
        _save(path.with_suffix('.numbers.npy'), numbers)
        # last, for it says that all is there; numpy has no name for bfloat16, so both kinds are
        # stored as their 16 bits
        _save(path, features.view(np.uint16))

    def numbers(self, name: str) -> np.ndarray:
        """Which frames of the episode are kept.

        Raises:
          BadFile: none, because the episode could not be read.
        """
        if not self.file(name).exists():
            raise BadFile(name, 'missing', f'no features in {self.folder}')
        return npz.load(self.file(name).with_suffix('.numbers.npy'))

    def features(self, name: str) -> np.ndarray:
        """Features [K, N, D] of the frames that are kept, on the disk until they are used.

        Raises:
          OSError: there are none; see `numbers`.
        """
        stored = npz.load(self.file(name), mmap_mode='r')
        return stored.view(DTYPES[self._config.features_dtype])


def kept_frames(
    episode: robot.Episode, config: ActionConditionedConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The frames of an episode that features are stored of, as the model sees them, and their
    numbers."""
    chosen = []

    def choose(timing: Timing) -> np.ndarray:
        step = robot.steps_between(timing, config.robot.fps)
        chosen.append(np.arange(0, timing.frames, step))
        return chosen[-1]

    frames = episode.read(choose)
    return robot.view(frames, (config.data.crop, config.data.crop)), chosen[0]


def _save(path: Path, array: np.ndarray) -> None:
    """Appears whole or not at all."""
    fd, temporary = tempfile.mkstemp(suffix='.part', dir=path.parent)
    try:
        with os.fdopen(fd, 'wb') as file:
            np.save(file, array)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
