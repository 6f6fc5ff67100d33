"""Something-Something v2: json lists, one flat folder of .webm. (reference: evaluations.md §1.1)"""

from __future__ import annotations

from pathlib import Path

from jepa_jax.data.labelled.records import (
    LabelledSet,
    collect,
    field,
    json_of,
    official,
    stems,
    whole,
)
from jepa_jax.errors import BadFile

OLD = 'something-something-v2-'


def plain(template: str) -> str:
    """A template as labels.json has it: without the brackets around what is acted on."""
    return template.replace('[', '').replace(']', '')


def read(folder: Path, videos: Path) -> LabelledSet:
    """The class is that of `template`; `label` is free text."""

    def file(name: str) -> Path:
        return official(folder, [f'{name}.json', f'{OLD}{name}.json'], ['labels'])

    path = file('labels')
    numbers = {}
    for number, (name, value) in enumerate(json_of(path, dict).items(), 1):
        numbers[plain(name)] = whole(path, number, str(value), f'class of {name!r}')
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise BadFile(path, 'not_text', f'{len(numbers)} names without the classes 0, 1, ...')
    order = tuple(sorted(numbers, key=numbers.get))
    if list(order) != sorted(order):
        raise BadFile(path, 'not_text', 'another version: its names are not in ASCII order')
    on_disk, lists = stems(videos), {}
    for split in ('train', 'validation'):
        path, rows = file(split), []
        for number, row in enumerate(json_of(path, list), 1):
            clip, template = (field(path, number, row, key, str) for key in ('id', 'template'))
            if plain(template) not in numbers:
                detail = f'entry {number}: template {template!r} is not in labels.json'
                raise BadFile(path, 'not_text', detail)
            rows.append((clip, on_disk.get(clip), (numbers[plain(template)],)))
        lists[split] = path, rows
    return collect({'label': order}, lists)
