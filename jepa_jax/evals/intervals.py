"""95 % intervals of what evaluations measure."""

from __future__ import annotations

from scipy import stats


def wilson(wins: int, count: int) -> tuple[float, float]:
    """Of a share, by Wilson's score; of nothing at all (0, 1)."""
    if not count:
        return 0.0, 1.0
    interval = stats.binomtest(int(wins), int(count)).proportion_ci(method='wilson')
    return float(interval.low), float(interval.high)
