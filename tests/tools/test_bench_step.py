"""The step benchmark: its figures fit together, the step needs no second state, depth costs no
compilation."""

import json
import statistics

import jax
import pytest

from jepa_jax import cli, optim
from jepa_jax.config import DataListConfig, MaskConfig, MaskedVideoConfig
from jepa_jax.errors import ConfigError
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.state import init_state
from jepa_jax.step import make_step
from tools import bench_step


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
    bench_step.run(config, '', str(path), steps=3, warmup=1)
    found = json.loads(path.read_text())
    (program,) = found['programs']
    assert found['devices'] == jax.device_count() and found['published_flops_per_s'] is None
    low, high = program['step_seconds_range']
    assert 0 < low <= program['step_seconds'] <= high
    seconds, flops = program['step_seconds'], program['model_flops']
    assert program['clips_per_s'] == pytest.approx(config.optim.batch / seconds)
    assert flops['total'] == flops['target'] + flops['context'] + flops['predictor']
    assert program['mfu'] * found['matmul_flops_per_s'] * seconds == pytest.approx(flops['total'])
    (((context, target),),) = program['tokens']
    assert 0 < context < 16 and 0 < target <= 16 - context
    # the donated state is updated in place: beside it only gradients, of a device and of all
    encoder, predictor = (found['parameters'][net] for net in ('encoder', 'predictor'))
    memory = program['memory_bytes']
    assert memory['outputs in place of arguments'] >= 4 * (4 * encoder + 3 * predictor)
    assert memory['temporary'] < 2.5 * 4 * (encoder + predictor)
    assert 'MFU' in capsys.readouterr().out


def test_depth_adds_nothing_to_the_program():
    def lines(depth: int) -> int:
        config = recipe(depth)
        objective = MaskedVideo.of(config)
        params = jax.eval_shape(objective.init, jax.random.key(0))
        tx = optim.optimizer(config.optim, optim.decay_mask(params, objective.unused))
        state = jax.eval_shape(lambda key: init_state(objective, tx, key), jax.random.key(0))
        rows = {config.data.frames: 1}
        sampler = bench_step.mask_samplers(config, rows)
        program = bench_step.programs(config, sampler, rows)[0]
        batch = bench_step.make_batch(config, sampler, program)
        return (
            jax.jit(make_step(objective, tx, config.optim))
            .lower(state, batch)
            .as_text()
            .count('\n')
        )

    assert lines(4) == lines(24)


def test_programs_of_a_recipe():
    config = MaskedVideoConfig(name='released')
    rows = {16: 24}
    found = bench_step.programs(config, bench_step.mask_samplers(config, rows), rows)
    assert len(found) == 4
    totals = [program.flops.total for program in found]
    gaps = [abs(total - statistics.mean(totals)) for total in totals]
    assert gaps == sorted(gaps)


def test_a_batch_that_does_not_split_is_refused():
    config = recipe()
    config.optim.batch, config.optim.accumulate = 3, 3
    with pytest.raises(ConfigError, match='optim.batch = 3: must be a multiple of'):
        bench_step.bench(config)


def test_help_and_bad_options(capsys):
    for argv, status in ((['--help'], 0), (['--config=configs/tiny.py', '--steps=0'], 2)):
        found = cli.run(
            bench_step.run, doc=bench_step.__doc__, options=bench_step._options, argv=argv
        )
        assert found == status
    assert 'must be at least 1' in capsys.readouterr().err
