"""A trained model as the controller of a robot, one action at a time.

    robot = jepa_jax.Robot.load('runs/ac-vitg')
    controller = robot.controller(goal_image, workspace=(0.3, 0.7, -0.3, 0.3, 0.02, 0.4))
    step = controller.step(image, state)    # four times a second, or as the recordings had it
    if step.verdict == 'move':
        go_to(step.target)

Poses come and go in the units of the recordings that the run was trained on.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import poses
from jepa_jax.config import RobotConfig
from jepa_jax.config.action_conditioned import both_grippers
from jepa_jax.config.check import types_and_ranges
from jepa_jax.config.layouts import in_place
from jepa_jax.data.clips import Timing
from jepa_jax.data.robot import STATE, Measured, actions_between, steps_between, unit_problems
from jepa_jax.data.robot.contract import as_recorded, rescaled
from jepa_jax.errors import BadFile, ConfigError, PlanError
from jepa_jax.planning import model
from jepa_jax.planning.cem import check_box, end_effector, solver
from jepa_jax.planning.world_model import Context, Cost, FromCamera, Goal, energies

MOVED = 0.005  # metres, radians or closedness by which a robot that moved must change its picture
# metres outside of the workspace that are rounding or a robot's own error, and not led back: else a
# goal at a wall might never be arrived at
SLIGHT = 0.001


@dataclasses.dataclass(frozen=True)
class Step:
    """What to do now, and why. The action is zero with every verdict but `move`.

    | verdict | what it means |
    |---|---|
    | `move` | go to the target |
    | `hold` | no action is predicted to come nearer than doing nothing |
    | `arrived` | held several times in a row, which ends an episode |
    | `stale` | the picture is too old, or has not changed although the robot moved |
    | `ignores actions` | the predicted energy hardly depends on the actions |
    """

    verdict: str
    why: str  # in a sentence
    action: np.ndarray  # [7] change of pose, metres, radians, closedness; see jepa_jax.poses
    target: np.ndarray  # [7] the pose to go to, in the robot's units
    # predicted distance of features from the goal at the end of the plan, the same after doing
    # nothing, and the distance of the present picture; None of a stale picture
    energy: float | None
    still: float | None
    distance: float | None
    seconds: float  # that it took


@dataclasses.dataclass(frozen=True, repr=False)
class Robot:
    """An action-conditioned model and the robot that it was trained on."""

    name: str
    agent: model.PlanningModel
    units: RobotConfig  # of the poses that are given and returned
    rate: float  # actions a second, as training saw them
    measured: Measured | None  # what its recordings held; None: not known
    ended: tuple[str, str] | None  # the word that its run ended with, and the sentence

    @classmethod
    def load(
        cls,
        name: str,
        *,
        encoder: str = 'target',
        dtype: str = 'float32',
        size: tuple[int, int] = (256, 256),
        seed: int = 0,
        **units: object,
    ) -> Robot:
        """A run or a released model by name or path, or `random:SIZE`.

        Args:
          size: height and width in pixels that a random model is made for; others have their own.
          units: of the poses: metres, angles, gripper, gripper_range, as `config.robot` has them.
            Those of the run's recordings unless given; of released weights metres, radians,
            closedness.

        Raises:
          PlanError: the model predicts no actions' effects; units that are none.
          ZooError, ConvertError, CheckpointError: as jepa_jax.load.
        """
        fields = {f.name for f in dataclasses.fields(RobotConfig)}
        if wrong := sorted(
            units.keys() - (fields & {'metres', 'angles', 'gripper', 'gripper_range'})
        ):
            raise PlanError(f'{wrong[0]}: allowed are metres, angles, gripper, gripper_range')
        if 'gripper_range' in units:
            units['gripper_range'] = tuple(np.ravel(units['gripper_range']).tolist())
        units = in_place(units)
        try:
            types_and_ranges(RobotConfig(**units))
        except ConfigError as error:
            raise PlanError(str(error)) from error
        for problem in both_grippers(RobotConfig(**units)):
            raise PlanError(problem)
        agent = model.load(name, size=size, encoder=encoder, dtype=dtype, seed=seed)
        known = agent.known
        data = dataclasses.replace(known.recordings or RobotConfig(), **units)
        return cls(name, agent, data, _rate(data, known.measured), known.measured, known.ended)

    def __repr__(self) -> str:
        lines = [*self.agent.about, f'{self.rate:g} actions a second']
        if self.units.frame == 'camera':
            lines.append('trained on poses as the camera sees them: its own is needed, extrinsics')
        lines += self.measured.lines() if self.measured else []
        return '\n  '.join([f"Robot('{self.name}')", *lines])

    def controller(self, goal: np.ndarray, *, workspace: Sequence[float], **settings) -> Controller:
        """A Controller towards a goal image, compiled; see there."""
        return Controller(self, goal, workspace=workspace, **settings)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises PlanError: settings of `controller` that cannot be; before there is a goal."""
        usual = {n: p.default for n, p in inspect.signature(Controller).parameters.items()}
        all_settings = {**usual, **settings, 'robot': self}
        _search(**{name: all_settings[name] for name in inspect.signature(_search).parameters})


def _rate(data: RobotConfig, measured: Measured | None) -> float:
    """Frames a second that training saw: a whole share of the recordings' own, of several the
    least; `fps` where that is not known."""
    recorded = measured.rates if measured else ()
    steps = {r: steps_between(Timing(1, r, 1.0), data.fps) for r in recorded if r >= data.fps}
    return min((r / step for r, step in steps.items()), default=data.fps)


def _search(
    robot: Robot, workspace: Sequence[float], planner: str, samples: int, iterations: int,
    horizon: int, elites: int, max_step: float, cost: Cost | None, gain: float, patience: int,
    max_age: float | None, force: bool,
) -> tuple[Any, Cost, tuple[float, ...]]:  # fmt: skip
    """The solver, the cost and the box in metres; raises PlanError, see Controller."""
    if robot.ended and robot.ended[0] == 'ignores actions' and not force:
        raise PlanError(f"the run '{robot.name}' ended: {robot.ended[1]} (force=True: plan all "
                        'the same)')  # fmt: skip
    if not 0 <= gain < 1:
        raise PlanError(f'gain {gain:g}: must be from 0 to less than 1')
    if patience < 1:
        raise PlanError(f'patience {patience}: must be at least 1')
    if max_age is not None and not max_age > 0:
        raise PlanError(f'max_age {max_age:g}: must be more than 0 seconds')
    cost = cost or Cost()
    try:
        box = tuple(float(x) * robot.units.metres for x in workspace)
    except (TypeError, ValueError) as error:
        raise PlanError(
            f'workspace {workspace}: must be six numbers x0,x1,y0,y1,z0,z1, or () for none'
        ) from error
    try:
        if box:
            check_box(box)
        search = solver(
            planner, end_effector(max_step), cost, samples=samples, iterations=iterations,
            horizon=horizon, elites=elites,
        )  # fmt: skip
        _trace(robot, search)
    except ValueError as error:
        raise PlanError(str(error)) from error
    return search, cost, box


def _trace(robot: Robot, search: Any) -> None:
    """A plan that is not computed: whether the model goes with the horizon, the cost and the
    planner. Raises ValueError."""
    agent, world_model = robot.agent, robot.agent.world_model
    if robot.units.frame == 'camera':
        world_model = FromCamera(world_model, jnp.zeros(6))

    def solve() -> Any:
        image = jnp.zeros((1, *agent.size, 3), jnp.uint8)
        features, state = agent.features(agent.encoder, image), jnp.zeros((1, 7))
        goal = Goal(features[0], state[0])
        return search.solve(world_model, Context(features, state), goal, jax.random.key(0))

    jax.eval_shape(solve)


class Controller:
    """Plans from every picture anew and gives the first action of each plan.

    What it knows of the steps before: the rest of the last plan, around which the next search
    begins; the last picture and pose, by which it notices a camera that stands still; how often
    nothing was better than to stay.
    """

    def __init__(
        self,
        robot: Robot,
        goal: np.ndarray,
        *,
        workspace: Sequence[float],
        goal_state: Sequence[float] | None = None,
        extrinsics: Sequence[float] | None = None,
        planner: str = 'cem',
        samples: int = 400,
        iterations: int = 10,
        horizon: int = 1,
        elites: int = 10,
        max_step: float = 0.05,
        cost: Cost | None = None,
        gain: float = 0.01,
        patience: int = 3,
        max_age: float | None = None,
        force: bool = False,
        seed: int = 0,
    ):
        """
        Args:
          goal: uint8 [H, W, 3], a picture from the same camera of the scene as it should be.
          workspace: x0, x1, y0, y1, z0, z1 in the robot's units, which no plan leaves. () for none,
            in simulation: a robot should have one.
          goal_state: pose [7] at the goal, for a cost with a state_weight or a gripper_weight.
          extrinsics: pose [6] of the camera in the frame of the robot's base, x, y, z in metres and
            Euler angles in radians, whatever the robot's units; of runs with robot.frame =
            'camera', and of no others. The camera stands still; poses, targets and the workspace
            are in the base's frame all the same.
          planner, samples, iterations, horizon, elites: of jepa_jax.planning.cem.
          cost: of a plan; None: as released.
          max_step: metres that an action may move along an axis.
          gain: share of the energy of doing nothing by which a plan must be better, or the robot
            holds.
          patience: times in a row that it holds, after which it has arrived.
          max_age: seconds that a picture may be old; None: as long as an action takes.
          force: give the plan also where the energy hardly depends on actions.

        Raises:
          PlanError: a setting, a workspace or a picture that cannot be; the model's own run ended
            with the verdict that it ignores actions, and nothing forces it.
        """
        self._solver, self._cost, self._box = _search(
            robot, workspace, planner, samples, iterations, horizon, elites, max_step, cost, gain,
            patience, max_age, force,
        )  # fmt: skip
        self.robot = robot
        self._max_step = max_step
        self._gain, self._patience, self._force = gain, patience, force
        self._max_age = 1 / robot.rate if max_age is None else max_age
        self._horizon, self._key = horizon, jax.random.key(seed)
        self._camera: jax.Array | None = None
        self.reset(goal, goal_state, extrinsics)
        began = time.monotonic()
        self._program = jax.jit(self._decide).lower(
            self._world_model, robot.agent.encoder,
            *self._arguments(self._picture(goal), np.zeros(7, np.float32)),
        ).compile()  # fmt: skip
        self.compile_seconds = time.monotonic() - began

    def __repr__(self) -> str:
        box = ','.join(f'{x / self.robot.units.metres:g}' for x in self._box)
        within = f'within {box}' if box else 'without a workspace'
        name = self.robot.name
        return f"Controller of '{name}', {within}, {self._steps} steps towards this goal"

    def reset(
        self,
        goal: np.ndarray,
        goal_state: Sequence[float] | None = None,
        extrinsics: Sequence[float] | None = None,
    ) -> None:
        """Another goal, or the same from the beginning; what was compiled serves on.

        extrinsics: where the camera is now; None: where it was.

        Raises:
          PlanError: a picture or pose that cannot be; everything is as it was.
        """
        camera = self._placed(extrinsics)
        features = self.robot.agent.encode(self._picture(goal)[None])[0]
        size = np.shape(goal)[:2]
        state = None if goal_state is None else jnp.asarray(self._pose(goal_state), jnp.float32)
        if state is None and (weights := self._cost.weights):
            raise PlanError(
                f'goal_state: the cost has a {next(iter(weights))}, so it must be given'
            )
        self._camera = camera
        # what no cost reads would be another input of the program, with it and without
        self._goal = Goal(features, state if self._cost.weights else None)
        self._size = size
        self._first = jnp.zeros((self._horizon, len(end_effector().planned)))
        # the picture before, and the pose with which it first came: one that stands still while the
        # robot creeps is as stale as while it leaps
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self._held = self._steps = 0

    def _placed(self, extrinsics: Sequence[float] | None) -> jax.Array | None:
        """Where the camera is."""
        name, frame = self.robot.name, self.robot.units.frame
        if extrinsics is None:
            if frame == 'camera' and self._camera is None:
                raise PlanError(
                    f"extrinsics: '{name}' was trained with robot.frame = 'camera', so the "
                    "camera's pose [6] in the frame of the robot's base must be given, in metres "
                    'and radians'
                )
            return self._camera
        if frame != 'camera':
            raise PlanError(
                f"extrinsics: '{name}' was trained with robot.frame = '{frame}': must not be given"
            )
        camera = np.asarray(extrinsics)
        finite = camera.dtype.kind in 'fiu' and np.isfinite(camera).all()
        if camera.shape != (6,) or not finite:
            raise PlanError(f'extrinsics {extrinsics}: must be six finite numbers')
        return jnp.asarray(camera, jnp.float32)

    @property
    def _world_model(self) -> Any:
        """Of actions in the frame of the robot's base."""
        own = self.robot.agent.world_model
        return own if self._camera is None else FromCamera(own, self._camera)

    def step(self, image: np.ndarray, state: Sequence[float], *, age: float = 0.0) -> Step:
        """What to do now.

        Args:
          image: uint8 [H, W, 3], RGB, of any size, which is the goal's, from the camera of the
            recordings.
          state: pose [7] measured when it was taken, in the robot's units.
          age: seconds since then. A picture from the future is stale, too: two clocks differ.

        Raises:
          PlanError: a picture or pose that cannot be, a pose outside of the workspace by more than
            a step, or a model whose energies are no numbers. Nothing should move then.
        """
        began = time.monotonic()
        picture, pose = self._picture(image), self._pose(state)
        if (size := np.shape(image)[:2]) != self._size:
            raise PlanError(
                f'picture: {size[1]} x {size[0]} pixels, the goal has {self._size[1]} x '
                f'{self._size[0]}: both must be from the same camera'
            )
        why = self._stale(picture, pose, age)
        if self._last is None or not np.array_equal(self._last[0], picture):
            self._last = picture.copy(), pose  # many cameras fill one buffer
        nothing = np.zeros(7, np.float32)
        if why:
            self._held = 0  # nobody knows where the robot is by now
            return Step('stale', why, nothing, np.array(state, float), None, None, None,
                        time.monotonic() - began)  # fmt: skip
        agent = self.robot.agent
        answer = self._program(self._world_model, agent.encoder, *self._arguments(picture, pose))
        actions, reached, first, energy, still, depends, distance = map(np.asarray, answer)
        if not np.isfinite([energy, still, depends, distance]).all():  # no comparison would hold
            raise PlanError(
                f'energy {energy:g} of the plan, {still:g} of doing nothing, distance {distance:g}:'
                " must be finite; the model's weights or features are not"
            )
        verdict, why = self._judge(pose, float(energy), float(still), float(depends))
        moves = verdict == 'move'
        self._first = jnp.asarray(first if moves else np.zeros_like(first))
        self._steps += 1
        action = actions[0] if moves else nothing
        target = np.array(state, float)
        if moves:
            reached = reached.astype(float)
            if self._box:  # the plan stays within, but for rounding
                reached[:3] = reached[:3].clip(*np.reshape(self._box, (3, 2)).T)
            target = as_recorded(reached[None], self.robot.units)[0]
        return Step(
            verdict, why, action, target, float(energy), float(still), float(distance),
            time.monotonic() - began,
        )  # fmt: skip

    def _judge(
        self, pose: np.ndarray, energy: float, still: float, depends: float
    ) -> tuple[str, str]:
        if depends < model.DEPENDS and not self._force:
            self._held = 0
            return 'ignores actions', (
                f'the energy of actions differs by {depends:.2%} of that of doing nothing, must by '
                f'{model.DEPENDS:.1%}'
            )
        if max(self._beyond(pose)) > SLIGHT:
            self._held = 0
            return 'move', 'back into the workspace'
        better = 1 - energy / max(still, 1e-12)
        if better >= self._gain:
            self._held = 0
            return 'move', f'the plan is predicted to end {better:.1%} nearer than doing nothing'
        self._held += 1
        why = f'the best plan is {better:.1%} nearer than doing nothing, must be {self._gain:.1%}'
        if self._held < self._patience:
            return 'hold', why
        return 'arrived', f'{why}; so {self._held} times in a row'

    def _stale(self, picture: np.ndarray, pose: np.ndarray, age: float) -> str:
        if not age <= self._max_age:
            return f'the picture is {age:.3g} s old, may be {self._max_age:.3g}'
        if age < -self._max_age:
            return f'the picture is from {-age:.3g} s ahead: two clocks differ'
        if self._last is None:
            return ''
        before, place = self._last
        moved = float(np.abs(actions_between(np.stack([place, pose]))).max())
        if moved > MOVED and np.array_equal(before, picture):
            return f'the robot moved by {moved:.3g}, and the picture is the same to the last bit'
        return ''

    def _picture(self, image: np.ndarray) -> np.ndarray:
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise PlanError(
                f'picture: {image.dtype} {list(image.shape)}, must be uint8 [H, W, 3], RGB'
            )
        return self.robot.agent.fit(image[None])[0]

    def _pose(self, state: Sequence[float]) -> np.ndarray:
        """As the contract has it, [7] float64."""
        units = self.robot.units
        try:
            states = rescaled('state', np.asarray(state)[None], units)
        except BadFile as error:
            raise PlanError(f'state: {error.detail}') from error
        if problems := unit_problems(states, units):
            raise PlanError(f'state: {"; ".join(problems)}')
        for i, beyond in enumerate(self._beyond(states[0])):
            if beyond > self._max_step:
                low, high = self._box[2 * i : 2 * i + 2]
                raise PlanError(
                    f'state: {STATE[i]} = {states[0, i]:.4g} m is outside of the workspace, '
                    f'{low:g} to {high:g} m, by more than a step of {self._max_step:g}'
                )
        return states[0]

    def _beyond(self, pose: np.ndarray) -> list[float]:
        """Metres by which it is outside of the workspace, along each axis."""
        if not self._box:
            return [0.0]
        low, high = np.reshape(self._box, (3, 2)).T
        return np.maximum(low - pose[:3], pose[:3] - high).clip(0).tolist()

    def _arguments(self, picture: np.ndarray, pose: np.ndarray) -> tuple:
        """Of the program, for one step. The walls [3, 2] are as far as steps may lead; a tool that
        is a little outside is led back."""
        walls = None
        if self._box:
            walls = jnp.asarray(
                np.reshape(self._box, (3, 2)) - np.asarray(pose)[:3, None], jnp.float32
            )
        return (
            jnp.asarray(picture), jnp.asarray(pose, jnp.float32), self._goal,
            jax.random.fold_in(self._key, self._steps), self._first, walls,
        )  # fmt: skip

    def _decide(self, world_model, encoder, picture, pose, goal, key, first, walls):
        """One step on the device: picture, plan, and what other actions would do.

        -> actions [H, 7], the pose after the first [7], what the next search begins with [H, P],
        energies of the plan and of doing nothing, the share of that by which those of single
        actions differ, and the distance now.
        """
        agent, cost = self.robot.agent, self._cost
        features = agent.features(encoder, picture[None])
        context = Context(features, pose[None])
        planner = self._solver
        if walls is not None:
            within = (*((low, high) for low, high in walls), None)
            space = end_effector(self._max_step)
            planner = planner.within(dataclasses.replace(space, within=within))
        actions, diagnostics = planner.solve(world_model, context, goal, key, first=first)
        space = planner.space
        # one number of one action at its bound, either way, and none
        alone = jnp.diag(jnp.asarray(space.bounds))
        tried = jnp.concatenate([jnp.zeros((1, len(alone))), alone, -alone])
        sequences = jnp.zeros((len(tried), self._horizon, 7)).at[:, 0].set(space.whole(tried))
        costs = energies(world_model, context, goal, sequences, cost)
        depends = (costs.max() - costs.min()) / jnp.maximum(costs[0], 1e-12)
        distance = cost(features[None], None if goal.state is None else pose[None, None], goal)[0]
        left = actions[1:][:, jnp.asarray(space.planned)]
        first = jnp.concatenate([left, jnp.zeros((1, left.shape[1]))])
        reached = poses.apply(pose, actions[0])
        return actions, reached, first, diagnostics['energy'], costs[0], depends, distance
