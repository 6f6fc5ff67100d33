"""The training step: one pure function of (state, batch)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jepa_jax import optim
from jepa_jax.config import Optim
from jepa_jax.sharding import path_name
from jepa_jax.state import TrainState


def _parts(batch, count: int):
    """A batch [B, ...] as `count` batches [count, B / count, ...], every part spread over all
    devices."""
    return jax.tree.map(
        lambda a: a.reshape(a.shape[0] // count, count, *a.shape[1:]).swapaxes(0, 1), batch
    )


def gradients(objective, state: TrainState, batch, accumulate: int = 1):
    """Mean loss, metrics and gradients of a batch, computed in `accumulate` parts one after the
    other.

    All parts weigh the same, so the result is the whole batch's up to rounding.
    """
    grad = jax.value_and_grad(objective.loss, has_aux=True)
    if accumulate == 1:
        return grad(state.params, state.target, batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, grad(state.params, state.target, part)), None

    parts = _parts(batch, accumulate)
    first = grad(state.params, state.target, jax.tree.map(lambda a: a[0], parts))
    total, _ = jax.lax.scan(add, first, jax.tree.map(lambda a: a[1:], parts))
    return jax.tree.map(lambda a: a / accumulate, total)


def make_step(
    objective, tx: optax.GradientTransformation, config: Optim
) -> Callable[[TrainState, object], tuple[TrainState, dict]]:
    """step(state, batch) -> (state, metrics), to be jitted with the state donated.

    Order: gradients, AdamW, then target <- m target + (1 - m) net with the updated net. Nothing is
    clipped. If the loss or a gradient is not finite, the state comes back as it was and
    metrics['finite'] is False. Metrics are float32 scalars. (reference: vjepa2 §5.2)
    """
    lr, wd = optim.learning_rate(config), optim.weight_decay(config)
    ema_rate = optim.ema_rate(config)

    def step(state: TrainState, batch) -> tuple[TrainState, dict]:
        with jax.named_scope('gradients'):
            (loss, metrics), grads = gradients(objective, state, batch, config.accumulate)
        norms = {name: optax.tree.norm(g) for name, g in grads.items()}
        norm = optax.tree.norm(list(norms.values()))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        with jax.named_scope('adamw'):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        rate, target = ema_rate(state.step), state.target
        if objective.averaged:
            with jax.named_scope('ema'):
                target = optax.incremental_update(params[objective.averaged], target, rate)
        new = TrainState(state.step + 1, params, target, opt_state)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        metrics = {
            **metrics,
            'loss': loss,
            'grad_norm': norm,
            **{f'grad_norm/{name}': n for name, n in norms.items()},
            'lr': lr(state.step),
            'weight_decay': wd(state.step),
            'momentum': 1 - rate,
            'finite': finite,
        }
        return new, metrics

    return step


@functools.partial(jax.jit, static_argnums=0)
def _finite_tensors(objective, state: TrainState, batch):
    """Which tensors are finite, by name, in the order in which a step computes them."""
    inputs = {'params': state.params, 'target': state.target}
    grads = jax.grad(lambda p: objective.loss(p, state.target, batch)[0])(state.params)
    stages = [inputs, objective.trace(state.params, state.target, batch), {'gradient': grads}]
    check = functools.partial(jax.tree.map, lambda a: jnp.isfinite(a).all())
    return [check(stage) for stage in stages]


def first_nonfinite(objective, state: TrainState, batch) -> str:
    """The name of the first tensor of a step that holds a NaN or an infinity: parameters, then
    activations from the target encoder to the loss, then gradients; backward order within the
    gradients is not resolved."""
    for stage in jax.device_get(_finite_tensors(objective, state, batch)):
        for path, finite in jax.tree_util.tree_leaves_with_path(stage):
            if not finite:
                return path_name(path)
    return 'none: the step computed alone is finite'
