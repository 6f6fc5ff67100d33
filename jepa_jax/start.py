"""How a run begins: logging, compilation cache, and the ladder to its first state."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from jepa_jax import optim
from jepa_jax.checkpoint import Checkpoints, find, read_manifest, restore
from jepa_jax.chips import peak_flops
from jepa_jax.config import ActionConditionedConfig, MaskedVideoConfig, cache_root
from jepa_jax.data.trajectories import RobotStream, random_prefix
from jepa_jax.data.videos import VideoStream
from jepa_jax.describe import describe as describe_config
from jepa_jax.flops import GroupShape, action_conditioned_step, pretraining_step
from jepa_jax.memory import GIB, estimate
from jepa_jax.metrics import Cost
from jepa_jax.nets import ONCE
from jepa_jax.objectives.action_conditioned import ac_predictor_config
from jepa_jax.objectives.masked_video import predictor_config, vit_config
from jepa_jax.sharding import concrete
from jepa_jax.state import TrainState, init_state
from jepa_jax.workdir import check_config

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


def compilation_cache(wanted: bool = True) -> None:
    """Keeps compiled programs between runs in the cache folder; JAX_COMPILATION_CACHE_DIR
    overrides, empty turns it off."""
    if not wanted:
        jax.config.update('jax_enable_compilation_cache', False)
    elif 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        jax.config.update('jax_compilation_cache_dir', str(cache_root() / 'xla'))


def initial_state(
    objective, config: MaskedVideoConfig, mesh: jax.sharding.Mesh, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """The first of: this run's newest intact checkpoint, `resume_from`, `init_from` (weights only),
    scratch.

    Returns the state and what was saved beside it (empty unless this run goes on). Call under
    jax.set_mesh(mesh).

    Raises:
      ConfigError: this run was started with another config and that is not allowed.
      CheckpointError: a checkpoint is damaged or does not fit the model.
    """
    mask = optim.decay_mask(objective.abstract, objective.unused)
    tx = optim.optimizer(config.optim, mask)

    def make(key):
        return init_state(objective, tx, key)

    abstract = concrete(jax.eval_shape(make, jax.random.key(0)), mesh)
    settings = config.checkpoints
    if (step := checkpoints.latest()) is not None:
        stored = read_manifest(checkpoints.directory / str(step))['extra']['config']
        check_config(stored, config, allow=settings.allow_config_change)
        state, extra = checkpoints.restore(step, abstract)
        log.info('goes on from step %d of this workdir', step)
        return state, extra
    if settings.resume_from:
        folder = find(settings.resume_from)
        state, extra = restore(folder, abstract)
        log.info('goes on from %s, with its optimizer state', folder)
        return (restart(state) if settings.restart_schedule else state), {}
    state = jax.jit(make, compiler_options=ONCE)(jax.random.key(config.seed))
    if objective.given is not None:  # the frozen net's weights, from elsewhere
        target = jax.tree.map(
            lambda a, like: jax.device_put(a, like.sharding), objective.given, state.target
        )
        state = dataclasses.replace(state, target=target)
    if settings.init_from:
        folder = find(settings.init_from)
        wanted = {'params': abstract.params, 'target': abstract.target}
        only = (*(f'params/{net}' for net in abstract.params), 'target')
        # converted from a source with one encoder, a checkpoint has no target
        alone = not any(name.startswith('target/') for name in read_manifest(folder)['leaves'])
        if alone:
            del wanted['target']
        weights, _ = restore(folder, wanted, only=only)
        log.info('starts with the weights of %s', folder)
        if alone and objective.averaged:
            log.info('the target starts as a copy of its only encoder')
            weights['target'] = jax.tree.map(jnp.copy, weights['params'][objective.averaged])
        target = weights.get('target', {})
        return TrainState(state.step, weights['params'], target, state.opt_state), {}
    return state, {}


def describe(
    config: MaskedVideoConfig,
    objective,
    mesh: jax.sharding.Mesh,
    pipeline: VideoStream,
    state: TrainState,
) -> None:
    """Logs what is about to run: devices, memory, programs, model, data, what the batch means."""
    kinds = {device.device_kind for device in mesh.devices.flat}
    axes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
    names = ', '.join(sorted(kinds))
    log.info(
        '%d devices (%s) of %d processes, mesh %s, %s; %d clips at a time on a device',
        mesh.size, names, jax.process_count(), axes, config.compute_dtype,
        config.optim.batch // (mesh.size * config.optim.accumulate),
    )  # fmt: skip
    log.info('memory of a device: %s', _memory(state, estimate(config, mesh.size)['total']))
    count = len(pipeline.programs)
    log.info('programs to compile: %s', count or 'one for each new set of token counts')
    for name in ('encoder', 'predictor'):
        count = sum(leaf.size for leaf in jax.tree.leaves(getattr(objective, name).abstract))
        log.info('%s: %s parameters', name, f'{count:,}')
    for line in (*pipeline.describe(), *describe_config(config)):
        log.info('%s', line)


def _memory(state: TrainState, needed: float) -> str:
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    text = f'{held / GIB:.3g} GiB of state, {needed:.3g} GiB with all that a step holds (estimated)'
    stats = jax.local_devices()[0].memory_stats() or {}  # None on CPUs
    limit = stats.get('bytes_limit')
    return f'{text}, of {limit / GIB:.1f} GiB' if limit else text


def _peak(config: MaskedVideoConfig) -> float | None:
    each = peak_flops(jax.devices()[0].device_kind, config.compute_dtype)
    return each and each * jax.device_count()


def cost(config: MaskedVideoConfig, pipeline: VideoStream) -> Callable[[int], Cost]:
    """Step -> what it is worth, by the shapes of its clips and masks."""
    vit, predictor = vit_config(config), predictor_config(config)
    peak = _peak(config)

    def of(step: int) -> Cost:
        groups = []
        for clips, masks in zip(pipeline.groups, pipeline.shapes(step), strict=True):
            tokens = math.prod(vit.grid(clips.frames, config.data.crop, config.data.crop))
            groups.append(GroupShape(clips.rows, tokens, masks))
        flops = pretraining_step(vit, predictor, groups).total
        return Cost(flops, sum(group.clips * group.tokens for group in groups), peak)

    return of


def robot_cost(config: ActionConditionedConfig, pipeline: RobotStream) -> Callable[[int], Cost]:
    """Step -> what it is worth, by where its rollouts start."""
    predictor, peak = ac_predictor_config(config), _peak(config)
    clips, frames, rollout = config.optim.batch, config.robot.frames, config.rollout
    tokens = clips * frames * math.prod(predictor.grid)

    def of(step: int) -> Cost:
        flops = action_conditioned_step(
            predictor,
            clips,
            frames,
            rollout=rollout.steps,
            prefix=1 if rollout.prefix == 'first' else random_prefix(config, step),
            cut=rollout.stop_gradient,
            encode=None if config.features else vit_config(config),
        )
        return Cost(flops, tokens, peak)

    return of


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
    return TrainState(state.step * 0, state.params, state.target, opt_state)
