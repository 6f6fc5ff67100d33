"""ImageNet-1k: a folder a class, by WordNet id. (reference: evaluations.md §1.6)"""

from __future__ import annotations

import os
from pathlib import Path

from jepa_jax.data.labelled.records import LabelledSet, Record
from jepa_jax.errors import ConfigError

PICTURES = ('.jpeg', '.jpg', '.png')


def _inside(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the pictures in a folder, sorted."""
    with os.scandir(folder) as inside:
        entries = sorted((e.name, e.is_dir()) for e in inside if not e.name.startswith('.'))
    return (
        [name for name, is_folder in entries if is_folder],
        [n for n, is_folder in entries if not is_folder and n.lower().endswith(PICTURES)],
    )


def read(folder: Path, videos: Path) -> LabelledSet:
    """Classes are the sorted WordNet ids, of which validation must have the same: one folder less
    would give all later ones another number."""
    root = next(
        (p for p in (videos / 'imagenet_full_size/061417', videos) if (p / 'train').is_dir()), None
    )
    if root is None or not (root / 'val').is_dir():
        raise ConfigError(
            f'data.videos = {str(videos)!r}: has no folders train and val, nor has '
            'imagenet_full_size/061417 in it'
        )
    order, _ = _inside(root / 'train')
    splits = {}
    for split, name in (('train', 'train'), ('validation', 'val')):
        classes, flat = _inside(root / name)
        if flat:
            raise ConfigError(
                f'{root / name}: {len(flat):,} pictures are in no class folder, such as {flat[0]}: '
                'sort them into WordNet folders by the ground truth'
            )
        if odd := sorted(set(classes) ^ set(order)):
            raise ConfigError(
                f'{root / name}: {len(classes)} class folders, train has {len(order)}; {odd[0]} is '
                'on one side only, and all later classes would be shifted'
            )
        splits[split] = [
            Record(str(root / name / word / picture), (number,))
            for number, word in enumerate(order)
            for picture in _inside(root / name / word)[1]
        ]
        empty = set(range(len(order))) - {r.label[0] for r in splits[split]}
        if empty and split == 'train':
            raise ConfigError(f'{root / name / order[min(empty)]}: holds no pictures')
    counts = {split: len(records) for split, records in splits.items()}
    files = {'train': str(root / 'train'), 'validation': str(root / 'val')}
    return LabelledSet({'label': tuple(order)}, splits, counts, files, {s: [] for s in splits})
