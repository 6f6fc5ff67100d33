"""What an mp4 or mov says of itself, looked at before libav does: libav allocates what the index
claims, however small the file is.

A file of 400 bytes may claim 40 million frames; no frame has less than a byte.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from jepa_jax import files
from jepa_jax.errors import BadFile

# With one of these, at byte 4, every file begins that is read as mp4 or mov (libav: mov_probe).
FIRST = frozenset(
    b'ftyp moov mdat wide free skip junk uuid prfl styp sidx moof pnot udta pict'.split()
)
# Boxes of boxes; libav reads them wherever they stand, so this does as well.
_INNER = frozenset(
    b'moov trak mdia minf stbl edts dinf moof traf mvex udta wave gmhd tref sinf schi'.split()
)
SPARE = 2**20  # frames that any file may claim in edit lists


@dataclasses.dataclass
class _Claims:
    samples: int = 0  # of all tracks before this one, and of fragments
    repeats: int = 0  # samples of all tracks before this one, once more for each further edit
    track: int = 0  # samples of this track
    edits: int = 0  # entries of its edit list
    handler: bytes = b''  # vide, soun, ...
    plain: bool = False  # sound without an index: libav counts chunks, not samples

    def next_track(self) -> None:
        track = 0 if self.plain else self.track
        self.samples += track
        self.repeats += max(0, self.edits - 1) * track
        self.track, self.edits, self.handler, self.plain = 0, 0, b'', False


def is_mp4(path: str | os.PathLike) -> bool:
    with files.reading(path), open(path, 'rb') as file:
        return file.read(8)[4:] in FIRST


def check(path: str | os.PathLike, deadline: files.Deadline) -> None:
    """Refuses an mp4 that claims more than its bytes can hold, or whose pictures are elsewhere.

    Raises:
      BadFile: index, not_local, unsupported.
    """
    size, claims = files.size(path), _Claims()
    with files.reading(path):
        file = open(path, 'rb')
    with file:
        for kind, place, length in _boxes(path, file, 0, size, 0, deadline):
            _note(path, file, kind, place, length, claims)
        claims.next_track()
    for count, most, what in (
        (claims.samples, size, 'claims'),
        (claims.repeats, SPARE + 4 * size, 'repeats'),
    ):
        if count > most:
            index = f'{size:,} bytes whose index {what} {count:,} frames: at most {most:,}'
            raise BadFile(path, 'index', index)


def _boxes(
    path, file: BinaryIO, place: int, end: int, depth: int, deadline: files.Deadline
) -> Iterator[tuple[bytes, int, int]]:
    """(kind, place of the content, bytes of it that are there) of all boxes, outer ones first."""
    count = 0
    while place + 8 <= end:
        if not (count := count + 1) % 4096:
            deadline.check()
        head = _at(path, file, place, 16)
        length, kind = struct.unpack('>I4s', head[:8])
        begin = place + 8
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack('>Q', head[8:])
            begin += 8
        stop = min(place + length, end) if length else end
        if stop <= place:
            return
        yield kind, begin, max(0, stop - begin)
        hidden = kind in (b'free', b'hoov') and _at(path, file, begin + 4, 4) == b'moov'
        if (kind in _INNER or hidden) and depth < 12:
            yield from _boxes(path, file, begin, stop, depth + 1, deadline)
        place = max(stop, place + 8)


def _at(path, file: BinaryIO, place: int, count: int) -> bytes:
    try:  # 50 times a file: `files.reading` takes longer than what it stands around
        file.seek(place)
        return file.read(count)
    except OSError as error:
        raise files.refused(path, error) from error


def _note(path, file, kind: bytes, place: int, length: int, claims: _Claims) -> None:
    """Adds what one box claims. Raises BadFile."""

    def number(at: int) -> int:
        return int.from_bytes(_at(path, file, place + at, 4), 'big')

    if kind == b'trak':
        claims.next_track()
    elif kind == b'cmov':
        raise BadFile(path, 'unsupported', 'a compressed header (cmov)')
    elif kind == b'hdlr' and not claims.handler:
        claims.handler = _at(path, file, place + 8, 4)
    elif kind == b'dref' and claims.handler == b'vide':
        if other := _external(_at(path, file, place, min(length, 2**16))):
            raise BadFile(path, 'not_local', f'its pictures are in {other}')
    elif kind in (b'stsz', b'stz2') and length >= 12:
        claims.track = max(claims.track, number(8))
    elif kind in (b'stts', b'ctts') and length >= 8:
        entries = min(number(4), (length - 8) // 8)
        files.bound(path, 'index', 8 * entries)
        with files.reading(path):  # memory may run out
            table = np.frombuffer(_at(path, file, place + 8, 8 * entries), '>u4')
        claims.track = max(claims.track, int(table[::2].sum(dtype=np.int64)))
        if claims.handler == b'soun' and kind == b'stts':
            claims.plain = table[1:].tolist() == [1]
    elif kind == b'trun' and length >= 8:
        claims.samples += number(4)
    elif kind == b'elst' and length >= 8:
        claims.edits += min(number(4), (length - 8) // 12)


def _external(table: bytes) -> str:
    """What the first entry of a data reference names, '' if that is the file itself."""
    length, kind, flags = struct.unpack('>I4sI', table[8:20].ljust(12, b'\0'))
    if flags & 1 or length <= 12 or kind not in (b'url ', b'alis', b'rsrc', b'urn '):
        return ''
    words = bytes(c for c in table[20 : 8 + length] if 32 <= c < 127).decode()
    return words[:80] or 'another file'


def is_cut(path: str | os.PathLike) -> bool:
    """Whether a file that begins as an mp4 or mov ends before its boxes do, or has no index."""
    size, place, boxes = files.size(path), 0, []
    with files.reading(path):
        file = open(path, 'rb')
    with file:
        while place + 8 <= size:
            head = _at(path, file, place, 16).ljust(16, b'\0')
            length, kind, large = struct.unpack('>I4sQ', head)
            boxes.append(kind)
            if boxes[0] not in (b'ftyp', b'wide', b'mdat', b'moov', b'skip', b'free'):
                return False
            place += max(large if length == 1 else length or size - place, 8)
    return place > size or b'moov' not in boxes
