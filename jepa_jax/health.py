"""Is it collapsing? Numbers that say how much the features still tell apart, and a plain verdict.

A falling loss proves nothing here: the target moves, and features that are the same everywhere are
predicted perfectly. What tells is how many directions the features use (effective rank), how alike
different tokens look (cosine), whether they depend on the clip or only on the token's position, and
whether the predictor beats a baseline that has not seen the clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

SAMPLE = 1024  # tokens measured; enough for a rank of several hundred
POSITIONS = 64  # fewest positions of a clip looked at, if it has so many
RECENT = 3  # measures averaged where the clips and masks of a batch matter
# What healthy runs keep to, and below (or above) which the verdict is another; see `verdict`.
VARIES, CLIPS = 0.1, 0.1
PEAK = 4  # the most that a rank may be below the run's best, as a factor
SHARE, PLACE = 0.85, 0.9
CONSTANT, CONSTANT_RANK = 0.02, 2.0  # features that are nearly the same everywhere
TINY = 1e-12  # for quotients whose denominator a collapse makes 0
RANKME = 1e-7  # added to shares of singular values, as RankMe does


def positions(count: int, clips: int) -> np.ndarray:
    """Ids of the positions to look at among a clip's `count`, ascending, for SAMPLE tokens of
    `clips` clips.

    Drawn, but always the same: a regular pattern would see few columns of the token grid.
    """
    count_needed = max(POSITIONS, -(-SAMPLE // clips))
    return np.sort(np.random.default_rng(0).permutation(count)[:count_needed])


def local_rows(a: jax.Array) -> np.ndarray:
    """This process's rows of an array sharded along its first axis."""
    shards = {s.index[0].start or 0: s for s in a.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def sample(a: jax.Array) -> np.ndarray:
    """At most SAMPLE tokens [b, n, D] of features [B, N, D]: the same positions of b clips, spread
    over this process's."""
    rows = local_rows(a)
    rows = rows[:, positions(rows.shape[1], len(rows))[:SAMPLE]]
    clips = min(len(rows), max(1, SAMPLE // rows.shape[1]))
    return rows[np.arange(clips) * len(rows) // clips].astype(np.float64)


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values of x [n, D]: RankMe (Garrido et al.,
    2023). 1 if all rows are alike, or little more: its constant counts every direction a bit."""
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # far cheaper than the SVD of x
    squares = np.linalg.eigvalsh(gram)
    rounding = squares[-1] * len(squares) * np.finfo(squares.dtype).eps
    values = np.sqrt(np.where(squares > rounding, squares, 0))
    p = values / max(values.sum(), TINY) + RANKME
    return float(np.exp(-(p * np.log(p)).sum()))


def mean_cosine(x: np.ndarray) -> float:
    """Mean cosine between two different rows of x [n, D]."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), TINY)
    n = len(unit)
    return float((np.square(unit.sum(0)).sum() - n) / (n * (n - 1)))


def clip_share(x: np.ndarray) -> float:
    """Share of the variance of x [b, n, D] that is left without each position's mean over clips.

    0: features tell where a token is and nothing of the clip. Means of b clips hold 1/b of the
    clips' own variance, which is given back, so few clips give the same share as many.
    """
    clips = x.var(0, ddof=1).sum(-1).mean()
    places = max(0.0, x.mean(0).var(0).sum() - clips / len(x))
    return float(clips / max(clips + places, TINY))


def spread(x: np.ndarray) -> dict[str, float]:
    """What a set of features x [n, D] tells apart.

    std, std_min: mean and least over dimensions of the deviation over tokens; std_share: the share
    of the features' mean square that varies over tokens (0: constant, 1: nothing is common); rank:
    effective rank, of at most min(n, D); cosine: mean pairwise; covariance: root mean square of the
    off-diagonal correlations, 0 for dimensions that do not vary.
    """
    std, square = x.std(0), np.square(x).mean(0).sum()
    varies = std > 1e-6 * np.sqrt(square / len(std))  # what float32 tells from rounding
    z = np.where(varies, x - x.mean(0), 0) / np.where(varies, std, 1)
    correlation = z.T @ z / len(z)
    off = np.square(correlation).sum() - np.square(correlation.diagonal()).sum()
    return {
        'std': float(std.mean()),
        'std_min': float(std.min()),
        'std_share': float(np.square(std).sum() / max(square, TINY)),
        'rank': effective_rank(x),
        'cosine': mean_cosine(x),
        'covariance': float(np.sqrt(max(0.0, off) / max(1, correlation.size - len(correlation)))),
    }


def measure(features: Mapping[str, jax.Array]) -> dict[str, float]:
    """Health metrics from what an objective's `health` returns: features [B, n, D] of target (the
    same positions in every clip) and context, prediction, expected, and for two clips or more
    `baseline`, the mean of the other clips' features at the expected positions.

    loss_share is the predictor's L1 error over that of the best constant, each dimension's median:
    1 means nothing is predicted. loss_share_position is the same over the error of `baseline`: 1
    means that all it knows is the position.

    Raises:
      ValueError: features that are not finite.
    """
    metrics, tokens = {}, {name: sample(a) for name, a in features.items()}
    for name, x in tokens.items():
        if not np.isfinite(x).all():
            raise ValueError(f'health: features of {name} are not finite')
    for name in ('target', 'context'):
        x = tokens[name].reshape(-1, tokens[name].shape[-1])
        metrics |= {f'health/{name}_{key}': value for key, value in spread(x).items()}
    expected = tokens['expected']
    error = np.abs(tokens['prediction'] - expected).mean()
    constant = np.abs(expected - np.median(expected, axis=(0, 1))).mean()
    metrics['health/loss_share'] = float(error / max(constant, TINY))
    if len(tokens['target']) > 1:
        metrics['health/target_clip_share'] = clip_share(tokens['target'])
    if 'baseline' in tokens:
        baseline = np.abs(tokens['baseline'] - expected).mean()
        metrics['health/loss_share_position'] = float(error / max(baseline, TINY))
    return metrics


def verdict(records: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """One word and one sentence on a run, from its metrics lines that carry health.

    Words: unknown, undertrained, healthy, partial collapse, collapsed; of those that hold, the
    worst. A rank is compared with the run's own best, since what is possible depends on the data;
    in healthy runs it dips to half and may rise again, while the loss falls, then rises.

    The thresholds lie between what runs of width 48 show that were trained into each state (batch
    32, squares that move); tests/test_health.py holds them against others. The loss alone would
    order them wrongly:

    | run                     | loss | rank | of peak | varies | context rank | loss share |
    |-------------------------|------|------|---------|--------|--------------|------------|
    | 1 step                  |  .81 | 25.4 |    1.00 |    .96 |         23.6 |       1.03 |
    | 24 steps                |  .71 | 24.3 |     .96 |    .96 |         16.6 |        .92 |
    | 240 steps               |  .37 | 12.1 |     .48 |    .95 |         11.2 |        .42 |
    | weight decay 20         |  .42 |  3.8 |     .15 |    .97 |          3.7 |        .61 |
    | weight decay 300, m .98 |  .19 |  6.9 |     .27 |    .03 |          1.0 |       1.40 |
    | weight decay 300, m .95 |  .14 |  1.0 |     .04 |    .00 |          1.0 |        182 |
    | configs/tiny.py, 900    |  .41 | 22.0 |     .54 |    .46 |         21.0 |        .82 |
    | configs/tiny.py, 2,900  |  .43 | 30.4 |     .75 |    .53 |         31.2 |        .78 |

    In the last one (width 96, self-made videos) loss shares of two measures differ by up to .15,
    and .78 to .89 of the variance is between clips. That features follow the position only was not
    met in a run; the bounds on it are as those on `varies`.
    """
    lines = [r for r in records if 'health/target_rank' in r]
    if not lines:
        return 'unknown', 'health was not measured'
    last = lines[-1]
    rank, peak = last['health/target_rank'], max(r['health/target_rank'] for r in lines)
    varies, clips = last['health/target_std_share'], last.get('health/target_clip_share', 1.0)
    share, place = (
        float(np.mean([r.get(f'health/{key}', 0.0) for r in lines[-RECENT:]]))
        for key in ('loss_share', 'loss_share_position')
    )
    # the encoder collapses first, its moving average follows
    constant = any(
        last[f'health/{of}_rank'] < CONSTANT_RANK or last[f'health/{of}_std_share'] < CONSTANT
        for of in ('target', 'context')
    )
    facts = (
        f'effective rank {rank:.1f} (at most {peak:.1f} in this run; context '
        f'{last["health/context_rank"]:.1f}), {varies:.0%} of the features vary over tokens, '
        f"{clips:.0%} of that with the clip, error {share:.2f} of a constant's"
    )
    for holds, word, reason in (
        (constant, 'collapsed', 'features are nearly the same everywhere'),
        (clips < CONSTANT, 'collapsed', 'features tell where a token is and nothing of the clip'),
        (rank < peak / PEAK, 'partial collapse', 'the features have lost most directions'),
        (varies < VARIES, 'partial collapse', 'the features of all tokens are much alike'),
        (clips < CLIPS, 'partial collapse', 'features tell little but where a token is'),
        (share > SHARE, 'undertrained', 'the predictor hardly beats a constant'),
        (place > PLACE, 'undertrained', 'the predictor knows little but where a token is'),
    ):
        if holds:
            return word, f'{reason}: {facts}'
    return 'healthy', facts


def bands(records: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Field -> the least and the most that `verdict` calls healthy, for these rows of a run."""
    peak = max((r['health/target_rank'] for r in records if 'health/target_rank' in r), default=0)
    return {
        'health/target_rank': (max(CONSTANT_RANK, peak / PEAK), np.inf),
        'health/context_rank': (CONSTANT_RANK, np.inf),
        'health/target_std_share': (VARIES, 1.0),
        'health/context_std_share': (CONSTANT, 1.0),
        'health/target_clip_share': (CLIPS, 1.0),
        'health/loss_share': (0.0, SHARE),
        'health/loss_share_position': (0.0, PLACE),
    }
