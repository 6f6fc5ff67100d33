"""A small world with laws, and pairs of videos of which one member breaks a law.

Seen from the side, things slide at a steady speed or fly and bounce under gravity. They turn at the
edges of the picture and at a wall, go on behind a screen, and keep their shape and colour. Videos
of `lawful` do nothing else (light and ground may change at once: a harmless event). Of a pair, both
members are drawn from one seed: frames before the event are the same, and are encoded so that none
depends on a later one, so they are equal to the bit when read back.

The kinds of violation each have a variant in plain sight and one out of sight, behind the screen.
Of the control `harmless` the second member changes the light or moves the ground, which happens in
lawful videos too; of the control `lawful` both members are lawful and nothing but chance says which
is called possible.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
from pathlib import Path

import numpy as np
from scipy import ndimage

from jepa_jax.config import cache_root
from jepa_jax.data import synthetic

VERSION = 1  # in the folder's name and in every seed: change it with anything that changes a pixel
SIZE = 32  # pixels, square
FRAMES = 24
FPS = 8
EVENTS = (8, 14)  # frames at which an event may begin, first and last
# training videos by kind of list, and pairs of each kind and variant by set
COUNTS = {'lawful': 1600, 'lawful_few': 48}
PAIRS = {'violations': 48, 'violations_few': 2}
KINDS = ('vanish', 'appear', 'shape', 'colour', 'wall', 'stop', 'teleport')
CONTROLS = ('harmless', 'lawful')
VARIANTS = ('visible', 'occluded')
SHAPES = ('disc', 'square', 'triangle')
COLOURS = (
    (0.95, 0.25, 0.2), (0.2, 0.75, 0.3), (0.25, 0.45, 0.95), (0.95, 0.85, 0.2), (0.95, 0.95, 0.95),
)  # fmt: skip
FOREIGN = (0.85, 0.3, 0.85)  # that no lawful thing has; see jepa_jax.data.cameras
GROUND = ((0.30, 0.32, 0.36), (0.46, 0.44, 0.42))  # the texture's two colours, RGB
SCREEN, WALL = (0.35, 0.2, 0.12), (0.05, 0.05, 0.08)
FLOOR = SIZE - 1.0  # where things that fly bounce
GRAVITY = 0.22  # pixels a frame^2
TRIES = 10_000  # scenes drawn until one has the event that is asked for

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Thing:
    """What moves, frame by frame."""

    place: np.ndarray  # [T, 2] pixels, y and x of its middle
    radius: float
    shape: np.ndarray  # [T] index of SHAPES
    colour: np.ndarray  # [T] index of COLOURS
    drawn: np.ndarray  # [T] bool


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that a video shows."""

    ground: np.ndarray  # [S, S, 3] in 0..1
    things: tuple[Thing, ...]  # the first is what an event happens to
    screen: tuple[float, float] | None  # left and right end, pixels
    wall: float | None  # middle, pixels
    start: tuple  # of the first thing, for `trajectory`
    light: np.ndarray  # [T] factor
    shift: np.ndarray  # [T] whole pixels by which the ground is moved


WALL_HALF, TOP = 1.5, 5  # pixels: half a wall's width; where a screen begins, from above


def lawful(seed: tuple[int, ...]) -> np.ndarray:
    """A lawful video, uint8 `[FRAMES, SIZE, SIZE, 3]`: a pure function of its seed."""
    rng = np.random.default_rng([VERSION, *seed])
    scene = _scene(rng, screen=rng.random() < 0.55, wall=rng.random() < 0.35)
    if not rng.integers(12):
        scene = dataclasses.replace(scene, things=())
    if not rng.integers(6):
        scene = _harmless(scene, int(rng.integers(1, FRAMES)), rng)
    return draw(scene)


def pair(kind: str, variant: str, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The two members of a pair, uint8 `[FRAMES, SIZE, SIZE, 3]`, possible first, and the event's
    frame: before it both are equal. Of kind 'lawful' the two have nothing in common, and the event
    is 0.
    """
    if kind == 'lawful':
        rows = ((2, seed, VARIANTS.index(variant), i) for i in range(2))
        possible, impossible = (lawful(row) for row in rows)
        return possible, impossible, 0
    names = (*KINDS, *CONTROLS)
    rng = np.random.default_rng([VERSION, 1, names.index(kind), VARIANTS.index(variant), seed])
    for _ in range(TRIES):
        if members := _pair(kind, variant == 'occluded', rng):
            *scenes, event = members
            ground = texture(rng)
            before, after = (draw(dataclasses.replace(s, ground=ground)) for s in scenes)
            return before, after, event
    raise RuntimeError(f'no scene for {kind}, {variant} in {TRIES} tries')


def _pair(kind: str, hidden: bool, rng: np.random.Generator) -> tuple[Scene, Scene, int] | None:
    """A lawful scene, the same with an event, and its frame, both without their ground; None if
    the scene has no place for it."""
    wall = kind == 'wall'
    flying = True if kind == 'stop' else None
    scene = _scene(rng, screen=hidden, wall=wall, flying=flying, ground=False)
    thing = scene.things[0]
    if wall:
        through = trajectory(scene.start, scene.wall, solid=False)
        event = int(np.argmax((through != thing.place).any(1)))
        # turns at the wall only once within sight of both members
        if not EVENTS[0] <= event <= EVENTS[1] or not np.ptp(thing.place[:event, 1]) > 4:
            return None
        return scene, _with(scene, dataclasses.replace(thing, place=through)), event
    reach = 1.2 * thing.radius + 0.5  # of a triangle's corner, with its soft edge
    if hidden:
        left, right = scene.screen
        covered = (thing.place[:, 1] - reach > left) & (thing.place[:, 1] + reach < right)
        covered &= thing.place[:, 0] - reach > TOP
        fit = covered
    else:
        fit = np.ones(FRAMES, bool)
    fit = np.flatnonzero(fit)
    fit = fit[(fit >= EVENTS[0]) & (fit <= EVENTS[1])]
    if not len(fit):
        return None
    event = int(rng.choice(fit))
    later = np.arange(FRAMES) >= event
    if hidden:  # it was seen before, and comes out within a second in at least one of the members
        free = ~((thing.place[:, 1] + reach > left) & (thing.place[:, 1] - reach < right))
        if not free[event - 6 : event].any() or not free[event : event + 7].any():
            return None
    if kind == 'harmless':
        return scene, _harmless(scene, event, rng), event
    if kind == 'vanish':
        return scene, _with(scene, dataclasses.replace(thing, drawn=~later)), event
    if kind == 'appear':
        never = _with(scene, dataclasses.replace(thing, drawn=np.zeros(FRAMES, bool)))
        return never, _with(scene, dataclasses.replace(thing, drawn=later)), event
    if kind in ('shape', 'colour'):
        values = getattr(thing, kind)
        count = len(SHAPES if kind == 'shape' else COLOURS)
        other = (values[0] + rng.integers(1, count)) % count
        changed = np.where(later, other, values)
        return scene, _with(scene, dataclasses.replace(thing, **{kind: changed})), event
    if kind == 'stop':
        place = np.where(later[:, None], thing.place[event], thing.place)
        # well above the floor, and moving
        if place[event, 0] > FLOOR - 2 * thing.radius or event + 1 >= FRAMES:
            return None
        moved = dataclasses.replace(thing, place=place)
        return scene, _with(scene, moved), event + 1  # the frame in which it is not where it ought
    jump = np.array([rng.choice([-1, 1]) * rng.uniform(8, 13), 0.0])
    if not hidden and rng.random() < 0.5:
        jump = jump[::-1]
    place = thing.place + jump * later[:, None]
    margin = thing.radius
    after = place[event:]
    if (after < margin).any() or (after > SIZE - margin).any():
        return None
    if hidden and (after[0, 0] - reach < TOP):
        return None
    return scene, _with(scene, dataclasses.replace(thing, place=place)), event


def _with(scene: Scene, thing: Thing) -> Scene:
    return dataclasses.replace(scene, things=(thing, *scene.things[1:]))


def _harmless(scene: Scene, event: int, rng: np.random.Generator) -> Scene:
    """The scene with another light, or its ground moved, from a frame on."""
    later = np.arange(FRAMES) >= event
    if rng.random() < 0.5:
        factor = rng.choice([rng.uniform(0.7, 0.85), rng.uniform(1.15, 1.3)])
        return dataclasses.replace(scene, light=np.where(later, factor, 1.0))
    return dataclasses.replace(scene, shift=np.where(later, int(rng.choice([-3, -2, 2, 3])), 0))


def _scene(
    rng: np.random.Generator,
    *,
    screen: bool,
    wall: bool,
    flying: bool | None = None,
    ground: bool = True,
) -> Scene:
    """A lawful scene with one thing, in three of ten with a second in another lane."""
    where = rng.uniform(13, 19) if wall or screen else None
    half = rng.uniform(7.5, 8.5) if wall else rng.uniform(5.5, 6.5)
    bar = where if wall else None
    things, start = [], None
    flying = rng.random() < 0.4 if flying is None else flying
    for i in range(1 + (rng.random() < 0.3)):
        radius = rng.uniform(3.3, 3.8)
        begin = _begin(rng, radius, bar, flying if i == 0 else False)
        start = start or begin
        things.append(
            Thing(
                trajectory(begin, bar),
                radius,
                np.full(FRAMES, rng.integers(len(SHAPES))),
                np.full(FRAMES, rng.integers(len(COLOURS))),
                np.ones(FRAMES, bool),
            )
        )
    ends = (where - half, where + half) if screen else None
    clouds = texture(rng) if ground else np.zeros((SIZE, SIZE, 3))
    return Scene(clouds, tuple(things), ends, bar, start, np.ones(FRAMES), np.zeros(FRAMES, int))


def _begin(rng: np.random.Generator, radius: float, wall: float | None, flying: bool) -> tuple:
    """Radius, place and speed (y, x) at the first frame, and gravity."""
    while True:
        x = rng.uniform(radius, SIZE - radius)
        if wall is None or abs(x - wall) > radius + WALL_HALF + 0.5:
            break
    speed = rng.choice([-1, 1]) * rng.uniform(1.2, 2.4)
    if flying:
        return radius, (rng.uniform(radius + 1, SIZE / 2), x), (0.0, 0.8 * speed), GRAVITY
    return radius, (rng.uniform(TOP + radius + 1, SIZE - radius), x), (0.0, speed), 0.0


def trajectory(
    start: tuple, wall: float | None, solid: bool = True, frames: int = FRAMES
) -> np.ndarray:
    """Where a thing is in each frame `[frames, 2]` (y, x). It turns at the edges, at the floor if
    there is gravity, and at a wall that is solid."""
    radius, (y, x), (up, along), gravity = start
    low, high = radius, SIZE - radius
    if wall is not None and solid:
        if x < wall:
            high = wall - WALL_HALF - radius
        else:
            low = wall + WALL_HALF + radius
    substeps, places = 8, []
    for _ in range(frames):
        places.append((y, x))
        for _ in range(substeps):
            up += gravity / substeps
            y, x = y + up / substeps, x + along / substeps
            along = abs(along) if x < low else -abs(along) if x > high else along
            up = -abs(up) if gravity and y > FLOOR - radius else up
    return np.array(places)


def texture(rng: np.random.Generator) -> np.ndarray:
    """A cloudy texture between two colours, `[S, S, 3]`."""
    noise = rng.standard_normal((SIZE, SIZE))
    field = sum(ndimage.gaussian_filter(noise, s, mode='wrap') * s for s in (2, 5))
    field = 0.5 + 0.5 * np.tanh(field / field.std())
    dark, light = np.array(GROUND)
    return dark + field[..., None] * (light - dark)


def draw(scene: Scene) -> np.ndarray:
    """uint8 `[T, SIZE, SIZE, 3]`; from behind: ground, wall, things, screen."""
    T = len(scene.light)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    frames = np.stack([np.roll(scene.ground, s, axis=1) for s in scene.shift])

    def paint(alpha: np.ndarray, colour: np.ndarray) -> None:  # [T, S, S], [T, 3] or [3]
        colour = np.broadcast_to(colour, (T, 3))[:, None, None]
        frames[...] += alpha[..., None] * (colour - frames)

    if scene.wall is not None:
        paint(np.clip(WALL_HALF + 0.5 - abs(x - scene.wall), 0, 1)[None], np.array(WALL))
    for thing in reversed(scene.things):
        alpha = np.stack([_cover(thing, t, y, x) for t in range(T)])
        paint(alpha * thing.drawn[:, None, None], np.array((*COLOURS, FOREIGN))[thing.colour])
    if scene.screen is not None:
        left, right = scene.screen
        alpha = np.clip(np.minimum(x - left, right - x) + 0.5, 0, 1) * (y > TOP)
        paint(alpha[None], np.array(SCREEN))
    return np.round(255 * np.clip(frames * scene.light[:, None, None, None], 0, 1)).astype(np.uint8)


def _cover(thing: Thing, t: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Coverage `[S, S]`, 0..1, of a thing in a frame, its edge one pixel soft."""
    dy, dx = y - thing.place[t, 0], x - thing.place[t, 1]
    name, r = SHAPES[thing.shape[t]], thing.radius
    if name == 'disc':
        distance = np.hypot(dy, dx) - r
    elif name == 'square':
        distance = np.maximum(abs(dy), abs(dx)) - 0.88 * r
    else:  # upright
        slope = np.array([-0.5, 0.866])
        distance = np.maximum(dy - 0.7 * r, slope[0] * dy + slope[1] * abs(dx) - 0.6 * r)
    return np.clip(0.5 - distance, 0, 1)


# --- Sets on disk -------------------------------------------------------------------------------


def default_folder(name: str) -> Path:
    """Where a set of COUNTS or PAIRS lies unless told otherwise."""
    return cache_root() / f'{name}-v{VERSION}'


def ensure(kind: str, folder: str | Path = '') -> Path:
    """Makes a set of lawful videos of COUNTS if it is absent and returns its list, `train.txt`.

    Raises:
      ValueError: the folder exists but does not hold the whole set.
    """
    folder, count = Path(folder or default_folder(kind)), COUNTS[kind]
    names = [f'videos/{i:04d}.mp4' for i in range(count)]

    def fill(partial: Path) -> None:
        for i in synthetic.progress(range(count)):
            synthetic.write(partial / names[i], lawful((0, i)), FPS, causal=True)
        (partial / 'train.txt').write_text(''.join(f'{name}\n' for name in names))

    synthetic.make_once(folder, fill, count)
    return folder / 'train.txt'


def ensure_pairs(name: str, folder: str | Path = '') -> Path:
    """Makes a set of pairs of PAIRS if it is absent and returns its table, `pairs.csv`: possible
    and impossible (paths), kind, variant, group (the seed's), event (frame).

    Raises:
      ValueError: the folder exists but does not hold the whole set.
    """
    folder, each = Path(folder or default_folder(name)), PAIRS[name]
    rows = [(k, v, i) for k in (*KINDS, *CONTROLS) for v in VARIANTS for i in range(each)]

    def fill(partial: Path) -> None:
        table = []
        for kind, variant, i in synthetic.progress(rows):
            *members, event = pair(kind, variant, i)
            paths = [f'videos/{kind}_{variant}_{i:03d}_{m}.mp4' for m in range(2)]
            for path, frames in zip(paths, members):
                synthetic.write(partial / path, frames, FPS, causal=True)
            table.append((*paths, kind, variant, f'{kind}_{variant}_{i}', event))
        with open(partial / 'pairs.csv', 'w', newline='') as file:
            out = csv.writer(file)
            out.writerow(('possible', 'impossible', 'kind', 'variant', 'group', 'event'))
            out.writerows(table)

    synthetic.make_once(folder, fill, 2 * len(rows))
    return folder / 'pairs.csv'
