"""To a goal in the other room: a distance that knows the way round the wall and a predictor, both
learned from the same recordings, and episodes that are planned with them.

A row differs from another in where actions are said to lead and in what the cost compares:

- place: the rules; the dot's place, which says nothing of the way round.
- time: the rules; a learned head in which squared distance is time (contrib/commute_time.py).
- learned: the action-conditioned predictor, trained on the same recordings; the same head. All that
  it knows is from pictures and actions.
- untrained: as learned, with random weights of the predictor.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.contrib import training, two_rooms
from jepa_jax.contrib.commute_time import CommuteTime, HeadConfig, Scenes
from jepa_jax.data.npz import load_all
from jepa_jax.data.trajectories import Trajectories
from jepa_jax.errors import ConfigError
from jepa_jax.objectives.action_conditioned import ACLoss, ActionConditioned
from jepa_jax.planning.world_model import ACWorldModel
from jepa_jax.sharding import path_name

ROWS = ('place', 'time', 'learned', 'untrained')
FRAMES = 10  # of a recording
PIECES = 16  # recordings of a layout
PLACES = 13
# pictures uint8 [..., SIZE, SIZE, 3] -> features [..., 1, 2 PLACES^2]
encode = functools.partial(two_rooms.blur, places=PLACES, deviations=(5.0, 2.5), gain=60.0)


def recordings(seed: int, layouts: int, hold: int):
    """Features [L, M, T, 1, D] and actions [L, M, T - 1, 2] of M recordings in each of L
    layouts."""

    def one(key, layout):
        walk = two_rooms.record(key, layout, frames=FRAMES, hold=hold)
        pictures = jax.vmap(lambda place: two_rooms.draw(layout, place))(walk.positions)
        return encode(pictures), walk.actions

    def scene(key):
        key, draw = jax.random.split(key)
        layout = two_rooms.draw_layout(draw)
        return jax.vmap(lambda key: one(key, layout))(jax.random.split(key, PIECES))

    keys = jax.random.split(jax.random.key(seed), layouts)
    return jax.jit(lambda keys: jax.lax.map(scene, keys))(keys)


def distance_objective() -> CommuteTime:
    """What trains the head that the cost looks through."""
    return CommuteTime(HeadConfig(1, 2 * PLACES**2))


def dynamics_objective(width: int, depth: int) -> ActionConditioned:
    """What trains the predictor: single steps from single frames."""
    config = training.predictor_config(PLACES, width, depth, conditioning='adaln')
    loss = ACLoss(exponent=2.0, rollout_steps=1)
    return ActionConditioned(None, config, loss, features=True)


def some_scenes(count: int, key: jax.Array, data) -> Scenes:
    """A batch for the head: all recordings of some layouts."""
    features, _ = data
    return Scenes(features[jax.random.randint(key, (count,), 0, len(features))])


def some_steps(count: int, key: jax.Array, data) -> Trajectories:
    """A batch for the predictor: two frames and the action between them."""
    features, actions = data
    L, M, T = features.shape[:3]
    keys = jax.random.split(key, 3)
    scene, piece, at = (jax.random.randint(k, (count,), 0, n) for k, n in zip(keys, (L, M, T - 1)))
    pairs = features[scene[:, None], piece[:, None], at[:, None] + jnp.arange(2)]
    done = actions[scene, piece, at][:, None]
    return Trajectories(done, None, jnp.ones(count, jnp.int32), features=pairs)


def judge_distance(objective: CommuteTime, params: dict, data) -> str:
    """How the head does on layouts that it has not seen."""
    batch = some_scenes(len(data[0]), jax.random.key(0), data)
    loss, metrics = jax.jit(objective.loss)(params, {}, {}, batch, 0)
    return (
        f'distance, new layouts: loss {loss:.2f}, squared distance of neighbours '
        f'{metrics["step"]:.2f} (best {objective.config.out}), of any two frames '
        f'{metrics["apart"]:.0f}'
    )


def judge_dynamics(objective: ActionConditioned, params: dict, data) -> str:
    """How the predictor does on layouts that it has not seen."""
    batch = some_steps(2048, jax.random.key(0), data)
    health = objective.measure(jax.device_get(jax.jit(objective.health)(params, {}, {}, batch)))
    return (
        f'dynamics, new layouts: squared error {health["health/error_over_copy"]:.4f} of '
        f"copying's, {health['health/shuffled_actions']:.0f} times as large with another "
        "recording's actions"
    )


JUDGES = {'distance': judge_distance, 'dynamics': judge_dynamics}


def learn(parts: Sequence[str], sizes: dict, hold: int, seed: int, keep: str | None) -> dict:
    """Parameters of the parts asked for, `distance` and `dynamics`; says how well each does.

    sizes: `layouts` recorded, `head_steps`, and `steps`, `width`, `depth` of the predictor; keep: a
    file that has them or will.

    Raises:
      ConfigError: the file's were learned with other settings.
    """
    dynamics = dynamics_objective(sizes['width'], sizes['depth'])
    trained = {
        'distance': (distance_objective(), some_scenes, 16, sizes['head_steps'], 1e-3),
        'dynamics': (dynamics, some_steps, 384, sizes['steps'], 2e-3),
    }
    settings = json.dumps({**sizes, 'hold': hold, 'learn_seed': seed})
    kept = {'settings': np.array(settings)}
    if keep and Path(keep).exists():
        kept = load_all(keep)
        if (stored := str(kept.get('settings'))) != settings:
            raise ConfigError(f'--keep {keep}: was learned with {stored}, asked for is {settings}')
    learned, data, held_back = {}, None, recordings(seed + 1, 32, hold)
    for part in parts:
        objective, batch_of, count, steps, lr = trained[part]
        leaves = jax.tree_util.tree_leaves_with_path(objective.abstract)
        names = [f'{part}/{path_name(path)}' for path, _ in leaves]
        if names[0] not in kept:
            data = recordings(seed, sizes['layouts'], hold) if data is None else data
            key = jax.random.key(seed)
            params, _ = training.train(
                objective, functools.partial(batch_of, count),
                (jax.random.fold_in(key, n) for n in itertools.count()), data,
                steps=steps, warmup=max(1, steps // 30), lr=lr, seed=seed, title=part,
            )  # fmt: skip
            kept |= dict(zip(names, jax.tree.leaves(params)))
            if keep:
                np.savez(keep, **kept)
        structure = jax.tree.structure(objective.abstract)
        learned[part] = jax.tree.unflatten(structure, [kept[name] for name in names])
        print(JUDGES[part](objective, learned[part], held_back), flush=True)
    return learned


def worlds_of(
    rows: Sequence[str], sizes: dict, hold: int, seed: int, keep: str | None
) -> tuple[Callable, dict[str, ACWorldModel]]:
    """-> the view of the head, and the worlds of the predictor by row."""
    parts = ('distance', 'dynamics') if 'learned' in rows else ('distance',)
    learned = learn(parts, sizes, hold, seed, keep)
    view = functools.partial(distance_objective().head, learned['distance']['head'])
    dynamics = dynamics_objective(sizes['width'], sizes['depth'])
    params = {'untrained': jax.jit(dynamics.init)(jax.random.key(seed))}
    params |= {'learned': learned['dynamics']} if 'learned' in rows else {}
    return view, {
        row: ACWorldModel(
            each['predictor'], dynamics.nets['predictor'], dynamics.config, 1, 'none', slide=True
        )
        for row, each in params.items()
    }


def loop_of(
    row: str, planner, view: Callable | None, worlds: Mapping[str, Any], hold: int, kick: float
) -> tuple[two_rooms.Loop, str]:
    """-> the loop of a row, and words of it for a table."""
    if row == 'place':
        world, see = functools.partial(two_rooms.TrueRooms, hold=hold), two_rooms.place_of
        view, words = None, 'the rules | of places'
    elif row == 'time':
        world, see = functools.partial(two_rooms.TrueRooms, hold=hold, encode=encode), encode
        words = 'the rules | learned'
    else:
        model = worlds[row]
        world, see, words = lambda layout: model, encode, f'{row} predictor | learned'
    loop = two_rooms.Loop(world, planner, see, hold, within=True, view=view, kick=kick)
    return loop, words


def episode_of(*row) -> tuple[Callable, str]:
    """See loop_of -> key -> distances [T] in pixels from the goal, and words for a table."""
    loop, words = loop_of(*row)

    def episode(key):
        draw, act = jax.random.split(key)
        layout, start, goal = two_rooms.task(draw)
        path = loop.play(layout, start, goal, act)
        return jnp.linalg.norm(path - goal, axis=-1)

    return episode, words
