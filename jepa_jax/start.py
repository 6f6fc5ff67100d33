"""How a run begins: logging, compilation cache, its first state, and what it says of itself."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from jepa_jax import distributed, recipes
from jepa_jax.checkpoint import leaves, restore
from jepa_jax.chips import peak_flops
from jepa_jax.config import RunConfig, cache_root
from jepa_jax.data.stream import Stream
from jepa_jax.lookup import load
from jepa_jax.memory import GIB, device_memory, estimate
from jepa_jax.metrics import Workload
from jepa_jax.nets import ONCE, Net
from jepa_jax.objectives import Objective
from jepa_jax.optim import Optimizer
from jepa_jax.origin import Origin
from jepa_jax.sharding import concrete, put_params
from jepa_jax.state import TrainState, init_state

log = logging.getLogger(__name__)


class _Terminal(logging.Handler):
    """Log lines on stderr, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except OSError:  # a log on a full disk ends no run; the line stays in the stream's buffer
            pass


def logging_to_terminal() -> None:
    """Our log lines as they are; those of libraries from warnings up."""
    # force: importing orbax leaves a handler behind
    logging.basicConfig(
        format='%(message)s', level=logging.WARNING, handlers=[_Terminal()], force=True
    )
    logging.getLogger('jepa_jax').setLevel(logging.INFO)


def compilation_cache(use: bool = True) -> None:
    """Keeps compiled programs between runs in the cache folder; JAX_COMPILATION_CACHE_DIR
    overrides, empty turns it off."""
    if not use:
        jax.config.update('jax_enable_compilation_cache', False)
    elif 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        jax.config.update('jax_compilation_cache_dir', str(cache_root() / 'xla'))


def placement() -> dict[str, int]:
    """Which share of a batch this process makes."""
    return dict(
        devices=jax.device_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def smallest_memory() -> float:
    """Bytes of memory of a device, the least of all processes; 0: not known."""
    return -distributed.largest(-int(device_memory() // 2**20)) * 2**20


def on_mesh(nets: Mapping[str, Net], params: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict:
    """Parameters of nets from the host onto the mesh, as the rules of their parts say."""
    return {name: put_params(params[name], net.specs, mesh) for name, net in nets.items()}


def initial_state(
    objective: Objective,
    optimizer: Optimizer,
    config: RunConfig,
    mesh: jax.sharding.Mesh,
    origin: Origin,
    initial: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[TrainState, dict[str, Any]]:
    """The state that a run starts with, and what was saved beside it (empty for a new run). Call
    under jax.set_mesh(mesh).

    initial: of Prepared.

    Raises:
      CheckpointError: a checkpoint does not fit the model.
    """

    def make(key):
        return init_state(objective, optimizer.tx, key)

    abstract = concrete(jax.eval_shape(make, jax.random.key(0)), mesh)
    everything = tuple(field.name for field in dataclasses.fields(TrainState))
    folder = origin.folder
    if folder and not origin.weights_only:
        # of this run, `origin_of` has just verified every byte
        state, extra = restore(folder, abstract, only=everything, verify=not origin.same_run)
        if origin.same_run:
            log.info('resumes from step %d of this workdir', jax.device_get(state.step))
            return state, extra
        log.info('resumes from %s, with its optimizer state', folder)
        return (restart(state) if config.checkpoints.restart_schedule else state), {}
    state = jax.jit(make, compiler_options=ONCE)(jax.random.key(config.seed))
    stored = leaves(folder) if folder else {}
    own = {n: tree for n, tree in initial.items() if not _holds(stored, f'params/{n}')}
    for name, tree in own.items():
        if tree is not None:
            log.info('%s starts with the weights given to it', name)
            ours = _replaced(state.params[name], tree, objective.specs[name], mesh)
            state = dataclasses.replace(state, params={**state.params, name: ours})
    if not folder:
        return state, {}
    nets = {'params': {n: a for n, a in abstract.params.items() if n not in own}}
    nets['ema'] = dict(abstract.ema)
    # converted from a source with one encoder, a checkpoint has no average of it
    for name in [name for name in abstract.ema if not _holds(stored, f'ema/{name}')]:
        del nets['ema'][name]
    only = tuple(f'{kind}/{name}' for kind, trees in nets.items() for name in trees)
    # what was drawn goes before what is stored comes: the devices never hold a net twice
    for leaf in jax.tree.leaves(({n: state.params[n] for n in nets['params']}, state.ema)):
        leaf.delete()
    weights, _ = restore(folder, nets, only=only)
    log.info('starts with the weights of %s', folder)
    for name in objective.ema:
        if name not in weights['ema']:
            log.info('the average of %s starts as a copy of it', name)
            weights['ema'][name] = jax.tree.map(jnp.copy, weights['params'][name])
    params = {**{n: state.params[n] for n in own}, **weights['params']}
    return dataclasses.replace(state, params=params, ema=weights['ema']), {}


def _replaced(drawn: dict, tree: dict, specs: dict, mesh: jax.sharding.Mesh) -> dict:
    """Arrays from the host in place of drawn ones, each of which goes before the next comes: the
    devices never hold a net twice."""

    def one(old: jax.Array, new: Any, spec: jax.P) -> jax.Array:
        old.delete()
        return put_params(new, spec, mesh)

    return jax.tree.map(one, drawn, tree, specs)


def _holds(stored: Mapping[str, Any], part: str) -> bool:
    return any(name.startswith(f'{part}/') for name in stored)


def describe(
    config: RunConfig,
    objective: Objective,
    mesh: jax.sharding.Mesh,
    stream: Stream,
    held: Any,
) -> list[str]:
    """Logs what is about to run: devices, memory, programs, model, data, what the batch means.

    held: arrays that stay on the devices.

    Returns:
      The lines on the data.
    """
    kinds = {device.device_kind for device in mesh.devices.flat}
    axes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
    names = ', '.join(sorted(kinds))
    log.info(
        '%d devices (%s) of %d processes, mesh %s, %s; %d clips at a time on a device',
        mesh.size, names, jax.process_count(), axes, config.compute_dtype,
        config.optim.batch // (mesh.size * config.optim.accumulate),
    )  # fmt: skip
    log.info('memory of a device: %s', _memory(held, estimate(config, mesh.size)['total']))
    count = len(stream.programs)
    log.info('programs to compile: %s', count or 'one for each new set of token counts')
    nets = {'': objective.nets, ' (frozen)': objective.frozen, ' (kept, frozen)': objective.kept}
    for word, group in nets.items():
        for name, net in group.items():
            count = sum(leaf.size for leaf in jax.tree.leaves(net.abstract))
            log.info('%s%s: %s parameters', name, word, f'{count:,}')
    data = stream.describe()
    for line in (*data, *load(recipes.of(config).describe)(config)):
        log.info('%s', line)
    return data


def _memory(arrays: Any, needed: float) -> str:
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(arrays)
    )
    text = f'{held / GIB:.3g} GiB of state, {needed:.3g} GiB with all that a step holds (estimated)'
    limit = device_memory()
    return f'{text}, of {limit / GIB:.1f} GiB' if limit else text


def workload(config: RunConfig, stream: Stream) -> Callable[[int], Workload]:
    """Step -> what it is worth."""
    of = load(recipes.of(config).workload)(config, stream)
    each = peak_flops(jax.devices()[0].device_kind, config.compute_dtype)
    peak = each and each * jax.device_count()
    return lambda step: Workload(*of(step), peak)


def restart(state: TrainState) -> TrainState:
    """Schedules from their beginning, moments and their bias correction as they are: how the
    original starts a cooldown (reference: vjepa2 §5.5, quirk 29)."""

    def rewind(node):
        if isinstance(node, optax.ScaleByAdamState):
            return node
        return jax.tree.map(lambda a: a * 0, node)

    opt_state = jax.tree.map(
        rewind, state.opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState)
    )
    return dataclasses.replace(state, step=state.step * 0, opt_state=opt_state)
