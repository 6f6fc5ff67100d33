"""The processes and threads that batches are made in.

Grain starts worker processes and hands their results over; what it leaves open is here: workers
that end with their parent however it ends, leave its devices alone and know the modules that its
config file made, and a parent that notices a worker which hangs or is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib.util
import logging
import multiprocessing
import os
import queue
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker, shared_memory, util
from typing import Any

import grain
import grain.experimental
import jax
import numpy as np
from absl import flags

from jepa_jax import scratch
from jepa_jax.config import LoaderConfig
from jepa_jax.data.confine import confine, missing
from jepa_jax.errors import FAILED, DataError

STEPS = 2**40  # as many as anyone asks for
GRACE = 30  # seconds that a worker lives on after SIGTERM
M_ARENA_MAX = -8  # of glibc's malloc.h
WORKER = 'grain-process-prefetch'  # how grain names its processes
NAME = 1024  # bytes of shared memory in which a worker says what it reads
_abandoned: list[Iterator] = []  # never to be collected: that would wait for their threads


@dataclasses.dataclass(frozen=True)
class Failure:
    """A record that could not be read."""

    path: str
    reason: str  # a word: corrupt, missing, empty, ...
    detail: str
    list: int  # index of the stream's list


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HostBatch:
    """One process's rows of a step, and how it went to read them."""

    batch: Any  # Batch, Trajectories or a stream's own, of numpy arrays
    failures: tuple[Failure, ...]
    tried: int  # records, unreadable ones included
    seconds: dict[str, float]  # read, augment, masks: summed over threads; batch: wall clock


class Batches(Iterator[HostBatch]):
    """Iterator over the steps of a stream. Iterate from one thread; close when done."""

    def __init__(self, reader: grain.transforms.Map, data: LoaderConfig, start_step: int) -> None:
        """reader: step -> HostBatch."""
        self._timeout, self._workers = data.worker_timeout, data.workers
        self._start = self._step = start_step
        self._stuck = False
        steps = grain.MapDataset.range(STEPS)[start_step:].map(reader)
        dataset = steps.to_iter_dataset(grain.ReadOptions(0, 0))
        self._reading = Reading(self._workers)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads its own absl flags when it starts workers
                flags.FLAGS.mark_as_parsed()
            _name_shared_memory()
            if data.confine and (why := missing()):
                _say(f'data workers may start programs and open sockets: {why}')
            # half of the batches held ready wait in the worker, half in this process
            options = grain.MultiprocessingOptions(self._workers, max(1, data.prefetch // 2))
            begin = functools.partial(
                _start_worker,
                files_of_modules(),
                scratch.mark(),
                data.confine,
                self._reading.name,
            )
            dataset = dataset.mp_prefetch(options, worker_init_fn=begin)
        else:  # a daemon thread, unlike those of ReadOptions, which keep a stuck process alive
            dataset = grain.experimental.ThreadPrefetchIterDataset(
                dataset, prefetch_buffer_size=max(1, data.prefetch)
            )
        self._iterator = iter(dataset)

    def __next__(self) -> HostBatch:
        """Raises DataError when a worker is gone, silent for too long, or finds nothing to read."""
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        # grain waits without end for a worker that hangs; a thread that may be left behind does not
        threading.Thread(target=self._fetch, args=(answer,), daemon=True).start()
        worker = (self._step - self._start) % max(1, self._workers)
        try:
            host, error = answer.get(timeout=self._timeout)
        except queue.Empty:
            self._stuck = True
            who = f'data worker {worker} of {self._workers}' if self._workers else 'the data thread'
            raise DataError(
                f'{who} gave no batch for step {self._step} within {self._timeout:g} s '
                '(data.worker_timeout): it hangs, or reading is that slow'
                f'{self._reading.at(worker)}'
            ) from None
        if error is not None:
            if isinstance(error, RuntimeError) and 'terminated unexpectedly' in str(error):
                code = str(error).partition('exit code ')[2].partition('.')[0]
                raise DataError(
                    f'data worker {worker} of {self._workers} ended with exit code {code} before '
                    f'step {self._step}{_EXIT_HINTS.get(code, "")}'
                ) from error
            if isinstance(error, MemoryError) and self._workers:
                raise DataError(
                    f'data worker {worker} of {self._workers} has too little memory for the batch '
                    f'of step {self._step} ({error}): --limits memory=...'
                ) from error
            raise error
        self._step += 1
        # a copy of a worker's: its shared memory would leak if it were in use when the run ends
        own = np.array if self._workers else np.asarray
        return dataclasses.replace(host, batch=jax.tree.map(own, host.batch))

    def close(self) -> None:
        """Ends the workers."""
        if self._iterator is None:
            return
        if self._stuck:  # grain would wait for what hangs
            for process in multiprocessing.active_children():
                if process.name.startswith(WORKER):
                    process.kill()
        if self._stuck and not self._workers:
            _abandoned.append(self._iterator)  # whose thread nobody can end
        else:
            self._iterator.close()
        self._iterator = None
        self._reading.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fetch(self, answer: queue.SimpleQueue) -> None:
        if self._workers:  # they inherit the mask, until `_start_worker` has a handler
            resource_tracker.ensure_running()  # clears the mask when it starts
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            answer.put((next(self._iterator), None))
        except BaseException as error:  # raised again by the thread that asked
            answer.put((None, error))


class Reading:
    """What each worker reads at the moment, in shared memory; without workers, in this process."""

    def __init__(self, workers: int) -> None:
        self.name, self._shared = '', None
        if workers and os.path.isdir(SHARED):
            self.name = f'{scratch.mark()}{secrets.token_hex(6)}'
            self._shared = shared_memory.SharedMemory(self.name, create=True, size=workers * NAME)

    def at(self, worker: int) -> str:
        """Words on what a worker has read for longest; none if it does not say."""
        text = _oldest()
        if self._shared is not None:
            text = bytes(self._shared.buf[worker * NAME : (worker + 1) * NAME]).rstrip(b'\0')
        since, _, name = text.decode('utf-8', 'replace').partition(' ')
        return f'; for {time.monotonic() - float(since):.0f} s it reads {name}' if name else ''

    def close(self) -> None:
        if self._shared is not None:
            self._shared.close()
            self._shared.unlink()
            self._shared = None


_at_work: dict[int, bytes] = {}  # thread -> since when it reads what
_said: tuple[shared_memory.SharedMemory, int] | None = None  # where a worker says it: its index


@contextlib.contextmanager
def saying(name: str) -> Iterator[None]:
    """Says what is read while it is read: what hangs can then be named."""
    thread = threading.get_ident()
    _at_work[thread] = f'{time.monotonic():.1f} {name}'.encode('utf-8', 'replace')[:NAME]
    _say_oldest()
    try:
        yield
    finally:
        del _at_work[thread]
        _say_oldest()


def _oldest() -> bytes:
    return next(iter(tuple(_at_work.values())), b'')  # in order of their beginnings


def _say_oldest() -> None:
    if _said is not None:
        shared, index = _said
        shared.buf[index * NAME : (index + 1) * NAME] = _oldest().ljust(NAME, b'\0')


def side_by_side(function: Callable, tasks: list[tuple], threads: int) -> list:
    """`[function(*task) for task in tasks]` in threads; raises the first error.

    Daemon threads, unlike an executor's: a read that never returns must not keep the process.
    """
    results: list[Any] = [None] * len(tasks)
    errors: list[BaseException] = []
    left = iter(range(len(tasks)))  # its next() is one step for the interpreter: no number twice

    def work() -> None:
        for number in left:
            try:
                results[number] = function(*tasks[number])
            except BaseException as error:
                errors.append(error)
            if errors:
                return

    crew = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(tasks)))]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    if errors:
        raise errors[0]
    return results


_LIBC = ctypes.CDLL(None)


def trim() -> None:
    """Gives freed memory back to the system, with glibc. Decoders allocate in many threads, and
    the holes that they leave would grow a worker by about 10 MiB every 1,000 clips."""
    if trim := getattr(_LIBC, 'malloc_trim', None):
        trim(0)


def threads_of_a_worker(workers: int) -> int:
    """Its share of the processors; 0 workers: all."""
    return max(1, cpus() // max(1, workers))


def cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def files_of_modules() -> dict[str, str]:
    """Name -> file of every module that no import would find: those of config files.

    Workers run these files again, as imports do with all other modules; classes that travelled as
    values in place of names would be strangers to what the files register.
    """
    files = {}
    for name, module in list(sys.modules.items()):
        spec = getattr(module, '__spec__', None)
        origin = getattr(spec, 'origin', None) or ''
        if '.' in name or name == '__main__' or not origin.endswith('.py'):
            continue
        home = os.path.dirname(origin)
        if origin.endswith('__init__.py'):
            home = os.path.dirname(home)
        if home not in sys.path and not any(f.find_spec(name, None) for f in sys.meta_path):
            files[name] = origin
    return files


SHARED = '/dev/shm'  # where Linux lists shared memory and semaphores


def _name_shared_memory() -> None:
    """Removes what killed runs left, and names this one's semaphores after it.

    SIGKILL of a process group ends the process, too, in which Python keeps a list of them.
    """
    if os.path.isdir(SHARED):
        scratch.sweep(SHARED, elsewhere=False)
        multiprocessing.current_process()._config['semprefix'] = f'/{scratch.mark()}'
        _at_exit()


@functools.cache
def _at_exit() -> None:
    """Lets this process end with `_unlink_left`, when its workers have ended: below 0."""
    util.Finalize(None, _unlink_left, exitpriority=-1)


def _unlink_left() -> None:
    """Removes shared memory of workers that were killed, or gave up GRACE seconds after a SIGTERM
    while this process was at a long step: Python would do it with a warning."""
    for name in os.listdir(SHARED):
        if name.startswith(scratch.mark()):
            with contextlib.suppress(OSError, ValueError):
                left = shared_memory.SharedMemory(name)
                left.close()
                left.unlink()


class _Named(shared_memory.SharedMemory):
    """Shared memory whose name says whose it is; grain lets Python choose it."""

    owner = ''

    def __init__(self, name=None, create=False, size=0, **more) -> None:
        while True:
            own = f'{self.owner}{secrets.token_hex(6)}' if create and name is None else name
            try:
                super().__init__(own, create, size, **more)
                return
            except FileExistsError:
                if own == name:
                    raise


@functools.cache
def _say(line: str) -> None:
    logging.info(line)


def _start_worker(
    files: dict[str, str], owner: str, confined: bool, place: str, index: int, count: int
) -> None:
    """Runs first in a worker: leaves accelerators and Ctrl-C to the parent, and ends with it; does
    what files ask for within limits.

    owner: of the shared memory that batches travel in, the parent's `scratch.mark`.
    confined: as `data.confine`.
    place: name of the shared memory in which it says what it reads.

    `prctl(PR_SET_PDEATHSIG)` will not do: it fires when the parent's *thread* that started the
    worker ends, and grain starts workers from short-lived threads. What `join` waits for is a pipe
    that the parent holds open; its id also tells, should another process have inherited the pipe.
    """
    del count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # a scheduler's SIGTERM goes to all processes: the parent needs its next batch to stop in order
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    jax.config.update('jax_platforms', 'cpu')
    if limit := getattr(_LIBC, 'mallopt', None):
        limit(M_ARENA_MAX, 1)  # threads with heaps of their own would fill each with holes
    parent = multiprocessing.parent_process()

    def watch() -> None:
        while os.getppid() == parent.pid and parent.is_alive():
            parent.join(1.0)
        os._exit(FAILED)

    threading.Thread(target=watch, name='parent-watch', daemon=True).start()
    for name, path in files.items():
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, path)
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
    if os.path.isdir(SHARED):
        _Named.owner = owner
        shared_memory.SharedMemory = _Named
        global _said
        _said = shared_memory.SharedMemory(place), index
    confine(calls=confined)


_EXIT_HINTS = {
    '-7': ' (bus error: shared memory, /dev/shm, may be full; containers need --shm-size)',
    '-9': ' (killed: the machine may be out of memory)',
    '-11': ' (a decoder crashed on a file)',
}
