"""Which evaluations a run makes beside its training, and of which labelled clips.

All that a list of evaluations needs is judged when the config is made, before JAX is imported:
labels that are not there are no discovery for the last step of a long run.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jepa_jax.config import (
    SELF_MADE,
    DataConfig,
    DataListConfig,
    LabelledListConfig,
    MaskedVideoConfig,
    PeriodicEvalConfig,
    encoder_shape,
)
from jepa_jax.errors import ConfigError, NoLabels
from jepa_jax.evals import PERIODIC, Periodic, examples
from jepa_jax.lookup import load, row

NEEDS = (
    f'needs labelled clips, of a self-made list (kind {" or ".join(SELF_MADE)}) or own ones, '
    '--config.labels.train=FOLDER_OR_LIST'
)
HELD = 4 * 2**30  # bytes of labelled clips that a process holds

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Label:
    """What is said of clips under one heading."""

    kind: str  # class | labels | number
    targets: np.ndarray  # [n, C]: one-hot, several-hot, or numbers
    names: tuple[str, ...]  # of the columns

    @property
    def words(self) -> np.ndarray:
        """[n]: the class of each clip by name."""
        return np.asarray(self.names)[self.targets.argmax(1)]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Labelled clips, and which of them are for testing."""

    paths: np.ndarray  # [n]
    sources: np.ndarray  # [n]: those of one source are on one side
    test: np.ndarray  # [n] bool
    labels: dict[str, Label]

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, rows: np.ndarray) -> Labelled:
        """Some of them, in this order."""
        labels = {
            k: dataclasses.replace(v, targets=v.targets[rows]) for k, v in self.labels.items()
        }
        return Labelled(self.paths[rows], self.sources[rows], self.test[rows], labels)


@dataclasses.dataclass(frozen=True)
class Entry:
    """An evaluation of a run: what, when, of which clips."""

    where: str  # its field, for messages
    config: PeriodicEvalConfig
    clips: LabelledListConfig  # own ones, unless
    made: DataListConfig | None  # a self-made list
    clips_from: str  # the field that names them
    view: DataConfig  # how they are seen: as the run's own
    grid: tuple[int, int, int]  # of a clip's tokens
    width: int  # of the encoder
    seed: int

    @property
    def name(self) -> str:
        return self.config.name or self.config.evaluation

    @property
    def row(self) -> Periodic:
        """Raises ConfigError."""
        return row(PERIODIC, f'{self.where}.evaluation', self.config.evaluation)

    @property
    def most(self) -> int:
        """Clips that are read, if there are so many."""
        fits = HELD // (self.view.frames * self.view.crop**2 * 3)
        return min(self.config.clips or fits, fits)

    def labelled(self) -> Labelled:
        """Its clips; a self-made list must have been made.

        Raises:
          ConfigError: lists, labels or splits that cannot be used, in one line.
        """
        if self.made:
            return some(made(self.made), self.most, self.seed)
        listed = examples.listed(self.clips, self.clips_from)
        if pieces := [e for e in listed if e.place[1:] != ('nan',) * 3]:
            raise ConfigError(
                f'{self.clips_from}: {pieces[0]}: pieces of videos are for '
                '`python -m jepa_jax.evaluate`; beside training a clip is the middle of its file'
            )
        kind = examples.kind_of([e.label for e in listed], self.clips.target)
        if kind not in self.row.kinds:
            raise ConfigError(
                f'{self.clips_from}: the labels are {_KINDS[kind]}; {self.config.evaluation} reads '
                f'{" or ".join(_KINDS[k] for k in self.row.kinds)}'
            )
        targets, names = examples.targets(listed, kind)
        test, _ = examples.split(listed, self.clips, self.seed, kind)
        whole = Labelled(
            np.asarray([e.path for e in listed]),
            np.asarray([e.source for e in listed]),
            test,
            {'label': Label(kind, targets, names)},
        )
        part = some(whole, self.most, self.seed)
        label = part.labels['label']
        examples.refuse_unlearnt(kind, label.targets, names, part.test)
        return part


_KINDS = {'class': 'classes', 'labels': 'several labels a clip', 'number': 'numbers'}


def some(whole: Labelled, most: int, seed: int) -> Labelled:
    """At most so many clips: training and testing in proportion, evenly over classes, drawn."""
    if len(whole) <= most:
        return whole
    rng = np.random.default_rng(seed)
    combined = np.concatenate(
        [label.targets for label in whole.labels.values() if label.kind != 'number']
        or [np.zeros((len(whole), 1))],
        axis=1,
    )
    _, classes = np.unique(combined, axis=0, return_inverse=True)
    rows = []
    for side in (~whole.test, whole.test):
        order = rng.permutation(np.flatnonzero(side))
        own = classes.ravel()[order]
        place = np.zeros(len(order), int)  # how many of its class come before a clip
        for each in np.unique(own):
            place[own == each] = np.arange((own == each).sum())
        count = max(1, round(most * len(order) / len(whole)))
        rows.append(order[np.argsort(place, kind='stable')][:count])
    return whole.part(np.sort(np.concatenate(rows)))


def made(item: DataListConfig) -> Labelled:
    """The clips of a self-made list that was made, and its three labels."""
    from jepa_jax.data import synthetic

    folder = Path(item.path or synthetic.default_folder(item.kind))
    known = synthetic.load_labels(folder)
    names = [n for split in synthetic.SPLITS for n in sorted(known) if f'/{split}_' in n]
    labels = {}
    for key in known[names[0]]:
        values, codes = np.unique([known[n][key] for n in names], return_inverse=True)
        one_hot = np.eye(len(values), dtype=np.float32)[codes]
        labels[key] = Label('class', one_hot, tuple(map(str, values)))
    paths = np.asarray([str(folder / n) for n in names])
    return Labelled(paths, paths, np.asarray(['/test_' in n for n in names]), labels)


def masked_video(config: MaskedVideoConfig) -> list[Entry]:
    """The evaluations of a run: those of `evals`, and the probe at its end. One of `evals` that
    names no labels is left out, which is said, where the run's own lists have none.

    Raises:
      ConfigError: one that cannot be made, in one line that names its field.
    """
    listed = [(f'evals[{i}]', each) for i, each in enumerate(config.evals)]
    if config.probe.enabled:
        final = PeriodicEvalConfig('probe', every=0, clips=0, probe=config.probe)
        listed.append(('probe.enabled', final))
    entries: dict[str, Entry] = {}
    for where, each in listed:
        try:
            entry = _entry(where, each, config)
            _check(entry)
        except NoLabels as error:
            if each.labels.train or config.labels.train or where == 'probe.enabled':
                raise
            log.info('left out: %s', error)
            continue
        if (other := entries.setdefault(entry.name, entry)) is not entry:
            raise ConfigError(
                f'{where} and {other.where} are both called {entry.name!r} in metrics: give one '
                'of evals another `name`'
            )
    return list(entries.values())


def _entry(where: str, each: PeriodicEvalConfig, config: MaskedVideoConfig) -> Entry:
    encoder, view = config.encoder, config.data
    row(PERIODIC, f'{where}.evaluation', each.evaluation)
    grid = view.frames // encoder.tubelet, view.crop // encoder.patch, view.crop // encoder.patch
    width = encoder_shape(encoder).width
    return Entry(where, each, *_clips(where, each, config), view, grid, width, config.seed)


def _clips(where: str, each: PeriodicEvalConfig, config: MaskedVideoConfig):
    """Which clips an entry reads, own or self-made, and the field that names them."""
    for name, labels in (
        (f'{where}.labels.train', each.labels),
        ('labels.train', config.labels),
    ):
        if labels.train:
            return labels, None, name
    lists = config.data.lists
    for item in lists:
        if item.kind in SELF_MADE:
            return config.labels, item, 'data.lists'
    for i, item in enumerate(lists):
        if item.kind == 'videos':
            train = dataclasses.replace(config.labels, train=item.path)
            return train, None, f'data.lists[{i}].path'
    raise NoLabels(f'{where}: {NEEDS}; data.lists has {", ".join(i.kind for i in lists)}')


def _check(entry: Entry) -> None:
    if complaint := next(iter(load(entry.row.check)(entry)), None):
        raise ConfigError(complaint)
    if entry.most < 2:
        raise ConfigError(f'{entry.where}: a clip takes more memory than {HELD / 2**30:g} GiB')
    if entry.made:
        return  # by the run itself
    try:
        paths = entry.labelled().paths
    except ConfigError as error:
        raise NoLabels(f'{entry.where}: {NEEDS}; {error}') from error
    if not any(map(os.path.exists, paths)):
        raise ConfigError(f'{entry.where}: none of {len(paths)} clips is there, such as {paths[0]}')


def probe(entry: Entry) -> Iterator[str]:
    """Complaints about an attentive probe."""
    heads, name = entry.config.probe.heads, entry.where.removesuffix('.enabled')
    if entry.width % heads:
        name = name if name == 'probe' else f'{name}.probe'
        yield f'{name}.heads = {heads}: must divide encoder.width = {entry.width}'
