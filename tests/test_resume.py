"""A run that was stopped and started again equals one that was not, bit for bit."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from small_run import (
    STEPS,
    arrays,
    assert_same_arrays,
    assert_same_run,
    flip_byte,
    lines,
    named,
    parents,
    rows,
)

from jepa_jax import build, checkpoint, cli, optim, scratch, sharding, start
from jepa_jax.origin import origin_of
from jepa_jax.recipes import validate


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='reads /proc')
def test_killed_at_any_moment(runs):
    """Before the first checkpoint, during a save, between two; every start with other workers."""
    workdir = runs.workdir()
    saves = workdir / 'checkpoints'

    with runs.start(workdir, 'data.workers=2', 'checkpoints.every=1000') as run:
        run.until(lambda: lines(workdir) >= 2)
        workers = set(run.children())
        assert run.kill() == -signal.SIGKILL
    assert len(workers) >= 2
    end = time.monotonic() + 10
    while workers & parents().keys() and time.monotonic() < end:
        time.sleep(0.1)
    assert not workers & parents().keys()
    assert not checkpoint.complete_steps(saves) and 2 <= lines(workdir)

    for _ in range(3):  # the save may end between a look and the kill
        with runs.start(workdir, 'data.workers=0') as run:
            run.until(lambda: any(name.startswith('saving-') for name in os.listdir(saves)))
            assert run.kill() == -signal.SIGKILL
        if left := list(saves.glob('saving-*')):
            break
    assert left and not (workdir / 'report.json').exists()

    with runs.start(workdir, 'data.workers=1') as run:
        run.until(lambda: 'program 1' in run.log())  # the rows of the run before are cut back
        run.until(lambda: lines(workdir) > (checkpoint.complete_steps(saves) or [STEPS])[-1])
        (workdir / f'.config.json.{mark_of(run.process.pid)}x').write_text('{')
        assert run.kill(group=True) == -signal.SIGKILL  # what looks after shared memory, too
    assert f'removed {left[0]}' in run.log()
    assert not (workdir / 'report.json').exists()
    shared = shared_memory(run.process.pid)
    assert any(name.startswith('sem.') for name in shared)
    assert any(name.startswith('jepa_jax-') for name in shared)

    with runs.start(workdir, 'data.workers=1') as run:
        assert run.process.wait(600) == 0, run.log()
    assert 'resumes from step' in run.log()
    assert_same_run(workdir, runs.finished())
    assert not shared & set(os.listdir('/dev/shm')) and not shared_memory(run.process.pid)
    assert not list(workdir.glob('.config.json.*'))


def mark_of(pid: int) -> str:
    return scratch.mark().replace(f'-{os.getpid()}-', f'-{pid}-')


def shared_memory(pid: int) -> set[str]:
    """Names of shared memory and semaphores of a process."""
    return {n for n in os.listdir('/dev/shm') if re.search(rf'jepa_jax-\w+-{pid}-', n)}


def test_terminated(runs):
    """Schedulers tell the first process alone, or all of them: here one after the other."""
    workdir, newest = runs.cut(8), 8
    for group in (False, True):
        with runs.start(workdir, f'data.workers={2 * group}', 'checkpoints.every=1000') as run:
            run.until(lambda: 'program 1' in run.log())  # logged before its first, long step
            assert run.kill(signal.SIGTERM, group=group) == 75
        assert f'resumes from step {newest}' in run.log()
        line, before = run.log().splitlines()[-1], newest
        newest = checkpoint.complete_steps(workdir / 'checkpoints')[-1]
        assert line.startswith(f'interrupted: SIGTERM at step {newest} of {STEPS}, which is saved')
        assert before < newest < STEPS and lines(workdir) == newest
    done = runs.run(workdir)
    assert done.returncode == 0, done.stderr
    assert f'resumes from step {newest}' in done.stderr
    assert_same_run(workdir, runs.finished())


FULL_DISK = """
import resource, sys
from jepa_jax import checkpoint, train

save = checkpoint.Checkpoints.save

def on_a_disk_that_fills(self, step, state, extra):
    self.wait()
    endless = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (0 if step in (8, 16) else endless, endless))
    return save(self, step, state, extra)

checkpoint.Checkpoints.save = on_a_disk_that_fills
sys.exit(train.main())
"""


def test_a_full_disk_and_a_damaged_checkpoint(runs):
    """No file can grow, the log's neither, from the save of step 8 to that of 12; nor in the last.

    The run goes on, and its next start from the last good checkpoint; one that has changed since it
    was written is passed over.
    """
    workdir, log = runs.workdir(), runs.folder / 'full.log'
    flags = runs.command(workdir)[3:]
    with log.open('w') as file:  # a write over the limit fails: Python ignores SIGXFSZ
        done = subprocess.run(
            [sys.executable, '-c', FULL_DISK, *flags], cwd=runs.folder, env=runs.environment,
            stdout=file, stderr=subprocess.PIPE, text=True, timeout=600,
        )  # fmt: skip
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith('step ')]
    for line, step, last in zip(said, (8, 16), (4, 12), strict=True):
        assert line.startswith(f'step {step} is not saved: ') and 'File too large' in line
        assert line.endswith(f'; the last checkpoint is {last}')
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert line.startswith(f'error: step {STEPS} is not saved: ')
    assert line.endswith('; start the same command again to resume from the last checkpoint')
    assert checkpoint.complete_steps(workdir / 'checkpoints') == [4, 12]
    assert rows(workdir) == rows(runs.finished())
    assert 'step 1/16' in log.read_text()

    last = workdir / 'checkpoints' / str(STEPS)
    shutil.copytree(runs.finished() / 'checkpoints' / str(STEPS), last)
    path = flip_byte(last)
    again = runs.run(workdir)
    assert again.returncode == 0, again.stderr
    assert f'checkpoint {STEPS} is damaged' in again.stderr and str(path) in again.stderr
    assert 'resumes from step 12' in again.stderr
    assert_same_run(workdir, runs.finished())


def snapshot(workdir):
    """Every file with its content; the lock names who held it last."""
    return {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file() and p.name != '.lock'}


@pytest.mark.parametrize('finished', [False, True])
def test_another_config_is_refused(runs, finished):
    workdir = runs.cut(12)
    if finished:
        shutil.copy(runs.finished() / 'report.json', workdir)
    before = snapshot(workdir)
    done = runs.run(workdir, 'seed=4', 'data.augment.flip=false')
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith('error: the run in this workdir has another config: ')
    assert 'data.augment.flip: True -> False; seed: 3 -> 4' in line
    assert '--config.checkpoints.allow_config_change=True' in line
    assert snapshot(workdir) == before


def test_another_config_is_allowed(runs):
    workdir = runs.cut(12)
    done = runs.run(workdir, 'seed=4', 'checkpoints.allow_config_change=True')
    assert done.returncode == 0, done.stderr
    assert 'resuming with another config, as allowed: seed: 3 -> 4' in done.stderr
    unbroken = rows(runs.finished())
    assert rows(workdir)[:12] == unbroken[:12]
    assert all(ours != theirs for ours, theirs in zip(rows(workdir)[12:], unbroken[12:]))
    assert json.loads((workdir / 'config.json').read_text())['seed'] == 4


def begun(runs, checkpoints: dict, **settings) -> dict[str, np.ndarray]:
    """The state that a run of the small config starts with, all arrays by name; settings: of its
    optimizer."""
    config = cli.load(f'{runs.folder}/small.py:{runs.videos}')
    config.checkpoints = dataclasses.replace(config.checkpoints, **checkpoints)
    config.optim = dataclasses.replace(config.optim, **settings)
    validate(config)
    objective, mesh = build.masked_video(config), sharding.make_mesh(1)
    optimizer = optim.build(config.optim, objective)
    with (
        jax.set_mesh(mesh),
        checkpoint.Checkpoints(runs.workdir() / 'checkpoints', keep=1, keep_every=0) as none_yet,
    ):
        origin = origin_of(config, none_yet)
        state, extra = start.initial_state(objective, optimizer, config, mesh, origin)
    assert extra == {}
    return named(state)


def test_cooldown_from_another_run(runs, caplog):
    """Steps from 0, moments and Adam's own count as they were: the updates go on, the schedule
    begins."""
    caplog.set_level('INFO')
    source = runs.finished()
    after = begun(
        runs, dict(resume_from=str(source), restart_schedule=True),
        schedule='linear_decay', warmup=0, ipe_scale=1.0, final_lr=1e-6,
    )  # fmt: skip
    assert f'resumes from {source}/checkpoints/{STEPS}, with its optimizer state' in caplog.text
    before = arrays(source, STEPS)
    assert before.keys() == after.keys()
    counts = {k: (int(before[k]), int(after[k])) for k in before if k.endswith('count')}
    assert counts.pop('opt_state/0/count') == (STEPS, STEPS)
    assert counts and all(new == 0 for _, new in counts.values())
    assert before['step'] == STEPS and after['step'] == 0
    kept = {k for k in before if k.startswith(('params/', 'ema/', 'opt_state/0/mu/'))}
    kept |= {k for k in before if k.startswith('opt_state/0/nu/')}
    assert kept | counts.keys() | {'opt_state/0/count', 'step'} == before.keys()
    assert_same_arrays({k: after[k] for k in kept}, {k: before[k] for k in kept})


def uncounted(row):
    return {k: v for k, v in json.loads(row).items() if not k.startswith('data/')}


def test_resume_from_another_run(runs):
    """Without a restart it is that run, in another folder; records are counted anew."""
    workdir, source = runs.workdir(), runs.finished() / 'checkpoints' / '12'
    done = runs.run(workdir, f'checkpoints.resume_from={source}')
    assert done.returncode == 0, done.stderr
    ours, theirs = map(rows, (workdir, runs.finished()))
    assert [uncounted(row) for row in ours] == [uncounted(row) for row in theirs[12:]]
    assert_same_arrays(arrays(workdir, STEPS), arrays(runs.finished(), STEPS))


def test_weights_only(runs, caplog, monkeypatch):
    """Encoder, predictor and average as they were, everything else as in a new run; what was drawn
    in their place is gone before they come."""
    caplog.set_level('INFO')
    source, held = runs.finished(), []

    def restore(folder, abstract, **more):
        held.append(len(jax.live_arrays()))
        held.append(len(jax.tree.leaves(abstract)))
        return checkpoint.restore(folder, abstract, **more)

    monkeypatch.setattr('jepa_jax.start.restore', restore)
    elsewhere = len(jax.live_arrays())
    after, before = begun(runs, dict(init_from=str(source))), arrays(source, STEPS)
    moments = sum(k.startswith('opt_state/') for k in before)
    there, nets = held
    assert nets == sum(k.startswith(('params/', 'ema/')) for k in before)
    assert there - elsewhere <= moments + 1  # the step
    assert f'starts with the weights of {source}/checkpoints/{STEPS}' in caplog.text
    assert before.keys() == after.keys()
    kept = {k for k in before if k.startswith(('params/', 'ema/'))}
    assert_same_arrays({k: after[k] for k in kept}, {k: before[k] for k in kept})
    assert any(before[k].any() for k in before.keys() - kept)
    assert not any(after[k].any() for k in before.keys() - kept)  # moments, counts, the step
