"""The names of a list's records: packed in memory or, for many millions, in a file that every
process of a host maps, so that it is in memory once.

    [names, UTF-8, one after the other] [0 to 7 bytes] [their ends, int64] [labels, int64] [end]

`end` are four int64: a mark, the number of names, their bytes, and whether there are labels; all is
little-endian. `jepa index --names` writes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jepa_jax import files, scratch
from jepa_jax.errors import BadFile

SUFFIX = '.names'
MARK = int.from_bytes(b'jepaname', 'little')
END = 4 * 8  # bytes
NONE = -1  # the label of a record that has none
AT_ONCE = 1 << 22  # ends that are looked at together


class Names:
    """Many strings in two buffers: a million of them pickle in milliseconds."""

    def __init__(self, names: Iterable[str]) -> None:
        parts = [name.encode('utf-8', 'surrogateescape') for name in names]
        self._text = b''.join(parts)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return bytes(self._text[start : self._ends[index]]).decode('utf-8', 'surrogateescape')


class Mapped(Names):
    """The names in a file, and their labels; pickled as its path.

    Raises BadFile: it is not what `write` wrote.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = os.fspath(path)
        self._map()
        before = 0
        for first in range(0, len(self), AT_ONCE):
            ends = self._ends[first : first + AT_ONCE]
            if ends[0] < before or (np.diff(ends) < 0).any():
                raise BadFile(self._path, 'corrupt', 'names that end before they begin')
            before = int(ends[-1])
        if before != len(self._text):
            raise BadFile(self._path, 'corrupt', 'names that end elsewhere than their text')

    def _map(self) -> None:
        size = files.size(self._path)
        with files.reading(self._path):
            whole = np.memmap(self._path, np.uint8, 'r')
        end = whole[-END:].tobytes() if size >= END else b''
        mark, count, text, labelled = np.frombuffer(end.ljust(END, b'\0'), '<i8').tolist()
        if mark != MARK:
            raise BadFile(self._path, 'corrupt', 'no list of names, or cut off')
        start = -(-text // 8) * 8
        rows = 2 if labelled else 1
        if min(count, text) < 0 or start + 8 * count * rows + END != size or not count:
            raise BadFile(self._path, 'truncated', f'{size:,} bytes for {count:,} names')
        numbers = whole[start : size - END].view('<i8').reshape(rows, count)
        self._text, self._ends = whole[:text], numbers[0]
        self.labels = numbers[1] if labelled else None
        status = os.stat(self._path)
        self._seen = status.st_size, status.st_mtime_ns

    def records(self) -> list[tuple[str, int | None]]:
        """All names with their labels, in memory."""
        labels = [NONE] * len(self) if self.labels is None else self.labels.tolist()
        return [(self[i], None if x == NONE else x) for i, x in enumerate(labels)]

    def __getstate__(self) -> dict:
        return {'path': self._path, 'seen': self._seen}

    def __setstate__(self, state: dict) -> None:
        self._path = state['path']
        self._map()
        if self._seen != state['seen']:
            raise BadFile(self._path, 'corrupt', 'it was written anew while it was in use')


def write(path: Path, parts: Iterable[tuple[list[bytes], np.ndarray]]) -> tuple[int, int]:
    """Writes names and their labels (int64, NONE: it has none) as they come, at once, by renaming;
    returns how many there are, and their bytes."""
    scratch.sweep(path.parent)
    ends, labels, at = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    with scratch.whole(path) as file:
        for names, own in parts:
            file.write(b''.join(names))
            ends.append(at + np.cumsum([len(name) for name in names], dtype=np.int64))
            labels.append(own)
            at = int(ends[-1][-1]) if names else at
        file.write(b'\0' * (-at % 8))
        count, labelled = sum(map(len, ends)), any((each != NONE).any() for each in labels)
        for each in (*ends, *(labels if labelled else ())):
            file.write(each.astype('<i8').data)
        file.write(np.array([MARK, count, at, labelled], '<i8').data)
    return count, at
