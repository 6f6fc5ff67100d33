"""The learned distance against numpy, and against how long walks on known maps take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from jepa_jax.contrib.commute_time import LEAST, CommuteTime, HeadConfig, Scenes

SIDE = 4
WALL = {(2, 0), (2, 2), (2, 3)}  # between two rooms, with a door


def test_the_loss_over_all_frames_of_a_scene():
    objective = CommuteTime(HeadConfig(2, 3, width=8, depth=1, out=4))
    features = np.float32(np.random.default_rng(0).normal(size=(2, 3, 4, 2, 3)))
    params = objective.init(jax.random.key(0))
    z = np.asarray(objective.head(params['head'], features), np.float64)
    assert z.shape == (2, 3, 4, 1, 4)
    pieces = z.reshape(6, 4, 4)
    steps = [np.square(b - a).sum() for p in pieces for a, b in zip(p, p[1:])]
    scenes = z.reshape(2, 12, 4)
    volumes = [np.log(np.linalg.det(np.cov(s.T, bias=True) + LEAST * np.eye(4))) for s in scenes]
    apart = [np.square(a - b).sum() for s in scenes for a in s for b in s]
    loss, metrics = objective.loss(params, {}, Scenes(jnp.asarray(features)))
    np.testing.assert_allclose(loss, np.mean(steps) - np.mean(volumes), rtol=1e-4)
    np.testing.assert_allclose(metrics['step'], np.mean(steps), rtol=1e-5)
    np.testing.assert_allclose(metrics['apart'], np.mean(apart), rtol=1e-5)


def test_a_still_scene_has_gradients_and_one_of_few_frames_is_refused():
    objective = CommuteTime(HeadConfig(2, 3, width=8, depth=1, out=4))
    params = objective.init(jax.random.key(0))

    def grads(frames):
        batch = Scenes(jnp.ones((1, 1, frames, 2, 3)))
        return jax.grad(lambda p: objective.loss(p, {}, batch)[0])(params)

    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads(5)))
    with pytest.raises(ValueError, match='1 x 4 frames of a scene: must be more than the 4'):
        grads(4)


def chain() -> np.ndarray:
    return np.eye(8, k=1, dtype=bool) | np.eye(8, k=-1, dtype=bool)


def rooms() -> np.ndarray:
    cells = [(x, y) for x in range(SIDE + 1) for y in range(SIDE) if (x, y) not in WALL]
    return np.array([[abs(a - x) + abs(b - y) == 1 for a, b in cells] for x, y in cells])


def commute_times(graph: np.ndarray) -> np.ndarray:
    """Mean number of steps of a random walk from each place to each and back, by solving for the
    mean number of steps to one place from all others."""
    count = len(graph)
    walk = graph / graph.sum(1, keepdims=True)
    there = np.zeros((count, count))
    for goal in range(count):
        rest = np.delete(np.arange(count), goal)
        there[rest, goal] = np.linalg.solve(
            np.eye(count - 1) - walk[np.ix_(rest, rest)], np.ones(count - 1)
        )
    return there + there.T


def fitted(graph: np.ndarray, out: int) -> np.ndarray:
    """Squared distances of places that are free to be anywhere: a head without layers takes a
    place's number to its point. Recordings are all single steps that there are."""
    count = len(graph)
    objective = CommuteTime(HeadConfig(1, count, depth=0, out=out))
    steps = np.argwhere(graph)
    batch = Scenes(jnp.asarray(np.eye(count, dtype=np.float32)[steps][None, :, :, None]))
    tx = optax.adam(optax.cosine_decay_schedule(0.1, 2000))

    @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
    def fit(params):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: objective.loss(p, {}, batch)[0])(params)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=2000)
        return objective.head(params['head'], jnp.eye(count)[:, None])[:, 0]

    points = np.asarray(fit(objective.init(jax.random.key(0))))
    return np.square(points[:, None] - points).sum(-1)


@pytest.mark.parametrize('make', [chain, rooms])
def test_squared_distances_are_half_the_commute_times(make):
    graph = make()
    expected = commute_times(graph) / 2
    np.testing.assert_allclose(fitted(graph, len(graph) - 1), expected, rtol=2e-3, atol=1e-3)


def test_a_narrow_head_keeps_the_slowest_directions():
    """Those of the generalised eigenvalue problem of steps and places, by scipy."""
    graph = rooms()
    degrees = graph.sum(1)
    share = degrees / degrees.sum()
    steps = 2 * (np.diag(degrees) - graph) / degrees.sum()
    spread = np.diag(share) - np.outer(share, share)
    rest = scipy.linalg.null_space(share[None])  # without the constant
    rates, waves = scipy.linalg.eigh(rest.T @ steps @ rest, rest.T @ spread @ rest)
    points = (rest @ waves)[:, :3] / np.sqrt(rates[:3])
    expected = np.square(points[:, None] - points).sum(-1)
    np.testing.assert_allclose(fitted(graph, 3), expected, rtol=2e-3, atol=1e-3)
