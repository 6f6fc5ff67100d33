"""A new objective, kind of net, evaluation and study are one file of the user's: trained with the
real command, killed and resumed, priced, converted and reported, without touching another."""

import ast
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from small_run import Started, arrays, assert_same_arrays, lines, parents, rows

from jepa_jax import recipes

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOY = pathlib.Path(__file__).parent / 'seams/toy.py'


# What may be asked whether it has an attribute, because it is no config: reason -> (file, what)
NO_CONFIGS = {
    'modules, of which some have no file': {
        ('jepa_jax/cli.py', "sys.modules['__main__']"),
        ('jepa_jax/lookup.py', 'known'),
        ('jepa_jax/data/pillow.py', '_module'),
        ('jepa_jax/data/workers.py', 'module'),
        ('jepa_jax/data/workers.py', 'spec'),
    },
    'systems and libraries, which have it or not': {
        ('jepa_jax/memory.py', 'os'),
        ('jepa_jax/data/confine.py', '_libc'),
        ('jepa_jax/data/workers.py', '_LIBC'),
        ('jepa_jax/data/workers.py', 'os'),
        ('jepa_jax/weights/hf_files.py', 'ml_dtypes'),
    },
    'exceptions of any library': {
        ('jepa_jax/metrics.py', 'error'),
        ('jepa_jax/data/containers.py', 'error'),
        ('jepa_jax/data/robot/droid.py', 'error'),
        ('jepa_jax/data/robot/survey.py', 'error'),
    },
    'arrays, or what stands in their place': {
        ('jepa_jax/encoder.py', 'clips'),
        ('jepa_jax/inputs.py', 'video'),
        ('jepa_jax/described.py', 'tree'),
        ('jepa_jax/described.py', 'value'),
        ('jepa_jax/serve_robot.py', 'v'),
        ('jepa_jax/data/robot/lerobot.py', 'column'),
        ('jepa_jax/weights/torch_files.py', 'value'),
        ('tools/versus.py', 'array'),
    },
    'objects of other libraries, of several classes': {
        ('jepa_jax/checkpoint/files.py', 'sharding'),
        ('jepa_jax/data/pictures.py', 'image'),
        ('jepa_jax/data/sources.py', 'feature'),
    },
    'models and features, loaded or made in Python': {
        ('jepa_jax/embedded.py', 'one'),
        ('jepa_jax/evaluate.py', 'loaded'),
        ('jepa_jax/pretrained.py', 'model'),
    },
    'functions that a comparison runs, some of which say more': {('tools/versus.py', 'run')},
    'annotations, text in some modules': {('jepa_jax/weights/parts.py', 'field.type')},
    'whatever a get_config returned': {('jepa_jax/cli.py', 'built')},
    'names that a user typed, which may be no fields': {('jepa_jax/config/store.py', 'config')},
    'configs of old runs, whose fields have moved': {('jepa_jax/config/store.py', 'part')},
}


def sniffed(source: str) -> list[str]:
    """What a file asks whether it has an attribute, or whether it is of a class of configs."""
    result = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        asks, name = len(node.args), node.func.id
        if name == 'hasattr' or (name == 'getattr' and asks == 3):
            result.append(ast.unparse(node.args[0]))
        elif name == 'isinstance' and 'Config' in ast.unparse(node.args[1]):
            result.append(ast.unparse(node))
    return result


def test_nobody_asks_a_config_which_one_it_is():
    """Rows of tables, methods and functools.singledispatch tell objectives, nets and evaluations
    apart: a new one is one file."""
    assert sniffed("getattr(c, 'teacher', ''); getattr(c, 'seed')") == ['c']
    assert sniffed("hasattr(c.data, 'lists') or isinstance(c, (int, AConfig))") == [
        'c.data', 'isinstance(c, (int, AConfig))'
    ]  # fmt: skip
    files = [path for folder in ('jepa_jax', 'tools') for path in (ROOT / folder).rglob('*.py')]
    asked = {
        (str(path.relative_to(ROOT)), what) for path in files for what in sniffed(path.read_text())
    }
    allowed = set().union(*NO_CONFIGS.values())
    assert not asked - allowed, 'a field with a default, a method or a row of a table says it'
    assert not allowed - asked, 'these are asked no more'


class Toys:
    """What `small_run.Started` asks of a folder of runs."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        shutil.copy(TOY, folder)
        self.environment = {
            **os.environ,
            'JAX_PLATFORMS': 'cpu',
            'PYTHONPATH': str(ROOT),
            'JEPA_JAX_CACHE': str(folder / 'cache'),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        }

    def command(self, workdir: pathlib.Path, *more: str):
        train = [sys.executable, '-m', 'jepa_jax.train', '--config=toy.py:study']
        return [*train, f'--workdir={workdir}', *more]

    def run(self, *words: str):
        done = subprocess.run(
            [sys.executable, '-m', *words],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    return Toys(tmp_path_factory.mktemp('toys'))


@pytest.fixture(scope='module')
def study(toys):
    """The unbroken study."""
    workdir = toys.folder / 'study'
    toys.run(*toys.command(workdir)[2:])
    return workdir


def test_no_row_of_the_toys_is_ours():
    assert 'autoencoder' not in recipes.RECIPES and 'two_runs' not in recipes.STUDIES


def test_a_study_of_its_own_runs_to_its_report(toys, study):
    losses = json.loads((study / 'report.json').read_text())['losses']
    first = [json.loads(row)['loss'] for row in rows(study / 'first')]
    second = [json.loads(row)['loss'] for row in rows(study / 'second')]
    assert losses == {'first': first[-1], 'second': second[-1]}
    assert first[-1] < 0.8 * first[0]  # it learns
    assert second[0] < 0.9 * first[0]  # and the second run starts where the first one ended
    reports = [json.loads((study / n / 'report.json').read_text()) for n in ('first', 'second')]
    assert [r['steps'] for r in reports] == [12, 12]
    assert reports[0]['verdict'] == 'finished'
    # its page, from its own objective again; nothing is to be seen of its batches
    (study / 'first/report.html').unlink()
    said = toys.run('jepa_jax', 'report', str(study / 'first'))
    assert said == f'page: {study}/first/report.html\n'
    page = (study / 'first/report.html').read_text()
    assert ': finished</h1>' in page and 'batches have no frames' in page
    assert f'jepa convert {study}/first DIR' in page and page.count('<img') == 1
    assert f'# all of {study}, of which this is a part' in page and 'twice as long' not in page
    assert '; 1 process, 1 device; ' in page


@pytest.mark.slow
@pytest.mark.ci
def test_killed_and_resumed_bit_for_bit(toys, study):
    workdir = toys.folder / 'killed'
    with Started(toys, workdir, ()) as run:
        second = workdir / 'second'
        run.until(lambda: (second / 'checkpoints/4/manifest.json').exists())
        before = lines(second)
        pid = run.process.pid
        run.kill(signal.SIGKILL, group=True)
    assert before < 12, 'it was killed too late to tell anything'
    assert pid not in parents()
    done = {p: p.stat().st_mtime_ns for p in (workdir / 'first/checkpoints').rglob('*')}
    toys.run(*toys.command(workdir)[2:])
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())  # the first run is left alone
    for name in ('first', 'second'):
        assert rows(workdir / name) == rows(study / name)
        assert_same_arrays(arrays(workdir / name, 12), arrays(study / name, 12))
    assert (workdir / 'report.json').read_text() == (study / 'report.json').read_text()


def test_its_arrays_are_in_the_checkpoint_by_name(study):
    held = arrays(study / 'first', 12)
    for kind in ('params', 'ema', 'opt_state/0/mu', 'opt_state/0/nu'):
        assert held[f'{kind}/codec/squeeze/kernel'].shape == (4 * 8 * 8 * 3, 6)
    # the average is the one that numpy makes of the saved parameters, from one save to the next
    assert not np.array_equal(held['params/codec/draw/kernel'], held['ema/codec/draw/kernel'])


def test_it_is_priced(toys):
    path = toys.folder / 'price.json'
    toys.run('tools.dry_run', '--config=toy.py', f'--json={path}')
    price = json.loads(path.read_text())
    assert price['params'] == 768 * 6 + 6 + 6 * 768 + 768
    assert price['model_flops'] == 8 * 5 * 2 * 768 * 6
    # forward; gradients of both weights and of the bottleneck: as the compiled program has it
    assert price['program_flops'] == pytest.approx(price['model_flops'], rel=0.2)


def test_it_converts(toys, study):
    dst = toys.folder / 'converted'
    text = toys.run('jepa_jax.convert', str(study / 'second'), str(dst), '--to', 'jax')
    assert 'clip codec' in text
    from jepa_jax import checkpoint

    held = arrays(study / 'second', 12)
    for part in ('params/codec', 'ema/codec'):
        tree = checkpoint.read_on_host(dst, part)
        np.testing.assert_array_equal(
            tree['squeeze']['kernel'], held[f'{part}/squeeze/kernel'], strict=True
        )


def test_it_evaluates(toys):
    workdir = toys.folder / 'evaluation'
    command = ('jepa_jax.evaluate', '--config=toy.py:evaluation', '--model=random:tiny')
    text = toys.run(*command, f'--workdir={workdir}')
    report = json.loads((workdir / 'report.json').read_text())
    result = report['results']['spread']
    assert result['low'] < result['value'] < result['high'] and result['n'] > 1
    assert report['evaluation'] == 'spread' and report['model']['name'] == 'random:tiny'
    assert f'{result["value"]:.3f}' in text and 'constant features' in text
    assert (workdir / 'apart.txt').exists()
