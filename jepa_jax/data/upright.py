"""Decoded frames as upright RGB."""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from jepa_jax import files
from jepa_jax.errors import BadFile


class Pictures:
    """Decoded frames as upright RGB in one array, made when the first one tells the size."""

    def __init__(self, path, count: int, packed: int):
        """count: of the frames; packed: bytes of the file."""
        self.path, self.count, self.packed = path, count, packed
        self.frames: np.ndarray | None = None  # [count, H, W, 3] uint8
        self.reformatter = VideoReformatter()

    def put(self, row: int, frame: av.VideoFrame) -> None:
        size = frame.width, frame.height
        if self.frames is None:
            files.bound_decoded(self.path, 3 * self.count * size[0] * size[1], self.packed)
            self.turn, self.size = turn_of(frame), size
            self.frames = np.empty((self.count, *upright_size(frame, self.turn), 3), np.uint8)
        if size != self.size:
            raise BadFile(self.path, 'size_change', f'from {self.size} to {size}')
        with files.reading(self.path):
            rgb = self.reformatter.reformat(frame, format='rgb24', threads=1)
        plane = rgb.planes[0]
        lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        pixels = lines[: frame.height, : 3 * frame.width].reshape(frame.height, frame.width, 3)
        self.frames[row] = _turned(pixels, self.turn)


# A display matrix that turns by right angles: (transposed, then mirrored in x, then mirrored in y).
DEGREES = {
    (False, False, False): 0,
    (True, True, False): 90,
    (False, True, True): 180,
    (True, False, True): 270,
    (False, True, False): 0,  # the rest mirror as well
    (True, False, False): 90,
    (False, False, True): 180,
    (True, True, True): 270,
}


def turn_of(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How to turn a frame upright: its display matrix to the right angle, a key of `DEGREES`.

    The matrix takes a stored (x, y) to (a x + c y, b x + d y). libav: display.h.
    """
    matrix = frame.side_data.get('DISPLAYMATRIX')
    if matrix is None or matrix.buffer_size < 20:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    to_x, to_y = (c, b) if transposed else (a, d)
    return transposed, to_x < 0, to_y < 0


def upright_size(frame: av.VideoFrame, turn: tuple[bool, bool, bool]) -> tuple[int, int]:
    """Height and width once turned."""
    return (frame.width, frame.height) if turn[0] else (frame.height, frame.width)


def _turned(pixels: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """`[H, W, C]` turned: a view."""
    transposed, mirror_x, mirror_y = turn
    if transposed:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]
