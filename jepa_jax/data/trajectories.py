"""Recordings of a robot -> batches of pieces, as a pure function of (seed, step, position).

The robot's counterpart of `VideoStream`, with the same promises: neither worker nor process count
moves a piece, and a step can be made without those before it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time

import grain
import jax
import numpy as np

from jepa_jax.config import ActionConditionedConfig
from jepa_jax.data import robot, scene
from jepa_jax.data.augment import augment
from jepa_jax.data.features import FeatureStore
from jepa_jax.data.stream import (
    FRAMES,
    REPLACE,
    Batches,
    Failure,
    HostBatch,
    generator,
    hash_of,
    side_by_side,
    threads_of_a_worker,
)
from jepa_jax.errors import BadFile, ConfigError, DataError

# episodes whose states and mapped features a reader keeps at hand: opened anew for every piece,
# they took most of a batch's time
KNOWN = 4096
# recordings from which on grain's shuffle decides the order. It walks a cipher of 16 bits until it
# meets a number that is small enough: 0.06 ms a piece with 500 recordings, 0.4 with 80, 2 with 12
MANY = 256
PREFIX = 3  # stream of random numbers of a step: after how many frames its rollouts start


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectories:
    """A batch of pieces of episodes: T frames and the actions between them."""

    actions: jax.Array  # [B, T - 1, action width]
    states: jax.Array | None  # [B, T, state width]; None where the model sees none
    # [B] int32, all alike: frames before the rollout starts, for the prefix policy 'random'
    prefix: jax.Array
    frames: jax.Array | None = None  # [B, T, H, W, 3] uint8
    features: jax.Array | None = None  # [B, T, N, D], standardised, in place of frames
    extrinsics: jax.Array | None = None  # [B, T, 6], where the model uses them

    def conditions(self, start: int, stop: int) -> list[jax.Array | None]:
        """Actions, states and extrinsics of frames start to stop, without the last."""
        given = (self.actions, self.states, self.extrinsics)
        return [None if a is None else a[:, start:stop] for a in given]


class RobotStream:
    """Batches of one process; see VideoStream for the arguments.

    store: features in place of frames.

    Raises ConfigError for recordings that cannot be opened and batches that cannot be split.
    """

    def __init__(
        self,
        config: ActionConditionedConfig,
        store: FeatureStore | None = None,
        *,
        devices: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self._config = config
        self.recordings = robot.open_recordings(config.robot)
        parts = devices * config.optim.accumulate
        if config.optim.batch % parts:
            raise ConfigError(
                f'optim.batch: {config.optim.batch} is no multiple of {parts} '
                f'({devices} devices x optim.accumulate {config.optim.accumulate})'
            )
        count = len(self.recordings)
        seed, records = hash_of(config.seed, 0) % 2**32, grain.MapDataset.range(count)
        if count >= MANY:
            order = records.shuffle(seed=seed).repeat()
        else:
            order = records.repeat().map_with_index(functools.partial(_permuted, count, seed))
        rows = config.optim.batch // process_count
        self._order = order[process_index::process_count].batch(rows)
        self._process = process_index, process_count
        self._store = store
        self._open: list[Batches] = []

    def batches(self, start_step: int = 0) -> Batches:
        """Batches of steps `start_step`, `start_step + 1`, ... without end; to be closed."""
        reader = _Reader(self._config, self.recordings, self._store, self._order, self._process)
        batches = Batches(reader, self._config.data, start_step)
        self._open.append(batches)
        return batches

    def shapes(self, step: int) -> tuple:
        """All steps have the same."""
        return ()

    @property
    def programs(self) -> list[tuple]:
        """The values of `shapes`: a program to compile each."""
        return [()]

    def describe(self) -> list[str]:
        """Lines for the start of a run's log."""
        data = self._config.robot
        source = f'features in {self._store.folder}' if self._store else 'frames'
        contract = dataclasses.asdict(robot.Contract.of(data))
        seen = zip(scene.TITLES, self._scene.words()) if self._scene else ()
        return [
            f'{data.kind} {data.path or "(self-made)"}: {len(self.recordings)} episodes; pieces of '
            f'{data.frames} frames at {data.fps:g} a second, from {source}',
            'contract: ' + ', '.join(f'{key} {value}' for key, value in contract.items()),
            'scene: ' + (', '.join(f'{key} {value}' for key, value in seen) or 'cannot be read'),
        ]

    @functools.cached_property
    def _scene(self) -> scene.Scene | None:
        return scene.look(self.recordings, self._config.robot, self._config.data.crop)

    @property
    def facts(self) -> dict[str, dict]:
        """What checkpoints say of the data, beside the config."""
        return {'scene': dataclasses.asdict(self._scene)} if self._scene else {}

    def close(self) -> None:
        while self._open:
            self._open.pop().close()

    def __enter__(self) -> RobotStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _permuted(count: int, seed: int, position: int, _: int) -> int:
    """The record at a position of an endless row of epochs, each in an order of its own."""
    epoch, place = divmod(position, count)
    return int(_permutation(count, seed, epoch)[place])


@functools.lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, epoch).permutation(count)


def random_prefix(config: ActionConditionedConfig, step: int) -> int:
    """True frames before a step's rollouts under the prefix policy 'random': one draw for the
    step, the same in every process."""
    most = config.robot.frames - config.rollout.steps
    return int(generator(config.seed, step, PREFIX).integers(1, most, endpoint=True))


class _Reader(grain.transforms.Map):
    """Step -> HostBatch."""

    def __init__(self, config, recordings, store, order, process) -> None:
        self._config, self._recordings, self._store = config, recordings, store
        self._order, self._process = order, process
        self._threads = threads_of_a_worker(config.data.workers)
        self._known: dict[int, tuple] = {}

    def map(self, step: int) -> HostBatch:
        begin = time.perf_counter()
        config = self._config
        records = self._order[step]
        index, count = self._process
        first = step * config.optim.batch + index
        tasks = [(first + row * count, int(record)) for row, record in enumerate(records)]
        failures: list[Failure] = []
        pieces, seconds = [], collections.Counter()
        for piece, failed, spent in side_by_side(self._row, tasks, self._threads):
            pieces.append(piece)
            failures += failed
            seconds['read'] += spent
        arrays = {key: np.stack([piece[key] for piece in pieces]) for key in pieces[0]}
        arrays['prefix'] = np.full(len(pieces), random_prefix(config, step), np.int32)
        if not config.ac.use_states:
            arrays['states'] = None
        seconds['batch'] = time.perf_counter() - begin
        tried = len(tasks) + len(failures)
        return HostBatch(Trajectories(**arrays), tuple(failures), tried, dict(seconds))

    def _row(self, position: int, record: int) -> tuple[dict, list[Failure], float]:
        """A piece as arrays; an episode that cannot be read is replaced."""
        config, failures, start = self._config, [], time.perf_counter()
        for attempt in range(config.data.attempts + 1):
            key = (config.seed, 0, position, attempt)
            if attempt:
                record = hash_of(*key, REPLACE) % len(self._recordings)
            name = self._recordings.name(record)
            try:
                found = self._piece(record, generator(*key, FRAMES))
                return found, failures, time.perf_counter() - start
            except BadFile as error:
                failures.append(Failure(error.path, error.reason, error.detail, 0))
            except OSError as error:
                reason = 'missing' if isinstance(error, FileNotFoundError) else 'unreadable'
                failures.append(Failure(name, reason, str(error), 0))
        last = failures[-1]
        raise DataError(
            f'nothing can be read in robot.path {config.robot.path!r}: {len(failures)} episodes '
            f'tried in a row (data.attempts), the last was {last.path} ({last.reason}: '
            f'{last.detail})'
        )

    def _piece(self, record: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        config = self._config
        data = config.robot
        if self._store is None:
            episode = self._recordings.episode(record)
            piece = robot.cut(episode, data.frames, data.fps, lambda n: int(rng.integers(n)))
            crop = config.data.crop
            if config.augment:
                out = np.empty((data.frames, crop, crop, 3), np.uint8)
                frames = augment(piece.frames, config.data.augment, rng, out)
            else:
                frames = robot.view(piece.frames, (crop, crop))
            found = {'frames': frames}
            states, actions, extrinsics = piece.states, piece.actions, piece.extrinsics
        else:
            states, actions, extrinsics, features = self._kept(record)
            first = int(rng.integers(len(states) - data.frames + 1))
            found = {'features': np.array(features[first:][: data.frames])}
            states, actions = states[first:][: data.frames], actions[first:][: data.frames - 1]
            if extrinsics is not None:
                extrinsics = extrinsics[first:][: data.frames]
        found |= {'states': states, 'actions': actions}
        if config.ac.use_extrinsics:
            if extrinsics is None:
                name = self._recordings.name(record)
                raise BadFile(name, 'bad_state', 'ac.use_extrinsics is set: there are none')
            found['extrinsics'] = extrinsics.astype(np.float32)
        return found

    def _kept(self, record: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """States [K, V], actions [K - 1, U], extrinsics and features [K, N, D] of an episode's
        frames that have features."""
        if (known := self._known.get(record)) is not None:
            return known
        episode, least = self._recordings.episode(record), self._config.robot.frames
        numbers = self._store.numbers(episode.name)
        if len(numbers) < least:
            reason = f'{len(numbers)} frames are kept, a piece takes {least}'
            raise BadFile(episode.name, 'short', reason)
        states, extrinsics = episode.states[numbers], episode.extrinsics
        known = (
            states.astype(np.float32),
            robot.actions_between(states).astype(np.float32),
            None if extrinsics is None else extrinsics[numbers],
            self._store.features(episode.name),
        )
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known[record] = known
        return known
