"""How large a robot's scene is in the picture: what can be said of it without knowing the camera.

A model knows objects and motions of the size that it has seen. The measures here need neither the
camera nor the object: what changes from one frame to the next is the robot and what it holds, and
how far its end wanders while the gripper travels a metre says how much the picture shows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jepa_jax.config import RobotConfig
from jepa_jax.data import robot
from jepa_jax.data.clips import Timing
from jepa_jax.errors import BadFile

MOVES = 12  # grey levels by which a pixel changes if something moves there
TRAVEL = 0.01  # metres, root mean square, that the gripper must move about for a scale
EPISODES = robot.survey.EPISODES  # that a run looks at
FRAMES = 8  # of each, at least: in 3 of them where the edges fall weighs as much as the way


@dataclasses.dataclass(frozen=True)
class Motion:
    """What moves in a piece of T frames."""

    shares: np.ndarray  # [T - 1] of the picture that changes from each frame to the next
    extents: np.ndarray  # [n] pixels, the longer side of where it changes, of n pairs of frames
    # [3, 2] pixels^2, variance of where it changes: of least, middle and most y and x
    wander: np.ndarray
    travel: float  # metres^2, variance of where the gripper is

    @classmethod
    def of(cls, frames: np.ndarray, states: np.ndarray) -> Motion:
        """frames [T, h, w, 3] uint8 as the model sees them, states [T, 7] -> their motion."""
        grey = frames.mean(-1, dtype=np.float32)
        changed = np.abs(np.diff(grey, axis=0)) > MOVES
        places, extents, grippers = [], [], []
        for t in np.flatnonzero(changed.any((1, 2))):
            at = np.argwhere(changed[t])  # [n, 2]
            low, high = np.quantile(at, [0.05, 0.95], axis=0)  # single pixels may be noise
            places.append([low, at.mean(0), high])
            extents.append((high - low).max() + 1)
            grippers.append((states[t, :3] + states[t + 1, :3]) / 2)
        wander = np.var(places, axis=0) if places else np.zeros((3, 2))
        travel = np.var(grippers, axis=0).sum() if grippers else 0.0
        return cls(changed.mean((1, 2)), np.array(extents), wander, float(travel))


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a set of recordings looks like to a model; kept in its checkpoints."""

    height: int  # of the pictures before they are cut, pixels; the most frequent
    width: int
    crop: int  # pixels of the square that the model sees, which the extent is in
    episodes: int  # looked at
    moving: float  # share of the picture that changes between two frames, the median; of single 0
    extent: float | None  # pixels, the longer side of where it changes, the median
    span: float | None  # metres that the picture's width shows where the gripper is

    @classmethod
    def of(cls, sizes: list[tuple[int, int]], motions: list[Motion], crop: int) -> Scene:
        """From the pictures' heights and widths, and what moves in a piece of each episode."""
        height, width = max(set(sizes), key=sizes.count)
        extents, shares = (
            np.concatenate([getattr(m, name) for m in motions]) for name in ('extents', 'shares')
        )
        # Together, not each: the longer the way, the surer the scale. An arm that reaches into the
        # picture wanders most at its end, which is the gripper's
        wander = sum(m.wander for m in motions).max(0).sum()
        travel = sum(m.travel for m in motions)
        seen = wander > 0 and travel > len(motions) * TRAVEL**2
        return cls(
            height,
            width,
            crop,
            len(motions),
            float(np.median(shares)) if len(shares) else 0.0,
            float(np.median(extents)) if len(extents) else None,
            float(crop / np.sqrt(wander / travel)) if seen else None,
        )

    def words(self) -> list[str]:
        """The measures as a row of text; see TITLES."""
        return [
            f'{self.width} x {self.height}',
            f'{self.moving:.1%}',
            'nothing moves' if self.extent is None else f'{self.extent:.0f} of {self.crop}',
            'too little travel' if self.span is None else f'{self.span:.2f}',
        ]


TITLES = (
    'pictures, pixels (width x height)',
    'share of the picture that moves',
    'longer side of what moves, pixels',
    'metres that the picture is wide',
)


def middle(timing: Timing, data: RobotConfig) -> np.ndarray:
    """The frames in the middle of an episode that are looked at, at the rate of `data`: a piece, or
    FRAMES if that is more, or as many as there are."""
    kept = robot.kept(timing, data.fps)
    count = max(FRAMES, data.frames)
    first = max(0, len(kept) - count) // 2
    return kept[first : first + count]


def look(
    recordings: robot.Recordings,
    data: RobotConfig,
    crop: int,
    episodes: list[robot.Episode] | None = None,
) -> Scene | None:
    """The scene of a set, from the middle of up to EPISODES episodes; None if none can be read.

    episodes: gets those that were.
    """
    sizes, motions = [], []
    for i in robot.spread(len(recordings)):
        chosen: list[np.ndarray] = []

        def choose(timing: Timing, chosen=chosen) -> np.ndarray:
            chosen.append(middle(timing, data))
            return chosen[-1]

        try:
            episode = recordings.episode(i)
            frames = episode.read(choose)
        except (BadFile, OSError):
            continue  # the run itself counts and names it
        if episodes is not None:
            episodes.append(episode)
        if len(frames) > 1:
            sizes.append(frames.shape[1:3])
            motions.append(Motion.of(robot.view(frames, (crop, crop)), episode.states[chosen[-1]]))
    return Scene.of(sizes, motions, crop) if motions else None


def apart(here: Scene, there: Scene) -> dict[str, float]:
    """Title -> quotient, here over there, of the measures that both have; those in pixels as shares
    of the picture."""

    def measures(scene: Scene) -> tuple[float | None, ...]:
        extent = scene.extent and scene.extent / scene.crop
        return scene.moving, extent, scene.span

    rows = zip(TITLES[1:], measures(here), measures(there))
    return {title: a / b for title, a, b in rows if a and b}
