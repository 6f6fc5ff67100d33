"""What trains a small predictor in Two Rooms, or a head: the project's own step on batches that are
chosen from recordings in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jepa_jax import optim
from jepa_jax.config import OptimConfig
from jepa_jax.errors import TrainingError
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.state import init_state
from jepa_jax.step import make_step


def predictor_config(
    places: int, width: int, depth: int, *, action_width: int = 2, state_width: int = 0, **others
) -> ACPredictorConfig:
    """A predictor of what two_rooms.blur makes of a picture at places x places points."""
    return ACPredictorConfig(
        2 * places**2, width=width, depth=depth, heads=width // 16, grid=(1, 1),
        action_width=action_width, state_width=state_width,
        action_scale=(0.2,) * action_width, state_scale=(1 / 32,) * state_width,
        dtype=jnp.float32, remat='none', **{'residual': True, **others},
    )  # fmt: skip


def train(
    objective,
    batch_of: Callable[[Any, Any], Any],
    choices: Iterable[Any],
    data: Any,
    *,
    steps: int,
    warmup: int,
    lr: float,
    seed: int | Sequence[int],
    title: str,
) -> tuple[dict, float]:
    """-> parameters, and core seconds a step without the first, which compiles.

    choices: what says which batch a step takes, arrays; batch_of(choice, data): that batch, traced.
    seed: several are as many trainings, as one program: choices and parameters then have an axis
      for them in front.

    Raises:
      TrainingError: a step is not finite.
    """
    schedule = OptimConfig(
        steps=steps, warmup=warmup, start_lr=lr / 20, lr=lr, final_lr=lr / 200,
        weight_decay=0.01, final_weight_decay=0.01, ipe_scale=1.0,
    )  # fmt: skip
    optimizer = optim.build(schedule, objective)
    update, many = make_step(objective, optimizer), not isinstance(seed, int)

    def step(state, choice, data):
        return update(state, {}, batch_of(choice, data))

    def make(seed):
        return init_state(objective, optimizer.tx, jax.random.key(seed))

    if many:  # an axis for the seed in front of everything but the data
        make, step = jax.vmap(make), jax.vmap(step, in_axes=(0, 0, None))
    step = jax.jit(step, donate_argnums=0)
    state = jax.jit(make)(np.asarray(seed) if many else seed)
    bar = tqdm(range(steps), desc=title, unit='step', mininterval=1.0, disable=None)
    for n, choice in zip(bar, choices):
        state, metrics = step(state, choice, data)
        if n % 100 == 0 or n == steps - 1:
            metrics = jax.device_get(metrics)
            bar.set_postfix(loss=f'{np.mean(metrics["loss"]):.4g}')
            if not np.all(metrics['finite']):
                raise TrainingError(f'{title}: step {n} is not finite')
        if n == 0:
            begun = time.process_time()
    seconds = (time.process_time() - begun) / max(1, steps - 1)
    return jax.device_get(state.params), seconds
