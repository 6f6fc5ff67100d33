"""A controller in a world whose geometry is known: a picture's first pixel is the tool's place, in
steps of 1/255 m, and that is what the model sees."""

import dataclasses
import io
import json
import pathlib
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jepa_jax
from jepa_jax import cli, poses, serve_robot
from jepa_jax.config import RobotConfig
from jepa_jax.data.robot import actions_between
from jepa_jax.data.robot.contract import as_contract, as_recorded, in_camera_frame, rescaled
from jepa_jax.errors import PlanError
from jepa_jax.plan import PLANNERS
from jepa_jax.planning import cem
from jepa_jax.planning.controller import Robot
from jepa_jax.planning.world_model import Context, Cost, FromCamera

BOX = (0.0, 1.0, 0.0, 1.0, 0.0, 1.0)
SETTINGS = dict(samples=64, iterations=6, elites=8, max_step=0.1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class World:
    follows: jax.Array  # 1: features move as the tool does; 0: nothing that is done is seen

    def rollout(self, context, actions):
        ends = context.features[-1] + self.follows * jnp.cumsum(actions[..., None, :3], axis=1)
        return ends, context.states[-1] + jnp.cumsum(actions, axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stateless(World):
    def rollout(self, context, actions):
        return super().rollout(context, actions)[0], None


@dataclasses.dataclass(frozen=True)
class Agent:
    world_model: World = World(jnp.float32(1))
    encoder: dict = dataclasses.field(default_factory=dict)
    about: tuple[str, ...] = ('a world of one point',)
    size: tuple[int, int] = (4, 4)

    def fit(self, images):
        return images

    def encode(self, images):
        return self.features({}, jnp.asarray(images))

    def features(self, params, images):
        return images[:, 0, :1].astype(jnp.float32) / 255


def robot(**changes) -> Robot:
    fields = dict(name='toy', agent=Agent(), units=RobotConfig(), rate=4.0, measured=None,
                  ended=None)  # fmt: skip
    return Robot(**{**fields, **changes})


def picture(place) -> np.ndarray:
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0] = np.round(np.asarray(place) * 255)
    return image


def pose(place) -> np.ndarray:
    return np.array([*place, 0, 0, 0, 0.0])


@pytest.mark.parametrize('planner', PLANNERS)
def test_reaches_the_goal_and_says_so(planner):
    goal, place = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.4, 0.35])
    controller = robot().controller(picture(goal), workspace=BOX, planner=planner, **SETTINGS)
    verdicts = []
    for _ in range(12):
        step = controller.step(picture(place), pose(place))
        assert np.abs(step.action[:3]).max() <= 0.1 + 1e-6
        np.testing.assert_allclose(step.target[:3], place + step.action[:3], rtol=0, atol=1e-6)
        apart = np.abs(picture(place)[0, 0].astype(float) - picture(goal)[0, 0]).mean() / 255
        assert step.distance == pytest.approx(apart, abs=1e-6)
        assert step.still == pytest.approx(apart, abs=1e-6)  # doing nothing leaves it there
        verdicts.append(step.verdict)
        if step.verdict == 'arrived':
            break
        place = step.target[:3]
    assert np.abs(place - goal).max() < 0.02
    assert verdicts[:3] == ['move'] * 3 and verdicts[-3:] == ['hold', 'hold', 'arrived']
    controller.reset(picture((0.9, 0.4, 0.3)))
    assert controller.step(picture(place), pose(place)).verdict == 'move'


def test_no_step_leaves_the_workspace_and_one_a_little_outside_is_led_back():
    """One program, wherever it starts; the goal lies beyond the wall at x = 0.6."""
    box = (0.0, 0.6, 0.0, 1.0, 0.0, 1.0)
    controller = robot().controller(picture((1, 0.5, 0.5)), workspace=box, **SETTINGS)
    for x, expected in ((0.45, 0.55), (0.56, 0.6), (0.63, 0.6)):
        step = controller.step(picture((x, 0.5, 0.5)), pose((x, 0.5, 0.5)))
        assert step.target[0] == pytest.approx(expected, abs=2e-3) and step.target[0] <= 0.6
    with pytest.raises(PlanError, match='x = 0.8 m is outside of the workspace, 0 to 0.6 m, by'):
        controller.step(picture((0.8, 0.5, 0.5)), pose((0.8, 0.5, 0.5)))


def test_a_goal_at_a_wall_is_arrived_at():
    """By holds in a row: being led back into the workspace is none."""
    box = (0.0, 0.6, 0.0, 1.0, 0.0, 1.0)
    goal = picture((0.6, 0.5, 0.5))
    controller = robot().controller(goal, workspace=box, **SETTINGS)
    places = (0.6 + 1e-7, 0.6, 0.6 + 2e-3, 0.6 + 5e-4, 0.6, 0.6 + 1e-7)
    verdicts = [controller.step(goal, pose((x, 0.5, 0.5))).verdict for x in places]
    assert verdicts == ['hold', 'hold', 'move', 'hold', 'hold', 'arrived']


def test_a_stale_picture_between_holds_is_none():
    goal, place = picture((0.6, 0.5, 0.5)), pose((0.6, 0.5, 0.5))
    controller = robot().controller(goal, workspace=BOX, **SETTINGS)
    verdicts = [controller.step(goal, place, age=age).verdict for age in (0, 0, 9, 0, 0, 0)]
    assert verdicts == ['hold', 'hold', 'stale', 'hold', 'hold', 'arrived']


def test_what_is_left_of_a_plan_is_where_the_next_search_begins():
    """A single sample with no iteration to learn from: the search can return nothing else."""
    first = jnp.array([[0.05, 0.02, 0.0, 0.0], [0.01, 0.0, 0.0, 0.5]])
    planner = cem.CEM(cem.end_effector(0.1), samples=2, elites=2, iterations=1, horizon=2,
                      momentum_mean=1.0)  # fmt: skip
    context = cem.Context(jnp.zeros((1, 1, 3)), jnp.zeros((1, 7)))
    goal = cem.Goal(jnp.ones((1, 3)))
    actions, _ = planner.solve(World(jnp.float32(1)), context, goal, jax.random.key(0), first=first)
    np.testing.assert_allclose(actions[:, [0, 1, 2, 6]], first, rtol=0, atol=1e-7)


def test_an_old_picture_and_one_that_stands_still_move_nothing():
    controller = robot().controller(picture((0.9, 0.5, 0.5)), workspace=BOX, **SETTINGS)
    image = picture((0.2, 0.5, 0.5))
    assert controller.step(image, pose((0.2, 0.5, 0.5))).verdict == 'move'
    same = controller.step(image, pose((0.2, 0.5, 0.5)))  # and the robot did not move either
    assert same.verdict == 'move'
    frozen = controller.step(image, pose((0.3, 0.5, 0.5)))
    assert frozen.verdict == 'stale' and 'moved by 0.1' in frozen.why and not frozen.action.any()
    np.testing.assert_array_equal(frozen.target, pose((0.3, 0.5, 0.5)))
    # nor later, while the robot stays where the dead picture found it
    assert controller.step(image, pose((0.3, 0.5, 0.5))).verdict == 'stale'
    for age in (0.3, float('nan')):
        old = controller.step(picture((0.3, 0.5, 0.5)), pose((0.3, 0.5, 0.5)), age=age)
        assert old.verdict == 'stale' and 'may be 0.25' in old.why
    ahead = controller.step(picture((0.3, 0.5, 0.5)), pose((0.3, 0.5, 0.5)), age=-3600.0)
    assert ahead.verdict == 'stale' and 'two clocks differ' in ahead.why and not ahead.action.any()


def test_a_camera_may_fill_one_buffer():
    controller = robot().controller(picture((0.9, 0.5, 0.5)), workspace=BOX, **SETTINGS)
    buffer = np.zeros((4, 4, 3), np.uint8)
    for x in (0.2, 0.3):
        buffer[:] = picture((x, 0.5, 0.5))
        assert controller.step(buffer, pose((x, 0.5, 0.5))).verdict == 'move'


def test_a_dead_picture_stops_a_robot_that_creeps():
    controller = robot().controller(picture((0.9, 0.5, 0.5)), workspace=BOX, **SETTINGS)
    image, verdicts = picture((0.2, 0.5, 0.5)), []
    for x in np.arange(0.2, 0.212, 0.002):
        verdicts.append(controller.step(image, pose((x, 0.5, 0.5))).verdict)
    assert verdicts == ['move'] * 3 + ['stale'] * 3  # from 5 mm on
    assert controller.step(picture((0.21, 0.5, 0.5)), pose((0.21, 0.5, 0.5))).verdict == 'move'


def test_a_picture_of_another_size_than_the_goal_is_refused():
    """As `jepa plan` refuses it: it is hardly from the same camera."""
    controller = robot().controller(picture((0.9, 0.5, 0.5)), workspace=BOX, **SETTINGS)
    wide = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(PlanError, match='picture: 6 x 4 pixels, the goal has 4 x 4'):
        controller.step(wide, pose((0.3, 0.5, 0.5)))
    assert controller.step(picture((0.3, 0.5, 0.5)), pose((0.3, 0.5, 0.5))).verdict == 'move'


def test_energies_that_are_no_numbers_are_no_arrival():
    agent = Agent(world_model=World(jnp.float32(np.nan)))
    controller = robot(agent=agent).controller(picture([0.5] * 3), workspace=BOX, **SETTINGS)
    with pytest.raises(PlanError, match='energy nan of the plan'):
        controller.step(picture([0.2] * 3), pose([0.2] * 3))


def test_goals_may_come_with_a_pose_and_without():
    """The program serves both; a pose that no cost weighs changes nothing."""
    place, goal = np.array([0.2, 0.4, 0.35]), picture([0.5, 0.4, 0.3])
    controller = robot().controller(goal, workspace=BOX, **SETTINGS)
    alone = controller.step(picture(place), pose(place))
    controller.reset(goal, goal_state=pose([0.9, 0.9, 0.9]))
    again = controller.step(picture(place), pose(place))
    np.testing.assert_array_equal(alone.action, again.action)
    controller.reset(goal)
    assert controller.step(picture(place), pose(place)).energy == alone.energy


def test_a_model_that_ignores_actions_moves_nothing():
    blind = robot(agent=Agent(World(jnp.float32(0))))
    goal, start = picture((0.9, 0.5, 0.5)), (picture((0.2, 0.5, 0.5)), pose((0.2, 0.5, 0.5)))
    step = blind.controller(goal, workspace=BOX, **SETTINGS).step(*start)
    assert step.verdict == 'ignores actions' and not step.action.any()
    ended = dataclasses.replace(blind, ended=('ignores actions', 'it ignores actions'))
    with pytest.raises(PlanError, match="run 'toy' ended: it ignores actions"):
        ended.controller(goal, workspace=BOX, **SETTINGS)
    forced = ended.controller(goal, workspace=BOX, force=True, **SETTINGS)
    assert forced.step(*start).verdict == 'hold'  # no plan is better than doing nothing


UNITS = [
    (dict(metres=0.001, angles='degrees'), [500, 250, 100, 90, 0, 45, 0.25]),
    (dict(gripper='open'), [0.5, 0.25, 0.1, np.pi / 2, 0, np.pi / 4, 0.75]),
    (dict(gripper_range=(255.0, 0.0)), [0.5, 0.25, 0.1, np.pi / 2, 0, np.pi / 4, 191.25]),
]


@pytest.mark.parametrize('units, recorded', UNITS)
def test_poses_come_and_go_in_the_units_of_the_robot(units, recorded):
    meant = [[0.5, 0.25, 0.1, np.pi / 2, 0, np.pi / 4, 0.25]]
    data = RobotConfig(**units)
    np.testing.assert_allclose(as_recorded(meant, data), [recorded], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(rescaled('', [recorded], data), meant, rtol=1e-12, atol=1e-12)
    if data.metres == 1:
        return  # one program is enough
    box = np.array(BOX) / data.metres
    own = robot(units=data).controller(picture((0.5, 0.25, 0.9)), workspace=box, **SETTINGS)
    step = own.step(picture((0.5, 0.25, 0.1)), recorded)
    assert step.action[2] == pytest.approx(0.1, abs=2e-3)
    expected = (0.1 + step.action[2]) / data.metres
    assert step.target[2] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(step.target[3:6], recorded[3:6], rtol=1e-5, atol=1e-3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Watched:
    """What it predicts is where the tool is in the camera's frame, as its poses and actions say."""

    follows: jax.Array

    def rollout(self, context, actions):
        state, states = context.states[-1], []
        for h in range(actions.shape[1]):
            state = poses.apply(state, actions[:, h])
            states.append(state)
        states = jnp.stack(states, axis=1)
        return states[..., None, :3] + self.follows * 0, states


CAMERA = [0.8, 0.5, 0.6, -2.0, 0.1, 2.3]


def test_poses_are_those_that_the_camera_sees_where_training_turned_them():
    """The world is in the camera's frame, and the goal, the workspace and the target are in the
    base's: only turned both ways do they fit. Without its pose, nothing is planned."""
    units = RobotConfig(frame='camera', metres=0.001, angles='degrees')
    scale = np.array([1000.0] * 3 + [180 / np.pi] * 3 + [1])
    place, goal = np.array([0.3, 0.4, 0.35, 3.0, 0.2, -1.0, 0.2]), np.array([0.38, 0.4, 0.3])

    def sight(place):
        (state,) = as_contract('', (np.array([*place, 0, 0, 0, 0]) * scale)[None], units,
                               np.array([CAMERA]))  # fmt: skip
        return state[:3]

    class Seeing(Agent):
        def features(self, params, images):
            if not images.shape[1] == 1:
                return super().features(params, images)
            return jnp.asarray(sight(goal), jnp.float32)[None, None]

    agent = Seeing(world_model=Watched(jnp.float32(1)))
    blind = robot(agent=agent, units=units)
    box = np.array(BOX) * 1000
    image = np.zeros((1, 4, 3), np.uint8)  # a row: the goal and the place now are the same to it
    with pytest.raises(
        PlanError, match="extrinsics: 'toy' was trained with robot.frame = 'camera'"
    ):
        blind.controller(image, workspace=box, **SETTINGS)
    with pytest.raises(PlanError, match='must be six finite numbers'):
        blind.controller(image, workspace=box, extrinsics=[0.0] * 5, **SETTINGS)
    with pytest.raises(PlanError, match="robot.frame = 'base': must not be given"):
        robot().controller(picture(goal), workspace=BOX, extrinsics=CAMERA, **SETTINGS)
    controller = blind.controller(image, workspace=box, extrinsics=CAMERA, **SETTINGS)
    step = controller.step(image, place * scale)
    expected = goal - place[:3]
    np.testing.assert_allclose(step.action[:3], expected, atol=0.01)
    target = step.target / scale
    np.testing.assert_allclose(target[:3], place[:3] + step.action[:3], atol=1e-5)
    np.testing.assert_allclose(target[3:6], place[3:6], atol=1e-5)
    with pytest.raises(PlanError, match='picture: float64'):  # and leaves the camera where it was
        controller.reset(image / 2, extrinsics=[9.0] * 6)
    controller.reset(image)
    np.testing.assert_array_equal(controller.step(image, place * scale).action, step.action)
    controller.reset(image, extrinsics=[*CAMERA[:2], 0.56, *CAMERA[3:]])  # it was moved down
    step = controller.step(image, place * scale)
    expected[2] -= 0.04
    np.testing.assert_allclose(step.action[:3], expected, atol=0.01)


def test_a_camera_turns_poses_as_recordings_are():
    rng = np.random.default_rng(0)
    states, camera = rng.uniform(-1, 1, (9, 7)), np.array([CAMERA] * 9)
    expected = in_camera_frame(states, camera)
    own = poses.seen(jnp.float32(states), jnp.float32(CAMERA))
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-6)
    own = FromCamera(Recorder(), jnp.float32(CAMERA))
    context = Context(jnp.zeros((1, 1, 3)), jnp.float32(states[:1]))
    actions = actions_between(states[:3])[None]
    (turned, start), after = own.rollout(context, jnp.float32(actions))
    np.testing.assert_allclose(turned[0, :, :6], actions_between(expected[:3])[:, :6], atol=1e-5)
    np.testing.assert_array_equal(turned[0, :, 6], np.float32(actions[0, :, 6]))
    np.testing.assert_allclose(start, expected[:1], atol=1e-6)
    np.testing.assert_allclose(after[0, :, :6], states[1:3, :6], atol=1e-5)


class Recorder:
    """Gives what it was asked."""

    def rollout(self, context, actions):
        return (actions, context.states), None


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(workspace=(0, 1, 0, 1)), 'workspace 0,1,0,1: must be x0,x1,y0,y1,z0,z1'),
        (dict(workspace=None), r'workspace None: must be six numbers x0,x1,y0,y1,z0,z1, or \(\)'),
        (dict(workspace=((0, 1), (0, 1), (0, 1))), 'must be six numbers x0,x1,y0,y1,z0,z1'),
        (dict(planner='best'), "planner 'best': allowed are cem, mppi, adam, cem_adam"),
        (dict(elites=100), 'elites 100: must be from 2 to samples = 64'),
        (dict(max_step=-1), 'max_step -1: must be finite'),
        (dict(gain=1.0), 'gain 1: must be from 0'),
        (dict(patience=0), 'patience 0: must be at least 1'),
        (dict(max_age=-1.0), 'max_age -1: must be more than 0 seconds'),
        (dict(goal=np.zeros((4, 4, 3))), r'picture: float64 \[4, 4, 3\], must be uint8'),
        (dict(cost=Cost(gripper_weight=0.1)), 'goal_state: the cost has a gripper_weight, so'),
        (dict(goal_state=[0.0] * 6), r'states have shape \[1, 6\], must have \[T, 7\]'),
    ],
)
def test_settings_that_cannot_be(settings, words):
    asked = {'goal': picture((0.5, 0.5, 0.5)), 'workspace': BOX, **SETTINGS, **settings}
    with pytest.raises(PlanError, match=words):
        robot().controller(**asked)


@pytest.mark.parametrize(
    'state, words',
    [
        ([0.5, 0.5, 0.5, 0, 0, 0, 200.0], 'closedness of the gripper must be from 0'),
        ([500, 300, 200, 0, 0, 0, 0], 'millimetres'),
        ([0.5, 0.5, np.nan, 0, 0, 0, 0], 'z of frame 0 is nan'),
        (['a'] * 7, 'must be numbers'),
    ],
)
def test_poses_that_cannot_be(state, words):
    controller = robot().controller(picture((0.5, 0.5, 0.5)), workspace=BOX, **SETTINGS)
    with pytest.raises(PlanError, match=words):
        controller.step(picture((0.5, 0.5, 0.5)), state)


def test_the_planners_of_the_commands_are_those_there_are():
    assert tuple(cem.PLANNERS) == PLANNERS


def test_a_model_without_weights_says_what_it_is():
    loaded = jepa_jax.Robot.load('random:tiny', size=(32, 32))
    assert 'RANDOM' in repr(loaded) and loaded.rate == 4
    rng = np.random.default_rng(0)
    goal, image = rng.integers(0, 256, (2, 40, 56, 3), np.uint8)
    controller = loaded.controller(goal, workspace=BOX, samples=8, iterations=2, elites=2)
    assert controller.step(image, [0.5, 0.5, 0.5, 0, 0, 0, 0]).verdict == 'ignores actions'
    assert repr(controller).startswith("Controller of 'random:tiny', within ")
    for units, words in (
        (dict(gripper_range=(1.0, 1.0)), 'must be the values when open and when closed, which'),
        (dict(gripper_range=(1,)), r'gripper_range = \(1,\): must hold 2 values'),
        (dict(gripper_range=5), r'gripper_range = \(5,\): must hold 2 values'),
        (dict(gripper_range=(0, np.nan)), r'gripper_range\[1\] = nan: must be a finite number'),
        (dict(meters=1.0), 'meters: allowed are metres, angles, gripper'),
        (dict(metres='mm'), "metres = 'mm': must be of type float"),
        (dict(metres=-1.0), 'metres = -1.0: must be more than 0'),
        (dict(angles='rad'), 'angles = .rad.: allowed are radians, degrees'),
    ):
        with pytest.raises(PlanError, match=words):
            Robot.load('random:tiny', **units)
    words = 'horizon 99: must be at most 7 for this model, whose predictor was trained on at most'
    with pytest.raises(PlanError, match=words):
        loaded.check(dict(workspace=BOX, horizon=99))
    stateless = robot(agent=Agent(Stateless(jnp.float32(1))))
    with pytest.raises(PlanError, match='gripper_weight 0.1: the model has no state'):
        stateless.check(dict(workspace=BOX, cost=Cost(gripper_weight=0.1)))
    stateless.check(dict(workspace=BOX))


@pytest.fixture
def server():
    made = serve_robot.serve(robot(), {'workspace': BOX, **SETTINGS}, '127.0.0.1', 0)
    with made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{made.server_port}'
        made.shutdown()
        thread.join()


def test_another_process_asks_over_http(server, monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).resolve().parents[2] / 'examples'))
    from robot_client import Planner

    planner = Planner(server)
    start = picture((0.2, 0.4, 0.35)), pose((0.2, 0.4, 0.35))
    with pytest.raises(RuntimeError, match='no goal: POST /goal first'):
        planner.step(*start)
    assert planner.goal(picture((0.5, 0.4, 0.3)))['compile_seconds'] > 0
    step = planner.step(*start)
    own = robot().controller(picture((0.5, 0.4, 0.3)), workspace=BOX, **SETTINGS).step(*start)
    assert step['verdict'] == 'move' and step['action'] == own.action.tolist()
    assert step['target'] == own.target.tolist() and step['energy'] == own.energy
    assert planner.step(*start, age=9.0)['energy'] is None
    with pytest.raises(RuntimeError, match="robot.frame = 'base': must not be given"):
        planner.goal(picture((0.5, 0.4, 0.3)), extrinsics=CAMERA)
    with pytest.raises(RuntimeError, match='must have'):
        planner.step(start[0], [0.0] * 6)
    with urllib.request.urlopen(server) as answer:
        assert json.load(answer)['model'] == 'toy'
    planner._connection.close()
    del sys.modules['robot_client']


def test_requests_that_are_none(server):
    """One line each, and the server goes on."""
    body = io.BytesIO()
    np.savez(body, state=np.zeros(7))
    extra = io.BytesIO()
    np.savez(extra, image=picture((0.5, 0.5, 0.5)), state=np.zeros(7), aeg=9.0)
    for path, content, words in (
        ('/goal', b'PK nothing', 'request'),
        ('/goal', b'', 'request'),
        ('/goal', body.getvalue(), 'no array image'),
        ('/other', b'x', '/other'),
        ('/step', extra.getvalue(), 'array aeg: allowed are image, state, age, extrinsics'),
    ):
        request = urllib.request.Request(server + path, data=content)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 400
        answer = json.loads(refused.value.read())['error']
        assert words in answer and len(answer.splitlines()) == 1
        refused.value.close()


def test_a_picture_grows_older_while_it_waits_for_its_turn():
    busy, done, ages = threading.Event(), threading.Event(), []

    class Busy:
        compile_seconds = 0.0

        def controller(self, *args, **settings):
            return self

        def step(self, image, state, *, age):
            ages.append(age)
            busy.set()
            done.wait(20)
            return object.__new__(Busy)  # an answer without fields

    made = serve_robot.serve(Busy(), {}, '127.0.0.1', 0)
    body = io.BytesIO()
    np.savez(body, image=picture((0.5, 0.5, 0.5)), state=np.zeros(7), age=0.25)

    def post(way):
        address = f'http://127.0.0.1:{made.server_port}/{way}'
        urllib.request.urlopen(address, data=body.getvalue()).close()

    with made:
        server = threading.Thread(target=made.serve_forever)
        server.start()
        post('goal')
        clients = [threading.Thread(target=post, args=['step']) for _ in range(2)]
        clients[0].start()
        busy.wait(20)
        clients[1].start()
        time.sleep(0.5)
        done.set()
        for client in clients:
            client.join()
        made.shutdown()
        server.join()
    assert ages[0] >= 0.25 and ages[1] > 0.4


def test_a_client_that_leaves_is_one_line(server, capsys):
    """Reset while its answer is written."""
    address = urllib.parse.urlsplit(server)
    with socket.create_connection((address.hostname, address.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        client.sendall(b'POST /goal HTTP/1.1\r\nContent-Length: 500\r\n\r\nabc')
        time.sleep(0.2)  # until the server reads the body
    printed = ''
    until = time.monotonic() + 20
    while not printed and time.monotonic() < until:
        time.sleep(0.05)
        printed += capsys.readouterr().err
    assert printed == '127.0.0.1 left before it was answered\n'


def test_a_server_refuses_settings_before_it_listens(capsys, monkeypatch):
    """Not when the first goal comes."""
    monkeypatch.setattr(Robot, 'load', classmethod(lambda cls, *a, **k: robot()))
    monkeypatch.setattr(serve_robot, 'serve', lambda *a: pytest.fail('it listens'))
    for flags, words in (
        (['--workspace', '1,0,0,1,0,1'], 'workspace 1,0,0,1,0,1: must be'),
        (['--workspace', '0,1,0,1,0,1', '--samples', '5'], 'elites 10: must be from 2'),
        (['--workspace', '0,1,0,1,0,1', '--max-age', '-1'], 'max_age -1: must be more than 0'),
        (
            ['--workspace', '0,1,0,1,0,1', '--state-weight', 'nan'],
            'cost state_weight nan: must be finite and at least 0',
        ),
    ):
        status = cli.run(
            serve_robot.run, doc='', tables=(), options=serve_robot.add_options,
            argv=['--model', 'random:tiny', *flags],
        )  # fmt: skip
        assert status == 1 and f'error: {words}' in capsys.readouterr().err
