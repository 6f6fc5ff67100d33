"""Figures of merit of an energy, on a world where the right answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
from test_cem import Point

from jepa_jax.planning import energy
from jepa_jax.planning.world_model import Context, Cost, Goal


def episodes(actions: np.ndarray, place: np.ndarray) -> tuple[Context, Goal]:
    """Points at the origin; the features of the goal are `place`."""
    zeros = jnp.zeros((len(actions), 1, 2))
    return Context(zeros[:, :, None], zeros), Goal(jnp.asarray(place)[:, None])


def judge(actions: np.ndarray, place: np.ndarray) -> dict[str, np.ndarray]:
    return energy.judge_actions(
        Point(), *episodes(actions, place), jnp.asarray(actions), jax.random.key(0),
        cost=Cost(2), axes=(0, 1), samples=64,
    )  # fmt: skip


def test_an_energy_that_knows_the_action_and_one_that_does_not():
    actions = np.float32(np.random.default_rng(0).uniform(-0.07, 0.07, (20, 2)))
    result = judge(actions, actions)
    np.testing.assert_allclose(result['energy'], 0, atol=1e-12)
    np.testing.assert_allclose(result['still'], np.square(actions).mean(1), rtol=1e-5)
    assert (result['rank'] == 1).all() and result['sign'].all()
    assert (result['order'] > 0.999).all()  # here energy is the distance itself, squared
    wrong = judge(actions, -actions)
    assert not wrong['sign'].any() and wrong['rank'].mean() < 0.5
    assert wrong['order'].mean() < 0


def test_landscape_is_the_energy_of_each_pair(tmp_path):
    values = np.linspace(-1, 1, 5)
    context, goal = (
        jax.tree.map(lambda a: a[0], e) for e in episodes(*[np.float32([[0.5, -1]])] * 2)
    )
    result = energy.landscape(
        Point(), context, goal, Cost(2), axes=(0, 1), values=values, around=np.zeros(2)
    )
    expected = [[((x - 0.5) ** 2 + (y + 1) ** 2) / 2 for y in values] for x in values]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
    path = tmp_path / 'landscape.png'
    marks = {'true action': np.float32([0.5, -1]), 'planned': np.float32([3, 0])}
    energy.draw_landscape(result, values, (0, 1), path, title='a title', marks=marks)
    assert path.stat().st_size > 10_000
