"""Diving48 V2: json lists and a vocabulary; rgb/NAME.mp4. (reference: evaluations.md §1.4)"""

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
from jepa_jax.errors import BadFile, ConfigError

CLASSES = 48
BELOW = ['annotations', 'labels']


def read(folder: Path, videos: Path) -> LabelledSet:
    """The class is the place in the vocabulary. The original's validation is the test file: there
    is no other."""
    names, notes = tuple(map(str, range(CLASSES))), ()
    try:
        path = official(folder, ['Diving48_vocab.json'], BELOW)
    except ConfigError:
        notes = ('Diving48_vocab.json is not there: classes are numbers',)
    else:
        words = json_of(path, list)
        for number, entry in enumerate(words, 1):
            if not isinstance(entry, list) or not all(isinstance(word, str) for word in entry):
                detail = f'entry {number} is {entry!r}: must be a list of words'
                raise BadFile(path, 'not_text', detail)
        names = tuple(' '.join(entry) for entry in words)
    on_disk, lists = stems(videos), {}
    for split, word in (('train', 'train'), ('validation', 'test')):
        path, rows = official(folder, [f'Diving48_V2_{word}.json'], BELOW), []
        for number, row in enumerate(json_of(path, list), 1):
            clip = field(path, number, row, 'vid_name', str)
            label = field(path, number, row, 'label', int)
            in_range(path, f'entry {number} ({clip})', label, 'label', len(names))
            rows.append((clip, on_disk.get(clip), (label,)))
        lists[split] = path, rows
    return collect({'label': names}, lists, notes=notes)
