"""Batches are a pure function of (seed, step, position): any start, workers, process count."""

import collections
import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jepa_jax.config import DataConfig, DataListConfig, MaskedVideoConfig
from jepa_jax.data import clips, decode, synthetic
from jepa_jax.data.augment import augment
from jepa_jax.data.stream import AUGMENT, FRAMES
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


def test_another_mixture_is_another_run(videos):
    """Weights 7 to 3 of 8 rows: 6 and 2 in one part, 4 and 4 in four parts of two rows."""
    path = str(videos / 'a.txt')
    config = small(DataListConfig(path, weight=0.7), DataListConfig(path, weight=0.3, frames=8))
    config.optim.batch = 8
    with VideoStream(config) as one, VideoStream(config, devices=4) as four:
        assert one.facts == {'rows': {'4': 6, '8': 2}}
        for stored in ({}, one.facts, {**one.facts, 'failures': {}}):
            one.check_resumed(stored)
        with pytest.raises(ConfigError, match='were 6 of 4 frames and 2 of 8 frames, in 4 parts'):
            four.check_resumed(one.facts)


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
