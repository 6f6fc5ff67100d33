"""Labelled clips of a user: where they lie, what is said of them, which belong together.

Three forms are read. A folder with a folder a class: files in it are clips, and so is a folder of
pictures below it. A table with a header, separated by commas, semicolons or tabs: a column with the
path and one with the label, and where they are there `group`, `split`, `start`, `end`, `time`. A
list with `path label` lines, as for training.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_jax import files
from jepa_jax.config import LabelledListConfig
from jepa_jax.data.kinds import PICTURES, VIDEOS
from jepa_jax.errors import BadFile, ConfigError, allowed
from jepa_jax.evals.linear import apart

# what a column may be called
PATH = ('path', 'file', 'filename', 'video', 'video_path', 'clip')
LABEL = ('label', 'class', 'target', 'value', 'y')
GROUP = ('group', 'source', 'subject')
SPLIT, START, END = ('split', 'set'), ('start', 'start_s'), ('end', 'end_s', 'stop')
TIME = ('time', 'time_s', 'second', 'seconds')
CLIPS = VIDEOS | PICTURES | {'.npy', '.gif', '.mts', '.m2ts', '.vob', '.divx'}
TRAINING, TESTING = ('train', 'training'), ('test', 'testing', 'val', 'valid', 'validation')


@dataclasses.dataclass(frozen=True)
class Example:
    """A clip, or a piece of a longer video, and what is said of it."""

    path: str
    label: str
    source: str  # clips of one source are never on both sides of a split
    split: str = ''  # train | test | '' if nothing says it
    start: float = math.nan  # seconds of the video; nan: its begin
    end: float = math.nan  # and its end
    time: float = math.nan  # of the label, where it is of one moment

    @property
    def place(self) -> tuple:
        """What tells it from other examples of the same file."""
        return self.path, repr(self.start), repr(self.end), repr(self.time)

    def __str__(self) -> str:
        at = [f'{x:g}' for x in (self.start, self.end, self.time) if not math.isnan(x)]
        return self.path + (f' at {" to ".join(at)} s' if at else '')


def read(path: str, data: LabelledListConfig, field: str = 'data.train') -> list[Example]:
    """The examples of a folder, a table or a list, each once.

    Raises:
      ConfigError: what it is and where, in one line.
    """
    if not path:
        raise ConfigError(f'{field} is empty: a folder with a folder a class, a csv, or a list')
    place = Path(path).expanduser()
    if place.is_dir():
        examples = _folders(place, field)
    else:
        try:
            examples = _text(place, data, field)
        except BadFile as error:
            raise ConfigError(f'{field}: {error}') from error
    if data.source:
        examples = [_of_source(e, data.source) for e in examples]
    once: dict[tuple, Example] = {}
    for example in examples:
        before = once.setdefault(example.place, example)
        if before.label != example.label:
            raise ConfigError(
                f'{field}: {example} is listed twice, as {before.label!r} and {example.label!r}'
            )
    if not once:
        raise ConfigError(f'{field}: {path} lists no clips')
    return list(once.values())


def listed(data: LabelledListConfig, field: str = 'data.train') -> list[Example]:
    """The examples of `train`, and of `test` where that is another list; raises as `read`."""
    train = read(data.train, data, field)
    if not data.test:
        return train
    testing = f'{field.removesuffix("train")}test' if field.endswith('train') else 'labels.test'
    other = read(data.test, data, testing)
    if both := {e.place for e in train} & {e.place for e in other}:
        raise ConfigError(f'{testing}: {sorted(both)[0][0]} is in {field} as well')
    return [
        dataclasses.replace(e, split=split)
        for split, part in (('train', train), ('test', other))
        for e in part
    ]


def _of_source(example: Example, pattern: str) -> Example:
    try:
        match = re.search(pattern, Path(example.path).name)
    except re.error as error:
        raise ConfigError(f'data.source = {pattern!r}: no pattern: {error}') from error
    if match is None:
        raise ConfigError(f'data.source = {pattern!r}: does not occur in {example.path}')
    return dataclasses.replace(example, source=match[1] if match.re.groups else match[0])


def _folders(folder: Path, field: str) -> list[Example]:
    examples = []
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.'))
    if not classes:
        raise ConfigError(f'{field}: {folder} has no folders: one a class is needed, or a csv')
    if all(one.name in TRAINING + TESTING for one in classes):
        raise ConfigError(
            f'{field}: {folder} has the folders {", ".join(p.name for p in classes)}: name them '
            'one by one, as --config.data.train=DIR/train --config.data.test=DIR/test'
        )
    for one in classes:
        for parent, below, names in os.walk(one):
            below.sort()
            names = sorted(n for n in names if Path(n).suffix.lower() in CLIPS and n[0] != '.')
            pictures = names and all(Path(n).suffix.lower() in PICTURES for n in names)
            if pictures and Path(parent) != one:  # the frames of one clip
                names, below[:] = [''], []
            paths = (os.path.join(parent, name).rstrip(os.sep) for name in names)
            examples += [Example(path, one.name, path) for path in paths]
    return examples


def _text(path: Path, data: LabelledListConfig, field: str) -> list[Example]:
    size = files.size(path)
    files.bound(path, 'index', size)
    raw = path.read_bytes()
    code = 'utf-16' if raw[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig'
    with files.reading(path, 'not_text'):
        text = raw.decode(code)
    head = text.lstrip('\n\r').split('\n', 1)[0]
    # a separator of which the first line has most; without any, a list of `path label` lines
    separator = max(',;\t', key=head.count)
    if not head.count(separator):
        return _list(text, path, field)
    with files.reading(path, 'not_text'):
        rows = list(csv.reader(io.StringIO(text), delimiter=separator, strict=True))
    numbers = [number for number, row in enumerate(rows) if any(cell.strip() for cell in row)]
    if not numbers:
        raise ConfigError(f'{field}: {path} lists no clips')
    header = [cell.strip().lower() for cell in rows[numbers[0]]]
    if not set(header) & set(PATH):
        if len(header) != 2:
            raise ConfigError(
                f'{field}: {path} line {numbers[0] + 1} is no header: {len(header)} columns '
                f'without one that is called {" or ".join(PATH[:3])}'
            )
        header, start = ['path', 'label'], 0
    else:
        start = 1
    columns = _columns(header, data, path, field)
    examples = []
    for number in numbers[start:]:
        row = rows[number]
        if len(row) != len(header):
            raise ConfigError(
                f'{field}: {path} line {number + 1} has {len(row)} columns, the header '
                f'{len(header)}: a path with {separator!r} in it must stand in quotes'
            )
        examples.append(_row(row, columns, path, f'{field}: {path} line {number + 1}'))
    first, *others = (Path(e.path) for e in examples)
    if start == 0 and not first.suffix and not first.exists() and any(p.suffix for p in others):
        raise ConfigError(
            f'{field}: {path} line {numbers[0] + 1}: {first.name!r} is no file: of a header one '
            f'column must be called {" or ".join(PATH[:3])}'
        )
    return examples


def _columns(header: Sequence[str], data: LabelledListConfig, path: Path, field: str) -> dict:
    if twice := [name for name, n in collections.Counter(header).items() if n > 1 and name]:
        raise ConfigError(f'{field}: {path} has two columns {twice[0]!r}')
    columns = {}
    for name, words, own in (
        ('path', PATH, ''), ('label', LABEL, data.label), ('group', GROUP, data.group),
        ('split', SPLIT, ''), ('start', START, ''), ('end', END, ''), ('time', TIME, ''),
    ):  # fmt: skip
        if own:
            if own.lower() not in header:
                raise ConfigError(f'data.{name} = {own!r}: {path}: {allowed(own, header)}')
            words = (own.lower(),)
        columns[name] = next((header.index(word) for word in words if word in header), None)
    if columns['label'] is None:
        raise ConfigError(
            f'{field}: {path} has the columns {", ".join(header)}, none is called '
            f'{" or ".join(LABEL)}: name it with --config.data.label=COLUMN'
        )
    return columns


def _row(row: Sequence[str], columns: dict, path: Path, where: str) -> Example:
    def cell(name: str) -> str:
        return row[columns[name]].strip() if columns[name] is not None else ''

    def seconds(name: str) -> float:
        text = cell(name)
        if not text:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < math.inf:
            raise ConfigError(f'{where}: {name} {text!r} is no number of seconds')
        return value

    if not cell('path'):
        raise ConfigError(f'{where}: no path')
    if not cell('label'):
        raise ConfigError(f'{where}: no label')
    split = cell('split').lower()
    if split and split not in TRAINING + TESTING:
        raise ConfigError(f'{where}: split {split!r}: {allowed(split, TRAINING + TESTING)}')
    name = os.path.normpath(os.path.join(path.parent, os.path.expanduser(cell('path'))))
    example = Example(
        name, cell('label'), cell('group') or name,
        split and ('train' if split in TRAINING else 'test'),
        seconds('start'), seconds('end'), seconds('time'),
    )  # fmt: skip
    if example.end <= example.start:
        raise ConfigError(f'{where}: ends at {example.end:g} s, before its start')
    return example


def _list(text: str, path: Path, field: str) -> list[Example]:
    examples = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith('#'):
            continue
        name, _, label = line.rpartition('::') if '::' in line else line.rpartition(' ')
        if not name.strip() or not label.strip():
            raise ConfigError(f'{field}: {path} line {number} is no `path label`: {line[:80]!r}')
        name = os.path.normpath(os.path.join(path.parent, os.path.expanduser(name.strip())))
        examples.append(Example(name, label.strip(), name))
    return examples


def kind_of(labels: Iterable[str], target: str = 'auto') -> str:
    """class, number or labels, by what the labels look like: `a|b` somewhere is several labels,
    numbers of which one is not whole are numbers, all else is classes."""
    if target != 'auto':
        return target
    labels = list(labels)
    if any('|' in label for label in labels):
        return 'labels'
    try:
        values = [float(label) for label in labels]
    except ValueError:
        return 'class'
    return 'class' if all(value.is_integer() for value in values) else 'number'


def targets(examples: Sequence[Example], kind: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """[n, C] float32 and the names of its columns: one-hot, several-hot, or numbers.

    Raises:
      ConfigError: a label that is no number where numbers are asked for.
    """
    if kind == 'number':
        values = []
        for example in examples:
            try:
                values.append(float(example.label))
            except ValueError:
                values.append(math.nan)
            if not math.isfinite(values[-1]):
                raise ConfigError(f'{example}: label {example.label!r} is no number')
        return np.asarray(values, np.float32)[:, None], ('value',)
    words = [
        [word.strip() for word in e.label.split('|') if word.strip()]
        if kind == 'labels'
        else [e.label]
        for e in examples
    ]
    names = sorted({word for row in words for word in row}, key=_numbers_first)
    column = {name: i for i, name in enumerate(names)}
    out = np.zeros((len(examples), len(names)), np.float32)
    for row, own in zip(out, words):
        row[[column[word] for word in own]] = 1
    return out, tuple(names)


def _numbers_first(word: str) -> tuple:
    """Sorts 2 before 10, and numbers before words."""
    return (0, int(word), word) if re.fullmatch(r'-?\d+', word) else (1, 0, word)


def split(
    examples: Sequence[Example], data: LabelledListConfig, seed: int, kind: str
) -> tuple[np.ndarray, str]:
    """Which examples are for testing, [n] bool, and how that was decided.

    Raises:
      ConfigError: one side is empty, or a source lies on both.
    """
    said = [e.split for e in examples]
    if any(said):
        if not all(said):
            raise ConfigError(f'{examples[said.index("")]}: no split, as other rows have')
        test = np.asarray([word == 'test' for word in said])
        how = 'as the column or the two lists say'
    else:
        sources = np.asarray([e.source for e in examples])
        count = len(np.unique(sources))
        parts = min(max(2, round(1 / data.test_share)), count)
        if parts < 2:
            raise ConfigError(f'all {len(examples)} clips are of one source: nothing to test on')
        labels = np.asarray([e.label for e in examples]) if kind == 'class' else None
        test = apart(sources, labels, parts, seed)[0]
        what = 'files' if count == len(examples) else 'sources'
        how = f'one in {parts} of {count} {what}, drawn'
    for side, name in ((test, 'testing'), (~test, 'training')):
        if not side.any():
            raise ConfigError(f'no clip is left for {name}')
    both = {e.source for e, t in zip(examples, test) if t} & {
        e.source for e, t in zip(examples, test) if not t
    }
    if both:
        raise ConfigError(f'source {sorted(both)[0]!r} has clips for training and for testing')
    # whatever it is called on either side, and whatever groups its pieces are in
    sides = (itertools.compress(examples, side) for side in (test, ~test))
    if both := set.intersection(*({os.path.realpath(e.path) for e in side} for side in sides)):
        raise ConfigError(
            f'{sorted(both)[0]} is a clip for training and for testing: of one file all pieces '
            'belong to one group'
        )
    return test, how


def refuse_unlearnt(kind: str, targets: np.ndarray, names: Sequence[str], test: np.ndarray) -> None:
    """Raises ConfigError for a class that only the test clips have, or where there is but one; for
    numbers that are all the same on one side, of which no R2 is defined."""
    if kind == 'number':
        for side, what in ((~test, 'training'), (test, 'testing')):
            if not np.ptp(values := targets[side]):
                raise ConfigError(
                    f'all {len(values)} clips for {what} have the value {values[0, 0]:g}: nothing '
                    'to tell apart; more sources are needed there, or another split'
                )
        return
    learnt, asked = (targets[side].sum(0) for side in (~test, test))
    for name, few, many in zip(names, learnt, asked):
        if many and not few:
            raise ConfigError(
                f'class {name!r}: {int(many)} clips for testing, none for training; it needs '
                'clips of another source, or to be left out'
            )
    if (learnt > 0).sum() < 2 and kind == 'class':
        raise ConfigError(f'one class alone, {names[0]!r}: nothing to tell apart')


def digest(examples: Sequence[Example]) -> str:
    """A hash of the list, and of size and time of its files."""
    rows = [[*map(str, dataclasses.astuple(e)), state_of(e.path)] for e in examples]
    return hash_of(rows)


def state_of(path: str | Path) -> list[int] | None:
    """Size and time of a file; None: it is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def files_of(place: str) -> list[list]:
    """Name, size and time of a file, or of all below a folder; nothing of ''."""
    if not place:
        return []
    root = Path(place).expanduser()
    below = sorted(p for p in root.rglob('*') if p.is_file()) if root.is_dir() else [root]
    return [[str(p), state_of(p)] for p in below]


def hash_of(facts: Any) -> str:
    """Of what JSON can hold."""
    return hashlib.sha256(json.dumps(facts).encode('utf-8', 'surrogateescape')).hexdigest()[:32]
