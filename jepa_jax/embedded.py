"""What `jepa_jax.embed` writes, and how it is read again: one .npz, an .npz an input, or shards.

A shard holds many inputs: a folder NUMBER of .npy files, which can be mapped, with `index.csv`
(row, path, window, seconds from start to end) and `about.json`; or NUMBER.parquet with the same in
its columns and metadata. Every file says what it was made with and of which inputs: absolute path,
bytes, time of change, and what was wrong with those that are damaged. An input in the same state,
embedded by the same weights with the same settings, is not embedded again. Files appear whole or
not at all, so a killed start loses the shards under way and no more.
"""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jepa_jax import files
from jepa_jax.data import npz
from jepa_jax.data.named import Named
from jepa_jax.data.npz import Rows
from jepa_jax.data.windows import Window
from jepa_jax.errors import BadFile, ConfigError, InputError, UsageError

VERSION = 1  # part of the key: change it with anything that changes a feature
STORES = {'float32': np.float32, 'float16': np.float16}
FEATURES = ('tokens', 'pooled', 'levels')  # arrays that are stored in the type asked for
SHARD_BYTES, SHARD_SECONDS = 2**30, 600.0  # a shard is closed at either
NUMBER = re.compile(r'(\d{5,})(\.parquet)?')
SETTINGS = b'jepa_jax'  # of a parquet file's metadata
INSTALL = 'parquet needs pyarrow: pip install pyarrow'


def key_of(weights: str, settings: dict[str, Any]) -> str:
    """A hash of all that features depend on beside the input; weights: hash of the parameters."""
    text = json.dumps([VERSION, weights, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Source:
    """An input in the state in which it was embedded."""

    path: str  # absolute
    bytes: int
    changed: int  # ns
    first: int = 0  # of its rows
    rows: int = 0
    damage: str = ''  # what came after its last window

    def same(self, other: Source) -> bool:
        """Whether nothing has happened to the file since."""
        return (self.path, self.bytes, self.changed) == (other.path, other.bytes, other.changed)


def state(path: str) -> Source:
    """An input as it is now; of a folder, all its files. What is missing has no bytes."""
    try:
        if os.path.isdir(path):
            stats = [entry.stat() for entry in os.scandir(path)]
        else:
            stats = [os.stat(path)]
    except (OSError, ValueError):  # who reads it says why
        return Source(path, 0, 0)
    size, changed = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    return Source(os.path.abspath(path), size, changed)


# Writing


class Output:
    """What all forms share: rows of one input after the other, `begin`, `add` ..., `end`."""

    def __init__(self, target: str, settings: dict[str, Any], key: str, store: str = 'float32'):
        self.target, self.settings, self.key = Path(target), settings, key
        self._store = STORES[store]
        self._done: dict[str, Source] = {}

    def left(self, inputs: list[Named]) -> tuple[list[Named], dict[str, str]]:
        """Which inputs are to be embedded; and of those that are stored as they are now, path and
        damage of the damaged ones."""
        left, damaged = [], {}
        for one in inputs:
            now = state(one.path)
            then = self._stored(one, now)
            if not then or not then.same(now):
                left.append(one)
            elif then.damage:
                damaged[one.path] = then.damage
        return left, damaged

    def _stored(self, one: Named, now: Source) -> Source | None:
        return self._done.get(now.path)

    def row(self, window: Window, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of a window, in the types that are stored. Raises BadFile."""
        for name in FEATURES:
            if name in values:
                with np.errstate(over='ignore'):
                    values[name] = values[name].astype(self._store)
                if not np.isfinite(values[name]).all():
                    raise BadFile(
                        window.source, 'not_finite', f'{name} as {np.dtype(self._store).name}'
                    )
        return values | {
            'numbers': window.numbers.astype(np.int64),
            'seconds': window.seconds.astype(np.float64),
            'spacing': np.float64(window.spacing),
        }


@dataclasses.dataclass(frozen=True)
class Layout:
    """What inputs whose windows stand in one array have in common."""

    grid: tuple[int, int, int]  # of tokens
    frames: int

    def __str__(self) -> str:
        return f'token grid {self.grid} of {self.frames} frame{"s" * (self.frames != 1)}'


class OneFile(Output):
    """All inputs in one .npz."""

    def __init__(self, target: str, settings: dict[str, Any], key: str, store: str = 'float32'):
        super().__init__(target, settings, key, store)
        self._sources: list[Source] = []
        self._files: list[str] = []
        self._rows: Rows | None = None
        self._layout = self._coords = self._spacing = None  # of the first input that is whole

    def left(self, inputs: list[Named]) -> tuple[list[Named], dict[str, str]]:
        """All of them, or none if the file is there, of just these inputs as they are now."""
        try:
            stored = about_npz(self.target)
        except BadFile:  # missing, or to be replaced
            return inputs, {}
        then, now = sources_of(stored), [state(one.path) for one in inputs]
        if stored.get('key') != self.key or len(then) != len(now):
            return inputs, {}
        if not all(one.same(other) for one, other in zip(then, now)):
            return inputs, {}
        return [], {one.path: source.damage for one, source in zip(inputs, then) if source.damage}

    def begin(self, one: Named, layout: Layout, coords, spacing: float) -> str:
        """Rows of another input follow; returns what there is to say of it."""
        self._rows = self._rows or Rows(self.target)
        self._now, self._path, self._first = state(one.path), one.path, self._rows.count
        if not self._files:
            self._layout, self._coords, self._spacing = layout, coords, spacing
        elif layout != self._layout:  # an image and two frames can have one grid
            both = f'{layout}, inputs before it have {self._layout}'
            raise BadFile(one.path, 'unfit', f'{both}: make --out a folder, for a file an input')
        elif spacing != self._spacing:
            return (
                f'{one.path}: a frame every {spacing:.4g} s, in {self._files[0]} every '
                f'{self._spacing:.4g} s: the seconds of coords are those of the first input, '
                'and in proportion to spacing'
            )
        return ''

    def add(self, window: Window, values: dict[str, np.ndarray]) -> None:
        """A window of the input that began; values: its features, and `clips` if asked for."""
        self._rows.add(**self.row(window, values), file=np.int64(len(self._files)))

    def end(self, damage: str = '', dropped: bool = False) -> str:
        """No more rows of this input; those of one that is dropped are taken back."""
        if dropped:
            self._rows.cut(self._first)
        else:
            self._files.append(self._path)
            rows = self._rows.count - self._first
            ended = dataclasses.replace(self._now, first=self._first, rows=rows, damage=damage)
            self._sources.append(ended)
        return ''

    def close(self) -> str:
        """Writes the file, if there is something to write; returns what was written."""
        if not self._files:
            self.drop()
            return ''
        forms = self._rows.npz(
            files=np.array(self._files),
            grid=np.array(self._layout.grid),
            coords=self._coords,
            settings=np.array(json.dumps(about(self))),
        )
        shapes = ', '.join(f'{name} {list(shape)}' for name, shape in forms.items())
        return f'wrote {self.target}: {shapes}'

    def drop(self) -> None:
        """Gives up what was not ended: the file stays as it was."""
        if self._rows:
            self._rows.drop()

    interrupt = drop  # half of what was asked for is not written


class Folder(Output):
    """An .npz an input, below a folder, named after it."""

    _one: OneFile | None = None

    def _file(self, one: Named) -> Path:
        return self.target / f'{one.name}.npz'

    def _stored(self, one: Named, now: Source) -> Source | None:
        try:
            stored = about_npz(self._file(one))
        except BadFile:  # missing, or to be made again
            return None
        return next(iter(sources_of(stored)), None) if stored.get('key') == self.key else None

    def begin(self, one: Named, layout: Layout, coords, spacing: float) -> str:
        store = np.dtype(self._store).name
        self._one = OneFile(str(self._file(one)), self.settings, self.key, store)
        return self._one.begin(one, layout, coords, spacing)

    def add(self, window: Window, values: dict[str, np.ndarray]) -> None:
        self._one.add(window, values)

    def end(self, damage: str = '', dropped: bool = False) -> str:
        self._one.end(damage, dropped)
        ended, self._one = self._one, None
        return ended.close()

    def close(self) -> str:
        return ''

    def interrupt(self) -> None:
        if self._one:
            self._one.drop()


class Shards(Output):
    """Many inputs a shard, of one layout; see above.

    Args:
      form: npy or parquet.
      inputs: most inputs of a shard.

    Raises:
      UsageError: the folder holds features of another model or with other settings.
      ConfigError: parquet, and its library is missing.
    """

    def __init__(
        self, target: str, settings: dict[str, Any], key: str, store: str, form: str, inputs: int
    ):
        super().__init__(target, settings, key, store)
        if form == 'parquet':
            _parquet()
        self._form, self._inputs = form, inputs
        self._open: dict[Layout, _Shard] = {}
        self._current: _Shard | None = None
        self.target.mkdir(parents=True, exist_ok=True)
        for path in shards(self.target):
            stored = about_shard(path)
            if stored.get('key') != key:
                raise UsageError(
                    f'--out {target} holds features made with {brief(stored)}, these would be '
                    f'made with {brief(about(self))}: choose another folder'
                )
            self._done |= {source.path: source for source in sources_of(stored)}

    def begin(self, one: Named, layout: Layout, coords, spacing: float) -> str:
        if layout not in self._open:
            self._open[layout] = _Shard(self, layout, coords)
        self._current = self._open[layout]
        self._current.one.begin(one, layout, coords, 1.0)  # the spacing is told by row
        return ''

    def add(self, window: Window, values: dict[str, np.ndarray]) -> None:
        self._current.one.add(window, values)

    def end(self, damage: str = '', dropped: bool = False) -> str:
        shard, self._current = self._current, None
        shard.one.end(damage, dropped)
        if shard.is_full(self._inputs):
            del self._open[shard.layout]
            return shard.write(self._form)
        return ''

    def close(self) -> str:
        lines = [shard.write(self._form) for shard in self._open.values()]
        self._open = {}
        return '\n'.join(filter(None, lines))

    def interrupt(self) -> None:
        """What is whole is written."""
        if self._current:
            self._current.one.end(dropped=True)
        self.close()


class _Shard:
    """A shard under way."""

    def __init__(self, output: Shards, layout: Layout, coords: np.ndarray):
        self._folder, self.layout, self._coords = output.target, layout, coords
        store = np.dtype(output._store).name
        self.one = OneFile(str(output.target / 'next'), output.settings, output.key, store)
        self._began = time.monotonic()

    def is_full(self, inputs: int) -> bool:
        return (
            len(self.one._sources) >= inputs
            or self.one._rows.nbytes >= SHARD_BYTES
            or time.monotonic() - self._began >= SHARD_SECONDS
        )

    def write(self, form: str) -> str:
        one, rows = self.one, self.one._rows
        if not one._sources:
            one.drop()
            return ''
        described = about(one) | {
            'grid': list(self.layout.grid),
            'shapes': {name: list(c.shape[1:]) for name, c in rows.columns().items()},
        }
        if form == 'parquet':
            _write_parquet(rows, one._sources, described)
        else:
            folder = rows.folder()
            np.save(folder / 'coords.npy', self._coords)
            (folder / 'about.json').write_text(json.dumps(described))
            with open(
                folder / 'index.csv', 'w', newline='', encoding='utf-8', errors='surrogateescape'
            ) as file:
                writer = csv.writer(file)
                writer.writerow(('row', 'path', 'window', 'start', 'end'))
                seconds = rows.columns()['seconds']
                for source in one._sources:
                    for window in range(source.rows):
                        row = source.first + window
                        writer.writerow((row, source.path, window, *seconds[row, [0, -1]]))
        with open(self._folder / '.lock', 'w') as lock:  # processes of --part take turns
            fcntl.flock(lock, fcntl.LOCK_EX)
            taken = [int(NUMBER.fullmatch(path.name)[1]) for path in shards(self._folder)]
            name = f'{max(taken, default=-1) + 1:05d}{".parquet" if form == "parquet" else ""}'
            rows.path = self._folder / name
            rows.end()
        count = len(one._sources)
        inputs = f'{count} input{"s" * (count != 1)}'
        return f'wrote {rows.path}: {inputs}, {rows.count} windows'


def _write_parquet(rows: Rows, sources: list[Source], described: dict[str, Any]) -> None:
    arrow, parquet = _parquet()
    columns = rows.columns()
    del columns['file']
    # a path that is no UTF-8 is whole in the metadata alone
    paths = [os.fsencode(s.path).decode('utf-8', 'replace') for s in sources for _ in range(s.rows)]
    windows = [window for s in sources for window in range(s.rows)]

    def batch(first: int, last: int):
        seconds = columns['seconds'][first:last]
        named = {
            'path': arrow.array(paths[first:last], arrow.string()),
            'window': arrow.array(windows[first:last], arrow.int32()),
            'start': arrow.array(seconds[:, 0]),
            'end': arrow.array(seconds[:, -1]),
        }
        for name, column in columns.items():
            flat = arrow.array(np.asarray(column[first:last]).reshape(-1))
            width = int(np.prod(column.shape[1:]))
            single = column.ndim == 1
            named[name] = flat if single else arrow.FixedSizeListArray.from_arrays(flat, width)
        return arrow.table(named)

    size = max(1, 2**26 // max(1, rows.nbytes // rows.count))  # rows of a group
    schema = batch(0, 1).schema.with_metadata({SETTINGS: json.dumps(described)})
    with parquet.ParquetWriter(rows.joined, schema) as writer:
        for first in range(0, rows.count, size):
            writer.write_table(batch(first, min(first + size, rows.count)), row_group_size=size)


def _parquet():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(INSTALL) from None
    return pyarrow, pyarrow.parquet


def about(one: Output) -> dict[str, Any]:
    """What a file says of itself, for JSON."""
    inputs = [dataclasses.astuple(source) for source in getattr(one, '_sources', ())]
    return one.settings | {'key': one.key, 'inputs': inputs}


def brief(stored: dict[str, Any]) -> str:
    """What features were made with, in short."""
    names = ('pool', 'layers', 'frames', 'fps', 'crop', 'preprocess', 'stride', 'dtype', 'store')
    said = [f'{n} {stored[n]}' for n in names if stored.get(n) not in (None, [], ())]
    return ', '.join([f'{stored.get("model")} ({str(stored.get("weights"))[:8]})', *said])


# Reading


def sources_of(stored: dict[str, Any]) -> list[Source]:
    """The inputs of a file, of what it says of itself."""
    return [Source(*row) for row in stored.get('inputs', ())]


def shards(folder: Path) -> list[Path]:
    """The shards of a folder, in order."""
    names = [entry.name for entry in os.scandir(folder) if NUMBER.fullmatch(entry.name)]
    return [folder / name for name in sorted(names, key=lambda name: (len(name), name))]


def about_npz(path: Path) -> dict[str, Any]:
    """Settings of an .npz. Raises BadFile."""
    settings = npz.load_all(path, ('settings',)).get('settings')
    with files.reading(path, 'not_text'):
        return _checked(json.loads(str(settings)))


def about_shard(path: Path) -> dict[str, Any]:
    """The same of a shard. Raises BadFile; ConfigError: its library is missing."""
    if path.suffix != '.parquet':
        stored = files.read_json(path / 'about.json')
        with files.reading(path, 'not_text'):
            return _checked(stored)
    _, parquet = _parquet()
    files.size(path)
    with files.reading(path, 'not_text'):
        return _checked(json.loads(parquet.read_schema(path).metadata[SETTINGS]))


def _checked(stored: Any) -> dict[str, Any]:
    """Raises ValueError: not what `about` gives."""
    if not isinstance(stored, dict):
        raise ValueError('no settings of jepa_jax.embed')
    kinds = (str, int, int, int, int, str)
    for row in stored.get('inputs', ()):
        if [type(value) for value in row] != list(kinds):
            raise ValueError('inputs that jepa_jax.embed does not write')
    return stored


@dataclasses.dataclass(frozen=True)
class Block:
    """Windows of a file: their features, which may be mapped, and where they are from."""

    about: dict[str, Any]
    sources: list[Source]
    features: np.ndarray  # [n, D], or [n, N, D] of tokens or queries
    seconds: np.ndarray  # [n, T]
    numbers: np.ndarray  # [n, T]
    kept: np.ndarray  # [n] bool: of no input that was embedded again later, after it had changed

    def source(self, row: int) -> tuple[Source, int]:
        """Where a row is from: its input, and which window of it."""
        first = np.array([source.first for source in self.sources])
        one = self.sources[int(np.searchsorted(first, row, 'right')) - 1]
        return one, row - one.first


def members(place: str | os.PathLike) -> list[Path]:
    """The files of what `embed` wrote: an .npz, or the .npz files or shards of a folder.

    Raises InputError: nothing that `embed` wrote.
    """
    path = Path(place)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f'{path}: no such file or folder')
    if not (result := shards(path) or sorted(path.rglob('*.npz'))):
        raise InputError(f'{path}: no features in it; jepa_jax.embed --out writes them')
    return result


def about_file(path: Path) -> dict[str, Any]:
    """What one of `members` says of itself.

    Raises:
      InputError: it was not made by `embed`, or before that said what it was made with.
      BadFile: it is damaged.
    """
    stored = about_npz(path) if path.suffix == '.npz' else about_shard(path)
    if missing := [name for name in ('key', 'model', 'weights', 'inputs') if name not in stored]:
        raise InputError(f'{path}: its settings name no {missing[0]}: embed its inputs again')
    return stored


def blocks(place: str | os.PathLike) -> Iterator[Block]:
    """The windows of what `embed` wrote, the newest shard first.

    Raises: as `members` and `about_file`.
    """
    later: set[str] = set()
    for file in reversed(members(place)):
        block = _block(file, later)
        yield block
        later |= {source.path for source in block.sources}


def _block(path: Path, later: set[str]) -> Block:
    names = ('pooled', 'tokens', 'seconds', 'numbers')
    stored = about_file(path)
    if path.suffix == '.npz':
        arrays = npz.load_all(path, names)
    elif path.suffix == '.parquet':
        arrays = _read_parquet(path, stored, names)
    else:
        arrays = {
            name: npz.load(path / f'{name}.npy', mmap_mode='r')
            for name in names
            if (path / f'{name}.npy').exists()
        }
    features = arrays.get('pooled', arrays.get('tokens'))
    sources = sources_of(stored)
    counts = {len(arrays[name]) for name in ('seconds', 'numbers') if name in arrays}
    expected = sum(source.rows for source in sources)
    if features is None or counts | {len(features)} != {expected} or not expected:
        raise BadFile(path, 'corrupt', 'its arrays are not those that jepa_jax.embed writes')
    kept = np.repeat([s.path not in later for s in sources], [s.rows for s in sources])
    return Block(stored, sources, features, arrays['seconds'], arrays['numbers'], kept)


def _read_parquet(path: Path, stored: dict[str, Any], names) -> dict[str, np.ndarray]:
    _, parquet = _parquet()
    with files.reading(path):
        file = parquet.ParquetFile(path, memory_map=True)
        shapes = {n: stored['shapes'][n] for n in names if n in file.schema_arrow.names}
        unpacked = 8 * file.metadata.num_rows * sum(math.prod(shape) for shape in shapes.values())
    files.bound_decoded(path, unpacked, files.size(path))
    with files.reading(path):
        table = file.read(columns=list(shapes), use_threads=False)
        arrays = {}
        for name, shape in shapes.items():
            chunks = table.column(name).chunks
            flat = np.concatenate([c.flatten().to_numpy(zero_copy_only=False) for c in chunks])
            arrays[name] = flat.reshape(-1, *shape)
        return arrays
