"""`python -m jepa_jax.embed` as a user types it."""

import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from jepa_jax.data import synthetic

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = ['--model', 'random:tiny', '--frames', '4', '--crop', '32']
NO_TORCH = """import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'cv2', 'transformers', 'safetensors'):
            raise ImportError(f'{name} is blocked')
sys.meta_path.insert(0, Blocked())
"""


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('embed')
    for i, count in enumerate((9, 30)):
        synthetic.write(folder / f'v{i}.mp4', noise(count, 40, 48, 3, seed=i))
    np.save(folder / 'a.npy', noise(6, 48, 80, 3))
    Image.fromarray(noise(40, 50, 3)).save(folder / 'p.png')
    (folder / 'frames').mkdir()
    for i in range(4):
        Image.fromarray(noise(32, 32, 3, seed=i)).save(folder / f'frames/{i}.png')
    (folder / 'broken.mp4').write_bytes((folder / 'v1.mp4').read_bytes()[:2000])
    return folder


def embed(folder, *arguments, code='', **more):
    """Runs it in the folder; one compilation cache for all."""
    start = ['-m', 'jepa_jax.embed']
    if code:
        text = f'{code}\nfrom jepa_jax.embed import main\nsys.exit(main())'
        start = ['-c', text]
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'JEPA_JAX_CACHE': str(folder / 'cache'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    return subprocess.run(
        [sys.executable, *start, *arguments], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=300, **more,
    )  # fmt: skip


def opencv_view(frame, crop=32):
    short = int(crop * 256 / 224)
    h, w = frame.shape[:2]
    size = (int(short * w / h), short) if h <= w else (short, int(short * h / w))
    frame = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
    y, x = (int(round((side - crop) / 2)) for side in frame.shape[:2])
    return frame[y : y + crop, x : x + crop]


def test_many_inputs_one_file_without_torch(folder):
    """Two videos in overlapping windows, and a bad one; with nothing but our dependencies."""
    done = embed(
        folder, *SMALL, '--fps', '8', '--stride', '3', '--batch', '2', '--input',
        'v0.mp4', 'broken.mp4', 'v1.mp4', '--out', 'all.npz', '--clips', code=NO_TORCH,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert 'left out: broken.mp4: truncated' in done.stderr
    assert '1 of 3 inputs could not be used: broken.mp4; all others are done' in done.stderr
    assert 'Traceback' not in done.stderr
    assert 'RANDOM weights' in done.stdout and 'wrote all.npz: tokens [13, 8, 192]' in done.stdout
    result = np.load(folder / 'all.npz')
    assert result['tokens'].dtype == np.float32 and np.isfinite(result['tokens']).all()
    assert result['files'].tolist() == ['v0.mp4', 'v1.mp4']
    assert result['file'].tolist() == [0] * 3 + [1] * 10
    first = result['numbers'][:, 0]
    assert first.tolist() == [0, 3, 5, 0, 3, 6, 9, 12, 15, 18, 21, 24, 26]
    np.testing.assert_allclose(result['seconds'], result['numbers'] / 8)  # the videos' own rate
    assert result['coords'].shape == (8, 3) and result['grid'].tolist() == [2, 2, 2]
    settings = json.loads(str(result['settings']))
    assert settings['model'] == 'random:tiny' and settings['fps'] == 8
    # what was fed is OpenCV's view of the frames
    from jepa_jax.data.decode import read_frames

    frames = read_frames(folder / 'v1.mp4', lambda timing: np.arange(26, 30))
    np.testing.assert_array_equal(result['clips'][-1], [opencv_view(f) for f in frames])


def test_each_kind_into_a_folder(folder):
    inputs = ['a.npy', 'p.png', 'frames', 'v0.mp4']
    np.save(folder / 'b.npy', noise(4, 48, 80, 3))
    done = embed(folder, *SMALL, '--fps', '3', '--input', 'v1.mp4', 'b.npy', '--out', 'two.npz')
    assert done.returncode == 0 and 'b.npy: a frame every 0.3333 s, in v1.mp4 every 0.25 s' in (
        done.stdout
    )
    result = np.load(folder / 'two.npz')
    assert result['spacing'].tolist() == [0.25] * 4 + [1 / 3]
    assert result['coords'][-1, 0] == np.float32(2.5 * 0.25)
    done = embed(
        folder, *SMALL, '--pool', 'mean', '--layers', '0', '5', '--input', *inputs, '--out', 'each',
        '--pictures', 'each',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shapes = {n: np.load(folder / f'each/{n}.npz')['numbers'].shape for n in inputs}
    # windows of 4 frames; the image alone has been asked for as 4 copies; 9 frames at 8 fps, taken
    # at 4, are 5
    assert shapes == {'a.npy': (2, 4), 'p.png': (1, 4), 'frames': (1, 4), 'v0.mp4': (2, 4)}
    result = np.load(folder / 'each/a.npy.npz')
    assert result['pooled'].shape == (2, 192) and result['levels'].shape == (2, 2, 192)
    assert 'tokens' not in result and 'clips' not in result
    for name in inputs:
        for kind in ('pca', 'similarity'):
            with Image.open(folder / f'each/{name}-{kind}.png') as picture:
                assert picture.size[0] > 300 and len(np.unique(np.asarray(picture))) > 20


def test_an_image_and_a_short_video_of_one_grid(folder):
    """Of V-JEPA 2.1 both are a grid of one in time: in one file the second is left out and the rest
    written, in shards each has its own."""
    np.save(folder / 'two.npy', noise(2, 48, 80, 3))
    how = ('--model', 'random:tiny-21', '--frames', '2', '--crop', '32')
    done = embed(folder, *how, '--input', 'p.png', 'two.npy', '--out', 'mixed.npz')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    both = (
        'token grid (1, 2, 2) of 2 frames, inputs before it have token grid (1, 2, 2) of 1 frame:'
    )
    assert f'left out: two.npy: unfit: {both}' in done.stderr
    assert np.load(folder / 'mixed.npz')['numbers'].shape == (1, 1)
    done = embed(folder, *how, '--input', 'p.png', 'two.npy', '--out', 'mixed', '--format', 'npy')
    assert done.returncode == 0, done.stderr
    shapes = {np.load(p).shape for p in (folder / 'mixed').glob('*/numbers.npy')}
    assert shapes == {(1, 1), (1, 2)}


def test_frames_as_they_are(folder):
    """Not square, positions on the real grid, against the bare net with the same seed."""
    done = embed(
        folder, '--model', 'random:tiny', '--input', 'a.npy', '--preprocess', 'none', '--out',
        'none.npz', '--clips',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = np.load(folder / 'none.npz')
    assert result['grid'].tolist() == [3, 3, 5] and result['tokens'].shape == (1, 45, 192)
    np.testing.assert_array_equal(result['clips'][0], np.load(folder / 'a.npy'))
    assert result['coords'][-1].tolist() == [4.5 / 4, 40, 72]
    import jax

    from jepa_jax.models.vit import ViT
    from jepa_jax.nets import Net
    from jepa_jax.pretrained import random_configs

    config, _ = random_configs('tiny')
    net = Net(lambda rngs: ViT(config, rngs=rngs))
    params = jax.jit(net.init)(jax.random.split(jax.random.key(0))[0])
    expected = jax.jit(net)(params, result['clips'])
    np.testing.assert_allclose(result['tokens'], expected, rtol=0, atol=1e-4)


MISTAKES = {
    'no out': (['--input', 'v0.mp4'], 1, '--out is missing'),
    'no model': (['--out', 'x.npz', '--input', 'v0.mp4', '--model', 'vitx'], 1, 'did you mean vit'),
    'same names': (['--out', 'x', '--input', 'v0.mp4', 'frames/v0.mp4'], 1, 'called v0.mp4'),
    'no probe': (['--input', 'v0.mp4', '--classify'], 1, 'no probe'),
    'flag': (['--input', 'v0.mp4', '--outt', 'x.npz'], 2, 'did you mean --out'),
}


@pytest.mark.parametrize('case', MISTAKES)
def test_mistakes_are_one_line(folder, case):
    arguments, status, words = MISTAKES[case]
    done = embed(folder, *SMALL, *arguments)
    assert done.returncode == status
    assert words in done.stderr and 'Traceback' not in done.stderr
    assert done.stderr.strip().count('\n') == 0
    assert not (folder / 'x.npz').exists()


def test_help_is_quick(folder):
    done = embed(folder, '--help', code="import sys; sys.modules['jax'] = None")
    assert done.returncode == 0 and '--preprocess {eval,none}' in done.stdout


def test_importing_the_package_is_quick():
    code = "import sys, jepa_jax; assert 'jax' not in sys.modules; print(jepa_jax.load.__module__)"
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == 'jepa_jax.pretrained', done.stderr
