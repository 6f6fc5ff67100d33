"""The class of every pixel, by a linear head on frozen tokens; see `dense`.

IoU is that of intersections and unions that are summed over all pictures, then the mean over
classes. Baselines: the most frequent class everywhere, the same head on patches of pixels, and on
an untrained encoder.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jepa_jax.config.dense import SegmentationConfig
from jepa_jax.data.labelled.dense import IGNORE
from jepa_jax.evals import Figure, Results, dense, dense_page
from jepa_jax.evals import dense_metrics as metrics
from jepa_jax.evals.intervals import bootstrap

FIGURES = ('mIoU', 'mean accuracy', 'pixel accuracy')
# set -> mIoU in percent, linear on the last layer (reference: vjepa2_1 §12.3)
PUBLISHED: dict[str, dict[str, float]] = {
    'ade20k': {'V-JEPA 2 g': 24.4, 'V-JEPA 2.1 g': 47.8, 'V-JEPA 2.1 G': 47.9, 'DINOv2 g': 49.5,
               'DINOv3 7B': 55.9, 'PE-spatial G': 49.3},
    'voc12_aug': {'V-JEPA 2 g': 63.9, 'V-JEPA 2.1 g': 84.7, 'V-JEPA 2.1 G': 85.0,
                  'DINOv2 g': 83.1, 'DINOv3 7B': 86.6, 'PE-spatial G': 82.7},
}  # fmt: skip


def run(model, config: SegmentationConfig, workdir: Path) -> Results:
    """Trains heads, and writes pictures and a page.

    Raises:
      ConfigError: a set or settings that cannot be used, in one line.
    """
    encoders = dense.encoders(model, config)
    checked = dense.load('segmentation', config, IGNORE)
    names = checked.data.names['label']
    head_of = task(len(names))
    train, test = checked.samples['train'], checked.samples['validation']
    counts, how, maps = {}, {}, {}
    for name, encoder in encoders.items():
        heads, how[name] = dense.fit(encoder, train, head_of, config, f'heads, {name}')
        if name == 'model':
            save(workdir / 'head.npz', heads)
        maps[name] = functools.partial(said, encoder, heads, head_of, config)
        rows = tqdm(test, f'validation, {name}', disable=None)
        counts[name] = np.stack([
            metrics.overlap(maps[name](picture), labels, len(names))
            for picture, labels in (sample.read() for sample in rows)
        ])  # fmt: skip
    most = most_frequent(train, len(names))
    counts['majority'] = np.stack([
        metrics.overlap(np.full(labels.shape, most), labels, len(names))
        for _, labels in (s.read() for s in test)
    ])  # fmt: skip
    sources = np.asarray([s.source for s in test])
    rows = {name: figures(each, sources, config) for name, each in counts.items()}
    results = dict(zip(FIGURES, rows['model']))
    baselines = {
        f'{name}, {what}' if what != FIGURES[0] else name: figure
        for name, row in rows.items()
        if name != 'model'
        for what, figure in zip(FIGURES, row)
    }
    quality = np.array([metrics.of_overlap(c[None])[0] for c in counts['model']])
    published = PUBLISHED.get(config.data.set, {})
    sentences = (
        f'heads: {"; ".join(f"{name}: {words}" for name, words in how.items())}',
        *checked.sentences,
        *(
            ['published, mIoU in percent: ' + ', '.join(f'{k} {v:g}' for k, v in published.items())]
            if published
            else []
        ),
    )
    draw(workdir / 'predictions.png', test, maps, quality, len(names))
    iou = {name: metrics.class_iou(each) for name, each in counts.items()}
    cells = [(n, *(f'{iou[k][i]:.3f}' for k in iou)) for i, n in enumerate(names)]
    dense_page.write(
        workdir, f'Segmentation: {config.data.set}', results, baselines, sentences,
        'predictions.png', [('IoU of each class', ('', *iou), cells)],
    )  # fmt: skip
    return Results(
        results=results,
        baselines=baselines,
        data=checked.about
        | {
            'classes': list(names),
            'class_iou': {
                k: [None if x != x else round(float(x), 4) for x in v] for k, v in iou.items()
            },
            'published': published,
        },
        sentences=sentences,
        outcomes={'IoU of a picture': quality},
        sources=sources,
    )


def task(classes: int) -> dense.Task:
    return _task(classes)


@functools.cache  # programs are kept by task
def _task(classes: int) -> dense.Task:
    return dense.Task(
        outputs=classes,
        none=IGNORE,
        loss=cross_entropy,
        finish=lambda x: x,
        score=lambda x, labels: metrics.overlap(
            classes_of(x, labels.shape), labels, classes
        ),
        total=lambda counts: metrics.of_overlap(counts)[0],
    )  # fmt: skip


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the pixels with a class; outputs [B, h, w, C] are enlarged to labels [B, H, W]."""
    logits = dense.enlarge(outputs, labels.shape[1:])
    there = labels != IGNORE
    known = jnp.where(there, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, known)
    return (losses * there).sum() / jnp.maximum(1, there.sum())


def classes_of(outputs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Outputs [h, w, C], enlarged -> the class of every pixel [H, W]."""
    return np.concatenate([strip.argmax(-1) for strip in dense.strips(outputs, size)])


def said(encoder, heads, task_, config: SegmentationConfig, picture: np.ndarray) -> np.ndarray:
    """The class of every pixel of a picture, [H, W]."""
    outputs = dense.predict(encoder, heads, task_, picture, config.data)
    return classes_of(outputs, picture.shape[:2])


def most_frequent(samples, classes: int) -> int:
    total = np.zeros(classes, int)
    for sample in samples:
        labels = sample.read()[1]
        total += np.bincount(labels[labels != IGNORE], minlength=classes)
    return int(total.argmax())


def figures(counts: np.ndarray, sources: np.ndarray, config: SegmentationConfig) -> list[Figure]:
    """FIGURES of counts [n, 3, C], with percentiles over sources drawn anew."""
    ends = bootstrap(
        sources, lambda rows: metrics.of_overlap(counts[rows]), config.bootstrap, config.seed
    )
    values = metrics.of_overlap(counts)
    return [Figure(value, *pair, len(counts)) for value, pair in zip(values, ends)]


def save(path: Path, heads: dense.Heads) -> None:
    """The head as arrays: outputs are ((x - mean) / sqrt(variance + EPS) * scale + shift) @ kernel
    + bias."""
    params = {name: np.asarray(value[0]) for name, value in heads.params.items()}
    np.savez(path, mean=heads.mean, variance=heads.variance, **params)


def draw(path: Path, test, maps, quality: np.ndarray, classes: int) -> None:
    """The best, the worst and between: picture, truth, what each head says."""
    rows = []
    for i in dense_page.spread(quality):
        picture, labels = test[i].read()
        rows.append([
            (test[i].name, picture),
            ('truth', dense_page.of_classes(labels, classes)),
            *(
                (name if name != 'model' else f'model, IoU {quality[i]:.2f}',
                 dense_page.of_classes(each(picture), classes))
                for name, each in maps.items()
            ),
        ])  # fmt: skip
    dense_page.panels(path, rows, 'from the best picture to the worst')
