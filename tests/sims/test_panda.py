"""The simulated arm: its kinematics against the public table, actions against the pose maths that
planning uses, and tasks that a script solves and doing nothing does not.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

pytest.importorskip('jepa_jax.sims.panda', reason='needs MuJoCo', exc_type=ModuleNotFoundError)

import mujoco  # noqa: E402 - after panda, which chooses how it draws

from jepa_jax import poses  # noqa: E402
from jepa_jax.errors import SimError  # noqa: E402
from jepa_jax.sims.panda import WORKSPACE, Panda  # noqa: E402
from jepa_jax.sims.scene import OPENING, Variation  # noqa: E402
from jepa_jax.sims.tasks import TASKS, PandaEnv, follow, grasp_poses, oracle  # noqa: E402

# Franka Emika's published table: a, d (m), alpha (rad) of each joint
PUBLISHED = (
    (0, 0.333, 0),
    (0, 0, -np.pi / 2),
    (0, 0.316, np.pi / 2),
    (0.0825, 0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2),
    (0, 0, np.pi / 2),
    (0.088, 0, np.pi / 2),
)


def chain(angles) -> np.ndarray:
    """Pose [4, 4] of the tool by the product of Craig's Denavit-Hartenberg matrices."""
    pose = np.eye(4)
    hand = (0, 0.107 + 0.1034, 0)  # flange and hand, turned by -45 degrees
    for (a, d, alpha), q in zip((*PUBLISHED, hand), (*angles, -np.pi / 4)):
        c, s, ca, sa = np.cos(q), np.sin(q), np.cos(alpha), np.sin(alpha)
        pose = pose @ [
            [c, -s, 0, a],
            [s * ca, c * ca, -sa, -d * sa],
            [s * sa, c * sa, ca, d * ca],
            [0, 0, 0, 1],
        ]
    return pose


@pytest.fixture(scope='module')
def panda():
    with Panda(64) as made:
        yield made


def test_kinematics_are_the_published_ones(panda):
    rng = np.random.default_rng(0)
    low, high = panda.model.jnt_range[:7].T
    for _ in range(20):
        angles = rng.uniform(low, high)
        panda.data.qpos[:7] = angles
        mujoco.mj_forward(panda.model, panda.data)
        state, expected = panda.state(), chain(angles)
        np.testing.assert_allclose(state[:3], expected[:3, 3], atol=1e-12)
        result = Rotation.from_euler('xyz', state[3:6]).as_matrix()
        np.testing.assert_allclose(result, expected[:3, :3], atol=1e-7)


def test_inverse_kinematics_lead_there(panda):
    rng = np.random.default_rng(1)
    down = Rotation.from_euler('x', np.pi)
    for _ in range(20):
        place = rng.uniform(*WORKSPACE)
        expected = Rotation.from_euler('xyz', rng.uniform(-0.3, 0.3, 3)) * down
        pose = chain(panda.solve(place, expected, panda.data.ctrl[:7]))
        np.testing.assert_allclose(pose[:3, 3], place, atol=1e-4)
        np.testing.assert_allclose(pose[:3, :3], expected.as_matrix(), atol=1e-3)


def test_an_action_does_what_the_pose_maths_say(panda):
    """Tracking: 3 mm at most and 1 degree, gripper included."""
    rng = np.random.default_rng(2)
    panda.place((0.48, 0, 0.25), cube=(0.42, -0.18))
    for _ in range(30):
        before = panda.state()
        action = np.concatenate([rng.uniform(-0.05, 0.05, 3), rng.uniform(-0.1, 0.1, 3), [0]])
        action[:3] = np.clip(before[:3] + action[:3], [0.38, -0.2, 0.15], [0.58, 0.2, 0.36])
        action[:3] -= before[:3]
        action[6] = rng.uniform(0, 1) - before[6]
        panda.act(action)
        expected = np.asarray(poses.apply(np.float32(before), np.float32(action)))
        after = panda.state()
        np.testing.assert_allclose(after[:3], expected[:3], atol=3e-3)
        turn = (
            Rotation.from_euler('xyz', after[3:6]) * Rotation.from_euler('xyz', expected[3:6]).inv()
        )
        assert np.degrees(turn.magnitude()) < 1
        assert abs(after[6] - expected[6]) < 0.03


def test_orientation_does_not_drift_and_the_box_holds(panda):
    rng = np.random.default_rng(3)
    panda.place(cube=(0.42, 0.1))
    for _ in range(60):
        panda.act(np.concatenate([rng.uniform(-0.1, 0.1, 3), np.zeros(4)]))
        place = panda.state()[:3]
        assert (place > WORKSPACE[0] - 0.01).all() and (place < WORKSPACE[1] + 0.01).all()
    tilt = Rotation.from_euler('xyz', panda.state()[3:6]) * Rotation.from_euler('x', -np.pi)
    assert np.degrees(tilt.magnitude()) < 1


def test_the_gripper_holds_by_contact_alone(panda):
    """Fingers stop at the cube's width, lift it and let it fall."""
    panda.place((0.5, 0, 0.2), cube=(0.5, 0))
    for pose in grasp_poses(panda):
        follow(panda, pose, 4)
    assert panda.state()[6] == pytest.approx(1 - 0.044 / OPENING, abs=0.03)
    assert panda.cube()[2] == pytest.approx(0.13, abs=0.01)
    panda.act([0, 0, 0, 0, 0, 0, -1])
    for _ in range(3):
        panda.act(np.zeros(7))
    assert panda.cube()[2] == pytest.approx(0.03, abs=0.005) and panda.state()[6] < 0.05


def test_closing_as_far_as_the_cube_lets_the_fingers_holds_it(panda):
    """What recordings show of a grasp, done again, is one; closing short of the cube is none."""
    for short, held in ((0.0, True), (0.1, False)):
        panda.place((0.5, 0, 0.2), cube=(0.5, 0))
        for pose in grasp_poses(panda)[:2]:
            follow(panda, pose, 4)
        closing = np.zeros(7)
        closing[6] = 1 - 0.044 / OPENING - panda.state()[6] - short
        panda.act(closing)
        for _ in range(3):
            panda.act([0, 0, 0.05, 0, 0, 0, 0])
        assert (panda.cube()[2] > 0.12) == held
        panda.act([0, 0, 0, 0, 0, 0, -1])
        for _ in range(3):
            panda.act(np.zeros(7))
        assert panda.cube()[2] == pytest.approx(0.03, abs=0.005) and panda.state()[6] < 0.05


def test_closedness_stays_within_its_range(panda):
    """Fingers that are pushed apart or together are open or closed, no more."""
    rng = np.random.default_rng(4)
    for i in range(6):
        panda.place((0.5, 0.02 * rng.normal(), 0.05), closed=i % 2, cube=(0.5, 0))
        for _ in range(4):
            panda.act([*rng.uniform(-0.08, 0.02, 3), 0, 0, 0, 1 if i % 2 else -1])
            assert 0 <= panda.state()[6] <= 1


def play(env, policy, seed):
    """-> rewards, whether it was truncated, last info."""
    env.reset(seed=seed)
    rewards, over = [], False
    while not over:
        _, reward, terminated, over, info = env.step(policy(env))
        assert not terminated
        rewards.append(reward)
    return rewards, info


@pytest.mark.parametrize('task', TASKS)
def test_script_succeeds_and_nothing_and_chance_do_not(task):
    rng = np.random.default_rng(0)
    env = PandaEnv(task, pictures=False)
    policies = {
        'oracle': oracle,
        'no-op': lambda env: np.zeros(7),
        'random': lambda env: rng.uniform(-1, 1, 7) * [0.05, 0.05, 0.05, 0, 0, 0, 0.75],
    }
    for name, policy in policies.items():
        for seed in range(3):
            rewards, info = play(env, policy, seed)
            assert len(rewards) == env.steps == sum(count for _, count in TASKS[task])
            assert info['success'] == (name == 'oracle') == bool(rewards[-1])
            assert not any(rewards[:-1])


def test_script_succeeds_in_other_scenes():
    rng = np.random.default_rng(7)
    env = PandaEnv('pick_and_place', pictures=False)
    for seed in range(3):
        env.reset(options={'variation': Variation.draw(rng)})
        assert play(env, oracle, seed)[1]['success']


def test_only_the_end_counts():
    """There in the middle, gone at the end: a failure."""
    env = PandaEnv('reach', pictures=False)
    env.reset(seed=0)
    for _ in range(env.steps - 3):
        _, reward, _, _, info = env.step(oracle(env))
    assert info['distance'] < 0.01 and reward == 0 and 'success' not in info
    for _ in range(3):
        _, reward, _, over, info = env.step([-0.05, 0, 0, 0, 0, 0, 0])
    assert over and reward == 0 and not info['success'] and info['distance'] > 0.04


def test_goals_change_when_their_actions_are_used_up():
    env = PandaEnv('grasp', pictures=False)
    env.reset(seed=0)
    seen = []
    for _ in range(env.steps):
        seen.append(env.goal.name)
        env.step(oracle(env))
    assert seen == [name for name, count in TASKS['grasp'] for _ in range(count)]


def test_from_one_image_the_last_goal_is_shown_from_the_start():
    staged, flat = (PandaEnv(f'grasp{end}', pictures=False) for end in ('', '_from_one_image'))
    (first, _), (last, _) = staged.reset(seed=4), flat.reset(seed=4)
    assert staged.steps == flat.steps
    np.testing.assert_array_equal(first['state'], last['state'])
    np.testing.assert_array_equal(last['goal_state'], np.float32(staged.goals[-1].state))
    assert first['goal_state'][6] < 0.1 < last['goal_state'][6]  # open above it; closed on it
    assert play(flat, oracle, 4)[1]['success']  # the script knows the way


def test_same_seed_same_episode(gl):
    def run(seed):
        env = PandaEnv('grasp', 32)
        frames, states = [], []
        obs, _ = env.reset(seed=seed)
        for _ in range(3):
            frames += [obs['image'], obs['goal_image']]
            states.append(obs['state'])
            obs = env.step(oracle(env))[0]
        env.close()
        return np.stack(frames), np.stack(states)

    first, again, other = run(5), run(5), run(6)
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_restored_physics_go_on_alike(panda):
    panda.place((0.5, 0.05, 0.1))
    actions = np.random.default_rng(4).uniform(-0.05, 0.05, (6, 7))
    saved = panda.save()

    def run():
        panda.restore(saved)
        for action in actions:
            panda.act(action)
            yield np.concatenate([panda.data.qpos, panda.data.qvel])

    np.testing.assert_array_equal(list(run()), list(run()))


def test_pictures_show_the_variation(gl):
    def draw(**change):
        with Panda(64, Variation(**change)) as made:
            made.place((0.5, 0.2, 0.3), cube=(0.5, -0.1))
            return made.draw().astype(int)

    plain = draw()
    red = (plain[..., 0] > 90) & (plain[..., 1:].max(-1) < 60)
    blue = draw(cube_rgb=(0.1, 0.1, 0.85))
    changed = np.abs(blue - plain).max(-1) > 3
    assert 10 < red.sum() < 200 and (changed & red).sum() == red.sum()
    assert changed.sum() < 2 * red.sum()  # the cube and its rim, nothing else
    large = draw(cube_scale=1.3)
    assert ((large[..., 0] > 90) & (large[..., 1:].max(-1) < 60)).sum() > 1.3 * red.sum()
    assert draw(light=0.5).mean() < 0.7 * plain.mean()
    for change in ({'camera_turn': 10}, {'camera_lift': 10}):
        assert (np.abs(draw(**change) - plain).max(-1) > 10).mean() > 0.2


def test_goal_image_is_what_is_seen_there(gl):
    env = PandaEnv('reach', 32)
    obs, _ = env.reset(seed=3)
    np.testing.assert_array_equal(env.render(), obs['image'])  # Gymnasium's wrappers ask for it
    apart = np.abs(obs['goal_image'].astype(int) - obs['image']).mean()
    for _ in range(env.steps):
        obs, *_ = env.step(oracle(env))
    env.close()
    assert np.abs(obs['goal_image'].astype(int) - obs['image']).mean() < 0.05 * apart
    np.testing.assert_allclose(obs['goal_state'][:3], obs['state'][:3], atol=1e-3)


def test_refusals(panda):
    with pytest.raises(SimError, match='task .slide.: allowed are reach, grasp'):
        PandaEnv('slide')
    with pytest.raises(SimError, match='image_size 4: must be from 8 to 512'):
        Panda(4)
    with pytest.raises(SimError, match='cube_scale 3.0: must be from 0.6 to 1.3'):
        Variation(cube_scale=3.0)
    for action in (np.zeros(6), [np.nan] * 7):
        with pytest.raises(SimError, match='must be 7 finite numbers'):
            panda.act(action)
    env = PandaEnv('reach', pictures=False)
    with pytest.raises(SimError, match='call reset first'):
        env.step(np.zeros(7))
    with pytest.raises(SimError, match="option 'seed': allowed is variation"):
        env.reset(options={'seed': 1})


def test_physics_without_opengl_and_a_clear_word_on_pictures():
    code = (
        'import numpy as np\n'
        'from jepa_jax.sims.panda import Panda, SimError\n'
        'panda = Panda(32)\n'
        'panda.act([0, 0, -0.05, 0, 0, 0, 0])\n'
        'print(panda.state()[2].round(2))\n'
        'try: panda.draw()\n'
        'except SimError as error: print(error)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'MUJOCO_GL': 'disable'},
        capture_output=True,
        text=True,
        timeout=60,
    )
    height, words = done.stdout.splitlines()
    assert height == '0.2' and done.returncode == 0
    assert 'this machine cannot draw' in words and 'libegl1' in words
    assert '(it is disable)' in words
