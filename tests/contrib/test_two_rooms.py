"""Two Rooms: its rules against moves made in a thousand small parts by plain numpy, and that a
planner that knows the rules finds the door."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa_jax.contrib import two_rooms as rooms
from jepa_jax.contrib.commute_time import CommuteTime, HeadConfig, Scenes
from jepa_jax.planning.cem import CEM, ActionSpace
from jepa_jax.planning.world_model import Context, Cost, Goal

# these programs run for less time than they compile
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
COUNT = 400
REACH = rooms.MOST * 5 / 2**0.5  # of five moves, along an axis
SPACE = ActionSpace(2, (0, 1), (REACH, REACH), (REACH, REACH))


def layouts() -> rooms.Layout:
    return jit(jax.vmap(rooms.draw_layout))(jax.random.split(jax.random.key(0), COUNT))


def free(place: np.ndarray, wall: float, door: float) -> bool:
    x, y = place
    if not (5 <= x <= 59 and 5 <= y <= 59):
        return False
    return not (abs(x - wall) < 1.5 and abs(y - door) > 4)


def slow_step(place: np.ndarray, action: np.ndarray, wall: float, door: float) -> np.ndarray:
    """In parts of a thousandth, until one would not be free."""
    length = np.hypot(*action)
    action = action * min(1.0, 1.8 / max(length, 1e-9))
    for part in range(1, 1001):
        if not free(place + action * part / 1000, wall, door):
            return place + action * (part - 1) / 1000
    return place + action


def test_a_move_ends_where_it_first_touches():
    rng, layout = np.random.default_rng(0), layouts()
    walls, doors = np.asarray(layout.wall), np.asarray(layout.door)
    step = jit(jax.vmap(rooms.step))
    # near the wall, near the door's posts, near the border, or anywhere; moves up to twice the most
    starts = rng.uniform(5, 59, (COUNT, 2))
    third = COUNT // 3
    starts[:third, 0] = walls[:third] + rng.choice([-1, 1], third) * rng.uniform(1.5, 3, third)
    starts[: third // 2, 1] = doors[: third // 2] + rng.uniform(-6, 6, third // 2)
    starts[third : 2 * third, 0] = rng.choice([5.0, 59.0], third)
    starts = np.stack(
        [p if free(p, w, d) else [10.0, 10.0] for p, w, d in zip(starts, walls, doors)]
    )
    angles = rng.uniform(0, 2 * np.pi, COUNT)
    actions = rng.uniform(0, 3.6, (COUNT, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
    actions[:20, 1], actions[20:40, 0] = 0.0, 0.0  # along an axis
    ends = step(layout, jnp.float32(starts), jnp.float32(actions))
    expected = [slow_step(*row) for row in zip(starts, actions, walls, doors)]
    np.testing.assert_allclose(ends, expected, rtol=0, atol=5e-3)
    moved = np.hypot(*(np.asarray(ends) - starts).T)
    stopped = moved < np.minimum(np.hypot(*actions.T), 1.8) - 1e-3
    assert 0.1 < stopped.mean() < 0.7  # both kinds are among them
    assert all(free(p, w, d) for p, w, d in zip(np.asarray(ends, np.float64), walls, doors))
    # pushing on changes nothing
    again = step(layout, ends, jnp.float32(actions))
    np.testing.assert_allclose(again[stopped], ends[stopped], rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    'start, action, along, away',
    [
        ([30.0, 40.0], [1.7, 0.3], 1, (0, -1)),  # the wall, from the left
        ([34.0, 40.0], [-1.7, 0.3], 1, (0, 1)),
        ([12.0, 5.5], [0.2, -1.5], 0, (1, 1)),  # the border
        ([32.0, 28.5], [0.1, 1.5], 0, (1, -1)),  # a post of the door, from within
        ([40.0, 40.0], [1.7, 0.3], 1, None),  # nothing
    ],
)
def test_what_touches_is_thrown_back(start, action, along, away):
    layout = rooms.Layout(jnp.float32(32), jnp.float32(25))
    move = layout, jnp.array(start), jnp.array(action)
    keys = jax.random.split(jax.random.key(0), 4000)
    ends = np.asarray(jit(jax.vmap(lambda key: rooms.throw(key, *move, 0.5)))(keys), np.float64)
    touched = np.asarray(jit(rooms.step)(*move), np.float64)
    if away is None:
        np.testing.assert_array_equal(ends, np.tile(touched, (4000, 1)))
        return
    axis, sign = away
    moved = ends - touched
    assert all(free(end, 32, 25) for end in ends) and (sign * moved[:, axis] >= -1e-6).all()
    # of a normal of deviation a half: |x| has a mean of 0.4
    np.testing.assert_allclose((sign * moved[:, axis]).mean(), 0.5 * (2 / np.pi) ** 0.5, rtol=0.05)
    np.testing.assert_allclose(moved[:, along].std(), 0.5, rtol=0.05)
    still = jit(rooms.throw)(keys[0], *move, 0.0)
    np.testing.assert_allclose(still, touched, atol=1e-6)


def test_a_picture_shows_dot_and_walls():
    layout = rooms.Layout(jnp.float32(30), jnp.float32(20))
    picture = np.asarray(jit(rooms.draw)(layout, jnp.array([40.0, 50.0])))
    assert picture.shape == (65, 65, 3) and picture.dtype == np.uint8
    dot = picture[..., 0].astype(float)
    assert np.unravel_index(dot.argmax(), dot.shape) == (50, 40) and dot.max() == 255
    row = dot[50] / dot[50].sum()
    place = (row * np.arange(65)).sum()
    assert abs(place - 40) < 1e-3
    assert abs((row * (np.arange(65) - place) ** 2).sum() ** 0.5 - 1.3) < 0.02
    empty = picture[..., 1] == 0
    np.testing.assert_array_equal(np.flatnonzero(empty[:, 30]), np.arange(16, 25))  # the door
    np.testing.assert_array_equal(np.flatnonzero(empty[50]), [*range(5, 29), *range(32, 60)])


def test_recordings():
    keys = jax.random.split(jax.random.key(1), 500)
    walks = jit(jax.vmap(functools.partial(rooms.record, frames=18)))(keys)
    assert walks.positions.shape == (500, 18, 2) and walks.actions.shape == (500, 17, 2)
    lengths = np.linalg.norm(walks.actions, axis=-1)
    assert (
        0.2 - 1e-5 <= lengths.min()
        and lengths.max() <= 1.8 + 1e-5
        and abs(lengths.mean() - 1) < 0.03
    )
    walked = jit(jax.vmap(rooms.walk))(walks.layout, walks.positions[:, 0], walks.actions)
    np.testing.assert_allclose(walked, walks.positions[:, 1:], atol=1e-4)
    places = np.asarray(walks.positions, np.float64)
    walls, doors = np.asarray(walks.layout.wall), np.asarray(walks.layout.door)
    assert all(free(p, w, d) for path, w, d in zip(places, walls, doors) for p in path)
    right = places[..., 0] > walls[:, None]
    assert 0.15 < (right[:, 0] != right[:, -1]).mean() < 0.6  # through the door
    held = jit(functools.partial(rooms.record, frames=4, hold=5))(keys[0])
    moves = np.repeat(np.asarray(held.actions) / 5, 5, axis=0)
    walked = jit(rooms.walk)(held.layout, held.positions[0], jnp.asarray(moves))
    np.testing.assert_allclose(walked[4::5], held.positions[1:], atol=1e-4)


def test_a_planner_that_knows_the_rules_gets_to_the_other_room():
    """Also through pictures: the features are the dot's place, read from the picture."""
    hold = 5

    planner = CEM(SPACE, Cost(2, 'all'), horizon=18, samples=200, iterations=6, elites=20)
    layout = rooms.Layout(jnp.float32(32), jnp.float32(25))
    start, goal = jnp.array([12.0, 40.0]), jnp.array([52.0, 35.0])

    @jit
    def episode(key):
        def world(layout):
            return rooms.TrueRooms(layout, hold)

        loop = rooms.Loop(world, planner, rooms.place_of, hold, 100)
        return loop.play(layout, start, goal, key)

    path = np.asarray(episode(jax.random.key(0)))
    assert path.shape == (21, 2) and rooms.succeeds(path, goal)
    assert all(free(p, 32, 25) for p in path.astype(np.float64))
    # what it saw of pictures is what it would have known
    context = Context(rooms.place_of(rooms.draw(layout, start))[None], start[None])
    actions = jax.random.uniform(jax.random.key(2), (3, 4, 2), minval=-REACH, maxval=REACH)
    roll = jit(rooms.TrueRooms.rollout)
    seen = roll(rooms.TrueRooms(layout, hold, rooms.place_of), context, actions)
    known = roll(rooms.TrueRooms(layout, hold), context, actions)
    np.testing.assert_allclose(seen[0], known[0], atol=0.02)


def test_tasks_begin_and_end_in_different_rooms():
    layout, start, goal = jit(jax.vmap(rooms.task))(jax.random.split(jax.random.key(3), 200))
    assert ((start[:, 0] > layout.wall) != (goal[:, 0] > layout.wall)).all()
    walls, doors = np.asarray(layout.wall), np.asarray(layout.door)
    for places in (start, goal):
        assert all(free(p, w, d) for p, w, d in zip(np.float64(places), walls, doors))


def test_what_would_come_after_the_end_costs_nothing():
    layout, goal = rooms.Layout(jnp.float32(32), jnp.float32(25)), jnp.array([52.0, 35.0])
    world, aim = rooms.TrueRooms(layout), Goal(goal[None], goal)
    start = jnp.array([12.0, 40.0])
    context = Context(start[None, None], start[None])
    actions = jax.random.normal(jax.random.key(0), (3, 6, 2))

    def cost(world, actions):
        return Cost(2, 'all')(*jit(type(world).rollout)(world, context, actions), aim)

    for left in (1, 4, 9):
        counted = min(left, 6)
        costs = cost(rooms.Until(world, aim, jnp.int32(left)), actions) * 6
        np.testing.assert_allclose(costs, cost(world, actions[:, :counted]) * counted, rtol=1e-6)


def test_a_world_seen_through_a_function():
    """Costs compare what it shows of predictions and of the goal."""
    hold, layout = 5, rooms.Layout(jnp.float32(32), jnp.float32(25))
    planner = CEM(SPACE, Cost(2, 'all'), horizon=4, samples=50, iterations=4, elites=10)
    start, goal = jnp.array([12.0, 30.0]), jnp.array([26.0, 50.0])

    def path(view):
        def world(layout):
            return rooms.TrueRooms(layout, hold, rooms.place_of)

        key = jax.random.key(0)
        loop = rooms.Loop(world, planner, rooms.place_of, hold, 30, view=view)
        return np.asarray(jit(loop.play)(layout, start, goal, key))

    plain, doubled, half = path(None), path(lambda z: 2 * z), path(lambda z: z[..., 1:])
    assert np.linalg.norm(plain[-1] - np.asarray(goal)) < 1
    np.testing.assert_array_equal(plain, doubled)  # a power of two changes no order
    assert abs(half[-1, 1] - 50) < 1 and abs(half[-1, 0] - plain[-1, 0]) > 2  # y alone counts


def test_a_learned_distance_leads_round_the_wall():
    """Goal and start lie opposite to each other, the door in the far corner: a plan along what
    looks near stays in front of the wall, one along the time that recordings took goes through."""
    hold, layout = 5, rooms.Layout(jnp.float32(32), jnp.float32(14))
    planner = CEM(SPACE, Cost(2, 'all'), horizon=18, samples=48, iterations=5, elites=8)
    start, goal = jnp.array([27.0, 48.0]), jnp.array([37.0, 48.0])
    grid = jnp.linspace(6, 58, 14)
    objective = CommuteTime(HeadConfig(1, len(grid) ** 2, width=96, depth=2))
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, 300))

    def spread(places):
        """[..., 1, 2] -> [..., 1, 14^2]: a place as blurred in a picture."""
        x, y = (jnp.exp(-jnp.square(places[..., i, None] - grid) / 12) for i in (0, 1))
        return 5 * (x[..., :, None] * y[..., None, :]).reshape(*places.shape[:-1], -1)

    @jit
    def learned(key):
        keys = jax.random.split(key, 96)
        places = jax.vmap(lambda k: rooms.record(k, layout, frames=10, hold=hold).positions)(keys)
        scenes = Scenes(spread(places[None, :, :, None]))

        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: objective.loss(p, {}, {}, scenes, 0)[0])(params)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        params = objective.init(key)
        return jax.lax.scan(step, (params, tx.init(params)), length=300)[0][0]['head']

    head = learned(jax.random.key(0))

    def end(view):
        def world(layout):
            return rooms.TrueRooms(layout, hold)

        key = jax.random.key(1)
        loop = rooms.Loop(world, planner, rooms.place_of, hold, 120, view=view, kick=0.5)
        return np.asarray(jit(loop.play)(layout, start, goal, key)[-1])

    knows, looks = end(lambda z: objective.head(head, spread(z))), end(None)
    assert looks[0] < 32 < knows[0], (looks, knows)


def test_many_episodes_as_one_program_are_those_from_the_host_bit_for_bit():
    """Render, encode, plan and act as one scan, scenes side by side by vmap; the same part after
    part from the host, pictures and actions going there and back."""

    def world(layout):
        return rooms.TrueRooms(layout, 5)

    planner = CEM(SPACE, Cost(2, 'all'), horizon=3, samples=16, iterations=2, elites=4)
    loop = rooms.Loop(world, planner, rooms.place_of, 5, 20, within=True, kick=0.5)
    keys = jax.random.split(jax.random.key(5), 6)
    layouts, starts, goals = jax.vmap(rooms.task)(keys)
    together = np.asarray(jit(jax.vmap(loop.play))(layouts, starts, goals, keys))
    assert together.shape == (6, 5, 2) and len(np.unique(together[:, -1], axis=0)) == 6
    for i in (0, 5):
        layout = jax.tree.map(lambda a, i=i: a[i], layouts)
        alone = loop.play_from_host(layout, starts[i], goals[i], keys[i])
        np.testing.assert_array_equal(together[i], alone, strict=True)
