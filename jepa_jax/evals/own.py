"""What frozen features tell of a user's own labelled clips, beside what chance, pixels and an
untrained encoder tell.

Features are computed once; four readers then learn from the same ones, cheapest first: nearest
neighbours, ridge, logistic regression (each of the mean over tokens), an attentive probe (of the
tokens). Settings are chosen on training clips. No source is on both sides of a split.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jepa_jax.config import AttentiveConfig, OwnConfig
from jepa_jax.data.views import eval_view
from jepa_jax.data.windows import open_input, spread
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals import Figure, Results, examples, features, linear, own_page, probes
from jepa_jax.evals.examples import Example
from jepa_jax.evals.intervals import bootstrap, wilson
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.weights.parts import net

log = logging.getLogger(__name__)

READERS: dict[str, Callable] = {
    'knn': linear.nearest,
    'ridge': linear.ridge,
    'logistic': linear.logistic,
}
FEW = 5  # clips of a class, below which its figures mean little
ALIKE = 0.999  # cosine above which two clips are taken for the same
# what a figure is of, by kind of labels: the value of a row, and of a second one
MEASURES = {
    'class': ('accuracy', 'macro-F1'),
    'labels': ('mean average precision', 'macro-F1'),
    'number': ('R2', 'mean absolute error'),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Labels of the clips that were read, and who learns from which."""

    examples: list[Example]
    kind: str  # class | labels | number
    targets: np.ndarray  # [n, C]
    names: tuple[str, ...]  # of the columns
    test: np.ndarray  # [n] bool
    seed: int
    bootstrap: int

    @property
    def sources(self) -> np.ndarray:
        """[n]"""
        return np.asarray([e.source for e in self.examples])

    @property
    def classes(self) -> np.ndarray | None:
        """[n], where each clip has one."""
        return self.targets.argmax(1) if self.kind == 'class' else None

    def score(self, scores: np.ndarray, targets: np.ndarray) -> float:
        """What settings are chosen by, see `quality`."""
        return quality(self.kind, scores, targets)


def run(model, config: OwnConfig, workdir: Path) -> Results:
    """Reads, splits, encodes, asks, and writes pictures, tables, a page and the probe.

    Raises:
      ConfigError: lists, labels or splits that cannot be used, in one line.
    """
    listed = examples.listed(config.data)
    kind = examples.kind_of([e.label for e in listed], config.data.target)
    if config.estimate:
        log.info('%s', hours(model, listed, kind, config, workdir))
    table = clip_features(model, listed, config, workdir, 'features')
    rows = np.flatnonzero(table.read)
    kept = [listed[i] for i in rows]
    targets, names = examples.targets(kept, kind)
    test, how = examples.split(kept, config.data, config.seed, kind)
    task = Task(kept, kind, targets, names, test, config.seed, config.bootstrap)
    examples.refuse_unlearnt(kind, targets, names, test)
    log.info(
        '%d clips of %s, %d for training, %d for testing: %s', len(kept), _what(task),
        int((~test).sum()), int(test.sum()), how,
    )  # fmt: skip
    warnings = complaints(task, table.mean[rows])
    for line in warnings:
        log.warning('%s', line)

    answers, settings = ask(task, table.mean[rows])
    probe, answers['attentive'], settings['attentive'] = attend(task, table, rows, config)
    baseline_answers = baselines(task, table.pixels[rows])
    if config.random_baseline:
        other = untrained(model, config.seed + 1)
        fresh = clip_features(other, listed, config, workdir, 'features of an untrained encoder')
        known = fresh.read[rows]
        if not known.all():
            raise ConfigError(f'{fresh.folder}: {int((~known).sum())} clips were not read again')
        means = linear.standardised(fresh.mean[rows][~test], fresh.mean[rows][test])
        reader = linear.ridge if kind == 'number' else linear.logistic
        baseline_answers['random'] = _read(task, reader, *means)[0]
    results = figures(task, answers)
    against = figures(task, baseline_answers)
    own_page.write(
        workdir, model.name, task, answers['attentive'], results, against, settings, warnings,
        clip_of=lambda e: clip(e, config, _crop(model, config)),
    )  # fmt: skip
    if kind != 'number':
        save_probe(workdir / 'probe', probe, task, config, model)
    asked = task.targets[test]
    return Results(
        results=results,
        baselines=against,
        data={
            'expected': len(listed),
            'read': len(kept),
            'hash': examples.digest(listed),
            'train': int((~test).sum()),
            'test': int(test.sum()),
            'split': how,
            'kind': kind,
            'classes': list(names),
            'problems': {str(listed[i].path): why for i, why in table.problems.items()},
        },
        sentences=(
            f'{MEASURES[kind][0]} unless a row says otherwise; '
            f'settings: {"; ".join(f"{name} {s}" for name, s in settings.items())}',
            *warnings,
        ),
        outcomes={name: outcome(task, scores, asked) for name, scores in answers.items()},
        sources=task.sources[test],
    )


def contents(config: OwnConfig) -> str:
    """A hash of the labelled list and its files."""
    return examples.digest(examples.listed(config.data))


# Clips


def _crop(model, config: OwnConfig) -> int:
    crop = config.data.crop or model.config.image_size
    if crop % model.config.patch:
        raise ConfigError(f'data.crop = {crop}: must be a multiple of {model.config.patch}')
    return crop


def clip(example: Example, config: OwnConfig, crop: int) -> np.ndarray:
    """Clips of an example, uint8 [segments, T, crop, crop, 3].

    Its frames are those between `start` and `end`; with `time`, or with `ahead`, one clip ends so
    many seconds before. A piece shorter than a clip is filled up with its last frame, or, where the
    clip's end is what counts, with its first.

    Raises:
      BadFile: it cannot be read, or no frame is there.
    """
    data = config.data
    source = open_input(example.path, data.fps)
    numbers, seconds = source.numbers, source.seconds
    end = example.time if example.time == example.time else example.start
    if example.time == example.time or data.ahead:
        if end != end:
            raise BadFile(
                example.path, 'short', 'data.ahead needs a column `time` or `start` to count from'
            )
        numbers = numbers[seconds <= end - data.ahead + 1e-6]
        index = np.arange(len(numbers) - data.frames, len(numbers)).clip(0)[None]
        index = np.repeat(index, data.segments, 0)
    else:
        inside = np.ones(len(numbers), bool)
        inside[seconds < example.start - 1e-6] = False
        inside[seconds > example.end + 1e-6] = False
        numbers = numbers[inside]
        index = spread(len(numbers), data.frames, data.segments)
    if not len(numbers):
        when = f', {data.ahead:g} s before it (data.ahead)' if data.ahead else ''
        raise BadFile(example.path, 'short', f'no frame of {example} is there{when}')
    frames = source.read(numbers[index.ravel()])
    return eval_view(frames, crop).reshape(*index.shape, crop, crop, 3)


def clip_features(
    model, listed: Sequence[Example], config: OwnConfig, workdir: Path, title: str
) -> features.Table:
    """Features of all examples, from the cache as far as they are there."""
    crop = _crop(model, config)
    return features.compute(
        model,
        len(listed),
        lambda i: clip(listed[i], config, crop),
        _cache(config, workdir),
        **_seen(model, listed, config),
        batch=config.batch,
        title=title,
    )


def _cache(config: OwnConfig, workdir: Path) -> Path:
    return Path(config.data.cache).expanduser() if config.data.cache else workdir / 'features'


def _seen(model, listed: Sequence[Example], config: OwnConfig) -> dict[str, Any]:
    """What features depend on but for the weights, as `features.compute` is told it."""
    data, crop = config.data, _crop(model, config)
    if data.frames % model.config.tubelet:
        raise ConfigError(
            f'data.frames = {data.frames}: must be a multiple of {model.config.tubelet}, the '
            'tubelet'
        )
    return {
        'about': {
            'list': examples.digest(listed),
            'view': {k: getattr(data, k) for k in ('frames', 'fps', 'segments', 'ahead')},
        },
        'clip': (data.frames, crop, crop),
        'segments': data.segments,
        'tokens': data.tokens,
    }


def hours(model, listed: Sequence[Example], kind: str, config: OwnConfig, workdir: Path) -> str:
    """How long features and attentive heads will take, by one batch and a few steps of all heads.
    What compiling takes, and the other readers, are minutes."""
    seen, crop, count = _seen(model, listed, config), _crop(model, config), len(listed)
    asked = [model, untrained(model, config.seed + 1)] if config.random_baseline else [model]
    left = sum(features.left(m, count, _cache(config, workdir), **seen) for m in asked)
    encoding = 0.0
    if left:
        shape = {k: v for k, v in seen.items() if k != 'about'}
        each = features.seconds_each(
            model, count, lambda i: clip(listed[i], config, crop), **shape, batch=config.batch
        )
        encoding = each * left / jax.process_count()
    targets, names = examples.targets(listed, kind)
    test, _ = examples.split(listed, config.data, config.seed, kind)
    task = Task(list(listed), kind, targets, names, test, config.seed, config.bootstrap)
    c, learn = config.attentive, int((~test).sum())
    row = features.row_of(model.config, seen['clip'], seen['segments'], seen['tokens'])
    loss, values = _aim(task)
    steps = _steps(c, learn)
    a_step = probes.seconds_a_step(
        _probe(c, model.config.width, len(names)), loss, row['tokens'].shape, {'label': values},
        settings_of(c), steps=steps, batch=c.batch, warmup=steps // 10,
    )  # fmt: skip
    heads = a_step * steps * (2 if _folds(task) else 1)  # to choose, and on all training clips
    whole, clips, probing = map(tqdm.format_interval, (encoding + heads, encoding, heads))
    return (
        f'about {whole}: features of {left} clips {clips}, {len(settings_of(c))} attentive heads '
        f'{probing}'
    )


def untrained(model, seed: int):
    """The model's encoder with random weights."""
    from jepa_jax.model import Loaded, Model

    fresh = net('encoder', model.config)
    return Model(Loaded(model.config, jax.jit(fresh.init)(jax.random.key(seed))))


# What is wrong with the labels


def complaints(task: Task, means: np.ndarray) -> list[str]:
    """What makes the figures mean less, a sentence each."""
    lines = []
    if task.kind != 'number':
        counts, sources = task.targets.sum(0), task.sources
        if few := [f'{n} ({int(c)})' for n, c in zip(task.names, counts) if c < FEW]:
            lines.append(f'classes with fewer than {FEW} clips: {", ".join(few)}')
        alone = [
            name
            for name, own in zip(task.names, task.targets.T)
            if own.sum() > 1 and len(np.unique(sources[own > 0])) == 1
        ]
        if alone:
            lines.append(f'classes of one source, which may be told by it: {", ".join(alone)}')
    asked = task.sources[task.test]
    if len(asked) > 1 and len(np.unique(asked)) == 1:
        lines.append(
            f'all {len(asked)} test clips are of one source, {asked[0]}: intervals (but those of '
            'accuracy) are over its clips and say nothing of another source'
        )
    unit = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    train, test = np.flatnonzero(~task.test), np.flatnonzero(task.test)
    pairs = []
    for start in range(0, len(test), 256):
        cosine = unit[test[start : start + 256]] @ unit[train].T
        best = cosine.argmax(1)
        for row in np.flatnonzero(cosine[np.arange(len(best)), best] > ALIKE):
            pairs.append((test[start + row], train[best[row]]))
    if pairs:
        first, second = (task.examples[i].path for i in pairs[0])
        lines.append(
            f'{len(pairs)} test clips look like a training clip (cosine above {ALIKE:g}), such as '
            f'{first} and {second}: clips of one recording? Then name sources with '
            "--config.data.source='PATTERN' or a column `group`"
        )
    return lines


# Readers


def _read(task: Task, reader: Callable, train: np.ndarray, test: np.ndarray):
    learnt, parts = ~task.test, _folds(task)
    targets = task.targets[learnt]
    answers = reader(
        train, targets, test, parts, lambda scores, rows: task.score(scores, targets[rows])
    )
    return answers.scores, answers.setting


def _folds(task: Task) -> list[np.ndarray]:
    """Parts of the training clips that settings are chosen on; none where there is one source."""
    learnt = ~task.test
    classes = None if task.classes is None else task.classes[learnt]
    return linear.folds(task.sources[learnt], classes, task.seed)


def ask(task: Task, means: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Scores [m, C] and setting of each reader of one vector a clip."""
    answers, settings = {}, {}
    plain = means[~task.test], means[task.test]
    scaled = linear.standardised(*plain)
    for name, reader in READERS.items():
        if name == 'logistic' and task.kind == 'number':
            continue
        both = plain if name == 'knn' else scaled
        answers[name], settings[name] = _read(task, reader, *both)
    return answers, settings


def attend(task: Task, table: features.Table, rows: np.ndarray, config: OwnConfig):
    """The attentive probe: settings chosen on a part of the training clips, then trained on all.

    Returns:
      (probe, its parameters), scores [m, C], setting.
    """
    c = config.attentive
    probe = _probe(c, table.tokens.shape[-1], len(task.names))
    loss, values = _aim(task)
    train, test = np.flatnonzero(~task.test), np.flatnonzero(task.test)
    shift, scale = 0.0, 1.0
    if task.kind == 'number':
        shift, scale = float(values[train].mean()), float(values[train].std()) or 1.0
        values = (values - shift) / scale
    grid = settings_of(c)
    steps = _steps(c, len(train))

    def read(asked: np.ndarray) -> np.ndarray:
        return table.tokens[rows[asked]]

    def fit(learn: np.ndarray, title: str) -> probes.Trained:
        return probes.train(
            probe, loss, read, {'label': values}, grid, steps=steps, batch=c.batch,
            warmup=steps // 10, seed=task.seed, rows=learn, title=title,
        )  # fmt: skip

    parts = _folds(task)
    best, judged = 0, 'the first of'
    if parts:
        trained = fit(train[~parts[0]], 'attentive probes, choosing')
        asked = train[parts[0]]
        scores = probes.outputs(probe, trained.params, read, asked)['label'] * scale + shift
        own = [
            task.score(each, task.targets[asked]) if finite else -np.inf
            for each, finite in zip(scores, trained.finite)
        ]
        best, judged = int(np.argmax(own)), f'best of {len(own)} on {len(asked)} training clips:'
    trained = fit(train, 'attentive probes')
    if not trained.finite[best]:
        raise ConfigError(
            f'attentive: the loss at rate {grid[best].lr:g} is not finite; lower attentive.rates'
        )
    # as deep as it is: head `best` alone answers
    params = probes.one(trained.params, best)
    alone = jax.tree.map(lambda a: a[None], params)
    scores = probes.outputs(probe, alone, read, test)['label'][0] * scale + shift
    if task.kind == 'labels':  # probabilities, as the other readers answer
        scores = 1 / (1 + np.exp(-scores))
    setting = f'{judged} rate {grid[best].lr:g}, decay {grid[best].weight_decay:g}'
    return (probe, params), scores, setting


def _probe(config: AttentiveConfig, width: int, names: int) -> probes.Probe:
    heads = config.heads or max(1, width // 64)
    if width % heads:
        raise ConfigError(f'attentive.heads = {heads}: must divide {width}, the width')
    pooler = PoolerConfig(
        width, heads, config.depth, dtype=jax.numpy.dtype('float32'), remat='none'
    )  # fmt: skip
    return probes.Probe(pooler, (('label', names),))


def _aim(task: Task) -> tuple[probes.Loss, np.ndarray]:
    """What heads are trained by, and the targets as it takes them."""
    return {
        'class': (probes.cross_entropy, task.targets.argmax(1).astype(np.int32)),
        'labels': (probes.binary_cross_entropy, task.targets),
        'number': (probes.squared_error, task.targets),
    }[task.kind]


def settings_of(config: AttentiveConfig) -> list[probes.Setting]:
    """The grid, in the order of heads.GRIDS."""
    rates, decays = ([float(x) for x in v.split(',')] for v in (config.rates, config.decays))
    return [probes.Setting(lr, decay) for decay in decays for lr in rates]


def _steps(config: AttentiveConfig, count: int) -> int:
    """Of one training on so many clips."""
    return max(config.least_steps, config.epochs * count // config.batch)


def baselines(task: Task, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Scores [m, C] of the training clips' distribution, and of a linear reader of small frames."""
    learnt, count = task.targets[~task.test], int(task.test.sum())
    middle = np.median(learnt, 0) if task.kind == 'number' else learnt.mean(0)
    flat = pixels.reshape(len(pixels), -1).astype(np.float32)
    both = linear.standardised(flat[~task.test], flat[task.test])
    reader = linear.ridge if task.kind == 'number' else linear.logistic
    return {
        'majority': np.repeat(middle[None], count, 0),
        'pixels': _read(task, reader, *both)[0],
    }


# Figures


def measure(kind: str, scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """The two figures of MEASURES, of scores [m, C] against targets [m, C]."""
    if kind == 'number':
        residual = np.square(scores - targets).sum()
        spread = np.square(targets - targets.mean(0)).sum()
        r2 = 1 - residual / spread if spread else float('nan')
        return float(r2), float(np.abs(scores - targets).mean())
    there = targets.any(0)  # of classes that do not occur nothing can be said
    if kind == 'labels':
        from sklearn.metrics import average_precision_score

        if not there.any():
            return 0.0, 0.0
        precision = average_precision_score(targets[:, there], scores[:, there], average='macro')
        return float(precision), macro_f1(scores > 0.5, targets > 0.5, there)
    said = np.eye(targets.shape[1], dtype=bool)[scores.argmax(1)]
    right = (said & (targets > 0)).any(1)
    return float(right.mean()), macro_f1(said, targets > 0, there)


def quality(kind: str, scores: np.ndarray, targets: np.ndarray) -> float:
    """What settings are chosen by, the higher the better: the first figure; of numbers the negative
    mean square error, which orders settings as R2 does, and also where all targets are the same, as
    they often are in a part of one source."""
    if kind == 'number':
        return -float(np.square(scores - targets).mean())
    return measure(kind, scores, targets)[0]


def macro_f1(said: np.ndarray, true: np.ndarray, there: np.ndarray) -> float:
    """Mean over classes of 2 hits / (said + true); said, true: bools [m, C], there: which count."""
    hits = (said & true).sum(0)
    return float((2 * hits / np.maximum(1, said.sum(0) + true.sum(0)))[there].mean())


def outcome(task: Task, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[m]: how well each clip was answered, for paired differences: right or not, the negative
    absolute error, or the share of labels that are right."""
    if task.kind == 'class':
        return (scores.argmax(1) == targets.argmax(1)).astype(float)
    if task.kind == 'number':
        return -np.abs(scores - targets)[:, 0]
    return ((scores > 0.5) == (targets > 0.5)).mean(1)


def figures(task: Task, answers: dict[str, np.ndarray]) -> dict[str, Figure]:
    """A row for each figure of each reader.

    Accuracy has Wilson's interval, counting sources and not clips, since clips of one source are
    not independent; the rest have percentiles over sources drawn anew.
    """
    asked, sources = task.targets[task.test], task.sources[task.test]
    count = len(asked)
    rows: dict[str, Figure] = {}
    for name, scores in answers.items():
        values = measure(task.kind, scores, asked)
        ends = bootstrap(
            sources,
            lambda rows, scores=scores: measure(task.kind, scores[rows], asked[rows]),
            task.bootstrap,
            task.seed,
        )
        if task.kind == 'class':
            independent = len(np.unique(sources))
            ends[0] = wilson(values[0] * independent, independent)
        rows[name] = Figure(values[0], *ends[0], count)
        rows[f'{name}, {MEASURES[task.kind][1]}'] = Figure(values[1], *ends[1], count)
    return rows


def save_probe(folder: Path, trained, task: Task, config: OwnConfig, model) -> None:
    """Writes the probe; `embed --classify --probe` reads it."""
    data = config.data
    reads = {
        'reads': 'last',
        'frames': data.frames,
        'fps': data.fps,
        'segments': data.segments,
        'tokens': data.tokens,
        'crop': _crop(model, config),
        'several': task.kind == 'labels',
    }
    origin = f'own labels, {json.dumps(data.train)}'
    probes.save(folder, *trained, model, {'label': task.names}, reads, origin)


def _what(task: Task) -> str:
    return (
        'numbers'
        if task.kind == 'number'
        else f'{len(task.names)} {task.kind}es'.replace('labelses', 'labels')
    )
