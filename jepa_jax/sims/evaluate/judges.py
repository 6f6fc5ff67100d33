"""Cost and predictions, each judged apart from the other and from the planner."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jepa_jax.data.robot import actions_between
from jepa_jax.planning.world_model import Context, Cost, Goal, WorldModel
from jepa_jax.sims.evaluate.policies import Encode
from jepa_jax.sims.panda import Panda
from jepa_jax.sims.scene import CUBE_AREA, STANDARD, Variation
from jepa_jax.sims.tasks import START, PandaEnv, oracle, script

HEIGHT = 0.13  # metres above the table at which the gripper is judged: over the cube, free


def judge_cost(
    encoders: Mapping[str, Encode],
    cost: Cost,
    seeds: Sequence[int],
    *,
    image_size: int = 64,
    task: str = 'reach',
    variations: Sequence[Variation] = (STANDARD,),
) -> dict[str, tuple[dict[str, float], np.ndarray]]:
    """Whether a cost falls as the goal comes nearer, without any world model, by each of some
    encoders. variations: of the scenes, one after the other and again.

    Returns, as means over episodes: `rank_correlation` (Spearman's) of the cost with the distance
    of the tool from the goal's, over the script's way there and as many random steps; `falls`,
    the share of the script's steps towards a goal that lower it. And the cost along the script's
    way [E, T], over what it is at first.
    """
    rng, env = np.random.default_rng(len(seeds)), PandaEnv(task, image_size)
    rows: dict[str, list] = {name: [] for name in encoders}  # correlation, falls, way by episode
    try:
        for seed, scene in zip(seeds, itertools.cycle(variations)):
            frames, apart, moving = [], [], []
            for scripted in (True, False):
                seen, _ = env.reset(seed=seed, options={'variation': scene})
                goal = env.goals[0]
                for t in range(goal.steps + 1):
                    frames.append(seen['image'])
                    apart.append(float(np.linalg.norm(seen['state'][:3] - goal.state[:3])))
                    moving.append(scripted)
                    if t < goal.steps:
                        chance = np.array([*rng.uniform(-0.05, 0.05, 3), 0, 0, 0, 0])
                        seen = env.step(oracle(env) if scripted else chance)[0]
            steps = np.flatnonzero(np.array(moving[:-1]) & moving[1:] & (np.diff(apart) < -0.005))
            for name, encode in encoders.items():
                features = encode(np.stack(frames))[:, None]
                energy = np.asarray(cost(features, None, Goal(encode(goal.image[None])[0])))
                rows[name].append((
                    stats.spearmanr(energy, apart).statistic,
                    np.mean(np.diff(energy)[steps] < 0),
                    energy[: goal.steps + 1] / energy[0],
                ))  # fmt: skip
    finally:
        env.close()
    judged = {}
    for name, row in rows.items():
        correlation, falls, ways = zip(*row)
        numbers = {'rank_correlation': correlation, 'falls': falls}
        judged[name] = {key: float(np.mean(a)) for key, a in numbers.items()}, np.stack(ways)
    return judged


def judge_depth(
    encoders: Mapping[str, Encode],
    cost: Cost,
    seeds: Sequence[int],
    *,
    image_size: int = 64,
    move: float = 0.01,
    variations: Sequence[Variation] = (STANDARD,),
) -> dict[str, float]:
    """The cost of a move towards the camera or away from it, over the cost of a move across the
    picture, by each of some encoders: whether a planner can see how far away the tool is.

    move: metres, of the tool from where the goal shows it, in each of six directions. Where the
    ratio is near 0, plans end before the goal or behind it, however good the predictions are.
    """
    rng = np.random.default_rng(len(seeds))
    costs: dict[str, list] = {name: [] for name in encoders}
    for _, scene in zip(seeds, itertools.cycle(variations)):
        with Panda(image_size, scene) as panda:
            middle, cube = rng.uniform(*START), rng.uniform(*CUBE_AREA)
            sight = panda.data.cam_xpos[0] - middle
            right = np.cross((0, 0, 1), sight)
            directions = np.stack([sight, right, np.cross(sight, right)])
            directions *= move / np.linalg.norm(directions, axis=1, keepdims=True)
            towards, across = directions[:1], directions[1:]
            frames = []
            for moved in (np.zeros(3), *towards, *-towards, *across, *-across):
                panda.place(middle + moved, cube=cube)
                frames.append(panda.draw())
            for name, encode in encoders.items():
                features = encode(np.stack(frames))
                costs[name].append(np.asarray(cost(features[1:, None], None, Goal(features[0]))))
    arrays = {name: np.array(rows) for name, rows in costs.items()}
    return {name: float(a[:, :2].mean() / a[:, 2:].mean()) for name, a in arrays.items()}


def judge_dynamics(
    worlds: Mapping[str, WorldModel],
    encode: Encode,
    cost: Cost,
    seeds: Sequence[int],
    *,
    image_size: int = 64,
    steps: int = 10,
    variations: Sequence[Variation] = (STANDARD,),
) -> dict[str, dict[str, float]]:
    """Errors of one-step predictions in scenes that no model was trained on, under random actions.

    cost: how far a prediction is from what was then seen. Returns for each world model
    `shuffled_over_true`, the error with another episode's actions over that with its own (1:
    actions are ignored), and `error_over_copy`, over that of taking each frame for the next.
    """
    rng = np.random.default_rng(len(seeds))
    env, images, states = PandaEnv('reach', image_size), [], []
    try:
        for seed, scene in zip(seeds, itertools.cycle(variations)):
            seen = [env.reset(seed=seed, options={'variation': scene})[0]]
            for _ in range(min(steps, env.steps)):
                chance = np.array([*rng.uniform(-0.05, 0.05, 3), 0, 0, 0, 0])
                seen.append(env.step(chance)[0])
            images.append([s['image'] for s in seen])
            states.append([s['state'] for s in seen])
    finally:
        env.close()
    E, T = len(images), len(images[0])
    flat = np.array(images).reshape(E * T, *images[0][0].shape)
    features = np.asarray(encode(flat))
    features = features.reshape(E, T, *features.shape[1:])
    states = np.array(states, np.float32)
    # what the arm did, as in training, not what it was asked to do
    actions = np.stack([actions_between(s) for s in states]).astype(np.float32)
    before, after, states = (
        a.reshape(E * (T - 1), *a.shape[2:])
        for a in (features[:, :-1], features[:, 1:], states[:, :-1])
    )

    @jax.jit
    def errors(world: WorldModel, actions: jax.Array, *seen: jax.Array) -> jax.Array:
        def one(action, frame, state, next_frame):
            predicted = world.rollout(Context(frame[None], state[None]), action[None, None])[0]
            return cost(predicted, None, Goal(next_frame))[0]

        return jax.vmap(one)(actions.reshape(-1, 7), *seen)

    def error(world: WorldModel, actions: np.ndarray) -> float:
        return float(errors(world, actions, before, states, after).mean())

    copy = float(jax.vmap(lambda a, b: cost(a[None, None], None, Goal(b)))(before, after).mean())
    judged = {}
    for name, world in worlds.items():
        true = error(world, actions)
        shuffled = error(world, np.roll(actions, 1, axis=0))
        judged[name] = {'shuffled_over_true': shuffled / true, 'error_over_copy': true / copy}
    return judged


def judge_gripper(
    worlds: Mapping[str, WorldModel],
    encode: Encode,
    cost: Cost,
    seeds: Sequence[int],
    *,
    image_size: int = 64,
    variations: Sequence[Variation] = (STANDARD,),
) -> dict[str, dict[str, float]]:
    """Whether world models know what the gripper's actions do, the tool standing still above the
    cube and the goal being another closedness.

    Returns for each `gripper_range`, how far the predicted cost goes up and down over such actions,
    over how far the true one does (0: the gripper is not predicted, and a planner opens and closes
    it by chance), and `gripper_off`, by how much closedness the cheapest one misses the goal's.
    """
    rng = np.random.default_rng(len(seeds))
    closedness = np.linspace(0, 1, 9)
    ranges: dict[str, list] = {name: [] for name in worlds}
    off: dict[str, list] = {name: [] for name in worlds}
    rollout = jax.jit(lambda world, context, actions: world.rollout(context, actions)[0])
    for _, scene in zip(seeds, itertools.cycle(variations)):
        with Panda(image_size, scene) as panda:
            cube, first = rng.uniform(*CUBE_AREA), rng.uniform()
            end = rng.integers(len(closedness))
            frames = []
            for closed in (*closedness, first):
                panda.place([*cube, HEIGHT], closed, cube)
                frames.append(panda.draw())
            state = np.float32(panda.state())
            features = encode(np.stack(frames))
            goal = Goal(features[end])
            true = np.ptp(np.asarray(cost(features[:-1, None], None, goal)))
            actions = np.zeros((len(closedness), 1, 7), np.float32)
            actions[:, 0, 6] = closedness - first
            context = Context(features[-1:], jnp.asarray(state)[None])
            for name, world in worlds.items():
                costs = np.asarray(cost(rollout(world, context, actions), None, goal))
                ranges[name].append(np.ptp(costs) / true)
                off[name].append(abs(closedness[costs.argmin()] - closedness[end]))
    return {
        name: {
            'gripper_range': float(np.median(ranges[name])),
            'gripper_off': float(np.mean(off[name])),
        }
        for name in worlds
    }


def noisy_script(
    task: str,
    seeds: Sequence[int],
    frames: int,
    *,
    image_size: int = 64,
    variations: Sequence[Variation] = (STANDARD,),
    noise: float = 0.02,
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [E, frames, H, W, 3] and states [E, frames, 7] of episodes in which the script
    works on a task, with noise of so many metres; where it is done it stays about the last goal."""
    rng, env, images, states = np.random.default_rng(len(seeds)), PandaEnv(task, image_size), [], []
    try:
        for seed, scene in zip(seeds, itertools.cycle(variations)):
            seen, _ = env.reset(seed=seed, options={'variation': scene})
            panda, poses = env.panda, [g.pose for g in env.goals for _ in range(g.steps)]
            rows = [(seen['image'], seen['state'])]
            for t in range(frames - 1):
                action = script(panda.state(), poses[min(t, len(poses) - 1)])
                action[:3] += rng.normal(0, noise, 3)
                panda.act(action)
                rows.append((panda.draw(), np.float32(panda.state())))
            for into, row in zip((images, states), zip(*rows)):
                into.append(np.stack(row))
    finally:
        env.close()
    return np.stack(images), np.stack(states)
