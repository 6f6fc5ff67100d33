"""Where metrics and pictures go besides metrics.jsonl: TensorBoard events, and the libraries of
config.logging.sinks, each through its own calls.

Which of their runs a workdir is stands in its sinks.json, so that one which resumes goes on there.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jepa_jax.config import RunConfig
from jepa_jax.errors import ConfigError
from jepa_jax.workdir import write_json

log = logging.getLogger(__name__)

FILE = 'sinks.json'


class Sink(Protocol):
    """Takes what a run tells; process 0's alone."""

    title: str  # for messages
    failures: type[Exception]  # after which it gets nothing more, and the run goes on

    def write(self, step: int, row: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """image: uint8 [H, W, 3]."""

    def close(self) -> None: ...


class Events:
    """TensorBoard events, written at once.

    tensorboardX's own SummaryWriter hands them to a thread: on a full disk that thread dies, its
    queue fills, and the run stands still.
    """

    title, failures = 'TensorBoard events', OSError

    def __init__(self, folder: Path, start_step: int):
        # tensorboardX imports PyTorch where it finds it, which takes seconds: what is written here
        # is numbers and numpy arrays. None in sys.modules is Python's "there is no such module"
        hidden = sys.modules.setdefault('torch', None) is None  # type: ignore[arg-type]
        try:
            from tensorboardX import summary
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.record_writer import RecordWriter
        finally:
            if hidden:
                del sys.modules['torch']

        self._event, self._summary = Event, summary
        folder.mkdir(exist_ok=True)
        host, now = socket.gethostname(), time.time_ns()
        name = f'events.out.tfevents.{now // 10**9}.{host}.{now}'  # TensorBoard reads in this order
        self._records = RecordWriter(str(folder / name))
        self._put(file_version='brain.Event:2')
        # TensorBoard drops what an earlier start wrote for this step and later ones
        self._put(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))

    @classmethod
    def open(cls, folder: Path, start_step: int) -> Events | None:
        try:
            return cls(folder, start_step)
        except ModuleNotFoundError as error:
            log.info('no TensorBoard events: %s (pip install tensorboardX)', error)
        except OSError as error:
            log.error('no TensorBoard events: %s', error)
        return None

    def write(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._put(step=step, summary=self._summary.scalar(name, value))
        self._records.flush()

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        shown = self._summary.image(name, image, dataformats='HWC')
        self._put(step=step, summary=shown)
        self._records.flush()

    def _put(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def close(self) -> None:
        try:
            self._records.close()
        except OSError as error:  # all rows were flushed, but for one whose failure is logged
            log.debug('TensorBoard events: %s', error.strerror)


class Wandb:
    title, failures = 'wandb', Exception  # a library's own, and those of its network

    def __init__(self, library: Any, config: RunConfig, workdir: Path, known: str):
        self.key = known or secrets.token_hex(4)
        self._image = library.Image
        self._run = library.init(
            project=config.logging.project, name=config.name, id=self.key, resume='allow',
            dir=str(workdir), config=dataclasses.asdict(config),
        )  # fmt: skip

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self._run.log({name: self._image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    title, failures = 'trackio', Exception

    def __init__(self, library: Any, config: RunConfig, workdir: Path, known: str):
        del workdir
        self._library = library
        self.key = known or f'{config.name}-{secrets.token_hex(3)}'  # its runs go by their names
        library.init(
            project=config.logging.project, name=self.key, resume='allow',
            config=dataclasses.asdict(config),
        )  # fmt: skip

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self._library.log(dict(row), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self._library.log({name: self._library.Image(image)}, step=step)

    def close(self) -> None:
        self._library.finish()


class Mlflow:
    title, failures = 'mlflow', Exception

    def __init__(self, library: Any, config: RunConfig, workdir: Path, known: str):
        del workdir
        self._library = library
        library.set_experiment(config.logging.project)
        run = library.start_run(run_id=known or None, run_name=config.name)
        self.key = run.info.run_id
        if not known:
            library.log_dict(dataclasses.asdict(config), 'config.json')

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self._library.log_metrics(dict(row), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self._library.log_image(image, key=name, step=step)

    def close(self) -> None:
        self._library.end_run()


SINKS = {'wandb': Wandb, 'mlflow': Mlflow, 'trackio': Trackio}  # config.parts.SINKS has the names


def opened(config: RunConfig, workdir: Path) -> list[Sink]:
    """Those that a config names; none in processes other than 0.

    Raises:
      ConfigError: a library says no: not logged in, no such server.
    """
    names = config.logging.sinks.split(',') if config.logging.sinks else []
    if jax.process_index() or not names:
        return []
    path = workdir / FILE
    known = json.loads(path.read_text()) if path.exists() else {}
    sinks: list[Sink] = []
    for name in names:
        try:
            sink = SINKS[name](
                importlib.import_module(name), config, workdir, known.get(name, '')
            )  # fmt: skip
        except Exception as error:  # whatever a library raises
            for other in sinks:
                other.close()
            words = ' '.join(str(error).split()) or type(error).__name__
            raise ConfigError(f"logging.sinks = '{name}': {words}") from error
        sinks.append(sink)
        known[name] = sink.key
    write_json(path, known)
    return sinks
