"""Sides of a comparison, each in a process of its own, that take turns at the same work.

A task writes its weights and inputs into a folder once; every side reads them, runs once to warm
up, and then waits for its turn: round by round, one run a side. Slow minutes of a machine so fall
on all sides, and memory is of one side alone. The first side is ours; beside it, in each round, a
large matrix product is timed, the limit that this machine reaches today. Linux only.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jepa_jax.errors import BenchError, allowed

GIB = 2**30
OURS = 'jepa_jax'


Outputs = Mapping[str, Any]  # name -> array; scalars are kept of every run, arrays of the last
Make = Callable[..., Callable[[], Outputs]]  # folder, **options -> what runs once


def differences(ours: Outputs, theirs: Outputs) -> dict[str, float]:
    """Of each output the largest difference, over the largest value of theirs."""
    import numpy as np

    def apart(a, b) -> float:
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))

    return {name: apart(ours[name], theirs[name]) for name in theirs}


@dataclasses.dataclass(frozen=True)
class Task:
    """What is compared.

    Args:
      write: folder, **options -> what the table says of it: `words`, `flops` of a run, or nothing.
      ours: the maker of our side.
      peers: name -> the maker of a side of theirs; those that a machine lacks the means for raise
        BenchError, which is told and costs no other side.
      close: option `dtype` -> by which figures of `compare` may differ.
      defaults: the options.
      compare: ours, theirs -> how far apart they are, by figure.
    """

    write: Callable[..., dict[str, Any]]
    ours: Make
    peers: dict[str, Make]
    close: dict[str, dict[str, float]]
    defaults: dict[str, Any]
    compare: Callable[[Outputs, Outputs], dict[str, float]] = differences


def measure(
    name: str,
    options: Mapping[str, Any],
    *,
    peers: Sequence[str] | None = None,
    rounds: int = 5,
    threads: int = 2,
    platform: str = 'cpu',
    patience: float | None = None,
) -> dict[str, Any]:
    """Runs the task `MODULE:NAME` and prints its table; the figures, JSON-ready.

    peers: names of sides; None: all that the options allow (`original`, a checkout, for those whose
    name starts with it). patience: seconds that a side of theirs may take to get ready, compiling
    included; None: any.

    Raises:
      BenchError: our side failed, or all of the others did. Sides that disagree are among the
        result's objections: see `judge`.
    """
    task = load(name)
    options = {**task.defaults, **options, 'platform': platform, 'threads': threads}
    check_sides(peers or (), task.peers, bool(options.get('original')))
    chosen = [peer for peer in task.peers if peers is None or peer in peers]
    if not options.get('original'):
        chosen = [peer for peer in chosen if not peer.startswith('original')]
    result: dict[str, Any] = {'task': name.partition(':')[2].lower(), **options, 'rounds': rounds}
    result.pop('original', None)  # a path, and the name of a side
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        (folder / 'options.json').write_text(json.dumps(options))
        with Side(name, 'write', folder, platform, threads) as writer:
            result |= writer.hear()
        print(f'\n{result["task"]}: {result.get("words", "")}', flush=True)
        sides: dict[str, Side] = {}
        failed: dict[str, str] = {}
        try:
            for side in (OURS, *chosen):
                sides[side] = Side(name, side, folder, platform, threads)
                try:
                    # before the next one starts
                    sides[side].told = sides[side].hear(None if side == OURS else patience)
                except BenchError as error:
                    sides.pop(side).close()
                    if side == OURS:
                        raise
                    failed[side] = str(error)
                    print(f'{side:24} not run: {error}', flush=True)
            turns: dict[str, list[dict]] = {side: [] for side in sides}
            products = []
            for _ in range(rounds):
                for side, process in sides.items():
                    turns[side].append(process.ask('run'))
                if 'flops' in result:
                    products.append(sides[OURS].ask('product')['flops_per_s'])
            for side, process in sides.items():
                row = process.told | process.ask('end')
                row |= {key: [turn[key] for turn in turns[side]] for key in ('wall', 'core')}
                row['seconds'] = statistics.median(row['wall'])
                row['core_seconds'] = statistics.median(row['core'])
                result[side] = row
        finally:
            for process in sides.values():
                process.close()
        result |= {'not_run': failed, 'matmul_flops_per_s': max(products, default=None)}
        theirs = [side for side in sides if side != OURS]
        if chosen and not theirs:
            raise BenchError('no other side ran: there is nothing to compare with')
        _compare(task, folder, theirs, result)
    show(result, theirs)
    limits = task.close[options.get('dtype', 'float32')]
    result['objections'] = [
        f'{side}: {figure} differs by {result[side]["apart"][figure]:.2g}, at most {limit:.2g} is '
        'allowed: the times mean nothing'
        for side in theirs
        for figure, limit in limits.items()
        if not result[side]['apart'][figure] <= limit  # also a NaN
    ]
    return result


def check_sides(sides: Sequence[str], peers: Iterable[str], original: bool) -> None:
    """Raises BenchError for a side that no comparison has, which would be compared with nothing."""
    for side in sides:
        if side not in peers:
            raise BenchError(f"--sides '{side}': {allowed(side, peers)}")
        if side.startswith('original') and not original:
            raise BenchError(f"--sides '{side}': needs --original DIR, a checkout")


def judge(result: Mapping[str, Any]) -> None:
    """Once the figures are written. Raises BenchError: the sides disagree."""
    for objection in result['objections']:
        raise BenchError(objection)


def _compare(task: Task, folder: pathlib.Path, theirs: list[str], result: dict) -> None:
    """Adds ratios of each round, and how far apart the outputs are."""
    import numpy as np

    def outputs(side: str) -> dict:
        with np.load(folder / f'{file_name(side)}.npz') as file:
            return dict(file)

    ours, mine = outputs(OURS), result[OURS]
    for side in theirs:
        row = result[side]
        row['apart'] = task.compare(ours, outputs(side))
        for key in ('wall', 'core'):
            row[f'{key}_ratios'] = [a / b for a, b in zip(mine[key], row[key])]
        row['time_ratio'] = statistics.median(row['wall_ratios'])
        row['core_time_ratio'] = statistics.median(row['core_ratios'])
    if theirs:
        best = min(theirs, key=lambda side: result[side]['seconds'])
        result |= {'best': best, 'time_ratio': result[best]['time_ratio']}
        result['core_time_ratio'] = result[best]['core_time_ratio']
    for side in (OURS, *theirs):
        if flops := result.get('flops'):
            rate = flops / result[side]['seconds']
            result[side] |= {'flops_per_s': rate, 'mfu': rate / result['matmul_flops_per_s']}
    if 'loss' in ours:
        result['losses'] = {OURS: ours['loss'].tolist()}
        result['losses'] |= {side: outputs(side)['loss'].tolist() for side in theirs}


def show(result: dict[str, Any], theirs: list[str]) -> None:
    print(f'{"":24}{"median s":>10} {"spread":>17} {"core s":>9} {"MFU":>6} {"GiB":>6} ours/it')
    for side in (OURS, *theirs):
        row = result[side]
        spread = f'{min(row["wall"]):.4g}-{max(row["wall"]):.4g}'
        mfu = f'{row["mfu"]:.1%}' if 'mfu' in row else ''
        memory = (row['device'] or row['resident']) / GIB
        ratio = ''
        if side != OURS:
            low, high = min(row['wall_ratios']), max(row['wall_ratios'])
            ratio = f'{row["time_ratio"]:.2f} ({low:.2f}-{high:.2f}); '
            ratio += f'core {row["core_time_ratio"]:.2f}'
        print(
            f'{side:24}{row["seconds"]:10.4g} {spread:>17} {row["core_seconds"]:9.4g} {mfu:>6} '
            f'{memory:6.2f} {ratio}'
        )
    if 'flops' in result:
        rate = result['matmul_flops_per_s']
        floor = result['flops'] / rate
        print(
            f'floor {floor:.4g} s: {result["flops"]:.4g} FLOPs at {rate:.3g} a second, the best of '
            'a large product in this run'
        )
    for side in theirs:
        apart = ', '.join(f'{name} {x:.2g}' for name, x in result[side]['apart'].items())
        print(f'{side} differs by: {apart}')
    for side, losses in result.get('losses', {}).items():
        print(f'{side:24}losses ' + ' '.join(f'{loss:.6f}' for loss in losses[:6]))


def load(name: str) -> Task:
    """The task `MODULE:NAME`."""
    module, _, attribute = name.partition(':')
    return getattr(importlib.import_module(module), attribute)


def file_name(side: str) -> str:
    return side.replace(', ', '_').replace(' ', '_')


class Side:
    """A process that waits for its turn."""

    def __init__(self, task: str, side: str, folder: pathlib.Path, platform: str, threads: int):
        environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_VERBOSITY': 'error'}
        cores = None
        if platform == 'cpu':
            environment |= {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
            cores = sorted(os.sched_getaffinity(0))[:threads]  # as many as threads, for all
        else:
            environment['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # there are others on the device
        environment['OMP_NUM_THREADS'] = str(threads)
        self.side, self.told = side, {}
        self._errors = tempfile.TemporaryFile('w+')
        self._process = subprocess.Popen(
            [sys.executable, '-m', __spec__.name, task, side, str(folder)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            text=True,
        )  # fmt: skip
        if cores:  # not in the child before it starts: that would fork a process with threads
            os.sched_setaffinity(self._process.pid, cores)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def hear(self, patience: float | None = None) -> dict[str, Any]:
        """What it says next.

        Raises:
          BenchError: it ended; its last line of stderr is in the message. Or it said nothing for
            `patience` seconds.
        """
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise BenchError(f'{self.side}: not ready after {patience:g} s')
        if line := self._process.stdout.readline():
            return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ['nothing on stderr']
        raise BenchError(f'{self.side}: exit status {status}: {lines[-1]}')

    def ask(self, what: str) -> dict[str, Any]:
        """As `hear`, after run | product | end."""
        self._process.stdin.write(what + '\n')
        try:
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `hear` knows why
        return self.hear()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


# In the processes of their own


class _Peak:
    """The largest RssAnon seen by a thread."""

    def __init__(self):
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.bytes = max(self.bytes, status('RssAnon'))

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return max(self.bytes, status('RssAnon'))


def status(key: str) -> int:
    """Bytes, of this process."""
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key + ':'):
            return 1024 * int(line.split()[1])
    raise BenchError(f'/proc/self/status has no {key}')


def on_device() -> int:
    """Most bytes that this process had on a GPU; 0 without one."""
    if 'torch' in sys.modules and sys.modules['torch'].cuda.is_initialized():
        return sys.modules['torch'].cuda.max_memory_allocated()
    if 'jax' in sys.modules:
        return (sys.modules['jax'].local_devices()[0].memory_stats() or {}).get(
            'peak_bytes_in_use', 0
        )
    return 0


def host(array: Any):
    """Of either library, as numpy; bfloat16 as float32."""
    import numpy as np

    if hasattr(array, 'detach'):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    array = np.asarray(array)
    return array if array.dtype.kind in 'iub' else array.astype(np.float32)


def _product(dtype: str) -> float:
    import jax.numpy as jnp

    from .steps import matmul_peak

    return matmul_peak(jnp.dtype(dtype), rounds=3)


def serve(task: Task, side: str, folder: pathlib.Path, answers) -> None:
    """Writes the task, or is one side of it until nothing more is asked."""
    options = json.loads((folder / 'options.json').read_text())

    def say(**row: Any) -> None:
        print(json.dumps(row), file=answers, flush=True)

    if side == 'write':
        say(**task.write(folder, **options))
        return
    peak = _Peak()
    scalars: dict[str, list] = {}
    last: dict[str, Any] = {}

    def turn() -> tuple[float, float]:
        """Runs once; seconds of wall and of all cores."""
        wall, core = time.perf_counter(), time.process_time()
        last.update(run())
        took = time.perf_counter() - wall, time.process_time() - core
        for key, value in last.items():
            if value.ndim == 0:
                scalars.setdefault(key, []).append(host(value))
        return took

    began = time.perf_counter()
    run = (task.ours if side == OURS else task.peers[side])(folder, **options)
    say(loading=time.perf_counter() - began, first=turn()[0], **getattr(run, 'told', {}))
    for line in sys.stdin:
        if line == 'run\n':
            wall, core = turn()
            say(wall=wall, core=core)
        elif line == 'product\n':
            say(flops_per_s=_product(options.get('dtype', 'float32')))
        else:
            import numpy as np

            memory = {'anonymous': peak.stop(), 'resident': status('VmHWM'), 'device': on_device()}
            last.update(getattr(run, 'outputs', dict)())  # what took no part in the time
            arrays = {key: host(value) for key, value in last.items()}
            np.savez(folder / f'{file_name(side)}.npz', **arrays | scalars)
            say(**memory)


def main() -> None:
    name, side, folder = sys.argv[1:]
    with os.fdopen(os.dup(1), 'w') as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        serve(load(name), side, pathlib.Path(folder), answers)


if __name__ == '__main__':
    main()
