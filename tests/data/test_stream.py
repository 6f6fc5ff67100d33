"""What all streams promise: order, replacement, workers, processes; and a stream of one's own."""

import importlib.util
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jepa_jax.config import LoaderConfig, RunConfig
from jepa_jax.data.stream import LEAST_TRIED, Failure, FailureLog, HostBatch, Stream
from jepa_jax.errors import BadFile, ConfigError, DataError

ROOT = Path(__file__).parents[2]


def config(batch=4, **loader):
    c = RunConfig(seed=7)
    c.data = LoaderConfig(**loader)
    c.optim.batch = batch
    return c


class Numbers(Stream):
    """Records that are their numbers; those in `bad` cannot be read."""

    def __init__(self, config, count=40, bad=(), **place):
        super().__init__(config, [range(count)], **place)
        self.bad = bad

    def read(self, row):
        if row.record in self.bad:
            raise BadFile(self.name(row), 'corrupt', 'as said')
        return {'record': row.record, 'draw': row.rng().integers(2**40)}


def read(stream, start, count):
    with stream, stream.batches(start) as batches:
        return [next(batches) for _ in range(count)]


def records(hosts):
    return np.stack([host.batch['record'] for host in hosts])


# --- order and replacement -----------------------------------------------------------------------


@pytest.mark.parametrize('count', [12, Stream.many])
def test_every_epoch_holds_every_record_once_in_another_order(count):
    steps = range(3 * count // 4)
    order = Numbers(config(), count).orders[0]
    seen = np.concatenate([order[step] for step in steps])
    assert not seen[:, 0].any()
    epochs = seen[:, 1].reshape(3, count)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(count), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    shares = [
        Numbers(config(), count, devices=2, process_index=i, process_count=2).orders[0]
        for i in range(2)
    ]
    both = np.stack([np.concatenate([share[step][:, 1] for step in steps]) for share in shares], 1)
    np.testing.assert_array_equal(both.ravel(), seen[:, 1])


def test_a_step_depends_on_seed_and_position_alone():
    whole = read(Numbers(config(), bad=(3, 8)), 0, 10)
    assert {f.path for host in whole for f in host.failures} == {
        'record 3 of list 0',
        'record 8 of list 0',
    }
    assert not set(records(whole).ravel()) & {3, 8}
    plain = read(Numbers(config()), 0, 10)
    changed = records(plain) != records(whole)
    # one that is bad is replaced, and no other moves
    assert set(records(plain)[changed]) == {3, 8}
    for host, expected in zip(read(Numbers(config(), bad=(3, 8)), 6, 4), whole[6:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, host.batch, expected.batch)
        assert host.failures == expected.failures
        assert host.tried == expected.tried == 4 + len(host.failures)
    for i in range(2):
        part = read(
            Numbers(config(), bad=(3, 8), devices=2, process_index=i, process_count=2), 0, 10
        )
        for key in ('record', 'draw'):
            for host, expected in zip(part, whole):
                np.testing.assert_array_equal(host.batch[key], expected.batch[key][i::2])


def test_batches_that_cannot_be_made_are_refused():
    with pytest.raises(ConfigError, match='optim.batch: 4 is no multiple of 3'):
        Numbers(config(), devices=3)
    with pytest.raises(ValueError, match='3 devices do not spread over 2 processes'):
        Numbers(config(), devices=3, process_count=2)
    with pytest.raises(DataError, match='in list 0: 17 records tried .* list 0 .corrupt: as said'):
        read(Numbers(config(), 3, bad=range(3)), 0, 1)


OWN = """
import dataclasses
import jax
import numpy as np
from jepa_jax.config import LoaderConfig, RunConfig
from jepa_jax.data.stream import Stream

@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    x: jax.Array
    y: jax.Array

@dataclasses.dataclass
class Config(RunConfig):
    data: LoaderConfig = dataclasses.field(default_factory=LoaderConfig)

class Own(Stream):
    def __init__(self, config, prepared, **place):
        super().__init__(config, [np.arange(20.0)], **place)

    def read(self, row):
        x = self.lists[row.list][row.record]
        return Pair(x, np.full((200, 300), x + row.rng().normal()))
"""


def test_a_config_file_may_bring_its_own(tmp_path, monkeypatch):
    """Workers know its classes, too, though no import finds the file."""
    path = tmp_path / 'own.py'
    path.write_text(OWN)
    spec = importlib.util.spec_from_file_location('config_file_own', path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    c = module.Config()
    c.optim.batch = 4
    here = read(module.Own(c, None), 3, 2)
    c.data.workers = 1
    there = read(module.Own(c, None), 3, 2)
    for a, b in zip(here, there):
        assert type(a.batch) is type(b.batch) is module.Pair
        jax.tree.map(np.testing.assert_array_equal, a.batch, b.batch)
        assert b.batch.y.shape == (4, 200, 300)


# --- failures ------------------------------------------------------------------------------------


def host_with(reasons, tried):
    failures = tuple(Failure(f'{reason}.mp4', reason, 'why', 0) for reason in reasons)
    return HostBatch(batch=None, failures=failures, tried=tried, seconds={})


def test_a_failure_without_details_is_told_by_its_reason(caplog):
    gone = Failure('gone.mp4', 'missing', '', 0)
    FailureLog(0.25).add(HostBatch(batch=None, failures=(gone,), tried=9, seconds={}))
    assert caplog.messages == ['cannot read gone.mp4 (missing: there is no such file); replaced']


def test_failures_are_counted_named_once_and_bounded(caplog):
    log = FailureLog(0.25)
    with caplog.at_level(logging.WARNING):
        log.add(host_with(['corrupt', 'corrupt', 'empty'], 4))  # too few to judge
        log.add(host_with(['corrupt'], 40))
    assert [record.getMessage() for record in caplog.records] == [
        'cannot read corrupt.mp4 (corrupt: why); replaced',
        'cannot read empty.mp4 (empty: why); replaced',
    ]
    assert log.counts() == {'data/tried': 44, 'data/failed/corrupt': 3, 'data/failed/empty': 1}
    again = FailureLog(0.25)
    again.restore(pickle.loads(pickle.dumps(log.state())))
    assert again.counts() == log.counts() and again.state() == log.state()
    again.add(host_with(['empty'] * 12, LEAST_TRIED - 44))  # 16 of 64 is the bound itself
    with pytest.raises(DataError, match=r'17 of 65 .*14 empty, 3 corrupt.*max_failure_share 0.25'):
        again.add(host_with(['empty'], 1))
    assert again.counts()['data/tried'] == 64  # a start with mended data goes on from there


# --- processes -----------------------------------------------------------------------------------


class Hanging(Numbers):
    """Never answers after its first step."""

    def read(self, row):
        if row.step > 3:
            threading.Event().wait()
        return super().read(row)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_reader_that_hangs_is_noticed(workers):
    with Hanging(config(workers=workers)) as stream:
        batches = stream.batches(3)
        next(batches)
        records = [f'record {row.record} of list 0' for row in stream.rows(4)]
        batches._timeout, start = 1.0, time.monotonic()
        message = rf'no batch for step 4 within 1 s .*; for \d+ s it reads ({"|".join(records)})$'
        with pytest.raises(DataError, match=message):
            next(batches)
    assert time.monotonic() - start < 30 and not workers_of(os.getpid())


def workers_of(parent):
    """Live children of a process that run grain's workers."""
    pids = []
    for entry in Path('/proc').iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / 'stat').read_text().rpartition(')')[2].split()
                command = (entry / 'cmdline').read_bytes()
            except OSError:
                continue  # it ended in the meantime
            if int(stat[1]) == parent and stat[0] != 'Z' and b'spawn_main' in command:
                pids.append(int(entry.name))
    return pids


linux = pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads /proc')


@linux
def test_a_worker_that_dies_is_named():
    with Numbers(config(workers=2)) as stream, stream.batches() as batches:
        next(batches)
        for pid in workers_of(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r'data worker [01] of 2 ended with exit code -9'):
            for _ in range(20):
                next(batches)
    assert not workers_of(os.getpid())


ORPHANS = """
import time
from test_stream import Numbers, config
if __name__ == '__main__':
    batches = Numbers(config(workers=2)).batches()
    next(batches), next(batches)
    print('ready', flush=True)
    time.sleep(600)
"""


def running(tmp_path: Path, script: str) -> subprocess.Popen:
    """A process with workers."""
    file = tmp_path / 'parent.py'
    file.write_text(script)
    path = os.pathsep.join(
        [str(ROOT), str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]
    )
    return subprocess.Popen(
        [sys.executable, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': path},
    )


@linux
def test_workers_end_with_their_parent(tmp_path):
    """SIGKILL gives the parent no chance to tell them."""
    with running(tmp_path, ORPHANS) as parent:
        assert parent.stdout.readline() == b'ready\n'
        workers = workers_of(parent.pid)
        assert len(workers) == 2
        parent.kill()
    deadline = time.monotonic() + 10
    while (alive := [pid for pid in workers if Path(f'/proc/{pid}').exists()]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert not alive


KILLED = """
import multiprocessing
from test_stream import Numbers, config
if __name__ == '__main__':
    with Numbers(config(workers=2)).batches() as batches:
        next(batches), next(batches)
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()
"""


@linux
def test_what_killed_workers_leave_in_memory_is_no_line_of_pythons(tmp_path):
    """As of a run whose step outlasts what a scheduler's SIGTERM leaves to its workers."""
    with running(tmp_path, KILLED) as parent:
        said = parent.communicate(timeout=120)[1].decode()
    assert parent.returncode == 0 and 'leaked' not in said, said
    assert not [n for n in os.listdir('/dev/shm') if f'-{parent.pid}-' in n]


class Devices(Numbers):
    """Tells whether its process has opened devices."""

    def read(self, row):
        from jax._src import xla_bridge

        return {'opened': xla_bridge.backends_are_initialized()}


def test_workers_open_no_devices():
    (host,) = read(Devices(config(workers=1)), 0, 1)
    assert not host.batch['opened'].any()
