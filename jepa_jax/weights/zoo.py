"""Names and paths -> models with weights.

    model = jepa_jax.load('vitl')

Released files lie in a cache folder, $JEPA_JAX_CACHE/weights or ~/.cache/jepa_jax/weights: a file
that is not there is downloaded, its hash is noted when it is first used and holds from then on, and
it is converted once. Nobody has published hashes of the released files, so the first copy is
trusted as far as its length, as the server tells it, and the table of its arrays' names and shapes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import http.client
import json
import logging
import os
import pathlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jepa_jax.config import cache_root
from jepa_jax.errors import ZooError, nearest
from jepa_jax.features import Model, Part, Probe
from jepa_jax.models import SIZES
from jepa_jax.models.predictor import Predictor, PredictorConfig
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import ONCE, Net

log = logging.getLogger(__name__)

SERVER = 'https://dl.fbaipublicfiles.com/vjepa2/'  # or $JEPA_JAX_WEIGHTS_URL, a mirror of it
ATTEMPTS = 5  # at a download in a row that bring nothing
WAIT = 1.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = 60.0  # seconds without a byte
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Released:
    """A file of the original's release. (reference: vjepa2 §10.2)"""

    file: str  # below the server's address
    size: str  # a key of SIZES
    crop: int  # pixels
    probe_of: str = ''  # the model whose features a probe reads; empty: no probe
    reads: str | tuple[int, ...] = 'last'  # and the rest: see features.Probe (reference: §11.2)
    frames: int = 16
    step: int = 4
    segments: int = 1


_LEVELS_L, _LEVELS_G = (17, 19, 21, 23), (24, 29, 34, 39)
RELEASED = {
    'vitl': Released('vitl.pt', 'vitl', 256),
    'vith': Released('vith.pt', 'vith', 256),
    'vitg': Released('vitg.pt', 'vitg', 256),
    'vitg-384': Released('vitg-384.pt', 'vitg', 384),
    'ac-vitg': Released('vjepa2-ac-vitg.pt', 'vitg', 256),
    'ssv2-vitl-16x2x3': Released(
        'evals/ssv2-vitl-16x2x3.pt', 'vitl', 256, 'vitl', frames=16, step=4, segments=2
    ),
    'diving48-vitl-256': Released(
        'evals/diving48-vitl-256.pt', 'vitl', 256, 'vitl', _LEVELS_L, frames=32, step=2, segments=4
    ),
    'ek100-vitl-256': Released(
        'evals/ek100-vitl-256.pt', 'vitl', 256, 'vitl', 'future', frames=32
    ),
    'ssv2-vitg-384-64x2x3': Released(
        'evals/ssv2-vitg-384-64x2x3.pt', 'vitg', 384, 'vitg-384', frames=64, step=2, segments=2
    ),
    'diving48-vitg-384-32x4x3': Released(
        'evals/diving48-vitg-384-32x4x3.pt', 'vitg', 384, 'vitg-384', _LEVELS_G,
        frames=32, step=2, segments=4,
    ),
    'ek100-vitg-384': Released(
        'evals/ek100-vitg-384.pt', 'vitg', 384, 'vitg-384', 'future', frames=32
    ),
}  # fmt: skip


def load(
    name_or_path: str | os.PathLike,
    *,
    encoder: str = 'target',
    probe: str | os.PathLike | None = None,
    dtype: str = 'float32',
    seed: int = 0,
    crop: int | None = None,
    frames: int | None = None,
    heads: int | None = None,
    allow_missing: Iterable[str] = (),
) -> Model:
    """A model with weights; `model.about` says in lines what it is and what was chosen.

    Args:
      name_or_path: a key of RELEASED (of a probe: with the encoder that it reads); `random:NAME`
        for seeded random weights of a key of SIZES; a path of anything that `convert` reads; or the
        name OWNER/MODEL of a Hugging Face model, with the extra [hf].
      encoder: 'target', the moving average, which all published evaluations use, or 'online'. A
        source with one encoder serves either choice.
      probe: name or path of an attentive probe to read the features with.
      dtype: of matmul inputs: float32 or bfloat16.
      seed: of random weights.
      crop, frames, heads, allow_missing: as of `convert.read`, for a path.

    Raises:
      ZooError: no such name or path, a file that cannot be had, or one that is not what it was.
      ConvertError, CheckpointError: weights that do not fit.
    """
    text = os.fspath(name_or_path)
    if encoder not in ('target', 'online'):
        raise ZooError(f"encoder '{encoder}': allowed are target, online")
    if dtype not in DTYPES:
        raise ZooError(f"dtype '{dtype}': allowed are {', '.join(DTYPES)}")
    if text.startswith('random:'):
        if probe is not None:
            raise ZooError(f"probe '{probe}' on {text}: random features mean nothing to a probe")
        return _random(text, dtype, seed)
    row = RELEASED.get(text)
    if row and row.probe_of:
        if probe is not None:
            raise ZooError(f"'{text}' is a probe already: give '{row.probe_of}' and one probe")
        return load(row.probe_of, encoder=encoder, probe=text, dtype=dtype)
    weights = _weights(text, crop=crop, frames=frames, heads=heads, allow_missing=allow_missing)
    return _model(text, weights, encoder, probe, dtype)


def _weights(text: str, **options: Any):
    """What a name or path stands for, as convert.Weights."""
    given = {name: value for name, value in options.items() if value}
    if text in RELEASED:
        if given:
            raise ZooError(f"'{text}' is a released file: {', '.join(given)} is known, not asked")
        return _released(text)
    path = os.path.expanduser(text)
    if not os.path.exists(path) and re.fullmatch(r'[\w-][\w.-]*/[\w.-]+', text):
        path = _hugging_face(text)
    if os.path.exists(path):
        from jepa_jax import convert

        return convert.read(path, weights_only=True, **given)
    names = [*RELEASED, *(f'random:{size}' for size in SIZES)]
    raise ZooError(
        f"model '{text}': no such file or folder, and no name{nearest(text, names)}; names are "
        f'{", ".join(RELEASED)} and random:SIZE'
    )


def _model(text: str, weights, encoder: str, probe, dtype: str) -> Model:
    part = weights.pick(encoder)
    config = weights.encoder
    about = [
        f'{text}: V-JEPA {weights.version}, {weights.size} ({config.depth} blocks, width '
        f'{config.width}, {config.heads} heads), crop {config.image_size}, from {weights.source} '
        f'({weights.format})'
    ]
    names = {'target': 'target (moving average)', 'encoder': 'online'}
    if {'target', 'encoder'} <= set(weights.trees):
        about.append(f'encoder: {names[part]}; the other choice is --encoder {_other(part)}')
    else:
        about.append(f'encoder: {names[part]}, the only one there')
    about += weights.notes
    about.append(f'computes in {dtype}')

    def part_of(name: str) -> Part | None:
        if name not in weights.trees:
            return None
        return Part(_typed(weights.config(name), dtype), _placed(weights, name))

    head = None
    if probe is not None:
        head = _probe(os.fspath(probe), text, config, dtype)
    elif weights.probe is not None:
        pooler, classes = weights.probe
        head = Probe(
            _typed(pooler, dtype), classes, _placed(weights, 'probe'),
            reads='future' if 'verb' in classes else 'last', labels=weights.labels,
        )  # fmt: skip
    if head:
        about.append(
            f'probe: {", ".join(f"{n} classes of {c}" for c, n in head.classes.items())}; reads '
            f'{_reads(head.reads)}, {head.segments} x {head.frames} frames'
        )
    return Model(
        Part(_typed(config, dtype), _placed(weights, part)),
        predictor=part_of('predictor'),
        ac_predictor=part_of('ac_predictor'),
        probe=head,
        about=about,
    )


def _reads(reads: str | tuple[int, ...]) -> str:
    words = {'last': 'the last block', 'future': 'the last block and predictions of 1 s later'}
    return words.get(reads) or 'blocks ' + ' '.join(map(str, reads))


def _other(part: str) -> str:
    return 'online' if part == 'target' else 'target'


def _probe(text: str, model: str, config: ViTConfig, dtype: str) -> Probe:
    """A probe's weights, and what it reads: known for a released one, else the last block."""
    row = RELEASED.get(text)
    weights = _weights(text)
    if weights.probe is None:
        raise ZooError(f"probe '{text}' holds {', '.join(weights.trees)}, but no probe")
    pooler, classes = weights.probe
    if pooler.width != config.width:
        raise ZooError(
            f"probe '{text}' reads features of width {pooler.width}, {model} has {config.width}"
        )
    settings: dict[str, Any] = {'reads': 'future' if 'verb' in classes else 'last'}
    if row:
        keys = ('reads', 'frames', 'step', 'segments')
        settings = {key: getattr(row, key) for key in keys}
    params = _placed(weights, 'probe')
    return Probe(_typed(pooler, dtype), classes, params, labels=weights.labels, **settings)


def _typed(config: Any, dtype: str) -> Any:
    return dataclasses.replace(config, dtype=jnp.dtype(dtype))


def _placed(weights, part: str) -> dict:
    """A part on the device, array by array: never all of it twice, and on a CPU nothing is copied,
    which jnp.asarray would do."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)), weights.trees[part])


def random_configs(size: str, dtype: str = 'float32') -> tuple[ViTConfig, PredictorConfig]:
    """Encoder and predictor of a named size, as in pretraining.

    Raises:
      ZooError: no such size.
    """
    if size not in SIZES:
        raise ZooError(f"size '{size}'{nearest(size, SIZES)}; sizes are {', '.join(SIZES)}")
    shape = SIZES[size]
    encoder = ViTConfig(
        shape.width, shape.depth, shape.heads, shape.mlp_ratio, dtype=jnp.dtype(dtype)
    )
    return encoder, PredictorConfig(shape.width, dtype=jnp.dtype(dtype))


def _random(text: str, dtype: str, seed: int) -> Model:
    size = text.removeprefix('random:')
    encoder, predictor = random_configs(size, dtype)
    e, p = jax.random.split(jax.random.key(seed))
    parts = [
        Part(config, jax.jit(net.init, compiler_options=ONCE)(key))
        for config, net, key in (
            (encoder, Net(lambda rngs: ViT(encoder, rngs=rngs)), e),
            (predictor, Net(lambda rngs: Predictor(predictor, rngs=rngs)), p),
        )
    ]
    about = [
        f'{text}: RANDOM weights (seed {seed}), nothing is trained, features mean nothing; '
        f'{encoder.depth} blocks, width {encoder.width}, {encoder.heads} heads',
        f'computes in {dtype}',
    ]
    return Model(parts[0], predictor=parts[1], about=about)


@dataclasses.dataclass(frozen=True)
class Found:
    """Weights and the files that they are in."""

    weights: Any  # convert.Weights
    files: tuple[pathlib.Path, ...]


def look(name_or_path: str | os.PathLike) -> Found:
    """What `load` would load, with its files; a released file is hashed again if it is there.

    Raises: as `load`.
    """
    text = os.fspath(name_or_path)
    weights = _weights(text)
    source = weights.source
    if text in RELEASED:
        original = cache_folder() / pathlib.Path(RELEASED[text].file).name
        if original.exists():
            check_record(original, thorough=True)
            return Found(weights, (original,))
    if source.is_file():
        return Found(weights, (source,))
    # our own checkpoints have been held against their manifest of hashes when they were read
    return Found(weights, tuple(sorted(source.glob('*.safetensors'))))


# Released files


def cache_folder() -> pathlib.Path:
    """Where released files and what is made of them lie."""
    return cache_root() / 'weights'


def _released(name: str):
    """Weights of a key of RELEASED, converted when it is first used."""
    from jepa_jax import convert

    row, folder = RELEASED[name], cache_folder()
    source, converted = folder / pathlib.Path(row.file).name, folder / name
    with _alone(folder):
        if not converted.is_dir():
            if not source.exists():
                download(_address(row.file), source)
            digest = check_record(source)
            weights = convert.read(source, crop=row.crop, weights_only=True)
            _as_named(name, row, source, weights)
            log.info('%s: converting once, to %s', name, converted)
            convert.write(weights, converted, to='jax')
            log.info('%s: sha256 %s', source, digest)
        elif source.exists():
            check_record(source)
    return convert.read(converted)


def _as_named(name: str, row: Released, source: pathlib.Path, weights) -> None:
    """Refuses a file that holds something else than its name says."""
    if row.probe_of:
        found, wanted = (weights.probe or [None])[0], SIZES[row.size].width
        if found is None or found.width != wanted:
            text = f'a probe of width {found.width}' if found else ', '.join(weights.trees)
            raise ZooError(f'{source} should be the probe {name} of width {wanted}, holds {text}')
    elif weights.size != row.size:
        raise ZooError(f'{source} should be {name} of size {row.size}, holds {weights.size}')


def _address(file: str) -> str:
    base = os.environ.get('JEPA_JAX_WEIGHTS_URL') or SERVER
    return base.rstrip('/') + '/' + file


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
    try:
        noted = json.loads(record.read_text())
        stamp = (noted['bytes'], noted['changed'])
        digest = noted['sha256']
    except FileNotFoundError:
        noted = None
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(f'{record} is damaged ({type(error).__name__}): remove it') from error
    if noted and not thorough and stamp == (status.st_size, status.st_mtime_ns):
        return digest
    with path.open('rb') as file:
        found = hashlib.file_digest(file, 'sha256').hexdigest()
    if noted and found != digest:
        raise ZooError(
            f'{path} has SHA-256 {found}, and had {digest} when first used: damaged or replaced; '
            f'remove it to download it again, or {record.name} and the converted folder if it is '
            'meant'
        )
    row = {'bytes': status.st_size, 'changed': status.st_mtime_ns, 'sha256': found}
    when = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
    first = noted['first_used'] if noted else when
    _write(record, json.dumps(row | {'first_used': first}, indent=2) + '\n')
    return found


def _write(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + '.new')
    temporary.write_text(text)
    os.replace(temporary, path)


# Downloading


class _Cut(Exception):
    """A connection that ended early: worth another attempt."""


class _Unreachable(_Cut):
    """No connection: worth another attempt if there was one before."""


def download(url: str, path: pathlib.Path) -> None:
    """Fetches a file; what a cut connection or a killed process left is gone on from.

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
    """Where the answer's bytes go on from, and the length of the whole file."""
    if answer.status == 206:
        span = re.fullmatch(r'bytes (\d+)-(\d+)/(\d+)', answer.headers.get('Content-Range', ''))
        if not span or int(span[1]) != have:
            found = answer.headers.get('Content-Range')
            raise _Cut(f'asked for bytes from {have}, the server sends {found}')
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


def _hugging_face(name: str) -> str:
    """The folder of a Hugging Face model in that library's own cache."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ZooError(
            f"model '{name}': no such folder; as a Hugging Face model it needs "
            "`pip install 'jepa_jax[hf]'`"
        ) from error
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=['*.json', '*.safetensors'])
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ZooError(
            f"model '{name}': no such folder, and not to be had from Hugging Face "
            f'({" ".join(str(error).split())[:200]})'
        ) from error
