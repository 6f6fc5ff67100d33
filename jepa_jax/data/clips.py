"""Which frames of a video make a clip. Pure functions of the video's timing, the settings and, if
there is one, a random draw.

The rules are the original's, oddities included, because the released weights were trained with them
(reference: vjepa2 §6.1, src/datasets/video_dataset.py). What is ours: the stream that random
numbers come from (the draw is an argument), and videos of variable frame rate, which are sampled by
time (see `by_time`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jepa_jax.config import DataConfig
from jepa_jax.errors import Unsuitable


@dataclasses.dataclass(frozen=True)
class Timing:
    """When the frames of a video are shown."""

    frames: int  # in presentation order, 0 .. frames - 1
    fps: float  # average
    seconds: float
    # [frames] seconds since the first frame, ascending, when frame number and time disagree
    # (variable frame rate); None when frame i is shown at i / fps, to within a frame.
    times: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    # (first, end): the longest run of frames that can be read; None: nothing is known to be missing
    good: tuple[int, int] | None = None

    @property
    def variable(self) -> bool:
        """Whether the frame rate varies so much that frame numbers do not tell the time."""
        return self.times is not None

    def part(self) -> Timing:
        """Of the good run alone, its first frame at 0."""
        first, end = self.good or (0, self.frames)
        if self.times is None:
            return Timing(end - first, self.fps, (end - first) / self.fps)
        times = self.times[first:end] - self.times[first]
        fps = (len(times) - 1) / times[-1] if len(times) > 1 and times[-1] else self.fps
        return Timing(end - first, fps, float(times[-1]) + 1 / fps, times)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How far apart a clip's frames are: exactly one of the three rules is not 0."""

    fps: int = 0  # frames a second to sample at
    frame_step: int = 0  # take every n-th frame
    duration: float = 0.0  # seconds that a clip spans

    def __post_init__(self):
        rules = dataclasses.asdict(self)
        if sorted(value > 0 for value in rules.values()) != [False, False, True]:
            raise ValueError(
                f'exactly one of fps, frame_step, duration must be above 0, found {rules}'
            )

    @classmethod
    def from_config(cls, data: DataConfig) -> Sampling:
        """The rule that `config.data` gives."""
        return cls(data.fps, data.frame_step, data.duration)

    def step(self, video_fps: float, frames: int) -> int:
        """Frames of the video, nominally, between two of the clip's `frames` frames.

        `fps` gives `ceil(video_fps) // fps`: 24 frames a second become 6 at 4 fps, and 30 become 7.
        Source: vjepa2 §6.1, quirk 10.

        Raises Unsuitable (`slow`) where the video has fewer frames a second than asked for; there
        the original stops.
        """
        if self.frame_step:
            return self.frame_step
        rate = math.ceil(video_fps)
        step = rate // self.fps if self.fps else int(self.duration * rate / frames)
        if step < 1:
            asked = f'{self.fps} fps' if self.fps else f'{frames} frames in {self.duration:g} s'
            raise Unsuitable('slow', f'{video_fps:.3g} frames a second, below {asked}')
        return step


def clip_indices(
    length: int,
    frames: int,
    step: int,
    *,
    num_clips: int = 1,
    draw: Callable[[int, int], int] | None = None,
    overlap: bool = False,
) -> np.ndarray:
    """Frame numbers of `num_clips` clips of one video, int64 `[num_clips, frames]`, each row
    ascending.

    The video is cut into `num_clips` equal parts and a clip is taken from each. Three cases, for a
    clip that nominally
    spans `frames * step`:
      - shorter than the part: from the part's start, or ending at `draw(span, part)`;
      - not shorter, no overlap (pretraining): the whole part, its last frame repeated;
      - not shorter, `overlap` (evaluation): clips start evenly spread over the video and share
      frames.
    Positions are `linspace` with the end included and cut to integers, so the real spacing is a
    little over `step` (quirk 9). Where the original's arithmetic leaves the video (a part or a
    video of a single frame) we stay on frame 0.

    Args:
      length: frames of the video.
      frames: frames of a clip.
      step: from `Sampling.step`.
      draw: `draw(low, high)` gives an integer in `[low, high)`: `numpy.random.Generator.integers`,
        or `RandomState(seed).randint` for the original's very numbers. None: no random start.

    Raises:
      ValueError: a count below 1.
    """
    if min(length, frames, step, num_clips) < 1:
        raise ValueError(
            'length, frames, step and num_clips must be at least 1, '
            f'found {length}, {frames}, {step}, {num_clips}'
        )
    span, part = frames * step, length // num_clips
    rows = []
    for i in range(num_clips):
        if part > span:
            end = int(draw(span, part)) if draw else span
            row = np.clip(np.linspace(end - span, end, frames), end - span, end - 1)
            offset = i * part
        elif overlap:
            last = min(span, length) - 1
            row = _padded(last, last // step, frames)
            offset = i * ((length - span) // (num_clips - 1)) if length > span else 0
        else:
            row = _padded(part, part // step, frames)
            offset = i * part
        rows.append(row.astype(np.int64) + offset)
    return np.stack(rows)


def _padded(end: int, count: int, frames: int) -> np.ndarray:
    """`count` positions from 0 to `end`, then `end` repeated, cut to below `end`: `[frames]`."""
    row = np.concatenate([np.linspace(0, end, count), np.full(frames - count, end)])
    return np.clip(row, 0, max(end - 1, 0))


def by_time(indices: np.ndarray, timing: Timing) -> np.ndarray:
    """Frame numbers of an even timeline at `timing.fps` as the frames that are on screen then. Any
    shape.

    The identity unless the frame rate varies. The original counts frames there too, which plays
    some stretches of such a video at another speed than others; a clip at 4 fps should span the
    same time whatever the camera did. The middle of each nominal frame is looked up, so jitter of
    less than half a frame changes nothing.
    """
    if timing.times is None:
        return indices
    numbers = np.searchsorted(timing.times, (indices + 0.5) / timing.fps, side='right') - 1
    return np.clip(numbers, 0, timing.frames - 1)


def frame_indices(
    timing: Timing,
    frames: int,
    sampling: Sampling,
    rng: np.random.Generator | None = None,
    *,
    num_clips: int = 1,
    overlap: bool = False,
) -> np.ndarray:
    """The frames to read for the clips of a video, clip after clip: int64 `[num_clips * frames]`.

    With the settings bound (`functools.partial`) it is the `choose` that `decode.read_frames`
    wants.

    Args:
      timing: of the video.
      frames: frames of a clip.
      sampling: how far apart.
      rng: draws where each clip starts, within the good frames where some are missing; the stream
        is ours, not the original's. None: at the start of its part, whatever is missing.
      num_clips: clips of the video, see `clip_indices`.
      overlap: whether they may share frames when the video is short for them, see `clip_indices`.

    Raises Unsuitable for a video that is too slow.
    """
    if rng and timing.good and timing.good[0] < timing.good[1]:
        part = timing.part()
        chosen = frame_indices(part, frames, sampling, rng, num_clips=num_clips, overlap=overlap)
        return timing.good[0] + chosen
    indices = clip_indices(
        timing.frames,
        frames,
        sampling.step(timing.fps, frames),
        num_clips=num_clips,
        draw=rng.integers if rng else None,
        overlap=overlap,
    )
    return by_time(indices.reshape(-1), timing)
