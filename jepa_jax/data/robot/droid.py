"""Recordings as DROID has them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jepa_jax import files
from jepa_jax.config import RobotConfig
from jepa_jax.data.robot import hdf5, metadata
from jepa_jax.data.robot.clock import Clock
from jepa_jax.data.robot.contract import as_contract, fit_extrinsics
from jepa_jax.data.robot.episodes import Episode, state_of
from jepa_jax.data.robot.survey import spread
from jepa_jax.errors import BadFile, ConfigError

MOVIES = 'recordings/MP4/'
# what DROID writes down of the time, in milliseconds, best first: of pictures, then of rows
PICTURES = ('frame_received', 'estimated_capture', 'read_end', 'read_start')
ROWS = ('control/step_start', 'robot_state/read_start', 'robot_state/read_end', 'control/step_end')


class Droid:
    """Folders as DROID was recorded: `trajectory.h5`, a `metadata*.json`, `recordings/MP4/*.mp4`.

    path: a text file with a folder a line (the first word counts), or the folder of them all.
    """

    def __init__(self, data: RobotConfig) -> None:
        path, self._data = Path(data.path), data
        if path.is_dir():
            self._folders = sorted(str(h5.parent) for h5 in path.rglob('trajectory.h5'))
        else:
            try:
                lines = metadata.read_text(path, 'surrogateescape').splitlines()
            except BadFile as error:
                words = 'No such file or directory' if error.reason == 'missing' else str(error)
                raise ConfigError(f'robot.path = {data.path!r}: {words}') from error
            self._folders = [str(path.parent / line.split()[0]) for line in lines if line.strip()]
        if not self._folders:
            raise ConfigError(f'robot.path = {data.path!r}: no trajectory.h5 in or below it')
        self._look_for_camera()

    def __len__(self) -> int:
        return len(self._folders)

    def name(self, index: int) -> str:
        return self._folders[index]

    def state(self, index: int) -> str:
        folder = Path(self._folders[index])
        listed = [folder / 'trajectory.h5']
        with contextlib.suppress(BadFile):
            listed += _metadata(folder)
            video, _ = self._camera(folder)
            listed += [video, *filter(_is_there, [_stamps(video)])]
        return state_of(*listed, also=('clock',))

    def episode(self, index: int) -> Episode:
        folder, notes = Path(self._folders[index]), []
        video, camera = self._camera(folder)
        path = folder / 'trajectory.h5'
        with hdf5.opened(path) as file:
            pose, gripper = (
                _needed(path, file, f'observation/robot_state/{key}')
                for key in ('cartesian_position', 'gripper_position')
            )
            extrinsics = file.read(f'observation/camera_extrinsics/{camera}_left')
            clock = _clock(file, camera, len(pose), _taken(video), notes)
        if len(pose) != len(gripper):
            raise BadFile(path, 'bad_state', f'{len(pose)} poses, {len(gripper)} of the gripper')
        if pose.ndim != 2 or gripper[:1].size != 1:
            shapes = f'{list(pose.shape)} and {list(gripper.shape)}'
            raise BadFile(path, 'bad_state', f'{shapes} for poses and gripper, must be [T, 6], [T]')
        states = np.concatenate([pose, gripper.reshape(-1, 1)], axis=1)
        extrinsics = fit_extrinsics(extrinsics, len(states), notes)
        states = as_contract(str(path), states, self._data, extrinsics)
        return Episode(
            str(folder), states, str(video), extrinsics=extrinsics, clock=clock, notes=notes
        )

    def _look_for_camera(self) -> None:
        """Raises ConfigError: recordings have cameras, and none of those looked at has this one."""
        refused = None
        for i in spread(len(self)):
            try:
                self._camera(Path(self._folders[i]))
                return
            except (BadFile, OSError) as error:  # of one: the run replaces it, counts and names it
                if getattr(error, 'reason', '') == 'no_camera':
                    refused = refused or error
        if refused:
            raise ConfigError(f'{refused.detail} ({refused.path})')

    def _camera(self, folder: Path) -> tuple[Path, str]:
        """The video of the camera, and the camera's number."""
        if not (paths := _metadata(folder)):
            raise BadFile(folder, 'missing', 'no metadata*.json, which names the cameras')
        values, view = metadata.read_json(paths[0]), self._data.camera
        if view not in values:
            cameras = [key for key in values if key.endswith('_mp4_path')]
            raise BadFile(paths[0], 'no_camera', metadata.no_camera(view, cameras))
        # what stands before is of the machine that recorded
        file = metadata.field(paths[0], values, view, str).split(MOVIES)[-1]
        return metadata.inside(paths[0], folder / MOVIES, file), file.split('.')[0]


def _metadata(folder: Path) -> list[Path]:
    """The file that names the cameras, if it is there."""
    with files.reading(folder):
        return sorted(folder.glob('metadata*.json'))[:1]


def _needed(path: Path, file: hdf5.Arrays, name: str) -> np.ndarray:
    array = file.read(name)
    if array is None:
        place = name.rpartition('/')[0]
        has = ', '.join(file.names(place)[:12]) or '(nothing)'
        raise BadFile(path, 'corrupt', f'no {name}; {place} has {has}')
    return array


def _clock(
    file: hdf5.Arrays, camera: str, count: int, taken: np.ndarray | None, notes: list[str]
) -> Clock | None:
    """When the rows of a recording were made; what is odd about it goes to notes.

    taken: when the pictures of the video were, milliseconds, if a file beside it says so.
    """
    sides = [f'cameras/{camera}{side}_{key}' for key in PICTURES for side in ('', '_left')]
    pictures = rows = _first(file, sides)
    if pictures is None or len(pictures) != count:
        rows = _first(file, ROWS, count)
    clock = None
    if rows is not None:
        of = taken if taken is not None else pictures
        if of is not None and of is not rows:
            clock = Clock.of_pictures(of, rows)
        clock = clock or Clock.of(rows)
    if clock is not None:
        notes += clock.words()
    elif rows is not None or pictures is not None:
        notes.append("timestamps that are no milliseconds of its rows: the rate is the video's")
    else:
        notes.append("no timestamps: the rate is the video's")
    return clock


def _first(file: hdf5.Arrays, names: Sequence[str], count: int = 0) -> np.ndarray | None:
    """The first of some timestamps that is there, [n]; count: what n must be."""
    for name in names:
        stamps = file.read(f'observation/timestamp/{name}')
        if stamps is not None and stamps.ndim == 1 and len(stamps) == (count or len(stamps)):
            return stamps
    return None


def _stamps(video: Path) -> Path:
    """Where DROID's own reader looks for the times of a video's pictures."""
    return video.with_name(f'{video.stem}_timestamps.json')


def _is_there(path: Path) -> bool:
    with files.reading(path):
        return path.exists()


def _taken(video: Path) -> np.ndarray | None:
    """When the pictures of a video were taken, milliseconds [m]; None where nothing says."""
    path = _stamps(video)
    if not _is_there(path):
        return None
    values = metadata.read_json(path, list)
    with files.reading(path, 'not_text'):
        stamps = np.array(values, np.float64)
    return stamps if stamps.ndim == 1 and len(stamps) else None
