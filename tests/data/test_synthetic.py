"""The self-made video set: the same each time, balanced, and honest about what only motion can
tell.
"""

import collections
import multiprocessing

import av
import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits

from jepa_jax.data import synthetic


@pytest.fixture
def few(monkeypatch):
    """Clips of few frames, so that building a set is quick."""
    monkeypatch.setattr(synthetic, 'FRAMES', 4)


def decode(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format='rgb24') for f in container.decode(video=0)])


def test_clip_alone_is_the_clip_of_the_set(tmp_path, few):
    folder = synthetic.ensure('synthetic_few', tmp_path / 'set').parent
    for split, index in (('train', 3), ('test', 79)):
        synthetic.write(tmp_path / 'one.mp4', synthetic.video(split, index))
        stored = folder / f'videos/{split}_{index:04d}.mp4'
        assert (tmp_path / 'one.mp4').read_bytes() == stored.read_bytes()


def test_same_bytes_each_time(tmp_path):
    """Often enough to catch an encoder that decides differently one time in ten."""
    clip = synthetic.video('train', 0)
    np.testing.assert_array_equal(clip, synthetic.video('train', 0))
    assert not np.array_equal(clip, synthetic.video('train', 80))
    written = set()
    for _ in range(30):
        synthetic.write(tmp_path / 'clip.mp4', clip)
        written.add((tmp_path / 'clip.mp4').read_bytes())
    assert len(written) == 1


def test_files_are_ordinary_h264(tmp_path):
    clip = synthetic.video('test', 5)
    synthetic.write(tmp_path / 'clip.mp4', clip)
    with av.open(str(tmp_path / 'clip.mp4')) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == 'h264' and stream.pix_fmt == 'yuv420p'
        assert stream.average_rate == synthetic.FPS and stream.frames == synthetic.FRAMES
    error = decode(tmp_path / 'clip.mp4').astype(float) - clip
    assert 20 * np.log10(255 / np.sqrt(np.mean(error**2))) > 30  # dB: chroma is stored at half size


def test_lossless_files_give_back_what_was_written(tmp_path):
    clip = synthetic.video('test', 5)
    synthetic.write(tmp_path / 'clip.mp4', clip, lossless=True)
    np.testing.assert_array_equal(decode(tmp_path / 'clip.mp4'), clip)
    written = (tmp_path / 'clip.mp4').read_bytes()
    synthetic.write(tmp_path / 'clip.mp4', clip, lossless=True)
    assert (tmp_path / 'clip.mp4').read_bytes() == written


def test_set_on_disk(tmp_path, few, capfd, caplog):
    caplog.set_level('INFO', 'jepa_jax')
    path = synthetic.ensure('synthetic_few', tmp_path / 'deep' / 'set')
    labels = synthetic.load_labels(path.parent)
    for split in ('train', 'test'):
        lines = (path.parent / f'{split}.txt').read_text().splitlines()
        names = [line.split()[0] for line in lines]
        assert [int(line.split()[1]) for line in lines] == [labels[n]['digit'] for n in names]
        assert all((path.parent / name).is_file() for name in names) and len(set(names)) == 80
        assert len({tuple(labels[name].values()) for name in names}) == 80  # all combinations
    assert f'making 160 videos in {path.parent}' in caplog.text
    assert 'videos:' not in capfd.readouterr().err  # no progress bar where there is no terminal
    assert sorted(p.name for p in path.parent.parent.iterdir()) == ['set', 'set.lock']
    before = path.stat().st_mtime_ns
    assert (
        synthetic.ensure('synthetic_few', path.parent) == path and path.stat().st_mtime_ns == before
    )


def test_labels_are_balanced_in_the_real_set():
    for count in synthetic.COUNTS['synthetic'].values():
        counts = collections.Counter(tuple(synthetic.labels(i).values()) for i in range(count))
        assert len(counts) == 80 and len(set(counts.values())) == 1


def test_splits_share_no_handwriting():
    train, test = (
        {image.tobytes() for images in synthetic.handwriting(split) for image in images}
        for split in ('train', 'test')
    )
    assert train.isdisjoint(test)
    every = load_digits()
    assert train | test == {(image / 16).tobytes() for image in every.images}
    for split in ('train', 'test'):
        for digit, images in enumerate(synthetic.handwriting(split)):
            originals = {(im / 16).tobytes() for im in every.images[every.target == digit]}
            assert {im.tobytes() for im in images} <= originals


def swept(centres: np.ndarray) -> float:
    """Twice the signed area that a path `[T, 2]` (y, x) sweeps: positive if clockwise in sight."""
    y, x = (centres - centres.mean(0)).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def test_pair_goes_clockwise_and_the_ball_keeps_its_side():
    steps = {'right': (0, 1), 'below': (1, 0), 'left': (0, -1), 'above': (-1, 0)}  # y, x
    for seed in range(40):
        image, side = synthetic.handwriting('train')[seed % 10][seed], synthetic.SIDES[seed // 10]
        rng = np.random.default_rng(seed)
        digit, ball = synthetic._pair(image, synthetic.SIDES.index(side), rng)
        centres, balls = (
            np.array([ndimage.center_of_mass(frame) for frame in part]) for part in (digit, ball)
        )
        assert swept(centres) > 300 and swept(centres[::-1]) < -300
        area = digit.sum((1, 2))
        assert area.min() > 0.7 * area.max()  # hardly cut off by the frame
        whole = ball.sum((1, 2)) > 0.9 * ball.sum((1, 2)).max()
        assert whole.sum() >= 8
        apart = (balls - centres)[whole]
        length = np.linalg.norm(apart, axis=1)
        assert np.all(apart @ steps[side] > 0.8 * length) and length.max() < 26


def test_no_place_is_lighter_for_a_side():
    """Mean frames of the four sides differ by no more than chance lets them differ."""
    grey = np.stack([synthetic.video('test', i)[::6].mean((0, 3)) for i in range(400)])
    side = np.array([synthetic.labels(i)['side'] for i in range(400)])
    coarse = grey.reshape(400, 8, 10, 8, 10).mean((2, 4))
    total = coarse.std(0)
    for name in synthetic.SIDES:
        error = (coarse[side == name].mean(0) - coarse.mean(0)) / (total / 100**0.5)
        assert np.abs(error).max() < 4.5  # the largest of 64 standard errors


def test_start_and_direction_tell_nothing():
    """Start and first step point anywhere: their mean over clips is within four errors of zero."""
    paths = np.stack([synthetic._orbit(np.random.default_rng(seed)) for seed in range(400)])
    for points in (paths[:, 0], paths[:, 1] - paths[:, 0]):
        unit = points / np.linalg.norm(points, axis=1, keepdims=True)
        assert np.abs(unit.mean(0)).max() < 4 * (0.5 / 400) ** 0.5


def test_backwards_is_the_other_motion(monkeypatch):
    """The very same frames in reverse order carry the other label: only their order tells."""
    clips = {i: synthetic.video('train', i) for i in (0, 10, 27, 35)}
    real = synthetic.labels
    other = dict(zip(synthetic.MOTIONS, synthetic.MOTIONS[::-1]))
    assert {real(i)['motion'] for i in clips} == set(synthetic.MOTIONS)
    monkeypatch.setattr(
        synthetic, 'labels', lambda i: real(i) | {'motion': other[real(i)['motion']]}
    )
    for i, clip in clips.items():
        np.testing.assert_array_equal(synthetic.video('train', i), clip[::-1])


def test_shapes_bounce_and_keep_their_energy():
    for seed in range(5):
        centres, radii = synthetic._bounce(3, np.random.default_rng(seed))
        assert np.all(centres > radii[:, None] - 3) and np.all(
            centres < synthetic.SIZE - radii[:, None] + 3
        )
        moved = np.linalg.norm(np.diff(centres, axis=0), axis=-1)
        assert moved.max() < 3 * 3**0.5 + 0.1  # one shape may take all: three of speed 3 at most
        assert moved.max() > 0.9


def test_incomplete_folder_is_refused(tmp_path, few):
    folder = synthetic.ensure('synthetic_few', tmp_path / 'set').parent
    next(folder.glob('videos/*.mp4')).unlink()
    with pytest.raises(ValueError, match='159 of the 160 videos.*delete the folder'):
        synthetic.ensure('synthetic_few', folder)
    other = tmp_path / 'mine'
    other.mkdir()
    (other / 'thesis.txt').write_text('all of it')
    with pytest.raises(ValueError, match='holds other files'):
        synthetic.ensure('synthetic_few', other)
    assert [p.name for p in other.iterdir()] == ['thesis.txt']


def test_failed_build_leaves_nothing(tmp_path, few, monkeypatch):
    def full(path, frames, fps=8):
        if 'train_0005' in str(path):
            raise OSError(28, 'No space left on device')
        path.touch()

    dead = tmp_path / '.set.partial-dead'
    dead.mkdir()
    monkeypatch.setattr(synthetic, 'write', full)
    with pytest.raises(OSError, match='No space left'):
        synthetic.ensure('synthetic_few', tmp_path / 'set')
    assert [p.name for p in tmp_path.iterdir()] == ['set.lock']


def _ensure_slowly(folder, queue):
    synthetic.FRAMES = 2
    built, build = [], synthetic._build
    synthetic._build = lambda *args: (built.append(1), build(*args))
    synthetic.ensure('synthetic_few', folder)
    queue.put(len(built))


def test_two_processes_build_once(tmp_path):
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    processes = [
        context.Process(target=_ensure_slowly, args=(tmp_path / 'set', queue)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    assert sorted(queue.get(timeout=60) for _ in processes) == [0, 1]
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path))
    assert synthetic.default_folder('synthetic') == tmp_path / f'synthetic-v{synthetic.VERSION}'
    monkeypatch.delenv('JEPA_JAX_CACHE')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert synthetic.default_folder('synthetic').parent == tmp_path / '.cache/jepa_jax'
