"""The metric of the energy on recordings, with a random model through the command, and its
summary."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jepa_jax import cli
from jepa_jax.config import ActionConditionedConfig, RobotConfig
from jepa_jax.errors import ConfigError
from jepa_jax.planning import model
from jepa_jax.recipes import smoke
from tools import judge_energy

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write(folder: pathlib.Path, episodes: int = 3, frames: int = 9) -> RobotConfig:
    rng = np.random.default_rng(0)
    for i in range(episodes):
        states = np.zeros((frames, 7))
        states[:, :3] = np.cumsum(rng.uniform(-0.05, 0.05, (frames, 3)), 0)
        pixels = rng.integers(0, 256, (frames, 32, 32, 3), np.uint8)
        np.savez(folder / f'{i}.npz', states=states, observations=pixels, fps=8)
    return RobotConfig('npz', str(folder))


def test_pairs_are_those_of_the_recordings(tmp_path):
    data = write(tmp_path)
    (tmp_path / '3.npz').write_bytes(b'PK nothing')
    frames, states, actions, bad = judge_energy.pairs(data, 6)
    assert frames.shape == (6, 2, 32, 32, 3) and len(bad) == 1 and '3.npz' in bad[0]
    for i, pair in enumerate(frames):
        stored = np.load(tmp_path / f'{i % 3}.npz')
        first = (1, 4)[i // 3]  # two of the 6 places, evenly spread
        np.testing.assert_array_equal(pair, stored['observations'][[first, first + 2]])
        expected = stored['states'][[first, first + 2]]
        np.testing.assert_allclose(states[i], expected, atol=1e-6)
        np.testing.assert_allclose(actions[i, :3], (expected[1] - expected[0])[:3], atol=1e-6)
    # the 6 places of each episode, once: intervals over repeated pairs would be too narrow
    assert len(judge_energy.pairs(data, 40)[0]) == 18


def test_summary():
    actions = np.array([[0.01, 0.0, 0.01], [-0.01, 0.02, 0.001], [0.02, 0.0, -0.01]])
    result = {
        'energy': np.array([1.0, 2, 3]), 'still': np.array([2.0, 1, 4]),
        'rank': np.array([1.0, 0.5, 0.75]), 'order': np.array([0.5, 0.5, 0.5]),
        'sign': np.array([[True, False, True], [True, True, False], [False, False, True]]),
    }  # fmt: skip
    rows = judge_energy.summarise(result, actions, 0.005)
    assert rows['still']['mean'] == pytest.approx(2 / 3) and rows['rank']['mean'] == 0.75
    assert rows['order'] == {'mean': 0.5, 'low': 0.5, 'high': 0.5, 'pairs': 3}
    means = [(rows[f'sign {a}']['mean'], rows[f'sign {a}']['pairs']) for a in 'xyz']
    assert means == [(pytest.approx(2 / 3), 3), (1.0, 1), (1.0, 2)]
    # Wilson's interval of 2 in 3, by its formula
    p, n, z = 2 / 3, 3, 1.959964
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    expected = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    assert [rows['still'][k] for k in ('low', 'high')] == pytest.approx(expected, abs=1e-5)


def test_recordings_of_another_robot_are_refused():
    stored = smoke(ActionConditionedConfig(name='a')).robot
    known = model.Known(stored)
    known.check(stored)
    with pytest.raises(ConfigError, match="another robot: camera: 'left_mp4_path' in .*, 'top'"):
        known.check(RobotConfig(robot=stored.robot, camera='top', fps=stored.fps))


def test_the_command(tmp_path):
    data = write(tmp_path)
    done = subprocess.run(
        [sys.executable, '-m', 'tools.judge_energy', '--model', 'random:tiny', '--kind', 'npz',
         '--path', data.path, '--pairs', '20', '--samples', '8', '--crop', '32',
         '--json', str(tmp_path / 'result.json')],
        cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'RANDOM' in done.stdout and '18 pairs of the 20 asked for, l1 cost' in done.stdout
    result = json.loads((tmp_path / 'result.json').read_text())
    for name in ('still', 'rank', 'order', 'sign x', 'sign y', 'sign z'):
        assert result[name]['low'] <= result[name]['mean'] <= result[name]['high'], name
        assert f'{name:8} {result[name]["mean"]:7.3f}' in done.stdout


def test_figures_of_no_pairs_are_null_and_settings_are_checked(tmp_path, monkeypatch, capsys):
    path = write(tmp_path).path
    flags = ['--model', 'random:tiny', '--kind', 'npz', '--path', path, '--pairs', '4']

    def judged(*more):
        return cli.run(judge_energy.run, doc='', tables=(), options=judge_energy._options,
                       argv=[*flags, *more])  # fmt: skip

    for name in ('--samples=1', '--bound=nan', '--bound=-1'):
        flag, value = name.split('=')
        assert judged(flag, value) == 1
        assert f'error: {flag} {value}: must be' in capsys.readouterr().err
    monkeypatch.setattr(model, 'load', lambda *a, **k: model.PlanningModel({}, None, None, ()))
    numbers = dict(energy=np.ones(4), still=np.ones(4), rank=np.ones(4), order=np.ones(4))
    monkeypatch.setattr(
        judge_energy, 'judge', lambda *a, **k: {**numbers, 'sign': np.ones((4, 3), bool)}
    )
    file = tmp_path / 'a.json'
    assert judged('--least', '9', '--json', str(file)) == 0
    result = json.loads(file.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert result['sign x']['mean'] is None and result['rank']['mean'] == 1


def rows(**lows) -> dict:
    """Rows whose intervals begin at `lows`; None: no pair."""
    names = ('still', 'rank', 'order', 'sign x', 'sign y', 'sign z')
    values = {name: lows.get(name.replace(' ', '_'), 0.7) for name in names}
    return {
        name: {'mean': low or 0.0, 'low': low or 0.0, 'high': 1.0, 'pairs': 0 if low is None else 9}
        for name, low in values.items()
    }


@pytest.mark.parametrize(
    'lows, word, why',
    [
        ({}, 'knows actions', 'doing nothing'),
        (dict(sign_y=0.4), 'partly', 'sign y 0.40 (0.40 to 1.00)'),
        (dict(sign_z=None), 'partly', 'sign z: no pair moves along it'),
        (dict(still=0.5, rank=0.5, order=0.0, sign_x=0.3, sign_y=0.3, sign_z=0.3),
         'ignores actions', 'no figure is above chance'),
    ],
)  # fmt: skip
def test_verdict(lows, word, why):
    result = judge_energy.verdict(rows(**lows))
    assert result[0] == word and why in result[1]
