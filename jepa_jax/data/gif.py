"""Frames of GIF files as browsers show them.

Pillow decodes each frame's own rectangle; they are laid over each other here, for Pillow keeps what
a first frame asks to be taken back, and the work is that of the rectangles, however large the
screen. Source: GIF89a, 17 to 27.
"""

from __future__ import annotations

import dataclasses
import io
import os
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from jepa_jax import files
from jepa_jax.data import pillow


@dataclasses.dataclass(frozen=True)
class Screen:
    """What all frames share."""

    height: int
    width: int
    flags: int
    colours: bytes


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame's place and data."""

    left: int
    top: int
    width: int
    height: int
    start: int  # bytes of the file, from the descriptor's flags to the end of the data
    end: int
    seconds: float
    disposal: int  # 2: its rectangle becomes clear after it; 3: what it was before
    control: bytes  # flags and number of the clear colour


def read_screen(file: BinaryIO) -> Screen:
    file.seek(6)
    width, height, flags = struct.unpack('<HHB', file.read(5).ljust(5, b'\0'))
    file.seek(13)
    return Screen(height, width, flags, file.read(_colours(flags)))


def frames(file: BinaryIO) -> Iterator[Frame]:
    """Frames of a file until its end, or until what is no part of a GIF."""
    read_screen(file)
    seconds, disposal, control = 0.0, 0, b'\0\0'
    while mark := file.read(1):
        if mark == b'!':
            label, block = file.read(1), _block(file)
            if label == b'\xf9' and len(block) >= 4:
                seconds = struct.unpack('<H', block[1:3])[0] / 100
                disposal, control = block[0] >> 2 & 7, bytes((block[0] & 1, block[3]))
            while block:
                block = _block(file)
        elif mark == b',':
            place = file.read(8)
            start = file.tell()
            flags = file.read(1)
            if not flags:
                return
            file.seek(_colours(flags[0]), os.SEEK_CUR)
            if not file.read(1):
                return
            while _block(file):
                pass
            left, top, width, height = struct.unpack('<4H', place)
            yield Frame(
                left, top, width, height, start, file.tell(), seconds, disposal, control
            )  # fmt: skip
            seconds, disposal, control = 0.0, 0, b'\0\0'
        else:
            return


def composed(
    path: str | os.PathLike, file: BinaryIO, size: int, spend: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """The canvas after each frame in turn, RGBA uint8 `[H, W, 4]`, the same array each time.

    Args:
      size: of the file, bytes.
      spend: told of pixels before they are decoded.

    Raises:
      BadFile: a frame is damaged, or larger than allowed.
    """
    height, width = screen_size(path, file)
    files.bound_decoded(path, height * width * 24, size)  # canvas, frame, what is above
    canvas, screen = np.zeros((height, width, 4), np.uint8), read_screen(file)
    for frame in frames(file):
        place = file.tell()
        rows = slice(frame.top, frame.top + frame.height)
        columns = slice(frame.left, frame.left + frame.width)
        part = canvas[rows, columns]
        below = part.copy() if frame.disposal == 3 else None
        if part.size:
            spend(frame.width * frame.height)
            drawn = _decode(path, file, size, screen, frame)[: part.shape[0], : part.shape[1]]
            np.copyto(part.view(np.uint32), drawn.view(np.uint32), where=drawn[..., 3:] > 0)
        yield canvas
        if frame.disposal == 2:
            part[...] = 0
        elif below is not None:
            part[...] = below
        file.seek(place)


def screen_size(path: str | os.PathLike, file: BinaryIO) -> tuple[int, int]:
    """Height and width of the canvas; those of the first frame where the file says 0."""
    screen = read_screen(file)
    height, width = screen.height, screen.width
    if not height or not width:
        first = next(frames(file), None)
        height, width = (first.height, first.width) if first else (0, 0)
    files.bound(path, 'pixels', height * width)
    return height, width


def _decode(
    path: str | os.PathLike, file: BinaryIO, size: int, screen: Screen, frame: Frame
) -> np.ndarray:
    """A frame's rectangle, RGBA uint8 `[h, w, 4]`: Pillow reads it as a GIF of its own."""
    files.bound(path, 'pixels', frame.width * frame.height)
    files.bound_decoded(path, frame.width * frame.height * 16, size)
    file.seek(frame.start)
    place = struct.pack('<HH', frame.width, frame.height)
    content = (
        b'GIF89a' + place + bytes((screen.flags, 0, 0)) + screen.colours
        + b'!\xf9\x04' + frame.control[:1] + b'\0\0' + frame.control[1:] + b'\0'
        + b',\0\0\0\0' + place + file.read(frame.end - frame.start) + b';'
    )  # fmt: skip
    with pillow.reading(path):
        with Image.open(io.BytesIO(content), formats=['GIF']) as image:
            return np.asarray(image.convert('RGBA'))


def _colours(flags: int) -> int:
    """Bytes of a table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _block(file: BinaryIO) -> bytes:
    length = file.read(1)
    return file.read(length[0]) if length else b''
