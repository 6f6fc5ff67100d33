"""The energy view: figures of energies that are known, and the one-dimensional demo."""

import numpy as np
import pytest
from PIL import Image

from tools.energy import demonstrate, distances, draw, figures, table_of_demo, titles


def known(flat: bool):
    """Clips are one bright pixel each; an energy is the distance of two pixels, or always the
    same."""
    videos = np.zeros((3, 1, 24, 24, 3), np.uint8)
    places = [(4, 4), (12, 12), (20, 6)]
    for video, (y, x) in zip(videos, places):
        video[0, y, x] = 255

    def f(ys, pairs):
        at = [np.argwhere(v[0, ..., 0])[0] for v in ys]
        apart = [[np.hypot(*(np.subtract(p, q))) for q in at] for p in places]
        matrix = np.full((3, 3), 0.5) if flat else np.array(apart)
        return matrix if pairs else np.diag(np.diag(matrix))

    return videos, f, places


def test_figures_of_a_landscape():
    videos, f, places = known(flat=False)
    one = figures(videos, f)
    apart = [np.hypot(*np.subtract(places[i], places[j])) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert one['own'] == 0 and one['other'] == pytest.approx(np.mean(apart))
    assert (one['gap'], one['first'], one['auc'], one['basin']) == (1, 1, 1, 1)
    landscape = np.array(one['landscape'])
    assert landscape.shape == (9, 9) and landscape.argmin() == 40 and landscape[4, 4] == 0
    assert landscape[4, 5] == pytest.approx(2)  # pixels, two a step


def test_a_flat_landscape():
    videos, f, _ = known(flat=True)
    one = figures(videos, f)
    assert (one['gap'], one['first'], one['auc'], one['basin']) == (0, 0, 0.5, 0)
    assert np.ptp(one['landscape']) == 0 and one['other'] == 0.5


def test_runs_of_one_name_are_told_apart():
    runs = ['a/seed0', 'b/seed0/', 'b/seed1']
    assert titles(runs) == ['a/seed0', 'b/seed0/', 'seed1']


def test_many_runs_have_room_in_a_picture_that_is_not_too_wide(tmp_path):
    one = {'other': 1.0, 'gap': 0.5, 'landscape': np.ones((9, 9)).tolist()}
    for count, least in ((1, 300), (9, 1900)):
        draw({f'run {i}': {'joint': one} for i in range(count)}, tmp_path / 'energy.png')
        with Image.open(tmp_path / 'energy.png') as drawn:
            assert least < drawn.width <= 2000


@pytest.mark.parametrize('squared', [False, True])
def test_energies_of_all_pairs(squared):
    rng = np.random.default_rng(0)
    said, expected = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 7, 5))
    ids = np.stack([rng.permutation(7)[:4] for _ in range(3)])
    error = said[:, None] - np.stack([[expected[j, ids[i]] for j in range(3)] for i in range(3)])
    matrix = (np.square(error) if squared else np.abs(error)).mean((2, 3))
    far = distances(squared)
    np.testing.assert_allclose(far(said, ids, expected, True), matrix, rtol=1e-5)
    np.testing.assert_allclose(
        np.diag(far(said, ids, expected, False)), matrix.diagonal(), rtol=1e-5
    )


def test_l1_with_fixed_targets_asks_for_codes_that_say_more():
    """The sampled gradient is the slope of the deviation that is left, by differences of its closed
    form; with targets of the encoder's own making it points to collapse."""
    rows = demonstrate(samples=100_000)
    for row in rows:
        ends = [
            np.sqrt(2 / np.pi * (1 - 0.81 * s**2 / (1 + s**2)))
            for s in (row.scale - 1e-4, row.scale + 1e-4)
        ]
        assert row.slope == pytest.approx((ends[1] - ends[0]) / 2e-4, rel=1e-4)
        assert row.stopped == pytest.approx(row.slope, abs=0.006)
        assert row.stopped < 0 < row.free
    deviations = [row.deviation for row in rows]
    assert deviations == sorted(deviations, reverse=True)
    assert table_of_demo(rows).count('\n') == len(rows) + 1
