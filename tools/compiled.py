"""Compiles the real step of a config for devices that need not be there, and says what it takes.

    python -m tools.dry_run --config=configs/vitg.py --topology v5p:4x4x4 [--json FILE]

Nothing is read from the config's lists and no array is made. With --topology the step is compiled
for a slice of TPUs by libtpu (`pip install 'jepa_jax[tpu]'`; no TPU is needed), without it for the
devices of this machine. Of a run's programs, up to four sets of token counts, the largest is taken.

Printed: memory of a device against the chip's; model FLOPs (what the step is worth, forward and
backward) and program FLOPs (what the compiled program executes, recomputation included); the
collectives; the least time that a step can take by the chip's published peaks of compute, memory
and interconnect, and the model FLOP utilisation that this bound allows. A bound is not a forecast:
it supposes that all three overlap fully. Exit status 1 if the step does not fit below 85 % of a
chip's memory, stores scores of every pair of tokens, or communicates what it should not.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from jepa_jax import cli
from jepa_jax.config import MaskedVideoConfig
from jepa_jax.errors import ConfigError
from jepa_jax.recipes import validate
from tools.hlo import Array, Collective

GIB = 2**30
MOST_MEMORY = 0.85  # of a chip's
SMALL = 2**16  # elements: losses, norms, biases
PADDING = 64  # rows, less than which libtpu adds to a device's share of a reduce-scatter
KINDS = ('v4', 'v5e', 'v5p', 'v6e')


class DryRunError(RuntimeError):
    """The step would not run well: says why, one reason after the other."""


def slice_devices(topology: str) -> list:
    """The devices of a TPU slice that need not be attached; `v5p:4x4x4`.

    Raises:
      ConfigError: no such slice, or no libtpu to ask.
    """
    if not re.fullmatch(rf'({"|".join(KINDS)}):\d+(x\d+){{1,2}}', topology):
        raise ConfigError(
            f'--topology {topology}: must be KIND:AxB or KIND:AxBxC, KIND one of {", ".join(KINDS)}'
        )
    # libtpu looks for the machine it is on, and wants to be alone on it; neither matters here
    os.environ |= {
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_ACCELERATOR_TYPE': 'none',
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
        'TPU_STDERR_LOG_LEVEL': '3',
    }
    try:
        import libtpu  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError("--topology needs libtpu: pip install 'jepa_jax[tpu]'") from error
    import jax
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform='tpu', topology_name=topology)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'--topology {topology}: no slice that libtpu knows ({reason})'
        ) from error
    return list(found.devices)


def dry_run(config: MaskedVideoConfig, devices: list, topology: str) -> tuple[dict[str, Any], str]:
    """What the step of `config` takes on `devices`, JSON-ready, and the compiled program's text.

    Raises:
      ConfigError: the batch does not split over the devices.
    """
    import jax

    from jepa_jax import optim, sharding
    from jepa_jax.chips import CHIPS
    from jepa_jax.data.pipeline import split_rows
    from jepa_jax.objectives.masked_video import MaskedVideo
    from jepa_jax.state import init_state
    from jepa_jax.step import make_step
    from tools.bench_step import abstract_batch, compile_step, mask_samplers, programs
    from tools.hlo import Program

    jax.config.update('jax_enable_compilation_cache', False)
    parts = len(devices) * config.optim.accumulate
    if config.optim.batch % parts:
        raise ConfigError(
            f'optim.batch = {config.optim.batch}: must be a multiple of {parts} '
            f'({len(devices)} devices x optim.accumulate {config.optim.accumulate})'
        )
    quotas = split_rows(config, config.optim.batch // parts)
    samplers = mask_samplers(config, rows := {frames: n * parts for frames, n in quotas.items()})
    largest = max(programs(config, samplers, rows), key=lambda program: program.flops.total)

    mesh, objective = sharding.make_mesh(config.mesh.fsdp, devices), MaskedVideo.of(config)
    abstract = {'encoder': objective.encoder.abstract, 'predictor': objective.predictor.abstract}
    tx = optim.optimizer(config.optim, optim.decay_mask(abstract, objective.unused))
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda key: init_state(objective, tx, key), key)
        state = sharding.concrete(state, mesh)
        step = jax.jit(make_step(objective, tx, config.optim), donate_argnums=0)
        compiled, costs = compile_step(step, state, abstract_batch(config, samplers, largest, mesh))
    text = compiled.as_text()
    program = Program(text)

    kind = devices[0].device_kind
    chip = CHIPS.get(kind)
    memory = costs['memory_bytes']
    needed = sum(memory[use] for use in ('arguments', 'other outputs', 'temporary'))
    capacity = chip.memory if chip and chip.memory else _host_memory() / len(devices)
    collectives = program.collectives()
    roof = {'compute': None, 'memory': None, 'interconnect': None}
    flops, moved = program.flops(), program.bytes_moved()
    received = sum(each.received for each in collectives)
    if chip and chip.bandwidth and config.compute_dtype == 'bfloat16':
        roof = {
            'compute': flops / chip.flops,
            'memory': moved / chip.bandwidth,
            'interconnect': received / chip.interconnect,
        }
    bound = max(roof.values()) if roof['compute'] else None
    sharded, replicated = _storage(state)
    by_kind = _by_kind(collectives)
    expected = _Expected(abstract, config.mesh.fsdp)
    padding = [c for c in collectives if c.kind == 'collective-permute' and expected.holds(c)]
    tokens = _token_counts(largest)
    result = {
        'config': config.name,
        'topology': topology,
        'device': kind,
        'devices': len(devices),
        'mesh': dict(mesh.shape),
        'global_batch': config.optim.batch,
        'accumulate': config.optim.accumulate,
        'remat': config.mesh.remat,
        'compute_dtype': config.compute_dtype,
        'clips_per_device': config.optim.batch // parts,
        'tokens': [[g.tokens, [list(pair) for pair in g.masks]] for g in largest.groups],
        'params': sum(leaf.size for leaf in jax.tree.leaves(abstract)),
        'state_bytes': sharded + replicated,
        'replicated_state_bytes': replicated,
        'argument_bytes_per_device': memory['arguments'],
        'temporary_bytes_per_device': memory['temporary'],
        'memory_bytes_of_device': int(capacity),
        'memory_fraction': needed / capacity,
        'largest_buffers': [
            {'array': str(array), 'bytes': array.bytes, 'made_by': source}
            for array, source in program.arrays()[:6]
        ],
        'model_flops': largest.flops.total,
        'program_flops': flops * len(devices),
        'recomputation': flops * len(devices) / largest.flops.total,
        'kernels': program.kernels(),
        'uncounted_kernels': sorted(program.uncounted_kernels),
        'loops_of_unknown_length': len(program.unknown_loops),
        'collectives': by_kind,
        'collectives_for_padding': _by_kind(padding),
        'unexpected_collectives': sorted(
            {
                f'{c.kind} of {", ".join(sorted({str(a) for a in c.arrays}))} ({c.source})'
                for c in collectives
                if not expected.holds(c)
            }
        ),
        'score_buffers': sorted(
            {str(array) for array, _ in program.arrays() if _holds_scores(array.dims, tokens)}
        ),
        'hbm_bytes_per_device': moved,
        'interconnect_bytes_per_device': int(received),
        'seconds_at_least': roof,
        'step_seconds_bound': bound,
        'mfu_ceiling': bound and largest.flops.total / (len(devices) * chip.flops * bound),
        'lower_seconds': costs['seconds']['trace'] + costs['seconds']['lower'],
        'compile_seconds': costs['seconds']['compile'],
        'compile_core_seconds': costs['core_seconds']['compile'],
    }
    return result, text


def _host_memory() -> int:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _storage(state) -> tuple[int, int]:
    """Bytes of the state that are sharded over fsdp, and that every device holds whole."""
    import jax

    found = {True: 0, False: 0}
    for leaf in jax.tree.leaves(state):
        found['fsdp' in leaf.sharding.spec] += leaf.size * leaf.dtype.itemsize
    return found[True], found[False]


class _Expected:
    """What gathering parameters and reducing their gradients may move.

    Whole arrays, a layer of them, and a device's share of each. Beside these, libtpu pads shares
    that do not fill its tiles (176 columns of ViT-g to 192): it then reduces the padded array, and
    puts its rows right by collective-permutes of no more rows than it added.
    """

    def __init__(self, abstract, fsdp: int):
        import jax

        from jepa_jax.sharding import path_name, spec_for

        self._sizes: set[int] = set()
        self._sharded: set[tuple[int, int]] = set()  # length of the sharded axis, of the other one
        self._most = PADDING * fsdp
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
            name = path_name(path)
            layer = leaf.shape[1:] if 'blocks' in name else leaf.shape
            for size in (leaf.size, math.prod(layer)):
                self._sizes |= {size, size // fsdp}
            spec = spec_for(name)
            if 'fsdp' in spec:
                axis = spec.index('fsdp') - len(leaf.shape)
                self._sharded.add((layer[axis], math.prod(layer) // layer[axis]))

    def holds(self, collective: Collective) -> bool:
        """Whether it moves these, or arrays of few elements."""
        if collective.kind == 'collective-permute':
            return all(any(0 < n < self._most for n in self._rows(a)) for a in collective.arrays)
        return all(a.size <= SMALL or self._is_parameter(a) for a in collective.arrays)

    def _is_parameter(self, array: Array) -> bool:
        added = self._rows(array, beyond=True)
        return array.size in self._sizes or any(0 < n < self._most for n in added)

    def _rows(self, array: Array, beyond: bool = False) -> list[int]:
        """Rows that an array has along the sharded axis of parameters as wide as it is; or rows
        beyond theirs."""
        dims = [n for n in array.dims if n > 1]
        pairs = [dims, dims[::-1]] if len(dims) == 2 else []
        return [
            rows - length * beyond
            for rows, columns in pairs
            for length, other in self._sharded
            if columns == other
        ]


def _token_counts(program) -> set[int]:
    """Every sequence length of a program, as it is and as kernels pad it."""
    counts = set()
    for group in program.groups:
        counts |= {group.tokens}
        for context, target in group.masks:
            counts |= {context, context + target}
    return counts


def _holds_scores(dims: tuple[int, ...], tokens: set[int]) -> bool:
    """Whether an array has two axes as long as a sequence or longer, beside clips or heads."""
    for n in tokens:
        axes = [d for d in dims if n <= d < n + 512]
        if n >= 1024 and len(axes) >= 2 and len(dims) >= 3 and len(set(axes)) == 1:
            return True
    return False


def _by_kind(collectives) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = collections.defaultdict(lambda: {'count': 0, 'bytes': 0})
    for each in collectives:
        found[each.kind]['count'] += each.times
        found[each.kind]['bytes'] += each.bytes * each.times
    return dict(sorted(found.items()))


def objections(result: dict[str, Any]) -> list[str]:
    """What should not be, a line each."""
    r, found = result, []
    if r['memory_fraction'] > MOST_MEMORY:
        found.append(
            f'needs {r["memory_fraction"]:.0%} of the memory, at most {MOST_MEMORY:.0%} is '
            'allowed: raise optim.accumulate or mesh.fsdp, or take more devices'
        )
    if r['score_buffers']:
        found.append(f'stores attention scores: {", ".join(r["score_buffers"])}')
    found += [f'unexpected collective: {each}' for each in r['unexpected_collectives']]
    if r['uncounted_kernels']:
        found.append(f'kernels that are not counted: {", ".join(r["uncounted_kernels"])}')
    if r['loops_of_unknown_length']:
        found.append(f'{r["loops_of_unknown_length"]} loops of unknown length, counted once')
    return found


def show(result: dict[str, Any]) -> None:
    r = result
    parts = f' in {r["accumulate"]} parts' if r['accumulate'] > 1 else ''
    mesh = ' x '.join(f'{axis} {size}' for axis, size in r['mesh'].items())
    print(f'{r["config"]} on {r["topology"]}: {r["devices"]} x {r["device"]}, mesh {mesh}')
    print(
        f'{r["params"]:,} parameters, {r["compute_dtype"]}, remat {r["remat"]}; batch '
        f'{r["global_batch"]:,}{parts}, {r["clips_per_device"]} clips at a time on a device'
    )
    print(
        f'memory of a device: {r["argument_bytes_per_device"] / GIB:.2f} GiB of arguments, '
        f'{r["temporary_bytes_per_device"] / GIB:.2f} GiB of temporaries: '
        f'{r["memory_fraction"]:.0%} of {r["memory_bytes_of_device"] / GIB:.1f} GiB, '
        f'{"fits" if r["memory_fraction"] <= MOST_MEMORY else "does not fit"}'
    )
    for each in r['largest_buffers']:
        print(f'  {each["bytes"] / GIB:7.3f} GiB  {each["array"]}  {each["made_by"][-70:]}')
    print(
        f'FLOPs a step: model {r["model_flops"]:.4g}, program {r["program_flops"]:.4g} '
        f'({r["recomputation"]:.2f} times)'
    )
    for name, count in r['kernels'].items():
        print(f'  kernel {name}: {count}')
    for kind, each in r['collectives'].items():
        print(f'{kind}: {each["count"]} of {each["bytes"] / GIB:.3f} GiB in all, on each device')
    for each in r['collectives_for_padding'].values():
        print(f'  of these {each["count"]} to put rows right after padded reduce-scatters')
    print(f'HBM traffic of a device: {r["hbm_bytes_per_device"] / GIB:.1f} GiB')
    if r['step_seconds_bound']:
        times = ', '.join(f'{use} {s:.3f} s' for use, s in r['seconds_at_least'].items())
        print(f'least time by published peaks: {times}')
        print(
            f'a step takes at least {r["step_seconds_bound"]:.3f} s: at most '
            f'{r["global_batch"] / r["step_seconds_bound"]:,.0f} clips/s, '
            f'MFU at most {r["mfu_ceiling"]:.1%}'
        )
    else:
        print(f'no bound on time: no published peaks of {r["device"]} with {r["compute_dtype"]}')
    print(
        f'lowered in {r["lower_seconds"]:.1f} s, compiled in {r["compile_seconds"]:.1f} s, '
        f'{r["compile_core_seconds"]:.0f} s of a core'
    )


def allow_unread(config: MaskedVideoConfig) -> None:
    """Fills in what a recipe leaves to its user and is not read here: lists, the run before."""
    for item in config.data.lists:
        item.path = item.path or '(not read)'
    if config.checkpoints.restart_schedule and not config.checkpoints.init_from:
        config.checkpoints.resume_from = '(not read)'


def run(
    config: MaskedVideoConfig,
    workdir: str,
    topology: str | None,
    json_file: str | None,
    hlo_file: str | None,
) -> None:
    """The tool: prints, and writes what it is asked to.

    Raises:
      DryRunError: something in `objections`.
    """
    del workdir
    allow_unread(config)
    validate(config)
    if topology:
        os.environ['JAX_PLATFORMS'] = 'cpu'  # libtpu compiles, but there is no TPU to start
        devices = slice_devices(topology)
    else:
        import jax

        devices, topology = jax.devices(), 'this machine'
    began = time.monotonic()
    result, text = dry_run(config, devices, topology)
    show(result)
    print(f'{time.monotonic() - began:.0f} s in all')
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=2) + '\n')
    if hlo_file:
        Path(hlo_file).write_text(text)
    if found := objections(result):
        raise DryRunError('; '.join(found))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--topology', metavar='KIND:AxB[xC]', help='a TPU slice, such as v5p:4x4x4')
    parser.add_argument('--json', dest='json_file', metavar='FILE', help='write the figures there')
    parser.add_argument('--hlo', dest='hlo_file', metavar='FILE', help='write the program there')


def main() -> int:
    return cli.run(run, doc=__doc__, options=_options)


if __name__ == '__main__':
    sys.exit(main())
