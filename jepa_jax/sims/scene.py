"""A table, a cube and an arm with the kinematics of a Franka Panda, seen by one fixed camera: what
is there, what may vary, and how MuJoCo is told of it.

The arm is made of primitive shapes, so that nothing has to be downloaded.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

from jepa_jax.sims.drawing import mujoco
from jepa_jax.sims.variation import SIDE, TEXTURES, texture
from jepa_jax.sims.variation import STANDARD as STANDARD
from jepa_jax.sims.variation import Variation as Variation

TIMESTEP = 0.005  # seconds of physics

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
OPENING = 0.08  # metres between the fingers when open

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


def build(variation: Variation, pixels: int) -> mujoco.MjSpec:
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
    look = {
        'rgba': (*variation.cube_rgb, 1),
        **_covered(spec, 'cube', variation.cube_texture, (2, 2)),
    }
    _shape(body, variation.cube_shape, variation.cube_scale, density=CUBE_DENSITY, **look, **GRIP)
    for i, thing in enumerate(variation.distractors):
        name = f'distractor{i}'
        body = spec.worldbody.add_body(name=name, mocap=True)
        look = {'rgba': (*thing.rgb, 1), **_covered(spec, name, thing.texture, (2, 2))}
        _shape(body, thing.shape, thing.scale, **look, **SEEN_ONLY)
    return spec


def _shape(body: mujoco.MjsBody, shape: str, scale: float, **more) -> None:
    """Adds the geoms of a shape as wide and high as the cube; fingers grasp the first."""
    geom = mujoco.mjtGeom
    side, _, half = CUBE * scale
    parts = {
        'box': ((geom.mjGEOM_BOX, (side, side, half), 0.0),),
        'cylinder': ((geom.mjGEOM_CYLINDER, (side, half, 0), 0.0),),
        'bottle': (
            (geom.mjGEOM_CYLINDER, (side, 0.7 * half, 0), -0.3 * half),
            (geom.mjGEOM_CYLINDER, (0.5 * side, 0.3 * half, 0), 0.7 * half),
        ),
        'plus': (
            (geom.mjGEOM_BOX, (0.45 * side, side, half), 0.0),
            (geom.mjGEOM_BOX, (side, 0.45 * side, half), 0.0),
        ),
    }
    for kind, size, up in parts[shape]:
        body.add_geom(type=kind, size=size, pos=(0, 0, up), **more)


def _covered(spec: mujoco.MjSpec, name: str, pattern: str, repeat: tuple[float, float]) -> dict:
    """What a geom needs to be covered with one of the textures; nothing for none."""
    if not pattern:
        return {}
    material = spec.add_material(name=name, texrepeat=repeat)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = pattern
    return {'material': name}


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
    # all of them in every scene, used or not: scenes share what OpenGL holds (see drawing.py)
    for name in TEXTURES[1:]:
        pattern = spec.add_texture(
            name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=SIDE, height=SIDE, nchannel=3
        )
        pattern.data = texture(name).tobytes()
    world = spec.worldbody
    world.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(0.5, 0.55, 0.02),
        pos=(0.4, 0, -0.02),
        rgba=(*variation.table_rgb, 1),
        friction=(1, 0.01, 0.001),
        **_covered(spec, 'table', variation.table_texture, (6, 6)),
    )
    world.add_geom(
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=(3, 3, 0.1),
        pos=(0, 0, -0.6),
        rgba=(0.35, 0.36, 0.38, 1),
    )
    world.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=(0.48 + 2 * variation.lamp[0], 2 * variation.lamp[1], 2),
        dir=(-variation.lamp[0], -variation.lamp[1], -1),
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
