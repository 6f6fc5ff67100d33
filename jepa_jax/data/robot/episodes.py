"""One recording, and a piece cut from it; and what readers share."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from jepa_jax.data import decode
from jepa_jax.data.augment import Crop, resize
from jepa_jax.data.clips import Timing
from jepa_jax.data.robot.clock import NEAR, SNAP, Clock, nearest
from jepa_jax.data.sources import image_of
from jepa_jax.errors import BadFile, Unsuitable

INSTALL = "needs {}: pip install 'jepa_jax[robot]'"
WIDEST, NARROWEST = 1.35, 0.75  # width over height of what is cut out
TOLERANCE = 2  # frames by which video and states may differ in length: recorders stop unevenly


class Pictures(Protocol):
    """Frames of an episode: an array [n, H, W, 3] uint8, or what gives some of it."""

    def __len__(self) -> int: ...

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Episode:
    """One recording. States are those of all frames, as the contract has them."""

    name: str
    states: np.ndarray  # [n, 7] float64
    video: str = ''  # path; empty: `pixels`
    begins: float = 0.0  # seconds of the video at which the episode begins
    fps: float = 0.0  # by the recording's own clock; 0: what the video says
    # [n, H, W, 3] uint8
    pixels: Pictures | None = dataclasses.field(default=None, repr=False)
    commands: np.ndarray | None = None  # [n, 7] poses that were commanded, as states
    extrinsics: np.ndarray | None = None  # [n, 6] pose of the camera in the frame of the base
    whole: bool = True  # the video holds nothing but this episode
    clock: Clock | None = None  # of the rows; None: they follow evenly
    # what is odd about the recording and yet can be read, each in a line; `read` adds to it
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def times(self) -> np.ndarray | None:
        """[n] seconds of each frame; NaN: it has no picture. None: they follow evenly."""
        return None if self.clock is None or self.clock.even else self.clock.times

    def actions(self, numbers: np.ndarray) -> np.ndarray:
        """Between frames of ascending numbers [K]: [K - 1, 7] float64."""
        if self.commands is None:
            return actions_between(self.states[numbers])
        last = np.maximum(numbers[1:] - 1, numbers[:-1])  # commanded before the next frame
        return moves(self.states[numbers[:-1]], self.commands[last])

    def read(self, choose: Callable[[Timing], np.ndarray]) -> np.ndarray:
        """Frames [T, H, W, 3] uint8 that `choose` picks from the timing of the episode.

        Raises:
          BadFile: they cannot be read, or states and video do not belong together.
        """
        n = len(self.states)

        def pick(timing: Timing) -> np.ndarray:
            if self.whole:
                pictures, times = self._pictures(timing)
                fps = self._fps(timing)
                return pictures[choose(Timing(len(pictures), fps, len(pictures) / fps, times))]
            first = self._first(timing)
            if timing.frames - first < n:
                raise self._apart(timing, timing.frames - first)
            return first + choose(Timing(n, self.fps, n / self.fps))

        if self.pixels is None:
            return decode.read_frames(self.video, pick)
        try:
            return self.pixels[
                pick(Timing(len(self.pixels), self.fps, len(self.pixels) / self.fps))
            ]
        except Unsuitable as error:
            raise BadFile(self.name, error.reason, error.detail) from error

    def _fps(self, timing: Timing) -> float:
        """Of the episode: the recording's own clock is believed before the video."""
        own = self.clock.fps if self.clock else self.fps
        if own and abs(timing.fps / own - 1) > SNAP and not self._by_time(timing):
            self._note(
                f"the video says {timing.fps:g} frames a second, the recording's own clock {own:g}:"
                ' the clock is believed'
            )
        return own or timing.fps

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _by_time(self, timing: Timing) -> bool:
        """Whether video and clock differ in how many pictures they have, and agree on how long they
        take."""
        if self.clock is None or self._counted(timing) is not None:
            return False
        last = timing.times[-1] if timing.variable else (timing.frames - 1) / timing.fps
        span = float(np.nanmax(self.clock.times))
        return abs(last - span) <= max(0.005 * span, 2 / self.clock.fps)

    def _counted(self, timing: Timing) -> np.ndarray | None:
        """The frame of the video that belongs to each row, where they are as many: as rows, or as
        rows that have a picture of their own. -1: none."""
        n, count, clock = len(self.states), timing.frames, self.clock
        taken = n if clock is None else clock.count
        if taken != n and (count == taken or abs(count - n) > TOLERANCE >= abs(count - taken)):
            return np.where(clock.pictures < count, clock.pictures, -1)
        if abs(count - n) > TOLERANCE or (count != n and clock is not None and timing.variable):
            return None
        return np.arange(min(n, count))

    def _pictures(self, timing: Timing) -> tuple[np.ndarray, np.ndarray | None]:
        """The frame of the video that belongs to each row [m], m at most n, and when it was taken
        (see `times`)."""
        pictures, times = self._counted(timing), self.times
        if pictures is not None:
            if times is not None:
                times = np.where(pictures >= 0, times[: len(pictures)], np.nan)
            return pictures, times
        if not self._by_time(timing):
            raise self._apart(timing, timing.frames)
        rows = self.clock.times
        shown = timing.times if timing.variable else np.arange(timing.frames) / timing.fps
        known = np.nan_to_num(rows)
        pictures = nearest(shown, known)
        apart = np.abs(shown[pictures] - known)
        there = np.isfinite(rows) & (apart <= 0.5 / self.clock.fps)
        self._note(
            f'{len(self.states)} states for {timing.frames} frames of video: matched by time'
        )
        whole = self.clock.even and there.all()
        return pictures, None if whole else np.where(there, rows, np.nan)

    def _apart(self, timing: Timing, count: int) -> Unsuitable:
        n = len(self.states)
        return Unsuitable(
            'mismatch',
            f'{n} states for {count} frames of video ({timing.fps:g} a second): must be '
            f'one for each, so the states are at {n / max(count, 1) * timing.fps:.3g} a '
            'second',
        )

    def _first(self, timing: Timing) -> int:
        """The frame of the video with which the episode begins: by when frames are shown, or by
        counting where they follow evenly."""
        if timing.times is not None:
            first = int(np.abs(timing.times - self.begins).argmin())
            shown = timing.times[first : first + len(self.states)]
            expected = self.begins + np.arange(len(shown)) / self.fps
            if len(apart := np.flatnonzero(np.abs(shown - expected) > 0.5 / self.fps)):
                i = apart[0]
                raise Unsuitable(
                    'mismatch',
                    f'frame {i} of the episode should be shown at {expected[i]:.3f} s, the video '
                    f'has it at {shown[i]:.3f}',
                )
            return first
        first = round(self.begins * timing.fps)
        if abs(first - self.begins * self.fps) > 0.5:  # frames are counted, so rates must agree
            raise Unsuitable(
                'mismatch',
                f'the video has {timing.fps:g} frames a second, the recordings {self.fps:g}: which '
                f'frame is shown at {self.begins:g} s, where the episode begins, is not certain',
            )
        return first


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Frames of an episode as image files, decoded when they are asked for."""

    name: str
    files: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        images = [image_of(self.name, self.files[i]) for i in numbers]
        if len(sizes := {image.shape for image in images}) > 1:
            words = ' and '.join(f'{w} x {h}' for h, w, _ in sorted(sizes)[:2])
            raise BadFile(self.name, 'size_change', f'images of {words} pixels')
        return np.stack(images)


class Recordings(Protocol):
    """Episodes of one set, by index from 0."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def state(self, index: int) -> str:
        """What changes when the episode does, without reading it; see `state_of`."""

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
    return moves(states[:-1], states[1:])


def moves(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The actions that lead from states to others, all [K, 7]."""
    start, end = (Rotation.from_euler('xyz', states[:, 3:6]) for states in (before, after))
    angles = (end * start.inv()).as_euler('xyz')
    lengths = after[:, [0, 1, 2, 6]] - before[:, [0, 1, 2, 6]]
    return np.concatenate([lengths[:, :3], angles, lengths[:, 3:]], axis=1)


def steps_between(timing: Timing, fps: float) -> int:
    """Frames from one kept to the next: rounded up, so the rate is `fps` or a little less.
    (reference: vjepa2 §7.3)"""
    if timing.fps < fps:
        raise Unsuitable('slow', f'{timing.fps:g} frames a second, {fps:g} are needed')
    return math.ceil(timing.fps / fps - 1e-6)


def _next(timing: Timing, fps: float) -> np.ndarray:
    """[n] the frame that is kept after each; -1: none was taken then."""
    step = steps_between(timing, fps)
    if timing.times is None:
        after = np.arange(timing.frames) + step
        return np.where(after < timing.frames, after, -1)
    apart, rows = step / timing.fps, np.flatnonzero(np.isfinite(timing.times))
    due = timing.times[rows] + apart
    at = nearest(timing.times[rows], due)
    there = np.abs(timing.times[rows][at] - due) <= NEAR * apart
    there &= due <= timing.times[rows][-1:] + 0.5 / timing.fps  # there is no more to come
    after = np.full(timing.frames, -1)
    after[rows[there]] = rows[at[there]]
    return after


def kept(timing: Timing, fps: float) -> np.ndarray:
    """Which frames of an episode are seen at `fps` a second, by when they were taken; where none
    was, they go on with the next one that was."""
    if timing.times is None:
        return np.arange(0, timing.frames, steps_between(timing, fps))
    after, apart = _next(timing, fps), steps_between(timing, fps) / timing.fps
    chosen, rows = [], np.flatnonzero(np.isfinite(timing.times))
    while len(rows):
        i = int(rows[0])
        while i >= 0:
            chosen.append(i)
            i = int(after[i])
        rows = rows[timing.times[rows] > timing.times[chosen[-1]] + (1 + NEAR) * apart]
    return np.array(chosen, np.int64)


def unbroken(times: np.ndarray, length: int, frames: int, apart: float) -> np.ndarray:
    """Where pieces of `frames` kept frames may start, among `length` that were kept: no gap is
    in them. times [length] of them; apart: seconds from one to the next."""
    gaps = np.concatenate([[0], np.cumsum(np.diff(times) > (1 + NEAR) * apart + 1e-9)])
    first = np.arange(max(length - frames + 1, 0))
    return first[gaps[first] == gaps[first + frames - 1]]


def starts(timing: Timing, frames: int, fps: float) -> np.ndarray:
    """The frames that a piece can start with; at least one.

    The original also asks for a frame beyond the last piece; recordings of just the length are
    taken here. (reference: vjepa2 §7.3)
    """
    step = steps_between(timing, fps)
    if timing.times is None:
        first = np.arange(max(timing.frames - frames * step + 1, 0))
    else:
        after = _next(timing, fps)
        last = np.where(np.isfinite(timing.times), np.arange(timing.frames), -1)
        for _ in range(frames - 1):
            last = np.where(last >= 0, after[last], -1)
        first = np.flatnonzero(last >= 0)
    if not len(first):
        raise Unsuitable(
            'short',
            f'{timing.frames} frames, a piece takes {frames} x {step} = {frames * step}'
            + ('' if timing.times is None else ' without a gap'),
        )
    return first


def cut(episode: Episode, frames: int, fps: float, draw: Callable[[int], int]) -> Piece:
    """A piece of `frames` frames at about `fps` a second; draw(n) -> a number below n.

    Raises:
      BadFile: it cannot be read or is too short.
    """
    chosen = []

    def choose(timing: Timing) -> np.ndarray:
        places = starts(timing, frames, fps)
        numbers, after = [int(places[draw(len(places))])], _next(timing, fps)
        while len(numbers) < frames:
            numbers.append(int(after[numbers[-1]]))
        chosen.append(np.array(numbers))
        return chosen[-1]

    pixels = episode.read(choose)
    numbers = chosen[-1]  # of a damaged video `choose` is asked twice, and draws anew
    states = episode.states[numbers]
    extrinsics = None if episode.extrinsics is None else episode.extrinsics[numbers]
    return Piece(
        pixels,
        states.astype(np.float32),
        episode.actions(numbers).astype(np.float32),
        numbers,
        None if extrinsics is None else extrinsics.astype(np.float32),
    )


def state_of(*files: str | os.PathLike, also: tuple = ()) -> str:
    """Sizes and times of change of an episode's files, and what else says where it is in them."""
    states = []
    for file in files:
        try:
            status = os.stat(file)
            states.append((os.path.basename(file), status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):  # ValueError: a name that no file can have
            states.append((os.path.basename(file), 'missing'))
    return repr((states, also))
