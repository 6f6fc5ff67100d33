"""Tiny replicas of labelled sets in their official layout, with clips that can be decoded."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from jepa_jax.data import synthetic

SSV2 = (
    'Holding [something] next to [something]',
    'Pretending to close [something], without closing it',
    'Turning the camera left while filming [something]',
)


def frames(label: int, seed: int, count: int = 12, side: int = 36) -> np.ndarray:
    """A clip whose class is its colour, uint8 [count, side, side + 12, 3]."""
    rng = np.random.default_rng([label, seed])
    noise = rng.integers(0, 60, (count, side, side + 12, 3))
    noise[..., label % 3] += 150
    return noise.astype(np.uint8)


def video(path: Path, label: int, seed: int, fps: int = 12, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix('.mp4')
    synthetic.write(made, frames(label, seed, **options), fps)
    made.rename(path)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_csv(path: Path, rows, separator: str = ',') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', newline='') as file:
        csv.writer(file, delimiter=separator, lineterminator='\n').writerows(rows)


def ssv2(root: Path, train: int = 2, validation: int = 2, old: bool = False) -> Path:
    """Three classes; old: as the files were called once, beside the videos."""
    before, folder = ('something-something-v2-', root) if old else ('', root / 'labels')
    number = 100
    for split, count in (('train', train), ('validation', validation)):
        rows = []
        for label, template in enumerate(SSV2):
            for _ in range(count):
                number += 1
                video(root / f'20bn-something-something-v2/{number}.webm', label, number)
                rows.append({
                    'id': str(number), 'label': 'holding a spoon', 'template': template,
                    'placeholders': ['a spoon'],
                })  # fmt: skip
        write_json(folder / f'{before}{split}.json', rows)
    names = {t.replace('[', '').replace(']', ''): str(i) for i, t in enumerate(SSV2)}
    write_json(folder / f'{before}labels.json', names)
    return root


def kinetics(root: Path, tree: str = 'flat', each: int = 1) -> Path:
    """Two classes of so many clips a split; tree: flat | classes | short, whose names lack the
    times."""
    for split, word in (('train', 'train'), ('val', 'val')):
        rows = [['label', 'youtube_id', 'time_start', 'time_end', 'split']]
        for label, name in enumerate(('zumba', 'air drumming')):
            for i in range(each):
                clip = f'-a_{split}{label}_b{i or ""}'
                rows.append([name, clip, 10, 20, word])
                file = clip if tree == 'short' else f'{clip}_000010_000020'
                below = '' if tree == 'flat' else name.replace(' ', '_')
                video(root / split / below / f'{file}.mp4', label, label + 2 * i)
        write_csv(root / f'annotations/{split}.csv', rows)
    return root


def _video_or_none(path: Path, label: int, seed: int, each: int) -> None:
    if each:
        return video(path, label, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'x')


def coin(root: Path, word: str = 'testing', each: int = 0) -> Path:
    """each: clips of a class and split that can be decoded; 0: one that is no video."""
    database = {}
    for i, (kind, name) in enumerate(((2, 'WrapGiftBox'), (0, 'ChangeCarTire'))):
        for subset in ('training', word):
            for number in range(max(1, each)):
                clip = f'-x_{i}{subset[:2]}{number or ""}'
                database[clip] = {
                    'duration': 131.0, 'class': name, 'recipe_type': kind, 'start': 1.0, 'end': 9.0,
                    'subset': subset, 'annotation': [{'id': '1', 'segment': [1, 2], 'label': 'x'}],
                }  # fmt: skip
                place = root / 'videos' / (f'{kind}/{clip}.mkv' if i else f'{clip}.mp4')
                _video_or_none(place, kind, number, each)
    write_json(root / 'COIN.json', {'database': database})
    return root


def diving(root: Path, vocabulary: bool = True, each: int = 0) -> Path:
    """each: as of `coin`."""
    words = [['Back', '15som', '05Twis', 'FREE'], ['Forward', '45som', 'NoTwis', 'TUCK']]
    if vocabulary:
        write_json(root / 'Diving48_vocab.json', words)
    for split in ('train', 'test'):
        rows = []
        for label in range(2):
            for i in range(max(1, each)):
                clip = f'_8Vy{split}{i or ""}_0000{label}'
                rows.append({'vid_name': clip, 'label': label, 'start_frame': 0, 'end_frame': 76})
                _video_or_none(root / f'rgb/{clip}.mp4', label, i, each)
        write_json(root / f'Diving48_V2_{split}.json', rows)
    return root


def jester(root: Path, each: int = 1) -> Path:
    names = ('Swiping Left', 'Drumming Fingers', 'No gesture')
    write_csv(root / 'jester-v1-labels.csv', [[n] for n in names], ';')
    number = 7
    for split in ('train', 'validation'):
        rows = []
        for label, name in enumerate(names):
            for _ in range(each):
                number += 1
                rows.append([number, name])
                folder = root / f'20bn-jester-v1/{number}'
                folder.mkdir(parents=True)
                for i, frame in enumerate(frames(label, number, 9), 1):
                    Image.fromarray(frame).save(folder / f'{i:05d}.jpg')
        write_csv(root / f'jester-v1-{split}.csv', rows, ';')
    return root


def imagenet(root: Path, below: str = '', each: int = 1) -> Path:
    for split in ('train', 'val'):
        for label, word in enumerate(('n01440764', 'n01443537', 'n15075141')):
            for i in range(each):
                path = root / below / split / word / f'{word}_{split}{i}.JPEG'
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(frames(label, i, 1)[0])
                if split == 'train' and label == 1 and not i:
                    picture = picture.convert('CMYK')
                picture.save(path, 'JPEG')
    return root


EK_HEADER = (
    'narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,'
    'start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes'
).split(',')


def kitchen_rows(rows) -> list[list]:
    """Lines of the csv for (video, start, stop, verb, noun)."""
    return [EK_HEADER] + [
        [f'{v}_{i}', v.split('_')[0], v, '', '', '', start, stop, f'take {noun}', 'take', verb,
         'plate', noun, "['plate', 'cup']", f'[{noun}, 2]']
        for i, (v, start, stop, verb, noun) in enumerate(rows)
    ]  # fmt: skip


def kitchens(root: Path, train, validation, videos: dict[str, Path] | None = None) -> Path:
    """rows: (video, start, stop, verb, noun); videos: of those on disk, the path below root."""
    write_csv(root / 'EPIC_100_train.csv', kitchen_rows(train))
    write_csv(root / 'EPIC_100_validation.csv', kitchen_rows(validation))
    return root
