"""Poses of an end effector: position, orientation, gripper.

A pose or state is [..., 7]: x, y, z in metres, Euler angles in radians about the fixed axes x, then
y, then z (scipy's lower-case 'xyz'), closedness of the gripper from 0 (open) to 1. An action is the
change between two of them in the frame of the robot's base: differences of positions, the Euler
angles of the rotation from one orientation to the other, difference of closedness. (reference:
vjepa2 §7.3, §8.1)

Angles of an orientation jump: a gripper that points down has a roll near +pi or near -pi, which are
the same. So orientations are compared and composed as matrices, never by their angles.
"""

import jax
import jax.numpy as jnp

LOCKED = 1e-6  # cosine of pitch below which roll and yaw turn about the same axis
_EXACT = jax.lax.Precision.HIGHEST


def matrix(angles: jax.Array) -> jax.Array:
    """Euler angles [..., 3] -> rotation matrices [..., 3, 3], Rz(yaw) Ry(pitch) Rx(roll)."""
    c, s = jnp.cos(angles), jnp.sin(angles)
    (cx, cy, cz), (sx, sy, sz) = (jnp.moveaxis(a, -1, 0) for a in (c, s))
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def euler(rotation: jax.Array) -> jax.Array:
    """Rotation matrices [..., 3, 3] -> Euler angles [..., 3], roll and yaw within +-pi, pitch
    within +-pi/2.

    Yaw is read after the roll is undone, so that near a pitch of +-pi/2, where each alone is
    uncertain, the three together still give the rotation. Where pitch is +-pi/2 roll is 0.
    """
    r = rotation
    squared = jnp.square(r[..., 2, 1]) + jnp.square(r[..., 2, 2])
    locked = squared < LOCKED**2
    # constants where locked, because the derivatives of square root and arctan2 are not finite at 0
    pitch = jnp.arctan2(-r[..., 2, 0], jnp.sqrt(jnp.where(locked, LOCKED**2, squared)))
    roll = jnp.arctan2(jnp.where(locked, 0.0, r[..., 2, 1]), jnp.where(locked, 1.0, r[..., 2, 2]))
    s, c = jnp.sin(roll), jnp.cos(roll)
    yaw = jnp.arctan2(s * r[..., 0, 2] - c * r[..., 0, 1], c * r[..., 1, 1] - s * r[..., 1, 2])
    return jnp.stack([roll, pitch, yaw], axis=-1)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrices [..., 3, 3], multiplied in float32 on every device."""
    return jnp.einsum('...ij,...jk->...ik', a, b, precision=_EXACT)


def apply(pose: jax.Array, action: jax.Array) -> jax.Array:
    """The pose after an action, both [..., 7] float32 -> [..., 7]; closedness ends within 0 and
    1."""
    rotation = _product(matrix(action[..., 3:6]), matrix(pose[..., 3:6]))
    closed = jnp.clip(pose[..., 6:] + action[..., 6:], 0, 1)
    return jnp.concatenate([pose[..., :3] + action[..., :3], euler(rotation), closed], axis=-1)


def difference(start: jax.Array, end: jax.Array) -> jax.Array:
    """The action from one pose to another, each [..., 7] float32 -> [..., 7]."""
    turn = _product(matrix(end[..., 3:6]), jnp.swapaxes(matrix(start[..., 3:6]), -1, -2))
    parts = [end[..., :3] - start[..., :3], euler(turn), end[..., 6:] - start[..., 6:]]
    return jnp.concatenate(parts, axis=-1)


def seen(pose: jax.Array, camera: jax.Array) -> jax.Array:
    """A pose [..., 7] in the base's frame, in that of a camera at [6], x, y, z and Euler angles in
    the base's frame; the gripper as it is. As recordings with robot.frame = 'camera' are turned."""
    back = jnp.swapaxes(matrix(camera[3:]), -1, -2)
    places = jnp.einsum('ij,...j->...i', back, pose[..., :3] - camera[:3], precision=_EXACT)
    turned = euler(_product(back, matrix(pose[..., 3:6])))
    return jnp.concatenate([places, turned, pose[..., 6:]], axis=-1)
