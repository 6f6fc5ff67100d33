"""What the simulated arm is asked to do, from goal images; and the script that can do it.

The tasks are those that V-JEPA 2-AC was measured with. A task is a row of goals, each with a number
of actions; after these the next goal is shown. Goal images are pictures of the scene itself, taken
where the script ends up, before the episode begins. What counts is how an episode ends, never its
best moment. (reference: world_models §5.1)
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from jepa_jax.errors import SimError
from jepa_jax.sims.panda import RATE, Panda
from jepa_jax.sims.scene import CUBE, CUBE_AREA, STANDARD, Variation

GRASP = (('above', 6), ('around', 3), ('closed', 2), ('lifted', 3))
# task -> its goals, and how many actions each gets
TASKS = {
    'reach': (('target', 10),),
    'grasp': GRASP,
    'reach_with_object': (('target', 10),),
    'pick_and_place': (*GRASP, ('over', 6), ('lowered', 3), ('released', 2)),
}
# the same as long with the last goal alone shown from the start: no sub-goals are given
FLAT = '_from_one_image'
TASKS |= {f'{task}{FLAT}': TASKS[task] for task in ('grasp', 'pick_and_place')}
START = np.array([[0.38, -0.20, 0.14], [0.60, 0.20, 0.36]])  # metres, where the tool starts
LEAST = 0.12  # metres between start and goal, so that doing nothing is no success
NEAR, HELD_NEAR, LIFT = 0.04, 0.05, 0.03  # metres, of success
MAX_STEP = 0.075  # metres along an axis, of the script
LATER = 2.7  # seconds: goal images show what stands about where it is then, not where it will be


@dataclasses.dataclass(frozen=True)
class Subgoal:
    """One of a task's goals, as the script reached it."""

    name: str
    steps: int  # actions it gets
    pose: np.ndarray  # [7] what the script aims at
    state: np.ndarray  # [7] where it ended
    cube: np.ndarray  # [3] centre of the cube then
    image: np.ndarray | None  # uint8 [H, W, 3]


class PandaEnv:
    """A task with the interface of Gymnasium's environments, which is not needed to use it.

    Observations are dicts: `image` uint8 [H, W, 3], `state` float32 [7], and the same of the
    present goal, `goal_image` and `goal_state`. An action is a change of pose [7] (see
    jepa_jax/poses.py). An episode is never terminated, only truncated when its actions are used up;
    the reward is 1 for success then and 0 at any other time. `info` holds `goal`, the number of the
    present goal, `distance`, metres from the end of the task, and, when truncated, `success`.
    """

    metadata = {'render_modes': ['rgb_array'], 'render_fps': RATE}
    render_mode = 'rgb_array'

    def __init__(
        self,
        task: str = 'reach',
        image_size: int = 128,
        variation: Variation = STANDARD,
        pictures: bool = True,
        shown: Variation | None = None,
    ):
        """variation: of the scene, unless `reset` names another. pictures: False runs without
        OpenGL; observations then hold states only. shown: the scene as goal images show it, with as
        much in it; None: as it is.

        Raises:
          SimError: an unknown task.
        """
        if task not in TASKS:
            raise SimError(f"task '{task}': allowed are {', '.join(TASKS)}")
        self.task, self.flat = task.removesuffix(FLAT), task.endswith(FLAT)
        self.pictures = pictures
        self.panda = Panda(image_size, variation)
        differs = pictures and shown not in (None, variation)
        self._shown = Panda(image_size, shown) if differs else None
        self.goals: tuple[Subgoal, ...] = ()
        self._rng = np.random.default_rng()
        self._left = 0  # actions

    @property
    def steps(self) -> int:
        """Actions of an episode."""
        return sum(count for _, count in TASKS[self.task])

    @property
    def goal(self) -> Subgoal:
        """The present goal, which observations show unless the task is one from one image."""
        return self.goals[self._present()]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Draws start and goals; the same seed, the same episode.

        options: `variation`, a Variation of the scene from now on.
        """
        options = dict(options or {})
        variation = options.pop('variation', self.panda.variation)
        if options:
            raise SimError(f"option '{next(iter(options))}': allowed is variation")
        if variation != self.panda.variation:
            self.close()
            self.panda, self._shown = Panda(self.panda.image_size, variation), None
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        poses = self._place(self._rng)
        begin = self.panda.save()
        self.goals = tuple(
            self._reach(name, steps, pose) for (name, steps), pose in zip(TASKS[self.task], poses)
        )
        self.panda.restore(begin)
        self._left = self.steps
        return self._observe(), {'goal': 0, 'distance': self.distance()}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """-> observation, reward, terminated, truncated, info.

        Raises:
          SimError: the episode is over or has not begun, or the action cannot be done.
        """
        if not self._left:
            raise SimError('no episode is under way: call reset first')
        self.panda.act(action)
        self._left -= 1
        over = not self._left
        info = {'goal': self._present(), 'distance': self.distance()}
        if over:
            info['success'] = self._success()
        return self._observe(), float(over and info['success']), False, over, info

    def distance(self) -> float:
        """Metres from the end of the task: of the tool for `reach`, else of the cube."""
        end = self.goals[-1]
        if self.task == 'reach':
            return float(np.linalg.norm(self.panda.state()[:3] - end.state[:3]))
        return float(np.linalg.norm(self.panda.cube() - end.cube))

    def render(self) -> np.ndarray:
        """The picture of this moment, uint8 [H, W, 3]."""
        return self.panda.draw()

    def close(self) -> None:
        """Lets OpenGL go."""
        for panda in filter(None, (self.panda, self._shown)):
            panda.close()

    def _success(self) -> bool:
        if self.task == 'grasp':
            rest = CUBE[2] * self.panda.variation.cube_scale
            return bool(self.panda.cube()[2] > rest + LIFT)
        return self.distance() < (NEAR if self.task == 'reach' else HELD_NEAR)

    def _present(self) -> int:
        done = self.steps - self._left
        ends = np.cumsum([goal.steps for goal in self.goals])
        return min(int(np.searchsorted(ends, done, side='right')), len(self.goals) - 1)

    def _observe(self) -> dict[str, np.ndarray]:
        goal = self.goals[-1] if self.flat else self.goal
        seen = {'state': np.float32(self.panda.state()), 'goal_state': np.float32(goal.state)}
        if self.pictures:
            seen |= {'image': self.panda.draw(), 'goal_image': goal.image}
        return seen

    def _place(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Sets the start and returns the poses to aim at."""
        cube, turn = rng.uniform(*CUBE_AREA), rng.uniform(-0.3, 0.3)
        start = rng.uniform(*START)
        if self.task in ('grasp', 'pick_and_place'):
            while np.abs(start[:2] - cube).max() > 0.2:
                start = rng.uniform(*START)
        self.panda.place(start, cube=cube, turn=turn)
        if self.task == 'reach':
            return [_pose(_away(rng, START, start), 0)]
        grasp = grasp_poses(self.panda)
        if self.task == 'grasp':
            return grasp
        if self.task == 'reach_with_object':
            for (_, steps), pose in zip(GRASP, grasp):
                follow(self.panda, pose, steps)
            follow(self.panda, _pose(start, 1), 6)
            return [_pose(_away(rng, START, start), 1)]
        return grasp + place_poses(self.panda, _away(rng, CUBE_AREA, cube))

    def _reach(self, name: str, steps: int, pose: np.ndarray) -> Subgoal:
        follow(self.panda, pose, steps)
        image = None
        if self.pictures and self._shown:
            self._shown.restore(self.panda.save())
            image = self._shown.draw(LATER)
        elif self.pictures:
            image = self.panda.draw(LATER)
        return Subgoal(name, steps, pose, self.panda.state(), self.panda.cube(), image)


def grasp_poses(panda: Panda) -> list[np.ndarray]:
    """Poses to aim at one after the other to grasp the cube where it lies and lift it."""
    cube = panda.cube()
    return [_pose(cube + [0, 0, up], closed) for up, closed in ((0.1, 0), (0, 0), (0, 1), (0.1, 1))]


def place_poses(panda: Panda, where: np.ndarray) -> list[np.ndarray]:
    """The same to put a cube held down at `where` [2] and let go."""
    height = CUBE[2] * panda.variation.cube_scale
    rows = ((0.1, 1), (0, 1), (0, 0))
    return [_pose(np.array([*where, height + up]), closed) for up, closed in rows]


def script(state: np.ndarray, pose: np.ndarray, max_step: float = MAX_STEP) -> np.ndarray:
    """The script's action [7] from a measured state [7] towards a pose [7]: straight, in steps of
    at most `max_step` metres along an axis, the gripper at once."""
    turn = Rotation.from_euler('xyz', pose[3:6]) * Rotation.from_euler('xyz', state[3:6]).inv()
    angles = turn.as_euler('xyz')
    angles[np.abs(angles) < 0.02] = 0  # held anyhow: measured angles are never quite those asked
    moved = np.clip(pose[:3] - state[:3], -max_step, max_step)
    return np.concatenate([moved, angles, [pose[6] - state[6]]])


def follow(panda: Panda, pose: np.ndarray, steps: int) -> None:
    """Goes towards a pose with the script's actions."""
    for _ in range(steps):
        panda.act(script(panda.state(), pose))


def oracle(env: PandaEnv) -> np.ndarray:
    """The script's action [7] for the present goal; it knows where everything is."""
    return script(env.panda.state(), env.goal.pose)


def _pose(position: np.ndarray, closed: float) -> np.ndarray:
    """A gripper that points down."""
    return np.concatenate([position, [np.pi, 0, 0], [closed]])


def _away(rng: np.random.Generator, box: np.ndarray, start: np.ndarray) -> np.ndarray:
    """A place in a box [2, n] at least LEAST from `start`."""
    while True:
        place = rng.uniform(*box)
        if np.linalg.norm(place - start) >= LEAST:
            return place
