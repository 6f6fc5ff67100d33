"""What frozen features tell of labelled clips, beside what chance, pixels and shuffled frames tell.

An attentive probe reads the features of a frozen encoder (reference: vjepa2 §9). Its accuracy means
little alone, so each label is asked four times: features of the trained target encoder; features of
encoders that were never trained, one a seed; a linear model on the pixels of all frames; and the
target's features of clips whose frames were shuffled, for training and testing alike: a label that
needs motion suffers there, one that needs content does not. Intervals are bootstrap percentiles
over the test clips, which are far fewer than anything else that varies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.config import DataConfig, ProbeConfig
from jepa_jax.data import clips, decode
from jepa_jax.data.views import area_means, eval_view
from jepa_jax.evals import probes
from jepa_jax.models.pooler import PoolerConfig

Encode = Callable[[np.ndarray], jax.Array]  # uint8 [B, T, H, W, 3] -> [B, N, D]
PIXELS = 16  # side of the frames that the linear pixel model sees
STRENGTHS = tuple(10.0**k for k in range(-4, 0))  # inverse regularisation it chooses from


@dataclasses.dataclass(frozen=True)
class LabelledClips:
    """Clips and, for each label, their classes."""

    clips: np.ndarray  # [n, T, H, W, 3] uint8
    labels: dict[str, np.ndarray]  # label -> [n], whole numbers or strings


def read_clips(paths: Sequence[str | Path], data: DataConfig) -> np.ndarray:
    """The middle clip of each video, as `data` says: uint8 `[n, frames, crop, crop, 3]`.

    Seen as for evaluation (`views.eval_view`); nothing is random. Raises `BadFile`.
    """
    sampling = clips.Sampling.from_config(data)

    def middle(low: int, high: int) -> int:
        return (low + high) // 2

    def choose(timing: clips.Timing) -> np.ndarray:
        step = sampling.step(timing.fps, data.frames)
        return clips.by_time(
            clips.clip_indices(timing.frames, data.frames, step, draw=middle)[0], timing
        )

    out = np.empty((len(paths), data.frames, data.crop, data.crop, 3), np.uint8)
    for row, path in zip(out, paths, strict=True):
        row[...] = eval_view(decode.read_frames(path, choose), data.crop)
    return out


def shuffle_frames(videos: np.ndarray, seed: int) -> np.ndarray:
    """Each clip of `[n, T, H, W, 3]` with its frames in an order of its own."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random(videos.shape[:2]), axis=1)
    return np.take_along_axis(videos, order[:, :, None, None, None], axis=1)


def extract(encode: Encode, videos: np.ndarray, batch: int) -> np.ndarray:
    """Features float32 `[n, N, D]` of clips, in batches of one size: repeats fill up the last."""
    features = []
    for start in range(0, len(videos), batch):
        rows = np.arange(start, start + batch) % len(videos)
        features.append(np.asarray(encode(videos[rows]), np.float32)[: len(videos) - start])
    return np.concatenate(features)


def probe(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    classes: int,
    settings: ProbeConfig,
    seed: int,
) -> np.ndarray:
    """Trains a probe on features `[n, N, D]`; returns its classes `[m]` for test `[m, N, D]`.

    Cross-entropy, AdamW, a tenth of the steps to warm up, then a cosine to zero; each epoch in an
    order of its own.

    Raises:
      FloatingPointError: the loss is not finite at the end.
    """
    pooler = PoolerConfig(
        train.shape[-1], settings.heads, settings.depth, dtype=jnp.dtype('float32'), remat='none'
    )
    shape = probes.Probe(pooler, (('linear', classes),))
    trained = probes.train(
        shape,
        probes.cross_entropy,
        lambda rows: train[rows],
        {'linear': np.asarray(labels, np.int32)},
        [probes.Setting(settings.lr, settings.weight_decay)],
        steps=settings.steps,
        batch=settings.batch,
        warmup=max(1, settings.steps // 10),
        seed=seed,
        title='probe',
    )
    if not trained.finite[0]:
        raise FloatingPointError(
            f'the loss of the probe is {trained.losses[0, -1]} after {settings.steps} steps'
        )
    logits = probes.outputs(
        shape, trained.params, lambda rows: test[rows], np.arange(len(test)), batch=settings.batch
    )
    return logits['linear'][0].argmax(-1)


def probe_pixels(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Trains a linear model on uint8 clips `[n, T, H, W, 3]`; returns its classes for test `[m]`.

    Logistic regression on all frames, area-averaged to PIXELS square and standardised; the penalty
    is chosen by cross-validation on the training clips, in three parts if each class has as many
    clips; of single clips the middle one is taken. A class alone is always the answer.
    """
    # here: a second to import, which every training command would pay
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    x, y = scaler.fit_transform(_small(train)), scaler.transform(_small(test))
    # A penalised solution lies in the span of the training clips. They are far fewer than pixels,
    # so rotating into their span, by the eigenvectors of their products, changes only the speed.
    power, axes = np.linalg.eigh((x @ x.T).astype(np.float64))
    kept = power > power[-1] * 1e-9
    axes, length = axes[:, kept], np.sqrt(power[kept])
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) == 1:
        return np.full(len(test), classes[0])
    model = LogisticRegression(C=STRENGTHS[len(STRENGTHS) // 2], max_iter=2000, tol=1e-3)
    if counts.min() > 1:
        folds = StratifiedKFold(min(3, counts.min()), shuffle=True, random_state=seed)
        model = GridSearchCV(model, {'C': STRENGTHS}, cv=folds)
    return model.fit(axes * length, labels).predict(y @ x.T @ axes / length)


def _small(videos: np.ndarray) -> np.ndarray:
    return np.stack([area_means(video, PIXELS).ravel() for video in videos])


def interval(correct: np.ndarray, resamples: int, seed: int = 0) -> dict[str, float]:
    """Mean accuracy and its 95 % interval: `mean, low, high`.

    correct: bools `[seeds, m]`. Test clips are drawn anew with replacement, seeds are averaged
      within each draw.
    """
    share = np.asarray(correct, np.float64).mean(0)
    rows = np.random.default_rng(seed).integers(0, len(share), (resamples, len(share)))
    low, high = np.percentile(share[rows].mean(1), [2.5, 97.5])
    return {'mean': float(share.mean()), 'low': float(low), 'high': float(high)}


def measure(
    target: Encode,
    untrained: Sequence[Encode],
    train: LabelledClips,
    test: LabelledClips,
    settings: ProbeConfig,
    *,
    batch: int = 64,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Label -> `target, random, pixels, shuffled` -> `mean, low, high`, for report.json.

    Args:
      target: the trained encoder.
      untrained: encoders with random weights; probe seed i reads encoder i.
      settings: of the probe; `seeds` probes read the target's features.
      batch: clips encoded at once.
      say: told one line about each stage, for progress.

    Raises:
      ValueError: a test clip has a class that no training clip has.
    """
    known = {label: np.unique(values) for label, values in train.labels.items()}
    for label, classes in known.items():
        if strange := set(test.labels[label].tolist()) - set(classes.tolist()):
            raise ValueError(
                f"label '{label}': no training clip has the classes {sorted(strange)} of the test"
            )
    codes = {
        k: [np.searchsorted(known[k], part.labels[k]) for part in (train, test)] for k in known
    }
    correct: dict[str, dict[str, list[np.ndarray]]] = {k: {} for k in known}

    def read(name: str, encode: Encode, seeds: Sequence[int], *parts: np.ndarray) -> None:
        say(f'probe: {name} features of {sum(map(len, parts))} clips')
        features = [extract(encode, part, batch) for part in parts]
        for label, (ours, theirs) in codes.items():
            for seed in seeds:
                classes = probe(features[0], ours, features[1], len(known[label]), settings, seed)
                correct[label].setdefault(name, []).append(classes == theirs)

    seeds = range(settings.seeds)
    read('target', target, seeds, train.clips, test.clips)
    for seed, encode in enumerate(untrained):
        read('random', encode, [seed], train.clips, test.clips)
    say('probe: a linear model on pixels')
    for label, (ours, theirs) in codes.items():
        correct[label]['pixels'] = [probe_pixels(train.clips, ours, test.clips) == theirs]
    read('shuffled', target, seeds, shuffle_frames(train.clips, 1), shuffle_frames(test.clips, 2))
    return {
        label: {name: interval(np.stack(c), settings.bootstrap) for name, c in rows.items()}
        for label, rows in correct.items()
    }


def verdict(label: str, result: dict[str, dict[str, float]]) -> str:
    """One sentence on a label: is the target ahead of the other readings, with intervals apart?"""
    names = {'random': 'an untrained encoder', 'pixels': 'pixels', 'shuffled': 'shuffled frames'}
    target = result['target']

    def figures(row: dict[str, float]) -> str:
        return f'{row["mean"]:.3f} ({row["low"]:.3f} to {row["high"]:.3f})'

    def stands(row: dict[str, float]) -> str:
        if target['low'] > row['high']:
            return 'ahead of'
        return 'behind' if target['high'] < row['low'] else 'not clearly different from'

    parts = [
        f'{stands(result[k])} {name} {figures(result[k])}'
        for k, name in names.items()
        if k in result
    ]
    return f'{label}: trained features {figures(target)}, ' + ', '.join(parts)


def ahead(result: dict[str, dict[str, float]]) -> bool:
    """Whether the target beats an untrained encoder and pixels, the intervals being apart."""
    return all(result['target']['low'] > result[other]['high'] for other in ('random', 'pixels'))
