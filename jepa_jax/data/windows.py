"""Anything with frames in it, cut into windows for a frozen encoder, in bounded memory.

An input is a video, an image, a folder of frames or a .npy file of uint8 [T, H, W, 3]; which, its
content says, not its name. A video and an animated picture are sampled at a rate, from the first
frame to the last; a folder, an array and a TIFF of many pages are taken frame by frame, as already
sampled at that rate; an image is repeated. Windows of a fixed number of frames follow at
a stride, and one more ends at the last frame if the stride leaves some over. Frames are decoded
once and in pieces, however long the input is.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jepa_jax import files
from jepa_jax.data import decode, kinds, npz, pictures
from jepa_jax.data.clips import Sampling, Timing, by_time
from jepa_jax.data.kinds import PICTURES
from jepa_jax.described import Described
from jepa_jax.errors import BadFile, Unsuitable

PIECE = 2**27  # bytes of raw frames decoded at a time


@dataclasses.dataclass(frozen=True)
class Input:
    """An opened input: when its sampled frames are shown, and how to get at them."""

    path: str
    kind: str  # video | image | folder | array
    numbers: np.ndarray  # [n] int64: which frames of the file
    seconds: np.ndarray  # [n] float64: when they are shown
    spacing: float  # seconds from one to the next, nominally; 0 for an image
    size: tuple[int, int]  # height and width, pixels
    read: Callable[[np.ndarray], np.ndarray]  # frame numbers [k] -> uint8 [k, H, W, 3]
    # frame numbers [k] -> how many come before the first that is missing; None: found by reading
    whole: Callable[[np.ndarray], int] | None = None
    missing: BadFile | None = None  # what is wrong with the file, to be said after the last window


@dataclasses.dataclass(frozen=True, repr=False)
class Window(Described):
    """One clip for the encoder."""

    source: str  # the input's path
    clip: np.ndarray  # uint8 [T, H, W, 3]
    numbers: np.ndarray  # [T] int64: which frames of the input
    seconds: np.ndarray  # [T] float64: when they are shown in the input
    spacing: float  # seconds between two frames, nominally
    repeated: int  # how many frames at the end repeat the last one, for want of more


def open_input(path: str | os.PathLike, fps: float) -> Input:
    """Looks at an input; fps: frames a second to take a video at, or that a folder or an array has.

    A video of 30 frames a second at 4 gives every seventh, by the rule that the released models
    were trained with (reference: vjepa2 §6.1).

    Raises:
      BadFile: it is none of the four kinds, or slower than `fps`.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return _open_folder(path, fps)
    return _OPEN[kinds.kind_of(path)](path, fps)


def _open_image(path: str, fps: float) -> Input:
    frame = pictures.read_image(path)
    one = np.zeros(1)
    return Input(
        path, 'image', one.astype(np.int64), one, 0.0, frame.shape[:2],
        lambda numbers: np.repeat(frame[None], len(numbers), axis=0),
    )  # fmt: skip


def _open_stack(path: str, fps: float) -> Input:
    stack = pictures.Stack(path)
    timing = stack.timing
    if not timing.fps:  # no clock
        numbers = np.arange(timing.frames)
        return Input(path, 'array', numbers, numbers / fps, 1 / fps, stack.size, stack.read)
    numbers, seconds, spacing = _sampled(path, timing, fps)
    return Input(path, 'video', numbers, seconds, spacing, stack.size, stack.read)


def _sampled(path: str, timing: Timing, fps: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Numbers, seconds and spacing of frames taken at a rate. Raises BadFile."""
    try:
        step = int(Sampling(fps=fps).step(timing.fps, 1))
    except Unsuitable as error:
        raise BadFile(path, error.reason, error.detail) from error
    even = np.arange(0, timing.frames, step)
    numbers = by_time(even, timing)
    times = timing.times
    seconds = even / timing.fps if times is None else times[numbers] - times[0]
    return numbers, seconds, step / timing.fps


def _open_video(path: str, fps: float) -> Input:
    info = decode.probe(path)
    numbers, seconds, spacing = _sampled(path, info, fps)

    def read(chosen: np.ndarray) -> np.ndarray:
        def choose(timing: Timing) -> np.ndarray:
            return chosen

        return decode.read_frames(path, choose)

    def whole(chosen: np.ndarray) -> int:
        good = decode.damage(path).good[chosen]
        return len(good) if good.all() else int(good.argmin())

    size = (info.height, info.width)
    missing = BadFile(path, info.reason, info.missing) if info.missing else None
    return Input(path, 'video', numbers, seconds, spacing, size, read, whole, missing)


def _open_folder(path: str, fps: float) -> Input:
    with files.reading(path):
        names = [name for name in os.listdir(path) if not name.startswith('._')]
    others = collections.Counter(pathlib.Path(name).suffix.lower() or 'no suffix' for name in names)
    names = [name for name in names if pathlib.Path(name).suffix.lower() in PICTURES]
    names.sort(key=_by_number)
    if not names:
        allowed = ', '.join(sorted(PICTURES))
        held = ', '.join(f'{n} {suffix}' for suffix, n in others.most_common(5)) or 'nothing'
        raise BadFile(path, 'no_images', f'a folder without frames ({allowed}); it holds {held}')
    files.bound(path, 'frames', len(names))
    first = _frame(os.path.join(path, names[0]))

    def read(numbers: np.ndarray) -> np.ndarray:
        frames = np.empty((len(numbers), *first.shape), np.uint8)
        for target, number in zip(frames, numbers):
            file = os.path.join(path, names[number])
            frame = _frame(file)
            if frame.shape != first.shape:
                sizes = f'{frame.shape[:2]}, but {names[0]} has {first.shape[:2]}'
                raise BadFile(file, 'size_change', sizes)
            target[...] = frame
        return frames

    numbers = np.arange(len(names))
    return Input(path, 'folder', numbers, numbers / fps, 1 / fps, first.shape[:2], read)


def _frame(path: str) -> np.ndarray:
    if (kind := kinds.kind_of(path)) != 'image':
        raise BadFile(path, 'not_image', f'among frames, and by its content a {kind}')
    return pictures.read_image(path)


def _by_number(name: str) -> list:
    """Sorts frame2 before frame10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)]


def _open_array(path: str, fps: float) -> Input:
    frames = npz.load_frames(path)
    numbers = np.arange(len(frames))
    return Input(
        path, 'array', numbers, numbers / fps, 1 / fps, frames.shape[1:3],
        lambda chosen: np.array(frames[chosen]),
    )  # fmt: skip


_OPEN: dict[str, Callable[[str, float], Input]] = {
    'video': _open_video,
    'image': _open_image,
    'stack': _open_stack,
    'array': _open_array,
}


def starts(count: int, frames: int, stride: int) -> list[int]:
    """Where windows of `frames` begin among `count` sampled frames: every `stride`, and one that
    ends with the last frame; one window at 0 if there are no more than fit."""
    if count <= frames:
        return [0]
    firsts = list(range(0, count - frames + 1, stride))
    if firsts[-1] + frames < count:
        firsts.append(count - frames)
    return firsts


def spread(count: int, frames: int, clips: int) -> np.ndarray:
    """Places [clips, frames] of clips among `count` sampled frames: the middle one, or evenly
    spread; where there are too few frames the last one is repeated."""
    last = max(0, count - frames)
    firsts = [last // 2] if clips == 1 else np.linspace(0, last, clips).astype(int)
    return (np.asarray(firsts)[:, None] + np.arange(frames)).clip(0, max(0, count - 1))


def length(source: Input, frames: int, tubelet: int) -> int:
    """Frames of each window: `frames`, or fewer for a folder or an array that has fewer.

    What was sampled by hand stays as it is if it fills whole tubelets; a short video is filled up
    with its last frame, as the original does.
    """
    if source.kind in ('video', 'image') or len(source.numbers) >= frames:
        return frames
    return -(-len(source.numbers) // tubelet) * tubelet


def windows(
    source: Input, frames: int, stride: int, view: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Window]:
    """The windows of an input, in order.

    Args:
      source: from `open_input`.
      frames: of each window.
      stride: sampled frames from one window's start to the next's.
      view: what is done to frames, uint8 [k, H, W, 3] -> [k, h, w, 3].

    Raises:
      BadFile: a frame is missing; after all windows before it, and none is filled up then.
    """
    count = len(source.numbers)
    piece = max(1, PIECE // (3 * source.size[0] * source.size[1]))
    good, error = count, source.missing  # how many frames come before what is missing
    base, held = 0, []  # viewed frames, from number `base` on
    for start in starts(count, frames, stride):
        index = np.arange(start, start + frames).clip(0, count - 1)
        repeated = max(0, start + frames - count)
        del held[: start - base]
        base = start
        while (begin := base + len(held)) <= index[-1] and begin < good:
            # opening a file anew and seeking cost time, so pieces reach beyond the window unless
            # the stride leaves frames out
            end = min(begin + piece, count if stride <= frames else index[-1] + 1)
            pixels, refused = _before_damage(source, source.numbers[begin:end])
            if refused:
                good, error = begin + len(pixels), refused
            held += list(view(pixels)) if len(pixels) else []
        if index[-1] >= good or (error and repeated):
            break
        clip = np.stack([held[i - base] for i in index])
        yield Window(
            source.path,
            clip,
            source.numbers[index],
            source.seconds[index],
            source.spacing,
            repeated,
        )
    if error:
        raise error


def _before_damage(source: Input, numbers: np.ndarray) -> tuple[np.ndarray, BadFile | None]:
    """Frames `[k, H, W, 3]` up to the first that is missing, and what is wrong with that."""
    try:
        return source.read(numbers), None
    except BadFile as refused:
        error = refused
    if source.whole:
        count = source.whole(numbers) % len(numbers)  # all whole, and not read: then none is
        return source.read(numbers[:count]) if count else np.empty(0, np.uint8), error
    frames = []
    for number in numbers:
        try:
            frames += list(source.read(np.array([number])))
        except BadFile as refused:
            error = refused
            break
    return np.array(frames, np.uint8), error


_END = object()


def ahead(items: Iterator, count: int = 4) -> Iterator:
    """The same items, of which `count` are made in a thread before they are asked for."""
    with ThreadPoolExecutor(1) as pool:
        waiting = collections.deque(pool.submit(next, items, _END) for _ in range(count))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, items, _END))
            yield item
