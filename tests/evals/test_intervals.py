"""Intervals."""

import numpy as np
import pytest

from jepa_jax.evals.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    ('wins', 'count', 'low', 'high'),
    [
        (0, 10, 0.0, 0.2775),
        (8, 10, 0.4902, 0.9433),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_interval_is_wilsons(wins, count, low, high):
    """Textbook values, and the closed form."""
    result = wilson(wins, count)
    assert result == pytest.approx((low, high), abs=1e-4)
    p, z2 = wins / count, 1.959964**2
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (p * (1 - p) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    assert result == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_a_share_lies_in_its_interval():
    """To the last bit: of 10 of 10 rounding gave an upper end below 1."""
    for count in range(1, 60):
        for wins in range(count + 1):
            low, high = wilson(wins, count)
            assert 0 <= low <= wins / count <= high <= 1


def test_nothing_measured_is_anything():
    assert wilson(0, 0) == (0.0, 1.0)


def test_one_source_is_not_certain():
    """Every draw of it would be the same: its clips are drawn instead."""
    values = np.random.default_rng(0).normal(size=400)

    def interval(sources: np.ndarray) -> tuple[float, float]:
        ((low, high),) = bootstrap(sources, lambda rows: (values[rows].mean(),), 500)
        return low, high

    alone = interval(np.full(400, 'a'))
    assert alone == interval(np.arange(400))
    assert alone[1] - alone[0] == pytest.approx(2 * 1.96 / 20, rel=0.15)
