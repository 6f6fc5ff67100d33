"""One run a folder, and whole files."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from jepa_jax import workdir
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
        (path / 'config.json').touch()
    assert path.is_dir()


def test_a_run_that_was_refused_leaves_no_folder(tmp_path):
    """Nor does it take one away that was there, or that has something in it."""
    refused, there, begun = (tmp_path / name for name in ('refused', 'there', 'begun'))
    there.mkdir()
    for path in (refused, there, begun):
        with pytest.raises(ConfigError, match='needs at least 90 GiB'), workdir.lock(path):
            if path == begun:
                (path / 'metrics.jsonl').touch()
            raise ConfigError('it needs at least 90 GiB a device')
    assert not refused.exists() and there.exists() and (begun / 'metrics.jsonl').exists()
    with workdir.lock(refused):  # again, as after a mistake was mended
        assert refused.exists()


def test_a_refused_second_run_leaves_the_first_its_folder(tmp_path):
    with workdir.lock(tmp_path / 'run') as path:
        with pytest.raises(ConfigError, match='in use'), workdir.lock(path):
            raise AssertionError('the second got in')
        assert (path / '.lock').exists()


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
