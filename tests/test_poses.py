"""Pose maths against the original's numbers and against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jepa_jax import poses

EXACT = 1e-6  # design: poses

POSE = [0.09762701, 0.43037874, 0.20552675, 0.08976637, -0.1526904, 0.29178822, -0.12482557]
ACTION = [-0.25737837, -0.24772242, -0.28786895, 0.19957191, 0.16689405, 0.22200729, 0.287171]
AFTER = [-0.15975136, 0.18265632, -0.08234219, 0.32725328, -0.04535835, 0.47342536, 0.16234544]
START = [0.0436966435, -0.1706761200, -0.4708887758, 1.6454021366, -0.2630980067, 0.4106036932,
         -0.9624203991]  # fmt: skip
END = [0.2352709942, 0.2241914454, 0.2338679937, 2.6624884711, 1.0909217946, -0.8429525966,
       -0.1259360924]  # fmt: skip
BETWEEN = [0.1915743507, 0.3948675655, 0.7047567695, -1.0860072542, 1.5628268653, -2.8926866276,
           0.8364843067]  # fmt: skip
FRANKA = np.array([
    [0.58043909, -0.0020212342, 0.24755727, -3.0666156, 0.030529797, -1.9127512, 0.99697137],
    [0.67280847, 0.028965971, 0.33183685, -3.0514374, 0.017709509, -1.9124950, 0.99697137],
], np.float32)  # fmt: skip
FRANKA_ACTION = [0.092369378, 0.030987205, 0.084279582, -0.017164769, -0.009999052, -0.000024073, 0]


def test_golden():
    after = poses.apply(jnp.asarray(POSE), jnp.asarray(ACTION))
    np.testing.assert_allclose(after, AFTER, rtol=0, atol=EXACT)
    # its pitch is 8 mrad from pi/2, where rounding in float32 weighs a hundredfold on roll and yaw
    between = np.asarray(poses.difference(jnp.asarray(START), jnp.asarray(END)))
    np.testing.assert_allclose(between[[0, 1, 2, 6]], np.take(BETWEEN, [0, 1, 2, 6]), atol=EXACT)
    np.testing.assert_allclose(
        poses.matrix(between[3:6]), Rotation.from_euler('xyz', BETWEEN[3:6]).as_matrix(), atol=EXACT
    )
    np.testing.assert_allclose(poses.difference(*FRANKA), FRANKA_ACTION, rtol=0, atol=EXACT)
    np.testing.assert_allclose(
        poses.apply(FRANKA[0], jnp.asarray(FRANKA_ACTION, jnp.float32)), FRANKA[1], atol=EXACT
    )


def states(seed: int, *shape: int, centre=(0.0, 0.0, 0.0), spread: float = np.pi) -> np.ndarray:
    rng = np.random.default_rng(seed)
    angles = np.asarray(centre) + rng.uniform(-spread, spread, (*shape, 3))
    rest = rng.uniform(0, 1, (*shape, 4))
    return np.concatenate([rest[..., :3], angles, rest[..., 3:]], -1).astype(np.float32)


def rotation(pose: np.ndarray) -> Rotation:
    return Rotation.from_euler('xyz', np.asarray(pose, np.float64)[..., 3:6])


@pytest.mark.parametrize(
    'centre, spread',
    [
        ((0, 0, 0), np.pi),
        ((np.pi, 0, -2), 0.02),  # a gripper that points down: roll on either side of +-pi
        ((np.pi, 0, np.pi), 0.02),
        ((0, np.pi / 2, 0), 1e-3),  # roll and yaw about one axis
    ],
)
def test_scipy(centre, spread):
    start = states(0, 500, centre=centre, spread=spread)
    end = states(1, 500, centre=centre, spread=spread)
    result = np.asarray(poses.difference(start, end))
    expected = rotation(end) * rotation(start).inv()
    assert np.max((rotation(result) * expected.inv()).magnitude()) < 3 * EXACT
    np.testing.assert_array_equal(result[:, :3], end[:, :3] - start[:, :3])
    after = np.asarray(poses.apply(start, result))
    assert np.max((rotation(after) * rotation(end).inv()).magnitude()) < 3 * EXACT
    np.testing.assert_allclose(after[:, [0, 1, 2, 6]], end[:, [0, 1, 2, 6]], atol=EXACT)
    assert np.all(np.abs(after[:, 3:6]) <= np.float32(np.pi))


def test_angles_equal_those_of_scipy_away_from_the_lock():
    start = states(2, 500, spread=1.4)
    np.testing.assert_allclose(
        poses.euler(poses.matrix(start[:, 3:6])), start[:, 3:6], rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        poses.matrix(start[:, 3:6]), rotation(start).as_matrix(), rtol=0, atol=EXACT
    )


def test_small_turns_stay_small_where_the_roll_changes_sign():
    """The trap: the states' angles jump by 2 pi, the action between them must not."""
    start, end = np.zeros(7, np.float32), np.zeros(7, np.float32)
    start[3], end[3] = np.pi - 0.01, -np.pi + 0.01
    np.testing.assert_allclose(poses.difference(start, end)[3:6], [0.02, 0, 0], rtol=0, atol=EXACT)
    after = np.asarray(poses.apply(start, poses.difference(start, end)))
    np.testing.assert_allclose(after[3], end[3], atol=EXACT)


def test_the_gripper_stays_within_its_range():
    pose, action = np.zeros(7, np.float32), np.zeros(7, np.float32)
    pose[6], action[6] = 0.9, 0.5
    assert float(poses.apply(pose, action)[6]) == 1.0
    assert float(poses.apply(pose, -3 * action)[6]) == 0.0


def test_derivatives_are_finite_at_the_lock():
    pose = np.zeros((3, 7), np.float32)
    pose[1, 4], pose[2, 4] = np.pi / 2, -np.pi / 2
    grad = jax.jit(jax.grad(lambda a: poses.apply(pose, a).sum()))(jnp.zeros((3, 7)))
    assert np.isfinite(grad).all()
    exact = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]], np.float32)
    assert np.isfinite(jax.jit(jax.grad(lambda r: poses.euler(r).sum()))(exact)).all()
