"""Kept features: what is averaged, what is reused, what is made again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals import features
from jepa_jax.model import Loaded, Model
from jepa_jax.models.pooler import average_tokens, averaged_grid
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights.parts import net

CLIP = (2, 32, 32)


def small_model(seed=0):
    config = ViTConfig(24, 1, 2, 2.0, patch=8, image_size=32, frames=2, dtype=jnp.dtype('float32'))
    return Model(Loaded(config, jax.jit(net('encoder', config).init)(jax.random.key(seed))))


@pytest.fixture(scope='module')
def model():
    return small_model()


@pytest.fixture(scope='module')
def clips():
    return np.random.default_rng(0).integers(0, 255, (7, 1, *CLIP, 3), np.uint8)


def make(model, clips, folder, read=None, **options):
    read = read or clips.__getitem__
    settings = {'about': {'list': 'a'}, 'clip': CLIP, 'tokens': 4, 'batch': 1} | options
    return features.compute(model, len(clips), read, folder, **settings)


@pytest.mark.parametrize(
    'grid, most, boxes',
    [
        ((8, 16, 16), 128, (8, 4, 4)),
        ((8, 16, 16), 0, (8, 16, 16)),
        ((32, 16, 16), 128, (32, 2, 2)),
        ((200, 2, 2), 128, (128, 1, 1)),
        ((1, 16, 16), 128, (1, 11, 11)),
        ((2, 4, 4), 128, (2, 4, 4)),
        ((1, 1, 300), 128, (1, 1, 128)),
        ((4, 6, 8), 16, (4, 2, 2)),
        ((8, 12, 20), 128, (8, 3, 5)),
    ],
)
def test_boxes_of_tokens(grid, most, boxes):
    assert averaged_grid(grid, most) == boxes
    assert not most or np.prod(boxes) <= most


def test_averages_are_means_over_boxes():
    x = np.random.default_rng(0).normal(size=(2, 4 * 6 * 8, 5)).astype(np.float32)
    ours = average_tokens(jnp.asarray(x), (4, 6, 8), 4 * 2 * 2)
    boxes = averaged_grid((4, 6, 8), 16)
    assert boxes == (4, 2, 2)
    t, h, w = boxes
    theirs = x.reshape(2, t, 4 // t, h, 6 // h, w, 8 // w, 5).mean((2, 4, 6)).reshape(2, -1, 5)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_small_frames_are_means_over_areas():
    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 64, 3), np.uint8)
    ours = features.small(frames)
    assert ours.shape == (3, 16, 16, 3)
    edges = np.arange(17) * 40 // 16
    for y in range(16):
        for x in range(16):
            area = frames[:, edges[y] : edges[y + 1], 4 * x : 4 * x + 4].astype(np.float64)
            np.testing.assert_allclose(ours[:, y, x], area.mean((1, 2)), atol=0.501)


def test_rows_are_the_encoders(model, clips, tmp_path):
    table = make(model, clips, tmp_path, batch=3)
    tokens = np.asarray(model.encode(clips[:, 0]))
    np.testing.assert_allclose(table.mean, tokens.mean(1), atol=1e-5)
    theirs = tokens.reshape(7, 1, 2, 2, 2, 2, 24).mean((3, 5)).reshape(7, 4, 24)
    np.testing.assert_allclose(table.tokens, theirs, atol=5e-3)  # kept as float16
    assert table.read.all() and not table.problems and table.pixels.shape == (7, 2, 16, 16, 3)


def test_segments_follow_one_another(model, clips, tmp_path):
    pairs = np.concatenate([clips[:6:2], clips[1::2]], axis=1)
    table = make(model, pairs, tmp_path, segments=2, batch=2)
    alone = make(model, clips, tmp_path)
    np.testing.assert_allclose(table.mean[1], alone.mean[[2, 3]].mean(0), atol=1e-5)
    np.testing.assert_allclose(
        table.tokens[1].astype('f4'), alone.tokens[[2, 3]].reshape(8, 24).astype('f4'), atol=5e-3
    )


def test_what_is_there_is_read_and_what_is_damaged_is_made_again(model, clips, tmp_path, caplog):
    asked = []

    def read(i):
        asked.append(i)
        if i == 2:
            raise BadFile('two.mp4', 'corrupt', 'no frame')
        return clips[i]

    first = make(model, clips, tmp_path, read)
    assert asked == list(range(7)) and not first.read[2] and first.read.sum() == 6
    assert first.problems == {2: 'two.mp4: corrupt: no frame'}
    kept = np.array(first.rows)
    asked.clear()
    make(model, clips, tmp_path, read)
    assert asked == [2]  # which may be there by now
    rows = np.load(first.folder / 'rows.npy', mmap_mode='r+')
    rows['tokens'][4, 0, 0] += 1
    rows['mean'][5] = 0
    rows.flush()
    asked.clear()
    again = make(model, clips, tmp_path, read)
    assert asked == [2, 4, 5]
    np.testing.assert_array_equal(again.rows, kept)
    (first.folder / 'rows.npy').write_bytes(b'half')
    asked.clear()
    make(model, clips, tmp_path, read)
    assert asked == list(range(7)) and 'made again' in caplog.text


def test_another_model_view_or_list_is_another_folder(model, clips, tmp_path):
    folders = {
        make(model, clips, tmp_path).folder,
        make(model, clips, tmp_path, tokens=1).folder,
        make(model, clips, tmp_path, about={'list': 'b'}).folder,
        make(small_model(1), clips, tmp_path).folder,
    }
    assert len(folders) == 4
    assert {json.loads((f / 'about.json').read_text())['list'] for f in folders} == {'a', 'b'}


def test_no_room_and_nothing_to_read(model, clips, tmp_path, monkeypatch):
    def fail(i):
        raise BadFile(f'{i}.mp4', 'missing')

    with pytest.raises(ConfigError, match='none of 7 clips can be read; the first: 0.mp4: missing'):
        make(model, clips, tmp_path, fail)
    usage = features.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(features.shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(ConfigError, match='features of 7 clips take .* GiB, 0.0 GiB are free'):
        make(model, clips, tmp_path / 'other')


def test_processes_share_the_clips(model, clips, tmp_path, monkeypatch):
    """One after the other, as if each had been interrupted: every clip is read once, the last start
    takes over what all have read, and the table is that of one process."""
    asked, events, joined = [], [], features._joined
    monkeypatch.setattr(
        features.distributed, 'any_process', lambda flag: events.append('agree') or flag
    )
    monkeypatch.setattr(features, '_joined', lambda *a: events.append('join') or joined(*a))

    def read(i):
        asked.append(i)
        if i == 3:
            raise BadFile('3.mp4', 'empty', '')
        return clips[i]

    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    make(model, clips, tmp_path, read)
    assert asked == [0, 2, 4, 6]
    # joined once when it began, then all look what is left before one of them writes; and again
    # when all had agreed that they are done
    assert events == ['join', 'agree', 'agree', 'agree', 'join', 'agree']
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    left = make(model, clips, tmp_path, read)
    assert asked[4:] == [3] and left.read.sum() == 4  # of 1, 3 and 5
    monkeypatch.undo()
    assert len(list(tmp_path.glob('*/share1.npy'))) == 1
    table = make(model, clips, tmp_path, read)
    assert asked[5:] == [1, 3, 5] and table.read.sum() == 6 and list(table.problems) == [3]
    assert not list(tmp_path.glob('*/share*.npy'))
    alone = make(model, clips, tmp_path / 'alone')
    kept = table.read
    for field in ('mean', 'tokens', 'pixels', 'crc'):
        np.testing.assert_array_equal(table.rows[field][kept], alone.rows[field][kept], field)


def test_what_another_process_has_read_is_not_read_again(model, clips, tmp_path):
    whole = make(model, clips, tmp_path / 'alone')
    part = make(model, clips, tmp_path)
    np.save(part.folder / 'share1.npy', np.asarray(whole.rows))
    spoilt = np.load(part.folder / 'share1.npy', mmap_mode='r+')
    spoilt['mean'][5] += 1  # not what was written
    spoilt.flush()
    part.rows['state'] = features.MISSING
    part.rows.flush()
    asked = []
    again = make(model, clips, tmp_path, lambda i: asked.append(i) or clips[i])
    assert asked == [5]
    np.testing.assert_array_equal(again.mean, whole.mean)
