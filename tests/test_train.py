"""`python -m jepa_jax.train` as its user meets it: what it writes, says and refuses."""

import contextlib
import gzip
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_run import STEPS, arrays, assert_same_arrays, lines, rows

from jepa_jax import checkpoint, metrics
from jepa_jax import workdir as files

CONTRACT = {'step', 'loss', 'lr', 'weight_decay', 'momentum', 'grad_norm', 'clips_per_s'}
CONTRACT |= {'data_wait_s'}
HEALTH = {
    'health/target_rank',
    'health/target_std',
    'health/target_cosine',
    'health/target_covariance',
    'health/context_rank',
    'health/loss_share',
    'health/ema_lag',
}


def test_a_run_and_the_same_again(runs):
    workdir = runs.finished()
    rows = metrics.read(workdir)
    assert [row['step'] for row in rows] == [*range(1, STEPS + 1)]
    assert all(row.keys() >= CONTRACT for row in rows)
    assert [row['step'] for row in rows if row.keys() >= HEALTH] == [4, 8, 12, 16]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[-1]['loss'] < rows[0]['loss']
    assert json.loads((workdir / 'config.json').read_text())['optim']['steps'] == STEPS
    assert checkpoint.complete_steps(workdir / 'checkpoints') == [8, 12, 16]
    assert (workdir / 'run.png').read_bytes().startswith(b'\x89PNG')
    page = (workdir / 'report.html').read_text()
    assert page.count('data:image/png') == 1 + 2 * 2 + 2 * 5  # curves; of two clips mask, moments
    assert 'src="data:' in page and 'step 16</td>' in page and '0 of them (0.00%)' in page
    report = json.loads((workdir / 'report.json').read_text())
    keys = {'steps', 'processes', 'devices', 'seconds', 'verdict', 'probes', 'tasks'}
    assert report.keys() >= keys
    assert (report['steps'], report['processes'], report['devices']) == (STEPS, 1, 1)
    assert report['verdict'] in ('undertrained', 'healthy', 'partial collapse', 'collapsed')

    said = (workdir / 'stdout').read_text().splitlines()
    assert said and all(line.startswith('step ') for line in said)
    assert said[-1].startswith(f'step {STEPS}/{STEPS}  loss {rows[-1]["loss"]:.4f}')
    assert not set('\r\x1b') & set((workdir / 'stdout').read_text())
    told = (workdir / 'stderr').read_text()
    assert 'Traceback' not in told
    assert '1 devices (cpu) of 1 processes, mesh data 1 x fsdp 1, float32; 8 clips at a' in told
    held, needed = re.search(r'device: (\S+) GiB of state, (\S+) GiB with all', told).groups()
    assert 0 < float(held) < float(needed) < 1
    programs = int(re.search(r'programs to compile: (\d)', told)[1])
    assert programs == len(re.findall(r'^program \d: token counts', told, re.M))

    kept = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
    done = runs.run(workdir)
    assert (done.returncode, done.stdout) == (0, '')
    assert done.stderr == f'{workdir} is finished: {report["verdict"]}\n'
    del kept[workdir / '.lock']  # says who came last
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_profile(runs):
    """Steps 3 to 5, with the parts of a step by name, and without the calls of Python."""
    workdir = runs.finished()
    assert (
        f'trace of steps 3 to 5 of this start: {workdir}/profile'
        in (workdir / 'stderr').read_text()
    )
    (path,) = workdir.glob('profile/**/*.xplane.pb')
    names = set(re.findall(rb'jit\(step\)[ -~]*', path.read_bytes()))
    for scope in (b'target', b'context', b'predict', b'gradients', b'adamw', b'ema'):
        assert any(re.search(rb'\b%s\b' % scope, name) for name in names), scope
    (path,) = workdir.glob('profile/**/*.trace.json.gz')  # what TensorBoard's trace viewer shows
    with gzip.open(path) as file:
        events = [e for e in json.load(file)['traceEvents'] if e.get('ph') == 'X']
    steps = [int(e['args']['step_num']) for e in events if e['name'] == 'step']
    assert sorted(steps) == [2, 3, 4]
    at_work = [e for e in events if e.get('args', {}).get('hlo_module') == 'jit_step']
    assert len(at_work) > 100
    assert not any(e['name'].startswith('$') for e in events)  # $file.py:line function


def test_help_needs_no_jax(runs):
    done = subprocess.run(
        [sys.executable, '-X', 'importtime', '-m', 'jepa_jax.train', '--help'],
        cwd=runs.folder,
        env=runs.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and 'Trains what a config asks for' in done.stdout
    imported = {line.split('|')[-1].strip().split('.')[0] for line in done.stderr.splitlines()}
    assert 'argparse' in imported
    assert not imported & {'jax', 'flax', 'optax', 'orbax', 'grain', 'tensorflow', 'torch', 'av'}


# Files that cannot be read


@pytest.fixture
def listed(runs, tmp_path):
    """A list of eight good files, and what writes it with bad ones."""
    good = sorted(runs.videos.iterdir())[:8]

    def write(*bad, good=good):
        path = tmp_path / 'list.txt'
        path.write_text(''.join(f'{name}\n' for name in (*good, *bad)))
        return path

    return write


def test_bad_files_are_counted_and_named_once(runs, listed, tmp_path):
    empty, torn, gone = tmp_path / 'empty.mp4', tmp_path / 'torn.mp4', tmp_path / 'gone.mp4'
    empty.touch()
    torn.write_bytes(next(runs.videos.iterdir()).read_bytes()[:200])
    data = listed(empty, torn, gone)
    plain = runs.run(workdir := runs.workdir(), 'data.max_failure_share=0.9', data=data)
    assert plain.returncode == 0, plain.stderr
    last = metrics.read(workdir)[-1]
    failed = {k: int(v) for k, v in last.items() if k.startswith('data/failed/')}
    assert len(failed) >= 2 and failed['data/failed/missing'] > 1
    assert last['data/tried'] == STEPS * 8 + sum(failed.values())
    for path in (empty, torn, gone):
        (line,) = (line for line in plain.stderr.splitlines() if str(path) in line)
        assert line.startswith(f'cannot read {path} (') and line.endswith('replaced')

    shutil.rmtree(workdir / 'checkpoints' / str(STEPS))
    (workdir / 'report.json').unlink()
    before = rows(workdir)
    again = runs.run(workdir, 'data.max_failure_share=0.9', 'data.workers=1', data=data)
    assert again.returncode == 0, again.stderr
    assert rows(workdir) == before  # counts go on where they were
    assert 'cannot read' not in again.stderr


def test_nothing_can_be_read(runs, listed, tmp_path):
    data = listed(*(tmp_path / f'{i}.mp4' for i in range(3)), good=())
    done = runs.run(workdir := runs.workdir(), 'data.workers=1', data=data)
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith(f"error: nothing can be read in data.lists[0] '{data}': 17 records")
    assert '.mp4 (missing: ' in line and 'Traceback' not in done.stderr
    assert lines(workdir) == 0 and not checkpoint.complete_steps(workdir / 'checkpoints')


def test_too_many_cannot_be_read(runs, listed, tmp_path):
    data = listed(*(tmp_path / f'{i}.mp4' for i in range(8)))
    done = runs.run(runs.workdir(), 'data.workers=1', data=data)
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith('error: ') and 'records could not be read (' in line
    assert 'more than data.max_failure_share 0.2 allows' in line
    assert 'Traceback' not in done.stderr


def test_data_that_go_away_and_come_back(runs, tmp_path):
    """The last complete step is saved, and a start with the data in place again is the same run."""
    data, workdir = tmp_path / 'videos', runs.workdir()
    shutil.copytree(runs.videos, data)
    more = 'checkpoints.every=1000', f'data.lists[0].path={data}'
    with runs.start(workdir, *more) as run:
        run.until(lambda: lines(workdir) >= 3)
        data.rename(tmp_path / 'away')
        assert run.process.wait(120) == 1, run.log()
    *_, line = run.log().splitlines()
    assert line.startswith(f"error: nothing can be read in data.lists[0] '{data}'"), run.log()
    assert 'Traceback' not in run.log() and not (workdir / 'report.json').exists()
    (step,) = checkpoint.complete_steps(workdir / 'checkpoints')
    assert 3 <= step < STEPS and step == lines(workdir)

    (tmp_path / 'away').rename(data)
    done = runs.run(workdir, *more)
    assert done.returncode == 0, done.stderr
    assert f'resumes from step {step} of this workdir' in done.stderr
    assert rows(workdir) == rows(runs.finished())
    assert_same_arrays(arrays(workdir, STEPS), arrays(runs.finished(), STEPS))


# Numbers that are not finite


def test_not_finite(runs):
    """A rate so high that the parameters overflow: the state before is saved, the batch kept."""
    workdir = runs.workdir()
    more = ('optim.lr=1e30', 'optim.start_lr=1e30', 'optim.final_lr=1e30', 'data.workers=1')
    done = runs.run(workdir, *more)
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert 'Traceback' not in done.stderr
    step = lines(workdir)  # the last good one
    path = workdir / f'nonfinite_step_{step + 1}.npz'
    assert line.startswith(f'error: step {step + 1} is not finite; first tensor that is not: ')
    assert f'saved as step {step}, its batch as {path}' in line
    assert any(name in line for name in ('encoder block', 'prediction', 'gradient', 'params'))
    assert all(math.isfinite(v) for row in metrics.read(workdir) for v in row.values())
    assert not (workdir / 'report.json').exists()

    batch = np.load(path)
    shapes = {name: (batch[name].shape, batch[name].dtype) for name in batch.files}
    clips = [form for form in shapes.values() if form == ((8, 4, 32, 32, 3), np.uint8)]
    ids = [form for form in shapes.values() if form[1] == np.int32 and form[0][0] == 8]
    assert len(clips) == 1 and len(ids) == 2 and len(shapes) == 3
    state = arrays(workdir, step)
    assert state['step'] == step
    assert all(np.isfinite(a).all() for a in state.values())

    again = runs.run(workdir, *more)  # restores that state and meets the same
    assert again.returncode == 1 and f'resumes from step {step}' in again.stderr
    assert again.stderr.splitlines()[-1] == line
    path.unlink()
    path.mkdir()  # what cannot be written hides nothing of what happened
    again = runs.run(workdir, *more)
    last = again.stderr.splitlines()[-1]
    assert last.startswith(line.partition(', its batch as')[0]) and 'could not be ([Errno' in last


# Bad input


@contextlib.contextmanager
def refused(runs, workdir, *more, status=1, data=None):
    """Yields the one line of a command that fails, which must leave nothing of a run."""
    done = runs.run(workdir, *more, data=data)
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    assert done.stdout == '' and line.startswith('error: ')
    yield line
    assert not workdir.is_dir()


@pytest.mark.parametrize(
    ('more', 'status', 'words'),
    [
        (['optim.stepz=3'], 2, ['no field optim.stepz', 'did you mean optim.steps?']),
        (['optim.steps=many'], 2, ["optim.steps = 'many'", 'a whole number']),
        (['data.crop=30'], 1, ['data.crop = 30', 'multiple of encoder.patch = 8']),
        (['data.frames=5'], 1, ['data.frames = 5', 'multiple of encoder.tubelet = 2']),
        (['encoder.heads=4'], 1, ['encoder: 6 channels a head', 'at least 12']),
        (['masks[0].max_keep=32'], 1, ['masks[0].max_keep = 32', 'less than the 32 tokens']),
        (['masks[0].spatial_scale=(1.0,1.0)'], 1, ['masks[0]']),
        (['optim.accumulate=3'], 1, ['optim.batch = 8', 'multiple of optim.accumulate = 3']),
        (['data.lists[0].kind=film'], 1, ['data.lists[0].kind', "'film'", 'videos']),
        (['data.lists[0].path=absent.txt'], 1, ['data.lists[0].path', 'absent.txt']),
        (['checkpoints.resume_from=absent'], 1, ["resume_from: 'absent' cannot be read"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else '',
)
def test_bad_settings(runs, more, status, words):
    with refused(runs, runs.workdir(), *more, status=status) as line:
        assert all(word in line for word in words), line


def test_an_empty_list(runs, listed):
    data = listed(good=())
    with refused(runs, runs.workdir(), data=data) as line:
        assert line.endswith(f'data.lists[0].path: {data}: empty: the file holds no bytes')
    data.write_text('# nothing yet\n')
    with refused(runs, runs.workdir(), data=data) as line:
        assert 'data.lists[0].path' in line and f"'{data}' holds nothing of kind videos" in line


def test_a_workdir_that_is_a_file(runs):
    workdir = runs.workdir()
    workdir.write_text('precious')
    with refused(runs, workdir) as line:
        assert f'workdir {workdir}: a file is in its place' in line
    assert workdir.read_text() == 'precious'


def test_a_workdir_in_use(runs):
    workdir = runs.workdir()
    with files.lock(workdir):
        done = runs.run(workdir)
        assert [path.name for path in workdir.iterdir()] == ['.lock']
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'error: workdir {workdir} is in use by process') and not done.stdout
