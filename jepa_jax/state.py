"""All that training carries from step to step."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jepa_jax.sharding import place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One pytree: what a checkpoint holds and what a step maps to the next."""

    step: jax.Array  # [] int32, updates made so far
    params: dict  # trained by gradient, one entry a net
    # moving average of params[objective.averaged]; without one the parameters that are not trained
    target: dict
    opt_state: optax.OptState


def init_state(objective, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A fresh state; under a mesh its arrays lie as sharding.PARAM_RULES say. Call it under
    jax.jit.

    The target starts as an exact copy of the net it averages.
    """
    params = place(objective.init(key))
    if objective.averaged:
        target = jax.tree.map(jnp.copy, params[objective.averaged])
    else:
        target = place(objective.frozen(key))
    return TrainState(jnp.zeros((), jnp.int32), params, target, tx.init(params))
