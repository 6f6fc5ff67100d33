"""A table, a cube and an arm with the kinematics of a Franka Panda, seen by one fixed camera.

The arm is made of primitive shapes, so that nothing has to be downloaded. It is moved as V-JEPA
2-AC moves a real one: four times a second by a change of the gripper's pose, in the conventions of
jepa_jax/poses.py. Physics needs the `mujoco` wheel alone; pictures need OpenGL, which a machine
without a screen has from EGL (libegl1 and libgl1-mesa-dri of Debian and Ubuntu, software is
enough).
"""

from __future__ import annotations

import concurrent.futures
import ctypes.util
import dataclasses
import math
import os
import sys

import numpy as np
from scipy.spatial.transform import Rotation

from jepa_jax.errors import SimError

# MuJoCo looks for a screen unless told otherwise before its import, which fails where EGL is named
# and absent
if sys.platform == 'linux' and 'mujoco' not in sys.modules and ctypes.util.find_library('EGL'):
    os.environ.setdefault('MUJOCO_GL', 'egl')
# Mesa draws in software with threads of its own, which small pictures only wait for: without them
# one takes 3.4 ms in place of 10 to 17 on two busy cores
os.environ.setdefault('LP_NUM_THREADS', '0')

try:
    import mujoco
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "the simulated robot needs MuJoCo: pip install 'jepa_jax[sim]'", name=missing.name
    ) from missing

RATE = 4  # actions a second
TIMESTEP = 0.005  # seconds of physics
SUBSTEPS = round(1 / RATE / TIMESTEP)
RAMP = round(0.6 * SUBSTEPS)  # of these the joints are on their way, in the rest they settle

# The Panda's public Denavit-Hartenberg table in Craig's convention: a and d in metres, alpha in
# radians, joint limits in radians, torque limit in N m. Then stiffness (N m / rad), our own choice.
JOINTS = (
    (0.0, 0.333, 0.0, -2.8973, 2.8973, 87, 4000),
    (0.0, 0.0, -math.pi / 2, -1.7628, 1.7628, 87, 4000),
    (0.0, 0.316, math.pi / 2, -2.8973, 2.8973, 87, 4000),
    (0.0825, 0.0, math.pi / 2, -3.0718, -0.0698, 87, 4000),
    (-0.0825, 0.384, -math.pi / 2, -2.8973, 2.8973, 12, 1000),
    (0.0, 0.0, math.pi / 2, -0.0175, 3.7525, 12, 1000),
    (0.088, 0.0, math.pi / 2, -2.8973, 2.8973, 12, 1000),
)
FLANGE, TOOL = 0.107, 0.1034  # metres from the last joint to the flange, and on to the fingers' tip
HAND_TURN = -math.pi / 4  # of the hand about the flange's axis
HOME = np.array([0.0, -0.25, 0.0, -2.35, 0.0, 2.1, math.pi / 4])  # gripper over the table, down
DOWN = Rotation.from_euler('x', math.pi)  # orientation of a gripper that points down
OPENING = 0.08  # metres between the fingers when open

WORKSPACE = np.array([[0.32, -0.28, 0.02], [0.64, 0.28, 0.40]])  # metres; the tool stays within
CUBE = np.array([0.022, 0.022, 0.03])  # half sizes in metres
CUBE_AREA = np.array([[0.40, -0.18], [0.58, 0.18]])  # metres, where it may lie at first
CUBE_DENSITY = 689.0  # kg / m^3: 80 g

LOOK_AT = np.array([0.50, 0.05, 0.22])  # metres, the middle of the picture
CAMERA_FROM = np.array([0.45, 0.53, 0.39])  # metres from there to the camera

# Pixels along an edge of the shadow map; 0: none. A hand that comes 1 cm towards the camera changes
# pixels 0.19 times as much as one that goes across, seen from 1.2 m; 0.27 from 0.8 m, and 0.39 with
# its shadow from a lamp straight above. (Features, trained or not, are alike.) Without that, plans
# end before the goal or behind it. Three times the work in software.
SHADOW = 512

LIGHT_GREY, DARK_GREY = (0.92, 0.92, 0.90, 1), (0.18, 0.18, 0.20, 1)
# fingers like nothing else in the scene: grey ones, three pixels wide at 96, hardly told a cost
# of features or pixels whether they were open
BLUE = (0.05, 0.25, 0.95, 1)
TOUCH = 0.002  # metres
PRESS = 0.1  # closedness beyond what is measured that is asked of fingers which hold something

# An OpenGL context belongs to one thread; callers may be on any, such as one of a JAX callback
_drawing = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='mujoco-draws')


@dataclasses.dataclass(frozen=True)
class Variation:
    """What may differ from one scene to another, for measuring how well a model generalises."""

    cube_rgb: tuple[float, float, float] = (0.85, 0.10, 0.10)
    cube_scale: float = 1.0  # of its three sides
    light: float = 1.0  # brightness of lamp and surroundings
    camera_turn: float = 0.0  # degrees about the vertical through the middle of the workspace
    camera_lift: float = 0.0  # degrees up, as seen from there

    def __post_init__(self):
        for name, low, high in (
            ('cube_scale', 0.6, 1.3),  # the open fingers take 8 cm, also from a turned cube
            ('light', 0.1, 2.0),
            ('camera_turn', -180.0, 180.0),
            ('camera_lift', -20.0, 40.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise SimError(
                    f'variation {name} {getattr(self, name)}: must be from {low} to {high}'
                )
        if len(self.cube_rgb) != 3 or not all(0 <= c <= 1 for c in self.cube_rgb):
            raise SimError(f'variation cube_rgb {self.cube_rgb}: must be 3 numbers from 0 to 1')

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Variation:
        """A scene that differs from the standard one in everything, moderately."""
        hue = rng.uniform(0, 6)
        rgb = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0.08, 0.9)
        return cls(
            tuple(rgb.tolist()),
            float(rng.uniform(0.85, 1.15)),
            float(rng.uniform(0.7, 1.3)),
            float(rng.uniform(-12, 12)),
            float(rng.uniform(-6, 6)),
        )


STANDARD = Variation()


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
        self.model = _spec(variation, 2 * image_size).compile()
        self.data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)  # for inverse kinematics
        self._tool = self.model.site('tool').id
        self._fingers = [self.model.joint(name).qposadr[0] for name in ('left', 'right')]
        self._cube = self.model.joint('cube').qposadr[0]
        self._scene: mujoco.MjvScene | None = None
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = self.model.camera('outside').id
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
        mujoco.mj_forward(self.model, self.data)

    def solve(self, position: np.ndarray, rotation: Rotation, start: np.ndarray) -> np.ndarray:
        """Joint angles [7] that bring the tool to a position [3] and an orientation, or as near as
        can be: damped least squares from the angles `start`, what is left of the freedom being
        used to stay near HOME."""
        d, q = self._scratch, np.array(start, float)
        low, high = self.model.jnt_range[:7].T
        wanted = rotation.as_matrix()
        jacobian = np.empty((6, self.model.nv))
        for _ in range(50):
            d.qpos[:7] = q
            mujoco.mj_kinematics(self.model, d)
            mujoco.mj_comPos(self.model, d)
            mujoco.mj_jacSite(self.model, d, jacobian[:3], jacobian[3:], self._tool)
            J = jacobian[:, :7]
            found = d.site_xmat[self._tool].reshape(3, 3)
            turn = 0.5 * np.cross(found, wanted, axis=0).sum(1)  # exact where it is small
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

    def draw(self) -> np.ndarray:
        """What the camera sees, uint8 [image_size, image_size, 3].

        Drawn at twice the size and averaged. One machine draws the same scene alike each time;
        another may differ by a little.

        Raises:
          SimError: there is no OpenGL on this machine.
        """
        return _drawing.submit(self._draw).result()

    def _draw(self) -> np.ndarray:
        if self._scene is None:
            self._scene = mujoco.MjvScene(self.model, maxgeom=100)
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0  # nothing here mirrors
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self.model, self.data, mujoco.MjvOption(), None, self._camera, everything, self._scene
        )
        image = _canvas(self.model).draw(self._scene)
        image = image.reshape(self.image_size, 2, self.image_size, 2, 3)
        return ((image.sum((1, 3), dtype=np.uint16) + 2) // 4).astype(np.uint8)

    def close(self) -> None:
        """Lets what is drawn go; physics and further drawing still work."""
        self._scene = None

    def __enter__(self) -> Panda:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Canvas:
    """Where MuJoCo draws: an OpenGL context with shapes, textures and buffers, as a model asks for.

    Making one takes a quarter of a second or more, so scenes share it: they differ in colours,
    sizes and places, which are not part of it.
    """

    def __init__(self, model: mujoco.MjModel):
        size = model.vis.global_.offwidth
        try:
            self._context = mujoco.GLContext(size, size)
            self._context.make_current()
            self._kept = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._kept)
        except Exception as error:  # of any kind, as MuJoCo, PyOpenGL and the driver like
            way = os.environ.get('MUJOCO_GL', 'not set')
            raise SimError(
                f'this machine cannot draw ({type(error).__name__}: {error}): physics works, '
                'pictures need OpenGL. On Debian or Ubuntu: apt-get install libegl1 '
                'libgl1-mesa-dri, and set MUJOCO_GL=egl before MuJoCo is imported (it is '
                f'{way})'
            ) from error
        self._area = mujoco.MjrRect(0, 0, size, size)

    def draw(self, scene: mujoco.MjvScene) -> np.ndarray:
        """Pixels uint8 [size, size, 3]."""
        self._context.make_current()
        mujoco.mjr_render(self._area, scene, self._kept)
        image = np.empty((self._area.height, self._area.width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._area, self._kept)
        return image[::-1]  # OpenGL counts rows from below


_canvases: dict[tuple[int, int], _Canvas] = {}  # by pixels of pictures and of shadow maps


def _canvas(model: mujoco.MjModel) -> _Canvas:
    key = model.vis.global_.offwidth, model.vis.quality.shadowsize
    if key not in _canvases:
        _canvases[key] = _Canvas(model)
    return _canvases[key]


def _spec(variation: Variation, pixels: int) -> mujoco.MjSpec:
    """The scene as MuJoCo compiles it, to be drawn with `pixels` along an edge."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 5  # friction that holds
    spec.visual.quality.offsamples, spec.visual.quality.shadowsize = 0, SHADOW
    spec.visual.global_.offwidth = spec.visual.global_.offheight = pixels
    spec.visual.headlight.ambient = np.full(3, 0.45 * variation.light)
    spec.visual.headlight.diffuse = np.full(3, 0.15 * variation.light)
    spec.visual.headlight.specular = np.zeros(3)
    _surroundings(spec, variation)
    _arm(spec)
    body = spec.worldbody.add_body(name='cube')
    body.add_freejoint(name='cube')
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=CUBE * variation.cube_scale,
        density=CUBE_DENSITY,
        rgba=(*variation.cube_rgb, 1),
        **GRIP,
    )
    return spec


# contact of fingers and cube: stiff, and friction that also resists turning
GRIP = {
    'friction': (2, 0.05, 0.001),
    'condim': 4,
    'solimp': (0.95, 0.99, 0.001, 0.5, 2),
    'solref': (0.01, 1),
}
SEEN_ONLY = {'contype': 0, 'conaffinity': 0}  # the arm touches nothing but by its fingers


def _surroundings(spec: mujoco.MjSpec, variation: Variation) -> None:
    spec.add_texture(
        name='sky',
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.55, 0.60, 0.65),
        rgb2=(0.30, 0.33, 0.36),
        width=32,
        height=192,
    )
    spec.add_texture(
        name='wood',
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=(0.55, 0.42, 0.30),
        rgb2=(0.50, 0.38, 0.27),
        width=128,
        height=128,
    )
    wood = spec.add_material(name='wood', texrepeat=(6, 6))
    wood.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = 'wood'
    world = spec.worldbody
    world.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(0.5, 0.55, 0.02),
        pos=(0.4, 0, -0.02),
        material='wood',
        friction=(1, 0.01, 0.001),
    )
    world.add_geom(
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=(3, 3, 0.1),
        pos=(0, 0, -0.6),
        rgba=(0.35, 0.36, 0.38, 1),
    )
    world.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=(0.48, 0, 2),
        dir=(0, 0, -1),
        diffuse=np.full(3, 0.6 * variation.light),
        specular=np.zeros(3),
        castshadow=True,
    )
    turn = Rotation.from_euler('z', variation.camera_turn, degrees=True)
    away = turn.apply(CAMERA_FROM)
    sideways = np.cross(away, (0, 0, 1))
    lift = sideways / np.linalg.norm(sideways) * math.radians(variation.camera_lift)
    away = Rotation.from_rotvec(lift).apply(away)
    z = away / np.linalg.norm(away)  # a camera looks along its -z
    x = np.cross((0, 0, 1), z)
    x /= np.linalg.norm(x)
    frame = Rotation.from_matrix(np.stack([x, np.cross(z, x), z], axis=1))
    world.add_camera(
        name='outside', pos=LOOK_AT + away, quat=frame.as_quat(scalar_first=True), fovy=50
    )


def _arm(spec: mujoco.MjSpec) -> None:
    """Links after the table JOINTS, drawn as capsules from joint to joint, hand and fingers."""
    box, capsule = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE
    cylinder = mujoco.mjtGeom.mjGEOM_CYLINDER
    body = spec.worldbody.add_body(name='base')
    frames = [(a, d, alpha) for a, d, alpha, *_ in JOINTS] + [(0.0, FLANGE, 0.0)]
    radii = (0.065, 0.06, 0.06, 0.055, 0.055, 0.05, 0.045, 0.04)
    for i, ((a, d, alpha), radius) in enumerate(zip(frames, radii)):
        offset = np.array([a, -math.sin(alpha) * d, math.cos(alpha) * d])
        if offset.any():
            ends = np.concatenate([np.zeros(3), offset])
            body.add_geom(
                type=capsule, fromto=ends, size=(radius, 0, 0), rgba=LIGHT_GREY, **SEEN_ONLY
            )
        last = i == len(JOINTS)
        turn = Rotation.from_euler('x', alpha)
        if last:
            turn = turn * Rotation.from_euler('z', HAND_TURN)
        body = body.add_body(
            name='hand' if last else f'link{i + 1}',
            pos=offset,
            quat=turn.as_quat(scalar_first=True),
            gravcomp=1,
            mass=0.5 if last else 1.5,
            inertia=np.full(3, 0.002 if last else 0.02),
            explicitinertial=True,
        )
        if last:
            break
        low, high, torque, stiffness = JOINTS[i][3:]
        body.add_joint(
            name=f'joint{i + 1}',
            axis=(0, 0, 1),
            range=(low, high),
            limited=True,
            armature=0.1,
        )
        body.add_geom(
            type=cylinder,
            size=(radius + 0.006, radius, 0),
            rgba=DARK_GREY if i % 2 else LIGHT_GREY,
            **SEEN_ONLY,
        )
        motor = spec.add_actuator(
            name=f'joint{i + 1}',
            target=f'joint{i + 1}',
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            forcelimited=True,
            forcerange=(-torque, torque),
        )
        motor.set_to_position(kp=stiffness, kv=0.04 * stiffness)
    # narrower than a Panda's hand and with thicker fingers, which that would hide: to close them
    # changes features at 96 pixels 0.36 times as much as a move of 5 mm, 0.24 with its measures
    body.add_geom(type=box, size=(0.02, 0.07, 0.03), pos=(0, 0, 0.03), rgba=LIGHT_GREY, **SEEN_ONLY)
    body.add_site(name='tool', pos=(0, 0, TOOL), rgba=np.zeros(4))
    for name, turn in (('left', 0.0), ('right', math.pi)):
        finger = body.add_body(
            name=name,
            pos=(0, 0, 0.0584),
            quat=Rotation.from_euler('z', turn).as_quat(scalar_first=True),
            gravcomp=1,
        )
        finger.add_joint(
            name=name,
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=(0, 1, 0),
            range=(0, OPENING / 2),
            limited=True,
            armature=0.1,
        )
        finger.add_geom(
            type=box,
            size=(0.016, 0.012, 0.027),
            pos=(0, 0.012, 0.027),
            rgba=BLUE,
            mass=0.05,
            **GRIP,
        )
        motor = spec.add_actuator(
            name=name,
            target=name,
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
            forcelimited=True,
            forcerange=(-25, 25),
        )
        motor.set_to_position(kp=4000, kv=120)
