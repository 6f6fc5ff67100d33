"""What reads one vector a clip: nearest neighbours, ridge, logistic regression.

Each chooses its one setting on parts of the training clips that share no source with the rest, then
learns from all of them. Scores come out for every class, so that all readers are judged alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

NEIGHBOURS = (1, 3, 5, 10, 20)
TEMPERATURE = 0.07  # of a neighbour's vote, which is exp(cosine / TEMPERATURE)
RIDGE = tuple(10.0**k for k in range(-3, 5))  # penalty, in units of the features' variance
STRENGTHS = tuple(10.0**k for k in range(-4, 2))  # inverse penalty of the logistic regression
FOLDS = 3
ONE_FOLD = 2000  # clips from which on one part of the training clips decides


@dataclasses.dataclass(frozen=True)
class Answers:
    """Of a reader, for the test clips."""

    scores: np.ndarray  # [m, C]: classes, labels or numbers
    setting: str  # what was chosen, and from what


def folds(sources: np.ndarray, classes: np.ndarray | None, seed: int) -> list[np.ndarray]:
    """Parts of the clips to choose a setting on, [n] bool each: no source lies on both sides, and
    classes are spread evenly as far as that goes.

    One part in three of a large set, all three of a small one; none where there are fewer than two
    sources.
    """
    count = min(FOLDS, len(np.unique(sources)))
    parts = apart(sources, classes, count, seed) if count > 1 else []
    return parts[:1] if len(sources) >= ONE_FOLD else parts


def apart(
    sources: np.ndarray, classes: np.ndarray | None, count: int, seed: int
) -> list[np.ndarray]:
    """`count` parts of the clips, [n] bool each, every source in one of them, classes spread where
    one has as many clips as there are parts."""
    import warnings

    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    groups = sources if len(np.unique(sources)) < len(sources) else None
    if classes is None or np.unique(classes, return_counts=True)[1].max() < count:
        groups = sources
        kind = GroupKFold(count, shuffle=True, random_state=seed)
    elif groups is None:  # by groups it would make a table of groups by classes: ImageNet, 10 GB
        kind = StratifiedKFold(count, shuffle=True, random_state=seed)
    else:
        kind = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # of a class with few clips, which the report says itself
        warnings.filterwarnings('ignore', 'The least populated class')
        splits = [rows for _, rows in kind.split(sources, classes, groups=groups)]
    numbers = np.arange(len(sources))
    return [np.isin(numbers, rows) for rows in splits]


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without the training clips' mean and in units of their deviation, float32."""
    mean, std = train.mean(0), train.std(0)
    std = np.where(std > 1e-6 * max(float(std.max(initial=0)), 1e-30), std, np.inf)
    return ((train - mean) / std).astype(np.float32), ((test - mean) / std).astype(np.float32)


def choose(
    fit: Callable[[np.ndarray, np.ndarray, Sequence[float]], list[np.ndarray]],
    settings: Sequence[float],
    parts: Sequence[np.ndarray],
    judge: Callable[[np.ndarray, np.ndarray], float],
) -> float:
    """The setting with the best mean over the parts; of equals the first, in the middle without
    parts.

    fit: rows to learn from, rows to answer for, settings -> scores [k, C] of each; judge: scores,
    rows -> the higher the better.
    """
    if not parts:
        return settings[len(settings) // 2]
    values = np.zeros(len(settings))
    for part in parts:
        answers = fit(np.flatnonzero(~part), np.flatnonzero(part), settings)
        values += [judge(scores, np.flatnonzero(part)) for scores in answers]
    return settings[int(values.argmax())]


def nearest(
    train: np.ndarray,
    targets: np.ndarray,
    test: np.ndarray,
    parts: Sequence[np.ndarray],
    judge: Callable[[np.ndarray, np.ndarray], float],
) -> Answers:
    """k nearest by cosine, each with a vote of exp(cosine / T).

    Args:
      train, test: [n, D], [m, D].
      targets: [n, C]: one-hot, several-hot, or numbers.
      parts: see `folds`.
      judge: scores [k, C], rows of the training clips -> the higher the better.
    """
    x, y = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12) for a in (train, test))

    def votes(rows: np.ndarray, asked: np.ndarray, settings: Sequence[float]) -> list[np.ndarray]:
        cosine = asked @ x[rows].T
        most = int(min(max(settings), len(rows)))
        near = np.argpartition(-cosine, most - 1, axis=1)[:, :most]
        near = np.take_along_axis(near, np.argsort(-np.take_along_axis(cosine, near, 1), 1), 1)
        weights = np.exp((np.take_along_axis(cosine, near, 1) - 1) / TEMPERATURE)
        answers = []
        for k in settings:
            k = min(int(k), most)
            share = weights[:, :k] / np.maximum(weights[:, :k].sum(1, keepdims=True), 1e-30)
            answers.append(np.einsum('mk,mkc->mc', share, targets[rows][near[:, :k]]))
        return answers

    k = choose(lambda rows, part, s: votes(rows, x[part], s), NEIGHBOURS, parts, judge)
    return Answers(votes(np.arange(len(x)), y, [k])[0], f'k {k} of {_words(NEIGHBOURS)}')


def ridge(
    train: np.ndarray,
    targets: np.ndarray,
    test: np.ndarray,
    parts: Sequence[np.ndarray],
    judge: Callable[[np.ndarray, np.ndarray], float],
) -> Answers:
    """Least squares with a penalty, in closed form; arguments as of `nearest`, standardised."""

    def solve(rows: np.ndarray, asked: np.ndarray, settings: Sequence[float]) -> list[np.ndarray]:
        x, y = train[rows].astype(np.float64), targets[rows].astype(np.float64)
        middle, mean = x.mean(0), y.mean(0)
        x, y, asked = x - middle, y - mean, asked.astype(np.float64) - middle
        wide = x.shape[1] > len(x)  # then the products of clips are fewer than those of features
        power, axes = np.linalg.eigh((x @ x.T if wide else x.T @ x) / len(x))
        scale = max(power.mean(), 1e-30)
        inside = axes.T @ (y if wide else x.T @ y) / len(x)
        outside = (asked @ x.T if wide else asked) @ axes
        return [
            outside @ (inside / (power.clip(0) + penalty * scale)[:, None]) + mean
            for penalty in settings
        ]

    penalty = choose(lambda rows, part, s: solve(rows, train[part], s), RIDGE, parts, judge)
    return Answers(
        solve(np.arange(len(train)), test, [penalty])[0], f'penalty {penalty:g} of {_words(RIDGE)}'
    )


def logistic(
    train: np.ndarray,
    targets: np.ndarray,
    test: np.ndarray,
    parts: Sequence[np.ndarray],
    judge: Callable[[np.ndarray, np.ndarray], float],
) -> Answers:
    """Logistic regression by scikit-learn: one for classes, one a label where clips have several.

    Arguments as of `nearest`, standardised; targets are 0 and 1.
    """
    several = bool((targets.sum(1) != 1).any())

    def solve(rows: np.ndarray, asked: np.ndarray, settings: Sequence[float]) -> list[np.ndarray]:
        basis, x = _span(train[rows])
        y = asked @ basis if basis is not None else asked
        if several:
            columns = [
                _fit(x, targets[rows, c].astype(int), y, settings) for c in range(targets.shape[1])
            ]
            return [np.stack([each[i][:, 1] for each in columns], 1) for i in range(len(settings))]
        return _fit(x, targets[rows].argmax(1), y, settings, targets.shape[1])

    strength = choose(lambda rows, part, s: solve(rows, train[part], s), STRENGTHS, parts, judge)
    return Answers(
        solve(np.arange(len(train)), test, [strength])[0],
        f'C {strength:g} of {_words(STRENGTHS)}',
    )


def _span(x: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """A basis of the clips' span where they are fewer than the features, and the clips in it: a
    penalised solution lies in that span, so this changes only the speed."""
    if len(x) >= x.shape[1]:
        return None, x
    power, axes = np.linalg.eigh((x @ x.T).astype(np.float64))
    kept = power > max(power[-1], 0) * 1e-9
    if not kept.any():
        return None, x
    length = np.sqrt(power[kept])
    return (x.T @ axes[:, kept] / length).astype(np.float32), axes[:, kept] * length


def _fit(x, classes, asked, settings, count: int = 2) -> list[np.ndarray]:
    """Probabilities [m, count] for each setting, each started from the one before."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    known = np.unique(classes)
    if len(known) == 1:
        answer = np.zeros((len(asked), count))
        answer[:, known[0]] = 1
        return [answer] * len(settings)
    model = LogisticRegression(warm_start=True, max_iter=200)
    answers = []
    for strength in settings:
        model.set_params(C=strength)
        with warnings.catch_warnings():  # a weak penalty need not be followed to its end
            warnings.simplefilter('ignore', ConvergenceWarning)
            model.fit(x, classes)
        answer = np.zeros((len(asked), count))
        answer[:, known] = model.predict_proba(asked)
        answers.append(answer)
    return answers


def _words(values: Sequence[float]) -> str:
    return ' '.join(f'{value:g}' for value in values)
