"""Kinetics-400: csv with a header; ID_000010_000020.mp4, flat or a folder a class. (reference:
evaluations.md §1.2)"""

from __future__ import annotations

import re
from pathlib import Path

from jepa_jax.data.labelled.records import LabelledSet, collect, columns_of, official, stems, whole
from jepa_jax.errors import BadFile

TIMES = re.compile(r'_\d{6}_\d{6}$')  # ids may hold _ themselves: from the right


def read(folder: Path, videos: Path) -> LabelledSet:
    """Classes are the sorted names of the training file. Copies whose names lack the times, or that
    lie in folders of classes, with spaces or underscores, are the same to it."""
    words = {'train': ['train'], 'validation': ['val', 'validate', 'validation']}
    tables = {}
    for split, names in words.items():
        names = [f'{before}{name}.csv' for before in ('', 'kinetics_', 'kinetics_400_')
                 for name in names]  # fmt: skip
        path = official(folder, names, ['annotations', 'labels'])
        tables[split] = path, columns_of(path, ['label', 'youtube_id', 'time_start', 'time_end'])
    order = tuple(sorted({row['label'] for _, row in tables['train'][1]}))
    number = {name: i for i, name in enumerate(order)}
    full = stems(videos)
    # an id alone stands for its clip where the name has no times
    short = {stem: path for stem, path in full.items() if not TIMES.search(stem)}
    lists = {}
    for split, (path, table) in tables.items():
        rows = []
        for line, row in table:
            if row['label'] not in number:
                detail = f'line {line}: {row["label"]!r} is no class of the training file'
                raise BadFile(path, 'not_text', f'another version: {detail}')
            start, end = (whole(path, line, row[key], key) for key in ('time_start', 'time_end'))
            clip = f'{row["youtube_id"]}_{start:06d}_{end:06d}'
            place = full.get(clip) or short.get(row['youtube_id'])
            rows.append((clip, place, (number[row['label']],)))
        lists[split] = path, rows
    return collect({'label': order}, lists)
