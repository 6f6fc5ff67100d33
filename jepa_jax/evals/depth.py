"""The distance of every pixel, by a linear head on frozen tokens; see `dense`.

The head gives weights to bins of distance; their mean is the answer. RMSE is that of each picture,
then the mean over pictures. Baselines: the mean distance at each place of the picture, the same
head on patches of pixels, and on an untrained encoder. (reference: evaluations.md §3)
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jepa_jax.config.dense import DepthConfig
from jepa_jax.evals import Figure, Results, dense, dense_page, segmentation
from jepa_jax.evals import dense_metrics as metrics
from jepa_jax.evals.intervals import bootstrap

FINER = 4  # times as many places as tokens, before bins become distances
LEAST = 0.1  # weight of a bin before they are made to add up to one
SHAPE = 0.15  # weight of the mean in the loss: 0: scale does not matter at all
MAP = 32  # places of the baseline that knows nothing but them, each way
FIGURES = ('RMSE', *(name for name in metrics.DISTANCES if name != 'RMSE'))
# set -> RMSE in metres, linear on the last layer (reference: vjepa2_1 §12.3)
PUBLISHED: dict[str, dict[str, float]] = {
    'nyuv2': {'V-JEPA 2 g': 0.642, 'V-JEPA 2.1 g': 0.350, 'V-JEPA 2.1 G': 0.307,
              'DINOv2 g': 0.372, 'DINOv3 7B': 0.309, 'PE-spatial G': 0.362},
}  # fmt: skip


def run(model, config: DepthConfig, workdir: Path) -> Results:
    """Trains heads, and writes pictures and a page.

    Raises:
      ConfigError: a set or settings that cannot be used, in one line.
    """
    encoders = dense.encoders(model, config)
    checked = dense.load('depth', config, 0)
    head_of = task(config.bins, *config.metres)
    train, test = checked.samples['train'], checked.samples['validation']
    maps, how = {}, {}
    for name, encoder in encoders.items():
        heads, how[name] = dense.fit(encoder, train, head_of, config, f'heads, {name}')
        if name == 'model':
            segmentation.save(workdir / 'head.npz', heads)
        maps[name] = functools.partial(said, encoder, heads, head_of, config)
    usual = mean_map(train)
    maps['position'] = lambda picture: enlarged(usual, picture.shape[:2])
    values, squares = {}, {}
    for name, each in maps.items():
        rows, values[name], squares[name] = tqdm(test, f'validation, {name}', disable=None), [], []
        for picture, labels in (sample.read() for sample in rows):
            valid, metres = scored(labels, config), each(picture).clip(*config.metres)
            values[name].append(metrics.distances(metres, labels, valid))
            squares[name].append((np.square(metres - labels)[valid].sum(), valid.sum()))
    sources = np.asarray([s.source for s in test])
    order = [metrics.DISTANCES.index(name) for name in FIGURES]
    table = {name: np.array(rows)[:, order] for name, rows in values.items()}
    rows = {name: figures(table[name], np.array(squares[name]), sources, config) for name in maps}
    names = (*FIGURES, 'RMSE, all pixels')
    results = dict(zip(names, rows['model']))
    baselines = {
        f'{name}, {what}' if what != 'RMSE' else name: figure
        for name, row in rows.items()
        if name != 'model'
        for what, figure in zip(names, row)
    }
    published = PUBLISHED.get(config.data.set, {})
    sentences = (
        'RMSE in metres, the mean over pictures unless a row says otherwise: lower is better; '
        'delta1: share of pixels within a factor of 1.25',
        f'heads: {"; ".join(f"{name}: {words}" for name, words in how.items())}',
        *checked.sentences,
        *(
            ['published, RMSE in metres: ' + ', '.join(f'{k} {v:g}' for k, v in published.items())]
            if published
            else []
        ),
    )
    quality = -table['model'][:, 0]
    draw(workdir / 'predictions.png', test, maps, quality)
    dense_page.write(
        workdir, f'Depth: {config.data.set}', results, baselines, sentences, 'predictions.png'
    )
    return Results(
        results=results,
        baselines=baselines,
        data=checked.about | {'published': published},
        sentences=sentences,
        outcomes={'-RMSE of a picture': quality},
        sources=sources,
    )


@functools.cache  # programs are kept by task
def task(bins: int, near: float, far: float) -> dense.Task:
    def finish(outputs: jax.Array) -> jax.Array:
        return metres_of(outputs, near, far)[..., None]

    def score(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        valid = (labels > near) & (labels < far)
        return metrics.distances(enlarged(x[..., 0], labels.shape).clip(near, far), labels, valid)

    return dense.Task(
        outputs=bins,
        none=0,
        loss=lambda outputs, labels: scale_invariant(
            dense.enlarge(finish(outputs), labels.shape[1:])[..., 0],
            labels,
            (labels > near) & (labels < far),
        ),
        finish=finish,
        score=score,
        total=lambda values: -float(np.nanmean(values[:, metrics.DISTANCES.index('RMSE')])),
    )


def metres_of(outputs: jax.Array, near: float, far: float) -> jax.Array:
    """Outputs [B, h, w, bins] -> distances [B, FINER h, FINER w]: the mean of evenly spaced bins,
    weighted by what of the outputs is above 0, and a little for each."""
    _, h, w, bins = outputs.shape
    weights = jax.nn.relu(dense.enlarge(outputs, (FINER * h, FINER * w))) + LEAST
    return weights @ jnp.linspace(near, far, bins) / weights.sum(-1)


def scale_invariant(said: jax.Array, true: jax.Array, valid: jax.Array) -> jax.Array:
    """Root of the variance of log(said / true) over all valid pixels of a batch and SHAPE of its
    mean's square."""
    log = jnp.where(valid, jnp.log(said) - jnp.log(jnp.where(valid, true, 1)), 0)
    count = jnp.maximum(1, valid.sum())
    mean = log.sum() / count
    variance = jnp.where(valid, jnp.square(log - mean), 0).sum() / jnp.maximum(1, count - 1)
    return jnp.sqrt(variance + SHAPE * jnp.square(mean) + 1e-12)


def enlarged(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w] -> [H, W], bilinear."""
    return np.concatenate(list(dense.strips(x[..., None], size)))[..., 0]


def said(encoder, heads, task_, config: DepthConfig, picture: np.ndarray) -> np.ndarray:
    """The distance of every pixel of a picture, [H, W]."""
    answer = dense.predict(encoder, heads, task_, picture, config.data)[..., 0]
    if config.mirror:
        mirrored = np.ascontiguousarray(picture[:, ::-1])
        other = dense.predict(encoder, heads, task_, mirrored, config.data)[..., 0]
        answer = (answer + other[:, ::-1]) / 2
    return enlarged(answer, picture.shape[:2])


def scored(labels: np.ndarray, config: DepthConfig) -> np.ndarray:
    """Pixels [H, W] that count: those with a distance in range, within the rows and columns."""
    near, far = config.metres
    valid = (labels > near) & (labels < far)
    for axis, (first, last) in enumerate((config.rows, config.columns)):
        if last:
            place = np.arange(labels.shape[axis])
            inside = (place >= first) & (place < last)
            valid &= inside[:, None] if axis == 0 else inside
    return valid


def mean_map(samples) -> np.ndarray:
    """Mean distance at each of MAP x MAP places of the training pictures; where none has one, the
    mean of all."""
    total, count = np.zeros((2, MAP, MAP))
    for sample in samples:
        labels = dense.nearest(sample.read()[1], (MAP, MAP))
        total += labels
        count += labels > 0
    return np.where(count, total / np.maximum(count, 1), total.sum() / max(1, count.sum()))


def figures(
    values: np.ndarray, squares: np.ndarray, sources: np.ndarray, config: DepthConfig
) -> list[Figure]:
    """FIGURES of values [n, 5], and the RMSE of all pixels of squares [n, 2] (sum, count), with
    percentiles over sources drawn anew."""

    def measure(rows) -> tuple[float, ...]:
        total, count = squares[rows].sum(0)
        return (*np.nanmean(values[rows], 0), float(np.sqrt(total / count)))

    ends = bootstrap(sources, measure, config.bootstrap, config.seed)
    return [
        Figure(float(value), *pair, len(values))
        for value, pair in zip(measure(slice(None)), ends)
    ]  # fmt: skip


def draw(path: Path, test, maps, quality: np.ndarray) -> None:
    """The best, the worst and between: picture, truth, what each says, in the same colours."""
    rows = []
    for i in dense_page.spread(quality):
        picture, labels = test[i].read()
        known = labels[labels > 0]
        ends = float(known.min()), float(known.max())
        rows.append([
            (test[i].name, picture),
            (f'truth, {ends[0]:.1f} to {ends[1]:.1f} m', dense_page.of_metres(labels, *ends)),
            *(
                (name if name != 'model' else f'model, RMSE {-quality[i]:.2f} m',
                 dense_page.of_metres(each(picture), *ends))
                for name, each in maps.items()
            ),
        ])  # fmt: skip
    dense_page.panels(path, rows, 'from the best picture to the worst; near is light')
