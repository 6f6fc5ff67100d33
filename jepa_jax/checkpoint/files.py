"""One folder of arrays, written and read with Orbax; a manifest of hashes tells whole from torn.

    20/
      manifest.json   format, step, extra, frozen, form of arrays, size and SHA-256 of files
      ...             the arrays by name, as Orbax keeps them

Arrays are `params/NET/...` (trained), `ema/NET/...` (moving averages), `opt_state/...`, `step` and
`frozen/NET/...`. Frozen nets of a run lie in folders of their own, `RUN/frozen/HASH`, to which the
manifests of its checkpoints refer, `frozen: {NET: HASH}`; whoever reads a checkpoint sees them as
if they were in it.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jepa_jax import files, scratch, workdir
from jepa_jax.config import store
from jepa_jax.errors import BadFile, CheckpointError, Damaged

log = logging.getLogger(__name__)

MANIFEST = 'manifest.json'
FORMAT = 2
FROZEN = 'frozen'  # folder of a run's frozen nets, beside its folder of checkpoints


def _averages_and_frozen(manifest: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had one tree, `target`: the encoder's average, or in runs on recordings of a robot,
    and what was converted of them, the frozen encoder."""
    place = 'frozen/encoder/' if store.on_recordings(manifest['extra']) else 'ema/encoder/'
    leaves = {
        place + name.removeprefix('target/') if name.startswith('target/') else name: row
        for name, row in manifest['leaves'].items()
    }
    return {**manifest, 'leaves': leaves, 'frozen': {}}


# From format v to v + 1: takes and returns a manifest. To rename an array, move its row in `leaves`
# to the new name; the row remembers what the array is called in the files.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _averages_and_frozen}

UNFINISHED = 'saving-'
_PIECE = 2**29  # bytes written at once by `write`, or one array if that is larger
_SPARE = 1.02  # disk asked for over the arrays' own size: indices, manifest, blocks
_CLOSED = 'Event loop is closed'  # asyncio's words
_HASHERS = min(8, os.cpu_count() or 1)  # threads; hashlib releases the interpreter's lock


class _Orbax(logging.Filter):
    """Makes debug messages of ours from Orbax's reports and tracebacks: what fails it also raises.

    It goes onto absl's logger, which other libraries share: theirs pass.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if f'{os.sep}orbax{os.sep}' not in record.pathname:
            return True
        log.debug('orbax: %s', record.getMessage())
        return False


_ORBAX = _Orbax()


@functools.cache
def _silence_late_writes() -> None:
    """Of a save that failed, TensorStore's other writes report for seconds to an event loop that
    Orbax has closed: a traceback for each array, on standard error."""
    before = sys.unraisablehook

    def hook(args: Any) -> None:
        if isinstance(args.exc_value, RuntimeError) and str(args.exc_value) == _CLOSED:
            log.debug('orbax: %s', args.exc_value)
        else:
            before(args)

    sys.unraisablehook = hook


# zstd takes 8 % off float weights and 2.7 times as long, on cores that decode video meanwhile
_COMPRESSED = False
_FILE = 2**29  # bytes of a file: many to hash at once, not two


def orbax_options(partial: bool = False) -> ocp.Context:
    logging.getLogger('absl').addFilter(_ORBAX)  # adding it again does nothing
    _silence_late_writes()
    context = ocp.Context()
    context.array.saving.use_compression = _COMPRESSED
    context.array.saving.ocdbt_target_data_file_size = _FILE
    context.pytree.loading.partial_load = partial
    return context


def save_alone(folder: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as `ocp.save` does, in one of several processes. Through the v1 interface all
    have a part in it, whatever its options say: they compare the name of the folder."""
    orbax_options()
    only = orbax.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()},
        barrier_sync_key_prefix=f'process_{jax.process_index()}',
    )  # fmt: skip
    tree = orbax.PyTreeCheckpointHandler(use_compression=_COMPRESSED, multiprocessing_options=only)
    handler = orbax.CompositeCheckpointHandler(
        composite_options=orbax.CompositeOptions(multiprocessing_options=only), pytree=tree
    )
    content = orbax.args.PyTreeSave(dict(arrays), ocdbt_target_data_file_size=_FILE)
    with orbax.Checkpointer(handler, multiprocessing_options=only) as saves:
        saves.save(folder, args=orbax.args.Composite(pytree=content))


def named(tree: Any) -> dict[str, Any]:
    """Leaves as `{'params/encoder/norm/scale': leaf}`, whatever classes the tree is made of."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in pairs}


def agree(value: int) -> int:
    """Process 0's value, in every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


# One checkpoint


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest, brought up to `FORMAT`.

    Returns:
      `format, step, saved, extra`; `frozen`: a frozen net -> the hash that names its folder;
      `leaves`: an array's name -> `shape, dtype, stored` (its name in the files); `files`: a path
      in the folder -> `bytes, sha256`.

    Raises:
      CheckpointError: there is none, or a newer program wrote it.
      Damaged: it is not what was written.
    """
    path = pathlib.Path(folder) / MANIFEST
    if not path.exists():
        raise CheckpointError(f'{folder} has no {MANIFEST}: unfinished or no checkpoint')
    try:
        content = files.read_json(path)
        manifest, digest = content['manifest'], content['sha256']
    except BadFile as error:
        raise Damaged(f'{path} is not a manifest ({error.reason}: {error.detail})') from error
    except KeyError as error:
        raise Damaged(f'{path} is not a manifest: it has no {error}') from error
    if digest_of(manifest) != digest:
        raise Damaged(f'{path} differs from what was written (SHA-256)')
    version = manifest.get('format') if isinstance(manifest, dict) else None
    if type(version) is int and version > FORMAT:
        raise CheckpointError(
            f'{folder} has format {version}, known up to {FORMAT}: update jepa_jax'
        )
    with files.raising(Damaged):
        problem = _misshapen(folder, manifest)
    if problem:
        raise Damaged(f'{path}: {problem}')
    for name, row in manifest['leaves'].items():
        row['stored'] = name
    for number in range(version, FORMAT):
        if number not in UPGRADES:
            raise CheckpointError(f'{folder} has format {version}: no rule goes beyond {number}')
        manifest = {**UPGRADES[number](manifest), 'format': number + 1}
    return manifest


def _misshapen(folder: str | os.PathLike, manifest: Any) -> str:
    """What of a manifest is not of the types that ours have, or claims too much; empty: nothing.

    Raises BadFile: its arrays are far larger than its files.
    """
    kinds = {'format': int, 'step': int, 'extra': dict, 'leaves': dict, 'files': dict}
    if not isinstance(manifest, dict):
        return 'no object'
    for key, kind in kinds.items():
        if type(manifest.get(key)) is not kind:
            return f'{key} is no {kind.__name__}'
    frozen = manifest.get('frozen', {})
    if not isinstance(frozen, dict) or not all(
        isinstance(digest, str) and re.fullmatch('[0-9a-f]{32}', digest)
        for digest in frozen.values()
    ):
        return 'frozen must be hashes by net'
    sizes = {}
    for name, row in manifest['leaves'].items():
        shape, dtype = (row.get('shape'), row.get('dtype')) if isinstance(row, dict) else (0, 0)
        if (
            not isinstance(shape, list)
            or not all(type(n) is int and 0 <= n < 2**48 for n in shape)
            or not isinstance(dtype, str)
            or not (dtype.startswith('key<') or _is_type(dtype))
        ):
            return f'{name[:100]!r} has no shape and type'
        item = 16 if dtype.startswith('key<') else jax.numpy.dtype(dtype).itemsize
        sizes[name] = math.prod(shape) * item
    held = 0
    for name, row in manifest['files'].items():
        if not isinstance(row, dict) or type(row.get('bytes')) is not int or 'sha256' not in row:
            return f'file {name[:100]!r} has no bytes and sha256'
        held += row['bytes']
    free = files.FREE_WEIGHTS
    files.bound_decoded(folder, max(sizes.values(), default=0), held, free)
    files.bound_decoded(folder, min(sum(sizes.values()), files.limits().decoded), held, free)
    return ''


def _is_type(name: str) -> bool:
    try:
        return jax.numpy.dtype(name).kind in 'biufcV'  # V: bfloat16 and its like
    except TypeError:
        return False


def frozen_folder(folder: pathlib.Path, digest: str) -> pathlib.Path:
    """Where the frozen net with that hash lies, to which a checkpoint of a run refers.

    Raises:
      CheckpointError: a link that leads elsewhere.
    """
    with files.raising(CheckpointError):
        return files.inside(folder.parent.parent / FROZEN, digest)


def leaves(folder: str | os.PathLike) -> dict[str, tuple[pathlib.Path, dict[str, Any]]]:
    """Every array of a checkpoint, and of the frozen nets that it refers to: its name -> the folder
    that holds it, and its row of that folder's manifest.

    Raises:
      CheckpointError: no manifest, or a frozen net is not there.
    """
    folder = pathlib.Path(folder).absolute()
    manifest = read_manifest(folder)
    rows = {name: (folder, row) for name, row in manifest['leaves'].items()}
    for net, digest in manifest['frozen'].items():
        place = frozen_folder(folder, digest)
        if not (place / MANIFEST).exists():
            raise CheckpointError(f'{folder} refers to the frozen {net} in {place}: it is absent')
        held = read_manifest(place)['leaves']
        rows |= {name: (place, row) for name, row in held.items()}
    return rows


def digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def hash_arrays(tree: Any) -> str:
    """A hash of names, types, shapes and values of a pytree's arrays, short enough to name a
    folder."""
    digest = hashlib.sha256()
    for name, leaf in named(tree).items():
        array = np.asarray(jax.device_get(leaf))
        digest.update(f'{name} {array.dtype} {array.shape} '.encode())
        # as bytes: numpy exports no bfloat16
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()[:32]


def _hash(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def hash_all(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.rglob('*') if path.is_file())
    with ThreadPoolExecutor(_HASHERS) as pool:
        rows = [
            {'bytes': path.stat().st_size, 'sha256': sha}
            for path, sha in zip(paths, pool.map(_hash, paths))
        ]
    return dict(zip((path.relative_to(folder).as_posix() for path in paths), rows))


def problems(folder: str | os.PathLike) -> list[str]:
    """What is wrong with the files of a checkpoint and of the frozen nets that it refers to, a line
    each; empty when every byte is as written.

    Reads everything, files in parallel: as fast as the disk, or 1.3 GB/s a core.

    Raises:
      CheckpointError: no manifest, or one of a newer format.
    """
    folder = pathlib.Path(folder)
    try:
        manifest = read_manifest(folder)
    except Damaged as error:
        return [str(error)]
    wrong = _wrong_files(folder, manifest['files'])
    for net, digest in manifest['frozen'].items():
        place = frozen_folder(folder, digest)
        if (place / MANIFEST).exists():
            wrong += problems(place)
        else:
            wrong.append(f'the frozen {net} is absent: {place}')
    return wrong


def _wrong_files(folder: pathlib.Path, rows: dict[str, Any]) -> list[str]:
    def check(name: str, row: dict[str, Any]) -> str:
        path = folder / name
        try:
            files.inside(folder, name)
            if path.exists() and not path.is_file():
                return f'{path} is not a regular file'
            if (size := path.stat().st_size) != row['bytes']:
                return f'{path} has {size:,} bytes, {row["bytes"]:,} were written'
            if _hash(path) != row['sha256']:
                return f'{path} differs from what was written (SHA-256)'
        except BadFile as error:
            return str(error)
        except FileNotFoundError:
            return f'{path} is missing'
        except OSError as error:
            return f'{path} cannot be read: {error.strerror}'
        return ''

    with ThreadPoolExecutor(_HASHERS) as pool:
        return [line for line in pool.map(check, rows.keys(), rows.values()) if line]


def restore(
    folder: str | os.PathLike, abstract: Any, *, only: tuple[str, ...] = (), verify: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint onto the devices that `abstract` names.

    Args:
      folder: one checkpoint, as `find` returns it.
      abstract: pytree of `jax.ShapeDtypeStruct`. A sharding says where a leaf goes, on any mesh;
        one on an abstract mesh means the mesh of `jax.set_mesh`, none the default device.
      only: names of parts, as `('params', 'ema')` or `('ema/encoder',)`: just these are
        compared and read, and `abstract` holds just these. Empty: everything must match.
      verify: hash every file first; off only where `latest` has just done so.

    Returns:
      The state, of the classes that `abstract` is made of, and the `extra` saved with it.

    Raises:
      CheckpointError: an array is absent, unknown, or of another shape or type than asked for.
      Damaged: a file is not what was written.
    """
    folder = pathlib.Path(folder).absolute()
    extra = read_manifest(folder)['extra']
    if verify:
        wrong = problems(folder) if jax.process_index() == 0 else []
        if agree(len(wrong)):
            raise Damaged(
                first_of(wrong) if wrong else f'{folder} is damaged, process 0 says where'
            )
    stored = {n: place for n, place in leaves(folder).items() if not only or _under(n, only)}
    asked = named(abstract)
    _compare(folder, {name: row for name, (_, row) in stored.items()}, asked)
    arrays: dict[str, Any] = {}
    for holder in {place: None for place, _ in stored.values()}:
        names = {n: row['stored'] for n, (place, row) in stored.items() if place == holder}
        with orbax_options(partial=True):
            held = ocp.load(holder, {names[n]: _placed(asked[n]) for n in names})
        arrays |= {name: held[name_in_files] for name, name_in_files in names.items()}
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[n] for n in asked]), extra


def read_on_host(folder: str | os.PathLike, part: str) -> dict[str, Any]:
    """What lies below a name such as `frozen/encoder`, as nested dicts of numpy arrays; the files
    must have been verified. Read array by array, so that no device holds all of it.

    Raises:
      CheckpointError: there is no such part.
    """
    tree: dict[str, Any] = {}
    for name, (holder, row) in leaves(folder).items():
        if not _under(name, (part,)):
            continue
        *parents, last = name.removeprefix(f'{part}/').split('/')
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)
        form = jax.ShapeDtypeStruct(row['shape'], jax.numpy.dtype(row['dtype']))
        with orbax_options(partial=True):
            held = ocp.load(holder, {row['stored']: _placed(form)})
        node[last] = np.asarray(held[row['stored']])
    if not tree:
        raise CheckpointError(f'{folder} holds no {part}')
    return tree


def stored_abstract(folder: str | os.PathLike, *only: str) -> dict[str, Any]:
    """What a checkpoint holds, or its parts `only`: an `abstract` for `restore` without a model.

    Returns:
      Nested dicts of `jax.ShapeDtypeStruct`; a list or tuple is a dict with the keys '0', '1', ...

    Raises:
      CheckpointError: no manifest, a damaged one, or a typed random key among the parts.
    """
    tree: dict[str, Any] = {}
    for name, (_, row) in leaves(folder).items():
        if only and not _under(name, only):
            continue
        if row['dtype'].startswith('key<'):
            raise CheckpointError(f'{folder}: {name} is a random key, its type needs a model')
        *parents, last = name.split('/')
        node = functools.reduce(lambda node, part: node.setdefault(part, {}), parents, tree)
        node[last] = jax.ShapeDtypeStruct(row['shape'], jax.numpy.dtype(row['dtype']))
    return tree


def write(
    folder: str | os.PathLike,
    arrays: Mapping[str, Any],
    *,
    step: int,
    extra: dict[str, Any],
    progress: Callable[[int], Any] = lambda size: None,
    shared: bool = True,
    beside: pathlib.Path | None = None,
) -> None:
    """Writes one checkpoint, a few arrays at a time: for what would not fit into memory at once.
    Of several processes all call it, as Orbax wants, with the same arrays.

    Args:
      folder: must not exist; appears whole or not at all.
      arrays: by name, `params/encoder/norm/scale`; anything with shape, dtype and nbytes that
        np.asarray makes an array of, which happens when its turn comes.
      step, extra: for the manifest, as `Checkpoints.save` has them.
      progress: called with the number of bytes after each piece.
      shared: all processes see the folder; else process 0 writes, all at once.
      beside: a folder to copy into it, under its own name.

    Raises:
      CheckpointError: the folder exists, or the disk has too little room.
    """
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        raise CheckpointError(f'{folder} exists: choose a new folder or move it away')
    folder.parent.mkdir(parents=True, exist_ok=True)
    lack = lack_of_room(folder.parent, sum(array.nbytes for array in arrays.values()))
    if not agree(not lack):
        raise CheckpointError(lack or 'process 0 has too little room, and says so')
    manifest = manifest_of(arrays, step, extra)
    # what a killed process left: a run's is swept by name, which its processes agree on
    alone = jax.process_count() == 1
    if alone:
        scratch.sweep(folder.parent)
    whose = scratch.mark() if alone else agree(os.getpid())
    unfinished = folder.with_name(f'{UNFINISHED}{folder.name}-{whose}')
    pieces: list[dict[str, Any]] = [{}]
    for name, array in arrays.items():
        if pieces[-1] and sum(a.nbytes for a in pieces[-1].values()) + array.nbytes > _PIECE:
            pieces.append({})
        pieces[-1][name] = array
    try:
        if shared:
            context = orbax_options()
            context.memory.deepcopy_host_arrays = False  # nobody else has them
            with context:
                for piece in pieces:
                    ocp.partial.save(unfinished, {n: np.asarray(a) for n, a in piece.items()})
                    progress(sum(array.nbytes for array in piece.values()))
                ocp.partial.finalize(unfinished)
        elif jax.process_index() == 0:
            save_alone(unfinished, {n: np.asarray(a) for n, a in arrays.items()})
        if jax.process_index() == 0:
            manifest = {**manifest, 'files': hash_all(unfinished)}
            content = {'manifest': manifest, 'sha256': digest_of(manifest)}
            workdir.write_json(unfinished / MANIFEST, content)
            if beside:
                shutil.copytree(beside, unfinished / beside.name)
            unfinished.rename(folder)
            workdir.sync_folder(folder.parent)
        agree(0)  # it is there for all of them
    except BaseException:
        for left in folder.parent.glob(f'{unfinished.name}*'):
            shutil.rmtree(left, ignore_errors=True)
        raise


def check_room(folder: pathlib.Path, need: int) -> None:
    """Raises CheckpointError if the disk of an existing folder has not `need` bytes free."""
    if lack := lack_of_room(folder, need):
        raise CheckpointError(lack)


def lack_of_room(folder: pathlib.Path, need: int) -> str:
    """What is wrong with writing `need` bytes of arrays into a folder; empty: nothing."""
    need, free = _SPARE * need, free_bytes(folder)
    if free >= need:
        return ''
    return f'{need / 2**30:.3g} GiB needed, {free / 2**30:.3g} GiB free in {folder}'


def manifest_of(
    arrays: Mapping[str, Any], step: int, extra: dict[str, Any], frozen: Mapping[str, str] = {}
) -> dict[str, Any]:
    """All but the files, which are hashed when they are there."""
    manifest = {
        'format': FORMAT,
        'step': step,
        'saved': datetime.datetime.now().astimezone().isoformat(' ', 'seconds'),
        'extra': extra,
        'frozen': dict(frozen),
        'leaves': {name: _row(array) for name, array in arrays.items()},
    }
    json.dumps(manifest, allow_nan=False)  # a bad `extra` is a mistake, not a failed save
    return manifest


def _under(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(part + '/') for part in parts)


def _compare(folder: pathlib.Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    wrong = [f'{name} is not stored' for name in asked if name not in stored]
    wrong += [f'{name} is stored but not expected' for name in stored if name not in asked]
    for name in asked.keys() & stored.keys():
        held, expected = _form(stored[name]), _form(_row(asked[name]))
        if held != expected:
            wrong.append(f'{name} is stored as {held}, expected {expected}')
    if wrong:
        raise CheckpointError(f'{folder} does not fit: {first_of(sorted(wrong))}')


def _row(leaf: Any) -> dict[str, Any]:
    return {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}


def _form(row: dict[str, Any]) -> str:
    return f'{row["dtype"]}[{",".join(map(str, row["shape"]))}]'


def first_of(lines: list[str]) -> str:
    return lines[0] + (f' (and {len(lines) - 1} more)' if len(lines) > 1 else '')


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    elif isinstance(getattr(sharding, 'mesh', None), jax.sharding.AbstractMesh):
        # what jax.eval_shape gives; Orbax would fall back to the placement noted in the files
        sharding = jax.NamedSharding(jax.sharding.get_mesh(), sharding.spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def free_bytes(directory: pathlib.Path) -> int:
    return shutil.disk_usage(directory).free
