"""EPIC-KITCHENS-100: csv of actions, verb and noun, in long videos. (reference: evaluations.md
§1.7)

Verbs, nouns and actions are numbered in the order in which CPython (3.8 and newer) goes through a
set of them that was filled in the order of the training file, as the original does: released probes
have that order. Sorting, or another order of rows, would change it.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jepa_jax.data.labelled.records import LabelledSet, Record, columns_of, official, whole
from jepa_jax.errors import BadFile, ConfigError

HEADS = ('verb', 'noun', 'action')
COLUMNS = ('video_id', 'start_frame', 'stop_frame', 'verb_class', 'noun_class')
PARTS = (
    ('EPIC_100_tail_verbs.csv', 'verb'),
    ('EPIC_100_tail_nouns.csv', 'noun'),
    ('EPIC_100_unseen_participant_ids_validation.csv', 'participant_id'),
)
BELOW = ['annotations', 'labels', 'epic-kitchens-100-annotations']
ACTIONS = 3568  # pairs of verb and noun that training has
ORDER = 4003278415  # CRC-32 of their order in released heads (evaluations.md §1.7)


@dataclasses.dataclass(frozen=True)
class Action:
    """A row of the annotations."""

    video: str  # P01_11
    start: int  # frames
    stop: int
    verb: int
    noun: int


@dataclasses.dataclass(frozen=True)
class Classes:
    """Official numbers in the order of the heads' outputs."""

    verbs: tuple[int, ...]
    nouns: tuple[int, ...]
    actions: tuple[tuple[int, int], ...]


def classes(train: Sequence[Action]) -> Classes:
    """The order of the heads: that of sets, never sorted."""
    return Classes(
        tuple({row.verb for row in train}),
        tuple({row.noun for row in train}),
        tuple({(row.verb, row.noun) for row in train}),
    )


def other_order(actions: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """A note where all official actions are there, and a released head would name other ones: the
    order of a set follows from the order of the rows."""
    low = [[number & 0xFFFF for number in pair] for pair in actions]  # official ones are small
    made = zlib.crc32(np.asarray(low, '<u2').tobytes())
    if len(actions) != ACTIONS or made == ORDER:
        return ()
    return (
        f'the {ACTIONS:,} actions of training come in another order (CRC-32 {made}, expected '
        f'{ORDER}), so a released head would tell others: rows have to be in the order of '
        'narration_id as text, P01_01_1, P01_01_10, P01_01_100, as they were published',
    )


def labels(rows: Sequence[Action], known: Classes) -> list[tuple[int, int, int]]:
    """Verb, noun and action of each row as outputs of the heads; a class that training does not
    have has no output, and gets a number of its own below 0."""
    verb, noun, action = (
        {c: i for i, c in enumerate(order)} for order in (known.verbs, known.nouns, known.actions)
    )

    def number(output: dict, official) -> int:
        if official not in output:
            output[official] = -1 - sum(n < 0 for n in output.values())
        return output[official]

    return [
        (number(verb, row.verb), number(noun, row.noun), number(action, (row.verb, row.noun)))
        for row in rows
    ]


def rows_of(path: Path) -> list[Action]:
    """Raises BadFile."""
    rows = []
    for line, row in columns_of(path, COLUMNS):
        start, stop, verb, noun = (whole(path, line, row[name], name) for name in COLUMNS[1:])
        if stop < start or '_' not in row['video_id']:
            detail = f'line {line}: video {row["video_id"]!r}, frames {start} to {stop}'
            raise BadFile(path, 'not_text', detail)
        rows.append(Action(row['video_id'], start, stop, verb, noun))
    return rows


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the challenge scores beside the whole: clips of people that training does not have, and
    rare classes; an action is rare if its verb or its noun is. (reference: evaluations.md §1.7)"""

    verbs: frozenset[int] | None  # official numbers; None: the file is not there
    nouns: frozenset[int] | None
    people: frozenset[str] | None
    notes: tuple[str, ...]

    def of(self, row: Action) -> tuple[str, ...]:
        """Those that a row counts in: `unseen`, or `HEAD tail`."""
        verb = self.verbs is not None and row.verb in self.verbs
        noun = self.nouns is not None and row.noun in self.nouns
        both = self.verbs is not None and self.nouns is not None
        unseen = self.people is not None and row.video.partition('_')[0] in self.people
        holds = {'unseen': unseen, 'verb tail': verb, 'noun tail': noun}
        holds['action tail'] = both and (verb or noun)
        return tuple(name for name, here in holds.items() if here)


def parts_of(folder: Path) -> Parts:
    """From the official files, as far as they are there. Raises BadFile."""
    parts: list[frozenset | None] = []
    notes = []
    for name, column in PARTS:
        try:
            path = official(folder, [name], BELOW)
        except ConfigError:
            parts.append(None)
            notes.append(f'{name} is not there: no figures of that part')
            continue
        cells = [(line, row[column].strip()) for line, row in columns_of(path, [column])]
        number = column != 'participant_id'
        parts.append(frozenset(whole(path, n, c, column) if number else c for n, c in cells))
    return Parts(*parts, tuple(notes))


def place_of(video: str, videos: Path) -> str | None:
    """PID/videos/VID.MP4 or PID/VID.MP4."""
    person = video.partition('_')[0]
    for part in (f'{person}/videos', person, ''):
        for suffix in ('.MP4', '.mp4'):
            if (path := videos / part / f'{video}{suffix}').is_file():
                return str(path)
    return None


def read(folder: Path, videos: Path) -> LabelledSet:
    """Rows of a video by their start. Validation has all official rows: of one whose pair of verb
    and noun training lacks, the original's filter leaves nothing: its action is below 0."""
    paths = {s: official(folder, [f'EPIC_100_{s}.csv'], BELOW) for s in ('train', 'validation')}
    tables = {split: rows_of(path) for split, path in paths.items()}
    known, parts = classes(tables['train']), parts_of(folder)
    splits, missing, places = {}, {}, {}
    for split, rows in tables.items():
        splits[split], missing[split] = [], []
        numbered = list(zip(rows, labels(rows, known)))
        for row, label in sorted(numbered, key=lambda pair: (pair[0].video, pair[0].start)):
            if row.video not in places:
                places[row.video] = place_of(row.video, videos)
            if places[row.video] is None:
                missing[split].append(row.video)
            else:
                among = parts.of(row) if split == 'validation' else ()
                span = row.start, row.stop
                splits[split].append(Record(places[row.video], label, span, among))
    names, notes = _names(folder, known)
    return LabelledSet(
        names, splits, {s: len(rows) for s, rows in tables.items()},
        {s: path.name for s, path in paths.items()}, missing,
        notes=(*notes, *parts.notes, *other_order(known.actions)),
    )  # fmt: skip


def _names(folder: Path, known: Classes) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    words, notes = {}, []
    for head, order in (('verb', known.verbs), ('noun', known.nouns)):
        words[head] = {number: str(number) for number in order}
        name = f'EPIC_100_{head}_classes.csv'
        try:
            path = official(folder, [name], BELOW)
        except ConfigError:
            notes.append(f'{name} is not there: {head}s are numbers')
            continue
        own = {whole(path, n, r['id'], 'id'): r['key'] for n, r in columns_of(path, ['id', 'key'])}
        if lacking := [number for number in order if number not in own]:
            raise BadFile(path, 'not_text', f'has no {head} {lacking[0]}, which training has')
        words[head] = own
    return {
        'verb': tuple(words['verb'][v] for v in known.verbs),
        'noun': tuple(words['noun'][n] for n in known.nouns),
        'action': tuple(f'{words["verb"][v]} {words["noun"][n]}' for v, n in known.actions),
    }, tuple(notes)
