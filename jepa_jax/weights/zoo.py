"""Names and paths -> weights.

Released files lie in a cache folder, $JEPA_JAX_CACHE/weights or ~/.cache/jepa_jax/weights: a file
that is not there is downloaded, its hash is noted when it is first used and holds from then on, and
it is converted once. Nobody has published hashes of the released files, so the first copy is
trusted as far as its length, as the server tells it, and the table of its arrays' names and shapes.
Whoever knows a hash writes it behind a name or the path of a file, NAME@sha256:HEX: another file is
then refused, and one that was just downloaded is not kept.

A path that does not exist is never looked up on the Hugging Face hub: a name there is written
hf:OWNER/MODEL, except those of the release.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from jepa_jax import fetched, files, workdir
from jepa_jax.bucket import is_url
from jepa_jax.config import cache_root
from jepa_jax.errors import BucketError, ConfigError, ConvertError, ZooError
from jepa_jax.models import SIZES
from jepa_jax.weights import bundled, download
from jepa_jax.weights.contents import Weights
from jepa_jax.weights.names import (
    BUNDLED,
    HUB,
    PIN,
    PUBLISHED,
    RANDOM,
    RELEASED,
    Released,
    pinned,
    unknown,
)
from jepa_jax.weights.parts import called
from jepa_jax.weights.read import read, robot_in
from jepa_jax.weights.write import write

log = logging.getLogger(__name__)


def find(name_or_path: str | os.PathLike, **options: Any) -> Weights:
    """What a name or path stands for; nothing is read before it is needed.

    Args:
      name_or_path: a key of RELEASED or ALIASES; a path of anything that `read` takes; a name of
        the Hugging Face hub as hf:OWNER/MODEL, with the extra [hf]; those of PUBLISHED need no
        `hf:`. A released name and the path of a file may end with @sha256:HEX.
      options: as of `read`, for a path.

    Raises:
      ZooError: no such name or path, a file that cannot be had, or one that is not what it was.
      ConvertError, CheckpointError: weights that do not fit.
    """
    text, pin = pinned(name_or_path)
    options = {name: v for name, v in options.items() if _said(v) or name == 'weights_only'}
    if text in RELEASED:
        refuse_options(text, options)
        return _released(text, pin)
    path = os.path.expanduser(text)
    if text in BUNDLED:
        refuse_options(text, options | ({'sha256': pin} if pin else {}))
        return bundled.read(text)
    path = _here(path)
    if pin:
        check_file(path, pin)
    if not os.path.exists(path) and (text.startswith(HUB) or text in PUBLISHED):
        path = _hugging_face(text.removeprefix(HUB))
    if os.path.exists(path):
        return read(path, **{'weights_only': True, **options})
    if text.startswith(RANDOM):
        raise ZooError(f"model '{text}': drawn weights do not serve here: name trained ones")
    raise unknown(text)


def _here(path: str) -> str:
    """A path; of what lies in a bucket, that of its copy. Raises ZooError."""
    if not is_url(path):
        return path
    try:
        return str(fetched.model(path))
    except (ConfigError, BucketError) as error:
        raise ZooError(f"model '{path}': {error}") from error


def robot_of(name_or_path: str | os.PathLike) -> dict[str, Any]:
    """As `find(...).robot`, without a look at arrays; of a name alone nothing is known.

    Raises: as `find`.
    """
    text, _ = pinned(name_or_path)
    path = os.path.expanduser(text)
    if text in RELEASED or text in BUNDLED or not os.path.exists(path := _here(path)):
        return {}
    return robot_in(path)


def check_file(path: str | os.PathLike, pin: str) -> None:
    """Raises ZooError if a file has not the hash of a pin."""
    if not os.path.isfile(path):
        raise ZooError(f'{path}{pin}: no such file; only a file has a SHA-256')
    if (digest := _hash(path)) != pin.removeprefix(PIN):
        raise ZooError(f'{path} has SHA-256 {digest}, expected {pin.removeprefix(PIN)}')


def _hash(path: str | os.PathLike) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def refuse_options(text: str, options: dict[str, Any]) -> None:
    """Raises ZooError for options of `read` beside a name that says all of it."""
    if chosen := [name for name, value in options.items() if _said(value)]:
        raise ZooError(f"'{text}' is a name: its {', '.join(chosen)} cannot be chosen")


def _said(value: Any) -> bool:
    """Whether an option has a value; a number does, 0 included, which `read` refuses."""
    return bool(value) or type(value) is int


THOROUGH = {'weights_only': False, 'allow_nonfinite': True}


@dataclasses.dataclass(frozen=True)
class Sources:
    """Weights and the files that they are in."""

    weights: Weights
    files: tuple[pathlib.Path, ...]


def look(name_or_path: str | os.PathLike) -> Sources:
    """What `find` would find, with its files; a released file is hashed again if it is there.

    Raises: as `find`.
    """
    text, pin = pinned(name_or_path)
    named = text in RELEASED or text in BUNDLED  # which says all that could be chosen
    # all that is there, whatever its numbers are: they are looked at one by one
    try:
        weights = find(text + pin, **({} if named else THOROUGH))
    except ConvertError as error:  # an optimizer that is not understood is no fault of the nets
        if named:
            raise
        weights = find(text + pin, allow_nonfinite=True)
        notes = (*weights.notes, f'the optimizer is not looked at: {error}')
        weights = dataclasses.replace(weights, notes=notes)
    source = weights.source
    if text in RELEASED:
        original = cache_folder() / local_name(RELEASED[text])
        if original.exists():
            check_record(original, thorough=True)
            return Sources(weights, (original,))
    if source.is_file():
        return Sources(weights, (source,))
    # our own checkpoints have been held against their manifest of hashes when they were read
    return Sources(weights, tuple(sorted(source.glob('*.safetensors'))))


# Released files


def cache_folder() -> pathlib.Path:
    """Where released files and what is made of them lie."""
    return cache_root() / 'weights'


def _released(name: str, pin: str = '') -> Weights:
    """Weights of a key of RELEASED, converted when it is first used."""
    row, folder = RELEASED[name], cache_folder()
    source, converted = folder / local_name(row), folder / name
    with _alone(folder):
        if not converted.is_dir():
            if not source.exists():
                download.download(download.address(row.file, row.folder), source)
                if pin:
                    _keep_only(source, pin)
            digest = check_record(source)
            _as_pinned(source, pin)
            # older releases have tables of positions, which say it
            options = {} if row.folder else {'crop': row.crop}
            weights = read(source, weights_only=True, **options)
            _as_named(name, row, source, weights)
            log.info('%s: converting once, to %s', name, converted)
            write(weights, converted, to='jax')
            log.info('%s: sha256 %s', source, digest)
        else:
            if source.exists():
                check_record(source)
            _as_pinned(source, pin)
    weights = read(converted)
    told = {'released': name} if 'ac_predictor' in weights.nets else {}
    return dataclasses.replace(weights, robot=told)


def local_name(row: Released) -> str:
    return row.local or pathlib.Path(row.file).name


def _keep_only(source: pathlib.Path, pin: str) -> None:
    """Removes a file that has another hash. Raises ZooError."""
    try:
        check_file(source, pin)
    except ZooError:
        source.unlink()
        raise


def _as_pinned(source: pathlib.Path, pin: str) -> None:
    """Raises ZooError if the hash that was noted of a released file is another."""
    if not pin:
        return
    try:
        noted = json.loads(record_of(source).read_text())['sha256']
    except (OSError, ValueError, KeyError, TypeError):
        noted = 'unknown'
    if noted != pin.removeprefix(PIN):
        raise ZooError(f'{source} has SHA-256 {noted}, expected {pin.removeprefix(PIN)}')


def _as_named(name: str, row: Released, source: pathlib.Path, weights) -> None:
    """Refuses a file that holds something else than its name says."""
    if row.probe_of:
        pooler, width = (weights.probe or [None])[0], SIZES[row.size].width
        if pooler is None or pooler.width != width:
            text = f'a probe of width {pooler.width}' if pooler else ', '.join(weights.nets)
            raise ZooError(f'{source} should be the probe {name} of width {width}, holds {text}')
        return
    said, held = (f'size {x.size}, {called(x.version)}' for x in (row, weights))
    if said != held:
        raise ZooError(f'{source} should be {name} of {said}, holds {held}')


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """One process at a time downloads or converts; the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info('%s: waiting for another process that works in it', folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def record_of(path: pathlib.Path) -> pathlib.Path:
    """The file beside a released file that holds its hash."""
    return path.with_name(path.name + '.json')


def check_record(path: pathlib.Path, thorough: bool = False) -> str:
    """The SHA-256 of a file, noted at first use and the same from then on.

    thorough: hash it again even if size and time of change are as noted.

    Raises:
      ZooError: the file is not what it was.
    """
    record, status = record_of(path), path.stat()
    noted = None
    if record.exists():
        with files.raising(ZooError):
            noted = files.read_json(record)
        stamp, digest = (noted.get('bytes'), noted.get('changed')), noted.get('sha256')
        if not isinstance(digest, str) or 'first_used' not in noted:
            raise ZooError(f'{record} is damaged: remove it')
    if noted and not thorough and stamp == (status.st_size, status.st_mtime_ns):
        return digest
    sha256 = _hash(path)
    if noted and sha256 != digest:
        raise ZooError(
            f'{path} has SHA-256 {sha256}, and had {digest} when first used: damaged or replaced; '
            f'remove it to download it again, or {record.name} and the converted folder if it is '
            'meant'
        )
    row = {'bytes': status.st_size, 'changed': status.st_mtime_ns, 'sha256': sha256}
    when = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
    first = noted['first_used'] if noted else when
    workdir.write_json(record, row | {'first_used': first})
    return sha256


def _hugging_face(name: str) -> str:
    """The folder of a Hugging Face model in that library's own cache."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ZooError(
            f"model '{name}' of the Hugging Face hub needs `pip install 'jepa_jax[hf]'`"
        ) from error
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=['*.json', '*.safetensors'])
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        first = error.__cause__ or error  # the hub's own words come after what went wrong
        raise ZooError(
            f"model '{name}' cannot be had from the Hugging Face hub "
            f'({" ".join(str(first).split())[:200] or type(first).__name__}): get its *.json and '
            '*.safetensors elsewhere, put them into a folder and give that, --model FOLDER, or set '
            'HF_ENDPOINT to a mirror of the hub'
        ) from error
