"""Measures of a robot's recordings, and what may be wrong with them: for tools.check_robot_data."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from jepa_jax.config import RobotConfig
from jepa_jax.data import robot, scene
from jepa_jax.data.clips import Timing
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.page import save_figure
from jepa_jax.recipes import read_config

STILL = (0.002, 0.01, 0.02)  # metres, radians, closedness below which a frame counts as still
APART = 1.5  # times by which a measure may differ from that in training
FEW = 0.02  # share of the picture that moves, below which an object is but a token or two


@dataclasses.dataclass
class Findings:
    """What was measured over the episodes that could be read."""

    states: list[np.ndarray] = dataclasses.field(default_factory=list)  # at the model's rate
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    rates: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    motions: list[scene.Motion] = dataclasses.field(default_factory=list)
    short: int = 0  # episodes with fewer frames than a piece takes
    bad: list[str] = dataclasses.field(default_factory=list)
    units: list[str] = dataclasses.field(default_factory=list)  # episodes that training refuses
    notes: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def measure(recordings: robot.Recordings, data: RobotConfig, crop: int, most: int) -> Findings:
    """Looks at up to `most` episodes, evenly spread. Those in units that training would refuse are
    measured all the same."""
    findings = Findings()
    unchecked = robot.open_recordings(dataclasses.replace(data, check_units=False))
    chosen = robot.spread(len(recordings), most)
    for i in tqdm(chosen, desc='episodes', unit='episode', disable=None):
        seen: list[tuple[Timing, np.ndarray, np.ndarray]] = []

        def choose(timing: Timing, seen=seen) -> np.ndarray:
            kept = robot.kept(timing, data.fps)
            piece = scene.middle(timing, data)  # pictures of one are enough
            seen.append((timing, kept, piece))
            return piece

        try:
            try:
                episode = recordings.episode(i)
            except BadFile as error:
                if error.reason != 'bad_units':
                    raise
                findings.units.append(str(error))
                episode = unchecked.episode(i)
            frames = episode.read(choose)
        except (BadFile, OSError) as error:
            findings.bad.append(str(error))
            continue
        timing, kept, piece = seen[0]
        findings.notes.update(episode.notes)
        findings.rates.append(timing.fps)
        findings.seconds.append(timing.seconds)
        findings.sizes[frames.shape[1:3]] += 1
        findings.short += len(kept) < data.frames
        findings.states.append(episode.states[kept])
        findings.actions.append(episode.actions(np.asarray(kept)))
        pixels = robot.view(frames, (crop, crop))
        findings.motions.append(scene.Motion.of(pixels, episode.states[piece]))
    return findings


def still(actions: np.ndarray) -> np.ndarray:
    """Which actions [n, 7] hardly move the robot."""
    turn = Rotation.from_euler('xyz', actions[:, 3:6]).magnitude()
    move = np.linalg.norm(actions[:, :3], axis=1)
    return (move < STILL[0]) & (turn < STILL[1]) & (np.abs(actions[:, 6]) < STILL[2])


def report(
    findings: Findings, data: RobotConfig, crop: int, model: Trained | None = None
) -> list[str]:
    """The lines to print."""
    states, actions = np.concatenate(findings.states), np.concatenate(findings.actions)
    sizes = ', '.join(f'{w} x {h} ({n})' for (h, w), n in findings.sizes.most_common())
    rates = sorted({round(rate, 2) for rate in findings.rates})
    lowest = min(findings.rates)
    step = robot.steps_between(Timing(1, lowest, 1.0), data.fps)
    lines = [
        f'{len(findings.states)} episodes read, {len(findings.bad)} not; '
        f'{sum(findings.seconds) / 60:.1f} minutes, '
        f'{np.median(findings.seconds):.1f} s in the middle',
        f'recorded at {", ".join(f"{rate:g}" for rate in rates)} frames a second, '
        f'{sizes} pixels (width x height)',
        *(
            f'{count} of {len(findings.states)} episodes: {note}'
            for note, count in findings.notes.most_common()
        ),
        f'as recorded: {robot.units_of(data)}; here in metres, radians and closedness:',
        f'the model sees {lowest / step:.2f} frames a second, one in {step}; '
        f'{len(states)} in all, {findings.short} episodes too short for {data.frames} of them',
        f'{"":12}{"least":>9}{"middle":>9}{"most":>9}   {"action: middle size":>20}{"largest":>9}',
    ]
    for i, name in enumerate(robot.STATE):
        low, middle, high = np.quantile(states[:, i], [0, 0.5, 1])
        size = np.abs(actions[:, i]) if len(actions) else np.zeros(1)
        lines.append(
            f'{name:12}{low:9.3f}{middle:9.3f}{high:9.3f}   {np.median(size):20.4f}'
            f'{size.max():9.3f}'
        )
    if len(actions):
        lines.append(f'{still(actions).mean():.0%} of the actions hardly move the robot')
    else:
        lines.append('no actions: no episode has two frames at that rate')
    seen = scene.Scene.of([*findings.sizes.elements()], findings.motions, crop)
    lines.append(
        f'{seen.moving:.1%} of the picture at {crop} x {crop} moves between two frames, about '
        f'{seen.moving * (crop / 16) ** 2:.1f} of {(crop // 16) ** 2} tokens'
    )
    looks = suspicions(findings, states, actions, data, seen.moving)
    if model is not None:
        lines += beside(seen, model.scene)
        looks += unlike(seen, data, model)
    else:
        lines += [f'{title}: {words}' for title, words in zip(scene.TITLES[2:], seen.words()[2:])]
    return lines + [f'look: {text}' for text in looks]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run's checkpoint says of its recordings."""

    data: RobotConfig
    scene: scene.Scene
    crop: int

    @classmethod
    def at(cls, path: str) -> Trained:
        """Raises ConfigError, CheckpointError: nothing is known of what a model saw."""
        from jepa_jax import checkpoint

        extra = checkpoint.read_manifest(checkpoint.find(path))['extra']
        if 'scene' not in extra:
            raise ConfigError(
                f"--model '{path}': what it was trained on was not measured; must be a run of "
                'configs/ac_vitg.py or its like. Released weights: see docs/own_robot.md'
            )
        config = read_config(extra['config'])
        return cls(config.robot, scene.Scene(**extra['scene']), config.data.crop)


def beside(here: scene.Scene, there: scene.Scene) -> list[str]:
    """A table of the measures."""
    rows = [('', 'here', 'in training'), *zip(scene.TITLES, here.words(), there.words())]
    return [f'{title:36}{own:>18}{other:>18}' for title, own, other in rows]


def unlike(here: scene.Scene, data: RobotConfig, model: Trained) -> list[str]:
    """How the recordings differ from what the model saw, in words."""
    findings = [
        f'{title}: {max(ratio, 1 / ratio):.1f} times {"more" if ratio > 1 else "less"} than in '
        'training'
        for title, ratio in scene.apart(here, model.scene).items()
        if not 1 / APART <= ratio <= APART
    ]
    try:
        robot.Contract.of(data).check(dataclasses.asdict(robot.Contract.of(model.data)))
    except ConfigError as error:
        findings.append(str(error))
    return findings


def suspicions(findings, states, actions, data: RobotConfig, moving: float) -> list[str]:
    """What looks wrong, in words."""
    gripper = states[:, 6]
    size = np.abs(actions[:, :3]).max() if len(actions) else 0.0
    first = float(np.mean([s[0, 6] for s in findings.states]))
    wide = [w / h for h, w in findings.sizes if not robot.NARROWEST <= w / h <= robot.WIDEST]
    opening = robot.opening_problem([s[:, 6] for s in findings.states], data)
    inverted = f'gripper = {"closed" if data.gripper == "open" else "open"}'
    if any(data.gripper_range):
        inverted = 'gripper_range = ({1:g}, {0:g})'.format(*data.gripper_range)
    rows = (
        *((True, text) for text in robot.unit_problems(states, data)),
        (bool(opening), opening),
        (np.ptp(gripper) < 0.05, 'the gripper never moves'),
        (
            0.6 < first <= 1 + robot.SLACK,
            f'episodes begin with the gripper at {first:.2f}, closed: does 1 mean open here? '
            f'robot.{inverted}',
        ),
        (size > 0.3, f'a step of {size:.2f} m between two frames: a gap, or the rate is wrong'),
        (len(actions) and still(actions).mean() > 0.5, 'most frames are still: cut the pauses'),
        (
            moving < FEW,
            'little of the picture moves: crop the video so that gripper and object fill more',
        ),
        (
            bool(wide),
            f'pictures {max(wide, default=0):.2f} times as wide as high: only the middle, '
            f'{robot.WIDEST} times, is used',
        ),
        (len({round(r) for r in findings.rates}) > 1, 'recordings have several rates'),
        (
            findings.short == len(findings.states),
            f'no episode has the {data.frames} frames of a piece at {data.fps:g} a second: nothing '
            'to train on; robot.frames, robot.fps',
        ),
    )
    return [text for holds, text in rows if holds]


def draw(piece: robot.Piece, path: Path, title: str) -> None:
    """A piece's frames and the actions between them, as PNG."""
    T = len(piece.frames)
    figure = Figure(figsize=(1.7 * T + 1, 4.4), layout='constrained')
    grid = figure.subplots(2, T, squeeze=False, height_ratios=(1.2, 1))
    limit = max(0.01, float(np.abs(piece.actions).max()))
    for t in range(T):
        grid[0, t].imshow(piece.frames[t])
        grid[0, t].set_title(f'frame {piece.numbers[t]}', fontsize=8)
        grid[0, t].set_xticks([])
        grid[0, t].set_yticks([])
        if t == T - 1:
            grid[1, t].axis('off')
            continue
        grid[1, t].bar(range(7), piece.actions[t])
        grid[1, t].set_ylim(-limit, limit)
        grid[1, t].set_xticks(range(7), robot.STATE, rotation=90, fontsize=7)
        grid[1, t].axhline(0, color='k', linewidth=0.5)
        if t:
            grid[1, t].set_yticks([])
    grid[1, 0].set_ylabel('action to the next: m, rad', fontsize=8)
    figure.suptitle(title, fontsize=9)
    save_figure(figure, path, dpi=110)
