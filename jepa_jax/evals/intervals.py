"""95 % intervals of what evaluations measure."""

from __future__ import annotations

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
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def bootstrap(
    sources: np.ndarray,
    measure: Callable[[np.ndarray], tuple[float, ...]],
    resamples: int,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Percentiles of figures over sources that are drawn anew with replacement.

    Args:
      sources: [n], of each clip: those of one source are drawn together.
      measure: rows [k] of the clips, with repeats -> figures.
      resamples: how often.
    """
    _, where = np.unique(sources, return_inverse=True)
    members = [np.flatnonzero(where == i) for i in range(where.max() + 1)]
    rng = np.random.default_rng(seed)
    values = np.asarray([
        measure(np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))]))
        for _ in range(resamples)
    ])  # fmt: skip
    ends = np.nanpercentile(values, [2.5, 97.5], axis=0).T
    return [(float(low), float(high)) for low, high in ends]
