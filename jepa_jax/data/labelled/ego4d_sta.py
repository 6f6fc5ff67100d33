"""Ego4D's short-term anticipation of object interactions: which object will be touched next, how,
and when. (reference: evaluations.md §3)

    truth = read(Path('fho_sta_val.json'))
    said = predictions(Path('predictions.json'), truth)
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from jepa_jax import files
from jepa_jax.data.labelled.records import field, in_range, json_of
from jepa_jax.errors import BadFile

CHALLENGE = 'ego4d_short_term_object_interaction_anticipation'


@dataclasses.dataclass(frozen=True)
class Objects:
    """Objects of one frame: boxes [n, 4] (x1, y1, x2, y2, pixels), nouns and verbs [n], seconds to
    contact [n], and of predictions their scores [n]."""

    boxes: np.ndarray
    nouns: np.ndarray
    verbs: np.ndarray
    seconds: np.ndarray
    scores: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Frame:
    """The last frame that a model may see."""

    uid: str
    video: str
    number: int  # in its video, from 0
    fps: float
    size: tuple[int, int]  # height and width of the video, pixels
    objects: Objects | None  # None: not told, as in the test split


@dataclasses.dataclass(frozen=True)
class Truth:
    """A split as its file has it."""

    frames: tuple[Frame, ...]
    nouns: tuple[str, ...]  # by number
    verbs: tuple[str, ...]


def read(path: Path) -> Truth:
    """An official file, fho_sta_{train,val,test_unannotated}.json.

    Raises:
      BadFile: another layout, a category that has no name, a box without an area, a uid twice.
    """
    content = json_of(path, dict)
    names = [_names(path, content, f'{kind}_categories') for kind in ('noun', 'verb')]
    info = field(path, 0, content, 'info', dict)
    videos = field(path, 0, info, 'video_metadata', dict)
    frames, seen = [], set()
    for number, row in enumerate(field(path, 0, content, 'annotations', list), 1):
        uid = field(path, number, row, 'uid', str)
        video = field(path, number, row, 'video_uid' if 'video_uid' in row else 'video_id', str)
        if uid in seen:
            raise BadFile(path, 'not_text', f'entry {number}: uid {uid!r} stands twice')
        seen.add(uid)
        about = field(path, number, videos, video, dict)
        fps = _number(path, number, about, 'fps', 1e-3, 1e4)
        size = tuple(
            in_range(path, f'entry {number}', field(path, number, about, key, int), key, 2**16)
            for key in ('frame_height', 'frame_width')
        )
        at = field(path, number, row, 'frame', int)
        in_range(path, f'entry {number}', at, 'frame', None)
        objects = None
        if 'objects' in row:
            rows = field(path, number, row, 'objects', list)
            objects = _objects(path, number, rows, names, scored=False)
        frames.append(Frame(uid, video, at, fps, size, objects))
    return Truth(tuple(frames), *names)


def predictions(path: Path, truth: Truth) -> dict[str, Objects]:
    """A file of predictions, as the challenge takes it: uid -> objects.

    Raises:
      BadFile: another layout, a frame that is not in the split, a category without a name.
    """
    content = json_of(path, dict)
    if (challenge := content.get('challenge', CHALLENGE)) != CHALLENGE:
        raise BadFile(path, 'not_text', f'is of challenge {str(challenge)[:80]!r}')
    known, said = {frame.uid for frame in truth.frames}, {}
    names = truth.nouns, truth.verbs
    for number, (uid, rows) in enumerate(field(path, 0, content, 'results', dict).items(), 1):
        if uid not in known:
            raise BadFile(path, 'not_text', f'entry {number}: uid {uid!r} is not in the split')
        if not isinstance(rows, list):
            raise BadFile(path, 'not_text', f'entry {number} is no list')
        said[uid] = _objects(path, number, rows, names, scored=True)
    return said


def _names(path: Path, content: dict, key: str) -> tuple[str, ...]:
    """Of the categories, whose numbers are 0, 1, ... in any order."""
    rows = field(path, 0, content, key, list)
    names = {
        field(path, number, row, 'id', int): field(path, number, row, 'name', str)
        for number, row in enumerate(rows, 1)
    }
    if sorted(names) != list(range(len(rows))):
        raise BadFile(path, 'not_text', f'{key}: {len(rows)} entries without the ids 0, 1, ...')
    return tuple(names[number] for number in range(len(names)))


def _number(path: Path, number: int, row: Any, key: str, low: float, high: float) -> float:
    value = row.get(key) if isinstance(row, dict) else None
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:
        detail = f'entry {number} has {key} = {str(value)[:80]!r}: must be from {low:g} to {high:g}'
        raise BadFile(path, 'not_text', detail)
    return float(value)


def _objects(
    path: Path, number: int, rows: list, names: list[tuple[str, ...]], scored: bool
) -> Objects:
    boxes, kinds, seconds, scores = [], [], [], []
    for row in rows:
        box = field(path, number, row, 'box', list)
        with files.reading(path, 'not_text'):
            x1, y1, x2, y2 = box = [float(value) for value in box]
        if not (all(abs(value) < 2**16 for value in box) and x1 <= x2 and y1 <= y2):
            raise BadFile(path, 'not_text', f'entry {number}: box {box} is none: x1, y1, x2, y2')
        boxes.append(box)
        kinds.append([
            in_range(path, f'entry {number}', field(path, number, row, key, int), key, len(known))
            for key, known in zip(('noun_category_id', 'verb_category_id'), names)
        ])  # fmt: skip
        # seconds of a prediction may lie anywhere
        low = -1e6 if scored else 0.0
        seconds.append(_number(path, number, row, 'time_to_contact', low, 1e6))
        if scored:
            scores.append(_number(path, number, row, 'score', -1e30, 1e30))
    kinds = np.asarray(kinds, int).reshape(-1, 2)
    return Objects(
        np.asarray(boxes, float).reshape(-1, 4), kinds[:, 0], kinds[:, 1],
        np.asarray(seconds, float), np.asarray(scores, float) if scored else None,
    )  # fmt: skip
