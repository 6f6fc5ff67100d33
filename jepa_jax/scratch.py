"""Temporary files, folders and shared memory whose names say whose they are: what a killed process
leaves is swept at the next start, and nothing of a live one is.

A name holds `jepa_jax-PLACE-PID-START-`: where the process runs (a hash of the kernel's boot and
the namespace of process ids, so every machine and container has its own), its id, and when it
began. `sweep` removes what belongs to this user and bears such a name

- of this place, where no process of that id and beginning is left;
- of another place (another machine that shares the disk, or this one before it was started anew),
  whose processes cannot be seen from here, once nothing in it has changed for `STALE` seconds.

All else stays. Nothing of ours is imported here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from typing import BinaryIO

STALE = 7 * 24 * 3600.0
MARK = re.compile(r'jepa_jax-([0-9a-f]{8})-(\d+)-(\d+)-')

log = logging.getLogger(__name__)


def mark() -> str:
    """What a name of this process's holds."""
    return f'jepa_jax-{_place()}-{os.getpid()}-{_began(os.getpid())}-'


def prefix(path: str | os.PathLike) -> str:
    """Of the hidden name, beside a target, of what becomes it: for tempfile's functions."""
    return f'.{pathlib.Path(path).name[:40]}.{mark()}'  # a name has at most 255 bytes


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to be written that takes its place at `path` at the end, at once: a reader sees the
    old one or the whole new one. It outlives a power cut if it is synced within.

    Raises:
      OSError: it cannot be written; what was there before is untouched, as after any exception.
    """
    path = pathlib.Path(path)
    fd, part = tempfile.mkstemp(prefix=prefix(path), dir=path.parent)
    try:
        with os.fdopen(fd, 'wb') as file:
            os.fchmod(fd, 0o644)  # mkstemp's own is 0o600
            yield file
        os.replace(part, path)
    except BaseException:
        pathlib.Path(part).unlink(missing_ok=True)
        raise


def lives(name: str) -> bool | None:
    """Whether the process lives whose mark a name holds; None: it cannot be seen from here."""
    match = MARK.search(name)
    if not match or match[1] != _place():
        return None
    return not _gone(pathlib.Path(), *match.groups(), elsewhere=False)


def sweep(folder: str | os.PathLike, elsewhere: bool = True) -> list[pathlib.Path]:
    """Removes from a folder what processes that are gone have left in it; returns the paths.

    elsewhere: also what has long been left by another place.
    """
    swept = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (match := MARK.search(entry.name)):
                continue
            path = pathlib.Path(entry.path)
            try:
                if entry.stat(follow_symlinks=False).st_uid != os.getuid():
                    continue
                if not _gone(path, *match.groups(), elsewhere=elsewhere):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except FileNotFoundError:  # its owner or another process was faster
                continue
            except OSError as error:
                log.info('%s is left of a process that is gone, and stays: %s', path, error)
                continue
            swept.append(path)
    if swept:
        log.info('%s: swept %d left by processes that are gone', folder, len(swept))
    return swept


def _gone(path: pathlib.Path, place: str, pid: str, began: str, elsewhere: bool) -> bool:
    if place == _place():
        try:
            now = _began(int(pid))
        except ProcessLookupError:
            return True
        return now != began
    if not elsewhere:
        return False
    paths = [path, *(path.rglob('*') if path.is_dir() else ())]
    return max(os.lstat(each).st_mtime for each in paths) < time.time() - STALE


def _began(pid: int) -> str:
    """When a process began, in ticks of the kernel's; 0 where it does not tell.

    Raises ProcessLookupError: there is none, or it has ended and only its status is left.
    """
    try:
        state, *rest = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except FileNotFoundError:
        if pathlib.Path('/proc/self/stat').exists():
            raise ProcessLookupError(pid) from None
        try:
            os.kill(pid, 0)
        except PermissionError:  # another user's
            pass
        return '0'
    if state in 'ZX':
        raise ProcessLookupError(pid)
    return rest[18]  # field 22 of proc(5)


@functools.cache
def _place() -> str:
    try:
        host = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text()
        host += os.readlink('/proc/self/ns/pid')
    except OSError:
        host = socket.gethostname()
    return hashlib.sha256(host.encode()).hexdigest()[:8]
