"""The benches beside PyTorch: sides take turns, what they compute agrees, who fails is named."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jepa_jax.errors import BenchError
from jepa_jax.weights import hf_files
from tools import bench_vs_torch, torch_nets, versus, versus_tasks

ROOT = pathlib.Path(__file__).resolve().parents[2]

# sides that note when they ran; no library but numpy
TOY = """
import time
import numpy as np
from jepa_jax.errors import BenchError
from tools.versus import Task

def write(folder, **o):
    return {'words': 'a toy'}

def side(name, seconds, result):
    def make(folder, **o):
        def run():
            with open(folder / 'turns.txt', 'a') as file:
                file.write(name + ' ')
            (o['copy'] and open(o['copy'], 'w').write((folder / 'turns.txt').read_text()))
            time.sleep(seconds)
            return {'loss': np.float32(result), 'x': np.full(3, result)}
        return run
    return make

def absent(folder, **o):
    raise BenchError('no such library')

TOY = Task(
    write, side('ours', 0.02, 1.0),
    {'near': side('near', 0.04, 1.00001), 'far': side('far', 0.08, 1.5), 'absent': absent},
    {'float32': {'loss': 1e-4}}, {'copy': ''},
)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / 'toy_versus.py').write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{ROOT}')
    yield 'toy_versus:TOY'
    sys.modules.pop('toy_versus', None)


def test_sides_take_turns_and_an_absent_one_is_named(toy, tmp_path, capsys):
    told = {'copy': str(tmp_path / 'turns.txt')}
    result = versus.measure(toy, told, peers=['near', 'absent'], rounds=3, threads=1)
    # each once to get ready, then in turns
    assert (tmp_path / 'turns.txt').read_text().split() == ['ours', 'near'] * 4
    assert result['not_run'] == {'absent': 'absent: exit status 1: jepa_jax.errors.BenchError: '
                                           'no such library'}  # fmt: skip
    assert result['best'] == 'near' and 0.3 < result['time_ratio'] < 0.8  # 20 ms against 40
    assert result['losses'] == {'jepa_jax': [1.0] * 4, 'near': pytest.approx([1.00001] * 4)}
    assert result['near']['apart'] == pytest.approx({'loss': 1e-5, 'x': 1e-5}, rel=1e-2)
    assert 'absent' in capsys.readouterr().out
    versus.judge(result)


def test_a_side_that_is_none_is_refused(toy, tmp_path, monkeypatch, capsys):
    with pytest.raises(BenchError, match="'naer': allowed are near, far, .* mean near"):
        versus.measure(toy, {}, peers=['naer'], rounds=1, threads=1)
    monkeypatch.setattr(bench_vs_torch, 'COMPARISONS', {'step': toy})
    for side, words in (('farr', 'did you mean far'), ('original', 'needs --original DIR')):
        if side == 'original':
            monkeypatch.setitem(versus.load(toy).peers, side, None)
        monkeypatch.setattr(sys, 'argv', ['bench', 'step', '--sides', side])
        assert bench_vs_torch.main() == 1 and words in capsys.readouterr().err


def test_sides_that_disagree_are_refused(toy):
    result = versus.measure(toy, {}, peers=['far'], rounds=1, threads=1)
    with pytest.raises(BenchError, match='far: loss differs by 0.33, at most 0.0001 is allowed'):
        versus.judge(result)


CONFIG = """
from jepa_jax.config import DataListConfig, MaskConfig, MaskedVideoConfig

def get_config(arg=''):
    c = MaskedVideoConfig(name='small')
    c.encoder.width, c.encoder.depth, c.encoder.heads = 96, 2, 4
    c.predictor.width, c.predictor.depth, c.predictor.heads = 48, 1, 2
    c.predictor.mask_tokens = 1
    c.data.lists = [DataListConfig(kind='synthetic')]
    c.data.crop, c.data.frames, c.optim.batch = 64, 4, 2
    c.optim.warmup = 2
    c.masks = [MaskConfig(num_blocks=2, spatial_scale=(0.3, 0.3))]
    return c
"""


def ran(task, side, folder, times, **options):
    """Outputs of each run of a side in this process."""
    run = (task.ours if side == versus.OURS else task.peers[side])(
        folder, **{**task.defaults, **options, 'platform': 'cpu', 'threads': 1}
    )
    outputs = [run() for _ in range(times)]
    return [outputs[-1] | getattr(run, 'outputs', dict)()] if times == 1 else outputs


def written(task, folder, **options):
    return task.write(folder, **{**task.defaults, **options, 'platform': 'cpu', 'threads': 1})


def test_training_steps_agree(tmp_path):
    """Three updates, so that gradients, AdamW and the moving average have had a part in the last
    loss, with large rates; checkpointing changes nothing."""
    (tmp_path / 'small.py').write_text(CONFIG)
    options = {'config': str(tmp_path / 'small.py'), 'crop': 0, 'frames': 0, 'batch': 0}
    facts = written(versus_tasks.STEP, tmp_path, **options)
    assert facts['flops'] > 0
    losses = {
        side: [float(out['loss']) for out in ran(versus_tasks.STEP, side, tmp_path, 3, **options)]
        for side in ('jepa_jax', 'torch', 'torch, checkpointing')
    }
    assert losses['jepa_jax'] == pytest.approx(losses['torch'], abs=1e-5)
    assert losses['torch, checkpointing'] == pytest.approx(losses['torch'], abs=1e-6)
    assert abs(losses['torch'][0] - losses['torch'][2]) > 1e-3  # it learns


@pytest.mark.slow
def test_probes_agree(tmp_path):
    small = bench_vs_torch.SMALL['probe'][0]
    written(versus_tasks.PROBE, tmp_path, **small)
    ours, theirs = (
        versus.host(ran(versus_tasks.PROBE, side, tmp_path, 1, **small)[0]['losses'])
        for side in ('jepa_jax', 'torch')
    )
    assert ours.shape == (2, 4)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)
    assert np.ptp(ours, axis=1).min() > 1e-3


def test_converted_files_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_files, 'SHARD', 2**20)  # ours are several, as of a large model
    written(versus_tasks.CONVERT, tmp_path, size='tiny')
    ours, theirs = (
        ran(versus_tasks.CONVERT, side, tmp_path, 1)[0] for side in ('jepa_jax', 'torch')
    )
    for key in ('names', 'sums'):
        np.testing.assert_array_equal(ours[key], theirs[key])


def test_a_checkout_without_timm(tmp_path, monkeypatch):
    """The one function that the original imports of timm stands in for it."""
    for name in [name for name in sys.modules if name.partition('.')[0] == 'timm']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, 'path', sys.path[:])
    before = set(sys.modules)
    (tmp_path / 'original_like.py').write_text('from timm.models.layers import drop_path\n')
    torch_nets.original(str(tmp_path))
    drop = importlib.import_module('original_like').drop_path
    x = torch_nets.torch.ones(4000, 2)
    assert (drop(x, 0.25) == x).all() and (drop(x, 0.0, True) == x).all()
    kept = drop(x, 0.25, True)
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(kept.mean()) == pytest.approx(1, abs=0.05)
    for name in set(sys.modules) - before:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.slow
def test_the_command_at_small_size(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'tools.bench_vs_torch', 'step', 'features', 'plan', '--small',
         '--rounds', '2', '--json', str(tmp_path / 'all.json'),
         '--sides', 'torch', 'torch, compiled', 'transformers'],
        cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'all.json').read_text())
    (step,), (features,), (plan,) = (result[name] for name in ('step', 'features', 'plan'))
    assert step['torch']['apart']['loss'] < 1e-4 and 'torch, compiled' in {
        **step,
        **step['not_run'],
    }
    assert (
        features['transformers']['apart']['features'] < 1e-4
        and plan['torch']['apart']['others'] == 0
    )
    for row in (step, features, plan):
        assert 0 < row['jepa_jax']['mfu'] and row['jepa_jax']['anonymous'] > 0
    assert '| step: ' in done.stdout
