"""A camera of our own: one fixed view of the lawful world of `violations`, and videos of it in
which, for a while, something happens that never does.

All videos show the same ground and the same screen, in light that waxes and wanes a little. Two
things slide along two lanes, turn at the edges and pass behind the screen. A test video has one
oddity at most, and which frames show it is known:

  colour  a thing has a colour that no other has
  fast    a thing moves three times as fast
  stop    a thing stands still
  jump    a thing is elsewhere in its lane every other frame
  blink   a thing is there for two frames and gone for two
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from jepa_jax.config import cache_root
from jepa_jax.data import synthetic
from jepa_jax.data.violations import (
    COLOURS,
    FPS,
    SHAPES,
    SIZE,
    Scene,
    Thing,
    draw,
    texture,
    trajectory,
)

VERSION = 1  # in the folder's name and in every seed: change it with anything that changes a pixel
FRAMES = 96
ODD = 16  # frames that an oddity lasts
BEGIN = (24, 64)  # frame at which one begins, first and last
ODDITIES = ('colour', 'fast', 'stop', 'jump', 'blink')
SPLITS = ('train', 'validation', 'test')
# by set: training videos; then of the other splits videos of each oddity, and normal ones
COUNTS = {
    'camera': {'train': (0, 48), 'validation': (6, 10), 'test': (10, 20)},
    'camera_few': {'train': (0, 4), 'validation': (1, 2), 'test': (1, 2)},
}
LANES = (11.0, 24.0)  # pixels from above
SCREEN = (13.0, 20.0)  # left and right end, pixels


def video(split: str, index: int, oddity: str = '') -> tuple[np.ndarray, tuple[int, int] | None]:
    """A video, uint8 `[FRAMES, SIZE, SIZE, 3]`, and the first and last frame of its oddity: a pure
    function of its arguments."""
    row = ('', *ODDITIES).index(oddity)
    rng = np.random.default_rng([VERSION, 7, SPLITS.index(split), row, index])
    turns = rng.uniform(0, 1) + np.arange(FRAMES) / rng.uniform(48, 96)
    light = 1 + rng.uniform(0.02, 0.06) * np.sin(2 * np.pi * turns)
    things, shown = [], None
    for number, lane in enumerate(LANES):
        if not number and oddity:
            thing, shown = _odd(oddity, lane, rng)
        else:
            start = _start(lane, rng)
            thing = _thing(start, trajectory(start, None, frames=FRAMES), rng)
        things.append(thing)
    ground = texture(np.random.default_rng([VERSION, 8]))
    still = np.zeros(FRAMES, int)
    return draw(Scene(ground, tuple(things), SCREEN, None, (), light, still)), shown


def _start(lane: float, rng: np.random.Generator) -> tuple:
    """Radius, place, speed and gravity, for `trajectory`."""
    radius = rng.uniform(3.3, 3.8)
    x = rng.uniform(radius, SIZE - radius)
    speed = rng.choice([-1, 1]) * rng.uniform(1.2, 2.0)
    return radius, (lane + rng.uniform(-1, 1), x), (0.0, speed), 0.0


def _thing(start: tuple, place: np.ndarray, rng: np.random.Generator) -> Thing:
    shape, colour = rng.integers(len(SHAPES)), rng.integers(len(COLOURS))
    full = np.ones(FRAMES, int)
    return Thing(place, start[0], shape * full, colour * full, full.astype(bool))


def _odd(oddity: str, lane: float, rng: np.random.Generator) -> tuple[Thing, tuple[int, int]]:
    """A thing with an oddity that is in sight most of the time."""
    while True:
        begin = int(rng.integers(BEGIN[0], BEGIN[1] + 1))
        odd = (np.arange(FRAMES) >= begin) & (np.arange(FRAMES) < begin + ODD)
        start = _start(lane, rng)
        rate = np.where(odd, {'fast': 3, 'stop': 0}.get(oddity, 1), 1)
        when = np.concatenate([[0], np.cumsum(rate)[:-1]])
        place = trajectory(start, None, frames=3 * FRAMES)[when]
        if oddity == 'jump':
            elsewhere = np.repeat(rng.uniform(4, SIZE - 4, ODD // 2), 2)
            place[odd, 1] = elsewhere
        hidden = (place[odd, 1] > SCREEN[0]) & (place[odd, 1] < SCREEN[1])
        if hidden.mean() <= 0.4:
            break
    thing = _thing(start, place, rng)
    if oddity == 'colour':
        thing.colour[odd] = len(COLOURS)  # the foreign one
    if oddity == 'blink':
        thing.drawn[odd] = (np.arange(ODD) // 2 % 2).astype(bool)
    return thing, (begin, begin + ODD - 1)


def default_folder(name: str) -> Path:
    """Where a set of COUNTS lies unless told otherwise."""
    return cache_root() / f'{name}-v{VERSION}'


def ensure(name: str, folder: str | Path = '') -> Path:
    """Makes a set of COUNTS if it is absent and returns its folder: videos, `train.txt` with a path
    a line, `validation.csv` and `test.csv` with the columns path, kind, first, last (frames from
    0, empty where nothing happens).

    Raises:
      ValueError: the folder exists but does not hold the whole set.
    """
    folder = Path(folder or default_folder(name))
    rows = [
        (split, oddity, i)
        for split, (each, normal) in COUNTS[name].items()
        for oddity, count in [('', normal), *((kind, each) for kind in ODDITIES)]
        for i in range(count)
    ]

    def fill(partial: Path) -> None:
        tables: dict[str, list] = {split: [] for split in COUNTS[name]}
        for split, oddity, i in synthetic.progress(rows):
            frames, shown = video(split, i, oddity)
            path = f'videos/{split}_{oddity or "normal"}_{i:02d}.mp4'
            synthetic.write(partial / path, frames, FPS)
            tables[split].append((path, oddity or 'normal', *(shown or ('', ''))))
        lines = [f'{path}\n' for path, *_ in tables.pop('train')]
        (partial / 'train.txt').write_text(''.join(lines))
        for split, table in tables.items():
            with open(partial / f'{split}.csv', 'w', newline='') as file:
                out = csv.writer(file)
                out.writerow(('path', 'kind', 'first', 'last'))
                out.writerows(table)

    synthetic.make_once(folder, fill, len(rows))
    return folder
