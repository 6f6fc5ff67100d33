"""A run's folder: one run at a time, and files that are whole or absent."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

from jepa_jax import scratch
from jepa_jax.errors import ConfigError

log = logging.getLogger(__name__)

LOCK = '.lock'
_held: set[int] = set()  # descriptors of this process's locks


def _let_go() -> None:
    for fd in _held:
        os.close(fd)
    _held.clear()


# flock belongs to the open file, which a forked child shares: a data worker that outlives a killed
# run would hold the lock for it. Closing the child's copy leaves the parent's lock alone; spawned
# children never get the descriptor (O_CLOEXEC).
os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Makes the folder if need be and holds it; the kernel lets go when this process dies. A folder
    that it made and nothing was written into goes again.

    Yields:
      The absolute path.

    Raises:
      ConfigError: another run holds the folder, or it cannot be made, read or written.
    """
    path = pathlib.Path(workdir).absolute()
    made = [each for each in (path, *path.parents) if not each.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        os.listdir(path)
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        reason = 'a file is in its place' if path.is_file() else error.strerror
        allowed = 'must be a folder that this user can read and write'
        raise ConfigError(f'workdir {path}: {reason}; {allowed}') from error
    _held.add(fd)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            advice = 'stop that run or choose another workdir'
            raise ConfigError(f'workdir {path} is in use by {_holder(fd)}; {advice}') from None
        except OSError as error:
            reason = f'its file system cannot lock files ({error.strerror})'
            raise ConfigError(f'workdir {path}: {reason}') from error
        since = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
        _sign(fd, {'pid': os.getpid(), 'host': socket.gethostname(), 'since': since})
        scratch.sweep(path)
        yield path
    finally:
        if fd in _held:  # in a forked child it is closed already
            if made:
                _leave_nothing(path, made)
            _held.remove(fd)
            os.close(fd)


def _leave_nothing(path: pathlib.Path, made: list[pathlib.Path]) -> None:
    """Removes folders that `lock` made if nothing was written into the first: a start that was
    refused."""
    within = list(path.rglob('*'))
    if any(
        each != path / LOCK and not (each.is_dir() and not each.is_symlink()) for each in within
    ):
        return
    with contextlib.suppress(OSError):  # another process has just written something there
        (path / LOCK).unlink()
        for folder in (*(each for each in reversed(within) if each.is_dir()), *made):
            folder.rmdir()


def _sign(fd: int, who: dict[str, Any]) -> None:
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(who).encode(), 0)
    except OSError as error:  # a full disk: the lock holds all the same
        log.warning('the lock of this run cannot name its owner: %s', error.strerror)


def _holder(fd: int) -> str:
    try:
        who = json.loads(os.pread(fd, 4096, 0))
        return f'process {who["pid"]} on {who["host"]} since {who["since"]}'
    except (ValueError, KeyError, TypeError):  # between its lock and its signature
        return 'another process, which has not signed yet'


def room_for(flag: str, path: str | os.PathLike, folder: bool = False) -> None:
    """Says that results cannot be written before the work for them is done.

    folder: of `path`: a folder, which is made; else a file, whose folder is there.

    Raises:
      ConfigError: it cannot be made or written; names the flag.
    """
    path = pathlib.Path(path)
    place = path if folder else path.parent
    try:
        if folder:
            place.mkdir(parents=True, exist_ok=True)
        os.stat(place / '.')  # a folder, and not a file
        reason = '' if os.access(place, os.W_OK | os.X_OK) else 'it is not to be written to'
        if not folder and path.is_dir():
            reason = 'a folder is in its place'
    except OSError as error:
        reason = 'a file is in its place' if place.is_file() else str(error.strerror)
    if reason:
        kind = 'folder' if folder else 'file'
        raise ConfigError(f'{flag} {path}: {reason}; must be a {kind} that can be written')


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes indented JSON as `write_text` does.

    Raises:
      OSError: as `write_text`.
      ValueError: `value` holds NaN or an infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file at once: a reader sees the old one or the whole new one, whatever dies.

    Raises:
      OSError: it cannot be written; what was there before is untouched.
    """
    path = pathlib.Path(path)
    with scratch.whole(path) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(path: pathlib.Path) -> None:
    """Makes renames inside a folder survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
