"""Recordings of a robot: one contract, and readers for the layouts that they come in.

The contract, whatever the layout: an episode is a video from one camera and, for each of its
frames, the state that was measured when it was taken,

    x, y, z in metres, roll, pitch, yaw in radians about fixed axes, closedness of the gripper 0..1

in the frame of the robot's base, or of the camera. The action of a frame is the difference to the
state of the next one kept (see jepa_jax.poses). `Contract` holds what is the robot's own; it is
kept in the checkpoint, and weights trained under another are refused.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from jepa_jax.config import RobotConfig
from jepa_jax.data import decode, npz
from jepa_jax.data.augment import Crop, resize
from jepa_jax.data.clips import Timing
from jepa_jax.data.sources import VIDEOS, image_of, prepared_folder, tfds_records
from jepa_jax.errors import BadFile, ConfigError, Unsuitable, nearest

STATE = ('x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper')
INSTALL = "needs {}: pip install 'jepa_jax[robot]'"
WIDEST, NARROWEST = 1.35, 0.75  # width over height of what is cut out
TOLERANCE = 2  # frames by which video and states may differ in length: recorders stop unevenly


@dataclasses.dataclass(frozen=True)
class Contract:
    """What the numbers of a set of recordings mean, beyond what all sets have in common."""

    robot: str
    camera: str  # which one; moving it makes another robot for the model
    rate: float  # frames, states and actions a second, as the model sees them
    frame: str  # of reference: base | camera
    units: str = 'm, rad'
    gripper: str = '1 is closed'
    action: str = 'difference of measured states'

    @classmethod
    def of(cls, data: RobotConfig) -> Contract:
        return cls(data.robot, data.camera, float(data.fps), data.frame)

    def check(self, stored: dict[str, Any]) -> None:
        """Refuses weights that were trained under another contract.

        Raises:
          ConfigError: names every difference.
        """
        own = dataclasses.asdict(self)
        apart = [
            f'{key}: {stored.get(key)!r} in the weights, {own.get(key)!r} here'
            for key in (*own, *(set(stored) - set(own)))
            if stored.get(key) != own.get(key)
        ]
        if apart:
            raise ConfigError(f'the weights are for another robot: {"; ".join(apart)}')


@dataclasses.dataclass(frozen=True)
class Episode:
    """One recording. States are those of all frames, as the contract has them."""

    name: str
    states: np.ndarray  # [n, 7] float64
    video: str = ''  # path; empty: `pixels`
    begins: float = 0.0  # seconds of the video at which the episode begins
    fps: float = 0.0  # of pixels, and of the clock of `begins`; a video knows its own
    # [n, H, W, 3] uint8, or what gives rows of it
    pixels: np.ndarray | _Images | None = dataclasses.field(default=None, repr=False)
    extrinsics: np.ndarray | None = None  # [n, 6] pose of the camera in the frame of the base
    whole: bool = True  # the video holds nothing but this episode

    def read(self, choose: Callable[[Timing], np.ndarray]) -> np.ndarray:
        """Frames [T, H, W, 3] uint8 that `choose` picks from the timing of the episode.

        Raises:
          BadFile: they cannot be read, or states and video do not belong together.
        """
        n = len(self.states)

        def pick(timing: Timing) -> np.ndarray:
            first = 0 if self.whole else self._first(timing)
            count = timing.frames - first
            if abs(count - n) > TOLERANCE if self.whole else count < n:
                raise Unsuitable(
                    'mismatch',
                    f'{n} states for {count} frames of video ({timing.fps:g} a second): must be '
                    f'one for each, so the states are at {n / max(count, 1) * timing.fps:.3g} a '
                    'second',
                )
            usable, fps = min(n, count), timing.fps if self.whole else self.fps
            return first + choose(Timing(usable, fps, usable / fps))

        if self.pixels is None:
            return decode.read_frames(self.video, pick)
        try:
            return self.pixels[
                pick(Timing(len(self.pixels), self.fps, len(self.pixels) / self.fps))
            ]
        except Unsuitable as error:
            raise BadFile(self.name, error.reason, error.detail) from error

    def _first(self, timing: Timing) -> int:
        """The frame of the video with which the episode begins: by when frames are shown, or by
        counting where they follow evenly."""
        if timing.times is not None:
            found = int(np.abs(timing.times - self.begins).argmin())
            shown = timing.times[found : found + len(self.states)]
            wanted = self.begins + np.arange(len(shown)) / self.fps
            if len(apart := np.flatnonzero(np.abs(shown - wanted) > 0.5 / self.fps)):
                i = apart[0]
                raise Unsuitable(
                    'mismatch',
                    f'frame {i} of the episode should be shown at {wanted[i]:.3f} s, the video '
                    f'has it at {shown[i]:.3f}',
                )
            return found
        found = round(self.begins * timing.fps)
        if abs(found - self.begins * self.fps) > 0.5:  # frames are counted, so rates must agree
            raise Unsuitable(
                'mismatch',
                f'the video has {timing.fps:g} frames a second, the recordings {self.fps:g}: which '
                f'frame is shown at {self.begins:g} s, where the episode begins, is not certain',
            )
        return found


class Recordings(Protocol):
    """Episodes of one set, by index from 0."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def episode(self, index: int) -> Episode:
        """Raises BadFile, OSError."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """T frames of an episode and what was done between them."""

    frames: np.ndarray  # [T, H, W, 3] uint8
    states: np.ndarray  # [T, 7] float32
    actions: np.ndarray  # [T - 1, 7] float32
    numbers: np.ndarray  # [T] which frames of the episode
    extrinsics: np.ndarray | None = None  # [T, 6] float32


def view(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames [T, H, W, 3] uint8 as the model sees them, [T, *size, 3]: the middle, at most 1.35
    times as wide as high (and at least 0.75 times), squeezed to `size`.

    What the original's random crop comes down to for wide video: with a scale beyond 1 no draw
    fits, and its fallback is this. (reference: vjepa2 §7.3)
    """
    H, W = frames.shape[1:3]
    height, width = H, W
    if W / H > WIDEST:
        width = round(WIDEST * H)
    elif W / H < NARROWEST:
        height = round(W / NARROWEST)
    crop = Crop((H - height) // 2, (W - width) // 2, height, width)
    if (H, W) == (height, width) == size:
        return frames
    return resize(frames, [crop], np.empty((len(frames), *size, 3), np.uint8))


def actions_between(states: np.ndarray) -> np.ndarray:
    """States [T, 7] -> actions [T - 1, 7], float64. (reference: vjepa2 §7.3)"""
    turns = Rotation.from_euler('xyz', states[:, 3:6])
    angles = (turns[1:] * turns[:-1].inv()).as_euler('xyz')
    moves = np.diff(states[:, [0, 1, 2, 6]], axis=0)
    return np.concatenate([moves[:, :3], angles, moves[:, 3:]], axis=1)


def in_camera_frame(states: np.ndarray, extrinsics: np.ndarray) -> np.ndarray:
    """States [T, 7] as seen from cameras at poses [T, 6]: inv(E) P; the gripper as it is.
    (reference: vjepa2 §7.3)"""
    camera = Rotation.from_euler('xyz', extrinsics[:, 3:]).inv()
    places = camera.apply(states[:, :3] - extrinsics[:, :3])
    angles = (camera * Rotation.from_euler('xyz', states[:, 3:6])).as_euler('xyz')
    return np.concatenate([places, angles, states[:, 6:]], axis=1)


def steps_between(timing: Timing, fps: float) -> int:
    """Frames from one kept to the next: rounded up, so the rate is `fps` or a little less.
    (reference: vjepa2 §7.3)"""
    if timing.fps < fps:
        raise Unsuitable('slow', f'{timing.fps:g} frames a second, {fps:g} are wanted')
    return math.ceil(timing.fps / fps - 1e-6)


def starts(timing: Timing, frames: int, fps: float) -> int:
    """How many places a piece can start at; at least 1.

    The original also asks for a frame beyond the last piece; recordings of just the length are
    taken here. (reference: vjepa2 §7.3)
    """
    step = steps_between(timing, fps)
    places = timing.frames - frames * step + 1
    if places < 1:
        raise Unsuitable(
            'short', f'{timing.frames} frames, a piece takes {frames} x {step} = {frames * step}'
        )
    return places


def cut(episode: Episode, frames: int, fps: float, draw: Callable[[int], int]) -> Piece:
    """A piece of `frames` frames at about `fps` a second; draw(n) -> a number below n.

    Raises:
      BadFile: it cannot be read or is too short.
    """
    chosen = []

    def choose(timing: Timing) -> np.ndarray:
        first = draw(starts(timing, frames, fps))
        chosen.append(first + steps_between(timing, fps) * np.arange(frames))
        return chosen[-1]

    pixels = episode.read(choose)
    states = episode.states[chosen[0]]
    extrinsics = None if episode.extrinsics is None else episode.extrinsics[chosen[0]]
    return Piece(
        pixels,
        states.astype(np.float32),
        actions_between(states).astype(np.float32),
        chosen[0],
        None if extrinsics is None else extrinsics.astype(np.float32),
    )


def _as_contract(
    name: str, states: np.ndarray, data: RobotConfig, extrinsics: np.ndarray | None = None
) -> np.ndarray:
    """States as recorded -> as the contract has them.

    Raises:
      BadFile: of another width, or not finite.
    """
    states = np.asarray(states, np.float64)
    if states.ndim != 2 or states.shape[1] != len(STATE):
        raise BadFile(
            name,
            'bad_state',
            f'states have shape {list(states.shape)}, must have [T, 7]: {", ".join(STATE)}',
        )
    if not np.isfinite(states).all():
        frame, entry = np.argwhere(~np.isfinite(states))[0]
        raise BadFile(
            name, 'bad_state', f'{STATE[entry]} of frame {frame} is {states[frame, entry]}'
        )
    states = states * np.array([data.metres] * 3 + [1.0] * 4)
    if data.gripper == 'open':
        states[:, 6] = 1 - states[:, 6]
    if data.frame == 'camera':
        if extrinsics is None:
            raise BadFile(name, 'bad_state', "frame 'camera' needs extrinsics, and there are none")
        states = in_camera_frame(states, extrinsics[: len(states)])
    return states


class Droid:
    """Folders as DROID was recorded: `trajectory.h5`, a `metadata*.json`, `recordings/MP4/*.mp4`.

    path: a text file with a folder a line (the first word counts), or the folder of them all.
    """

    def __init__(self, data: RobotConfig) -> None:
        path, self._data = Path(data.path), data
        if path.is_dir():
            self._folders = sorted(str(h5.parent) for h5 in path.rglob('trajectory.h5'))
        else:
            lines = _opened(path, data).splitlines()
            self._folders = [str(path.parent / line.split()[0]) for line in lines if line.strip()]
        if not self._folders:
            raise ConfigError(f'robot.path = {data.path!r}: no trajectory.h5 in or below it')

    def __len__(self) -> int:
        return len(self._folders)

    def name(self, index: int) -> str:
        return self._folders[index]

    def episode(self, index: int) -> Episode:
        try:
            import h5py
        except ImportError:
            raise ConfigError(f'DROID recordings: {INSTALL.format("h5py")}') from None
        folder = Path(self._folders[index])
        video, camera = self._camera(folder)
        path = folder / 'trajectory.h5'
        if not path.exists():
            raise BadFile(path, 'missing')
        try:
            with h5py.File(path) as file:
                robot = file['observation/robot_state']
                pose = np.asarray(robot['cartesian_position'], np.float64)
                gripper = np.asarray(robot['gripper_position'], np.float64)
                key = f'observation/camera_extrinsics/{camera}_left'
                extrinsics = np.asarray(file[key], np.float64) if key in file else None
        except (OSError, KeyError) as error:
            raise BadFile(path, 'corrupt', str(error).strip('"')) from error
        if len(pose) != len(gripper):
            raise BadFile(path, 'bad_state', f'{len(pose)} poses, {len(gripper)} of the gripper')
        states = np.concatenate([pose, gripper[:, None]], axis=1)
        states = _as_contract(str(path), states, self._data, extrinsics)
        return Episode(str(folder), states, str(video), extrinsics=extrinsics)

    def _camera(self, folder: Path) -> tuple[Path, str]:
        """The video of the camera, and the camera's number."""
        found = sorted(folder.glob('*.json'))
        if not found:
            raise BadFile(folder, 'missing', 'no metadata*.json, which names the cameras')
        try:
            metadata = json.loads(found[0].read_text())
        except ValueError as error:
            raise BadFile(found[0], 'corrupt', f'no JSON: {error}') from error
        view = self._data.camera
        if view not in metadata:
            cameras = [key for key in metadata if key.endswith('_mp4_path')]
            raise BadFile(
                found[0],
                'no_camera',
                f"robot.camera = '{view}': allowed are {', '.join(cameras) or '(none)'}",
            )
        file = metadata[view].split('recordings/MP4/')[-1]
        return folder / 'recordings/MP4' / file, file.split('.')[0]


class Npz:
    """A folder of NAME.npz with `states` [T, 7] (or [1, T, 7]) and either `observations` uint8
    [T, H, W, 3] and `fps`, or a video NAME.mp4 beside it."""

    def __init__(self, data: RobotConfig) -> None:
        path, self._data = Path(data.path), data
        if not path.is_dir():
            raise ConfigError(f'robot.path = {data.path!r}: no such folder')
        self._files = sorted(str(p) for p in path.rglob('*.npz'))
        if not self._files:
            raise ConfigError(f'robot.path = {data.path!r}: no .npz file in or below it')

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index]

    def episode(self, index: int) -> Episode:
        path = self._files[index]
        try:
            arrays = npz.load_all(path)
        except (ValueError, OSError) as error:
            raise BadFile(path, 'corrupt', f'no npz: {error}') from error
        if 'states' not in arrays:
            held = ', '.join(arrays) or 'nothing'
            raise BadFile(path, 'bad_state', f'no array states; it holds {held}')
        for key in ('states', 'observations', 'extrinsics'):
            if key in arrays and arrays[key].ndim == (5 if key == 'observations' else 3):
                if len(arrays[key]) != 1:
                    raise BadFile(path, 'bad_state', f'{key} holds {len(arrays[key])} episodes')
                arrays[key] = arrays[key][0]
        if 'actions' in arrays and (arrays['actions'].shape or (0,))[-1] != len(STATE):
            # those of the right width are not used: the contract's are differences of states
            raise BadFile(
                path,
                'bad_action',
                f'actions have shape {list(arrays["actions"].shape)}, must have [T - 1, 7], '
                'differences of states',
            )
        extrinsics = arrays.get('extrinsics')
        states = _as_contract(path, arrays['states'], self._data, extrinsics)
        if (pixels := arrays.get('observations')) is not None:
            if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
                found = f'{pixels.dtype} {list(pixels.shape)}'
                raise BadFile(
                    path, 'not_array', f'observations: {found}, must be uint8 [T, H, W, 3]'
                )
            if 'fps' not in arrays:
                raise BadFile(path, 'bad_state', 'observations need fps, frames a second, beside')
            fps = float(arrays['fps'])
            return Episode(path, states, fps=fps, pixels=pixels, extrinsics=extrinsics)
        stem = os.path.splitext(path)[0]
        video = next((stem + end for end in sorted(VIDEOS) if os.path.exists(stem + end)), None)
        if video is None:
            raise BadFile(path, 'no_camera', f'neither observations nor a video {stem}.mp4')
        return Episode(path, states, video, extrinsics=extrinsics)


class LeRobot:
    """A LeRobot data set, version 2 (a file an episode) or 3 (many in a file).

    The seven numbers of the state are columns of `observation.state`, by the names in
    `robot.columns`, or by our own names if it is empty.
    """

    def __init__(self, data: RobotConfig) -> None:
        self._folder, self._data = Path(data.path), data
        path = self._folder / 'meta/info.json'
        self._info = json.loads(_opened(path, data))
        version = str(self._info.get('codebase_version', ''))
        if version[:2] not in ('v2', 'v3'):
            raise ConfigError(f"{path}: codebase_version '{version}': allowed are v2 and v3")
        features = self._info['features']
        videos = [key for key, row in features.items() if row['dtype'] == 'video']
        if data.camera not in videos:
            raise ConfigError(
                f"robot.camera = '{data.camera}': allowed are {', '.join(videos) or '(none)'}"
                f'{nearest(data.camera, videos)}'
            )
        self._columns = self._find_columns(features['observation.state'])
        read = self._version_2 if version[:2] == 'v2' else self._version_3
        self._rows = read()  # (data file, first row or None, length, video, first second)

    def _find_columns(self, feature: dict[str, Any]) -> list[int]:
        names = feature.get('names')
        if isinstance(names, dict):  # {'axes': [...]} or {'motors': [...]}
            names = next(iter(names.values()))
        names = list(names or [])
        wanted = [w.strip() for w in self._data.columns.split(',')] if self._data.columns else STATE
        if len(wanted) != len(STATE) or (missing := [w for w in wanted if w not in names]):
            why = (
                f'no {", ".join(missing)}' if len(wanted) == len(STATE) else f'{len(wanted)} names'
            )
            raise ConfigError(
                f"robot.columns = '{self._data.columns}': {why}; must name the 7 columns of "
                f'observation.state that are {", ".join(STATE)}, among {", ".join(names)}'
            )
        return [names.index(w) for w in wanted]

    def _path(self, template: str, **values: Any) -> Path:
        return self._folder / template.format(video_key=self._data.camera, **values)

    def _version_2(self) -> list[tuple]:
        path = self._folder / 'meta/episodes.jsonl'
        rows, size = [], self._info['chunks_size']
        for line in _opened(path, self._data).splitlines():
            entry = json.loads(line)
            number = entry['episode_index']
            place = dict(episode_index=number, episode_chunk=number // size)
            rows.append((
                str(self._path(self._info['data_path'], **place)), None, entry['length'],
                str(self._path(self._info['video_path'], **place)), 0.0, True,
            ))  # fmt: skip
        return rows

    def _version_3(self) -> list[tuple]:
        rows, camera = [], f'videos/{self._data.camera}'
        for path in sorted(self._folder.glob('meta/episodes/*/*.parquet')):
            columns = [
                'episode_index', 'length', 'data/chunk_index',
                'data/file_index', f'{camera}/chunk_index', f'{camera}/file_index',
                f'{camera}/from_timestamp',
            ]  # fmt: skip
            for entry in _parquet(path, columns).to_pylist():
                at = {
                    k: {f'{of}_index': entry[f'{k}/{of}_index'] for of in ('chunk', 'file')}
                    for k in ('data', camera)
                }
                rows.append((
                    str(self._path(self._info['data_path'], **at['data'])),
                    entry['episode_index'], entry['length'],
                    str(self._path(self._info['video_path'], **at[camera])),
                    entry[f'{camera}/from_timestamp'], False,
                ))  # fmt: skip
        return rows

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return f'{self._folder}#{index}'

    def episode(self, index: int) -> Episode:
        path, number, length, video, second, whole = self._rows[index]
        if not os.path.exists(path):
            raise BadFile(path, 'missing')
        table = _parquet(Path(path), ['observation.state', 'episode_index'])
        states = np.asarray(table['observation.state'].to_pylist(), np.float64)
        if number is not None:
            states = states[np.asarray(table['episode_index']) == number]
        if len(states) != length:
            raise BadFile(path, 'bad_state', f'{len(states)} states, meta/ says {length}')
        states = _as_contract(self.name(index), states[:, self._columns], self._data)
        fps = float(self._info['fps'])
        return Episode(self.name(index), states, video, begins=second, fps=fps, whole=whole)


@dataclasses.dataclass(frozen=True)
class _Images:
    """Frames of an episode as image files, decoded when they are asked for."""

    name: str
    files: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        return np.stack([image_of(self.name, self.files[i]) for i in numbers])


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
            self._folder = prepared_folder(os.path.expanduser(folder))
        except ConfigError as error:
            raise ConfigError(f'robot.path: {error}') from error
        if data.recorded_fps <= 0:
            raise ConfigError(
                f'robot.recorded_fps = {data.recorded_fps:g}: RLDS recordings do not say how many '
                'frames a second they have; DROID has 15'
            )
        self._columns = (data.columns or self.STATE).split(',')
        self._length = len(self._records)
        if not self._length:
            raise ConfigError(f'robot.path = {data.path!r}: no episode')
        self._observation(0)  # names that are not there are the same in all

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != '_records'}

    @functools.cached_property
    def _records(self):
        return tfds_records(self._folder, self._split, 'steps')

    def _observation(self, index: int) -> dict[str, Any]:
        """The observations of an episode, a row a step.

        Raises:
          ConfigError: they have not what the settings name.
        """
        record = self._records[index]
        found = record['steps'].get('observation', {}) if 'steps' in record else {}
        for field, names in (('camera', [self._data.camera]), ('columns', self._columns)):
            for name in names:
                if name not in found:
                    raise ConfigError(
                        f"robot.{field} = '{name}': allowed are {', '.join(found) or '(none)'}"
                        f'{nearest(name, found)}'
                    )
        return found

    def name(self, index: int) -> str:
        return f'{self._folder}:{self._split}#{index}'

    def episode(self, index: int) -> Episode:
        found, name = self._observation(index), self.name(index)
        files = found[self._data.camera]
        if not len(files):
            raise BadFile(name, 'no_frames')
        parts = [np.asarray(found[key], np.float64) for key in self._columns]
        states = np.concatenate([a.reshape(len(files), -1) for a in parts], axis=1)
        states = _as_contract(name, states, self._data)
        return Episode(name, states, fps=self._data.recorded_fps, pixels=_Images(name, files))


def _parquet(path: Path, columns: list[str]):
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f'LeRobot data: {INSTALL.format("pyarrow")}') from None
    try:
        return pyarrow.parquet.read_table(path, columns=columns)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise BadFile(path, 'corrupt', ' '.join(str(error).split())[:200]) from error


def _opened(path: Path, data: RobotConfig) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'no text'
        raise ConfigError(f'robot.path = {data.path!r}: {path}: {reason}') from error


class SelfMade:
    """Recordings drawn on the spot, for tests of the pipes: a disc that a state moves.

    x and y are its place, z its size, closedness its shade; the angles hardly change. A pure
    function of the index.
    """

    COUNT, FRAMES, FPS, SIZE = 24, 24, 4.0, 64

    def __init__(self, data: RobotConfig) -> None:
        self._data = data

    def __len__(self) -> int:
        return self.COUNT

    def name(self, index: int) -> str:
        return f'self-made recording {index}'

    def episode(self, index: int) -> Episode:
        rng = np.random.default_rng([1, index])
        moves = rng.normal(0, [0.05, 0.05, 0.02, 0.02, 0.02, 0.02, 0.1], (self.FRAMES, 7))
        states = np.cumsum(moves, axis=0) + [0, 0, 0.3, np.pi, 0, 0, 0.5]
        # folded back, so that the disc stays in the picture
        for axis, low, high in ((0, -0.4, 0.4), (1, -0.4, 0.4), (2, 0.1, 0.5), (6, 0, 1)):
            period = (states[:, axis] - low) % (2 * (high - low))
            states[:, axis] = low + np.minimum(period, 2 * (high - low) - period)
        y, x = (np.mgrid[: self.SIZE, : self.SIZE][:, None] + 0.5) / self.SIZE - 0.5
        apart = np.hypot(y - states[:, 0, None, None], x - states[:, 1, None, None])
        inside = np.clip((0.35 * states[:, 2, None, None] - apart) * self.SIZE + 0.5, 0, 1)
        ground = rng.uniform(0.2, 0.4, (1, 1, 1, 3))
        shade = np.stack([1 - states[:, 6], states[:, 6], np.full(len(states), 0.5)], -1)
        frames = ground + inside[..., None] * (shade[:, None, None] - ground)
        return Episode(
            self.name(index),
            _as_contract(self.name(index), states, self._data),
            fps=self.FPS,
            pixels=np.round(255 * frames).astype(np.uint8),
        )


READERS: dict[str, Callable[[RobotConfig], Recordings]] = {
    'droid': Droid,
    'lerobot': LeRobot,
    'npz': Npz,
    'rlds': Rlds,
    'synthetic': SelfMade,
}


def open_recordings(data: RobotConfig) -> Recordings:
    """The episodes that a config names.

    Raises:
      ConfigError: no such kind or path, a camera or column that is not there.
    """
    if data.kind not in READERS:
        raise ConfigError(
            f"robot.kind = '{data.kind}': allowed are {', '.join(READERS)}"
            f'{nearest(data.kind, READERS)}'
        )
    return READERS[data.kind](data)
