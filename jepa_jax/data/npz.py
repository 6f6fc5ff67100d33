"""NumPy's files: reading them from several threads, and arrays that grow row by row, so that they
may be larger than the memory, as one .npz or as a folder of .npy."""

from __future__ import annotations

import math
import os
import pathlib
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Collection
from typing import BinaryIO, Literal

import numpy as np

from jepa_jax import files, scratch
from jepa_jax.errors import BadFile

# np.load parses headers by `ast`, which up to Python 3.11.7 raises SystemError in two threads at
# once, now and then (python/cpython issue 106905)
_parsing = threading.Lock()
PIECE = 2**20  # bytes unpacked at a time


def load(path: str | os.PathLike, mmap_mode: Literal['r'] | None = None) -> np.ndarray:
    """The array of an .npy file. Safe in threads.

    Raises:
      BadFile: missing, unreadable, damaged, an array of objects, or more than the file holds.
    """
    size = files.size(path)
    with files.reading(path, 'not_array'), open(path, 'rb') as stream:
        _check_header(path, stream, size)
        with _parsing:
            return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)


def load_frames(path: str | os.PathLike) -> np.ndarray:
    """An .npy of uint8 frames [T, H, W, 3], mapped, not read. Raises BadFile."""
    frames = load(path, mmap_mode='r')
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        detail = f'{frames.dtype} {list(frames.shape)}: must be uint8 [T, H, W, 3], RGB'
        raise BadFile(path, 'not_array', detail)
    files.bound(path, 'frames', len(frames))
    files.bound(path, 'pixels', frames.shape[1] * frames.shape[2])
    return frames


def load_all(
    path: str | os.PathLike, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; names: of those that are to be read, if they are there.
    Safe in threads.

    What a member unpacks to is bounded before it is unpacked, by the archive's directory and by the
    array's header.

    Raises:
      BadFile: missing, unreadable, damaged, something else, or more than the limits allow.
    """
    size = files.size(path)
    with files.reading(path), open(path, 'rb') as stream:
        return read_all(path, stream, size, names)


def read_all(
    path: str | os.PathLike, stream: BinaryIO, size: int, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """load_all of a stream of `size` bytes; path: its name in errors."""
    arrays = {}
    with files.reading(path):
        if stream.read(6) == np.lib.format.MAGIC_PREFIX:
            raise BadFile(path, 'corrupt', 'one array alone, as in an .npy file')
        with zipfile.ZipFile(stream) as archive:
            members = {m.filename.removesuffix('.npy'): m for m in archive.infolist()}
            if names is not None:
                members = {name: m for name, m in members.items() if name in names}
            files.bound_decoded(path, sum(m.file_size for m in members.values()), size)
            for name, member in members.items():
                arrays[name] = _member(path, archive, member)
    return arrays


def _member(path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadFile(path, 'corrupt', f'{member.filename!r}: neither stored nor deflated')
    with archive.open(member) as stream:
        shape, fortran, dtype = _check_header(path, stream, member.file_size, member.filename)
        content = bytearray(math.prod(shape) * dtype.itemsize)
        for start in range(0, len(content), PIECE):
            piece = memoryview(content)[start : start + PIECE]
            if stream.readinto(piece) != len(piece):
                raise BadFile(path, 'truncated', f'{member.filename!r} ends too soon')
        if stream.read(1):
            raise BadFile(path, 'corrupt', f'{member.filename!r} holds more than its array')
    array = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
    return array.reshape(shape, order='F' if fortran else 'C')


def _check_header(
    path: str | os.PathLike, stream: BinaryIO, size: int, name: str = ''
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran's order, and type of the array that a stream of `size` bytes
    holds; the stream is then at its values.

    Raises BadFile: no array, one of objects, or one that is larger than the stream.
    """
    name = f'{name!r}: ' if name else ''
    with files.reading(path, 'not_array'):
        version = np.lib.format.read_magic(stream)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        with _parsing:
            shape, fortran, dtype = read[version[0]](stream)
    if dtype.hasobject:
        raise BadFile(path, 'not_array', f'{name}an array of Python objects')
    if any(n < 0 for n in shape) or math.prod(shape) and not dtype.itemsize:
        raise BadFile(path, 'not_array', f'{name}{dtype} {list(shape)}')
    if (bytes_ := math.prod(shape) * dtype.itemsize) > size - stream.tell():
        detail = f'{name}{dtype} {list(shape)} are {bytes_:,} bytes, of which the file has fewer'
        raise BadFile(path, 'truncated', detail)
    return shape, fortran, dtype


class Rows:
    """Collects rows in files of a hidden folder beside the target, and joins them at the end.

    Until then the target is untouched, and stays so if the end is not reached. Takes twice the
    target's size on disk for a moment. What a killed process left there is swept first.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch.sweep(self.path.parent)
        prefix = scratch.prefix(self.path)
        self._folder = tempfile.TemporaryDirectory(prefix=prefix, dir=self.path.parent)
        self.joined = pathlib.Path(self._folder.name, 'joined')  # becomes the target
        self._rows: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self.count = 0

    @property
    def nbytes(self) -> int:
        """Of the rows so far."""
        return self.count * sum(d.itemsize * math.prod(shape) for d, shape in self._rows.values())

    def drop(self) -> None:
        """Gives up: the target stays untouched."""
        self._folder.cleanup()

    def add(self, **values: np.ndarray) -> None:
        """Appends one row to each array.

        Raises:
          ValueError: other names, shapes or types than those of the first row.
        """
        values = {name: np.asarray(value) for name, value in values.items()}
        forms = {name: (value.dtype, value.shape) for name, value in values.items()}
        if self.count and forms != self._rows:
            raise ValueError(f'{self.path}: a row of {forms} after rows of {self._rows}')
        self._rows = forms
        for name, value in values.items():
            with open(self._file(name), 'ab') as file:
                file.write(np.ascontiguousarray(value).data)
        self.count += 1

    def cut(self, count: int) -> None:
        """Takes the rows after the first `count` back."""
        for name, (dtype, shape) in self._rows.items():
            os.truncate(self._file(name), count * dtype.itemsize * math.prod(shape))
        self.count = count

    def columns(self) -> dict[str, np.ndarray]:
        """The rows so far, of which there are some, mapped."""
        return {
            name: np.memmap(self._file(name), dtype, 'r', shape=(self.count, *shape))
            for name, (dtype, shape) in self._rows.items()
        }

    def npz(self, **arrays: np.ndarray) -> dict[str, tuple[int, ...]]:
        """Writes the target, an .npz: the rows, and whole arrays beside them; returns the rows'
        shapes."""
        with zipfile.ZipFile(self.joined, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name in self._rows:
                with archive.open(f'{name}.npy', 'w', force_zip64=True) as target:
                    self._join(name, target)
            for name, value in arrays.items():
                with archive.open(f'{name}.npy', 'w', force_zip64=True) as target:
                    np.lib.format.write_array(target, np.asarray(value), allow_pickle=False)
        return self.end()

    def folder(self) -> pathlib.Path:
        """Joins the rows as files NAME.npy of a folder, which `end` makes the target."""
        self.joined.mkdir()
        for name in self._rows:
            with open(self.joined / f'{name}.npy', 'wb') as target:
                self._join(name, target)
        return self.joined

    def end(self) -> dict[str, tuple[int, ...]]:
        """What is joined becomes the target; a folder does not replace one. Returns the shapes."""
        os.replace(self.joined, self.path)
        self._folder.cleanup()
        return {name: (self.count, *shape) for name, (_, shape) in self._rows.items()}

    def _join(self, name: str, target: BinaryIO) -> None:
        dtype, shape = self._rows[name]
        header = {
            'descr': np.lib.format.dtype_to_descr(dtype),
            'fortran_order': False,
            'shape': (self.count, *shape),
        }
        np.lib.format.write_array_header_1_0(target, header)
        with open(self._file(name), 'rb') as rows:
            shutil.copyfileobj(rows, target, 2**20)

    def _file(self, name: str) -> pathlib.Path:
        return pathlib.Path(self._folder.name, f'{name}.rows')
