"""Pictures and videos with a class, an object or a distance for every pixel, in the layouts in
which they are handed out. (reference: evaluations.md §3)

    data = read('ade20k', 'ADEChallengeData2016')
    picture, labels = data.splits['train'][0].read()

`read` of a picture gives uint8 [H, W, 3] and labels [H, W]: uint8 classes, IGNORE where there is
none, or float32 metres, 0 where there is none. That of a video gives uint8 [T, H, W, 3] and object
numbers uint8 [T, H, W], 0 for none.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jepa_jax import files
from jepa_jax.data import labelled_scenes, pictures
from jepa_jax.data.labelled import Reader, other_counts
from jepa_jax.data.labelled.records import LabelledSet, official, text_of
from jepa_jax.errors import BadFile, ConfigError, allowed

IGNORE = 255
MOST_OBJECTS = 20  # of a video (reference: DAVIS)
SELF_MADE_TIMES = (0, 8, 16)  # frames of a self-made video that are pictures of the set
VOC_CLASSES = (
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair',
    'cow', 'dining table', 'dog', 'horse', 'motorbike', 'person', 'potted plant', 'sheep', 'sofa',
    'train', 'tv monitor',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sample:
    """A labelled picture, or a video."""

    name: str
    source: str  # video, scene or picture: what lies on one side of a split
    read: Callable[[], tuple[np.ndarray, np.ndarray]]  # may raise BadFile


def read(task: str, name: str, folder: str | Path, official_only: bool = True) -> LabelledSet:
    """A set as it is on this disk; splits hold Samples.

    Args:
      task: a key of READERS.
      name: of the set, a key below it.
      folder: where it lies; self-made sets need none.
      official_only: refuse files with other counts than the official ones; else they are told.

    Raises:
      ConfigError: files that are missing or of another version, a split without samples.
    """
    sets = READERS[task]
    if name not in sets:
        raise ConfigError(f'data.set = {name!r}: {allowed(name, sets)}')
    row = sets[name]
    if row.counts and not str(folder):
        raise ConfigError(f'data.path is empty: the folder of {name}')
    folder = Path(folder).expanduser()
    if row.counts and not folder.is_dir():
        raise ConfigError(f'data.path = {str(folder)!r}: no such folder')
    try:
        data = row.read(folder, folder)
    except BadFile as error:
        raise ConfigError(f'{name}: {error}') from error
    for split, samples in data.splits.items():
        if not samples:
            raise ConfigError(
                f'{name}: {split} is empty: {data.files[split]} lists {data.listed[split]}, none '
                'of which is here with its labels'
            )
    if lines := other_counts(name, row, data):
        if official_only:
            raise ConfigError(f'{lines[0]}; to use them as they are: --config.data.official=false')
        data = dataclasses.replace(data, notes=(*data.notes, *lines))
    return data


def _set(names: Sequence[str], rows: dict[str, tuple[str, list]], **more) -> LabelledSet:
    """rows: split -> the file or folder that lists it, and (name, Sample or None) of each entry."""
    return LabelledSet(
        {'label': tuple(names)} if names else {},
        {split: [s for _, s in entries if s] for split, (_, entries) in rows.items()},
        {split: len(entries) for split, (_, entries) in rows.items()},
        {split: where for split, (where, _) in rows.items()},
        {split: [n for n, s in entries if not s] for split, (_, entries) in rows.items()},
        **more,
    )


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in text_of(path).splitlines() if line.strip()]


# --- Classes -------------------------------------------------------------------------------------


def classes_of(path: Path, classes: int, zero_is_none: bool = False) -> np.ndarray:
    """Class of every pixel [H, W] of a PNG: an index of its palette, or grey of 8 bits; IGNORE
    stands for none, and so does 0 if `zero_is_none`: then classes count from 1 in the file.

    Raises BadFile: numbers that are no class.
    """
    values = pictures.read_values(path)
    known = np.unique(values)
    first, last = (1, classes) if zero_is_none else (0, classes - 1)
    none = (0, IGNORE) if zero_is_none else (IGNORE,)
    odd = [int(v) for v in known if not (first <= v <= last or v in none)]
    if odd:
        also = ' or '.join(map(str, none))
        raise BadFile(
            path, 'bad_units', f'class {odd[0]}: must be {first} to {last}, or {also} for none'
        )
    if zero_is_none:
        values = np.where((values == 0) | (values == IGNORE), IGNORE, values - 1)
    return values.astype(np.uint8)


def _pair(
    picture: Path, labels: Path, read_labels: Callable[[Path], np.ndarray], source: str = ''
) -> Sample:
    def read() -> tuple[np.ndarray, np.ndarray]:
        pixels, values = pictures.read_image(picture), read_labels(labels)
        if values.shape != pixels.shape[:2]:
            raise BadFile(
                labels, 'mismatch',
                f'{values.shape[0]} x {values.shape[1]} pixels, {picture.name} has '
                f'{pixels.shape[0]} x {pixels.shape[1]}',
            )  # fmt: skip
        return pixels, values

    return Sample(picture.name, source or picture.stem, read)


def _ade20k(folder: Path, _: Path) -> LabelledSet:
    root = next(
        (p for p in (folder, folder / 'ADEChallengeData2016') if (p / 'images').is_dir()), None
    )
    if root is None:
        raise ConfigError(
            f'data.path = {str(folder)!r}: has no folder images, nor has ADEChallengeData2016 in it'
        )
    rows = {}
    for split, name in (('train', 'training'), ('validation', 'validation')):
        there, masks = root / 'images' / name, root / 'annotations' / name
        if not there.is_dir():
            raise ConfigError(f'{there}: no such folder')
        entries = []
        for picture in sorted(there.glob('*.jpg')):
            labels = masks / f'{picture.stem}.png'
            reads = functools.partial(classes_of, classes=150, zero_is_none=True)
            entries.append(
                (picture.name, _pair(picture, labels, reads) if labels.exists() else None)
            )
        rows[split] = (str(there), entries)
    names = [str(i) for i in range(1, 151)]
    notes = ('objectInfo150.txt is not there: classes are numbers',)
    if (path := root / 'objectInfo150.txt').is_file():
        names, notes = [line.split('\t')[-1].strip() for line in _lines(path)[1:]], ()
    return _set(names, rows, notes=notes)


def _voc(folder: Path, _: Path, train: str) -> LabelledSet:
    below = ('', 'VOC2012', 'VOCdevkit/VOC2012')
    lists = {
        split: official(folder, [f'ImageSets/Segmentation/{name}.txt'], below[1:])
        for split, name in (('train', train), ('validation', 'val'))
    }
    rows = {}
    for split, path in lists.items():
        root, entries = path.parents[2], []
        for name in _lines(path):
            picture = files.inside(root, f'JPEGImages/{name}.jpg')
            masks = [
                root / part / f'{name}.png'
                for part in ('SegmentationClassAug', 'SegmentationClass')
            ]
            labels = next((mask for mask in masks if mask.exists()), None)
            reads = functools.partial(classes_of, classes=len(VOC_CLASSES))
            there = labels and picture.exists()
            entries.append((name, _pair(picture, labels, reads) if there else None))
        rows[split] = (path.name, entries)
    return _set(VOC_CLASSES, rows)


# --- Distances -----------------------------------------------------------------------------------


def metres_of(path: Path, unit: float) -> np.ndarray:
    """Metres of every pixel [H, W] of a PNG of whole numbers that count `unit` metres each; 0 where
    there is none. Raises BadFile."""
    values = pictures.read_values(path)
    if values.dtype != np.uint16:
        raise BadFile(path, 'bad_units', 'grey of 8 bits: distances must have 16')
    return (values * np.float32(unit)).astype(np.float32)


def _nyuv2(folder: Path, _: Path) -> LabelledSet:
    rows = {}
    for split, name, places in (
        ('train', 'nyudepthv2_train_files_with_gt.txt', ('', 'sync', 'train')),
        ('validation', 'nyudepthv2_test_files_with_gt.txt', ('', 'official_splits/test', 'test')),
    ):
        path, entries = official(folder, [name], ('train_test_inputs',)), []
        for number, line in enumerate(_lines(path), 1):
            words = line.split()
            if len(words) != 3:
                raise BadFile(
                    path, 'not_text',
                    f'line {number} has {len(words)} words: must be picture, depth, focal length',
                )  # fmt: skip
            pair = None
            for place in places:
                picture, depth = (
                    files.inside(folder, os.path.join(place, w.lstrip('/'))) for w in words[:2]
                )
                if picture.exists() and depth.exists():
                    reads = functools.partial(metres_of, unit=1e-3)
                    pair = _pair(picture, depth, reads, picture.parent.name)
                    break
            entries.append((words[0], pair))
        rows[split] = (path.name, entries)
    return _set((), rows)


# --- Objects in videos ---------------------------------------------------------------------------


def _sequence(frames: list[Path], masks: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Frames [T, H, W, 3] and object numbers [T, H, W]; IGNORE is void. Raises BadFile."""
    labels = []
    for path in masks:
        values = pictures.read_values(path)
        if odd := [int(v) for v in np.unique(values) if MOST_OBJECTS < v != IGNORE]:
            raise BadFile(
                path, 'bad_units',
                f'object {odd[0]}: must be 1 to {MOST_OBJECTS}, 0 for none or {IGNORE} for void',
            )  # fmt: skip
        labels.append(values.astype(np.uint8))
    if not np.isin(labels[0], (0, IGNORE), invert=True).any():
        raise BadFile(masks[0], 'short', 'no object in the first frame, nothing to follow')
    pixels = pictures.read_image(frames[0])
    files.bound_decoded(frames[0], pixels.size * len(frames), sum(map(files.size, frames)))
    video = np.empty((len(frames), *pixels.shape), np.uint8)
    for path, mask, own, out in zip(frames, masks, labels, video):
        for file, size in (
            (path, (image := pictures.read_image(path)).shape[:2]),
            (mask, own.shape),
        ):
            if size != pixels.shape[:2]:
                raise BadFile(
                    file, 'mismatch', f'{size[0]} x {size[1]} pixels, {frames[0].name} has '
                    f'{pixels.shape[0]} x {pixels.shape[1]}',
                )  # fmt: skip
        out[...] = image
    return video, np.stack(labels)


def _davis(folder: Path, _: Path) -> LabelledSet:
    lists = {
        split: official(folder, [f'ImageSets/2017/{name}.txt'], ('DAVIS',))
        for split, name in (('train', 'train'), ('validation', 'val'))
    }
    rows = {}
    for split, path in lists.items():
        root, entries = path.parents[2], []
        for name in _lines(path):
            frames = sorted(files.inside(root, f'JPEGImages/480p/{name}').glob('*.jpg'))
            masks = [root / 'Annotations' / '480p' / name / f'{f.stem}.png' for f in frames]
            sample = None
            if len(frames) > 2 and all(mask.exists() for mask in masks):
                sample = Sample(name, name, functools.partial(_sequence, frames, masks))
            entries.append((name, sample))
        rows[split] = (path.name, entries)
    return _set((), rows)


# --- Self-made -----------------------------------------------------------------------------------


def _self_made(_: Path, __: Path, kind: str, field: str) -> LabelledSet:
    """Three frames of each video; of field `objects` the videos."""

    def sample(split: str, index: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        scene = labelled_scenes.video(split, index)
        return scene.frames[t], getattr(scene, field)[t]

    def whole(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        scene = labelled_scenes.video(split, index)
        return scene.frames, scene.objects

    rows = {}
    for split, own in (('train', 'train'), ('validation', 'test')):
        samples = []
        for i in range(labelled_scenes.COUNTS[kind][own]):
            source = f'{own} {i}'
            if field == 'objects':
                samples.append(Sample(source, source, functools.partial(whole, own, i)))
            else:
                samples += [
                    Sample(f'{source}, frame {t}', source, functools.partial(sample, own, i, t))
                    for t in SELF_MADE_TIMES
                ]
        rows[split] = ('the generator', [(s.name, s) for s in samples])
    return _set(labelled_scenes.CLASSES if field == 'classes' else (), rows)


def _own(field: str) -> dict[str, Reader]:
    return {
        kind: Reader(functools.partial(_self_made, kind=kind, field=field), {}, {})
        for kind in labelled_scenes.COUNTS
    }


# task -> set -> how it is read, and what its official files hold
READERS: dict[str, dict[str, Reader]] = {
    'segmentation': {
        **_own('classes'),
        'ade20k': Reader(
            _ade20k, {'train': 20_210, 'validation': 2_000}, {'label': 150}, unit='pictures'
        ),
        'voc12': Reader(
            functools.partial(_voc, train='train'), {'train': 1_464, 'validation': 1_449},
            {'label': 21}, unit='pictures',
        ),
        'voc12_aug': Reader(
            functools.partial(_voc, train='trainaug'), {'train': 10_582, 'validation': 1_449},
            {'label': 21}, unit='pictures',
        ),
    },
    'depth': {
        **_own('metres'),
        'nyuv2': Reader(_nyuv2, {'train': 24_231, 'validation': 654}, {}, unit='pictures'),
    },
    'propagation': {
        **_own('objects'),
        'davis17': Reader(_davis, {'train': 60, 'validation': 30}, {}, unit='videos'),
    },
}  # fmt: skip
