"""Two Rooms: a dot in a box that a wall with one door divides, in pure JAX.

Needs no simulator and no GL, and a batch of worlds is a vmap. Positions are (x, y) in pixels of the
picture, an action is a move in pixels. A move ends where it first touches the wall or the border;
the dot does not slide. Sizes, the recordings and the task are those of reference: world_models
§2.2; that a move stops at the first contact is our reading, the page does not say.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.models.layers import standardise
from jepa_jax.planning.world_model import Context, Goal, Viewed, WorldModel

Encode = Callable[[jax.Array], jax.Array]  # pictures [..., SIZE, SIZE, 3] -> features [..., N, D]

SIZE = 65  # pixels of the square picture
LOW, HIGH = 5.0, 59.0  # the border on each side: SIZE - 1 - 5
HALF_WALL = 1.5  # the wall is 3 pixels thick
HALF_DOOR = 4.0
DOT = 1.3  # deviation of the dot, pixels
MOST = 1.8  # longest move of a step
CLOSE = 4.5  # pixels from the goal at the end of an episode that count as success
STEPS = 200  # of an episode
GAP = 1e-3  # pixels that are left between the dot and what stopped it
THROUGH = 0.35  # share of recordings that are led through the door


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the wall and its door are."""

    wall: jax.Array  # x of its middle
    door: jax.Array  # y of its middle


def draw_layout(key: jax.Array) -> Layout:
    """A wall within the middle third, a door anywhere in it."""
    wall, door = jax.random.uniform(
        key, (2,), minval=jnp.array([24.0, 12.0]), maxval=jnp.array([40.0, 52.0])
    )
    return Layout(wall, door)


def walls(layout: Layout) -> jax.Array:
    """The two parts of the wall as boxes [2, 4]: least x, y, greatest x, y."""
    left, right = layout.wall - HALF_WALL, layout.wall + HALF_WALL
    below, above = layout.door - HALF_DOOR, layout.door + HALF_DOOR
    return jnp.stack([
        jnp.stack([left, jnp.float32(0), right, below]),
        jnp.stack([left, above, right, jnp.float32(SIZE)]),
    ])  # fmt: skip


def step(layout: Layout, position: jax.Array, action: jax.Array) -> jax.Array:
    """Where a move [2] from a position [2] ends; a move longer than MOST is shortened to it."""
    return _meet(layout, position, action)[0]


def _meet(layout: Layout, position: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where a move ends, and the way back from what it touched: a unit vector along x or y, or
    zeros."""
    length = jnp.linalg.norm(action)
    action = action * jnp.minimum(1.0, MOST / jnp.maximum(length, 1e-9))
    # share of the move at which each coordinate crosses each edge; a still one never does
    inverse = 1 / jnp.where(action == 0, 1e-20, action)
    crossing = (walls(layout).reshape(2, 2, 2) - position) * inverse  # box, low or high, x or y
    enters, leaves = crossing.min(1).max(-1), crossing.max(1).min(-1)
    meets = (enters < leaves) & (leaves > 0)
    stops = jnp.where(meets, jnp.maximum(enters, 0), jnp.inf)
    border = (jnp.where(action > 0, HIGH, LOW) - position) * inverse
    border = jnp.where(action == 0, jnp.inf, border)
    share = jnp.minimum(stops.min(), jnp.maximum(border, 0).min())
    back = GAP / jnp.maximum(jnp.linalg.norm(action), GAP)
    touches = share <= 1
    # the last of its coordinates to cross an edge meets a box
    axis = jnp.where(
        stops.min() < border.min(), crossing.min(1)[stops.argmin()].argmax(), border.argmin()
    )
    normal = jnp.where(touches & (jnp.arange(2) == axis), -jnp.sign(action), 0.0)
    share = jnp.where(touches, jnp.maximum(share - back, 0), 1.0)
    return position + share * action, normal


def throw(
    key: jax.Array, layout: Layout, position: jax.Array, action: jax.Array, kick: float
) -> jax.Array:
    """As `step`, but a dot that touches something is thrown back a little: by normal noise of
    deviation `kick` pixels along it and away from it. The published world does that, with 0.5."""
    position, normal = _meet(layout, position, action)
    noise = kick * jax.random.normal(key, (2,))
    back = jnp.where(normal == 0, noise, jnp.abs(noise) * normal)
    return jnp.where(normal.any(), step(layout, position, back), position)


def walk(layout: Layout, position: jax.Array, actions: jax.Array) -> jax.Array:
    """Positions [T, 2] after each of the moves [T, 2]."""

    def one(position, action):
        position = step(layout, position, action)
        return position, position

    return jax.lax.scan(one, position, actions)[1]


def draw(layout: Layout, position: jax.Array) -> jax.Array:
    """A picture uint8 [SIZE, SIZE, 3]: the dot in the first channel, wall and border in the
    second, nothing in the third."""
    x, y = jnp.meshgrid(jnp.arange(SIZE), jnp.arange(SIZE))
    apart = jnp.square(x - position[0]) + jnp.square(y - position[1])
    dot = jnp.exp(-apart / (2 * DOT**2))
    outside = (jnp.minimum(x, y) < LOW) | (jnp.maximum(x, y) > HIGH)
    wall = (jnp.abs(x - layout.wall) <= HALF_WALL) & (jnp.abs(y - layout.door) > HALF_DOOR)
    picture = jnp.stack([dot, (wall | outside).astype(dot.dtype), jnp.zeros_like(dot)], -1)
    return jnp.round(255 * picture).astype(jnp.uint8)


def blur(
    pictures: jax.Array, places: int, deviations: tuple[float, float], gain: float
) -> jax.Array:
    """A simple frozen encoder: dot and walls blurred, at places x places points, standardised.

    Pictures uint8 [..., SIZE, SIZE, 3] -> features [..., 1, 2 places^2]. deviations: of the blur of
    dot and walls, pixels; gain: of the dot, whose mass is small beside the walls'.
    """
    centres = (jnp.arange(places) + 0.5) * SIZE / places - 0.5
    parts = []
    for channel, (deviation, factor) in enumerate(zip(deviations, (gain, 1.0))):
        weights = jnp.exp(-jnp.square(jnp.arange(SIZE) - centres[:, None]) / (2 * deviation**2))
        weights = weights / weights.sum(1, keepdims=True)
        image = pictures[..., channel].astype(jnp.float32) / 255
        part = jnp.einsum('ay,bx,...yx->...ab', weights, weights, image) * factor
        parts.append(part.reshape(*part.shape[:-2], 1, places**2))
    return standardise(jnp.concatenate(parts, -1))


def place_of(pictures: jax.Array) -> jax.Array:
    """The dot's place in pictures uint8 [..., SIZE, SIZE, 3], as features [..., 1, 2]."""
    dot = pictures[..., 0].astype(jnp.float32)
    along = jnp.arange(SIZE)
    places = [(a * along).sum(-1) / a.sum(-1) for a in (dot.sum(-2), dot.sum(-1))]
    return jnp.stack(places, -1)[..., None, :]


def place(key: jax.Array, layout: Layout, right: jax.Array) -> jax.Array:
    """A free place in the room on the right of the wall, or on the left."""
    margin = HALF_WALL + 1
    low = jnp.where(right, layout.wall + margin, LOW + 1)
    high = jnp.where(right, HIGH - 1, layout.wall - margin)
    return jax.random.uniform(
        key, (2,), minval=jnp.stack([low, jnp.float32(LOW + 1)]),
        maxval=jnp.stack([high, jnp.float32(HIGH - 1)]),
    )  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recording:
    """What was done and seen; a wall may have cut an action short."""

    layout: Layout
    positions: jax.Array  # [T, 2]
    actions: jax.Array  # [T - 1, 2]


def record(
    key: jax.Array, layout: Layout | None = None, *, frames: int = 18, hold: int = 1
) -> Recording:
    """A recording of `frames` frames, `hold` equal moves apart: a direction that wanders, and moves
    of about one pixel. THROUGH of the recordings, if they can, pass the door halfway. Without a
    layout one is drawn; `actions` are the moves of a frame together."""
    keys = jax.random.split(key, 9)
    layout = draw_layout(keys[0]) if layout is None else layout
    count = frames - 1
    side = jnp.where(jax.random.bernoulli(keys[1]), 1.0, -1.0)
    slant = jax.random.uniform(keys[2], minval=-0.4, maxval=0.4)
    along = jnp.stack([side * jnp.cos(slant), jnp.sin(slant)])
    before = jnp.stack([layout.wall, layout.door]) - count * hold / 2 * along
    led = jax.random.bernoulli(keys[3], THROUGH)
    led = led & (before > LOW + 1).all() & (before < HIGH - 1).all()
    start = jnp.where(led, before, place(keys[4], layout, jax.random.bernoulli(keys[5])))
    heading = jax.random.uniform(keys[6], maxval=2 * jnp.pi)
    heading = jnp.where(led, jnp.arctan2(along[1], along[0]), heading)
    # normal turns in place of von Mises ones, which they resemble when they are small
    turns = jnp.where(led, 0.1, 0.4) * jax.random.normal(keys[7], (count,))
    headings = heading + jnp.cumsum(turns)
    sizes = jnp.clip(1 + 0.4 * jax.random.normal(keys[8], (count,)), 0.2, MOST)
    moves = sizes[:, None] * jnp.stack([jnp.cos(headings), jnp.sin(headings)], -1)
    reached = walk(layout, start, jnp.repeat(moves, hold, axis=0))[hold - 1 :: hold]
    return Recording(layout, jnp.concatenate([start[None], reached]), hold * moves)


def moves_of(action: jax.Array, hold: int) -> jax.Array:
    """The `hold` moves [..., hold, 2] of an action [..., U]: of two numbers, their sum, in equal
    parts; of 2 `hold`, one after the other."""
    parts = action.reshape(*action.shape[:-1], -1, 2)
    times = hold // parts.shape[-2]
    return jnp.repeat(parts / times, times, axis=-2)


def task(key: jax.Array) -> tuple[Layout, jax.Array, jax.Array]:
    """A layout, a start and a goal in the other room, each [2]."""
    a, b, c, d = jax.random.split(key, 4)
    layout, right = draw_layout(a), jax.random.bernoulli(b)
    return layout, place(c, layout, right), place(d, layout, ~right)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrueRooms:
    """A world model that is never wrong; see planning.world_model.WorldModel. States are positions,
    an action is `hold` moves, see `moves_of`."""

    layout: Layout
    hold: int = dataclasses.field(default=1, metadata={'static': True})
    # pictures [..., SIZE, SIZE, 3] -> features [..., N, D]; None: the position is the feature
    encode: Encode | None = dataclasses.field(default=None, metadata={'static': True})

    def rollout(self, context: Context, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(sequence):
            moves = moves_of(sequence, self.hold).reshape(-1, 2)
            return walk(self.layout, context.states[-1], moves)[self.hold - 1 :: self.hold]

        positions = jax.vmap(one)(actions)
        if self.encode is None:
            return positions[:, :, None], positions
        pictures = jax.vmap(jax.vmap(lambda p: draw(self.layout, p)))(positions)
        return self.encode(pictures), positions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Until:
    """A world model in which actions after the first `left` arrive at the goal, whatever they are:
    in a cost over all steps they count nothing, so that a horizon can end with the episode."""

    world: WorldModel
    goal: Goal
    left: jax.Array

    def rollout(self, context: Context, actions: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        features, states = self.world.rollout(context, actions)
        counts = (jnp.arange(actions.shape[1]) < self.left)[:, None, None]
        return jnp.where(counts, features, self.goal.features), states


@dataclasses.dataclass(frozen=True)
class Loop:
    """What an episode is made of: look, plan from the picture to the goal's, do the first action
    (`hold` moves), look again.

    As one program an episode is a scan, and many are a vmap of it; from the host every part is a
    program of its own.
    """

    world: Callable[[Layout], WorldModel]  # only one that knows the layout uses it, or the position
    planner: Any
    encode: Encode
    hold: int = 1
    steps: int = STEPS
    # what a plan would do after the end of the episode does not count; for costs over all steps
    within: bool = False
    view: Callable[[jax.Array], jax.Array] | None = None  # of features, what the cost compares
    kick: float = 0.0  # see `throw`; no world model knows of it

    def aim(self, features: jax.Array, goal: jax.Array) -> Goal:
        """What is planned for, from the features of the goal's picture."""
        return Goal(self.view(features) if self.view else features, goal)

    def choose(
        self,
        layout: Layout,
        position: jax.Array,
        features: jax.Array,
        aim: Goal,
        done: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        """The action [U] after `done` others, from the features of a picture."""
        model = self.world(layout)
        model = Viewed(model, self.view) if self.view else model
        if self.within:
            model = Until(model, aim, self.steps // self.hold - done)
        context = Context(features[None], position[None])  # positions are its states
        return self.planner.solve(model, context, aim, key)[0][0]

    def act(self, layout: Layout, position: jax.Array, action: jax.Array, key: jax.Array):
        """Where an action leads."""
        keys = jax.random.split(jax.random.fold_in(key, 1), self.hold)
        for key, move in zip(keys, moves_of(action, self.hold)):
            position = throw(key, layout, position, move, self.kick)
        return position

    def play(self, layout: Layout, start: jax.Array, goal: jax.Array, key: jax.Array) -> jax.Array:
        """An episode -> positions [steps / hold + 1, 2]."""
        aim, count = self.aim(self.encode(draw(layout, goal)), goal), self.steps // self.hold

        def step(position, now):
            key, done = now
            features = self.encode(draw(layout, position))
            action = self.choose(layout, position, features, aim, done, key)
            position = self.act(layout, position, action, key)
            return position, position

        plans = jax.random.split(key, count), jnp.arange(count)
        path = jax.lax.scan(step, start, plans)[1]
        return jnp.concatenate([start[None], path])

    def play_from_host(
        self, layout: Layout, start: jax.Array, goal: jax.Array, key: jax.Array
    ) -> np.ndarray:
        """The same as a program has to be written that has a camera and a robot outside of it:
        pictures and actions go to the host and back at every step."""
        picture = np.asarray(_draw(layout, goal))
        aim, count = _aim(self, _encode(self, picture), goal), self.steps // self.hold
        path = [np.asarray(start)]
        for done, own in enumerate(jax.random.split(key, count)):
            features = _encode(self, np.asarray(_draw(layout, path[-1])))
            action = _choose(self, layout, path[-1], features, aim, done, own)
            path.append(np.asarray(_act(self, layout, path[-1], np.asarray(action), own)))
        return np.stack(path)


_draw = jax.jit(draw)
_aim, _choose, _act = (
    jax.jit(part, static_argnums=0) for part in (Loop.aim, Loop.choose, Loop.act)
)


@functools.partial(jax.jit, static_argnums=0)
def _encode(loop: Loop, picture: jax.Array) -> jax.Array:
    return loop.encode(picture)


def succeeds(path: jax.Array, goal: jax.Array) -> jax.Array:
    """Whether an episode's last position is within CLOSE of the goal."""
    return jnp.linalg.norm(path[..., -1, :] - goal, axis=-1) < CLOSE
