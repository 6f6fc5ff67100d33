"""A recipe of MAE, shrunk, from its command to its features."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import jepa_jax
from jepa_jax import convert
from jepa_jax.metrics import read as read_metrics

CONFIG = """from jepa_jax.config import DataListConfig
from jepa_jax.released import mae_recipe


def get_config(path):
    c = mae_recipe('mae_vitb', 'smoke')
    c.encoder.width, c.encoder.depth, c.encoder.patch = 24, 1, 8
    c.data.crop, c.data.workers, c.data.lists = 32, 0, [DataListConfig(path=path)]
    c.optim.batch, c.optim.steps, c.optim.warmup = 8, 4, 1
    c.mesh.remat, c.compute_dtype, c.logging.health_every = 'none', 'float32', 4
    return c
"""


@pytest.mark.slow
def test_it_learns_and_is_read_again(runs, tmp_path):
    (runs.folder / 'mae.py').write_text(CONFIG)
    workdir = runs.workdir()
    done = subprocess.run(
        [sys.executable, '-m', 'jepa_jax.train', f'--config=mae.py:{runs.videos}',
         f'--workdir={workdir}'],
        cwd=runs.folder, env=runs.environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = read_metrics(workdir)
    assert [row['step'] for row in rows] == [1, 2, 3, 4]
    assert rows[0]['lr'] == 0 and rows[-1]['loss'] < rows[0]['loss']
    assert rows[-1]['health/target_rank'] > 1 and 'momentum' not in rows[-1]
    report = json.loads((workdir / 'report.json').read_text())
    assert report['steps'] == 4 and report['verdict']
    (words,) = (line for line in report['sentences'] if line.startswith('reconstructions.png'))
    assert words.endswith('each patch has the mean and deviation of the original')
    assert 'At the end: reconstructions' in (workdir / 'report.html').read_text()

    weights = convert.read(workdir, weights_only=True)
    assert set(weights.nets) == {'online', 'pixel_decoder'} and weights.version == 'MAE'
    convert.write(weights, tmp_path / 'mae.pth', 'torch')
    again = convert.read(tmp_path / 'mae.pth')
    for name in weights.nets:
        jax.tree.map(np.testing.assert_array_equal, again.params(name), weights.params(name))
    assert again.encoder == weights.encoder
    model = jepa_jax.load(workdir)
    clip = np.random.default_rng(0).integers(0, 256, (1, 2, 32, 32, 3), np.uint8)
    assert model.encoder(clip).shape == (1, 2 * 16, 24)
