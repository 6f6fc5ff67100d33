"""What the numbers of some recordings are, before anything is trained on all of them."""

from __future__ import annotations

import numpy as np

from jepa_jax.config import RobotConfig
from jepa_jax.data.robot.contract import opening_problem
from jepa_jax.data.robot.episodes import Recordings
from jepa_jax.errors import BadFile

EPISODES = 16  # that are looked at


def spread(count: int, most: int = EPISODES) -> list[int]:
    """Up to `most` of `count` numbers from 0, evenly spread."""
    places = np.linspace(0, count - 1, min(most, count))
    return [int(i) for i in np.unique(places.round())]


def check_units(recordings: Recordings, data: RobotConfig) -> None:
    """Refuses a set whose recordings are all in other units than the settings say: no training need
    begin to find that out.

    Raises:
      BadFile: what was measured, and the option that mends it.
    """
    grippers, refused = [], []
    for i in spread(len(recordings)):
        try:
            grippers.append(recordings.episode(i).states[:, 6])
        except (BadFile, OSError) as error:  # of one: the run replaces it, counts and names it
            if getattr(error, 'reason', '') == 'bad_units':
                refused.append(error)
    if refused and not grippers:
        words = f'{refused[0].detail} (all of {len(refused)} recordings looked at)'
        raise BadFile(refused[0].path, 'bad_units', words)
    if data.check_units and grippers and (problem := opening_problem(grippers, data)):
        raise BadFile(data.path or recordings.name(0), 'bad_units', problem)
