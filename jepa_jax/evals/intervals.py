"""95 % intervals of what evaluations measure."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Z = 1.959963984540054  # the normal distribution's .975 quantile


def wilson(wins: float, count: float) -> tuple[float, float]:
    """Of a share, by Wilson's score; of nothing at all (0, 1). Both may be effective numbers."""
    if not count:
        return 0.0, 1.0
    share, spread = wins / count, Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = (spread * (share * (1 - share) + spread / 4)) ** 0.5 / (1 + spread)
    # rounding may leave the share of all, or of none, a hair outside
    return float(max(0.0, min(share, middle - half))), float(min(1.0, max(share, middle + half)))


def bootstrap(
    sources: np.ndarray,
    measure: Callable[[np.ndarray], tuple[float, ...]],
    resamples: int,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Percentiles of figures over sources that are drawn anew with replacement; of one source
    alone, which every draw would give as it is, over its clips.

    Args:
      sources: [n], of each clip: those of one source are drawn together.
      measure: rows [k] of the clips, with repeats -> figures.
      resamples: how often.
    """
    _, where = np.unique(sources, return_inverse=True)
    if not where.any():
        where = np.arange(len(where))
    members = [np.flatnonzero(where == i) for i in range(where.max() + 1)]
    rng = np.random.default_rng(seed)
    values = np.asarray([
        measure(np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))]))
        for _ in range(resamples)
    ])  # fmt: skip
    ends = np.nanpercentile(values, [2.5, 97.5], axis=0).T
    return [(float(low), float(high)) for low, high in ends]


def mean_of_shares(
    wins: np.ndarray, counts: np.ndarray, resamples: int, seed: int = 0
) -> tuple[float, float, float]:
    """The unweighted mean over subsets of the share that is won, and percentiles of it over units
    drawn anew with replacement. A subset of which nothing is drawn does not count. One unit alone
    says nothing of others: its interval is all that is possible.

    Args:
      wins: [units, subsets], of each unit, such as a video.
      counts: [units, subsets], of how many.
      resamples: how often.

    Returns: value, low, high; NaN if nothing is counted at all.
    """

    def means(weights: np.ndarray) -> np.ndarray:
        won, of = weights @ wins, weights @ counts
        share = np.divide(won, of, out=np.zeros_like(won), where=of > 0)
        there = (of > 0).sum(1)
        total = share.sum(1)
        return np.divide(total, there, out=np.full_like(total, np.nan), where=there > 0)

    units = len(wins)
    wins, counts = wins.astype(float), counts.astype(float)
    if not counts.any():
        return math.nan, math.nan, math.nan
    value = float(means(np.ones((1, units)))[0])
    if counts.any(1).sum() == 1:
        return value, 0.0, 1.0
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, units, units) for _ in range(resamples))
    drawn = [means(np.bincount(each, minlength=units)[None].astype(float)) for each in draws]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return value, float(low), float(high)
