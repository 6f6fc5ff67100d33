"""Recordings of a robot: one contract, and readers for the layouts that they come in.

The contract, whatever the layout: an episode is a video from one camera and, for each of its
frames, the state that was measured when it was taken,

    x, y, z in metres, roll, pitch, yaw in radians about fixed axes, closedness of the gripper 0..1

in the frame of the robot's base, or of the camera. The action of a frame is the difference to the
state of the next one kept (see jepa_jax.poses). `Contract` holds what is the robot's own; it is
kept in the checkpoint, and weights trained under another are refused.
"""

from __future__ import annotations

from collections.abc import Callable

from jepa_jax.config import RobotConfig
from jepa_jax.data.robot.contract import STATE as STATE
from jepa_jax.data.robot.contract import Contract as Contract
from jepa_jax.data.robot.droid import Droid
from jepa_jax.data.robot.episodes import NARROWEST as NARROWEST
from jepa_jax.data.robot.episodes import WIDEST as WIDEST
from jepa_jax.data.robot.episodes import Episode as Episode
from jepa_jax.data.robot.episodes import Piece as Piece
from jepa_jax.data.robot.episodes import Recordings as Recordings
from jepa_jax.data.robot.episodes import actions_between as actions_between
from jepa_jax.data.robot.episodes import cut as cut
from jepa_jax.data.robot.episodes import steps_between as steps_between
from jepa_jax.data.robot.episodes import view as view
from jepa_jax.data.robot.lerobot import LeRobot
from jepa_jax.data.robot.npz_recordings import Npz
from jepa_jax.data.robot.rlds import Rlds
from jepa_jax.data.robot.self_made import SelfMade
from jepa_jax.errors import ConfigError, nearest

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
