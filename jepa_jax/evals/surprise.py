"""Surprise: how far a video is from what a predictor expects of it, window by window.

(reference: intuitive-physics, evals/intuitive_physics; Garrido et al. 2025, arXiv 2502.11831.) The
context encoder sees the first C frames of a window and nothing else, the target encoder all F; the
targets of the last M = F - C frames are standardised token by token, predictions are not; surprise
is the mean absolute difference over tokens and channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Tokens = Any  # [B, N, D], NumPy's or JAX's


@dataclasses.dataclass(frozen=True)
class Expects:
    """What a model says of clips [B, T, H, W, 3]: tokens are row-major over time and place."""

    context: Callable[[Any], Tokens]  # clips of C frames -> [B, K, D]
    target: Callable[[Any], Tokens]  # clips of F frames -> [B, N, D]
    # tokens [B, K, D], the grid (t, h, w) up to the last token that is asked for, number of the
    # mask token -> [B, t h w - K, D]
    predict: Callable[[Tokens, tuple[int, int, int], int], Tokens]
    tubelet: int
    patch: int


@dataclasses.dataclass(frozen=True)
class Rows:
    """Surprise of windows by contexts [B, contexts], or by tokens, of the model and of two
    baselines."""

    model: np.ndarray  # [B, mask tokens, contexts]
    copy: np.ndarray  # the features of the last context frames again, standardised
    pixels: np.ndarray  # the last context frame again, difference of pixels in 0..1


def standardise(x: Tokens, eps: float = 1e-5) -> np.ndarray:
    """LayerNorm without affine over the last axis, float32."""
    x = np.asarray(x, np.float32)
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)


def surprise(
    model: Expects,
    clips: np.ndarray,
    contexts: Sequence[int],
    *,
    mask_tokens: Sequence[int] = (0,),
    ahead: int = 0,
    normalise: bool = True,
) -> Rows:
    """Surprise of windows.

    Args:
      clips: [B, F, H, W, 3], windows.
      contexts: frames C that are seen, multiples of the tubelet below F.
      mask_tokens: that the predictor asks with.
      ahead: frames that are predicted; 0: all F - C.
      normalise: standardise targets; False for the original's option.
    """
    F = clips.shape[1]
    shape = (len(clips), len(contexts))
    rows = Rows(
        np.empty((len(clips), len(mask_tokens), len(contexts)), np.float32),
        np.empty(shape, np.float32),
        np.empty(shape, np.float32),
    )
    targets = np.asarray(model.target(clips), np.float32)
    if normalise:
        targets = standardise(targets)
    for i, C in enumerate(contexts):
        each = by_token(model, clips, targets, C, ahead or F - C, mask_tokens)
        for name in ('model', 'copy', 'pixels'):
            getattr(rows, name)[..., i] = getattr(each, name).mean(-1)
    return rows


def by_token(
    model: Expects,
    clips: np.ndarray,
    targets: np.ndarray,
    C: int,
    M: int,
    mask_tokens: Sequence[int] = (0,),
) -> Rows:
    """Surprise of each token of the M frames that follow the first C of windows: of the model
    [B, mask tokens, n], of the baselines [B, n], row-major over time and place.

    targets: [B, N, D], what is expected of the windows, as `surprise` has it.
    """
    B, _, H, W, _ = clips.shape
    tubelet, p, h, w = model.tubelet, model.patch, H // model.patch, W // model.patch
    place = h * w  # tokens of a time
    seen = model.context(clips[:, :C])
    K, end = C // tubelet * place, (C + M) // tubelet * place
    ahead = targets[:, K:end]
    ours = np.empty((B, len(mask_tokens), end - K), np.float32)
    for j, token in enumerate(mask_tokens):
        said = np.asarray(model.predict(seen, ((C + M) // tubelet, h, w), token), np.float32)
        ours[:, j] = abs(said - ahead).mean(-1)
    last = standardise(np.asarray(seen)[:, K - place : K])
    again = np.tile(last, (1, M // tubelet, 1))
    scale = np.float32(255 if clips.dtype == np.uint8 else 1)
    pixels = clips[:, C - 1 : C + M].astype(np.float32) / scale
    off = abs(pixels[:, 1:] - pixels[:, :1]).reshape(B, M // tubelet, tubelet, h, p, w, p, 3)
    return Rows(ours, abs(again - ahead).mean(-1), off.mean((2, 4, 6, 7)).reshape(B, -1))


def starts(count: int, frames: int, stride: int = 2) -> range:
    """Where windows of `frames` begin among `count` frames."""
    return range(0, count - frames + 1, stride)


def batches(
    videos: Iterable[np.ndarray], frames: int, stride: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows of videos [T, H, W, 3] in batches of one size, filled up with repeats: the numbers of
    their videos [n], n up to `size`, and clips [size, F, H, W, 3]."""
    numbers, clips = [], []
    for number, video in enumerate(videos):
        for first in starts(len(video), frames, stride):
            numbers.append(number)
            clips.append(video[first : first + frames])
            if len(clips) == size:
                yield np.array(numbers), np.stack(clips)
                numbers, clips = [], []
    if clips:
        yield np.array(numbers), np.stack(clips + clips[-1:] * (size - len(clips)))


# --- From series to figures ---------------------------------------------------------------------


def padded(values: Sequence[np.ndarray]) -> np.ndarray:
    """Series [..., n] of several lengths as one array with NaN after their ends."""
    longest = max(v.shape[-1] for v in values)
    return np.stack([
        np.concatenate([v, np.full((*v.shape[:-1], longest - v.shape[-1]), np.nan)], -1)
        for v in values
    ])  # fmt: skip


def with_filtered(losses: np.ndarray) -> np.ndarray:
    """Losses [videos, contexts, windows] with one more row of contexts, 'Filtered': the least of
    each window."""
    return np.concatenate([losses, losses.min(1, keepdims=True)], 1)


def outcome(possible: np.ndarray, impossible: np.ndarray) -> tuple[int, int]:
    """Pairs won, for the possible member surprises less, and ties, which the original counts as
    lost."""
    return int((possible < impossible).sum()), int((possible == impossible).sum())


@dataclasses.dataclass(frozen=True)
class PairScores:
    """Of one row of contexts; shares in 0..1. (reference: evaluations, `surprise_metrics`)"""

    pairs_mean: float  # pair accuracy by the mean over windows
    pairs_max: float  # by the greatest
    single: float  # accuracy of single videos at `threshold`, by the greatest
    threshold: float  # the value at rank ceil(.9 n), from 0, of possible videos
    single_best: float  # at the best of 100 thresholds, which only the answers tell
    threshold_best: float
    auprc_mean: float
    auprc_max: float
    auroc_mean: float
    auroc_max: float


def metrics(losses: np.ndarray, labels: np.ndarray) -> PairScores:
    """Figures of videos whose members of a pair follow each other.

    Args:
      losses: [2 n, windows], NaN after the end of a series.
      labels: [2 n] 1 for possible.
    """
    from sklearn.metrics import auc, precision_recall_curve, roc_auc_score

    labels = np.asarray(labels).astype(bool)
    mean, high = np.nanmean(losses, -1), np.nanmax(losses, -1)
    first, second = labels.reshape(-1, 2).T
    if (first == second).any():
        raise ValueError('labels: of each pair one must be possible')
    won = [outcome(score[labels], score[~labels])[0] / (len(labels) // 2) for score in (mean, high)]
    ordered = np.sort(high[labels])
    at = float(ordered[min(len(ordered) - 1, math.ceil(0.9 * len(ordered)))])

    def share(threshold: float) -> float:
        right = (high[labels] < threshold).sum() + (high[~labels] > threshold).sum()
        return float(right / len(high))

    best = max((share(t), -t) for t in np.linspace(high.min(), high.max(), 100))
    area = {}
    for name, score in (('mean', mean), ('max', high)):
        precision, recall, _ = precision_recall_curve(labels, -score)
        area[f'auprc_{name}'] = float(auc(recall, precision))
        area[f'auroc_{name}'] = float(roc_auc_score(labels, -score))
    return PairScores(*won, share(at), at, best[0], -best[1], **area)


def quadruplet(videos: Sequence[np.ndarray]) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Pairs of four videos of one scene, from their pixels: the one that agrees with the first
    longest is its partner; and the frames at which each of the others departs from the first [3].
    (reference: IntPhys; members of a pair differ from their event on)"""
    breaks = []
    for other in videos[1:]:
        n = min(len(videos[0]), len(other))
        differs = (videos[0][:n] != other[:n]).reshape(n, -1).any(1)
        breaks.append(int(np.argmax(differs)) if differs.any() else n)
    partner = 1 + int(np.argmax(breaks))
    rest = [i for i in (1, 2, 3) if i != partner]
    return [(0, partner), (rest[0], rest[1])], np.array(breaks)
