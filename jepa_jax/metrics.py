"""What a run writes about itself: metrics.jsonl, a bar or lines on the screen, and what goes to
sinks (jepa_jax/sinks.py), TensorBoard events among them.

A row is one JSON object a line, `{"step": 20, "loss": 0.51, ...}`. JSON has no NaN or infinity: a
value that is not finite is the string "nan", "inf" or "-inf", which `read` turns back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jepa_jax import workdir as files
from jepa_jax.sinks import Events, Sink

log = logging.getLogger(__name__)

FILE = 'metrics.jsonl'
# What the clock decides; all other values of two equal runs are equal bit for bit.
TIMING_KEYS = (
    'clips_per_s',
    'data_wait_s',
    'overhead_s',
    'step_s',
    'compile_s',
    'tokens_per_s',
    'mfu',
    'memory_gib',
)


def clocked(name: str) -> bool:
    """Whether the clock decides a value."""
    return name in TIMING_KEYS or (name.startswith('evals/') and name.endswith('/seconds'))


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_FINITE = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a step is worth, over all devices."""

    flops: float  # forward and backward of what is useful (jepa_jax/flops.py)
    tokens: int  # of its clips, masked or not
    peak: float | None  # FLOP/s of all devices together; None where no figure is published


def speed(workloads: Sequence[Workload], seconds: float) -> dict[str, float]:
    """Metrics of steps that took `seconds` each: `tokens_per_s`; `mfu`, the share of the devices'
    published peak that was put to use, where there is one; `memory_gib`, the most that the first
    device has held so far, or this process on a CPU."""
    mean = sum(each.flops for each in workloads) / len(workloads)
    metrics = {'tokens_per_s': sum(each.tokens for each in workloads) / len(workloads) / seconds}
    if peak := workloads[0].peak:
        metrics['mfu'] = mean / seconds / peak
    return metrics | {'memory_gib': _peak_bytes() / 2**30}


def _peak_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats()  # None on CPUs
    if stats and 'peak_bytes_in_use' in stats:
        return stats['peak_bytes_in_use']
    unit = 1 if sys.platform == 'darwin' else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Metrics:
    """Writes rows; in processes other than 0 it does nothing."""

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        start_step: int,
        total_steps: int,
        sinks: Sequence[Sink] = (),
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Cuts the file back to the step that the run resumes from.

        Args:
          workdir: the run's folder, which exists.
          start_step: updates made so far; rows of later steps are removed, to be made again.
          total_steps: updates at the end of the run.
          sinks: closed with this.
          terminal: a bar (True) or lines (False); None: whether standard output is a terminal.
          clock: seconds, for the time left and the spacing of lines.

        Raises:
          OSError: the file cannot be read or written.
        """
        self._step, self._start, self._total = start_step, start_step, total_steps
        self._clock = clock
        self._began = self._printed = clock()
        self._unwritten = b''
        self._aside, self._steps_aside = 0.0, 0  # of compiling, and steps that had to
        self._sinks = list(sinks)
        self._file = self._bar = None
        if jax.process_index() != 0:
            return
        self._path = path = pathlib.Path(workdir) / FILE
        _cut_back(path, start_step)
        self._file = path.open('ab', buffering=0)
        if events := Events.open(pathlib.Path(workdir) / 'tensorboard', start_step):
            self._sinks.insert(0, events)
        if sys.stdout.isatty() if terminal is None else terminal:
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                file=sys.stdout,
                dynamic_ncols=True,
                bar_format='{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}',
            )

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a row, flushed; a full disk is logged and what is missing written with a later row.

        Args:
          step: updates made, more than in the row before.
          values: anything that `float` takes; `loss` is shown on the screen.

        Raises:
          ValueError: `step` does not increase.
        """
        if step <= self._step:
            raise ValueError(f'row of step {step} after step {self._step}: steps must increase')
        self._step = step
        if self._file is None:
            return
        row = {name: float(value) for name, value in values.items()}
        shown = {name: v if math.isfinite(v) else str(v) for name, v in row.items()}
        self._append(json.dumps({'step': step, **shown}, allow_nan=False) + '\n')
        self._tell('write', step, row)
        self._show(step, row)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Hands an image uint8 [H, W, 3] to the sinks."""
        self._tell('picture', step, name, image)

    def compiling(self) -> None:
        """Says so on the screen, where nothing moves until `compiled`."""
        if self._bar is not None:
            self._bar.set_postfix_str('compiling')
        elif self._file is not None and not self._aside:  # the log tells of those after the first
            self._print([f'step {self._step:,}/{self._total:,}', 'compiling'])

    def compiled(self, seconds: float, steps: int = 1) -> None:
        """Leaves seconds that went into compiling, and the steps that had to wait for it, out of
        the time left."""
        self._aside += seconds
        self._steps_aside += steps

    def _tell(self, call: str, *what: Any) -> None:
        """A sink that fails gets nothing more: what it holds may be torn."""
        for sink in list(self._sinks):
            try:
                getattr(sink, call)(*what)
            except sink.failures as error:
                self._sinks.remove(sink)
                words = ' '.join(str(getattr(error, 'strerror', None) or error).split())
                log.error('no more %s until the next start: %s', sink.title, words)
                with contextlib.suppress(sink.failures):
                    sink.close()

    def rows(self) -> list[dict[str, float]]:
        """Those of the steps before; none in processes other than 0."""
        return read(self._path.parent) if self._file is not None else []

    def close(self) -> None:
        """Ends the bar and closes the files."""
        if self._bar is not None:
            self._bar.close()
        self._tell('close')
        if self._file is not None:
            self._append('')
            if self._unwritten:
                log.error('the last %d bytes of %s are lost', len(self._unwritten), FILE)
            self._file.close()
        self._bar = self._file = None
        self._sinks = []

    def _append(self, line: str) -> None:
        waiting = bool(self._unwritten)
        self._unwritten += line.encode()
        try:
            while (
                self._unwritten
            ):  # a write may end in the middle of a line; the next goes on there
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not waiting:
                log.error('%s cannot be written, trying again: %s', FILE, error.strerror)

    def _show(self, step: int, row: Mapping[str, float]) -> None:
        now = self._clock()
        elapsed = now - self._began
        words = [f'loss {row["loss"]:.4f}'] if 'loss' in row else []
        if 'clips_per_s' in row and not row.get('compile_s'):
            words.append(f'{row["clips_per_s"]:.1f} clips/s')
        words.append(self._left(step, elapsed))
        if self._bar is not None:
            self._bar.set_postfix_str('  '.join(words), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        # often at first, when one wants to know whether it works; a line a minute in the long run
        due = now - self._printed >= min(60.0, max(2.0, elapsed / 20))
        if not due and step < self._total and self._printed != self._began:
            return
        self._printed = now
        self._print([f'step {step:,}/{self._total:,}', *words])

    def _left(self, step: int, elapsed: float) -> str:
        if not (steps := step - self._start - self._steps_aside):
            return 'all compiling so far' if step < self._total else '00:00 left'
        left = (elapsed - self._aside) / steps * (self._total - step)
        return f'{tqdm.format_interval(max(left, 0))} left'

    def _print(self, words: Sequence[str]) -> None:
        try:
            print('  '.join(words), flush=True)
        except OSError as error:  # a log on a full disk; the line stays in the stream's buffer
            if error.errno not in _FULL:
                raise


def read(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of a run, `step` an int; of a run at work, all but the line it is writing.

    Raises:
      OSError: there is no such file, or it cannot be read.
      ValueError: a line before the last one is not JSON.
    """
    path = pathlib.Path(workdir) / FILE
    parsed = _parse(path)
    for number, (_, row) in enumerate(parsed[:-1], 1):
        if row is None:
            raise ValueError(f'{path}, line {number}: not a row of metrics')
    rows = [row for _, row in parsed if row is not None]
    return [{k: _NOT_FINITE.get(v, v) for k, v in row.items()} for row in rows]


def _parse(path: pathlib.Path) -> list[tuple[str, dict[str, Any] | None]]:
    """Lines and what they hold; None for one that is torn or damaged."""
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines(keepends=True)
    return [(line, _row(line)) for line in lines]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith('\n') and isinstance(row, dict) and isinstance(row.get('step'), int)
    return row if whole else None


def _cut_back(path: pathlib.Path, start_step: int) -> None:
    if not path.exists():
        return
    parsed = _parse(path)
    broken = sum(row is None for _, row in parsed[:-1])
    if broken:
        log.warning('%s: %d damaged lines removed', path, broken)
    kept = [line for line, row in parsed if row is not None and row['step'] <= start_step]
    if len(kept) < len(parsed):
        log.info('%s: cut back to step %d, %d lines go', path, start_step, len(parsed) - len(kept))
        files.write_text(path, ''.join(kept))
