"""Windows of anything with frames: numbers drawn into the pictures tell which frames came out."""

import numpy as np
import pytest
from PIL import Image
from test_decode import make, numbers

from jepa_jax.data import windows as w
from jepa_jax.errors import BadFile


def same(frames):
    return frames


@pytest.mark.parametrize('count', [1, 5, 8, 9, 16, 23])
@pytest.mark.parametrize('frames, stride', [(8, 8), (8, 3), (8, 11), (1, 1)])
def test_starts_cover_every_frame(count, frames, stride):
    result = w.starts(count, frames, stride)
    assert result[0] == 0 and all(a < b for a, b in zip(result, result[1:]))
    assert all(s + frames <= count for s in result[count <= frames :])
    seen = {i for s in result for i in range(s, min(s + frames, count))}
    if stride <= frames:
        assert seen == set(range(count))
    assert all(b - a == stride for a, b in zip(result, result[1:-1]))


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    return str(make(tmp_path_factory.mktemp('v') / 'v.mp4', count=60, gop=12))


@pytest.mark.parametrize('stride', [4, 2, 7])
@pytest.mark.parametrize('piece', [1, 5, 100])
def test_video(video, stride, piece, monkeypatch):
    monkeypatch.setattr(w, 'PIECE', piece * 96 * 64 * 3)
    source = w.open_input(video, fps=10)  # every third of 30 a second
    result = list(w.windows(source, 4, stride, same))
    expected = [range(s * 3, s * 3 + 12, 3) for s in w.starts(20, 4, stride)]
    assert [numbers(x.clip).tolist() for x in result] == [list(row) for row in expected]
    assert 'clip=uint8 [4, ' in repr(result[0]) and len(repr(result[0])) < 300
    for x, row in zip(result, expected):
        np.testing.assert_array_equal(x.numbers, list(row))
        np.testing.assert_allclose(x.seconds, np.array(row) / 30)
        assert (x.source, x.spacing, x.repeated) == (video, 0.1, 0)


def test_memory_of_a_long_video_is_bounded(video, monkeypatch):
    monkeypatch.setattr(w, 'PIECE', 6 * 96 * 64 * 3)
    source, sizes = w.open_input(video, fps=30), []

    def view(frames):
        sizes.append(len(frames))
        return frames

    assert len(list(w.windows(source, 4, 2, view))) == 29
    assert max(sizes) <= 6 and sum(sizes) == 60  # in pieces, and each frame once


def test_short_video_repeats_its_last_frame(video):
    (result,) = w.windows(w.open_input(video, fps=4), 16, 16, same)
    assert numbers(result.clip).tolist() == [0, 7, 14, 21, 28, 35, 42, 49] + [56] * 8
    assert result.repeated == 7 and result.seconds[-1] == pytest.approx(56 / 30)


def test_variable_rate_goes_by_time(tmp_path):
    times = [0, 100, 200, 1000, 1100, 1200, 1300, 1400]
    path = make(tmp_path / 'v.mkv', count=8, times=times)
    source = w.open_input(path, fps=2)
    shown = np.array(times)[source.numbers] / 1000
    np.testing.assert_allclose(source.seconds, shown)


def test_folder_in_the_order_of_numbers(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (11, 6, 8, 3), np.uint8)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f'f{i}.png')
    (tmp_path / 'notes.txt').write_text('no frame')
    source = w.open_input(tmp_path, fps=5)
    (a, b) = w.windows(source, 8, 8, same)
    np.testing.assert_array_equal(a.clip, frames[:8])
    np.testing.assert_array_equal(b.clip, frames[3:])
    np.testing.assert_allclose(b.seconds, np.arange(3, 11) / 5)


def test_array_and_image(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)
    np.save(tmp_path / 'a.npy', frames)
    source = w.open_input(tmp_path / 'a.npy', fps=4)
    assert [w.length(source, n, 2) for n in (4, 16)] == [4, 6]  # whole tubelets
    (result,) = w.windows(source, 6, 6, same)
    np.testing.assert_array_equal(result.clip[[0, 4, 5]], frames[[0, 4, 4]])
    Image.fromarray(frames[0]).save(tmp_path / 'i.png')
    (result,) = w.windows(w.open_input(tmp_path / 'i.png', fps=4), 2, 2, same)
    np.testing.assert_array_equal(result.clip, frames[[0, 0]])


BAD = {
    'missing.mp4': (None, 'missing'),
    'missing.npy': (None, 'missing'),
    'text.npy': (b'hello', 'not_array'),
    'float.npy': (np.zeros((2, 4, 4, 3), np.float32), 'uint8'),
    'first.npy': (np.zeros((3, 2, 4, 4), np.uint8), r'\[3, 2, 4, 4\]'),
    'object.npy': (np.array([{}], object), 'not_array'),
    'empty.png': (b'', 'empty'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_files_are_named(tmp_path, name):
    content, words = BAD[name]
    if isinstance(content, np.ndarray):
        np.save(tmp_path / name, content, allow_pickle=True)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match=words) as caught:
        w.open_input(tmp_path / name, fps=4)
    assert name in str(caught.value)


def test_bad_folders(tmp_path, video):
    with pytest.raises(BadFile, match='without frames'):
        w.open_input(tmp_path, fps=4)
    for i, size in enumerate([(8, 6), (6, 8)]):
        Image.new('RGB', size).save(tmp_path / f'{i}.png')
    with pytest.raises(BadFile, match='1.png: size_change'):
        list(w.windows(w.open_input(tmp_path, fps=4), 2, 2, same))
    with pytest.raises(BadFile, match='slow'):
        w.open_input(video, fps=31)


def test_ahead_keeps_order_and_errors():
    def items():
        yield from range(9)
        raise OSError('broken')

    result = []
    with pytest.raises(OSError, match='broken'):
        for item in w.ahead(items(), 3):
            result.append(item)
    assert result == list(range(9))
