"""How far planners get in Two Rooms: with the rules themselves or a learned model, towards what
looks like the goal or along a learned distance that knows the way round.

    python -m tools.measure_two_rooms [--rows NAME,NAME] [--planner cem|mppi] [--episodes N]

The task is that of reference: world_models §2.2: start and goal in different rooms, 200 moves, a
new plan after every action, a horizon of 90 moves that ends with the episode, the squared distance
summed over its steps as the cost, and the last position counts, within 4.5 pixels of the goal.
Walls and doors lie elsewhere in every episode. An action is --hold equal moves, so the horizon has
so many fewer actions.

Rows differ in where actions are said to lead and in what the cost compares:

- place: the rules; the dot's place, which says nothing of the way round.
- time: the rules; a learned head in which squared distance is time (contrib/commute_time.py).
- learned: the action-conditioned predictor, trained on the same recordings; the same head. All that
  it knows is from pictures and actions.
- untrained: as learned, with random weights of the predictor.

Pictures are seen through a simple frozen encoder: dot and walls blurred, at 13 x 13 places, one
token a frame.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path

from jepa_jax import cli

HORIZON = 90  # moves
FRAMES = 10  # of a recording
PIECES = 16  # recordings of a layout
PLACES, BLUR, GAIN = 13, (5.0, 2.5), 60.0  # see two_rooms.blur
ROWS = ('place', 'time', 'learned', 'untrained')


class MeasureError(ValueError):
    """A setting that cannot be measured with."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of what is learned, beside the seed."""

    layouts: int
    head_steps: int
    steps: int
    width: int
    depth: int


def place_of(picture):
    """The dot's place in a picture [..., SIZE, SIZE, 3] uint8, as features [..., 1, 2]."""
    import jax.numpy as jnp

    dot = picture[..., 0].astype(jnp.float32)
    along = jnp.arange(dot.shape[-1])
    places = [(a * along).sum(-1) / a.sum(-1) for a in (dot.sum(-2), dot.sum(-1))]
    return jnp.stack(places, -1)[..., None, :]


def encode(pictures):
    """Pictures [..., SIZE, SIZE, 3] uint8 -> features [..., 1, 2 PLACES^2]."""
    from jepa_jax.contrib import two_rooms

    return two_rooms.blur(pictures, PLACES, BLUR, GAIN)


def recordings(seed: int, layouts: int, hold: int):
    """Features [L, M, T, 1, D] and actions [L, M, T - 1, 2] of M recordings in each of L
    layouts."""
    import jax

    from jepa_jax.contrib import two_rooms

    def one(key, layout):
        found = two_rooms.record(key, layout, frames=FRAMES, hold=hold)
        pictures = jax.vmap(lambda place: two_rooms.draw(layout, place))(found.positions)
        return encode(pictures), found.actions

    def scene(key):
        key, draw = jax.random.split(key)
        layout = two_rooms.draw_layout(draw)
        return jax.vmap(lambda key: one(key, layout))(jax.random.split(key, PIECES))

    keys = jax.random.split(jax.random.key(seed), layouts)
    return jax.jit(lambda keys: jax.lax.map(scene, keys))(keys)


def distance_objective():
    """What trains the head that the cost looks through."""
    from jepa_jax.contrib.commute_time import CommuteTime, HeadConfig

    return CommuteTime(HeadConfig(1, 2 * PLACES**2))


def dynamics_objective(width: int, depth: int):
    """What trains the predictor: single steps from single frames."""
    import jax.numpy as jnp

    from jepa_jax.models.ac_predictor import ACPredictorConfig
    from jepa_jax.objectives.action_conditioned import ACLoss, ActionConditioned

    config = ACPredictorConfig(
        2 * PLACES**2, width=width, depth=depth, heads=width // 16, grid=(1, 1), action_width=2,
        state_width=0, action_scale=(0.2, 0.2), conditioning='adaln', residual=True,
        dtype=jnp.float32, remat='none',
    )  # fmt: skip
    return ActionConditioned(None, config, ACLoss(exponent=2.0, rollout_steps=1))


def some_scenes(count: int, key, data):
    """A batch for the head: all recordings of some layouts."""
    import jax

    from jepa_jax.contrib.commute_time import Scenes

    features, _ = data
    return Scenes(features[jax.random.randint(key, (count,), 0, len(features))])


def some_steps(count: int, key, data):
    """A batch for the predictor: two frames and the action between them."""
    import jax
    import jax.numpy as jnp

    from jepa_jax.data.trajectories import Trajectories

    features, actions = data
    L, M, T = features.shape[:3]
    keys = jax.random.split(key, 3)
    scene, piece, at = (jax.random.randint(k, (count,), 0, n) for k, n in zip(keys, (L, M, T - 1)))
    pairs = features[scene[:, None], piece[:, None], at[:, None] + jnp.arange(2)]
    done = actions[scene, piece, at][:, None]
    return Trajectories(done, None, jnp.ones(count, jnp.int32), features=pairs)


def train(objective, batch_of, data, steps: int, lr: float, seed: int, title: str) -> dict:
    """-> parameters. batch_of(key, data): a batch."""
    import jax
    from tqdm import tqdm

    from jepa_jax import optim
    from jepa_jax.config import OptimConfig
    from jepa_jax.state import init_state
    from jepa_jax.step import make_step

    schedule = OptimConfig(
        steps=steps, warmup=max(1, steps // 30), start_lr=lr / 20, lr=lr, final_lr=lr / 200,
        weight_decay=0.01, final_weight_decay=0.01, ipe_scale=1.0,
    )  # fmt: skip
    tx = optim.optimizer(schedule, optim.decay_mask(objective.abstract, objective.unused))
    update = make_step(objective, tx, schedule)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, key, data):
        return update(state, batch_of(key, data))

    key = jax.random.key(seed)
    state = jax.jit(functools.partial(init_state, objective, tx))(key)
    bar = tqdm(range(steps), desc=title, unit='step', file=sys.stderr, mininterval=1.0)
    for n in bar:
        state, metrics = step(state, jax.random.fold_in(key, n), data)
        if n % 100 == 0 or n == steps - 1:
            metrics = jax.device_get(metrics)
            bar.set_postfix(loss=f'{metrics["loss"]:.4g}')
            if not metrics['finite']:
                raise FloatingPointError(f'{title}: step {n} is not finite')
    return jax.device_get(state.params)


def judge_distance(objective, params: dict, data) -> str:
    """How the head does on layouts that it has not seen."""
    import jax

    batch = some_scenes(len(data[0]), jax.random.key(0), data)
    loss, found = jax.jit(objective.loss)(params, {}, batch)
    return (
        f'distance, new layouts: loss {loss:.2f}, squared distance of neighbours '
        f'{found["step"]:.2f} (best {objective.config.out}), of any two frames {found["apart"]:.0f}'
    )


def judge_dynamics(objective, params: dict, data) -> str:
    """How the predictor does on layouts that it has not seen."""
    import jax

    batch = some_steps(2048, jax.random.key(0), data)
    found = objective.measure(jax.device_get(jax.jit(objective.health)(params, {}, batch)))
    return (
        f'dynamics, new layouts: squared error {found["health/error_over_copy"]:.4f} of '
        f"copying's, {found['health/shuffled_actions']:.0f} times as large with another "
        "recording's actions"
    )


def learn(parts, sizes: Sizes, hold: int, seed: int, keep: str | None) -> dict[str, dict]:
    """Parameters of the parts asked for, `distance` and `dynamics`; says how well each does.

    keep: a file that has them or will.
    """
    import jax
    import numpy as np

    from jepa_jax.data.npz import load_all
    from jepa_jax.sharding import path_name

    made = {
        'distance': (distance_objective(), some_scenes, 16, sizes.head_steps, 1e-3, judge_distance),
        'dynamics': (
            dynamics_objective(sizes.width, sizes.depth), some_steps, 384, sizes.steps, 2e-3,
            judge_dynamics,
        ),
    }  # fmt: skip
    settings = json.dumps({**dataclasses.asdict(sizes), 'hold': hold, 'learn_seed': seed})
    kept = {'settings': np.array(settings)}
    if keep and Path(keep).exists():
        kept = load_all(keep)
        if (found := str(kept.get('settings'))) != settings:
            raise MeasureError(f'--keep {keep}: was learned with {found}, asked for is {settings}')
    found, data, held_back = {}, None, recordings(seed + 1, 32, hold)
    for name in parts:
        objective, batch_of, count, steps, lr, judge = made[name]
        leaves = jax.tree_util.tree_leaves_with_path(objective.abstract)
        names = [f'{name}/{path_name(path)}' for path, _ in leaves]
        if names[0] not in kept:
            data = recordings(seed, sizes.layouts, hold) if data is None else data
            batches = functools.partial(batch_of, count)
            params = train(objective, batches, data, steps, lr, seed, name)
            kept |= dict(zip(names, jax.tree.leaves(params)))
            if keep:
                np.savez(keep, **kept)
        structure = jax.tree.structure(objective.abstract)
        found[name] = jax.tree.unflatten(structure, [kept[name] for name in names])
        print(judge(objective, found[name], held_back), flush=True)
    return found


def worlds_of(rows, sizes: Sizes, hold: int, seed: int, keep: str | None):
    """-> the view of the head, and the worlds of the predictor by row."""
    import jax

    from jepa_jax.planning.world_model import ACWorldModel

    parts = ('distance', 'dynamics') if 'learned' in rows else ('distance',)
    found = learn(parts, sizes, hold, seed, keep)
    view = functools.partial(distance_objective().head, found['distance']['head'])
    dynamics = dynamics_objective(sizes.width, sizes.depth)
    params = {'untrained': jax.jit(dynamics.init)(jax.random.key(seed))}
    params |= {'learned': found['dynamics']} if 'learned' in rows else {}
    return view, {
        name: ACWorldModel(
            each['predictor'], dynamics.predictor, dynamics.config, 1, 'none', slide=True
        )
        for name, each in params.items()
    }


def row_of(name: str, hold: int, worlds: dict):
    """-> the world of a row, what it sees of pictures, and words for the table."""
    from jepa_jax.contrib.two_rooms import TrueRooms

    if name in worlds:
        return lambda layout: worlds[name], encode, f'{name} predictor | learned'
    if name == 'time':
        known = functools.partial(TrueRooms, hold=hold, encode=encode)
        return known, encode, 'the rules | learned'
    return functools.partial(TrueRooms, hold=hold), place_of, 'the rules | of places'


def main(
    rows: str,
    planner: str,
    hold: int,
    samples: int,
    iterations: int,
    elites: int,
    std: float,
    min_std: float,
    episodes: int,
    seed: int,
    learn_seed: int,
    layouts: int,
    head_steps: int,
    steps: int,
    width: int,
    depth: int,
    keep: str | None,
    kick: float,
) -> None:
    """Learns what the rows need, plays the episodes and prints a table."""
    import jax
    import numpy as np
    from scipy import stats

    from jepa_jax import start
    from jepa_jax.contrib import two_rooms
    from jepa_jax.planning.cem import CEM, MPPI, ActionSpace
    from jepa_jax.planning.world_model import Cost

    names = [name.strip() for name in rows.split(',')]
    if unknown := [name for name in names if name not in ROWS]:
        raise MeasureError(f"--rows '{unknown[0]}': allowed are {', '.join(ROWS)}")
    if hold < 1 or HORIZON % hold or two_rooms.STEPS % hold:
        raise MeasureError(f'--hold {hold}: must divide {HORIZON} and {two_rooms.STEPS}')
    for name, found in (('episodes', episodes), ('layouts', layouts), ('steps', steps)):
        if found < 1:
            raise MeasureError(f'--{name} {found}: must be at least 1')
    start.compilation_cache()
    reach = two_rooms.MOST * hold / 2**0.5
    space = ActionSpace(2, (0, 1), (reach,) * 2, (std * reach,) * 2)
    settings = dict(cost=Cost(2, 'all'), horizon=HORIZON // hold, samples=samples)
    if planner == 'cem':
        solver = CEM(space, iterations=iterations, elites=elites, **settings)
        kind = f'{elites} elites'
    else:
        solver = MPPI(space, iterations=iterations, min_std=min_std / std, **settings)
        kind = f'least deviation {min_std:g}'

    view, worlds = None, {}
    if names != ['place']:
        sizes = Sizes(layouts, head_steps, steps, width, depth)
        view, worlds = worlds_of(names, sizes, hold, learn_seed, keep)
    print(
        '| where actions lead | distance | planner | moves of an action | budget '
        '| success (95 % interval) | near the goal at any time | pixels from it at the end, mean '
        '| core seconds an episode |\n|---|---|---|---|---|---|---|---|---|',
        flush=True,
    )
    for name in names:
        world, see, words = row_of(name, hold, worlds)

        def episode(key, world=world, see=see, view=None if name == 'place' else view):
            draw, act = jax.random.split(key)
            layout, begin, goal = two_rooms.task(draw)
            path = two_rooms.play(
                world,
                solver,
                see,
                layout,
                begin,
                goal,
                act,
                hold=hold,
                within=True,
                view=view,
                kick=kick,
            )
            return path, goal

        run = jax.jit(functools.partial(jax.lax.map, episode))
        begun = time.process_time()
        path, goal = jax.device_get(run(jax.random.split(jax.random.key(seed), episodes)))
        seconds = (time.process_time() - begun) / episodes
        apart = np.linalg.norm(path - goal[:, None], axis=-1)
        won, ever = ((a < two_rooms.CLOSE).sum() for a in (apart[:, -1], apart.min(1)))
        among = stats.binomtest(int(won), episodes).proportion_ci(method='wilson')
        print(
            f'| {words} | {planner} | {hold} | {samples} x {iterations}, {kind}, first deviation '
            f'{std:g} | {won} of {episodes} ({among.low:.2f} to {among.high:.2f}) | {ever} '
            f'| {apart[:, -1].mean():.1f} | {seconds:.1f} |',
            flush=True,
        )


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--rows', default=','.join(ROWS), metavar='NAME,NAME', help='of %(default)s')
    add('--planner', default='cem', choices=('cem', 'mppi'))
    add('--hold', type=int, default=5, metavar='N', help='moves of an action (%(default)s)')
    add('--samples', type=int, default=64, metavar='N', help='(%(default)s)')
    add('--iterations', type=int, default=8, metavar='N', help='(%(default)s)')
    add('--elites', type=int, default=8, metavar='N', help='cem only (%(default)s)')
    add('--std', type=float, default=1.0, metavar='X', help='of the first samples, in longest '
        'actions (%(default)s)')  # fmt: skip
    add('--min-std', type=float, default=0.1, metavar='X', help='mppi: the search never narrows '
        'below, in longest actions (%(default)s)')  # fmt: skip
    add('--kick', type=float, default=0.5, metavar='PIXELS', help='deviation of what throws a dot '
        'back that touches something (%(default)s, as published)')  # fmt: skip
    add('--episodes', type=int, default=20, metavar='N', help='a row (%(default)s)')
    add('--seed', type=int, default=0, help='of the episodes (%(default)s)')
    add('--learn-seed', type=int, default=0, help='of recordings and training (%(default)s)')
    add('--layouts', type=int, default=3000, metavar='N', help='recorded (%(default)s)')
    add('--head-steps', type=int, default=3000, metavar='N', help='of the head (%(default)s)')
    add('--steps', type=int, default=10000, metavar='N', help='of the predictor (%(default)s)')
    add('--width', type=int, default=192, help='of the predictor (%(default)s)')
    add('--depth', type=int, default=2, help='(%(default)s)')
    add('--keep', metavar='FILE.npz', help='learn into this file, or take from it what was')


if __name__ == '__main__':
    sys.exit(cli.run(main, doc=__doc__, config=None, options=_options))
