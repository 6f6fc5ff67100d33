"""Planners on problems whose best plan is known, and CEM against the original's numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_fill import fill, normal

from jepa_jax import poses
from jepa_jax.models.ac_predictor import ACPredictor, ACPredictorConfig
from jepa_jax.models.layers import standardise
from jepa_jax.nets import Net
from jepa_jax.planning.cem import (
    CEM,
    MPPI,
    ActionSpace,
    Adam,
    CEMAdam,
    Collocation,
    end_effector,
    plan,
)
from jepa_jax.planning.world_model import ACWorldModel, Context, Cost, Goal, Viewed, energies

START = np.array(
    [0.58043909, -0.0020212342, 0.24755727, -3.0666156, 0.030529797, -1.9127512, 0.99697137],
    np.float32,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Toy:
    """The dynamics of the reference page: f' = f + (a W)(1..N) + 0.1 (pose U)."""

    W: jax.Array
    U: jax.Array

    def rollout(self, context, actions):
        tokens, width = context.features.shape[1:]
        factor = jnp.arange(1, tokens + 1, dtype=jnp.float32)[:, None]
        frame = jnp.broadcast_to(context.features[-1], (len(actions), tokens, width))
        pose = jnp.broadcast_to(context.states[-1], (len(actions), 7))
        frames, states = [], []
        for h in range(actions.shape[1]):
            action = actions[:, h]
            frame = frame + (action @ self.W)[:, None] * factor + 0.1 * (pose @ self.U)[:, None]
            pose = poses.apply(pose, action)
            frames.append(frame)
            states.append(pose)
        return jnp.stack(frames, 1), jnp.stack(states, 1)


TOY = Toy(jnp.asarray(normal(11, 7, 3)), jnp.asarray(normal(12, 7, 3)))
CONTEXT = Context(jnp.zeros((1, 4, 3)), jnp.asarray(START)[None])
GOAL = Goal(jnp.asarray(normal(13, 1, 4, 3))[0] * 0.2)


def golden(planner: CEM) -> np.ndarray:
    """With the reference page's noise: RandomState(7), a draw [S, 4] for every step."""
    random = np.random.RandomState(7)
    noise = [
        [random.standard_normal((planner.samples, 4)) for _ in range(planner.horizon)]
        for _ in range(planner.iterations)
    ]
    noise = jnp.asarray(np.float32(noise))
    return jax.jit(planner.solve)(TOY, CONTEXT, GOAL, jax.random.key(0), noise=noise)[0]


def test_golden_notebook():
    planner = CEM(
        end_effector(0.075), samples=25, iterations=3,
        momentum_mean=0.15, momentum_std=(0.75, 0.75, 0.75, 0.15),
    )  # fmt: skip
    expected = [
        [0.03401149, -0.02743585, 0.00703506, 0, 0, 0, 0],
        [0.01803332, -0.01663488, -0.02353552, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(golden(planner), expected, rtol=0, atol=1e-6)


DEFAULTS = dict(  # of the original's function, but for the 25 samples of these rows
    samples=25, momentum_mean=(0.25, 0.25, 0.25, 0.15), momentum_std=(0.95, 0.95, 0.95, 0.15)
)


def test_golden_defaults():
    result = golden(CEM(end_effector(), elites=5, iterations=3, **DEFAULTS))
    expected = [[0.03094800, -0.02216160, -0.00962511], [0.01533263, -0.01665348, -0.00979084]]
    np.testing.assert_allclose(result[:, :3], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(result[:, 3:6], 0)


def test_golden_fixed_axis_and_closing_gripper():
    space = end_effector(fixed=((1, 0.02),), close_from=1)
    result = golden(CEM(space, elites=5, iterations=2, **DEFAULTS))
    expected = [
        [0.01497481, 0.02, -0.00216529, 0, 0, 0, -0.70564055],
        [0.03162079, 0.02, -0.02924795, 0, 0, 0, 0.9775],
    ]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Point:
    """A point in the plane that actions shift; its features are its place."""

    def rollout(self, context, actions):
        places = context.states[-1] + jnp.cumsum(actions, axis=1)
        return places[:, :, None], places


PLANE = ActionSpace(2, (0, 1), (0.5, 0.5), (0.5, 0.5))
POINT = Context(jnp.zeros((1, 1, 2)), jnp.zeros((1, 2)))
SHARP = dict(iterations=20, momentum_mean=0.0, momentum_std=0.0)
PLANNERS = {
    'cem': CEM(PLANE, Cost(2), samples=256, **SHARP),
    'cem, L1': CEM(PLANE, Cost(1), samples=256, **SHARP),
    'mppi': MPPI(PLANE, Cost(2), samples=512, iterations=20, min_std=0.01),
    'adam': Adam(PLANE, Cost(2), iterations=200, rate=0.02),
    'cem, then adam': CEMAdam(
        CEM(PLANE, Cost(2), samples=64, iterations=3),
        Adam(PLANE, Cost(2), iterations=60, rate=0.02),
    ),
    'collocation': Collocation(PLANE, Cost(2), iterations=200, rate=0.02),
}


@pytest.mark.parametrize('name', PLANNERS)
def test_finds_the_known_optimum(name):
    planner = PLANNERS[name]
    solve = jax.jit(planner.solve)
    # within reach of two steps: any that sum to the goal; beyond: as far as the bounds allow
    for place, end in (((0.6, -0.3), (0.6, -0.3)), ((3.0, -0.3), (1.0, -0.3))):
        goal = Goal(jnp.asarray([place]), jnp.asarray(place))
        actions, result = solve(Point(), POINT, goal, jax.random.key(0))
        assert actions.shape == (2, 2) and np.abs(actions).max() <= 0.5
        np.testing.assert_allclose(actions.sum(0), end, rtol=0, atol=0.02)
        assert float(result['best'][-1]) <= float(result['best'][0])
        expected = energies(Point(), POINT, goal, actions[None], getattr(planner, 'cost', Cost(2)))
        np.testing.assert_allclose(result['energy'], expected[0], rtol=1e-6)


@pytest.mark.parametrize('name', PLANNERS)
def test_no_plan_leaves_its_walls(name):
    """The goal lies beyond two of them: each step of the plan ends at the nearest point within."""
    walls = dataclasses.replace(PLANE, within=((-0.1, 0.4), (-0.2, 2.0)))
    planner = PLANNERS[name]
    parts = {'cem': 'cem', 'adam': 'adam'} if isinstance(planner, CEMAdam) else {}
    boxed = {part: dataclasses.replace(getattr(planner, part), space=walls) for part in parts}
    planner = dataclasses.replace(planner, **(boxed or {'space': walls}))
    goal = Goal(jnp.asarray([[0.9, -0.3]]))
    actions, _ = jax.jit(planner.solve)(Point(), POINT, goal, jax.random.key(0))
    places = np.cumsum(actions, axis=0)
    assert places[:, 0].max() <= 0.4 + 1e-6 and places[:, 1].min() >= -0.2 - 1e-6
    np.testing.assert_allclose(places[-1], [0.4, -0.2], rtol=0, atol=0.02)


def test_steps_end_at_the_walls_of_a_workspace():
    """By hand: from x = 0.5 in a box up to 0.6, steps of 0.08, 0.05 and -0.03 are 0.08, 0.02 and
    -0.03; the gripper is no place."""
    box = (0.4, 0.6, -1.0, 1.0, 0.0, 1.0)
    space = end_effector(0.1, workspace=box, start=(0.5, 0.0, 0.01))
    steps = jnp.array([[[0.08, 0, -0.05, 0.7], [0.05, 0, 0.02, 0.7], [-0.03, 0, 0, 0.7]]])
    expected = [[0.08, 0, -0.01, 0.7], [0.02, 0, 0.02, 0.7], [-0.03, 0, 0, 0.7]]
    np.testing.assert_allclose(space.restrict(steps)[0], expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match='begin at z = 1.2, outside of 0 to 1 m'):
        end_effector(workspace=box, start=(0.5, 0, 1.2))
    with pytest.raises(ValueError, match='must be x0,x1,y0,y1,z0,z1, each pair ascending'):
        end_effector(workspace=(0.6, 0.4, *box[2:]), start=(0.5, 0, 0.5))
    with pytest.raises(ValueError, match='start has 0 numbers: a workspace needs x, y, z'):
        end_effector(workspace=box)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """f' = A f + B a, of what it is shown alone."""

    A: jax.Array
    B: jax.Array

    def rollout(self, context, actions):
        def one(frame, action):
            frame = self.A @ frame + self.B @ action
            return frame, frame

        def roll(sequence):
            return jax.lax.scan(one, context.features[-1, 0], sequence)[1]

        return jax.vmap(roll)(actions)[:, :, None], None


def test_collocation_solves_linear_dynamics():
    """Against the least squares problem that numpy solves."""
    A, B = normal(30, 3, 3) * 0.4, normal(31, 3, 2)
    now, goal = normal(32, 1, 3), normal(33, 1, 3)
    H = 3
    effect = np.concatenate([np.linalg.matrix_power(A, H - 1 - h) @ B for h in range(H)], axis=1)
    rest = goal[0] - np.linalg.matrix_power(A, H) @ now[0]
    least = np.square(effect @ np.linalg.lstsq(effect, rest, rcond=None)[0] - rest).mean()
    space = ActionSpace(2, (0, 1), (50.0, 50.0), (1.0, 1.0))
    planner = Collocation(space, Cost(2), H, samples=2, iterations=400, rate=0.002)
    context = Context(jnp.asarray(now)[None])
    solved, facts = jax.jit(planner.solve)(
        Linear(jnp.asarray(A), jnp.asarray(B)), context, Goal(jnp.asarray(goal)), jax.random.key(0)
    )
    assert np.square(rest).mean() > 0.1
    assert float(facts['energy']) < least + 0.01 * np.square(rest).mean()
    assert float(facts['misses'][-1]) < 1e-3  # the frames are those that the plan leads to


def test_collocation_refuses_predictions_seen_through_a_view():
    seen = Viewed(Point(), lambda features: features[..., :1])
    planner = Collocation(PLANE, Cost(2))
    with pytest.raises(ValueError, match='the world model shows them through a view'):
        planner.solve(seen, POINT, Goal(jnp.zeros((1, 1))), jax.random.key(0))
    with pytest.raises(ValueError, match='weights .2, 1.: must be more than 0 and ascend'):
        Collocation(PLANE, weights=(2, 1))


def test_adam_after_cem_is_never_worse():
    both = PLANNERS['cem, then adam']
    goal = Goal(jnp.asarray([[0.2, 0.1]]))
    key = jax.random.key(3)
    refined = jax.jit(both.solve)(Point(), POINT, goal, key)[1]['energy']
    assert float(refined) < float(jax.jit(both.cem.solve)(Point(), POINT, goal, key)[1]['energy'])


def test_costs():
    features, states = normal(1, 5, 3, 4, 6), normal(2, 5, 3, 7)
    goal = Goal(jnp.asarray(normal(3, 4, 6)), jnp.asarray(normal(4, 7)))
    apart = features - np.asarray(goal.features)
    for cost, expected in (
        (Cost(), np.abs(apart[:, -1]).mean((1, 2))),
        (Cost(2), np.square(apart[:, -1]).mean((1, 2))),
        (Cost(1, 'all'), np.abs(apart).mean((1, 2, 3))),
    ):
        np.testing.assert_allclose(cost(features, None, goal), expected, rtol=1e-5)
    plain = Cost(2, state_weight=0.5, state='sum')
    extra = np.square(states[:, -1] - np.asarray(goal.state)).mean(-1)
    expected = np.square(apart[:, -1]).mean((1, 2)) + 0.5 * extra
    np.testing.assert_allclose(plain(features, states, goal), expected, rtol=1e-5)
    told = Cost(1, state_weight=0.5, state='sum', gripper_weight=2.0)
    extra = np.abs(states[:, -1] - np.asarray(goal.state))
    expected = np.abs(apart[:, -1]).mean((1, 2)) + 0.5 * extra.mean(-1) + 2 * extra[:, 6]
    np.testing.assert_allclose(told(features, states, goal), expected, rtol=1e-5)
    # roll pi - 0.01 and -pi + 0.01 are 0.02 apart, not 2 pi
    here, there = np.zeros((1, 1, 7), np.float32), np.zeros(7, np.float32)
    here[..., 3], there[3] = np.pi - 0.01, -np.pi + 0.01
    same = Goal(jnp.zeros((4, 6)), jnp.asarray(there))
    result = Cost(1, state_weight=1.0)(np.zeros((1, 1, 4, 6), np.float32), here, same)
    np.testing.assert_allclose(result, 0.02 / 7, rtol=1e-3)


def test_mppi_weighs_by_energy():
    """One iteration, computed by hand."""
    planner = MPPI(PLANE, Cost(2), horizon=1, samples=16, iterations=1, temperature=0.5)
    noise = normal(5, 1, 1, 16, 2)
    goal = Goal(jnp.asarray([[0.3, 0.1]]))
    actions = planner.solve(Point(), POINT, goal, jax.random.key(0), noise=jnp.asarray(noise))[0]
    tried = np.clip(noise[0, 0] * 0.5, -0.5, 0.5)
    costs = np.square(tried - [0.3, 0.1]).mean(-1)
    weights = np.exp(-(costs - costs.min()) / (0.5 * costs.std()))
    np.testing.assert_allclose(actions[0], weights @ tried / weights.sum(), rtol=0, atol=1e-6)


def tiny(frames: int = 4, **settings) -> tuple[ACWorldModel, Context, Goal]:
    config = ACPredictorConfig(
        24, width=24, depth=2, heads=2, grid=(2, 2), dtype=jnp.float32, remat='none', **settings
    )
    net = Net(lambda rngs: ACPredictor(config, rngs=rngs))
    model = ACWorldModel(fill(net.abstract, sigma=0.3, predictor=True), net, config, frames)
    context = Context(
        jnp.asarray(normal(30, 2, 4, 24)),
        jnp.asarray(normal(31, 2, 7)),
        jnp.asarray(normal(32, 1, 7)) * 0.1,
    )
    return model, context, Goal(jnp.asarray(normal(33, 4, 24)), jnp.asarray(START))


@pytest.mark.parametrize('slide', [False, True])
def test_rollout_is_the_predictor_run_on_all_frames_again(slide):
    """slide: on the newest two, as many as were known."""
    model, context, _ = tiny()
    model = dataclasses.replace(model, slide=slide, frames=2 if slide else 4)
    actions = jnp.asarray(normal(34, 6, 3, 7)) * 0.1
    features, states = jax.jit(ACWorldModel.rollout)(model, context, actions)
    frames = [np.broadcast_to(f, (6, 4, 24)) for f in context.features]
    known = [np.broadcast_to(s, (6, 7)) for s in context.states]
    done = [np.broadcast_to(context.actions[0], (6, 7))]
    again = jax.jit(model.net.__call__)
    for h in range(3):
        done.append(actions[:, h])
        seen = 2 if slide else h + 2
        x = np.concatenate(frames[-seen:], 1)
        inputs = (np.stack(done[-seen:], 1), np.stack(known[-seen:], 1))
        z = again(model.params, x, *inputs)[:, -4:]
        z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
        known.append(poses.apply(known[-1], actions[:, h]))
        np.testing.assert_allclose(features[:, h], z, rtol=0, atol=1e-4)
        np.testing.assert_allclose(states[:, h], known[-1], rtol=0, atol=1e-6)
        frames.append(features[:, h])
    for count in (2, 4):  # by fours the six samples are two parts of three
        few = dataclasses.replace(model, at_once=count)
        parts = jax.jit(ACWorldModel.rollout)(few, context, actions)
        np.testing.assert_allclose(parts[0], features, rtol=0, atol=1e-4)
        np.testing.assert_allclose(parts[1], states, rtol=0, atol=1e-6)


def test_from_a_single_frame_it_is_the_same():
    """Where the first block is partly computed once for all samples."""
    model, _, _ = tiny()
    context = Context(jnp.asarray(normal(30, 1, 4, 24)), jnp.asarray(normal(31, 1, 7)))
    actions = jnp.asarray(normal(34, 5, 2, 7)) * 0.1
    jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
    features, states = jit(ACWorldModel.rollout)(model, context, actions)
    again = jit(model.net.__call__)
    x, known = (jnp.repeat(a, 5, 0) for a in (context.features, context.states))
    first = standardise(again(model.params, x, actions[:, :1], known[:, None]))
    after = poses.apply(known, actions[:, 0])
    frames, seen = jnp.concatenate([x, first], 1), jnp.stack([known, after], 1)
    second = standardise(again(model.params, frames, actions, seen)[:, -4:])
    for h, expected in enumerate((first, second)):
        np.testing.assert_allclose(features[:, h], expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(states[:, 0], after, rtol=0, atol=1e-6)


def test_a_predictor_that_sees_no_states_can_be_planned_with():
    model, context, goal = tiny(state_width=0)
    planner = CEM(end_effector(), samples=8, iterations=2, elites=4)
    solve = jax.jit(planner.solve)
    blind = dataclasses.replace(context, states=None)
    key = jax.random.key(0)
    actions, result = solve(model, context, goal, key)
    assert np.isfinite(actions).all() and np.ptp(result['costs'][0]) > 0
    np.testing.assert_array_equal(solve(model, blind, goal, key)[0], actions)


def test_episodes_in_a_padded_batch_equal_single_ones_bit_for_bit():
    model, context, goal = tiny()
    planner = CEM(end_effector(), samples=32, iterations=3, elites=4)
    rng = np.random.default_rng(0)

    def episode(i):
        change = jnp.float32(rng.normal(size=context.features.shape))
        return dataclasses.replace(context, features=context.features + change)

    contexts = [episode(i) for i in range(3)]
    keys = list(jax.random.split(jax.random.key(1), 3))

    def solve(contexts, keys):
        batch = jax.tree.map(lambda *a: jnp.stack(a), *contexts)
        goals = jax.tree.map(lambda a: jnp.stack([a] * len(contexts)), goal)
        return plan(planner, model, batch, goals, jnp.stack(keys))

    alone = [solve([c], [k]) for c, k in zip(contexts, keys)]
    nothing = jax.tree.map(jnp.zeros_like, context)
    together, result = solve([*contexts, nothing, nothing], [*keys, keys[0], keys[0]])
    for i, (actions, diagnostics) in enumerate(alone):
        np.testing.assert_array_equal(together[i], actions[0])
        for name, values in diagnostics.items():
            np.testing.assert_array_equal(result[name][i], values[0], err_msg=name)


def test_the_goal_and_later_frames_leave_what_is_known_alone():
    """No leak: predictions depend on the context and the actions so far, on nothing after."""
    model, context, _ = tiny()
    actions = jnp.asarray(normal(34, 6, 3, 7)) * 0.1
    roll = jax.jit(ACWorldModel.rollout)
    before = roll(model, context, actions)
    after = roll(model, context, actions.at[:, 2].add(1.0))
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a[:, :2], b[:, :2])
        assert np.abs(a[:, 2] - b[:, 2]).max() > 1e-3


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: CEM(PLANE, samples=4), 'elites 10: must be from 2 to samples = 4'),
        (lambda: CEM(PLANE, horizon=0), 'horizon 0: must be at least 1'),
        (lambda: MPPI(PLANE, temperature=0.0), 'temperature 0.0: must be more than 0'),
        (lambda: Cost(3), "cost exponent '3': allowed are 1, 2"),
        (lambda: Cost(steps='first'), "cost steps 'first': allowed are last, all"),
        (lambda: ActionSpace(2, (0, 1), (1.0,), (1.0, 1.0)), 'bounds has 1 numbers: 2 are planned'),
        (lambda: end_effector(fixed=((4, 0.0),)), 'fixed 4: must be from 0 to 3'),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_horizon_beyond_what_was_trained_is_refused():
    model, context, goal = tiny(frames=3)
    with pytest.raises(ValueError, match='horizon 3: must be at most 2 .* 3 frames .*, 2 of them'):
        jax.eval_shape(lambda: energies(model, context, goal, jnp.zeros((2, 3, 7)), Cost()))
    with pytest.raises(ValueError, match='state_weight .*: the goal has no state'):
        blind, cost = Goal(goal.features), Cost(state_weight=1.0)
        jax.eval_shape(lambda: energies(model, context, blind, jnp.zeros((2, 2, 7)), cost))
    with pytest.raises(ValueError, match='gripper_weight 0.5: the goal has no state'):
        cost = Cost(gripper_weight=0.5)
        jax.eval_shape(lambda: energies(model, context, blind, jnp.zeros((2, 2, 7)), cost))
