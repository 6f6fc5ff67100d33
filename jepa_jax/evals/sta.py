"""Short-term anticipation of object interactions as Ego4D scores it: mean average precision over
nouns, top 5. (reference: evaluations.md §3)

A prediction is right if a box that is still free overlaps it by more than a half, nouns are equal,
and, by score, verbs are equal and the time to contact is right to a quarter of a second. In every
frame the first 4 false predictions for each object are forgiven: more may be touched next than is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jepa_jax.data.labelled.ego4d_sta import Frame, Objects
from jepa_jax.evals.intervals import bootstrap

# score -> whether verbs, and the time to contact, must be right
SCORES = {
    'noun': (False, False),
    'noun + verb': (True, False),
    'noun + time': (False, True),
    'all': (True, True),
}
OVERLAP = 0.5  # above which a box is the same
SECONDS = 0.25  # to which a time is right
TOP = 5


@dataclasses.dataclass(frozen=True)
class Figure:
    """A mean average precision, percent, with its interval over videos."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class _Judged:
    """Of one frame: predictions that count, and objects by noun."""

    right: np.ndarray  # [p] bool
    scores: np.ndarray  # [p]
    nouns: np.ndarray  # [p]
    objects: np.ndarray  # [N] how many of each noun


def mean_average_precision(
    frames: Sequence[Frame],
    said: Mapping[str, Objects],
    nouns: int,
    *,
    top: int = TOP,
    unanswered: bool = True,
    resamples: int = 0,
) -> dict[str, Figure]:
    """Each of SCORES.

    Args:
      frames: with their objects.
      said: uid -> predictions.
      nouns: number of categories.
      top: predictions for an object of which all but one are forgiven; 1: none is.
      unanswered: objects of frames without a prediction count as missed; the original's program
        forgets them.
      resamples: of videos, behind each interval; 0: none is made.

    Raises:
      ValueError: a frame whose objects are not told.
    """
    if hidden := [frame.uid for frame in frames if frame.objects is None]:
        raise ValueError(f'{hidden[0]}: its objects are not told')
    asked = [f for f in frames if unanswered or (f.uid in said and len(said[f.uid].nouns))]
    sources = np.asarray([frame.video for frame in asked])
    figures = {}
    for name, (verb, time) in SCORES.items():
        judged = [_judge(f.objects, said.get(f.uid), verb, time, nouns, top) for f in asked]

        def measure(rows: np.ndarray, judged: list[_Judged] = judged) -> tuple[float]:
            return (_mean(judged, rows),)

        value = measure(np.arange(len(asked)))[0]
        low = high = value
        if resamples and len(asked):
            ((low, high),) = bootstrap(sources, measure, resamples)
        figures[name] = Figure(value, low, high)
    return figures


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [n, 4] and [m, 4] -> [n, m]; both ends are in a box."""

    def area(x: np.ndarray) -> np.ndarray:
        return (x[..., 2] - x[..., 0] + 1).clip(0) * (x[..., 3] - x[..., 1] + 1).clip(0)

    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = area(np.concatenate([low, high], -1))
    return both / (area(a)[:, None] + area(b)[None] - both)


def _judge(
    truth: Objects, said: Objects | None, verb: bool, time: bool, nouns: int, top: int
) -> _Judged:
    """The best first, each takes the free object that fits and overlaps most."""
    objects = np.bincount(truth.nouns, minlength=nouns)
    if said is None:
        empty = np.zeros(0)
        return _Judged(empty.astype(bool), empty, empty.astype(int), objects)
    order = np.argsort(-said.scores, kind='stable')
    over = overlaps(said.boxes[order], truth.boxes)
    fits = (over > OVERLAP) & (said.nouns[order, None] == truth.nouns)
    if verb:
        fits &= said.verbs[order, None] == truth.verbs
    if time:
        fits &= np.abs(said.seconds[order, None] - truth.seconds) <= SECONDS
    free, right = np.ones(len(truth.nouns), bool), np.zeros(len(order), bool)
    for row in range(len(order)):
        if (possible := fits[row] & free).any():
            free[np.where(possible, over[row], -1).argmax()] = False
            right[row] = True
    counts = np.ones(len(order), bool)
    counts[np.flatnonzero(~right)[: (top - 1) * len(truth.nouns)]] = False
    return _Judged(right[counts], said.scores[order][counts], said.nouns[order][counts], objects)


def _mean(judged: Sequence[_Judged], rows: np.ndarray) -> float:
    """Over nouns that occur of the area below precision against recall, percent."""
    if not len(rows):
        return float('nan')
    right, scores, nouns = (
        np.concatenate([getattr(judged[i], name) for i in rows])
        for name in ('right', 'scores', 'nouns')
    )
    counts = np.sum([judged[i].objects for i in rows], 0)
    parts = []
    for noun in np.flatnonzero(counts):
        mine = nouns == noun
        hits = right[mine][np.argsort(-scores[mine], kind='stable')].cumsum()
        recall = np.concatenate([[0], hits / counts[noun]])
        precision = np.concatenate([hits / np.arange(1, len(hits) + 1), [0]])
        # each recall counts with the best precision from there on
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        parts.append(np.sum(np.diff(recall) * precision[:-1]))
    return 100 * float(np.mean(parts)) if parts else float('nan')
