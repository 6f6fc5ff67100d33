"""The command `plan` as a user meets it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jepa_jax import plan

ROOT = pathlib.Path(__file__).resolve().parent.parent


def trajectory(path: pathlib.Path, **changes) -> pathlib.Path:
    rng = np.random.default_rng(0)
    states = rng.uniform(0, 1, (1, 2, 7)).astype(np.float32)
    arrays = {
        'observations': rng.integers(0, 256, (1, 2, 40, 56, 3), np.uint8),
        'states': states,
        **changes,
    }
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return path


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'jepa_jax.plan', *arguments],
        cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip


def test_plans_and_writes_what_it_says(tmp_path):
    out = tmp_path / 'out'
    done = run(
        '--model', 'random:tiny', '--input', str(trajectory(tmp_path / 'a.npz')),
        '--out', str(out), '--samples', '16', '--iterations', '3', '--elites', '4',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'RANDOM' in done.stdout and '2 x 3 tokens' in done.stdout
    report = json.loads((out / 'plan.json').read_text())
    actions = np.asarray(report['actions'])
    assert actions.shape == (2, 7) and np.abs(actions[:, :3]).max() <= 0.05
    np.testing.assert_array_equal(actions[:, 3:6], 0)
    assert len(report['energies']) == len(report['best']) == 3
    assert all(b <= e for b, e in zip(report['best'], report['energies']))
    assert report['seconds_per_action'] > 0
    assert f'{report["seconds_per_action"]:.2f} s per action' in done.stdout
    for name in ('plan.png', 'landscape.png'):
        assert (out / name).read_bytes().startswith(b'\x89PNG')


NAN = np.zeros((1, 2, 7), np.float32)
NAN[0, 1, 3] = np.nan


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'states': None}, 'no array states; it holds observations'),
        ({'states': NAN}, r'states\[0, 1, 3\] is nan: must be finite'),
        ({'states': NAN[..., :6]}, r'states has shape \[1, 2, 6\], must have \[1, T, 7\]'),
        ({'states': NAN[:, :1]}, '2 observations and 1 states: must be as many'),
        ({'states': np.full((1, 2, 7), 3, np.float32)}, 'closedness of the gripper'),
        ({'observations': np.zeros((2, 40, 56, 3), np.uint8)}, r'must have \[1, T, H, W, 3\]'),
        ({'observations': np.zeros((1, 2, 40, 56, 3))}, 'of type float64, must be uint8'),
    ],
)
def test_bad_input_gets_one_line(changes, message, tmp_path):
    with pytest.raises(plan.InputError, match=message):
        plan.read_episode(str(trajectory(tmp_path / 'a.npz', **changes)))


def test_a_goal_of_another_size_is_refused(tmp_path):
    import matplotlib.image

    path = tmp_path / 'goal.png'
    matplotlib.image.imsave(path, np.zeros((30, 56, 3), np.uint8))
    with pytest.raises(plan.InputError, match='the goal has 56 x 30 pixels, must have 56 x 40'):
        plan.read_goal(str(path), np.zeros((2, 40, 56, 3), np.uint8))


def test_what_cannot_be_planned_is_one_line_and_status_1(tmp_path):
    path = str(trajectory(tmp_path / 'a.npz'))
    done = run('--model', 'random:tiny', '--input', path, '--out', str(tmp_path), '--axes', 'dx,up')
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: --axes 'dx,up': must be two of dx, dy, dz, droll, dpitch, dyaw, dgripper, as dx,dz"
    )
