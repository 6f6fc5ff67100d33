"""Recordings as DROID has them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np

from jepa_jax.config import RobotConfig
from jepa_jax.data.robot.contract import as_contract
from jepa_jax.data.robot.episodes import INSTALL, Episode, state_of, text_of
from jepa_jax.errors import BadFile, ConfigError


class Droid:
    """Folders as DROID was recorded: `trajectory.h5`, a `metadata*.json`, `recordings/MP4/*.mp4`.

    path: a text file with a folder a line (the first word counts), or the folder of them all.
    """

    def __init__(self, data: RobotConfig) -> None:
        path, self._data = Path(data.path), data
        if path.is_dir():
            self._folders = sorted(str(h5.parent) for h5 in path.rglob('trajectory.h5'))
        else:
            lines = text_of(path, data).splitlines()
            self._folders = [str(path.parent / line.split()[0]) for line in lines if line.strip()]
        if not self._folders:
            raise ConfigError(f'robot.path = {data.path!r}: no trajectory.h5 in or below it')

    def __len__(self) -> int:
        return len(self._folders)

    def name(self, index: int) -> str:
        return self._folders[index]

    def state(self, index: int) -> str:
        folder = Path(self._folders[index])
        files = [folder / 'trajectory.h5', *_metadata(folder)]
        with contextlib.suppress(BadFile):
            files.append(self._camera(folder)[0])
        return state_of(*files)

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
        states = as_contract(str(path), states, self._data, extrinsics)
        return Episode(str(folder), states, str(video), extrinsics=extrinsics)

    def _camera(self, folder: Path) -> tuple[Path, str]:
        """The video of the camera, and the camera's number."""
        if not (paths := _metadata(folder)):
            raise BadFile(folder, 'missing', 'no metadata*.json, which names the cameras')
        try:
            metadata = json.loads(paths[0].read_text())
        except ValueError as error:
            raise BadFile(paths[0], 'corrupt', f'no JSON: {error}') from error
        view = self._data.camera
        if view not in metadata:
            cameras = [key for key in metadata if key.endswith('_mp4_path')]
            raise BadFile(
                paths[0],
                'no_camera',
                f"robot.camera = '{view}': allowed are {', '.join(cameras) or '(none)'}",
            )
        file = metadata[view].split('recordings/MP4/')[-1]
        return folder / 'recordings/MP4' / file, file.split('.')[0]


def _metadata(folder: Path) -> list[Path]:
    """The file that names the cameras, if it is there."""
    return sorted(folder.glob('*.json'))[:1]
