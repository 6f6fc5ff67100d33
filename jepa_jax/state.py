"""All that training carries from step to step."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jepa_jax.objectives import Objective
from jepa_jax.sharding import place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One pytree: what a checkpoint holds and what a step maps to the next."""

    step: jax.Array  # [] int32, updates made so far
    params: dict  # trained by gradient, one entry a net
    ema: dict  # moving averages, one entry for each net of objective.ema
    opt_state: optax.OptState


def init_state(
    objective: Objective, tx: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """A fresh state; under a mesh its arrays lie as the rules of their parts say. Call it under
    jax.jit.

    Moving averages start as exact copies of their nets.
    """
    params = place(objective.init(key), objective.specs)
    ema = {name: jax.tree.map(jnp.copy, params[name]) for name in objective.ema}
    return TrainState(jnp.zeros((), jnp.int32), params, ema, tx.init(params))
