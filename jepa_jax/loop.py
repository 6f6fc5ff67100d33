"""The only training loop. An objective brings nets and loss, a stream batches; the rest is the same
for all."""

from __future__ import annotations

import contextlib
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

from jepa_jax import distributed
from jepa_jax.checkpoint import Checkpoints
from jepa_jax.config import RunConfig
from jepa_jax.data.stream import FailureLog, HostBatch, Stream
from jepa_jax.errors import DataError, Interrupted, TrainingError
from jepa_jax.metrics import Metrics, Workload, speed
from jepa_jax.objectives import Objective
from jepa_jax.optim import Optimizer
from jepa_jax.sharding import put_batch, put_rows
from jepa_jax.state import TrainState
from jepa_jax.step import first_nonfinite, make_step, parts_of
from jepa_jax.watch import Watch

log = logging.getLogger(__name__)

PROFILED = range(2, 5)  # the first compiles; those with other shapes may, too


# What wall time goes to. Devices are at work in the first two; the others are theirs to wait.
USES = {
    'step': 'steps',
    'compile': 'compiling: first steps of their shapes, the first look at health and pictures',
    'data': 'waiting for a batch',
    'put': 'handing it to the devices',
    'save': 'saving',
    'agree': 'agreeing with other processes',
    'health': 'measuring health, pictures and logging',
    'evals': 'evaluating beside training',
}
ANOTHER = 'another process cannot read its data and says why'
SAVE, FAIL, STOP = 1, 2, 3  # what is due in any process after a step, the largest in all of them
REST = ('put', 'save', 'agree', 'health')  # what a step costs beside itself


class Clock:
    """Where the seconds of a loop went: every moment belongs to one of USES."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(USES, 0.0)
        self.steps = self.compiled = 0  # counted under `step` and `compile`

    def add(self, use: str, seconds: float) -> None:
        self.seconds[use] += seconds

    def add_step(self, seconds: float, compiled: bool) -> None:
        self.add('compile' if compiled else 'step', seconds)
        self.compiled, self.steps = self.compiled + compiled, self.steps + (not compiled)

    def merge(self, other: Clock) -> None:
        for use, seconds in other.seconds.items():
            self.add(use, seconds)
        self.steps, self.compiled = self.steps + other.steps, self.compiled + other.compiled

    def rates(self, clips: int) -> dict[str, float]:
        """Per-step means as metrics, for steps of so many clips; clips_per_s is of all that a step
        takes, saves and measures included, evaluations left out. Compiling counts only if every
        step compiled."""
        of, count = ('step', self.steps) if self.steps else ('compile', self.compiled)
        every = self.steps + self.compiled
        step, wait = self.seconds[of] / count, self.seconds['data'] / every
        rest = sum(self.seconds[use] for use in REST) / every
        return {
            'step_s': step,
            'data_wait_s': wait,
            'overhead_s': rest,
            'clips_per_s': clips / (step + wait + rest),
            **({'compile_s': self.seconds['compile']} if self.seconds['compile'] else {}),
        }

    def verdict(self) -> str:
        """Which part of the machine a faster run would need."""
        total = max(sum(self.seconds.values()) - self.seconds['compile'], 1e-9)
        shares = {use: self.seconds[use] / total for use in USES if use != 'compile'}
        word = 'data-bound' if shares['data'] > 0.1 else 'compute-bound'
        rest = [f'{USES[use]} {shares[use]:.0%}' for use in (*REST, 'evals') if shares[use] >= 0.01]
        text = f'{word}: devices waited for batches {shares["data"]:.0%} of the time'
        return f'{text}; {", ".join(rest)}' if rest else text


class NoEvaluations:
    """What a loop evaluates beside training: nothing. jepa_jax.evals.beside.Beside has the same."""

    def due(self, step: int) -> bool:
        """Whether the state after a step is evaluated; the same in all processes."""
        return False

    def measure(self, step: int, state: TrainState, frozen: dict) -> dict[str, float]:
        """What evaluations that are due say of the state, for a row of metrics."""
        return {}


NOTHING = NoEvaluations()


class NoLooks:
    """What a loop keeps of how its features look: nothing. jepa_jax.looks.Looks has the same."""

    def due(self, step: int) -> bool:
        """Whether the state after a step is looked at; the same in all processes."""
        return False

    def take(
        self, step: int, state: TrainState, frozen: dict, batch: Any, metrics: Metrics
    ) -> None:
        """Writes down what is to be seen of a state; batch: the step's, on the host."""


UNSEEN = NoLooks()


@contextlib.contextmanager
def _termination() -> Iterator[list[int]]:
    """A list that a SIGTERM adds to, in place of ending the process."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        if distributed.told():
            received.append(signal.SIGTERM)
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


def _lag(params: dict, ema: dict) -> dict[str, jax.Array]:
    """Distance between each net and its moving average, relative to the average's size."""
    return {
        name: optax.tree.norm(optax.tree.sub(params[name], average)) / optax.tree.norm(average)
        for name, average in ema.items()
    }


def _health(objective: Objective, parts: int):
    """objective.health of one of the parts in which a step takes its batch: what fits there fits
    here. Of parts of one row two are taken, which fit without gradients: rows are compared. Of an
    objective that says what is examined, all of that."""

    def of(rows: jax.Array) -> jax.Array:
        return rows[:2] if len(rows) == parts else parts_of(rows, parts)[0]

    def health(state: TrainState, frozen: dict, batch) -> dict:
        part = jax.tree.map(of, batch) if objective.examined is None else batch
        return objective.health(state.params, state.ema, frozen, part)

    return health


def _finished(values: dict[str, jax.Array]) -> tuple[dict[str, Any], float]:
    """A step's metrics on the host, and when they were there."""
    return jax.device_get(values), time.perf_counter()


def _explain(
    objective: Objective, accumulate: int, state: TrainState, frozen: dict, batch, host,
    n: int, path: pathlib.Path,
) -> str:  # fmt: skip
    """Stores the batch of a step that is not finite and says which tensor went first."""
    named = jax.tree_util.tree_leaves_with_path(host)
    try:
        np.savez(path, **{jax.tree_util.keystr(p).strip('.'): np.asarray(a) for p, a in named})
        kept = f'its batch as {path}'
    except OSError as error:  # a full disk: the step is what this is about
        kept = f'its batch could not be ({error})'
    try:
        first = first_nonfinite(objective, state, frozen, batch, accumulate)
    except jax.errors.JaxRuntimeError as error:  # it holds more than a step
        first = f'could not be looked for ({str(error).splitlines()[0]})'
    return (
        f'step {n + 1} is not finite; first tensor that is not: {first}. The state before it is '
        f'saved as step {n}, {kept}'
    )


class _Feed:
    """Batches of a stream, handed to the devices one step ahead."""

    def __init__(self, batches: Iterator[HostBatch], mesh: jax.sharding.Mesh):
        self._batches, self._mesh = batches, mesh
        self.host: HostBatch | None = None  # of the batch on the devices
        self.batch: Any = None
        self.error: DataError | None = None  # why there is no next one
        self.fetched = 0.0  # when the host had it

    def advance(self) -> None:
        """Fetches the next batch and starts to transfer it, which goes on beside a step."""
        self.host = self.batch = None
        try:
            self.host = next(self._batches)
        except DataError as error:
            self.error = error
        self.fetched = time.perf_counter()
        if self.host is not None:
            self.batch = put_batch(self.host.batch, self._mesh)


def fit(
    objective: Objective,
    optimizer: Optimizer,
    state: TrainState,
    frozen: dict,
    stream: Stream,
    config: RunConfig,
    *,
    known: dict[str, Any],
    mesh: jax.sharding.Mesh,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    metrics: Metrics,
    failures: FailureLog,
    workload: Callable[[int], Workload],
    evals: NoEvaluations = NOTHING,
    looks: NoLooks = UNSEEN,
    profile: pathlib.Path | None = None,
) -> tuple[TrainState, Clock]:
    """Trains from state.step to config.optim.steps; the position in the data is the step itself.

    Each round: save if due, step, check, measure health and evaluate if due, log. A checkpoint
    holds no batch that was not trained on, and needs no state of the data. The next batch is
    fetched and handed to the devices while they compute; data_wait_s is the time that they had
    nothing to do because it was not there.

    Args:
      frozen: parameters of objective.frozen, on the mesh.
      known: what checkpoints say of the run beside its state.
      workload: what the step of a number is worth, for the metrics of speed.
      evals: what is evaluated beside training; it sees states and changes none.
      looks: what is kept of how features look, likewise.
      profile: a folder for a trace of steps PROFILED of this start, which TensorBoard shows.

    Raises:
      TrainingError: loss or gradient is not finite. The state before that step is saved, the batch
      stored in the workdir. Or the loss guard has left out too many updates.
      Interrupted: SIGTERM came; the state is saved.
      DataError: too many files cannot be read; the state is saved.
      TrainingError: the first save failed, and so did another; or the last one did.
    """
    accumulate = config.optim.accumulate
    step = jax.jit(make_step(objective, optimizer, accumulate), donate_argnums=0)
    health, lag = jax.jit(_health(objective, accumulate)), jax.jit(_lag)
    every, total = config.logging, config.optim.steps
    first = n = logged = int(jax.device_get(state.step))
    clock, interval, compiled = Clock(), Clock(), set()
    watch = Watch(objective.verdict, metrics.rows())
    ran: set[str] = set()  # what has run before, so that its program is there: health, pictures

    def save() -> None:
        checkpoints.save(n, state, {**known, 'failures': failures.state(), **stream.facts})

    def save_last() -> None:
        save()
        checkpoints.wait()
        if checkpoints.last_error:
            advice = (
                'start the same command again to resume from the last checkpoint'
                if checkpoints.steps()
                else 'there is none to resume from'
            )
            raise TrainingError(f'{checkpoints.last_error}; {advice}')

    def line(values: dict[str, Any], measured: bool) -> dict[str, float]:
        row = {k: float(v) for k, v in values.items()}
        rates = interval.rates(config.optim.batch)
        row |= failures.counts() | rates
        seconds = config.optim.batch / rates['clips_per_s']
        row |= speed([workload(i) for i in range(logged, n)], seconds)
        if measured:
            examined = objective.examined
            rows = batch if examined is None else put_rows(examined, mesh)
            row |= objective.measure(health(state, frozen, rows))
            for name, gap in jax.device_get(lag(state.params, state.ema)).items():
                key = 'health/ema_lag' if len(state.ema) == 1 else f'health/ema_lag/{name}'
                row[key] = float(gap)
        return row

    with (
        _termination() as received,
        stream.batches(first) as batches,
        ThreadPoolExecutor(1) as watcher,
        _Trace(profile) as trace,
    ):
        feed = _Feed(batches, mesh)
        mark = time.perf_counter()

        def lap(use: str) -> None:
            nonlocal mark
            now = time.perf_counter()
            interval.add(use, now - mark)
            mark = now

        def lap_of(what: str, ran_now: bool) -> None:
            """Of what compiles when it runs first; else a part of `health`."""
            first_time = ran_now and what not in ran
            if first_time:
                ran.add(what)
                metrics.compiled(time.perf_counter() - mark, steps=0)
            lap('compile' if first_time else 'health')

        if n < total:
            feed.advance()
            lap('data')
            what = distributed.largest(STOP if received else FAIL if feed.error else 0)
            if what == STOP:
                if feed.error:
                    log.warning('%s', feed.error)
                raise Interrupted(f'SIGTERM before step {n + 1} of {total}') from feed.error
            if what == FAIL:
                raise feed.error or DataError(ANOTHER)
            lap('agree')
        else:
            log.info('nothing left to train: the run is at step %d of %d', n, total)
        while n < total:
            if n > first and n % config.checkpoints.every == 0:
                save()
            if new := stream.shapes(n) not in compiled:
                compiled.add(stream.shapes(n))
                if stream.shapes(n):
                    log.info('program %d: token counts %s', len(compiled), stream.shapes(n))
                metrics.compiling()
            host, batch = feed.host, feed.batch
            lap('save')
            with trace.step(n, n - first):
                state, values = step(state, frozen, batch)  # returns before the devices are done
            done = watcher.submit(_finished, values)
            if n + 1 < total:
                feed.advance()
            handed = time.perf_counter()
            values, ended = done.result()
            interval.add_step(ended - mark, new)
            if new:
                metrics.compiled(ended - mark)
            if handed > ended:  # the devices waited
                waited = max(0.0, feed.fetched - ended)
                interval.add('data', waited)
                interval.add('put', handed - ended - waited)
            mark = max(handed, ended)
            if not values.pop('finite'):
                save_last()
                # each process has rows of its own, and all may share the folder
                own = f'_process{jax.process_index()}' if jax.process_count() > 1 else ''
                path = workdir / f'nonfinite_step_{n + 1}{own}.npz'
                words = _explain(objective, accumulate, state, frozen, batch, host.batch, n, path)
                raise TrainingError(words)
            n += 1
            if values.get('skipped', 0) >= config.optim.guard.most:
                save_last()
                raise TrainingError(
                    f'{values["skipped"]:.0f} updates were left out up to step {n}, for losses far '
                    'above those before (optim.guard), as many as optim.guard.most allows, which '
                    'may be raised to resume'
                )
            trouble = feed.error
            try:
                failures.add(host)
            except DataError as error:
                trouble = error
            measured = every.health_every and (n % every.health_every == 0 or n == total)
            due, row = evals.due(n), None
            if n % every.every == 0 or measured or due or n == total:
                row = line(values, bool(measured))
                logged = n
                clock.merge(interval)
                interval = Clock()
            lap_of('health', bool(measured))
            if looks.due(n):
                looks.take(n, state, frozen, host.batch, metrics)
                lap_of('pictures', True)
            if due:
                row |= evals.measure(n, state, frozen)
                lap('evals')
            if row is not None:
                metrics.write(n, row)
                for words in watch.see(row):
                    log.warning('step %d: %s', n, words)
                lap('health')
            unsaved = checkpoints.failures and not checkpoints.steps()
            # who is told to end may lose the data, too: workers get the signal as well
            what = STOP if received else FAIL if trouble else SAVE if unsaved else 0
            what = distributed.largest(what)
            lap('agree')
            if what:
                save_last()  # ends the run if that fails
            if what == FAIL:
                raise trouble or DataError(ANOTHER)
            if what == STOP:
                if trouble:
                    log.warning('step %d: %s', n, trouble)
                raise Interrupted(f'SIGTERM at step {n} of {total}, which is saved')
        if n > first:
            save_last()
        lap('save')
        clock.merge(interval)
    return state, clock
