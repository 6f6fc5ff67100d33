"""Data sets that tfds prepared as ArrayRecord, read without TensorFlow.

What describes them (`features.json`, `dataset_info.json`) is looked at before tfds sees it, which
imports any module that is named there and fills in templates of paths with Python's formatting.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jepa_jax import files
from jepa_jax.data import array_record
from jepa_jax.errors import BadFile, ConfigError

CLASSES = 'tensorflow_datasets.core.features.'  # of features, all that is ever imported
_NAMED = ('pythonClassName', 'python_class_name', 'type')  # keys of such names; the last is old
_TEMPLATE = re.compile(
    r'(?:[^{}/\\\0]|\{[A-Z_]+\})+'
)  # a name of files with fields such as {SPLIT}


def folder_of(path: str) -> str:
    """The folder of one version of a data set, at or below a path. Raises ConfigError."""
    paths = sorted(Path(path).glob('**/dataset_info.json'))
    if len(paths) != 1:
        what = 'no prepared dataset' if not paths else f'{len(paths)} prepared datasets'
        some = ''.join(f' {path.parent}' for path in paths[:5])
        raise ConfigError(f'{path!r} holds {what}, one is needed{":" if some else ""}{some}')
    return str(paths[0].parent)


def builder(folder: str) -> Any:
    """tfds's own of a folder. Raises ConfigError."""
    with files.raising(ConfigError):
        _look(Path(folder))
        import tensorflow_datasets as tfds  # takes a second

        with files.reading(folder, 'not_text'):
            return tfds.builder_from_directory(folder)


def records(folder: str, split: str, key: str) -> Any:
    """The records of a split, with what `key` names left as stored, so that only the images that
    are chosen are decoded.

    Raises:
      ConfigError: no such split, or it is not stored as ArrayRecord.
    """
    made = builder(folder)
    import tensorflow_datasets as tfds

    class Encoded(tfds.decode.Decoder):
        def decode_example(self, serialized_example):
            return serialized_example

        decode_example_np = decode_batch_example_np = decode_example

    try:
        with files.reading(folder):
            stored = made.as_data_source(split, decoders={key: Encoded()})
            return Records(stored, made.info.splits[split].file_instructions)
    except BadFile as error:
        raise ConfigError(f'{folder} split {split!r}: {error.detail}') from error


class Records:
    """Records of tfds, each out of a file that was looked at before the library opens it."""

    def __init__(self, stored: Any, shards: list[Any]) -> None:
        """shards: tfds's own instructions: name of each file, and how many records of it count."""
        self._stored, self._names = stored, [shard.filename for shard in shards]
        self._ends = list(itertools.accumulate(shard.take for shard in shards))
        self._looked_at: set[str] = set()

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> Any:
        """Raises BadFile, and whatever tfds raises."""
        name = self._names[bisect.bisect_right(self._ends, index)]
        if name not in self._looked_at:
            array_record.look(name)
            self._looked_at.add(name)
        return self._stored[index]


def packed(folder: str) -> int:
    """Bytes of a data set's files. Raises ConfigError."""
    with files.raising(ConfigError), files.reading(folder):
        return sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file())


def _look(folder: Path) -> None:
    """Raises BadFile: a description names other classes or other folders."""
    path = folder / 'dataset_info.json'
    for key, value in _pairs(files.read_json(path)):
        if key in ('filepathTemplate', 'filepath_template') and value:
            if not isinstance(value, str) or not _TEMPLATE.fullmatch(value):
                raise BadFile(path, 'outside', f'{value!r:.80} is no name of files in the folder')
    path = folder / 'features.json'
    for key, value in _pairs(files.read_json(path)):
        if key in _NAMED and isinstance(value, str) and not value.startswith(CLASSES):
            raise BadFile(path, 'not_local', f'{value!r:.80}: must be a class of {CLASSES}*')


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys with their values, however deep."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield from value.items()
            left += value.values()
        elif isinstance(value, list):
            left += value
