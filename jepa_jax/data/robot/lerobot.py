"""Recordings as LeRobot has them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from jepa_jax.config import RobotConfig
from jepa_jax.data.robot.contract import STATE, as_contract
from jepa_jax.data.robot.episodes import INSTALL, Episode, state_of, text_of
from jepa_jax.errors import BadFile, ConfigError, nearest


class LeRobot:
    """A LeRobot data set, version 2 (a file an episode) or 3 (many in a file).

    The seven numbers of the state are columns of `observation.state`, by the names in
    `robot.columns`, or by our own names if it is empty.
    """

    def __init__(self, data: RobotConfig) -> None:
        self._folder, self._data = Path(data.path), data
        path = self._folder / 'meta/info.json'
        self._info = json.loads(text_of(path, data))
        version = str(self._info.get('codebase_version', ''))
        if version[:2] not in ('v2', 'v3'):
            raise ConfigError(f"{path}: codebase_version '{version}': allowed are v2 and v3")
        features = self._info['features']
        videos = [key for key, row in features.items() if row['dtype'] == 'video']
        if data.camera not in videos:
            raise ConfigError(
                f"robot.camera = '{data.camera}': allowed are {', '.join(videos) or '(none)'}"
                f'{nearest(data.camera, videos)}'
            )
        self._columns = self._find_columns(features['observation.state'])
        read = self._version_2 if version[:2] == 'v2' else self._version_3
        self._rows = read()  # (data file, first row or None, length, video, first second)

    def _find_columns(self, feature: dict[str, Any]) -> list[int]:
        names = feature.get('names')
        if isinstance(names, dict):  # {'axes': [...]} or {'motors': [...]}
            names = next(iter(names.values()))
        names = list(names or [])
        columns = self._data.columns.split(',') if self._data.columns else STATE
        columns = [column.strip() for column in columns]
        missing = [column for column in columns if column not in names]
        if missing or len(columns) != len(STATE):
            right = len(columns) == len(STATE)
            why = f'no {", ".join(missing)}' if right else f'{len(columns)} names'
            raise ConfigError(
                f"robot.columns = '{self._data.columns}': {why}; must name the 7 columns of "
                f'observation.state that are {", ".join(STATE)}, among {", ".join(names)}'
            )
        return [names.index(column) for column in columns]

    def _path(self, template: str, **values: Any) -> Path:
        return self._folder / template.format(video_key=self._data.camera, **values)

    def _version_2(self) -> list[tuple]:
        path = self._folder / 'meta/episodes.jsonl'
        rows, size = [], self._info['chunks_size']
        for line in text_of(path, self._data).splitlines():
            entry = json.loads(line)
            number = entry['episode_index']
            place = dict(episode_index=number, episode_chunk=number // size)
            rows.append((
                str(self._path(self._info['data_path'], **place)), None, entry['length'],
                str(self._path(self._info['video_path'], **place)), 0.0, True,
            ))  # fmt: skip
        return rows

    def _version_3(self) -> list[tuple]:
        rows, camera = [], f'videos/{self._data.camera}'
        for path in sorted(self._folder.glob('meta/episodes/*/*.parquet')):
            columns = [
                'episode_index', 'length', 'data/chunk_index',
                'data/file_index', f'{camera}/chunk_index', f'{camera}/file_index',
                f'{camera}/from_timestamp',
            ]  # fmt: skip
            for entry in _parquet(path, columns).to_pylist():
                at = {
                    k: {f'{of}_index': entry[f'{k}/{of}_index'] for of in ('chunk', 'file')}
                    for k in ('data', camera)
                }
                rows.append((
                    str(self._path(self._info['data_path'], **at['data'])),
                    entry['episode_index'], entry['length'],
                    str(self._path(self._info['video_path'], **at[camera])),
                    entry[f'{camera}/from_timestamp'], False,
                ))  # fmt: skip
        return rows

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return f'{self._folder}#{index}'

    def state(self, index: int) -> str:
        path, number, length, video, second, _ = self._rows[index]
        return state_of(path, video, also=(number, length, second))

    def episode(self, index: int) -> Episode:
        path, number, length, video, second, whole = self._rows[index]
        if not os.path.exists(path):
            raise BadFile(path, 'missing')
        table = _parquet(Path(path), ['observation.state', 'episode_index'])
        states = np.asarray(table['observation.state'].to_pylist(), np.float64)
        if number is not None:
            states = states[np.asarray(table['episode_index']) == number]
        if len(states) != length:
            raise BadFile(path, 'bad_state', f'{len(states)} states, meta/ says {length}')
        states = as_contract(self.name(index), states[:, self._columns], self._data)
        fps = float(self._info['fps'])
        return Episode(self.name(index), states, video, begins=second, fps=fps, whole=whole)


def _parquet(path: Path, columns: list[str]):
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f'LeRobot data: {INSTALL.format("pyarrow")}') from None
    try:
        return pyarrow.parquet.read_table(path, columns=columns)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise BadFile(path, 'corrupt', ' '.join(str(error).split())[:200]) from error
