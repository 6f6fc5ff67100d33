"""What each policy of `mesh.remat` keeps for the backward pass and computes again, by tracing.

Kept: bytes on a device that one layer's forward pass leaves for its backward pass, over all layers.
FLOPs: of all products with their loops' lengths and of attention kernels; over the model FLOPs,
what a step costs beyond its worth. What else a step holds (state, gradients, targets, the block at
work) comes on top.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

from jepa_jax.config import RunConfig
from jepa_jax.errors import ConfigError
from jepa_jax.memory import GIB, KEPT

from . import steps
from .hlo import SPLASH


class Traced:
    """Products and kept arrays of a traced step.

    Args:
      jaxpr: of the step.
      devices: that it runs on.
      clips: at a time, over all devices, of each group; of what layers stack, arrays with such an
        axis are kept.

    Raises:
      ConfigError: a kernel that cannot be counted.
    """

    def __init__(self, jaxpr, devices: int, clips: set[int]):
        self._devices, self._clips = devices, clips
        self.kept = 0  # bytes on a device
        self.flops = self._walk(jaxpr, 1)

    def _walk(self, jaxpr, times: int) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            name, inner = eqn.primitive.name, list(jaxprs_in_params(eqn.params))
            if name == 'dot_general':
                (axes, _), _ = eqn.params['dimension_numbers']
                depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in axes)
                total += times * 2 * depth * math.prod(eqn.outvars[0].aval.shape)
            elif name == 'pallas_call':
                total += times * _kernel(eqn)
            elif name == 'scan':
                self._keep(eqn)
                total += sum(self._walk(body, times * eqn.params['length']) for body in inner)
            elif name == 'cond':
                total += max(self._walk(branch, times) for branch in inner)
            else:  # within shard_map shapes are those of one device
                each = times * self._devices if name == 'shard_map' else times
                total += sum(self._walk(body, each) for body in inner)
        return total

    def _keep(self, eqn) -> None:
        for out in eqn.outvars[eqn.params['num_carry'] :]:
            shape = out.aval.shape
            if len(shape) >= 3 and self._clips & set(shape[1:3]):
                self.kept += out.aval.size * out.aval.dtype.itemsize // self._devices


def _kernel(eqn) -> int:
    """FLOPs of one run of a splash kernel on one device."""
    name = str(eqn.params['name'])
    kernel = next((k for k in SPLASH if k in name), None)
    if kernel is None:
        raise ConfigError(f'kernel {name}: not known, its FLOPs cannot be counted')
    arrays = [v.aval for v in eqn.invars if v.aval.dtype.name in ('float32', 'bfloat16')]
    q, k = [a.shape for a in arrays if len(a.shape) in (3, 4)][:2]
    return SPLASH[kernel] * 2 * math.prod(q) * k[-2]


def trace(config: RunConfig, devices: list) -> dict[str, Any]:
    """What the largest program of a settled config keeps and computes on `devices`."""
    largest = max(steps.programs(config, len(devices)), key=lambda program: program.total)
    step = steps.Step.of(config, devices)
    with jax.set_mesh(step.mesh):
        jaxpr = step.function.trace(*step.arguments(largest)).jaxpr.jaxpr
    rows = {leaf.shape[0] // config.optim.accumulate for leaf in jax.tree.leaves(largest.shapes)}
    traced = Traced(jaxpr, len(devices), rows)
    return {
        'kept_bytes_per_device': traced.kept,
        'flops': traced.flops,
        'model_flops': largest.total,
    }


def policies(config: RunConfig, devices: list) -> dict[str, dict[str, Any]]:
    """The `trace` of every policy; prints a line each."""
    print('| mesh.remat | kept for the backward pass, GiB a device | FLOPs | over model FLOPs |')
    print('|---|---|---|---|')
    rows = {}
    for remat in KEPT:
        mesh = dataclasses.replace(config.mesh, remat=remat)
        rows[remat] = row = trace(dataclasses.replace(config, mesh=mesh), devices)
        kept, over = row['kept_bytes_per_device'] / GIB, row['flops'] / row['model_flops']
        print(f'| `{remat}` | {kept:.3g} | {row["flops"]:.4g} | {over:.3f} |', flush=True)
    return rows
