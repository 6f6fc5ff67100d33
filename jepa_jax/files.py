"""Files that nobody vouches for: what one may cost, and one place where a library's errors become
ours.

    with files.reading(path):                   # whatever the library raises is a BadFile
        image = Image.open(path)
    files.bound(path, 'pixels', width * height)  # before anything of that size is allocated

Limits are a process's own, and its workers': `--limits pixels=4e8,seconds=600` of every command, or
the environment variable JEPA_JAX_LIMITS. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import pathlib
import stat
import time
from collections.abc import Iterator, Mapping
from typing import Any

from jepa_jax.errors import BadFile, UsageError, allowed, printable

VARIABLE = 'JEPA_JAX_LIMITS'
FREE = 2**29  # bytes that any file may unpack to, however small it is
FREE_WEIGHTS = 2**26  # the same of weights, which hardly ever repeat themselves
SMALL = 2**20  # bytes of a file for which the limit of work stands


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a file may ask for before it is refused; a field's name is the reason that is given.

    No honest file meets the defaults.
    """

    pixels: int = 2**27  # of a frame or picture: 16,384 x 8,192
    frames: int = 2**23  # of a file: 38 hours at 60 a second
    packets: int = 2**24  # of a video's stream, read while looking for frames
    index: int = 2**30  # bytes of a file that describes others: header, list, index, manifest
    decoded: int = 2**36  # bytes of what one call returns, or one array unpacks to
    ratio: int = 1000  # of decoded bytes to those of the file, once they are above FREE
    # pixels that go through a decoder for one look at a file of up to 1 MiB, or one clip from it; a
    # larger file may ask for so many a MiB: 2 minutes of 1080p at 30 a second
    work: int = 2**33
    seconds: float = 300.0  # for one look at a file, or one clip from it
    # bytes that a data worker allocates beyond what it starts with; never more than three quarters
    # of what the machine has, unless it is `inf`
    memory: int = 2**35


LIMITS = tuple(field.name for field in dataclasses.fields(Limits))


def parse(text: str) -> Limits:
    """Limits from `name=value,...`; those not named keep their defaults.

    Raises:
      UsageError: another name, or a value that is no positive number.
    """
    values = {}
    for part in filter(None, (part.strip() for part in text.split(','))):
        name, _, value = (word.strip() for word in part.partition('='))
        if name not in LIMITS:
            raise UsageError(f'limits: {name!r}: {allowed(name, LIMITS)}')
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not number > 0:
            raise UsageError(f'limits: {name} = {value!r}: must be a number above 0')
        values[name] = number if name == 'seconds' or number == float('inf') else int(number)
    return Limits(**values)


def limits() -> Limits:
    """Those of this process."""
    return _parsed(os.environ.get(VARIABLE, ''))


def set_limits(text: str) -> None:
    """Of this process and the workers that it starts; see `parse`."""
    parse(text)
    os.environ[VARIABLE] = text


_known: dict[str, Limits] = {}


def _parsed(text: str) -> Limits:
    if text not in _known:
        _known[text] = parse(text)
    return _known[text]


def bound(path: str | os.PathLike, name: str, value: float, what: str = '') -> None:
    """Refuses what a file asks for if it is above a limit.

    Args:
      path: of the file.
      name: of the limit, a field of Limits.
      value: what the file asks for.
      what: in words, where the name alone does not say it.

    Raises BadFile, with the limit's name as its reason.
    """
    limit = getattr(limits(), name)
    if value > limit:
        what = what or f'{value:,.0f} {name}'
        raise BadFile(path, name, f'{what}: at most {limit:,.0f} (--limits {name}=...)')


def bound_decoded(
    path: str | os.PathLike, unpacked: int, packed: int, free: int | None = None
) -> None:
    """Refuses bytes to be unpacked, of a file of `packed` bytes, by the limits decoded and ratio;
    free: bytes that may be unpacked whatever the ratio, FREE if None.

    Raises BadFile.
    """
    bound(path, 'decoded', unpacked, f'{unpacked:,} bytes decoded')
    if unpacked > (FREE if free is None else free):
        what = (
            f'{packed:,} bytes that unpack to {unpacked:,}, {unpacked / max(1, packed):,.0f}-fold'
        )
        bound(path, 'ratio', unpacked / max(1, packed), what)


class Deadline:
    """The limits of seconds and of work for one file, from now on."""

    def __init__(self, path: str | os.PathLike, packed: float = math.inf) -> None:
        """packed: bytes of the file, to which work is in proportion."""
        self._path, self._start = path, time.monotonic()
        self._pixels, self._share, self._most = 0, max(1.0, packed / SMALL), limits()

    def check(self) -> float:
        """Seconds spent. Raises BadFile once they are above the limit."""
        spent = time.monotonic() - self._start
        bound(self._path, 'seconds', spent, f'{spent:.0f} s and no end')
        return spent

    @property
    def left(self) -> float:
        """Seconds; above 0. Raises BadFile."""
        return max(limits().seconds - self.check(), 1e-3)

    def spend(self, pixels: int) -> None:
        """Before so many go through a decoder. Raises BadFile once they, or the time, are above the
        limits."""
        self._pixels += pixels
        if (each := self._pixels / self._share) > self._most.work:
            bound(self._path, 'work', each, f'{each:,.0f} pixels to be decoded for a MiB or less')
        if time.monotonic() - self._start > self._most.seconds:
            self.check()


def size(path: str | os.PathLike) -> int:
    """Bytes of a regular file that has some.

    Raises:
      BadFile: missing, unreadable, empty, no regular file, or a name that no file can have.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise refused(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise BadFile(path, 'unreadable', 'a folder')
    if not stat.S_ISREG(status.st_mode):
        raise BadFile(path, 'unreadable', 'not a regular file')
    if not status.st_size:
        raise BadFile(path, 'empty')
    return status.st_size


def inside(folder: str | os.PathLike, name: object, also: str | os.PathLike = '') -> pathlib.Path:
    """The path of a name that a file of the folder gives, such as an index.

    Args:
      folder: which a path may not leave, be it absolute, by `..`, or by a link.
      name: text; anything else is refused, too.
      also: another folder into which links may lead.

    Raises BadFile.
    """
    if not isinstance(name, str) or not name or '\0' in name:
        raise BadFile(folder, 'not_text', 'the name of a file in it is no text')
    path = pathlib.Path(folder, name)
    parts = pathlib.PurePath(name).parts
    if os.path.isabs(name) or '..' in parts:
        raise BadFile(path, 'outside', f'{name!r} leads out of {os.fspath(folder)}')
    real = pathlib.Path(os.path.realpath(path))
    places = [pathlib.Path(os.path.realpath(place)) for place in (folder, also) if place]
    if not any(real.is_relative_to(place) for place in places):
        raise BadFile(path, 'outside', f'a link to {real}: copy the file to where the link is')
    return path


def read_json(path: str | os.PathLike) -> dict:
    """The object that a JSON file holds.

    Raises BadFile: no regular file, too large, no JSON, or another thing than an object.
    """
    bound(path, 'index', nbytes := size(path), f'{nbytes:,} bytes')
    with reading(path, 'not_text'), open(path, 'rb') as file:
        content = json.loads(file.read())
    if not isinstance(content, dict):
        raise BadFile(path, 'not_text', f'must be a JSON object, is a {type(content).__name__}')
    return content


@contextlib.contextmanager
def raising(kind: type[Exception]) -> Iterator[None]:
    """BadFile becomes an error of another kind, with the same words."""
    try:
        yield
    except BadFile as error:
        raise kind(str(error)) from error


def refused(path: str | os.PathLike, error: Exception) -> BadFile:
    """The BadFile of what the file system says."""
    if not isinstance(error, OSError):
        return BadFile(path, 'missing', one_line(error))
    gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
    return BadFile(path, 'missing' if gone else 'unreadable', '' if gone else error.strerror or '')


@contextlib.contextmanager
def reading(
    path: str | os.PathLike,
    reason: str = 'corrupt',
    reasons: Mapping[type[Exception], str] | None = None,
) -> Iterator[None]:
    """Whatever is raised inside becomes BadFile: to be put around a library's calls, not ours.

    Libraries raise anything on bytes that they did not expect: struct.error, KeyError,
    RecursionError, SystemError, MemoryError. What the file system says is 'missing' or
    'unreadable'.

    Args:
      path: of the file, for the message.
      reason: a key of errors.REASONS for all other errors.
      reasons: for some types another one.
    """
    try:
        yield
    except BadFile:
        raise
    except Exception as error:
        for kind, word in (reasons or {}).items():
            if isinstance(error, kind):
                raise BadFile(path, word, one_line(error)) from error
        if isinstance(error, OSError) and error.errno and type(error).__module__ == 'builtins':
            raise refused(path, error) from error
        if isinstance(error, MemoryError):
            raise BadFile(path, 'decoded', 'more than the memory left to this process') from error
        raise BadFile(path, reason, one_line(error)) from error


def json_line(path: str | os.PathLike, number: int, line: str | bytes) -> Any:
    """The value of a line of a .jsonl. Raises BadFile, which says which line."""
    try:
        with reading(path, 'not_text'):
            return json.loads(line.rstrip())
    except BadFile as error:
        detail = error.detail
        if isinstance(cause := error.__cause__, json.JSONDecodeError):
            detail = f'{cause.msg}: column {cause.colno}'
        raise BadFile(path, error.reason, f'line {number}: {detail}') from error


def one_line(error: BaseException, most: int = 200) -> str:
    """What an error says, in one line of at most so many characters, printable."""
    words = ' '.join(str(error).split()) or type(error).__name__
    words = printable(words)
    return words if len(words) <= most else words[: most - 3] + '...'
