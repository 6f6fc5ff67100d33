"""Clips of labelled records, before their view is cut."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from jepa_jax.data import decode, pictures
from jepa_jax.data.clips import Sampling, Timing, frame_indices
from jepa_jax.data.kinds import PICTURES
from jepa_jax.data.labelled.records import Record
from jepa_jax.data.windows import open_input

FPS = 8  # of clips that anticipate


def frames_of(path: str, choose: Callable[[Timing], np.ndarray], fps: float = 0.0) -> np.ndarray:
    """Frames of a video, or of a folder of pictures or an .npy with that many a second, uint8
    [k, H, W, 3].

    Raises BadFile.
    """
    if not (os.path.isdir(path) or path.lower().endswith('.npy')):
        return decode.read_frames(path, choose)
    source = open_input(path, fps)
    count = len(source.numbers)
    return source.read(choose(Timing(count, fps, count / fps)))


def of_video(
    record: Record,
    frames: int,
    step: int,
    segments: int,
    fps: float = 0.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Clips spread over a video, uint8 [segments * frames, H, W, 3]; a picture is repeated.

    Each begins at the start of its part of the video, or with `rng` at random in it, as the
    original's do in validation, too. (reference: vjepa2 §6.1, §9.3)
    """
    if os.path.splitext(record.path)[1].lower() in PICTURES:
        return np.repeat(pictures.read_image(record.path)[None], segments * frames, 0)
    rule = Sampling(frame_step=step)

    def choose(timing: Timing) -> np.ndarray:
        return frame_indices(timing, frames, rule, rng, num_clips=segments, overlap=True)

    return frames_of(record.path, choose, fps)


def before_action(
    action: tuple[int, int],
    frames: int,
    fps: float,
    seconds: float = 1.0,
    point: float = 0.0,
) -> np.ndarray:
    """Frame numbers of a clip that ends so many seconds before a point of an action, int64 [T].

    Args:
      action: its first and last frame.
      frames: of the clip, 8 a second by the whole step that the file's rate allows.
      fps: of the file.
      seconds: between the clip's end and the point.
      point: of the action: 0 its end, which is the original's validation, 1 its start. (reference:
        vjepa2 §9.4)
    """
    start, stop = action
    step = max(1, int(fps / FPS))
    end = int(start * point + (1 - point) * stop - int(seconds * fps))
    return np.arange(end - frames * step, end, step).clip(0)
