"""The training step: one pure function of (state, frozen, batch)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jepa_jax.objectives import Objective
from jepa_jax.optim import Optimizer
from jepa_jax.sharding import batch_spec, path_name, reduce_late
from jepa_jax.state import TrainState


def parts_of(batch, count: int):
    """A batch [B, ...] as `count` batches [count, B / count, ...], every part spread over all
    devices."""

    def cut(a: jax.Array) -> jax.Array:
        shape = a.shape[0] // count, count, *a.shape[1:]
        # left alone, a mesh axis of one device may go to the parts: where a device has one row each
        return jnp.reshape(a, shape, out_sharding=batch_spec(a)).swapaxes(0, 1)

    return jax.tree.map(cut, batch)


def gradients(objective: Objective, state: TrainState, frozen: dict, batch, accumulate: int = 1):
    """Mean loss, metrics and gradients of a batch, computed in `accumulate` parts one after the
    other.

    All parts weigh the same, so the result is the whole batch's up to rounding.
    """

    def loss(params, batch):
        return objective.loss(reduce_late(params), state.ema, frozen, batch, state.step)

    grad = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        return grad(state.params, batch)

    def add(total, part):
        return jax.tree.map(jnp.add, total, grad(state.params, part)), None

    # from zero, not from the first part: the program then holds the model once
    parts = parts_of(batch, accumulate)
    like = jax.eval_shape(
        lambda parts: grad(state.params, jax.tree.map(lambda a: a[0], parts)), parts
    )
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype, out_sharding=a.sharding), like)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda a: a / accumulate, total)


def make_step(
    objective: Objective, optimizer: Optimizer, accumulate: int = 1
) -> Callable[[TrainState, dict, object], tuple[TrainState, dict]]:
    """step(state, frozen, batch) -> (state, metrics), to be jitted with the state donated.

    frozen: parameters of objective.frozen. Order: gradients, AdamW, then average <- m average +
    (1 - m) net with the updated net. Where gradients are clipped, metrics have their norms before
    that. If the loss or a gradient is not finite,
    the state comes back as it was and metrics['finite'] is False. Metrics are float32 scalars.
    (reference: vjepa2 §5.2)
    metrics['skipped'], with a loss guard: updates that it has left out so far.
    """
    tx, ema_rate = optax.with_extra_args_support(optimizer.tx), optimizer.ema_rate

    def update(state: TrainState, grads: dict, loss: jax.Array, norms: dict) -> TrainState:
        with jax.named_scope('adamw'):
            grads = optimizer.clipped(grads, norms, state.step)
            updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss)
            params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema:
            with jax.named_scope('ema'):
                rate = ema_rate(state.step)
                ema = {
                    name: optax.incremental_update(params[name], average, rate)
                    for name, average in ema.items()
                }
        return TrainState(state.step + 1, params, ema, opt_state)

    def step(state: TrainState, frozen: dict, batch) -> tuple[TrainState, dict]:
        with jax.named_scope('gradients'):
            (loss, metrics), grads = gradients(objective, state, frozen, batch, accumulate)
        norms = {name: optax.tree.norm(g) for name, g in grads.items()}
        norm = optax.tree.norm(list(norms.values()))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        # a branch, not a choice between two states: XLA then updates the donated one in place and
        # needs no memory for another (0.1 instead of 2.7 times the parameters beside the gradients)
        new = jax.lax.cond(
            finite,
            lambda state, grads: update(state, grads, loss, norms),  # which only a guard looks at
            lambda state, grads: state,
            state,
            grads,
        )
        metrics = {
            **metrics,
            'loss': loss,
            'grad_norm': norm,
            **{f'grad_norm/{name}': n for name, n in norms.items()},
            'lr': optimizer.learning_rate(state.step),
            'weight_decay': optimizer.weight_decay(state.step),
            'finite': finite,
        }
        if optimizer.guard:
            metrics['skipped'] = new.opt_state[-1].skipped.astype(jnp.float32)
        if ema_rate:
            metrics['momentum'] = 1 - ema_rate(state.step)
        return new, metrics

    return step


@functools.partial(jax.jit, static_argnums=(0, 1))
def _finite_tensors(objective: Objective, accumulate: int, state: TrainState, frozen: dict, batch):
    """Which tensors are finite, by name, in the order in which a step computes them."""
    check = functools.partial(jax.tree.map, lambda a: jnp.isfinite(a).all())

    def of_part(part):
        fixed = state.ema, frozen, part
        grads = jax.grad(lambda p: objective.loss(p, *fixed, state.step)[0])(state.params)
        return check([objective.trace(state.params, *fixed), {'gradient': grads}])

    inputs = check({'params': state.params, 'ema': state.ema, 'frozen': frozen})
    parts = jax.lax.map(of_part, parts_of(batch, accumulate))
    return [inputs, *jax.tree.map(lambda a: a.all(0), parts)]


def first_nonfinite(
    objective: Objective, state: TrainState, frozen: dict, batch, accumulate: int = 1
) -> str:
    """The name of the first tensor of a step that holds a NaN or an infinity: parameters, then
    activations from the target encoder to the loss, then gradients; backward order within the
    gradients is not resolved. As many parts as the step has follow each other."""
    for stage in jax.device_get(_finite_tensors(objective, accumulate, state, frozen, batch)):
        for path, finite in jax.tree_util.tree_leaves_with_path(stage):
            if not finite:
                return path_name(path)
    return 'none: the step computed alone is finite'
