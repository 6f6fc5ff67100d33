"""What the numbers of a recording mean."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from jepa_jax.config import RobotConfig
from jepa_jax.errors import BadFile, ConfigError

STATE = ('x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper')
# what no recording in metres, radians and closedness has
REACH = 3.0  # metres from the base
TURN = 2 * np.pi + 0.1  # radians, of an angle that is written from -pi to pi or from 0 to 2 pi
SLACK = 0.05  # closedness beyond 0 and 1
WIDE = 0.15  # metres that a gripper opens
COMMANDED = 'from the measured state to the commanded pose'
MOVES = 0.02  # of the gripper's numbers: below, it stays where it is


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
        contract = cls(data.robot, data.camera, float(data.fps), data.frame)
        return dataclasses.replace(contract, action=COMMANDED) if data.action else contract

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
class Measured:
    """What some recordings of a set hold, as the contract has it; kept in checkpoints."""

    episodes: int  # that were looked at
    low: tuple[float, ...]  # [7], of all states
    high: tuple[float, ...]
    begins: float  # closedness of the gripper at the first frame, the mean
    rates: tuple[float, ...]  # frames a second as recorded, ascending; empty: not known
    recorded: str  # which units were brought to the contract's, and how
    notes: dict[str, int]  # what is odd about recordings -> how many are

    @classmethod
    def of(cls, episodes: Sequence[Any], data: RobotConfig) -> Measured:
        """Of at least one Episode."""
        states = [episode.states for episode in episodes]
        joined = np.concatenate(states)
        rates = {e.clock.fps if e.clock else e.fps for e in episodes}
        low, high = (tuple(map(float, f(joined, axis=0))) for f in (np.min, np.max))
        return cls(
            len(states), low, high, float(np.mean([s[0, 6] for s in states])),
            tuple(sorted(float(rate) for rate in rates if rate)), units_of(data),
            dict(collections.Counter(note for e in episodes for note in e.notes)),
        )  # fmt: skip

    @classmethod
    def stored(cls, values: dict[str, Any]) -> Measured:
        """From what a checkpoint has of it."""
        tuples = {key: tuple(map(float, values[key])) for key in ('low', 'high', 'rates')}
        return cls(**{**values, **tuples})

    def lines(self) -> list[str]:
        ranges = ', '.join(
            f'{name} {a:.3g} to {b:.3g}' for name, a, b in zip(STATE, self.low, self.high)
        )
        rates = ' or '.join(f'{rate:g}' for rate in self.rates)
        return [
            f'measured on {self.episodes} recordings: {ranges}; the gripper begins at '
            f'{self.begins:.2f}' + (f'; {rates} frames a second' if rates else ''),
            f'as recorded: {self.recorded}',
            *(
                f'{count} of {self.episodes} recordings: {note}'
                for note, count in self.notes.items()
            ),
        ]

    def beyond(self, states: np.ndarray, slack: float = 0.25) -> list[str]:
        """Where states [T, 7] are farther out than any that was measured, by metres or closedness
        more than `slack`, in words."""
        return [
            f'{STATE[i]} {states[:, i].min():.3g} to {states[:, i].max():.3g}, the model was '
            f'trained on {self.low[i]:.3g} to {self.high[i]:.3g}'
            for i in (0, 1, 2, 6)
            if states[:, i].min() < self.low[i] - slack or states[:, i].max() > self.high[i] + slack
        ]


def units_of(data: RobotConfig) -> str:
    """The units of the recordings, as the settings have them."""
    if any(data.gripper_range):
        gripper = '{:g} open, {:g} closed'.format(*data.gripper_range)
    else:
        gripper = f'1 is {data.gripper}'
    return f'positions in {data.metres:g} m, angles in {data.angles}, gripper {gripper}'


def as_option(name: str, value: str | tuple[float, ...]) -> str:
    """A setting as a config has it."""
    text = value if isinstance(value, str) else f'({", ".join(f"{v:.4g}" for v in value)})'
    return f'robot.{name} = {text}'


def as_flag(name: str, value: str | tuple[float, ...]) -> str:
    """A setting as a flag of a command."""
    text = value if isinstance(value, str) else ','.join(f'{v:.4g}' for v in value)
    return f'--{name.replace("_", "-")}={text}'


def rescaled(name: str, states: np.ndarray, data: RobotConfig) -> np.ndarray:
    """States as recorded, [T, 7], -> in metres, radians and closedness.

    Raises:
      BadFile: of another width, no numbers, or not finite.
    """
    states = np.asarray(states)
    if states.ndim != 2 or states.shape[1] != len(STATE) or not len(states):
        raise BadFile(
            name,
            'bad_state',
            f'states have shape {list(states.shape)}, must have [T, 7]: {", ".join(STATE)}',
        )
    if states.dtype.kind not in 'fiu':
        raise BadFile(name, 'bad_state', f'states are of type {states.dtype}, must be numbers')
    states = states.astype(np.float64)
    if not np.isfinite(states).all():
        frame, entry = np.argwhere(~np.isfinite(states))[0]
        raise BadFile(
            name, 'bad_state', f'{STATE[entry]} of frame {frame} is {states[frame, entry]}'
        )
    turn = np.pi / 180 if data.angles == 'degrees' else 1.0
    states = states * np.array([data.metres] * 3 + [turn] * 3 + [1.0])
    if any(data.gripper_range):
        opened, closed = data.gripper_range
        states[:, 6] = (states[:, 6] - opened) / (closed - opened)
    elif data.gripper == 'open':
        states[:, 6] = 1 - states[:, 6]
    return states


def as_recorded(states: np.ndarray, data: RobotConfig) -> np.ndarray:
    """States [T, 7] in metres, radians and closedness -> in the units of the recordings: undoes
    `rescaled`."""
    turn = np.pi / 180 if data.angles == 'degrees' else 1.0
    states = np.asarray(states, np.float64) / np.array([data.metres] * 3 + [turn] * 3 + [1.0])
    if any(data.gripper_range):
        opened, closed = data.gripper_range
        states[:, 6] = opened + states[:, 6] * (closed - opened)
    elif data.gripper == 'open':
        states[:, 6] = 1 - states[:, 6]
    return states


def unit_problems(
    states: np.ndarray, data: RobotConfig, option: Callable[..., str] = as_option
) -> list[str]:
    """What of states [T, 7] cannot be metres, radians and closedness, what it may be, and which
    option brings it there; of one recording, without judging what a whole set must show.

    option: how settings are written: (name, value) -> text.
    """
    far, angle = np.abs(states[:, :3]).max(), np.abs(states[:, 3:6]).max()
    low, high = states[:, 6].min(), states[:, 6].max()
    lines = []
    if far > REACH:
        word, factor = ('millimetres', 1000) if far > 100 else ('centimetres', 100)
        lines.append(
            f'positions up to {far:.4g} m, more than {REACH:g}: {word}? '
            + option('metres', f'{data.metres / factor:g}')
        )
    if angle > TURN:
        lines.append(
            f'angles up to {angle:.4g} rad: degrees, not radians? ' + option('angles', 'degrees')
        )
    if low < -SLACK or high > 1 + SLACK:
        lines.append(
            f'gripper from {low:.4g} to {high:.4g}: closedness of the gripper must be from 0 '
            f'(open) to 1 (closed); {_range(states, data, option)}'
        )
    return lines


def opening_problem(
    grippers: Sequence[np.ndarray], data: RobotConfig, option: Callable[..., str] = as_option
) -> str:
    """Why the gripper's numbers of several recordings are no closedness, although they lie within 0
    and 1; empty: they may be. A gripper that never moves is none to judge."""
    if any(data.gripper_range):
        return ''
    if data.gripper == 'open':
        grippers = [1 - gripper for gripper in grippers]  # as recorded
    low, high = (float(f([f(gripper) for gripper in grippers])) for f in (np.min, np.max))
    if high > WIDE or high - low < MOVES:
        return ''
    shut = low if low > 0.1 * high else 0.0
    opens_first = np.mean([gripper[0] for gripper in grippers]) > (low + high) / 2
    pair = (high, shut) if opens_first or data.gripper == 'open' else (shut, high)
    return (
        f'the gripper moves from {low:.3g} to {high:.3g} and never beyond: an opening in metres? '
        f'{option("gripper_range", pair)} (open, closed); if it is closedness all the same, '
        f'{option("gripper_range", (0.0, 1.0))}'
    )


def _range(states: np.ndarray, data: RobotConfig, option: Callable[..., str]) -> str:
    """The option that would bring the gripper to 0..1."""
    if any(data.gripper_range):
        return f'{option("gripper_range", data.gripper_range)} (open, closed) does not fit'
    values = 1 - states[:, 6] if data.gripper == 'open' else states[:, 6]  # as recorded
    low, high = float(values.min()), float(values.max())
    for a, b in ((-1.0, 1.0), (0.0, 255.0), (0.0, 100.0), (0.0, 1000.0)):
        slack = SLACK * (b - a)
        if a - slack <= low and (a + b) / 2 < high <= b + slack:
            low, high = a, b
            break
    if low == high:
        return f'set {option("gripper_range", "(OPEN, CLOSED)")}, its values at both ends'
    opens_high = data.gripper == 'open' or values[0] > (low + high) / 2
    return f'{option("gripper_range", (high, low) if opens_high else (low, high))} (open, closed)?'


def as_contract(
    name: str, states: np.ndarray, data: RobotConfig, extrinsics: np.ndarray | None = None
) -> np.ndarray:
    """States as recorded -> as the contract has them.

    Raises:
      BadFile: of another width, not finite, or in units that cannot be those of the settings.
    """
    states = rescaled(name, states, data)
    if data.check_units and (problems := unit_problems(states, data)):
        raise BadFile(name, 'bad_units', '; '.join(problems))
    if data.frame == 'camera':
        if extrinsics is None:
            raise BadFile(name, 'bad_state', "frame 'camera' needs extrinsics, and there are none")
        states = in_camera_frame(states, extrinsics[: len(states)])
    return states


def fit_extrinsics(
    extrinsics: np.ndarray | None, frames: int, notes: list[str]
) -> np.ndarray | None:
    """Poses of the camera [T, 6] float64; None where they are none that fit T frames, which notes
    then say."""
    if extrinsics is None:
        return None
    extrinsics = np.asarray(extrinsics)
    fits = extrinsics.ndim == 2 and extrinsics.shape[1] == 6 and len(extrinsics) >= frames
    if fits and extrinsics.dtype.kind in 'fiu' and np.isfinite(extrinsics).all():
        return extrinsics.astype(np.float64)
    kind = f'{extrinsics.dtype} {list(extrinsics.shape)}'
    notes.append(f'extrinsics are not used: {kind}, must be finite numbers [{frames}, 6]')
    return None


def in_camera_frame(states: np.ndarray, extrinsics: np.ndarray) -> np.ndarray:
    """States [T, 7] as seen from cameras at poses [T, 6]: inv(E) P; the gripper as it is.
    (reference: vjepa2 §7.3)"""
    camera = Rotation.from_euler('xyz', extrinsics[:, 3:]).inv()
    places = camera.apply(states[:, :3] - extrinsics[:, :3])
    angles = (camera * Rotation.from_euler('xyz', states[:, 3:6])).as_euler('xyz')
    return np.concatenate([places, angles, states[:, 6:]], axis=1)
