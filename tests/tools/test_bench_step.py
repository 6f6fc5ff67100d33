"""The step benchmark: its figures fit together, the step needs no second state, depth costs no
compilation."""

import json
import math
import sys

import jax
import pytest

from jepa_jax import cli, commands
from jepa_jax.config import ActionConditionedConfig, DataListConfig, MaskConfig, MaskedVideoConfig
from jepa_jax.errors import ConfigError
from jepa_jax.recipes import smoke
from tools import bench_step
from tools.steps import Step, programs


def recipe(depth: int = 1) -> MaskedVideoConfig:
    """Few tokens, one mask: nearly all of the memory is the state's."""
    config = MaskedVideoConfig(name='step', compute_dtype='float32')
    config.encoder.width, config.encoder.depth, config.encoder.heads = 192, depth, 4
    config.predictor.width, config.predictor.depth, config.predictor.heads = 48, depth, 2
    config.predictor.mask_tokens = 1
    config.data.lists = [DataListConfig(kind='synthetic')]
    config.data.crop, config.data.frames = 64, 2
    config.optim.batch = jax.device_count()
    config.masks = [MaskConfig(num_blocks=2, spatial_scale=(0.3, 0.3))]
    return config


def test_figures_of_a_small_step(tmp_path, capsys):
    config, path = recipe(), tmp_path / 'step.json'
    bench_step.run(config, '', '', str(path), steps=3, warmup=1)
    result = json.loads(path.read_text())
    (program,) = result['programs']
    assert result['devices'] == jax.device_count() and result['published_flops_per_s'] is None
    low, high = program['step_seconds_range']
    assert 0 < low <= program['step_seconds'] <= high
    seconds, flops = program['step_seconds'], program['model_flops']
    assert program['clips_per_s'] == pytest.approx(config.optim.batch / seconds)
    assert flops['total'] == flops['target'] + flops['context'] + flops['predictor']
    assert program['mfu'] * result['matmul_flops_per_s'] * seconds == pytest.approx(flops['total'])
    context, both, whole = program['tokens']
    assert 0 < context < both <= whole == 16
    # the donated state is updated in place: beside it only gradients, of a device and of all
    encoder, predictor = (result['parameters'][net] for net in ('encoder', 'predictor'))
    memory = program['memory_bytes']
    assert memory['outputs in place of arguments'] >= 4 * (4 * encoder + 3 * predictor)
    assert memory['temporary'] < 2.5 * 4 * (encoder + predictor)
    assert 'MFU' in capsys.readouterr().out


def test_recordings():
    """Another recipe, whose frozen encoder is no part of the state, is no other tool's business."""
    config = smoke(ActionConditionedConfig(name='ac', compute_dtype='float32'))
    result = bench_step.bench(config, steps=1, warmup=0)
    (program,) = result['programs']
    assert result['objective'] == 'action_conditioned' and result['frozen_parameters']['encoder']
    assert program['program'] == '4 frames of 18 tokens, from pixels'
    assert program['model_flops'] == {'step': programs(config, jax.device_count())[0].total} | {
        'total': program['model_flops']['step']
    }
    assert program['mfu'] > 0 and math.isfinite(program['batch_to_device_seconds'])
    # actions, states, prefix and frames of 16 pieces
    assert program['batch_bytes'] == 16 * (3 * 7 * 4 + 4 * 7 * 4 + 4 + 4 * 64 * 64 * 3)


def test_depth_adds_nothing_to_the_program():
    def lines(depth: int) -> int:
        step = Step.of(config := recipe(depth), jax.devices())
        with jax.set_mesh(step.mesh):
            (program, *_) = programs(config, jax.device_count())
            return step.function.lower(*step.arguments(program)).as_text().count('\n')

    assert lines(4) == lines(24)


def test_programs_of_a_recipe():
    config = MaskedVideoConfig(name='released')
    config.optim.batch = 24
    totals = [program.total for program in programs(config, 1)]
    assert len(totals) == 4 and all(totals)


def test_a_batch_that_does_not_split_is_refused():
    config = recipe()
    config.optim.batch, config.optim.accumulate = 3, 3
    with pytest.raises(ConfigError, match='optim.batch = 3: must be a multiple of'):
        bench_step.bench(config)


def test_help_and_bad_options(capsys):
    for argv, status in ((['--help'], 0), (['--config=configs/tiny.py', '--steps=0'], 2)):
        returned = cli.run(
            bench_step.run, doc=bench_step.__doc__, options=bench_step._options, argv=argv
        )
        assert returned == status
    assert 'must be at least 1' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('tool', 'flag', 'value', 'least'),
    [
        *(('bench-data', flag, 0, 1) for flag in ('rounds', 'steps', 'videos')),
        ('bench-data', 'workers', -1, 0),
        *(('bench-embed', flag, 0, 1) for flag in ('clips', 'frames', 'crop')),
        *(('bench-probe', flag, 0, 1) for flag in ('clips', 'width', 'heads', 'tokens', 'steps')),
        ('bench-probe', 'classes', 1, 2),
        ('bench-plan', 'at-once', -1, 0),
    ],
)
def test_nothing_to_measure_is_refused(tool, flag, value, least, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [tool, f'--{flag}={value}'])
    assert commands.module(tool).main() == 2
    words = f'error: argument --{flag}: {value}: must be at least {least}\n'
    assert capsys.readouterr().err == words


@pytest.mark.parametrize(
    'words',
    [
        'bench-step --config=tiny', 'bench-data', 'bench-embed', 'bench-plan', 'bench-probe',
        'bench-vs-torch', 'measure-masks', 'score-sta --truth=a --predictions=b',
        'lowered --config=tiny',
    ],
)  # fmt: skip
def test_figures_have_a_place_before_they_are_measured(words, capsys, monkeypatch):
    name, *rest = words.split()
    monkeypatch.setattr(sys, 'argv', [name, *rest, '--json=no/such/figures.json'])
    assert commands.module(name).main() == 1
    assert capsys.readouterr().err.startswith('error: --json no/such/figures.json: No such file')
