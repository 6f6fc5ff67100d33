"""NumPy's files: reading them from several threads, and an .npz whose arrays grow row by row, so
that it may be larger than the memory."""

from __future__ import annotations

import math
import os
import pathlib
import shutil
import tempfile
import threading
import zipfile
import zlib
from typing import Literal

import numpy as np

from jepa_jax import scratch

# np.load parses headers by `ast`, which up to Python 3.11.7 raises SystemError in two threads at
# once, now and then (python/cpython issue 106905)
_parsing = threading.Lock()


def load(path: str | os.PathLike, mmap_mode: Literal['r'] | None = None) -> np.ndarray:
    """The array of an .npy file; errors as those of np.load. Safe in threads."""
    with _parsing:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)


def load_all(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name. Safe in threads.

    Raises:
      OSError: there is no such file, or it cannot be opened.
      ValueError: it is damaged or something else.
    """
    # given a path, numpy leaves the file of a damaged archive open
    with _parsing, open(path, 'rb') as stream:
        try:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError('one array alone, as in an .npy file')
            return {name: file[name] for name in file}
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(str(error)) from error


class NpzRows:
    """Collects rows in files of a hidden folder beside the target, and joins them on `close`.

    Until then the target is untouched, and stays so if `close` is not reached. Takes twice the
    target's size on disk for a moment. What a killed process left there is swept first.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch.sweep(self.path.parent)
        prefix = scratch.prefix(self.path)
        self._folder = tempfile.TemporaryDirectory(prefix=prefix, dir=self.path.parent)
        self._rows: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self.count = 0

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

    def close(self, **arrays: np.ndarray) -> dict[str, tuple[int, ...]]:
        """Writes the target: the rows, and whole arrays beside them; returns the rows' shapes."""
        joined = pathlib.Path(self._folder.name, 'joined')
        with zipfile.ZipFile(joined, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, (dtype, shape) in self._rows.items():
                header = {
                    'descr': np.lib.format.dtype_to_descr(dtype),
                    'fortran_order': False,
                    'shape': (self.count, *shape),
                }
                with (
                    archive.open(f'{name}.npy', 'w', force_zip64=True) as target,
                    open(self._file(name), 'rb') as rows,
                ):
                    np.lib.format.write_array_header_1_0(target, header)
                    shutil.copyfileobj(rows, target, 2**20)
            for name, value in arrays.items():
                with archive.open(f'{name}.npy', 'w', force_zip64=True) as target:
                    np.lib.format.write_array(target, np.asarray(value), allow_pickle=False)
        os.replace(joined, self.path)
        self._folder.cleanup()
        return {name: (self.count, *shape) for name, (_, shape) in self._rows.items()}

    def _file(self, name: str) -> pathlib.Path:
        return pathlib.Path(self._folder.name, f'{name}.rows')
