"""Arrays of HDF5 files that nobody vouches for: of the file itself, and of no other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jepa_jax import files
from jepa_jax.data.robot.episodes import INSTALL
from jepa_jax.errors import BadFile, ConfigError

# filters that come with HDF5 and h5py; any other is a program that HDF5 would look for and load
FILTERS = {
    1: 'gzip', 2: 'shuffle', 3: 'fletcher32', 4: 'szip', 5: 'nbit', 6: 'scaleoffset', 32000: 'lzf',
}  # fmt: skip
LINKS = 8  # links in a file that lead on to others before they are refused


class Arrays:
    """The datasets of a file by their names."""

    def __init__(self, path: Path, file) -> None:
        self._path = path
        self._size, self._nodes = files.size(path), {'': file}

    def read(self, name: str) -> np.ndarray | None:
        """Numbers of one axis or two; None: there is nothing of that name.

        Raises:
          BadFile: its bytes are in another file, it is too large, or no such array.
        """
        import h5py

        with files.reading(self._path):
            if (node := self._find(name)) is None:
                return None
            if not isinstance(node, h5py.Dataset):
                raise BadFile(self._path, 'corrupt', f'{name} is no array')
            if node.external or node.is_virtual:
                raise BadFile(self._path, 'outside', f'the numbers of {name} are in another file')
            plan = node.id.get_create_plist()
            for code, _, _, own in map(plan.get_filter, range(plan.get_nfilters())):
                if code not in FILTERS:
                    words = f'{name} needs filter {code} ({own.decode(errors="replace"):.40})'
                    allowed = ', '.join(FILTERS.values())
                    raise BadFile(self._path, 'unsupported', f'{words}: allowed are {allowed}')
            shape, dtype, chunks = node.shape, node.dtype, node.chunks
            if dtype.kind not in 'fiu' or len(shape or ()) not in (1, 2):
                kind = f'{dtype} {list(shape or ())}'
                raise BadFile(self._path, 'bad_state', f'{name} is {kind}, must be [T] or [T, n]')
        files.bound(self._path, 'frames', shape[0], f'{name} has {shape[0]:,} rows')
        # a chunk is unpacked whole, however little of it is in the array
        for sides in (shape, chunks or (0,)):
            files.bound_decoded(self._path, math.prod(sides) * dtype.itemsize, self._size)
        with files.reading(self._path):
            return np.asarray(node)

    def names(self, place: str) -> list[str]:
        """What is in a group; nothing if there is none."""
        import h5py

        with files.reading(self._path):
            group = self._find(place)
            return [f'{name}' for name in group] if isinstance(group, h5py.Group) else []

    def _find(self, place: str, links: int = 0):
        """The object at a place, without leaving the file; None: there is none. links: that led
        there."""
        import h5py

        if place in self._nodes:
            return self._nodes[place]
        parent, _, step = place.rpartition('/')
        group, node = self._find(parent, links), None
        link = group.get(step, getlink=True) if isinstance(group, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise BadFile(self._path, 'outside', f'{step} is a link to {link.filename!r:.80}')
        if isinstance(link, h5py.SoftLink):
            if links >= LINKS:
                raise BadFile(self._path, 'corrupt', f'{step} is a link without end')
            target = link.path if link.path.startswith('/') else f'{parent}/{link.path}'
            node = self._find('/'.join(part for part in target.split('/') if part), links + 1)
        elif link is not None:
            node = group[step]
        self._nodes[place] = node
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
        while h5py.h5pl.size():  # where HDF5 looks for filters, links of groups may need some, too
            h5py.h5pl.remove(0)
        file = h5py.File(path, 'r')
    try:
        yield Arrays(path, file)
    finally:
        file.close()
