"""Intervals."""

import numpy as np
import pytest

from jepa_jax.evals.intervals import wilson


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


def test_nothing_measured_is_anything():
    assert wilson(0, 0) == (0.0, 1.0)
