"""What the readers of labelled sets have in common: records, official files, videos on disk."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jepa_jax import files
from jepa_jax.errors import BadFile, ConfigError

VIDEOS = ('.mp4', '.webm', '.mkv', '.avi', '.mov', '.m4v')


@dataclasses.dataclass(frozen=True)
class Record:
    """A clip: a video, a picture, a folder of pictures, or a piece of a video."""

    path: str
    label: tuple[int, ...]  # a class for each head
    frames: tuple[int, int] | None = None  # first and last, of a piece
    among: tuple[str, ...] = ()  # figures of a part of the set that it counts in, beside the whole


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """A set as it is on this disk."""

    names: dict[str, tuple[str, ...]]  # head -> classes in the official order
    splits: dict[str, list[Record]]  # train, validation -> what is on disk
    listed: dict[str, int]  # split -> clips that the files list
    files: dict[str, str]  # split -> the file that lists them
    missing: dict[str, list[str]]  # split -> clips that are not on disk
    fps: float = 0.0  # of folders of pictures
    notes: tuple[str, ...] = ()  # sentences for the report


def official(folder: Path, names: Sequence[str], below: Sequence[str] = ()) -> Path:
    """The first of the names that is in the folder or in one of those below it.

    Raises ConfigError, which lists them.
    """
    for part in ('', *below):
        for name in names:
            if (path := folder / part / name).is_file():
                return path
    places = ' or '.join(str(Path(part, names[0])) for part in ('', *below))
    also = f' (or {", ".join(names[1:])})' if names[1:] else ''
    raise ConfigError(f'data.path = {str(folder)!r}: has no {places}{also}')


def text_of(path: Path) -> str:
    """Raises BadFile."""
    files.bound(path, 'index', files.size(path))
    with files.reading(path, 'not_text'):
        return path.read_bytes().decode('utf-8-sig')


def json_of(path: Path, kind: type) -> Any:
    """The content of a JSON file, a `list` or a `dict`. Raises BadFile."""
    text = text_of(path)
    with files.reading(path, 'not_text'):
        content = json.loads(text)
    if not isinstance(content, kind):
        word = {list: 'a list', dict: 'an object'}[kind]
        raise BadFile(path, 'not_text', f'{type(content).__name__}: must be {word}')
    return content


def field(path: Path, number: int, row: Any, name: str, kind: type) -> Any:
    """`row[name]` of a JSON entry, of a type. Raises BadFile, which says which entry."""
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        what = f'has {name} = {value!r}' if isinstance(row, dict) else 'is no object'
        raise BadFile(path, 'not_text', f'entry {number} {what}: must be of type {kind.__name__}')
    return value


def table_of(path: Path, separator: str = ',') -> list[tuple[int, list[str]]]:
    """Line numbers and cells of a csv, without empty lines. Raises BadFile."""
    text = text_of(path)
    with files.reading(path, 'not_text'):
        reader = csv.reader(io.StringIO(text, newline=''), delimiter=separator, strict=True)
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]


def columns_of(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a csv with a header that has the needed columns. Raises BadFile."""
    rows = table_of(path)
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    if lacking := [name for name in needed if name not in header]:
        raise BadFile(path, 'not_text', f'the header has no column {", ".join(lacking)}')
    for number, row in rows[1:]:
        if len(row) != len(header):
            detail = f'line {number} has {len(row)} columns, the header {len(header)}'
            raise BadFile(path, 'not_text', detail)
    return [(number, dict(zip(header, row))) for number, row in rows[1:]]


def whole(path: Path, number: int, text: str, name: str, below: int | None = None) -> int:
    """A cell as a whole number from 0. Raises BadFile, which says which line."""
    text = text.strip()
    if not (text.isascii() and text.isdigit()):
        detail = f'line {number}: {name} {text!r} is no whole number'
        raise BadFile(path, 'not_text', detail)
    return in_range(path, f'line {number}', int(text), name, below)


def in_range(path: Path, place: str, value: int, name: str, below: int | None) -> int:
    """A number from 0 to `below` - 1, or any from 0. Raises BadFile, which says where it is."""
    if value < 0 or (below is not None and value >= below):
        most = f'0 to {below - 1}' if below is not None else 'at least 0'
        raise BadFile(path, 'not_text', f'{place}: {name} {value} is out of range: {most}')
    return value


def stems(folder: Path, suffixes: Iterable[str] = VIDEOS) -> dict[str, str]:
    """Name without suffix -> path, of all files below a folder; linked folders are entered.

    Of two files of one name the first counts, in the order of their paths.
    """
    suffixes, result, seen = tuple(suffixes), {}, set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in suffixes:
                result.setdefault(stem, os.path.join(parent, name))
    return result


def collect(
    names: dict[str, tuple[str, ...]],
    lists: dict[str, tuple[Path, list[tuple[str, str | None, tuple[int, ...]]]]],
    **more: Any,
) -> LabelledSet:
    """A set of whole videos.

    lists: split -> its file, and (name, path or None where there is none, label) of each clip.
    """
    return LabelledSet(
        names,
        {s: [Record(p, label) for _, p, label in rows if p] for s, (_, rows) in lists.items()},
        {split: len(rows) for split, (_, rows) in lists.items()},
        {split: path.name for split, (path, _) in lists.items()},
        {split: [name for name, p, _ in rows if not p] for split, (_, rows) in lists.items()},
        **more,
    )
