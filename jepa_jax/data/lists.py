"""Which files a list names: text, a spreadsheet's table, a manifest, an array of paths, a folder.

A text list has a file a line: `path`, `path label` or `path::label`; the label is the last word if
that is a whole number, so that paths may hold spaces. Tables are read, too:

    videos/a b.mp4,3            "videos/a, b.mp4",3            3;videos/a.mp4            path,label

A tab, comma or semicolon separates columns if half of the first lines hold it and none of them
names an existing file as it stands. The path is in the column that a header calls so, or in the
only one whose end is that of a video or picture, else in the first; the label is in the column that
a header calls so, or in the other one of two. Labels that are words are not used, and this is said:
two lists would number them differently.
"""

from __future__ import annotations

import codecs
import collections
import csv
import dataclasses
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jepa_jax import files
from jepa_jax.data import names as names_
from jepa_jax.data import npz
from jepa_jax.data.kinds import PICTURES, STACKS, VIDEOS, kind_of, known
from jepa_jax.errors import BadFile, ConfigError, printable

Record = tuple[str, int | None]  # absolute path, label

# what a header calls the columns
PATHS = frozenset('path file filename file_name filepath file_path video video_path image'.split())
LABELS = frozenset('label labels class class_id target category'.split())
SUFFIXES = VIDEOS | PICTURES | STACKS | {'.npy'}
FIRST = 16  # lines that tell how columns are separated
SHOWN = 8  # suffixes that a scan counts one by one
_BINARY = {
    b'PK\x03\x04': 'a zip file or spreadsheet', b'PAR1': 'Parquet', b'\x1f\x8b': 'gzip',
    b'%PDF': 'PDF', b'SQLite': 'a data base', b'\x89HDF': 'HDF5',
}  # fmt: skip
_MARKS = {  # UTF-32's begins as UTF-16's does
    codecs.BOM_UTF8: 'utf-8', codecs.BOM_UTF32_LE: 'utf-32-le', codecs.BOM_UTF32_BE: 'utf-32-be',
    codecs.BOM_UTF16_LE: 'utf-16-le', codecs.BOM_UTF16_BE: 'utf-16-be',
}  # fmt: skip
_QUOTED = re.compile(r'"((?:[^"]|"")+)"(?:\s+|::|$)([^"]*)', re.DOTALL)


def records_of(path: str, suffixes: frozenset[str]) -> tuple[list[Record], dict[str, int]]:
    """What a folder or list of any form names, and how much it leaves out, by reason.

    Raises:
      ConfigError: it is no list.
      BadFile: it is damaged or too large.
      OSError: there is none, or it cannot be read.
    """
    if os.path.isdir(path):
        paths, skipped = scan(path, suffixes)
        return [(name, None) for name in paths], skipped
    os.stat(path)
    suffix = Path(path).suffix.lower()
    if suffix in VIDEOS | PICTURES or suffix != '.npy' and known(path):
        raise ConfigError(f'{path!r} is one file; give a list of files or a folder')
    if suffix == '.jsonl':
        return _manifest(path)
    return _array(path) if suffix == '.npy' else read_list(path), {}


def read_list(path: str | Path) -> list[Record]:
    """Records of a text list, see above, or of one that `jepa index --names` packed. Relative paths
    are relative to the list's folder; empty lines and those that start with `#` are skipped.

    Raises:
      BadFile: missing, unreadable, too large, or no text.
    """
    if str(path).endswith(names_.SUFFIX):
        return names_.Mapped(path).records()
    reader = _Reader(path)
    records = reader.records(_lines(path))
    reader.warn()
    return records


class _Reader:
    """Makes records of a list's lines, of some at a time: the first tell how it is written."""

    def __init__(self, path: str | Path) -> None:
        self._path, self._folder = path, Path(path).parent
        self._cut: _Lines | _Table | None = None
        self._unused: dict[str, tuple[int, int, str]] = {}  # how many lines, and the first

    @property
    def plain(self) -> bool:
        """Whether lines are `path label`, and not a table's."""
        return isinstance(self._cut, _Lines)

    def records(self, lines: list[tuple[int, str]]) -> list[Record]:
        """Of numbered lines without white space around them."""
        lines = [(n, line) for n, line in lines if line and not line.startswith('#')]
        if self._cut is None and lines:
            self._cut = _table([line for _, line in lines[:FIRST]], self._folder)
            if header := self._cut.header(lines[0][1]):
                self._cut, lines = header, lines[1:]
        records = []
        for number, line in lines:
            name, label, why = self._cut(line)
            if why:
                count, *first = self._unused.get(why, (0, number, line))
                self._unused[why] = count + 1, *first
            records.append((_absolute(name, self._folder), label))
        return records

    def warn(self) -> None:
        """Says which labels and columns are not used."""
        for why in (_WORDS, _SPACES, _COLUMNS):
            if why in self._unused:
                count, number, line = self._unused[why]
                line = files.one_line(ValueError(line), 100)
                logging.warning(
                    '%s: %d lines: %s: line %d: %s', printable(self._path), count, why, number, line
                )


# What most lines of long lists look like: an absolute path as it will stand, and a label. They are
# cut by the million, several times as fast as a line at a time
_SIMPLE = re.compile(
    rb'(?m)^(/[!#-+\-./0-9<-\[\]-}]+\.(?:%s))(?: (-?[0-9]{1,18}))?$'
    % b'|'.join(suffix[1:].encode() for suffix in sorted(SUFFIXES)),
    re.IGNORECASE,
)
PIECE = 1 << 23  # bytes of a list that are read at a time


def pieces(path: str | Path) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Names and labels (int64, names.NONE: none) of a text list of any length, some at a time: the
    records that `read_list` gives.

    Raises:
      BadFile: missing, unreadable, no text, or a line of more than PIECE bytes.
    """
    reader, number, left = _Reader(path), 1, b''
    files.size(path)
    with files.reading(path), open(path, 'rb') as file:
        mark, encoding = _text(path, file.read(64))
        file.seek(0)
        if mark or encoding != 'utf-8':
            yield _packed(read_list(path))
            return
        while True:
            read = file.read(PIECE)
            if last := len(read) < PIECE:  # nothing need end the last line
                data = (left + read).removesuffix(b'\n')
            else:
                data, newline, left = (left + read).rpartition(b'\n')
                if not newline:
                    raise BadFile(path, 'not_text', f'a line of more than {PIECE:,} bytes')
            if reader.plain and (simple := _simple(data)):
                yield simple
            elif data:
                text = data.decode('utf-8', 'surrogateescape').splitlines()
                yield _packed(reader.records([(n, x.strip()) for n, x in enumerate(text, number)]))
            number += data.count(b'\n') + 1
            if last:
                break
    reader.warn()


def _packed(records: list[Record]) -> tuple[list[bytes], np.ndarray]:
    labels = [names_.NONE if label is None else label for _, label in records]
    names = [name.encode('utf-8', 'surrogateescape') for name, _ in records]
    return names, np.asarray(labels, np.int64)


def _simple(data: bytes) -> tuple[list[bytes], np.ndarray] | None:
    """Names and labels of lines that are all simple; None: they are not."""
    if b'//' in data or b'/.' in data:
        return None
    pairs = _SIMPLE.findall(data)
    if len(pairs) != data.count(b'\n') + 1:
        return None
    labels = [int(label) if label else names_.NONE for _, label in pairs]
    return [name for name, _ in pairs], np.asarray(labels, np.int64)


_WORDS = 'a label that is no whole number, which is not used'
_SPACES = 'more after the name of a video, taken as part of it: put a comma before a word as label'
_COLUMNS = 'other columns than path and label, which no header names: only the path is used'


@dataclasses.dataclass(frozen=True)
class _Lines:
    """Cuts a line of words into path, label and why a label is not used."""

    folder: Path

    def header(self, line: str) -> _Lines | None:
        """The same if a first line is a header."""
        words = line.lower().split()
        heads = words[0] in PATHS and set(words) <= PATHS | LABELS
        return self if heads and not _exists(line, self.folder) else None

    def __call__(self, line: str) -> tuple[str, int | None, str]:
        name, label, why = self._plain(line)
        quoted = line.startswith('"') and _QUOTED.fullmatch(line)
        if quoted and not _exists(name, self.folder):
            return quoted[1].replace('""', '"'), *_label(quoted[2])
        return name, label, why

    def _plain(self, line: str) -> tuple[str, int | None, str]:
        name, _, text = line.rpartition('::') if '::' in line else _last_word(line)
        digits = text.strip().removeprefix('-')
        if name and digits.isascii() and digits.isdigit():
            return name.strip(), *_label(text)
        if os.path.splitext(line)[1].lower() in SUFFIXES:
            return line, None, ''
        end = os.path.splitext(name.strip())[1].lower()
        return line, None, _SPACES if end in SUFFIXES else ''


@dataclasses.dataclass(frozen=True)
class _Table:
    """The same for a table's row."""

    delimiter: str
    folder: Path
    columns: tuple[int, int | None] | None = None  # of path and label, as the header says

    def header(self, line: str) -> _Table | None:
        fields = [field.lower() for field in self._fields(line)]
        paths = [i for i, field in enumerate(fields) if field in PATHS]
        labels = [i for i, field in enumerate(fields) if field in LABELS]
        if not paths or _exists(line, self.folder):
            return None
        return dataclasses.replace(self, columns=(paths[0], labels[0] if labels else None))

    def __call__(self, line: str) -> tuple[str, int | None, str]:
        fields = self._fields(line)
        if self.columns:
            path, label = self.columns
            if path >= len(fields) or not fields[path]:
                return line, None, ''
            return fields[path], *_label(fields[label] if label in range(len(fields)) else '')
        ends = [i for i, f in enumerate(fields) if os.path.splitext(f)[1].lower() in SUFFIXES]
        path = ends[0] if len(ends) == 1 else 0
        if len(fields) > 2:
            return (fields[path], None, _COLUMNS) if len(ends) == 1 else (line, None, '')
        if not fields[path]:
            return line, None, ''
        return fields[path], *_label(fields[1 - path] if len(fields) == 2 else '')

    def _fields(self, line: str) -> list[str]:
        try:
            rows = list(csv.reader([line], delimiter=self.delimiter, skipinitialspace=True))
        except csv.Error:  # a field longer than any path
            return [line]
        return [field.strip() for field in rows[0]] if rows else [line]


def _table(lines: list[str], folder: Path) -> _Lines | _Table:
    plain = _Lines(folder)
    for delimiter in '\t,;':
        holding = [line for line in lines if delimiter in line]
        if 2 * len(holding) < max(len(lines), 1):
            continue
        if not any(_exists(plain(line)[0], folder) for line in holding):
            return _Table(delimiter, folder)
    return plain


def _label(text: str) -> tuple[int | None, str]:
    """A label and why it is not used."""
    text = text.strip()
    if re.fullmatch(r'[+-]?\d{1,18}(\.0*)?', text, re.ASCII):
        return int(text.partition('.')[0]), ''
    return None, _WORDS if text else ''


def _lines(path: str | Path) -> list[tuple[int, str]]:
    size = files.size(path)
    files.bound(path, 'index', size, f'{size:,} bytes of a list')
    with files.reading(path):
        data = Path(path).read_bytes()
    mark, encoding = _text(path, data)
    data = data[len(mark) :]
    text = data.decode(encoding, 'surrogateescape' if encoding == 'utf-8' else 'replace')
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]


def _text(path: str | Path, data: bytes) -> tuple[bytes, str]:
    """The mark that text begins with, b'' if none, and its encoding. Raises BadFile: it is none."""
    for start, what in _BINARY.items():
        if data.startswith(start):
            raise BadFile(path, 'not_text', f'{what}: must be text, a path a line')
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b'')
    # without a mark, UTF-16 shows by every other byte of its first letters
    wide = {b'\0\1\0\1': 'utf-16-be', b'\1\0\1\0': 'utf-16-le'}
    return mark, _MARKS.get(mark) or wide.get(bytes(map(bool, data[:4])), 'utf-8')


def _last_word(line: str) -> tuple[str, str, str]:
    name, *label = line.rsplit(maxsplit=1)
    return name, '', ''.join(label)


def _exists(name: str, folder: Path) -> bool:
    return os.path.lexists(_absolute(name, folder))


def _absolute(name: str, folder: Path) -> str:
    if '\0' in name:  # which some functions of `os.path` take for its end
        return os.path.join(folder, name)
    path = os.path.normpath(os.path.join(folder, os.path.expanduser(name)))
    if '\\' in name and not os.path.exists(path):  # written on Windows?
        other = os.path.normpath(os.path.join(folder, name.replace('\\', '/')))
        return other if os.path.exists(other) else path
    return path


def scan(folder: str | Path, suffixes: frozenset[str]) -> tuple[list[str], dict[str, int]]:
    """Files below a folder, by suffix, sorted, and what is passed over, counted.

    Videos include picture files that may be animated, of which those of one frame are passed over.
    Links to files are followed, links to folders are not. Hidden files are read as any other;
    companions that macOS writes (`._NAME`) are passed over.

    Raises:
      OSError: the folder cannot be read; those below it are counted.
    """
    paths, skipped, waiting = [], collections.Counter(), [os.fspath(folder)]
    while waiting:
        parent = waiting.pop()
        try:
            entries = list(os.scandir(parent))
        except OSError:
            if parent == os.fspath(folder):
                raise
            skipped['folders that cannot be read'] += 1
            continue
        for entry in entries:
            if _is_folder(entry):
                if entry.is_symlink():
                    skipped['linked folders'] += 1
                else:
                    waiting.append(entry.path)
            elif why := _passed_over(entry, suffixes):
                skipped[why] += 1
            else:
                paths.append(entry.path)
    return sorted(paths), _most(skipped)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _passed_over(entry: os.DirEntry, suffixes: frozenset[str]) -> str:
    """Why a file is not one of a scan's."""
    if entry.name.startswith('._'):
        return 'companions of macOS'
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in suffixes:
        return ''
    if suffixes is VIDEOS and suffix in STACKS:
        try:
            return '' if kind_of(entry.path) in ('stack', 'video') else f'{suffix} of one frame'
        except BadFile as error:
            return f'{suffix} {error.reason}'
    return files.one_line(ValueError(suffix), 12) if suffix else 'files without suffix'


def _most(counts: collections.Counter[str]) -> dict[str, int]:
    ends = [why for why in counts if why.startswith('.')]
    rare = sorted(ends, key=lambda why: (-counts[why], why))[SHOWN:]
    if rest := sum(counts.pop(why) for why in rare):
        counts['of other suffixes'] = rest
    return dict(sorted(counts.items()))


def _array(path: str) -> list[Record]:
    size = files.size(path)
    files.bound(path, 'index', size, f'{size:,} bytes of a list')
    try:
        names = npz.load(path)
    except BadFile as error:  # an array of objects, or no array at all
        raise ConfigError(f'{path!r} is no array of strings that numpy can read safely') from error
    if names.ndim != 1 or names.dtype.kind not in 'US':
        raise ConfigError(f'{path!r} holds {names.dtype} {names.shape}; a row of strings is needed')
    if names.dtype.kind == 'U' and names.size:
        letters = np.ascontiguousarray(names).view(f'{names.dtype.byteorder}u4')
        if letters.max(initial=0) > sys.maxunicode:  # of which numpy makes strings that are none
            raise ConfigError(f'{path!r}: names with letters beyond U+10FFFF; it is damaged')
    folder = Path(path).parent
    return [(_absolute(os.fsdecode(name), folder), None) for name in names.tolist()]


def _manifest(path: str) -> tuple[list[Record], dict[str, int]]:
    """Records of a manifest of `tools.index_videos`. Raises ConfigError naming a line."""
    records, skipped, folder = [], collections.Counter(), Path(path).parent
    for number, line in _lines(path):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = files.one_line(error)
            raise ConfigError(f'{path!r} line {number} is no row of a manifest: {what}') from error
        for field, kinds in _FIELDS.items():
            value = row.get(field) if isinstance(row, dict) else None
            if not isinstance(value, kinds) or isinstance(value, bool):
                words = ' or '.join(k.__name__.replace('NoneType', 'null') for k in kinds)
                raise ConfigError(
                    f'{path!r} line {number} is no row of a manifest: {field} is '
                    f'{type(value).__name__.replace("NoneType", "null")}, must be {words}'
                )
        if row.get('problem'):
            skipped[files.one_line(ValueError(row['problem']), 40)] += 1
        elif abs(label := row.get('label') or 0) < 2**63:
            records.append((_absolute(row['path'], folder), row.get('label')))
        else:
            raise ConfigError(f'{path!r} line {number}: label {label:.3g} has more than 64 bits')
    return records, dict(skipped)


_FIELDS = {'path': (str,), 'problem': (str, type(None)), 'label': (int, type(None))}
