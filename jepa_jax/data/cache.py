"""Decoded videos on disk: `config.data.cache` names the folder, `cache_gib` its bound.

Every clip of a video is a new random window, so what is kept is the whole video, all frames as
decoded. A hit reads frames from a file instead of running a decoder, and gives the same bytes: each
frame is held against its checksum, and an entry that is damaged is made again, with a warning.
This pays for sets of short clips that fit the bound; a single video above `LARGEST` is never kept.

The folder only grows, up to the bound; what is not in it is decoded as without a cache. To empty
it, delete it: nothing else is in there, and no process needs an entry to exist. A changed file
(size or time of change) is a new entry; another one of the same size whose time was set to the old
one's is not noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jepa_jax import scratch
from jepa_jax.data import decode
from jepa_jax.data.clips import Timing
from jepa_jax.errors import BadFile, Unsuitable, printable

LARGEST = 256 * 2**20  # bytes of one decoded video
VERSION = 1  # part of every key: change it with anything that changes what is decoded
BLOCK = 4096  # bytes that are added up before a checksum is made of the sums


class CannotKeep(OSError):
    """The folder is at fault, not what is read through it."""


class ClipCache:
    """Reads through to `decode.read_frames`. Any number of processes; each may be killed.

    Args:
      folder: made if missing.
      gib: bound on the bytes of all entries, GiB.

    Raises CannotKeep where the folder cannot be made or written.
    """

    def __init__(self, folder: str | Path, gib: float) -> None:
        self._folder = Path(folder).expanduser().absolute()
        self._bound = int(gib * 2**30)
        self._refused: set[Path] = set()  # entries that this process found too large or damaged
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._total() as total:
                total.value = self._scan()
        except OSError as error:
            raise CannotKeep(f'{str(folder)!r} cannot be written: {error.strerror}') from error

    def read_frames(self, path: str, choose: Callable[[Timing], np.ndarray]) -> np.ndarray:
        """As `decode.read_frames`, which it calls for what it does not have.

        The same frames whatever state the entry is in: `choose`, which may draw random numbers, is
        called once, and what it chose is decoded if the entry turns out not to be whole.
        """
        entry = self._entry(path)
        if entry is None:
            return decode.read_frames(path, choose)  # which says what is wrong with the file
        choice = _Choice(choose)
        if (meta := _read_meta(entry)) is not None:
            try:
                numbers = choice(_timing(meta))
            except Unsuitable as error:
                raise BadFile(path, error.reason, error.detail) from error
            try:
                return read_stored(entry, 0, tuple(meta['shape']), numbers, meta['sums'])
            except BadFile as error:  # the entry, not the video
                logging.warning(
                    'data.cache: the entry of %s is made again: %s', printable(path), error
                )
                _remove(entry.with_suffix('.json'))  # without which it is not whole
            except OSError:
                pass  # not there yet, or not there any more
        frames = decode.read_frames(path, choice)
        size = choice.timing.frames * int(np.prod(frames.shape[-3:]))
        if size <= min(LARGEST, self._bound) and entry not in self._refused:
            self._keep(entry, path, choice.timing, size)
        return frames

    def _entry(self, path: str) -> Path | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        what = f'{VERSION}\0{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}'
        name = hashlib.sha256(what.encode('utf-8', 'surrogateescape')).hexdigest()[:32]
        return self._folder / name[:2] / f'{name}.rgb'

    def _keep(self, entry: Path, path: str, timing: Timing, size: int) -> None:
        """Decodes all frames and stores them, if there is room."""
        part, counted = None, 0
        try:
            # the folder may have been deleted, and the disk may take no new file
            entry.parent.mkdir(parents=True, exist_ok=True)
            with self._total() as total:
                held = _size(entry)
                whole = held == size and _read_meta(entry) is not None
                if whole or total.value - held + size > self._bound:
                    return
                # as long as the entry will be, so that whoever counts the folder counts it
                with tempfile.NamedTemporaryFile(
                    dir=entry.parent, prefix=scratch.prefix(entry), suffix='.part', delete=False
                ) as part:
                    part.truncate(size)
                total.value += size
            counted = size
            frames = decode.read_frames(path, lambda timing: np.arange(timing.frames))
            frames.tofile(part.name)
            sums = [checksum(frame) for frame in frames]
            meta = _plain(timing) | {'shape': frames.shape, 'sums': sums}
            _write(entry.with_suffix('.json'), signed(json.dumps(meta)))
            with self._total() as total:  # of two processes that made the same entry one wins
                total.value -= _size(entry)
                os.replace(part.name, entry)
        except (BadFile, OSError) as error:
            self._refused.add(entry)
            if isinstance(error, OSError):
                logging.warning('data.cache: %s is not kept: %s', printable(path), error)
            with contextlib.suppress(OSError):  # the next start counts and sweeps what is left
                with self._total() as total:
                    total.value -= counted
                if part:
                    os.unlink(part.name)

    @contextlib.contextmanager
    def _total(self) -> Iterator[_Total]:
        """The bytes of all entries, half-written ones too; one process at a time has it."""
        with open(self._folder / 'bytes', 'a+', errors='replace') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            whole = text.isdecimal()  # or cut short, or of zeros after a power cut
            total = _Total(int(text) if whole else self._scan())
            before = total.value
            yield total
            if total.value != before or not whole:
                file.truncate(0)
                file.write(str(total.value))

    def _scan(self) -> int:
        total = 0
        for parent, _, names in os.walk(self._folder):
            scratch.sweep(parent)
            for name in names:
                path = os.path.join(parent, name)
                with contextlib.suppress(
                    FileNotFoundError
                ):  # swept, or another process finished it
                    status = os.stat(path)
                    unnamed = name.endswith('.part') and not scratch.MARK.search(name)
                    if unnamed and status.st_mtime < time.time() - scratch.STALE:
                        os.unlink(path)  # of a version that did not say whose it is
                    elif name.endswith(('.part', '.rgb')):
                        total += status.st_size
        return total


@dataclasses.dataclass
class _Total:
    value: int


class _Choice:
    """A `choose` that is called once, and anew for other good frames; later calls get the same
    frame numbers."""

    def __init__(self, choose: Callable[[Timing], np.ndarray]) -> None:
        self._choose, self._numbers = choose, None
        self.timing: Timing | None = None

    def __call__(self, timing: Timing) -> np.ndarray:
        if self._numbers is None or self.timing.good != timing.good:
            self.timing, self._numbers = timing, np.asarray(self._choose(timing))
        return self._numbers


def read_stored(
    path: str | Path,
    offset: int,
    shape: tuple[int, int, int, int],
    numbers: np.ndarray,
    sums: Sequence[int] | None = None,
) -> np.ndarray:
    """Frames `[*numbers.shape, H, W, 3]` of those that a file holds, `shape`, from byte `offset`.

    Reads, and does not map: mapped pages would count as this process's memory. Raises OSError, and
    BadFile where the file is too short or a frame has another checksum than `sums` says.
    """
    frames = np.empty((numbers.size, *shape[1:]), np.uint8)
    size = int(np.prod(shape[1:]))
    with open(path, 'rb', buffering=0) as file:
        for frame, number in zip(frames, numbers.ravel().tolist()):
            file.seek(offset + number * size)
            if file.readinto(memoryview(frame).cast('B')) != size:
                raise BadFile(path, 'truncated', f'frame {number} is not there')
            if sums is not None and checksum(frame) != sums[number]:
                raise BadFile(path, 'corrupt', f'frame {number} is not what was stored')
    return frames.reshape(*numbers.shape, *shape[1:])


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the sums of blocks of 4 KiB, as numbers of 64 bits, and of the bytes after them.

    At memory's speed, where a CRC of all bytes would take as long as a clip does. Any one changed
    number, cut, zeroed and misplaced blocks are noticed; numbers exchanged within a block are not.
    """
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = flat.size - flat.size % BLOCK
    sums = flat[:whole].view('<u8').reshape(-1, BLOCK // 8).sum(1, dtype='<u8')
    return zlib.crc32(flat[whole:], zlib.crc32(sums))


def signed(text: str) -> str:
    """A text followed by its checksum."""
    return f'{text}\n{zlib.crc32(text.encode()):08x}'


def unsigned(text: str) -> str:
    """The text of a signed one. Raises ValueError where it is not what was signed."""
    text, _, digits = text.rpartition('\n')
    if f'{zlib.crc32(text.encode()):08x}' != digits:
        raise ValueError('not what was written')
    return text


def _read_meta(entry: Path) -> dict | None:
    """What is known of an entry; None if it is not there or not whole, or has no checksums."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(unsigned(entry.with_suffix('.json').read_text()))
    return None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _size(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _plain(timing: Timing) -> dict:
    times = None if timing.times is None else timing.times.tolist()
    return {'frames': timing.frames, 'fps': timing.fps, 'seconds': timing.seconds, 'times': times}


def _timing(plain: dict) -> Timing:
    times = None if plain['times'] is None else np.asarray(plain['times'])
    return Timing(plain['frames'], plain['fps'], plain['seconds'], times)


def _write(path: Path, text: str) -> None:
    """A whole file or none."""
    with scratch.whole(path) as file:
        file.write(text.encode())
