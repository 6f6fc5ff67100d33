"""The command `plan` as a user meets it."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import matplotlib.image
import numpy as np
import pytest

from jepa_jax import cli, convert, plan
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights import parts
from jepa_jax.weights.contents import StoredNet, Weights

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


def said(capsys, *arguments: str) -> str:
    """The line that the command ends with; the same process, as starting JAX takes seconds."""
    status = cli.run(
        plan.main, doc=plan.__doc__, tables=(), options=plan.add_options, argv=arguments
    )
    error = capsys.readouterr().err.strip()
    assert status == 1 and error.startswith('error: ') and len(error.splitlines()) == 1, error
    return error.removeprefix('error: ')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'states': None}, 'no array states; it holds observations'),
        ({'states': NAN}, 'states[0, 1, 3] is nan: must be finite'),
        ({'states': NAN[..., :6]}, 'states has shape [1, 2, 6], must have [1, T, 7]'),
        (
            {'actions': NAN[:, :1, :6]},
            'actions has shape [1, 1, 6], must have [1, T - 1, 7]: a plan',
        ),
        ({'states': NAN[:, :1]}, '2 observations and 1 states: must be as many'),
        ({'states': np.full((1, 2, 7), 3, np.float32)}, 'closedness of the gripper'),
        ({'observations': np.zeros((2, 40, 56, 3), np.uint8)}, 'must have [1, T, H, W, 3]'),
        ({'observations': np.zeros((1, 2, 40, 56, 3))}, 'of type float64, must be uint8'),
    ],
)
def test_bad_input_gets_one_line(changes, message, tmp_path, capsys):
    path = str(trajectory(tmp_path / 'a.npz', **changes))
    found = said(capsys, '--model', 'random:tiny', '--input', path, '--out', str(tmp_path))
    assert found.startswith(path) and message in found


def test_a_goal_of_another_size_is_refused(tmp_path, capsys):
    goal = tmp_path / 'goal.png'
    matplotlib.image.imsave(goal, np.zeros((30, 56, 3), np.uint8))
    path = str(trajectory(tmp_path / 'a.npz'))
    options = '--model', 'random:tiny', '--input', path, '--out', str(tmp_path)
    assert said(capsys, *options, '--goal', str(goal)) == (
        f'{goal}: the goal has 56 x 30 pixels, must have 56 x 40 as the frames, from the same '
        'camera'
    )


@pytest.mark.parametrize(
    'flags, message',
    [
        (
            ('--horizon', '8'),
            'horizon 8 after 1 known frames: the predictor would see 8 frames, at most 7 were '
            'trained',
        ),
        (('--horizon', '0'), 'horizon 0: must be at least 1'),
        (('--elites', '401'), 'elites 401: must be from 2 to samples = 400'),
        (('--max-step', 'nan'), 'max_step nan: must be finite and more than 0 metres'),
        (('--max-step', '-1'), 'max_step -1: must be finite and more than 0 metres'),
        (('--at-once', '-1'), 'at_once -1: must be at least 0'),
    ],
)
def test_what_cannot_be_planned_gets_one_line(flags, message, tmp_path, capsys):
    path = str(trajectory(tmp_path / 'a.npz'))
    options = '--model', 'random:tiny', '--input', path, '--out', str(tmp_path)
    assert said(capsys, *options, *flags) == message


@pytest.mark.parametrize(
    'widths, message',
    [
        (
            dict(action_width=5),
            "model '{}' takes actions of 5 and states of 7 numbers: planning for an end effector "
            'needs 7, and 7 or none',
        ),
        (dict(state_width=0), 'state_weight 1: the model has no state'),
    ],
    ids=str,
)
def test_a_model_of_other_widths_gets_one_line(widths, message, tmp_path, capsys):
    encoder = ViTConfig(48, 1, 2, image_size=32)
    config = ACPredictorConfig(48, width=48, depth=1, heads=2, grid=(2, 2), **widths)

    def zeros(part, config):
        abstract = parts.net(part, config).abstract
        tree = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), abstract)
        return StoredNet(part, config, tree)

    nets = {'target': zeros('encoder', encoder), 'ac_predictor': zeros('ac_predictor', config)}
    model = tmp_path / 'model'
    convert.write(Weights(tmp_path, 'jax', nets), model, to='jax')
    options = '--model', str(model), '--input', str(trajectory(tmp_path / 'a.npz'))
    found = said(capsys, *options, '--out', str(tmp_path), '--state-weight', '1')
    assert found == message.format(model)


def test_what_cannot_be_planned_is_one_line_and_status_1(tmp_path):
    path = str(trajectory(tmp_path / 'a.npz'))
    done = run('--model', 'random:tiny', '--input', path, '--out', str(tmp_path), '--axes', 'dx,up')
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: --axes 'dx,up': must be two of dx, dy, dz, droll, dpitch, dyaw, dgripper, as dx,dz"
    )
