"""Jester: lists separated by semicolons, a folder of pictures a clip, 12 a second. (reference:
evaluations.md §1.5)"""

from __future__ import annotations

import os
from pathlib import Path

from jepa_jax.data.labelled.records import LabelledSet, collect, official, table_of
from jepa_jax.errors import BadFile

FPS = 12.0
BELOW = ['labels', 'annotations']


def read(folder: Path, videos: Path) -> LabelledSet:
    """Classes are the lines of the file of labels."""
    path = official(folder, ['jester-v1-labels.csv'], BELOW)
    order = tuple(row[0].strip() for _, row in table_of(path, ';'))
    number = {name: i for i, name in enumerate(order)}
    if len(number) != len(order):
        raise BadFile(path, 'not_text', 'a name occurs twice')
    place = videos / '20bn-jester-v1'
    place = place if place.is_dir() else videos
    with os.scandir(place) as entries:
        on_disk = {entry.name for entry in entries if entry.is_dir()}
    lists = {}
    for split in ('train', 'validation'):
        path, rows = official(folder, [f'jester-v1-{split}.csv'], BELOW), []
        for line, row in table_of(path, ';'):
            if len(row) != 2:
                detail = f'line {line} has {len(row)} columns: must be `ID;label`'
                raise BadFile(path, 'not_text', detail)
            clip, name = (cell.strip() for cell in row)
            if name not in number:
                detail = f'line {line}: {name!r} is not in jester-v1-labels.csv'
                raise BadFile(path, 'not_text', detail)
            rows.append((clip, str(place / clip) if clip in on_disk else None, (number[name],)))
        lists[split] = path, rows
    return collect({'label': order}, lists, fps=FPS)
