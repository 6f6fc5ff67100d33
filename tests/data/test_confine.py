"""What data workers may not do: start programs, open sockets, take the machine's memory."""

import ctypes
import os
import resource
import socket
import subprocess

import numpy as np
import pytest
from test_stream import Numbers, config, read

from jepa_jax import files
from jepa_jax.data import confine, workers
from jepa_jax.errors import BadFile, DataError

pytestmark = pytest.mark.skipif(bool(confine.missing()), reason=confine.missing())


def run(*_):
    subprocess.run(['true'])


def shell(*_):
    if code := os.system('true'):
        raise PermissionError(code)


def connect(*_):
    socket.create_connection(('127.0.0.1', 9), timeout=1)


def local_socket(*_):
    socket.socket(socket.AF_UNIX).close()


def ring(*_):  # io_uring, which opens sockets without a call of their own
    if ctypes.CDLL(None, use_errno=True).syscall(425, 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), 'io_uring_setup')


def much(*_):
    np.zeros(2**31, np.uint8)


def much_in_a_library(path):
    with files.reading(path):
        much()


def much_at_its_name(path):
    bytes(2**31)


TRIED = (run, shell, connect, local_socket, ring, much_in_a_library, much_at_its_name)


class Hostile(Numbers):
    """Some records try what they should not; the others read, write a file and use threads."""

    def read(self, row):
        if row.record < len(TRIED):
            try:
                TRIED[row.record](self.name(row))
            except PermissionError as error:
                raise BadFile(self.name(row), 'not_local', str(error)) from error
            return {'record': row.record, 'limits': np.zeros(3, int)}  # it may
        assert (np.ones((300, 300)) @ np.ones(300) == 300).all()  # with the library's threads
        kinds = (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_DATA)
        return {
            'record': row.record,
            'limits': np.array([resource.getrlimit(kind)[0] for kind in kinds]),
        }


def test_a_worker_does_what_it_should_and_no_more(monkeypatch):
    monkeypatch.setenv(files.VARIABLE, f'memory={2**30}')
    with_threads = read(Hostile(config(workers=1), count=20), 0, 5)
    failed = {f.path: f for host in with_threads for f in host.failures}
    reasons = [failed[f'record {i} of list 0'].reason for i in range(len(TRIED))]
    assert reasons == ['not_local'] * 5 + ['decoded', 'memory']
    assert 'Operation not permitted' in failed['record 0 of list 0'].detail
    assert '--limits memory=...' in failed['record 6 of list 0'].detail
    seen = np.concatenate([host.batch['record'] for host in with_threads])
    assert set(seen.tolist()) == set(range(len(TRIED), 20))
    core, handles, data = with_threads[0].batch['limits'][0]
    assert core == 0 and handles <= confine.OPEN_FILES and 2**30 < data < 2**32
    run(), shell(), local_socket()  # and this process may what it could


class Large(Numbers):
    def gather(self, step, into, rows):
        np.zeros(2**31, np.uint8)


def test_a_batch_that_is_too_large_is_one_line(monkeypatch):
    monkeypatch.setenv(files.VARIABLE, f'memory={2**30}')
    message = r'data worker 0 of 1 has too little memory for the batch of step 0 .*--limits memory'
    with pytest.raises(DataError, match=message):
        read(Large(config(workers=1)), 0, 1)


def test_it_can_be_left_out(monkeypatch):
    monkeypatch.setenv(files.VARIABLE, 'memory=inf')
    (host,) = read(Hostile(config(3, workers=1, confine=False), count=3), 0, 1)
    assert {f.path for f in host.failures} == {'record 2 of list 0'}  # nobody listens there
    assert set(host.batch['record'].tolist()) == {0, 1}


def test_where_there_is_no_filter_a_line_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(workers, 'missing', lambda: 'the kernel has no seccomp')
    workers._say.cache_clear()
    caplog.set_level('INFO')
    for _ in range(2):
        with Numbers(config(workers=1)) as stream:
            stream.batches()
    lines = [r for r in caplog.records if 'data workers may start programs' in r.getMessage()]
    assert len(lines) == 1 and lines[0].levelname == 'INFO'


def test_the_filter_of_both_machines():
    """Its instructions, run here as the kernel runs them, for calls by their numbers in the
    kernel's tables."""
    tables = {
        'x86_64': {'execve': 59, 'execveat': 322, 'socket': 41, 'read': 0, 'socketpair': 53},
        'aarch64': {'execve': 221, 'execveat': 281, 'socket': 198, 'read': 63, 'clone': 220},
    }
    audit = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}
    for machine, calls in tables.items():
        program = confine.program(machine)
        for name, number in calls.items():
            refused = name in ('execve', 'execveat', 'socket')
            assert decide(program, audit[machine], number) == (0x50001 if refused else 0x7FFF0000)
        assert decide(program, 0x40000003, 3) == 0x50001  # calls of a 32-bit program
        assert decide(program, audit['x86_64'], 0x40000000 + 41) == 0x50001


def decide(program, machine, number):
    at, held = 0, None
    while True:
        code, yes, no, value = program[at]
        if code == 0x06:
            return value
        if code == 0x20:
            held = {0: number, 4: machine}[value]
            at += 1
        else:
            met = held == value if code == 0x15 else held >= value
            at += 1 + (yes if met else no)


def test_limits_are_only_lowered(monkeypatch):
    held = (64, 128)

    def set_limit(kind, values):
        nonlocal held
        held = values

    monkeypatch.setattr(resource, 'setrlimit', set_limit)
    monkeypatch.setattr(resource, 'getrlimit', lambda kind: held)
    for value, after in ((4096, (64, 128)), (100, (100, 100)), (200, (100, 100))):
        confine.lower(resource.RLIMIT_NOFILE, value)
        assert held == after
    held = (64, resource.RLIM_INFINITY)
    confine.lower(resource.RLIMIT_NOFILE, 4096)
    assert held == (4096, 4096)


class Costly(Numbers):
    """What bounds a file, and what runs out of memory, in the process of a run."""

    def read(self, row):
        if row.record == 0:
            files.bound_decoded(self.name(row), 2**40, 1)
        if row.record == 1:
            files.Deadline(self.name(row), 1).spend(2**40)
        if row.record == 2:
            raise MemoryError
        return {'record': row.record}


def test_without_workers_files_are_bounded_and_the_process_is_not():
    kinds = (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_DATA)
    before = [resource.getrlimit(kind) for kind in kinds]
    hosts = read(Costly(config(workers=0), count=12), 0, 4)
    failed = {f.path: f.reason for host in hosts for f in host.failures}
    expected = {0: 'decoded', 1: 'work', 2: 'memory'}
    assert failed == {f'record {i} of list 0': reason for i, reason in expected.items()}
    assert [resource.getrlimit(kind) for kind in kinds] == before
    run(), shell()
