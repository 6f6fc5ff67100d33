"""An arm with the kinematics of a Franka Panda at a table with a cube, and how it is moved.

It is moved as V-JEPA 2-AC moves a real one: four times a second by a change of the gripper's pose,
in the conventions of jepa_jax/poses.py. What is there is in scene.py.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from scipy.spatial.transform import Rotation

from jepa_jax.errors import SimError
from jepa_jax.sims import scene
from jepa_jax.sims.drawing import Camera, mujoco
from jepa_jax.sims.scene import CUBE, OPENING, STANDARD, TIMESTEP, Variation

RATE = 4  # actions a second
SUBSTEPS = round(1 / RATE / TIMESTEP)
RAMP = round(0.6 * SUBSTEPS)  # of these the joints are on their way, in the rest they settle

HOME = np.array([0.0, -0.25, 0.0, -2.35, 0.0, 2.1, math.pi / 4])  # gripper over the table, down
DOWN = Rotation.from_euler('x', math.pi)  # orientation of a gripper that points down
WORKSPACE = np.array([[0.32, -0.28, 0.02], [0.64, 0.28, 0.40]])  # metres; the tool stays within
TOUCH = 0.002  # metres
PRESS = 0.1  # closedness beyond what is measured that is asked of fingers which hold something


class Panda:
    """Arm, cube and camera; no task. Call `close` when done, or use it as a context manager."""

    def __init__(self, image_size: int = 128, variation: Variation = STANDARD):
        """image_size: pixels of the square picture.

        Raises:
          SimError: a picture smaller than 8 or larger than 512 pixels.
        """
        if not 8 <= image_size <= 512:
            raise SimError(f'image_size {image_size}: must be from 8 to 512 pixels')
        self.image_size = image_size
        self.model = scene.build(variation, 2 * image_size).compile()
        self.data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)  # for inverse kinematics
        self._tool = self.model.site('tool').id
        self._fingers = [self.model.joint(name).qposadr[0] for name in ('left', 'right')]
        self._cube = self.model.joint('cube').qposadr[0]
        self._things = [
            (self.model.body(f'distractor{i}').mocapid[0], thing)
            for i, thing in enumerate(variation.distractors)
        ]
        self._camera = Camera(self.model, 'outside', image_size)
        self.variation = variation
        self._down = DOWN  # orientation last asked for: held, so that it does not drift
        self.place()

    def place(
        self, tool=(0.45, 0.0, 0.25), closed: float = 0.0, cube=(0.5, 0.0), turn: float = 0.0
    ) -> None:
        """Sets the scene at rest: the tool's position [3] in metres with the gripper pointing down,
        its closedness, the cube's place on the table [2] and its turn in radians."""
        mujoco.mj_resetData(self.model, self.data)
        self._down = DOWN
        joints = self.solve(np.asarray(tool, float), DOWN, HOME)
        fingers = OPENING / 2 * (1 - closed)
        self.data.qpos[:7], self.data.ctrl[:7] = joints, joints
        self.data.qpos[self._fingers], self.data.ctrl[7:] = fingers, fingers
        yaw = Rotation.from_euler('z', turn).as_quat(scalar_first=True)
        height = CUBE[2] * self.variation.cube_scale
        self.data.qpos[self._cube : self._cube + 7] = [*cube, height, *yaw]
        self._move_things()
        mujoco.mj_forward(self.model, self.data)

    def _move_things(self, later: float = 0.0) -> None:
        """What stands about to where it is now, or so many seconds later."""
        for body, thing in self._things:
            place = thing.at(self.data.time + later)
            self.data.mocap_pos[body] = [*place, CUBE[2] * thing.scale]

    def solve(self, position: np.ndarray, rotation: Rotation, start: np.ndarray) -> np.ndarray:
        """Joint angles [7] that bring the tool to a position [3] and an orientation, or as near as
        can be: damped least squares from the angles `start`, what is left of the freedom being
        used to stay near HOME."""
        d, q = self._scratch, np.array(start, float)
        low, high = self.model.jnt_range[:7].T
        goal = rotation.as_matrix()
        jacobian = np.empty((6, self.model.nv))
        for _ in range(50):
            d.qpos[:7] = q
            mujoco.mj_kinematics(self.model, d)
            mujoco.mj_comPos(self.model, d)
            mujoco.mj_jacSite(self.model, d, jacobian[:3], jacobian[3:], self._tool)
            J = jacobian[:, :7]
            tool = d.site_xmat[self._tool].reshape(3, 3)
            turn = 0.5 * np.cross(tool, goal, axis=0).sum(1)  # exact where it is small
            error = np.concatenate([position - d.site_xpos[self._tool], turn])
            if np.abs(error).max() < 1e-5:
                break
            weights = np.linalg.inv(J @ J.T + 1e-5 * np.eye(6))
            rest = 0.1 * (HOME - q)
            change = rest + J.T @ (weights @ (error - J @ rest))
            q = np.clip(q + np.clip(change, -0.3, 0.3), low, high)
        return q

    def state(self) -> np.ndarray:
        """Pose of the tool as measured, [7] float64; see jepa_jax/poses.py."""
        d = self.data
        rotation = Rotation.from_matrix(d.site_xmat[self._tool].reshape(3, 3))
        # stops are soft: pushed fingers go a little beyond, which no gripper would report
        closed = np.clip(1 - d.qpos[self._fingers].sum() / OPENING, 0, 1)
        return np.concatenate([d.site_xpos[self._tool], rotation.as_euler('xyz'), [closed]])

    def cube(self) -> np.ndarray:
        """Centre of the cube, [3] in metres."""
        return self.data.qpos[self._cube : self._cube + 3].copy()

    def act(self, action: np.ndarray) -> None:
        """A quarter of a second of physics: the tool goes to its measured pose plus `action` [7].

        A position outside of WORKSPACE is brought to its border. Without rotation the orientation
        last asked for is held, and without change of closedness the gripper's target. Fingers that
        were told to close and met the cube on both sides press on it until they are told to open,
        as a Franka hand's do when told to grasp: an action that closes them as far as the cube
        lets them, which is all that recordings show, holds it.

        Raises:
          SimError: an action of another shape or with values that are not finite.
        """
        action = np.asarray(action, float)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise SimError(
                f'action {action.tolist()}: must be 7 finite numbers: change of x, y, z (m), of '
                'Euler angles x, y, z (rad) and of closedness'
            )
        state, d = self.state(), self.data
        position = np.clip(state[:3] + action[:3], *WORKSPACE)
        if action[3:6].any():
            self._down = Rotation.from_euler('xyz', action[3:6]) * self._down
        begin = d.ctrl[:7].copy()
        end = self.solve(position, self._down, begin)
        if action[6]:
            closed = np.clip(state[6] + action[6], 0, 1)
            d.ctrl[7:] = OPENING / 2 * (1 - closed)
        for i in range(SUBSTEPS):
            d.ctrl[:7] = begin + min(1, (i + 1) / RAMP) * (end - begin)
            mujoco.mj_step(self.model, d)
        self._move_things()
        mujoco.mj_forward(self.model, d)  # poses of this moment, not of the last substep's start
        if action[6] > 0 and self._held():
            closed = min(1, self.state()[6] + PRESS)
            d.ctrl[7:] = np.minimum(d.ctrl[7:], OPENING / 2 * (1 - closed))

    def _held(self) -> bool:
        """Whether the cube is between the fingers, no more than TOUCH from either."""
        model, data = self.model, self.data
        cube, *fingers = (model.body(name).geomadr[0] for name in ('cube', 'left', 'right'))
        return all(
            mujoco.mj_geomDistance(model, data, cube, finger, 2 * TOUCH, None) < TOUCH
            for finger in fingers
        )

    def save(self) -> tuple:
        """All that physics depends on, for `restore`."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        stored = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, stored, kind)
        return stored, self._down

    def restore(self, saved: tuple) -> None:
        """Goes back to what `save` returned; what follows is then the same, bit for bit."""
        stored, self._down = saved
        mujoco.mj_setState(self.model, self.data, stored, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self.model, self.data)

    def draw(self, later: float = 0.0) -> np.ndarray:
        """What the camera sees, uint8 [image_size, image_size, 3]; later: what stands about is
        drawn where it is so many seconds later.

        Drawn at twice the size and averaged. One machine draws the same scene alike each time;
        another may differ by a little. A sensor's noise is drawn anew for every picture, and is the
        same for the same picture at the same time.

        Raises:
          SimError: there is no OpenGL on this machine.
        """
        if not (later and self._things):
            return self._noisy(self._camera.draw(self.data))
        self._move_things(later)
        mujoco.mj_kinematics(self.model, self.data)
        try:
            return self._noisy(self._camera.draw(self.data))
        finally:
            self._move_things()
            mujoco.mj_kinematics(self.model, self.data)

    def _noisy(self, image: np.ndarray) -> np.ndarray:
        if not self.variation.noise:
            return image
        seed = zlib.crc32(image.tobytes()), round(self.data.time / TIMESTEP)
        noise = np.random.default_rng(seed).normal(0, self.variation.noise, image.shape)
        return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)

    def close(self) -> None:
        """Lets what is drawn go; physics and further drawing still work."""
        self._camera.close()

    def __enter__(self) -> Panda:
        return self

    def __exit__(self, *_) -> None:
        self.close()
