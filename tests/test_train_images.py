"""A run of I-JEPA on frames of videos: trained, converted, loaded."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_run import rows

import jepa_jax
from jepa_jax import convert

STEPS = 4
CONFIG = """from jepa_jax.config import DataListConfig, MaskedImageConfig


def get_config(path):
    c = MaskedImageConfig(name='images', seed=3, compute_dtype='float32')
    c.encoder.width, c.encoder.depth, c.encoder.heads, c.encoder.patch = 24, 2, 2, 8
    c.predictor.width, c.predictor.depth, c.predictor.heads = 24, 1, 2
    c.masks.min_keep, c.masks.group, c.mask_sampler = 3, 8, 'single'
    c.data.lists = [DataListConfig(path=path, kind='videos')]
    c.data.crop = 48
    c.optim.batch, c.optim.steps, c.optim.warmup = 8, 4, 1
    c.logging.every, c.logging.health_every = 1, 2
    return c
"""


def run(runs, workdir):
    (runs.folder / 'images.py').write_text(CONFIG)
    config = f'--config=images.py:{runs.videos}'
    return subprocess.run(
        [sys.executable, '-m', 'jepa_jax.train', config, f'--workdir={workdir}'],
        cwd=runs.folder, env=runs.environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
def test_frames_of_videos(runs, tmp_path):
    workdir = runs.workdir()
    done = run(runs, workdir)
    assert done.returncode == 0, done.stderr
    logged = [json.loads(row) for row in rows(workdir)]
    assert [row['step'] for row in logged] == [*range(1, STEPS + 1)]
    assert all(np.isfinite(row['loss']) and row['loss'] <= row['loss/l1'] for row in logged)
    assert 'health/target_rank' in logged[1]
    assert json.loads((workdir / 'report.json').read_text())['verdict']

    convert.write(convert.read(workdir), tmp_path / 'a.pt', 'torch')
    state = torch.load(tmp_path / 'a.pt', weights_only=True)
    assert list(state['predictor'])[:2] == ['module.mask_token', 'module.predictor_pos_embed']
    assert list(state['encoder'])[0] == 'module.pos_embed'
    model = jepa_jax.load(workdir)
    image = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 3), np.uint8)
    tokens = model.embed(image, preprocess='none').tokens
    other = jepa_jax.load(tmp_path / 'a.pt').embed(image, preprocess='none').tokens
    assert tokens.shape == (1, 36, 24)
    np.testing.assert_array_equal(tokens, other)
