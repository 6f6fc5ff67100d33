"""A recipe of MAE, shrunk, from its command to its features."""

import json
import pathlib

import jax
import numpy as np
import pytest

import jepa_jax
from jepa_jax import cli, convert, train
from jepa_jax.metrics import read as read_metrics
from jepa_jax.recipes import validate

CONFIG = pathlib.Path(__file__).resolve().parents[2] / 'configs/mae_vitb.py'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mae')
    config = cli.load(f'{CONFIG}:smoke')
    config.optim.steps, config.optim.warmup = 4, 1
    config.data.workers, config.data.lists[0].path = 0, str(folder / 'videos')
    config.compute_dtype = 'float32'
    config.logging.health_every = 4
    validate(config)
    train.train(config, str(folder / 'run'), False, False, str(CONFIG))
    return folder / 'run'


def test_it_learns_and_is_read_again(workdir, tmp_path):
    rows = read_metrics(workdir)
    assert [row['step'] for row in rows] == [1, 2, 3, 4]
    assert rows[0]['lr'] == 0 and rows[-1]['loss'] < rows[0]['loss']
    assert rows[-1]['health/target_rank'] > 1 and 'momentum' not in rows[-1]
    report = json.loads((workdir / 'report.json').read_text())
    assert report['steps'] == 4 and report['verdict']

    weights = convert.read(workdir, weights_only=True)
    assert set(weights.nets) == {'online', 'pixel_decoder'} and weights.version == 'MAE'
    convert.write(weights, tmp_path / 'mae.pth', 'torch')
    again = convert.read(tmp_path / 'mae.pth')
    for name in weights.nets:
        jax.tree.map(np.testing.assert_array_equal, again.params(name), weights.params(name))
    assert again.encoder == weights.encoder
    model = jepa_jax.load(workdir)
    clip = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 64, 3), np.uint8)
    assert model.encoder(clip).shape == (1, 2 * 16, 48)
