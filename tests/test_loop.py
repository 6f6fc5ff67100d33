"""Where a run's seconds go, told by a clock that stands still until something takes time; and what
is saved when the data fail."""

import contextlib
import dataclasses
import gc
import logging
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax import distributed, loop, metrics, optim
from jepa_jax.config import GuardConfig, RunConfig
from jepa_jax.data.stream import FailureLog
from jepa_jax.errors import DataError, Interrupted, TrainingError
from jepa_jax.loop import Clock
from jepa_jax.metrics import Metrics, Workload
from jepa_jax.models.layers import Linear
from jepa_jax.nets import Net
from jepa_jax.objectives import Objective
from jepa_jax.sharding import VECTORS, make_mesh
from jepa_jax.state import init_state

BATCH = 8
COSTS = {'step': 7.0, 'data': 3.0, 'put': 2.0, 'save': 5.0, 'agree': 0.5, 'health': 1.0}
COMPILE = 100.0  # seconds that the first step takes besides


class Toy(Objective):
    """A net that learns to double its input."""

    def __init__(self, tell):
        rules = (r'kernel', jax.P()), *VECTORS
        make = lambda rngs: Linear(2, 2, dtype=jnp.float32, rngs=rngs)  # noqa: E731
        self.nets = {'net': Net(make, rules=rules)}
        self._tell = tell

    def loss(self, params, ema, frozen, batch, step):
        return jnp.square(self.nets['net'](params['net'], batch) - 2 * batch).mean(), {}

    def health(self, params, ema, frozen, batch):
        return {'norm': jnp.abs(params['net']['kernel']).sum()}

    def measure(self, health):
        self._tell('health')
        return {'health/norm': float(health['norm'])}


@dataclasses.dataclass
class Host:
    batch: np.ndarray
    failures: tuple = ()
    tried: int = BATCH
    seconds: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Failure:
    path: str = 'a.mp4'
    reason: str = 'empty'
    detail: str = ''


class Stream:
    """Batches that take time, until `end`."""

    facts = {'seen': {'episodes': 3}}

    def __init__(self, tell, end: int = 10**6, failures: int = 0, jump: int = -1):
        self._tell, self.end, self.failures, self.jump = tell, end, failures, jump
        self.asked = []

    def shapes(self, step: int) -> tuple:
        return ()

    @contextlib.contextmanager
    def batches(self, first: int):
        yield self._each(first)

    def _each(self, first: int):
        for step in range(first, 10**6):
            self.asked.append(step)
            self._tell('data')
            if step >= self.end:
                raise DataError(f'record {step} cannot be read')
            rows = np.random.default_rng(step).normal(size=(BATCH, 2)).astype(np.float32)
            rows *= 100 if step == self.jump else 1
            failed = self.failures if step >= 3 else 0
            yield Host(rows, (Failure(),) * failed, BATCH + failed)


class Saves:
    """Checkpoints in memory."""

    def __init__(self, tell):
        self._tell, self.saved, self.waited = tell, {}, 0
        self.last_error, self.failures, self.to_fail = '', 0, ()

    def save(self, step, state, extra) -> bool:
        self._tell('save')
        if step in self.to_fail:
            self.failures, self.last_error = self.failures + 1, f'step {step} is not saved: full'
            return False
        self.saved[step], self.last_error = (jax.device_get(state), extra), ''
        return True

    def steps(self) -> list[int]:
        return sorted(self.saved)

    def wait(self) -> None:
        self.waited += 1


class Later:
    """What the watching thread does, at once or only when it is waited for."""

    def __init__(self, at_once: bool):
        self._at_once = at_once

    def __call__(self, _):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, call, *args):
        self._call = lambda: call(*args)
        self._value = self._call() if self._at_once else None
        return self

    def result(self):
        return self._value if self._at_once else self._call()


class Run:
    """A loop whose time passes only by COSTS.

    Args:
      late: the next batch is fetched after the step is done, not beside it.
    """

    def __init__(self, monkeypatch, folder, *, late: bool = True, costs=COSTS, **stream):
        self.now, self._first, self.costs = 1000.0, True, costs
        self.passed = dict.fromkeys(costs, 0)
        self.stream, self.saves = Stream(self.tell, **stream), Saves(self.tell)
        self.folder = folder
        self.objective = Toy(self.tell)

        def finished(values):
            self.tell('step', COMPILE if self._first else 0.0)
            self._first = False
            return jax.device_get(values), self.now

        def put(batch, mesh):
            self.tell('put')
            return jnp.asarray(batch)

        def largest(value):
            self.tell('agree')
            return value

        monkeypatch.setattr(loop, 'time', self)
        monkeypatch.setattr(loop, 'ThreadPoolExecutor', Later(late))
        monkeypatch.setattr(loop, '_finished', finished)
        monkeypatch.setattr(loop, 'put_batch', put)
        monkeypatch.setattr(loop.distributed, 'largest', largest)

    def tell(self, use: str, more: float = 0.0) -> None:
        self.passed[use] += 1
        self.now += self.costs[use] + more

    def perf_counter(self) -> float:
        return self.now

    def fit(
        self,
        steps: int,
        every: int = 1,
        health_every: int = 4,
        first: int = 0,
        state=None,
        evals=None,
        **guard,
    ):
        config = RunConfig()
        config.optim.guard = GuardConfig(**guard)
        config.optim.batch, config.optim.steps, config.optim.warmup = BATCH, steps, 0
        config.logging.every, config.logging.health_every = every, health_every
        config.checkpoints.every = 3
        optimizer = optim.build(config.optim, self.objective)
        if state is None:
            state = init_state(self.objective, optimizer.tx, jax.random.key(0))
        self.folder.mkdir(exist_ok=True)
        self.failures = FailureLog(0.2)
        began = self.now
        with Metrics(self.folder, start_step=first, total_steps=steps, terminal=False) as written:
            state, clock = loop.fit(
                self.objective, optimizer, state, {}, self.stream, config,
                known={'config': {}}, mesh=make_mesh(1, jax.devices()[:1]), workdir=self.folder,
                checkpoints=self.saves, metrics=written, failures=self.failures,
                workload=lambda step: Workload(1e9, 10, None),
                evals=evals(self) if evals else loop.NOTHING,
            )  # fmt: skip
        return state, clock, self.now - began


def test_a_run_that_cannot_be_saved_ends(monkeypatch, tmp_path):
    """Saves are due after steps 3, 6, 9 and 12."""
    run = Run(monkeypatch, tmp_path / 'run')
    run.saves.to_fail = range(13)
    with pytest.raises(TrainingError, match='^step 4 is not saved: full; there is none to resume'):
        run.fit(12)
    assert run.saves.failures == 2

    run = Run(monkeypatch, tmp_path / 'mended')
    run.saves.to_fail = (3, 9)
    run.fit(12)  # the first succeeds a step later, which is enough to go on without the fourth
    assert run.saves.steps() == [4, 6, 12]


@pytest.mark.parametrize('late', [True, False])
def test_every_second_belongs_to_a_use(monkeypatch, tmp_path, late):
    """Beside a step, fetching and handing over cost nothing; before the first, they do."""
    run = Run(monkeypatch, tmp_path / 'run', late=late)
    _, clock, wall = run.fit(12)
    assert sum(clock.seconds.values()) == pytest.approx(wall, abs=1e-9)
    assert (clock.compiled, clock.steps) == (1, 11)
    assert clock.seconds['save'] == 5.0 * 4 and run.passed['save'] == 4  # steps 3, 6, 9, 12
    assert clock.seconds['agree'] == 0.5 * 13  # before the first and after every one
    assert clock.seconds['health'] == 1.0 * 2  # the first look compiles
    assert clock.seconds['step'] + clock.seconds['compile'] >= 7.0 * 12 + COMPILE
    assert clock.seconds['data'] >= 3.0 + 2.0  # all of the first batch, handing it over included
    if late:  # the devices wait for eleven more
        assert clock.seconds['data'] == 3.0 * 12 + 2.0 and clock.seconds['put'] == 2.0 * 11
        assert clock.seconds['step'] == 7.0 * 11


@pytest.mark.parametrize('late', [True, False])
@pytest.mark.parametrize('slow', ['save', 'put', 'agree', 'health', 'data'])
def test_clips_per_s_is_of_all_that_a_step_takes(monkeypatch, tmp_path, late, slow):
    run = Run(monkeypatch, tmp_path / 'run', late=late, costs=COSTS | {slow: 30.0})
    _, clock, wall = run.fit(13, health_every=1)
    rows = metrics.read(tmp_path / 'run')
    assert len(rows) == 13
    seconds = [BATCH / row['clips_per_s'] for row in rows]
    # measuring and agreeing come after a row is written, and are in the next one; the first look
    # at health counts as compiling
    after = 2 * run.costs['health'] + run.costs['agree'] + run.costs['save']
    assert sum(seconds) == pytest.approx(wall - after, rel=1e-9)
    parts = [row['step_s'] + row['data_wait_s'] + row['overhead_s'] for row in rows]
    assert parts == pytest.approx(seconds)
    total = Clock()
    total.merge(clock)
    shares = total.verdict()
    steady = wall - clock.seconds['compile']
    assert ('data-bound' in shares) == (clock.seconds['data'] > 0.1 * steady)
    if slow != 'data' and clock.seconds[slow] > 0.05 * steady:
        assert loop.USES[slow] in shares
    assert clock.seconds[slow] > (0.05 if late or slow != 'put' else -1) * steady


def test_rates_leave_compiling_out_unless_there_is_nothing_else():
    clock = Clock()
    clock.add_step(50.0, compiled=True)
    clock.add('data', 4.0)
    assert clock.rates(8)['step_s'] == 50.0
    clock.add_step(2.0, compiled=False)
    clock.add_step(4.0, compiled=False)
    clock.add('save', 6.0)
    assert clock.rates(8) == pytest.approx(
        {
            'step_s': 3.0,
            'data_wait_s': 4 / 3,
            'overhead_s': 2.0,
            'clips_per_s': 8 / (5 + 4 / 3),
            'compile_s': 50.0,
        }  # fmt: skip
    )
    assert clock.verdict() == 'data-bound: devices waited for batches 25% of the time; saving 38%'


# Evaluations beside training


class Evaluations:
    """Every three steps; they take their time and read the state."""

    def __init__(self, run):
        self._run = run

    def due(self, step):
        return step % 3 == 0

    def measure(self, step, state, frozen):
        self._run.now += 50.0
        return {'evals/sum': float(sum(jnp.sum(a) for a in jax.tree.leaves(state.params)))}


def test_evaluations_take_no_time_from_a_step_and_change_nothing(monkeypatch, tmp_path):
    plain, *_ = Run(monkeypatch, tmp_path / 'plain').fit(8, every=2)
    run = Run(monkeypatch, tmp_path / 'run')
    state, clock, wall = run.fit(8, every=2, evals=Evaluations)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert clock.seconds['evals'] == 100.0
    assert sum(clock.seconds.values()) == pytest.approx(wall, abs=1e-9)
    assert 'evaluating beside training' in clock.verdict()
    without, rows = (metrics.read(tmp_path / name) for name in ('plain', 'run'))
    assert [row['step'] for row in rows] == [2, 3, 4, 6, 8]  # 3 has a row for its evaluation
    assert [row['step'] for row in rows if 'evals/sum' in row] == [3, 6]

    def seconds(rows) -> float:
        before = [0, *(row['step'] for row in rows)]
        return sum((r['step'] - n) * BATCH / r['clips_per_s'] for n, r in zip(before, rows))

    assert seconds(rows) == pytest.approx(seconds(without))
    losses = {row['step']: row['loss'] for row in rows}
    assert all(losses[row['step']] == row['loss'] for row in without)
    # after a kill: the same rows, what counts records of a start apart
    saved, _ = run.saves.saved[3]
    again = Run(monkeypatch, tmp_path / 'run')
    again.fit(8, every=2, first=3, state=jax.tree.map(jnp.asarray, saved), evals=Evaluations)
    made = metrics.read(tmp_path / 'run')

    def kept(row) -> dict:
        return {k: v for k, v in row.items() if not metrics.clocked(k) and k != 'data/tried'}

    assert [*map(kept, made)] == [*map(kept, rows)]


# Data that fail


def test_data_that_end_are_told_when_the_last_complete_step_is_saved(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path / 'run', end=5)
    with pytest.raises(DataError, match='record 5 cannot be read'):
        run.fit(12)
    assert max(run.saves.saved) == 5 and run.saves.waited
    state, extra = run.saves.saved[5]
    assert state.step == 5
    assert extra == {'config': {}, 'failures': run.failures.state(), **Stream.facts}
    assert [row['step'] for row in metrics.read(tmp_path / 'run')] == [1, 2, 3, 4, 5]

    again = Run(monkeypatch, tmp_path / 'run')
    resumed, *_ = again.fit(12, first=5, state=jax.tree.map(jnp.asarray, state))
    assert again.stream.asked == list(range(5, 12))
    unbroken, *_ = Run(monkeypatch, tmp_path / 'unbroken').fit(12)
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(unbroken), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_data_that_end_with_a_sigterm_are_no_failure(monkeypatch, tmp_path, caplog):
    """Workers get the signal as well: the run is to be started again."""
    run = Run(monkeypatch, tmp_path / 'run', end=5)
    told, seen = FailureLog.add, []

    def add(log, batch):
        told(log, batch)
        seen.append(batch)
        if len(seen) == 5:  # the last one that can be read
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FailureLog, 'add', add)
    with pytest.raises(Interrupted, match='step 5 of 12, which is saved'):
        run.fit(12)
    assert max(run.saves.saved) == 5 and 'record 5 cannot be read' in caplog.text


def test_a_sigterm_before_the_first_batch_is_no_failure(monkeypatch, tmp_path, caplog):
    run = Run(monkeypatch, tmp_path / 'run', end=0)
    told = distributed.told
    monkeypatch.setattr(distributed, 'told', lambda: True)
    with pytest.raises(Interrupted, match='SIGTERM before step 1 of 12'):
        run.fit(12)
    assert not run.saves.saved and 'record 0 cannot be read' in caplog.text
    monkeypatch.setattr(distributed, 'told', told)


def test_nothing_is_saved_when_the_first_batch_fails(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path / 'run', end=0)
    with pytest.raises(DataError, match='record 0 cannot be read'):
        run.fit(12)
    assert not run.saves.saved


def test_too_many_failures_are_not_held_against_mended_data(monkeypatch, tmp_path):
    monkeypatch.setattr('jepa_jax.data.stream.LEAST_TRIED', 40)
    run = Run(monkeypatch, tmp_path / 'run', failures=16)
    with pytest.raises(DataError, match='more than data.max_failure_share 0.2 allows'):
        run.fit(12)
    step = max(run.saves.saved)
    state, extra = run.saves.saved[step]
    assert step == state.step < 12
    mended = FailureLog(0.2)
    mended.restore(extra['failures'])
    mended.add(Host(np.zeros(1)))


def later(most: int):
    """What processes agree on: nothing before the first step, then what another one wants."""
    asked = []
    return lambda value: max(most if asked else 0, value, asked.append(value) or 0)


def test_another_process_that_fails_ends_this_one_too(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path / 'run')
    monkeypatch.setattr(loop.distributed, 'largest', later(loop.FAIL))
    with pytest.raises(DataError, match='another process cannot read its data'):
        run.fit(12)
    assert list(run.saves.saved) == [1]


def test_another_process_that_fails_before_the_first_step_ends_this_one_too(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path / 'run')
    monkeypatch.setattr(loop.distributed, 'largest', lambda value: max(value, loop.FAIL))
    with pytest.raises(DataError, match='another process cannot read its data'):
        run.fit(12)
    assert not run.saves.saved


def test_another_process_that_is_stopped_stops_this_one_too(monkeypatch, tmp_path):
    run = Run(monkeypatch, tmp_path / 'run')
    monkeypatch.setattr(loop.distributed, 'largest', later(loop.STOP))
    with pytest.raises(Interrupted, match='step 1 of 12, which is saved'):
        run.fit(12)
    assert list(run.saves.saved) == [1]


def test_a_sigterm_that_a_callback_swallowed_ends_the_run(monkeypatch, tmp_path):
    """As that of JAX's, which the garbage collector calls while a run starts."""

    def callback(*_):
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)  # raised here, and dropped

    monkeypatch.setattr(sys, 'unraisablehook', lambda _: None)  # pytest's own makes it a warning
    run = Run(monkeypatch, tmp_path / 'run')
    with distributed.termination():
        gc.callbacks.append(callback)
        gc.collect()
        assert callback not in gc.callbacks and distributed.told()
        with pytest.raises(Interrupted, match='SIGTERM before step 1 of 12'):
            run.fit(12)
    assert not run.saves.saved and not distributed.told()


def test_a_run_ends_when_too_many_updates_are_left_out(monkeypatch, tmp_path):
    """Losses of random batches rise above their mean sooner or later."""
    run = Run(monkeypatch, tmp_path / 'run')
    with pytest.raises(TrainingError, match='2 updates were left out up to step .*optim.guard'):
        run.fit(40, deviations=1e-6, after=2, most=2)
    step = max(run.saves.saved)
    state, _ = run.saves.saved[step]
    assert state.step == step < 40 and state.opt_state[-1].skipped == 2
    rows = metrics.read(tmp_path / 'run')
    assert [row['skipped'] for row in rows] == sorted(row['skipped'] for row in rows)


def test_a_loss_that_leaves_its_range_is_said_when_it_does(monkeypatch, tmp_path, caplog):
    Run(monkeypatch, tmp_path / 'run', jump=14).fit(18)
    said = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']
    assert any(words.startswith('step 15: loss is ') for words in said)
    assert all(words.startswith('step 15: ') for words in said)


def test_nothing_left_is_one_line(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO, 'jepa_jax.loop')
    run = Run(monkeypatch, tmp_path / 'run')
    state = init_state(
        run.objective, optim.build(RunConfig().optim, run.objective).tx, jax.random.key(0)
    )
    state = dataclasses.replace(state, step=state.step + 8)
    run.fit(8, first=8, state=state)
    said = [r.message for r in caplog.records if 'jepa_jax.loop' == r.name]
    assert said == ['nothing left to train: the run is at step 8 of 8']
    assert not run.stream.asked and not run.passed['step']
