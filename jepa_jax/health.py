"""Is it collapsing? Numbers that say how much the features still tell apart, and a plain verdict.

A falling loss proves nothing here: the target moves, and features that are the same everywhere are
predicted perfectly. What tells is how many directions the features use (effective rank), how alike
different tokens look (cosine), and whether the predictor beats a constant guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

SAMPLE = 1024  # tokens measured; enough for a rank of several hundred


def local_rows(a: jax.Array) -> np.ndarray:
    """This process's rows of an array sharded along its first axis."""
    shards = {s.index[0].start or 0: s for s in a.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def sample(a: jax.Array) -> np.ndarray:
    """At most SAMPLE tokens [n, D] of features [B, N, D], evenly spread over clips and
    positions."""
    rows = local_rows(a).reshape(-1, a.shape[-1])
    stride = max(1, len(rows) // SAMPLE)
    if stride > 1 and a.shape[1] % stride == 0:
        stride += 1  # else every clip would give the same positions
    return rows[::stride].astype(np.float64)


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values of x [n, D]: RankMe (Garrido et al.,
    2023)."""
    values = np.linalg.svd(x, compute_uv=False)
    p = values / values.sum() + 1e-12
    return float(np.exp(-(p * np.log(p)).sum()))


def mean_cosine(x: np.ndarray) -> float:
    """Mean cosine between two different rows of x [n, D]."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    n = len(unit)
    return float((np.square(unit.sum(0)).sum() - n) / (n * (n - 1)))


def spread(x: np.ndarray) -> dict[str, float]:
    """What a set of features x [n, D] tells apart.

    std: mean over dimensions of the deviation over tokens; std_share: the share of the features'
    mean square that varies over tokens (0: constant, 1: nothing is common); rank: effective rank,
    of at most min(n, D); cosine: mean pairwise; covariance: root mean square of the off-diagonal
    correlations.
    """
    std = x.std(0)
    z = (x - x.mean(0)) / np.maximum(std, 1e-12)
    correlation = z.T @ z / len(z)
    off = correlation[~np.eye(len(correlation), dtype=bool)]
    return {
        'std': float(std.mean()),
        'std_share': float(np.square(std).sum() / np.maximum(np.square(x).mean(0).sum(), 1e-12)),
        'rank': effective_rank(x),
        'cosine': mean_cosine(x),
        'covariance': float(np.sqrt(np.square(off).mean())),
    }


def measure(features: Mapping[str, jax.Array]) -> dict[str, float]:
    """Health metrics from what an objective's `health` returns (features of target and context,
    prediction and wanted).

    loss_share is the predictor's L1 error over that of the best constant guess, each dimension's
    median: 1 means nothing is predicted.
    """
    found = {}
    for name in ('target', 'context'):
        found |= {f'health/{name}_{key}': v for key, v in spread(sample(features[name])).items()}
    z, wanted = local_rows(features['prediction']), local_rows(features['wanted'])
    wanted = wanted.reshape(-1, wanted.shape[-1])
    constant = np.abs(wanted - np.median(wanted, axis=0)).mean()
    error = np.abs(z.reshape(wanted.shape) - wanted).mean()
    found['health/loss_share'] = float(error / max(constant, 1e-12))
    return found


def verdict(records: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """One word and one sentence on a run, from its metrics lines that carry health.

    Words: unknown, undertrained, healthy, partial collapse, collapsed.
    """
    lines = [r for r in records if 'health/target_rank' in r]
    if not lines:
        return 'unknown', 'health was not measured'
    last = lines[-1]
    rank, peak = last['health/target_rank'], max(r['health/target_rank'] for r in lines)
    share, varies = last['health/loss_share'], last['health/target_std_share']
    facts = (
        f'effective rank {rank:.1f} (at most {peak:.1f} in this run), {varies:.0%} of the features '
        f"vary over tokens, error {share:.2f} of a constant guess's"
    )
    if rank < 2 or varies < 0.02:
        return 'collapsed', f'features are nearly the same everywhere: {facts}'
    if rank < peak / 3:
        return 'partial collapse', f'the features have lost most directions they used: {facts}'
    if share > 0.9:
        return 'undertrained', f'the predictor hardly beats a constant guess: {facts}'
    return 'healthy', facts
