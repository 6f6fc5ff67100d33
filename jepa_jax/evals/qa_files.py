"""What readers of questions have in common: rows of any file, fields, options, videos."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jepa_jax import files
from jepa_jax.data.labelled.records import columns_of, json_of, text_of
from jepa_jax.errors import BadFile, ConfigError, NoFile, printable
from jepa_jax.language.items import LETTERS, Item

PIECE = re.compile(r'(?P<name>.*?)[-_.]?(?P<number>\d{1,9})-of-(?P<count>\d{1,6})')
LONGEST = 2**14  # characters of a list that is written as text


@dataclasses.dataclass
class Read:
    """What the files of a set hold."""

    items: list[Item] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(
        default_factory=list
    )  # what cannot be used, a line each
    notes: list[str] = dataclasses.field(default_factory=list)  # sentences for the report
    files: list[str] = dataclasses.field(default_factory=list)  # that were read
    videos: str = ''  # the folder that those of the items lie in

    def take(
        self, path: Path, rows: Iterable[tuple[str, Any]], make: Callable[[str, Any], list[Item]]
    ) -> None:
        """Items of each row; one that cannot be used is a problem.

        Args:
          path: of the file.
          rows: where they stand, and what they are.
          make: place and row -> items; raises ValueError.
        """
        self.files.append(str(path))
        for place, row in rows:
            try:
                if not isinstance(row, dict):
                    raise ValueError(f'must be an object, is a {type(row).__name__}')
                self.items += make(place, row)
            except ValueError as error:
                self.problems.append(printable(f'{path.name} {place}: {error}'))

    def checked(self) -> Read:
        """Without items whose id was there before."""
        kept: dict[str, Item] = {}
        for item in self.items:
            if kept.setdefault(item.id, item) is not item:
                self.problems.append(printable(f'{item.id}: listed twice'))
        self.items = list(kept.values())
        return self


def rows_of(path: Path) -> list[tuple[str, Any]]:
    """Places and rows of a .json list, .jsonl, .csv or .parquet.

    Raises:
      BadFile: it is none.
      ConfigError: Parquet, and pyarrow is not installed.
    """
    kind = path.suffix.lower()
    if kind == '.json':
        return [(f'entry {n}', row) for n, row in enumerate(json_of(path, list), 1)]
    if kind == '.csv':
        return [(f'line {n}', row) for n, row in columns_of(path, ())]
    if kind == '.parquet':
        return _parquet(path)
    rows = []
    for number, line in enumerate(text_of(path).split('\n'), 1):  # a string may hold U+2028
        if line.strip():
            rows.append((f'line {number}', files.json_line(path, number, line)))
    return rows


def _parquet(path: Path) -> list[tuple[str, Any]]:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'{path}: Parquet needs pyarrow: pip install jepa_jax[robot], or give rows as .jsonl'
        ) from error
    files.bound(path, 'index', size := files.size(path), f'{size:,} bytes')
    with files.reading(path, 'not_text'):
        file = pyarrow.parquet.ParquetFile(path)
        about = file.metadata
        groups = [about.row_group(i).total_byte_size for i in range(about.num_row_groups)]
    files.bound(path, 'index', sum(groups), f'{sum(groups):,} bytes unpacked')
    with files.reading(path, 'not_text'):
        rows = file.read().to_pylist()
    return [(f'row {n}', row) for n, row in enumerate(rows, 1)]


def one(folder: Path, names: Sequence[str], what: str) -> Path:
    """The first of the names that is in a folder; or the folder itself, if it is a file.

    Raises NoFile.
    """
    return pieces(folder, names, what)[0]


def pieces(folder: Path, patterns: Sequence[str], what: str) -> list[Path]:
    """The file in a folder by the first pattern that there is one of, or all pieces of it, such as
    `full-00000-of-00002.parquet`; or the folder itself, if it is a file.

    Raises:
      NoFile: there is none.
      ConfigError: there are several, or not all the pieces of one.
    """
    if folder.is_file():
        return [folder]
    for pattern in patterns:
        if there := sorted(p for p in folder.glob(pattern) if p.is_file()):
            break
    else:
        raise NoFile(f'data.path = {str(folder)!r}: has no {" or ".join(patterns)}: {what}')
    parts = [part for p in there if (part := PIECE.fullmatch(p.stem))]
    wholes = {(part['name'], int(part['count'])) for part in parts}
    if len(there) > 1 and (len(parts) < len(there) or len(wholes) > 1):
        names = ', '.join(str(p.relative_to(folder)) for p in there)
        raise ConfigError(
            f'data.path = {str(folder)!r}: has {names}, one is read: leave one there, or name one, '
            '--config.data.path=FILE'
        )
    for _, count in wholes:
        numbers = sorted(int(part['number']) for part in parts)
        if numbers not in ([*range(count)], [*range(1, count + 1)]):
            raise ConfigError(
                f'data.path = {str(folder)!r}: has {len(parts)} of {count} pieces of '
                f'{there[0].relative_to(folder)}'
            )
    return there


def text(row: dict, name: str) -> str:
    """Raises ValueError."""
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'{name} is {value!r:.80}: must be text')
    return value


def texts(row: dict, name: str, least: int = 2, most: int = len(LETTERS)) -> tuple[str, ...]:
    """A list of options, or one that is written as text. Raises ValueError."""
    value = row.get(name)
    if isinstance(value, str) and len(value) <= LONGEST:
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    if not isinstance(value, list | tuple) or not least <= len(value) <= most:
        raise ValueError(f'{name} is {row.get(name)!r:.80}: must be a list of {least} to {most}')
    options = tuple(str(v) for v in value)
    if twice := [o for o in options if options.count(o) > 1]:
        raise ValueError(f'{name}: options that are equal: {twice[0]!r:.80}')
    return options


def among(options: Sequence[str], answer: Any, name: str = 'answer') -> int:
    """Which option it is. Raises ValueError."""
    if answer not in options:
        raise ValueError(f'{name} is {answer!r:.80}: none of the {len(options)} options')
    return list(options).index(answer)


def number(row: dict, name: str, below: int) -> int:
    """Raises ValueError."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
        raise ValueError(f'{name} is {value!r:.80}: must be from 0 to {below - 1}')
    return value


def seconds(row: dict, name: str) -> float:
    """0 where it is absent. Raises ValueError."""
    value = row.get(name) or 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e7:
        raise ValueError(f'{name} is {value!r:.80}: must be seconds')
    return float(value)


def video(folder: Path, name: str) -> str:
    """The path of a video that a file names, within its folder. Raises ValueError."""
    try:
        return str(files.inside(folder, name))
    except BadFile as error:
        raise ValueError(error.detail) from error


def letters(options: Sequence[str]) -> tuple[str, ...]:
    return tuple(LETTERS[: len(options)])


def listed(options: Sequence[str], form: str) -> str:
    """Lines of options; form: such as `{letter}. {option}`."""
    return '\n'.join(form.format(letter=letter, option=o) for letter, o in zip(LETTERS, options))
