"""Closed-loop measurements: episodes in the simulator, several at once, with a planner or without.

A policy is a function of the episodes and of what they see; `measure` plays them to the end and
counts how many end well. This is simulation, of the scene that the data came from: it says nothing
about a real robot.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from tqdm import tqdm

from jepa_jax.data.robot import actions_between
from jepa_jax.data.workers import cpus
from jepa_jax.evals.pictures import save
from jepa_jax.planning.cem import ActionSpace, plan
from jepa_jax.planning.world_model import Context, Cost, Goal, WorldModel
from jepa_jax.sharding import platform
from jepa_jax.sims.panda import CAMERA_FROM, CUBE_AREA, LOOK_AT, STANDARD, Panda, Variation
from jepa_jax.sims.tasks import START, PandaEnv, oracle

# Frames [E, H, W, 3] uint8 -> features [E, N, D], each frame alone
Encode = Callable[[jax.Array], jax.Array]
# (episodes, what they see as PandaEnv says with a leading axis of E, key) -> actions [E, 7]
Policy = Callable[[Sequence[PandaEnv], Mapping[str, np.ndarray], jax.Array], np.ndarray]

SHOWN = 4  # episodes whose frames are kept
HEIGHT = 0.13  # metres above the table at which the gripper is judged: over the cube, free
# fields of a row of `tasks` that are the policy's own; the others are shares of success of others
OWN = (
    'success', 'low', 'high', 'distance', 'start', 'within_8_cm', 'episodes', 'seconds_per_action',
    'policies',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Episodes:
    """How episodes of one task ended."""

    task: str
    success: np.ndarray  # [E] bool, at the last step
    start: np.ndarray  # [E] metres from the end of the task, at first
    distance: np.ndarray  # [E] and at last
    seconds: float  # that an action took to choose, per episode; the first, compiling, left out
    # uint8 [at most SHOWN, T, H, W, 3], and the task's goals [the same, G, H, W, 3]; empty where
    # there were no pictures
    frames: np.ndarray
    goals: np.ndarray

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


def wilson(wins: int, count: int) -> tuple[float, float]:
    """95 % interval of a share, by Wilson's score."""
    interval = stats.binomtest(wins, count).proportion_ci(method='wilson')
    return float(interval.low), float(interval.high)


def measure(
    policy: Policy,
    task: str,
    seeds: Sequence[int],
    *,
    image_size: int = 64,
    variations: Sequence[Variation] = (STANDARD,),
    key: jax.Array,
    title: str = '',
    pictures: bool = True,
) -> Episodes:
    """Plays an episode for each seed, all in step, and shows a progress bar.

    variations: of the scenes, one after the other and again; the same seeds and variations are the
      same episodes for every policy. pictures: False for policies that look at states only.

    Raises:
      SimError: an unknown task, or this machine cannot draw.
    """
    envs = [
        PandaEnv(task, image_size, variations[i % len(variations)], pictures)
        for i in range(len(seeds))
    ]
    shown = SHOWN if pictures else 0
    try:
        seen = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds)]
        start = np.array([env.distance() for env in envs])
        frames = [[s['image'] for s in seen[:shown]]]
        taken = []
        for t in tqdm(range(envs[0].steps), desc=title or task, unit='step', file=sys.stderr):
            stacked = {name: np.stack([s[name] for s in seen]) for name in seen[0]}
            begun = time.monotonic()
            actions = np.asarray(policy(envs, stacked, jax.random.fold_in(key, t)))
            taken.append(time.monotonic() - begun)
            results = [env.step(action) for env, action in zip(envs, actions)]
            seen = [result[0] for result in results]
            frames.append([s['image'] for s in seen[:shown]])
        return Episodes(
            task=task,
            success=np.array([result[4]['success'] for result in results]),
            start=start,
            distance=np.array([result[4]['distance'] for result in results]),
            seconds=float(np.mean(taken[1:]) / len(envs)),
            frames=np.stack([np.array(row, np.uint8) for row in frames], axis=1),
            goals=np.array([[goal.image for goal in env.goals] for env in envs[:shown]], np.uint8),
        )
    finally:
        for env in envs:
            env.close()


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
      planning.robot.Robot.encode; it is not compiled here.

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
        given = contexts, goals, jax.random.split(key, len(envs))
        parts = -(-len(envs) // size)
        rows = np.minimum(np.arange(parts * size), len(envs) - 1).reshape(parts, size)
        shares = [jax.tree.map(lambda a, own=own: a[own], given) for own in rows]
        if not programs:
            programs.append(plan.lower(planner, world_model, *shares[0], at_once=size).compile())
        found = pool.map(lambda share: np.asarray(programs[0](world_model, *share)[0]), shares)
        return np.concatenate(list(found))[: len(envs), 0]

    return choose


def plan_in_simulator(planner, encode: Encode) -> Policy:
    """The same with the simulator itself in place of a world model: what a planner reaches when its
    predictions are true, so what is lost is lost by the cost. Slow: every sample is simulated and
    drawn.
    """
    solve = jax.jit(planner.solve)

    def choose(envs, seen, key):
        now, goal = encode(seen['image']), encode(seen['goal_image'])
        actions = []
        for i, own in enumerate(jax.random.split(key, len(envs))):
            world = TrueSimulator(jnp.int32(i), tuple(envs), encode)
            context = Context(now[i : i + 1], jnp.asarray(seen['state'][i : i + 1]))
            found, _ = solve(world, context, Goal(goal[i], jnp.asarray(seen['goal_state'][i])), own)
            actions.append(np.asarray(found[0]))
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
    """The same features by one program for any number of frames, `size` at a time, the last part
    filled up with its last frame."""

    def all_of(frames):
        rows = np.minimum(np.arange(-(-len(frames) // size) * size), len(frames) - 1)
        parts = [encode(frames[own]) for own in rows.reshape(-1, size)]
        return jnp.concatenate(parts)[: len(frames)]

    return all_of


def pixels(frames: jax.Array) -> jax.Array:
    """Frames [E, H, W, 3] as features [E, H W, 3], for the cost that compares pictures."""
    return frames.reshape(frames.shape[0], -1, 3).astype(jnp.float32) / 255


def judge_cost(
    encoders: Mapping[str, Encode],
    cost: Cost,
    seeds: Sequence[int],
    *,
    image_size: int = 64,
    task: str = 'reach',
) -> dict[str, tuple[dict[str, float], np.ndarray]]:
    """Whether a cost falls where the goal comes nearer, without any world model, by each of some
    encoders.

    Returns, as means over episodes: `rank_correlation` (Spearman's) of the cost with the distance
    of the tool from the goal's, over the script's way there and as many steps at random; `falls`,
    the share of the script's steps towards a goal that lower it. And the cost along the script's
    way [E, T], over what it is at first.
    """
    rng, env = np.random.default_rng(len(seeds)), PandaEnv(task, image_size)
    rows: dict[str, list] = {name: [] for name in encoders}  # correlation, falls, way by episode
    try:
        for seed in seeds:
            frames, apart, moving = [], [], []
            for scripted in (True, False):
                seen, _ = env.reset(seed=seed)
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
    found = {}
    for name, row in rows.items():
        correlation, falls, ways = zip(*row)
        numbers = {'rank_correlation': correlation, 'falls': falls}
        found[name] = {key: float(np.mean(a)) for key, a in numbers.items()}, np.stack(ways)
    return found


def judge_depth(
    encoders: Mapping[str, Encode],
    cost: Cost,
    seeds: Sequence[int],
    *,
    image_size: int = 64,
    move: float = 0.01,
) -> dict[str, float]:
    """How much of the cost of a move across the picture a move towards the camera makes, or away
    from it, by each of some encoders: what a planner has to see by how far the tool is from the
    camera.

    move: metres, of the tool from where the goal shows it, in each of six directions. Where the
    result is near 0, plans end before the goal or behind it, however good the predictions are.
    """
    rng = np.random.default_rng(len(seeds))
    costs: dict[str, list] = {name: [] for name in encoders}
    with Panda(image_size) as panda:
        for _ in seeds:
            middle, cube = rng.uniform(*START), rng.uniform(*CUBE_AREA)
            sight = LOOK_AT + CAMERA_FROM - middle
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
    found = {name: np.array(rows) for name, rows in costs.items()}
    return {name: float(a[:, :2].mean() / a[:, 2:].mean()) for name, a in found.items()}


def judge_dynamics(
    worlds: Mapping[str, WorldModel],
    encode: Encode,
    cost: Cost,
    seeds: Sequence[int],
    *,
    image_size: int = 64,
    steps: int = 10,
) -> dict[str, dict[str, float]]:
    """Errors of one-step predictions in scenes that no model was trained on, under random actions.

    cost: how far a prediction is from what was then seen. Returns for each world model
    `shuffled_over_true`, the error with another episode's actions over that with its own (1:
    actions are ignored), and `error_over_copy`, over that of taking each frame for the next.
    """
    rng = np.random.default_rng(len(seeds))
    env, images, states = PandaEnv('reach', image_size), [], []
    try:
        for seed in seeds:
            seen = [env.reset(seed=seed)[0]]
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
        def one(action, frame, state, wanted):
            found = world.rollout(Context(frame[None], state[None]), action[None, None])[0]
            return cost(found, None, Goal(wanted))[0]

        return jax.vmap(one)(actions.reshape(-1, 7), *seen)

    def error(world: WorldModel, actions: np.ndarray) -> float:
        return float(errors(world, actions, before, states, after).mean())

    copy = float(jax.vmap(lambda a, b: cost(a[None, None], None, Goal(b)))(before, after).mean())
    found = {}
    for name, world in worlds.items():
        true = error(world, actions)
        shuffled = error(world, np.roll(actions, 1, axis=0))
        found[name] = {'shuffled_over_true': shuffled / true, 'error_over_copy': true / copy}
    return found


def judge_gripper(
    worlds: Mapping[str, WorldModel],
    encode: Encode,
    cost: Cost,
    seeds: Sequence[int],
    *,
    image_size: int = 64,
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
    rollout = jax.jit(lambda world, *given: world.rollout(*given)[0])
    with Panda(image_size) as panda:
        for _ in seeds:
            cube, first = rng.uniform(*CUBE_AREA), rng.uniform()
            wanted = rng.integers(len(closedness))
            frames = []
            for closed in (*closedness, first):
                panda.place([*cube, HEIGHT], closed, cube)
                frames.append(panda.draw())
            state = np.float32(panda.state())
            features = encode(np.stack(frames))
            goal = Goal(features[wanted])
            true = np.ptp(np.asarray(cost(features[:-1, None], None, goal)))
            actions = np.zeros((len(closedness), 1, 7), np.float32)
            actions[:, 0, 6] = closedness - first
            context = Context(features[-1:], jnp.asarray(state)[None])
            for name, world in worlds.items():
                found = np.asarray(cost(rollout(world, context, actions), None, goal))
                ranges[name].append(np.ptp(found) / true)
                off[name].append(abs(closedness[found.argmin()] - closedness[wanted]))
    return {
        name: {
            'gripper_range': float(np.median(ranges[name])),
            'gripper_off': float(np.mean(off[name])),
        }
        for name in worlds
    }


def row(summaries: Mapping[str, Mapping[str, float]], policy: str) -> dict[str, Any]:
    """A task's row of report.json (`tasks`) out of summaries of episodes: that of a policy, the
    share of success of every other one by its name, and under `policies` all of them."""
    others = {name: found['success'] for name, found in summaries.items() if name != policy}
    return {**summaries[policy], **others, 'policies': dict(summaries)}


def plot_episodes(episodes: Episodes, path: str | Path, title: str = '', columns: int = 7) -> None:
    """Draws the kept episodes as a contact sheet, PNG: a row each, from the first frame to the
    last, and the last goal."""
    count, T = episodes.frames.shape[:2]
    times = np.unique(np.linspace(0, T - 1, min(columns, T)).round().astype(int))
    figure = Figure(figsize=(1.5 * (len(times) + 1), 1.75 * count + 0.5), layout='constrained')
    grid = figure.subplots(count, len(times) + 1, squeeze=False)
    for i in range(count):
        for axes, t in zip(grid[i], times):
            axes.imshow(episodes.frames[i, t])
            axes.set_title(f'step {t}', fontsize=8)
        grid[i, -1].imshow(episodes.goals[i, -1])
        grid[i, -1].set_title('goal', fontsize=8)
        word = 'success' if episodes.success[i] else 'failure'
        grid[i, 0].set_ylabel(f'{word}\n{100 * episodes.distance[i]:.1f} cm off', fontsize=8)
        for axes in grid[i]:
            axes.set_xticks([])
            axes.set_yticks([])
    summary = episodes.summary()
    figure.suptitle(
        f'{title or episodes.task}: {100 * summary["success"]:.0f} % of {summary["episodes"]} '
        f'episodes end well ({100 * summary["low"]:.0f} to {100 * summary["high"]:.0f})',
        fontsize=10,
    )
    save(figure, path)


def plot_energy(ways: Mapping[str, np.ndarray], path: str | Path, title: str = '') -> None:
    """Draws costs along the script's way [E, T] (see judge_cost) by name, PNG: their mean, and
    where the middle half of the episodes is."""
    figure = Figure(figsize=(5.5, 3.8), layout='constrained')
    axes = figure.subplots()
    for name, way in ways.items():
        steps = np.arange(way.shape[1])
        (line,) = axes.plot(steps, way.mean(0), marker='.', label=name)
        axes.fill_between(
            steps, *np.quantile(way, (0.25, 0.75), axis=0), color=line.get_color(), alpha=0.2
        )
    axes.set_xlabel("the script's step towards the goal")
    axes.set_ylabel('cost over the first')
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.set_title(title or 'Cost on the way to the goal', fontsize=10)
    save(figure, path)


def verdict(task: str, row: Mapping[str, Any]) -> str:
    """One sentence on a row of `tasks`."""

    def share(x: float) -> str:
        return f'{100 * x:.0f} %'

    others = ', '.join(f'{k} {share(v)}' for k, v in row.items() if k not in OWN)
    return (
        f'{task} (simulated, the scene of the training data): {share(row["success"])} of '
        f'{row["episodes"]:.0f} episodes end well ({share(row["low"])} to {share(row["high"])}), '
        f'{100 * row["distance"]:.1f} cm off from {100 * row["start"]:.1f}; {others}'
    )
