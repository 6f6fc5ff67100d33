"""Frames of animated PNG files as browsers show them.

Pillow decodes each frame's own rectangle; they are laid over each other here, for Pillow lays the
first frame over a picture that is none of the frames, and keeps what some frames ask to be taken
back. Source: PNG, third edition, 11.3.6.
"""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from jepa_jax import files
from jepa_jax.data import pillow
from jepa_jax.errors import BadFile

START = b'\x89PNG\r\n\x1a\n'


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame's place."""

    width: int
    height: int
    left: int
    top: int
    seconds: float
    disposal: int  # 1: its rectangle becomes clear after it; 2: what it was before
    over: bool  # laid over what is there, else in place of it
    data: list[tuple[int, int, bool]]  # places and lengths of its chunks; whether numbered


def frames(file: BinaryIO) -> Iterator[Frame]:
    """Frames of a file; none if it is not animated. `data` is filled when the next one comes."""
    file.seek(len(START))
    animated, frame = False, None
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack('>I4s', head)
        if name == b'IEND' or name == b'IDAT' and not animated:
            break
        place = file.tell()
        data = file.read(min(length, 26)) if name == b'fcTL' else b''
        if name == b'acTL':
            animated = True
        elif len(data) == 26:
            if frame:
                yield frame
            _, width, height, left, top, above, below, disposal, over = struct.unpack(
                '>IIIIIHHBB', data
            )
            seconds = above / (below or 100)
            frame = Frame(width, height, left, top, seconds, disposal, over == 1, [])
        elif frame and name in (b'IDAT', b'fdAT'):
            frame.data.append((place, length, name == b'fdAT'))
        file.seek(place + length + 4)
    if frame:
        yield frame


def composed(
    path: str | os.PathLike,
    file: BinaryIO,
    size: int,
    rgb: Callable[[str | os.PathLike, Image.Image], np.ndarray],
    spend: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """The canvas after each frame in turn, RGBA uint8 `[H, W, 4]`, the same array each time.

    Args:
      size: of the file, bytes.
      rgb: what becomes of pixels that are opaque.
      spend: told of pixels before they are decoded.

    Raises:
      BadFile: a frame is damaged, or larger than allowed.
    """
    head, shared = _shared(path, file)
    width, height = struct.unpack('>II', head[:8])
    files.bound(path, 'pixels', height * width)
    files.bound_decoded(path, height * width * 24, size)  # canvas, frame, what is above
    canvas = np.zeros((height, width, 4), np.uint8)
    for number, frame in enumerate(frames(file)):
        place = file.tell()
        if frame.left + frame.width > width or frame.top + frame.height > height:
            raise BadFile(path, 'corrupt', f'frame {number} lies outside of the picture')
        part = canvas[frame.top :, frame.left :][: frame.height, : frame.width]
        below = part.copy() if frame.disposal == 2 else None
        spend(frame.width * frame.height)
        drawn = _decode(path, file, size, head, shared, frame, rgb)
        if frame.over:
            _lay_over(part, drawn)
        else:
            part[...] = drawn
        yield canvas
        if frame.disposal == 1 or frame.disposal == 2 and not number:
            part[...] = 0
        elif below is not None:
            part[...] = below
        file.seek(place)


def _lay_over(part: np.ndarray, drawn: np.ndarray) -> None:
    """Porter and Duff's over, on RGBA whose colours are not multiplied by alpha."""
    if (drawn[..., 3] % 255 == 0).all():
        np.copyto(part, drawn, where=drawn[..., 3:] > 0)
        return
    above, under = drawn[..., 3:] / np.float32(255), part[..., 3:] / np.float32(255)
    alpha = above + under * (1 - above)
    colour = drawn[..., :3] * above + part[..., :3] * under * (1 - above)
    part[..., :3] = np.rint(colour / np.maximum(alpha, 1e-9))
    part[..., 3:] = np.rint(alpha * 255)


def _shared(path: str | os.PathLike, file: BinaryIO) -> tuple[bytes, bytes]:
    """The header's content, and chunks of colours that all frames share."""
    file.seek(len(START))
    head, shared = b'', b''
    while len(start := file.read(8)) == 8:
        length, name = struct.unpack('>I4s', start)
        if name in (b'IDAT', b'IEND'):
            break
        if name == b'IHDR' and length == 13:
            head = file.read(13)
        elif name in (b'PLTE', b'tRNS') and length <= 768:
            shared += start + file.read(length + 4)
            continue
        else:
            file.seek(length, os.SEEK_CUR)
        file.seek(4, os.SEEK_CUR)
    if len(head) != 13:
        raise BadFile(path, 'corrupt', 'no header')
    return head, shared


def _decode(path, file, size, head, shared, frame, rgb) -> np.ndarray:
    """A frame's rectangle, RGBA uint8 `[h, w, 4]`: Pillow reads it as a PNG of its own."""
    files.bound_decoded(path, frame.width * frame.height * 16, size)
    content = [START, _chunk(b'IHDR', struct.pack('>II', frame.width, frame.height) + head[8:])]
    content.append(shared)
    for place, length, numbered in frame.data:
        file.seek(place)
        content.append(_chunk(b'IDAT', file.read(length)[4 * numbered :]))
    content.append(_chunk(b'IEND', b''))
    with pillow.reading(path):
        with Image.open(io.BytesIO(b''.join(content)), formats=['PNG']) as image:
            image.load()
            if not image.mode.startswith('I'):
                return np.asarray(image.convert('RGBA'))
            return np.dstack([rgb(path, image), np.full(image.size[::-1], 255, np.uint8)])


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
