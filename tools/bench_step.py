"""How fast a training step is, how much memory it takes and how long it compiles.

    python -m tools.bench_step --config=configs/NAME.py[:ARG] [--config.FIELD=VALUE ...]

Runs the real step of a config, whatever it learns, on noise; nothing is read from its lists, and
frozen nets have random weights. A run has a program for each set of shapes of its batches; those
nearest to the mean in FLOPs are measured. Model FLOPs are counted (jepa_jax/flops.py). Beside them
stands the best rate of a large matrix product in the same type, measured in the same run: the limit
that this machine reaches today. MFU refers to the published bfloat16 peak where it is known and the
type is bfloat16, else to that product. The compilation cache is off. Compile time and planned
memory alone, without a step or an array: python -m tools.cost.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jepa_jax import cli
from jepa_jax.config import RunConfig
from jepa_jax.workdir import room_for

GIB = 2**30


def time_steps(
    compiled, state, frozen, batch, steps: int, warmup: int
) -> Iterator[tuple[float, float]]:
    """Seconds, and those of all cores, of each step after the warm-up.

    Raises:
      FloatingPointError: a step was not finite, and its time therefore without its update.
    """
    import jax

    for number in range(warmup + steps):
        wall, core = time.perf_counter(), time.process_time()
        state, metrics = compiled(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - wall, time.process_time() - core
        if not metrics['finite']:
            raise FloatingPointError(f'step {number + 1} is not finite: its time means nothing')
        if number >= warmup:
            yield seconds


def bench(config: RunConfig, steps: int = 20, warmup: int = 2, limit: int = 1) -> dict[str, Any]:
    """Measures the first `limit` programs of `config` on all devices; the figures, JSON-ready.

    Raises:
      ConfigError: the config cannot run here.
    """
    import jax

    from jepa_jax import sharding
    from jepa_jax.chips import peak_flops
    from jepa_jax.memory import estimate

    from .steps import Step, matmul_peak, memory_of, programs, settle, size

    jax.config.update('jax_enable_compilation_cache', False)
    devices = jax.devices()
    kind = devices[0].device_kind
    config = settle(config, len(devices), memory_of(kind))
    step, runs = Step.of(config, devices), programs(config, len(devices))
    mean = statistics.mean(program.total for program in runs)
    measured = len(devices) * matmul_peak(config.compute_dtype)
    published = len(devices) * (peak_flops(kind, config.compute_dtype) or 0.0)
    result: dict[str, Any] = {
        'config': config.name,
        'objective': config.objective,
        'devices': len(devices),
        'device': kind,
        'dtype': config.compute_dtype,
        'batch': config.optim.batch,
        'accumulate': config.optim.accumulate,
        'remat': config.mesh.remat,
        'parameters': {name: size({name: net}) for name, net in step.objective.nets.items()},
        'frozen_parameters': {n: size({n: net}) for n, net in step.objective.frozen.items()},
        'estimated_bytes': int(estimate(config, len(devices))['total'] * GIB),
        'matmul_flops_per_s': measured,
        'published_flops_per_s': published or None,
        'programs_of_the_run': len(runs),
        'programs': [],
    }
    with jax.set_mesh(step.mesh):
        for program in sorted(runs, key=lambda program: abs(program.total - mean))[:limit]:
            compiled, row = step.compile(program)
            state, frozen = step.start(config.seed)
            host = program.batch(0)
            began = time.perf_counter()
            batch = jax.block_until_ready(sharding.put_batch(host, step.mesh))
            handed = time.perf_counter() - began
            timed = time_steps(compiled, state, frozen, batch, steps, warmup)
            times, cores = zip(*timed)
            del state, frozen, batch
            seconds = statistics.median(times)
            rate = program.total / seconds
            result['programs'].append(
                row
                | {
                    'program': program.words,
                    'tokens': sorted(program.tokens),
                    'model_flops': program.flops | {'total': program.total},
                    'step_seconds': seconds,
                    'step_seconds_range': [min(times), max(times)],
                    'step_core_seconds': statistics.median(cores),
                    'batch_bytes': sum(a.nbytes for a in jax.tree.leaves(host)),
                    'batch_to_device_seconds': handed,
                    'clips_per_s': config.optim.batch / seconds,
                    'model_flops_per_s': rate,
                    'mfu': rate / (published or measured),
                    'share_of_matmul': rate / measured,
                }
            )
    stats = devices[0].memory_stats() or {}  # None on CPUs
    result['peak_device_bytes'] = stats.get('peak_bytes_in_use')
    unit = 1 if sys.platform == 'darwin' else 1024  # of ru_maxrss
    result['peak_resident_bytes'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return result


def show(result: dict[str, Any]) -> None:
    r = result
    nets = (r['parameters'], ''), (r['frozen_parameters'], ' (frozen)')
    million = ' + '.join(f'{n / 1e6:.1f} M {k}{w}' for group, w in nets for k, n in group.items())
    parts = f' in {r["accumulate"]} parts' if r['accumulate'] > 1 else ''
    print(f'{r["config"]}: {million} parameters, {r["dtype"]}, remat {r["remat"]}')
    print(f'{r["devices"]} x {r["device"]}, {r["batch"]} clips a step{parts}')
    for i, p in enumerate(r['programs']):
        print(f'program {i + 1} of {r["programs_of_the_run"]}: {p["program"]}')
        for key, unit in (('seconds', 's'), ('core_seconds', 's of all cores')):
            stages = ', '.join(f'{name} {took:.1f}' for name, took in p[key].items())
            print(f'  {stages} {unit}')
        if planned := p.get('memory_bytes'):
            sizes = ', '.join(f'{name} {size / GIB:.3f}' for name, size in planned.items())
            print(f'  planned GiB a device: {sizes}; estimated {r["estimated_bytes"] / GIB:.3f}')
        f = dict(p['model_flops'])
        total = f.pop('total')
        shares = ', '.join(f'{name} {n / total:.0%}' for name, n in f.items())
        print(f'  model FLOPs a step: {total:.4g} ({shares})')
        low, high = p['step_seconds_range']
        against = 'published peak' if r['published_flops_per_s'] else 'measured product'
        print(
            f'  {p["step_seconds"]:.4f} s a step ({low:.4f} to {high:.4f}), '
            f'{p["clips_per_s"]:.1f} clips/s; its batch to the device '
            f'{p["batch_to_device_seconds"]:.4f} s'
        )
        print(
            f'  {p["model_flops_per_s"]:.3g} FLOP/s: MFU {p["mfu"]:.1%} of the {against}; '
            f'{p["share_of_matmul"]:.1%} of a large product in this run, '
            f'{r["matmul_flops_per_s"]:.3g} FLOP/s'
        )
    if r['peak_device_bytes']:
        print(f'peak memory of the first device {r["peak_device_bytes"] / GIB:.2f} GiB')
    print(f'peak resident memory of this process {r["peak_resident_bytes"] / GIB:.2f} GiB')


def run(
    config: RunConfig, workdir: str, config_file: str, json_file: str | None, **options: Any
) -> None:
    """The tool: prints the figures, and writes them if asked to."""
    del workdir, config_file
    if json_file:
        room_for('--json', json_file)
    result = bench(config, **options)
    show(result)
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=2) + '\n')


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--steps', type=cli.count, default=20, metavar='N', help='timed steps (%(default)s)')
    add('--warmup', type=cli.count, default=2, metavar='N', help='steps before (%(default)s)')
    add(
        '--programs', type=cli.count, default=1, metavar='N', dest='limit',
        help='programs measured (%(default)s)',
    )  # fmt: skip
    add('--json', metavar='FILE', dest='json_file', help='write the figures (no file)')


def main() -> int:
    return cli.run(run, doc=__doc__, options=_options)


if __name__ == '__main__':
    sys.exit(main())
