"""What a model is given: pixels checked, views of frames, windows of arrays."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jepa_jax.data.views import eval_view
from jepa_jax.data.windows import Input, Window
from jepa_jax.errors import BadFile, InputError
from jepa_jax.models.tokens import MEAN, STD

FPS = 4.0  # frames a second, unless asked otherwise: what the released models were trained at
PREPROCESS = ('eval', 'none')
# what pixels of 0 to 255 become, and how far beyond a resize may overshoot
LOWEST = min((0 - mean) / std for mean, std in zip(MEAN, STD))
HIGHEST = max((1 - mean) / std for mean, std in zip(MEAN, STD))
OVERSHOOT = 0.5


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """Frames uint8 [T, H, W, 3] -> the view that evaluations feed, uint8 [T, crop, crop, 3].

    The short side becomes int(crop * 256 / 224) by OpenCV's bilinear rule without antialias, and
    the middle is cut out: what `Model.embed` does to a video. The model itself normalises.
    (reference: vjepa2 §6.4)
    """

    crop: int = 256  # pixels

    def __call__(self, video: np.ndarray) -> np.ndarray:
        video = np.asarray(video)
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
            raise InputError(
                f'video {video.dtype} {list(video.shape)}: must be uint8 [T, H, W, 3], channels '
                'last'
            )
        return eval_view(video, self.crop)


@dataclasses.dataclass(frozen=True)
class Trained:
    """On what an encoder was trained."""

    frames: int  # most of a clip
    crop: int  # pixels
    fps: float = FPS  # 0: not known

    def exceeded(self, frames: int, size: tuple[int, int], fps: float) -> str:
        """What of an input is beyond it, in one line; or nothing.

        size: height and width of what is fed; fps: 0 of what has no rate.
        """
        beyond = [f'{frames} frames'] if frames > self.frames else []
        beyond += [f'{size[0]} x {size[1]} pixels'] if max(size) > self.crop else []
        beyond += [f'{fps:g} frames a second'] if self.fps and fps not in (0, self.fps) else []
        if not beyond:
            return ''
        rate = f' at {self.fps:g} a second' if self.fps else ''
        return (
            f'{", ".join(beyond)}: the model was trained on at most {self.frames} frames of '
            f'{self.crop} x {self.crop} pixels{rate}'
        )


Video = Any  # a path, or an array of any library that numpy reads, or a list of frames


def as_arrays(video: Any) -> Any:
    """Paths and numpy arrays as they are; arrays of others as numpy's, without copies where it can
    be; a list of frames [H, W, 3] as one [T, H, W, 3]; another list item by item.

    Raises:
      InputError: none of these, frames of several sizes, or an array that its library does not give
        (on another device, with a gradient).
    """
    if isinstance(video, (str, os.PathLike, np.ndarray)):
        return video
    if hasattr(video, '__array__') or hasattr(video, '__array_interface__'):
        try:
            return np.asarray(video)
        except Exception as error:  # whatever its library says
            kind = f'{type(video).__module__}.{type(video).__name__}'
            raise InputError(f'{kind} gives no array: {" ".join(str(error).split())}') from error
    if not isinstance(video, (list, tuple)) or not len(video):
        what = 'an empty list' if isinstance(video, (list, tuple)) else type(video).__name__
        raise InputError(f'video is {what}: must be a path, an array, or a list of them')
    items = [as_arrays(item) for item in video]
    flat = [isinstance(item, np.ndarray) and item.ndim == 3 for item in items]
    if not any(flat):
        return items
    shapes = {item.shape if one else type(item).__name__ for item, one in zip(items, flat)}
    if len(shapes) > 1:
        shown = ', '.join(map(str, sorted(shapes, key=str)[:3]))
        raise InputError(f'a list of frames that are not of one size: {shown}')
    return np.stack(items)


def from_second(source: Input, start: float) -> Input:
    """An input from its first sampled frame at or after some seconds on.

    Raises InputError: there is none.
    """
    if start == 0:
        return source
    left = source.seconds >= start - 1e-9
    if not start >= 0 or not left.any():
        last = source.seconds[-1]
        raise InputError(f'start {start:g} s: {source.path} has frames from 0 to {last:.4g} s')
    return dataclasses.replace(source, numbers=source.numbers[left], seconds=source.seconds[left])


def preprocessor(crop: int = 256) -> Preprocessor:
    """The function from frames to what a model of that crop is fed; see Preprocessor.

    Raises:
      InputError: no such crop.
    """
    if crop < 1:
        raise InputError(f'crop {crop}: must be at least 1')
    return Preprocessor(crop)


def view(
    source: Input, crop: int | None, preprocess: str, *, trained: int, patch: int
) -> Callable[[np.ndarray], np.ndarray]:
    """What is done to the frames of an input; trained: the crop that None means, in pixels.

    Raises:
      BadFile, InputError: no multiple of the patch, or another preprocessing.
    """
    if preprocess == 'eval':
        crop = trained if crop is None else crop
        if crop < patch or crop % patch:
            raise InputError(f'crop {crop}: must be a multiple of {patch}, the patch')
        return Preprocessor(crop)
    if preprocess != 'none':
        raise InputError(f"preprocess '{preprocess}': allowed are {', '.join(PREPROCESS)}")
    if crop is not None:
        raise InputError(f"crop {crop} with preprocess 'none': nothing is cut")
    height, width = source.size
    if height % patch or width % patch or not height or not width:
        raise BadFile(
            source.path,
            'unfit',
            f"{height} x {width} pixels with preprocess 'none': must be multiples of {patch}, "
            "the patch; 'eval' resizes",
        )
    return lambda frames: frames


def array_input(frames: np.ndarray, fps: float) -> Input:
    """An array [T, H, W, 3] as an input."""
    numbers = np.arange(len(frames))
    return Input(
        'the array', 'array', numbers, numbers / fps, 1 / fps, frames.shape[1:3],
        lambda rows: frames[rows],
    )  # fmt: skip


def array_windows(clips: np.ndarray, fps: float, view, tubelet: int) -> Iterator[Window]:
    """An array [n, T, H, W, 3] as windows; view: what is done to the frames of each."""
    if clips.shape[1] % tubelet:
        raise InputError(f'{clips.shape[1]} frames: must be a multiple of {tubelet}, the tubelet')
    numbers = np.arange(clips.shape[1])
    for clip in clips:
        yield Window('the array', view(clip), numbers, numbers / fps, 1 / fps, 0)


def check_video(video: str | os.PathLike | np.ndarray, preprocess: str, normalised: bool) -> None:
    """Refuses an array that is none of pixels.

    Raises:
      InputError: what it is and what is allowed.
    """
    if not isinstance(video, np.ndarray):
        return
    if video.ndim not in (4, 5) or video.shape[-1] != 3 or not video.size:
        raise InputError(
            f'array {list(video.shape)}: must be [T, H, W, 3] or [n, T, H, W, 3], channels last'
        )
    if normalised and preprocess != 'none':
        raise InputError("normalised pixels go with preprocess 'none'")
    check_pixels(video, normalised)


def check_rate(fps: float) -> None:
    """Raises InputError: no rate of frames."""
    if not 0 < fps < math.inf:
        raise InputError(f'fps {fps}: must be a number above 0')


def check_pixels(pixels: np.ndarray, normalised: bool, decoded: bool = False) -> None:
    """Refuses pixels that cannot have been meant, and warns of what is hardly meant.

    decoded: from a file or checked before, so dark ones are no surprise.

    Raises:
      InputError: what they are and what is allowed.
    """
    if pixels.dtype == np.uint8:
        if normalised:
            raise InputError('uint8 pixels with normalised=True: the model normalises uint8')
        if not decoded and pixels.size and pixels.max() <= 1:
            warnings.warn(
                f'uint8 pixels go up to {pixels.max()} of 255: 0-1 floats cast to bytes?',
                stacklevel=3,
            )
        return
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(f'pixels of type {pixels.dtype}: must be uint8')
    low, high = float(pixels.min()), float(pixels.max())
    values = f'{pixels.dtype} pixels from {low:.3g} to {high:.3g}'
    if not np.isfinite([low, high]).all():
        raise InputError(f'{values}: must be finite')
    if not normalised:
        likely = 'between 0 and 255, as it seems: round and cast to uint8'
        if low < 0:
            likely = 'already normalised, as it seems: say so with normalised=True'
        elif high <= 1:
            likely = 'between 0 and 1, as it seems: multiply by 255, round and cast to uint8'
        raise InputError(f'{values}, {likely}; must be uint8 from 0 to 255')
    if low < LOWEST - OVERSHOOT or high > HIGHEST + OVERSHOOT:
        raise InputError(
            f"{values} with normalised=True: ImageNet's mean and deviation leave "
            f'{LOWEST:.2f} to {HIGHEST:.2f}'
        )
    if low >= 0 and high <= 1 and not decoded:
        warnings.warn(f'{values} with normalised=True: 0-1 pixels not normalised?', stacklevel=3)
