"""Batches on the host, as a pure function of (seed, step, position), whatever is streamed.

Grain decides the order: per list a shuffle that repeats forever, lists mixed by weight, cut per
process and batched while still addressable by index, so that `steps[start:]` starts anywhere and
neither worker nor process count moves a record. An element is a whole step: rows are read side by
side in threads. A record that cannot be read is replaced by one that a hash of its position names.

A stream of one's own says which records there are and how one becomes a row:

    class Numbers(Stream):
        def __init__(self, config, prepared, **place):
            super().__init__(config, [np.load(config.data.path)], **place)

        def read(self, row):
            number = self.lists[row.list][row.record]
            return {'number': number, 'noisy': number + row.rng().normal()}

    with Numbers(config, None, devices=8) as stream:
        for host in stream.batches(start_step):  # host.batch['number'] [B]
            log.add(host)
            ...
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import time
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import grain
import jax
import numpy as np

from jepa_jax.config import RunConfig
from jepa_jax.data.workers import (
    Batches,
    Failure,
    HostBatch,
    saying,
    side_by_side,
    threads_of_a_worker,
    trim,
)
from jepa_jax.errors import REASONS, BadFile, ConfigError, DataError, printable

TRIM_EVERY = 256  # records that a worker reads before it gives freed memory back
LEAST_TRIED = 64  # records before a share of failures means something
FRAMES, AUGMENT, REPLACE = range(3)  # streams of random numbers that a record has


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a batch, and the record that is to fill it."""

    seed: int
    step: int
    group: int
    number: int  # of the row, among those that this process has in the group
    position: int  # in the endless sequence of the group's rows, all processes together
    list: int
    record: int
    attempt: int = 0  # how many records could not be read before this one
    into: Any = None  # what `Stream.empty` made for this step
    seconds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @property
    def key(self) -> tuple[int, int, int, int]:
        return self.seed, self.group, self.position, self.attempt

    def rng(self, stream: int = FRAMES) -> np.random.Generator:
        """Random numbers of this row and attempt; those of other streams are independent."""
        return generator(*self.key, stream)

    def replaced(self, count: int) -> Row:
        """The row with another of its list's `count` records."""
        row = dataclasses.replace(self, attempt=self.attempt + 1)
        return dataclasses.replace(row, record=hash_of(*row.key, REPLACE) % count)


@dataclasses.dataclass(frozen=True)
class Order:
    """Which records make the rows of a group."""

    rows: int  # a step, over all processes
    share: int  # of them this process's
    lists: tuple[int, ...]
    # step -> records of the only list [n], or (list, record) [n, 2]
    records: grain.MapDataset = dataclasses.field(repr=False)

    def __getitem__(self, step: int) -> np.ndarray:
        """(list, record) [n, 2] of the rows of a step."""
        records = np.asarray(self.records[step])
        if records.ndim == 2:
            return records
        return np.stack([np.full_like(records, self.lists[0]), records], axis=1)


class Stream:
    """Batches of one process.

    A subclass brings `read` and lists of records, and may override whatever stands up to `close`.
    Workers get a copy of it, so files are best opened where they are read.

    Args:
      config: a run.
      lists: of records, anything that has a length; none is empty.
      devices: over all processes; each gets the same number of rows of every group.
      process_index, process_count: which share of the rows this process makes.

    Raises ConfigError for batches that cannot be split.
    """

    # lists of fewer records are ordered by numpy: grain's shuffle walks a cipher of 16 bits until
    # it meets a number that is small enough, 0.06 ms a record of 500, 0.4 of 80, 2 of 12
    many = 256

    def __init__(
        self,
        config: RunConfig,
        lists: Sequence[Sized],
        *,
        devices: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        if devices % process_count:
            raise ValueError(f'{devices} devices do not spread over {process_count} processes')
        self.config, self.lists = config, lists
        self.parts = devices * config.optim.accumulate  # equal shares of a batch
        if config.optim.batch % self.parts:
            raise ConfigError(
                f'optim.batch: {config.optim.batch} is no multiple of {self.parts} '
                f'({devices} devices x optim.accumulate {config.optim.accumulate})'
            )
        self._process = process_index, process_count
        self.orders = self.plan()
        self._open: list[Batches] = []

    def plan(self) -> tuple[Order, ...]:
        """The groups that the rows of a step are of: one, of all lists alike."""
        return (self.order(range(len(self.lists)), self.config.optim.batch),)

    def read(self, row: Row) -> Any:
        """A row: a tree of arrays, all rows of the same form.

        Raises BadFile or OSError for a record that cannot be read; it is replaced.
        """
        raise NotImplementedError

    def empty(self, step: int) -> Any:
        """`row.into` of a step's rows: arrays for `read` to write to, if that saves copies."""

    def gather(self, step: int, into: Any, rows: list[Any]) -> Any:
        """The batch, from what `empty` gave and `read` returned, group after group."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def name(self, row: Row) -> str:
        """What messages call a record: a path where it has one."""
        return f'record {row.record} of list {row.list}'

    def place(self, list_index: int) -> str:
        """What messages call a list: a field and its value."""
        return f'list {list_index}'

    def shapes(self, step: int) -> tuple:
        """What the shapes of a step's arrays are known by; by default all steps have the same."""
        return ()

    @property
    def programs(self) -> list[tuple]:
        """The values of `shapes`: a program to compile each. Empty if every step has its own."""
        return [()]

    @property
    def facts(self) -> dict[str, dict]:
        """What checkpoints say of the data, beside the config."""
        return {}

    def check_resumed(self, stored: Mapping[str, Any]) -> None:
        """Raises ConfigError: a run whose checkpoints say that has other batches than these.

        stored: the manifest of the run's checkpoint, with the `facts` of then.
        """

    def describe(self) -> list[str]:
        """Lines for the start of a run's log."""
        return [f'{self.place(i)}: {len(each)} records' for i, each in enumerate(self.lists)]

    def examples(self, count: int) -> list[tuple[np.ndarray, str]]:
        """Frames uint8 [T, H, W, 3] of some records and words on them, for people to look at where
        batches have no frames."""
        return []

    def close(self) -> None:
        """Ends all iterators and their workers."""
        while self._open:
            self._open.pop().close()

    def batches(self, start_step: int = 0) -> Batches:
        """Batches of steps `start_step`, `start_step + 1`, ... without end; to be closed."""
        batches = Batches(_Reader(self), self.config.data, start_step)
        self._open.append(batches)
        return batches

    def order(
        self, lists: Sequence[int], rows: int, weights: Sequence[float] | None = None
    ) -> Order:
        """A group of `rows` rows a step over all processes, of some of the lists.

        Each list's records come once an epoch, every epoch in another order; weights: of the lists,
        by which they are mixed.
        """
        lists = tuple(lists)
        records = [
            _shuffled(len(self.lists[i]), hash_of(self.config.seed, i) % 2**32, self.many)
            for i in lists
        ]
        if len(lists) == 1:
            (records,) = records
        else:
            tagged = [each.map(_Tag(i)) for i, each in zip(lists, records)]
            records = grain.MapDataset.mix(tagged, weights)
        index, count = self._process
        share = rows // count
        return Order(rows, share, lists, records[index::count].batch(share))

    def rows(self, step: int, into: Any = None) -> list[Row]:
        """The rows that this process has of a step."""
        index, count = self._process
        return [
            Row(
                self.config.seed, step, group, number,
                position=step * order.rows + index + number * count,
                list=list_index, record=record, into=into,
            )
            for group, order in enumerate(self.orders)
            for number, (list_index, record) in enumerate(order[step].tolist())
        ]  # fmt: skip

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_open': []}


def _shuffled(count: int, seed: int, many: int) -> grain.MapDataset:
    """The numbers below `count` without end, in epochs that each have an order of their own."""
    numbers = grain.MapDataset.range(count)
    if count >= many:
        return numbers.shuffle(seed=seed).repeat()
    return numbers.repeat().map_with_index(functools.partial(_permuted, count, seed))


def _permuted(count: int, seed: int, position: int, _: int) -> int:
    epoch, place = divmod(position, count)
    return int(_permutation(count, seed, epoch)[place])


@functools.lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, epoch).permutation(count)


class _Tag(grain.transforms.Map):
    """Record -> (list, record)."""

    def __init__(self, index: int) -> None:
        self._index = index

    def map(self, record: int) -> np.ndarray:
        return np.array((self._index, record), np.int64)


class _Reader(grain.transforms.Map):
    """Step -> HostBatch. Runs wherever grain reads: in a thread of this process, or in a worker."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._threads = threads_of_a_worker(stream.config.data.workers)
        self._read = 0  # records since memory was given back

    def map(self, step: int) -> HostBatch:
        begin = time.perf_counter()
        stream = self._stream
        into = stream.empty(step)
        rows, failures, seconds = [], [], collections.Counter()
        tasks = [(row,) for row in stream.rows(step, into)]
        for arrays, failed, spent in side_by_side(self._row, tasks, self._threads):
            rows.append(arrays)
            failures += failed
            seconds.update(spent)
        batch = stream.gather(step, into, rows)
        seconds['batch'] = time.perf_counter() - begin
        tried = len(tasks) + len(failures)
        self._read += tried
        if self._read >= TRIM_EVERY:
            self._read = 0
            trim()
        return HostBatch(batch, tuple(failures), tried, dict(seconds))

    def _row(self, row: Row) -> tuple[Any, list[Failure], dict[str, float]]:
        """Reads a record; one that cannot be read is replaced."""
        stream, failures, start = self._stream, [], time.perf_counter()
        while True:
            try:
                with saying(stream.name(row)):
                    arrays = stream.read(row)
                break
            except BadFile as error:
                failures.append(Failure(error.path, error.reason, error.detail, row.list))
            except OSError as error:
                reason = 'missing' if isinstance(error, FileNotFoundError) else 'unreadable'
                failures.append(Failure(stream.name(row), reason, str(error), row.list))
            except MemoryError:
                detail = f'{REASONS["memory"]} (--limits memory=...)'
                failures.append(Failure(stream.name(row), 'memory', detail, row.list))
            if row.attempt == stream.config.data.attempts:
                last = failures[-1]
                raise DataError(
                    f'nothing can be read in {stream.place(row.list)}: {len(failures)} records '
                    f'tried in a row (data.attempts), the last was {last.path} ({last.reason}: '
                    f'{last.detail})'
                )
            row = row.replaced(len(stream.lists[row.list]))
        # what `read` itself says of its time is for something else than reading
        rest = time.perf_counter() - start - row.seconds.total()
        return arrays, failures, {'read': rest, **row.seconds}


class FailureLog:
    """Counts unreadable records over a run, names each once, stops the run at too many.

    Args:
      max_share: of unreadable records among those tried, above which `add` raises.
    """

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._tried = 0
        self._reasons: collections.Counter[str] = collections.Counter()
        self._named: set[str] = set()
        self._seconds: collections.Counter[str] = collections.Counter()
        self._read = 0  # records of this start

    def add(self, host: HostBatch) -> None:
        """Counts a batch's failures. Raises DataError, and has not counted them then: a start with
        mended data resumes from what was there before."""
        self._read += host.tried
        self._seconds.update(host.seconds)
        tried, reasons = self._tried + host.tried, self._reasons.copy()
        fresh = set()
        for failure in host.failures:
            reasons[failure.reason] += 1
            if failure.path not in self._named and failure.path not in fresh:
                fresh.add(failure.path)
                logging.warning(
                    'cannot read %s (%s: %s); replaced',
                    printable(failure.path)[:300],
                    failure.reason,
                    printable(failure.detail) or REASONS.get(failure.reason, 'no more is known'),
                )
        failed = reasons.total()
        if tried >= LEAST_TRIED and failed > self._max_share * tried:
            words = ', '.join(f'{n} {reason}' for reason, n in reasons.most_common())
            raise DataError(
                f'{failed} of {tried} records could not be read ({words}): more than '
                f'data.max_failure_share {self._max_share:g} allows'
            )
        self._tried, self._reasons = tried, reasons
        self._named |= fresh

    def counts(self) -> dict[str, int]:
        """Metrics: `data/tried`, and `data/failed/REASON` for every reason met so far."""
        failed = {f'data/failed/{reason}': n for reason, n in sorted(self._reasons.items())}
        return {'data/tried': self._tried, **failed}

    def reading(self) -> dict[str, float]:
        """Seconds that a record took in this start, by what they went to, all threads together."""
        return (
            {k: each / self._read for k, each in sorted(self._seconds.items()) if k != 'batch'}
            if self._read
            else {}
        )

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON values."""
        return {
            'tried': self._tried,
            'reasons': dict(sorted(self._reasons.items())),
            'named': sorted(self._named),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Resumes from a `state`."""
        self._tried = state['tried']
        self._reasons = collections.Counter(state['reasons'])
        self._named = set(state['named'])


def generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def hash_of(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
