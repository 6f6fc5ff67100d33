"""Where records come from: one small random-access class a kind, chosen from `SOURCES`.

A source knows how many records it has, what each is called and how to cut a clip from one. It is
pickled to every worker process, so names are packed and files are opened in the process that reads
them.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import re
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np

from jepa_jax import bucket, fetched, files
from jepa_jax.config import WITHOUT_PATH, DataConfig, DataListConfig, cache_root
from jepa_jax.config.layouts import FETCHED, SOURCES
from jepa_jax.data import clips, decode, kinds, lists, npz, pictures, prepared
from jepa_jax.data.cache import CannotKeep, ClipCache, checksum, read_stored
from jepa_jax.data.kinds import PICTURES, VIDEOS
from jepa_jax.data.names import NONE, SUFFIX, Mapped, Names
from jepa_jax.data.pictures import image_of
from jepa_jax.errors import BadFile, ConfigError, Unsuitable, allowed, printable
from jepa_jax.lookup import load

SHARD_VERSIONS = {'rgb': 1, 'jpegs': 2}  # of what `jepa shards` writes, by how frames are stored


class Source(Protocol):
    """Records of one list. `index` counts from 0."""

    skipped: dict[str, int]  # records left out up front, by reason

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call the record: a path where it has one."""

    def label(self, index: int) -> int | None: ...

    def read(self, index: int, frames: int, rng: np.random.Generator) -> np.ndarray:
        """A clip `[frames, H, W, 3]` uint8, cut at random; raises BadFile or OSError."""


class Files:
    """Files by path, of any kind that `kinds.kind_of` tells; an image is a clip of one repeated
    frame, and what has no clock (an array, a TIFF of many pages) is taken as a tfds sequence is."""

    def __init__(
        self, names: Names, labels: np.ndarray | None, skipped: dict[str, int], data: DataConfig
    ) -> None:
        """labels: [n] int64, below 0 where there is none."""
        self._names, self._labels = names, labels
        self._choose = functools.partial(_choose, clips.Sampling.from_config(data))
        self._cache = ClipCache(data.cache, data.cache_gib) if data.cache else None
        self.skipped = skipped

    @classmethod
    def of(cls, records: list[lists.Record], skipped: dict[str, int], data: DataConfig) -> Files:
        labels = np.asarray([NONE if label is None else label for _, label in records], np.int64)
        has_some = (labels >= 0).any()
        return cls(Names(path for path, _ in records), labels if has_some else None, skipped, data)

    @classmethod
    def at(cls, path: str, suffixes: frozenset[str], data: DataConfig) -> Files:
        """Those of a folder or list; raises as `lists.records_of`."""
        if path.endswith(SUFFIX) and os.path.isfile(path):
            names = Mapped(path)
            return cls(names, names.labels, {}, data)
        return cls.of(*lists.records_of(path, suffixes), data)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def label(self, index: int) -> int | None:
        if self._labels is None or self._labels[index] < 0:
            return None
        return int(self._labels[index])

    def read(self, index: int, frames: int, rng: np.random.Generator) -> np.ndarray:
        path = self._names[index]
        kind = kinds.kind_of(path)
        if kind == 'image':
            image = pictures.read_image(path)
            return np.broadcast_to(image, (frames, *image.shape))
        choose = functools.partial(self._choose, frames, rng)
        if kind == 'array':
            array = npz.load_frames(path)
            return array[choose(clips.Timing(len(array), 0.0, 0.0))]
        if kind == 'stack':
            return pictures.read_frames(path, choose)
        return (self._cache.read_frames if self._cache else decode.read_frames)(path, choose)


class Shards:
    """Decoded clips that `python -m tools.make_shards` wrote: only chosen frames are read.

    A folder of pairs `shard-00000.rgb`, frames as plain bytes, or `shard-00000.jpegs`, a JPEG each,
    and `shard-00000.json`, which says where each record lies; written last, so a shard without one
    is unfinished. Each frame that is read is held against its checksum; shards of before there were
    any are read without, and said.
    """

    def __init__(self, folder: str, data: DataConfig) -> None:
        self._folder, self._sampling = folder, clips.Sampling.from_config(data)
        names, rows, self._rates, self.skipped = [], [], [], {}
        sums, count, without = [np.empty(0, np.uint32)], 0, 0
        sizes, sized = [np.empty(0, np.int64)], 0
        self._files = sorted(Path(folder).glob('shard-*.json'))
        for number, path in enumerate(self._files):
            shard = _shard(path)
            without += 'sum' not in shard
            for record in shard['records']:
                names.append(f'{record["path"]}#{record["first"]}')
                label = -1 if record['label'] is None else record['label']
                first = count if 'sums' in record else -1
                sums.append(np.asarray(record.get('sums', ()), np.uint32))
                count += len(sums[-1])
                place = sized if 'sizes' in record else -1
                sizes.append(np.asarray(record.get('sizes', ()), np.int64))
                sized += len(sizes[-1])
                rows.append((number, label, record['offset'], *record['shape'], first, place))
                self._rates.append(record['fps'])
            for bad in shard['skipped']:
                self.skipped[bad['reason']] = self.skipped.get(bad['reason'], 0) + 1
        self._names, self._rates = Names(names), np.asarray(self._rates, np.float64)
        self._rows = np.asarray(rows, np.int64).reshape(len(rows), 9)
        self._sums, self._sizes = np.concatenate(sums), np.concatenate(sizes)
        if without:
            logging.warning(
                '%s: %d of %d shards have no checksums: damage of theirs is not noticed; '
                'tools.make_shards writes them into an empty folder',
                printable(folder), without, len(self._files),
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def label(self, index: int) -> int | None:
        label = int(self._rows[index, 1])
        return None if label < 0 else label

    def read(self, index: int, frames: int, rng: np.random.Generator) -> np.ndarray:
        shard, _, offset, *shape, first, place = self._rows[index].tolist()
        sums = None if first < 0 else self._sums[first : first + shape[0]].tolist()
        fps = float(self._rates[index])
        timing = clips.Timing(shape[0], fps, shape[0] / fps)
        try:
            numbers = clips.frame_indices(timing, frames, self._sampling, rng)
        except Unsuitable as error:
            raise BadFile(self.name(index), error.reason, error.detail) from error
        path = self._files[shard]
        if place < 0:
            return read_stored(path.with_suffix('.rgb'), offset, tuple(shape), numbers, sums)
        sizes = self._sizes[place : place + shape[0]]
        return _jpegs(path.with_suffix('.jpegs'), offset, sizes, tuple(shape[1:]), numbers, sums)


def _jpegs(
    path: Path,
    offset: int,
    sizes: np.ndarray,
    shape: tuple[int, int, int],
    numbers: np.ndarray,
    sums: list[int] | None,
) -> np.ndarray:
    """Frames `[n, H, W, 3]` of JPEGs that lie one after the other from byte `offset`.

    sizes: bytes of each. Raises OSError; BadFile for one that is not what was stored.
    """
    ends = offset + np.cumsum(sizes)
    unique, where = np.unique(numbers, return_inverse=True)
    frames = np.empty((len(unique), *shape), np.uint8)
    with open(path, 'rb', buffering=0) as file:
        for frame, number in zip(frames, unique.tolist()):
            size = int(sizes[number])
            file.seek(int(ends[number]) - size)
            content = file.read(size)
            if len(content) != size:
                raise BadFile(path, 'truncated', f'frame {number} is not there')
            stored = np.frombuffer(content, np.uint8)
            if sums is not None and checksum(stored) != sums[number]:
                raise BadFile(path, 'corrupt', f'frame {number} is not what was stored')
            image = image_of(str(path), content)
            if image.shape != shape:
                raise BadFile(path, 'corrupt', f'frame {number} is {image.shape}, not {shape}')
            frame[...] = image
    return frames[where]


def _shard(path: Path) -> dict:
    """What the .json of a shard says.

    Raises:
      ConfigError: of another version.
      BadFile: damaged, or records that its .rgb cannot hold.
    """
    size = files.size(path)
    files.bound(path, 'index', size, f'{size:,} bytes of an index')
    with files.reading(path, 'not_text'):
        shard = json.loads(path.read_bytes())
        if (version := shard['version']) in SHARD_VERSIONS.values():
            jpegs = version == SHARD_VERSIONS['jpegs']
            held = files.size(path.with_suffix('.jpegs')) if jpegs else 0
            for record in shard['records']:
                whole = [record['first'], record['offset'], record['label'] or 0, *record['shape']]
                frames, height, width, channels = record['shape']
                if not all(type(n) is int and abs(n) < 2**63 for n in whole) or channels != 3:
                    raise ValueError(f'a record of {whole}: must be whole numbers, RGB')
                if min(record['shape']) < 1 or record['offset'] < 0 or not 0 < record['fps'] < 1e6:
                    raise ValueError(f'a record of {whole} at {record["fps"]} frames a second')
                files.bound(path, 'pixels', height * width)
                files.bound(path, 'frames', frames)
                str.isprintable(record['path'])  # raises for what is no text
                sums = record.get('sums', [0] * frames)
                if len(sums) != frames or not all(type(n) is int and 0 <= n < 2**32 for n in sums):
                    raise ValueError('checksums that are none, or not one for each frame')
                if jpegs != ('sizes' in record):
                    raise ValueError('sizes of JPEGs, or none of them, against its version')
                sizes = record.get('sizes', [1] * frames)
                if len(sizes) != frames or not all(type(n) is int and n > 0 for n in sizes):
                    raise ValueError('sizes that are none, or not one for each frame')
                if jpegs and record['offset'] + sum(sizes) > held:
                    raise ValueError(f'frames beyond the {held:,} bytes of its .jpegs')
            for bad in shard['skipped']:
                str.isprintable(bad['reason'])
    if 'sum' in shard and sum_of(shard['records']) != shard['sum']:
        raise BadFile(path, 'corrupt', 'its records are not what was written (checksum)')
    if version not in SHARD_VERSIONS.values():
        raise ConfigError(f'{path} has version {version!r:.40}, not 1 or 2')
    return shard


def sum_of(records: list[dict]) -> int:
    """A checksum of what the .json of a shard says of its records."""
    return zlib.crc32(json.dumps(records, sort_keys=True).encode())


class Tfds:
    """A tfds dataset prepared as ArrayRecord, without TensorFlow: images or sequences of them.

    A sequence has no clock: with `fps` or `duration` its frames are taken one after the other, with
    `frame_step` every n-th.
    """

    skipped: dict[str, int] = {}

    def __init__(self, path: str, data: DataConfig) -> None:
        match = re.fullmatch(r'([^:]+)(?::(\w+(?:\[[^]]*\])?))?(?::(\w+))?', path)
        if match is None:
            raise ConfigError(f'{path!r} is not FOLDER[:SPLIT[:FEATURE]]')
        folder, split, key = match.groups()
        self._folder, self._split = prepared.folder_of(folder), split or 'train'
        self._step = data.frame_step or 1
        features = prepared.builder(self._folder).info.features
        depths = {name: depth for name in features if (depth := _image_depth(features[name])) >= 0}
        if key not in depths if key else len(depths) != 1:
            what = f'called {key!r} ' if key else ''
            have = ', '.join(f'{name} ({type(features[name]).__name__})' for name in features)
            raise ConfigError(
                f'{path!r}: {"more than one" if depths and not key else "no"} image or sequence of '
                f'images {what}among {have}; name one: FOLDER:SPLIT:FEATURE'
            )
        self._key = key or next(iter(depths))
        self._sequence = bool(depths[self._key])
        self._labelled = 'label' in features and features['label'].np_dtype == np.int64
        self._length = len(self._records)

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != '_records'}

    def name(self, index: int) -> str:
        return f'{self._folder}:{self._split}#{index}'

    def label(self, index: int) -> int | None:
        return int(self._records[index]['label']) if self._labelled else None

    def read(self, index: int, frames: int, rng: np.random.Generator) -> np.ndarray:
        with files.reading(self.name(index)):
            encoded = self._records[index][self._key]
        if not self._sequence:
            image = image_of(self.name(index), encoded)
            return np.broadcast_to(image, (frames, *image.shape))
        if not len(encoded):
            raise BadFile(self.name(index), 'no_frames')
        numbers = clips.clip_indices(len(encoded), frames, self._step, draw=rng.integers)[0]
        unique, where = np.unique(numbers, return_inverse=True)
        return np.stack([image_of(self.name(index), encoded[i]) for i in unique])[where]

    @functools.cached_property
    def _records(self):
        return prepared.records(self._folder, self._split, self._key)


def open_source(entry: DataListConfig, data: DataConfig, index: int = 0) -> Source:
    """The source of `data.lists[index]`.

    Raises ConfigError, naming the field, for an unknown kind, a path that cannot be read and a
    list without records.
    """
    field = f'data.lists[{index}]'
    if entry.kind not in SOURCES:
        raise ConfigError(f"{field}.kind = '{entry.kind}': {allowed(entry.kind, SOURCES)}")
    opener = SOURCES[entry.kind]
    opener = load(opener) if isinstance(opener, str) else opener
    try:
        clips.Sampling.from_config(data)
    except ValueError as error:
        raise ConfigError(f'data: {error}') from error
    if not entry.path and entry.kind not in WITHOUT_PATH:
        raise ConfigError(f'{field}.path is empty; kind {entry.kind!r} needs a path')
    try:
        copied = entry.kind in FETCHED and bucket.is_url(entry.path)
        path = str(fetched.local(entry.path)) if copied else os.path.expanduser(entry.path)
        source = opener(path, data)
    except ConfigError as error:
        raise ConfigError(f'{field}.path: {error}') from error
    except BadFile as error:
        raise ConfigError(f'{field}.path: {error}') from error
    except CannotKeep as error:
        raise ConfigError(f'data.cache: {error}') from error
    except OSError as error:
        what = error.strerror or str(error)
        if not entry.path:  # a self-made set, made in the cache folder
            what = f'{error.filename or cache_root()}: {what}; JEPA_JAX_CACHE names the folder'
            raise ConfigError(f'{field}.kind = {entry.kind!r} cannot be made: {what}') from error
        raise ConfigError(f'{field}.path: {entry.path!r} cannot be read: {what}') from error
    if not len(source):
        left_out = ', '.join(f'{n} {reason}' for reason, n in source.skipped.items())
        left_out = f' (left out: {left_out})' if left_out else ''
        raise ConfigError(
            f'{field}.path: {entry.path!r} holds nothing of kind {entry.kind}{left_out}'
        )
    return source


def _choose(sampling: clips.Sampling, frames: int, rng: np.random.Generator, info) -> np.ndarray:
    if not info.fps:
        step = sampling.frame_step or 1
        return clips.clip_indices(info.frames, frames, step, draw=rng.integers)[0]
    return clips.frame_indices(info, frames, sampling, rng)


def _image_depth(feature) -> int:
    """0 for an image, 1 for a sequence of images, -1 for anything else."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return 0
    inner = getattr(feature, 'feature', None)
    return 1 if isinstance(inner, tfds.features.Image) else -1


def videos(path: str, data: DataConfig) -> Files:
    return Files.at(path, VIDEOS, data)


def images(path: str, data: DataConfig) -> Files:
    return Files.at(path, PICTURES, data)


def _self_made(module: str, kind: str, path: str, data: DataConfig) -> Files:
    maker = importlib.import_module(f'jepa_jax.data.{module}')
    own = f"kind '{kind}' reads self-made videos alone; videos of your own are of kind 'videos'"
    if path and not os.path.exists(path):  # is it meant so, or a list that is to be read?
        logging.warning('%s is not there, and they are made in it: %s', printable(path), own)
    try:
        return Files.of(lists.read_list(maker.ensure(kind, path)), {}, data)
    except ValueError as error:  # a folder that holds something else
        raise ConfigError(f'{error}: {own}') from error


# rows of SOURCES
synthetic = functools.partial(_self_made, 'synthetic', 'synthetic')
synthetic_few = functools.partial(_self_made, 'synthetic', 'synthetic_few')
lawful = functools.partial(_self_made, 'violations', 'lawful')
lawful_few = functools.partial(_self_made, 'violations', 'lawful_few')
