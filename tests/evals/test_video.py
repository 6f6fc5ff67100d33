"""Probes of frozen features: they find what is there, nothing where there is nothing, and say how
sure they are.
"""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LogisticRegression

from jepa_jax.config import DataConfig, ProbeConfig
from jepa_jax.data import synthetic
from jepa_jax.errors import BadFile
from jepa_jax.evals import video
from jepa_jax.evals.video import LabelledClips
from jepa_jax.sharding import make_mesh

# one for all tests: compiled once
SETTINGS = ProbeConfig(steps=150, batch=32, seeds=2, heads=2, lr=3e-3, bootstrap=500)


def planted(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, 12, 16] of noise; the class is a direction that one token, anywhere, carries."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    features = rng.standard_normal((n, 12, 16)).astype(np.float32)
    features[np.arange(n), rng.integers(0, 12, n)] += 9 * np.eye(16, dtype=np.float32)[labels]
    return features, labels


def test_probe_finds_a_planted_signal_and_none_in_noise():
    (train, ours), (test, theirs) = planted(300, 0), planted(300, 1)
    measured = video.probe(train, ours, test, 4, SETTINGS, seed=0)
    assert np.mean(measured == theirs) > 0.8
    permuted = np.random.default_rng(2).permutation(ours)
    chance = video.probe(train, permuted, test, 4, SETTINGS, seed=0)
    assert 0.15 < np.mean(chance == theirs) < 0.35  # four standard deviations about a quarter


def test_probe_depends_on_its_seed_alone():
    (train, ours), (test, _) = planted(300, 0), planted(300, 1)
    a, b, c = (video.probe(train, ours, test, 4, SETTINGS, seed=s) for s in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_probe_stops_on_a_loss_that_is_not_finite():
    train, ours = planted(300, 0)
    train[3] = np.nan
    with pytest.raises(FloatingPointError, match='loss of the probe is nan'):
        video.probe(train, ours, train, 4, SETTINGS, seed=0)


def test_probe_works_under_a_mesh():
    (train, ours), (test, _) = planted(300, 0), planted(300, 1)
    alone = video.probe(train, ours, test, 4, SETTINGS, seed=0)
    with jax.set_mesh(make_mesh(fsdp=2)):
        meshed = video.probe(train, ours, test, 4, SETTINGS, seed=0)
    np.testing.assert_array_equal(alone, meshed)


def test_pixel_model_reads_brightness_but_not_the_order_of_frames():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 240)
    clips = rng.integers(0, 100, (240, 4, 32, 40, 3), dtype=np.uint8)
    clips[:, :, 8:16, 8:16] += (40 * labels[:, None, None, None, None]).astype(np.uint8)
    measured = video.probe_pixels(clips[:160], labels[:160], clips[160:])
    assert np.mean(measured == labels[160:]) > 0.95
    # motion of a blob, light or dark as often: no weighted sum of pixels can tell which way it went
    clips = np.full((240, 4, 16, 16, 3), 120, np.uint8)
    labels, sign = rng.integers(0, 2, 240), rng.choice([-100, 100], 240)
    for clip, label, s in zip(clips, labels, sign):
        for t in range(4):
            x = 2 + 3 * (t if label else 3 - t)
            clip[t, 6:10, x : x + 3] = 120 + s
    measured = video.probe_pixels(clips[:160], labels[:160], clips[160:])
    assert np.mean(measured == labels[160:]) < 0.5 + 4 * 0.5 / 80**0.5


@pytest.mark.parametrize('counts', [(1, 1), (1, 5), (2, 2), (4, 0)])
def test_pixels_of_few_clips_a_class(counts):
    """Fewer than folds, one, none of another: no reason to end a run that is trained."""
    labels = np.repeat([0, 1], counts)
    clips = np.full((len(labels), 2, 16, 16, 3), 60, np.uint8)
    clips += (90 * labels[:, None, None, None, None] + np.arange(2)[:, None, None, None]).astype(
        'u1'
    )
    clips[:, :, 0, 0] += np.arange(len(labels), dtype=np.uint8)[:, None, None]
    np.testing.assert_array_equal(video.probe_pixels(clips, labels, clips), labels)


def test_rotating_into_the_training_span_changes_no_prediction():
    rng = np.random.default_rng(1)
    train, test = (rng.integers(0, 255, (n, 2, 8, 8, 3), dtype=np.uint8) for n in (60, 50))
    labels = train[:, 0, 2, 2, 0] // 86
    measured = video.probe_pixels(train, labels, test)
    x, y = (v.reshape(len(v), -1).astype(float) for v in (train, test))
    mean, std = x.mean(0), x.std(0)
    x, y = (x - mean) / std, (y - mean) / std
    direct = [
        LogisticRegression(C=c, max_iter=2000).fit(x, labels).predict(y) for c in video.STRENGTHS
    ]
    assert max(np.mean(measured == d) for d in direct) >= 0.98


def test_small_frames_are_area_means():
    clip = np.random.default_rng(0).integers(0, 255, (2, 3, 64, 48, 3), dtype=np.uint8)
    frames = clip.astype(np.float32).reshape(6, 64, 48, 3)
    expected = [cv2.resize(f, (16, 16), interpolation=cv2.INTER_AREA) for f in frames]
    np.testing.assert_allclose(video._small(clip), np.reshape(expected, (2, -1)), atol=1e-3)


def test_interval_agrees_with_scipy_and_the_binomial():
    rng = np.random.default_rng(0)
    correct = rng.random((3, 400)) < 0.7
    ours = video.interval(correct, 4000)
    theirs = scipy.stats.bootstrap(
        (correct.mean(0),), np.mean, method='percentile', n_resamples=4000
    )
    assert ours['mean'] == correct.mean()
    np.testing.assert_allclose([ours['low'], ours['high']], theirs.confidence_interval, atol=4e-3)
    one = video.interval(correct[:1], 4000)
    binomial = scipy.stats.binomtest(int(correct[0].sum()), 400).proportion_ci(method='wilson')
    np.testing.assert_allclose([one['low'], one['high']], binomial, atol=6e-3)
    assert video.interval(np.ones((2, 50), bool), 100) == {'mean': 1.0, 'low': 1.0, 'high': 1.0}


def test_read_clips_takes_the_middle(tmp_path):
    ramp = np.repeat(np.arange(24, dtype=np.uint8)[:, None] * 10, 64 * 64 * 3, 1)
    paths = [tmp_path / f'{i}.mp4' for i in range(2)]
    for path in paths:
        synthetic.write(path, ramp.reshape(24, 64, 64, 3))
    clips = video.read_clips(paths, DataConfig(crop=32, frames=8, fps=4))
    assert clips.shape == (2, 8, 32, 32, 3) and clips.dtype == np.uint8
    shown = clips[0].mean((1, 2, 3)) / 10
    assert np.all(np.abs(np.diff(shown) - 16 / 7) < 1)  # every second frame, end included
    assert abs(shown.mean() - 11.5) < 1.5
    np.testing.assert_array_equal(clips[0], clips[1])
    (tmp_path / 'bad.mp4').write_bytes(b'')
    with pytest.raises(BadFile, match='bad.mp4'):
        video.read_clips([tmp_path / 'bad.mp4'], DataConfig(crop=32, frames=8))


def test_extract_fills_the_last_batch():
    seen = []

    def encode(clips):
        seen.append(len(clips))
        return jnp.asarray(clips, jnp.float32).mean((2, 3))  # [B, T, 3]

    clips = np.random.default_rng(0).integers(0, 255, (10, 2, 4, 4, 3), dtype=np.uint8)
    features = video.extract(encode, clips, 4)
    assert seen == [4, 4, 4] and features.dtype == np.float32
    np.testing.assert_allclose(features, clips.mean((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(video.extract(encode, clips[:1], 4), features[:1])


def test_shuffled_frames_are_the_same_frames():
    clips = np.arange(5 * 8, dtype=np.uint8).reshape(5, 8, 1, 1, 1) * np.ones(
        (1, 1, 2, 2, 3), np.uint8
    )
    shuffled = video.shuffle_frames(clips, 0)
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), clips)
    orders = (shuffled - clips[:, :1])[:, :, 0, 0, 0]
    assert len({tuple(row) for row in orders}) == 5
    np.testing.assert_array_equal(shuffled, video.shuffle_frames(clips, 0))


def motion_clips(n: int, seed: int) -> LabelledClips:
    """A light or dark dot that starts anywhere and moves right or left around a ring; the content
    is its size.
    """
    rng = np.random.default_rng(seed)
    clips = np.full((n, 6, 1, 12, 3), 120, np.uint8)
    direction, size = rng.integers(0, 2, n), rng.integers(1, 3, n)
    for clip, d, s in zip(clips, direction, size):
        x, value = rng.integers(0, 12), rng.choice([20, 220])
        for t in range(6):
            clip[t, 0, (x + (2 * d - 1) * t + np.arange(s)) % 12] = value
    return LabelledClips(clips, {'motion': np.array(['left', 'right'])[direction], 'size': size})


def test_measure_tells_motion_from_content():
    """An encoder that sees motion, one that sees nothing: the readings come out as they must."""

    def seeing(clips):
        x = (jnp.asarray(clips, jnp.float32)[:, :, 0, :, 0] - 120) / 100  # [B, T, W]
        now, then = x[:, :-1], x[:, 1:]
        way = [jnp.sum(jnp.roll(now, s, 2) * then, -1) for s in (1, -1)]
        return jnp.stack([*way, jnp.abs(now).sum(-1), jnp.ones(now.shape[:2])], -1)  # [B, T - 1, 4]

    blind = [lambda clips: jnp.zeros((len(clips), 5, 4))] * 2
    train, test = motion_clips(240, 0), motion_clips(200, 1)
    said = []
    result = video.measure(seeing, blind, train, test, SETTINGS, batch=64, say=said.append)
    assert set(result) == {'motion', 'size'} and len(said) == 5
    for rows in result.values():
        assert set(rows) == {'target', 'random', 'pixels', 'shuffled'}
        for row in rows.values():
            assert row['low'] <= row['mean'] <= row['high'] and len(row) == 3
        assert rows['target']['mean'] > 0.95 and abs(rows['random']['mean'] - 0.5) < 0.15
        assert video.ahead(rows)
    assert result['motion']['shuffled']['mean'] < 0.75 < result['size']['shuffled']['mean']
    assert 'not clearly different from shuffled frames' in video.verdict('size', result['size'])
    line = video.verdict('motion', result['motion'])
    assert line.startswith('motion: trained features') and line.count('ahead of') == 3


def test_verdict_in_words():
    def row(low, mean, high):
        return {'mean': mean, 'low': low, 'high': high}

    result = {
        'target': row(0.5, 0.55, 0.6),
        'random': row(0.6, 0.65, 0.7),
        'pixels': row(0.7, 0.8, 0.9),
    }
    assert not video.ahead(result)
    assert video.verdict('digit', result) == (
        'digit: trained features 0.550 (0.500 to 0.600), not clearly different from an untrained '
        'encoder 0.650 (0.600 to 0.700), behind pixels 0.800 (0.700 to 0.900)'
    )
    assert video.ahead({**result, 'target': row(0.91, 0.92, 0.93)})


def test_unknown_class_in_the_test():
    train, test = motion_clips(8, 0), motion_clips(8, 1)
    test.labels['size'][0] = 7
    with pytest.raises(ValueError, match=r"label 'size': no training clip has the classes \[7\]"):
        video.measure(lambda c: c, [], train, test, SETTINGS)
