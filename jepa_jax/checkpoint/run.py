"""The checkpoints of a run, saved in the background.

    checkpoints/
      20/            step 20: has a manifest, so it is complete
      saving-30-1/   a save under way, or what a killed run left: removed at the next start
    frozen/
      HASH/          a net that the run never trains, written once

A save goes into a folder of its own, hashes what arrived there, adds the manifest, and renames the
folder last: a folder with a number for a name is whole at every moment. A second attempt has
another folder than the first, because Orbax's threads live on for a while after a failed save and
spoil what is then written under the same name.
"""

from __future__ import annotations

import functools
import logging
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jepa_jax import distributed, fetched, workdir
from jepa_jax.bucket import is_url
from jepa_jax.checkpoint.files import (
    FROZEN,
    MANIFEST,
    UNFINISHED,
    agree,
    digest_of,
    first_of,
    hash_all,
    hash_arrays,
    lack_of_room,
    manifest_of,
    named,
    orbax_options,
    problems,
    restore,
    save_alone,
    write,
)
from jepa_jax.errors import BucketError, CheckpointError, ConfigError

log = logging.getLogger(__name__)


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
            if not (wrong := problems(directory / str(step))):
                newest = step
                break
            damaged[step] = first_of(wrong)
            log.error('checkpoint %d is damaged, trying the one before: %s', step, damaged[step])
        if damaged and newest < 0:
            raise CheckpointError(
                f'no checkpoint in {directory} is intact: {"; ".join(damaged.values())}. '
                'Move the folder away to start from scratch'
            )
    except CheckpointError as caught:  # the other processes wait for an answer
        newest, error = -2, caught
    newest = agree(newest)
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
    if is_url(path):
        try:
            path = fetched.model(str(path))
        except (ConfigError, BucketError) as error:
            raise CheckpointError(str(error)) from error
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

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int,
        keep_every: int = 0,
        publish: Callable[[], None] = lambda: None,
        shared: bool = True,
    ):
        """Removes what a killed run left unfinished.

        Args:
          directory: made if need be.
          keep: how many of the newest to keep, at least 1.
          keep_every: keep multiples of this step besides; 0: none.
          publish: called in process 0 after a save, which fails with it: jepa_jax.home.
          shared: all processes see the folder, and write their part of a save; else process 0
            gathers all of it and writes alone.

        Raises:
          CheckpointError: the folder cannot be made or written.
        """
        if keep < 1 or keep_every < 0:
            raise ValueError(f'keep {keep}, keep_every {keep_every}: at least 1 and 0 are allowed')
        self.directory = pathlib.Path(directory).absolute()
        self.keep, self.keep_every = keep, keep_every
        self._make_public, self._shared = publish, shared
        self.frozen: dict[str, str] = {}  # net -> hash of its weights, which names its folder
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

    def keep_frozen(self, nets: Mapping[str, Any]) -> None:
        """Writes nets that the run never trains, each once, for all checkpoints to refer to.

        nets: name -> parameters, numpy arrays.

        Raises:
          CheckpointError: the disk has too little room.
        """
        for name, params in nets.items():
            arrays = named({'frozen': {name: params}})
            self.frozen[name] = hash_arrays(arrays)
            folder = self.directory.parent / FROZEN / self.frozen[name]
            if agree((folder / MANIFEST).exists()):
                continue
            if jax.process_index() == 0:
                for left in folder.parent.glob(f'{UNFINISHED}{folder.name}-*'):  # by a killed run
                    shutil.rmtree(left)
            write(folder, arrays, step=0, extra={}, shared=self._shared)

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
        if agree(step in self.steps() and step not in self._damaged):
            return False
        arrays = named(state)
        manifest = manifest_of(arrays, step, extra, self.frozen)
        self._attempts += 1
        folder = self.directory / f'{UNFINISHED}{step}-{self._attempts}'
        try:
            lack = lack_of_room(self.directory, sum(array.nbytes for array in arrays.values()))
            if not agree(not lack):
                raise OSError(lack or 'another process has too little room')
            if not self._shared:
                arrays = {name: distributed.on_process_0(leaf) for name, leaf in arrays.items()}
                if jax.process_index():
                    return True
                written = functools.partial(save_alone, folder, arrays)
            else:
                with orbax_options():
                    written = ocp.save_async(folder, arrays).result
        except OSError as error:
            self._failed(step, error)
            return False
        self._pending = self._pool.submit(self._finish, folder, manifest, written)
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
        self, folder: pathlib.Path, manifest: dict[str, Any], written: Callable[[], None]
    ) -> None:
        """written: returns when all arrays are in the folder."""
        step = manifest['step']
        try:
            written()  # every process has written its part, and Orbax has committed
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
        manifest = {**manifest, 'files': hash_all(folder)}
        workdir.write_json(folder / MANIFEST, {'manifest': manifest, 'sha256': digest_of(manifest)})
        final = self.directory / str(manifest['step'])
        if final.exists():  # a damaged one
            _remove(final)
        folder.rename(final)
        workdir.sync_folder(self.directory)
        try:
            self._make_public()
        except BaseException:
            _remove(final)  # it would be passed for saved
            raise

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
        unfinished = [
            path
            for path in self.directory.iterdir()
            if path.is_dir()
            and (
                path.name.startswith(UNFINISHED)
                or (path.name.isdecimal() and not (path / MANIFEST).exists())
            )
        ]
        for folder in unfinished:
            shutil.rmtree(folder)
        return unfinished


def _remove(folder: pathlib.Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)  # first: from here on it counts as unfinished
    shutil.rmtree(folder)
