"""Work of one process on all of its devices: each has the parameters, examples are shared out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jepa_jax import sharding
from jepa_jax.encoder import Encoder


def everywhere(model) -> tuple[Any, jax.sharding.Mesh]:
    """The model with its parameters on each device of this process, and these as a mesh."""
    local = sharding.make_mesh(1, jax.local_devices())
    nets = model.encoder, model.predictor, model.probe
    with jax.set_mesh(local):
        encoder, predictor, probe = jax.device_put(
            tuple(net and net.params for net in nets), jax.NamedSharding(local, jax.P())
        )
    placed = copy.copy(model)
    placed.encoder = Encoder(model.config, encoder)
    if model.predictor:
        placed.predictor = dataclasses.replace(model.predictor, params=predictor)
    if model.probe:
        placed.probe = dataclasses.replace(model.probe, params=probe)
    return placed, local


def in_shares(local: jax.sharding.Mesh, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` on arrays [B, ...], of which each device has a share; B is filled up by repeats. What
    comes back, arrays [B, ...], is NumPy's."""

    def run(*arrays: np.ndarray) -> Any:
        count = len(arrays[0])
        lack = -count % local.size
        full = [np.concatenate([a, np.repeat(a[-1:], lack, 0)]) if lack else a for a in arrays]
        with jax.set_mesh(local):
            shares = jax.device_put(full, jax.NamedSharding(local, sharding.BATCH))
            return jax.tree.map(lambda a: np.asarray(a)[:count], call(*shares))

    return run
