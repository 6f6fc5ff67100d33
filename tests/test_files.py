"""Limits, and errors of libraries that become a bad file."""

import ast
import os
import socket
import struct
import subprocess
import sys

import pytest

from jepa_jax import files
from jepa_jax.errors import REASONS, BadFile, UsageError


@pytest.fixture
def limits(monkeypatch):
    return lambda text: monkeypatch.setenv(files.VARIABLE, text)


def reason(function, *arguments) -> str:
    with pytest.raises(BadFile) as caught:
        function(*arguments)
    assert caught.value.reason in REASONS
    return caught.value.reason


def test_every_limit_is_a_reason_and_can_be_set(limits):
    for name in files.LIMITS:
        assert name in REASONS
        files.bound('a', name, getattr(files.Limits(), name))
        limits(f'{name}=7')
        files.bound('a', name, 7)
        assert reason(files.bound, 'a', name, 8) == name
    limits('pixels=4e2, seconds=.5')
    assert files.limits() == files.Limits(pixels=400, seconds=0.5)
    with pytest.raises(
        BadFile, match=r'a: pixels: 401 pixels: at most 400 \(--limits pixels=...\)'
    ):
        files.bound('a', 'pixels', 401)
    limits('pixels=inf')
    files.bound('a', 'pixels', 10**30)


def test_what_unpacks(limits):
    files.bound_decoded('a', files.FREE, 1)
    assert reason(files.bound_decoded, 'a', files.FREE + 1, 1) == 'ratio'
    files.bound_decoded('a', 2 * files.FREE, files.FREE)
    assert reason(files.bound_decoded, 'a', 2**36 + 1, 2**35) == 'decoded'
    limits('ratio=inf')
    files.bound_decoded('a', files.FREE + 1, 1)


@pytest.mark.parametrize(
    'text, message',
    [
        ('pixel=3', "limits: 'pixel': allowed are pixels, .*did you mean pixels"),
        ('pixels=-1', "limits: pixels = '-1': must be a number above 0"),
        ('frames', "limits: frames = ''"),
        ('frames=nan', 'must be a number above 0'),
    ],
)
def test_wrong_limits(text, message):
    with pytest.raises(UsageError, match=message):
        files.set_limits(text)


def test_limits_of_a_command_reach_it_and_its_children(tmp_path):
    (tmp_path / 'a.npy').write_bytes(b'x')
    command = [sys.executable, '-m', 'jepa_jax.embed', '--model=random:tiny', '--input=a.npy']
    run = subprocess.run(
        [*command, '--out=b.npz', '--limits=pixel=1'], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 2 and "limits: 'pixel'" in run.stderr


def test_deadline(limits, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(files.time, 'monotonic', lambda: now[0])
    deadline = files.Deadline('a')
    assert deadline.left == files.Limits().seconds
    now[0] = 301.0
    assert reason(lambda: deadline.left) == 'seconds'


def test_what_is_no_file(tmp_path):
    (tmp_path / 'empty').write_bytes(b'')
    (tmp_path / 'one').write_bytes(b'1')
    os.mkfifo(tmp_path / 'fifo')
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / 'socket'))
        for name, word in (('fifo', 'unreadable'), ('socket', 'unreadable'), ('', 'unreadable')):
            assert reason(files.size, tmp_path / name) == word
    assert reason(files.size, tmp_path / 'empty') == 'empty'
    assert reason(files.size, '/dev/null') == 'unreadable'
    for name in ('gone', 'a\0b', 'one/two', 'a' * 300):
        assert reason(files.size, f'{tmp_path}/{name}') == 'missing'
    assert files.size(tmp_path / 'one') == 1


def test_errors_of_libraries():
    def fail(error, **options):
        with files.reading('a', **options):
            raise error

    for error in (struct.error('x'), KeyError('x'), RecursionError(), SystemError(), OSError('x')):
        assert reason(fail, error) == 'corrupt'
    assert reason(fail, MemoryError()) == 'decoded'
    assert reason(fail, FileNotFoundError(2, 'x')) == 'missing'
    assert reason(fail, PermissionError(13, 'x')) == 'unreadable'
    assert reason(lambda: fail(ValueError('x'), reason='not_array')) == 'not_array'
    assert reason(lambda: fail(EOFError(), reasons={EOFError: 'truncated'})) == 'truncated'
    with pytest.raises(BadFile, match=r'^a: corrupt: two lines\.\.\.') as caught:
        fail(ValueError('two\nlines' + '.' * 300))
    assert len(caught.value.detail) == 200
    with pytest.raises(BadFile, match='a: empty'):
        fail(BadFile('a', 'empty'))
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())


@pytest.mark.parametrize(
    'name', ['a\nb', 'a\0b', '\x1b[2Jb', 'a\rb', 'a\u202eb', os.fsdecode(b'a\xff')]
)
def test_a_name_is_printed_in_one_line_that_does_nothing(tmp_path, name):
    """Whatever it holds can still be told from it: Python reads the same name out of it."""
    error = BadFile(tmp_path / name, 'corrupt', f'a link to {name}')
    assert str(error).isprintable() and str(error).isascii()
    shown = str(error).partition(': ')[0]
    assert ast.literal_eval(f"'{shown}'") == str(tmp_path / name)
    assert error.path == str(tmp_path / name)  # as it is
    assert files.one_line(ValueError(f'x {name}')).isprintable()


def test_such_a_name_on_the_command_line(tmp_path):
    (tmp_path / 'a\x1b[31m\nb.mp4').write_bytes(b'x' * 99)
    command = [sys.executable, '-m', 'tools.index_videos', str(tmp_path), '--out', 'no/m.jsonl']
    run = subprocess.run(command, capture_output=True, text=True)
    assert '\x1b' not in run.stderr + run.stdout
    command = [sys.executable, '-m', 'jepa_jax.embed', '--model=no/a\x1b[31m\nb', '--input=x']
    run = subprocess.run([*command, '--out=b.npz'], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode and '\x1b' not in run.stderr and 'Traceback' not in run.stderr
