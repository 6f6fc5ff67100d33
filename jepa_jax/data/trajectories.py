"""Recordings of a robot -> batches of pieces: frames or features, and what was done in between."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import jax
import numpy as np

from jepa_jax.config import ActionConditionedConfig
from jepa_jax.data import robot, scene
from jepa_jax.data.augment import augment
from jepa_jax.data.clips import Timing
from jepa_jax.data.features import FeatureStore
from jepa_jax.data.stream import Row, Stream, generator
from jepa_jax.errors import BadFile

# episodes whose states a reader keeps at hand: read anew for every piece, they took most of a
# batch's time
KNOWN = 4096
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
        arrays = (self.actions, self.states, self.extrinsics)
        return [None if a is None else a[:, start:stop] for a in arrays]


class RobotStream(Stream):
    """Pieces of the episodes that `config.robot` names.

    Args:
      prepared: features in place of frames.
      devices, process_index, process_count: see Stream.

    Raises ConfigError for recordings that cannot be opened and batches that cannot be split.
    """

    def __init__(
        self,
        config: ActionConditionedConfig,
        prepared: FeatureStore | None = None,
        *,
        devices: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self.recordings = robot.open_recordings(config.robot)
        super().__init__(
            config,
            [self.recordings],
            devices=devices,
            process_index=process_index,
            process_count=process_count,
        )
        self._store = prepared
        self._known: dict[int, tuple] = {}

    def read(self, row: Row) -> dict[str, np.ndarray]:
        """A piece as arrays, by their names in Trajectories."""
        config, record, rng = self.config, row.record, row.rng()
        data = config.robot
        if self._store is None:
            episode = self.recordings.episode(record)
            piece = robot.cut(episode, data.frames, data.fps, lambda n: int(rng.integers(n)))
            crop = config.data.crop
            if config.augment:
                out = np.empty((data.frames, crop, crop, 3), np.uint8)
                frames = augment(piece.frames, config.data.augment, rng, out)
            else:
                frames = robot.view(piece.frames, (crop, crop))
            arrays = {'frames': frames}
            states, actions, extrinsics = piece.states, piece.actions, piece.extrinsics
        else:
            states, actions, extrinsics, features, places = self._kept(record)
            first = int(
                rng.integers(len(states) - data.frames + 1 if places is None else len(places))
            )
            first = first if places is None else int(places[first])
            arrays = {'features': features[first : first + data.frames]}
            states, actions = states[first:][: data.frames], actions[first:][: data.frames - 1]
            if extrinsics is not None:
                extrinsics = extrinsics[first:][: data.frames]
        arrays |= {'states': states, 'actions': actions}
        if config.ac.use_extrinsics:
            if extrinsics is None:
                name = self.recordings.name(record)
                raise BadFile(name, 'bad_state', 'ac.use_extrinsics is set: there are none')
            arrays['extrinsics'] = extrinsics.astype(np.float32)
        return arrays

    def gather(self, step: int, into: None, rows: list[dict[str, np.ndarray]]) -> Trajectories:
        arrays = super().gather(step, into, rows)
        if not self.config.ac.use_states:
            arrays['states'] = None
        prefix = np.full(len(rows), random_prefix(self.config, step), np.int32)
        return Trajectories(**arrays, prefix=prefix)

    def name(self, row: Row) -> str:
        return self.recordings.name(row.record)

    def place(self, list_index: int) -> str:
        return f'robot.path {self.config.robot.path!r}'

    def examples(self, count: int) -> list[tuple[np.ndarray, str]]:
        """The beginnings of the first episodes that can be read."""
        data, side, pieces = self.config.robot, self.config.data.crop, []
        for record in range(min(count, len(self.recordings))):
            with contextlib.suppress(BadFile, OSError):  # a batch that needs it says so
                episode = self.recordings.episode(record)
                piece = robot.cut(episode, data.frames, data.fps, lambda _: 0)
                frames = robot.view(piece.frames, (side, side))
                pieces.append((frames, f'{episode.name}; {words_of(piece.actions)}'))
        return pieces

    def describe(self) -> list[str]:
        data = self.config.robot
        source = f'features in {self._store.folder}' if self._store else 'frames'
        contract = dataclasses.asdict(robot.Contract.of(data))
        look, measured = self._looked
        seen = zip(scene.TITLES, look.words()) if look else ()
        return [
            f'{data.kind} {data.path or "(self-made)"}: {len(self.recordings)} episodes; pieces of '
            f'{data.frames} frames at {data.fps:g} a second, from {source}',
            'contract: ' + ', '.join(f'{key} {value}' for key, value in contract.items()),
            *(measured.lines() if measured else ()),
            'scene: ' + (', '.join(f'{key} {value}' for key, value in seen) or 'cannot be read'),
        ]

    @property
    def facts(self) -> dict[str, dict]:
        looked = zip(('scene', 'measured'), self._looked)
        return {name: dataclasses.asdict(facts) for name, facts in looked if facts}

    @functools.cached_property
    def _looked(self) -> tuple[scene.Scene | None, robot.Measured | None]:
        data, episodes = self.config.robot, []
        look = scene.look(self.recordings, data, self.config.data.crop, episodes)
        return look, robot.Measured.of(episodes, data) if episodes else None

    def _kept(self, record: int) -> tuple[np.ndarray | None, ...]:
        """States [K, V], actions [K - 1, U], extrinsics and features [K, N, D] of an episode's
        frames that have features, and where pieces may start if not everywhere."""
        if (known := self._known.get(record)) is not None:
            return known
        episode, least = self.recordings.episode(record), self.config.robot.frames
        numbers, features = self._store.read(self.recordings, record)
        if len(numbers) < least:
            reason = f'{len(numbers)} frames are kept, a piece takes {least}'
            raise BadFile(episode.name, 'short', reason)
        states, extrinsics, places = episode.states[numbers], episode.extrinsics, None
        if episode.times is not None:
            apart = robot.steps_between(Timing(0, episode.clock.fps, 0), self.config.robot.fps)
            places = robot.unbroken(
                episode.times[numbers], len(numbers), least, apart / episode.clock.fps
            )
            if not len(places):
                raise BadFile(episode.name, 'short', f'no {least} frames are kept without a gap')
        known = (
            states.astype(np.float32),
            episode.actions(numbers).astype(np.float32),
            None if extrinsics is None else extrinsics[numbers],
            features,
            places,
        )
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known[record] = known
        return known

    def __getstate__(self) -> dict:
        return super().__getstate__() | {'_known': {}}


def words_of(actions: np.ndarray) -> str:
    """What a piece's actions [T - 1, U] are, for people."""
    return 'actions: ' + '; '.join(' '.join(f'{x:+.3f}' for x in row) for row in actions)


def random_prefix(config: ActionConditionedConfig, step: int) -> int:
    """True frames before a step's rollouts under the prefix policy 'random': one draw for the
    step, the same in every process."""
    most = config.robot.frames - config.rollout.steps
    return int(generator(config.seed, step, PREFIX).integers(1, most, endpoint=True))
