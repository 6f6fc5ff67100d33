"""Kinds of lists: what they accept, what they say about what they do not, and what they read."""

import io
import json
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jepa_jax.config import DataConfig, DataListConfig, LoaderConfig, RunConfig
from jepa_jax.data import clips, decode, synthetic
from jepa_jax.data.lists import VIDEOS, read_list, scan
from jepa_jax.data.sources import SOURCES, Names, open_source
from jepa_jax.data.stream import Stream
from jepa_jax.errors import BadFile, ConfigError
from tools import index_videos, make_shards

ROOT = Path(__file__).parents[2]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Three videos, one below another folder, an image, and files that are neither."""
    folder = tmp_path_factory.mktemp('videos')
    (folder / 'deep/er').mkdir(parents=True)
    for i, name in enumerate(('b.mp4', 'a b.mkv', 'deep/er/c.MP4')):
        frames = rng(i).integers(0, 256, (20 + i, 48, 64, 3), dtype=np.uint8)
        synthetic.write(folder / name, frames)
    Image.fromarray(rng().integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / 'i.png')
    (folder / 'notes.txt').write_text('nothing')
    return folder


def open_(path, kind='videos', index=0, **data):
    return open_source(DataListConfig(path=str(path), kind=kind), DataConfig(**data), index)


# --- lists ---------------------------------------------------------------------------------------


def test_read_list(tmp_path):
    (tmp_path / 'list.csv').write_text(
        'a.mp4 3\n\n# a remark\nsub/b c.mp4 12\n/abs/d.mp4\n  e f.mp4\t0 \ng.mp4::7\n'
        'h i.mp4 :: 8\nk::l.mp4\nm.mp4 -1\n../n.mp4 x2\n',
    )
    here = str(tmp_path)
    assert read_list(tmp_path / 'list.csv') == [
        (f'{here}/a.mp4', 3),
        (f'{here}/sub/b c.mp4', 12),
        ('/abs/d.mp4', None),
        (f'{here}/e f.mp4', 0),
        (f'{here}/g.mp4', 7),
        (f'{here}/h i.mp4', 8),
        (f'{here}/k::l.mp4', None),
        (f'{here}/m.mp4', -1),
        (str(tmp_path.parent / 'n.mp4 x2'), None),
    ]


def test_videos_of_a_folder(videos):
    names = [str(Path(path).relative_to(videos)) for path in scan(videos, VIDEOS)[0]]
    assert names == ['a b.mkv', 'b.mp4', 'deep/er/c.MP4']


def test_names_pickle_small():
    names = Names(f'/data/videos/{i:07d}/é\udcff.mp4' for i in range(20_000))
    copy = pickle.loads(pickle.dumps(names))
    assert len(copy) == 20_000
    assert [copy[i] for i in (0, 1, 19_999)] == [
        f'/data/videos/{i:07d}/é\udcff.mp4' for i in (0, 1, 19_999)
    ]
    assert len(pickle.dumps(names)) < 20_000 * (len(names[0].encode('utf8', 'replace')) + 12)


@pytest.mark.parametrize('write', ['list', 'array', 'folder', 'manifest'])
def test_kinds_of_lists_of_videos(videos, tmp_path, write):
    paths, _ = scan(videos, VIDEOS)
    if write == 'list':
        path = tmp_path / 'l.txt'
        path.write_text(''.join(f'{p} {i}\n' for i, p in enumerate(paths)))
    elif write == 'array':
        path = tmp_path / 'l.npy'
        np.save(path, np.array(paths))
    elif write == 'folder':
        path = videos
    else:
        (tmp_path / 'bad.mp4').write_text('no video')
        (tmp_path / 'l.txt').write_text('\n'.join([*paths, 'bad.mp4', 'gone.mp4']))
        path = tmp_path / 'm.jsonl'
        assert not index_videos.main([str(tmp_path / 'l.txt'), '--out', str(path), '--workers=1'])
    source = open_(path)
    assert [source.name(i) for i in range(len(source))] == paths
    assert source.label(1) == (1 if write == 'list' else None)
    passed_over = {
        'manifest': {'not_video': 1, 'missing': 1},
        'folder': {'.png of one frame': 1, '.txt': 1},
    }
    assert source.skipped == passed_over.get(write, {})
    clip = pickle.loads(pickle.dumps(source)).read(1, 4, rng(5))
    expected = decode.read_frames(
        paths[1], lambda timing: clips.frame_indices(timing, 4, clips.Sampling(fps=4), rng(5))
    )
    np.testing.assert_array_equal(clip, expected)


def test_images_are_repeated_frames(videos, tmp_path):
    source = open_(videos, 'images')
    assert len(source) == 1
    clip = source.read(0, 6, rng())
    assert clip.shape == (6, 30, 40, 3) and clip.strides[0] == 0
    with Image.open(videos / 'i.png') as image:
        np.testing.assert_array_equal(clip[3], np.asarray(image))
    (tmp_path / 'l.txt').write_text(f'{videos}/i.png\n{videos}/b.mp4')
    both = open_(tmp_path / 'l.txt')  # a list of videos may name images, as the original's
    assert both.read(0, 4, rng()).shape == (4, 30, 40, 3)
    assert both.read(1, 4, rng()).shape == (4, 48, 64, 3)


def test_a_slow_video_is_a_bad_file(videos):
    source = open_(videos / 'deep', fps=50)
    with pytest.raises(BadFile, match='slow'):
        source.read(0, 4, rng())


def test_the_self_made_set(tmp_path):
    source = open_(tmp_path / 'set', 'synthetic_few')
    assert len(source) == 80 and source.read(0, 8, rng()).shape[0] == 8
    assert 0 <= source.label(0) < 10
    (tmp_path / 'set' / 'train.txt').unlink()
    with pytest.raises(ConfigError, match=r'data.lists\[0\].path.*holds 160 of the 160'):
        open_(tmp_path / 'set', 'synthetic_few')


def test_the_self_made_set_is_not_made_among_other_files(tmp_path, caplog):
    clips, listed = tmp_path / 'clips', tmp_path / 'clips.txt'
    (clips / 'left').mkdir(parents=True)
    listed.write_text('a.mp4\n')
    for place, what in ((clips, 'holds other files'), (listed, 'a file')):
        with pytest.raises(ConfigError, match=f"{what}, where .* of kind 'videos'") as raised:
            open_(place, 'synthetic_few')
        assert 'delete' not in str(raised.value)
    assert [p.name for p in clips.iterdir()] == ['left'] and not caplog.text


def test_where_the_self_made_set_is_made_is_said(tmp_path, monkeypatch, caplog):
    (tmp_path / 'one.txt').write_text('a.mp4\n')
    monkeypatch.setattr(synthetic, 'ensure', lambda kind, folder: tmp_path / 'one.txt')
    open_(tmp_path / 'mistyped', 'synthetic_few')
    assert 'mistyped is not there, and they are made in it' in caplog.text
    assert "videos of your own are of kind 'videos'" in caplog.text


def bad_lists(folder):
    (folder / 'empty.txt').write_text('\n# nothing\n')
    (folder / 'folder').mkdir()
    np.save(folder / 'numbers.npy', np.arange(3))
    np.save(folder / 'objects.npy', np.array(['a', None]), allow_pickle=True)
    (folder / 'm.jsonl').write_text('{"path": "a.mp4", "problem": "empty"}\n')
    (folder / 'broken.jsonl').write_text('{"path": "a.mp4"}\nnonsense\n')
    (folder / 'one.mp4').touch()


@pytest.mark.parametrize(
    'path, kind, words',
    [
        ('', 'videos', ['.path is empty', "'videos' needs a path"]),
        ('x', 'films', ["'films'", *SOURCES]),
        ('absent.txt', 'videos', ['absent.txt', 'No such file']),
        ('empty.txt', 'videos', ['empty.txt', 'nothing of kind videos']),
        ('folder', 'videos', ['folder', 'nothing of kind videos']),
        ('folder', 'images', ['nothing of kind images']),
        ('folder', 'shards', ['nothing of kind shards']),
        ('folder', 'tfds', ['no prepared dataset']),
        ('numbers.npy', 'videos', ['int64', 'strings']),
        ('objects.npy', 'videos', ['objects.npy', 'strings']),
        ('m.jsonl', 'videos', ['1 empty']),
        ('broken.jsonl', 'videos', ['line 2']),
        ('one.mp4', 'videos', ['one file', 'list of files']),
    ],
)
def test_what_is_wrong_is_named(tmp_path, path, kind, words):
    bad_lists(tmp_path)
    with pytest.raises(ConfigError) as error:
        open_(tmp_path / path if path else '', kind, index=3)
    text = str(error.value)
    assert text.startswith('data.lists[3].') and '\n' not in text
    for word in words:
        assert word in text


# --- tfds ----------------------------------------------------------------------------------------


def png(value, size=(20, 30)):
    """An image as a file, which tfds stores as it is; arrays it would encode with TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file, 'PNG')
    file.seek(0)
    return file


def image_feature():
    return tfds.features.Image(shape=(None, None, 3), encoding_format='png')


class Pictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    FEATURES = {'image': image_feature(), 'label': tfds.features.ClassLabel(num_classes=5)}

    def _info(self):
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(), 'test': self._generate_examples(1)}

    def _generate_examples(self, count=5):
        for i in range(count):
            yield i, {'image': png(10 * i), 'label': i}


class Sequences(Pictures):
    FEATURES = {
        'frames': tfds.features.Sequence(image_feature()),
        'wrist': tfds.features.Sequence(image_feature()),
        'name': tfds.features.Text(),
    }

    def _generate_examples(self, count=5):
        for i in range(count):
            frames = [png(10 * i + k) for k in range(8)]
            yield i, {'frames': frames, 'wrist': [png(200)], 'name': str(i)}


class Words(Pictures):
    FEATURES = {'name': tfds.features.Text()}

    def _generate_examples(self, count=5):
        yield 0, {'name': 'a'}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tfds')
    for builder in (Pictures, Sequences, Words):
        builder(data_dir=folder, file_format='array_record').download_and_prepare()
    assert 'tensorflow' not in sys.modules
    return folder


def test_tfds_images(prepared):
    source = pickle.loads(pickle.dumps(open_(prepared / 'pictures', 'tfds')))
    assert len(source) == 5
    values = set()
    for i in range(5):
        clip = source.read(i, 4, rng())
        assert clip.shape == (4, 20, 30, 3) and clip.strides[0] == 0
        assert (clip == 10 * source.label(i)).all()
        values.add(int(clip[0, 0, 0, 0]))
    assert values == {0, 10, 20, 30, 40}
    assert len(open_(f'{prepared}/pictures/1.0.0:test', 'tfds')) == 1
    assert len(open_(f'{prepared}/pictures:train[:40%]', 'tfds')) == 2


class Clips(Stream):
    def read(self, row):
        return self.lists[0].read(row.record, 4, row.rng())


def test_tfds_in_a_worker(prepared):
    """Which may start no programs and open no sockets."""
    c = RunConfig()
    c.data = LoaderConfig(workers=1)
    c.optim.batch = 5
    source = open_(prepared / 'pictures', 'tfds')
    with Clips(c, [source]) as stream, stream.batches() as batches:
        host = next(batches)
    assert not host.failures and host.batch.shape == (5, 4, 20, 30, 3)
    assert sorted(host.batch[:, 0, 0, 0, 0]) == [0, 10, 20, 30, 40]


def test_tfds_sequences(prepared):
    source = open_(f'{prepared}/sequences:train:frames', 'tfds')
    clip = source.read(2, 4, rng(1))
    numbers = clip[:, 0, 0, 0].astype(int) % 10
    expected = clips.clip_indices(8, 4, 1, draw=rng(1).integers)[0]
    np.testing.assert_array_equal(numbers, expected)
    two = open_(f'{prepared}/sequences:train:frames', 'tfds', fps=0, frame_step=2)
    # a clip of 4 x 2 is not shorter than 8 frames: the whole of them, 0 2.67 5.33 8 cut to frames
    assert (two.read(0, 4, rng())[:, 0, 0, 0] % 10).tolist() == [0, 2, 5, 7]
    assert source.label(0) is None
    assert (open_(f'{prepared}/sequences:test:wrist', 'tfds').read(0, 3, rng()) == 200).all()


@pytest.mark.parametrize(
    'path, words',
    [
        ('', ['3 prepared datasets', 'pictures/1.0.0']),
        ('sequences', ['more than one image', 'frames (Sequence)', 'wrist', 'name (Text)']),
        (
            'sequences:train:name',
            ["no image or sequence of images called 'name'", 'frames (Sequence)'],
        ),
        ('words', ['no image or sequence', 'name (Text)']),
        ('pictures:valid', ["Unknown split 'valid'", 'train']),
        ('pictures:a:b:c', ['FOLDER[:SPLIT[:FEATURE]]']),
    ],
)
def test_tfds_errors(prepared, path, words):
    with pytest.raises(ConfigError) as error:
        open_(f'{prepared}/{path}', 'tfds')
    for word in ('data.lists[0].path', *words):
        assert word in str(error.value)
    assert '\n' not in str(error.value)


# --- shards --------------------------------------------------------------------------------------


@pytest.fixture
def listed(videos, tmp_path):
    paths, _ = scan(videos, VIDEOS)
    (tmp_path / 'broken.mp4').write_text('no video')
    lines = [f'{paths[0]} 4', f'{tmp_path}/broken.mp4 1', *paths[1:]]
    (tmp_path / 'l.txt').write_text('\n'.join(lines))
    return tmp_path / 'l.txt', paths


def test_shards_hold_what_the_videos_do(listed, tmp_path):
    path, paths = listed
    out = tmp_path / 'shards'
    counts = make_shards.make(str(path), str(out), per_shard=2, workers=1)
    size = (20 + 21 + 22) * 48 * 64 * 3
    assert counts == {'records': 3, 'bytes': size, 'skipped/not_video': 1}
    source = pickle.loads(pickle.dumps(open_(out, 'shards')))
    assert len(source) == 3 and source.skipped == {'not_video': 1}
    assert [source.label(i) for i in range(3)] == [4, None, None]
    direct = open_(path)
    for i, name in enumerate(paths):
        assert source.name(i) == f'{name}#0'
        j = next(j for j in range(4) if direct.name(j) == name)
        np.testing.assert_array_equal(source.read(i, 4, rng(i)), direct.read(j, 4, rng(i)))


def test_jpeg_shards(listed, tmp_path, capsys):
    """What Pillow makes of the same frames, with their ratio and error; damage is noticed."""
    path, (first, *_) = listed
    out = tmp_path / 'shards'
    settings = {'per_shard': 9, 'workers': 1, 'quality': 90, 'short_side': 24}
    counts = make_shards.make(str(path), str(out), **settings)
    frames = decode.read_frames(first, lambda timing: np.arange(timing.frames))
    small = [Image.fromarray(f).resize((32, 24), Image.Resampling.BILINEAR) for f in frames]
    stored, read = [], []
    for image in small:
        image.save(file := io.BytesIO(), 'JPEG', quality=90)
        stored.append(file.getvalue())
        read.append(np.array(Image.open(file)))
    index = json.loads((out / 'shard-00000.json').read_text())
    assert index['version'] == 2 and index['records'][0]['sizes'] == [*map(len, stored)]
    assert (out / 'shard-00000.jpegs').read_bytes().startswith(b''.join(stored))
    source = pickle.loads(pickle.dumps(open_(out, 'shards')))
    seen = source.read(0, 4, rng())
    timing = decode.probe(first)
    numbers = clips.frame_indices(timing, 4, clips.Sampling(fps=4), rng())
    np.testing.assert_array_equal(seen, np.stack(read)[numbers])
    assert counts['raw'] == (20 + 21 + 22) * 24 * 32 * 3
    assert counts['bytes'] == (out / 'shard-00000.jpegs').stat().st_size < counts['raw']
    assert counts['decoded'] == 6  # of 20, 21 and 22 frames every 16th
    some = [i for i, record in enumerate(index['records']) if record['path'] == first]
    assert some == [0] and counts['values'] == 6 * 24 * 32 * 3
    apart = [np.abs(np.array(a, float) - b) for a, b in zip(small, read)]
    mean = counts['error'] / counts['values']
    assert mean == pytest.approx(np.mean(apart), rel=0.2)  # noise, so all videos are alike
    said = make_shards._said(counts)
    assert f'off by {mean:.2f} of 255' in said
    assert f'{counts["raw"] / counts["bytes"]:.1f} times smaller' in said
    assert make_shards.make(str(path), str(out), **settings) == counts
    assert '0 videos to write' in capsys.readouterr().out
    whole = (out / 'shard-00000.jpegs').read_bytes()
    (out / 'shard-00000.jpegs').write_bytes(whole[:200] + b'\0' + whole[201:])
    with pytest.raises(BadFile, match='frame 0 is not what was stored'):
        open_(out, 'shards').read(0, 20, rng())
    (out / 'shard-00000.jpegs').write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match='frames beyond the'):
        open_(out, 'shards')


def test_shards_need_room(listed, tmp_path, monkeypatch, capsys):
    """All videos are of one size, so the estimate is the size, the one that cannot be read counted
    as the others."""
    path, paths = listed
    size = (20 + 21 + 22) * 48 * 64 * 3
    settings = {'short_side': 320, 'fps': 0, 'frames': 0}
    assert make_shards.estimate([(p, None) for p in paths], settings) == size
    free = [size - 1]
    usage = lambda folder: types.SimpleNamespace(free=free[0])  # noqa: E731
    monkeypatch.setattr(make_shards.shutil, 'disk_usage', usage)
    with pytest.raises(ConfigError, match='are needed; .* --format jpeg, or another disk'):
        make_shards.make(str(path), str(tmp_path / 'out'), workers=1)
    assert not list((tmp_path / 'out').iterdir())
    assert '4 videos to write: about 0.00 GiB' in capsys.readouterr().out


def test_shards_go_on_and_refuse_a_mixture(listed, tmp_path, capsys):
    path, _ = listed
    out = tmp_path / 'shards'
    settings = {'short_side': 24, 'fps': 4, 'frames': 6, 'per_shard': 3, 'workers': 1}
    first = make_shards.make(str(path), str(out), **settings)
    source = open_(out, 'shards')
    # 20, 21 and 22 frames at 8 a second are 10, 10 and 11 at 4: records of 6 and the rest
    assert [source._rows[i, 3] for i in range(6)] == [6, 4, 6, 4, 6, 5]
    assert source.read(1, 4, rng()).shape == (4, 24, 32, 3)
    kept = (out / 'shard-00000.json').stat().st_mtime_ns, (out / 'shard-00001.rgb').read_bytes()
    (out / 'shard-00001.json').unlink()  # as if killed before the end
    (out / 'shard-00001.part').write_bytes(b'half')
    assert make_shards.make(str(path), str(out), **settings) == first
    assert (
        (out / 'shard-00000.json').stat().st_mtime_ns,
        (out / 'shard-00001.rgb').read_bytes(),
    ) == kept
    assert not list(out.glob('*.part'))
    capsys.readouterr()
    assert make_shards.make(str(path), str(out), **settings) == first
    with pytest.raises(ConfigError, match='empty folder'):
        make_shards.make(str(path), str(out), **settings | {'fps': 8})
    assert capsys.readouterr().out == 2 * '0 videos to write\n'  # and nothing to estimate
    (out / 'shard-00000.rgb').write_bytes(b'')
    with pytest.raises(BadFile, match='truncated'):
        open_(out, 'shards').read(0, 4, rng())
    index = json.loads((out / 'shard-00000.json').read_text())
    (out / 'shard-00000.json').write_text(json.dumps(index | {'version': 99}))
    with pytest.raises(ConfigError, match='version 99'):
        open_(out, 'shards')


def test_shards_have_checksums(listed, tmp_path, caplog):
    """A changed byte of a frame or of the index is noticed; shards without sums are read, and that
    is said once."""
    _, paths = listed
    out = tmp_path / 'shards'
    out.mkdir()
    settings = {'short_side': 24, 'fps': 0, 'frames': 0, 'per_shard': 1}
    make_shards._shard(out, settings, 0, [(paths[0], 3)])
    whole, index = (
        (out / 'shard-00000.rgb').read_bytes(),
        json.loads((out / 'shard-00000.json').read_text()),
    )
    caplog.clear()
    good = open_(out, 'shards').read(0, 4, rng())
    assert not caplog.records
    frame = 24 * 32 * 3
    for at in (0, frame * 7 + 1234, len(whole) - 1):
        (out / 'shard-00000.rgb').write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        source = open_(out, 'shards')
        monkey = lambda *_, at=at, **__: np.full(4, at // frame)  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('jepa_jax.data.clips.frame_indices', monkey)
            with pytest.raises(BadFile, match=f'corrupt: frame {at // frame} is not what was'):
                source.read(0, 4, rng())
            patch.setattr('jepa_jax.data.clips.frame_indices', lambda *_, **__: np.full(4, 5))
            assert source.read(0, 4, rng()).shape == (4, 24, 32, 3)
    (out / 'shard-00000.rgb').write_bytes(whole)
    for key, value in (('label', 4), ('offset', 3), ('fps', 9.0)):
        changed = {**index, 'records': [{**index['records'][0], key: value}]}
        (out / 'shard-00000.json').write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match='corrupt: its records are not what was written'):
            open_(out, 'shards')
    del index['sum'], index['records'][0]['sums']  # as they were written before
    (out / 'shard-00000.json').write_text(json.dumps(index))
    old = open_(out, 'shards')
    np.testing.assert_array_equal(old.read(0, 4, rng()), good)
    (line,) = [record.getMessage() for record in caplog.records]
    assert '1 of 1 shards have no checksums' in line


def test_make_shards_on_the_command_line(listed, tmp_path):
    def call(*args):
        command = [sys.executable, '-m', 'tools.make_shards', *map(str, args)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    help_ = call('--help')
    assert help_.returncode == 0 and 'delete the folder' in help_.stdout
    wrong = call(tmp_path / 'absent', '--out', tmp_path / 'out')
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: list: '")
    assert call(listed[0], '--out', tmp_path / 'out', '--fps', '-1').returncode == 1
    done = call(listed[0], '--out', tmp_path / 'out', '--workers', '1')
    where = tmp_path / 'out'
    assert f'left out, and named in {where}/shard-*.json: 1 not_video' in done.stdout


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    """The list of a self-made set has no path that could be at fault."""
    (tmp_path / 'file').touch()
    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path / 'file'))
    with pytest.raises(ConfigError) as error:
        open_source(DataListConfig(kind='synthetic_few'), DataConfig())
    assert "kind = 'synthetic_few' cannot be made: " in str(error.value)
    assert str(tmp_path / 'file') in str(error.value) and 'JEPA_JAX_CACHE' in str(error.value)
