"""Fetching the released files."""

from __future__ import annotations

import http.client
import logging
import os
import pathlib
import re
import time
import urllib.error
import urllib.request

from tqdm import tqdm

from jepa_jax.errors import ZooError

log = logging.getLogger(__name__)

SERVER = 'https://dl.fbaipublicfiles.com/vjepa2/'  # or $JEPA_JAX_WEIGHTS_URL, a mirror of it
ATTEMPTS = 5  # at a download in a row that bring nothing
WAIT = 1.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = 60.0  # seconds without a byte


def address(file: str) -> str:
    """Of a file below the server's address."""
    base = os.environ.get('JEPA_JAX_WEIGHTS_URL') or SERVER
    return base.rstrip('/') + '/' + file


class _Cut(Exception):
    """A connection that ended early: worth another attempt."""


class _Unreachable(_Cut):
    """No connection: worth another attempt if there was one before."""


def download(url: str, path: pathlib.Path) -> None:
    """Fetches a file; what a cut connection or a killed process left is completed.

    Raises:
      ZooError: it cannot be had; says where to put it by hand.
    """
    part, idle, wait, reached = path.with_name(path.name + '.part'), 0, WAIT, False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _continue(url, part)
            break
        except _Cut as cut:
            gained = (part.stat().st_size if part.exists() else 0) > before
            reached |= not isinstance(cut, _Unreachable)
            idle, wait = (1, WAIT) if gained else (idle + 1, wait * 2)
            if idle >= ATTEMPTS or not reached:
                raise _by_hand(url, path, str(cut)) from cut
            log.info('%s: %s; again in %g s', url, cut, wait)
            time.sleep(wait)
        except urllib.error.HTTPError as error:
            raise _by_hand(url, path, f'the server says {error.code} {error.reason}') from error
    os.replace(part, path)
    _tag(part).unlink(missing_ok=True)


def _by_hand(url: str, path: pathlib.Path, why: str) -> ZooError:
    return ZooError(
        f'{path} is not there and cannot be downloaded ({why}): get {url} elsewhere and put it '
        f'there, or set JEPA_JAX_WEIGHTS_URL to a mirror of {SERVER}'
    )


def _tag(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(part.name + '.tag')


def _continue(url: str, part: pathlib.Path) -> None:
    """One connection; returns when the file is whole. Raises _Cut, HTTPError."""
    have = part.stat().st_size if part.exists() else 0
    tag = _tag(part)
    headers = {'User-Agent': 'jepa_jax'}
    if have:
        headers['Range'] = f'bytes={have}-'
        if tag.exists():  # the server starts anew if its file is another by now
            headers['If-Range'] = tag.read_text()
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            have, total = _extent(answer, have)
            if etag := answer.headers.get('ETag'):
                if not etag.startswith('W/'):  # a weak one may not stand in If-Range
                    tag.write_text(etag)
            _copy(answer, part, have, total)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # we hold more than there is: start anew
            part.unlink(missing_ok=True)
            raise _Cut(f'{have:,} bytes are more than the server has') from error
        if error.code >= 500 or error.code == 429:
            raise _Cut(f'the server says {error.code} {error.reason}') from error
        raise
    except urllib.error.URLError as error:
        raise _Unreachable(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(str(error) or type(error).__name__) from error


def _extent(answer, have: int) -> tuple[int, int]:
    """Where in the file the answer's bytes begin, and the length of the whole file."""
    if answer.status == 206:
        span = re.fullmatch(r'bytes (\d+)-(\d+)/(\d+)', answer.headers.get('Content-Range', ''))
        if not span or int(span[1]) != have:
            sent = answer.headers.get('Content-Range')
            raise _Cut(f'asked for bytes from {have}, the server sends {sent}')
        return have, int(span[3])
    length = answer.headers.get('Content-Length')
    if not length:
        raise _Cut('the server does not tell how long the file is')
    return 0, int(length)


def _copy(answer, part: pathlib.Path, have: int, total: int) -> None:
    with (
        open(part, 'r+b' if have else 'wb') as file,
        tqdm(total=total, initial=have, unit='B', unit_scale=True, desc=part.stem) as bar,
    ):
        file.seek(have)
        while chunk := answer.read(2**20):
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
    if have != total:
        raise _Cut(f'{have:,} of {total:,} bytes came')
