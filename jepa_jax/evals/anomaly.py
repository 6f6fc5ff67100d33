"""What a camera does not usually show: a score for every frame, learnt from normal video alone.

Normal video has three parts: features of the first are the bank that density asks, the second tells
what each place of the picture usually has, the third sets the threshold. Then videos are judged,
with labels (areas under the ROC curve) or without. Pixel differences, features that are copied, and
untrained nets of the same shape go the same way. No setting is chosen on test video.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata
from tqdm import tqdm

from jepa_jax.checkpoint import hash_arrays
from jepa_jax.config.anomaly import AnomalyConfig
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals import (
    Figure,
    Results,
    anomaly_page,
    anomaly_sets,
    examples,
    normality,
    surprise,
)
from jepa_jax.evals.anomaly_sets import Footage, Video
from jepa_jax.evals.intervals import bootstrap
from jepa_jax.evals.normality import READERS, Detector, Shown
from jepa_jax.evals.physics import both_encoders, expects, untrained

log = logging.getLogger(__name__)

LEAST = 4  # normal videos; of fewer each is cut into as many pieces
DETECTOR = 'detector'  # folder in the workdir
OWN = ('surprise', 'density')

Piece = tuple[str, tuple[float, float]]  # a path, and which share of it


@dataclasses.dataclass(frozen=True)
class Judged:
    """A test video's scores by reader, and what is true of it."""

    video: Video
    shown: Shown
    windows: dict[str, np.ndarray]  # [w]
    frames: dict[str, np.ndarray]  # [f]
    wrong: np.ndarray | None  # [f] bool


def contents(config: AnomalyConfig) -> str:
    """A hash of the videos and their labels."""
    footage = anomaly_sets.read(config.data)
    videos = [[v.kind, *examples.files_of(v.path)] for v in (*footage.train, *footage.test)]
    return examples.hash_of([videos, examples.files_of(config.data.labels)])


def run(model, config: AnomalyConfig, workdir: Path) -> Results:
    """Learns, judges, and writes scores.csv, report.html and the detector.

    Raises:
      ConfigError: videos, labels or settings that cannot be used, in one line.
    """
    footage = anomaly_sets.read(config.data)
    crop = normality.crop_of(model, config)
    check_labels(footage, config)
    bad: dict[str, str] = {}  # path -> why it could not be used
    pieces = split([v.path for v in footage.train], config)
    detector, judged = _with(model, pieces, footage, config, workdir, crop, bad)
    detector.save(workdir / DETECTOR)
    others: list[Judged] = []
    if config.random_baseline:
        fresh = untrained(model, config.seed + 1)
        kept = dataclasses.replace(footage, test=tuple(j.video for j in judged))
        _, others = _with(fresh, pieces, kept, config, workdir, crop, {}, 'untrained: ')
        if len(others) != len(judged):
            raise ConfigError(f'{len(judged) - len(others)} test videos were not read again')
    problems = [*footage.problems, *bad.values()]
    for line in (*anomaly_sets.other_counts(config.data.kind, footage), *problems):
        log.warning('%s', line)
    results, baselines, sentences = figures(judged, others, detector, config)
    data = {
        'expected': len(footage.train) + len(footage.test) + len(footage.problems),
        'read': len(footage.train) + len(footage.test) - len(bad),
        'hash': _digest(footage),
        'normal': len(footage.train),
        'test': len(judged),
        'thresholds': detector.thresholds,
        'auc': {name: four(judged, name) for name in detector.middle},
        'problems': problems + anomaly_sets.other_counts(config.data.kind, footage),
    }
    if config.smooth:
        sentences.append(
            f'scores are smoothed over time, a Gaussian of {config.smooth:g} frames, which looks '
            'ahead'
        )
    if problems:
        sentences.append(f'{len(problems)} could not be used: {"; ".join(problems[:3])}')
    write_scores(workdir / 'scores.csv', judged, detector)
    anomaly_page.write(workdir, judged, detector, config, crop, results, baselines, sentences)
    decided = [j for j in judged if defined(j.wrong)]
    return Results(
        results=results,
        baselines=baselines,
        data=data,
        sentences=tuple(sentences),
        outcomes={
            name: np.array([auc(j.frames[name], j.wrong) for j in decided])
            for name in OWN
            if name in detector.middle and decided
        },
        sources=np.array([j.video.path for j in decided]),
    )


def check_labels(footage: Footage, config: AnomalyConfig) -> None:
    """Refuses labels of own videos that do not fit, before anything is computed.

    Raises:
      ConfigError: which, and how many frames there are.
    """
    if config.data.kind != 'own':
        return  # of a published set these are left out
    for video in footage.test:
        if video.labels:
            try:
                video.labels.of(video.path, normality.opened(video.path, config.data)[1])
            except BadFile as error:
                if error.reason == 'mismatch':
                    raise ConfigError(str(error)) from error


def split(paths: Sequence[str], config: AnomalyConfig) -> list[list[Piece]]:
    """Pieces of normal video for the bank, for places, and for the threshold: whole videos, or
    pieces of them where there are few."""
    if len(paths) >= LEAST:
        pieces = [(path, (0.0, 1.0)) for path in paths]
    else:
        pieces = [(p, (i / LEAST, (i + 1) / LEAST)) for p in paths for i in range(LEAST)]
    order = np.random.default_rng(config.seed).permutation(len(pieces))
    count = len(pieces)
    each = min(max(1, round(config.held_out * count / 2)), (count - 1) // 2)
    shuffled = [pieces[i] for i in order]
    parts = [shuffled[2 * each :], shuffled[:each], shuffled[each : 2 * each]]
    return [sorted(part) for part in parts]


def nets(model) -> tuple[surprise.Expects, dict[str, Any]]:
    """What a model expects and sees, and what tells it from another, JSON."""
    context = both_encoders(model)
    facts = {
        'context': hash_arrays(context.encoder.params),
        'encoder': hash_arrays(model.encoder.params),
        'shape': {k: str(v) for k, v in dataclasses.asdict(model.config).items()},
    }
    if model.predictor is not None:
        facts['predictor'] = hash_arrays(model.predictor.params)
    return expects(context, model), facts


def _with(
    model, pieces: list[list[Piece]], footage: Footage, config: AnomalyConfig, workdir: Path,
    crop: int, bad: dict[str, str], title: str = '',
) -> tuple[Detector, list[Judged]]:  # fmt: skip
    """The detector of one model, and what it says of the test videos; names what it cannot read."""
    ours, known = nets(model)
    folder = Path(config.data.cache).expanduser() if config.data.cache else workdir / 'windows'
    cache = normality.Cache(folder, known, config, crop)
    predicts = model.predictor is not None

    def look(path: str, part: tuple[float, float]) -> Shown:
        return cache.get(
            path, part, lambda: normality.look(ours, path, config, crop, predicts, part)
        )

    detector = fit(look, pieces, config, known, bad, title)
    judged = []
    for video in tqdm(footage.test, f'{title}test video', unit='video', disable=None):
        try:
            shown = look(video.path, (0.0, 1.0))
            wrong = video.labels.of(video.path, shown.seconds) if video.labels else None
        except BadFile as error:
            bad[video.path] = str(error)
            continue
        windows = detector.scores(shown.errors, shown.features)
        frames = {k: normality.by_frame(v, shown, config.smooth) for k, v in windows.items()}
        slim = dataclasses.replace(shown, errors={}, features=shown.features[:0])
        judged.append(Judged(video, slim, windows, frames, wrong))
    if footage.test and not judged:
        first = bad[footage.test[0].path]
        raise ConfigError(f'none of {len(footage.test)} test videos can be used: {first}')
    return detector, judged


def fit(
    look: Callable[[str, tuple[float, float]], Shown],
    pieces: list[list[Piece]],
    config: AnomalyConfig,
    known: dict[str, Any],
    bad: dict[str, str],
    title: str = '',
) -> Detector:
    """What normal video has: pieces for the bank, for places, and for the threshold.

    Raises:
      ConfigError: a part of it has no piece that can be read.
    """
    rng, total = np.random.default_rng(config.seed), sum(map(len, pieces))
    with tqdm(total=total, desc=f'{title}normal video', unit='piece', disable=None) as bar:

        def seen(part: list[Piece]) -> Iterator[Shown]:
            count = 0
            for path, share in part:
                bar.update()
                try:
                    shown = look(path, share)
                except BadFile as error:
                    bad[path] = str(error)
                else:
                    count += 1
                    yield shown
            if not count:
                raise ConfigError(f'no normal video can be read: {bad[part[0][0]]}')

        each = -(-config.bank // len(pieces[0]))
        bank = [normality.sample(shown.features, each, rng) for shown in seen(pieces[0])]
        detector = Detector(
            np.concatenate(bank), config.neighbours, config.top, {}, {}, made_for=known
        )
        errors = [detector.errors(shown.errors, shown.features) for shown in seen(pieces[1])]
        middle, spread = normality.places(errors, config.by_place)
        detector = dataclasses.replace(detector, middle=middle, spread=spread)
        held_out = []
        for shown in seen(pieces[2]):
            windows = detector.scores(shown.errors, shown.features)
            judged = slice(shown.numbers[shown.covers[0, 0]], shown.numbers[-1] + 1)
            scores = {k: normality.by_frame(v, shown, config.smooth) for k, v in windows.items()}
            held_out.append({k: v[judged] for k, v in scores.items()})
    frames = {k: np.concatenate([each[k] for each in held_out]) for k in middle}
    thresholds = {k: normality.threshold(v, config.false_alarms) for k, v in frames.items()}
    few = len(next(iter(frames.values())))
    if few * config.false_alarms < 1:
        log.warning(
            'the threshold is the highest score of %d normal frames: %g of them are none', few,
            config.false_alarms,
        )  # fmt: skip
    return dataclasses.replace(detector, thresholds=thresholds)


# --- Figures --------------------------------------------------------------------------------------


def defined(wrong: np.ndarray | None) -> bool:
    """Whether there are frames of both kinds."""
    return wrong is not None and bool(wrong.any()) and not wrong.all()


def auc(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Area under the ROC curve: how often an abnormal frame's score is above a normal one's, ties
    half. NaN if there is one kind alone."""
    ones = int(wrong.sum())
    zeros = len(wrong) - ones
    if not ones or not zeros:
        return float('nan')
    return float((rankdata(scores)[wrong].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def min_max(scores: np.ndarray) -> np.ndarray:
    """From 0 to 1 within a video, which looks at all of it."""
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.zeros_like(scores)


def areas(scores: Sequence[np.ndarray], wrong: Sequence[np.ndarray]) -> dict[str, float]:
    """The four figures that are all called frame-level AUC: `micro` of all frames, `micro, each
    video from 0 to 1`, `macro` over videos with frames of both kinds, and `macro, padded` with a
    normal frame of 0 and an abnormal one of 1 in every video. (reference: evaluations.md §4)"""
    scaled = [min_max(s) for s in scores]
    own = [auc(s, w) for s, w in zip(scores, wrong) if defined(w)]
    padded = [
        auc(np.concatenate([s, [0.0, 1.0]]), np.concatenate([w, [False, True]]))
        for s, w in zip(scaled, wrong)
    ]
    return {
        'micro': auc(np.concatenate(scores), np.concatenate(wrong)),
        'micro, each video from 0 to 1': auc(np.concatenate(scaled), np.concatenate(wrong)),
        'macro': float(np.mean(own)) if own else float('nan'),
        'macro, padded': float(np.mean(padded)),
    }


def four(judged: Sequence[Judged], name: str) -> dict[str, float]:
    """`areas` of a reader, those that are defined; nothing without labels."""
    if not judged or judged[0].wrong is None:
        return {}
    values = areas([j.frames[name] for j in judged], [j.wrong for j in judged])
    return {key: value for key, value in values.items() if value == value}


def figures(
    judged: Sequence[Judged], others: Sequence[Judged], detector: Detector, config: AnomalyConfig
) -> tuple[dict[str, Figure], dict[str, Figure], list[str]]:
    """Results, baselines and sentences. Intervals are percentiles over test videos drawn anew, the
    same draws for all figures; one video alone has none: all that is possible."""
    asked = f'{config.false_alarms:.2%} of the normal frames that were held out are above it'
    if not judged:
        return {}, {}, ['no test video: the detector alone was made']
    scores = {n: [j.frames[n] for j in judged] for n in READERS if n in detector.middle}
    scores |= {f'random {n}': [j.frames[n] for j in others] for n in OWN if others and n in scores}
    measure = Measure(scores, detector.thresholds, [j.wrong for j in judged], [
        j.video.kind for j in judged
    ])  # fmt: skip
    if judged[0].wrong is None:
        sentences = [f'no labels: scores and thresholds alone; {asked}']
    else:
        sentences = [
            'AUC of frames: all frames of all videos in one order, or macro: the mean over the '
            'videos with frames of both kinds',
            f'thresholds: {asked}; false alarms, hits: the share of normal and of abnormal test '
            'frames that are',
        ]
        everything = np.concatenate([j.wrong for j in judged])
        if not defined(everything):
            kind = 'abnormal' if everything.any() else 'normal'
            sentences[0] = f'no AUC: all {len(everything)} test frames are {kind}'
    every = np.arange(len(judged))
    values = measure(every)
    known = [name for name, value in values.items() if value == value]

    def again(drawn: np.ndarray) -> list[float]:
        row = measure(drawn)
        return [row[name] for name in known]

    ends = bootstrap(every, again, config.bootstrap, config.seed)
    rows = {}
    for name, (low, high) in zip(known, ends):
        if measure.counts[name] < 2:  # one video's own spread tells nothing
            low, high = -1.0 if ' - ' in name else 0.0, 1.0
        rows[name] = Figure(values[name], low, high, measure.counts[name])
    own = {name: row for name, row in rows.items() if name.startswith(OWN)}
    return own, {name: row for name, row in rows.items() if name not in own}, sentences


class Measure:
    """Figures of some of the test videos: rows [k] of them, with repeats -> name -> value, NaN
    where there is none.

    Args:
      scores: of each reader, for each video [f].
      thresholds: of readers.
      labels: for each video [f] bool, or None for all.
      kinds: of what happens in each.
    """

    def __init__(self, scores, thresholds, labels, kinds) -> None:
        self.counts: dict[str, int] = {}  # videos of each figure
        alarms = {n: [s > t for s in scores[n]] for n, t in thresholds.items()}
        self.kinds: dict[str, np.ndarray] = {}
        if labels[0] is None:
            # name -> what is counted and of how many, [videos] each
            self.shares = {
                f'{n}, above the threshold': (_sums(a), np.array([len(x) for x in a]))
                for n, a in alarms.items()
            }
            self.pairs: dict[str, np.ndarray] = {}
            return
        self.ones, self.zeros = _sums(labels), _sums([~w for w in labels])
        self.pairs = {n: _pairs(each, labels) for n, each in scores.items()}
        own = np.where(self.ones * self.zeros > 0, self.ones * self.zeros, np.nan)
        self.own = {n: np.diag(pairs) / own for n, pairs in self.pairs.items()}
        there = dict.fromkeys(k for k, n in zip(kinds, self.ones) if k and n)
        if len(there) > 1:
            self.kinds = {k: np.array([k == other for other in kinds]) for k in there}
        self.shares = {}
        for name, each in alarms.items():
            false = _sums([x & ~w for x, w in zip(each, labels)])
            self.shares[f'{name}, false alarms'] = false, self.zeros
            self.shares[f'{name}, hits'] = _sums(each) - false, self.ones

    def __call__(self, rows: np.ndarray) -> dict[str, float]:
        result: dict[str, float] = {}

        def put(name: str, value: float, count: int) -> None:
            result[name] = float(value)
            self.counts.setdefault(name, count)

        size = len(next(iter(self.shares.values()))[0])
        times = np.bincount(rows, minlength=size).astype(float)  # that each video is there
        for name, pairs in self.pairs.items():
            put(name, self._area(pairs, times), len(rows))
            own = self.own[name][rows]
            own = own[~np.isnan(own)]
            put(f'{name}, macro', own.mean() if len(own) else math.nan, len(own))
            for kind, mask in self.kinds.items():
                some = times * mask
                put(f'{name}: {kind}', self._area(pairs, some), int(some.sum()))
        for a, b in (('surprise', 'density'), ('surprise', 'pixels'), ('density', 'pixels')):
            if a in result and b in result:
                put(f'{a} - {b}', result[a] - result[b], len(rows))
        for name, (part, whole) in self.shares.items():
            total = times @ whole
            put(name, times @ part / total if total else math.nan, len(rows))
        return result

    def _area(self, pairs: np.ndarray, times: np.ndarray) -> float:
        total = (times @ self.ones) * (times @ self.zeros)
        return times @ pairs @ times / total if total else math.nan


def _sums(each: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([int(x.sum()) for x in each])


def _pairs(scores: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> np.ndarray:
    """[V, V]: in how many pairs an abnormal frame of a video (row) has a higher score than a normal
    one of another (column), ties half: of any draw of videos they add up to the area."""
    abnormal = np.concatenate([s[w] for s, w in zip(scores, labels)])
    video = np.repeat(np.arange(len(labels)), _sums(labels))
    columns = []
    for s, w in zip(scores, labels):
        normal = np.sort(s[~w])
        below = sum(np.searchsorted(normal, abnormal, side) for side in ('left', 'right')) / 2
        columns.append(np.bincount(video, below, len(labels)))
    return np.stack(columns, 1)


def write_scores(path: Path, judged: Sequence[Judged], detector: Detector) -> None:
    """A line for each frame of each test video."""
    names = list(detector.thresholds)
    with open(path, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        out = csv.writer(file)
        out.writerow(
            (
                'video',
                'frame',
                'seconds',
                *names,
                *(f'{n} alarm' for n in OWN if n in names),
                'label',
            )
        )
        for j in judged:
            for i, at in enumerate(j.shown.seconds):
                own = [j.frames[n][i] for n in names]
                alarms = [int(j.frames[n][i] > detector.thresholds[n]) for n in OWN if n in names]
                label = '' if j.wrong is None else int(j.wrong[i])
                out.writerow(
                    (j.video.path, i, f'{at:.3f}', *(f'{s:.4f}' for s in own), *alarms, label)
                )


def _digest(footage: Footage) -> str:
    rows = [normality.state(v.path) for v in (*footage.train, *footage.test)]
    return hashlib.sha256(json.dumps(rows).encode('utf-8', 'surrogateescape')).hexdigest()[:32]
