"""What the compiled step of a config takes and does: memory, FLOPs, collectives, a bound on time.

Model FLOPs are what the step is worth, forward and backward; program FLOPs what the compiled
program executes, recomputation included. The bound is the least time by the chip's published peaks
of compute, memory and interconnect: it supposes that all three overlap fully, so it is no forecast.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax

from jepa_jax import memory
from jepa_jax.chips import CHIPS
from jepa_jax.config import RunConfig
from jepa_jax.memory import FILLED, GIB
from jepa_jax.nets import Net
from jepa_jax.sharding import path_name

from . import hlo, steps
from .hlo import Array, Collective

SMALL = 2**16  # elements: losses, norms, biases
PADDING = 64  # rows, less than which libtpu adds to a device's share of a reduce-scatter


def analyse(config: RunConfig, devices: list, topology: str) -> tuple[dict[str, Any], str]:
    """What the largest program of a settled config takes on `devices`, JSON-ready, and the compiled
    program's text.

    topology: what the devices are, for people.
    """
    jax.config.update('jax_enable_compilation_cache', False)
    largest = max(steps.programs(config, len(devices)), key=lambda program: program.total)
    step = steps.Step.of(config, devices)
    with jax.set_mesh(step.mesh):
        compiled, costs = step.compile(largest, lambda line: print(line, flush=True))
    text = compiled.as_text()
    program = hlo.Program(text)

    kind = devices[0].device_kind
    chip = CHIPS.get(kind)
    planned = costs['memory_bytes']
    needed = sum(planned[use] for use in ('arguments', 'other outputs', 'temporary'))
    capacity = steps.memory_of(kind)
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
    nets, frozen = step.objective.nets, step.objective.frozen
    sharded, replicated = _storage(step.state)
    expected = Expected({**nets, **frozen}, config.mesh.fsdp)
    padding = [c for c in collectives if c.kind == 'collective-permute' and expected.holds(c)]
    result = {
        'config': config.name,
        'objective': config.objective,
        'topology': topology,
        'device': kind,
        'devices': len(devices),
        'mesh': dict(step.mesh.shape),
        'global_batch': config.optim.batch,
        'accumulate': config.optim.accumulate,
        'remat': config.mesh.remat,
        'compute_dtype': config.compute_dtype,
        'clips_per_device': config.optim.batch // (len(devices) * config.optim.accumulate),
        'program': largest.words,
        'tokens': sorted(largest.tokens),
        'params': steps.size(nets),
        'frozen_params': steps.size(frozen),
        'state_bytes': sharded + replicated,
        'replicated_state_bytes': replicated,
        'frozen_bytes': sum(_storage(step.frozen)),
        'argument_bytes_per_device': planned['arguments'],
        'temporary_bytes_per_device': planned['temporary'],
        'estimated_bytes_per_device': int(memory.estimate(config, len(devices))['total'] * GIB),
        'memory_bytes_of_device': int(capacity),
        'memory_fraction': needed / capacity,
        'largest_buffers': [
            {'array': str(array), 'bytes': array.bytes, 'made_by': source}
            for array, source in program.arrays()[:6]
        ],
        'model_flops': largest.total,
        'program_flops': flops * len(devices),
        'recomputation': flops * len(devices) / largest.total,
        'kernels': program.kernels(),
        'uncounted_kernels': sorted(program.uncounted_kernels),
        'loops_of_unknown_length': len(program.unknown_loops),
        'collectives': _by_kind(collectives),
        'collectives_for_padding': _by_kind(padding),
        'unexpected_collectives': sorted(
            {
                f'{c.kind} of {", ".join(sorted({str(a) for a in c.arrays}))} ({c.source})'
                for c in collectives
                if not expected.holds(c)
            }
        ),
        'score_buffers': scores(
            (a for a, _ in program.arrays()),
            largest.tokens,
            expected,
            config.optim.batch // (len(devices) * config.optim.accumulate),
        ),
        'hbm_bytes_per_device': moved,
        'interconnect_bytes_per_device': int(received),
        'seconds_at_least': roof,
        'step_seconds_bound': bound,
        'mfu_ceiling': bound and largest.total / (len(devices) * chip.flops * bound),
        'lower_seconds': costs['seconds']['trace'] + costs['seconds']['lower'],
        'compile_seconds': costs['seconds']['compile'],
        'compile_core_seconds': costs['core_seconds']['compile'],
    }
    return result, text


def _storage(tree) -> tuple[int, int]:
    """Bytes of arrays that are sharded over fsdp, and that every device holds whole."""
    stored = {True: 0, False: 0}
    for leaf in jax.tree.leaves(tree):
        stored['fsdp' in leaf.sharding.spec] += leaf.size * leaf.dtype.itemsize
    return stored[True], stored[False]


class Expected:
    """What gathering parameters and reducing their gradients may move.

    Whole arrays, a layer of them, and a device's share of each. Beside these, libtpu pads shares
    that do not fill its tiles (176 columns of ViT-g to 192): it then reduces the padded array, and
    puts its rows right by collective-permutes of no more rows than it added.
    """

    def __init__(self, nets: Mapping[str, Net], fsdp: int):
        self._sizes: set[int] = set()
        self._sharded: set[tuple[int, int]] = set()  # length of the sharded axis, of the other one
        self._most = PADDING * fsdp
        self._widths: set[int] = set()
        self._depths: set[int] = {1}
        for net in nets.values():
            places = jax.tree.leaves(net.specs)
            for (path, leaf), spec in zip(
                jax.tree_util.tree_leaves_with_path(net.abstract), places, strict=True
            ):
                layer = leaf.shape[1:] if 'blocks' in path_name(path).split('/') else leaf.shape
                self._widths |= set(layer)
                self._depths |= set(leaf.shape[: len(leaf.shape) - len(layer)])
                for size in (leaf.size, math.prod(layer)):
                    self._sizes |= {size, size // fsdp}
                if 'fsdp' in spec:
                    axis = spec.index('fsdp') - len(leaf.shape)
                    self._sharded.add((layer[axis], math.prod(layer) // layer[axis]))

    def holds(self, collective: Collective) -> bool:
        """Whether it moves these, or arrays of few elements."""
        if collective.kind == 'collective-permute':
            return all(any(0 < n < self._most for n in self._rows(a)) for a in collective.arrays)
        return all(a.size <= SMALL or self.is_parameter(a) for a in collective.arrays)

    def is_parameter(self, array: Array) -> bool:
        """Whether it is as large as a parameter, a layer of it or a share, padded or not."""
        added = self._rows(array, beyond=True)
        return array.size in self._sizes or any(0 < n < self._most for n in added)

    def is_stream(self, array: Array, rows: int) -> bool:
        """Whether it is what `rows` sequences are between blocks as wide as they are long: of one
        block, or what is kept of all, which is of 16 bits where scores are of 32."""
        first = math.prod(array.dims[:-2])
        kept = array.dtype == 'bf16' and first in {rows * depth for depth in self._depths}
        return array.dims[-1] in self._widths and (first == rows or kept)

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


def scores(
    arrays: Iterable[Array], tokens: Collection[int], expected: Expected, rows: int = 0
) -> list[str]:
    """Arrays that hold attention scores; not weights as wide as a sequence is long, such as those
    of ViT-G, 1664, beside 192 + 1472 tokens, nor what blocks of that width pass on of so many
    rows, such as Llama 3.1 8B of 4096 tokens."""

    def stored(a: Array) -> bool:
        square = holds_scores(a.dims, tokens) and not expected.is_parameter(a)
        return square and not expected.is_stream(a, rows)

    return sorted({str(a) for a in arrays if stored(a)})


def holds_scores(dims: tuple[int, ...], tokens: Collection[int]) -> bool:
    """Whether an array has two axes as long as a sequence or longer, beside clips or heads."""
    for n in tokens:
        axes = [d for d in dims if n <= d < n + 512]
        if n >= 1024 and len(axes) >= 2 and len(dims) >= 3 and len(set(axes)) == 1:
            return True
    return False


def _by_kind(collectives) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = collections.defaultdict(lambda: {'count': 0, 'bytes': 0})
    for each in collectives:
        totals[each.kind]['count'] += each.times
        totals[each.kind]['bytes'] += each.bytes * each.times
    return dict(sorted(totals.items()))


def objections(result: dict[str, Any]) -> list[str]:
    """What should not be, a line each."""
    r, complaints = result, []
    if r['memory_fraction'] > FILLED:
        complaints.append(
            f'needs {r["memory_fraction"]:.0%} of the memory, at most {FILLED:.0%} is '
            'allowed: raise optim.accumulate or mesh.fsdp, or take more devices'
        )
    if r['score_buffers']:
        complaints.append(f'stores attention scores: {", ".join(r["score_buffers"])}')
    complaints += [f'unexpected collective: {each}' for each in r['unexpected_collectives']]
    if r['uncounted_kernels']:
        complaints.append(f'kernels that are not counted: {", ".join(r["uncounted_kernels"])}')
    if r['loops_of_unknown_length']:
        complaints.append(f'{r["loops_of_unknown_length"]} loops of unknown length, counted once')
    return complaints


def show(result: dict[str, Any]) -> None:
    r = result
    parts = f' in {r["accumulate"]} parts' if r['accumulate'] > 1 else ''
    mesh = ' x '.join(f'{axis} {size}' for axis, size in r['mesh'].items())
    print(f'{r["config"]} on {r["topology"]}: {r["devices"]} x {r["device"]}, mesh {mesh}')
    frozen = f' and {r["frozen_params"]:,} frozen' if r['frozen_params'] else ''
    print(
        f'{r["params"]:,}{frozen} parameters, {r["compute_dtype"]}, remat {r["remat"]}; batch '
        f'{r["global_batch"]:,}{parts}, {r["clips_per_device"]} clips at a time on a device; '
        f'{r["program"]}'
    )
    print(
        f'memory of a device: {r["argument_bytes_per_device"] / GIB:.2f} GiB of arguments, '
        f'{r["temporary_bytes_per_device"] / GIB:.2f} GiB of temporaries: '
        f'{r["memory_fraction"]:.0%} of {r["memory_bytes_of_device"] / GIB:.1f} GiB, '
        f'{"fits" if r["memory_fraction"] <= FILLED else "does not fit"} '
        f'(estimated: {r["estimated_bytes_per_device"] / GIB:.2f} GiB)'
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
