"""Where a run's files lie: in its workdir, or in a bucket of which a folder here is the copy.

Of a run with `--workdir=s3://BUCKET/RUN` or `gs://...` everything is written into a folder of this
machine, as ever, and from there put into the bucket: with each checkpoint, every minute what is
small, and at the end. There is no rename in a bucket: a checkpoint's manifest goes last, and
what has none is no checkpoint. A start takes from the bucket what a run needs to resume, wherever
it ran before; the folder holds nothing that the bucket does not, and goes at the end.

Of several machines each has such a folder, filled at the start, unless they see the same. What a
run writes, process 0 writes, into that of its own machine: it gathers checkpoints. The others put
into the bucket at the end what only they have, their traces.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import filterfalse

import jax

from jepa_jax import distributed, files, scratch
from jepa_jax.bucket import Bucket, is_url
from jepa_jax.checkpoint import problems, read_manifest
from jepa_jax.checkpoint.files import FROZEN, MANIFEST, UNFINISHED, lack_of_room
from jepa_jax.config import cache_root
from jepa_jax.errors import BucketError, CheckpointError, ConfigError, TakenOver
from jepa_jax.workdir import LOCK, lock

log = logging.getLogger(__name__)

CHECKPOINTS = 'checkpoints'
BEAT = 15.0  # seconds between signs of life in a bucket
SMALL = 4  # of them between times at which what is small is put there
LOST = 60.0  # without one its run counts as dead
_AT_ONCE = 4  # objects on their way; each is in memory
LEFT = (-1, -1)  # in place of a file's size and time: the object was not fetched


class Home:
    """Where the files of a run lie.

    Attributes:
      folder: a folder of a file system, which the run reads and writes.
      name: what a user calls it.
      shared: whether all processes of the run see the same folder.
    """

    def __init__(self, folder: pathlib.Path, name: str):
        self.folder, self.name, self.shared = folder, name, True

    def publish(self) -> None:
        """After a checkpoint: makes what is in the folder survive this machine.

        Raises:
          OSError: it does not."""


@contextlib.contextmanager
def of(workdir: str | os.PathLike) -> Iterator[Home]:
    """Holds a workdir for one run; all its processes call it.

    Raises:
      ConfigError: another run holds it, or it cannot be reached, read or written.
      BucketError: the last files of the run cannot be put into the bucket.
    """
    if not is_url(workdir):
        path = pathlib.Path(workdir).absolute()
        with distributed.first(lock(path)):
            yield Home(path, str(path))
        return
    home, machines = BucketHome(Bucket(str(workdir))), distributed.machines()
    with distributed.first(home.held()):
        copy = contextlib.nullcontext()
        if any(machines) and not distributed.all_see(home.folder):  # the cache is no shared disk
            home.shared, process = False, jax.process_index()
            if process and machines[process] == process:  # the first of another machine
                copy = home.copied()
        with distributed.together(copy):
            yield home


class BucketHome(Home):
    """A bucket and the folder here that is its copy."""

    def __init__(self, bucket: Bucket):
        digest = hashlib.sha256(bucket.url.encode()).hexdigest()[:16]
        super().__init__(cache_root().absolute() / 'buckets' / digest, bucket.url)
        self._bucket, self._lease = bucket, _Lease(bucket)
        self._here: dict[str, tuple[int, int]] = {}  # object -> size and time of the file it is of
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Takes the bucket, fills the folder, keeps saying that this run lives; at the end puts
        everything into the bucket and removes the folder."""
        try:
            self._bucket.check()
        except BucketError as error:
            raise ConfigError(f'workdir {error}') from error
        with self._alone(), self._lease.held():
            self._empty()
            self._fetch()
            done = threading.Event()
            putting = threading.Thread(target=self._put_small, args=(done,), daemon=True)
            putting.start()
            ended = False
            try:
                yield
                ended = True
            finally:
                self._lease.leaving = True
                done.set()
                putting.join()
                self._leave(ended)

    @contextlib.contextmanager
    def copied(self) -> Iterator[None]:
        """On a machine that a run has beside that of its process 0, which holds the bucket: fills
        the folder; at the end puts there what its processes have written, and removes it."""
        with self._alone():
            self._empty()
            self._fetch()
            ended = False
            try:
                yield
                ended = True
            finally:
                self._leave(ended, self._add)

    def _leave(self, ended: bool, put: Callable[[], None] | None = None) -> None:
        """Puts what is left into the bucket; ended: there is no other error to be said."""
        try:
            (put or self.publish)()
        except OSError as error:
            words = f'{error}; what is not there lies in {self.folder} until the next start'
            if ended:
                raise BucketError(words) from error
            log.error('%s', words)
        else:
            self._empty()
            if not put:
                log.info('everything is in %s', self.name)

    def publish(self) -> None:
        with self._turn:
            self._lease.renew()
            self._put()
            self._lease.check()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Against a run on this machine, at once."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock(self.folder))
            except ConfigError as error:
                raise ConfigError(str(error).replace(str(self.folder), self.name)) from error
            yield

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    # from the bucket

    def _fetch(self) -> None:
        """Everything but the arrays of checkpoints that a resuming run does not read: of those
        before the newest intact one the manifests alone, which stand for them."""
        try:
            names = [name for name in self._bucket.names() if name != LOCK]
            steps = {}
            for name in names:
                if match := re.match(rf'{CHECKPOINTS}/(\d+)/', name):
                    steps.setdefault(int(match[1]), []).append(name)
            whole = sorted(s for s in steps if f'{CHECKPOINTS}/{s}/{MANIFEST}' in steps[s])
            for step in steps.keys() - set(whole):
                folder = f'{self.name}/{CHECKPOINTS}/{step}'
                log.warning('removed %s, a save that was not finished', folder)
                for name in sorted(steps.pop(step)):
                    self._bucket.write(name, None)
            self._get(name for name in names if not name.startswith(f'{CHECKPOINTS}/'))
            self._get(f'{CHECKPOINTS}/{step}/{MANIFEST}' for step in whole)
            for step in reversed(whole):
                folder = self.folder / CHECKPOINTS / str(step)
                with contextlib.suppress(CheckpointError):  # the run says so, or passes over it
                    need = sum(row['bytes'] for row in read_manifest(folder)['files'].values())
                    if lack := lack_of_room(self.folder, need):
                        raise ConfigError(f'workdir {self.name}: no room for its copy: {lack}')
                self._get(name for name in steps[step] if not name.endswith(f'/{MANIFEST}'))
                with contextlib.suppress(CheckpointError):
                    if not problems(folder):
                        break
        except BucketError as error:
            raise ConfigError(f'workdir {error}') from error
        if self._here:
            size = sum(size for size, _ in self._here.values()) / 2**20
            log.info('fetched %d files, %.3g MiB, from %s', len(self._here), size, self.name)
        left = {name for each in steps.values() for name in each} - self._here.keys()
        self._here |= dict.fromkeys(left, LEFT)

    def _get(self, names: Iterable[str]) -> None:
        def one(name: str) -> None:
            with files.raising(ConfigError):
                path = files.inside(self.folder, name)
            content, _ = self._bucket.read(name)
            if content is None:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self._here[name] = _seen(path)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(one, names))

    # into the bucket

    def _put(self, small: bool = False) -> None:
        """Makes the bucket what the folder is: what goes, everything, then manifests.

        small: without what belongs to checkpoints, which a save puts there itself. Call under
          `_turn`.
        """
        now = self._files()
        gone = [
            name for name in self._here
            if name not in now and (self._here[name] != LEFT or _manifest(name) not in now)
        ]  # fmt: skip
        changed = [name for name, seen in now.items() if self._here.get(name) != seen]
        if small:
            changed = [n for n in changed if n.split('/')[0] not in (CHECKPOINTS, FROZEN)]
        # a step that is saved again is none until all of it is there
        again = {_manifest(n) for n in changed} & self._here.keys() & now.keys()
        for name in sorted({*gone, *again}, key=_rank, reverse=True):
            self._bucket.write(name, None)
            del self._here[name]
        changed = sorted({*changed, *again}, key=lambda n: (_rank(n), n))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda n: self._put_one(n, now[n]), filterfalse(_rank, changed)))
        for name in filter(_rank, changed):
            self._put_one(name, now[name])

    def _add(self) -> None:
        """Puts what is new in the folder."""
        for name, seen in self._files().items():
            if self._here.get(name) != seen:
                self._put_one(name, seen)

    def _put_one(self, name: str, seen: tuple[int, int]) -> None:
        try:
            content = (self.folder / name).read_bytes()
        except FileNotFoundError:  # replaced or removed since
            return
        self._lease.check()
        self._bucket.write(name, content)
        self._here[name] = seen

    def _files(self) -> dict[str, tuple[int, int]]:
        """Every finished file of the folder, and which state of it that is."""
        seen = {}
        for path in sorted(self.folder.rglob('*')):
            name = path.relative_to(self.folder).as_posix()
            if any(part.startswith(('.', UNFINISHED)) for part in name.split('/')):
                continue
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISREG(path.lstat().st_mode):
                    seen[name] = _seen(path)
        return seen

    def _put_small(self, done: threading.Event) -> None:
        while not done.wait(BEAT * SMALL):
            if not self._turn.acquire(blocking=False):  # a checkpoint is on its way
                continue
            try:
                self._put(small=True)
            except TakenOver:  # the lease says so
                return
            except OSError as error:
                log.warning('%s; it is tried again', error)
            finally:
                self._turn.release()


def _seen(path: pathlib.Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _manifest(name: str) -> str:
    """Of the checkpoint that a file of one is of."""
    return '/'.join((*name.split('/')[:2], MANIFEST))


def _rank(name: str) -> int:
    """Which of all files go last: a checkpoint's manifest, before it those of frozen nets."""
    if not name.endswith(f'/{MANIFEST}'):
        return 0
    return {FROZEN: 1, CHECKPOINTS: 2}.get(name.partition('/')[0], 0)


class _Lease:
    """The object that says which run a bucket's folder belongs to; a state of it is replaced by
    whoever has seen that state, so of two runs one gets it."""

    def __init__(self, bucket: Bucket):
        self._bucket, self._state, self._turn = bucket, b'', threading.Lock()
        self._lost: TakenOver | None = None
        self.leaving = False  # the run has ended, and what it left is on its way

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps saying that this run lives, whatever else is on its way to the bucket or from it.

        Raises:
          ConfigError: another run has it, and lives.
        """
        try:
            self._take()
        except BucketError as error:
            raise ConfigError(f'workdir {error}') from error
        done = threading.Event()
        beating = threading.Thread(target=self._beat, args=(done,), daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()
            try:
                self._bucket.write(LOCK, None, over=self._state)
            except OSError as error:
                log.warning('its lock stays for %.0f s: %s', LOST, error)

    def check(self) -> None:
        """Raises TakenOver: it was noticed that another run has it."""
        if self._lost:
            raise self._lost

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(BEAT):
            try:
                self.renew()
            except TakenOver as error:
                self._lost = error
                log.error('%s: this one ends', error)
                if not self.leaving:  # as a scheduler does; its save will fail
                    os.kill(os.getpid(), signal.SIGTERM)
                return
            except OSError as error:
                log.warning('%s; it is tried again', error)

    def renew(self) -> None:
        """Raises TakenOver: another run has it now."""
        with self._turn:
            state = self._bucket.write(LOCK, self._signed(), over=self._state)
            if not state:  # or it was written and the answer got lost
                content, state = self._bucket.read(LOCK)
                if _holder(content or b'').get('mark') != scratch.mark():
                    raise TakenOver(f'{self._bucket.url} has been taken over by another run')
            self._state = state

    def _take(self) -> None:
        content, state = self._bucket.read(LOCK)
        if content is not None:
            who = _holder(content)
            lives = scratch.lives(who.get('mark', ''))
            whose = f'process {who.get("pid")} on {who.get("host")} since {who.get("since")}'
            if lives is None:
                log.info(
                    '%s is held by %s; waiting up to %.0f s for a sign of life',
                    self._bucket.url, whose, LOST,
                )  # fmt: skip
                lives = self._changes(state)
            if lives:
                raise ConfigError(
                    f'workdir {self._bucket.url} is in use by {whose}; stop that run or choose '
                    'another workdir'
                )
        self._state = self._bucket.write(LOCK, self._signed(), over=state)
        if not self._state:
            raise ConfigError(f'workdir {self._bucket.url} has just been taken by another run')

    def _changes(self, state: bytes) -> bool:
        end = time.monotonic() + LOST
        while time.monotonic() < end:
            time.sleep(min(2.0, LOST / 4))
            if self._bucket.read(LOCK)[1] != state:
                return True
        return False

    def _signed(self) -> bytes:
        now = datetime.datetime.now().astimezone().isoformat(' ')
        who = {'pid': os.getpid(), 'host': socket.gethostname(), 'mark': scratch.mark()}
        return json.dumps({**who, 'since': _SINCE, 'seen': now}).encode()


_SINCE = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')


def _holder(content: bytes) -> dict[str, str]:
    try:
        who = json.loads(content)
    except ValueError:
        return {}
    return who if isinstance(who, dict) else {}
