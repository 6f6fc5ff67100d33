"""The closed loop: policies whose outcome is known, the interval, and the planner's way through
encoder, world model and simulator.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

pytest.importorskip('jepa_jax.sims.panda', reason='needs MuJoCo', exc_type=ModuleNotFoundError)
pytestmark = pytest.mark.usefixtures('gl')

from jepa_jax import poses  # noqa: E402
from jepa_jax.planning.cem import CEM, end_effector, plan  # noqa: E402
from jepa_jax.planning.world_model import Context, Cost, Goal  # noqa: E402
from jepa_jax.sims import evaluate, scene  # noqa: E402
from jepa_jax.sims.panda import Panda  # noqa: E402
from jepa_jax.sims.tasks import PandaEnv  # noqa: E402

KEY = jax.random.key(0)


@pytest.fixture(scope='module')
def scripted():
    return evaluate.measure(evaluate.follow_script, 'grasp', [0, 1, 2], image_size=16, key=KEY)


def test_known_policies_and_their_row(scripted):
    space = end_effector(0.05)
    policies = {'random': evaluate.act_at_random(space), 'no-op': evaluate.do_nothing}
    results = {
        name: evaluate.measure(policy, 'grasp', [0, 1, 2], image_size=16, key=KEY)
        for name, policy in policies.items()
    }
    played = {'oracle': scripted, **results}
    row = evaluate.row({name: result.summary() for name, result in played.items()}, 'oracle')
    assert row['success'] == 1 and row['random'] == row['no-op'] == 0
    assert row['low'] == pytest.approx(0.4385, abs=1e-4) and row['high'] == 1
    assert row['episodes'] == 3 and row['distance'] < 0.02 < row['start']
    words = evaluate.verdict('grasp', row)
    assert '100 % of 3 episodes' in words and 'random 0 %' in words and 'simulated' in words


def test_an_episode_is_the_same_alone_and_among_others(scripted):
    alone = evaluate.measure(evaluate.follow_script, 'grasp', [1], image_size=16, key=KEY)
    assert alone.distance[0] == scripted.distance[1]
    np.testing.assert_array_equal(alone.frames[0], scripted.frames[1])


def test_contact_sheet(scripted, tmp_path):
    evaluate.plot_episodes(scripted, tmp_path / 'episodes.png')
    with Image.open(tmp_path / 'episodes.png') as image:
        assert min(image.size) > 300


def test_episodes_at_play(scripted, tmp_path):
    """A picture a frame and one that says how each ended, of those that went well and those that
    did not."""
    played = dataclasses.replace(scripted, success=np.array([True, False, True]))
    evaluate.animate_episodes(played, tmp_path / 'episodes.gif')
    with Image.open(tmp_path / 'episodes.gif') as image:
        assert image.size == (3 * 22, 2 * 22)
        times = []
        for t in range(image.n_frames):  # what stands still is one picture
            image.seek(t)
            times.append(image.info['duration'])
        assert sum(times) == 250 * scripted.frames.shape[1] + 1000 and times[-1] == 1000
        edges = np.asarray(image.convert('RGB'), int)[1, [5, 27, 49]]
    assert list(edges[:, 1] > edges[:, 0]) == [True, False, True]


@pytest.mark.parametrize(
    ('wins', 'kept'),
    [
        ([1, 1, 1, 0, 1, 0, 0], [0, 1, 3, 5]),
        ([1, 1, 1, 1, 1, 1, 0], [0, 1, 2, 6]),
        ([0, 0, 0, 0, 0, 0, 1], [0, 1, 2, 6]),
        ([1, 1, 1, 1, 1], [0, 1, 2, 3]),
        ([0, 1], [0, 1]),
    ],
)
def test_good_and_bad_episodes_are_kept(monkeypatch, wins, kept):
    """In a sheet of the first ones a reader rarely sees what goes wrong."""
    monkeypatch.setattr(PandaEnv, '_success', lambda env: bool(wins[env.number]))
    reset = PandaEnv.reset

    def numbered(env, seed, **more):
        env.number = seed
        return reset(env, seed=seed, **more)

    monkeypatch.setattr(PandaEnv, 'reset', numbered)
    seeds = range(len(wins))
    played = evaluate.measure(evaluate.do_nothing, 'reach', seeds, image_size=8, key=KEY)
    assert played.shown.tolist() == kept and len(played.frames) == len(played.goals) == len(kept)
    alone = evaluate.measure(evaluate.do_nothing, 'reach', kept[-1:], image_size=8, key=KEY)
    np.testing.assert_array_equal(played.frames[-1], alone.frames[0])
    np.testing.assert_array_equal(played.goals[-1], alone.goals[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PoseModel:
    """Knows what an action does to the pose, and sees nothing."""

    sign: jax.Array

    def rollout(self, context: Context, actions: jax.Array):
        state, states = jnp.broadcast_to(context.states[-1], (len(actions), 7)), []
        for h in range(actions.shape[1]):
            state = poses.apply(state, self.sign * actions[:, h])
            states.append(state)
        states = jnp.stack(states, axis=1)
        return jnp.zeros((*states.shape[:2], 1, 1)), states


def blind(frames):
    return jnp.zeros((len(frames), 1, 1))


def test_a_right_world_model_solves_what_a_mirrored_one_does_not():
    """The whole way of an action from planner to arm, in the conventions of poses."""
    planner = CEM(end_effector(0.05), Cost(state_weight=1.0), 1, 64, 6, 8)
    outcome = {}
    for sign in (1.0, -1.0):
        policy = evaluate.plan_with(planner, PoseModel(jnp.float32(sign)), blind)
        outcome[sign] = evaluate.measure(
            policy, 'reach', range(4), image_size=16, key=jax.random.key(1)
        )
    assert outcome[1.0].success.all() and outcome[1.0].distance.max() < 0.02
    assert not outcome[-1.0].success.any()
    assert (outcome[-1.0].distance > outcome[-1.0].start).all()


def test_goals_that_tell_of_the_gripper():
    """With features that show nothing, plans close and open it as the goals say, and no more."""
    planner = CEM(end_effector(0.05), Cost(gripper_weight=0.5), 1, 64, 6, 8)
    policy = evaluate.plan_with(planner, PoseModel(jnp.float32(1.0)), blind)
    states, goals = np.zeros((2, 3, 7), np.float32)
    states[:, 6], goals[:, 6] = (0.0, 0.9, 0.4), (0.6, 0.1, 0.4)
    images = np.zeros((3, 8, 8, 3), np.uint8)
    seen = {'image': images, 'state': states, 'goal_image': images, 'goal_state': goals}
    closing = policy([None] * 3, seen, KEY)[:, 6]
    assert closing[0] == pytest.approx(0.6, abs=0.05)
    assert closing[1] == pytest.approx(-0.75, abs=0.05)  # the most of one action
    assert closing[2] == 0  # within the dead zone


@pytest.mark.parametrize('at_once', [1, 2])
def test_threads_change_no_plan(monkeypatch, at_once):
    """Five episodes on two threads, the last of a pair alone, are those of one program, bit for
    bit."""
    monkeypatch.setattr(evaluate.policies, 'cpus', lambda: 2)
    planner, world = CEM(end_effector(0.05), Cost(state_weight=1.0), 1, 16, 3, 4), PoseModel(1.0)
    rng = np.random.default_rng(0)
    states, goals = rng.uniform(0.1, 0.5, (2, 5, 7)).astype(np.float32)
    images = np.zeros((5, 8, 8, 3), np.uint8)
    seen = {'image': images, 'state': states, 'goal_image': images, 'goal_state': goals}
    choose = evaluate.plan_with(planner, world, blind, episodes_at_once=at_once)
    result = choose([None] * 5, seen, KEY)
    nothing = jnp.zeros((5, 1, 1))
    contexts = Context(nothing[:, None], jnp.asarray(states)[:, None])
    alone, _ = plan(planner, world, contexts, Goal(nothing, goals), jax.random.split(KEY, 5))
    np.testing.assert_array_equal(result, alone[:, 0])


@pytest.mark.parametrize('count', [1, 4, 9])
def test_encoding_in_parts_needs_one_program_and_changes_nothing(count):
    shapes = set()

    def encode(frames):
        shapes.add(frames.shape)
        return evaluate.pixels(frames)

    frames = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    result = evaluate.in_parts(encode, size=4)(frames)
    np.testing.assert_array_equal(result, evaluate.pixels(frames))
    assert shapes == {(4, 8, 8, 3)}


def test_the_simulator_as_world_model_is_right_and_leaves_no_trace():
    env = PandaEnv('reach', 16)
    env.reset(seed=0)
    before = env.panda.state()
    actions = np.random.default_rng(0).uniform(-0.05, 0.05, (3, 2, 7)).astype(np.float32)
    world = evaluate.TrueSimulator(jnp.int32(0), (env,), evaluate.pixels)
    features, states = jax.jit(lambda w, a: w.rollout(None, a))(world, actions)
    np.testing.assert_array_equal(env.panda.state(), before)
    for s in (2, 0):
        env.reset(seed=0)
        for h in range(2):
            env.panda.act(actions[s, h])
            np.testing.assert_allclose(states[s, h], env.panda.state(), atol=1e-6)
            drawn = evaluate.pixels(env.panda.draw()[None])[0]
            np.testing.assert_allclose(features[s, h], drawn, atol=1e-6)
    env.close()


def test_planning_in_the_simulator_comes_nearer_by_what_it_sees():
    """One step of each episode, by pictures alone."""
    planner = CEM(end_effector(0.075), Cost(exponent=2), 1, 24, 3, 4)
    policy = evaluate.plan_in_simulator(planner, evaluate.pixels)
    envs = [PandaEnv('reach', 24) for _ in range(3)]
    seen = [env.reset(seed=10 + i)[0] for i, env in enumerate(envs)]
    start = np.array([env.distance() for env in envs])
    stacked = {name: np.stack([s[name] for s in seen]) for name in seen[0]}
    for env, action in zip(envs, policy(envs, stacked, KEY)):
        env.step(action)
    assert np.mean(np.array([env.distance() for env in envs]) - start) < -0.02
    for env in envs:
        env.close()


def test_a_cost_is_judged_by_whether_it_falls():
    def place(frames):
        """Where the arm's light grey is, which a still background cannot move."""
        bright = (jnp.asarray(frames, jnp.float32).min(-1) > 120).astype(jnp.float32)
        weights = bright / bright.sum((1, 2), keepdims=True)
        axis = jnp.arange(frames.shape[1]) / frames.shape[1]
        y, x = (weights.sum(2) * axis).sum(1), (weights.sum(1) * axis).sum(1)
        return jnp.stack([y, x], axis=-1)[:, None]

    @jax.vmap
    def noise(frame):
        """The same for the same picture, and nothing to do with what it shows."""
        return jax.random.normal(jax.random.fold_in(KEY, frame.astype(jnp.uint32).sum()), (4, 4))

    encoders = {'place': jax.jit(place), 'noise': noise}
    result = evaluate.judge_cost(encoders, Cost(), range(6), image_size=48)
    (good, way), (chance, _) = result['place'], result['noise']
    assert good['rank_correlation'] > 0.6 and good['falls'] > 0.8
    assert way.shape == (6, 11) and (way[:, 0] == 1).all() and (way[:, -1] < 0.2).all()
    # at the goal itself even noise is right
    assert chance['rank_correlation'] < 0.7 * good['rank_correlation'] and chance['falls'] < 0.7


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moves:
    """Features that are poses, moved by `share` of an action."""

    share: jax.Array

    def rollout(self, context: Context, actions: jax.Array):
        state = poses.apply(context.states[-1], self.share * actions[0, 0])
        return state[None, None, None], None


def test_dynamics_are_judged_against_copying_and_against_other_actions(monkeypatch):
    """Features that are the poses themselves, looked up by picture, so the right model is known."""
    poses_of = {}
    observe = PandaEnv._observe

    def spy(env):
        seen = observe(env)
        poses_of[seen['image'].tobytes()] = seen['state']
        return seen

    monkeypatch.setattr(PandaEnv, '_observe', spy)

    def look_up(frames):
        return jnp.stack([poses_of[frame.tobytes()] for frame in np.asarray(frames)])[:, None]

    worlds = {'right': Moves(jnp.float32(1)), 'still': Moves(jnp.float32(0))}
    # places alone: roll flips its sign near pi
    cost = lambda f, states, goal: Cost()(f[..., :3], states, Goal(goal.features[..., :3]))  # noqa: E731
    result = evaluate.judge_dynamics(worlds, look_up, cost, range(3), image_size=32, steps=4)
    assert result['right']['error_over_copy'] < 1e-3 and result['right']['shuffled_over_true'] > 100
    assert result['still'] == pytest.approx({'error_over_copy': 1.0, 'shuffled_over_true': 1.0})


def test_a_gripper_is_judged_by_its_cost(monkeypatch):
    """Features that are closedness itself: known and not known."""
    closed_of = {}
    draw = Panda.draw

    def spy(panda):
        image = draw(panda)
        closed_of[image.tobytes()] = panda.state()[6]
        return image

    monkeypatch.setattr(Panda, 'draw', spy)

    def look_up(frames):
        return jnp.stack([jnp.full((1, 1), closed_of[frame.tobytes()]) for frame in frames])

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Closes:
        share: jax.Array

        def rollout(self, context, actions):
            return context.features[-1] + self.share * actions[:, :, 6:, None], None

    worlds = {name: Closes(jnp.float32(share)) for name, share in (('all', 1), ('none', 0))}
    result = evaluate.judge_gripper(worlds, look_up, Cost(), range(6), image_size=64)
    assert result['all']['gripper_range'] == pytest.approx(1, abs=1e-3)
    assert result['all']['gripper_off'] == 0
    assert result['none']['gripper_range'] == 0 and result['none']['gripper_off'] > 0.1


def test_the_lamp_shows_how_far_the_tool_is(monkeypatch):
    """A move towards the camera hardly changes the arm's own pixels; its shadow it does."""
    arguments = {'pixels': evaluate.pixels}, Cost(), range(4)
    seen = evaluate.judge_depth(*arguments)['pixels']
    monkeypatch.setattr(scene, 'SHADOW', 0)
    without = evaluate.judge_depth(*arguments)['pixels']
    assert seen > 0.33 and without < 0.8 * seen
