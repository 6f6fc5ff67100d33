"""Published benchmarks with one class a clip, on their official files.

Features are computed once; a grid of attentive heads learns from them, side by side. What differs
from the original's recipe is said in the report: training clips are seen once and without
augmentation, and tokens may be averaged. With a released probe nothing is trained, and nothing
differs but where clips begin.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jepa_jax.checkpoint import hash_arrays
from jepa_jax.config import BenchmarkConfig, LabelledSetConfig
from jepa_jax.data import labelled
from jepa_jax.data.kinds import PICTURES
from jepa_jax.data.labelled import LabelledSet, Record
from jepa_jax.data.labelled.clips import of_video
from jepa_jax.data.stream import generator
from jepa_jax.data.views import eval_view, picture_view, side_views
from jepa_jax.errors import ConfigError
from jepa_jax.evals import Figure, Results, examples, features, heads, linear, metrics, own, probes
from jepa_jax.evals.intervals import wilson

log = logging.getLogger(__name__)

MOST_PIXELS = 20_000  # training clips up to which a linear model on pixels is a matter of minutes
# set -> accuracy in percent: V-JEPA 2 by its authors, others as they quote them
PUBLISHED: dict[str, dict[str, float]] = {
    'ssv2': {'V-JEPA 2 L 256': 73.7, 'V-JEPA 2 g 384': 77.3, 'V-JEPA 2.1 G 384': 77.7,
             'InternVideo2-s2 1B': 69.7, 'DINOv3 7B': 70.1},
    'diving48': {'V-JEPA 2 L 256': 89.0, 'V-JEPA 2 g 384': 90.2, 'V-JEPA 2.1 G 384': 89.2,
                 'InternVideo2-s2 1B': 86.4},
    'jester': {'V-JEPA 2 L 256': 97.6, 'V-JEPA 2 g 384': 97.8},
    'k400': {'V-JEPA 2 L 256': 85.1, 'V-JEPA 2 g 384': 87.3, 'V-JEPA 2.1 G 384': 87.7,
             'InternVideo2-s2 1B': 89.4, 'DINOv3 7B': 87.8},
    'coin': {'V-JEPA 2 L 256': 86.8, 'V-JEPA 2 g 384': 91.1},
    'in1k': {'V-JEPA 2 L 256': 83.5, 'V-JEPA 2 g 384': 85.1, 'V-JEPA 2.1 G 384': 85.5,
             'InternVideo2-s2 1B': 85.8, 'DINOv3 7B': 88.4},
}  # fmt: skip


def run(model, config: BenchmarkConfig, workdir: Path) -> Results:
    """Reads the official files, encodes, trains or takes a probe, and writes predictions.csv.

    Raises:
      ConfigError: files, settings or a probe that cannot be used, in one line.
    """
    if config.data.set not in PUBLISHED:
        raise ConfigError(f'data.set = {config.data.set!r}: must be one of {", ".join(PUBLISHED)}')
    if config.data.set == 'in1k' and (config.data.segments, config.data.views) != (1, 1):
        raise ConfigError('data.segments and data.views must be 1: a picture has one clip and view')
    data = labelled.read(
        config.data.set, config.data.path, config.data.videos, config.data.official
    )
    for line in (*data.notes, *absent(data)):
        log.warning('%s', line)
    attach(model, config)
    train, test = data.splits['train'], data.splits['validation']
    names, table = data.names['label'], None
    if model.probe is not None:
        rows, logits, problems = released(model, config, data, test, workdir)
        order = list(logits.values())[0]
        hits, tops, said = judged(order[None], classes_of(test)[rows])
        how, baselines, notes = 'the probe as it is', {}, ()
    else:
        refuse_unlearnt(data)
        table = {s: clip_features(model, config, data, s, workdir) for s in ('train', 'validation')}
        rows, problems = np.flatnonzero(table['validation'].read), table['validation'].problems
        learn = heads.of_table(table['train'], *columns(train))
        asked = heads.of_table(table['validation'], *columns(test), views=config.data.views)
        chosen = fit(learn, len(names), config)
        hits, tops, said = ask(chosen, asked)
        how, notes = chosen.how, differences(config)
        heads.save(workdir / 'probe', chosen, int(hits.mean(1).argmax()), model, data, config)
        baselines = against(learn, table, asked, config)
        if config.random_baseline:
            baselines['untrained encoder'] = untrained(model, config, data, workdir, len(names))
    best = int(hits.mean(1).argmax())  # of one head, unless validation chooses
    truth, sources = classes_of(test)[rows], columns(test)[1][rows]
    write_predictions(workdir / 'predictions.csv', test, rows, names, said[best])
    results = {
        'accuracy': share(hits[best], sources),
        'accuracy, top 5': share(tops[best], sources),
    }
    if config.protocol == 'upstream':
        order = np.random.default_rng(config.seed).permutation(len(rows))
        batch = min(config.heads.batch, len(rows))
        means = [metrics.batch_accuracy(row[order], batch) for row in hits]
        count = len(np.unique(sources))
        ends = wilson(max(means) * count, count)
        results['accuracy, upstream'] = Figure(max(means), *ends, len(rows))
        how += f"; upstream's row is the mean over batches of {batch} without the last, short one"
    published = PUBLISHED[config.data.set]
    return Results(
        results=results,
        baselines=baselines,
        data=about(data, test, rows, problems, table and table['train'])
        | {'published': published},
        sentences=(
            f'protocol {config.protocol}: head: {how}; accuracy counts every clip once',
            *data.notes, *absent(data), *notes,
            *heads.sentences_of_classes(names, truth, hits[best]),
            'published, in percent: ' + ', '.join(f'{k} {v:g}' for k, v in published.items()),
        ),
        outcomes={'accuracy': hits[best].astype(float)},
        sources=sources,
    )  # fmt: skip


def contents(config: LabelledSetConfig) -> str:
    """A hash of the official lists and their files, and of a probe's where it is one of this
    machine."""
    c = config.data
    data = labelled.read(c.set, c.path, c.videos, c.official)
    place = Path(config.probe).expanduser() if config.probe else None
    files = sorted(place.rglob('*') if place.is_dir() else [place]) if place else []
    return examples.hash_of([
        {split: digest(records) for split, records in data.splits.items()},
        data.missing,
        data.names,
        [[str(path), examples.state_of(path)] for path in files],
    ])  # fmt: skip


# Clips


def attach(model, config: LabelledSetConfig) -> None:
    """Reads the model's features with the probe that the config names."""
    if config.probe:
        from jepa_jax.pretrained import attach_probe

        attach_probe(model, config.probe)
        log.info('%s', model.about[-1])


def views_of(
    config: LabelledSetConfig, split: str, record: Record, fps: float, crop: int, row: int
) -> np.ndarray:
    """Clips of an example, uint8 [views * segments, T, crop, crop, 3], those of a view together.

    Training sees the middle; so does validation with one view. Upstream's begin at random.
    """
    c = config.data
    rng = generator(config.seed, row) if config.protocol == 'upstream' else None
    frames = of_video(record, c.frames, c.step, c.segments, fps, rng)
    if is_picture(record.path):
        return np.broadcast_to(picture_view(frames[0], crop), (1, c.frames, crop, crop, 3))
    several = split == 'validation' and c.views > 1
    parts = side_views(frames, crop, c.views) if several else eval_view(frames, crop)
    return parts.reshape(-1, c.frames, crop, crop, 3)


def is_picture(path: str) -> bool:
    return Path(path).suffix.lower() in PICTURES


def clip_features(
    model, config: BenchmarkConfig, data: LabelledSet, split: str, workdir: Path
) -> features.Table:
    """Features of a split, from the cache as far as they are there."""
    c, crop = config.data, heads.check_clip(config, model)
    records, views = data.splits[split], c.views if split == 'validation' else 1
    return features.compute(
        model,
        len(records),
        lambda i: views_of(config, split, records[i], data.fps, crop, i),
        cache(config, workdir),
        about={'list': digest(records), 'view': seen(config, split)},
        clip=(c.frames, crop, crop),
        segments=c.segments * views,
        tokens=c.tokens,
        reads=heads.check_levels(config, model),
        batch=config.batch,
        title=f'features, {split}',
    )


def cache(config: LabelledSetConfig, workdir: Path) -> Path:
    """The folder of features."""
    return Path(config.data.cache).expanduser() if config.data.cache else workdir / 'features'


def seen(config: LabelledSetConfig, split: str) -> dict:
    """What clips of a split depend on, beside the files."""
    c = config.data
    random = config.seed if config.protocol == 'upstream' else None
    return {
        'protocol': config.evaluation, 'step': c.step, 'frames': c.frames, 'segments': c.segments,
        'views': c.views if split == 'validation' else 1, 'random': random,
    }  # fmt: skip


def digest(records: Sequence[Record]) -> str:
    """A hash of the list, and of size and time of its files."""
    return examples.digest([
        examples.Example(r.path, ' '.join(map(str, r.label)), str(r.frames)) for r in records
    ])  # fmt: skip


def columns(records: Sequence[Record]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Classes and sources. Pieces that were cut from one video have a number at the end of its
    name, as in Diving48; of pictures, whose names in ImageNet end like that too, each is one."""
    sources = [
        r.path if is_picture(r.path) else re.sub(r'_\d{5}$', '', Path(r.path).stem) for r in records
    ]
    return {'label': classes_of(records)}, np.asarray(sources)


def classes_of(records: Sequence[Record]) -> np.ndarray:
    return np.asarray([r.label[0] for r in records], np.int32)


def refuse_unlearnt(data: LabelledSet) -> None:
    """Raises ConfigError for a class that only validation has."""
    learnt, asked = ({r.label[0] for r in data.splits[s]} for s in ('train', 'validation'))
    if odd := sorted(asked - learnt):
        raise ConfigError(
            f'class {odd[0]} {data.names["label"][odd[0]]!r}: clips for validation, none for '
            'training on this disk'
        )
    if len(learnt) < 2:
        raise ConfigError('one class alone, or none: nothing to tell apart')


def absent(data: LabelledSet) -> list[str]:
    """What is listed and not on disk, a sentence a split."""
    return [
        f'{split}: {len(names):,} of {data.listed[split]:,} clips are not on disk, such as '
        f'{names[0]}'
        for split, names in data.missing.items()
        if names
    ]


def about(
    data: LabelledSet, test: Sequence[Record], rows: np.ndarray, problems: dict,
    learn: features.Table | None = None,
) -> dict:  # fmt: skip
    """For the report; learn: what heads learned from, if there are any."""
    train = data.splits['train']
    failed = {train[i].path: why for i, why in learn.problems.items()} if learn else {}
    return {
        'expected': data.listed['validation'],
        'read': len(rows),
        'hash': digest(test),
        'missing': {split: len(names) for split, names in data.missing.items()},
        'train': int(learn.read.sum()) if learn else len(train),
        'problems': failed | {test[i].path: why for i, why in problems.items()},
    }


# Heads


def fit(learn: heads.Examples, count: int, config: BenchmarkConfig) -> heads.Chosen:
    """The grid, chosen as the protocol says."""

    def score(probe: probes.Probe, params: dict, rows: np.ndarray) -> np.ndarray:
        hits = [
            logits['label'][:, :, 0].argmax(-1) == learn.labels['label'][part]
            for part, logits in heads.answers(probe, params, learn, rows)
        ]
        return np.concatenate(hits, 1).mean(1)

    return heads.fit(
        learn, {'label': count}, config.heads, probes.cross_entropy, score,
        upstream=config.protocol == 'upstream', seed=config.seed, title='heads',
    )  # fmt: skip


def judged(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [G, n, V, C] -> right, among the first five, and the class that is said, [G, n]."""
    scores = metrics.over_views(logits)
    said = scores.argmax(-1)
    return said == labels, np.stack([metrics.in_top(each, labels) for each in scores]), said


def ask(chosen: heads.Chosen, asked: heads.Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `judged`, of every example once."""
    parts = [
        judged(logits['label'], asked.labels['label'][part])
        for part, logits in heads.answers(
            chosen.probe, chosen.params, asked, np.arange(len(asked))
        )
    ]  # fmt: skip
    return tuple(np.concatenate(column, 1) for column in zip(*parts))


def released(model, config: BenchmarkConfig, data: LabelledSet, test, workdir: Path):
    """Rows, logits and problems of a probe that is there already."""
    crop = heads.check_clip(config, model)
    facts = json.dumps([
        digest(test), seen(config, 'validation'), crop, hash_arrays(model.encoder.params),
        hash_arrays(model.probe.params),
    ])  # fmt: skip
    name = hashlib.sha256(facts.encode()).hexdigest()[:16]
    if not test:
        raise ConfigError('no clip is left for validation: --config.data.videos names their folder')
    classes = {head: len(names) for head, names in data.names.items()}
    if len(classes) == len(model.probe.classes) == 1:  # whatever the one head is called
        classes = dict(zip(model.probe.classes, classes.values()))
    return heads.released(
        model,
        config,
        len(test),
        lambda i: views_of(config, 'validation', test[i], data.fps, crop, i),
        classes,
        1 if is_picture(test[0].path) else config.data.views,
        workdir / f'logits-{name}.npy',
    )


def share(hits: np.ndarray, sources: np.ndarray | None = None) -> Figure:
    """Of clips, with Wilson's interval over their sources, for pieces of one video are alike; over
    pictures, which have none."""
    mean, count = float(hits.mean()), len(hits if sources is None else np.unique(sources))
    return Figure(mean, *wilson(mean * count, count), len(hits))


def differences(config: LabelledSetConfig) -> tuple[str, ...]:
    """What the original does otherwise, a sentence each."""
    lines = ['training clips are seen once, in the middle, without augmentation']
    if config.data.tokens:
        lines.append(
            f'tokens are averaged to at most {config.data.tokens} a clip and level; the original '
            'reads all: --config.data.tokens=0'
        )
    return tuple(lines)


# Baselines


def against(
    learn: heads.Examples,
    table: dict[str, features.Table],
    asked: heads.Examples,
    config: BenchmarkConfig,
) -> dict[str, Figure]:
    """The most frequent class, and a linear model of small frames."""
    ours, theirs = learn.labels['label'], asked.labels['label']
    rows = {'majority': share(theirs == np.bincount(ours).argmax(), asked.sources)}
    if len(ours) > MOST_PIXELS:
        log.info('no baseline on pixels: %d training clips, of which it takes hours', len(ours))
        return rows
    flat = [t.pixels[t.read] for t in (table['train'], table['validation'])]
    # of several views the middle one
    flat[1] = flat[1].reshape(len(theirs), asked.views, -1)[:, asked.views // 2]
    flat = [part.reshape(len(part), -1).astype(np.float32) for part in flat]
    train, test = linear.standardised(*flat)
    answer = linear.logistic(
        train, np.eye(ours.max() + 1, dtype=np.float32)[ours], test,
        linear.folds(learn.sources, ours, config.seed),
        lambda scores, part: float((scores.argmax(1) == ours[part]).mean()),
    )  # fmt: skip
    rows['pixels'] = share(answer.scores.argmax(1) == theirs, asked.sources)
    return rows


def untrained(model, config: BenchmarkConfig, data: LabelledSet, workdir: Path, count: int):
    """The same with an encoder of random weights."""
    other = own.untrained(model, config.seed + 1)
    table = {s: clip_features(other, config, data, s, workdir) for s in ('train', 'validation')}
    learn = heads.of_table(table['train'], *columns(data.splits['train']))
    asked = heads.of_table(
        table['validation'], *columns(data.splits['validation']), views=config.data.views
    )
    hits, _, _ = ask(fit(learn, count, config), asked)
    return share(hits[hits.mean(1).argmax()], asked.sources)


def write_predictions(
    path: Path,
    test: Sequence[Record],
    rows: np.ndarray,
    names: tuple[str, ...],
    said: np.ndarray,
) -> None:
    """A line a clip: its path, its class and the one that was said, by name."""
    with open(path, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        out = csv.writer(file)
        out.writerow(['path', 'class', 'name', 'said', 'said_name', 'right'])
        for row, answer in zip(rows, said):
            true = test[row].label[0]
            out.writerow([
                test[row].path, true, names[true], answer, names[answer], int(true == answer)
            ])  # fmt: skip
