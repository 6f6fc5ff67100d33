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
import os

from jepa_jax import lookup
from jepa_jax.config import RobotConfig
from jepa_jax.config.layouts import READERS as READERS
from jepa_jax.data.robot.contract import SLACK as SLACK
from jepa_jax.data.robot.contract import STATE as STATE
from jepa_jax.data.robot.contract import Contract as Contract
from jepa_jax.data.robot.contract import Measured as Measured
from jepa_jax.data.robot.contract import opening_problem as opening_problem
from jepa_jax.data.robot.contract import unit_problems as unit_problems
from jepa_jax.data.robot.contract import units_of as units_of
from jepa_jax.data.robot.episodes import NARROWEST as NARROWEST
from jepa_jax.data.robot.episodes import WIDEST as WIDEST
from jepa_jax.data.robot.episodes import Episode as Episode
from jepa_jax.data.robot.episodes import Piece as Piece
from jepa_jax.data.robot.episodes import Recordings as Recordings
from jepa_jax.data.robot.episodes import actions_between as actions_between
from jepa_jax.data.robot.episodes import cut as cut
from jepa_jax.data.robot.episodes import kept as kept
from jepa_jax.data.robot.episodes import steps_between as steps_between
from jepa_jax.data.robot.episodes import unbroken as unbroken
from jepa_jax.data.robot.episodes import view as view
from jepa_jax.data.robot.survey import check_units as check_units
from jepa_jax.data.robot.survey import spread as spread
from jepa_jax.errors import ConfigError


def open_recordings(data: RobotConfig) -> Recordings:
    """The episodes that a config names.

    Raises:
      ConfigError: no such kind or path, a camera or column that is not there.
    """
    if data.action and data.kind != 'lerobot':
        raise ConfigError(f"robot.action = '{data.action}': only recordings of LeRobot name one")
    data = dataclasses.replace(data, path=os.path.expanduser(data.path))
    return lookup.load(lookup.row(READERS, 'robot.kind', data.kind))(data)
