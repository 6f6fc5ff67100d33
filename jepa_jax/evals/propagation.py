"""The first frame's labels, carried through a video by how alike frozen tokens are; nothing is
trained.

Each token takes the mean of the soft labels of the tokens most like it, in a circle around its own
place, in the first frame and in the last few that were labelled so. The encoder sees both ways in
time, so a frame is encoded alone or as the end of a clip of past frames: nothing that is shown
later changes it. Baselines: the first frame's labels stay where they are, tokens are patches of
pixels, or an untrained encoder's. (reference: evaluations.md §3, vjepa2_1 §11)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jepa_jax.config.dense import PropagationConfig
from jepa_jax.data.labelled.dense import IGNORE, Sample
from jepa_jax.evals import Figure, Results, dense, dense_page, own
from jepa_jax.evals import dense_metrics as metrics
from jepa_jax.evals.intervals import bootstrap

log = logging.getLogger(__name__)

CHOSEN_ON = 12  # training videos that settings are chosen on, at most
BLOCK = 512  # tokens that look around at a time
# set -> J&F in percent (reference: vjepa2_1 §12.3)
PUBLISHED: dict[str, dict[str, float]] = {
    'davis17': {'V-JEPA 2 g': 52.5, 'V-JEPA 2.1 g': 68.1, 'V-JEPA 2.1 G': 69.0, 'DINOv2 g': 63.9,
                'DINOv3 7B': 71.1, 'PE-spatial G': 68.4},
}  # fmt: skip
Array = jax.Array | np.ndarray
# clips uint8 [B, T, H, W, 3] -> features [B, t, h, w, D]
Encode = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How labels are carried."""

    past: int  # frames of a clip, the last of which is labelled
    radius: int  # tokens
    temperature: float

    def __str__(self) -> str:
        seen = 'each frame alone' if self.past == 1 else f'clips of the last {self.past} frames'
        return f'{seen}, radius {self.radius}, temperature {self.temperature:g}'


@dataclasses.dataclass(frozen=True)
class FrameEncoder:
    """How frames become tokens."""

    encode: Encode
    tubelet: int
    patch: int
    still: int = 0  # frames that a frame alone is repeated to; 0: a tubelet


def run(model, config: PropagationConfig, workdir: Path) -> Results:
    """Follows objects through the validation videos, and writes pictures and a page.

    Raises:
      ConfigError: a set or settings that cannot be used, in one line.
    """
    c = model.config
    shape = c.tubelet, c.patch, c.tubelet_of(1)  # one where the model has a way for images
    encoders = {'model': FrameEncoder(dense.clip_encoder(model), *shape)}
    if config.pixels_baseline:
        pixels = functools.partial(dense.pixel_tokens, patch=c.patch)
        encoders['pixels'] = FrameEncoder(pixels, 1, c.patch)
    if config.random_baseline:
        fresh = own.untrained(model, config.seed + 1)
        encoders['random'] = FrameEncoder(dense.clip_encoder(fresh), *shape)
    checked = dense.load('propagation', config, 0)
    train, test = checked.samples['train'], checked.samples['validation']
    values: dict[str, list[np.ndarray]] = {}
    chosen, how = {}, {}
    for name, encoder in encoders.items():
        chosen[name], how[name] = choose(encoder, train, config)
        log.info('%s: %s, %s', name, chosen[name], how[name])
        values[name] = [
            judge(follow(encoder, frames, labels[0], chosen[name], config), labels)
            for frames, labels in (s.read() for s in tqdm(test, f'videos, {name}', disable=None))
        ]
    values['first frame'] = [
        judge(np.broadcast_to(labels[0], labels.shape), labels)
        for _, labels in (s.read() for s in test)
    ]
    results = dict(zip(('J&F', 'J', 'F'), figures(values['model'], config)))
    results |= dict(
        zip(('J, recall', 'J, decay', 'F, recall', 'F, decay'), over_time(values['model'], config))
    )
    baselines = {
        f'{name}, {what}' if what != 'J&F' else name: figure
        for name, each in values.items()
        if name != 'model'
        for what, figure in zip(('J&F', 'J', 'F'), figures(each, config))
    }
    published = PUBLISHED.get(config.data.set, {})
    sentences = (
        'J&F: mean over objects; n counts videos; nothing of later frames is seen',
        'settings: ' + '; '.join(f'{name}: {s}, {how[name]}' for name, s in chosen.items()),
        *checked.sentences,
        *(
            ['published, J&F in percent: ' + ', '.join(f'{k} {v:g}' for k, v in published.items())]
            if published
            else []
        ),
    )
    quality = np.array([each.mean() for each in values['model']])
    draw(
        workdir / 'predictions.png', test, quality,
        lambda frames, first: follow(encoders['model'], frames, first, chosen['model'], config),
    )  # fmt: skip
    cells = [(s.name, *(f'{values[k][i].mean():.3f}' for k in values)) for i, s in enumerate(test)]
    dense_page.write(
        workdir, f'Labels carried through videos: {config.data.set}', results, baselines,
        sentences, 'predictions.png', [('J&F of each video', ('', *values), cells)],
    )  # fmt: skip
    objects = [s.source for s, each in zip(test, values['model']) for _ in range(each.shape[1])]
    return Results(
        results=results,
        baselines=baselines,
        data=checked.about
        | {
            'objects': len(objects),
            'settings': {name: dataclasses.asdict(s) for name, s in chosen.items()},
            'published': published,
        },
        sentences=sentences,
        outcomes={
            'J&F of an object': np.concatenate([each.mean((0, 2)) for each in values['model']])
        },
        sources=np.asarray(objects),
    )


# --- Tokens --------------------------------------------------------------------------------------


def clips_of(frames: np.ndarray, times: Sequence[int], past: int, tubelet: int) -> np.ndarray:
    """For each time the clip that ends there, [n, T, H, W, 3]: its last `past` frames, filled up
    with the first of them to whole tubelets. A frame alone is repeated."""
    length = -(-past // tubelet) * tubelet
    index = [np.arange(t - length + 1, t + 1).clip(max(0, t - past + 1)) for t in times]
    return frames[np.stack(index)]


def tokens_of(encoder: FrameEncoder, frames: np.ndarray, past: int, batch: int) -> np.ndarray:
    """Unit features of every frame, [T, h, w, D], from it and those before it alone."""
    tubelet = encoder.still or encoder.tubelet if past == 1 else encoder.tubelet
    parts = []
    for start in range(0, len(frames), batch):
        times = np.arange(start, start + batch).clip(max=len(frames) - 1)
        x = encoder.encode(clips_of(frames, times, past, tubelet))[:, -1]
        parts.append(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))
    return np.concatenate(parts)[: len(frames)]


def seen_size(height: int, width: int, short: int, patch: int) -> tuple[int, int]:
    """The size that frames are resized to: its short side, both rounded up to whole patches."""
    return tuple(-(-side // patch) * patch for side in dense.short_side(height, width, short))


# --- Labels --------------------------------------------------------------------------------------


def neighbours(y: Array, x: Array, radius: int | Array, square: bool) -> Array:
    """Which places, given as distances in tokens, are looked at."""
    return (abs(y) <= radius) & (abs(x) <= radius) if square else y * y + x * x <= radius**2


def carry(
    context: jax.Array,
    labels: jax.Array,
    there: jax.Array,
    query: jax.Array,
    *,
    radius: int | jax.Array,
    top: int,
    temperature: float | jax.Array,
    square: bool = False,
) -> jax.Array:
    """Soft labels of a frame's tokens, [h, w, M]: the mean over those of the context that are at
    least as alike as the `top`-th, weighted by exp(cosine / temperature).

    Args:
      context: unit features [K, h, w, D].
      labels: their soft labels [K, h, w, M], which add up to one.
      there: [K] bool: which of them count.
      query: unit features [h, w, D].
      radius: of the circle that a token looks at, in tokens.
      top: how many vote; of equal ones all.
      temperature: of the weights.
      square: a square of that half side in place of the circle.
    """
    K, h, w, D = context.shape
    keys, values = context.reshape(K * h * w, D), labels.reshape(K * h * w, -1)
    place = jnp.arange(h * w)
    ky, kx = jnp.divmod(place, w)

    def look(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, at = row
        near = neighbours(ky - at // w, kx - at % w, radius, square)
        near = (near & there[:, None]).reshape(-1)
        alike = jnp.where(near, keys @ x, -jnp.inf)
        least = jax.lax.top_k(alike, min(top, len(alike)))[0].min()  # [-1] would make it a sort
        weights = jax.nn.softmax(jnp.where(alike >= least, alike, -jnp.inf) / temperature)
        return weights @ values

    out = jax.lax.map(look, (query.reshape(h * w, D), place), batch_size=min(BLOCK, h * w))
    return (out / out.sum(-1, keepdims=True)).reshape(h, w, -1)


@functools.partial(jax.jit, static_argnames=('context', 'top', 'square'))
def carried(
    features: jax.Array,
    first: jax.Array,
    radius: int,
    temperature: float,
    *,
    context: int,
    top: int,
    square: bool = False,
) -> jax.Array:
    """Soft labels of all frames [T, h, w, M] from unit features [T, h, w, D] and the first frame's
    labels one-hot [h, w, M]; context: how many of the last frames are looked at beside the
    first."""
    keys = jnp.zeros((1 + context, *features.shape[1:])).at[0].set(features[0])
    labels = jnp.zeros((1 + context, *first.shape)).at[0].set(first)

    def step(queue: tuple[jax.Array, jax.Array], t: jax.Array):
        soft = carry(
            *queue, jnp.arange(1 + context) < t, features[t], radius=radius, top=top,
            temperature=temperature, square=square,
        )  # fmt: skip
        if context:
            place = 1 + (t - 1) % context  # the oldest makes room
            queue = queue[0].at[place].set(features[t]), queue[1].at[place].set(soft)
        return queue, soft

    _, rest = jax.lax.scan(step, (keys, labels), jnp.arange(1, len(features)))
    return jnp.concatenate([first[None], rest])


def of_pixels(soft: np.ndarray, size: tuple[int, int], smooth: bool) -> np.ndarray:
    """Soft labels [h, w, M] -> the label of every pixel [H, W]: each map between its least and its
    most, then the largest."""
    large = np.concatenate(list(dense.strips(soft, size))) if smooth else dense.nearest(soft, size)
    return stretched(large).argmax(-1)


def stretched(soft: np.ndarray) -> np.ndarray:
    """Each map of [H, W, M] from 0 at its least to 1 at its most; one that is constant is 0."""
    low, high = soft.min((0, 1)), soft.max((0, 1))
    return (soft - low) / np.where(high > low, high - low, 1)


def follow(
    encoder: FrameEncoder,
    frames: np.ndarray,
    first: np.ndarray,
    setting: Setting,
    config: PropagationConfig,
    features: np.ndarray | None = None,
) -> np.ndarray:
    """Object numbers of every frame, uint8 [T, H, W].

    Args:
      encoder: of clips.
      frames: uint8 [T, H, W, 3].
      first: object numbers of the first frame, [H, W].
      features: of the frames, where they are known already.
    """
    size = frames.shape[1:3]
    if features is None:
        features = features_of(encoder, frames, setting.past, config)
    small = dense.nearest(np.where(first == IGNORE, 0, first), features.shape[1:3])
    maps = int(first[first != IGNORE].max()) + 1
    soft = carried(
        features, np.eye(maps, dtype=np.float32)[small], setting.radius, setting.temperature,
        context=config.context, top=config.top, square=config.square,
    )  # fmt: skip
    return np.stack([of_pixels(each, size, config.smooth) for each in np.asarray(soft)]).astype(
        np.uint8
    )


def features_of(
    encoder: FrameEncoder, frames: np.ndarray, past: int, config: PropagationConfig
) -> np.ndarray:
    """Unit features [T, h, w, D] of frames of any size."""
    seen = seen_size(*frames.shape[1:3], config.data.short, encoder.patch)
    return tokens_of(
        encoder, np.stack([dense.resized(f, seen) for f in frames]), past, config.batch
    )


# --- Figures -------------------------------------------------------------------------------------


def judge(said: np.ndarray, true: np.ndarray) -> np.ndarray:
    """J and F [2, objects, T - 2] of object numbers [T, H, W], without the first and last frame."""
    count = int(true[true != IGNORE].max())
    return metrics.objects(said[1:-1], true[1:-1], count)


def choose(
    encoder: FrameEncoder, train: Sequence[Sample], config: PropagationConfig
) -> tuple[Setting, str]:
    """The setting with the best mean J over objects of training videos, and how it was chosen."""
    grid = [
        Setting(*row)
        for row in itertools.product(*(
            dict.fromkeys(v) for v in (config.past, config.radii, config.temperatures)
        ))
    ]  # fmt: skip
    if encoder.tubelet == 1:  # what looks at single frames alone has no past
        grid = list(dict.fromkeys(dataclasses.replace(s, past=1) for s in grid))
    if len(grid) == 1:
        return grid[0], 'as published, not chosen'
    rows = np.linspace(0, len(train) - 1, min(CHOSEN_ON, len(train))).astype(int)
    scores: dict[Setting, list[float]] = {setting: [] for setting in grid}
    for i in tqdm(rows, 'choosing settings', disable=None):
        frames, labels = train[i].read()
        known = {
            past: features_of(encoder, frames, past, config) for past in {s.past for s in grid}
        }
        for setting in grid:
            said = follow(encoder, frames, labels[0], setting, config, known[setting.past])
            for number in range(1, int(labels[labels != IGNORE].max()) + 1):
                pairs = zip(said[1:-1] == number, labels[1:-1] == number, labels[1:-1] == IGNORE)
                scores[setting].append(np.mean([metrics.region(*masks) for masks in pairs]))
    best = max(scores, key=lambda s: np.mean(scores[s]))
    return best, f'each the best of {len(grid)} by J on {len(rows)} training videos'


def figures(values: Sequence[np.ndarray], config: PropagationConfig) -> list[Figure]:
    """J&F, J and F, means over objects, of [2, objects, T] a video; percentiles over videos."""
    each = np.concatenate([v.mean(2).T for v in values])  # [objects, 2]
    sources = np.repeat(np.arange(len(values)), [v.shape[1] for v in values])

    def measure(rows) -> tuple[float, float, float]:
        J, F = each[rows].mean(0)
        return float((J + F) / 2), float(J), float(F)

    ends = bootstrap(sources, measure, config.bootstrap, config.seed)
    return [
        Figure(value, *pair, len(values)) for value, pair in zip(measure(slice(None)), ends)
    ]  # fmt: skip


def over_time(values: Sequence[np.ndarray], config: PropagationConfig) -> list[Figure]:
    """Recall and decay of J, then of F, means over objects."""
    rows = np.array([
        [x for kind in video[:, i] for x in metrics.over_time(kind)[1:]]
        for video in values
        for i in range(video.shape[1])
    ])  # fmt: skip
    sources = np.repeat(np.arange(len(values)), [v.shape[1] for v in values])
    ends = bootstrap(sources, lambda part: tuple(rows[part].mean(0)), config.bootstrap, config.seed)
    return [Figure(float(v), *pair, len(values)) for v, pair in zip(rows.mean(0), ends)]


def draw(path: Path, test: Sequence[Sample], quality: np.ndarray, said) -> None:
    """The best video, the worst and between: first frame, then truth and answer later."""
    rows = []
    for i in dense_page.spread(quality):
        frames, labels = test[i].read()
        labels = np.where(labels == IGNORE, 0, labels)
        answer = said(frames, labels[0])
        row = [(f'{test[i].name}, J&F {quality[i]:.2f}', dense_page.over(frames[0], labels[0]))]
        for t in (len(frames) // 4, len(frames) // 2, len(frames) - 2):
            row += [
                (f'frame {t}, truth', dense_page.over(frames[t], labels[t])),
                (f'frame {t}, answer', dense_page.over(frames[t], answer[t])),
            ]
        rows.append(row)
    dense_page.panels(path, rows, 'from the best video to the worst; the first frame is given')
