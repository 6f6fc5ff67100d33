"""A small video set made on the spot: real handwritten digits moving among bouncing shapes, in
H.264 mp4 files.

Labels are known by construction. In each clip a digit and a ball go round together, without
turning, over a drifting texture, among shapes that bounce, collide and pass before and behind them.
The `digit` is which of ten. The `side` is on which side of the digit the ball keeps: any frame
shows it, but only by how two things lie, for no place is lighter or darker for it (the ball may be
either). The `motion` is the way that they go round, clockwise or counterclockwise, from any angle
on. Over a frame or two they move in any direction either way: a glance tells nothing, which is what
an untrained encoder has (left against right, or growing against shrinking, it tells almost without
error). A clip played backwards is a valid clip of the other motion with the very same frames,
distractors included, so that shuffled frames tell nothing either. Train and test clips use
different handwritten images (scikit-learn's `load_digits`, from the UCI optical recognition set, CC
BY 4.0).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from jepa_jax.config import cache_root
from jepa_jax.errors import printable

VERSION = 9  # in the folder's name and in every seed: change it with anything that changes a pixel
SIZE = 80  # pixels, square
FRAMES = 24
FPS = 8
SPLITS = ('train', 'test')
# by kind of list; multiples of 80: each digit with each motion and side
COUNTS = {
    'synthetic': {'train': 800, 'test': 400},
    'synthetic_few': {'train': 80, 'test': 80},  # made in seconds, for a trial
}
TRAIN_SHARE = 0.7  # of the handwritten images of each digit
MOTIONS = ('clockwise', 'counterclockwise')  # the second is the first played backwards
SIDES = ('right', 'below', 'left', 'above')  # of the digit, a quarter turn clockwise each
SHAPES = ('disc', 'square', 'triangle')
BOUNCING = 2  # shapes
GROUND = ((0.28, 0.30, 0.33), (0.44, 0.42, 0.40))  # the texture's two colours, RGB
LIGHT, DARK = (0.8, 1.0), (0.0, 0.05)  # grey levels: the digit is light, the ball either
SHAPE = (0.5, 0.7)  # and of the shapes

log = logging.getLogger(__name__)


def default_folder(kind: str) -> Path:
    """Where a set of COUNTS lies unless told otherwise."""
    return cache_root() / f'{kind}-v{VERSION}'


def ensure(kind: str, folder: str | Path = '') -> Path:
    """Makes a set of COUNTS if it is absent and returns its training list.

    Files: `videos/*.mp4`, the lists `train.txt` and `test.txt` (a line `videos/train_0000.mp4
    DIGIT` each, relative to the list's folder) and `labels.json` (see `load_labels`). The folder
    appears in one rename when all is written; of two processes one builds and the other waits. The
    same machine and library versions give the same bytes.

    Raises:
      ValueError: the folder exists but does not hold the whole set.
    """
    folder, counts = Path(folder or default_folder(kind)), COUNTS[kind]
    make_once(folder, functools.partial(_fill, counts), sum(counts.values()))
    return folder / 'train.txt'


HOLDS_OTHER = 'where self-made videos want a folder of their own, absent or empty'


def make_once(folder: Path, fill: Callable[[Path], None], videos: int) -> None:
    """Has a folder filled, with `videos/*.mp4` among its files, if it is absent.

    It appears in one rename when all is written; of two processes one fills it and the other waits.

    Raises:
      ValueError: the folder exists but does not hold so many videos, and a list or table.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'{folder}: a file, {HOLDS_OTHER}')
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(folder.name + '.lock')):
        if not folder.exists() or not any(folder.iterdir()):
            log.info('making %d videos in %s', videos, printable(folder))
            _build(folder, fill)
    there = len(list(folder.glob('videos/*.mp4')))
    listed = any((folder / name).exists() for name in ('train.txt', 'pairs.csv'))
    if not there and not listed:  # somebody's own: nothing to delete
        raise ValueError(f'{folder}: holds other files, {HOLDS_OTHER}')
    if there != videos or not listed:
        raise ValueError(
            f'{folder}: holds {there} of the {videos} videos of the self-made set; '
            'delete the folder to have it made again, or name another'
        )


def progress(items: Sequence) -> tqdm:
    """The items, with a bar."""
    return tqdm(items, desc='videos', unit='file', disable=None)


def load_labels(folder: str | Path) -> dict[str, dict[str, int | str]]:
    """Labels of the set in `folder`: `videos/NAME.mp4` -> `{'digit': 0..9, 'motion': one of
    MOTIONS, 'side': one of SIDES}`.
    """
    return json.loads((Path(folder) / 'labels.json').read_text())


def labels(index: int) -> dict[str, int | str]:
    """Labels of clip `index` of either split; every 80 clips hold each combination once."""
    return {
        'digit': index % 10,
        'motion': MOTIONS[index // 10 % len(MOTIONS)],
        'side': SIDES[index // 20 % len(SIDES)],
    }


def video(split: str, index: int) -> np.ndarray:
    """Draws clip `index` of a split, uint8 `[FRAMES, SIZE, SIZE, 3]`: a pure function of its
    arguments.
    """
    label = labels(index)
    images = handwriting(split)[label['digit']]
    rng = np.random.default_rng([VERSION, SPLITS.index(split), index])
    clip = _scene(images[index // 10 % len(images)], SIDES.index(label['side']), rng)
    return clip if label['motion'] == MOTIONS[0] else clip[::-1]


@functools.cache
def handwriting(split: str) -> tuple[np.ndarray, ...]:
    """Handwritten images of a split, for each digit float `[n, 8, 8]` in 0..1; no image is in both
    splits.
    """
    from sklearn.datasets import (
        load_digits,
    )  # here because it takes a second, and only building the set needs it

    data = load_digits()
    cut = {d: int(TRAIN_SHARE * np.sum(data.target == d)) for d in range(10)}
    part = {'train': lambda d: slice(0, cut[d]), 'test': lambda d: slice(cut[d], None)}[split]
    return tuple(data.images[data.target == d][part(d)] / 16 for d in range(10))


def write(
    path: str | Path,
    frames: np.ndarray,
    fps: int = FPS,
    *,
    lossless: bool = False,
    causal: bool = False,
) -> None:
    """Writes uint8 `[T, H, W, 3]` (H, W even) as H.264 mp4, the same bytes each time: one thread,
    no time stamp.

    lossless: read back, the frames are what they were, bit for bit; about five times the bytes.
    causal: no frame depends on a later one: videos with the same first frames have the same first
    frames when read back, bit for bit.
    """
    # x264's macroblock tree decides differently now and then on the same input, even on one thread:
    # off
    options = {'preset': 'veryfast', 'crf': '18', 'x264-params': 'mbtree=0'}
    codec, pixels = 'libx264', 'yuv420p'
    if causal:
        options = {'preset': 'veryfast', 'tune': 'zerolatency', 'qp': '16'}
    if lossless:
        options = {'preset': 'veryfast', 'qp': '0'}
        codec, pixels = 'libx264rgb', 'rgb24'
    with av.open(str(path), 'w', options={'fflags': '+bitexact'}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        for frame in frames:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24')
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def _scene(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """The clip played forwards, uint8 `[T, S, S, 3]`: ground, shapes, the pair, perhaps a shape.

    Colours vary little from clip to clip: what marks a whole clip is the easiest thing to predict
    of a masked token, and a small encoder would learn little else.
    """
    clip = background(rng)
    centres, radii = _bounce(BOUNCING, rng)
    shapes = [
        (
            shape(SHAPES[rng.integers(len(SHAPES))], centres[:, i], radii[i], rng),
            rng.uniform(*SHAPE),
        )
        for i in range(BOUNCING)
    ]
    digit, ball = _pair(image, side, rng)
    # a ball that may be light or dark makes no place lighter on average, whatever its side
    pair = [(digit, rng.uniform(*LIGHT)), (ball, rng.uniform(*(LIGHT, DARK)[rng.integers(2)]))]
    front = int(rng.integers(2))  # at most one shape in front, or the digit could not be read
    layers = shapes[front:] + pair + shapes[:front]
    for alpha, grey in layers:
        clip += alpha[..., None] * (np.float32(grey) - clip)
    return np.round(255 * np.clip(clip, 0, 1)).astype(np.uint8)


def background(rng: np.random.Generator) -> np.ndarray:
    """A cloudy texture between two colours that drifts slowly, float32 `[T, S, S, 3]`."""
    noise = rng.standard_normal((SIZE, SIZE))
    field = sum(ndimage.gaussian_filter(noise, s, mode='wrap') * s for s in (3, 8))
    field = 0.5 + 0.5 * np.tanh(field / field.std())
    drift = rng.uniform(-0.7, 0.7, 2)  # pixels a frame
    moved = [ndimage.shift(field, drift * t, order=1, mode='grid-wrap') for t in range(FRAMES)]
    dark, light = np.array(GROUND, np.float32)
    return dark + np.stack(moved)[..., None].astype(np.float32) * (light - dark)


def _pair(image: np.ndarray, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coverage `[T, S, S]`, 0..1, of the digit and of the ball on that side of it. They go round
    together without turning."""
    angle = np.pi / 2 * side + rng.uniform(-0.3, 0.3)
    apart = rng.uniform(20, 23) * np.array([np.sin(angle), np.cos(angle)])  # y, x
    centre = SIZE / 2 + rng.uniform(-4, 4, 2) + _orbit(rng)
    return _digit(image, centre, rng), shape('disc', centre + apart, rng.uniform(4, 5), rng)


def _digit(image: np.ndarray, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coverage of the digit `[T, S, S]`, 0..1, at `centre [T, 2]` (y, x): smooth strokes."""
    tilt = rng.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    fine = ndimage.zoom(np.pad(image, 1), 8, order=3, grid_mode=True, mode='grid-constant')
    step = turn * 64 / rng.uniform(28, 36)  # fine cells a pixel; the image spans so many pixels
    alpha = np.empty((FRAMES, SIZE, SIZE), np.float32)
    for frame, place in zip(alpha, centre):
        shift = (len(fine) - 1) / 2 - step @ place
        ndimage.affine_transform(fine, step, shift, (SIZE, SIZE), frame, order=1)
    return np.clip((alpha - 0.3) / 0.3, 0, 1)  # a narrow ramp: strokes rather than smoke


def _orbit(rng: np.random.Generator) -> np.ndarray:
    """Offsets `[T, 2]` (y, x) once to twice round an ellipse, clockwise as seen (y points down)."""
    angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi * rng.uniform(1.2, 1.8), FRAMES)
    tilt, long, short = rng.uniform(0, np.pi), rng.uniform(12, 15), rng.uniform(10, 12)
    major = np.array([np.sin(tilt), np.cos(tilt)])
    minor = np.array([major[1], -major[0]])  # a quarter of a turn clockwise from the major axis
    return long * np.outer(np.cos(angle), major) + short * np.outer(np.sin(angle), minor)


def _bounce(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres `[T, n, 2]` and radii `[n]` of shapes that bounce off the walls and, as equal masses,
    off each other.
    """
    radii = rng.uniform(5, 9, count)
    place = rng.uniform(radii[:, None], SIZE - radii[:, None], (count, 2))
    angle = rng.uniform(0, 2 * np.pi, count)
    speed = rng.uniform(1.0, 3.0, (count, 1)) * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    substeps, centres = 4, []
    for _ in range(FRAMES):
        centres.append(place.copy())
        for _ in range(substeps):
            place = place + speed / substeps
            low, high = place < radii[:, None], place > SIZE - radii[:, None]
            speed = np.where(low, np.abs(speed), np.where(high, -np.abs(speed), speed))
            for i in range(count):
                for j in range(i):
                    apart = place[i] - place[j]
                    distance = np.hypot(*apart)
                    normal = apart / max(distance, 1e-9)
                    closing = (speed[i] - speed[j]) @ normal
                    if distance < radii[i] + radii[j] and closing < 0:
                        speed[i] -= closing * normal
                        speed[j] += closing * normal
    return np.stack(centres), radii


def shape(
    name: str, centre: np.ndarray, radius: float | np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Coverage `[T, S, S]` of a shape at `centre [T, 2]`, its edge one pixel soft; it turns as it
    goes. radius: pixels, or float32 `[T, 1, 1]`.
    """
    y, x = (np.mgrid[:SIZE, :SIZE][:, None] - centre.T[:, :, None, None]).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.15, 0.15) * np.arange(FRAMES)
    sides = {'disc': 0, 'square': 4, 'triangle': 3}[name]
    if not sides:
        distance = np.hypot(y, x)
    else:  # the largest distance beyond the lines through the sides of a regular polygon
        turns = angle + 2 * np.pi / sides * np.arange(sides)[:, None]
        normal = np.stack([np.sin(turns), np.cos(turns)]).astype(np.float32)[..., None, None]
        distance = np.max(normal[0] * y + normal[1] * x, axis=0)
        radius = radius * (0.62 if sides == 3 else 0.85)  # about the area of the disc
    return np.clip(radius - distance + 0.5, 0, 1, dtype=np.float32)


def _fill(counts: dict[str, int], partial: Path) -> None:
    """Writes the set: videos, lists and labels."""
    known = {}
    with tqdm(total=sum(counts.values()), desc='videos', unit='file', disable=None) as bar:
        for split, count in counts.items():
            names = [f'videos/{split}_{i:04d}.mp4' for i in range(count)]
            for i, name in enumerate(names):
                write(partial / name, video(split, i))
                known[name] = labels(i)
                bar.update()
            lines = [f'{name} {known[name]["digit"]}\n' for name in names]
            (partial / f'{split}.txt').write_text(''.join(lines))
    (partial / 'labels.json').write_text(json.dumps(known, indent=0) + '\n')


def _build(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder beside `folder` and renames it; whoever calls holds the lock, so older
    leftovers are dead.
    """
    for leftover in folder.parent.glob(f'.{folder.name}.partial-*'):
        shutil.rmtree(leftover)
    partial = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.partial-', dir=folder.parent))
    try:
        partial.chmod(0o755)
        (partial / 'videos').mkdir()
        fill(partial)
        partial.rename(folder)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


@contextlib.contextmanager
def _lock(path: Path):
    """Holds an advisory lock that the system releases when the process ends, however it ends."""
    with open(path, 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
