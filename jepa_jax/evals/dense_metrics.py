"""Figures of dense predictions: overlap of classes, errors of distances, overlap and outlines of
objects in a video. (reference: evaluations.md §3)"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from jepa_jax.data.labelled.dense import IGNORE

OUTLINE = 0.008  # of the diagonal: how far outlines may be apart (reference: DAVIS)


# --- Classes -------------------------------------------------------------------------------------


def overlap(said: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each class [3, C]: in both, in the prediction, in the truth, of maps [..., H, W];
    where the truth is IGNORE nothing counts."""
    there = true != IGNORE
    said, true = said[there].astype(np.int64), true[there].astype(np.int64)
    both = np.bincount(true[said == true], minlength=classes)
    return np.stack([both, *(np.bincount(x, minlength=classes) for x in (said, true))])


def of_overlap(counts: np.ndarray) -> tuple[float, float, float]:
    """Mean IoU, mean accuracy of classes, accuracy of pixels, of counts [n, 3, C] that are summed
    over pictures first; classes that are nowhere do not count."""
    both, said, true = counts.sum(0).astype(np.float64)
    with np.errstate(invalid='ignore', divide='ignore'):
        iou, accuracy = both / (said + true - both), both / true
    mean = [float(np.nanmean(x)) if np.isfinite(x).any() else float('nan') for x in (iou, accuracy)]
    return mean[0], mean[1], float(both.sum() / max(1.0, true.sum()))


def class_iou(counts: np.ndarray) -> np.ndarray:
    """[C] of counts [n, 3, C]; NaN for classes that are nowhere."""
    both, said, true = counts.sum(0).astype(np.float64)
    with np.errstate(invalid='ignore'):
        return both / (said + true - both)


# --- Distances -----------------------------------------------------------------------------------

DISTANCES = ('delta1', 'AbsRel', 'RMSE', 'SILog', 'log10')


def distances(said: np.ndarray, true: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The figures DISTANCES [5] over the valid pixels, all [H, W] in metres: share within a factor
    1.25, mean relative error, root mean square error (m), 100 x deviation of the logarithm, mean
    error of log10; NaN without a valid pixel."""
    if not valid.any():
        return np.full(len(DISTANCES), np.nan)
    said, true = said[valid].astype(np.float64), true[valid].astype(np.float64)
    log = np.log(said) - np.log(true)
    return np.array([
        (np.maximum(said / true, true / said) < 1.25).mean(),
        (np.abs(said - true) / true).mean(),
        np.sqrt(np.square(said - true).mean()),
        100 * log.std(),
        np.abs(log).mean() / np.log(10),
    ])  # fmt: skip


# --- Objects in a video --------------------------------------------------------------------------


def region(said: np.ndarray, true: np.ndarray, void: np.ndarray | None = None) -> float:
    """J: intersection over union of masks [H, W], 1 if both are empty; void pixels do not count."""
    keep = True if void is None else ~void
    union = ((said | true) & keep).sum()
    return float((said & true & keep).sum() / union) if union else 1.0


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask [H, W] that differ from the next one to the right, below, or both."""
    edge = np.zeros_like(mask)
    edge[:-1, :-1] = (
        (mask[:-1, :-1] ^ mask[:-1, 1:])
        | (mask[:-1, :-1] ^ mask[1:, :-1])
        | (mask[:-1, :-1] ^ mask[1:, 1:])
    )
    edge[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edge


def contour(
    said: np.ndarray,
    true: np.ndarray,
    void: np.ndarray | None = None,
    radius: int = 0,
) -> float:
    """F: how well outlines of masks [H, W] agree, the harmonic mean of the shares of either that
    lie within `radius` pixels of the other; 0: OUTLINE of the diagonal. Both empty: 1, one: 0."""
    if void is not None:
        said, true = said & ~void, true & ~void
    radius = radius or int(np.ceil(OUTLINE * np.linalg.norm(said.shape)))
    ours, theirs = outline(said), outline(true)
    if not (ours.any() and theirs.any()):
        return float(not ours.any() and not theirs.any())
    near = [ndimage.distance_transform_edt(~edge) <= radius for edge in (ours, theirs)]
    precision, recall = (ours & near[1]).sum() / ours.sum(), (theirs & near[0]).sum() / theirs.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def objects(said: np.ndarray, true: np.ndarray, count: int) -> np.ndarray:
    """J and F [2, count, T] of objects 1 to count in maps of object numbers [T, H, W]; IGNORE in
    the truth is void."""
    void = true == IGNORE
    values = np.empty((2, count, len(true)))
    for i in range(count):
        for t, masks in enumerate(zip(said == i + 1, true == i + 1, void)):
            values[:, i, t] = region(*masks), contour(*masks)
    return values


def over_time(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of a figure over frames [T], share of frames above .5, and the first quarter's mean less
    the last one's."""
    ends = np.rint(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[ends[0] : ends[1] + 1], values[ends[3] : ends[4] + 1]
    return float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean())
