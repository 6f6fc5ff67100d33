"""Which clips lie next to each other: retrieval by cosine, a clip's own source left out."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from jepa_jax.config import RetrievalConfig
from jepa_jax.errors import ConfigError
from jepa_jax.evals import Figure, Results, examples, own
from jepa_jax.evals.intervals import bootstrap

log = logging.getLogger(__name__)

AT = (1, 5, 10)
NAMES = (*(f'R@{k}' for k in AT), 'mAP')


def run(model, config: RetrievalConfig, workdir: Path) -> Results:
    """Every clip asks for the others of its class: no training, no split.

    Raises:
      ConfigError: lists that cannot be used, or no clip has another of its class to be asked for.
    """
    if config.data.test:
        raise ConfigError(
            f'data.test = {config.data.test!r}: retrieval has one list, data.train, and no split'
        )
    listed = examples.read(config.data.train, config.data)
    if examples.kind_of([e.label for e in listed], config.data.target) != 'class':
        raise ConfigError('retrieval needs one class a clip; data.target says otherwise')
    tables = {'features': own.clip_features(model, listed, config, workdir, 'features')}
    if config.random_baseline:
        other = own.untrained(model, config.seed + 1)
        title = 'features of an untrained encoder'
        tables['random'] = own.clip_features(other, listed, config, workdir, title)
    read = np.logical_and.reduce([table.read for table in tables.values()])
    rows = np.flatnonzero(read)
    kept = [listed[i] for i in rows]
    _, classes = np.unique([e.label for e in kept], return_inverse=True)
    # one file is not its own neighbour, whatever it is called
    sources = np.asarray(
        [os.path.realpath(e.path) if e.source == e.path else e.source for e in kept]
    )
    vectors = {name: table.mean[rows] for name, table in tables.items()}
    pixels = tables['features'].pixels[rows].reshape(len(rows), -1).astype(np.float32)
    vectors['pixels'] = pixels - pixels.mean(0)
    figures: dict[str, dict[str, Figure]] = {'features': {}}
    for name, x in vectors.items():
        scores = judge(x, classes, sources)
        asked = np.isfinite(scores[:, 0])
        if not asked.any():
            raise ConfigError('no clip has another of its class from another source')
        own_sources = sources[asked]
        values = scores[asked]
        ends = bootstrap(
            own_sources, lambda r, v=values: tuple(v[r].mean(0)), config.bootstrap, config.seed
        )
        figures[name] = {
            key: Figure(float(value), *end, int(asked.sum()))
            for key, value, end in zip(NAMES, values.mean(0), ends)
        }
    left = len(kept) - int(asked.sum())
    return Results(
        results=figures['features'],
        baselines={
            f'{key}, {name}': figure
            for name, row in figures.items()
            if name != 'features'
            for key, figure in row.items()
        },
        data={
            'expected': len(listed),
            'read': len(kept),
            'hash': examples.digest(listed),
            'classes': sorted({e.label for e in kept}),
        },
        sentences=(
            f'{left} clips are not asked: no other source has their class' if left else
            'every clip is asked for the others of its class',
        ),
    )  # fmt: skip


def judge(x: np.ndarray, classes: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """[n, R@1, R@5, R@10, average precision] of each clip as a query; nan without an answer.

    R@k: whether one of the k nearest has the class. x: [n, D]; classes, sources: [n].
    """
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    scores = np.full((len(x), len(NAMES)), np.nan)
    for i in range(len(x)):
        others = np.flatnonzero(sources != sources[i])
        right = classes[others] == classes[i]
        if not right.any():
            continue
        order = np.argsort(-(unit[others] @ unit[i]), kind='stable')
        hits = right[order]
        places = np.flatnonzero(hits) + 1
        precision = (np.arange(len(places)) + 1) / places
        scores[i] = [*(hits[:k].any() for k in AT), precision.mean()]
    return scores
