"""Evaluations beside training: what the run's own features tell of labelled clips, as it goes.

The loop asks `due` and `measure`; the report asks `finish` for what is measured at the end alone.
The encoder that is read is the objective's own choice, the moving average where there is one; its
parameters stay where training has them, and clips go through all devices of all processes. Nothing
here draws from, or writes to, what training goes on with.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from jepa_jax import distributed
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals import examples, own, pictures, video
from jepa_jax.evals import linear as readers
from jepa_jax.evals.entries import Entry, Label, Labelled
from jepa_jax.lookup import load
from jepa_jax.models.pooler import average_tokens, averaged_grid
from jepa_jax.nets import Net
from jepa_jax.objectives import Objective
from jepa_jax.sharding import BATCH, place
from jepa_jax.state import TrainState

log = logging.getLogger(__name__)

BATCH_ROWS = 64  # clips that go through the encoder together, if a step takes so many
TOKENS = 128  # most tokens of a clip that a probe reads, as means over boxes


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an evaluation may use. Encoding is done by all processes together."""

    entry: Entry
    labelled: Labelled
    clips: np.ndarray  # [n, T, H, W, 3] uint8
    means: video.Encode  # clips [b, T, H, W, 3] of a batch -> [b, D] float32, on every host
    tokens: video.Encode  # likewise -> [b, N, D], averaged to at most TOKENS
    untrained: Callable[[int], list[video.Encode]]  # so many encoders without training, as `tokens`
    batch: int  # clips of a batch
    grid: tuple[int, int, int]  # of `tokens`
    workdir: Path


@dataclasses.dataclass(frozen=True)
class Measured:
    """What came out. Only what process 0 returns is used."""

    values: dict[str, float] = dataclasses.field(default_factory=dict)  # of a row of metrics
    probes: dict[str, dict] = dataclasses.field(default_factory=dict)  # of report.json
    sentences: list[str] = dataclasses.field(default_factory=list)


class Beside:
    """The evaluations of a run."""

    def __init__(
        self,
        entries: Sequence[Entry],
        objective: Objective,
        mesh: jax.sharding.Mesh,
        workdir: Path,
        *,
        steps: int,
        part: int,
    ):
        """steps: of the run; part: clips that go through a step together."""
        self._entries = entries
        self._objective, self._mesh, self._workdir, self._steps = objective, mesh, workdir, steps
        self._batch = min(part, -(-BATCH_ROWS // mesh.size) * mesh.size)
        self._clips: dict[str, tuple[Labelled, np.ndarray]] = {}  # of periodic ones, by name
        self._run = jax.jit(_reduced, static_argnums=(0, 3, 4))

    def begin(self, step: int) -> None:
        """Reads the clips of what is to be evaluated during training that is at `step`.

        Raises:
          ConfigError: none of them can be read.
        """
        for entry in self._entries if step < self._steps else ():
            if entry.config.every:
                labelled, _ = self._clips[entry.name] = self._read(entry)
                log.info(
                    'beside training: %s every %d steps, %d clips, %d of them for testing, from %s',
                    entry.name, entry.config.every, len(labelled), int(labelled.test.sum()),
                    entry.clips_from,
                )  # fmt: skip

    def due(self, step: int) -> bool:
        return any(self._is_due(entry, step) for entry in self._entries)

    def _is_due(self, entry: Entry, step: int) -> bool:
        every = entry.config.every
        return bool(every) and (step % every == 0 or step == self._steps)

    def measure(self, step: int, state: TrainState, frozen: dict) -> dict[str, float]:
        values = {}
        for entry in self._entries:
            if self._is_due(entry, step):
                values |= self._evaluate(entry, self._clips[entry.name], state, frozen).values
        return values

    def finish(self, state: TrainState, frozen: dict) -> Measured:
        """What is measured at the end of a run, together."""
        self._clips.clear()
        values, probes, sentences = {}, {}, []
        for entry in self._entries:
            if not entry.config.every:
                one = self._evaluate(entry, self._read(entry), state, frozen)
                values |= one.values
                probes |= one.probes
                sentences += one.sentences
        return Measured(values, probes, sentences)

    def _evaluate(
        self, entry: Entry, clips: tuple[Labelled, np.ndarray], state: TrainState, frozen: dict
    ) -> Measured:
        began = time.monotonic()
        net, params = self._objective.encoder(state.params, state.ema, frozen)

        def encoder(params, most: int | None) -> video.Encode:
            return functools.partial(self._encode, net, params, entry.grid, most)

        def untrained(count: int) -> list[video.Encode]:
            fresh = jax.jit(lambda key: place(net.init(key), net.specs))
            keys = jax.random.split(jax.random.key(entry.seed + 1), count)
            return [encoder(fresh(key), TOKENS) for key in keys]

        with jax.set_mesh(self._mesh):
            one = load(entry.row.run)(
                Asked(
                    entry,
                    *clips,
                    encoder(params, None),
                    encoder(params, TOKENS),
                    untrained,
                    self._batch,
                    averaged_grid(entry.grid, TOKENS),
                    self._workdir,
                )  # fmt: skip
            )
        values = {**one.values, 'seconds': time.monotonic() - began}
        named = {f'evals/{entry.name}/{key}': value for key, value in values.items()}
        return dataclasses.replace(one, values=named)

    def _encode(
        self, net: Net, params: dict, grid: tuple, most: int | None, clips: np.ndarray
    ) -> np.ndarray:
        sharding = jax.NamedSharding(self._mesh, BATCH)
        rows = jax.make_array_from_callback(clips.shape, sharding, lambda index: clips[index])
        return np.asarray(distributed.whole(self._run(net, params, rows, grid, most)))

    def _read(self, entry: Entry) -> tuple[Labelled, np.ndarray]:
        """The clips that can be read in every process."""
        labelled = entry.labelled()
        view = entry.view
        clips = np.empty((len(labelled), view.frames, view.crop, view.crop, 3), np.uint8)
        unread = np.zeros(len(labelled), bool)

        def read(row: int) -> None:
            try:
                clips[row] = video.read_clips([labelled.paths[row]], view)[0]
            except BadFile as error:
                unread[row] = True
                log.warning('%s leaves out: %s', entry.name, error)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(read, range(len(labelled))))
        unread = np.asarray(distributed.whole(unread)).reshape(-1, len(labelled)).any(0)
        known = ~unread
        for heading, label in labelled.labels.items():
            _leave_unlearnt(entry.name, heading, label, labelled.test, known)
        kept = np.flatnonzero(known)
        if not labelled.test[kept].any() or labelled.test[kept].all():
            raise ConfigError(
                f'{entry.where}: {len(kept)} of {len(labelled)} clips can be read, none of them '
                f'for {"testing" if len(kept) and not labelled.test[kept].any() else "training"}'
            )
        part = labelled.part(kept)
        for label in part.labels.values():
            try:
                examples.refuse_unlearnt(label.kind, label.targets, label.names, part.test)
            except ConfigError as error:
                raise ConfigError(f'{entry.where}: {error}') from error
        return part, clips if len(kept) == len(labelled) else clips[kept]


def _leave_unlearnt(
    name: str, heading: str, label: Label, test: np.ndarray, known: np.ndarray
) -> None:
    """Takes out of `known`, clips that can be read, those for testing of a class whose every clip
    for training cannot."""
    if label.kind == 'number':
        return
    learnt = label.targets[known & ~test].any(0)
    for column in np.flatnonzero(~learnt):
        lost = known & test & (label.targets[:, column] > 0)
        if lost.any():
            known &= ~lost
            log.warning(
                '%s leaves out %d clips for testing: no clip for training of %s %r can be read',
                name, int(lost.sum()), heading, label.names[column],
            )  # fmt: skip


def _reduced(net: Net, params: dict, clips: jax.Array, grid: tuple, most: int | None):
    """Features of clips: their means [b, D], or at most so many tokens [b, N, D]."""
    x = net(params, clips)
    return x.mean(1) if most is None else average_tokens(x, grid, most)


# Evaluations


def linear(asked: Asked) -> Measured:
    """Nearest neighbours and ridge of mean features: accuracy, mean average precision of several
    labels, R2 of numbers; beside what the training clips' distribution alone gives."""
    means = video.extract(asked.means, asked.clips, asked.batch)
    if jax.process_index():
        return Measured()
    labelled = asked.labelled
    with threadpool_limits(1, 'blas'):  # a few hundred numbers: threads would wait, not work
        return Measured(
            {
                f'{heading}/{name}': value
                for heading, label in labelled.labels.items()
                for name, value in _read(labelled, label, means, asked.entry.seed).items()
            }
        )


def _read(labelled: Labelled, label: Label, means: np.ndarray, seed: int) -> dict[str, float]:
    """Reader -> what it makes of one label."""
    learn, test = ~labelled.test, labelled.test
    plain = means[learn], means[test]
    scaled = readers.standardised(*plain)
    ours, theirs = label.targets[learn], label.targets[test]
    classes = ours.argmax(1) if label.kind == 'class' else None
    parts = readers.folds(labelled.sources[learn], classes, seed)

    def judge(scores: np.ndarray, rows: np.ndarray) -> float:
        return own.quality(label.kind, scores, ours[rows])

    middle = np.median(ours, 0) if label.kind == 'number' else ours.mean(0)
    answers = {
        'knn': readers.nearest(plain[0], ours, plain[1], parts, judge).scores,
        'ridge': readers.ridge(scaled[0], ours, scaled[1], parts, judge).scores,
        'majority': np.repeat(middle[None], len(theirs), 0),
    }
    return {name: own.measure(label.kind, s, theirs)[0] for name, s in answers.items()}


def probe(asked: Asked) -> Measured:
    """Attentive probes beside untrained encoders, pixels, and clips whose frames were shuffled; and
    a picture of the features of one test clip."""
    labelled, settings = asked.labelled, asked.entry.config.probe
    parts = [
        video.LabelledClips(
            asked.clips[side], {k: label.words[side] for k, label in labelled.labels.items()}
        )
        for side in (~labelled.test, labelled.test)
    ]
    probes = video.measure(
        asked.tokens, asked.untrained(settings.seeds), *parts, settings,
        batch=asked.batch, say=log.info,
    )  # fmt: skip
    clip = parts[1].clips[:1]
    tokens = video.extract(asked.tokens, clip, asked.batch)[0]
    if not jax.process_index():
        pictures.plot_features(
            clip[0],
            tokens.reshape(*asked.grid, -1),
            asked.workdir / 'features.png',
            title='target features of one test clip',
        )
    values = {
        f'{k}/{name}': row['mean'] for k, rows in probes.items() for name, row in rows.items()
    }
    return Measured(values, probes, [video.verdict(k, rows) for k, rows in probes.items()])
