"""Recordings as LeRobot has them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_jax import files
from jepa_jax.config import RobotConfig
from jepa_jax.data.robot import metadata
from jepa_jax.data.robot.contract import STATE, as_contract
from jepa_jax.data.robot.episodes import INSTALL, EncodedImages, Episode, state_of
from jepa_jax.errors import BadFile, ConfigError, nearest

# a field of a path in meta/info.json; Python's own formatting would follow attributes and fill
# gigabytes with blanks
FIELD = re.compile(r'\{(\w+)(?::0?(\d)d)?\}')


@dataclasses.dataclass(frozen=True)
class _Row:
    """Where an episode is."""

    data: Path
    length: int
    video: Path | None  # None: the images are in `data`
    number: int | None = None  # of the episode in a file that holds several
    second: float = 0.0  # of the video at which it begins
    bad: BadFile | None = None  # what is wrong with its entry


class LeRobot:
    """A LeRobot data set, version 2 (a file an episode) or 3 (many in a file).

    The seven numbers of the state are columns of the features that `robot.state` names, by their
    names or numbers in `robot.columns`, or by our own names if it is empty. Pictures are those of a
    video, or images within the data.
    """

    def __init__(self, data: RobotConfig) -> None:
        self._folder, self._data = Path(data.path), data
        path = self._info_path = self._folder / 'meta/info.json'
        try:
            self._info = info = metadata.read_json(path)
            version = metadata.field(path, info, 'codebase_version', str)
            if version[:2] not in ('v2', 'v3'):
                raise ConfigError(f"{path}: codebase_version '{version}': allowed are v2 and v3")
            self._fps = float(metadata.field(path, info, 'fps', (int, float)))
            if not 0 < self._fps < 1e4:
                raise BadFile(path, 'not_text', f"'fps' is {self._fps:g}: must be above 0")
            self._features = metadata.field(path, info, 'features', dict)
            for key, feature in self._features.items():
                if not isinstance(feature, dict):
                    raise BadFile(path, 'not_text', f"feature '{key}' is no JSON object")
            self._images = self._camera()
            self._states, self._columns = self._find_columns('state', 'columns')
            self._actions = None
            if data.action:
                self._actions = self._find_columns('action', 'action_columns')
            read = self._version_2 if version[:2] == 'v2' else self._version_3
            self._rows = list(read())
        except BadFile as error:
            raise ConfigError(f'robot.path = {data.path!r}: {error}') from error
        if not self._rows:
            raise ConfigError(f'robot.path = {data.path!r}: {path.parent} names no episode')

    def _camera(self) -> bool:
        """Whether the camera's pictures are images in the data; else they are a video."""
        kinds = {key: str(row.get('dtype')) for key, row in self._features.items()}
        cameras = [key for key, kind in kinds.items() if kind in ('video', 'image')]
        camera = self._data.camera
        if camera not in cameras:
            raise ConfigError(f'{metadata.no_camera(camera, cameras)}; {self._path_words()}')
        return kinds[camera] == 'image'

    def _path_words(self) -> str:
        """Which features there are."""
        words = (
            f'{key} {row.get("dtype")} {list(row.get("shape") or ())}'
            for key, row in self._features.items()
            if isinstance(row.get('shape') or (), list | tuple)
        )
        return f'{self._info_path} has {", ".join(words) or "no features"}'[:1000]

    def _find_columns(self, field: str, columns_field: str) -> tuple[list[str], list[int]]:
        """The features that a setting names, and their seven numbers among the columns of them
        all; columns_field: the setting that names these."""
        named = getattr(self._data, field)
        keys = [key.strip() for key in named.split(',')]
        names: list[str | None] = []
        for key in keys:
            if key not in self._features:
                raise ConfigError(
                    f"robot.{field} = '{named}': no feature '{key}'"
                    f'{nearest(key, self._features)}; {self._path_words()}'
                )
            names += self._names(field, key)
        text = getattr(self._data, columns_field) or self._data.columns
        asked, columns, wrong = text.split(',') if text else STATE, [], []
        for column in (column.strip() for column in asked):
            if names.count(column) == 1:
                columns.append(names.index(column))
            elif column.isascii() and column.isdigit() and int(column) < len(names):
                columns.append(int(column))
            else:
                places = [str(i) for i, name in enumerate(names) if name == column]
                twice = f"'{column}' is there {len(places)} times, as {' and '.join(places)}"
                wrong.append(twice if places else f'no {column}')
        if wrong or len(columns) != len(STATE):
            raise ConfigError(
                f"robot.{columns_field} = '{text}': "
                f'{", ".join(wrong) or f"{len(columns)} names"}; must name the 7 columns of '
                f'{named} that are {", ".join(STATE)}, among '
                f'{", ".join(name or "(no name)" for name in names)}, or give their numbers, 0 to '
                f'{len(names) - 1}'
            )
        return keys, columns

    def _names(self, field: str, key: str) -> list[str | None]:
        """Of the columns of a feature; None: it has none. Lists in it, as in {'motors': [...]}, are
        joined."""
        feature, path = self._features[key], self._info_path
        shape = metadata.field(path, feature, 'shape', list)
        if len(shape) > 1 or not all(isinstance(n, int) and 0 < n <= 4096 for n in shape):
            raise ConfigError(
                f"robot.{field} = '{getattr(self._data, field)}': '{key}' has shape "
                f'{str(shape)!s:.60}, must have [n]; {self._path_words()}'
            )
        names = list(_leaves(feature.get('names')))
        width = shape[0] if shape else 1
        return names if len(names) == width else [None] * width

    def _path(self, template: str, **values: Any) -> Path:
        """A file of the set. Raises BadFile."""

        def fill(match: re.Match) -> str:
            name, width = match.groups()
            if name not in values:
                raise BadFile(self._info_path, 'not_text', f'{template!r:.80} has {{{name}}}')
            return f'{values[name]:0{width}d}' if width else str(values[name])

        values['video_key'] = self._data.camera
        try:
            name = FIELD.sub(fill, template)
        except ValueError as error:  # a width for a word
            raise BadFile(self._info_path, 'not_text', f'{template!r:.80}: {error}') from error
        if '{' in name or '}' in name:
            raise BadFile(self._info_path, 'not_text', f'{template!r:.80}: fields are as {{a:03d}}')
        return metadata.inside(self._info_path, self._folder, name)

    def _template(self, key: str) -> str:
        return metadata.field(self._info_path, self._info, key, str)

    def _version_2(self) -> Iterator[_Row]:
        path = self._folder / 'meta/episodes.jsonl'
        size = metadata.field(self._info_path, self._info, 'chunks_size', int)
        if size < 1:
            raise BadFile(self._info_path, 'not_text', f"'chunks_size' is {size}")
        data = self._template('data_path')
        video = None if self._images else self._template('video_path')
        for line_number, line in enumerate(metadata.read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = metadata.parse(path, line, dict, f'line {line_number}: ')
                number, length = (_count(path, entry, key) for key in ('episode_index', 'length'))
                place = dict(episode_index=number, episode_chunk=number // size)
                shown = None if video is None else self._path(video, **place)
                yield _Row(self._path(data, **place), length, shown)
            except BadFile as error:  # of one episode
                yield _Row(path, 0, None, bad=error)

    def _version_3(self) -> Iterator[_Row]:
        camera = f'videos/{self._data.camera}'
        data = self._template('data_path')
        video = None if self._images else self._template('video_path')
        places = ('data',) if self._images else ('data', camera)
        columns = ['episode_index', 'length']
        columns += [f'{place}/{of}_index' for place in places for of in ('chunk', 'file')]
        columns += [] if self._images else [f'{camera}/from_timestamp']
        with files.reading(self._folder):
            paths = sorted(self._folder.glob('meta/episodes/*/*.parquet'))
        for path in paths:
            table = _Parquet(path).table(columns)
            with files.reading(path):
                entries = table.to_pylist()
            for entry in entries:
                try:
                    at = {
                        place: {
                            f'{of}_index': _count(path, entry, f'{place}/{of}_index')
                            for of in ('chunk', 'file')
                        }
                        for place in places
                    }
                    number, length = (_count(path, entry, k) for k in ('episode_index', 'length'))
                    shown, second = None, 0.0
                    if video is not None:
                        shown = self._path(video, **at[camera])
                        key = f'{camera}/from_timestamp'
                        second = float(metadata.field(path, entry, key, (int, float)))
                        if not 0 <= second < 1e9:
                            raise BadFile(path, 'not_text', f"'{key}' is {second:g}")
                    yield _Row(self._path(data, **at['data']), length, shown, number, second)
                except BadFile as error:  # of one episode
                    yield _Row(path, 0, None, bad=error)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return f'{self._folder}#{index}'

    def state(self, index: int) -> str:
        row = self._rows[index]
        listed = [row.data] if row.video is None else [row.data, row.video]
        return state_of(*listed, also=(row.number, row.length, row.second, self._fps))

    def episode(self, index: int) -> Episode:
        row, name = self._rows[index], self.name(index)
        if row.bad:
            raise row.bad
        parquet = _Parquet(row.data)
        used = [*self._states, *(self._actions[0] if self._actions else ()), 'episode_index']
        table, kept = parquet.table(list(dict.fromkeys(used))), None
        if row.number is not None:
            kept = np.flatnonzero(parquet.matrix(table, 'episode_index')[:, 0] == row.number)

        def pose(keys: list[str], columns: list[int]) -> np.ndarray:
            nonlocal kept
            values = np.concatenate([parquet.matrix(table, key) for key in keys], axis=1)
            kept = np.arange(len(values)) if kept is None else kept
            values = values[kept]
            if len(values) != row.length:
                words = f'{len(values)} states, meta/ says {row.length}'
                raise BadFile(row.data, 'bad_state', words)
            if values.shape[1] <= max(columns):
                words = f'{",".join(keys)} has {values.shape[1]} columns, fewer than meta/ says'
                raise BadFile(row.data, 'bad_state', words)
            return as_contract(name, values[:, columns], self._data)

        states = pose(self._states, self._columns)
        commands = pose(*self._actions) if self._actions else None
        if row.video is None:
            images = EncodedImages(str(row.data), parquet.images(self._data.camera, kept))
            return Episode(name, states, fps=self._fps, pixels=images, commands=commands)
        return Episode(
            name, states, str(row.video), begins=row.second, fps=self._fps,
            whole=row.number is None, commands=commands,
        )  # fmt: skip


def _leaves(names: Any) -> Iterator[str]:
    """The words in lists and dicts of lists."""
    if isinstance(names, dict):
        names = list(names.values())
    for name in names if isinstance(names, list) else ():
        if isinstance(name, list | dict):
            yield from _leaves(name)
        elif name is not None:
            yield str(name)


def _count(path: Path, entry: dict, key: str) -> int:
    number = metadata.field(path, entry, key, int)
    if not 0 <= number < 2**31:
        raise BadFile(path, 'not_text', f"'{key}' is {number:.3g}")
    return number


class _Parquet:
    """The columns of a file."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise ConfigError(f'LeRobot data: {INSTALL.format("pyarrow")}') from None
        self._path, self._size = path, files.size(path)
        with files.reading(path):
            # the footer alone; it may claim anything
            self._file = pyarrow.parquet.ParquetFile(
                path, thrift_string_size_limit=2**27, thrift_container_size_limit=2**22
            )
            self._schema, self._about = self._file.schema_arrow, self._file.metadata
        files.bound(path, 'frames', self._about.num_rows, f'{self._about.num_rows:,} rows')

    def table(self, columns: Sequence[str]):
        """Raises BadFile: a column is absent, or larger than the file can hold."""
        has = set(self._schema.names)
        for column in columns:
            if column not in has:
                words = f'no column {column}; it has {", ".join(sorted(has))[:300]}'
                raise BadFile(self._path, 'corrupt', words)
        claimed, begins = [], tuple(f'{column}.' for column in columns)
        with files.reading(self._path):
            for group in range(self._about.num_row_groups):
                for place in range(self._about.num_columns):
                    chunk = self._about.row_group(group).column(place)
                    if f'{chunk.path_in_schema}.'.startswith(begins):
                        claimed.append((chunk.total_uncompressed_size, chunk.num_values))
        unpacked = sum(max(size, 8 * values, 0) for size, values in claimed)
        files.bound_decoded(self._path, unpacked, self._size)
        with files.reading(self._path):
            return self._file.read(columns=list(columns), use_threads=False)

    def matrix(self, table, name: str) -> np.ndarray:
        """A column of numbers, or of lists of as many numbers each, [T, n]. Raises BadFile."""
        import pyarrow.compute

        with files.reading(self._path, 'bad_state'):
            column = table.column(name).combine_chunks()
            rows = len(column)
            if column.null_count:
                raise BadFile(
                    self._path, 'bad_state', f'{name} is empty in {column.null_count} rows'
                )
            as_many = True
            if hasattr(column, 'flatten'):
                lengths = pyarrow.compute.list_value_length(column)
                as_many = len(pyarrow.compute.unique(lengths)) == 1
                column = column.flatten()
            if column.null_count:
                raise BadFile(
                    self._path, 'bad_state', f'{name} has {column.null_count} empty places'
                )
            numbers = column.to_numpy(zero_copy_only=False)
            if numbers.dtype.kind not in 'fiu' or not rows or not as_many:
                words = f'{name} holds {table.column(name).type!s:.60}, must be lists of numbers'
                raise BadFile(self._path, 'bad_state', f'{words}, as many in each of {rows} rows')
            return numbers.reshape(rows, -1)

    def images(self, name: str, rows: np.ndarray) -> Sequence[bytes]:
        """The image files in a column, of some rows. Raises BadFile."""
        table = self.table([name])
        with files.reading(self._path, 'bad_state'):
            cells = table.column(name).take(rows).to_pylist()
        images = [cell.get('bytes') if isinstance(cell, dict) else cell for cell in cells]
        if not all(isinstance(image, bytes) for image in images):
            words = f'{name} holds no image files: must be PNG or JPEG bytes in every row'
            raise BadFile(self._path, 'no_camera', words)
        return images
