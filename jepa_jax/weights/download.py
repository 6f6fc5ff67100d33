"""Fetching the released files.

What a cut connection or a killed process left, NAME.part, is completed only if the server vouches,
by a strong ETag, that its file is still the same; else it is fetched anew. What comes is not kept
unless it is whole and looks like weights.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import logging
import os
import pathlib
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from typing import IO

from tqdm import tqdm

from jepa_jax import workdir
from jepa_jax.errors import ZooError

log = logging.getLogger(__name__)

SERVER = 'https://dl.fbaipublicfiles.com/vjepa2/'  # or $JEPA_JAX_WEIGHTS_URL, a mirror of it
OLDER = 'https://dl.fbaipublicfiles.com/'  # with the folders of I-JEPA and V-JEPA 1
ATTEMPTS = 5  # at a download in a row that bring nothing
WAIT = 1.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = 60.0  # seconds without a byte
HERE = ('127.0.0.1', '::1', 'localhost')  # hosts that no network is between
PAGES = re.compile(r'text/|application/(json|xml|xhtml|javascript)')  # what no weights are sent as
# the first bytes of what is sent in place of a file, whatever it is called
OTHERS = {b'<': 'a web page', b'\x1f\x8b': 'compressed by gzip', b'{"': 'JSON'}


def address(file: str, folder: str = '') -> str:
    """Of a file below the server's address, or in the folder of an older release, which a mirror
    has below its own."""
    if mirror := os.environ.get('JEPA_JAX_WEIGHTS_URL'):
        return '/'.join(filter(None, (mirror.rstrip('/'), folder, file)))
    return f'{OLDER}{folder}/{file}' if folder else SERVER + file


class _Cut(Exception):
    """A connection that ended early: worth another attempt."""


class _Unreachable(_Cut):
    """No connection: worth another attempt if there was one before."""


class _Refused(Exception):
    """What no further attempt would mend."""


def download(url: str, path: pathlib.Path) -> None:
    """Fetches a file.

    Raises:
      ZooError: it cannot be had, or what comes is no weights; says where to put it by hand.
    """
    part, idle, wait, reached, most = path.with_name(path.name + '.part'), 0, WAIT, False, 0
    with _alone(part):
        if path.exists():  # another process was faster
            return
        try:
            _say_where_from(url)
            most = _size(part)
            while True:
                try:
                    _continue(url, part)
                    break
                except _Cut as cut:
                    gained = _size(part) > most  # not merely as much again from the beginning
                    most = max(most, _size(part))
                    reached |= not isinstance(cut, _Unreachable)
                    idle, wait = (1, WAIT) if gained else (idle + 1, wait * 2)
                    if idle >= ATTEMPTS or not reached:
                        raise _Refused(str(cut)) from cut
                    log.info('%s: %s; again in %g s', url, cut, wait)
                    time.sleep(wait)
            if why := _no_weights(part, path.suffix):
                _drop(part)
                raise _Refused(why)
        except urllib.error.HTTPError as error:
            raise _by_hand(url, path, f'the server says {error.code} {error.reason}') from error
        except _Refused as refused:
            if not _tag(part).exists():  # nobody can resume from it
                _drop(part)
            raise _by_hand(url, path, str(refused)) from refused
        os.replace(part, path)
        _drop(part)


def _by_hand(url: str, path: pathlib.Path, why: str) -> ZooError:
    return ZooError(
        f'{path} is not there and cannot be downloaded ({why}): get {url} elsewhere and put it '
        f'there, or set JEPA_JAX_WEIGHTS_URL to a mirror of {SERVER}'
    )


def _tag(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(part.name + '.tag')


def _size(part: pathlib.Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _drop(part: pathlib.Path) -> None:
    _tag(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(part: pathlib.Path) -> Iterator[None]:
    """One process at a time writes a part; the kernel lets go of the lock when it dies."""
    lock = part.with_name(f'.{part.name}.lock')
    while True:
        with open(lock, 'w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info('%s: waiting for another process that downloads it', part)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(lock, file):  # the one before has removed it since it was opened
                continue
            try:
                yield
            finally:
                lock.unlink()
            return


def _is_at(path: pathlib.Path, file: IO[str]) -> bool:
    """Whether an open file still lies at a path, in one look: between two it may be removed."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _say_where_from(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ('http', 'https'):
        raise _Refused(f'{parts.scheme or "no scheme"}: allowed are https and http')
    if parts.scheme == 'http' and parts.hostname not in HERE:
        log.warning('%s: http: anyone on the way may change what comes', url)


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows, and says where to; never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme != 'https' and (old.scheme == 'https' or new.scheme != 'http'):
            raise _Refused(f'the server sends on to {newurl}: not https')
        if new.netloc != old.netloc:
            log.warning('%s: comes from %s, to which the server sends on', req.full_url, new.netloc)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _continue(url: str, part: pathlib.Path) -> None:
    """One connection; returns when the file is whole. Raises _Cut, _Refused, HTTPError."""
    tag, headers = _read_tag(part), {'User-Agent': 'jepa_jax', 'Accept-Encoding': 'identity'}
    have = _size(part) if tag and tag['url'] == url else 0
    if have:  # the server starts anew if its file is another by now
        headers |= {'Range': f'bytes={have}-', 'If-Range': tag['etag']}
    try:
        request = urllib.request.Request(url, headers=headers)
        opener = urllib.request.build_opener(_Redirect)
        with opener.open(request, timeout=TIMEOUT) as answer:
            have, total = _extent(answer, have)
            etag = answer.headers.get('ETag', '')
            if have and (etag, total) != (tag['etag'], tag['total']):
                _drop(part)
                raise _Cut('the file has changed: from the beginning')
            if why := _no_file(answer, total):
                _drop(part)
                raise _Refused(why)
            if (free := shutil.disk_usage(part.parent).free) < total - have:
                raise _Refused(f'{total - have:,} bytes to come, {free:,} free in {part.parent}')
            if not have:
                _drop(part)
                if re.fullmatch(r'"[^"]*"', etag):  # a weak one may not stand in If-Range
                    workdir.write_json(_tag(part), {'url': url, 'etag': etag, 'total': total})
            _copy(answer, part, have, total)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # we hold more than there is: start anew
            _drop(part)
            raise _Cut(f'{have:,} bytes are more than the server has') from error
        if error.code >= 500 or error.code == 429:
            raise _Cut(f'the server says {error.code} {error.reason}') from error
        raise
    except urllib.error.URLError as error:
        raise _Unreachable(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(str(error) or type(error).__name__) from error


def _read_tag(part: pathlib.Path) -> dict | None:
    """What the server said of its file, with a strong ETag; None: nothing that can be used."""
    try:
        tag = json.loads(_tag(part).read_text())
        return {name: tag[name] for name in ('url', 'etag', 'total')}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _extent(answer, have: int) -> tuple[int, int]:
    """Where in the file the answer's bytes begin, and the length of the whole file."""
    if answer.status == 206:
        span = re.fullmatch(r'bytes (\d+)-(\d+)/(\d+)', answer.headers.get('Content-Range', ''))
        if not have or not span or int(span[1]) != have:
            sent = answer.headers.get('Content-Range')
            raise _Cut(f'asked for bytes from {have}, the server sends {sent}')
        return have, int(span[3])
    length = answer.headers.get('Content-Length', '')
    if not length.isdecimal():
        raise _Refused('the server does not tell how long the file is')
    return 0, int(length)


def _no_file(answer, total: int) -> str:
    """Why what a server is about to send is no file of weights; empty: it may be one."""
    kind = answer.headers.get_content_type() if answer.headers.get('Content-Type') else ''
    coding = answer.headers.get('Content-Encoding', 'identity')
    if PAGES.match(kind):
        return f'the server sends {kind}, not weights'
    if coding not in ('identity', ''):
        return f'the server sends it compressed ({coding})'
    return '' if total else 'the server sends no bytes'


def _no_weights(part: pathlib.Path, suffix: str) -> str:
    """Why a whole download is no weights; empty: it may be."""
    with part.open('rb') as file:
        head = file.read(512).lstrip()
    for start, kind in OTHERS.items():
        if head.startswith(start):
            return f'what came is {kind}, not weights'
    if suffix in ('.pt', '.pth') and not head.startswith((b'PK\x03\x04', b'\x80')):
        return 'what came is no file of PyTorch'
    if head.startswith(b'PK\x03\x04') and not zipfile.is_zipfile(part):
        return 'what came has no end, although it is as long as the server said'
    return ''


def _copy(answer, part: pathlib.Path, have: int, total: int) -> None:
    with (
        open(part, 'r+b' if have else 'wb') as file,
        tqdm(
            total=total, initial=have, unit='B', unit_scale=True, desc=part.stem, disable=None
        ) as bar,
    ):
        file.seek(have)
        while chunk := answer.read(2**20):
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
    if have != total:
        raise _Cut(f'{have:,} of {total:,} bytes came')
