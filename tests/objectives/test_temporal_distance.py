"""The learned distance against all pairs by numpy, and against shortest paths on maps where what
looks near is far."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import sparse, stats
from scipy.sparse.csgraph import dijkstra

from jepa_jax.objectives.temporal_distance import HeadConfig, Scenes, TemporalDistance

SIDE = 7
WALL = {(3, y) for y in range(SIDE) if y != 1}  # between two rooms, with a door


def test_the_loss_over_all_pairs():
    objective = TemporalDistance(HeadConfig(2, 3, width=8, depth=1, out=4), bound=7.0)
    features = np.float32(np.random.default_rng(0).normal(size=(2, 3, 4, 2, 3)))
    params = objective.init(jax.random.key(0))
    z = np.asarray(objective.head(params['head'], features), np.float64)
    assert z.shape == (2, 3, 4, 1, 4)
    apart, excess = [], []
    for scene in z.reshape(2, 12, 4):
        apart += [np.square(a - b).sum() for a in scene for b in scene]
    for piece in z.reshape(6, 4, 4):
        steps = np.linalg.norm(np.diff(piece, axis=0), axis=-1)
        excess += [max(0.0, step - 1) ** 2 for step in steps]
    assert 0 < np.mean(np.array(excess) > 0) < 1
    loss, found = objective.loss(params, {}, Scenes(jnp.asarray(features)))
    np.testing.assert_allclose(loss, 7 * np.mean(excess) - np.mean(apart), rtol=1e-5)
    np.testing.assert_allclose(found['apart'], np.sqrt(np.mean(apart)), rtol=1e-5)
    np.testing.assert_allclose(found['excess'], np.mean(excess), rtol=1e-4)
    still = Scenes(jnp.ones((1, 1, 3, 2, 3)))  # nothing moves: no NaN
    grads = jax.grad(lambda p: objective.loss(p, {}, still)[0])(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def rooms() -> tuple[np.ndarray, np.ndarray]:
    """Numbers of steps between free cells, and random walks over them [1, 200, 12]."""
    cells = [(x, y) for x in range(SIDE) for y in range(SIDE) if (x, y) not in WALL]
    graph = np.array([[abs(a - x) + abs(b - y) == 1 for a, b in cells] for x, y in cells])
    rng, walks = np.random.default_rng(0), []
    for _ in range(200):
        walk = [rng.integers(len(cells))]
        for _ in range(11):
            walk.append(rng.choice(np.flatnonzero(graph[walk[-1]])))
        walks.append(walk)
    return dijkstra(sparse.csr_matrix(graph), unweighted=True), np.array(walks)[None]


def chain() -> tuple[np.ndarray, np.ndarray]:
    numbers = np.arange(9)
    return np.abs(numbers[:, None] - numbers), numbers[None, None]


@pytest.mark.parametrize('make', [chain, rooms])
def test_it_learns_how_many_steps_apart_two_places_are(make):
    """From walks alone; a place is known by its number only."""
    wanted, walks = make()
    count = len(wanted)
    objective = TemporalDistance(HeadConfig(1, count, width=64, depth=1, out=8))
    batch = Scenes(jnp.asarray(np.eye(count, dtype=np.float32)[walks][..., None, :]))
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, 1500))

    @functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
    def fit(params):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: objective.loss(p, {}, batch)[0])(params)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=1500)
        return objective.head(params['head'], jnp.eye(count)[:, None])[:, 0]

    points = np.asarray(fit(objective.init(jax.random.key(0))))
    found = np.linalg.norm(points[:, None] - points, axis=-1)
    if make is chain:  # nothing but a straight line is as long
        np.testing.assert_allclose(found, wanted, rtol=0.05, atol=0.05)
        return
    cells = np.array([(x, y) for x in range(SIDE) for y in range(SIDE) if (x, y) not in WALL])
    looks = np.linalg.norm(cells[:, None] - cells, axis=-1)
    order, looked = (stats.spearmanr(a.ravel(), wanted.ravel())[0] for a in (found, looks))
    assert order > 0.92 and order > looked + 0.08
    # two cells on both sides of the wall, far from the door: each is nearer to the door
    rows = {tuple(cell): i for i, cell in enumerate(cells)}
    behind, across, door = rows[2, 6], rows[4, 6], rows[3, 1]
    assert found[behind, across] > 1.3 * max(found[behind, door], found[across, door])
