"""What a data worker may do: it reads files that nobody vouches for, with decoders written in C.

A worker allocates no more than `Limits.memory` beyond what it has after its imports, opens few
files, leaves no core, and, where Linux offers seccomp, can neither start a program nor open a
socket: these calls fail with EPERM, and the worker goes on.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import resource
import struct
import sys

from jepa_jax import files

OPEN_FILES = 4096
PAGE = os.sysconf('SC_PAGE_SIZE')

PR_SET_NO_NEW_PRIVS = 38
SET_MODE_FILTER, GET_ACTION_AVAIL, TSYNC = 1, 2, 1  # of seccomp(2)
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
X32 = 0x40000000  # the other numbers of calls on x86_64
# (kernel's audit number of the machine, seccomp, refused: execve execveat socket io_uring_setup)
MACHINES = {
    'x86_64': (0xC000003E, 317, (59, 322, 41, 425)),
    'aarch64': (0xC00000B7, 277, (221, 281, 198, 425)),
}
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # of linux/bpf_common.h

log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)
_libc_syscall = getattr(_libc, 'syscall', None)


def missing() -> str:
    """Why this machine cannot keep a process from starting programs and opening sockets; empty: it
    can."""
    row = MACHINES.get(platform.machine())
    if sys.platform != 'linux' or row is None or struct.calcsize('P') != 8:
        return f'no filter for {sys.platform} on {platform.machine()}'
    action = ctypes.c_uint32(ERRNO)
    if _seccomp(GET_ACTION_AVAIL, 0, ctypes.byref(action)):
        return f'the kernel has no seccomp ({os.strerror(ctypes.get_errno())})'
    return ''


def confine(memory: bool = True, calls: bool = True) -> None:
    """Limits this process, for good.

    memory: to `Limits.memory` more than it has, or three quarters of the machine's if that is less.
    calls: no programs, no sockets, if nothing is `missing`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    if memory and sys.platform == 'linux' and (room := room_for_a_worker()) != float('inf'):
        lower(resource.RLIMIT_DATA, data_in_use() + int(room))
    if calls and not missing():
        try:
            _refuse_calls()
        except OSError as error:  # offered, and yet refused: by a container's own filter
            log.warning('a data worker may start programs and open sockets: %s', error)


def room_for_a_worker() -> float:
    """Bytes that a worker may allocate beyond what it has; inf: no limit."""
    limit = files.limits().memory
    return limit if limit == float('inf') else min(limit, 0.75 * memory_of_machine())


def memory_of_machine() -> int:
    """Bytes that the machine, or the container, has."""
    total = os.sysconf('SC_PHYS_PAGES') * PAGE
    for path in ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'):
        try:
            with open(path) as file:
                total = min(total, int(file.read()))
        except (OSError, ValueError):  # none, or 'max'
            continue
    return total


def data_in_use() -> int:
    """Bytes that RLIMIT_DATA counts: private and writable, not what libraries only reserve."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[5]) * PAGE


def lower(kind: int, value: int) -> None:
    """A limit of the process, unless it is lower already; nothing raises it again."""
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or hard > value:
        resource.setrlimit(kind, (value, value))


def program(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter of a key of MACHINES: code, jump if so, jump if not, value of each instruction."""
    number, _, calls = MACHINES[machine]
    allow = len(calls) + 1  # instructions from the first comparison to the one that allows
    return [
        (LOAD, 0, 0, 4),  # the machine
        (EQUAL, 0, allow + 2, number),  # of another one, nothing
        (LOAD, 0, 0, 0),  # the call's number
        (AT_LEAST, allow, 0, X32),
        *((EQUAL, allow - 1 - i, 0, call) for i, call in enumerate(calls)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, ERRNO | errno.EPERM),
    ]


def _refuse_calls() -> None:
    """Refuses calls of all threads from now on."""
    rows = program(platform.machine())
    code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *row) for row in rows))

    class Program(ctypes.Structure):
        _fields_ = (('length', ctypes.c_ushort), ('code', ctypes.c_void_p))

    whole = Program(len(rows), ctypes.addressof(code))
    if _libc.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), 'no_new_privs')
    if _seccomp(SET_MODE_FILTER, TSYNC, ctypes.byref(whole)):
        raise OSError(ctypes.get_errno() or errno.EPERM, 'seccomp')


def _seccomp(operation: int, flags: int, argument) -> int:
    number = MACHINES[platform.machine()][1]
    _libc_syscall.restype = ctypes.c_long
    return _libc_syscall(
        ctypes.c_long(number), ctypes.c_uint(operation), ctypes.c_uint(flags), argument
    )
