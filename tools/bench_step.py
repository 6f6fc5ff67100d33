"""How fast a training step is, how much memory it takes and how long it compiles.

    python -m tools.bench_step --config=configs/NAME.py[:ARG] [--config.FIELD=VALUE ...]
    python -m tools.bench_step --config=configs/vitg.py --compile-only --config.mesh.fsdp=1

Runs the real step of a config on clips of noise with the run's own masks; nothing is read from its
lists. A run has up to four programs, one for each set of token counts; those nearest to the mean in
FLOPs are measured. Model FLOPs are counted (jepa_jax/flops.py). Beside them stands the best rate of
a large matrix product in the same type, measured in the same run: the limit that this machine
reaches today. MFU refers to the published bfloat16 peak where it is known and the type is bfloat16,
else to that product. With --compile-only no array is made, so a model may be far larger than the
memory. The compilation cache is off.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jepa_jax import cli
from jepa_jax.config import MaskedVideoConfig
from jepa_jax.recipes import validate

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Program:
    """One set of static shapes of a run."""

    step: int  # a step that has them
    groups: tuple  # flops.GroupShape of each frame count
    flops: Any  # flops.StepFlops


def mask_samplers(config: MaskedVideoConfig, rows: dict[int, int]) -> dict[int, Any]:
    """What draws the masks of each frame count, of which a batch holds so many rows."""
    from jepa_jax.masks.samplers import mask_sampler

    return {frames: mask_sampler(config, frames, rows[frames]) for frames in rows}


def programs(
    config: MaskedVideoConfig, samplers: dict[int, Any], rows: dict[int, int]
) -> list[Program]:
    """The distinct programs of a run's first four steps, nearest to their mean in FLOPs first."""
    from jepa_jax.flops import GroupShape, pretraining_step
    from jepa_jax.objectives.masked_video import predictor_config, vit_config

    vit, predictor = vit_config(config), predictor_config(config)
    found: dict[tuple, Program] = {}
    for step in range(4):  # the static sampler visits all of its shapes in four
        groups = []
        for frames, sampler in samplers.items():
            t, h, w = vit.grid(frames, config.data.crop, config.data.crop)
            groups.append(GroupShape(rows[frames], t * h * w, sampler.shapes(step)))
        flops = pretraining_step(vit, predictor, groups)
        found.setdefault(tuple(groups), Program(step, tuple(groups), flops))
    mean = statistics.mean(program.flops.total for program in found.values())
    return sorted(found.values(), key=lambda program: abs(program.flops.total - mean))


def make_batch(
    config: MaskedVideoConfig, samplers: dict[int, Any], program: Program, seed: int = 0
):
    """Noise with the masks of the program's step; numpy."""
    import numpy as np

    from jepa_jax.data import Batch, Group
    from jepa_jax.masks import Mask

    rng, crop, groups = np.random.default_rng(seed), config.data.crop, []
    for shape, (frames, sampler) in zip(program.groups, samplers.items(), strict=True):
        clips = rng.integers(0, 256, (shape.clips, frames, crop, crop, 3), np.uint8)
        drawn = zip(*(sampler.sample(program.step, row) for row in range(shape.clips)))
        masks = tuple(Mask(*map(np.stack, zip(*rows))) for rows in drawn)
        groups.append(Group(clips, masks))
    return Batch(tuple(groups))


def abstract_batch(config: MaskedVideoConfig, samplers: dict[int, Any], program: Program, mesh):
    """The shapes of `make_batch` on the mesh."""
    import jax
    import jax.numpy as jnp

    from jepa_jax.data import Batch, Group
    from jepa_jax.masks import Mask
    from jepa_jax.sharding import BATCH

    sharding, crop = jax.NamedSharding(mesh, BATCH), config.data.crop

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return Batch(
        tuple(
            Group(
                array(jnp.uint8, g.clips, frames, crop, crop, 3),
                tuple(Mask(*(array(jnp.int32, g.clips, n) for n in pair)) for pair in g.masks),
            )
            for g, frames in zip(program.groups, samplers, strict=True)
        )
    )


def compile_step(step, state, batch) -> tuple[Any, dict[str, Any]]:
    """The compiled step, and its costs: seconds of wall and of all cores, bytes a device."""
    walls, cores, stage = [time.perf_counter()], [time.process_time()], step
    for make in (lambda s: s.trace(state, batch), lambda s: s.lower(), lambda s: s.compile()):
        stage = make(stage)
        walls.append(time.perf_counter())
        cores.append(time.process_time())
    names = ('trace', 'lower', 'compile')
    found: dict[str, Any] = {
        'seconds': dict(zip(names, (b - a for a, b in zip(walls, walls[1:])))),
        'core_seconds': dict(zip(names, (b - a for a, b in zip(cores, cores[1:])))),
    }
    if memory := stage.memory_analysis():  # what the allocator was told to need
        found['memory_bytes'] = {
            'arguments': memory.argument_size_in_bytes,
            'outputs in place of arguments': memory.alias_size_in_bytes,
            'other outputs': memory.output_size_in_bytes - memory.alias_size_in_bytes,
            'temporary': memory.temp_size_in_bytes,
        }
    return stage, found


def matmul_peak(dtype, rounds: int = 5) -> float:
    """FLOP/s of the best of a few square matrix products on one device."""
    import jax
    import jax.numpy as jnp

    size = 1536 if jax.default_backend() == 'cpu' else 8192
    # float32 as the models take it: not rounded to a coarser type on the way
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision)).lower(a, a).compile()
    product(a, a).block_until_ready()
    times = []
    for _ in range(rounds):
        mark = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - mark)
    return 2 * size**3 / min(times)


def time_steps(compiled, state, batch, steps: int, warmup: int) -> Iterator[float]:
    """Seconds of each step after the warm-up.

    Raises:
      FloatingPointError: a step was not finite, and its time therefore without its update.
    """
    import jax

    for number in range(warmup + steps):
        mark = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - mark
        if not metrics['finite']:
            raise FloatingPointError(f'step {number + 1} is not finite: its time means nothing')
        if number >= warmup:
            yield seconds


def bench(
    config: MaskedVideoConfig,
    steps: int = 20,
    warmup: int = 2,
    limit: int = 1,
    compile_only: bool = False,
) -> dict[str, Any]:
    """Measures the first `limit` programs of `config` on all devices; the figures, JSON-ready."""
    import jax

    from jepa_jax import optim, sharding
    from jepa_jax.chips import peak_flops
    from jepa_jax.data.videos import split_rows
    from jepa_jax.errors import ConfigError
    from jepa_jax.objectives.masked_video import MaskedVideo
    from jepa_jax.state import init_state
    from jepa_jax.step import make_step

    jax.config.update('jax_enable_compilation_cache', False)
    devices = jax.devices()
    parts = len(devices) * config.optim.accumulate
    if config.optim.batch % parts:
        raise ConfigError(
            f'optim.batch = {config.optim.batch}: must be a multiple of {parts} '
            f'({len(devices)} devices x optim.accumulate {config.optim.accumulate})'
        )
    quotas = split_rows(config, config.optim.batch // parts)
    rows = {frames: quota * parts for frames, quota in quotas.items()}
    samplers = mask_samplers(config, rows)
    found = programs(config, samplers, rows)

    mesh, objective = sharding.make_mesh(config.mesh.fsdp), MaskedVideo.of(config)
    abstract = {'encoder': objective.encoder.abstract, 'predictor': objective.predictor.abstract}
    tx = optim.optimizer(config.optim, optim.decay_mask(abstract, objective.unused))
    kind = devices[0].device_kind
    result: dict[str, Any] = {
        'config': config.name,
        'devices': len(devices),
        'device': kind,
        'dtype': config.compute_dtype,
        'batch': config.optim.batch,
        'accumulate': config.optim.accumulate,
        'remat': config.mesh.remat,
        'parameters': {
            name: sum(leaf.size for leaf in jax.tree.leaves(tree))
            for name, tree in abstract.items()
        },
        'programs_of_the_run': len(found),
        'programs': [],
    }

    def make(key):
        return init_state(objective, tx, key)

    with jax.set_mesh(mesh):
        shapes = sharding.concrete(jax.eval_shape(make, jax.random.key(0)), mesh)
        if not compile_only:
            measured = len(devices) * matmul_peak(config.compute_dtype)
            published = len(devices) * (peak_flops(kind, config.compute_dtype) or 0.0)
            peak = published or measured
            result |= {'matmul_flops_per_s': measured, 'published_flops_per_s': published or None}
        for program in found[:limit]:
            step = jax.jit(make_step(objective, tx, config.optim), donate_argnums=0)
            arguments = shapes, abstract_batch(config, samplers, program, mesh)
            compiled, row = compile_step(step, *arguments)
            row['tokens'] = [[list(pair) for pair in group.masks] for group in program.groups]
            row['model_flops'] = dataclasses.asdict(program.flops) | {'total': program.flops.total}
            if not compile_only:
                state = jax.jit(make)(jax.random.key(config.seed))
                batch = sharding.put_batch(make_batch(config, samplers, program), mesh)
                times = list(time_steps(compiled, state, batch, steps, warmup))
                del state
                seconds = statistics.median(times)
                rate = program.flops.total / seconds
                row |= {
                    'step_seconds': seconds,
                    'step_seconds_range': [min(times), max(times)],
                    'clips_per_s': config.optim.batch / seconds,
                    'model_flops_per_s': rate,
                    'mfu': rate / peak,
                    'share_of_matmul': rate / measured,
                }
            result['programs'].append(row)
    stats = devices[0].memory_stats() or {}  # None on CPUs
    result['peak_device_bytes'] = stats.get('peak_bytes_in_use')
    unit = 1 if sys.platform == 'darwin' else 1024  # of ru_maxrss
    result['peak_resident_bytes'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return result


def show(result: dict[str, Any]) -> None:
    r = result
    million = ' + '.join(f'{n / 1e6:.1f} M {name}' for name, n in r['parameters'].items())
    parts = f' in {r["accumulate"]} parts' if r['accumulate'] > 1 else ''
    print(f'{r["config"]}: {million} parameters, {r["dtype"]}, remat {r["remat"]}')
    print(f'{r["devices"]} x {r["device"]}, {r["batch"]} clips a step{parts}')
    for i, p in enumerate(r['programs']):
        tokens = '; '.join(', '.join(f'{k} -> {m}' for k, m in group) for group in p['tokens'])
        print(f'program {i + 1} of {r["programs_of_the_run"]}, context -> target tokens: {tokens}')
        for key, unit in (('seconds', 's'), ('core_seconds', 's of all cores')):
            stages = ', '.join(f'{name} {took:.1f}' for name, took in p[key].items())
            print(f'  {stages} {unit}')
        if memory := p.get('memory_bytes'):
            sizes = ', '.join(f'{name} {size / GIB:.3f}' for name, size in memory.items())
            print(f'  planned GiB a device: {sizes}')
        f = p['model_flops']
        shares = ', '.join(
            f'{name} {f[name] / f["total"]:.0%}' for name in ('target', 'context', 'predictor')
        )
        print(f'  model FLOPs a step: {f["total"]:.4g} ({shares})')
        if 'mfu' in p:
            low, high = p['step_seconds_range']
            against = 'published peak' if r['published_flops_per_s'] else 'measured product'
            print(
                f'  {p["step_seconds"]:.4f} s a step ({low:.4f} to {high:.4f}), '
                f'{p["clips_per_s"]:.1f} clips/s'
            )
            print(
                f'  {p["model_flops_per_s"]:.3g} FLOP/s: MFU {p["mfu"]:.1%} of the {against}; '
                f'{p["share_of_matmul"]:.1%} of a large product in this run, '
                f'{r["matmul_flops_per_s"]:.3g} FLOP/s'
            )
    if r['peak_device_bytes']:
        print(f'peak memory of the first device {r["peak_device_bytes"] / GIB:.2f} GiB')
    print(f'peak resident memory of this process {r["peak_resident_bytes"] / GIB:.2f} GiB')


def run(config: MaskedVideoConfig, workdir: str, json_file: str | None, **options: Any) -> None:
    """The tool: prints the figures, and writes them if asked to."""
    del workdir
    for item in config.data.lists:
        item.path = item.path or '(not read)'  # recipes for own video leave it to the user
    validate(config)
    result = bench(config, **options)
    show(result)
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=2) + '\n')


def _options(parser: argparse.ArgumentParser) -> None:
    def count(text: str) -> int:
        number = int(text)
        if number < 1:
            raise argparse.ArgumentTypeError(f'{text}: must be at least 1')
        return number

    add = parser.add_argument
    add('--steps', type=count, default=20, metavar='N', help='timed steps (%(default)s)')
    add('--warmup', type=count, default=2, metavar='N', help='steps before (%(default)s)')
    add(
        '--programs', type=count, default=1, metavar='N', dest='limit',
        help='programs measured (%(default)s)',
    )  # fmt: skip
    add('--compile-only', action='store_true', help='compile time and planned memory, no step')
    add('--json', metavar='FILE', dest='json_file', help='write the figures')


def main() -> int:
    return cli.run(run, doc=__doc__, options=_options)


if __name__ == '__main__':
    sys.exit(main())
