"""AdamW, its schedules, and which parameters decay.

A schedule is a traceable function of the 0-based step, `TrainState.step` or the count of optax. The
original counts its first update as k = 1, so k = step + 1; only the momentum of the target counts
from 0 (reference: vjepa2 §5.3). Each is a weighted mean whose weights come from exact integers: no
term cancels, and float32 stays within 1e-6 of the value even where it nearly vanishes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jepa_jax.config import EmaOptimConfig, GuardConfig, OptimConfig, horizon
from jepa_jax.errors import ConfigError
from jepa_jax.objectives import Objective
from jepa_jax.sharding import path_name

Schedule = Callable[[jax.Array | int], jax.Array]  # 0-based step, int [] -> float32 []


def _line(start: float, end: float, k: jax.Array, whole: int) -> jax.Array:
    """From start at k = 0 to end at k = whole, and on in the same direction."""
    whole = max(1, whole)
    return start * ((whole - k) / whole) + end * (k / whole)


def _cosine(start: float, end: float, k: jax.Array, whole: int) -> jax.Array:
    """end + (start - end) (1 + cos(pi k / whole)) / 2, and back up beyond `whole`."""
    whole = max(1, whole)
    quarter = jnp.pi / 2 / whole
    return start * jnp.sin(quarter * (whole - k)) ** 2 + end * jnp.sin(quarter * k) ** 2


def _warmup_cosine(c: OptimConfig) -> Schedule:
    whole = horizon(c) - c.warmup

    def schedule(step):
        k = jnp.asarray(step) + 1
        rise = _line(c.start_lr, c.lr, k, c.warmup)
        # the floor matters only where final_lr is above lr
        fall = jnp.maximum(c.final_lr, _cosine(c.lr, c.final_lr, k - c.warmup, whole))
        return jnp.where(k < c.warmup, rise, fall)

    return schedule


def _linear_decay(c: OptimConfig) -> Schedule:
    """Not clipped; with `ipe_scale` 1.25 the run ends four fifths of the way down, as released."""
    return lambda step: _line(c.lr, c.final_lr, jnp.asarray(step) + 1, horizon(c))


def _wsd(c: OptimConfig) -> Schedule:
    """Warm-up, stable, decay (reference: vjepa2 §7.6)."""
    stable_until = horizon(c) - c.anneal

    def schedule(step):
        k = jnp.asarray(step) + 1
        rise = _line(c.start_lr, c.lr, k, c.warmup)
        fall = _line(c.lr, c.final_lr, k - stable_until, c.anneal)
        return jnp.where(k < c.warmup, rise, jnp.where(k < stable_until, c.lr, fall))

    return schedule


def _half_cosine(c: OptimConfig) -> Schedule:
    """Warm-up and half a cosine, counted from 0 as MAE does: the first update is at start_lr.
    (reference: family §3.1)"""
    whole = horizon(c) - c.warmup

    def schedule(step):
        k = jnp.asarray(step)
        rise = _line(c.start_lr, c.lr, k, c.warmup)
        fall = _cosine(c.lr, c.final_lr, k - c.warmup, whole)
        return jnp.where(k < c.warmup, rise, fall)

    return schedule


SCHEDULES: dict[str, Callable[[OptimConfig], Schedule]] = {
    'warmup_cosine': _warmup_cosine,
    'linear_decay': _linear_decay,
    'wsd': _wsd,
    'half_cosine': _half_cosine,
}


def learning_rate(config: OptimConfig) -> Schedule:
    """The learning rate of `config.schedule`."""
    if config.schedule not in SCHEDULES:
        raise ConfigError(
            f"optim.schedule = '{config.schedule}': allowed are {', '.join(SCHEDULES)}"
        )
    return SCHEDULES[config.schedule](config)


def weight_decay(config: OptimConfig) -> Schedule:
    """A cosine from `weight_decay` to `final_weight_decay` over the whole horizon."""
    return lambda step: _cosine(
        config.weight_decay, config.final_weight_decay, jnp.asarray(step) + 1, horizon(config)
    )


def ema_rate(config: EmaOptimConfig) -> Schedule:
    """1 - momentum of the target's moving average, linear in the 0-based step.

    Computed as such: 1 - 0.99925 in float32 would keep only four digits.
    """
    whole = config.ipe_scale * config.steps  # the one horizon that the original does not round down
    first, last = 1 - config.momentum, 1 - config.final_momentum
    return lambda step: first * ((whole - step) / whole) + last * (step / whole)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW and its schedules; made once, by `build`, and passed on."""

    tx: optax.GradientTransformation
    learning_rate: Schedule
    weight_decay: Schedule
    ema_rate: Schedule | None  # None: nothing is averaged
    guard: bool = False  # whether the last of the state of tx is a GuardState
    clip: float = 0.0  # largest norm of the gradient of a net; 0: not clipped
    clip_whole: bool = False  # of all nets together
    clip_from: int = 0  # 0-based step from which on

    def clipped(self, grads: dict, norms: dict, step: jax.Array) -> dict:
        """Gradients whose norms are at most `clip`, as torch's clip_grad_norm_."""
        if not self.clip:
            return grads
        if self.clip_whole:
            norms = dict.fromkeys(norms, optax.tree.norm(list(norms.values())))
        factors = {
            name: jnp.minimum(1.0, self.clip / (norm + 1e-6)) for name, norm in norms.items()
        }
        return {
            name: optax.tree.scale(jnp.where(step >= self.clip_from, factors[name], 1.0), tree)
            for name, tree in grads.items()
        }


def build(config: OptimConfig, objective: Objective) -> Optimizer:
    """AdamW as a config says, for the nets of an objective.

    config: an EmaOptimConfig where the objective averages nets.

    Raises:
      ConfigError: no such schedule, or a batch cut into parts that cannot be.
    """
    if objective.whole_batch and config.accumulate > 1:
        raise ConfigError(
            f'optim.accumulate = {config.accumulate}: must be 1, the loss is of the whole batch'
        )
    rates = dict(objective.rates)
    if config.layer_decay != 1:
        if 'encoder' not in objective.nets:
            raise ConfigError(
                f'optim.layer_decay = {config.layer_decay}: must be 1, no encoder is trained'
            )
        layers = layer_rates(objective.abstract['encoder'], config.layer_decay)
        rates['encoder'] = optax.tree.scale(rates.get('encoder', 1.0), layers)
    tx = adamw(config, decay_mask(objective.abstract, objective.unused), rates)
    return Optimizer(
        guarded(tx, config.guard) if config.guard.deviations else tx,
        learning_rate(config),
        weight_decay(config),
        ema_rate(config) if objective.ema else None,
        guard=config.guard.deviations > 0,
        clip=config.clip,
        clip_whole=config.clip_whole,
        clip_from=config.clip_from,
    )


def adamw(
    config: OptimConfig, mask, rates: Mapping[str, float | dict] | None = None
) -> optax.GradientTransformation:
    """AdamW with scheduled learning rate and weight decay, which acts on the old value.

    mask: a pytree of bools like the parameters, True where weight decay applies. rates: factors on
    the learning rate of nets, the first level of the parameters, or of each of their parameters; 1
    for nets not named.
    """
    tx = optax.adamw(
        learning_rate(config),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=weight_decay(config),
        mask=mask,
    )
    if not rates:
        return tx

    def scaled(rate, tree):
        if isinstance(rate, dict):
            return jax.tree.map(jnp.multiply, rate, tree)
        return optax.tree.scale(rate, tree)

    def update(grads, state, params=None):
        updates, state = tx.update(grads, state, params)
        return {net: scaled(rates.get(net, 1.0), tree) for net, tree in updates.items()}, state

    return optax.GradientTransformation(tx.init, update)


def layer_rates(encoder: dict, decay: float) -> dict:
    """Factors on the learning rate of an encoder's parameters: 1 for the last norm, `decay` for the
    last block, times `decay` for each block below it and for what makes tokens. Of parameters
    stacked over layers [L, ...] it is [L, 1, ...]. (reference: family §3.1)
    """
    depth = len(jax.tree.leaves(encoder['blocks'])[0])
    of_blocks = np.float32(decay) ** np.arange(depth, 0, -1, dtype=np.float32)

    def factor(path, leaf):
        part = path_name(path).split('/')[0]
        if part == 'blocks':
            return of_blocks.reshape(depth, *[1] * (leaf.ndim - 1))
        return np.float32(1 if part.startswith('norm') else decay ** (depth + 1))

    return jax.tree.map_with_path(factor, encoder)


class GuardState(NamedTuple):
    """Of `guarded`."""

    losses: jax.Array  # [window] the last ones, in a ring
    seen: jax.Array  # [] int32, losses so far
    skipped: jax.Array  # [] int32, updates left out so far


def guarded(
    tx: optax.GradientTransformation, config: GuardConfig
) -> optax.GradientTransformationExtraArgs:
    """Leaves out updates of a loss more than `deviations` standard deviations above the mean of the
    `window` losses before it, once there were `after`: parameters and the state of `tx` stay as
    they were. (reference: vjepa2_1 §6.6)

    `update` takes the loss as `value`. Losses of updates that were left out count among the last
    ones, so a run whose loss has risen for good goes on. The state is a tuple, that of `tx` and a
    GuardState.
    """

    def init(params):
        counts = (jnp.zeros((), jnp.int32) for _ in range(2))  # not one, which is donated twice
        return (*tx.init(params), GuardState(jnp.zeros(config.window), *counts))

    def update(grads, state, params=None, *, value, **extra):
        del extra
        *inner, (losses, seen, skipped) = state
        known = jnp.arange(config.window) < seen
        count = jnp.maximum(known.sum(), 1)
        mean = jnp.where(known, losses, 0).sum() / count
        deviation = jnp.sqrt(jnp.where(known, jnp.square(losses - mean), 0).sum() / count)
        skip = (seen >= max(config.after, 2)) & (value > mean + config.deviations * deviation)

        def leave():
            return jax.tree.map(jnp.zeros_like, grads), tuple(inner)

        updates, inner = jax.lax.cond(skip, leave, lambda: tx.update(grads, tuple(inner), params))
        losses = losses.at[seen % config.window].set(value)
        return updates, (*inner, GuardState(losses, seen + 1, skipped + skip))

    return optax.GradientTransformationExtraArgs(init, update)


def decay_mask(params, unused: Collection[str] = frozenset()):
    """Bools like `params`: True for what weight decay shrinks. (reference: vjepa2 §5.4)

    False for biases, for vectors (norm scales; a stack over layers does not count as an axis), and
    for `unused` paths such as `predictor/mask_tokens/3`, which the loss never reaches: the original
    leaves parameters without gradient untouched.

    Raises:
      ValueError: `unused` names a path that `params` does not have.
    """
    names = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    if unknown := sorted(set(unused) - names):
        raise ValueError(f'unused parameters {unknown} are not among the parameters')

    def decays(path, leaf):
        parts = path_name(path).split('/')
        axes = leaf.ndim - ('blocks' in parts)
        return parts[-1] != 'bias' and axes > 1 and '/'.join(parts) not in unused

    return jax.tree.map_with_path(decays, params)
