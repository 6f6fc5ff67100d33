"""Labelled sets in their official layout: a reader a set, all in one table.

    data = read('ssv2', Path('ssv2'))
    data.splits['train'][0].path, data.splits['train'][0].label, data.names['label']

A reader takes the files that the set's authors hand out. A clip that is listed and not on disk is
counted, not an error; a label that the official names do not have is one. (reference:
evaluations.md §1)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from jepa_jax.data.labelled import coin, diving48, ek100, in1k, jester, k400, ssv2
from jepa_jax.data.labelled.records import LabelledSet, Record
from jepa_jax.errors import BadFile, ConfigError, allowed

__all__ = ('READERS', 'LabelledSet', 'Reader', 'Record', 'read')


@dataclasses.dataclass(frozen=True)
class Reader:
    """How a set is read, and what its official files hold."""

    read: Callable[[Path, Path], LabelledSet]  # folder of the files, folder of the videos
    counts: dict[str, int]  # split -> clips that the official files list
    classes: dict[str, int]  # head -> classes
    slack: float = 0.0  # share by which copies that people use differ from the counts
    unit: str = 'clips'  # what is counted


READERS: dict[str, Reader] = {
    'ssv2': Reader(ssv2.read, {'train': 168_913, 'validation': 24_777}, {'label': 174}),
    'k400': Reader(k400.read, {'train': 240_436, 'validation': 19_796}, {'label': 400}, 0.05),
    'coin': Reader(coin.read, {'train': 9_030, 'validation': 2_797}, {'label': 180}, 0.02),
    'diving48': Reader(diving48.read, {'train': 15_027, 'validation': 1_970}, {'label': 48}),
    'jester': Reader(jester.read, {'train': 118_562, 'validation': 14_787}, {'label': 27}),
    'in1k': Reader(in1k.read, {'train': 1_281_167, 'validation': 50_000}, {'label': 1000}),
    'ek100': Reader(
        ek100.read, {'train': 67_217, 'validation': 9_668},
        {'verb': 97, 'noun': 289, 'action': 3568},
    ),
}  # fmt: skip


def read(name: str, folder: str | Path, videos: str | Path = '', official: bool = True):
    """A set's clips and class names: a LabelledSet.

    Args:
      name: a key of READERS.
      folder: of the official files.
      videos: where the videos or pictures are; empty: in the same folder.
      official: refuse files that hold other counts than the official ones; else they are told.

    Raises:
      ConfigError: a file that is missing or is another version, a label without a name, a clip
        with two labels; in one line.
    """
    if name not in READERS:
        raise ConfigError(f'data.set = {name!r}: {allowed(name, READERS)}')
    if not str(folder):
        raise ConfigError(f'data.path is empty: the folder with the official files of {name}')
    folder = Path(folder).expanduser()
    for field, place in (('path', folder), ('videos', Path(videos or folder).expanduser())):
        if not place.is_dir():
            raise ConfigError(f'data.{field} = {str(place)!r}: no such folder')
    try:
        data = READERS[name].read(folder, Path(videos or folder).expanduser())
    except BadFile as error:
        raise ConfigError(f'{name}: {error}') from error
    _refuse_two_labels(name, data)
    if lines := other_counts(name, READERS[name], data):
        if official:
            raise ConfigError(f'{lines[0]}; to use them as they are: --config.data.official=false')
        data = dataclasses.replace(data, notes=(*data.notes, *lines))
    return data


def _refuse_two_labels(name: str, data: LabelledSet) -> None:
    place: dict[str, Record] = {}
    for split, records in data.splits.items():
        for record in records:
            # of pieces of a video two may well have the same frames
            other = place.setdefault(record.path, record)
            if other.label != record.label and record.frames is None:
                raise ConfigError(
                    f'{name}: {record.path} is listed twice, with the labels {other.label} and '
                    f'{record.label}'
                )
        if not data.listed.get(split):
            raise ConfigError(f'{name}: the files list no clips for {split}')


def other_counts(name: str, row: Reader, data: LabelledSet) -> list[str]:
    """What differs from the official files, a sentence each."""
    lines = []
    for head, count in row.classes.items():
        if len(data.names[head]) != count:
            some = ', '.join(str(n) for n in data.names[head][:3])
            lines.append(
                f'{name}: another version: {len(data.names[head])} classes of {head} ({some}, '
                f'...), the official files have {count}'
            )
    for split, count in row.counts.items():
        if abs(data.listed[split] - count) > row.slack * count:
            about = 'about ' if row.slack else ''
            lines.append(
                f'{name}: another version: {data.files[split]} lists {data.listed[split]:,} '
                f'{row.unit} for {split}, the official file {about}{count:,}'
            )
    return lines
