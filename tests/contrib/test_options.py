"""Every option traces, from the loss to a planned episode; one runs through the command."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jepa_jax.contrib.options import OPTIONS, PLACES, episode_of, objective_of, world_of
from jepa_jax.data.trajectories import Trajectories

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUICK = '--xla_backend_optimization_level=0'  # these programs run for less time than they compile


@pytest.mark.parametrize('name', OPTIONS)
def test_every_option_fits_together(name):
    option = OPTIONS[name]
    objective = objective_of(option, 32, 1)
    T, U, V = option.frames, option.action_width, option.state_width
    batch = Trajectories(
        jnp.zeros((2, T - 1, U)), jnp.zeros((2, T, V)) if V else None, jnp.ones(2, jnp.int32),
        features=jnp.zeros((2, T, 1, 2 * PLACES**2)),
    )  # fmt: skip
    params = jax.eval_shape(objective.init, jax.random.key(0))
    loss, parts = jax.eval_shape(objective.loss, params, {}, {}, batch, 0)
    assert loss.shape == () and 'loss/rollout' in parts

    def run(params, key):
        return episode_of(option, world_of(option, objective, params), 20.0)(key)

    won, first, last = jax.eval_shape(run, params, jax.random.key(0))
    assert won.dtype == bool and first.shape == last.shape == ()


@pytest.mark.slow
def test_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'jepa_jax.contrib.measure', 'options', '--only', 'plain,adaln',
         '--steps', '3', '--recordings', '64', '--episodes', '2',
         '--table', str(tmp_path / 'table.md')],
        cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': QUICK},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / 'table.md').read_text().splitlines()
    names = [row.split(' | ')[0] for row in rows[-4:]]
    assert names == ['| rules', '| untrained', '| `plain`', '| `adaln`']
    assert ' of 2 (' in rows[-1]
