"""What acts in an episode: planners, with a world model or with the simulator itself, and what they
are compared with."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.data.workers import cpus
from jepa_jax.planning.cem import ActionSpace, plan
from jepa_jax.planning.world_model import Context, Goal, WorldModel
from jepa_jax.sharding import platform
from jepa_jax.sims.panda import Panda
from jepa_jax.sims.tasks import PandaEnv, oracle

# Frames [E, H, W, 3] uint8 -> features [E, N, D], each frame alone
Encode = Callable[[jax.Array], jax.Array]
# (episodes, what they see as PandaEnv says with a leading axis of E, key) -> actions [E, 7]
Policy = Callable[[Sequence[PandaEnv], Mapping[str, np.ndarray], jax.Array], np.ndarray]


def act_at_random(space: ActionSpace) -> Policy:
    """Evenly within the bounds that a planner has."""
    bounds = jnp.asarray(space.bounds)

    def choose(envs, seen, key):
        drawn = jax.random.uniform(key, (len(envs), len(bounds)), minval=-bounds, maxval=bounds)
        return space.whole(drawn)

    return choose


def do_nothing(envs, seen, key) -> np.ndarray:
    """No motion."""
    return np.zeros((len(envs), 7))


def follow_script(envs, seen, key) -> np.ndarray:
    """The script, which knows where everything is: what the task allows at best."""
    return np.stack([oracle(env) for env in envs])


def plan_with(
    planner, world_model: WorldModel, encode: Encode, *, episodes_at_once: int = 1
) -> Policy:
    """Plans from the present frame and state to the goal image before each action, and takes the
    first of the planned ones.

    planner: of jepa_jax/planning/cem.py. encode: what the world model was trained on, such as
      planning.model.PlanningModel.encode; it is not compiled here.

    episodes_at_once: of one program, which any number of episodes takes turns in. On a CPU as many
      threads as there are cores run it: programs of small models keep little more than one core
      busy (two cores, `:small` with 64 samples and 10 rounds: 0.26 to 0.30 s an action in place of
      0.42 to 0.56).
    """
    threads, size = cpus() if platform() == 'cpu' else 1, episodes_at_once
    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix='plans')
    programs: list[Callable] = []  # the one, compiled for all threads

    def choose(envs, seen, key):
        contexts = Context(encode(seen['image'])[:, None], jnp.asarray(seen['state'])[:, None])
        goals = Goal(encode(seen['goal_image']), jnp.asarray(seen['goal_state']))
        episodes = contexts, goals, jax.random.split(key, len(envs))
        parts = -(-len(envs) // size)
        rows = np.minimum(np.arange(parts * size), len(envs) - 1).reshape(parts, size)
        shares = [jax.tree.map(lambda a, own=own: a[own], episodes) for own in rows]
        if not programs:
            programs.append(plan.lower(planner, world_model, *shares[0], at_once=size).compile())
        plans = pool.map(lambda share: np.asarray(programs[0](world_model, *share)[0]), shares)
        return np.concatenate(list(plans))[: len(envs), 0]

    return choose


def plan_in_simulator(planner, encode: Encode) -> Policy:
    """The same with the simulator itself in place of a world model: what a planner reaches when its
    predictions are true, so what is lost is lost by the cost. Slow: every sample is simulated and
    drawn.
    """
    solve = jax.jit(planner.solve)

    def choose(envs, seen, key):
        now = encode(seen['image'])
        goals = Goal(encode(seen['goal_image']), jnp.asarray(seen['goal_state']))
        actions = []
        for i, own in enumerate(jax.random.split(key, len(envs))):
            world = TrueSimulator(jnp.int32(i), tuple(envs), encode)
            context = Context(now[i : i + 1], jnp.asarray(seen['state'][i : i + 1]))
            goal = jax.tree.map(lambda a, i=i: a[i], goals)
            planned, _ = solve(world, context, goal, own)
            actions.append(np.asarray(planned[0]))
        return np.stack(actions)

    return choose


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrueSimulator:
    """A world model that is never wrong: it plays the actions and looks. The episodes are left as
    they were."""

    episode: jax.Array  # which of the environments
    envs: tuple[PandaEnv, ...] = dataclasses.field(metadata={'static': True})
    encode: Encode = dataclasses.field(metadata={'static': True})

    def rollout(self, context: Context, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See planning.world_model.WorldModel."""
        S, H, _ = actions.shape
        size = self.envs[0].panda.image_size
        shapes = (
            jax.ShapeDtypeStruct((S, H, size, size, 3), jnp.uint8),
            jax.ShapeDtypeStruct((S, H, 7), jnp.float32),
        )
        frames, states = jax.pure_callback(self._play, shapes, self.episode, actions)
        features = self.encode(frames.reshape(S * H, size, size, 3))
        return features.reshape(S, H, *features.shape[1:]), states

    def _play(self, episode, actions) -> tuple[np.ndarray, np.ndarray]:
        panda: Panda = self.envs[int(episode)].panda
        begin = panda.save()
        frames, states = [], []
        for sequence in np.asarray(actions):
            panda.restore(begin)
            for action in sequence:
                panda.act(action)
                frames.append(panda.draw())
                states.append(panda.state())
        panda.restore(begin)
        (S, H, _), frames = actions.shape, np.stack(frames)
        return frames.reshape(S, H, *frames.shape[1:]), np.float32(states).reshape(S, H, 7)


def in_parts(encode: Encode, size: int = 20) -> Encode:
    """An encoder of the same features that needs one program for any number of frames: it takes
    `size` of them at a time and repeats the last one to fill the last part."""

    def all_of(frames):
        rows = np.minimum(np.arange(-(-len(frames) // size) * size), len(frames) - 1)
        parts = [encode(frames[own]) for own in rows.reshape(-1, size)]
        return jnp.concatenate(parts)[: len(frames)]

    return all_of


def pixels(frames: jax.Array) -> jax.Array:
    """Frames [E, H, W, 3] as features [E, H W, 3], for the cost that compares pictures."""
    return frames.reshape(frames.shape[0], -1, 3).astype(jnp.float32) / 255
