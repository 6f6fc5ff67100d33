"""Lists of videos and images -> batches of clips and masks.

with VideoStream(config, devices=8) as stream:
    for host in stream.batches(start_step):
        log.add(host)
        ...
"""

from __future__ import annotations

import collections
import dataclasses
import time

import grain
import numpy as np

from jepa_jax.config import MaskedVideoConfig
from jepa_jax.data import Batch, Group
from jepa_jax.data.augment import augment
from jepa_jax.data.sources import Source, open_source
from jepa_jax.data.stream import (
    AUGMENT,
    FRAMES,
    REPLACE,
    TRIM_EVERY,
    Batches,
    Failure,
    HostBatch,
    generator,
    hash_of,
    side_by_side,
    threads_of_a_worker,
    trim,
)
from jepa_jax.errors import BadFile, ConfigError, DataError
from jepa_jax.masks import Mask
from jepa_jax.masks.samplers import MaskSampler, mask_sampler


@dataclasses.dataclass(frozen=True)
class _Clips:
    """Clips of one frame count: which lists, how many rows, in which order."""

    frames: int
    lists: tuple[int, ...]
    quota: int  # rows a device and accumulation part
    rows: int  # rows a step, over all devices
    order: grain.MapDataset  # step -> (list, record) of this process's rows
    sampler: MaskSampler


class VideoStream:
    """Batches of one process.

    Args:
      config: a run.
      devices: over all processes; each gets the same number of rows of every frame count.
      process_index, process_count: which share of the rows this process makes.

    Raises ConfigError for lists that cannot be opened and batches that cannot be split.
    """

    def __init__(
        self,
        config: MaskedVideoConfig,
        *,
        devices: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        if devices % process_count:
            raise ValueError(f'{devices} devices do not spread over {process_count} processes')
        self._config = config
        self._process = (process_index, process_count)
        data = config.data
        if not data.lists:
            raise ConfigError('data.lists is empty; at least one list is needed')
        self.sources = [open_source(entry, data, i) for i, entry in enumerate(data.lists)]
        parts = devices * config.optim.accumulate
        if config.optim.batch % parts:
            raise ConfigError(
                f'optim.batch: {config.optim.batch} is no multiple of {parts} '
                f'({devices} devices x optim.accumulate {config.optim.accumulate})'
            )
        quotas = split_rows(config, config.optim.batch // parts)
        self.groups = tuple(
            self._clips(frames, quota, quota * parts) for frames, quota in quotas.items()
        )
        self._open: list[Batches] = []

    def batches(self, start_step: int = 0) -> Batches:
        """Batches of steps `start_step`, `start_step + 1`, ... without end; to be closed."""
        batches = Batches(_Reader(self), self._config.data, start_step)
        self._open.append(batches)
        return batches

    def shapes(self, step: int) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Per frame count and mask the numbers of context and target tokens at a step."""
        return tuple(group.sampler.shapes(step) for group in self.groups)

    @property
    def programs(self) -> list[tuple[tuple[tuple[int, int], ...], ...]]:
        """The values of `shapes`: a program to compile each. Empty if every step has its own."""
        if self._config.mask_sampler == 'reference':
            return []
        # at most four, drawn with equal chance: 256 steps miss one with a chance of 1e-31
        return sorted({self.shapes(step) for step in range(256)})

    @property
    def facts(self) -> dict[str, dict]:
        """What checkpoints say of the data, beside the config: nothing."""
        return {}

    def describe(self) -> list[str]:
        """Lines for the start of a run's log."""
        lines = []
        for i, (entry, source) in enumerate(zip(self._config.data.lists, self.sources)):
            left_out = ''.join(f', {n} left out: {why}' for why, n in source.skipped.items())
            frames = entry.frames or self._config.data.frames
            path = entry.path or '(default folder)'
            lines.append(
                f'list {i}: {entry.kind} {path}: {len(source)} records{left_out}; '
                f'{frames} frames, weight {entry.weight:g}'
            )
        for i, group in enumerate(self.groups):
            lists = ', '.join(map(str, group.lists))
            lines.append(
                f'group {i}: {group.frames} frames from list {lists}: {group.quota} rows a device '
                f'and part, {group.rows} a step'
            )
        return lines

    def close(self) -> None:
        """Ends all iterators and their workers."""
        while self._open:
            self._open.pop().close()

    def __enter__(self) -> VideoStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _clips(self, frames: int, quota: int, rows: int) -> _Clips:
        config = self._config
        data = config.data
        lists = [i for i, e in enumerate(data.lists) if (e.frames or data.frames) == frames]
        order = grain.MapDataset.mix(
            [
                grain.MapDataset.range(len(self.sources[i]))
                .shuffle(seed=hash_of(config.seed, i) % 2**32)
                .map(_Tag(i))
                .repeat()
                for i in lists
            ],
            [data.lists[i].weight for i in lists],
        )
        index, count = self._process
        order = order[index::count].batch(rows // count)
        return _Clips(frames, tuple(lists), quota, rows, order, mask_sampler(config, frames, rows))


def split_rows(config: MaskedVideoConfig, rows: int) -> dict[int, int]:
    """Rows of each frame count in a device's part of the batch: largest remainder of weights.

    Frame counts come in the order in which the lists name them first: their position selects the
    mask token. Raises ConfigError when one would get no row.
    """
    weights: dict[int, float] = {}
    for i, entry in enumerate(config.data.lists):
        if not 0 < entry.weight < float('inf'):
            raise ConfigError(
                f'data.lists[{i}].weight: {entry.weight} is not above 0; drop the list instead'
            )
        frames = entry.frames or config.data.frames
        weights[frames] = weights.get(frames, 0.0) + entry.weight
    total = sum(weights.values())
    shares = {frames: rows * weight / total for frames, weight in weights.items()}
    quotas = {frames: int(share) for frames, share in shares.items()}
    by_remainder = sorted(shares, key=lambda frames: quotas[frames] - shares[frames])
    for frames in by_remainder[: rows - sum(quotas.values())]:
        quotas[frames] += 1
    for frames, quota in quotas.items():
        if not quota:
            share = weights[frames] / total
            raise ConfigError(
                f'data.lists: clips of {frames} frames weigh {share:.3g} of all, which is no row '
                f'of the {rows} that a device takes at once; raise their weight or optim.batch, or '
                'lower optim.accumulate'
            )
    return quotas


class _Tag(grain.transforms.Map):
    """Record -> (list, record)."""

    def __init__(self, index: int) -> None:
        self._index = index

    def map(self, record: int) -> np.ndarray:
        return np.array((self._index, record), np.int64)


class _Reader(grain.transforms.Map):
    """Step -> HostBatch. Runs wherever grain reads: in a thread of this process, or in a worker."""

    def __init__(self, stream: VideoStream) -> None:
        config = stream._config
        self._config, self._process = config, stream._process
        self._sources: list[Source] = stream.sources
        self._groups = stream.groups
        self._threads = threads_of_a_worker(config.data.workers)
        self._read = 0  # clips since memory was given back

    def map(self, step: int) -> HostBatch:
        begin = time.perf_counter()
        tasks, groups = [], []
        for index, group in enumerate(self._groups):
            arrays, rows = self._group(step, index, group)
            groups.append(arrays)
            tasks += rows
        failures: list[Failure] = []
        seconds: collections.Counter[str] = collections.Counter()
        for failed, spent in side_by_side(self._row, tasks, self._threads):
            failures += failed
            seconds.update(spent)
        seconds['batch'] = time.perf_counter() - begin
        tried = len(tasks) + len(failures)
        self._read += tried
        if self._read >= TRIM_EVERY:
            self._read = 0
            trim()
        return HostBatch(Batch(tuple(groups)), tuple(failures), tried, dict(seconds))

    def _group(self, step: int, index: int, group: _Clips) -> tuple[Group, list[tuple]]:
        """Empty arrays of a group and what fills each of their rows."""
        order = group.order[step]
        process, count = self._process
        crop = self._config.data.crop
        clips = np.empty((len(order), group.frames, crop, crop, 3), np.uint8)
        masks = tuple(
            Mask(np.empty((len(order), k), np.int32), np.empty((len(order), m), np.int32))
            for k, m in group.sampler.shapes(step)
        )
        first = step * group.rows + process
        rows = [
            (step, index, first + row * count, *record, clips[row], [(m, row) for m in masks])
            for row, record in enumerate(order.tolist())
        ]
        return Group(clips, masks), rows

    def _row(
        self,
        step: int,
        index: int,
        position: int,
        list_index: int,
        record: int,
        out: np.ndarray,
        masks: list[tuple[Mask, int]],
    ) -> tuple[list[Failure], dict[str, float]]:
        """Fills one row: reads, cuts, draws masks. A record that cannot be read is replaced."""
        data, group = self._config.data, self._groups[index]
        source = self._sources[list_index]
        failures: list[Failure] = []
        start = time.perf_counter()
        for attempt in range(data.attempts + 1):
            key = (self._config.seed, index, position, attempt)
            if attempt:
                record = hash_of(*key, REPLACE) % len(source)
            try:
                frames = source.read(record, group.frames, generator(*key, FRAMES))
                break
            except BadFile as error:
                failures.append(Failure(error.path, error.reason, error.detail, list_index))
            except OSError as error:
                reason = 'missing' if isinstance(error, FileNotFoundError) else 'unreadable'
                failures.append(Failure(source.name(record), reason, str(error), list_index))
        else:
            path = data.lists[list_index].path
            last = failures[-1]
            raise DataError(
                f'nothing can be read in data.lists[{list_index}] {path!r}: {len(failures)} '
                f'records tried in a row (data.attempts), the last was {last.path} ({last.reason}: '
                f'{last.detail})'
            )
        read = time.perf_counter()
        augment(frames, data.augment, generator(*key, AUGMENT), out)
        cut = time.perf_counter()
        drawn = group.sampler.sample(step, position)
        for (mask, row), (context, target) in zip(masks, drawn):
            mask.context[row], mask.target[row] = context, target
        spent = {'read': read - start, 'augment': cut - read, 'masks': time.perf_counter() - cut}
        return failures, spent
