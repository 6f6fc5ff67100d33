"""What goes to TensorBoard, wandb, MLflow and trackio: calls to small modules of these names."""

import json
import logging
import sys
import textwrap
import types

import numpy as np
import pytest

from jepa_jax import cli, recipes, sinks
from jepa_jax.config import MaskedVideoConfig
from jepa_jax.errors import ConfigError
from jepa_jax.metrics import Metrics, read

# Each as its documentation has it, and no more: another call or argument is an error.
LIBRARIES = {
    'wandb': """
        calls = []
        class Image:
            def __init__(self, data): self.shape = data.shape
        class Run:
            def log(self, data, step=None): calls.append(('log', data, step))
            def finish(self): calls.append(('finish',))
        def init(project, name, id, resume, dir, config):
            calls.append(('init', project, name, id, resume, dir, config['seed']))
            return Run()
        """,
    'trackio': """
        calls = []
        class Image:
            def __init__(self, value): self.shape = value.shape
        def init(project, name, resume, config):
            calls.append(('init', project, name, resume, config['seed']))
        def log(metrics, step=None): calls.append(('log', metrics, step))
        def finish(): calls.append(('finish',))
        """,
    'mlflow': """
        import types
        calls = []
        def set_experiment(name): calls.append(('experiment', name))
        def start_run(run_id=None, run_name=None):
            calls.append(('start', run_id, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or 'r1'))
        def log_dict(value, path): calls.append(('dict', value['seed'], path))
        def log_metrics(metrics, step=None): calls.append(('log', metrics, step))
        def log_image(image, key=None, step=None): calls.append(('image', image.shape, key, step))
        def end_run(): calls.append(('finish',))
        """,
}


@pytest.fixture
def libraries(tmp_path, monkeypatch) -> dict[str, types.ModuleType]:
    """The three, which can be imported."""
    folder = tmp_path / 'libraries'
    folder.mkdir()
    for name, text in LIBRARIES.items():
        (folder / f'{name}.py').write_text(textwrap.dedent(text))
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(folder))
    made = {name: __import__(name) for name in LIBRARIES}
    assert all(str(folder) in module.__file__ for module in made.values())
    yield made
    for name in LIBRARIES:
        sys.modules.pop(name, None)


def config(names: str) -> MaskedVideoConfig:
    made = MaskedVideoConfig(name='mine', seed=7)
    made.data.lists[0].path = 'clips.txt'
    made.logging.sinks, made.logging.project = names, 'group'
    return made


def start(tmp_path, step: int) -> None:
    run = tmp_path / 'run'
    run.mkdir(exist_ok=True)
    opened = sinks.opened(config('wandb,mlflow,trackio'), run)
    with Metrics(run, start_step=step, total_steps=9, sinks=opened, terminal=False) as written:
        written.write(step + 1, {'loss': 0.5})
        written.picture(step + 2, 'eyes', np.zeros((2, 3, 3), np.uint8))


def test_calls_and_calls_again_after_a_restart(tmp_path, libraries):
    start(tmp_path, 0)
    known = json.loads((tmp_path / 'run' / sinks.FILE).read_text())
    assert known.keys() == LIBRARIES.keys() and known['mlflow'] == 'r1'
    row = 'log', {'loss': 0.5}, 1
    wandb, mlflow, trackio = (libraries[name].calls for name in ('wandb', 'mlflow', 'trackio'))
    begun = ('init', 'group', 'mine', known['wandb'], 'allow', str(tmp_path / 'run'), 7)
    assert wandb[:2] == [begun, row] and wandb[-1] == ('finish',) and len(wandb) == 4
    assert (wandb[2][1]['eyes'].shape, wandb[2][2]) == ((2, 3, 3), 2)
    assert mlflow == [
        ('experiment', 'group'), ('start', None, 'mine'), ('dict', 7, 'config.json'), row,
        ('image', (2, 3, 3), 'eyes', 2), ('finish',),
    ]  # fmt: skip
    assert trackio[:2] == [('init', 'group', known['trackio'], 'allow', 7), row]
    assert known['trackio'].startswith('mine-') and trackio[-1] == ('finish',)
    start(tmp_path, 1)
    assert json.loads((tmp_path / 'run' / sinks.FILE).read_text()) == known
    assert wandb[4] == begun and mlflow[7] == ('start', 'r1', 'mine') and len(mlflow) == 11


def test_a_sink_that_fails_ends_no_run(tmp_path, libraries, caplog, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError('no such\nhost')

    monkeypatch.setattr(libraries['mlflow'], 'log_metrics', fail)
    start(tmp_path, 0)
    assert read(tmp_path / 'run') == [{'step': 1, 'loss': 0.5}]
    (said,) = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert said == 'no more mlflow until the next start: no such host'
    assert libraries['mlflow'].calls[-1] == ('finish',) and len(libraries['wandb'].calls) == 4
    monkeypatch.setattr(libraries['trackio'], 'init', fail)
    with pytest.raises(ConfigError, match="^logging.sinks = 'trackio': no such host$"):
        sinks.opened(config('wandb,trackio'), tmp_path)
    assert libraries['wandb'].calls[-1] == ('finish',)


def test_refused_before_the_start(tmp_path, libraries, monkeypatch):
    monkeypatch.setattr(recipes.layouts, 'missing', lambda *_: iter(()))
    recipes.validate(config(''), tmp_path)
    recipes.validate(config('wandb'), tmp_path)
    for names in ('wand', 'wandb,wandb', 'wandb,'):
        with pytest.raises(ConfigError, match='allowed are wandb, mlflow, trackio'):
            recipes.validate(config(names), tmp_path)
    monkeypatch.setattr(recipes.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError) as refused:
        recipes.validate(config('trackio'), tmp_path)
    assert str(refused.value) == (
        "logging.sinks = 'trackio': trackio is not installed: pip install 'jepa_jax[trackio]'"
    )


@pytest.mark.parametrize('place', ['az://bucket/run', 'hdfs://a', 'file:///x', 's3://bucket'])
def test_an_address_that_is_no_workdir(place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ['--config=tiny', f'--workdir={place}']
    status = cli.run(pytest.fail, doc='x', tables=('objective',), argv=argv)
    assert status == 2
    said = capsys.readouterr().err
    assert said.startswith('error: ') and f'{place}: must be ' in said and said.count('\n') == 1
    assert not any(tmp_path.iterdir())
    made = config('')
    made.data.lists[0].path = f'hdfs://{place}'
    with pytest.raises(ConfigError, match=r'data.lists\[0\].path = .*: must be a file or folder'):
        recipes.validate(made, tmp_path)
