"""Batches are a pure function of (seed, step, position): any start, workers, process count."""

import collections
import hashlib
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
from PIL import Image

from jepa_jax.config import DataConfig, DataListConfig, MaskedVideoConfig
from jepa_jax.data import clips, decode, synthetic
from jepa_jax.data.augment import augment
from jepa_jax.data.stream import AUGMENT, FRAMES, LEAST_TRIED, Failure, FailureLog, HostBatch
from jepa_jax.data.videos import VideoStream, split_rows
from jepa_jax.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Seven videos that differ in size and length, five images, and lists of them."""
    folder = tmp_path_factory.mktemp('videos')
    rng = np.random.default_rng(0)
    for i in range(7):
        frames = rng.integers(0, 256, (10 + 3 * i, 32 + 8 * i, 48, 3), dtype=np.uint8)
        synthetic.write(folder / f'{i}.mp4', frames)
    for i in range(5):
        image = rng.integers(0, 256, (40, 30 + i, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f'{i}.png')
    (folder / 'a.txt').write_text(''.join(f'{i}.mp4 {i}\n' for i in range(4)))
    (folder / 'b.txt').write_text(''.join(f'{i}.mp4 {i}\n' for i in range(4, 7)))
    (folder / 'images.txt').write_text(''.join(f'{i}.png\n' for i in range(5)))
    return folder


def small(*lists, workers=0, batch=4):
    """The smallest run that masks can be drawn for."""
    config = MaskedVideoConfig(seed=7)
    config.data.lists = list(lists)
    config.data.crop, config.data.frames, config.data.workers = 64, 4, workers
    config.encoder.patch = 8
    config.optim.batch = batch
    return config


def mixed(videos, **settings):
    """Two lists of 4 frames, images as 2: three lists, two groups."""
    return small(
        DataListConfig(path=str(videos / 'a.txt'), weight=2.0),
        DataListConfig(path=str(videos / 'images.txt'), kind='images', weight=1.0, frames=2),
        DataListConfig(path=str(videos / 'b.txt'), weight=1.0),
        **settings,
    )


def digest(host):
    leaves = jax.tree.leaves(host.batch)
    joined = b''.join(np.ascontiguousarray(x).tobytes() + str(x.shape).encode() for x in leaves)
    return hashlib.sha256(joined).hexdigest()[:16], host.failures


def read(config, start, count, **settings):
    with VideoStream(config, **settings) as stream, stream.batches(start) as batches:
        return [next(batches) for _ in range(count)]


# --- order ---------------------------------------------------------------------------------------


def test_batch_is_made_of_what_the_files_hold(videos):
    """One step again by hand: order aside, every row is read, cut and masked from its own seed."""
    config = mixed(videos)
    with VideoStream(config) as stream:
        host = next(stream.batches(3))
        assert [g.clips.shape for g in host.batch.groups] == [(3, 4, 64, 64, 3), (1, 2, 64, 64, 3)]
        assert host.batch.groups[0].clips.dtype == np.uint8
        group, order = stream.groups[0], stream.orders[0][3]
        for row, (list_index, record) in enumerate(order.tolist()):
            position = 3 * 3 + row
            path = stream.lists[list_index].name(record)
            key = (config.seed, 0, position, 0)
            rngs = [
                np.random.Generator(np.random.Philox(np.random.SeedSequence((*key, stream))))
                for stream in (FRAMES, AUGMENT)
            ]
            frames = decode.read_frames(
                path,
                lambda timing, rng=rngs[0]: clips.frame_indices(
                    timing, 4, clips.Sampling(fps=4), rng
                ),
            )
            expected = augment(
                frames, config.data.augment, rngs[1], np.empty((4, 64, 64, 3), np.uint8)
            )
            np.testing.assert_array_equal(host.batch.groups[0].clips[row], expected)
            for mask, (context, target) in zip(
                host.batch.groups[0].masks, group.sampler.sample(3, position)
            ):
                np.testing.assert_array_equal(mask.context[row], context)
                np.testing.assert_array_equal(mask.target[row], target)
        shapes = tuple(
            tuple((m.context.shape[1], m.target.shape[1]) for m in g.masks)
            for g in host.batch.groups
        )
        assert shapes == stream.shapes(3) and shapes in stream.programs
        assert 1 <= len(stream.programs) <= 4
    image = host.batch.groups[1].clips
    assert (image == image[:, :1]).all()  # a repeated frame
    assert set(host.seconds) == {'read', 'augment', 'masks', 'batch'} and host.tried == 4


def test_starts_anywhere(videos):
    whole = [digest(host) for host in read(mixed(videos), 0, 6)]
    assert len(set(whole)) == 6
    assert [digest(host) for host in read(mixed(videos), 4, 2)] == whole[4:]
    other = mixed(videos)
    other.seed += 1
    assert digest(read(other, 0, 1)[0]) != whole[0]


def test_workers_do_not_matter(videos, tmp_path):
    """Also for replaced records: what workers hand over names the same failures."""
    (tmp_path / 'bad.txt').write_text(f'{videos}/0.mp4\n{videos}/1.mp4\n{tmp_path}/absent.mp4\n')
    lists = [
        DataListConfig(path=str(tmp_path / 'bad.txt')),
        DataListConfig(path=str(videos / 'b.txt')),
    ]
    expected = [digest(host) for host in read(small(*lists), 2, 5)]
    assert any(failures for _, failures in expected)
    for workers in (1, 3):
        hosts = read(small(*lists, workers=workers), 2, 5)
        assert [digest(host) for host in hosts] == expected
    leaves = jax.tree.leaves(hosts[0].batch)
    assert all(type(leaf) is np.ndarray for leaf in leaves)


def test_processes_share_the_same_rows(videos):
    """Two processes hold what one would, and each row once."""
    config = mixed(videos, batch=8)
    config.optim.accumulate = 1
    alone = read(config, 5, 2, devices=2)
    halves = [read(config, 5, 2, devices=2, process_index=i, process_count=2) for i in range(2)]
    for step in range(2):
        for group in range(2):
            whole, *parts = (h[step].batch.groups[group] for h in (alone, *halves))
            assert len(parts[0].clips) == len(parts[1].clips) == len(whole.clips) // 2
            rows = collections.Counter(
                hashlib.sha256(row.tobytes() + mask.tobytes()).hexdigest()
                for part in parts
                for row, mask in zip(part.clips, part.masks[0].context)
            )
            assert rows == collections.Counter(
                hashlib.sha256(row.tobytes() + mask.tobytes()).hexdigest()
                for row, mask in zip(whole.clips, whole.masks[0].context)
            )


def test_every_epoch_holds_every_record_once_in_another_order(videos):
    config = small(DataListConfig(path=str(videos / 'a.txt')), batch=4)
    with VideoStream(config) as stream:
        epochs = [stream.orders[0][i][:, 1].tolist() for i in range(20)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_lists_are_mixed_by_weight(videos):
    with VideoStream(mixed(videos)) as stream:
        order = np.concatenate([stream.orders[0][i] for i in range(20)])
    counts = np.bincount(order[:, 0], minlength=3)
    assert counts.tolist() == [40, 0, 20]


def test_the_originals_masks(videos):
    config = mixed(videos, batch=8)
    config.mask_sampler = 'reference'
    with VideoStream(config, devices=2) as stream:
        host, other = (next(stream.batches(step)) for step in (2, 3))
        assert stream.programs == []
        for group, shapes in zip(host.batch.groups, stream.shapes(2)):
            for mask, (k, m) in zip(group.masks, shapes):
                assert mask.context.shape[1] == k and mask.target.shape[1] == m
    half = read(config, 2, 1, devices=2, process_index=1, process_count=2)[0]
    whole, part = host.batch.groups[0].masks[0], half.batch.groups[0].masks[0]
    np.testing.assert_array_equal(part.context, whole.context[1::2])
    assert digest(host) != digest(other)


# --- quotas --------------------------------------------------------------------------------------


def quotas(weights, rows):
    config = MaskedVideoConfig()
    config.data.lists = [DataListConfig(weight=w, frames=f) for f, w in weights]
    return split_rows(config, rows)


@pytest.mark.parametrize(
    'weights, rows, expected',
    [
        ([(16, 1.0)], 24, {16: 24}),
        ([(16, 1.0), (64, 1.0), (16, 1.0)], 6, {16: 4, 64: 2}),
        ([(64, 0.5), (16, 0.3), (1, 0.2)], 7, {64: 4, 16: 2, 1: 1}),  # 3.5, 2.1, 1.4
        ([(16, 1.0), (64, 1.0), (8, 1.0)], 4, {16: 2, 64: 1, 8: 1}),  # ties: the first
        ([(0, 3.0), (16, 1.0)], 8, {16: 8}),  # 0: data.frames, 16
    ],
)
def test_quotas_by_largest_remainder(weights, rows, expected):
    result = quotas(weights, rows)
    assert result == expected and list(result) == list(expected)


@pytest.mark.parametrize(
    'change, words',
    [
        (
            lambda c: c.data.lists.append(
                DataListConfig(c.data.lists[0].path, weight=0.1, frames=8)
            ),
            '8',
        ),
        (lambda c: setattr(c.data.lists[0], 'weight', 0.0), 'data.lists[0].weight'),
        (lambda c: setattr(c.data.lists[0], 'weight', float('nan')), 'data.lists[0].weight'),
        (lambda c: setattr(c.optim, 'batch', 5), 'optim.batch: 5 is no multiple of 2'),
        (lambda c: setattr(c.optim, 'accumulate', 3), 'no multiple of 6'),
        (lambda c: c.data.lists.clear(), 'data.lists is empty'),
        (lambda c: setattr(c, 'mask_sampler', 'none'), 'static, single, reference'),
        (lambda c: setattr(c.data, 'frame_step', 2), 'exactly one of fps, frame_step, duration'),
    ],
)
def test_impossible_settings_are_named(videos, change, words):
    config = small(DataListConfig(path=str(videos / 'a.txt')))
    change(config)
    with pytest.raises(ConfigError) as error:
        VideoStream(config, devices=2)
    assert words in str(error.value) and '\n' not in str(error.value)


def test_describe(videos):
    with VideoStream(mixed(videos)) as stream:
        text = '\n'.join(stream.describe())
    assert 'list 1: images' in text and '5 records' in text
    assert 'group 0: 4 frames from list 0, 2: 3 rows a device and part, 3 a step' in text


# --- failures ------------------------------------------------------------------------------------


@pytest.fixture
def damaged(videos, tmp_path):
    """Six good videos, a truncated, an empty, and one that vanishes."""
    names = [f'{videos}/{i}.mp4' for i in range(6)]
    (tmp_path / 'cut.mp4').write_bytes((videos / '6.mp4').read_bytes()[:700])
    (tmp_path / 'empty.mp4').touch()
    (tmp_path / 'gone.mp4').write_bytes((videos / '6.mp4').read_bytes())
    names += [str(tmp_path / name) for name in ('cut.mp4', 'empty.mp4', 'gone.mp4')]
    (tmp_path / 'list.txt').write_text('\n'.join(names))
    return tmp_path


def test_bad_records_are_replaced_the_same_way_every_time(damaged):
    config = small(DataListConfig(path=str(damaged / 'list.txt')))
    with VideoStream(config) as stream, stream.batches() as batches:
        (damaged / 'gone.mp4').unlink()  # after the list was opened
        hosts = [next(batches) for _ in range(12)]
    failures = [failure for host in hosts for failure in host.failures]
    assert {(Path(f.path).name, f.reason) for f in failures} == {
        ('cut.mp4', 'truncated'),
        ('empty.mp4', 'empty'),
        ('gone.mp4', 'missing'),
    }
    assert all(f.list == 0 for f in failures)
    assert sum(host.tried for host in hosts) == 48 + len(failures)
    again = read(config, 4, 8)
    assert [digest(host) for host in again] == [digest(host) for host in hosts[4:]]
    # a record that can be read is not moved by its neighbours' failures
    (damaged / 'good.txt').write_text(
        (damaged / 'list.txt').read_text().replace(str(damaged), str(damaged / '..' / damaged.name))
    )
    same = read(small(DataListConfig(path=str(damaged / 'good.txt'))), 0, 12)
    for host, twin in zip(hosts, same):
        assert [f.reason for f in host.failures] == [f.reason for f in twin.failures]


def test_a_list_in_which_nothing_can_be_read_stops(tmp_path, videos):
    (tmp_path / 'none.txt').write_text('a.mp4\nb.mp4\n')
    lists = (
        DataListConfig(path=str(videos / 'a.txt')),
        DataListConfig(path=str(tmp_path / 'none.txt')),
    )
    for workers in (0, 1):
        with pytest.raises(DataError) as error:
            read(small(*lists, workers=workers), 0, 1)
        text = str(error.value)
        assert 'nothing can be read in data.lists[1]' in text and 'none.txt' in text
        assert (
            f'{DataConfig().attempts + 1} records' in text
            and 'missing' in text
            and '\n' not in text
        )


def test_an_oserror_of_the_disk_is_a_failure_too(videos, monkeypatch):
    read_frames = decode.read_frames

    def flaky(path, choose):
        if path.endswith('2.mp4'):
            raise PermissionError(13, 'Permission denied', path)
        return read_frames(path, choose)

    monkeypatch.setattr(decode, 'read_frames', flaky)
    hosts = read(small(DataListConfig(path=str(videos / 'a.txt'))), 0, 3)
    failures = {(Path(f.path).name, f.reason) for host in hosts for f in host.failures}
    assert failures == {('2.mp4', 'unreadable')}


def host_with(reasons, tried):
    failures = tuple(Failure(f'{reason}.mp4', reason, 'why', 0) for reason in reasons)
    return HostBatch(batch=None, failures=failures, tried=tried, seconds={})


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


# --- processes -----------------------------------------------------------------------------------


class Hanging:
    """A source that never answers."""

    skipped: dict[str, int] = {}

    def __len__(self):
        return 4

    def name(self, index):
        return str(index)

    def read(self, index, frames, rng):
        threading.Event().wait()


@pytest.mark.parametrize('workers', [0, 1])
def test_a_reader_that_hangs_is_noticed(videos, workers):
    config = small(DataListConfig(path=str(videos / 'a.txt')), workers=workers)
    config.data.worker_timeout = 1.0
    stream = VideoStream(config)
    stream.lists[0] = Hanging()
    start = time.monotonic()
    with stream, pytest.raises(DataError, match=r'no batch for step 3 within 1 s'):
        next(stream.batches(3))
    assert time.monotonic() - start < 30 and not workers_of(os.getpid())


def workers_of(parent):
    """Live children of a process that run grain's workers."""
    found = []
    for entry in Path('/proc').iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / 'stat').read_text().rpartition(')')[2].split()
                command = (entry / 'cmdline').read_bytes()
            except OSError:
                continue  # it ended in the meantime
            if int(stat[1]) == parent and stat[0] != 'Z' and b'spawn_main' in command:
                found.append(int(entry.name))
    return found


linux = pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads /proc')


@linux
def test_a_worker_that_dies_is_named(videos):
    config = small(DataListConfig(path=str(videos / 'a.txt')), workers=2)
    with VideoStream(config) as stream, stream.batches() as batches:
        next(batches)
        for pid in workers_of(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r'data worker [01] of 2 ended with exit code -9'):
            for _ in range(20):
                next(batches)
    assert not workers_of(os.getpid())


ORPHANS = """
import sys, time
from jepa_jax.config import DataListConfig
from jepa_jax.data.videos import VideoStream
from test_videos import small
if __name__ == '__main__':
    config = small(DataListConfig(path=sys.argv[1]), workers=2)
    batches = VideoStream(config).batches()
    next(batches), next(batches)
    print('ready', flush=True)
    time.sleep(600)
"""


@linux
def test_workers_end_with_their_parent(videos, tmp_path):
    """SIGKILL gives the parent no chance to tell them."""
    script = tmp_path / 'parent.py'
    script.write_text(ORPHANS)
    path = os.pathsep.join(
        [str(ROOT), str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]
    )
    parent = subprocess.Popen(
        [sys.executable, str(script), str(videos / 'a.txt')],
        stdout=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': path},
    )
    with parent:
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


class Devices:
    """A source that tells whether its process has opened devices."""

    skipped: dict[str, int] = {}

    def __len__(self):
        return 4

    def name(self, index):
        return str(index)

    def read(self, index, frames, rng):
        from jax._src import xla_bridge

        opened = xla_bridge.backends_are_initialized()
        return np.full((frames, 64, 64, 3), opened, np.uint8)


def test_workers_open_no_devices(videos):
    config = small(DataListConfig(path=str(videos / 'a.txt')), workers=1)
    with VideoStream(config) as stream:
        stream.lists[0] = Devices()
        host = next(stream.batches())
    assert not host.batch.groups[0].clips.any()
