"""What may differ from one simulated scene to another, and the ranges that scenes are drawn from.

SCENES names the kinds. `seen` and `unseen` have no colour, texture, shape, size or light in common;
cameras are drawn from the same range in both, which is stated here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jepa_jax.errors import SimError

Colour = tuple[float, float, float]
Span = tuple[float, float]

SHAPES = ('box', 'cylinder', 'bottle', 'plus')
TEXTURES = ('wood', 'checks', 'stripes', 'grain', 'dots', 'waves')  # '': none
SIDE = 64  # pixels of a texture's edge


@dataclasses.dataclass(frozen=True)
class Distractor:
    """Something on the table that nobody touches and that nothing touches: it goes round in
    circles, or stands."""

    shape: str = 'cylinder'
    rgb: Colour = (0.2, 0.7, 0.3)
    texture: str = ''
    scale: float = 1.0  # of the sides of the cube
    place: tuple[float, float] = (0.70, 0.30)  # metres, the middle of its circle on the table
    radius: float = 0.0  # metres
    period: float = 4.0  # seconds of a round
    phase: float = 0.0  # radians, where it is at first

    def at(self, seconds: float) -> tuple[float, float]:
        """Where it is after so many seconds, metres."""
        angle = self.phase + 2 * math.pi * seconds / self.period
        x, y = self.place
        return x + self.radius * math.cos(angle), y + self.radius * math.sin(angle)


@dataclasses.dataclass(frozen=True)
class Variation:
    """What may differ from one scene to another, for measuring how well a model generalises."""

    cube_rgb: Colour = (0.85, 0.10, 0.10)
    cube_scale: float = 1.0  # of its three sides
    light: float = 1.0  # brightness of lamp and surroundings
    camera_turn: float = 0.0  # degrees about the vertical through the middle of the workspace
    camera_lift: float = 0.0  # degrees up, as seen from there
    cube_shape: str = 'box'
    cube_texture: str = ''
    table_rgb: Colour = (1.0, 1.0, 1.0)  # its texture's colours are multiplied with
    table_texture: str = 'wood'
    # metres that the lamp stands aside of straight above, for one of height: where shadows fall
    lamp: tuple[float, float] = (0.0, 0.0)
    distractors: tuple[Distractor, ...] = ()
    # standard deviation, of 255, of what the sensor adds to every value of every picture: a camera
    # in poor light
    noise: float = 0.0

    def __post_init__(self):
        things = {'': self} | {f'distractors[{i}].': d for i, d in enumerate(self.distractors)}
        for where, thing in things.items():
            _in_range(where, thing)
        for name in ('cube_shape', 'cube_texture', 'table_texture'):
            _among(name, getattr(self, name))
        for where, thing in list(things.items())[1:]:
            _among(f'{where}shape', thing.shape)
            _among(f'{where}texture', thing.texture)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Variation:
        """A scene that differs from the standard one in everything that is a number or a colour,
        moderately."""
        hue = rng.uniform(0, 6)
        rgb = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0.08, 0.9)
        return cls(
            tuple(rgb.tolist()),
            float(rng.uniform(0.85, 1.15)),
            float(rng.uniform(0.7, 1.3)),
            float(rng.uniform(-12, 12)),
            float(rng.uniform(-6, 6)),
        )


RANGES: dict[str, Span] = {
    'cube_scale': (0.6, 1.3),  # the open fingers take 8 cm, also from a turned cube
    'light': (0.1, 2.0),
    'camera_turn': (-180.0, 180.0),
    'camera_lift': (-20.0, 40.0),
    'lamp': (-1.5, 1.5),
    'noise': (0.0, 127.0),
    'scale': (0.3, 2.0),
    'radius': (0.0, 0.3),
    'period': (0.5, 100.0),
    'cube_rgb': (0.0, 1.0),
    'table_rgb': (0.0, 1.0),
    'rgb': (0.0, 1.0),
}
LENGTHS = {'cube_rgb': 3, 'table_rgb': 3, 'rgb': 3, 'lamp': 2}


def _in_range(where: str, thing: Variation | Distractor) -> None:
    for name in (f.name for f in dataclasses.fields(thing) if f.name in RANGES):
        (low, high), value = RANGES[name], getattr(thing, name)
        if value is None:
            continue
        length = LENGTHS.get(name)
        numbers = value if length else (value,)
        if len(numbers) != (length or 1) or not all(low <= x <= high for x in numbers):
            words = f'{length} numbers ' * bool(length) + f'from {low} to {high}'
            raise SimError(f'variation {where}{name} {value}: must be {words}')


def _among(name: str, value: str) -> None:
    allowed = SHAPES if name.endswith('shape') else ('', *TEXTURES)
    if value not in allowed:
        raise SimError(f"variation {name} '{value}': allowed are {', '.join(map(repr, allowed))}")


STANDARD = Variation()


def texture(name: str) -> np.ndarray:
    """Grey pixels uint8 [SIDE, SIDE, 3] that a colour is multiplied with."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    if name == 'checks':
        light = (x < 0.5) ^ (y < 0.5)
    elif name == 'stripes':
        light = x < 0.5
    elif name == 'dots':
        light = np.hypot(x - 0.5, y - 0.5) > 0.3
    elif name == 'waves':
        light = 0.5 + 0.5 * np.sin(2 * np.pi * (x + 0.15 * np.sin(2 * np.pi * y)))
    elif name == 'grain':  # smooth noise that repeats
        rng, light = np.random.default_rng(0), np.zeros((SIDE, SIDE))
        for _ in range(24):
            u, v = rng.integers(-5, 6, 2)
            light += np.cos(2 * np.pi * (u * x + v * y + rng.random()))
        light = (light - light.min()) / np.ptp(light)
    else:
        raise ValueError(name)
    grey = np.round(255 * (0.55 + 0.45 * np.asarray(light, float))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


@dataclasses.dataclass(frozen=True)
class Range:
    """What scenes of a kind are drawn from. A span of hues runs from 0 (red) over 2 (green) and 4
    (blue) to 6 (red)."""

    hues: tuple[Span, ...]  # of the cube and of what stands about
    table_hues: tuple[Span, ...]
    shapes: tuple[str, ...]
    textures: tuple[str, ...]
    scales: tuple[Span, ...]  # of the cube
    lights: tuple[Span, ...]
    tilts: Span  # how far aside the lamp stands, metres for one of height
    distractors: tuple[int, int]  # fewest, most
    camera_turn: float = 8.0  # degrees, at most to either side
    camera_lift: float = 4.0
    noises: Span = (0.0, 0.0)

    def draw(self, rng: np.random.Generator) -> Variation:
        lamp = self.lamp(rng)
        things = tuple(
            self.distractor(rng, corner)
            for corner in rng.permutation(len(CORNERS))[
                : rng.integers(*self.distractors, endpoint=True)
            ]
        )
        return Variation(
            cube_rgb=_colour(rng, self.hues, (0.75, 1.0), (0.6, 0.95)),
            cube_scale=_of(rng, self.scales),
            camera_turn=float(rng.uniform(-self.camera_turn, self.camera_turn)),
            camera_lift=float(rng.uniform(-self.camera_lift, self.camera_lift)),
            cube_shape=str(rng.choice(self.shapes)),
            cube_texture=str(rng.choice(self.textures)),
            table_rgb=_colour(rng, self.table_hues, (0.15, 0.5), (0.45, 0.9)),
            table_texture=str(rng.choice(self.textures)),
            distractors=things,
            # of a generator of its own: the same scenes, with noise and without
            noise=float(rng.spawn(1)[0].uniform(*self.noises)),
            **lamp,
        )

    def lamp(self, rng: np.random.Generator) -> dict:
        """`light` and `lamp` of a scene."""
        angle, tilt = rng.uniform(0, 2 * math.pi), rng.uniform(*self.tilts)
        return {
            'light': _of(rng, self.lights),
            'lamp': (float(tilt * math.cos(angle)), float(tilt * math.sin(angle))),
        }

    def distractor(self, rng: np.random.Generator, corner: int) -> Distractor:
        """Two of three move."""
        low, high = CORNERS[corner]
        return Distractor(
            shape=str(rng.choice(self.shapes)),
            rgb=_colour(rng, self.hues, (0.6, 1.0), (0.4, 0.95)),
            texture=str(rng.choice(self.textures)),
            scale=float(rng.uniform(0.7, 1.4)),
            place=tuple(float(x) for x in rng.uniform(low, high)),
            radius=float(rng.uniform(0.02, 0.06)) if rng.random() < 2 / 3 else 0.0,
            period=float(rng.uniform(2, 8)),
            phase=float(rng.uniform(0, 2 * math.pi)),
        )


# metres: low and high corner of where the circles of what stands about have their middle, aside of
# where the cube may lie
CORNERS = (
    ((0.25, 0.30), (0.50, 0.42)),
    ((0.55, 0.30), (0.72, 0.40)),
    ((0.25, -0.45), (0.45, -0.32)),
    ((0.52, -0.45), (0.72, -0.32)),
    ((0.74, -0.20), (0.82, 0.20)),
)

SEEN = Range(
    hues=((-0.8, 0.9), (2.9, 4.6)),  # reds and yellows, blues
    table_hues=((0.0, 1.5), (3.5, 4.3)),
    shapes=('box', 'cylinder'),
    textures=('', 'wood', 'checks', 'stripes', 'grain'),
    scales=((0.85, 1.1),),
    lights=((0.7, 1.15),),
    tilts=(0.0, 0.35),
    distractors=(2, 3),
)
UNSEEN = Range(
    hues=((1.2, 2.6),),  # greens
    table_hues=((2.0, 3.0), (4.8, 5.6)),  # greens, purples
    shapes=('bottle', 'plus'),
    textures=('dots', 'waves'),
    scales=((0.72, 0.8), (1.15, 1.25)),
    lights=((0.45, 0.6), (1.25, 1.4)),
    tilts=(0.45, 0.7),
    distractors=(3, 4),
)
SEEN_DARK = dataclasses.replace(SEEN, noises=(35.0, 50.0))
UNSEEN_DARK = dataclasses.replace(UNSEEN, noises=(50.0, 60.0))


def _of(rng: np.random.Generator, spans: tuple[Span, ...]) -> float:
    """A number from one of some spans, long ones more often."""
    lengths = np.array([high - low for low, high in spans])
    return float(rng.uniform(*spans[rng.choice(len(spans), p=lengths / lengths.sum())]))


def _colour(rng: np.random.Generator, hues: tuple[Span, ...], full: Span, bright: Span) -> Colour:
    """full: from 0, grey, to 1; bright: of the strongest of the three."""
    hue, saturation, value = _of(rng, hues), rng.uniform(*full), rng.uniform(*bright)
    pure = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return tuple((value * (1 - saturation * (1 - pure))).tolist())


Pair = tuple[Variation, Variation]  # a scene, and what its goal images show


def _alike(
    draw: Callable[[np.random.Generator], Variation],
) -> Callable[[np.random.Generator], Pair]:
    """Scenes whose goal images show them as they are."""

    def pair(rng: np.random.Generator) -> Pair:
        drawn = draw(rng)
        return drawn, drawn

    return pair


def _relit(rng: np.random.Generator) -> Pair:
    drawn = UNSEEN.draw(rng)
    return drawn, dataclasses.replace(drawn, **UNSEEN.lamp(rng))


def _moderate_dark(rng: np.random.Generator) -> Variation:
    return dataclasses.replace(Variation.draw(rng), noise=float(rng.uniform(20, 30)))


# kind of scenes -> how one is drawn, with the scene that its goal images show
SCENES: dict[str, Callable[[np.random.Generator], Pair]] = {
    'standard': _alike(lambda rng: STANDARD),
    # colour and size of the cube, brightness, a camera within 12 degrees
    'moderate': _alike(Variation.draw),
    'seen': _alike(SEEN.draw),  # of the range that recordings are drawn from
    'unseen': _alike(UNSEEN.draw),  # nothing of which recordings have
    'unseen_relit': _relit,  # the same, goal images under another lamp
    # those of seen and of unseen, by a camera that adds noise to what it sees, in the latter more
    'seen_dark': _alike(SEEN_DARK.draw),
    'unseen_dark': _alike(UNSEEN_DARK.draw),
    'moderate_dark': _alike(_moderate_dark),
}
