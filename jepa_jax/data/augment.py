"""Random resized crop and flip, the same for all frames of a clip; uint8 in, uint8 out.

I-JEPA reads images by Pillow, whose bilinear resize has an antialias: `antialias`.

Crops are resized bilinearly without antialiasing, as the original does (reference: vjepa2 §6.3):
the output pixel `d` reads the input at `max((d + 0.5) * in / out - 0.5, 0)`, edges repeat. The
original keeps the float result; here it is rounded to the nearest integer (half to even), because
a quarter of the bytes crosses to the device. The error is at most half a grey level, 0.009 after
normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from jepa_jax.config import AugmentConfig

TRIES = 10  # crops drawn before the centre crop is taken
BAND = 64  # output rows made at a time: what is between the passes stays in the cache


class Crop(NamedTuple):
    """A window of the frame, pixels."""

    top: int
    left: int
    height: int
    width: int


def sample_crop(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    uniform: Callable[[float, float], float],
    integer: Callable[[int, int], int],
) -> Crop:
    """A random window of a `height` x `width` frame.

    Args:
      scale: range of the window's share of the frame's area.
      ratio: range of width over height; drawn log-uniformly.
      uniform: draws from [a, b].
      integer: draws from a to b, both included.

    Source: vjepa2 §6.3. When no try fits: the centre crop with the nearest allowed ratio.
    """
    for _ in range(TRIES):
        area = height * width * uniform(*scale)
        aspect = math.exp(uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Crop(integer(0, height - h), integer(0, width - w), h, w)
    h, w = height, width
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def shift(first: Crop, last: Crop, frames: int) -> list[Crop]:
    """Windows, one a frame, that go linearly from `first` to `last`, truncated to pixels."""
    steps = np.linspace(first, last, frames).astype(int).tolist()
    return [Crop(*step) for step in steps]


def resize(
    frames: np.ndarray,
    crops: list[Crop],
    out: np.ndarray,
    flip: bool = False,
    antialias: bool = False,
    bicubic: bool = False,
) -> np.ndarray:
    """Resizes a window of each frame to fill `out`.

    Args:
      frames: `[T, H, W, 3]` uint8.
      crops: one window a frame, or one for all.
      out: `[T, h, w, 3]`, written to; float32 receives the exact values, uint8 the rounded ones.
      flip: mirrors left and right.
      antialias: as Pillow does, to the pixel; for uint8 alone; bicubic: its other kind.

    Returns `out`.
    """
    resizer = None
    crops = crops * len(frames) if len(crops) == 1 else crops
    for frame, crop, target in zip(frames, crops, out, strict=True):
        size = (crop.height, crop.width)
        if resizer is None or resizer.size != size:  # only motion shift changes it within a clip
            how = size, out.shape[1:3], flip
            resizer = _Antialiased(*how, bicubic) if antialias else _Resizer(*how)
        top, left, height, width = crop
        resizer(frame[top : top + height, left : left + width], target)
    return out


class _Resizer:
    """One size to another, frame after frame. Fresh buffers would cost more than the sums."""

    def __init__(self, size: tuple[int, int], target: tuple[int, int], flip: bool) -> None:
        self.size = size
        (height, width), (rows, columns) = size, target
        (x0, x1, wx), (y0, y1, wy) = _taps(width, columns), _taps(height, rows)
        if flip:
            x0, x1, wx = x0[::-1], x1[::-1], wx[::-1]
        # pixels as flat channels: numpy gathers single items much faster than triples
        self._x = [(x[:, None] * 3 + np.arange(3)).ravel() for x in (x0, x1)]
        self._wx = np.repeat(wx, 3)
        bands = [slice(row, min(row + BAND, rows)) for row in range(0, rows, BAND)]
        self._bands = [(band, y0[band], y1[band], wy[band, None]) for band in bands]
        self._window = np.empty((height, width, 3), np.float32)
        self._wide = [np.empty((height, columns * 3), np.float32) for _ in range(2)]
        self._done = [np.empty((min(BAND, rows), columns * 3), np.float32) for _ in range(2)]

    def __call__(self, window: np.ndarray, out: np.ndarray) -> None:
        self._window[...] = window
        flat = self._window.reshape(len(window), -1)
        wide = _lerp(flat, *self._x, self._wx, *self._wide, axis=1)
        for band, y0, y1, wy in self._bands:
            rows = _lerp(wide, y0, y1, wy, *(done[: len(y0)] for done in self._done), axis=0)
            if out.dtype == np.uint8:
                np.rint(rows, out=rows)
            np.copyto(out[band], rows.reshape(out[band].shape), casting='unsafe')


class _Antialiased:
    """Likewise, by Pillow."""

    def __init__(
        self, size: tuple[int, int], target: tuple[int, int], flip: bool, bicubic: bool
    ) -> None:
        self.size, self._target, self._flip = size, target, flip
        self._kind = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR

    def __call__(self, window: np.ndarray, out: np.ndarray) -> None:
        image = Image.fromarray(np.ascontiguousarray(window))
        done = np.asarray(image.resize(self._target[::-1], self._kind))
        out[...] = done[:, ::-1] if self._flip else done


def _lerp(source, first, second, weight, a, b, axis):
    """`source[first] + (source[second] - source[first]) * weight`, in the buffers a and b."""
    source.take(first, axis, a, 'clip')  # which lets take write without a copy; nothing is clipped
    source.take(second, axis, b, 'clip')
    b -= a
    b *= weight
    a += b
    return a


def _taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every output position the two input positions and the weight of the second, float32."""
    at = (np.arange(size_out, dtype=np.float32) + np.float32(0.5)) * np.float32(size_in / size_out)
    at = np.maximum(at - np.float32(0.5), 0)
    low = at.astype(np.intp)
    return low, np.minimum(low + 1, size_in - 1), at - low.astype(np.float32)


def augment(
    frames: np.ndarray, settings: AugmentConfig, rng: np.random.Generator, out: np.ndarray
) -> np.ndarray:
    """The training transform of one clip.

    Args:
      frames: `[T, H, W, 3]` uint8; a repeated frame (stride 0) is resized once.
      settings: ranges of the crop; flip; motion shift.
      rng: every random draw comes from here.
      out: `[T, crop, crop, 3]` uint8, written to.

    Returns `out`.
    """

    def integer(low: int, high: int) -> int:
        return int(rng.integers(low, high, endpoint=True))

    def crop() -> Crop:
        size = frames.shape[1:3]
        return sample_crop(*size, settings.scale, settings.ratio, rng.uniform, integer)

    crops = [crop()]
    if settings.motion_shift:
        crops = shift(crops[0], crop(), len(frames))
    how = settings.flip and rng.uniform() < 0.5, settings.antialias, settings.bicubic
    if len(crops) == 1 and frames.strides[0] == 0:
        out[...] = resize(frames[:1], crops, np.empty_like(out[:1]), *how)
        return out
    return resize(frames, crops, out, *how)
