"""Which inputs names stand for: files, folders of frames and of videos, lists, manifests, patterns.

| a name                                    | stands for                                           |
|-------------------------------------------|------------------------------------------------------|
| a video, a picture, an .npy of frames     | itself                                               |
| a folder with videos in it, at any depth  | the videos, pictures passed over                     |
| a folder of pictures                      | itself: the frames of one video                      |
| a folder of folders of pictures           | each of those                                        |
| .txt .csv .tsv .lst .list, .npy of names  | what the list names, see jepa_jax.data.lists         |
| .jsonl                                    | the files without a problem of a manifest            |
| a pattern, `videos/**/*.mp4`              | what matches                                         |
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from jepa_jax.data import kinds, lists, npz
from jepa_jax.errors import BadFile, UsageError

LISTS = frozenset('.txt .csv .tsv .lst .list .jsonl'.split())


@dataclasses.dataclass(frozen=True)
class Named:
    """An input."""

    path: str
    name: str  # of what is written of it: a relative path, which stays when others are added


def find(names: Iterable[str | os.PathLike]) -> tuple[list[Named], dict[str, int]]:
    """The inputs that names stand for, in their order, each once; and what was passed over,
    counted.

    A file that is named itself is not looked at: it may be missing.

    Raises:
      UsageError: a pattern, a folder or a list that stands for nothing.
      BadFile, ConfigError, OSError: a list or folder that cannot be read.
    """
    inputs: dict[str, Named] = {}
    skipped: collections.Counter[str] = collections.Counter()
    for name in names:
        count = 0
        for one in _stand_for(os.fspath(name), skipped):
            count += 1
            inputs.setdefault(os.path.abspath(one.path) if '\0' not in one.path else one.path, one)
        if not count:
            left = f' (passed over: {words(skipped)})' if skipped else ''
            raise UsageError(f'--input {os.fspath(name)}: stands for no file{left}')
    return list(inputs.values()), dict(skipped)


def paths(*names: str | os.PathLike) -> list[str]:
    """The inputs that names stand for, as a list of paths for `Model.embed`.

    Args:
      names: files, folders of videos, list files, manifests, patterns.

    Raises: as `find`.
    """
    return [one.path for one in find(names)[0]]


def words(skipped: dict[str, int]) -> str:
    """`3 .jpg, 1 truncated`"""
    return ', '.join(f'{count} {why}' for why, count in skipped.items())


def _stand_for(name: str, skipped: collections.Counter[str]) -> Iterator[Named]:
    if '\0' in name or os.path.lexists(name):
        yield from _of_path(name, skipped)
    elif glob.has_magic(name):
        fixed = re.split(r'[*?[]', name)[0].rpartition('/')[0]
        for match in sorted(glob.glob(name, recursive=True)):
            for one in _of_path(match, skipped):
                yield Named(one.path, _below(one.path, fixed or '.'))
    else:
        yield Named(name, Path(name).name)


def _of_path(path: str, skipped: collections.Counter[str]) -> Iterator[Named]:
    if '\0' not in path and os.path.isdir(path):
        yield from _of_folder(path, skipped)
    elif _is_list(path):
        records, without = lists.records_of(path, lists.VIDEOS)
        skipped.update(without)
        folder = os.path.abspath(os.path.dirname(path))
        yield from (Named(file, _below(file, folder)) for file, _ in records)
    else:
        yield Named(path, Path(path).name)


def _of_folder(path: str, skipped: collections.Counter[str]) -> Iterator[Named]:
    videos, others = lists.scan(path, lists.VIDEOS)
    if videos:
        skipped.update(others)
        yield from (Named(video, _below(video, path)) for video in videos)
        return
    pictures, _ = lists.scan(path, kinds.PICTURES)
    folders = sorted({os.path.dirname(picture) for picture in pictures})
    if not folders or os.path.normpath(path) in map(os.path.normpath, folders):
        yield Named(path, Path(os.path.abspath(path)).name)  # frames, or to be refused in words
    else:
        yield from (Named(folder, _below(folder, path)) for folder in folders)


def _is_list(path: str) -> bool:
    suffix = os.path.splitext(path)[1].lower()
    try:
        if suffix == '.npy':
            return npz.load(path, mmap_mode='r').dtype.kind in 'US'
        return suffix in LISTS and kinds.known(path) is None
    except BadFile:  # who reads it says what is wrong
        return False


def _below(path: str, folder: str) -> str:
    """A path seen from a folder, or without its root if it is not in there."""
    if '\0' in path:
        return Path(path.replace('\0', '_')).name
    relative = os.path.relpath(path, folder)
    outside = relative.split(os.sep)[0] == os.pardir
    return os.path.abspath(path).lstrip(os.sep) if outside else relative
