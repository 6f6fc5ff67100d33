"""The original's attentive heads: its grids, and which head counts.

Two ways to choose. `exact`: on a part of the training clips, after which the setting learns from
all of them. `upstream`, the original's: on the validation clips themselves, so that its figure is
the best of many and no fair one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jepa_jax import scratch
from jepa_jax.config import HeadsConfig, LabelledSetConfig
from jepa_jax.data.labelled import LabelledSet
from jepa_jax.data.windows import ahead
from jepa_jax.errors import BadFile, ConfigError, allowed
from jepa_jax.evals import linear, probes
from jepa_jax.evals.devices import everywhere, in_shares
from jepa_jax.models.pooler import PoolerConfig

log = logging.getLogger(__name__)

_RATES = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
# name -> (peak rate, decay) of each head, in the original's order (reference: vjepa2 §11.2)
GRIDS: dict[str, tuple[tuple[float, float], ...]] = {
    'video': tuple((lr, decay) for decay in (0.01, 0.1, 0.4, 0.8) for lr in _RATES),
    'small': tuple((lr, 0.8) for lr in (1e-3, 3e-4, 1e-4)),
    'pictures': (
        (1e-3, 1e-3),
        *(
            (lr, decay)
            for lr in (5e-4, 1e-3, 1.5e-3, 2e-3)
            for decay in (0.008, 0.004, 0.002, 0.001, 0.0005)
        ),
    ),
    'anticipation': tuple((lr, decay) for decay in (1e-4, 1e-3, 1e-2, 1e-1) for lr in _RATES),
}
SHOWN = 5  # classes named in the report


@dataclasses.dataclass(frozen=True)
class Examples:
    """Features of clips and their classes, as heads read them."""

    read: probes.Read  # rows -> [k, N, D], of one view each: row r of view v is r * views + v
    labels: dict[str, np.ndarray]  # head -> [n]
    sources: np.ndarray  # [n]
    views: int = 1

    def __len__(self) -> int:
        return len(self.sources)


def of_table(
    table, labels: dict[str, np.ndarray], sources, views: int = 1, kept: slice = slice(None)
) -> Examples:
    """The examples of a features.Table that were read; kept: a part of their tokens."""
    rows = np.flatnonzero(table.read)

    def read(asked: np.ndarray) -> np.ndarray:
        tokens = table.tokens[rows[asked // views]]
        # clips of a view follow one another, and are read together
        tokens = tokens.reshape(len(asked), views, -1, tokens.shape[-1])
        return tokens[np.arange(len(asked)), asked % views][:, kept]

    sources = np.asarray(sources)[rows]
    return Examples(read, {head: own[rows] for head, own in labels.items()}, sources, views)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Heads whose answers count."""

    probe: probes.Probe
    params: dict  # [G, ...]: one head, or upstream's all
    how: str  # they were chosen


def fit(
    train: Examples,
    classes: dict[str, int],
    config: HeadsConfig,
    loss: probes.Loss,
    score: Callable[[probes.Probe, dict, np.ndarray], np.ndarray],
    *,
    upstream: bool,
    seed: int,
    title: str,
) -> Chosen:
    """Trains the grid and takes a head, or all of them where validation is to choose.

    Args:
      train: what heads learn from.
      classes: head of the probe -> how many.
      config: of the heads.
      loss: of a batch.
      score: probe, parameters [G, ...] and rows of `train` -> how good each head is there, [G].
      upstream: all heads are trained on everything.
      seed: of weights, order and split.
      title: what progress bars call it.

    Raises:
      ConfigError: an unknown grid, heads that do not divide the width, no loss that is finite,
        clips of one source and no validation to choose on.
    """
    if config.grid not in GRIDS:
        raise ConfigError(f'heads.grid = {config.grid!r}: {allowed(config.grid, GRIDS)}')
    settings = [probes.Setting(*row) for row in GRIDS[config.grid]]
    width = train.read(np.zeros(1, int)).shape[-1]
    if width % config.heads:
        raise ConfigError(f'heads.heads = {config.heads}: must divide {width}, the width')
    pooler = PoolerConfig(
        width, config.heads, config.depth, queries=len(classes), dtype=np.dtype('float32'),
        remat='none' if config.depth == 1 else 'full',
    )  # fmt: skip
    probe = probes.Probe(pooler, tuple(classes.items()))

    def learn(rows: np.ndarray, settings: Sequence[probes.Setting], title: str) -> probes.Trained:
        batch = min(config.batch, len(rows))
        epoch = len(rows) // batch
        return probes.train(
            probe, loss, train.read, train.labels, settings, steps=config.epochs * epoch,
            batch=batch, warmup=int(config.warmup * epoch), seed=seed, rows=rows, title=title,
        )  # fmt: skip

    every = np.arange(len(train))
    if upstream:
        trained = learn(every, settings, title)
        return Chosen(probe, _finite(trained, settings)[0], 'best on validation')
    if len(known := np.unique(train.sources)) < 2:
        raise ConfigError(
            f'heads: all {len(train)} training clips are of one source, {known[0]}: there are none '
            'of another to choose the head on'
        )
    main = next(reversed(train.labels.values()))  # of several heads the last: the action
    parts = max(2, min(round(1 / config.chosen_on), len(known)))
    held = linear.apart(train.sources, main, parts, seed)[0]
    trained = learn(every[~held], settings, f'{title}, choosing')
    params, left = _finite(trained, settings)
    scores = score(probe, params, every[held])
    best = left[int(np.argmax(scores))]
    how = (
        f'rate {best.lr:g}, decay {best.weight_decay:g}, best of {len(settings)} on '
        f'{int(held.sum())} training clips ({max(scores):.3f} there)'
    )
    final = learn(every, [best], title)
    return Chosen(probe, _finite(final, [best])[0], how)


def _finite(trained: probes.Trained, settings) -> tuple[dict, list[probes.Setting]]:
    """The heads whose loss stayed finite. Raises ConfigError where there are none."""
    rows = np.flatnonzero(trained.finite)
    if not len(rows):
        raise ConfigError('heads: no loss stayed finite; a grid of lower rates is needed')
    if len(rows) < len(settings):
        log.warning('%d of %d heads have no finite loss', len(settings) - len(rows), len(settings))
    return jax.tree.map(lambda a: a[rows], trained.params), [settings[i] for i in rows]


def save(
    folder: Path,
    chosen: Chosen,
    number: int,
    model,
    data: LabelledSet,
    config: LabelledSetConfig,
    reads: str = '',
) -> None:
    """Writes one of the chosen heads, with names of classes, for `embed --classify --probe FOLDER`
    and `jepa_jax.load`.

    reads: as of `model.ProbeHead`; empty: what the config says.
    """
    c = config.data
    facts = {
        'reads': reads or check_levels(config, model),
        'frames': c.frames,
        'step': c.step,
        'segments': c.segments,
        'tokens': c.tokens,
        'crop': check_clip(config, model),
    }
    params = probes.one(chosen.params, number)
    probes.save(folder, chosen.probe, params, model, data.names, facts, f'{c.set}, {chosen.how}')


def answers(
    probe: probes.Probe, params: dict, examples: Examples, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Rows and their logits, head of the probe -> [G, b, V, C], batch by batch."""
    views = examples.views
    batch = max(1, 64 // views)
    flat = (rows[:, None] * views + np.arange(views)).ravel()
    parts = probes.predict(probe, params, examples.read, flat, batch=batch * views)
    for start, logits in zip(range(0, len(rows), batch), parts):
        own = rows[start : start + batch]
        yield own, {h: x.reshape(len(x), len(own), views, -1) for h, x in logits.items()}


def released(
    model,
    config: LabelledSetConfig,
    count: int,
    read: Callable[[int], np.ndarray],
    classes: dict[str, int],
    views: int,
    place: Path,
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[int, str]]:
    """Logits of a whole set by the model's own probe, on all devices of this process.

    What is done is kept in a file, so that an interrupted one resumes from there.

    Args:
      read: example -> clips uint8 [views * segments, T, H, W, 3], those of a view together.
      classes: head -> how many the set has.
      place: of the file with the logits.

    Returns:
      rows [n] that were read, head -> logits [n, V, C], row -> why it was not read.

    Raises:
      ConfigError: the probe has heads of other sizes than the set.
    """
    own = model.probe.classes
    if own != classes:
        head = next(h for h in {**classes, **own} if classes.get(h) != own.get(h))
        raise ConfigError(
            f'the probe has {own.get(head, "no")} classes of {head}, the official files '
            f'{classes.get(head, "none")}: they are of another version, or of another set'
        )
    total = sum(own.values())
    shape = (count, views, total)
    kept = _answers(place, shape)
    left = [i for i in range(count) if np.isnan(kept[i]).any()]
    problems: dict[int, str] = {}

    def clips():
        for i in left:
            try:
                yield i, read(i)
            except BadFile as error:
                yield i, error

    ask, devices = probe_on_all(model)
    size = config.batch * devices
    waiting: list[tuple[int, int, np.ndarray]] = []  # row, view, clips of it

    def flush() -> None:
        part = [waiting.pop(0) for _ in range(min(size, len(waiting)))]
        asked = [clips for *_, clips in part]
        logits = ask(np.stack(asked + asked[-1:] * (size - len(asked))))
        for at, (row, view, _) in enumerate(part):
            kept[row, view] = np.concatenate([logits[head][at] for head in own])

    with tqdm(total=len(left), unit='clip', desc='answers of the probe', disable=None) as bar:
        for i, one in ahead(clips()):
            if isinstance(one, BadFile):
                problems[i] = str(one)
                log.warning('left out: %s', one)
            else:
                each = one.reshape(views, -1, *one.shape[1:])
                waiting += [(i, v, clips_of_view) for v, clips_of_view in enumerate(each)]
            while len(waiting) >= size:
                flush()
            bar.update()
        while waiting:
            flush()
    kept.flush()
    rows = np.setdiff1d(np.arange(count), list(problems))
    if not len(rows):
        raise ConfigError(f'none of {count} clips can be read; the first: {problems[0]}')
    ends = np.cumsum([0, *own.values()])
    logits = {h: kept[rows, :, a:b] for h, a, b in zip(own, ends, ends[1:])}
    return rows, logits, problems


def _answers(place: Path, shape: tuple[int, int, int]) -> np.memmap:
    """The file of logits, NaN where nobody was asked yet: there as a whole, or not at all."""
    if place.exists():
        try:  # to be read only: a file that is too short is filled up with zeros where it may grow
            kept = np.load(place, mmap_mode='r', allow_pickle=False)
        except (ValueError, EOFError):
            kept = np.empty(0)
        if kept.shape == shape and kept.dtype == np.float32:
            return np.lib.format.open_memmap(place, 'r+')
        log.warning('%s is damaged: all are asked anew', place)
    with scratch.whole(place) as file:
        np.save(file, np.full(shape, np.nan, np.float32))
    return np.lib.format.open_memmap(place, 'r+')


def probe_on_all(model) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], int]:
    """A function from examples uint8 [B, segments, T, H, W, 3] to what the model's probe says of
    them, head -> [B, classes], and the number of this process's devices, which share B evenly."""
    placed, local = everywhere(model)
    return in_shares(local, placed.logits), local.size


def sentences_of_classes(
    names: tuple[str, ...], labels: np.ndarray, hits: np.ndarray
) -> tuple[str, str]:
    """The classes that are told best and worst, by name and number."""
    count, right = (np.bincount(labels, x, len(names)) for x in (None, hits))
    there = np.flatnonzero(count)
    share = right[there] / count[there]

    def words(order: np.ndarray) -> str:
        return '; '.join(
            f'{there[i]} {names[there[i]]} {right[there[i]]:.0f} of {count[there[i]]:.0f}'
            for i in order[:SHOWN]
        )

    return (
        f'told best: {words(np.argsort(-share, kind="stable"))}',
        f'told worst: {words(np.argsort(share, kind="stable"))}',
    )


def check_levels(config: LabelledSetConfig, model) -> str | tuple[int, ...]:
    """Which features are read: 'last' or blocks. Raises ConfigError."""
    levels = tuple(int(word) for word in config.data.levels.split(',') if word)
    depth = model.config.depth
    if levels and (list(levels) != sorted(set(levels)) or levels[-1] >= depth):
        raise ConfigError(f'data.levels = {config.data.levels!r}: must ascend, below {depth}')
    return levels or 'last'


def check_clip(config: LabelledSetConfig, model) -> int:
    """The crop. Raises ConfigError for clips that the model cannot take."""
    crop = config.data.crop or model.config.image_size
    for name, value, unit in (
        ('crop', crop, model.config.patch),
        ('frames', config.data.frames, model.config.tubelet),
    ):
        if value % unit:
            raise ConfigError(f'data.{name} = {value}: must be a multiple of {unit}')
    if model.config.still and config.data.frames != 1:
        raise ConfigError(
            f'data.frames = {config.data.frames}: must be 1, this is a model of images; '
            '--config.data.frames=1'
        )
    return crop
