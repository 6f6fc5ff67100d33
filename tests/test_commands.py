"""The table of entry points: every row answers `--help` at once and says what each flag does."""

import argparse
import importlib
import json
import os
import pathlib
import pkgutil
import re
import resource
import shutil
import subprocess
import sys

import pytest

from jepa_jax import cli, commands, config, plan
from jepa_jax.config import check, layouts

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIST = '--config.data.lists[0].{}'
HEAVY = {'jax', 'flax', 'numpy', 'grain', 'scipy', 'matplotlib', 'av', 'torch', 'mujoco', 'h5py'}


def parser_of(name: str, monkeypatch) -> argparse.ArgumentParser:
    """The parser of a row, which is not run."""
    seen = []

    def stop(parser, *_):
        seen.append(parser)
        raise SystemExit(0)

    monkeypatch.setattr(cli, '_parse', stop)
    monkeypatch.setattr(sys, 'argv', [name])
    assert commands.module(name).main() == 0
    return seen[0]


def flags_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Its flags, those of commands within it too."""
    flags = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags += [flag for inner in action.choices.values() for flag in flags_of(inner)]
        elif action.help is not argparse.SUPPRESS:
            flags.append(action)
    return flags


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_every_flag_has_a_text_and_a_default(name, monkeypatch):
    parser = parser_of(name, monkeypatch)
    assert parser.description, 'a row says what it does'
    for action in flags_of(parser):
        flag = '/'.join(action.option_strings) or action.dest
        words = re.sub(r'\(?%\(default\)s\)?', '', action.help or '').strip()
        assert len(words) > 2, f'{flag} has no text'
        if action.option_strings and action.nargs != 0 and not action.required:
            shown = cli._Help('x')._get_help_string(action)
            assert '(' in shown, f'{flag}: {shown!r} does not say its default'
            assert ') (' not in shown[-60:], f'{flag}: {shown!r} says its default twice'


@pytest.mark.parametrize('name', ['collect', 'check-robot', 'judge-energy'])
def test_help_names_every_key_of_a_table(name, monkeypatch):
    told = {flag.dest: flag.help for flag in flags_of(parser_of(name, monkeypatch))}
    if name == 'collect':
        from jepa_jax.sims.variation import SCENES as TABLE

        words, table = told['scenes'], TABLE
    else:
        words, table = told['kind'], layouts.READERS
    assert ' | '.join(table) in words and 'a key of' not in words


def test_planners_of_plan_are_all_there_are():
    from jepa_jax.planning import cem

    assert set(plan.PLANNERS) == set(cem.PLANNERS)


def test_fields_that_list_words_list_all_of_them():
    """Those of the rules, and of tables that a comment names and lists."""
    for module in pkgutil.iter_modules(config.__path__):
        importlib.import_module(f'jepa_jax.config.{module.name}')
    listed = 0
    for kind, rules in check.RULES.items():
        for name, words in cli.comments(kind).items():
            table = getattr(rules.get(name), 'words', ())
            if match := re.search(r'a key of (jepa_jax[\w.]+)\.(\w+):', words):
                table = [*getattr(importlib.import_module(match[1]), match[2])]
            if table and ' | ' in words:
                listed += 1
                missing = [w for w in table if not re.search(rf'\b{re.escape(w)}\b', words)]
                assert not missing, f'{kind.__name__}.{name}: {missing} not in {words!r}'
    assert listed > 20


def call(*argv: str, path: pathlib.Path = ROOT, **settings) -> subprocess.CompletedProcess:
    environ = {**os.environ, 'PYTHONPATH': str(path), 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, *argv]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environ, **settings
    )


def test_the_list_and_a_mistyped_command():
    done = call('-m', 'jepa_jax', cwd=ROOT)
    assert done.returncode == 0 and not done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.startswith('  ')]
    assert rows == [*commands.COMMANDS]
    done = call('-m', 'jepa_jax', 'trian', cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.endswith('did you mean train?\n') and done.stderr.count('\n') == 1


def test_help_is_quick():
    """In processor seconds, which do not depend on who else is at work; 0.5 are allowed."""
    code = 'import sys; from jepa_jax import commands; status = commands.main(); '
    code += 'print(*{m.split(".")[0] for m in sys.modules}, file=sys.stderr); sys.exit(status)'
    for name in commands.COMMANDS:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = call('-c', code, name, '--help', cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f'usage: jepa {name} ')
        assert not HEAVY & set(done.stderr.split()), f'{name}: {done.stderr}'
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert seconds < 0.5, f'{name}: {seconds:.2f} s'


@pytest.mark.slow
@pytest.mark.ci
def test_an_installed_wheel_needs_no_clone(tmp_path):
    """Configs by name, the tools and the weights that come along, from any folder."""
    source = tmp_path / 'source'
    ignored = shutil.ignore_patterns('.*', '__pycache__', 'build', 'runs', 'tests', '*.egg-info')
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = '-m', 'pip', '-q'
    done = call(*pip, 'wheel', '.', '--no-deps', '--no-build-isolation', '-w', '..', cwd=source)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob('*.whl')
    assert wheel.stat().st_size < 3e6
    shutil.rmtree(source)
    place, elsewhere = tmp_path / 'installed', tmp_path / 'elsewhere'
    elsewhere.mkdir()
    done = call(*pip, 'install', '--no-deps', '--no-index', '--target', str(place), str(wheel))
    assert done.returncode == 0, done.stderr
    script = (place / 'bin/jepa').read_text()
    assert 'from jepa_jax.commands import main' in script

    def jepa(*argv: str) -> subprocess.CompletedProcess:
        return call(str(place / 'bin/jepa'), *argv, path=place, cwd=elsewhere)

    done = jepa('train', '--config=vitz')
    assert done.returncode == 2 and done.stderr.endswith('did you mean vits?\n')
    for name in ('vits', 'configs/vits.py'):
        done = jepa('train', f'--config={name}')
        assert 'error: data.lists[0].path is empty' in done.stderr and not list(elsewhere.iterdir())
    done = jepa('evaluate', '--config=own', '--model=tinny')
    assert "error: model 'tinny'" in done.stderr and 'did you mean tiny?' in done.stderr
    done = jepa('cost', '--config=vits', '--what=memory', '--devices=1')
    assert done.returncode == 0 and 'total' in done.stdout, done.stderr
    clip = str(place / 'jepa_jax/bundled/clip.mp4')
    done = jepa('index', clip, '--out', 'm.jsonl', '--workers=1')
    assert '1 of 1 files are fine' in done.stdout, done.stderr
    done = jepa('embed', '--model=tiny', '--input', clip, '--out=f.npz', '--frames=8', '--fps=8')
    assert done.returncode == 0 and 'tokens [3, 64, 96]' in done.stderr + done.stdout, done.stderr


MISTAKES = [
    (['train', '--config=tiny:smok'], 2, "'smok': allowed are pretrain, smoke; did you mean"),
    (['train', '--config=sim_panda:smal'], 2, 'dark, full; did you mean small?'),
    (['train', '--config=tinny'], 2, 'did you mean tiny?'),
    (['train', '--config=own'], 2, 'no file own'),
    (['train', '--config=tiny', '--config.optim.stepz=3'], 2, 'did you mean optim.steps?'),
    (['train', '--config=tiny', '--config.optim.steps=1e4.5'], 2, 'must be a whole number'),
    (['train', '--config=vits', LIST.format('kind=vidoes'), LIST.format('path=x')], 1,
     "data.lists[0].kind = 'vidoes': allowed are videos, images"),
    (['train', '--config=vits', LIST.format('path=clips/trian')], 1, 'did you mean train?'),
    (['train', '--config=vits', LIST.format('path=clips/train'),
      '--config.checkpoints.init_from=clips/tran'], 1, 'checkpoints.init_from:'),
    (['train', '--config=ac_vitg', '--config.robot.kind=lerobt'], 1, 'did you mean lerobot?'),
    (['train', '--config=ac_vitg', '--config.encoder_from=vitgg',
      '--config.robot.path=clips'], 1, "model 'vitgg'"),
    (['evaluate', '--config=own', '--model=vitll', '--config.data.train=clips'], 1,
     'did you mean vitl?'),
    (['evaluate', '--config=onw', '--model=vitl'], 2, 'did you mean own?'),
    (['evaluate', '--config=eval/own', '--model=vitl', '--model=random:vitz'], 1,
     "model 'random:vitz': allowed are tiny, vits"),
    (['embed', '--model=vitl.pt', '--input=x.mp4', '--out=x.npz'], 1, "model 'vitl.pt'"),
    (['embed', '--model=tiny', '--probe=ssv2-vitl', '--input=x.mp4', '--out=x.npz'], 1,
     "model 'ssv2-vitl'"),
    (['embed', '--model=tiny', '--input=x.mp4', '--out=x.npz'], 1, 'x.mp4: no such file'),
    (['embed', '--model=tiny', '--input=x.mp4', '--frames=many'], 2,
     "--frames: 'many': must be a whole number"),
    (['plan', '--model=ac-vitgg', '--input=x.npz', '--out=x'], 1, 'did you mean ac-vitg?'),
    (['plan', '--model=tiny', '--input=x.npz', '--out=x', '--planner=cems'], 2, 'cem_adam'),
    (['convert', 'clips/trian', 'out'], 1, 'did you mean clips/train?'),
    (['convert', 'clips', 'x.safetensors'], 1, 'DST x.safetensors: no .safetensors file'),
    (['evaluate', '--config=own', '--model=tiny', '--config.data.train=clips/trian'], 1,
     "data.train: 'clips/trian' cannot be read: No such file or directory; did you mean train?"),
    (['plan', '--model=tiny', '--input=x.npz', '--out=x', '--encoder=targt'], 2,
     "'targt': allowed are target, online; did you mean target?"),
    (['index', 'clips/trian', '--out=m.jsonl'], 1, 'did you mean train?'),
    (['shards', 'clips/trian', '--out=sh'], 1, 'did you mean train?'),
    (['check-robot', '--kind=npz', '--path=clips/trian'], 1, 'did you mean train?'),
    (['check-robot', '--kind=nzp', '--path=clips/train'], 1, 'did you mean npz?'),
    (['doctor', '--model=vitt'], 1, 'did you mean vitl?'),
    (['cost', '--config=vitl', '--devices=two'], 2, "'two': must be a whole number"),
]  # fmt: skip


# runs command lines without JAX, one after the other, and prints what each returned and said
WITHOUT_JAX = """
import contextlib, io, json, sys
sys.modules['jax'] = None
from jepa_jax import commands
for argv in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = commands.main(argv)
    print(json.dumps([status, said.getvalue()]))
"""


def test_names_are_judged_before_jax_is_imported(tmp_path):
    (tmp_path / 'clips/train').mkdir(parents=True)
    lines = json.dumps([argv for argv, _, _ in MISTAKES])
    done = call('-c', WITHOUT_JAX, cwd=tmp_path, input=lines)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(MISTAKES), done.stderr
    for (argv, status, words), (returned, said) in zip(MISTAKES, answers):
        assert returned == status, (argv, said)
        assert said.startswith('error: ') and said.count('\n') == 1, (argv, said)
        assert words in said, (argv, said)
    assert sorted(tmp_path.rglob('*')) == [tmp_path / 'clips', tmp_path / 'clips/train']


@pytest.mark.parametrize('module', cli.EXTRAS)
def test_a_missing_extra_is_one_line(module, capsys, monkeypatch):
    assert f"'{cli.EXTRAS[module]}': [" in (ROOT / 'setup.py').read_text()

    def main() -> None:
        monkeypatch.setitem(sys.modules, module, None)
        importlib.import_module(module)

    assert cli.run(main, doc='x', tables=(), argv=[]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f'error: needs {module}, ') and said.count('\n') == 1
    assert f"pip install 'jepa_jax[{cli.EXTRAS[module]}]'" in said


def test_the_simulator_without_mujoco_is_one_line(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith('jepa_jax.sims.')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'mujoco', None)
    monkeypatch.setattr(sys, 'argv', ['jepa collect', '--out', str(tmp_path / 'x')])
    assert commands.module('collect').main() == 1
    said = capsys.readouterr().err
    assert said.startswith('error: ') and said.count('\n') == 1
    assert "pip install 'jepa_jax[sim]'" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('text', 'number'), [('7', 7), ('1e4', 10_000), ('-2', -2), ('2.50e1', 25), ('1_000', 1000)]
)
def test_whole_numbers(text, number):
    assert cli.whole(text) == number


@pytest.mark.parametrize('text', ['1.5', 'many', '', 'inf', 'nan', '1e-3'])
def test_what_is_no_whole_number(text):
    with pytest.raises(argparse.ArgumentTypeError, match='must be a whole number'):
        cli.whole(text)


def test_whole_numbers_of_fields():
    argv = ['--config=tiny', '--config.optim.steps=1e4', '--config.optim.batch', '6.4e1']
    argv.append('--config.optim.lr=1e-3')
    parser = cli._parser('x', ('objective',), None)
    optim = cli._parse(parser, ('objective',), argv)['config'].optim
    assert (optim.steps, optim.batch, optim.lr) == (10_000, 64, 1e-3)


def test_sizes_and_configs_have_one_name():
    from jepa_jax.models import SIZE_ALIASES, SIZES

    for size in ('vits', 'vitb', 'vitl', 'vith', 'vitg'):
        assert size in SIZES and cli.load(f'{size}:smoke').encoder.size == size
    for old, size in SIZE_ALIASES.items():
        assert pathlib.Path(cli.find(old)).stem == size
    assert os.path.samefile(cli.find('vitg-384'), ROOT / 'configs/vitg_384.py')


@pytest.mark.parametrize(
    ('present', 'platforms'),
    [
        ({'libtpu'}, 'cpu'),
        ({'libtpu', 'jax_cuda13_plugin', 'nvidiactl'}, 'cuda,cpu'),
        ({'libtpu', 'jax_cuda13_plugin'}, 'cpu'),
        ({'libtpu', 'accel0'}, None),
        ({'libtpu', 'vfio/0'}, None),
        ({'nvidiactl'}, None),  # no libtpu: nothing to keep quiet
    ],
)
def test_libtpu_is_left_alone_where_there_is_no_tpu(present, platforms, tmp_path, monkeypatch):
    for name in present:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(cli, '_installed', present.__contains__)
    monkeypatch.delenv('JAX_PLATFORMS')
    cli.leave_libtpu_alone(str(tmp_path))
    assert os.environ.get('JAX_PLATFORMS') == platforms
    monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
    cli.leave_libtpu_alone(str(tmp_path))
    assert os.environ['JAX_PLATFORMS'] == 'tpu'


def test_a_refused_start_leaves_nothing(tmp_path):
    from jepa_jax.workdir import lock

    with pytest.raises(ValueError), lock(tmp_path / 'runs/mine'):
        (tmp_path / 'runs/mine/checkpoints/inner').mkdir(parents=True)  # made before the refusal
        raise ValueError
    assert not list(tmp_path.iterdir())
    with lock(tmp_path / 'runs/mine'):
        (tmp_path / 'runs/mine/metrics.jsonl').touch()
    assert (tmp_path / 'runs/mine/metrics.jsonl').exists()
    (tmp_path / 'own').mkdir()  # the user's
    with lock(tmp_path / 'own'):
        pass
    assert (tmp_path / 'own').is_dir()
