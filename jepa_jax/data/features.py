"""Features of a frozen encoder, computed once: the predictor then trains without it.

A folder holds a set of features of one encoder, crop, rate and set of recordings, all of which its
name is a hash of; change any and it is another folder. In it, a file an episode, the frames that
are kept: those at multiples of the step from one kept frame to the next, so pieces start there. The
file's name says which state of the recording it is of, so an episode that changed is encoded anew,
and one that came to the others changes nothing of them.

A file holds the features as an .npy file does, and after them, signed, JSON: the frames' numbers,
their checksums, and the time of change that the file was given. Frames are held against their
checksums when they are read. A start looks at the time: a file that was cut, or changed by anyone,
is held against all its checksums, and made again if they are wrong.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tqdm import tqdm

from jepa_jax import files, scratch
from jepa_jax.config import ActionConditionedConfig
from jepa_jax.data import npz, robot
from jepa_jax.data.cache import checksum, signed, unsigned
from jepa_jax.data.clips import Timing
from jepa_jax.errors import BadFile
from jepa_jax.workdir import write_json

VERSION = 2  # part of the hash: change it with anything that changes a feature
BATCH = 32  # frames that are encoded together, unless told otherwise
DTYPES = {'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}

log = logging.getLogger(__name__)


class FeatureStore:
    """The features of a run's recordings.

    Args:
      config: a run with `features` set.
      encoder: all that shapes it, jepa_jax.models.vit.ViTConfig.
      weights: hash of its parameters, see `checkpoint.hash_arrays`.
    """

    def __init__(self, config: ActionConditionedConfig, encoder: Any, weights: str) -> None:
        self._config = config
        data = config.robot
        about = {
            'version': VERSION,
            'weights': weights,
            'encoder': shape_of(encoder),
            'compute_dtype': config.compute_dtype,
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
        self.folder = Path(config.features).expanduser().absolute() / _hash(
            json.dumps(about, sort_keys=True), 16
        )

    def file(self, recordings: robot.Recordings, index: int) -> Path:
        """Where the features of an episode in its present state are, or will be."""
        name, state = recordings.name(index), recordings.state(index)
        return self.folder / f'{_hash(name, 24)}-{_hash(state, 16)}.npy'

    def fill(
        self, recordings: robot.Recordings, encode: Callable[[np.ndarray], np.ndarray],
        *, batch: int = BATCH, process: int = 0, processes: int = 1,
    ) -> None:  # fmt: skip
        """Computes what is not there yet; a killed run resumes where it was.

        What is damaged, or in another form, is computed again and said.

        encode: frames [batch, crop, crop, 3] uint8 -> features [batch, N, D]; a batch that several
        devices share is a multiple of them. Of several processes each takes its share of the
        episodes. An episode that cannot be read is logged and left out; training then meets it as
        unreadable.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / 'about.json', self._about)
        count = len(recordings)
        scratch.sweep(self.folder)
        left = [
            i for i in range(process, count, processes) if not is_whole(self.file(recordings, i))
        ]
        if not left:
            log.info('features: all %d episodes in %s', count, self.folder)
            return
        log.info('features: %d of %d episodes to encode, in %s', len(left), count, self.folder)
        bad, notes = 0, collections.Counter()
        with tqdm(left, desc='features', unit='episode', disable=None) as bar:
            for i in bar:
                path = self.file(recordings, i)  # of the state before it is read
                try:
                    episode = recordings.episode(i)
                    frames, numbers = kept_frames(episode, self._config)
                except (BadFile, OSError) as error:
                    bad += 1
                    log.warning('features: %s', error)
                    continue
                notes.update(episode.notes)
                self._write(path, frames, numbers, encode, batch)
        for note, number in notes.most_common():
            log.warning('features: %d of %d episodes: %s', number, len(left), note)
        if bad == count:  # of fewer, some may be there already, or be another process's
            raise BadFile(
                self._config.robot.path or recordings.name(0), 'no_frames', 'no episode can be read'
            )

    def _write(self, path: Path, frames: np.ndarray, numbers: np.ndarray, encode, batch) -> None:
        parts = []
        for start in range(0, len(frames), batch):
            part = frames[start : start + batch]
            full = np.zeros((batch, *part.shape[1:]), np.uint8)
            full[: len(part)] = part  # one shape, one program
            parts.append(np.asarray(encode(full))[: len(part)])
        features = np.concatenate(parts).astype(DTYPES[self._config.features_dtype])
        save(path, features, numbers)
        episode = path.name.partition('-')[0]
        for old in self.folder.glob(f'{episode}-*.npy'):  # of states that the episode had before
            if old != path:
                old.unlink(missing_ok=True)

    def read(self, recordings: robot.Recordings, index: int) -> tuple[np.ndarray, Stored]:
        """The numbers [K] of an episode's frames that are kept, and their features [K, N, D], which
        stay on the disk until they are used.

        Raises:
          BadFile: none, because the episode could not be read, or has changed since; or damaged.
        """
        path = self.file(recordings, index)
        if not path.exists():
            raise BadFile(recordings.name(index), 'missing', f'no features in {self.folder}')
        stored = open_stored(path, DTYPES[self._config.features_dtype])
        return stored.numbers, stored


def shape_of(encoder: Any) -> dict[str, Any]:
    """All that shapes what an encoder computes, by field: how it spares memory does not."""
    fields = dataclasses.asdict(encoder)
    del fields['remat']
    return fields | {'dtype': np.dtype(encoder.dtype).name}


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:digits]


def kept_frames(
    episode: robot.Episode, config: ActionConditionedConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The frames of an episode that features are stored of, as the model sees them, and their
    numbers."""
    chosen = []

    def choose(timing: Timing) -> np.ndarray:
        chosen.append(robot.kept(timing, config.robot.fps))
        return chosen[-1]

    frames = episode.read(choose)
    return robot.view(frames, (config.data.crop, config.data.crop)), chosen[-1]


@dataclasses.dataclass(frozen=True)
class Stored:
    """Features [K, N, D] on the disk: `stored[first:last]` reads frames and checks them.

    They are not mapped: a file that is cut under a mapping ends the process.
    """

    path: Path
    numbers: np.ndarray  # [K] of the frames in their episode
    sums: np.ndarray  # [K] checksums
    stamp: int  # ns: the time of change that the writer gave the file
    offset: int  # bytes before the first frame
    shape: tuple[int, ...]  # [N, D]
    dtype: np.dtype

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, frames: slice) -> np.ndarray:
        """Raises BadFile, and marks the file, so that the next start makes it again."""
        first, last, _ = frames.indices(len(self))
        array = np.empty((max(0, last - first), *self.shape), np.uint16)
        with files.reading(self.path), open(self.path, 'rb', buffering=0) as file:
            file.seek(self.offset + first * array[:1].nbytes)
            file.readinto(array.reshape(-1).view(np.uint8).data)
        for number, frame in enumerate(array, first):
            if checksum(frame) != self.sums[number]:
                with contextlib.suppress(OSError):
                    os.utime(self.path)
                raise BadFile(
                    self.path,
                    'corrupt',
                    f'frame {number} is not what was stored; the next start makes it again',
                )
        return array.view(self.dtype)


def open_stored(path: Path, dtype: Any = np.uint16) -> Stored:
    """Raises BadFile: damaged, or of a form without checksums."""
    with files.reading(path), open(path, 'rb') as file:
        array = npz.load(path, mmap_mode='r')
        file.seek(array.offset + array.nbytes)
        about = json.loads(unsigned(file.read().decode()))
        numbers, sums = np.array(about['numbers'], int), np.array(about['sums'], int)
        if not array.shape[0] == len(numbers) == len(sums):
            raise ValueError(f'{len(numbers)} numbers of {array.shape[0]} frames')
        return Stored(
            path, numbers, sums, about['stamp'], array.offset, array.shape[1:], np.dtype(dtype)
        )


def is_whole(path: Path) -> bool:
    """Whether features are there as they were written. Says what is wrong with those that are."""
    if not path.exists():
        return False
    try:
        stored = open_stored(path)
        if path.stat().st_mtime_ns != stored.stamp:
            for number in range(len(stored)):
                stored[number : number + 1]
            os.utime(path, ns=(stored.stamp, stored.stamp))  # copied: once is enough
    except BadFile as error:
        log.warning('features: made again: %s', error)
        return False
    except OSError as error:
        log.info('features: %s: %s', path, error.strerror)
    return True


def save(path: Path, features: np.ndarray, numbers: np.ndarray) -> None:
    """Features [K, N, D] of two bytes a number, whole or not at all."""
    array = features.view(np.uint16)  # numpy has no name for bfloat16
    stamp = int(time.time()) * 10**9  # whole seconds, which every file system can keep
    about = {
        'numbers': numbers.tolist(),
        'sums': [checksum(frame) for frame in array],
        'stamp': stamp,
    }
    with scratch.whole(path) as file:
        np.save(file, array)
        file.write(signed(json.dumps(about)).encode())
        file.flush()
        os.fsync(file.fileno())
        os.utime(file.fileno(), ns=(stamp, stamp))
