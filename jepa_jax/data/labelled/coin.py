"""COIN: one COIN.json; whole videos by YouTube id. (reference: evaluations.md §1.3)"""

from __future__ import annotations

from pathlib import Path

from jepa_jax.data.labelled.records import (
    LabelledSet,
    collect,
    field,
    in_range,
    json_of,
    official,
    stems,
)
from jepa_jax.errors import BadFile

CLASSES = 180
SUBSETS = {'training': 'train', 'validation': 'validation', 'testing': 'validation'}


def read(folder: Path, videos: Path) -> LabelledSet:
    """The class is `recipe_type`, from 0, whose order is not that of the alphabet."""
    path = official(folder, ['COIN.json'], ['annotations', 'labels'])
    database = field(path, 1, json_of(path, dict), 'database', dict)
    on_disk, names = stems(videos), {}
    lists = {'train': (path, []), 'validation': (path, [])}
    for number, (clip, row) in enumerate(database.items(), 1):
        label = field(path, number, row, 'recipe_type', int)
        in_range(path, f'entry {number} ({clip})', label, 'recipe_type', CLASSES)
        name, subset = (field(path, number, row, key, str) for key in ('class', 'subset'))
        if subset not in SUBSETS:
            detail = f'entry {number} ({clip}): subset {subset!r}: must be one of {[*SUBSETS]}'
            raise BadFile(path, 'not_text', detail)
        if names.setdefault(label, name) != name:
            detail = f'recipe_type {label} is both {names[label]!r} and {name!r}'
            raise BadFile(path, 'not_text', detail)
        lists[SUBSETS[subset]][1].append((clip, on_disk.get(clip), (label,)))
    last = max(names, default=-1)
    return collect({'label': tuple(names.get(i, '') for i in range(last + 1))}, lists)
