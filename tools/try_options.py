"""Every option of the action-conditioned predictor, trained and planned with once, on a small
scale.

    python -m tools.try_options [--only NAME,NAME] [--steps N] [--table docs/options.md]

The world is Two Rooms (jepa_jax/contrib/two_rooms.py), so nothing but JAX is needed. The encoder is
frozen and simple: dot and walls blurred and taken at 8 x 8 places, a token a frame. Each option is
one change to the same predictor, trained by the project's own objective and step on the same
recordings from the same seed, and then planned with in closed loop: the goal is `--apart` pixels
away in the same room (goals in the other one: tools/measure_two_rooms.py). Two rows are for
comparison: the rules themselves in place of a predictor, and one that is not trained. The table
says that every option works and what it costs. Success has its 95 % interval (Wilson's) over the
episodes, but each option is trained once: which is best, runs this short and few do not say.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any

from jepa_jax import cli

HOLD = 5  # moves of an action
PLACES = 8  # along an edge, at which the blurred picture is taken
BLUR = (6.0, 3.0)  # deviations for dot and walls, pixels
GAIN = 60.0  # of the dot, whose mass is small beside the walls'


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


class OptionError(ValueError):
    """No such option."""


def encode(pictures):
    """Pictures [..., SIZE, SIZE, 3] uint8 -> features [..., 1, 2 PLACES^2]."""
    from jepa_jax.contrib import two_rooms

    return two_rooms.blur(pictures, PLACES, BLUR, GAIN)


def recordings(seed: int, count: int, frames: int, action_width: int):
    """Features [n, T, 1, D], positions [n, T, 2] and actions [n, T - 1, U]."""
    import jax

    from jepa_jax.contrib import two_rooms

    def one(key):
        if action_width == 2:
            found = two_rooms.record(key, frames=frames, hold=HOLD)
            positions, actions = found.positions, found.actions
        else:  # every move its own
            found = two_rooms.record(key, frames=(frames - 1) * HOLD + 1)
            positions = found.positions[::HOLD]
            actions = found.actions.reshape(frames - 1, action_width)
        pictures = jax.vmap(lambda p: two_rooms.draw(found.layout, p))(positions)
        return encode(pictures), positions, actions

    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=32))(keys)


def objective_of(option: Option, width: int, depth: int):
    """What the option trains."""
    import jax.numpy as jnp

    from jepa_jax.models.ac_predictor import ACPredictorConfig
    from jepa_jax.objectives.action_conditioned import ACLoss, ActionConditioned

    U, V = option.action_width, option.state_width
    settings = {'residual': True, **option.predictor}
    config = ACPredictorConfig(
        2 * PLACES**2, width=width, depth=depth, heads=width // 16, grid=(1, 1),
        action_width=U, state_width=V, action_scale=(0.2,) * U, state_scale=(1 / 32,) * V,
        dtype=jnp.float32, remat='none', **settings,
    )  # fmt: skip
    return ActionConditioned(None, config, ACLoss(**option.loss))


def train(option: Option, objective, steps: int, seed: int, count: int):
    """-> parameters, health on recordings of other layouts, core seconds a step."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jepa_jax import optim
    from jepa_jax.config import OptimConfig
    from jepa_jax.data.trajectories import Trajectories
    from jepa_jax.state import init_state
    from jepa_jax.step import make_step

    U, V = option.action_width, option.state_width
    schedule = OptimConfig(
        batch=64, steps=steps, warmup=max(1, steps // 20), start_lr=1e-4, lr=2e-3, final_lr=1e-5,
        weight_decay=0.01, final_weight_decay=0.01, ipe_scale=1.0,
    )  # fmt: skip
    tx = optim.optimizer(schedule, optim.decay_mask(objective.abstract, objective.unused))
    data = recordings(seed, count, option.frames, U)
    held_back = recordings(seed + 1, 256, option.frames, U)

    def batch(data, rows, prefix: int):
        features, positions, actions = (a[rows] for a in data)
        prefixes = jnp.full(len(rows), prefix, jnp.int32)
        return Trajectories(actions, positions if V else None, prefixes, features=features)

    rng = np.random.default_rng(seed)
    state = jax.jit(functools.partial(init_state, objective, tx))(jax.random.key(seed))
    step = jax.jit(make_step(objective, tx, schedule), donate_argnums=0)
    most = option.frames - objective.settings.rollout_steps
    for n in range(steps):
        rows = rng.integers(len(data[0]), size=schedule.batch)
        state, metrics = step(state, batch(data, rows, int(rng.integers(1, most, endpoint=True))))
        if n == 0:  # compiled
            jax.block_until_ready(metrics)
            begun = time.process_time()
    if not bool(jax.device_get(metrics['finite'])):
        raise FloatingPointError(f'{option.words}: the last step is not finite')
    seconds = (time.process_time() - begun) / max(1, steps - 1)
    health = jax.jit(objective.health)(state.params, {}, batch(held_back, np.arange(256), 1))
    return state.params, objective.measure(jax.device_get(health)), seconds


def world_of(option: Option, objective, params):
    """The predictor as two_rooms.play wants a world."""
    from jepa_jax.planning.world_model import ACWorldModel

    model = ACWorldModel(
        params['predictor'], objective.predictor, objective.config, option.frames - 1, 'sum'
    )
    return lambda layout: model


def episode_of(option: Option, world, apart: float):
    """key -> whether an episode ended within two_rooms.CLOSE of the goal, and its distance from it
    at first and at last. world: see two_rooms.play."""
    import jax
    import jax.numpy as jnp

    from jepa_jax.contrib import two_rooms
    from jepa_jax.planning.cem import CEM, ActionSpace
    from jepa_jax.planning.world_model import Cost

    U = option.action_width
    most = two_rooms.MOST * HOLD / 2**0.5 if U == 2 else two_rooms.MOST / 2**0.5
    space = ActionSpace(U, tuple(range(U)), (most,) * U, (0.7 * most,) * U)
    planner = CEM(space, Cost(option.exponent, 'all'), option.horizon, 128, 4, 16)

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
        given = world, planner, encode, layout, start, goal, play
        path = two_rooms.play(*given, hold=HOLD, steps=8 * HOLD)
        first, last = (jnp.linalg.norm(p - goal) for p in (path[0], path[-1]))
        return two_rooms.succeeds(path, goal), first, last

    return episode


def main(
    only: str,
    steps: int,
    recordings_count: int,
    width: int,
    depth: int,
    episodes: int,
    apart: float,
    seed: int,
    table: str | None,
) -> None:
    """Tries the options and prints the table."""
    import jax
    from scipy import stats

    from jepa_jax import start
    from jepa_jax.contrib.two_rooms import CLOSE, TrueRooms

    names = only.split(',') if only else list(OPTIONS)
    if unknown := [name for name in names if name not in OPTIONS]:
        raise OptionError(f"--only '{unknown[0]}': allowed are {', '.join(OPTIONS)}")
    start.compilation_cache()
    lines = [
        '| option | what it is | error / copying | with shuffled actions | core ms a step '
        '| success | distance, pixels |',
        '|---|---|---|---|---|---|---|',
    ]
    print('\n'.join(lines), flush=True)
    keys = jax.random.split(jax.random.key(seed), episodes)

    def add(name: str, words: str, trained: str, option: Option, world) -> None:
        """Plays the episodes and prints a row."""
        run = jax.jit(functools.partial(jax.lax.map, episode_of(option, world, apart)))
        won, first, last = jax.device_get(run(keys))
        among = stats.binomtest(int(won.sum()), len(won)).proportion_ci(method='wilson')
        lines.append(
            f'| {name} | {words} | {trained} '
            f'| {won.sum()} of {len(won)} ({among.low:.2f} to {among.high:.2f}) '
            f'| {first.mean():.1f} to {last.mean():.1f} |'
        )
        print(lines[-1], flush=True)

    plain = OPTIONS['plain']
    objective = objective_of(plain, width, depth)
    params = jax.jit(objective.init)(jax.random.key(seed))
    rules = functools.partial(TrueRooms, hold=HOLD, encode=encode)
    add('rules', 'no predictor', '| |', plain, rules)
    add('untrained', 'as `plain`', '| |', plain, world_of(plain, objective, params))
    for name in names:
        option = OPTIONS[name]
        objective = objective_of(option, width, depth)
        params, health, seconds = train(option, objective, steps, seed, recordings_count)
        trained = (
            f'{health["health/error_over_copy"]:.2f} | {health["health/shuffled_actions"]:.2f} '
            f'| {1000 * seconds:.1f}'
        )
        add(f'`{name}`', option.words, trained, option, world_of(option, objective, params))
    settings = (
        f'--steps {steps} --width {width} --depth {depth} --episodes {episodes} --seed {seed}'
    )
    settings += f' --only {only}' * bool(only) + f' --apart {apart:g}'
    text = (
        f'Two Rooms, goals up to {apart:g} pixels away in the same room; {depth} blocks of width '
        f'{width}, {steps} steps of 64 pieces, each option trained once. Success: within {CLOSE} '
        "pixels at the end of the episode, with Wilson's 95 % interval over the episodes. Errors "
        f"are of each option's own kind, those of `l2` squares. `python -m tools.try_options "
        f'{settings}`\n'
    )
    print('\n' + text)
    if table:
        Path(table).write_text(text + '\n' + '\n'.join(lines) + '\n')


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--only', default='', metavar='NAME,NAME', help=f'of {", ".join(OPTIONS)}')
    add('--steps', type=int, default=400, metavar='N', help='of training (%(default)s)')
    add('--recordings', type=int, default=2000, metavar='N', dest='recordings_count')
    add('--width', type=int, default=64, help='of the predictor (%(default)s)')
    add('--depth', type=int, default=2, help='(%(default)s)')
    add('--episodes', type=int, default=20, metavar='N', help='planned (%(default)s)')
    add('--apart', type=float, default=20.0, metavar='PIXELS', help='goal from start (%(default)s)')
    add('--seed', type=int, default=0)
    add('--table', metavar='FILE.md', help='write the table')


if __name__ == '__main__':
    sys.exit(cli.run(main, doc=__doc__, config=None, options=_options))
