"""How far a planner gets in Two Rooms with a model that is never wrong: the rules themselves.

    python -m tools.measure_two_rooms [--planner cem|mppi] [--hold N] [--min-std X] [--episodes N]

The task is that of reference: world_models §2.2: start and goal in different rooms, 200 moves, a
new plan after every action, a horizon of 90 moves that ends with the episode, the squared distance
summed over its steps as the cost, and the last position counts, within 4.5 pixels of the goal. An
action is --hold equal moves, so the horizon has so many fewer actions. Features are the dot's
place, which says nothing of the way round. What is missed here is missed by the planner.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time

from jepa_jax import cli

HORIZON = 90  # moves


class MeasureError(ValueError):
    """A setting that cannot be measured with."""


def place_of(picture):
    """The dot's place in a picture [..., SIZE, SIZE, 3] uint8, as features [..., 1, 2]."""
    import jax.numpy as jnp

    dot = picture[..., 0].astype(jnp.float32)
    along = jnp.arange(dot.shape[-1])
    places = [(a * along).sum(-1) / a.sum(-1) for a in (dot.sum(-2), dot.sum(-1))]
    return jnp.stack(places, -1)[..., None, :]


def main(
    planner: str,
    hold: int,
    samples: int,
    iterations: int,
    elites: int,
    std: float,
    min_std: float,
    episodes: int,
    seed: int,
) -> None:
    """Plays the episodes side by side and prints how they ended, as a row of a table."""
    import jax
    import numpy as np
    from scipy import stats

    from jepa_jax.planning.cem import CEM, MPPI, ActionSpace
    from jepa_jax.planning.world_model import Cost
    from jepa_jax.sims import two_rooms

    if hold < 1 or HORIZON % hold or two_rooms.STEPS % hold:
        raise MeasureError(f'--hold {hold}: must divide {HORIZON} and {two_rooms.STEPS}')
    reach = two_rooms.MOST * hold / 2**0.5
    space = ActionSpace(2, (0, 1), (reach,) * 2, (std * reach,) * 2)
    settings = dict(cost=Cost(2, 'all'), horizon=HORIZON // hold, samples=samples)
    if planner == 'cem':
        solver = CEM(space, iterations=iterations, elites=elites, **settings)
    else:
        solver = MPPI(space, iterations=iterations, min_std=min_std / std, **settings)

    @jax.jit
    @jax.vmap
    def play(key):
        draw, act = jax.random.split(key)
        layout, start, goal = two_rooms.task(draw)
        world = functools.partial(two_rooms.TrueRooms, hold=hold)
        path = two_rooms.play(
            world, solver, place_of, layout, start, goal, act, hold=hold, within=True
        )
        return path, goal

    begun = time.process_time()
    path, goal = jax.device_get(play(jax.random.split(jax.random.key(seed), episodes)))
    seconds = time.process_time() - begun
    apart = np.linalg.norm(path - goal[:, None], axis=-1)
    won, ever = ((a < two_rooms.CLOSE).sum() for a in (apart[:, -1], apart.min(1)))
    among = stats.binomtest(int(won), episodes).proportion_ci(method='wilson')
    kind = f'{elites} elites' if planner == 'cem' else f'least deviation {min_std:g}'
    print(
        f'| {planner} | {hold} | {samples} x {iterations}, {kind}, first deviation {std:g} '
        f'| {won} of {episodes} ({among.low:.2f} to {among.high:.2f}) | {ever} '
        f'| {apart[:, -1].mean():.1f} | {seconds:.0f} |'
    )


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--planner', default='cem', choices=('cem', 'mppi'))
    add('--hold', type=int, default=1, metavar='N', help='moves of an action (%(default)s)')
    add('--samples', type=int, default=200, metavar='N')
    add('--iterations', type=int, default=20, metavar='N')
    add('--elites', type=int, default=20, metavar='N', help='cem only')
    add('--std', type=float, default=1.0, metavar='X', help='of the first samples, in longest '
        'actions (%(default)s)')  # fmt: skip
    add('--min-std', type=float, default=0.1, metavar='X', help='mppi: the search never narrows '
        'below, in longest actions (%(default)s)')  # fmt: skip
    add('--episodes', type=int, default=20, metavar='N')
    add('--seed', type=int, default=0)


if __name__ == '__main__':
    sys.exit(cli.run(main, doc=__doc__, config=None, options=_options))
