"""Saving and restoring with Orbax; a manifest of hashes tells a whole checkpoint from a torn one.

    checkpoints/
      20/               step 20: has a manifest, so it is complete
        manifest.json   format, step, extra, shape and type of arrays, size and SHA-256 of files
        state/...       the arrays by name, as Orbax keeps them
      saving-30-1/      a save under way, or what a killed run left: removed at the next start

A save goes into a folder of its own, hashes what arrived there, adds the manifest, and renames the
folder last: a folder with a number for a name is whole at every moment. A second attempt has
another folder than the first, because Orbax's threads live on for a while after a failed save and
spoil what is then written under the same name.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jepa_jax import workdir
from jepa_jax.errors import CheckpointError, Damaged

log = logging.getLogger(__name__)

MANIFEST = 'manifest.json'
FORMAT = 1
# From format v to v + 1: takes and returns a manifest. To rename an array, move its row in `leaves`
# to the new name; the row remembers what the array is called in the files.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

_UNFINISHED = 'saving-'
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


def _options(partial: bool = False) -> ocp.Context:
    logging.getLogger('absl').addFilter(_ORBAX)  # adding it again does nothing
    _silence_late_writes()
    context = ocp.Context()
    # zstd takes 8 % off float weights and 2.7 times as long, on cores that decode video meanwhile
    context.array.saving.use_compression = False
    context.array.saving.ocdbt_target_data_file_size = 2**29  # many files to hash at once, not two
    context.pytree.loading.partial_load = partial
    return context


def _named(tree: Any) -> dict[str, Any]:
    """Leaves as `{'params/encoder/norm/scale': leaf}`, whatever classes the tree is made of."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in pairs}


def _agree(value: int) -> int:
    """Process 0's value, in every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


# One checkpoint


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest, brought up to `FORMAT`.

    Returns:
      `format, step, saved, extra`; `leaves`: an array's name -> `shape, dtype, stored` (its name in
      the files); `files`: a path in the folder -> `bytes, sha256`.

    Raises:
      CheckpointError: there is none, or a newer program wrote it.
      Damaged: it is not what was written.
    """
    path = pathlib.Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        manifest, digest = content['manifest'], content['sha256']
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f'{folder} has no {MANIFEST}: unfinished or no checkpoint') from None
    except OSError as error:
        raise Damaged(f'{path} cannot be read: {error.strerror}') from error
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f'{path} is not a manifest ({type(error).__name__}: {error})') from error
    if _digest(manifest) != digest:
        raise Damaged(f'{path} differs from what was written (SHA-256)')
    found = manifest['format']
    if found > FORMAT:
        raise CheckpointError(f'{folder} has format {found}, known up to {FORMAT}: update jepa_jax')
    for name, row in manifest['leaves'].items():
        row['stored'] = name
    for version in range(found, FORMAT):
        if version not in UPGRADES:
            raise CheckpointError(f'{folder} has format {found}: no rule goes beyond {version}')
        manifest = {**UPGRADES[version](manifest), 'format': version + 1}
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _hash(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _hash_all(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.rglob('*') if path.is_file())
    with ThreadPoolExecutor(_HASHERS) as pool:
        rows = [
            {'bytes': path.stat().st_size, 'sha256': sha}
            for path, sha in zip(paths, pool.map(_hash, paths))
        ]
    return dict(zip((path.relative_to(folder).as_posix() for path in paths), rows))


def problems(folder: str | os.PathLike) -> list[str]:
    """What is wrong with a checkpoint's files, a line each; empty when every byte is as written.

    Reads everything, files in parallel: as fast as the disk, or 1.3 GB/s a core.

    Raises:
      CheckpointError: no manifest, or one of a newer format.
    """
    folder = pathlib.Path(folder)
    try:
        files = read_manifest(folder)['files']
    except Damaged as error:
        return [str(error)]

    def check(name: str, row: dict[str, Any]) -> str:
        path = folder / name
        try:
            if (size := path.stat().st_size) != row['bytes']:
                return f'{path} has {size:,} bytes, {row["bytes"]:,} were written'
            if _hash(path) != row['sha256']:
                return f'{path} differs from what was written (SHA-256)'
        except FileNotFoundError:
            return f'{path} is missing'
        except OSError as error:
            return f'{path} cannot be read: {error.strerror}'
        return ''

    with ThreadPoolExecutor(_HASHERS) as pool:
        return [line for line in pool.map(check, files.keys(), files.values()) if line]


def restore(
    folder: str | os.PathLike, abstract: Any, *, only: tuple[str, ...] = (), verify: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint onto the devices that `abstract` names.

    Args:
      folder: one checkpoint, as `find` returns it.
      abstract: pytree of `jax.ShapeDtypeStruct`. A sharding says where a leaf goes, on any mesh;
        one on an abstract mesh means the mesh of `jax.set_mesh`, none the default device.
      only: names of parts, as `('params', 'target')` or `('target/blocks',)`: just these are
        compared and read, and `abstract` holds just these. Empty: everything must match.
      verify: hash every file first; off only where `latest` has just done so.

    Returns:
      The state, of the classes that `abstract` is made of, and the `extra` saved with it.

    Raises:
      CheckpointError: an array is absent, unknown, or of another shape or type than asked for.
      Damaged: a file is not what was written.
    """
    folder = pathlib.Path(folder).absolute()
    manifest = read_manifest(folder)
    if verify:
        found = problems(folder) if jax.process_index() == 0 else []
        if _agree(len(found)):
            raise Damaged(_first(found) if found else f'{folder} is damaged, process 0 says where')
    stored = {n: r for n, r in manifest['leaves'].items() if not only or _under(n, only)}
    wanted = _named(abstract)
    _compare(folder, stored, wanted)
    with _options(partial=True):
        arrays = ocp.load(folder, {stored[n]['stored']: _placed(w) for n, w in wanted.items()})
    leaves = [arrays[stored[name]['stored']] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), manifest['extra']


def stored_abstract(folder: str | os.PathLike, *only: str) -> dict[str, Any]:
    """What a checkpoint holds, or its parts `only`: an `abstract` for `restore` without a model.

    Returns:
      Nested dicts of `jax.ShapeDtypeStruct`; a list or tuple is a dict with the keys '0', '1', ...

    Raises:
      CheckpointError: no manifest, a damaged one, or a typed random key among the parts.
    """
    tree: dict[str, Any] = {}
    for name, row in read_manifest(folder)['leaves'].items():
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
) -> None:
    """Writes one checkpoint, a few arrays at a time: for what would not fit into memory at once.

    Args:
      folder: must not exist; appears whole or not at all.
      arrays: by name, `params/encoder/norm/scale`; anything with shape, dtype and nbytes that
        np.asarray makes an array of, which happens when its turn comes.
      step, extra: for the manifest, as `Checkpoints.save` has them.
      progress: called with the number of bytes after each piece.

    Raises:
      CheckpointError: the folder exists, or the disk has too little room.
    """
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        raise CheckpointError(f'{folder} exists: choose a new folder or move it away')
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_room(folder.parent, sum(array.nbytes for array in arrays.values()))
    manifest = _manifest(arrays, step, extra)
    unfinished = folder.with_name(f'{_UNFINISHED}{folder.name}-{os.getpid()}')
    pieces: list[dict[str, Any]] = [{}]
    for name, array in arrays.items():
        if pieces[-1] and sum(a.nbytes for a in pieces[-1].values()) + array.nbytes > _PIECE:
            pieces.append({})
        pieces[-1][name] = array
    try:
        context = _options()
        context.memory.deepcopy_host_arrays = False  # nobody else has them
        with context:
            for piece in pieces:
                ocp.partial.save(unfinished, {n: np.asarray(a) for n, a in piece.items()})
                progress(sum(array.nbytes for array in piece.values()))
            ocp.partial.finalize(unfinished)
        manifest = {**manifest, 'files': _hash_all(unfinished)}
        content = {'manifest': manifest, 'sha256': _digest(manifest)}
        workdir.write_json(unfinished / MANIFEST, content)
        unfinished.rename(folder)
        workdir.sync_folder(folder.parent)
    except BaseException:
        for left in folder.parent.glob(f'{unfinished.name}*'):
            shutil.rmtree(left, ignore_errors=True)
        raise


def check_room(folder: pathlib.Path, need: int) -> None:
    """Raises CheckpointError if the disk of an existing folder has not `need` bytes free."""
    if lack := _lack(folder, need):
        raise CheckpointError(lack)


def _lack(folder: pathlib.Path, need: int) -> str:
    """What is wrong with writing `need` bytes of arrays into a folder; empty: nothing."""
    need, free = _SPARE * need, _free_bytes(folder)
    if free >= need:
        return ''
    return f'{need / 2**30:.3g} GiB needed, {free / 2**30:.3g} GiB free in {folder}'


def _manifest(arrays: Mapping[str, Any], step: int, extra: dict[str, Any]) -> dict[str, Any]:
    """All but the files, which are hashed when they are there."""
    manifest = {
        'format': FORMAT,
        'step': step,
        'saved': datetime.datetime.now().astimezone().isoformat(' ', 'seconds'),
        'extra': extra,
        'leaves': {name: _row(array) for name, array in arrays.items()},
    }
    json.dumps(manifest, allow_nan=False)  # a bad `extra` is a mistake, not a failed save
    return manifest


def _under(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(part + '/') for part in parts)


def _compare(folder: pathlib.Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    wrong = [f'{name} is not stored' for name in wanted if name not in stored]
    wrong += [f'{name} is stored but not expected' for name in stored if name not in wanted]
    for name in wanted.keys() & stored.keys():
        found, expected = _form(stored[name]), _form(_row(wanted[name]))
        if found != expected:
            wrong.append(f'{name} is stored as {found}, expected {expected}')
    if wrong:
        raise CheckpointError(f'{folder} does not fit: {_first(sorted(wrong))}')


def _row(leaf: Any) -> dict[str, Any]:
    return {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}


def _form(row: dict[str, Any]) -> str:
    return f'{row["dtype"]}[{",".join(map(str, row["shape"]))}]'


def _first(lines: list[str]) -> str:
    return lines[0] + (f' (and {len(lines) - 1} more)' if len(lines) > 1 else '')


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    elif isinstance(getattr(sharding, 'mesh', None), jax.sharding.AbstractMesh):
        # what jax.eval_shape gives; Orbax would fall back to the placement noted in the files
        sharding = jax.NamedSharding(jax.sharding.get_mesh(), sharding.spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


# The checkpoints of a run


def complete_steps(directory: str | os.PathLike) -> list[int]:
    """Steps whose checkpoint is complete, ascending; their bytes are not looked at."""
    folders = (path.parent.name for path in pathlib.Path(directory).glob(f'*/{MANIFEST}'))
    return sorted(int(name) for name in folders if name.isdecimal())


def newest_intact(directory: str | os.PathLike) -> tuple[int | None, set[int]]:
    """The newest complete step whose every byte is right, and the damaged ones passed over.

    Each damaged one is logged in a line that names the file.

    Raises:
      CheckpointError: all complete ones are damaged, or one has a newer format. To start from
        scratch over them must be somebody's decision.
    """
    directory = pathlib.Path(directory)
    damaged: dict[int, str] = {}
    newest, error = -1, None
    try:
        for step in reversed(complete_steps(directory)) if jax.process_index() == 0 else ():
            if not (found := problems(directory / str(step))):
                newest = step
                break
            damaged[step] = _first(found)
            log.error('checkpoint %d is damaged, trying the one before: %s', step, damaged[step])
        if damaged and newest < 0:
            raise CheckpointError(
                f'no checkpoint in {directory} is intact: {"; ".join(damaged.values())}. '
                'Move the folder away to start from scratch'
            )
    except CheckpointError as caught:  # the other processes wait for an answer
        newest, error = -2, caught
    newest = _agree(newest)
    if newest == -2:
        raise error or CheckpointError(f'no checkpoint in {directory} fits, process 0 says why')
    return (None if newest == -1 else newest), set(damaged)


def find(path: str | os.PathLike) -> pathlib.Path:
    """The checkpoint folder that a path means, as a user writes it.

    Args:
      path: a checkpoint, or a workdir or its checkpoints folder: then the newest intact one.

    Raises:
      CheckpointError: nothing there, or nothing usable.
    """
    path = pathlib.Path(path).expanduser().absolute()
    allowed = 'need a workdir, its checkpoints folder, or one of them'
    if not path.is_dir():
        raise CheckpointError(f'{path} is {"a file" if path.exists() else "absent"}: {allowed}')
    if (path / MANIFEST).exists():
        return path
    directory = path / 'checkpoints' if (path / 'checkpoints').is_dir() else path
    step, _ = newest_intact(directory)
    if step is None:
        raise CheckpointError(f'{path} holds no complete checkpoint: {allowed}')
    return directory / str(step)


class Checkpoints:
    """The checkpoints of one run, saved in the background. Open it under `workdir.lock`.

    Attributes:
      failures: saves that failed. The run and the checkpoints so far are untouched by a failure.
      last_error: why the latest save failed, one line; empty when it succeeded.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int, keep_every: int = 0):
        """Removes what a killed run left unfinished.

        Args:
          directory: made if need be.
          keep: how many of the newest to keep, at least 1.
          keep_every: keep multiples of this step besides; 0: none.

        Raises:
          CheckpointError: the folder cannot be made or written.
        """
        if keep < 1 or keep_every < 0:
            raise ValueError(f'keep {keep}, keep_every {keep_every}: at least 1 and 0 are allowed')
        self.directory = pathlib.Path(directory).absolute()
        self.keep, self.keep_every = keep, keep_every
        self.failures, self.last_error = 0, ''
        self._attempts = 0
        self._damaged: set[int] = set()  # found by latest(); replaced when the run gets there again
        self._verified: set[int] = set()
        self._pending: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
        self._made = not self.directory.exists()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                for folder in self._sweep():
                    log.warning('removed %s, a save that was not finished', folder)
        except OSError as error:
            raise CheckpointError(f'{self.directory} cannot hold checkpoints: {error}') from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Complete steps, ascending."""
        return complete_steps(self.directory)

    def latest(self) -> int | None:
        """The newest complete step whose every byte is right (`newest_intact`); None: no step."""
        self.wait()
        step, self._damaged = newest_intact(self.directory)
        if step is not None:
            self._verified.add(step)
        return step

    def restore(
        self, step: int, abstract: Any, *, only: tuple[str, ...] = ()
    ) -> tuple[Any, dict[str, Any]]:
        """As the function `restore`, without hashing again what `latest` has."""
        self.wait()
        verify = step not in self._verified
        return restore(self.directory / str(step), abstract, only=only, verify=verify)

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> bool:
        """Starts a save; returns when `state` is in host memory and may be donated or changed.

        One save at a time: waits for the one before. A step that is saved already stays as it is.

        Args:
          step: its number.
          state: pytree of jax arrays.
          extra: small and JSON-able; goes into the manifest.

        Returns:
          Whether a save is under way. A failure, now or later in the background, raises nothing: it
          is logged in one line, counted in `failures` and told in `last_error`.
        """
        self.wait()
        if _agree(step in self.steps() and step not in self._damaged):
            return False
        arrays = _named(state)
        manifest = _manifest(arrays, step, extra)
        self._attempts += 1
        folder = self.directory / f'{_UNFINISHED}{step}-{self._attempts}'
        try:
            lack = _lack(self.directory, sum(array.nbytes for array in arrays.values()))
            if not _agree(not lack):
                raise OSError(lack or 'another process has too little room')
            with _options():
                response = ocp.save_async(folder, arrays)
        except OSError as error:
            self._failed(step, error)
            return False
        self._pending = self._pool.submit(self._finish, folder, manifest, response)
        return True

    def wait(self) -> None:
        """Until the save under way has ended, well or not."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        """Waits for the save under way and ends the background thread; a folder made for nothing
        goes."""
        self.wait()
        self._pool.shutdown()
        if self._made and jax.process_index() == 0 and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _finish(
        self, folder: pathlib.Path, manifest: dict[str, Any], response: ocp.AsyncResponse[None]
    ) -> None:
        step = manifest['step']
        try:
            response.result()  # every process has written its part, and Orbax has committed
            if jax.process_index() == 0:
                self._publish(folder, manifest)
        except Exception as error:  # of a full disk TensorStore makes a ValueError, others others
            self._failed(step, error)
            return
        self.last_error = ''
        self._verified.add(step)
        if jax.process_index() == 0:
            self._retire()

    def _publish(self, folder: pathlib.Path, manifest: dict[str, Any]) -> None:
        manifest = {**manifest, 'files': _hash_all(folder)}
        workdir.write_json(folder / MANIFEST, {'manifest': manifest, 'sha256': _digest(manifest)})
        final = self.directory / str(manifest['step'])
        if final.exists():  # a damaged one
            _remove(final)
        folder.rename(final)
        workdir.sync_folder(self.directory)

    def _retire(self) -> None:
        """Removes, once a newer one is complete, what retention drops, and damaged ones."""
        intact = [s for s in self.steps() if s not in self._damaged or s in self._verified]
        kept = {*intact[-self.keep :]}
        kept |= {s for s in intact if self.keep_every and s % self.keep_every == 0}
        try:
            for step in set(self.steps()) - kept:
                _remove(self.directory / str(step))
            self._sweep()
        except OSError as error:
            log.warning('an old checkpoint cannot be removed yet: %s', error)
        self._damaged.clear()

    def _failed(self, step: int, error: Exception) -> None:
        reason = ' '.join(str(error).split()) or type(error).__name__
        self.failures += 1
        self.last_error = f'step {step} is not saved: {reason}'
        last = self.steps()[-1:] or ['none']
        log.error('%s; the last checkpoint is %s', self.last_error, last[0])
        # what Orbax had yet to wait for is dropped with warnings, at whatever moment
        warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
        if jax.process_index() == 0:
            try:
                self._sweep()
            except OSError as left:  # Orbax may be writing still
                log.warning('what it left goes with the next save or start: %s', left)

    def _sweep(self) -> list[pathlib.Path]:
        """Removes unfinished checkpoints and returns their paths; other files are not ours."""
        found = [
            path
            for path in self.directory.iterdir()
            if path.is_dir()
            and (
                path.name.startswith(_UNFINISHED)
                or (path.name.isdecimal() and not (path / MANIFEST).exists())
            )
        ]
        for folder in found:
            shutil.rmtree(folder)
        return found


def _free_bytes(directory: pathlib.Path) -> int:
    return shutil.disk_usage(directory).free


def _remove(folder: pathlib.Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)  # first: from here on it counts as unfinished
    shutil.rmtree(folder)
