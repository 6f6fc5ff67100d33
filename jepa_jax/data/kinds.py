"""What a file is, by its content: asked once, by training, embedding and indexing alike.

A name's suffix decides nothing but which files a folder scan picks up, and who refuses bytes that
nobody knows.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from jepa_jax import files
from jepa_jax.data import apng, gif
from jepa_jax.errors import BadFile

VIDEOS = frozenset(
    '.mp4 .mkv .mov .avi .webm .m4v .mpg .mpeg .ts .flv .wmv .3gp .ogv .mts .m2ts .vob '
    '.divx'.split()
)
PICTURES = frozenset('.bmp .gif .jpeg .jpg .png .ppm .tif .tiff .webp'.split())
STACKS = frozenset('.gif .apng .webp .png .tif .tiff'.split())  # those that may hold frames

HEAD = 1024  # bytes that tell
TIFF = b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'
# of pictures of one frame; the others are looked at below
_STILL = (
    (0, b'\xff\xd8\xff'), (0, b'BM'), (0, b'P1'), (0, b'P2'), (0, b'P3'), (0, b'P4'), (0, b'P5'),
    (0, b'P6'), (0, b'Pf'), (0, b'\0\0\0\x0cjP  \r\n\x87\n'), (0, b'\xff\x4f\xff\x51'),
    (4, b'ftypavif'), (4, b'ftypmif1'), (4, b'ftypheic'),
    (0, b'%!PS'), (0, b'\xc5\xd0\xd3\xc6'),  # PostScript, to be refused as a picture
)  # fmt: skip
_VIDEO = (
    (4, b'ftyp'), (4, b'moov'), (4, b'mdat'), (4, b'wide'), (4, b'free'), (4, b'skip'),
    (0, b'\x1a\x45\xdf\xa3'), (8, b'AVI '), (0, b'FLV\x01'), (0, b'OggS'), (0, b'YUV4MPEG2'),
    (0, b'\x30\x26\xb2\x75\x8e\x66\xcf\x11'), (0, b'\0\0\x01\xba'), (0, b'\0\0\x01\xb3'),
)  # fmt: skip


def kind_of(path: str | os.PathLike) -> str:
    """`video`, `image`, `stack` (a picture file of two frames or more) or `array` (.npy).

    Bytes that nobody knows are for the reader that the suffix names to refuse, by default that of
    videos.

    Raises:
      BadFile: no regular file that can be read.
    """
    if kind := known(path):
        return kind
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    return 'array' if suffix == '.npy' else 'image' if suffix in PICTURES else 'video'


def known(path: str | os.PathLike) -> str | None:
    """The same, or None for bytes that nobody knows. Raises BadFile."""
    with _opened(path) as file:
        head = file.read(HEAD)
        if (frames := _frames(path, file, head)) is not None:
            return 'stack' if len(list(itertools.islice(frames, 2))) == 2 else 'image'
    if head.startswith(b'\x93NUMPY'):
        return 'array'
    for kind, table in (('image', _STILL), ('video', _VIDEO)):
        if any(head[at : at + len(word)] == word for at, word in table):
            return kind
    # transport streams: a mark every 188 bytes, or 192 with a time before each
    if any(head[at : at + 3 * step : step] == b'GGG' for at, step in ((0, 188), (4, 192))):
        return 'video'
    return None


def frames_of(path: str | os.PathLike) -> tuple[list[int], list[float] | None]:
    """Of the frames of a stack, Pillow's numbers and the seconds that each is shown; None for these
    if its format has no clock (TIFF).

    Frames that ask for 10 ms or less are shown for 100, as browsers and ffmpeg do.

    Raises:
      BadFile: too many frames, or they take too long to be counted.
    """
    deadline, numbers, seconds = files.Deadline(path), [], []
    with _opened(path) as file:
        head = file.read(HEAD)
        for number, duration in _frames(path, file, head) or ():
            numbers.append(number)
            seconds.append(0.1 if duration <= 0.0101 else duration)
            if not len(numbers) % 256:
                files.bound(path, 'frames', len(numbers))
                _ = deadline.left
    files.bound(path, 'frames', len(numbers))
    return numbers, None if head[:2] in (b'II', b'MM') else seconds


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[BinaryIO]:
    files.size(path)
    try:
        with open(path, 'rb') as file:
            yield file
    except OSError as error:
        raise files.refused(path, error) from error


def _frames(
    path: str | os.PathLike, file: BinaryIO, head: bytes
) -> Iterator[tuple[int, float]] | None:
    """Number and seconds of each frame of a format that may hold several; None for others."""
    if head[:6] in (b'GIF87a', b'GIF89a'):
        return ((i, frame.seconds) for i, frame in enumerate(gif.frames(file)))
    if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
        return enumerate(_webp(file))
    if head[:8] == apng.START:
        return ((i, frame.seconds) for i, frame in enumerate(apng.frames(file)))
    if head[:4] in TIFF:
        return ((i, 0.0) for i, page in enumerate(tiff_pages(path, file)) if page)
    return None


def _webp(file: BinaryIO) -> Iterator[float]:
    """Seconds of each frame. Source: WebP container specification, ANMF."""
    file.seek(12)
    animated = False
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack('<4sI', head)
        data = file.read(min(length, 16))
        if name == b'VP8X':
            animated = bool(data[:1]) and bool(data[0] & 2)
        elif name == b'ANMF' and animated and len(data) == 16:
            yield int.from_bytes(data[12:15], 'little') / 1000
        file.seek(length + length % 2 - len(data), os.SEEK_CUR)


_CLAIMS = 'its TIFF directories claim many times the bytes of the file'
# bytes of a value, by its type. Source: TIFF 6.0, 2, and BigTIFF
_BYTES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), 1)) | {16: 8, 17: 8, 18: 8}
_SIZE, _REDUCED, _FURTHER = (256, 257), 254, (34665, 34853, 40965)  # tags; of EXIF, GPS, interop


def tiff_pages(path: str | os.PathLike, file: BinaryIO) -> Iterator[bool]:
    """Of each page whether it is a frame: of the first one's size, and no mask or reduced copy.

    Pillow reads all values of a directory into memory, and nothing keeps a thousand of them from
    claiming the same megabytes, or directories from lying over each other.

    Args:
      file: a TIFF file, or what EXIF holds.

    Raises:
      BadFile: directories that claim many times the file (`index`).
    """
    size = file.seek(0, os.SEEK_END)
    room, claimed = 16 * size + 2**20, 0
    file.seek(0)
    order = '<' if file.read(2) == b'II' else '>'

    def number(kind: str) -> int:
        data = file.read(struct.calcsize(order + kind))
        return struct.unpack(order + kind, data)[0] if len(data) == struct.calcsize(kind) else 0

    big = number('H') == 43
    if big:
        file.read(4)
    count_kind, word, length = ('Q', 'Q', 20) if big else ('H', 'I', 12)
    seen, first = set(), None
    pages, further = [number(word)], []  # places of directories
    while pages or further:
        is_page = bool(pages)
        place = (pages or further).pop()
        if not 0 < place < size or place in seen:
            continue
        seen.add(place)
        file.seek(place)
        count, tags = number(count_kind), {}
        count = max(0, min(count, (size - file.tell()) // length))
        claimed += count * length
        if claimed > room:
            raise BadFile(path, 'index', _CLAIMS)
        entries = file.read(count * length)
        if is_page:
            pages.append(number(word))
        for at in range(0, len(entries), length):
            tag, kind = struct.unpack(f'{order}HH', entries[at : at + 4])
            (values,) = struct.unpack_from(order + word, entries, at + 4)
            claimed += min(values * _BYTES.get(kind, 0), size)
            if tag in (_REDUCED, *_SIZE, *_FURTHER) and kind in (3, 4, 13):
                form, end = ('H', 2) if kind == 3 else ('I', 4)
                value = entries[at + length - struct.calcsize(word) : at + length][:end]
                tags[tag] = struct.unpack(order + form, value)[0]
        if claimed > room:
            raise BadFile(path, 'index', _CLAIMS)
        further += [tags[tag] for tag in _FURTHER if tag in tags]
        if is_page:
            shape = [tags.get(tag) for tag in _SIZE]
            first = first or shape
            yield shape == first and not tags.get(_REDUCED, 0) & 5
