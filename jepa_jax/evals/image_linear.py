"""Linear heads on mean features of pictures, as I-JEPA was judged.

Training pictures are cut and mirrored anew in every epoch, encoded by the frozen encoder, and read
by all heads of a grid: means of the last block's tokens, or of the last four blocks side by side,
with and without batch norm, one linear layer, LARS whose rate drops by steps. Heads are kept at the
end of every epoch, and an interrupted start resumes from there. (reference: family §1.10)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jepa_jax import scratch, sharding
from jepa_jax.checkpoint import hash_arrays
from jepa_jax.config.image_linear import ImageLinearConfig
from jepa_jax.data import labelled, pictures
from jepa_jax.data.augment import augment
from jepa_jax.data.labelled import LabelledSet, Record
from jepa_jax.data.stream import generator
from jepa_jax.data.views import picture_view
from jepa_jax.data.windows import ahead
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals import Results, benchmark, examples, linear, own
from jepa_jax.weights.parts import net

log = logging.getLogger(__name__)

SET = 'in1k'
EPS, MOMENTUM = 1e-5, 0.1  # of the batch norm
READERS = 8  # threads that read pictures
CHUNK = 1024  # pictures that all heads answer together
TRIES = 20  # pictures tried in the place of one that cannot be read
# accuracy in percent, of encoders that were not fine-tuned, by the authors
PUBLISHED = {
    'I-JEPA B/16': 72.9, 'I-JEPA L/16': 77.5, 'I-JEPA H/14': 79.3, 'I-JEPA H/16 448': 81.1,
    'MAE H/14': 77.2,
}  # fmt: skip


def run(model, config: ImageLinearConfig, workdir: Path) -> Results:
    """Reads the set, trains the heads, asks them, and writes predictions.csv.

    Raises:
      ConfigError: files or settings that cannot be used, in one line.
    """
    if jax.process_count() > 1:
        raise ConfigError(f'{jax.process_count()} processes: this evaluation runs in one')
    data = labelled.read(SET, config.data.path, '', config.data.official)
    for line in data.notes:
        log.warning('%s', line)
    benchmark.refuse_unlearnt(data)
    crop = _crop(model, config)
    test, names = data.splits['validation'], data.names['label']
    made = train(model, data, config, crop, workdir)
    asked = made.ask(test, 'validation')
    rows, hits, truth = asked.rows, asked.hits, benchmark.classes_of(test)[asked.rows]
    best, how = made.choose(hits)
    benchmark.write_predictions(workdir / 'predictions.csv', test, rows, names, asked.said[best])
    most = np.bincount(benchmark.classes_of(data.splits['train'])).argmax()
    baselines = {'majority': benchmark.share(truth == most)}
    if config.random_baseline:
        other = train(own.untrained(model, config.seed + 1), data, config, crop, workdir)
        theirs = other.ask(test, 'validation, untrained').hits
        baselines['untrained encoder'] = benchmark.share(theirs[other.choose(theirs)[0]])
    readings = {}
    for i, setting in enumerate(made.grid):
        other = readings.setdefault(setting.reads, i)
        readings[setting.reads] = i if hits[i].mean() > hits[other].mean() else other
    return Results(
        results={
            'accuracy': benchmark.share(hits[best]),
            'accuracy, top 5': benchmark.share(asked.tops[best]),
        },
        baselines=baselines,
        data={
            **benchmark.about(data, test, rows, asked.problems),
            'published': PUBLISHED,
            'heads': {str(s): float(h.mean()) for s, h in zip(made.grid, hits)},
        },
        sentences=(
            f'protocol {config.protocol}: head: {how}; accuracy counts every picture once',
            *(
                f'best on validation of those that read {words}: {hits[i].mean():.3f}'
                for words, i in readings.items()
            ),
            *data.notes,
            *made.sentences,
            'published, in percent: ' + ', '.join(f'{k} {v:g}' for k, v in PUBLISHED.items()),
        ),
        outcomes={'accuracy': hits[best].astype(float)},
        sources=benchmark.columns(test)[1][rows],
    )  # fmt: skip


def contents(config: ImageLinearConfig) -> str:
    """A hash of the set's files."""
    data = labelled.read(SET, config.data.path, '', config.data.official)
    return examples.hash_of([
        {split: benchmark.digest(records) for split, records in data.splits.items()}, data.names,
    ])  # fmt: skip


def _crop(model, config: ImageLinearConfig) -> int:
    crop = config.data.crop or model.config.image_size
    if crop % model.config.patch:
        raise ConfigError(f'data.crop = {crop}: must be a multiple of {model.config.patch}')
    return crop


# Features


def mean_encoder(model, last: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """Pictures uint8 [B, H, W, 3] -> means over tokens of the last blocks [B, last, D], and the
    number of devices that B must be a multiple of. Models of video see a picture repeated."""
    local = sharding.make_mesh(1, jax.local_devices())
    c, encoder = model.config, net('encoder', model.config)
    levels = tuple(range(c.depth - min(last, c.depth), c.depth))
    frames = c.tubelet_of(1)

    @jax.jit
    def means(weights, clips):
        return jnp.stack([x.mean(1) for x in encoder(weights, clips, levels=levels)], 1)

    with jax.set_mesh(local):
        weights = jax.device_put(model.encoder.params, jax.NamedSharding(local, jax.P()))

    def encode(pixels: np.ndarray) -> np.ndarray:
        clips = np.broadcast_to(pixels[:, None], (len(pixels), frames, *pixels.shape[1:]))
        with jax.set_mesh(local):
            split = jax.device_put(clips, jax.NamedSharding(local, sharding.BATCH))
            return np.asarray(means(weights, split))

    return encode, local.size


@dataclasses.dataclass(frozen=True)
class Reader:
    """Pictures of a set, and the features that heads read of them."""

    encode: Callable[[np.ndarray], np.ndarray]
    size: int  # pictures that are encoded together
    crop: int
    config: ImageLinearConfig
    told: set[str] = dataclasses.field(default_factory=set)  # that cannot be read

    def plain(self, record: Record) -> np.ndarray | BadFile:
        """As validation sees it; or why it cannot be read."""
        try:
            return picture_view(pictures.read_image(record.path), self.crop)
        except BadFile as error:
            return error

    def cut(self, records: Sequence[Record], row: int, epoch: int) -> tuple[np.ndarray, int]:
        """As training sees a picture in an epoch, and its class; one that cannot be read is
        replaced by another."""
        rng = generator(self.config.seed, epoch, row)
        for _ in range(TRIES):
            record = records[row]
            try:
                picture = pictures.read_image(record.path)
            except BadFile as error:
                if record.path not in self.told:  # once, not in every epoch
                    log.warning('replaced by another picture: %s', error)
                self.told.add(record.path)
                row = int(rng.integers(len(records)))
                continue
            out = np.empty((1, self.crop, self.crop, 3), np.uint8)
            return augment(picture[None], self.config.data.augment, rng, out)[0], record.label[0]
        raise ConfigError(f'{TRIES} pictures in a row cannot be read, the last: {record.path}')

    def features(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """[n, last, D] of any number of pictures; copies fill up the last group."""
        parts = []
        for start in range(0, len(pixels), self.size):
            group = np.stack(pixels[start : start + self.size])
            lack = self.size - len(group)
            full = np.concatenate([group, np.repeat(group[-1:], lack, 0)]) if lack else group
            parts.append(self.encode(full)[: len(group)])
        return np.concatenate(parts)

    def batches(
        self, records: Sequence[Record], epoch: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Features [batch, last, D] and classes of an epoch, without its last, short batch."""
        c = self.config
        batch = min(c.batch, len(records))
        order = generator(c.seed, epoch).permutation(len(records))

        def rows():
            for start in range(0, len(order) - batch + 1, batch):
                for part in range(start, start + batch, self.size):
                    yield order[part : min(part + self.size, start + batch)]

        def read(row: int) -> tuple[np.ndarray, int]:
            return self.cut(records, int(row), epoch)

        seen: list[np.ndarray] = []
        labels: list[int] = []
        for group in ahead(_parallel(read, rows())):
            pixels, classes = zip(*group)
            seen.append(self.features(pixels))
            labels += classes
            if len(labels) == batch:
                yield np.concatenate(seen), np.asarray(labels)
                seen, labels = [], []

    def whole(
        self, records: Sequence[Record], title: str
    ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Rows that can be read, their features [n, last, D], and why others cannot."""
        numbers = range(0, len(records), self.size)
        groups = (records[start : start + self.size] for start in numbers)
        kept, parts, problems = [], [], {}
        seen = ahead(_parallel(self.plain, groups))
        for start, group in zip(numbers, tqdm(seen, title, len(numbers), disable=None)):
            good = [i for i, one in enumerate(group) if not isinstance(one, BadFile)]
            for i in set(range(len(group))) - set(good):
                problems[start + i] = str(group[i])
                log.warning('left out: %s', group[i])
            if good:
                parts.append(self.features([group[i] for i in good]))
                kept += [start + i for i in good]
        if not kept:
            raise ConfigError(f'{title}: no picture can be read; the first: {problems[0]}')
        return np.asarray(kept), np.concatenate(parts), problems


def _parallel(function: Callable, groups: Iterator[Sequence]) -> Iterator[list]:
    """What a function makes of each member of each group."""
    with ThreadPoolExecutor(READERS) as pool:
        for group in groups:
            yield list(pool.map(function, group))


def side_by_side(x: np.ndarray, last: int) -> np.ndarray:
    """Features [n, L, D] of the last blocks, of which so many are read: [n, last * D]."""
    return x[:, -last:].reshape(len(x), -1)


# Heads


@dataclasses.dataclass(frozen=True)
class Setting:
    """Of one head."""

    last: int  # blocks that are read
    norm: bool
    lr: float
    decay: float

    @property
    def reads(self) -> str:
        return 'the last block' if self.last == 1 else f'the last {self.last} blocks'

    def __str__(self) -> str:
        norm = 'with' if self.norm else 'without'
        return f'{self.reads}, {norm} batch norm, rate {self.lr:g}, decay {self.decay:g}'


def grid_of(config: ImageLinearConfig, depth: int) -> list[Setting]:
    """All heads, those of one reading together."""
    lasts = dict.fromkeys((1, min(config.last, depth)))
    rates, decays = (tuple(dict.fromkeys(v)) for v in (config.rates, config.decays))
    return [Setting(*row) for row in itertools.product(lasts, (False, True), rates, decays)]


def lars(trust: float, momentum: float, decay: float | jax.Array) -> optax.GradientTransformation:
    """LARS as MAE and VICReg have it, but for the rate, which is to be multiplied in afterwards:
    decay and scaling of matrices alone. (optax.lars has the rate inside the momentum, which differs
    where it changes.) (reference: family §3.1)"""

    def matrices(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        optax.add_decayed_weights(decay, matrices),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust), matrices),
        optax.trace(momentum),
    )


def fresh(key: jax.Array, heads: int, width: int, classes: int) -> dict[str, jax.Array]:
    """Parameters of heads, [heads, ...], all alike."""
    kernel = 0.01 * jax.random.normal(key, (width, classes))
    one = {
        'scale': jnp.ones(width), 'shift': jnp.zeros(width), 'kernel': kernel,
        'bias': jnp.zeros(classes),
    }  # fmt: skip
    return jax.tree.map(lambda a: jnp.repeat(a[None], heads, 0), one)


def outputs(params: dict, norm: jax.Array, x: jax.Array, mean, variance) -> jax.Array:
    """Logits [n, C] of one head from features [n, D]; norm: whether it has a batch norm."""
    normal = (x - mean) * jax.lax.rsqrt(variance + EPS) * params['scale'] + params['shift']
    return jnp.where(norm, normal, x) @ params['kernel'] + params['bias']


@functools.partial(jax.jit, static_argnames=('trust', 'momentum'))
def advance(state: dict, norm, x, labels, rates, decays, *, trust: float, momentum: float) -> dict:
    """One step of all heads of a reading on features x [n, D], classes [n].

    state: params and trace of the heads [G, ...], mean and variance [D] of the batch norm.
    """
    mean, variance = x.mean(0), x.var(0)

    def loss(params, norm):
        logits = outputs(params, norm, x, mean, variance)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(head):
        params, trace, norm, rate, decay = head
        tx = lars(trust, momentum, decay)
        *first, _ = tx.init(params)
        grads = jax.grad(loss)(params, norm)
        updates, (*_, trace) = tx.update(grads, (*first, trace), params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), trace

    # one after the other: side by side, normalised features of a large batch would take 4 GB
    params, trace = jax.lax.map(
        step, (state['params'], optax.TraceState(state['trace']), norm, rates, decays)
    )
    count = len(x) / max(1, len(x) - 1)
    return {
        'params': params,
        'trace': trace.trace,
        'mean': state['mean'] + MOMENTUM * (mean - state['mean']),
        'variance': state['variance'] + MOMENTUM * (variance * count - state['variance']),
    }


_logits = jax.jit(jax.vmap(outputs, (0, 0, None, None, None)))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What all heads say of pictures [G, n]."""

    rows: np.ndarray  # [n] those that could be read
    problems: dict[int, str]  # why others could not
    hits: np.ndarray  # right
    tops: np.ndarray  # among the first five
    said: np.ndarray  # classes


@dataclasses.dataclass(frozen=True)
class Heads:
    """Trained heads, and how they are asked."""

    grid: list[Setting]
    states: dict[str, dict]  # by the number of blocks that are read
    reader: Reader
    held: list[Record]  # training pictures that none has learnt from
    sentences: tuple[str, ...]

    def ask(self, records: Sequence[Record], title: str) -> Asked:
        """What all heads say of pictures."""
        rows, x, problems = self.reader.whole(records, title)
        labels, parts = benchmark.classes_of(records)[rows], []
        chunks = np.array_split(np.arange(len(x)), -(-len(x) // CHUNK))
        for last, state in self.states.items():
            norm = np.array([s.norm for s in self.grid if s.last == int(last)])
            said = []
            for part in chunks:
                logits = _logits(
                    state['params'], norm, side_by_side(x[part], int(last)), state['mean'],
                    state['variance'],
                )  # fmt: skip
                said.append(benchmark.judged(np.asarray(logits)[:, :, None], labels[part]))
            parts.append([np.concatenate(column, 1) for column in zip(*said)])
        return Asked(rows, problems, *(np.concatenate(column) for column in zip(*parts)))

    def choose(self, hits: np.ndarray) -> tuple[int, str]:
        """The head that counts; hits: of validation [G, n]."""
        if self.reader.config.protocol == 'upstream':
            best = int(hits.mean(1).argmax())
            return best, f'{self.grid[best]}, best of {len(self.grid)} on validation itself'
        held = self.ask(self.held, 'choosing')
        scores = held.hits.mean(1)
        best = int(scores.argmax())
        return best, (
            f'{self.grid[best]}, best of {len(self.grid)} on {len(held.rows)} training pictures '
            f'that none learns from ({scores[best]:.3f} there)'
        )


def train(model, data: LabelledSet, c: ImageLinearConfig, crop: int, workdir: Path) -> Heads:
    """Trains the grid, from the end of the last epoch that is kept."""
    encode, devices = mean_encoder(model, c.last)
    reader = Reader(encode, c.encoded * devices, crop, c)
    records, held = _apart(data.splits['train'], c)
    grid = grid_of(c, model.config.depth)
    batch = min(c.batch, len(records))
    factor = batch / c.rates_of if c.rates_of else 1.0
    states, settings = {}, {}
    for last in dict.fromkeys(s.last for s in grid):
        of_it = [s for s in grid if s.last == last]
        width = last * model.config.width
        key = jax.random.fold_in(jax.random.key(c.seed), last)
        params = fresh(key, len(of_it), width, len(data.names['label']))
        states[str(last)] = {
            'params': params, 'trace': jax.tree.map(jnp.zeros_like, params),
            'mean': jnp.zeros(width), 'variance': jnp.ones(width),
        }  # fmt: skip
        settings[str(last)] = (
            np.array([s.norm for s in of_it]),
            factor * np.array([s.lr for s in of_it]),
            np.array([s.decay for s in of_it], np.float32),
        )
    facts = hash_arrays(model.encoder.params), benchmark.digest(records), crop, repr(c)
    path = workdir / f'heads-{examples.hash_of(facts)[:16]}.npz'
    begin, states = _kept(path, states)
    steps = len(records) // batch
    with tqdm(
        total=steps * c.epochs, initial=steps * begin, desc='heads', unit='step', disable=None
    ) as bar:
        for epoch in range(begin, c.epochs):
            drop = c.drop ** (epoch // c.every)
            for x, labels in reader.batches(records, epoch):
                for last, (norm, rates, decays) in settings.items():
                    states[last] = advance(
                        states[last], norm, side_by_side(x, int(last)), labels,
                        np.float32(drop * rates), decays, trust=c.trust, momentum=c.momentum,
                    )  # fmt: skip
                bar.update()
            _keep(path, epoch + 1, states)
    words = (
        f'rates are of {c.rates_of} pictures, here of {batch}: times {factor:g}'
        if c.rates_of
        else f'rates are of {batch} pictures'
    )
    return Heads(grid, states, reader, held, (f'{c.epochs} epochs of {steps} steps; {words}',))


def _apart(records: list[Record], c: ImageLinearConfig) -> tuple[list[Record], list[Record]]:
    """Pictures to learn from, and to choose a head on, of every class its share."""
    if c.protocol == 'upstream':
        return records, []
    labels, sources = (column for column in benchmark.columns(records))
    parts = max(2, min(round(1 / c.chosen_on), len(records)))
    held = linear.apart(sources, labels['label'], parts, c.seed)[0]
    return tuple([r for r, h in zip(records, held) if h == side] for side in (False, True))


def _keep(path: Path, epoch: int, states: dict) -> None:
    """Writes what is trained after so many epochs, at once."""
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(states))}
    with scratch.whole(path) as file:
        np.savez(file, epoch=epoch, **leaves)


def _kept(path: Path, states: dict) -> tuple[int, dict]:
    """Epochs that are done and what came of them; 0 and `states` where there is nothing."""
    if not path.exists():
        return 0, states
    leaves, tree = jax.tree.flatten(states)
    try:
        with np.load(path, allow_pickle=False) as file:
            epoch, kept = int(file['epoch']), [file[str(i)] for i in range(len(leaves))]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        log.warning('%s is made again: %s', path, error)
        return 0, states
    log.info('%d epochs are there: %s', epoch, path)
    return epoch, jax.tree.unflatten(tree, kept)
