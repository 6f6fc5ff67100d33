"""Labels carried through videos: golden rows, brute force, and nothing of the future."""

import dataclasses

import jax
import numpy as np
import pytest

from jepa_jax.config.dense import PropagationConfig
from jepa_jax.data.labelled.dense import IGNORE, Sample
from jepa_jax.errors import ConfigError
from jepa_jax.evals import dense, propagation
from jepa_jax.evals.propagation import FrameEncoder, Setting
from jepa_jax.model import Loaded, Model
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights.parts import net

SMALL = PropagationConfig(top=2, context=2, batch=3, bootstrap=20)
SMALL.data.short = 0


def wave(shape, phase: float) -> np.ndarray:
    i = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(0.37 * i + 0.011 * (i % 1009) + phase).reshape(shape)


def unit(x) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize('square', [False, True])
def test_carry(golden_tasks, square):
    context, query = unit(wave((3, 6, 8, 5), 0.4)), unit(wave((6, 8, 5), 1.9))
    labels = np.eye(3, dtype=np.float32)[golden_tasks['prop_labels']]
    soft = propagation.carry(
        context, labels, np.ones(3, bool), query, radius=2, top=4, temperature=0.2, square=square
    )
    name = 'prop_square' if square else 'prop_circle'
    np.testing.assert_allclose(soft, golden_tasks[name], atol=1e-6)
    y, x = np.mgrid[:6, :8].reshape(2, -1)
    near = propagation.neighbours(y[:, None] - y, x[:, None] - x, 2, square)
    np.testing.assert_array_equal(near.sum(1).reshape(6, 8), golden_tasks[f'{name}_count'])
    if not square:
        post = propagation.stretched(np.asarray(soft))
        np.testing.assert_allclose(np.moveaxis(post, -1, 0), golden_tasks['prop_post'], atol=2e-6)


def test_ties_all_vote_and_what_is_not_there_does_not():
    context = np.zeros((2, 1, 3, 2), np.float32)
    context[0, 0], context[1, 0] = [[1, 0], [1, 0], [0, 1]], [[1, 0]] * 3
    labels = np.zeros((2, 1, 3, 2), np.float32)
    labels[0, 0], labels[1, 0] = [[1, 0], [0, 1], [0, 1]], [[0, 1]] * 3
    query = np.broadcast_to(np.float32([1, 0]), (1, 3, 2))
    soft = propagation.carry(
        context, labels, np.array([True, False]), query, radius=9, top=1, temperature=0.1
    )
    np.testing.assert_allclose(soft[0], [[0.5, 0.5]] * 3, atol=1e-6)


def by_hand(features, first, radius, top, temperature, context):
    """Frame by frame, token by token, with lists."""
    T, h, w, _ = features.shape
    soft = [first]
    for t in range(1, T):
        past = [0, *range(max(1, t - context), t)]
        out = np.zeros_like(first)
        for i in range(h):
            for j in range(w):
                rows = [
                    (features[s, a, b] @ features[t, i, j], soft[s][a, b])
                    for s in past
                    for a in range(h)
                    for b in range(w)
                    if (a - i) ** 2 + (b - j) ** 2 <= radius**2
                ]
                least = sorted((r[0] for r in rows), reverse=True)[:top][-1]
                votes = [(np.exp(c / temperature), own) for c, own in rows if c >= least]
                out[i, j] = sum(v * own for v, own in votes) / sum(v for v, _ in votes)
        soft.append(out)
    return np.stack(soft)


@pytest.mark.parametrize('context', [0, 2])
def test_queue(context):
    """The first frame stays, the oldest of the others makes room."""
    rng = np.random.default_rng(0)
    features = unit(rng.standard_normal((6, 3, 4, 5)))
    first = np.eye(3, dtype=np.float32)[rng.integers(0, 3, (3, 4))]
    soft = propagation.carried(features, first, 2, 0.3, context=context, top=3)
    np.testing.assert_allclose(soft, by_hand(features, first, 2, 3, 0.3, context), atol=1e-5)


def test_clips_end_with_the_frame():
    frames = np.arange(6)
    assert propagation.clips_of(frames, [0, 3], 1, 2).tolist() == [[0, 0], [3, 3]]
    assert propagation.clips_of(frames, [0, 1, 5], 3, 2).tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [3, 3, 4, 5],
    ]


@pytest.fixture(scope='module')
def encoder() -> FrameEncoder:
    config = ViTConfig(24, 1, 2, patch=8, image_size=16, dtype=np.dtype('float32'), remat='none')
    params = jax.jit(net('encoder', config).init)(jax.random.key(0))
    return FrameEncoder(dense.clip_encoder(Model(Loaded(config, params))), 2, 8)


def moving(T: int = 6, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A square that goes right, and its mask."""
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 60, (T, side, side, 3)).astype(np.uint8)
    labels = np.zeros((T, side, side), np.uint8)
    for t in range(T):
        part = slice(8, 24), slice(2 * t, 2 * t + 16)
        frames[t][part], labels[t][part] = 220, 1
    return frames, labels


@pytest.mark.parametrize('past', [1, 3])
def test_later_frames_change_nothing(encoder, past):
    """Whatever is shown after t leaves the labels up to t as they are, to the bit."""
    frames, labels = moving()
    setting, t = Setting(past, 2, 0.1), 3
    before = propagation.follow(encoder, frames, labels[0], setting, SMALL)
    other = frames.copy()
    other[t + 1 :] = 255 - other[t + 1 :]
    after = propagation.follow(encoder, other, labels[0], setting, SMALL)
    np.testing.assert_array_equal(before[: t + 1], after[: t + 1])
    first, second = (
        propagation.features_of(encoder, x, past, SMALL)[: t + 2] for x in (frames, other)
    )
    np.testing.assert_array_equal(first[: t + 1], second[: t + 1])
    assert (first[t + 1] != second[t + 1]).any()
    if past > 1:  # and the past is seen: without it frame t is another
        alone = propagation.features_of(encoder, frames[t:], past, SMALL)
        assert np.abs(alone[0] - first[t]).max() > 1e-3


def test_an_object_is_followed_by_its_pixels():
    frames, labels = moving()
    pixels = FrameEncoder(lambda x: dense.pixel_tokens(x, 4), 1, 4)
    config = dataclasses.replace(SMALL, radii=(1, 3, 3), temperatures=(0.1,) * 3, past=(1, 4))
    said = propagation.follow(pixels, frames, labels[0], Setting(1, 3, 0.1), config)
    values = propagation.judge(said, labels)
    assert values.shape == (2, 1, 4)  # without the first and last frame
    still = propagation.judge(np.broadcast_to(labels[0], labels.shape), labels)
    assert values[0].mean() > 0.7 > still[0].mean()
    train = [Sample(str(i), str(i), moving) for i in range(2)]
    best, how = propagation.choose(pixels, train, config)
    assert (best.past, how) == (1, 'each the best of 2 by J on 2 training videos')
    # 'past' means nothing to what sees single frames, so there are two settings, not four
    one = dataclasses.replace(config, radii=(3,) * 3, past=(1, 1))
    assert propagation.choose(pixels, train, one)[1] == 'as published, not chosen'


def test_void_is_nobodys():
    frames, labels = moving()
    labels = labels.copy()
    labels[0, :8] = IGNORE
    labels[2:4, 8:16] = IGNORE
    pixels = FrameEncoder(lambda x: dense.pixel_tokens(x, 4), 1, 4)
    said = propagation.follow(pixels, frames, labels[0], Setting(1, 3, 0.1), SMALL)
    assert set(np.unique(said)) == {0, 1}
    assert propagation.judge(said, labels).shape == (2, 1, 4)


def test_size_is_rounded_up_to_whole_patches():
    assert propagation.seen_size(480, 854, 480, 16) == (480, 864)
    assert propagation.seen_size(1080, 1920, 480, 14) == (490, 854)
    assert propagation.seen_size(50, 80, 0, 8) == (56, 80)


def test_refusals():
    frames, labels = moving()
    config = PropagationConfig()
    config.data.set = 'davis16'
    with pytest.raises(ConfigError, match='data.set = .davis16.: allowed are self_made, self_made'):
        dense.load('propagation', config, 0)
