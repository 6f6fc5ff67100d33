"""Runs that commit 934c567 began and that were killed then: they end as they would have then."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_run import ROOT, arrays, rows

from jepa_jax import convert

OLD = pathlib.Path(__file__).parent / 'old_runs'
RUNS = 'masked', 'action_conditioned'
CUT, STEPS = 4, 8  # the checkpoint that each run has, and its last step

# how the names of arrays begin: then -> now
RENAMED = {
    'masked': {'target/': 'ema/encoder/'},
    'action_conditioned': {'target/': 'frozen/encoder/'},
}


def present_name(run: str, name: str) -> str:
    """What an array of an old run is called today."""
    for then, now in RENAMED[run].items():
        if name.startswith(then):
            return now + name.removeprefix(then)
    return name


def resume(run: str, folder: pathlib.Path, **settings: str) -> pathlib.Path:
    """Resumes a copy of an old run, whose paths are relative, to its end.

    Args:
      folder: where the copy goes.
      settings: of the environment.
    """
    copy = folder / 'old_runs'
    shutil.copytree(OLD, copy)
    command = [sys.executable, '-m', 'jepa_jax.train', f'--config=new_{run}.py']
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'JEPA_JAX_CACHE': str(folder / 'cache'),
        **settings,
    }
    done = subprocess.run(
        [*command, f'--workdir={run}'],
        cwd=copy, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f'from step {CUT}' in done.stderr
    assert (copy / run / 'report.json').exists()
    return copy / run


def expected_arrays(run: str) -> dict[str, np.ndarray]:
    """Of the action-conditioned run every third number of large arrays."""
    with np.load(OLD / f'expected_{run}.npz') as file:
        return {present_name(run, name): file[name] for name in file}


def kept(result: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The numbers of a result that are expected ones of."""
    return result if result.shape == expected.shape else result.ravel()[::3]


def expected_rows(run: str) -> list[dict[str, float]]:
    return json.loads((OLD / f'expected_{run}.json').read_text())


def rows_made(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Rows of metrics that resuming added."""
    result = [json.loads(row) for row in rows(workdir)]
    assert [row['step'] for row in result] == list(range(1, STEPS + 1))
    return result[CUT:]


@pytest.mark.parametrize('run', RUNS)
def test_an_old_run_is_resumed(run, tmp_path):
    workdir = resume(run, tmp_path)
    result, expected = arrays(workdir, STEPS), expected_arrays(run)
    assert result.keys() == expected.keys()
    for name, array in expected.items():
        ours = kept(result[name], array)
        np.testing.assert_allclose(ours, array, rtol=1e-5, atol=1e-6, err_msg=name)
    losses = [[row['loss'] for row in each] for each in (rows_made(workdir), expected_rows(run))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('run', RUNS)
def test_an_old_run_is_resumed_bit_for_bit(run, tmp_path):
    """Holds on the machine and with the libraries that made the files; elsewhere it may not."""
    workdir = resume(run, tmp_path, JAX_DISABLE_MOST_OPTIMIZATIONS='0')
    result, expected = arrays(workdir, STEPS), expected_arrays(run)
    assert result.keys() == expected.keys()
    for name, array in expected.items():
        ours = kept(result[name], array)
        np.testing.assert_array_equal(ours, array, err_msg=name, strict=True)
    assert rows_made(workdir) == expected_rows(run)


def test_an_old_converted_checkpoint_loads():
    """It holds the weights at the end of the masked run."""
    weights = convert.read(OLD / 'converted')
    assert weights.encoder.width == 24 and weights.encoder.patch == 8
    assert weights.predictor.depth == 1
    with np.load(OLD / 'expected_masked.npz') as file:
        expected = dict(file)
    places = {'online': 'params/encoder', 'target': 'target'}
    for which, place in places.items():
        kernel = np.asarray(weights.params(which)['patch_embed']['kernel'])
        np.testing.assert_array_equal(kernel, expected[f'{place}/patch_embed/kernel'])
