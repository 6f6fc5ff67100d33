"""Sets of pairs of videos, one possible and one not, in the layouts of their publishers.

Each reader says what it could not use: names that are missing, members without a partner. What is
left is what is evaluated, and the report has both counts.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jepa_jax import files
from jepa_jax.data import pictures
from jepa_jax.data.kinds import PICTURES
from jepa_jax.errors import BadFile
from jepa_jax.evals.surprise import quadruplet

INTPHYS1 = {'O1': 'permanence', 'O2': 'shape', 'O3': 'continuity'}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A possible and an impossible video that differ in nothing else."""

    possible: Path  # a video, or a folder of frames
    impossible: Path
    kind: str  # of violation
    group: str  # pairs of a group are on one side of the split
    event: int | None = None  # frame at which the members begin to differ
    primed: tuple[int, int] = (0, 0)  # frames at the start of each that are left out
    more: str = ''  # of the kind: visible, occluded, Moving, ...


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What a set holds."""

    pairs: tuple[Pair, ...]
    problems: tuple[str, ...] = ()  # what could not be used, a line each
    # videos of one and the same event drawn several times: what surprise differs for no reason
    copies: tuple[tuple[Path, ...], ...] = ()


def read(kind: str, path: str | Path, videos: str | Path = '') -> Pairs:
    """A set of `kind`, a key of READERS.

    Args:
      path: its folder or table.
      videos: folder that a table's paths are relative to; empty: the table's own.

    Raises:
      BadFile: not the layout of such a set, or nothing that can be used.
    """
    pairs = READERS[kind](Path(path).expanduser(), videos)
    if not pairs.pairs:
        first = f'; {pairs.problems[0]}' if pairs.problems else ''
        raise BadFile(
            path, 'missing', f'no pair of {kind}: {len(pairs.problems)} cannot be used{first}'
        )
    return pairs


def table(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a csv with a header that has these columns.

    Raises BadFile.
    """
    files.bound(path, 'index', files.size(path))
    with files.reading(path, 'not_text'), open(path, encoding='utf-8-sig', newline='') as file:
        rows = list(csv.DictReader(file, strict=True))
    names = [name or '' for name in (rows[0] if rows else ())]
    if absent := [name for name in needed if name not in names]:
        has = ', '.join(names) or 'no rows'
        raise BadFile(path, 'not_text', f'no column {", ".join(absent)}; it has {has}')
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise BadFile(path, 'not_text', f'line {number}: not {len(names)} fields')
    return rows


def _there(path: Path) -> bool:
    return path.is_file() or path.is_dir()


def _whole(path: Path, line: int, name: str, text: str) -> int:
    if not re.fullmatch(r'\d{1,9}', text.strip()):
        raise BadFile(path, 'not_text', f'line {line}: {name} {text!r} is no whole number')
    return int(text)


# --- A plain list ---------------------------------------------------------------------------------


def _list(path: Path, videos) -> Pairs:
    """csv with columns possible, impossible, and if you like kind, group, variant, event."""
    folder = Path(videos) if videos else path.parent
    pairs, problems = [], []
    for line, row in enumerate(table(path, ('possible', 'impossible')), 2):
        members = [folder / row[name] for name in ('possible', 'impossible')]
        if absent := [str(m) for m in members if not _there(m)]:
            problems.append(f'line {line}: {absent[0]} is missing')
            continue
        if members[0] == members[1]:
            problems.append(f'line {line}: {members[0]} is named as both members')
            continue
        event = _whole(path, line, 'event', row['event']) if row.get('event') else None
        group = row.get('group') or str(members[0])
        kind, more = row.get('kind') or 'all', row.get('variant') or ''
        pairs.append(Pair(*members, kind, group, event, more=more))
    return Pairs(tuple(pairs), tuple(problems))


# --- IntPhys (2019) -------------------------------------------------------------------------------


def _intphys1(path: Path, videos) -> Pairs:
    """`dev/O1/01/{1,2,3,4}/scene/scene_001.png ...` with `status.json`; path: the folder dev, or
    the one above it. Which of the four belong together is told by their pixels."""
    root = path / 'dev' if (path / 'dev').is_dir() else path
    blocks = sorted(folder for folder in root.glob('O[0-9]') if folder.is_dir())
    if not blocks:
        raise BadFile(root, 'missing', 'no folder O1, O2 or O3: not the dev set of IntPhys')
    pairs, problems = [], []
    for block in blocks:
        for scene in sorted(folder for folder in block.iterdir() if folder.is_dir()):
            four = [scene / str(i) for i in (1, 2, 3, 4)]
            try:
                possible = [_is_possible(each / 'status.json') for each in four]
                couples, breaks = quadruplet([_pixels(each / 'scene') for each in four])
            except BadFile as error:
                problems.append(str(error))
                continue
            if any(possible[a] == possible[b] for a, b in couples):
                problems.append(f'{scene}: a pair, by its pixels, is of two with the same label')
                continue
            for a, b in couples:
                a, b = (a, b) if possible[a] else (b, a)
                group = f'{block.name}/{scene.name}'
                kind = INTPHYS1.get(block.name, block.name)
                event = int(breaks.max()) if 0 in (a, b) else None
                pairs.append(Pair(four[a] / 'scene', four[b] / 'scene', kind, group, event))
    return Pairs(tuple(pairs), tuple(problems))


def _is_possible(path: Path) -> bool:
    files.bound(path, 'index', files.size(path))
    with files.reading(path, 'not_text'), open(path, encoding='utf-8') as file:
        status = json.load(file)
    header = status.get('header') if isinstance(status, dict) else None
    value = header.get('is_possible') if isinstance(header, dict) else None
    if not isinstance(value, bool):
        raise BadFile(path, 'not_text', 'no header.is_possible of true or false')
    return value


def _pixels(folder: Path) -> np.ndarray:
    """Every frame of a folder, thinned out: enough to see where videos depart."""
    if not folder.is_dir():
        raise BadFile(folder, 'missing', 'no folder of frames')
    names = sorted(name for name in folder.iterdir() if name.suffix.lower() in PICTURES)
    if not names:
        raise BadFile(folder, 'no_images', 'a folder without frames')
    files.bound(folder, 'frames', len(names))
    frames = [pictures.read_image(name) for name in names]
    if len({frame.shape for frame in frames}) > 1:
        raise BadFile(folder, 'size_change', 'frames of several sizes')
    return np.stack(frames)


# --- GRASP ----------------------------------------------------------------------------------------


def _grasp(path: Path, videos) -> Pairs:
    """`level2/P_PROPERTY/*.mp4` and `level2/IP_PROPERTY/*.mp4`: the same names pair."""
    root = path / 'level2' if (path / 'level2').is_dir() else path
    pairs, problems = [], []
    for folder in sorted(root.glob('P_*')):
        kind = folder.name.removeprefix('P_')
        other = root / f'IP_{kind}'
        both = [{p.name for p in f.glob('*.mp4')} for f in (folder, other)]
        for name in sorted(both[0] | both[1]):
            if name in both[0] and name in both[1]:
                pairs.append(Pair(folder / name, other / name, kind, name))
            else:
                there = folder if name in both[0] else other
                problems.append(f'{there / name}: no video of that name in the other folder')
    for folder in sorted(root.glob('IP_*')):
        if not (root / folder.name.removeprefix('I')).is_dir():
            problems.append(f'{folder}: no folder {folder.name.removeprefix("I")} beside it')
    if not pairs and not problems:
        raise BadFile(root, 'missing', 'no folders P_* and IP_*: not level 2 of GRASP')
    return Pairs(tuple(pairs), tuple(problems))


# --- InfLevel -------------------------------------------------------------------------------------

PRIMING = [f'vid{i}_end_priming_2' for i in (1, 2)]


def _inflevel(path: Path, videos) -> Pairs:
    """The JEPA repository's csv of pairs; videos: the folder inflevel_lab. Frames up to the end of
    priming and the one after it are left out."""
    folder = Path(videos) if videos else path.parent
    columns = ('vid1_path', 'vid2_path', 'vid1_label', 'vid2_label', *PRIMING)
    pairs, problems = [], []
    for line, row in enumerate(table(path, columns), 2):
        members = [folder / row[f'vid{i}_path'] for i in (1, 2)]
        if absent := [str(m) for m in members if not _there(m)]:
            problems.append(f'line {line}: {absent[0]} is missing')
            continue
        labels = [row[f'vid{i}_label'].strip().lower() in ('1', 'true', 'possible') for i in (1, 2)]
        if labels[0] == labels[1]:
            problems.append(f'line {line}: both members have the same label')
            continue
        ends = [_end(path, line, name, row[name]) for name in PRIMING]
        if labels[1]:
            members, ends = members[::-1], ends[::-1]
        relative = Path(row['vid1_path'])
        kind = relative.parent.name or 'all'
        # camera, category, cover and object, of which a cover and an object come as two halves
        group = f'{kind}/{"__".join(sorted(relative.stem.split("__")[:4]))}'
        pairs.append(Pair(*members, kind, group, primed=tuple(ends)))
    return Pairs(tuple(pairs), tuple(problems))


def _end(path: Path, line: int, name: str, text: str) -> int:
    """Frames of priming; none if there was none."""
    if text.strip().lower() in ('', '-1', '-1.0', 'nan', 'none'):
        return 0
    return _whole(path, line, name, text.strip().removesuffix('.0')) + 1


# --- IntPhys 2 ------------------------------------------------------------------------------------

TYPE = re.compile(r'(\d+)_(possible|impossible)', re.IGNORECASE)


def _intphys2(path: Path, videos) -> Pairs:
    """`Main/metadata.csv` (or Debug's) and `Main/Videos/HASH.mp4`; path: that folder, that file, or
    the folder above Main. k_Possible pairs with k_Impossible of the same scene; of a scene drawn
    several times those that follow each other do."""
    if path.is_dir():
        path = path / 'Main' if (path / 'Main').is_dir() else path
        path = path / 'metadata.csv'
    rows = table(path, ('SceneIndex', 'type', 'condition'))
    column = next((name for name in ('file_name', 'filename', 'name') if name in rows[0]), None)
    if column is None:
        raise BadFile(path, 'not_text', 'no column file_name, filename or name')
    folder = Path(videos) if videos else path.parent
    members, problems = defaultdict(list), []
    for line, row in enumerate(rows, 2):
        word = TYPE.fullmatch(row['type'].strip())
        if not word:
            problems.append(f'line {line}: type {row["type"]!r}: must be 1_Possible or the like')
            continue
        name = Path(row[column])
        video = folder / (name if name.suffix else Path('Videos') / f'{name}.mp4')
        if not video.is_file():
            problems.append(f'line {line}: {video} is missing')
            continue
        key = (row['SceneIndex'], word[1])
        members[key, word[2].lower()].append((video, row))
    pairs = []
    for key in sorted({key for key, _ in members}):
        possible, impossible = (members.get((key, w), []) for w in ('possible', 'impossible'))
        if len(possible) != len(impossible):
            problems.append(
                f'scene {key[0]}, {key[1]}: {len(possible)} possible and {len(impossible)} '
                'impossible videos'
            )
        for (a, row), (b, _) in zip(possible, impossible):
            kind = row['condition'].split('_')[0].lower()
            pairs.append(Pair(a, b, kind, f'scene {key[0]}', more=row.get('Difficulty', '')))
    copies = tuple(tuple(v for v, _ in each) for each in members.values() if len(each) > 1)
    return Pairs(tuple(pairs), tuple(problems), copies)


READERS: dict[str, Callable[[Path, str | Path], Pairs]] = {
    'pairs': _list,
    'intphys1': _intphys1,
    'intphys2': _intphys2,
    'grasp': _grasp,
    'inflevel': _inflevel,
}
