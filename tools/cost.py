"""What a step of a config costs, without running one, whatever is learned.

    python -m tools.cost --config=configs/vitg.py --topology v5p:4x4x4 [--json FILE]
    python -m tools.cost --config=configs/ac_vitg.py --what memory --devices 8
    python -m tools.cost --config=configs/vitg.py --what remat --topology v5p:4x4x4
    python -m tools.cost --config=configs/vitg.py --then configs/vitg_384.py
    python -m tools.cost --what run --config=configs/vitg.py --then configs/vitg_384.py \\
        --chip v5p --devices 512 --mfu 0.5 --price 4.2

Nothing is read from the config's lists and no array is made. --topology: for a slice of TPUs, by
libtpu (`pip install 'jepa_jax[tpu]'`; no TPU is needed), else for the devices of this machine. Of a
run's programs, the sets of shapes of its batches, the largest is taken; mesh.fsdp and
optim.accumulate of 0 are chosen by the memory of a device, as in training.

step: compiles it (tools/compiled.py), with a line for each phase; what a host then has to decode at
most, and what checkpoints take on disk. Exit status 1 if it does not fit below 85 % of a device's
memory, stores scores of all pairs of tokens, or communicates what it should not.
memory: an estimate by counting; docs/scale.md says how near it comes. Without --topology no device
is looked at, and a mesh.fsdp or optim.accumulate of 0 counts as 1.
remat: what each policy of mesh.remat keeps and computes again, by tracing (tools/traced.py):
seconds where compiling takes minutes.
run: hours, chip hours and money of a whole run, and of its cooldown, by arithmetic: model FLOPs
over the chip's published peak times an MFU that you state, as measured (docs/performance.md) or
hoped for.
--then: the config of a cooldown at a higher resolution; which share of FLOPs the two save against
all clips at the cooldown's size.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from jepa_jax import cli
from jepa_jax.chips import CHIPS, GPUS, TPUS
from jepa_jax.config import RunConfig
from jepa_jax.errors import ConfigError, CostError
from jepa_jax.workdir import room_for

# flag -> values of --what
GOES_WITH = {
    '--then': ('step', 'run'), '--topology': ('step', 'memory', 'remat'), '--hlo': ('step',),
    '--decode': ('step',), '--chip': ('run',), '--mfu': ('run',), '--price': ('run',),
}  # fmt: skip


def step(
    config: RunConfig, topology: str | None, hlo_file: str | None, decode: float
) -> dict[str, Any]:
    """Compiles the step, and prints what it takes."""
    from . import compiled

    began = time.monotonic()
    config, devices = _on_devices(config, topology)
    result, text = compiled.analyse(config, devices, topology or 'this machine')
    compiled.show(result)
    result |= fed(result, len({device.process_index for device in devices}), decode)
    result |= disk(config)
    print(f'{time.monotonic() - began:.0f} s in all')
    if hlo_file:
        Path(hlo_file).write_text(text)
    return result


def fed(result: dict[str, Any], hosts: int, decode: float) -> dict[str, Any]:
    """Prints how many clips a second every host has to bring at most, and on how many cores.

    decode: clips a second of a core; 0: not measured.
    """
    if not result['step_seconds_bound']:
        return {'hosts': hosts}
    clips = result['global_batch'] / result['step_seconds_bound'] / hosts
    text = f'{hosts} hosts: at most {clips:,.0f} clips a second each'
    facts = {'hosts': hosts, 'clips_per_s_of_a_host': clips}
    if decode:
        facts['decode_cores_of_a_host'] = cores = math.ceil(clips / decode)
        text += f', which take {cores:,} cores at {decode:g} clips a second each'
    else:
        text += '; --decode with what `jepa bench-data --list` measures tells the cores'
    print(text)
    return facts


def disk(config: RunConfig) -> dict[str, Any]:
    """Prints what a checkpoint takes, and those that are kept."""
    from jepa_jax.memory import GIB

    from . import steps

    each, once = steps.state_bytes(config)
    kept = len(kept_of(config))
    most = (kept + 1) * each + once  # a new one is whole before an old one goes
    stored = f', frozen nets {once / GIB:.2f} GiB once' if once else ''
    saved = config.checkpoints
    print(
        f'a checkpoint: {each / GIB:.2f} GiB{stored}; keep {saved.keep} and keep_every '
        f'{saved.keep_every} leave {kept:,} of them, {(kept * each + once) / GIB:,.1f} GiB, and '
        f'{most / GIB:,.1f} GiB while the last is saved'
    )
    return {'checkpoint_bytes': each, 'checkpoints_kept': kept, 'disk_bytes': most}


def kept_of(config: RunConfig) -> set[int]:
    """Steps whose checkpoints are there at the end of a run."""
    rule, last = config.checkpoints, config.optim.steps
    saved = [*range(rule.every, last, rule.every), last]
    every = rule.keep_every
    return {*saved[-rule.keep :], *(step for step in saved if every and step % every == 0)}


def remat(config: RunConfig, topology: str | None) -> dict[str, Any]:
    """Traces the step under every policy, and prints a line each."""
    from . import traced

    return traced.policies(*_on_devices(config, topology))


def memory(config: RunConfig, topology: str | None, devices: int) -> dict[str, Any]:
    """Prints the estimate."""
    from jepa_jax.memory import GIB, estimate

    from . import steps

    capacity = 0.0  # not known
    if topology:
        devices, kind = steps.topology_of(topology)
        capacity = steps.memory_of(kind)
    choices = ('optim.accumulate', 'mesh.fsdp')[: min(devices, 2)]  # one device shares nothing
    left = [name for name in choices if not operator.attrgetter(name)(config)]
    config = steps.settle(config, devices, capacity)
    fsdp, accumulate = config.mesh.fsdp, config.optim.accumulate
    clips = config.optim.batch // (devices * accumulate)
    print(
        f'{config.name}: {clips} clips at a time on each of {devices} devices, mesh.fsdp {fsdp}, '
        f'optim.accumulate {accumulate}; GiB, estimated'
    )
    for use, size in (sizes := estimate(config, devices)).items():
        print(f'{size:8.2f}  {use}')
    if capacity:
        print(f'{capacity / GIB:8.2f}  of a device')
    elif left:
        print(
            f'{" and ".join(left)} would be chosen by the memory of a device, which is not known '
            f'here: 1 is taken; --topology names a slice, --config.{left[0]}=N a number'
        )
    return disk(config) | {
        'gib': sizes,
        'fsdp': fsdp,
        'accumulate': accumulate,
        'clips_per_device': clips,
    }


def saved(config: RunConfig, then: str) -> dict[str, Any]:
    """Prints what a run and its cooldown save against all clips at the cooldown's size."""
    first = _flops_and_clips(config)  # before the second is loaded: both may be of one file
    last = _flops_and_clips(cli.load(then))
    spent = sum(flops * clips for flops, clips in (first, last))
    whole = last[0] * (first[1] + last[1])
    share = 1 - spent / whole
    print(f'together {spent:.4g} FLOPs; all at the last size {whole:.4g}: {share:.1%} are saved')
    return {'flops': spent, 'flops_at_the_last_size': whole, 'saved': share}


def whole_run(
    configs: list[RunConfig], chip: str, devices: int, mfu: float, price: float
) -> dict[str, Any]:
    """Prints what runs take together: `devices` chips at a share `mfu` of their peak, `price` an
    hour of one; 0: not asked for."""
    peak = CHIPS[(TPUS | GPUS)[chip]].flops
    flops = sum(math.prod(_flops_and_clips(config)) for config in configs)
    chip_hours = flops / (peak * mfu) / 3600
    hours = chip_hours / devices
    text = f'{flops:.3g} FLOPs on {devices} {chip} of {peak / 1e12:.0f} TFLOP/s at MFU {mfu:.0%}: '
    text += f'{hours:,.1f} hours, {chip_hours:,.0f} chip hours'
    print(text + (f', {chip_hours * price:,.0f} at {price:g} an hour' if price else ''))
    result = {'flops': flops, 'hours': hours, 'chip_hours': chip_hours}
    return result | ({'money': chip_hours * price} if price else {})


def _flops_and_clips(config: RunConfig) -> tuple[float, int]:
    """FLOPs of a clip, and clips of the run."""
    from . import steps

    config = steps.settle(config, 1, 0.0)
    programs, batch = steps.programs(config, 1), config.optim.batch
    flops = statistics.mean(program.total for program in programs) / batch
    print(f'{config.name}: {config.optim.steps * batch:,} clips of {flops:.4g} FLOPs')
    return flops, config.optim.steps * batch


def _on_devices(config: RunConfig, topology: str | None) -> tuple[RunConfig, list]:
    """The config as it is settled for the devices."""
    import jax

    from . import steps

    devices = steps.slice_devices(topology) if topology else jax.devices()
    capacity = steps.memory_of(devices[0].device_kind)
    return steps.settle(config, len(devices), capacity), devices


def _check_flags(what: str, then: str | None, flags: dict[str, Any]) -> None:
    """Refuses flags that would be ignored, and numbers that count nothing."""
    for flag, value in {'--then': then, **flags}.items():
        said = f'{flag} {value:g}' if isinstance(value, float) else f'{flag} {value}'
        if value and what not in (here := GOES_WITH[flag]):
            raise ConfigError(f'{said}: goes with --what {", ".join(here)}, not {what}')
        if value and then and what == 'step' and flag != '--then':
            raise ConfigError(f'{said}: goes with --what step without --then')
        if flag in ('--decode', '--price') and not value >= 0:
            raise ConfigError(f'{said}: must not be negative')


def run(
    config: RunConfig,
    workdir: str,
    config_file: str,
    what: str,
    then: str | None,
    topology: str | None,
    devices: int,
    json_file: str | None,
    hlo_file: str | None,
    decode: float,
    chip: str | None,
    mfu: float,
    price: float,
) -> None:
    """The tool: prints, and writes what it is asked to.

    Raises:
      CostError: something in `compiled.objections`.
    """
    del workdir, config_file
    flags = {'--topology': topology, '--hlo': hlo_file, '--decode': decode}
    flags |= {'--chip': chip, '--mfu': mfu, '--price': price}
    _check_flags(what, then, flags)
    for flag, file in (('--json', json_file), ('--hlo', hlo_file)):
        if file:
            room_for(flag, file)
    if devices < 1 or devices > 1 and (what not in ('memory', 'run') or topology):
        raise ConfigError(
            f'--devices {devices}: must be at least 1, and goes with --what memory, in place of '
            '--topology, and with --what run'
        )
    if what == 'run':
        if chip is None:
            raise ConfigError(f'--what run: needs --chip, one of {", ".join(sorted(TPUS | GPUS))}')
        if not 0 < mfu <= 1:
            raise ConfigError(f'--what run --mfu {mfu:g}: must be above 0 and at most 1')
        runs = [config, *([cli.load(then)] if then else [])]
        result = whole_run(runs, chip, devices, mfu, price)
    elif then:
        result = saved(config, then)
    elif what == 'memory':
        result = memory(config, topology, devices)
    elif what == 'remat':
        result = remat(config, topology)
    else:
        result = step(config, topology, hlo_file, decode)
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=2) + '\n')
    if what == 'step' and not then:
        from .compiled import objections

        if complaints := objections(result):
            raise CostError('; '.join(complaints))


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--what', choices=('step', 'memory', 'remat', 'run'), default='step', help='see above')
    add('--topology', metavar='KIND:AxB[xC]', help='a TPU slice, such as v5p:4x4x4 (this machine)')
    add('--devices', type=int, default=1, metavar='N', help='for --what memory, run (%(default)s)')
    measured = 'clips/s/core by `jepa bench-data --list LIST`; 0: not known (%(default)s)'
    add('--decode', type=float, default=0.0, metavar='X', help=measured)
    add('--chip', choices=sorted(TPUS | GPUS), help='for --what run (none)')
    add(
        '--mfu', type=float, default=0.0, metavar='X', help='for --what run, as 0.4 (must be given)'
    )
    add(
        '--price',
        type=float,
        default=0.0,
        metavar='X',
        help='an hour of a chip, in any money (none)',
    )
    add('--then', metavar='FILE[:ARG]', help='the config of a cooldown: what the two save (none)')
    add('--json', dest='json_file', metavar='FILE', help='write the figures there (no file)')
    add('--hlo', dest='hlo_file', metavar='FILE', help='write the compiled program there (no file)')


def main() -> int:
    return cli.run(run, doc=__doc__, options=_options)


if __name__ == '__main__':
    sys.exit(main())
