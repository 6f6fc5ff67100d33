"""What lies in a bucket, copied here before it is read: lists, videos, shards and models."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

from jepa_jax import files, scratch
from jepa_jax.bucket import Bucket
from jepa_jax.config import cache_root
from jepa_jax.errors import ConfigError
from jepa_jax.workdir import write_json

log = logging.getLogger(__name__)

INDEX = 'index.json'
_MANIFEST = re.compile(r'checkpoints/(\d+)/manifest\.json')
_AT_ONCE = 8  # objects on their way; each is in memory


def model(url: str) -> Path:
    """The copy of a file or folder of weights; of a run's, what is read of it: the newest whole
    checkpoint, or the one that the address ends with.

    Raises: as `local`.
    """
    match = re.fullmatch(r'(.+)/checkpoints(/\d+)?', url.rstrip('/'))
    run, step = (match[1], match[2] or '') if match else (url, '')

    def needed(names: list[str]) -> list[str]:
        whole = {int(numbered[1]) for name in names if (numbered := _MANIFEST.fullmatch(name))}
        newest = step or (f'/{max(whole)}' if whole else '/none')
        return [
            name
            for name in names
            if name.startswith(f'checkpoints{newest}/')
            or name.split('/')[0] not in ('checkpoints', 'profile')
        ]

    return local(run, needed, about=step) / f'checkpoints{step}' if match else local(run, needed)


def local(
    url: str, needed: Callable[[list[str]], list[str]] = lambda names: names, about: str = ''
) -> Path:
    """The copy of an object, or of all objects below a prefix, in the cache folder; what is there
    already and has not changed is not read again. Processes of a machine share it.

    needed: of the names below a prefix, those to copy; about: what tells such a choice from others.

    Raises:
      ConfigError: no such address, or nothing is there.
      OSError: the bucket cannot be read, or the copy not be written.
    """
    bucket = Bucket(url)
    digest = hashlib.sha256(f'{bucket.url}{about}'.encode()).hexdigest()[:16]
    place = cache_root() / 'buckets' / f'data-{digest}'
    folder = place / 'files'
    folder.mkdir(parents=True, exist_ok=True)
    with (place / '.lock').open('w') as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # others wait, and then find it
        bucket.check()
        names = needed(bucket.names())
        single = '' if names else PurePath(bucket.url).name
        if single:
            bucket = Bucket(url, single=True)
        known = _known(place / INDEX)
        with files.raising(ConfigError):
            paths = {name: files.inside(folder, name) for name in names or [single]}
        states: dict[str, str] = {}

        def one(name: str) -> int:
            state = known.get(name, '') if paths[name].is_file() else ''
            asked = '' if single else name
            content, new = bucket.read(asked, unlike=bytes.fromhex(state))
            if content is None and new.hex() != state:
                raise ConfigError(f'{url}: nothing is there')
            states[name] = new.hex()
            if content is not None:
                _write(paths[name], content)
            return 0 if content is None else len(content)

        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                copied = sum(pool.map(one, paths))
        finally:
            write_json(place / INDEX, states)
        kept = set(paths.values())
        for path in folder.rglob('*'):
            if path.is_file() and path not in kept:
                path.unlink()
        if copied:
            log.info('copied %.3g MiB from %s to %s', copied / 2**20, url, folder)
    return folder / single


def _known(path: Path) -> dict[str, str]:
    """Object -> which state of it was copied."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads(path.read_text())
    return {}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch.whole(path) as file:
        file.write(content)
