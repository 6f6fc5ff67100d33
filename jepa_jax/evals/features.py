"""Features of a list of clips, computed once and kept in a folder.

    table = compute(model, len(paths), read, folder, about={'list': ...}, tokens=128)
    table.mean[table.read]     # [n, D]
    table.tokens[rows]         # [k, N, D]

A folder is named by a hash of what its features depend on: weights, clips and how they are seen, so
another model, view or list makes another folder. A row of it has a checksum; one that was not
reached, or is not what was written, is made again, so an interrupted start loses nothing. Several
processes, which see one folder, take a share of the clips each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jepa_jax import distributed, sharding
from jepa_jax.checkpoint import hash_arrays
from jepa_jax.data.views import area_means
from jepa_jax.data.windows import ahead
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.models.pooler import average_tokens, averaged_grid
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights.parts import net
from jepa_jax.workdir import write_json

VERSION = 1  # part of the hash: change it with anything that changes a feature
SIDE = 16  # pixels of the small frames that are kept for a baseline
ROWS = 'rows.npy'
MISSING, READ, BAD = range(3)  # states of a row

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Table:
    """Features of clips, row by row; what could not be read has zeros."""

    folder: Path
    rows: np.ndarray  # [n] of the fields below, mapped from a file
    problems: dict[int, str]  # row -> why it was not read

    @property
    def read(self) -> np.ndarray:
        """[n] bool: which rows are there."""
        return self.rows['state'] == READ

    @property
    def mean(self) -> np.ndarray:
        """[n, D] float32: means over all tokens."""
        return self.rows['mean']

    @property
    def tokens(self) -> np.ndarray:
        """[n, N, D] float16: tokens, averaged to at most as many as were asked for."""
        return self.rows['tokens']

    @property
    def pixels(self) -> np.ndarray:
        """[n, S * T, SIDE, SIDE, 3] uint8: the frames, area-averaged."""
        return self.rows['pixels']


def compute(
    model,
    count: int,
    read: Callable[[int], np.ndarray],
    folder: Path,
    *,
    about: dict[str, Any],
    clip: tuple[int, int, int],
    segments: int = 1,
    tokens: int = 128,
    reads: str | tuple[int, ...] = 'last',
    batch: int = 1,
    title: str = 'features',
) -> Table:
    """Features of clips 0 to count - 1, on all devices of all processes; all of them call it, and
    each returns the whole table.

    Args:
      model: a Model: its encoder is what is asked.
      count: of examples.
      read: example -> clips as the encoder is to see them, uint8 [segments, T, H, W, 3]; may raise
        BadFile.
      folder: of caches; each set of features gets a folder in it.
      about: what the clips depend on, JSON: part of the folder's name.
      clip: T, H, W.
      segments: clips of an example; their tokens follow one another.
      tokens: most tokens of a clip that are kept, means over boxes of the grid; 0: all of them.
      reads: which features of a clip: 'last' | blocks, whose tokens follow one another | 'future',
        the last block's and then what the predictor expects, as `model.ProbeHead` says.
      batch: clips at a time on each device.
      title: what the progress bar calls them.

    Raises:
      ConfigError: the disk has not enough room, or no example can be read.
    """
    grid = model.config.grid(*clip)
    row = row_of(model.config, clip, segments, tokens, reads)
    facts = _facts(model, count, about, clip, segments, tokens, reads)
    place = folder / _name(facts)
    with distributed.first(_shared(place, row, count, facts)):
        rows = np.load(place / ROWS, mmap_mode='r+', allow_pickle=False)
    index, processes = jax.process_index(), jax.process_count()
    left = [i for i in range(count) if rows['state'][i] != READ or rows['crc'][i] != _crc(rows[i])]
    if processes > 1:  # all have looked before one writes: shares are cut from the same list
        distributed.any_process(False)
    if left and len(left) < count:
        log.info('%s: %d of %d are there', title, count - len(left), count)
    encode, devices = reduced_encoder(model, grid, tokens, reads)
    own = _open(place / f'share{index}.npy', row, count) if index else rows
    problems = _fill(encode, batch * devices, own, left[index::processes], read, segments, title)
    if processes > 1:
        write_json(place / f'problems{index}.json', problems)
        distributed.any_process(False)  # all are done
        with distributed.first(_joined(place, rows)):
            rows = np.load(place / ROWS, mmap_mode='r+', allow_pickle=False)
            problems = _problems(place)
    if not (rows['state'] == READ).any():
        first = next(iter(problems.values()), 'the list is empty')
        raise ConfigError(f'{title}: none of {count} clips can be read; the first: {first}')
    return Table(place, rows, problems)


def row_of(
    config: ViTConfig,
    clip: tuple[int, int, int],
    segments: int,
    tokens: int,
    reads: str | tuple[int, ...] = 'last',
) -> np.dtype:
    """What is kept of an example."""
    parts = grids(config.grid(*clip), reads)
    kept = sum(int(np.prod(averaged_grid(part, tokens))) for part in parts)
    return np.dtype([
        ('state', np.uint8),
        ('crc', np.uint32),
        ('mean', np.float32, (config.width,)),
        ('tokens', np.float16, (segments * kept, config.width)),
        ('pixels', np.uint8, (segments * clip[0], min(SIDE, clip[1]), min(SIDE, clip[2]), 3)),
    ])  # fmt: skip


def _facts(
    model, count: int, about: dict[str, Any], clip: tuple[int, int, int], segments: int,
    tokens: int, reads: str | tuple[int, ...],
) -> dict[str, Any]:  # fmt: skip
    """What features depend on."""
    facts = {
        'version': VERSION,
        'weights': hash_arrays(model.encoder.params),
        'encoder': {k: str(v) for k, v in dataclasses.asdict(model.config).items()},
        'clip': list(clip), 'segments': segments, 'tokens': tokens, 'count': count, **about,
    }  # fmt: skip
    if reads != 'last':
        facts['reads'] = reads if reads == 'future' else list(reads)
    if reads == 'future':
        facts['predictor'] = hash_arrays(model.need_predictor(reads).params)
    return facts


def _name(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def left(
    model,
    count: int,
    folder: Path,
    *,
    about: dict[str, Any],
    clip: tuple[int, int, int],
    segments: int = 1,
    tokens: int = 128,
) -> int:
    """How many of the examples `compute` has not read yet."""
    place = folder / _name(_facts(model, count, about, clip, segments, tokens, 'last')) / ROWS
    try:
        rows = np.load(place, mmap_mode='r', allow_pickle=False)
    except (ValueError, OSError, EOFError):  # not there, or made again
        return count
    known = rows.dtype == row_of(model.config, clip, segments, tokens) and rows.shape == (count,)
    return int((rows['state'] != READ).sum()) if known else count


def seconds_each(
    model,
    count: int,
    read: Callable[[int], np.ndarray],
    *,
    clip: tuple[int, int, int],
    segments: int = 1,
    tokens: int = 128,
    batch: int = 1,
) -> float:
    """Seconds that `compute` takes for an example, by one batch of them. What compiling takes is
    not counted; the slower of reading and encoding is, since one goes on beside the other."""
    encode, devices = reduced_encoder(model, model.config.grid(*clip), tokens)
    batch *= devices
    begin, clips = time.perf_counter(), []
    for i in range(count):
        with contextlib.suppress(BadFile):  # `compute` says so
            clips.append(read(i))
        if len(clips) == batch:
            break
    if not clips:
        return 0.0
    reading = (time.perf_counter() - begin) / len(clips)
    full = np.concatenate(clips + clips[-1:] * (batch - len(clips)))
    encode(full)
    begin = time.perf_counter()
    encode(full)
    return max(reading, (time.perf_counter() - begin) / batch)


@contextlib.contextmanager
def _shared(place: Path, row: np.dtype, count: int, facts: dict) -> Iterator[None]:
    """Makes the folder and its file of rows, for process 0 on behalf of all; what processes of an
    interrupted start had of them is taken over."""
    place.mkdir(parents=True, exist_ok=True)
    rows = _open(place / ROWS, row, count)
    write_json(place / 'about.json', facts)
    for path in place.glob('problems*.json'):  # of an earlier start
        path.unlink()
    with _joined(place, rows):
        yield


@contextlib.contextmanager
def _joined(place: Path, rows: np.ndarray) -> Iterator[None]:
    """Takes over what other processes have read, and removes their files."""
    for path in sorted(place.glob('share*.npy')):
        share = _open(path, rows.dtype, len(rows))
        for i in np.flatnonzero(share['state'] != MISSING):
            if share['state'][i] == BAD or share['crc'][i] == _crc(share[i]):
                rows[i] = share[i]
        path.unlink()
    rows.flush()
    yield


def _problems(place: Path) -> dict[int, str]:
    """Those of all processes."""
    named = [json.loads(path.read_text()) for path in sorted(place.glob('problems*.json'))]
    return {int(row): why for each in named for row, why in each.items()}


def _open(path: Path, row: np.dtype, count: int) -> np.ndarray:
    if path.exists():
        try:
            rows = np.load(path, mmap_mode='r+', allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            log.warning('%s is made again: %s', path, error)
        else:
            if rows.dtype == row and rows.shape == (count,):
                return rows
            log.warning('%s is made again: its rows have another form', path)
    need, free = row.itemsize * count, shutil.disk_usage(path.parent).free
    if need > free:
        raise ConfigError(
            f'{path.parent}: features of {count} clips take {need / 2**30:.1f} GiB, '
            f'{free / 2**30:.1f} GiB are free'
        )
    return np.lib.format.open_memmap(path, 'w+', row, (count,))


def _crc(row: np.void) -> int:
    return zlib.crc32(row['pixels'].tobytes(), zlib.crc32(row['mean'].tobytes())) ^ zlib.crc32(
        row['tokens'].tobytes()
    )


def _fill(encode, batch: int, rows, left, read, segments: int, title: str) -> dict[int, str]:
    problems: dict[int, str] = {}
    size = batch * max(1, segments)  # clips at a time, whole examples

    def examples():
        for i in left:
            try:
                yield i, read(i)
            except BadFile as error:
                yield i, error

    def flush(group: list[tuple[int, np.ndarray]]) -> None:
        clips = np.concatenate([clips for _, clips in group])
        full = np.concatenate([clips, np.repeat(clips[-1:], size - len(clips), axis=0)])
        mean, kept = encode(full)
        for place, (i, clips) in enumerate(group):
            own = slice(place * segments, (place + 1) * segments)
            rows['mean'][i] = mean[own].mean(0)
            rows['tokens'][i] = kept[own].reshape(rows['tokens'].shape[1:])
            rows['pixels'][i] = small(clips.reshape(-1, *clips.shape[2:]))
            rows['crc'][i], rows['state'][i] = _crc(rows[i]), READ

    group: list[tuple[int, np.ndarray]] = []
    with tqdm(total=len(left), unit='clip', desc=title, disable=None if left else True) as bar:
        for i, clips in ahead(examples()):
            if isinstance(clips, BadFile):
                rows['state'][i], problems[i] = BAD, str(clips)
                log.warning('left out: %s', clips)
            else:
                group.append((i, clips))
                if len(group) * segments == size:
                    flush(group)
                    group = []
            bar.update()
        if group:
            flush(group)
    rows.flush()
    return problems


def grids(grid: tuple[int, int, int], reads: str | tuple[int, ...]) -> list[tuple[int, int, int]]:
    """The token grid of each part of what is read of a clip."""
    if reads == 'last':
        return [grid]
    return [grid, (1, *grid[1:])] if reads == 'future' else [grid] * len(reads)


def reduced_encoder(
    model,
    grid: tuple[int, int, int],
    tokens: int,
    reads: str | tuple[int, ...] = 'last',
) -> tuple[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], int]:
    """A function from clips uint8 [B, T, H, W, 3] to means [B, D] and averaged tokens [B, N, D],
    and the number of devices that B must be a multiple of."""
    local = sharding.make_mesh(1, jax.local_devices())
    encoder = net('encoder', model.config)
    weights = {'encoder': model.encoder.params}
    if reads == 'future':
        weights['predictor'] = model.need_predictor(reads).params

    @jax.jit
    def run(weights, clips):
        if reads == 'last':
            parts = [encoder(weights['encoder'], clips)]
        elif reads == 'future':
            x, seen = model.seen(lambda levels: encoder(weights['encoder'], clips, levels=levels))
            parts = [x, model.later(seen, grid, weights['predictor'])]
        else:
            parts = encoder(weights['encoder'], clips, levels=reads)
        kept = [average_tokens(x, g, tokens) for x, g in zip(parts, grids(grid, reads))]
        last = parts[0] if reads == 'future' else parts[-1]
        return last.mean(1), jnp.concatenate(kept, 1)

    with jax.set_mesh(local):
        weights = jax.device_put(weights, jax.NamedSharding(local, jax.P()))

    def encode(clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with jax.set_mesh(local):
            split = jax.device_put(clips, jax.NamedSharding(local, sharding.BATCH))
            return jax.tree.map(np.asarray, run(weights, split))

    return encode, local.size


def small(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] as their means over areas: [T, at most SIDE, at most SIDE, 3]."""
    return np.rint(area_means(frames, SIDE)).astype(np.uint8)
