"""Linear heads on frozen tokens: what segmentation and depth have in common.

Training pictures are resized, cut and mirrored at random, encoded once, and read by all heads of a
grid: batch norm, dropout of channels, one linear layer, its outputs enlarged to the labels' size.
The head is chosen on training sources that it did not learn from, and then learns from all of
them. In validation windows slide over a picture, and outputs are averaged where they overlap.
(reference: evaluations.md §3, vjepa2_1 §11)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from tqdm import tqdm

from jepa_jax.config.dense import DenseConfig, PicturesConfig
from jepa_jax.data.labelled import dense as sets
from jepa_jax.data.labelled.dense import Sample
from jepa_jax.data.labelled.records import LabelledSet
from jepa_jax.data.views import taps
from jepa_jax.data.windows import ahead
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals import examples, linear, own, probes
from jepa_jax.evals.devices import everywhere, in_shares
from jepa_jax.evals.probes import Setting
from jepa_jax.models import tokens

log = logging.getLogger(__name__)

EPS, MOMENTUM = 1e-5, 0.1  # of the batch norm
CLIP = 35.0  # of the gradient's norm (reference: DINOv3's heads)
READERS = 4  # threads that read files


@dataclasses.dataclass(frozen=True)
class Task:
    """What heads say of a place, and how that is judged."""

    outputs: int
    none: float  # label of pixels without one
    # outputs [B, h, w, C], labels [B, H, W] -> the loss of a batch
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    finish: Callable[[jax.Array], jax.Array]  # outputs [B, h, w, C] -> what windows average
    score: Callable[[np.ndarray, np.ndarray], np.ndarray]  # that of one window [h, w, C], labels
    total: Callable[[np.ndarray], float]  # scores [n, ...] -> the higher the better


# --- Data ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Checked:
    """A set of which every file was read once."""

    data: LabelledSet
    samples: dict[str, list[Sample]]  # split -> what can be used
    problems: dict[str, list[str]]  # split -> why others cannot
    digest: str  # of the validation split's pixels and labels

    @property
    def about(self) -> dict[str, Any]:
        """For the report."""
        return {
            'expected': self.data.listed['validation'],
            'read': len(self.samples['validation']),
            'train': len(self.samples['train']),
            'hash': self.digest,
            'missing': {split: len(names) for split, names in self.data.missing.items()},
            'problems': [line for lines in self.problems.values() for line in lines],
        }

    @property
    def sentences(self) -> list[str]:
        """What of the set is not as it should be."""
        lines = list(self.data.notes)
        for split, names in self.data.missing.items():
            if names:
                lines.append(
                    f'{split}: {len(names):,} of {self.data.listed[split]:,} are not on disk or '
                    f'have no labels, such as {names[0]}'
                )
        for split, problems in self.problems.items():
            if problems:
                lines.append(f'{split}: {len(problems)} cannot be used, such as {problems[0]}')
        return lines


def contents(config: Any) -> str:
    """A hash of the set's files."""
    return examples.hash_of(examples.files_of(config.data.path))


def load(task: str, config: Any, none: float) -> Checked:
    """The set of a config; every file is read once, so that nothing surprises in mid-training.

    none: label of pixels without one; samples with no other are left out, as are those that cannot
    be read or do not fit together.

    Raises:
      ConfigError: the set is another version, labels are out of range, a split has nothing left.
    """
    c = config.data
    data = sets.read(task, c.set, c.path, c.official)
    kept, problems, digest = {}, {}, hashlib.sha256()

    def look(sample: Sample) -> bytes | BadFile:
        try:
            pixels, labels = sample.read()
        except BadFile as error:
            return error
        if not (labels != none).any():
            return BadFile(sample.name, 'short', 'no pixel has a label')
        return hashlib.sha256(pixels.tobytes() + labels.tobytes()).digest()

    with ThreadPoolExecutor(READERS) as pool:
        for split, samples in data.splits.items():
            kept[split], problems[split] = [], []
            seen = pool.map(look, samples)
            for sample, hashed in zip(
                samples, tqdm(seen, f'reading {split}', len(samples), disable=None)
            ):
                if not isinstance(hashed, BadFile):
                    kept[split].append(sample)
                    if split == 'validation':
                        digest.update(hashed)
                elif hashed.reason == 'bad_units':  # the same would be wrong with more of them
                    raise ConfigError(f'{c.set}: {hashed}') from hashed
                else:
                    log.warning('left out: %s', hashed)
                    problems[split].append(str(hashed))
            if not kept[split]:
                raise ConfigError(f'{c.set}: {split} is empty: {problems[split][0]}')
    return Checked(data, kept, problems, digest.hexdigest())


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] -> [h, w, 3], bilinear with antialias."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR))


def nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, ...] -> [h, w, ...], each the one that is nearest to its middle."""
    y, x = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(labels.shape, size)
    )
    return labels[y[:, None], x]


def short_side(height: int, width: int, short: float) -> tuple[int, int]:
    """The size with such a short side; 0: the same."""
    factor = short / min(height, width) if short else 1.0
    return round(height * factor), round(width * factor)


def view(
    sample: Sample, c: PicturesConfig, none: float, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """A crop uint8 [H, W, 3] and its labels [H, W]: at random, or the middle without `rng`. Where
    the picture is smaller it ends in black without labels."""
    picture, labels = sample.read()
    factor = rng.uniform(*c.scale) if rng else 1.0
    size = short_side(*labels.shape, c.short)
    size = tuple(max(1, round(side * factor)) for side in size)
    room = [max(0, side - crop) for side, crop in zip(size, c.crop)]
    top, left = (int(rng.integers(r + 1)) for r in room) if rng else (r // 2 for r in room)
    part = slice(top, top + c.crop[0]), slice(left, left + c.crop[1])
    picture, labels = resized(picture, size)[part], nearest(labels, size)[part]
    if rng and c.flip and rng.random() < 0.5:
        picture, labels = picture[:, ::-1], labels[:, ::-1]
    out = np.zeros((*c.crop, 3), np.uint8), np.full(c.crop, none, labels.dtype)
    here = slice(len(labels)), slice(labels.shape[1])
    out[0][here], out[1][here] = picture, labels
    return out


# --- Tokens --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PictureEncoder:
    """Pictures uint8 [B, H, W, 3] -> features float32 [B, h, w, D] of their patches."""

    encode: Callable[[np.ndarray], np.ndarray]
    patch: int  # pixels, of the model's; H and W are multiples

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        return self.encode(pictures)


def encoders(model, config: DenseConfig) -> dict[str, PictureEncoder]:
    """The model's, and those it is held against."""
    c = model.config
    count = config.data.frames or c.tubelet_of(1)
    if count % c.tubelet_of(count):
        raise ConfigError(f'data.frames = {count}: must be a multiple of {c.tubelet}, the tubelet')

    def still(encode: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda pictures: encode(
            np.broadcast_to(pictures[:, None], (len(pictures), count, *pictures.shape[1:]))
        ).mean(1)

    patch = c.patch
    if any(side % patch for side in config.data.crop):
        raise ConfigError(
            f'data.crop = {config.data.crop}: must be multiples of {patch}, the patch'
        )
    result = {'model': PictureEncoder(still(clip_encoder(model)), patch)}
    if config.pixels_baseline:
        result['pixels'] = PictureEncoder(lambda x: pixel_tokens(x[:, None], patch)[:, 0], patch)
    if config.random_baseline:
        result['random'] = PictureEncoder(
            still(clip_encoder(own.untrained(model, config.seed + 1))), patch
        )
    return result


def clip_encoder(model) -> Callable[[np.ndarray], np.ndarray]:
    """Clips uint8 [B, T, H, W, 3] -> features [B, t, h, w, D], on all devices of this process."""
    placed, local = everywhere(model)
    run = in_shares(local, placed.encode)

    def encode(clips: np.ndarray) -> np.ndarray:
        grid = model.config.grid(*clips.shape[1:4])
        return run(clips).reshape(len(clips), *grid, -1)

    return encode


def pixel_tokens(clips: np.ndarray, patch: int) -> np.ndarray:
    """Clips uint8 [B, T, H, W, 3] -> the pixels of each patch [B, T, h, w, 3 * patch^2]."""
    B, T, H, W, _ = clips.shape
    cut = tokens.normalise(tokens.cut(jnp.asarray(clips), 1, patch))
    return np.asarray(cut).reshape(B, T, H // patch, W // patch, -1)


# --- Enlarging -----------------------------------------------------------------------------------


@functools.cache
def _matrix(old: int, new: int) -> np.ndarray:
    """[new, old] weights of a bilinear resize without antialias, edges repeated."""
    first, second, weight = taps(old, new)
    matrix, rows = np.zeros((new, old), np.float32), np.arange(new)
    np.add.at(matrix, (rows, first), 1 - weight)
    np.add.at(matrix, (rows, second), weight)
    return matrix


def enlarge(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[B, h, w, C] -> [B, H, W, C], bilinear."""
    y, x_ = (_matrix(old, new) for old, new in zip(x.shape[1:3], size))
    return jnp.einsum('Hh,bhwc,Ww->bHWc', y, x, x_)


def strips(x: np.ndarray, size: tuple[int, int], rows: int = 128) -> Iterator[np.ndarray]:
    """`enlarge` of one map [h, w, C], so many rows at a time: [<= rows, W, C]."""
    (y0, y1, below), (x0, x1, right) = (taps(old, new) for old, new in zip(x.shape, size))
    right = right[:, None]
    for start in range(0, size[0], rows):
        part = slice(start, start + rows)
        tall = x[y0[part]] * (1 - below[part, None, None]) + x[y1[part]] * below[part, None, None]
        yield tall[:, x0] * (1 - right) + tall[:, x1] * right


# --- Heads ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Heads:
    """Parameters of heads, [G, ...] each, and the batch norm's statistics, which they share."""

    params: dict[str, jax.Array]  # scale, shift [G, D]; kernel [G, D, C]; bias [G, C]
    mean: jax.Array  # [D]
    variance: jax.Array  # [D]

    def one(self, number: int) -> Heads:
        return dataclasses.replace(
            self, params={k: v[number : number + 1] for k, v in self.params.items()}
        )


def _outputs(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Of one head, from normalised features [B, h, w, D]."""
    return (x * params['scale'] + params['shift']) @ params['kernel'] + params['bias']


def _normalise(x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
    return (x - mean) * jax.lax.rsqrt(variance + EPS)


@functools.lru_cache(maxsize=8)
def _advance(task: Task, steps: int, warmup: int, dropout: float):
    """One step of all heads on the same features."""
    adam = optax.scale_by_adam()

    @jax.jit
    def advance(params, state, mean, variance, number, x, labels, key, rates, decays):
        axes = (0, 1, 2)
        count = x.size // x.shape[-1]
        own_mean, own_variance = x.mean(axes), x.var(axes)
        mean += MOMENTUM * (own_mean - mean)
        variance += MOMENTUM * (own_variance * count / max(1, count - 1) - variance)
        x = _normalise(x, own_mean, own_variance)
        kept = jax.random.bernoulli(key, 1 - dropout, (len(x), 1, 1, x.shape[-1])) / (1 - dropout)
        rise, fall = (number + 1) / max(1, warmup), (number - warmup) / max(1, steps - warmup)
        factor = jnp.where(number < warmup, rise, 0.5 * (1 + jnp.cos(jnp.pi * fall)))

        def loss(p):
            normed = x * p['scale'] + p['shift']
            return task.loss((normed * kept) @ p['kernel'] + p['bias'], labels)

        def head(row):
            p, own, rate, decay = row
            value, grads = jax.value_and_grad(loss)(p)
            short = jnp.minimum(1.0, CLIP / (optax.tree.norm(grads) + 1e-6))
            updates, own = adam.update(jax.tree.map(lambda g: g * short, grads), own, p)
            p = jax.tree.map(lambda a, u: a - factor * rate * (u + decay * a), p, updates)
            return p, own, value

        params, state, values = jax.lax.map(head, (params, state, rates, decays))
        return params, state, mean, variance, values

    return advance


def train(
    encoder: PictureEncoder,
    samples: Sequence[Sample],
    task: Task,
    settings: Sequence[Setting],
    config: DenseConfig,
    title: str,
) -> tuple[Heads, np.ndarray]:
    """Heads with AdamW, which decays all parameters, and a cosine to zero after the warm-up.

    Returns:
      the heads, and which of them kept a finite loss, [G] bool.
    """
    c, batch = config.data, config.batch
    plan = probes.orders(len(samples), config.steps, batch, config.seed)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with ThreadPoolExecutor(READERS) as pool:
            for number, rows in enumerate(plan):
                seeds = [np.random.default_rng([config.seed, number, i]) for i in range(batch)]
                parts = pool.map(
                    lambda row, rng: view(samples[row], c, task.none, rng), rows, seeds
                )
                pictures, labels = zip(*parts)
                yield np.stack(pictures), np.stack(labels)

    rates, decays = (jnp.array([getattr(s, k) for s in settings]) for k in ('lr', 'weight_decay'))
    advance = _advance(task, config.steps, config.warmup, config.dropout)
    key, params, losses = jax.random.key(config.seed), None, []
    for number, (pictures, labels) in enumerate(
        tqdm(ahead(batches()), title, config.steps, disable=None)
    ):
        x = jnp.asarray(encoder(pictures))
        if params is None:
            one = _initial(jax.random.fold_in(key, config.steps), x.shape[-1], task.outputs)
            params = {k: jnp.stack([v] * len(settings)) for k, v in one.items()}
            state = jax.vmap(optax.scale_by_adam().init)(params)
            mean, variance = jnp.zeros(x.shape[-1]), jnp.ones(x.shape[-1])
        params, state, mean, variance, values = advance(
            params, state, mean, variance, number, x, labels, jax.random.fold_in(key, number),
            rates, decays,
        )  # fmt: skip
        losses.append(values)
    return Heads(params, mean, variance), np.isfinite(np.stack(losses)).all(0)


def _initial(key: jax.Array, width: int, outputs: int) -> dict[str, jax.Array]:
    return {
        'scale': jnp.ones(width),
        'shift': jnp.zeros(width),
        'kernel': 0.01 * jax.random.normal(key, (width, outputs)),
        'bias': jnp.zeros(outputs),
    }


@functools.lru_cache(maxsize=8)
def _answer(task: Task):
    @jax.jit
    def answer(heads, mean, variance, x):
        x = _normalise(x, mean, variance)
        return jax.lax.map(lambda p: task.finish(_outputs(p, x)), heads)

    return answer


def answers(heads: Heads, task: Task, x: np.ndarray) -> np.ndarray:
    """What each head says of features [B, h, w, D]: [G, B, h', w', C']."""
    return np.asarray(_answer(task)(heads.params, heads.mean, heads.variance, jnp.asarray(x)))


def predict(
    encoder: PictureEncoder, heads: Heads, task: Task, picture: np.ndarray, c: PicturesConfig
) -> np.ndarray:
    """What the first head says of a picture uint8 [H, W, 3], on a grid of its own: [h, w, C]."""
    size = short_side(*picture.shape[:2], c.short)
    if not c.stride:
        patch = encoder.patch
        size = tuple(max(patch, round(side / patch) * patch) for side in size)
        return answers(heads, task, encoder(resized(picture, size)[None]))[0, 0]
    size = tuple(max(side, crop) for side, crop in zip(size, c.crop))
    picture = resized(picture, size)
    starts = [
        [min(i, side - crop) for i in range(0, side - crop + c.stride, c.stride)]
        for side, crop in zip(size, c.crop)
    ]
    total, count = None, np.zeros((*size, 1), np.float32)
    for y in starts[0]:
        for x in starts[1]:
            part = slice(y, y + c.crop[0]), slice(x, x + c.crop[1])
            said = answers(heads, task, encoder(picture[part][None]))[0, 0]
            said = np.concatenate(list(strips(said, c.crop)))
            total = np.zeros((*size, said.shape[-1]), np.float32) if total is None else total
            total[part] += said
            count[part] += 1
    return total / count


def fit(
    encoder: PictureEncoder, samples: Sequence[Sample], task: Task, config: DenseConfig, title: str
) -> tuple[Heads, str]:
    """The head that does best on a part of the training sources, trained on all of them.

    Returns:
      it, and how it was chosen.

    Raises:
      ConfigError: pictures of one source, or no loss that is finite.
    """
    grid = list(dict.fromkeys(
        Setting(lr, decay) for decay in config.decays for lr in config.rates
    ))  # fmt: skip
    how, best = 'the only one', 0
    if len(grid) > 1:
        sources = np.asarray([s.source for s in samples])
        if len(np.unique(sources)) < 2:
            raise ConfigError('training: pictures of one source, so none to choose the head on')
        parts = max(2, min(round(1 / config.chosen_on), len(np.unique(sources))))
        held = linear.apart(sources, None, parts, config.seed)[0]
        heads, finite = train(
            encoder, [s for s, h in zip(samples, held) if not h], task, grid, config,
            f'{title}, choosing',
        )  # fmt: skip
        scores = np.where(finite, judge(encoder, heads, task, samples, held, config), -np.inf)
        if not np.isfinite(scores).any():
            raise ConfigError('no head has a finite loss; lower rates are needed')
        best = int(scores.argmax())
        how = f'best of {len(grid)} on {held.sum()} training pictures ({scores[best]:.3f} there)'
    heads, finite = train(encoder, samples, task, [grid[best]], config, title)
    if not finite.all():
        raise ConfigError(f'rate {grid[best].lr:g}: the loss is not finite; lower rates are needed')
    return heads, f'rate {grid[best].lr:g}, decay {grid[best].weight_decay:g}, {how}'


def judge(
    encoder: PictureEncoder,
    heads: Heads,
    task: Task,
    samples: Sequence[Sample],
    held: np.ndarray,
    config: DenseConfig,
) -> np.ndarray:
    """How good each head is on the middles of some pictures, [G]."""
    rows, scores = np.flatnonzero(held), []
    for start in range(0, len(rows), config.batch):
        part = rows[start : start + config.batch]
        part = np.concatenate([part, np.repeat(part[-1:], config.batch - len(part))])
        views = [view(samples[i], config.data, task.none, None) for i in part]
        pictures, labels = (np.stack(column) for column in zip(*views))
        for said in answers(heads, task, encoder(pictures)):
            values = [task.score(one, own) for one, own in zip(said, labels)]
            scores.append(values[: len(rows) - start])
    count = len(next(iter(heads.params.values())))
    by_head = [np.concatenate(scores[g::count]) for g in range(count)]
    return np.array([task.total(values) for values in by_head])
