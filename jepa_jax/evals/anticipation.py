"""EPIC-KITCHENS-100: verb, noun and action of what comes next, one second ahead.

An encoder sees four seconds (32 frames, 8 a second); the predictor says what it expects a second
later; a probe with three queries reads one of the two or both. In the original's code the clip ends
a second before the action's end (protocol `upstream`), so that most of it is seen; the challenge
lets nothing be seen after a second before its start (`before_start`). (reference: vjepa2 §9.4)
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jepa_jax.checkpoint import hash_arrays
from jepa_jax.config import AnticipationConfig
from jepa_jax.data import decode, labelled
from jepa_jax.data.clips import Timing
from jepa_jax.data.labelled import Record
from jepa_jax.data.labelled.clips import before_action
from jepa_jax.data.labelled.ek100 import HEADS
from jepa_jax.data.stream import generator
from jepa_jax.data.views import eval_view
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals import Figure, Results, benchmark, features, heads, metrics, probes
from jepa_jax.evals.intervals import bootstrap
from jepa_jax.models.pooler import averaged_grid

log = logging.getLogger(__name__)

# action recall@5 in percent, protocol upstream, classes filtered: by the original's authors;
# those of others as the paper of V-JEPA 2 has them
PUBLISHED = {'V-JEPA 2 L 256': 32.7, 'V-JEPA 2 g 384': 39.7, 'V-JEPA 2.1 g 384': 38.4,
             'V-JEPA 2.1 G 384': 40.8, 'InAViT': 25.8, 'Video-LLaMA 7B': 26.0,
             'PlausiVL 8B': 27.6}  # fmt: skip
ABLATION = {'encoder': 39.1, 'predictor': 20.2, 'both': 39.7}  # of V-JEPA 2 g 384
WORDS = {
    'upstream': "clips end 1 s before the action's end, as in the original's code: most of the "
    'action is seen, and figures do not stand beside those of the challenge',
    'before_start': "clips end 1 s before the action's start, as in the challenge",
    'filtered': 'rows whose action training lacks are left out, as in the original',
    'official': 'all rows count, and an action that training lacks is always missed',
}


def run(model, config: AnticipationConfig, workdir: Path) -> Results:
    """Reads the official files, encodes and predicts, trains or takes a probe.

    Raises:
      ConfigError: files, settings or a probe that cannot be used, in one line.
      InputError: a model without a predictor.
    """
    data = labelled.read('ek100', config.data.path, config.data.videos, config.data.official)
    for line in (*data.notes, *benchmark.absent(data)):
        log.warning('%s', line)
    benchmark.attach(model, config)
    train, test = data.splits['train'], data.splits['validation']
    if config.classes == 'filtered':
        test = [record for record in test if record.label[2] >= 0]
    for split, records in (('training', train), ('validation', test)):
        if not records and not (split == 'training' and model.probe):  # a probe learns nothing
            raise ConfigError(f'no clip is left for {split}')
    classes = {head: len(data.names[head]) for head in HEADS}
    results: dict[str, Figure] = {}
    baselines: dict[str, Figure] = {}
    table = None
    if model.probe is not None:
        rows, logits, problems = released(model, config, test, classes, workdir)
        labels, videos = columns([test[i] for i in rows])
        among = [test[i].among for i in rows]
        hits = {h: metrics.in_top(logits[h][:, 0], labels[h])[None] for h in HEADS}
        results |= figures(hits, labels, videos, 'probe', config, among)
        notes = ('head: the probe as it is',)
    else:
        table = {
            s: clip_features(model, config, s, r, workdir)
            for s, r in (('train', train), ('validation', test))
        }
        rows, problems = np.flatnonzero(table['validation'].read), table['validation'].problems
        labels, videos = columns([test[i] for i in rows])
        among = [test[i].among for i in rows]
        notes = benchmark.differences(config)
        for part in config.parts.split(','):
            kept = tokens_of(part, model, config)
            learn = heads.of_table(table['train'], *columns(train), kept=kept)
            asked = heads.of_table(table['validation'], *columns(test), kept=kept)
            chosen = fit(learn, classes, config, part)
            hits = ask(chosen, asked, np.arange(len(asked)))
            results |= figures(hits, labels, videos, part, config, among)
            notes = (*notes, f'{part}: head: {chosen.how}')
            if part == 'both':
                recall = [metrics.class_recall(h, labels['action']) for h in hits['action']]
                best = int(np.argmax(recall))
                heads.save(workdir / 'probe', chosen, best, model, data, config, 'future')
        learnt, _ = columns(train)
        common = {
            h: metrics.in_top(
                np.tile(np.bincount(learnt[h], minlength=classes[h]), (len(rows), 1)), labels[h]
            )[None]
            for h in HEADS
        }
        baselines = figures(common, labels, videos, 'five most frequent', config, among)
    occur = len(np.unique(labels['action']))
    return Results(
        results=results,
        baselines=baselines,
        data=benchmark.about(data, test, rows, problems, table and table['train'])
        | {'published': {'action recall@5': PUBLISHED, 'g 384 by part': ABLATION}},
        sentences=(
            f'protocol {config.protocol}: {WORDS[config.protocol]}',
            f'classes {config.classes}: {WORDS[config.classes]}; {len(rows):,} clips, {occur:,} '
            'actions; recall is a mean over classes that occur, each clip once',
            *data.notes, *benchmark.absent(data), *notes,
            *best_and_worst(data.names['action'], labels['action'], hits['action']),
            'published action recall@5 (upstream, filtered), in percent: '
            + ', '.join(f'{k} {v:g}' for k, v in PUBLISHED.items())
            + '; of V-JEPA 2 g 384 by part: '
            + ', '.join(f'{k} {v:g}' for k, v in ABLATION.items()),
        ),
    )  # fmt: skip


def best_and_worst(names, labels: np.ndarray, hits: np.ndarray) -> tuple[str, ...]:
    """Actions by name, of those that the head has."""
    known = labels >= 0
    best = hits[hits.mean(1).argmax()]
    return heads.sentences_of_classes(names, labels[known], best[known]) if known.any() else ()


# Clips


def clip_of(record: Record, config: AnticipationConfig, crop: int, split: str, row: int):
    """The clip before an action, uint8 [1, T, crop, crop, 3]. In training the point of the action
    that counts lies within its last quarter, at random, where the protocol counts from its end.

    Raises:
      BadFile: it cannot be read, or the video ends before the clip does.
    """
    point = 1.0 if config.protocol == 'before_start' else 0.0
    if split == 'train' and config.protocol == 'upstream':
        point = generator(config.seed, row).uniform(0, 0.25)

    def choose(timing: Timing) -> np.ndarray:
        numbers = before_action(record.frames, config.data.frames, timing.fps, 1.0, point)
        if numbers[-1] >= timing.frames:
            detail = f'frame {numbers[-1]} is asked for, it has {timing.frames}'
            raise BadFile(record.path, 'short', detail)
        return numbers

    return eval_view(decode.read_frames(record.path, choose), crop)[None]


def seen(config: AnticipationConfig, split: str) -> dict:
    """What clips depend on, beside the files."""
    return {
        'protocol': f'ek100 {config.protocol}', 'split': split, 'frames': config.data.frames,
        'seed': config.seed,
    }  # fmt: skip


def clip_features(
    model, config: AnticipationConfig, split: str, records: Sequence[Record], workdir: Path
) -> features.Table:
    """Features of the clips and of what the predictor expects after them."""
    crop = heads.check_clip(config, model)
    return features.compute(
        model,
        len(records),
        lambda i: clip_of(records[i], config, crop, split, i),
        benchmark.cache(config, workdir),
        about={'list': benchmark.digest(records), 'view': seen(config, split)},
        clip=(config.data.frames, crop, crop),
        tokens=config.data.tokens,
        reads='future',
        batch=config.batch,
        title=f'features, {split}',
    )


def columns(records: Sequence[Record]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Classes by head, and the video of each."""
    labels = np.asarray([r.label for r in records], np.int32)
    return dict(zip(HEADS, labels.T)), np.asarray([r.path for r in records])


def tokens_of(part: str, model, config: AnticipationConfig) -> slice:
    """Which tokens a head reads: those of the encoder come first."""
    crop = heads.check_clip(config, model)
    grid = model.config.grid(config.data.frames, crop, crop)
    own = int(np.prod(averaged_grid(grid, config.data.tokens)))
    return {'both': slice(None), 'encoder': slice(own), 'predictor': slice(own, None)}[part]


# Heads


def loss(logits: dict[str, jax.Array], targets: dict[str, jax.Array]) -> jax.Array:
    """The focal loss, summed over clips, classes and heads, as the original has it."""
    return sum(metrics.focal_loss(logits[head], y).sum() for head, y in targets.items())


def ask(chosen: heads.Chosen, examples: heads.Examples, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Whether the class is among the first five: head -> [G, n]."""
    parts: dict[str, list[np.ndarray]] = {head: [] for head in HEADS}
    for own, logits in heads.answers(chosen.probe, chosen.params, examples, rows):
        for head, hits in parts.items():
            labels = examples.labels[head][own]
            hits.append(np.stack([metrics.in_top(x[:, 0], labels) for x in logits[head]]))
    return {head: np.concatenate(hits, 1) for head, hits in parts.items()}


def fit(
    learn: heads.Examples, classes: dict[str, int], config: AnticipationConfig, part: str
) -> heads.Chosen:
    """The grid; a head is chosen by the recall of actions, on videos that it did not learn from."""

    def score(probe: probes.Probe, params: dict, rows: np.ndarray) -> np.ndarray:
        hits = ask(heads.Chosen(probe, params, ''), learn, rows)['action']
        labels = learn.labels['action'][rows]
        return np.asarray([metrics.class_recall(row, labels) for row in hits])

    return heads.fit(
        learn, classes, config.heads, loss, score,
        upstream=config.head == 'validation', seed=config.seed, title=f'heads, {part}',
    )  # fmt: skip


def figures(
    hits: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    videos: np.ndarray,
    name: str,
    config: AnticipationConfig,
    among: Sequence[tuple[str, ...]],
) -> dict[str, Figure]:
    """Recall of each head of the probe, hits [G, n]; of several probes the best for each, as the
    original has it. Intervals: percentiles over videos drawn anew.

    among: of each clip, the challenge's parts that it counts in: clips of unseen people, rare
      classes. Each part has a figure of the same probe, a mean over the classes that occur in it.
    """
    rows = {}
    for head in HEADS:
        recall = [metrics.class_recall(each, labels[head]) for each in hits[head]]
        best, own = hits[head][int(np.argmax(recall))], labels[head]
        for words, part in (
            ('', None),
            (', unseen people', 'unseen'),
            (', rare classes', f'{head} tail'),
        ):
            kept = np.asarray([part is None or part in each for each in among])
            if not kept.any():
                continue

            def measure(drawn, best=best[kept], own=own[kept]) -> tuple[float, ...]:
                return (metrics.class_recall(best[drawn], own[drawn]),)

            (ends,) = bootstrap(videos[kept], measure, config.bootstrap, config.seed)
            (value,) = measure(np.arange(int(kept.sum())))
            rows[f'{head} recall@5, {name}{words}'] = Figure(value, *ends, int(kept.sum()))
    return rows


def released(
    model,
    config: AnticipationConfig,
    test: Sequence[Record],
    classes: dict[str, int],
    workdir: Path,
):
    """Rows, logits and problems of a probe that is there already."""
    crop = heads.check_clip(config, model)
    facts = json.dumps([
        benchmark.digest(test), seen(config, 'validation'), crop,
        hash_arrays(model.encoder.params), hash_arrays(model.probe.params),
    ])  # fmt: skip
    place = workdir / f'logits-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.npy'
    return heads.released(
        model, config, len(test), lambda i: clip_of(test[i], config, crop, 'validation', i),
        classes, 1, place,
    )  # fmt: skip
