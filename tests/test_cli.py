"""The command line as a shell sees it: exit status, one line on stderr, and nothing slow."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from jepa_jax import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent

ENTRY = '''"""Train a toy.

    python entry.py --config=configs/toy.py
"""

import sys

from jepa_jax import cli
from jepa_jax.errors import Interrupted
from jepa_jax.recipes import validate


def train(config, workdir, config_file, fail):
    if fail == 'bug':
        {}['missing']
    if fail == 'number':  # a ValueError that no code of ours raised
        int('x')
    if fail == 'file':
        open('no/such/file')
    if fail == 'platform':
        import jax

        jax.config.update('jax_platforms', 'foo')
        jax.devices()
    if fail == 'interrupted':
        raise Interrupted('SIGTERM at step 3')
    if fail == 'sharding':
        from jepa_jax.sharding import specs_for

        specs_for((), {'who': {'knows': 0}})
    validate(config)
    o = config.optim
    print(workdir, o.steps, o.lr, config.data.augment.flip, config.masks[0].spatial_scale)
    print(o.ipe_scale, config.loss_exponent, config_file)


if __name__ == '__main__':
    sys.exit(cli.run(train, doc=__doc__, options=lambda p: p.add_argument('--fail', default='')))
'''

TOY = """from jepa_jax.config import DataListConfig, MaskedVideoConfig, parse_arg, smoke


def get_config(arg=''):
    phase, small = parse_arg(arg, 'pretrain', 'cooldown')
    config = MaskedVideoConfig(name=f'toy-{phase}')
    config.data.lists = [DataListConfig(kind='synthetic')]
    return smoke(config) if small else config
"""

PLAIN = """import sys

from jepa_jax import cli


def main(out):
    print('wrote', out)


sys.exit(cli.run(main, doc='Write.', tables=(), options=lambda p: p.add_argument('--out')))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clone')
    (folder / 'configs').mkdir()
    (folder / 'entry.py').write_text(ENTRY)
    (folder / 'plain.py').write_text(PLAIN)
    (folder / 'configs/toy.py').write_text(TOY)
    (folder / 'configs/broken.py').write_text('def get_config():\n    return undefined\n')
    study = 'from jepa_jax.config import SimConfig as get_config'
    (folder / 'configs/study.py').write_text(study)
    (folder / 'configs/other.py').write_text('def get_config():\n    return {}\n')
    return folder


def call(folder, *argv, script='entry.py', python=()):
    return subprocess.run(
        [sys.executable, *python, script, *argv],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'COLUMNS': '100'},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_is_quick_and_succeeds(folder):
    start = time.monotonic()
    done = call(folder, '--help', python=('-X', 'importtime'))
    assert time.monotonic() - start < 3
    assert done.returncode == 0
    assert 'Train a toy.' in done.stdout and '--config.optim.steps' in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    imported = {line.split('|')[-1].strip().split('.')[0] for line in done.stderr.splitlines()}
    assert 'argparse' in imported
    heavy = 'ml_collections absl numpy jax flax optax orbax grain tensorflow torch av'
    assert not imported & set(heavy.split())


def test_help_lists_fields_that_exist():
    from jepa_jax import cli
    from jepa_jax.config import MaskedVideoConfig
    from jepa_jax.config.store import fields

    assert set(cli.USEFUL) <= {name for name, _, _ in fields(MaskedVideoConfig())}


@pytest.mark.parametrize(
    ('argv', 'printed'),
    [
        (['--config=configs/toy.py'], 'runs/toy-pretrain 240000 0.000525 True (0.15, 0.15)'),
        (['--config', 'configs/toy.py:smoke', '--workdir', 'here'], 'here 24 0.000525 True'),
        (
            [
                '--config=configs/toy.py',
                '--config.optim.steps=7',
                '--config.optim.lr',
                '1e-3',
                '--noconfig.data.augment.flip',
                '--config.masks[0].spatial_scale=(0.1, 0.2)',
                '--config.name=mine',
            ],
            'runs/mine 7 0.001 False (0.1, 0.2)',
        ),
        (['--config=configs/toy.py', '--config.data.augment.flip=false'], 'False (0.15, 0.15)'),
        (
            ['--config=configs/toy.py', '--config.optim.stretch=2', '--config.loss_exponent=1.5'],
            '2.0 1.5 /',
        ),
        (['--config=configs/toy.py', '--config.optim.loss_exponent', '3'], '1.25 3.0 /'),
        (['--config=configs/toy.py'], '/configs/toy.py\n'),
    ],
)
def test_good_command_lines(folder, argv, printed):
    done = call(folder, *argv)
    assert (done.returncode, done.stderr) == (0, '')
    assert printed in done.stdout


CONFIG = '--config=configs/toy.py'


@pytest.mark.parametrize(
    ('argv', 'status', 'words'),
    [
        ([], 2, ['--config is missing', 'configs/toy.py']),
        (
            ['--config=configs/toi.py'],
            2,
            ['no file configs/toi.py', 'did you mean configs/toy.py?'],
        ),
        (['--config=configs/broken.py'], 2, ['configs/broken.py', "NameError: name 'undefined'"]),
        (
            ['--config=configs/other.py'],
            2,
            ['returned dict, must be a config of a run (RunConfig)'],
        ),
        ([CONFIG + ':cooldwn'], 2, ["'cooldwn'", 'pretrain, cooldown, smoke', 'mean cooldown?']),
        (['--config=configs/study.py'], 2, ['returned SimConfig, must be a config of a run']),
        ([CONFIG, '--config.optim.stretch=much'], 2, ["optim.ipe_scale = 'much'", 'a number']),
        ([CONFIG, '--config.optim.step=3'], 2, ['no field optim.step', 'mean optim.steps?']),
        ([CONFIG, '--config.steps=3'], 2, ['no field steps', 'did you mean optim.steps?']),
        ([CONFIG, '--config.masks[9].max_keep=3'], 2, ['no field masks[9].max_keep']),
        ([CONFIG, '--config.evals[1].every=2'], 2, ['no field evals[1].every']),
        (['configs/toy.py', '--workdir=x'], 2, ['did you mean --config=configs/toy.py?']),
        (['vits'], 2, ['--config is missing', 'did you mean --config=vits?']),
        ([CONFIG, '--config.optim.steps=many'], 2, ["optim.steps = 'many'", 'a whole number']),
        ([CONFIG, '--config.optim.steps=1.5'], 2, ["optim.steps = '1.5'", 'a whole number']),
        ([CONFIG, '--config.optim.lr=fast'], 2, ["optim.lr = 'fast'", 'must be a number']),
        ([CONFIG, '--config.data.augment.flip=2'], 2, ["flip = '2'", 'true or false']),
        ([CONFIG, '--config.optim.steps'], 2, ['--config.optim.steps']),
        (['--config.optim.steps=3', CONFIG], 2, ['steps=3 stands before --config']),
        ([CONFIG, '--wrokdir=x'], 2, ['unknown flag --wrokdir', 'did you mean --workdir?']),
        ([CONFIG, 'stray'], 2, ["'stray' follows no flag"]),
        ([CONFIG, '--workdir'], 2, ['--workdir', 'expected one argument']),
        ([CONFIG, '--config.optim.lr=-1'], 1, ['optim.lr = -1.0', 'more than 0']),
        ([CONFIG, '--config.optim.lr', '-1e-3'], 1, ['optim.lr = -0.001', 'more than 0']),
        ([CONFIG, '--config.masks[0].spatial_scale=3'], 1, ['spatial_scale = (3,)', '2 values']),
        ([CONFIG, '--fail=file'], 1, ['no/such/file: No such file or directory']),
        ([CONFIG, '--fail=platform'], 1, ["Unable to initialize backend 'foo'", 'JAX_PLATFORMS']),
        ([CONFIG, '--fail=sharding'], 1, ["'who/knows' matches no sharding rule"]),
        ([CONFIG, '--fail=interrupted'], 75, ['SIGTERM at step 3', 'start the same command again']),
    ],
    ids=lambda value: ' '.join(value[-1:]) if isinstance(value, list) else None,
)
def test_bad_command_lines_are_one_line(folder, argv, status, words):
    done = call(folder, *argv)
    assert done.returncode == status
    assert done.stdout == ''
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith('interrupted: ' if status == 75 else 'error: ')
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        ([CONFIG, '--fail=bug'], "KeyError: 'missing'"),
        ([CONFIG, '--fail=number'], 'ValueError: invalid literal'),
        ([CONFIG, '--fail=file', '--debug'], 'FileNotFoundError'),
        (['--config=configs/broken.py', '--debug'], 'return undefined'),
    ],
)
def test_bugs_and_debug_show_the_traceback(folder, argv, words):
    done = call(folder, *argv)
    assert done.returncode in (1, 2)
    assert 'Traceback (most recent call last)' in done.stderr and words in done.stderr


def test_a_command_without_config(folder):
    done = call(folder, '--out', 'x.npz', script='plain.py')
    assert (done.returncode, done.stdout, done.stderr) == (0, 'wrote x.npz\n', '')
    done = call(folder, '--oot=x', script='plain.py')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'error: unknown flag --oot; did you mean --out?\n'
    assert '--config' not in call(folder, '--help', script='plain.py').stdout


def test_a_mistyped_flag_is_named_before_those_that_are_lacking(folder):
    done = subprocess.run(
        [sys.executable, '-m', 'jepa_jax', 'embed', '--model=tiny', '--inptu', 'x.mp4'],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == 'error: unknown flag --inptu; did you mean --input?\n'
    assert done.returncode == 2


def test_a_flag_begins_an_empty_list(folder):
    """A run whose config has no evals gets one by `evals[0].every`."""
    config = cli.load(str(folder / 'configs/toy.py'))
    assert config.evals == []
    parser = cli._parser('x', ('objective',), None)
    config = cli._override(config, ['--config.evals[0].every=1e2'], parser)
    assert [part.every for part in config.evals] == [100]


def test_a_launcher_names_the_workers_that_no_flag_does(folder, monkeypatch):
    """Of configs that have such a field: a study has none."""
    monkeypatch.setenv('JEPA_JAX_WORKERS', '7')
    toy, flag, configs = f'--config={folder / "configs/toy.py"}', '--config.data.workers', []
    for argv in ([toy], [toy, f'{flag}=4'], [toy, flag, '5']):
        assert not cli.run(lambda config, **_: configs.append(config), doc='', argv=argv)
    assert [config.data.workers for config in configs] == [7, 4, 5]
    tables = ('objective', 'study')
    assert not cli.run(lambda **_: 0, doc='', tables=tables, argv=['--config=sim_panda'])


@pytest.mark.parametrize('command', [[], ['models'], ['embed', '--help']])
def test_a_reader_that_leaves_early_is_no_error(command):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, '-m', 'jepa_jax', *command],
        cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(write)
    assert done.stderr == ''


def test_warnings_are_lines_as_they_are(folder):
    """Also of commands that set up no log."""
    (folder / 'warns.py').write_text(
        'import logging, sys\nfrom jepa_jax import cli\n'
        "sys.exit(cli.run(lambda: logging.warning('a list: 2 lines'), doc='x', tables=()))\n"
    )
    done = call(folder, script='warns.py')
    assert (done.returncode, done.stderr) == (0, 'a list: 2 lines\n')


def test_a_name_that_is_no_text_ends_no_command(folder):
    (folder / 'odd.py').write_text(
        'import sys\nfrom jepa_jax import cli\n'
        "sys.exit(cli.run(lambda: print('a\\udcff'), doc='x', tables=()))\n"
    )
    done = call(folder, script='odd.py')
    assert (done.returncode, done.stdout) == (0, 'a\\udcff\n')
