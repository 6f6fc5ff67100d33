"""The only training loop. An objective brings nets and loss, a pipeline batches; the rest is the
same for all."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import optax

from jepa_jax import distributed, optim
from jepa_jax.checkpoint import Checkpoints
from jepa_jax.config import MaskedVideoConfig
from jepa_jax.data import Batch
from jepa_jax.data.stream import FailureLog
from jepa_jax.data.videos import VideoStream
from jepa_jax.errors import Interrupted, TrainingError
from jepa_jax.metrics import Cost, Metrics, speed
from jepa_jax.sharding import put_batch
from jepa_jax.state import TrainState
from jepa_jax.step import first_nonfinite, make_step

log = logging.getLogger(__name__)

PROFILED = range(2, 5)  # the first compiles; those with other shapes may, too


@dataclasses.dataclass
class Clock:
    """What wall time was spent on, seconds."""

    data: float = 0.0  # devices waiting for a batch
    step: float = 0.0  # devices at work, compilations apart
    steps: int = 0  # counted in `step`
    compile: float = 0.0  # first steps of their shapes
    compiled: int = 0  # counted in `compile`

    def add(self, step: float, wait: float, compiled: bool) -> None:
        self.data += wait
        if compiled:
            self.compile, self.compiled = self.compile + step, self.compiled + 1
        else:
            self.step, self.steps = self.step + step, self.steps + 1

    def merge(self, other: Clock) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def rates(self, clips: int) -> dict[str, float]:
        """Per-step means as metrics, for steps of so many clips; compiling counts only if every
        step compiled."""
        seconds, steps = (self.step, self.steps) if self.steps else (self.compile, self.compiled)
        step, wait = seconds / steps, self.data / steps
        return {'step_s': step, 'data_wait_s': wait, 'clips_per_s': clips / (step + wait)}

    def verdict(self) -> str:
        """Which part of the machine a faster run would need."""
        share = self.data / max(self.data + self.step, 1e-9)
        word = 'data-bound' if share > 0.1 else 'compute-bound'
        return f'{word}: devices waited for batches {share:.0%} of the time'


@contextlib.contextmanager
def _termination() -> Iterator[list[int]]:
    """A list that a SIGTERM adds to, in place of ending the process."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


class _Trace:
    """Records steps PROFILED into a folder; nothing without one."""

    def __init__(self, folder: pathlib.Path | None):
        self._folder, self._running = folder, False

    def __enter__(self) -> _Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def step(self, n: int, number: int) -> contextlib.AbstractContextManager:
        """Around step n, the number-th since the start from 0."""
        if self._folder and number == PROFILED.start:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # its calls would fill the trace
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True
        if number == PROFILED.stop:
            self._stop()
        return jax.profiler.StepTraceAnnotation('step', step_num=n)

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            log.info('trace of steps %s: %s', _span(PROFILED), self._folder)


def _span(steps: range) -> str:
    return f'{steps.start + 1} to {steps.stop} of this start'


def _lag(params: dict, target: dict) -> jax.Array:
    """Distance between a net and its moving average, relative to the average's size."""
    gap = optax.tree.norm(optax.tree.sub(params, target))
    return gap / optax.tree.norm(target)


def _features(objective, parts: int):
    """objective.health of one of the parts in which a step takes its batch: what fits there fits
    here."""

    def features(params: dict, target: dict, batch: Batch) -> dict:
        part = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:])[:, 0], batch)
        return objective.health(params, target, part)

    return features


def _finished(values: dict[str, jax.Array]) -> tuple[dict[str, Any], float]:
    """A step's metrics on the host, and when they were there."""
    return jax.device_get(values), time.perf_counter()


def _explain(objective, state: TrainState, batch, host: Batch, n: int, path: pathlib.Path) -> str:
    """Stores the batch of a step that is not finite and says which tensor went first."""
    named = jax.tree_util.tree_leaves_with_path(host)
    np.savez(path, **{jax.tree_util.keystr(p).strip('.'): np.asarray(a) for p, a in named})
    return (
        f'step {n + 1} is not finite; first tensor that is not: '
        f'{first_nonfinite(objective, state, batch)}. The state before it is saved as step {n}, '
        f'its batch as {path}'
    )


def fit(
    objective,
    state: TrainState,
    pipeline: VideoStream,
    config: MaskedVideoConfig,
    *,
    mesh: jax.sharding.Mesh,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    metrics: Metrics,
    failures: FailureLog,
    cost: Callable[[int], Cost],
    profile: pathlib.Path | None = None,
) -> tuple[TrainState, Clock]:
    """Trains from state.step to config.optim.steps; the position in the data is the step itself.

    Each round: save if due, step, check, log, measure health if due. A checkpoint holds no batch
    that was not trained on, and needs no state of the data. The next batch is fetched while the
    devices compute; data_wait_s is the time that they had nothing to do because it was not there.
    cost: what the step of a number is worth, for the metrics of speed. profile: a folder for a
    trace of steps PROFILED of this start, which TensorBoard shows.

    Raises:
      TrainingError: loss or gradient is not finite. The state before that step is saved, the batch
      stored in the workdir.
      Interrupted: SIGTERM came; the state is saved.
      DataError: too many files cannot be read.
    """
    mask = optim.decay_mask(state.params, objective.unused)
    step = jax.jit(
        make_step(objective, optim.optimizer(config.optim, mask), config.optim), donate_argnums=0
    )
    features, lag = jax.jit(_features(objective, config.optim.accumulate)), jax.jit(_lag)
    stored = dataclasses.asdict(config)
    every, total = config.logging, config.optim.steps
    first = n = logged = int(jax.device_get(state.step))
    clock, interval, compiled = Clock(), Clock(), set()

    def save() -> None:
        known = {'config': stored, 'failures': failures.state(), **pipeline.facts}
        checkpoints.save(n, state, known)

    def save_last() -> None:
        save()
        checkpoints.wait()
        if checkpoints.last_error:
            raise TrainingError(
                f'{checkpoints.last_error}; start the same command again to go on from the last '
                'checkpoint'
            )

    with (
        _termination() as received,
        pipeline.batches(first) as batches,
        ThreadPoolExecutor(1) as watcher,
        _Trace(profile) as trace,
    ):
        mark = time.perf_counter()
        host = next(batches) if n < total else None
        interval.data = time.perf_counter() - mark
        while n < total:
            if n > first and n % config.checkpoints.every == 0:
                save()
            batch = put_batch(host.batch, mesh)
            if new := pipeline.shapes(n) not in compiled:
                compiled.add(pipeline.shapes(n))
                log.info('program %d: token counts %s', len(compiled), pipeline.shapes(n))
            mark = time.perf_counter()
            with trace.step(n, n - first):
                state, values = step(state, batch)  # returns before the devices are done
            done = watcher.submit(_finished, values)
            current, host = host, next(batches) if n + 1 < total else None
            fetched = time.perf_counter()
            values, ended = done.result()
            if not values.pop('finite'):
                save_last()
                path = workdir / f'nonfinite_step_{n + 1}.npz'
                raise TrainingError(_explain(objective, state, batch, current.batch, n, path))
            n += 1
            failures.add(current)
            interval.add(ended - mark, max(0.0, fetched - ended), new)
            measured = every.health_every and (n % every.health_every == 0 or n == total)
            if n % every.every == 0 or measured or n == total:
                line = {k: float(v) for k, v in values.items()}
                rates = interval.rates(config.optim.batch)
                seconds = rates['step_s'] + rates['data_wait_s']
                line |= failures.counts() | rates
                line |= speed([cost(i) for i in range(logged, n)], seconds)
                logged = n
                if measured:
                    line |= objective.measure(features(state.params, state.target, batch))
                    if objective.averaged:
                        gap = lag(state.params[objective.averaged], state.target)
                        line['health/ema_lag'] = float(jax.device_get(gap))
                metrics.write(n, line)
                clock.merge(interval)
                interval = Clock()
            if distributed.any_process(bool(received)):
                save_last()
                raise Interrupted(f'SIGTERM at step {n} of {total}, which is saved')
        if n > first:
            save_last()
    return state, clock
