"""Tiny replicas of sets with labels for every pixel, in the layouts that people have them in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 24, 32  # height and width of the pictures


def picture(path: Path, seed: int, size: tuple[int, int] = SIDE) -> np.ndarray:
    """Left half dark, right half light, with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 60, (*size, 3))
    pixels[:, size[1] // 2 :] += 150
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return pixels


def values(path: Path, numbers: np.ndarray, palette: bool = False) -> None:
    """A PNG of whole numbers: 8 bits, 16 bits, or indices of a palette as DAVIS and VOC have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers)
    if palette:
        image.putpalette([v for i in range(256) for v in (i * 37 % 256, i * 91 % 256, i)])
        assert image.mode == 'P'
    image.save(path)


def halves(left: int, right: int, kind=np.uint8, size: tuple[int, int] = SIDE) -> np.ndarray:
    out = np.full(size, left, kind)
    out[:, size[1] // 2 :] = right
    return out


def ade20k(root: Path, train: int = 4, validation: int = 2, names: int = 150) -> Path:
    """The last validation picture has no labels for its first row."""
    number = 0
    for split, count in (('training', train), ('validation', validation)):
        for i in range(count):
            stem = f'ADE_{split[:5]}_{i + 1:08d}'
            picture(root / 'images' / split / f'{stem}.jpg', number)
            labels = halves(1, 150)
            labels[0] = 0
            values(root / 'annotations' / split / f'{stem}.png', labels)
            number += 1
    rows = [
        'Idx\tRatio\tTrain\tVal\tStuff\tName',
        *(f'{i}\t0.1\t9\t9\t0\tthing {i}' for i in range(1, names + 1)),
    ]
    (root / 'objectInfo150.txt').write_text('\n'.join(rows) + '\n')
    return root


def voc(root: Path, train: int = 4, validation: int = 2, list_name: str = 'train') -> Path:
    """Palette pictures with a border of 255."""
    lists = root / 'ImageSets/Segmentation'
    lists.mkdir(parents=True, exist_ok=True)
    for split, count in ((list_name, train), ('val', validation)):
        names = [f'2007_{split}_{i:03d}' for i in range(count)]
        (lists / f'{split}.txt').write_text('\n'.join(names) + '\n')
        for i, name in enumerate(names):
            picture(root / f'JPEGImages/{name}.jpg', i)
            labels = halves(0, 15)
            labels[:, 15:17] = 255
            values(root / f'SegmentationClass/{name}.png', labels, palette=True)
    return root


def nyuv2(root: Path, train: int = 4, test: int = 2) -> Path:
    """Left 1.5 m, right 4 m, no value in the first row."""
    for split, count, place in (('train', train, 'sync'), ('test', test, 'official_splits/test')):
        lines = []
        for i in range(count):
            room = f'kitchen_{i // 2:04d}'
            rgb, depth = f'/{room}/rgb_{i:05d}.jpg', f'/{room}/sync_depth_{i:05d}.png'
            picture(root / place / rgb[1:], i)
            metres = halves(1500, 4000, np.uint16)
            metres[0] = 0
            values(root / place / depth[1:], metres)
            lines.append(f'{rgb} {depth} 518.8579\n')
        (root / f'nyudepthv2_{split}_files_with_gt.txt').write_text(''.join(lines))
    return root


def davis(root: Path, train: int = 2, validation: int = 2, frames: int = 5) -> Path:
    """A light square that goes right is object 1, a grey one that stays is object 2."""
    for split, count in (('train', train), ('val', validation)):
        names = [f'{split}-{i}' for i in range(count)]
        place = root / f'ImageSets/2017/{split}.txt'
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text('\n'.join(names) + '\n')
        for name in names:
            for t in range(frames):
                pixels, labels = np.full((32, 48, 3), 30, np.uint8), np.zeros((32, 48), np.uint8)
                pixels[16:32, 24:40], labels[16:32, 24:40] = 120, 2
                pixels[0:16, 2 * t : 2 * t + 16], labels[0:16, 2 * t : 2 * t + 16] = 230, 1
                path = root / f'JPEGImages/480p/{name}/{t:05d}.jpg'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, quality=95)
                values(root / f'Annotations/480p/{name}/{t:05d}.png', labels, palette=True)
    return root
