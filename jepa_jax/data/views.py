"""The evaluation's view of a frame: resized by its short side, the middle cut out; in uint8.

The original resizes with OpenCV's bilinear rule for bytes, which is fixed-point and without
antialiasing; features move when the pixels do, so the rule is repeated here to the last bit, and
OpenCV is not needed. (reference: vjepa2 §6.4)
"""

from __future__ import annotations

import numpy as np

BITS = 11  # of OpenCV's interpolation weights: 2048 is one


def eval_size(height: int, width: int, crop: int) -> tuple[int, int]:
    """Height and width of the resized frame: short side int(crop * 256 / 224), the other in
    proportion, cut to a whole number."""
    short = int(crop * 256 / 224)
    if min(height, width) == short:
        return height, width
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def eval_view(frames: np.ndarray, crop: int) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] of any size -> their middle at evaluation size, [T, crop, crop, 3].

    256 pixels out of a short side of 292, 384 out of 438. Only what the crop shows is computed.
    """
    size = eval_size(*frames.shape[1:3], crop)
    top, left = (int(round((side - crop) / 2)) for side in size)
    return resize(frames, size, (slice(top, top + crop), slice(left, left + crop)))


def side_views(frames: np.ndarray, crop: int, views: int) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] -> squares evenly spread along their long side, [views, T, crop,
    crop, 3]: the original's several views, whose short side is the crop itself."""
    height, width = frames.shape[1:3]
    size = (crop, width * crop // height), (height * crop // width, crop)
    if min(height, width) == crop:
        size = ((height, width),) * 2
    tall = height > width
    step = (max(size[tall]) - crop) // max(1, views - 1)
    parts = [slice(i * step, i * step + crop) for i in range(views)]
    whole = slice(0, crop)
    windows = [(part, whole) if tall else (whole, part) for part in parts]
    return np.stack([resize(frames, size[tall], window) for window in windows])


def picture_view(picture: np.ndarray, crop: int) -> np.ndarray:
    """A picture uint8 [H, W, 3] -> [crop, crop, 3], as evaluations of pictures see one: resized by
    Pillow with antialias, the middle cut out. (reference: vjepa2 §6.4)"""
    from PIL import Image

    size = eval_size(*picture.shape[:2], crop)
    resized = Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR)
    top, left = (int(round((side - crop) / 2)) for side in size)
    return np.asarray(resized)[top : top + crop, left : left + crop]


def area_means(frames: np.ndarray, side: int) -> np.ndarray:
    """Frames uint8 [T, H, W, C] -> means over areas, float64 [T, at most side, at most side, C]."""
    _, H, W, _ = frames.shape
    y, x = (np.arange(min(side, size)) * size // min(side, size) for size in (H, W))
    sums = np.add.reduceat(np.add.reduceat(frames, y, axis=1, dtype=np.float32), x, axis=2)
    area = np.outer(np.diff(y, append=H), np.diff(x, append=W))[..., None]
    return sums / area


def resize(
    frames: np.ndarray,
    size: tuple[int, int],
    window: tuple[slice, slice] = (slice(None), slice(None)),
) -> np.ndarray:
    """cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR), and of that a window of rows
    and columns. Frames uint8 [T, H, W, C] -> [T, h, w, C], equal to OpenCV's bit for bit."""
    if frames.shape[1:3] == size:
        return np.ascontiguousarray(frames[:, window[0], window[1]])
    x0, x1, right = (a[window[1]] for a in taps(frames.shape[2], size[1]))
    y0, y1, below = (a[window[0]] for a in taps(frames.shape[1], size[0]))
    # OpenCV holds a column beyond the edge by weight and a row by repeating it: not the same, since
    # the two rows are rounded one by one
    right = np.where(x0 == x1, 0, right)
    rows, where = np.unique(np.concatenate([y0, y1]), return_inverse=True)
    upper, lower = where[: len(y0)], where[len(y0) :]
    w1, h1 = _fixed(right)[:, None], _fixed(below)[:, None, None]
    w0, h0 = _fixed(1 - right)[:, None], _fixed(1 - below)[:, None, None]
    out = np.empty((len(frames), len(y0), len(x0), frames.shape[3]), np.uint8)
    for frame, target in zip(frames, out):
        used = frame[rows].astype(np.int32)
        wide = (used[:, x0] * w0 + used[:, x1] * w1) >> 4
        both = ((wide[upper] * h0) >> 16) + ((wide[lower] * h1) >> 16)
        target[...] = (both + 2) >> 2
    return out


def taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every output position the two input positions and the weight of the second, float32."""
    scale = 1 / (size_out / size_in)  # as OpenCV does: in double, and inverted twice
    at = ((np.arange(size_out) + 0.5) * scale - 0.5).astype(np.float32)
    low = np.floor(at)
    first, last = low.astype(np.intp), size_in - 1
    return first.clip(0, last), (first + 1).clip(0, last), at - low


def _fixed(weight: np.ndarray) -> np.ndarray:
    return np.rint(weight * np.float32(1 << BITS)).astype(np.int32)
