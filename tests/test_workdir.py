"""One run a folder, whole files, and which config changes are another run."""

import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from jepa_jax import config, workdir
from jepa_jax.config import MaskedVideoConfig
from jepa_jax.errors import ConfigError

ROOT = pathlib.Path(__file__).parent.parent

HOLD = """
import os, sys, time
from jepa_jax import workdir
with workdir.lock(sys.argv[1]):
    if sys.argv[2] == 'fork':
        child = os.fork() or os.getpid()
        if child != os.getpid():  # it speaks for itself, once it has let go
            time.sleep(60)
    elif sys.argv[2] == 'spawn':
        import subprocess
        child = subprocess.Popen(['sleep', '60'], close_fds=False, stdout=subprocess.DEVNULL).pid
    else:
        child = 0
    print(child, flush=True)
    time.sleep(60)
"""


def hold(path, how='alone'):
    """A process that holds the folder, and the id of its child."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(path), how],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    return holder, int(holder.stdout.readline())


def end(holder):
    holder.kill()
    holder.wait()
    holder.stdout.close()


def test_second_run_is_refused(tmp_path):
    holder, _ = hold(tmp_path)
    try:
        with pytest.raises(ConfigError) as error, workdir.lock(tmp_path):
            raise AssertionError('the second run got in')
        line = str(error.value)
        assert f'in use by process {holder.pid} on {os.uname().nodename} since 20' in line
        assert str(tmp_path) in line and '\n' not in line
    finally:
        end(holder)


def test_same_process_and_release(tmp_path):
    with workdir.lock(tmp_path) as path:
        assert path == tmp_path
        with pytest.raises(ConfigError, match=f'process {os.getpid()} '), workdir.lock(tmp_path):
            raise AssertionError('the second got in')
    with workdir.lock(tmp_path):
        assert workdir._held
    assert not workdir._held


@pytest.mark.parametrize('how', ['fork', 'spawn'])
def test_a_dead_run_holds_nothing(tmp_path, how):
    """Also while a data worker of its own lives on."""
    holder, child = hold(tmp_path, how)
    try:
        end(holder)
        os.kill(child, 0)  # alive
        with workdir.lock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_child_of_a_living_run_frees_nothing(tmp_path):
    holder, child = hold(tmp_path, 'fork')
    try:
        os.kill(child, signal.SIGKILL)
        with pytest.raises(ConfigError, match='in use'), workdir.lock(tmp_path):
            raise AssertionError('the second run got in')
    finally:
        end(holder)


def test_unsigned_lock(tmp_path):
    with (tmp_path / '.lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match='has not signed yet'), workdir.lock(tmp_path):
            raise AssertionError('got in')


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / 'file').write_text('')
    for path, reason in ((tmp_path / 'file', 'a file is in its place'), ('/dev/null/run', 'Not a')):
        with pytest.raises(ConfigError, match=reason) as error, workdir.lock(path):
            raise AssertionError('got in')
        assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match='Permission denied'), workdir.lock(tmp_path):
        raise AssertionError('got in')


def test_new_folders_are_made(tmp_path):
    with workdir.lock(tmp_path / 'a' / 'b') as path:
        assert path.is_dir()


def test_write_json(tmp_path, monkeypatch):
    path = tmp_path / 'report.json'
    workdir.write_json(path, {'steps': 3})
    assert json.loads(path.read_text()) == {'steps': 3}
    with pytest.raises(ValueError):
        workdir.write_json(path, {'loss': float('nan')})

    def full(_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        workdir.write_json(path, {'steps': 4})
    assert json.loads(path.read_text()) == {'steps': 3}
    assert [p.name for p in tmp_path.iterdir()] == ['report.json']


def stored(settings):
    return json.loads(config.to_json(settings))


@pytest.mark.parametrize('as_dict', [False, True])
def test_same_config(as_dict, caplog):
    settings = MaskedVideoConfig()
    new = dataclasses.asdict(settings) if as_dict else settings
    workdir.check_config(stored(settings), new, False)  # tuples there, lists here
    assert not caplog.records


def test_changes_of_another_run(caplog):
    old, new = MaskedVideoConfig(), MaskedVideoConfig()
    new.optim.steps += 1
    new.masks[0].num_blocks = 9
    new.data.workers = 3
    with pytest.raises(ConfigError) as error:
        workdir.check_config(stored(old), new, False)
    line = str(error.value)
    assert f'optim.steps: {old.optim.steps} -> {old.optim.steps + 1}' in line
    assert 'masks[0].num_blocks: 8 -> 9' in line
    assert 'workers' not in line and '\n' not in line
    workdir.check_config(stored(old), new, True)
    assert 'as allowed' in caplog.records[-1].getMessage()


def test_changes_of_the_same_run(caplog):
    caplog.set_level(logging.INFO)
    old, new = MaskedVideoConfig(), MaskedVideoConfig()
    new.data.workers, new.logging.every, new.checkpoints.keep, new.mesh.fsdp = 3, 7, 9, 4
    workdir.check_config(stored(old), new, False)
    for change in ('data.workers: 0 -> 3', 'logging.every', 'checkpoints.keep', 'mesh.fsdp'):
        assert change in caplog.text


def test_free_fields_exist():
    """A renamed field must not leave a rule behind that matches nothing."""
    names = [name for name, _, _ in config.fields(MaskedVideoConfig())]
    for pattern in workdir.FREE:
        assert any(workdir._is_free(f'{n}: ') and n.startswith(pattern.rstrip('*')) for n in names)
    assert not workdir._is_free('data.crop: 1 -> 2') and not workdir._is_free('seed: 1 -> 2')
