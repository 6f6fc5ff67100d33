"""Episodes in the simulator, several at once, played to their end by a policy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from jepa_jax.evals.intervals import wilson
from jepa_jax.sims.evaluate.policies import Policy
from jepa_jax.sims.scene import STANDARD, Variation
from jepa_jax.sims.tasks import PandaEnv

SHOWN = 4  # episodes whose frames are kept: half of them such as end well, where there are


@dataclasses.dataclass(frozen=True)
class Episodes:
    """How episodes of one task ended."""

    task: str
    success: np.ndarray  # [E] bool, at the last step
    start: np.ndarray  # [E] metres from the end of the task, at first
    distance: np.ndarray  # [E] and at last
    seconds: float  # that an action took to choose, per episode; the first, compiling, left out
    shown: np.ndarray  # [K] int, numbers of the at most SHOWN whose pictures are kept
    frames: np.ndarray  # uint8 [K, T, H, W, 3]
    goals: np.ndarray  # uint8 [K, G, H, W, 3], the task's goals

    def summary(self) -> dict[str, float]:
        """`success` with its 95 % interval `low`, `high` (Wilson's), median `distance` and
        `start` in metres, the share that ends `within_8_cm`, `episodes`, `seconds_per_action`."""
        wins, count = int(self.success.sum()), len(self.success)
        low, high = wilson(wins, count)
        return {
            'success': wins / count,
            'low': low,
            'high': high,
            'distance': float(np.median(self.distance)),
            'start': float(np.median(self.start)),
            'within_8_cm': float(np.mean(self.distance < 0.08)),
            'episodes': count,
            'seconds_per_action': self.seconds,
        }


def measure(
    policy: Policy,
    task: str,
    seeds: Sequence[int],
    *,
    image_size: int = 64,
    variations: Sequence[Variation] = (STANDARD,),
    shown: Sequence[Variation | None] = (None,),
    key: jax.Array,
    title: str = '',
    pictures: bool = True,
) -> Episodes:
    """Plays an episode for each seed, all in step, and shows a progress bar.

    variations: of the scenes, one after the other and again; the same seeds and variations are the
      same episodes for every policy. shown: likewise, the scenes as goal images show them, see
      PandaEnv. pictures: False for policies that look at states only.

    Raises:
      SimError: an unknown task, or this machine cannot draw.
    """
    envs = [
        PandaEnv(task, image_size, variations[i % len(variations)], pictures, shown[i % len(shown)])
        for i in range(len(seeds))
    ]
    try:
        seen = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds)]
        start = np.array([env.distance() for env in envs])
        frames = [[s['image'] for s in seen if pictures]]
        taken = []
        for t in tqdm(range(envs[0].steps), desc=title or task, unit='step', disable=None):
            stacked = {name: np.stack([s[name] for s in seen]) for name in seen[0]}
            begun = time.monotonic()
            actions = np.asarray(policy(envs, stacked, jax.random.fold_in(key, t)))
            taken.append(time.monotonic() - begun)
            results = [env.step(action) for env, action in zip(envs, actions)]
            seen = [result[0] for result in results]
            frames.append([s['image'] for s in seen if pictures])
        success = np.array([result[4]['success'] for result in results])
        kept = _telling(success) if pictures else np.zeros(0, int)
        return Episodes(
            task=task,
            success=success,
            start=start,
            distance=np.array([result[4]['distance'] for result in results]),
            seconds=float(np.mean(taken[1:]) / len(envs)),
            shown=kept,
            frames=np.array([[row[i] for row in frames] for i in kept], np.uint8),
            goals=np.array([[goal.image for goal in envs[i].goals] for i in kept], np.uint8),
        )
    finally:
        for env in envs:
            env.close()


def _telling(success: np.ndarray) -> np.ndarray:
    """Numbers of the first episodes [E] that end well and of the first that do not, as many of
    either as there are."""
    well, badly = np.flatnonzero(success), np.flatnonzero(~success)
    of_well = max(SHOWN // 2, SHOWN - len(badly))
    chosen = well[:of_well]
    return np.sort(np.concatenate([chosen, badly[: SHOWN - len(chosen)]]))
