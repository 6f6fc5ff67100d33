"""Many inputs: what embed writes for large sets, and what a second start does."""

import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest

from jepa_jax import cli, embedded, pretrained, start
from jepa_jax import embed as command
from jepa_jax import search as searching
from jepa_jax.data import synthetic
from jepa_jax.errors import BadFile
from jepa_jax.inputs import Trained
from jepa_jax.model import Loaded
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import Net
from jepa_jax.weights.contents import StoredNet, Weights
from jepa_jax.weights.tables import Leaf
from jepa_jax.weights.write import write

VIT = ViTConfig(48, 2, 3, image_size=32, frames=4, dtype=jnp.float32)
READ = ('--model', 'mine', '--frames', '4', '--fps', '8')


@pytest.fixture(scope='module')
def model():
    net = Net(lambda rngs: ViT(VIT, rngs=rngs))
    params = jax.jit(net.init)(jax.random.key(0))
    return pretrained.Model(Loaded(VIT, params), about=['mine'], trained=Trained(4, 32, 8.0))


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    rng = np.random.default_rng(0)
    for name, count in (('a', 4), ('b', 9), ('sub/c', 4)):
        (folder / name).parent.mkdir(exist_ok=True)
        synthetic.write(folder / f'{name}.mp4', rng.integers(0, 256, (count, 40, 48, 3), np.uint8))
    (folder / 'bad.mp4').write_bytes((folder / 'b.mp4').read_bytes()[:300])
    return folder


@pytest.fixture
def typed(model, videos, tmp_path, monkeypatch, capsys):
    """Types a command in a folder with a copy of the videos: status, stdout, stderr."""
    shutil.copytree(videos, tmp_path / 'videos')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, 'load', lambda *_, **__: model)
    monkeypatch.setattr(command, 'check_name', lambda name: None)
    for name in ('logging_to_terminal', 'compilation_cache'):
        monkeypatch.setattr(start, name, lambda: None)

    def run(*argv, module=command):
        main = getattr(module, module.__name__.rpartition('.')[2])
        options = module._options
        status = cli.run(main, doc='', tables=(), options=options, argv=[str(a) for a in argv])
        return (status, *capsys.readouterr())

    return run


def embed(typed, *more, source='videos'):
    return typed(*READ, '--input', source, *more)


def test_a_folder_of_videos(typed, tmp_path):
    """Files below files, the bad one named and counted; pixels on request; nothing done twice."""
    status, out, err = embed(typed, '--out', 'out')
    assert status == 1 and out.startswith('4 inputs\n')
    assert 'left out: videos/bad.mp4: truncated' in err
    assert '1 of 4 inputs could not be used: videos/bad.mp4; all others are done' in err
    files = sorted(
        p.relative_to(tmp_path / 'out').as_posix() for p in (tmp_path / 'out').rglob('*')
    )
    assert files == ['a.mp4.npz', 'b.mp4.npz', 'sub', 'sub/c.mp4.npz']
    with np.load('out/b.mp4.npz') as arrays:
        assert 'clips' not in arrays and arrays['tokens'].shape == (3, 8, 48)
        tokens = arrays['tokens']
    before = (tmp_path / 'out/a.mp4.npz').stat().st_mtime_ns
    status, out, _ = embed(typed, '--out', 'out')
    assert status == 1 and '3 of 4 inputs are done already in out' in out
    assert (tmp_path / 'out/a.mp4.npz').stat().st_mtime_ns == before
    # another file under the name, and other settings, are embedded again
    shutil.copy('videos/b.mp4', 'videos/a.mp4')
    _, out, _ = embed(typed, '--out', 'out')
    assert '2 of 4' in out
    np.testing.assert_array_equal(np.load('out/a.mp4.npz')['tokens'], tokens)
    _, out, _ = embed(typed, '--out', 'out', '--clips', '--store', 'float16')
    assert 'done already' not in out
    with np.load('out/a.mp4.npz') as arrays:
        assert arrays['clips'].shape == (3, 4, 32, 32, 3)
        np.testing.assert_array_equal(arrays['tokens'], tokens.astype(np.float16), strict=True)


def test_one_file_is_done_once(typed, tmp_path):
    good = ('--input', 'videos/b.mp4', '--out', 'all.npz')
    assert embed(typed, *good, source='videos/a.mp4')[0] == 0
    assert np.load('all.npz')['files'].tolist() == ['videos/a.mp4', 'videos/b.mp4']
    before = (tmp_path / 'all.npz').stat().st_mtime_ns
    status, out, _ = embed(typed, *good, source='videos/a.mp4')
    assert status == 0 and '2 of 2 inputs are done already in all.npz' in out
    assert (tmp_path / 'all.npz').stat().st_mtime_ns == before
    embed(typed, '--out', 'all.npz', source='videos/a.mp4')
    assert np.load('all.npz')['files'].tolist() == ['videos/a.mp4']


def test_shards(typed, model, tmp_path):
    """Parts of all forms hold each window once, as the model gives it, in float16."""
    settings = ('--pool', 'mean', '--layers', '-1', '--store', 'float16', '--shard', '1')
    forms = ('npz', 'npy', 'parquet')
    for form in forms:
        for part in ('1/2', '2/2'):
            _, out, _ = embed(typed, '--out', form, '--format', form, '--part', part, *settings)
            assert f'4 inputs, of which part {part} has 2' in out
    names = ['videos/a.mp4', 'videos/b.mp4', 'videos/sub/c.mp4']
    own = model.embed(names, frames=4, fps=8, pool='mean', layers=[-1])
    expected = {str(tmp_path / n): f.pooled.astype(np.float16) for n, f in zip(names, own)}
    for form in forms:
        blocks = list(embedded.blocks(form))
        assert len(blocks) == 3
        seen = {}
        for block in blocks:
            (source,) = block.sources
            seen[source.path] = np.asarray(block.features)
            np.testing.assert_array_equal(block.seconds, block.numbers / 8)
        assert seen.keys() == expected.keys()
        for path, values in seen.items():
            np.testing.assert_array_equal(values, expected[path], strict=True)
    # as others read them
    mapped = np.load('npy/00001/pooled.npy', mmap_mode='r')
    lines = (tmp_path / 'npy/00001/index.csv').read_text().splitlines()
    assert lines[0] == 'row,path,window,start,end' and len(lines) == 1 + len(mapped)
    tables = [pyarrow.parquet.read_table(f'parquet/0000{i}.parquet') for i in range(3)]
    rows = [row for table in tables for row in table.to_pylist()]
    row = next(row for row in rows if row['path'].endswith('b.mp4') and row['window'] == 2)
    assert (row['start'], row['end']) == (5 / 8, 8 / 8)
    np.testing.assert_array_equal(row['pooled'], expected[row['path']][2])
    np.testing.assert_array_equal(row['levels'], row['pooled'])  # of the last block
    status, out, _ = embed(typed, '--out', 'npy', '--format', 'npy', *settings)
    assert '3 of 4 inputs are done already in npy' in out and status == 1
    assert not [p for p in tmp_path.rglob('.*') if p.name != '.lock']
    status, _, err = embed(typed, '--out', 'npy', '--format', 'npy', '--pool', 'mean')
    assert status == 1 and 'choose another folder' in err and 'Traceback' not in err


def test_stopped_between(typed, model, tmp_path, monkeypatch):
    """What was whole is kept, nothing half-written has a name, and the next start goes on."""
    windows = type(model).windows

    def until(self, path, **settings):
        for count, window in enumerate(windows(self, path, **settings)):
            if path.endswith('b.mp4') and count == 2:
                raise KeyboardInterrupt
            yield window

    monkeypatch.setattr(type(model), 'windows', until)
    for form in ('npz', 'npy'):
        assert embed(typed, '--out', form, '--format', form)[0] == 130
    monkeypatch.setattr(type(model), 'windows', windows)
    assert [p.name for p in (tmp_path / 'npz').iterdir()] == ['a.mp4.npz']
    (block,) = embedded.blocks('npy')
    assert [s.path for s in block.sources] == [str(tmp_path / 'videos/a.mp4')]
    assert sorted(p.name for p in (tmp_path / 'npy').iterdir()) == ['.lock', '00000']
    for form in ('npz', 'npy'):
        _, out, _ = embed(typed, '--out', form, '--format', form)
        assert '1 of 4 inputs are done already' in out
    counts = {len(b.sources): b.features.shape for b in embedded.blocks('npy')}
    assert counts == {1: (1, 8, 48), 2: (4, 8, 48)}


def test_a_changed_input_counts_once(typed, tmp_path):
    settings = ('--out', 'out', '--format', 'npy', '--pool', 'mean')
    embed(typed, *settings, source='videos/a.mp4')
    shutil.copy('videos/b.mp4', 'videos/a.mp4')
    embed(typed, *settings, source='videos/a.mp4')
    new, old = embedded.blocks('out')
    assert new.kept.tolist() == [True] * 3 and old.kept.tolist() == [False]


@pytest.mark.filterwarnings('default')
def test_warned_in_one_line(typed):
    status, _, err = typed(
        '--model', 'mine', '--frames', '8', '--crop', '48', '--fps', '4', '--pool', 'mean',
        '--input', 'videos/a.mp4', 'videos/b.mp4', '--out', 'out',
    )  # fmt: skip
    lines = [line for line in err.splitlines() if line.startswith('warning')]
    assert status == 0 and lines == [
        'warning: 8 frames, 48 x 48 pixels, 4 frames a second: the model was trained on at most 4 '
        'frames of 32 x 32 pixels at 8 a second'
    ]


def test_a_log_says_how_long_it_takes(capsys):
    """A line a minute, with the time left at the rate so far."""
    seconds = iter((0, 30, 70, 100, 140))
    bar = command._Progress(1000, clock=lambda: next(seconds))
    bar.windows = 5
    for _ in range(4):
        bar.update()
    bar.close()
    assert capsys.readouterr().out.splitlines() == [
        '2 of 1,000 files, 5 windows, 9:42:10 left',  # 998 times 35 s
        '4 of 1,000 files, 5 windows, 9:41:00 left',
    ]


MISTAKES = {
    'part of one file': (['--out', 'x.npz', '--part', '1/2'], 'must be a folder'),
    'shards in one file': (['--out', 'x.npz', '--format', 'npy'], 'must be a folder'),
    'no such part': (['--out', 'x', '--part', '3/2'], 'I/N with I from 1 to N'),
    'shard': (['--out', 'x', '--format', 'npy', '--shard', '0'], 'at least 1'),
    'classes': (['--classify', '--top', '0'], '--top 0: must be at least 1'),
    'pattern': (['--out', 'x', '--input', '*.avi'], '*.avi: stands for no file'),
}


@pytest.mark.parametrize('case', MISTAKES)
def test_mistakes(typed, tmp_path, case):
    more, words = MISTAKES[case]
    status, _, err = embed(typed, *more)
    assert status in (1, 2) and words in err and err.count('\n') == 1
    assert not (tmp_path / 'x').exists()


def test_parquet_without_its_library(typed, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    status, _, err = embed(typed, '--out', 'x', '--format', 'parquet')
    assert status == 1 and err == 'error: parquet needs pyarrow: pip install pyarrow\n'


def test_damaged_shards_are_named(typed, tmp_path):
    embed(typed, '--out', 'out', '--format', 'npy', '--pool', 'mean', source='videos/a.mp4')
    about = tmp_path / 'out/00000/about.json'
    stored = json.loads(about.read_text())
    for bad in ([], {'key': 'x', 'inputs': [[1]]}, stored | {'inputs': []}):
        about.write_text(json.dumps(bad))
        with pytest.raises((BadFile, embedded.InputError), match='00000'):
            list(embedded.blocks('out'))


class NoTorch:
    def find_spec(self, name, *_):
        if name.partition('.')[0] == 'torch':
            raise ModuleNotFoundError(name)


def test_a_released_file_needs_no_torch(model, videos, tmp_path, monkeypatch):
    """The original's format, from file to features, with torch out of reach."""
    # as where it is not installed: einops asks only packages that are loaded
    for name in [n for n in sys.modules if n.partition('.')[0] == 'torch']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, 'meta_path', [NoTorch(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module('torch')
    tree = jax.tree.map(
        lambda a: Leaf(a.shape, a.dtype, lambda: np.asarray(a)), model.encoder.params
    )
    weights = Weights(tmp_path, 'jax', {'target': StoredNet('encoder', VIT, tree)})
    write(weights, tmp_path / 'mine.pt', to='torch')
    ready = pretrained.load(tmp_path / 'mine.pt', heads=3)
    view = dict(frames=4, crop=32)
    other = model.embed(videos / 'a.mp4', fps=8, **view)
    with pytest.warns(UserWarning, match='^8 frames a second: .* 4 frames of 32 x 32 pixels at 4 '):
        own = ready.embed(videos / 'a.mp4', fps=8, **view)
    np.testing.assert_array_equal(own.tokens, other.tokens)


# Search


def test_search_finds_what_scipy_finds(typed, tmp_path):
    """Exact in every form, against scipy's distances; and with the mean taken out."""
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(1)
    counts, width = [3, 5, 4], 6
    x = rng.normal(size=(12, width)).astype(np.float32) + 2
    query = rng.normal(size=width).astype(np.float32)
    for form in ('npy', 'parquet'):
        output = embedded.Shards(str(tmp_path / form), ABOUT, 'k', 'float32', form, 2)
        row = 0
        for i, count in enumerate(counts):
            one, layout = embedded.Named(f'{i}.mp4', f'{i}.mp4'), embedded.Layout((1, 1, 1), 1)
            output.begin(one, layout, np.zeros((1, 3)), 1.0)
            for _ in range(count):
                output.add(window(row), {'pooled': x[row]})
                row += 1
            output.end()
        output.close()
    order = [(i, j) for i, count in enumerate(counts) for j in range(count)]
    for form in ('npy', 'parquet'):
        for centre in (False, True):
            middle = x.mean(0) if centre else 0
            cosine = 1 - cdist(x.astype(np.float64) - middle, [query - middle], 'cosine')[:, 0]
            hits = searching.nearest([str(tmp_path / form)], query, 7, centre=centre)
            best = np.argsort(-cosine)[:7]
            assert [(h['path'][-5:-4], h['window']) for h in hits] == [
                (str(order[b][0]), order[b][1]) for b in best
            ]
            np.testing.assert_allclose([h['cosine'] for h in hits], cosine[best], atol=1e-6)
            assert [h['start'] for h in hits] == best.tolist()


ABOUT = {'model': 'mine', 'weights': 'w'}


def window(row):
    from jepa_jax.data.windows import Window

    seconds = np.array([row, row + 0.5])
    return Window('x', np.zeros((2, 1, 1, 3), np.uint8), np.array([0, 1]), seconds, 0.5, 0)


def test_search_as_typed(typed, tmp_path):
    embed(typed, '--out', 'out', '--format', 'npy', '--pool', 'mean')
    asked = ('--features', 'out', '--query', 'videos/b.mp4', '--at', '0.5')
    status, out, _ = typed(
        *asked, '--top', 3, '--out', 'h.json', '--sheet', 's.png', module=searching
    )
    assert status == 0 and 'wrote s.png' in out
    hits = json.loads((tmp_path / 'h.json').read_text())
    assert [h['rank'] for h in hits] == [1, 2, 3] and hits[0]['cosine'] == pytest.approx(
        1, abs=1e-5
    )
    # the window itself: the second of its three, frames 4 to 7 at 8 a second
    assert hits[0] | {'cosine': 1} == {
        'rank': 1, 'cosine': 1, 'path': str(tmp_path / 'videos/b.mp4'), 'window': 1,
        'start': 0.5, 'end': 0.875, 'frame': 6,
    }  # fmt: skip
    from PIL import Image

    with Image.open('s.png') as sheet:
        assert sheet.size[0] > 4 * 200 and len(np.unique(np.asarray(sheet))) > 100
    status, out, _ = typed(*asked, '--others', '--out', 'h.csv', module=searching)
    lines = (tmp_path / 'h.csv').read_text().splitlines()
    assert lines[0] == 'rank,cosine,path,window,start,end,frame' and len(lines) == 3
    assert not any('b.mp4' in line for line in lines)
    status, _, err = typed('--features', 'none', '--query', 'x.mp4', module=searching)
    assert status == 1 and err == 'error: none: no such file or folder\n'


def test_features_named_twice_are_refused(typed, tmp_path):
    """Each of their windows would be a hit twice."""
    embed(typed, '--out', 'out', '--pool', 'mean')
    for again in ('videos/../out', 'out/a.mp4.npz'):
        asked = ('--features', 'out', again, '--query', 'videos/b.mp4')
        status, out, err = typed(*asked, module=searching)
        assert (status, out) == (1, '')
        assert (
            err == f'error: --features {again}: {again.removesuffix("/a.mp4.npz")}/a.mp4.npz is '
            'in out as well\n'
        )


def test_places_of_hits_are_looked_for_before_the_search(typed):
    for flag, name in (('--out', 'no/a.csv'), ('--sheet', 'no/a.png')):
        asked = ('--features', 'out', '--query', 'videos/b.mp4', flag, name)
        status, out, err = typed(*asked, module=searching)
        assert (status, out) == (1, '')
        assert err.startswith(f'error: {flag} {name}: No such file or directory; must be a file')


def test_pictures_of_equal_names(typed, tmp_path):
    """They lie in folders as their videos do; where they would overwrite one another they are
    refused, and of inputs that are done it is said that there are none."""
    shutil.move('videos/sub/c.mp4', 'videos/sub/a.mp4')
    how = ('--pool', 'mean', '--pictures', 'drawn')
    embed(typed, *how)
    assert {str(path.relative_to('drawn')) for path in Path('drawn').rglob('*-pca.png')} == {
        'a.mp4-pca.png', 'b.mp4-pca.png', 'sub/a.mp4-pca.png'
    }  # fmt: skip
    both = ('videos/a.mp4', 'videos/sub/a.mp4')
    for out in ((), ('--out', 'one.npz')):
        status, _, err = typed(*READ, '--input', *both, *how, *out)
        assert status == 1 and 'two are called a.mp4, so one would overwrite the other' in err
    for words in ('', 'done already in out, and not drawn: without --out they are'):
        status, out, _ = embed(typed, *how, '--out', 'out', source='videos/a.mp4')
        assert status == 0 and words in out and bool(words) == ('already' in out)


def test_names_that_are_no_text(typed, tmp_path):
    """Nor what a formula would be: in features, pictures, hits and on the terminal."""
    odd = os.fsdecode(b'videos/co$t_$x^{\xff.mp4')
    shutil.move('videos/a.mp4', odd)
    os.remove('videos/bad.mp4')
    status, _, err = embed(typed, '--out', 'out', '--pool', 'mean', '--pictures', 'drawn')
    assert (status, err) == (0, '')
    assert Path('drawn', f'{Path(odd).name}-similarity.png').exists()
    asked = ('--features', 'out', '--query', odd, '--sheet', 's.png', '--top', 1)
    status, out, _ = typed(*asked, module=searching)
    assert status == 0 and r'videos/co$t_$x^{\udcff.mp4' in out and Path('s.png').exists()


def test_nothing_that_could_be_used(typed, tmp_path):
    status, _, err = embed(typed, '--out', 'out', source='videos/bad.mp4')
    assert status == 1 and err.endswith('1 of 1 inputs could not be used: videos/bad.mp4\n')


def test_a_place_that_cannot_be_written_is_refused_at_once(typed, tmp_path, monkeypatch):
    """Before weights are fetched or a video is read."""
    (tmp_path / 'list.txt').write_text('videos/a.mp4\n')
    (tmp_path / 'folder.npz').mkdir()
    monkeypatch.setattr(pretrained, 'load', None)
    for out, words in (
        ('list.txt', 'a file is in its place; must be a folder, or end in .npz'),
        ('folder.npz', 'a folder is in its place; must be a file'),
    ):
        assert embed(typed, '--out', out) == (1, '', f'error: --out {out}: {words}\n')
    monkeypatch.setattr(os, 'access', lambda path, mode: os.fspath(path) != str(tmp_path))
    for out in ('new.npz', 'deep/er'):
        status, _, err = embed(typed, '--out', out)
        assert status == 1 and err.endswith(f'nothing can be written into {tmp_path}\n')
