"""Post-training as a user runs it: the smoke config, again after its end, and another robot."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from jepa_jax import checkpoint

ROOT = pathlib.Path(__file__).resolve().parent.parent


def environment(tmp_path) -> dict[str, str]:
    return {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'JEPA_JAX_CACHE': str(tmp_path / 'cache'),
        # these programs run for less time than they compile
        'XLA_FLAGS': '--xla_backend_optimization_level=0',
    }


def train(tmp_path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'jepa_jax.train', '--config=configs/ac_vitg.py:smoke',
         '--config.optim.steps=4', '--config.data.workers=0', *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
        env=environment(tmp_path),
    )  # fmt: skip


def test_the_smoke_config_trains_once(tmp_path):
    run = tmp_path / 'run'
    done = train(tmp_path, f'--workdir={run}')
    assert done.returncode == 0, done.stderr
    assert 'features: 24 of 24 episodes to encode' in done.stderr
    assert 'contract: robot franka' in done.stderr
    seen = checkpoint.read_manifest(checkpoint.find(run))['extra']['scene']
    kept = checkpoint.read_manifest(checkpoint.find(run))['extra']['measured']
    assert kept['episodes'] == 16 and kept['rates'] == [4.0] and kept['high'][6] <= 1
    assert 'measured on 16 recordings: x -0.' in done.stderr
    assert seen['episodes'] == 16 and abs(seen['span'] - 1) < 0.1  # as the discs are drawn
    held, needed = re.search(
        r'device: (\S+) GiB of state, (\S+) GiB with all', done.stderr
    ).groups()
    assert 0 < float(held) < float(needed) < 1
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        parts = row['loss/teacher_forcing'] + row['loss/rollout']
        assert abs(row['loss'] - parts) < 1e-5 * parts
        assert row['tokens_per_s'] == pytest.approx(row['clips_per_s'] * 4 * 16)  # frames of 4 x 4
    # measured on the last batch after its step, which at this rate changes little; and four steps
    # do not teach what actions do, nor to beat a copy of the frame
    last = rows[-1]
    over_copy = last['loss/teacher_forcing'] / last['loss/copy']
    assert last['health/error_over_copy'] == pytest.approx(over_copy, rel=0.1) and over_copy > 1
    assert last['health/shuffled_actions'] == pytest.approx(1, abs=0.1)
    report = json.loads((run / 'report.json').read_text())
    assert (report['steps'], report['verdict']) == (4, 'undertrained')
    page = (run / 'report.html').read_text()
    # curves, horizon, two clips, features and guesses
    assert page.count('data:image/png') == 1 + 1 + 2 + 2 * 2 * 3
    assert 'what is predicted of them, clip 1' in page and 'actions: +' in page
    # four steps are worth nothing at any horizon: the recordings are 24 frames long, 3 are known
    far = report['horizon']['recordings']
    assert (far['episodes'], far['known'], far['worth']) == (24, 3, 0)
    assert len(far['ratio']) == 16 and min(far['low']) > 1
    assert 'worth more than a copy of the last frame at no step' in report['sentences'][-1]
    assert (run / 'horizon.png').read_bytes().startswith(b'\x89PNG')
    again = train(tmp_path, f'--workdir={run}')
    assert again.returncode == 0 and 'is finished' in again.stderr

    other = train(
        tmp_path, f'--workdir={tmp_path / "other"}', '--config.robot.robot=ur5e',
        f'--config.checkpoints.init_from={run}',
    )  # fmt: skip
    assert other.returncode == 1
    (line,) = [x for x in other.stderr.splitlines() if x.startswith('error')]
    assert "robot: 'franka' in the weights, 'ur5e' here" in line


@pytest.mark.slow
@pytest.mark.ci
def test_a_model_that_is_shown_no_states_is_trained_and_planned_with(tmp_path):
    run, now = tmp_path / 'run', tmp_path / 'now.npz'
    done = train(
        tmp_path, f'--workdir={run}', '--config.ac.use_states=false', '--config.optim.steps=1',
        '--config.optim.warmup=0', '--config.optim.anneal=0', '--config.logging.health_every=0',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    states = np.zeros((1, 2, 7), np.float32)
    np.savez(now, observations=np.zeros((1, 2, 64, 64, 3), np.uint8), states=states)
    planned = subprocess.run(
        [sys.executable, '-m', 'jepa_jax.plan', f'--model={run}', f'--input={now}',
         f'--out={tmp_path}', '--samples=8', '--iterations=2', '--elites=4'],
        cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    # one step does not teach what actions do
    assert planned.returncode == 3 and 'the predictor ignores actions' in planned.stderr
    actions = json.loads((tmp_path / 'plan.json').read_text())['actions']
    assert np.isfinite(actions).all() and np.shape(actions) == (2, 7)
