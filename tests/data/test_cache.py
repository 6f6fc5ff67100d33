"""The cache of decoded videos: the same bytes, a bound that holds, and nothing half-written."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import zlib
from json import dumps, loads
from pathlib import Path

import numpy as np
import pytest

from jepa_jax import scratch
from jepa_jax.config import DataConfig, DataListConfig
from jepa_jax.data import cache, clips, decode, synthetic
from jepa_jax.data.cache import ClipCache
from jepa_jax.data.sources import open_source
from jepa_jax.errors import BadFile, ConfigError

ROOT = Path(__file__).parents[2]
FRAMES, SIDE = 30, 32
BYTES = FRAMES * SIDE * SIDE * 3  # of one decoded video
GIB = 2**30


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    for i in range(6):
        frames = np.random.default_rng(i).integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
        synthetic.write(folder / f'{i}.mp4', frames)
    return folder


def choose(seed):
    rng = np.random.default_rng(seed)
    return lambda timing: clips.frame_indices(timing, 4, clips.Sampling(fps=4), rng)


def stored(folder):
    return sum(path.stat().st_size for path in folder.rglob('*') if path.suffix == '.rgb')


def forbid(monkeypatch):
    def read_frames(path, choose):
        raise AssertionError('decoded')

    monkeypatch.setattr(decode, 'read_frames', read_frames)


def test_a_hit_equals_a_miss_and_decodes_nothing(videos, tmp_path, monkeypatch):
    path = str(videos / '0.mp4')
    expected = [decode.read_frames(path, choose(seed)) for seed in range(4)]
    kept = ClipCache(tmp_path / 'c', 1.0)
    np.testing.assert_array_equal(kept.read_frames(path, choose(0)), expected[0])
    assert stored(tmp_path / 'c') == BYTES
    forbid(monkeypatch)
    for seed in range(4):
        got = ClipCache(tmp_path / 'c', 1.0).read_frames(path, choose(seed))
        np.testing.assert_array_equal(got, expected[seed])
    with pytest.raises(BadFile, match='slow'):
        kept.read_frames(path, lambda t: clips.frame_indices(t, 4, clips.Sampling(fps=99)))


def test_variable_frame_rate_is_remembered(tmp_path, videos, monkeypatch):
    """The times of the frames decide which are taken, so they are part of an entry."""
    path = str(videos / '1.mp4')
    timing = clips.Timing(FRAMES, 8.0, FRAMES / 8, times=np.linspace(0, 1, FRAMES) ** 2 * 3.75)
    read = decode.read_frames
    monkeypatch.setattr(decode, 'read_frames', lambda p, pick: read(p, lambda _: pick(timing)))
    kept = ClipCache(tmp_path / 'c', 1.0)
    miss = kept.read_frames(path, choose(3))
    forbid(monkeypatch)
    np.testing.assert_array_equal(kept.read_frames(path, choose(3)), miss)


def test_the_bound_holds_and_the_rest_is_still_read(videos, tmp_path):
    kept = ClipCache(tmp_path / 'c', 2.5 * BYTES / GIB)
    for i in range(6):
        path = str(videos / f'{i}.mp4')
        np.testing.assert_array_equal(
            kept.read_frames(path, choose(i)), decode.read_frames(path, choose(i))
        )
    assert stored(tmp_path / 'c') == 2 * BYTES
    assert int((tmp_path / 'c' / 'bytes').read_text()) == 2 * BYTES
    again = ClipCache(tmp_path / 'c', 3.5 * BYTES / GIB)  # a larger bound: grows further
    for i in range(6):
        again.read_frames(str(videos / f'{i}.mp4'), choose(i))
    assert stored(tmp_path / 'c') == 3 * BYTES


def test_large_videos_are_not_kept(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, 'LARGEST', BYTES - 1)
    ClipCache(tmp_path / 'c', 1.0).read_frames(str(videos / '0.mp4'), choose(0))
    assert stored(tmp_path / 'c') == 0


def test_a_changed_file_is_another_entry(videos, tmp_path):
    path = tmp_path / 'v.mp4'
    path.write_bytes((videos / '0.mp4').read_bytes())
    kept = ClipCache(tmp_path / 'c', 1.0)
    old = kept.read_frames(str(path), choose(0))
    path.write_bytes((videos / '1.mp4').read_bytes())
    os.utime(path, (1, 1))
    new = kept.read_frames(str(path), choose(0))
    assert (old != new).any()
    np.testing.assert_array_equal(new, decode.read_frames(str(path), choose(0)))
    path.unlink()
    with pytest.raises(BadFile, match='missing'):
        kept.read_frames(str(path), choose(0))


def test_what_a_killed_process_left(videos, tmp_path):
    """A fresh half-written entry may be alive and counts; an old one is removed."""
    folder = tmp_path / 'c'
    ClipCache(folder, 1.0)
    (folder / 'ab').mkdir()
    (folder / 'ab/old.part').write_bytes(b'x' * 5000)
    (folder / 'ab/new.part').write_bytes(b'x' * 300)
    then = time.time() - scratch.STALE - 60
    os.utime(folder / 'ab/old.part', (then, then))
    gone = subprocess.run(
        [sys.executable, '-c', 'from jepa_jax import scratch; print(scratch.prefix("e.rgb"))'],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout.strip()  # fmt: skip
    (folder / f'ab/{gone}x.part').write_bytes(b'x' * 7000)
    (folder / f'ab/{gone}y.tmp').write_bytes(b'{')
    (folder / f'ab/{scratch.prefix("e.rgb")}x.part').write_bytes(b'x' * 20)
    (folder / 'bytes').write_text('123456789')  # whatever was promised then
    ClipCache(folder, 1.0)
    assert not (folder / 'ab/old.part').exists() and (folder / 'ab/new.part').exists()
    assert not list((folder / 'ab').glob(f'{gone}*'))
    assert (folder / 'bytes').read_text() == '320'


def _no_pixels(json, rgb):
    rgb.unlink()


def _no_meta(json, rgb):
    json.unlink()


def _half_the_pixels(json, rgb):
    os.truncate(rgb, BYTES // 2)


def _half_the_meta(json, rgb):
    os.truncate(json, 20)


def _one_bit(json, rgb):
    content = bytearray(rgb.read_bytes())
    for frame in range(FRAMES):
        content[frame * BYTES // FRAMES + 999] ^= 4
    rgb.write_bytes(content)


def _a_hole(json, rgb):
    with open(rgb, 'r+b') as file:
        file.write(bytes(BYTES))


def _another_time(json, rgb):
    json.write_text(json.read_text().replace('"fps": 8', '"fps": 9'))


def _without_checksums(json, rgb):  # as entries were before
    meta = cache.unsigned(json.read_text())
    held = loads(meta)
    del held['sums']
    json.write_text(dumps(held))


def _no_right_to_read(json, rgb):
    rgb.unlink()
    rgb.mkdir()  # root may read any file


def _being_written(json, rgb):
    os.rename(rgb, rgb.with_suffix('.part'))


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize(
    'harm',
    [
        _no_pixels,
        _no_meta,
        _half_the_pixels,
        _half_the_meta,
        _one_bit,
        _a_hole,
        _another_time,
        _without_checksums,
        _no_right_to_read,
        _being_written,
    ],
)
def test_the_same_clips_whatever_state_an_entry_is_in(videos, tmp_path, harm, full):
    """`choose` draws, so one call more would read another clip."""
    path, folder = str(videos / '3.mp4'), tmp_path / 'c'
    ClipCache(folder, 1.0).read_frames(path, choose(0))
    (rgb,) = folder.rglob('*.rgb')
    harm(rgb.with_suffix('.json'), rgb)
    kept = ClipCache(folder, BYTES / 2 / GIB if full else 1.0)
    with_cache, without = np.random.default_rng(1), np.random.default_rng(1)

    def draw(rng):
        return lambda timing: clips.frame_indices(timing, 4, clips.Sampling(fps=8), rng)

    for _ in range(3):  # while it is harmed, and once it may be whole again
        np.testing.assert_array_equal(
            kept.read_frames(path, draw(with_cache)), decode.read_frames(path, draw(without))
        )


def test_a_damaged_entry_is_made_anew(videos, tmp_path, monkeypatch, caplog):
    path, folder = str(videos / '4.mp4'), tmp_path / 'c'
    expected = ClipCache(folder, 1.0).read_frames(path, choose(0))
    (rgb,) = folder.rglob('*.rgb')
    quiet = (_no_pixels, _no_meta, _half_the_meta, _another_time, _without_checksums)
    for harm in (*quiet, _half_the_pixels, _one_bit, _a_hole):
        harm(rgb.with_suffix('.json'), rgb)
        kept = ClipCache(folder, 1.0)
        caplog.clear()
        np.testing.assert_array_equal(kept.read_frames(path, choose(0)), expected)
        said = [r.getMessage() for r in caplog.records]
        assert len(said) == (harm not in quiet)
        assert not said or said[0].startswith(f'data.cache: the entry of {path} is made again: ')
        with monkeypatch.context() as context:
            forbid(context)
            np.testing.assert_array_equal(kept.read_frames(path, choose(0)), expected)
        assert int((folder / 'bytes').read_text()) == stored(folder) == BYTES


def test_a_clip_is_checked_without_the_rest_of_its_entry(videos, tmp_path):
    path, folder = str(videos / '4.mp4'), tmp_path / 'c'
    kept = ClipCache(folder, 1.0)
    expected = kept.read_frames(path, lambda timing: np.arange(5))
    (rgb,) = folder.rglob('*.rgb')
    with open(rgb, 'r+b') as file:
        file.seek(BYTES * 5 // FRAMES)
        file.write(bytes(BYTES // FRAMES))
    np.testing.assert_array_equal(kept.read_frames(path, lambda timing: np.arange(5)), expected)
    assert not rgb.read_bytes()[BYTES * 5 // FRAMES :][: BYTES // FRAMES].strip(b'\0')
    kept.read_frames(path, lambda timing: np.arange(6))
    assert rgb.read_bytes()[BYTES * 5 // FRAMES :][: BYTES // FRAMES].strip(b'\0')


@pytest.mark.parametrize('size', [0, 5, 4096, 4101, 3 * 4096 + 7])
def test_the_checksum(size):
    content = np.random.default_rng(size).bytes(size)
    sums = b''
    for start in range(0, size // 4096 * 4096, 4096):
        words = (content[i : i + 8] for i in range(start, start + 4096, 8))
        total = sum(int.from_bytes(word, 'little') for word in words)
        sums += (total % 2**64).to_bytes(8, 'little')
    expected = zlib.crc32(sums + content[size // 4096 * 4096 :])
    assert cache.checksum(np.frombuffer(content, np.uint8)) == expected


def test_a_full_disk_stops_keeping_not_reading(videos, tmp_path, monkeypatch, caplog):
    kept = ClipCache(tmp_path / 'c', 1.0)

    def full(path, text):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(cache, '_write', full)
    path = str(videos / '2.mp4')
    for seed in range(2):
        np.testing.assert_array_equal(
            kept.read_frames(path, choose(seed)), decode.read_frames(path, choose(seed))
        )
    assert [r.getMessage() for r in caplog.records] == [
        f'data.cache: {path} is not kept: [Errno 28] No space left on device'
    ]
    assert stored(tmp_path / 'c') == 0 and (tmp_path / 'c' / 'bytes').read_text() == '0'
    assert not list((tmp_path / 'c').rglob('*.part'))


def _fill(folder, bound, paths, order):
    kept = ClipCache(folder, bound)
    for i in order:
        kept.read_frames(paths[i], choose(i))


def test_processes_share_it(videos, tmp_path):
    """Three at once, each in its own order: no entry twice, the bound holds, the count is right."""
    paths = [str(videos / f'{i}.mp4') for i in range(6)]
    context = multiprocessing.get_context('spawn')
    orders = ([0, 1, 2, 3, 4, 5], [0, 2, 1, 5, 4, 3], [5, 4, 3, 2, 1, 0])
    crew = [
        context.Process(target=_fill, args=(tmp_path / 'c', 4.2 * BYTES / GIB, paths, order))
        for order in orders
    ]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    assert [process.exitcode for process in crew] == [0, 0, 0]
    assert stored(tmp_path / 'c') <= 4 * BYTES
    assert int((tmp_path / 'c' / 'bytes').read_text()) == stored(tmp_path / 'c')
    assert not list((tmp_path / 'c').rglob('*.part'))


def test_a_source_uses_it(videos, tmp_path, monkeypatch):
    entry = DataListConfig(path=str(videos))
    plain = open_source(entry, DataConfig())
    kept = open_source(entry, DataConfig(cache=str(tmp_path / 'c'), cache_gib=1.0))
    for _ in range(2):
        for i in range(3):
            np.testing.assert_array_equal(
                kept.read(i, 4, np.random.default_rng(i)),
                plain.read(i, 4, np.random.default_rng(i)),
            )
    forbid(monkeypatch)
    assert kept.read(0, 4, np.random.default_rng(9)).shape == (4, SIDE, SIDE, 3)


def test_what_cannot_be_kept_is_read(videos, tmp_path, monkeypatch, caplog):
    """A file where a folder is to be, a disk that takes no new file, a folder that was deleted:
    each was an error of the video, which was replaced by another one."""
    kept = ClipCache(tmp_path / 'c', 1.0)
    paths = [str(videos / f'{i}.mp4') for i in range(4)]
    expected = [decode.read_frames(path, choose(0)) for path in paths]
    kept._entry(paths[0]).parent.write_text('in the way')
    np.testing.assert_array_equal(kept.read_frames(paths[0], choose(0)), expected[0])

    def full(**where):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patched:
        patched.setattr(cache.tempfile, 'NamedTemporaryFile', full)
        np.testing.assert_array_equal(kept.read_frames(paths[1], choose(0)), expected[1])
    assert [r.getMessage().partition(' is not kept: ')[0] for r in caplog.records] == [
        f'data.cache: {path}' for path in paths[:2]
    ]
    assert (tmp_path / 'c' / 'bytes').read_text() == '0'
    shutil.rmtree(tmp_path / 'c')
    np.testing.assert_array_equal(kept.read_frames(paths[2], choose(0)), expected[2])
    assert stored(tmp_path / 'c') == BYTES == int((tmp_path / 'c' / 'bytes').read_text())


@pytest.mark.parametrize('left', [b'\0\0\0\0\0', b'\xff\xfe', b'-3'])
def test_a_damaged_count_is_made_anew(videos, tmp_path, left):
    """As a power cut leaves it: an error that no start got over."""
    kept = ClipCache(tmp_path / 'c', 1.0)
    kept.read_frames(str(videos / '0.mp4'), choose(0))
    for another in (kept, None):
        (tmp_path / 'c' / 'bytes').write_bytes(left)
        another = another or ClipCache(tmp_path / 'c', 1.0)
        another.read_frames(str(videos / '1.mp4'), choose(0))
        assert int((tmp_path / 'c' / 'bytes').read_text()) == stored(tmp_path / 'c') == 2 * BYTES


@pytest.mark.parametrize('kind', ['videos', 'synthetic_few'])
def test_a_folder_that_cannot_be_made_is_not_the_lists_fault(videos, tmp_path, kind):
    (tmp_path / 'file').write_text('')
    path = str(videos) if kind == 'videos' else ''
    data = DataConfig(cache=str(tmp_path / 'file' / 'c'))
    with pytest.raises(ConfigError, match=r"^data.cache: '.*/file/c' cannot be written: Not a dir"):
        open_source(DataListConfig(kind=kind, path=path), data)
