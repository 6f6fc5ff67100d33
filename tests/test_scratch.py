"""What killed processes leave is swept, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jepa_jax import scratch
from jepa_jax.data.npz import Rows
from jepa_jax.workdir import lock, write_text

ROOT = Path(__file__).resolve().parent.parent

KILLED = """
import os, signal, sys, pathlib
import numpy as np
from jepa_jax import scratch
from jepa_jax.data.npz import Rows
folder = pathlib.Path(sys.argv[1])
rows = Rows(folder / 'out.npz')
rows.add(x=np.zeros(3))
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from jepa_jax.workdir import write_text
write_text(folder / 'a.json', '{}')
"""


@pytest.fixture(scope='module')
def gone():
    """A mark of a process that is gone."""
    return scratch.mark().replace(f'-{os.getpid()}-', f'-{2**22 + 1}-')  # above the kernel's most


def test_what_is_swept(tmp_path, gone, monkeypatch):
    mine, place = scratch.mark(), scratch._place()
    assert scratch.MARK.fullmatch(mine) and scratch.MARK.search(scratch.prefix('x' * 300))
    other = 'f' * 8 if place != 'f' * 8 else '0' * 8
    reused = mine.rpartition('-')[0].rpartition('-')[0] + '-1-'  # another process had the id
    stay = [f'.x.{mine}1', f'.x.{gone.replace(place, other)}1', 'x', f'.{gone[:-2]}', '.jepa_jax-x']
    go = [f'.x.{gone}1', f'.x.{gone}folder', f'.x.{reused}1', f'sem.{gone}1']
    for name in (*stay, *go):
        (tmp_path / name).write_text('x')
    (tmp_path / go[1]).unlink()
    (tmp_path / go[1] / 'in').mkdir(parents=True)
    outside = tmp_path / 'x'
    (tmp_path / f'.l.{gone}').symlink_to(outside)  # goes, and not what it points to
    swept = scratch.sweep(tmp_path)
    assert {path.name for path in swept} == {*go, f'.l.{gone}'}
    assert {path.name for path in tmp_path.iterdir()} == set(stay)
    assert scratch.sweep(tmp_path) == [] and scratch.sweep(tmp_path / 'missing') == []
    far = tmp_path / stay[1]  # of another machine
    then = time.time() - scratch.STALE - 9
    os.utime(far, (then, then))
    assert scratch.sweep(tmp_path, elsewhere=False) == []
    uid = os.getuid()
    monkeypatch.setattr(os, 'getuid', lambda: uid + 1)
    assert scratch.sweep(tmp_path) == []  # another user's
    monkeypatch.undo()
    assert scratch.sweep(tmp_path) == [far]
    folder = tmp_path / stay[1]
    (folder / 'in').mkdir(parents=True)
    os.utime(folder, (then, then))
    assert scratch.sweep(tmp_path) == []  # something in it is younger


def test_a_process_that_waits_for_its_status_is_gone(tmp_path):
    child = subprocess.Popen(['true'])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError):
        scratch._began(child.pid)
    child.wait()
    assert scratch._began(os.getpid()) == scratch._began(os.getpid()) != '0'


def test_killed_while_it_writes(tmp_path):
    done = subprocess.run([sys.executable, '-c', KILLED, tmp_path], cwd=ROOT, timeout=100)
    assert done.returncode == -signal.SIGKILL
    left = sorted(path.name.split('.')[1] for path in tmp_path.iterdir())
    assert left == ['a', 'out'] and all(p.name.startswith('.') for p in tmp_path.iterdir())
    before = Rows(tmp_path / 'other.npz')  # an `embed` beside it, at work
    before.add(x=np.zeros(2))
    assert len(list(tmp_path.iterdir())) == 1
    rows = Rows(tmp_path / 'out.npz')
    rows.add(x=np.ones(3))
    rows.npz()
    before.npz()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['other.npz', 'out.npz']


def test_a_run_sweeps_its_folder(tmp_path, gone):
    (tmp_path / f'.config.json.{gone}1').write_text('{')
    with lock(tmp_path):
        write_text(tmp_path / 'config.json', '{}')
        assert sorted(p.name for p in tmp_path.iterdir()) == ['.lock', 'config.json']


def test_writers_of_weights_sweep_beside_what_they_write(tmp_path, gone):
    from jepa_jax import checkpoint
    from jepa_jax.weights import hf_files, torch_write

    def folder(dst):
        with hf_files.folder_at(dst) as made:
            (made / 'config.json').write_text('{}')

    def archive(dst):
        with torch_write.writing(dst, 0) as writer:
            writer.finish({})

    writers = {
        'jax': lambda dst: checkpoint.write(dst, {'params/x': np.ones(3)}, step=0, extra={}),
        'hf': folder,
        'pt': archive,
    }
    for name, write in writers.items():
        (tmp_path / f'.x.{gone}{name}').mkdir()
        (tmp_path / f'saving-x-{gone}.partial').mkdir()
        write(tmp_path / name)
        assert not [p.name for p in tmp_path.iterdir() if 'jepa_jax' in p.name], name
    assert sorted(p.name for p in tmp_path.iterdir()) == ['hf', 'jax', 'pt']
