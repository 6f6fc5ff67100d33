"""The whole chain as one command: stages take from those before and go on where they were."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

pytest.importorskip('jepa_jax.sims.panda', reason='needs MuJoCo', exc_type=ModuleNotFoundError)

from jepa_jax import cli  # noqa: E402
from jepa_jax.config import SimConfig, validate  # noqa: E402
from jepa_jax.sims import closed_loop  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/sim_panda.py'


def train(workdir, *overrides, arg='ci', timeout=1200):
    command = [sys.executable, '-m', 'jepa_jax.train', f'--config={CONFIG}:{arg}']
    flags = [f'--config.{override}' for override in overrides]
    return subprocess.run(
        [*command, f'--workdir={workdir}', *flags],
        cwd=ROOT,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_stages_take_from_each_other(tmp_path):
    config = cli.load(f'{CONFIG}:ci', SimConfig)
    first, second = closed_loop.stages(config, tmp_path)
    for stage in (first, second):
        validate(stage)
    assert first.data.lists[0].path == second.robot.path == str(tmp_path / 'recordings')
    assert second.encoder_from == str(tmp_path / 'encoder') and second.encoder == first.encoder
    assert first.data.crop == second.data.crop == config.collection.image_size
    assert not config.pretrain.data.lists[0].path  # the config itself is left as it was


SMALL = (
    'collection.episodes=6',
    'collection.frames=12',
    'collection.image_size=32',
    'workers=0',
    'pretrain.encoder.patch=8',
    'pretrain.encoder.width=32',
    'pretrain.encoder.heads=2',
    'pretrain.optim.batch=8',
    'pretrain.optim.steps=4',
    'pretrain.optim.warmup=1',
    'posttrain.ac.width=32',
    'posttrain.ac.heads=2',
    'posttrain.optim.batch=8',
    'posttrain.optim.steps=6',
    'posttrain.optim.warmup=1',
    'posttrain.logging.health_every=3',
    'evaluation.episodes=2',
    'evaluation.samples=8',
    'evaluation.elites=2',
    'evaluation.iterations=2',
)


@pytest.mark.slow
def test_one_command_goes_all_the_way_and_then_rests(gl, tmp_path):
    done = train(tmp_path, *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / 'report.json').read_text())
    row = report['tasks']['reach']
    assert row['oracle'] == 1 and row['no_op'] == 0 and row['episodes'] == 2
    assert 0 <= row['low'] <= row['success'] <= row['high'] <= 1
    assert {'untrained', 'random', 'distance', 'start'} <= row.keys()
    assert {'rank_correlation', 'falls', 'shuffled_over_true_actions'} <= report['cost'].keys()
    assert len(list((tmp_path / 'recordings').glob('*.npz'))) == 6
    with Image.open(tmp_path / 'episodes_reach.png') as image:
        assert min(image.size) > 200
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
    again = train(tmp_path, *SMALL)
    assert again.returncode == 0
    changed = [p.name for p, t in files.items() if p.stat().st_mtime_ns != t]
    assert set(changed) <= {'.lock'}
    other = train(tmp_path, *SMALL, 'collection.seed=1')
    assert other.returncode == 1
    assert other.stderr.splitlines()[-1].endswith('seed 0 there, 1 here; name another folder')


def test_refusals(tmp_path):
    for override, words in (
        ('evaluation.tasks=reach,juggle', "evaluation.tasks 'juggle': allowed are reach, grasp"),
        ('posttrain.rollout.steps=5', 'rollout.steps = 5: must be less than robot.frames'),
        ('collection.pick=0.5', 'they must add up to 1'),
    ):
        done = train(tmp_path / 'run', override)
        assert done.returncode == 1 and words in done.stderr.splitlines()[-1]
        assert 'Traceback' not in done.stderr
