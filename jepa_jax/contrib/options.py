"""Every option of the action-conditioned predictor, to be trained and planned with in Two Rooms.

Each is one change to the same predictor, trained by the project's own objective and step on the
same recordings from the same seed, and then planned with in closed loop to a goal in the same room.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.contrib import training, two_rooms
from jepa_jax.data.trajectories import Trajectories
from jepa_jax.objectives.action_conditioned import ACLoss, ActionConditioned
from jepa_jax.planning.cem import ActionSpace, solver
from jepa_jax.planning.world_model import ACWorldModel, Cost

HOLD = 5  # moves of an action
PLACES = 8
BATCH = 64  # pieces a step
# pictures uint8 [..., SIZE, SIZE, 3] -> features [..., 1, 2 PLACES^2]
encode = functools.partial(two_rooms.blur, places=PLACES, deviations=(6.0, 3.0), gain=60.0)


@dataclasses.dataclass(frozen=True)
class Option:
    """What differs from the first row."""

    words: str  # for the table
    frames: int = 4  # of a piece: the longest context is one less
    action_width: int = 2  # 10: the five moves of an action one by one
    state_width: int = 0  # 2: the dot's place
    predictor: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss: dict[str, Any] = dataclasses.field(default_factory=dict)
    horizon: int = 2
    exponent: int = 2  # of the planner's cost


OPTIONS = {
    'plain': Option('2 rollout steps after one frame, gradients pass, L1, action tokens'),
    'rollout-1': Option('no rollout', loss={'rollout_steps': 1}),
    'rollout-3': Option('3 rollout steps', loss={'rollout_steps': 3}),
    'prefix-random': Option('rollouts after one or more true frames', loss={'prefix': 'random'}),
    'stop-gradient': Option(
        'no gradient through a prediction into the one before', loss={'stop_gradient': True}
    ),
    'l2': Option('half the squared error', loss={'exponent': 2.0}),
    'cost-l1': Option('L1 as the cost of the planner', exponent=1),
    'adaln': Option('AdaLN conditioning', predictor={'conditioning': 'adaln'}),
    'whole': Option('features predicted, not their change', predictor={'residual': False}),
    'states': Option('shown the place of the dot, width 2', state_width=2),
    'actions-10': Option('actions of width 10: five moves', action_width=10),
    'context-2': Option('pieces of 3 frames', frames=3),
    'context-7': Option('pieces of 8 frames', frames=8, horizon=3),
}


def recordings(seed: int, count: int, frames: int, action_width: int):
    """Features [n, T, 1, D], positions [n, T, 2] and actions [n, T - 1, U]."""

    def one(key):
        if action_width == 2:
            walk = two_rooms.record(key, frames=frames, hold=HOLD)
            positions, actions = walk.positions, walk.actions
        else:  # every move its own
            walk = two_rooms.record(key, frames=(frames - 1) * HOLD + 1)
            positions = walk.positions[::HOLD]
            actions = walk.actions.reshape(frames - 1, action_width)
        pictures = jax.vmap(lambda place: two_rooms.draw(walk.layout, place))(positions)
        return encode(pictures), positions, actions

    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=32))(keys)


def objective_of(option: Option, width: int, depth: int) -> ActionConditioned:
    """What the option trains."""
    config = training.predictor_config(
        PLACES, width, depth, action_width=option.action_width, state_width=option.state_width,
        **option.predictor,
    )  # fmt: skip
    return ActionConditioned(None, config, ACLoss(**option.loss), features=True)


def train(option: Option, objective: ActionConditioned, steps: int, seeds: range, count: int):
    """As many trainings as seeds, all at once on the recordings of the first -> for each parameters
    and health on recordings of other layouts; core seconds that a step of one takes."""
    seed, many = seeds[0], len(seeds) > 1

    def batch_of(choice, data) -> Trajectories:
        rows, prefix = choice
        features, positions, actions = (a[rows] for a in data)
        prefixes = jnp.full(len(rows), prefix, jnp.int32)
        states = positions if option.state_width else None
        return Trajectories(actions, states, prefixes, features=features)

    def choices(seed: int):
        rng, most = np.random.default_rng(seed), option.frames - objective.settings.rollout_steps
        while True:
            yield rng.integers(count, size=BATCH), rng.integers(1, most, endpoint=True)

    def together():
        for several in zip(*map(choices, seeds)):
            yield tuple(np.stack(part) for part in zip(*several))

    shape = option.frames, option.action_width
    params, seconds = training.train(
        objective, batch_of, together() if many else choices(seed), recordings(seed, count, *shape),
        steps=steps, warmup=max(1, steps // 20), lr=2e-3, seed=seeds if many else seed,
        title=option.words,
    )  # fmt: skip
    held_back = batch_of((np.arange(256), 1), recordings(seed + 1, 256, *shape))
    health = jax.jit(lambda params: objective.health(params, {}, {}, held_back))
    trained = [params]
    if many:
        trained = [jax.tree.map(lambda a, i=i: a[i], params) for i in range(len(seeds))]
    judged = [objective.measure(jax.device_get(health(each))) for each in trained]
    return list(zip(trained, judged)), seconds / len(seeds)


def world_of(
    option: Option, objective: ActionConditioned, params: dict, slide: bool = False
) -> Callable:
    """The predictor as two_rooms.Loop takes a world. slide: each prediction from one frame."""
    frames = 1 if slide else option.frames - 1
    model = ACWorldModel(
        params['predictor'], objective.nets['predictor'], objective.config, frames, 'sum',
        slide=slide,
    )  # fmt: skip
    return lambda layout: model


def planner_of(option: Option, name: str, samples: int, iterations: int, horizon: int, elites: int):
    """A planner, a key of planning.cem.PLANNERS, for the actions of an option."""
    U = option.action_width
    most = two_rooms.MOST * (HOLD if U == 2 else 1) / 2**0.5
    space = ActionSpace(U, tuple(range(U)), (most,) * U, (0.7 * most,) * U)
    return solver(
        name, space, Cost(option.exponent, 'all'), samples=samples, iterations=iterations,
        horizon=horizon, elites=elites,
    )  # fmt: skip


STEPS = 8  # plans of an episode


def episode_of(option: Option, world: Callable, apart: float, planner=None) -> Callable:
    """key -> whether an episode ended within two_rooms.CLOSE of the goal, and its distance from it
    at first and at last. world: see two_rooms.Loop; apart: pixels from start to goal; planner:
    None: CEM as for the table of options."""
    planner = planner or planner_of(option, 'cem', 128, 4, option.horizon, 16)

    def episode(key):
        draw, play = jax.random.split(key)
        layout, start, _ = two_rooms.task(draw)
        # towards the goal, as far as the room goes
        room = jnp.where(start[0] > layout.wall, layout.wall + 3, two_rooms.LOW + 1)
        end = jnp.where(start[0] > layout.wall, two_rooms.HIGH - 1, layout.wall - 3)
        angle = jax.random.uniform(play, maxval=2 * jnp.pi)
        goal = start + apart * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        low = jnp.stack([room, jnp.float32(two_rooms.LOW + 1)])
        goal = jnp.clip(goal, low, jnp.stack([end, jnp.float32(two_rooms.HIGH - 1)]))
        loop = two_rooms.Loop(world, planner, encode, HOLD, STEPS * HOLD)
        path = loop.play(layout, start, goal, play)
        first, last = (jnp.linalg.norm(place - goal) for place in (path[0], path[-1]))
        return two_rooms.succeeds(path, goal), first, last

    return episode
