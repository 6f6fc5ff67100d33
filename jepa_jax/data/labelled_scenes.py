"""Self-made videos of which every pixel's class, object and distance is known.

A camera looks along a floor to a wall; a handwritten digit and some shapes float before it, come
nearer and go away, and hide each other. Things look the smaller the farther they are, and haze
takes their contrast; the camera's tilt differs from video to video, so that a place in the picture
does not tell a distance. Videos are pure functions of split and number, and are not written to
disk. The pieces are those of `synthetic`, and so are the digits: none is in both splits.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy import ndimage

from jepa_jax.data import synthetic
from jepa_jax.data.synthetic import FRAMES, SIZE, SPLITS

VERSION = 1  # in every seed: change it with anything that changes a pixel
CLASSES = ('ground', *synthetic.SHAPES, 'digit')
# videos by kind of set
COUNTS = {
    'self_made': {'train': 64, 'test': 64},
    'self_made_few': {'train': 9, 'test': 6},  # for a trial
}
NEAR, FAR = 1.5, 5.0  # metres, where things are
BACK = 10.0  # metres, the wall
FOCAL = 80.0  # pixels that a metre takes at a distance of one
HEIGHT = 0.7  # metres of the camera above the floor
RADIUS = (0.24, 0.32)  # metres, of things
HAZE, GREY = 6.0, 0.42  # metres in which contrast falls to 1 / e, and what is left
LEAST = 25  # pixels of each thing that the first frame shows


@dataclasses.dataclass(frozen=True)
class Scene:
    """A video and what it shows."""

    frames: np.ndarray  # [T, S, S, 3] uint8
    classes: np.ndarray  # [T, S, S] uint8, index of CLASSES
    objects: np.ndarray  # [T, S, S] uint8, from 1; 0: none
    metres: np.ndarray  # [T, S, S] float32


@dataclasses.dataclass(frozen=True)
class _Thing:
    kind: int  # index of CLASSES
    alpha: np.ndarray  # [T, S, S] coverage
    grey: float
    metres: np.ndarray  # [T]


@functools.lru_cache(maxsize=256)
def video(split: str, index: int) -> Scene:
    """Video `index` of a split."""
    rng = np.random.default_rng([VERSION, 7, SPLITS.index(split), index])
    while True:
        things = [_thing(split, rng) for _ in range(3)]
        things.append(_thing(split, rng, digit=True))
        shown = np.zeros((SIZE, SIZE), int)
        for number in _order(things, 0):
            shown[things[number].alpha[0] > 0.5] = number + 1
        if np.bincount(shown.ravel(), minlength=len(things) + 1).min() >= LEAST:
            return _draw(things, rng)


def _order(things: list[_Thing], t: int) -> np.ndarray:
    """Numbers of the things in a frame, the farthest first."""
    return np.argsort([-thing.metres[t] for thing in things], kind='stable')


def _between(rng: np.random.Generator, low: float, high: float, speed: tuple) -> np.ndarray:
    """A path [T] that turns at both ends, of a speed a frame in a range."""
    way = rng.uniform(0, 2 * (high - low)) + rng.uniform(*speed) * np.arange(FRAMES)
    return low + np.abs((way % (2 * (high - low))) - (high - low))


def _thing(split: str, rng: np.random.Generator, digit: bool = False) -> _Thing:
    metres = _between(rng, NEAR, FAR, (0.02, 0.09))
    centre = np.stack([_between(rng, 8, SIZE - 8, (0.4, 2.0)) for _ in 'yx'], axis=1)
    radius = (FOCAL * rng.uniform(*RADIUS) / metres).astype(np.float32)
    if not digit:
        number = int(rng.integers(len(synthetic.SHAPES)))
        alpha = synthetic.shape(synthetic.SHAPES[number], centre, radius[:, None, None], rng)
        grey = rng.uniform(*(synthetic.SHAPE, synthetic.DARK)[rng.integers(2)])
        return _Thing(1 + number, alpha, grey, metres)
    images = synthetic.handwriting(split)[rng.integers(10)]
    image = images[rng.integers(len(images))]
    fine = ndimage.zoom(np.pad(image, 1), 8, order=3, grid_mode=True, mode='grid-constant')
    alpha = np.empty((FRAMES, SIZE, SIZE), np.float32)
    for frame, place, r in zip(alpha, centre, radius):
        step = len(fine) / (3.2 * r)  # fine cells a pixel
        shift = (len(fine) - 1) / 2 - step * place
        ndimage.affine_transform(fine, [step] * 2, shift, (SIZE, SIZE), frame, order=1)
    return _Thing(
        len(CLASSES) - 1, np.clip((alpha - 0.2) / 0.3, 0, 1), rng.uniform(*synthetic.LIGHT), metres
    )


def _draw(things: list[_Thing], rng: np.random.Generator) -> Scene:
    horizon = rng.uniform(0.15, 0.55) * SIZE
    rows = np.arange(SIZE) + 0.5 - horizon
    far = np.where(rows > 0, FOCAL * HEIGHT / np.maximum(rows, 1e-3), BACK).clip(max=BACK)
    metres = np.broadcast_to(far[:, None], (FRAMES, SIZE, SIZE)).astype(np.float32)
    frames = synthetic.background(rng)
    frames = GREY + (frames - GREY) * np.exp(-metres / HAZE)[..., None]
    classes, objects = np.zeros((2, FRAMES, SIZE, SIZE), np.uint8)
    for t in range(FRAMES):
        for number in _order(things, t):
            thing = things[number]
            alpha, z = thing.alpha[t], thing.metres[t]
            colour = np.float32(GREY + (thing.grey - GREY) * np.exp(-z / HAZE))
            frames[t] += alpha[..., None] * (colour - frames[t])
            own = alpha > 0.5
            classes[t][own], objects[t][own], metres[t][own] = thing.kind, number + 1, z
    pixels = np.round(255 * np.clip(frames, 0, 1)).astype(np.uint8)
    for array in (pixels, classes, objects, metres):
        array.flags.writeable = False  # they are kept, and given to whoever asks
    return Scene(pixels, classes, objects, metres)
