"""Surprise against golden rows of the original and against brute force."""

import dataclasses
import pathlib

import numpy as np
import pytest
from whole_series import series

from jepa_jax.evals import surprise
from jepa_jax.evals.surprise import Expects

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/evaluations_physics.npz'


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN))


def wave(shape, phase):
    i = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(0.37 * i + 0.011 * (i % 1009) + phase).reshape(shape)


def last(x):  # [C, T, H, W] -> [T, H, W, C]
    return x.transpose(1, 2, 3, 0).astype(np.float32)


def cubes(x):
    """Means of cubes of 2 x 8 x 8 as tokens."""
    B, T, H, W, C = np.shape(x)
    x = np.asarray(x).reshape(B, T // 2, 2, H // 8, 8, W // 8, 8, C)
    return x.mean((2, 4, 6)).reshape(B, -1, C)


def repeat(seen, grid, token):
    """The last tubelet of the context times 1.5, again and again."""
    place = grid[1] * grid[2]
    return np.tile(1.5 * seen[:, -place:], (1, grid[0] - seen.shape[1] // place, 1))


TOY = Expects(cubes, cubes, repeat, tubelet=2, patch=8)


@pytest.fixture(scope='module')
def four():
    base = wave((3, 22, 16, 16), 0.2)
    videos = [base.copy() for _ in range(4)]
    for i in (1, 3):
        videos[i][:, 9:] += 0.5 * wave((3, 13, 16, 16), 1)
    videos[2][:, 15:] += 0.7 * wave((3, 7, 16, 16), 2)
    videos[3][:, 15:] += 0.7 * wave((3, 7, 16, 16), 3)
    return [last(video) for video in videos]


def test_pairs_of_a_quadruplet_are_told_by_pixels(golden, four):
    pairs, breaks = surprise.quadruplet(four)
    np.testing.assert_array_equal(breaks, golden['quad_breaks'])
    np.testing.assert_array_equal(pairs, golden['quad_pairs'])


@pytest.mark.parametrize(
    ('row', 'normalise'), [('windows_ip1', True), ('windows_ip1_rawtargets', False)]
)
def test_windows_are_the_originals(golden, four, row, normalise):
    for expected, i in zip(golden[row], (0, 2, 1, 3)):
        result = series(TOY, four[i], 8, (2, 4, 6), normalise=normalise)
        np.testing.assert_allclose(np.stack(result), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ('row', 'options'),
    [
        ('plain', {}),
        ('max_ctx', {'warm_up': True}),
        ('short', {'warm_up': True, 'ahead': 2}),
    ],
)
def test_windows_with_a_warm_up_are_the_originals(golden, row, options):
    """The original fills shorter series up with zeros; ours end."""
    videos = [wave((3, 22, 16, 16), 0.2), wave((3, 20, 16, 16), 1.2)]
    for video, expected in zip(videos, golden[f'windows_ip2_{row}']):
        for ours, theirs in zip(series(TOY, last(video), 8, (4, 6), **options), expected):
            np.testing.assert_allclose(ours, theirs[: len(ours)], rtol=0, atol=1e-6)
            assert not theirs[len(ours) :].any()


def test_metrics_are_the_originals(golden):
    losses = surprise.with_filtered(golden['surprise_losses'])
    labels = np.arange(28) % 2 == 0
    for row, expected in enumerate(golden['surprise_metrics']):
        result = np.array(dataclasses.astuple(surprise.metrics(losses[:, row], labels)))
        result[[0, 1, 2, 4]] *= 100  # shares; the original has percent
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)


def test_labels_of_a_pair_differ():
    with pytest.raises(ValueError, match='of each pair one'):
        surprise.metrics(np.ones((4, 2)), np.array([1, 1, 0, 0]))


def test_ties_are_counted_apart_and_lost():
    assert surprise.outcome(np.array([1.0, 2, 3]), np.array([2.0, 2, 2])) == (1, 1)


def test_shorter_series_are_masked_not_filled_with_zeros():
    rows = surprise.padded([np.array([1.0, 3.0]), np.array([2.0])])
    assert np.nanmean(rows, 1).tolist() == [2.0, 2.0]


def test_surprise_by_hand():
    """One token a frame pair of two channels, pixels 0..255: every number worked out on paper."""
    clip = np.zeros((1, 4, 1, 1, 3), np.uint8)
    clip[0, 2:] = 51

    def tokens(x):
        return np.asarray(x, np.float32)[:, ::2, 0, 0, :2] * [1.0, 3.0]

    def ones(seen, grid, token):
        return np.full((1, grid[0] - seen.shape[1], 2), token, np.float32)

    model = Expects(tokens, tokens, ones, tubelet=2, patch=1)
    rows = surprise.surprise(model, clip, [2], mask_tokens=(0, 2))
    # the target [51, 153] standardised is [-1, 1]: off by 1 and 1 from 0, by 3 and 1 from 2
    np.testing.assert_allclose(rows.model[0, :, 0], [1.0, 2.0], atol=1e-5)
    np.testing.assert_allclose(rows.copy, [[1.0]], atol=1e-5)  # nothing in [0, 0] to copy
    np.testing.assert_allclose(rows.pixels, [[0.2]], atol=1e-6)


def test_the_context_does_not_see_what_follows():
    clip = np.random.default_rng(0).integers(0, 255, (1, 8, 8, 8, 3), np.uint8)
    seen = []

    def context(x):
        seen.append(np.array(x))
        return cubes(x)

    surprise.surprise(dataclasses.replace(TOY, context=context), clip, [2, 6])
    assert [x.shape[1] for x in seen] == [2, 6]
    assert all((x == clip[:, : x.shape[1]]).all() for x in seen)


def test_batches_hold_every_window_once():
    videos = [np.full((n, 1, 1, 3), i, np.uint8) for i, n in enumerate((8, 4, 3, 7))]
    numbers = [list(n) for n, _ in surprise.batches(videos, 4, 2, 3)]
    assert sum(numbers, []) == [0, 0, 0, 1, 3, 3]  # the third is too short for one
    for n, clips in surprise.batches(videos, 4, 2, 4):
        assert clips.shape == (4, 4, 1, 1, 3)
        assert (clips[: len(n), 0, 0, 0, 0] == n).all()
