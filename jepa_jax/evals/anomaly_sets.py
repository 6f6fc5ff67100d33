"""Video of cameras: what is normal, what is to be judged, and which frames show something else.

Own video is a file, a folder (of videos, or of folders of frames), a list of paths, or a csv with
the column `path`. The official sets are read as their authors lay them out. (reference:
evaluations.md §4) What is missing or damaged is counted and named, and the rest is used.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from jepa_jax import files
from jepa_jax.config.anomaly import CameraConfig
from jepa_jax.data import cameras, npz
from jepa_jax.data.kinds import PICTURES, VIDEOS
from jepa_jax.data.labelled.records import columns_of, text_of
from jepa_jax.errors import BadFile, ConfigError

SELF_MADE = {'self_made': 'camera', 'self_made_few': 'camera_few'}
# videos of the official releases: training, test
COUNTS = {'ped2': (16, 12), 'avenue': (16, 21), 'shanghaitech': (330, 107)}
SUFFIXES = VIDEOS | {'.npy', '.gif'}


@dataclasses.dataclass(frozen=True)
class Labels:
    """Which frames of a video show something that is not normal."""

    source: str  # what says so
    each: np.ndarray | None = None  # [frames] bool; None: as the spans say
    spans: tuple[tuple[float, float], ...] = ()  # first and last, both of them in
    seconds: bool = False  # spans are in seconds; else in frames, from 0

    def of(self, path: str, seconds: np.ndarray) -> np.ndarray:
        """[frames] bool for a video whose frames are shown at these seconds.

        Raises BadFile, `mismatch`: it has other frames than the labels.
        """
        count = len(seconds)
        if self.each is not None:
            if len(self.each) != count:
                detail = f'{len(self.each)} labels, and {path} has {count} frames'
                raise BadFile(self.source, 'mismatch', detail)
            return self.each
        begin = seconds if self.seconds else np.arange(count)
        each = begin[-1] / (count - 1) if count > 1 else 1.0
        end = np.append(begin[1:], begin[-1] + each)  # when the next frame is shown
        wrong = np.zeros(count, bool)
        for first, last in self.spans:
            inside = (begin <= last) & (end > first)
            # seconds may lead beyond the end, frames may not: they would be another video's
            if not inside.any() or not self.seconds and last >= count:
                where = f'{end[-1]:.4g} s' if self.seconds else f'frame {count - 1}'
                detail = f'labels {first:g} to {last:g}, and {path} ends at {where}'
                raise BadFile(self.source, 'mismatch', detail)
            wrong |= inside
        return wrong


@dataclasses.dataclass(frozen=True)
class Video:
    """A video, or a folder of frames."""

    path: str
    labels: Labels | None = None
    kind: str = ''  # of what happens in it


@dataclasses.dataclass(frozen=True)
class Footage:
    """What a set holds."""

    train: tuple[Video, ...]
    test: tuple[Video, ...]
    problems: tuple[str, ...] = ()  # what could not be used, a line each


def read(data: CameraConfig) -> Footage:
    """The videos that a config names; makes those that are self-made.

    Raises:
      ConfigError: no such file, no normal video, labels of other videos; in one line.
    """
    try:
        footage = READERS[data.kind](data)
    except BadFile as error:
        raise ConfigError(str(error)) from error
    if not footage.train:
        first = f'; {footage.problems[0]}' if footage.problems else ''
        raise ConfigError(f'no normal video to learn from{first}')
    # whatever it is called on either side
    known = {os.path.realpath(v.path) for v in footage.train}
    if both := [v.path for v in footage.test if os.path.realpath(v.path) in known]:
        raise ConfigError(f'data.test: {both[0]} is in the normal video as well')
    return footage


# --- Own video ------------------------------------------------------------------------------------


def _own(data: CameraConfig) -> Footage:
    train = [Video(path) for path in paths_of(data.train, 'data.train')]
    if not data.test:
        return Footage(tuple(train), ())
    place = Path(data.test).expanduser()
    test = [Video(path) for path in paths_of(data.test, 'data.test')]
    if data.labels:
        test = _labelled(test, Path(data.labels).expanduser())
    elif place.suffix.lower() == '.csv' and _has_spans(place):
        test = _labelled(test, place)
    return Footage(tuple(train), tuple(test))


def paths_of(place: str, field: str) -> list[str]:
    """The videos and folders of frames that a file, folder, list or csv names, each once.

    Raises:
      ConfigError: there is no such file, or none in it. BadFile: no text.
    """
    path = Path(place).expanduser()
    if not path.exists():
        raise ConfigError(f'{field} = {place!r}: no such file or folder')
    if path.is_dir():
        paths = list(_below(path))
    elif path.suffix.lower() in SUFFIXES:
        paths = [str(path)]
    elif path.suffix.lower() == '.csv':
        paths = [_beside(path, row['path']) for _, row in columns_of(path, ['path'])]
    else:
        lines = (line.strip() for line in text_of(path).splitlines())
        paths = [_beside(path, line) for line in lines if line and not line.startswith('#')]
    if not paths:
        raise ConfigError(f'{field} = {place!r}: no video and no folder of frames in it')
    return list(dict.fromkeys(paths))


def _beside(path: Path, name: str) -> str:
    return os.path.normpath(path.parent / os.path.expanduser(name.strip()))


def _below(folder: Path) -> Iterable[str]:
    """Videos and folders of frames, in the order of their names."""
    for parent, below, names in os.walk(folder):
        below.sort()
        names = sorted(name for name in names if not name.startswith('.'))
        suffixes = {name: os.path.splitext(name)[1].lower() for name in names}
        if videos := [name for name in names if suffixes[name] in SUFFIXES - PICTURES]:
            yield from (os.path.join(parent, name) for name in videos)
        elif any(suffix in PICTURES for suffix in suffixes.values()):
            yield parent


def _has_spans(path: Path) -> bool:
    rows = columns_of(path, ['path'])
    return bool(rows) and any(
        {'first', 'last'} <= {*row} or {'start', 'end'} <= {*row} for _, row in rows
    )


def _labelled(videos: list[Video], place: Path) -> list[Video]:
    """Each with labels from a csv or a folder; a video without any is refused."""
    if not place.exists():
        raise ConfigError(f'data.labels = {str(place)!r}: no such file or folder')
    if place.is_dir():
        return [dataclasses.replace(v, labels=_beside_name(v.path, place)) for v in videos]
    paths = [video.path for video in videos]
    known = _table(place, dict(zip(map(os.path.realpath, paths), paths)) | dict(zip(paths, paths)))
    result = []
    for video in videos:
        if video.path not in known:
            raise ConfigError(
                f'{place}: no row for {video.path}; a row without first and last, or start and '
                'end, says that it is normal'
            )
        result.append(known[video.path])
    return result


def _beside_name(path: str, folder: Path) -> Labels:
    """NAME.npy or NAME.txt. Raises ConfigError, BadFile."""
    stem = Path(path).stem if Path(path).suffix.lower() in SUFFIXES else Path(path).name
    for suffix in ('.npy', '.txt'):
        if (file := folder / f'{stem}{suffix}').is_file():
            return Labels(str(file), each_frame(file))
    raise ConfigError(f'data.labels: {folder} has no {stem}.npy or {stem}.txt for {path}')


def each_frame(path: Path) -> np.ndarray:
    """[frames] bool of a file with a 0 or 1 for each frame, .npy or text. Raises BadFile."""
    if path.suffix == '.npy':
        values = np.squeeze(npz.load(path))
        if values.ndim != 1 or values.dtype.kind not in 'buif':
            detail = f'{values.dtype} {list(values.shape)}: must be a 0 or 1 for each frame'
            raise BadFile(path, 'not_array', detail)
        wrong = np.flatnonzero((values != 0) & (values != 1))
        if len(wrong):
            detail = f'frame {wrong[0]} is {values[wrong[0]]}: must be 0 or 1'
            raise BadFile(path, 'not_array', detail)
        return values == 1
    words = text_of(path).replace(',', ' ').split()
    for number, word in enumerate(words):
        if word not in ('0', '1'):
            raise BadFile(path, 'not_text', f'frame {number} is {word!r}: must be 0 or 1')
    return np.array(words) == '1'


def _table(path: Path, videos: dict[str, str]) -> dict[str, Video]:
    """Path -> video, of rows with first and last frame, or start and end in seconds; videos: paths,
    by themselves and by where they lead to."""
    rows = columns_of(path, ['path'])
    header = set(rows[0][1]) if rows else set()
    seconds = not {'first', 'last'} <= header
    names = ('start', 'end') if seconds else ('first', 'last')
    if not {*names} <= header:
        detail = 'no columns first and last (frames) or start and end (seconds)'
        raise BadFile(path, 'not_text', detail)
    spans: dict[str, list] = {}
    kinds: dict[str, str] = {}
    for line, row in rows:
        at = _beside(path, row['path'])
        if (name := videos.get(at) or videos.get(os.path.realpath(at))) is None:
            raise BadFile(path, 'not_text', f'line {line}: {row["path"]!r} is none of the videos')
        own = spans.setdefault(name, [])
        cells = [row[key].strip() for key in names]
        kinds[name] = row.get('kind', '').strip() or kinds.get(name, '')
        if not any(cells):
            continue
        first, last = (_number(path, line, key, c, seconds) for key, c in zip(names, cells))
        if last < first:
            raise BadFile(path, 'not_text', f'line {line}: {names[1]} {last:g} is before {first:g}')
        own.append((first, last))
    return {
        name: Video(name, Labels(str(path), None, tuple(own), seconds), kinds[name])
        for name, own in spans.items()
    }


def _number(path: Path, line: int, name: str, text: str, seconds: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf or not seconds and value != int(value):
        what = 'number of seconds' if seconds else 'number of a frame'
        raise BadFile(path, 'not_text', f'line {line}: {name} {text!r} is no {what}')
    return value


def _self_made(data: CameraConfig) -> Footage:
    try:
        folder = cameras.ensure(SELF_MADE[data.kind], data.path)
    except ValueError as error:  # a folder that holds something else
        raise ConfigError(f'data.path: {error}') from error
    table = str(folder / f'{data.split}.csv')
    return _own(dataclasses.replace(data, train=str(folder / 'train.txt'), test=table, labels=''))


# --- Official sets --------------------------------------------------------------------------------


def _root(data: CameraConfig, needed: str, *names: str) -> Path:
    """The folder of a set, or the one in it that its archive makes."""
    place = Path(data.path).expanduser()
    for root in (place, *(place / name for name in names)):
        if (root / needed).is_dir():
            return root
    raise ConfigError(f'data.path = {data.path!r}: has no folder {needed}: not {data.kind}')


def _ped2(data: CameraConfig) -> Footage:
    """Train/Train001/*.tif, Test/Test001/*.tif; Test/UCSDped2.m has a line for each of these."""
    root = _root(data, 'Test', 'UCSDped2')
    table = root / 'Test/UCSDped2.m'
    lines = re.findall(r'gt_frame\s*=\s*\[([^\]]*)\]', text_of(table))
    if not lines:
        raise BadFile(table, 'not_text', 'no line `gt_frame = [first:last];`')
    test, problems = [], []
    for number, line in enumerate(lines, 1):
        folder, spans = root / f'Test/Test{number:03d}', []
        for part in filter(None, re.split(r'[,\s]+', line)):
            span = re.fullmatch(r'(\d{1,9}):(\d{1,9})', part)
            if not span or not 1 <= int(span[1]) <= int(span[2]):
                detail = f'entry {number}: {part!r} is no first:last'
                raise BadFile(table, 'not_text', detail)
            spans.append((int(span[1]) - 1, int(span[2]) - 1))  # MATLAB counts from 1
        if folder.is_dir():
            test.append(Video(str(folder), Labels(f'{table} entry {number}', None, tuple(spans))))
        else:
            problems.append(f'{folder}: missing')
    train = [Video(str(p)) for p in sorted(root.glob('Train/Train*')) if p.is_dir()]
    known = {video.path for video in test}
    for folder in sorted(root.glob('Test/Test[0-9][0-9][0-9]')):
        if str(folder) not in known:
            problems.append(f'{folder}: no entry in {table.name}')
    return Footage(tuple(train), tuple(test), tuple(problems))


def _avenue(data: CameraConfig) -> Footage:
    """training_videos/01.avi, testing_videos/01.avi, testing_label_mask/1_label.mat."""
    root = _root(data, 'testing_videos', 'Avenue Dataset')
    place = next(
        (p for p in (root / 'ground_truth_demo/testing_label_mask', root / 'testing_label_mask')
         if p.is_dir()),
        None,
    )  # fmt: skip
    if place is None:
        raise ConfigError(f'data.path: {root} has no ground_truth_demo/testing_label_mask')
    train = [Video(str(path)) for path in sorted((root / 'training_videos').glob('*.avi'))]
    by_name = {p.stem.lstrip('0'): str(p) for p in sorted((root / 'testing_videos').glob('*.avi'))}
    masks = {p.stem.removesuffix('_label'): p for p in place.glob('*_label.mat')}
    return _paired(train, by_name, masks, volume_labels)


def _shanghaitech(data: CameraConfig) -> Footage:
    """training/videos/*.avi, testing/frames/01_0014/*.jpg, testing/test_frame_mask/01_0014.npy."""
    root = _root(data, 'testing', 'shanghaitech')
    train = [Video(path) for path in _below(root / 'training')]
    by_name = {p.name: str(p) for p in sorted((root / 'testing/frames').glob('*')) if p.is_dir()}
    masks = {p.stem: p for p in (root / 'testing/test_frame_mask').glob('*.npy')}
    return _paired(train, by_name, masks, each_frame)


def _paired(
    train: list[Video],
    by_name: dict[str, str],
    masks: dict[str, Path],
    labels_of: Callable[[Path], np.ndarray],
) -> Footage:
    """Test videos with their labels, matched by name."""
    test, problems = [], []
    for name in sorted({*by_name, *masks}):
        if name not in by_name:
            problems.append(f'{masks[name]}: its video is missing')
        elif name not in masks:
            problems.append(f'{by_name[name]}: its labels are missing')
        else:
            try:
                labels = Labels(str(masks[name]), labels_of(masks[name]))
            except BadFile as error:
                problems.append(str(error))
            else:
                test.append(Video(by_name[name], labels))
    return Footage(tuple(train), tuple(test), tuple(problems))


def volume_labels(path: Path) -> np.ndarray:
    """[frames] bool of a MATLAB file (version 5 to 7) whose `volLabel` is a cell with a mask for
    each frame: any pixel counts. Raises BadFile."""
    from scipy.io import loadmat

    _bound_unpacked(path)
    with files.reading(path, 'not_array'):
        cells = loadmat(path, variable_names=['volLabel']).get('volLabel')
        if cells is None or cells.dtype != object:
            raise BadFile(path, 'not_array', 'has no cell array volLabel')
        return np.array([bool(np.any(mask)) for mask in cells.ravel()])


def _bound_unpacked(path: Path) -> None:
    """Refuses compressed elements that unpack to more than the limits allow. Raises BadFile."""
    size = files.size(path)
    files.bound(path, 'index', size)
    total, deadline = 0, files.Deadline(path)
    with files.reading(path, 'not_array'), open(path, 'rb') as file:
        head = file.read(128)
        order = 'little' if head[126:128] == b'IM' else 'big'
        while len(tag := file.read(8)) == 8:
            kind, count = (int.from_bytes(tag[i : i + 4], order) for i in (0, 4))
            if kind != 15:  # miCOMPRESSED
                file.seek(count, os.SEEK_CUR)
                continue
            unpack, left = zlib.decompressobj(), count
            while left > 0 and (data := file.read(min(left, 2**16))):
                left -= len(data)
                while data:
                    total += len(unpack.decompress(data, 2**20))
                    data = unpack.unconsumed_tail
                    files.bound_decoded(path, total, size)
                    deadline.check()


READERS: dict[str, Callable[[CameraConfig], Footage]] = {
    'own': _own,
    'self_made': _self_made,
    'self_made_few': _self_made,
    'ped2': _ped2,
    'avenue': _avenue,
    'shanghaitech': _shanghaitech,
}


def other_counts(kind: str, footage: Footage) -> list[str]:
    """What differs from the official release, a sentence each."""
    if kind not in COUNTS:
        return []
    return [
        f'{kind}: {len(videos)} {name} videos can be used, the official release has {count}'
        for name, videos, count in zip(
            ('training', 'test'), (footage.train, footage.test), COUNTS[kind]
        )
        if len(videos) != count
    ]
