"""Arrays of HDF5 files that nobody vouches for: of the file itself, and of no other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jepa_jax import files
from jepa_jax.data.robot.episodes import INSTALL
from jepa_jax.errors import BadFile, ConfigError

LINKS = 8  # links in a file that lead on to others before they are refused


class Arrays:
    """The datasets of a file by their names."""

    def __init__(self, path: Path, file) -> None:
        self._path, self._file = path, file
        self._size = files.size(path)

    def read(self, name: str) -> np.ndarray | None:
        """Numbers of one axis or two; None: there is nothing of that name.

        Raises:
          BadFile: its bytes are in another file, it is too large, or no such array.
        """
        import h5py

        node = self._walk(name.split('/'))
        if node is None:
            return None
        with files.reading(self._path):
            if not isinstance(node, h5py.Dataset):
                raise BadFile(self._path, 'corrupt', f'{name} is no array')
            if node.external or node.is_virtual:
                raise BadFile(self._path, 'outside', f'the numbers of {name} are in another file')
            if node.dtype.kind not in 'fiu' or node.ndim not in (1, 2):
                kind = f'{node.dtype} {list(node.shape or ())}'
                raise BadFile(self._path, 'bad_state', f'{name} is {kind}, must be [T] or [T, n]')
            shape, item, chunks = node.shape, node.dtype.itemsize, node.chunks
        files.bound(self._path, 'frames', shape[0], f'{name} has {shape[0]:,} rows')
        # a chunk is unpacked whole, however little of it is in the array
        for sides in (shape, chunks or (0,)):
            files.bound_decoded(
                self._path, int(np.prod(np.array(sides, object))) * item, self._size
            )
        with files.reading(self._path):
            return np.asarray(node)

    def names(self, place: str) -> list[str]:
        """What is in a group; nothing if there is none."""
        import h5py

        group = self._walk(place.split('/'))
        with files.reading(self._path):
            return [f'{name}' for name in group] if isinstance(group, h5py.Group) else []

    def _walk(self, steps: list[str]):
        """The object that steps lead to, without leaving the file; None: there is none."""
        import h5py

        node, links = self._file, 0
        steps = [step for step in steps if step]
        with files.reading(self._path):
            while steps:
                step = steps.pop(0)
                link = node.get(step, getlink=True) if isinstance(node, h5py.Group) else None
                if link is None:
                    return None
                if isinstance(link, h5py.ExternalLink):
                    raise BadFile(
                        self._path, 'outside', f'{step} is a link to {link.filename!r:.80}'
                    )
                if isinstance(link, h5py.SoftLink):
                    links += 1
                    if links > LINKS:
                        raise BadFile(self._path, 'corrupt', f'{step} is a link without end')
                    steps[:0] = [part for part in link.path.split('/') if part]
                    node = self._file if link.path.startswith('/') else node
                    continue
                node = node[step]
        return node


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Arrays]:
    """Raises BadFile, and ConfigError where h5py is not installed."""
    try:
        import h5py
    except ImportError:
        raise ConfigError(f'HDF5 recordings: {INSTALL.format("h5py")}') from None
    files.size(path)
    with files.reading(path):
        file = h5py.File(path, 'r')
    try:
        yield Arrays(path, file)
    finally:
        file.close()
