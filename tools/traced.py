"""What each policy of `mesh.remat` keeps for the backward pass and computes again, by tracing.

    python -m tools.remat --config=configs/vitg.py --topology v5p:4x4x4

The real step is traced under every policy, which takes seconds where compiling takes minutes (see
tools.dry_run). Kept: bytes on a device that one layer's forward pass leaves for its backward pass,
over all layers. FLOPs: of all products with their loops' lengths and of attention kernels; over the
model FLOPs, what a step costs beyond its worth. What else a step holds (state, gradients, targets,
the block at work) comes on top: tools.estimate_memory.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import Any

from jepa_jax import cli
from jepa_jax.config import MaskedVideoConfig
from jepa_jax.errors import ConfigError
from tools.dry_run import GIB, allow_unread, slice_devices
from tools.hlo import SPLASH


class Traced:
    """Products and kept arrays of a traced step.

    Args:
      jaxpr: of the step.
      devices: that it runs on.
      clips: at a time, over all devices; of what layers stack, arrays with that axis are kept.

    Raises:
      ConfigError: a kernel that cannot be counted.
    """

    def __init__(self, jaxpr, devices: int, clips: int):
        self._devices, self._clips = devices, clips
        self.kept = 0  # bytes on a device
        self.flops = self._walk(jaxpr, 1)

    def _walk(self, jaxpr, times: int) -> int:
        from jax.extend.core import jaxprs_in_params

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
            if len(shape) >= 3 and self._clips in shape[1:3]:
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


def trace(config: MaskedVideoConfig, devices: list) -> dict[str, Any]:
    """What the largest program of `config` keeps and computes on `devices`.

    Raises:
      ConfigError: the batch does not split over the devices.
    """
    import jax

    from jepa_jax import optim, sharding
    from jepa_jax.data.pipeline import split_rows
    from jepa_jax.objectives.masked_video import MaskedVideo
    from jepa_jax.state import init_state
    from jepa_jax.step import make_step
    from tools.bench_step import abstract_batch, mask_samplers, programs

    parts = len(devices) * config.optim.accumulate
    if config.optim.batch % parts:
        raise ConfigError(f'optim.batch = {config.optim.batch}: must be a multiple of {parts}')
    quotas = split_rows(config, config.optim.batch // parts)
    samplers = mask_samplers(config, rows := {frames: n * parts for frames, n in quotas.items()})
    largest = max(programs(config, samplers, rows), key=lambda program: program.flops.total)
    mesh, objective = sharding.make_mesh(config.mesh.fsdp, devices), MaskedVideo.of(config)
    tx = optim.optimizer(config.optim, optim.decay_mask(objective.abstract, objective.unused))
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda key: init_state(objective, tx, key), key)
        step = jax.jit(make_step(objective, tx, config.optim))
        batch = abstract_batch(config, samplers, largest, mesh)
        jaxpr = step.trace(sharding.concrete(state, mesh), batch).jaxpr.jaxpr
    found = Traced(jaxpr, len(devices), config.optim.batch // config.optim.accumulate)
    return {
        'kept_bytes_per_device': found.kept,
        'flops': found.flops,
        'model_flops': largest.flops.total,
    }


def run(config: MaskedVideoConfig, workdir: str, topology: str | None) -> None:
    """The tool: prints a line a policy."""
    del workdir
    from jepa_jax.memory import KEPT
    from jepa_jax.recipes import validate

    allow_unread(config)
    validate(config)
    if topology:
        os.environ['JAX_PLATFORMS'] = 'cpu'
        devices = slice_devices(topology)
    else:
        import jax

        devices = jax.devices()
    print('| mesh.remat | kept for the backward pass, GiB a device | FLOPs | over model FLOPs |')
    for config.mesh.remat in KEPT:
        found = trace(config, devices)
        kept, flops = found['kept_bytes_per_device'] / GIB, found['flops']
        over = flops / found['model_flops']
        print(f'| {config.mesh.remat} | {kept:.3g} | {flops:.4g} | {over:.3f} |', flush=True)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--topology', metavar='KIND:AxB[xC]', help='a TPU slice, such as v5p:4x4x4')


def main() -> int:
    return cli.run(run, doc=__doc__, options=_options)


if __name__ == '__main__':
    sys.exit(main())
