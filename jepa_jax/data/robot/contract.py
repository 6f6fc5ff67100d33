"""What the numbers of a recording mean."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from jepa_jax.config import RobotConfig
from jepa_jax.errors import BadFile, ConfigError

STATE = ('x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper')


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


def as_contract(
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


def in_camera_frame(states: np.ndarray, extrinsics: np.ndarray) -> np.ndarray:
    """States [T, 7] as seen from cameras at poses [T, 6]: inv(E) P; the gripper as it is.
    (reference: vjepa2 §7.3)"""
    camera = Rotation.from_euler('xyz', extrinsics[:, 3:]).inv()
    places = camera.apply(states[:, :3] - extrinsics[:, :3])
    angles = (camera * Rotation.from_euler('xyz', states[:, 3:6])).as_euler('xyz')
    return np.concatenate([places, angles, states[:, 6:]], axis=1)
