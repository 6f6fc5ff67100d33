"""Where a run starts, and which config changes make it another run."""

import json
import logging

import jax.numpy as jnp
import pytest

from jepa_jax import origin
from jepa_jax.checkpoint import Checkpoints
from jepa_jax.config import ActionConditionedConfig, MaskedVideoConfig, PeriodicEvalConfig, store
from jepa_jax.errors import CheckpointError, ConfigError
from jepa_jax.lookup import load
from jepa_jax.origin import Origin, check_config, origin_of
from jepa_jax.recipes import RECIPES


def stored(settings) -> dict:
    return json.loads(store.to_json(settings))


@pytest.mark.parametrize('kind', [MaskedVideoConfig, ActionConditionedConfig])
def test_same_config(kind, caplog):
    check_config(stored(kind()), kind(), False)  # tuples here, lists there
    assert not caplog.records


def test_changes_of_another_run(caplog):
    old, new = MaskedVideoConfig(), MaskedVideoConfig()
    new.optim.steps += 1
    new.masks[0].num_blocks = 9
    new.data.workers = 3
    with pytest.raises(ConfigError) as error:
        check_config(stored(old), new, False)
    line = str(error.value)
    assert f'optim.steps: {old.optim.steps} -> {old.optim.steps + 1}' in line
    assert 'masks[0].num_blocks: 8 -> 9' in line
    assert 'workers' not in line and '\n' not in line
    check_config(stored(old), new, True)
    assert 'as allowed' in caplog.records[-1].getMessage()


def test_changes_of_the_same_run(caplog):
    caplog.set_level(logging.INFO)
    old, new = MaskedVideoConfig(), MaskedVideoConfig()
    new.data.workers, new.logging.every, new.checkpoints.keep, new.mesh.fsdp = 3, 7, 9, 4
    check_config(stored(old), new, False)
    for change in ('data.workers: 0 -> 3', 'logging.every', 'checkpoints.keep', 'mesh.fsdp'):
        assert change in caplog.text


def test_free_fields_exist():
    """A renamed field must not leave a rule behind that matches nothing."""
    configs = [load(recipe.config)(evals=[PeriodicEvalConfig()]) for recipe in RECIPES.values()]
    names = {name for config in configs for name, _, _ in store.fields(config)}
    for pattern in origin.FREE:
        assert any(origin._is_free(f'{n}: ') and n.startswith(pattern.rstrip('*')) for n in names)
    assert not origin._is_free('data.crop: 1 -> 2') and not origin._is_free('seed: 1 -> 2')


def of_an_older_program(settings: MaskedVideoConfig) -> dict:
    """The config as it was stored before fields moved and came."""
    values = stored(settings)
    del values['objective']
    values['optim']['stretch'] = values['optim'].pop('ipe_scale')
    values['optim']['loss_exponent'] = values.pop('loss_exponent')
    for part, field in (('mesh', 'remat'), ('optim', 'eps'), ('encoder', 'mlp')):
        del values[part][field]
    del values['probe'], values['masks'][0]['max_keep']
    return values


def test_a_config_of_an_older_schema_is_the_same_run(caplog):
    caplog.set_level(logging.INFO)
    settings = MaskedVideoConfig(loss_exponent=2.0)
    settings.optim.ipe_scale = 1.5
    check_config(of_an_older_program(settings), settings, False)
    assert not caplog.records


def test_changes_against_an_older_schema_have_the_names_of_today():
    settings = MaskedVideoConfig(loss_exponent=2.0)
    before = of_an_older_program(settings)
    settings.loss_exponent, settings.optim.ipe_scale, settings.optim.eps = 1.0, 1.0, 1e-6
    with pytest.raises(ConfigError) as error:
        check_config(before, settings, False)
    for change in ('loss_exponent: 2.0 -> 1.0', 'optim.ipe_scale: 1.25', 'optim.eps: 1e-08 -> 1e'):
        assert change in str(error.value)
    assert 'stretch' not in str(error.value)


def test_what_an_old_run_on_recordings_stored_without_meaning_is_no_difference():
    settings = ActionConditionedConfig()
    before = stored(settings) | stored(MaskedVideoConfig()) | {'ac': stored(settings)['ac']}
    for field in (  # which no such run had
        'objective', 'labels', 'against_collapse', 'variance_weight', 'target', 'teacher',
        'teacher_encoder', 'teacher_other_view',
    ):  # fmt: skip
        del before[field]
    before['optim'] |= {'momentum': 0.5, 'stretch': before['optim'].pop('ipe_scale')}
    before['masks'][0]['num_blocks'] = 99
    check_config(before, settings, False)


@pytest.mark.parametrize('allow', [False, True])
def test_another_objective_is_never_the_same_run(allow):
    with pytest.raises(ConfigError, match="is of objective 'masked_video', this config of 'action"):
        check_config(stored(MaskedVideoConfig()), ActionConditionedConfig(), allow)


def test_the_first_place_that_there_is(tmp_path):
    """This run's own checkpoints, then resume_from, then init_from."""
    config, other = MaskedVideoConfig(name='mine'), tmp_path / 'other'
    with Checkpoints(other / 'checkpoints', keep=1) as saves:
        saves.save(7, {'a': jnp.zeros(2)}, {'config': stored(MaskedVideoConfig(seed=1))})
    with Checkpoints(tmp_path / 'mine', keep=1) as saves:
        assert origin_of(config, saves) == Origin()
        folder = other / 'checkpoints' / '7'
        config.checkpoints.init_from = str(other)
        assert origin_of(config, saves) == Origin(folder, weights_only=True)
        config.checkpoints.init_from, config.checkpoints.resume_from = '', str(folder)
        assert origin_of(config, saves) == Origin(folder)
        config.checkpoints.resume_from = str(tmp_path / 'absent')
        with pytest.raises(CheckpointError, match='absent is absent'):
            origin_of(config, saves)
        saves.save(2, {'a': jnp.zeros(2)}, {'config': stored(config)})
        saves.wait()
        assert origin_of(config, saves) == Origin(tmp_path / 'mine' / '2', same_run=True)
        config.seed = 4
        with pytest.raises(ConfigError, match='seed: 239 -> 4'):
            origin_of(config, saves)
        config.checkpoints.allow_config_change = True
        assert origin_of(config, saves).same_run
        config.teacher = 'vitl'  # the run has its own, and would have gone on with that
        with pytest.raises(
            ConfigError, match="'' -> 'vitl': this run keeps the nets that it began"
        ):
            origin_of(config, saves)
