"""The training step: one pure function of (state, batch)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jepa_jax import optim
from jepa_jax.config import OptimConfig
from jepa_jax.sharding import path_name, reduce_late
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

    def loss(params, target, batch):
        return objective.loss(reduce_late(params), target, batch)

    grad = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        return grad(state.params, state.target, batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, grad(state.params, state.target, part)), None

    # from zero, not from the first part: the program then holds the model once
    parts = _parts(batch, accumulate)
    like = jax.eval_shape(
        lambda parts: grad(state.params, state.target, jax.tree.map(lambda a: a[0], parts)), parts
    )
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype, out_sharding=a.sharding), like)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda a: a / accumulate, total)


def make_step(
    objective, tx: optax.GradientTransformation, config: OptimConfig
) -> Callable[[TrainState, object], tuple[TrainState, dict]]:
    """step(state, batch) -> (state, metrics), to be jitted with the state donated.

    Order: gradients, AdamW, then target <- m target + (1 - m) net with the updated net. Nothing is
    clipped. If the loss or a gradient is not finite, the state comes back as it was and
    metrics['finite'] is False. Metrics are float32 scalars. (reference: vjepa2 §5.2)
    """
    lr, wd = optim.learning_rate(config), optim.weight_decay(config)
    ema_rate = optim.ema_rate(config)

    def update(state: TrainState, grads: dict) -> TrainState:
        with jax.named_scope('adamw'):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        target = state.target
        if objective.averaged:
            with jax.named_scope('ema'):
                net = params[objective.averaged]
                target = optax.incremental_update(net, target, ema_rate(state.step))
        return TrainState(state.step + 1, params, target, opt_state)

    def step(state: TrainState, batch) -> tuple[TrainState, dict]:
        with jax.named_scope('gradients'):
            (loss, metrics), grads = gradients(objective, state, batch, config.accumulate)
        norms = {name: optax.tree.norm(g) for name, g in grads.items()}
        norm = optax.tree.norm(list(norms.values()))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        # a branch, not a choice between two states: XLA then updates the donated one in place and
        # needs no memory for another (0.1 instead of 2.7 times the parameters beside the gradients)
        new = jax.lax.cond(finite, update, lambda state, grads: state, state, grads)
        metrics = {
            **metrics,
            'loss': loss,
            'grad_norm': norm,
            **{f'grad_norm/{name}': n for name, n in norms.items()},
            'lr': lr(state.step),
            'weight_decay': wd(state.step),
            'momentum': 1 - ema_rate(state.step),
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
