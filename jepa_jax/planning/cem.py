"""Planners. Each searches the actions with the least energy, from one context to one goal:

    actions, diagnostics = planner.solve(world_model, context, goal, key)

actions [H, U] and diagnostics, a dict of arrays, are pure functions of the arguments, with no trip
to the host: jit it, or `plan` for several episodes at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import optax

from jepa_jax.planning.world_model import Context, Cost, Goal, WorldModel, energies


@dataclasses.dataclass(frozen=True)
class ActionSpace:
    """Which numbers of an action are planned, and within which bounds; the others are zero.

    The tuples have P entries, one for each planned number.
    """

    width: int  # U
    planned: tuple[int, ...]  # places in the action
    bounds: tuple[float, ...]  # actions are clipped to +- this
    std: tuple[float, ...]  # of the first samples
    dead_zone: tuple[float, ...] = ()  # a final value below this is set to 0; (): none
    # (index among the planned, value): that number is not planned but has this value
    fixed: tuple[tuple[int, float], ...] = ()
    # close the gripper from this step on: the last planned number is then 1, beyond its bound
    close_from: int | None = None
    # (least, most) that the steps of each planned number may add up to, None where there is no
    # bound; (): none at all. Numbers, or arrays, so that one program serves every place to start
    within: tuple[tuple[jax.typing.ArrayLike, jax.typing.ArrayLike] | None, ...] = ()

    def __post_init__(self):
        count = len(self.planned)
        for name in ('bounds', 'std', 'dead_zone', 'within'):
            numbers = getattr(self, name)
            if len(numbers) != count and not (name in ('dead_zone', 'within') and not numbers):
                raise ValueError(f'{name} has {len(numbers)} numbers: {count} are planned')
        if wrong := [i for i, _ in self.fixed if not 0 <= i < count]:
            raise ValueError(f'fixed {wrong[0]}: must be from 0 to {count - 1}')

    def restrict(self, planned: jax.Array) -> jax.Array:
        """Clips planned numbers [S, H, P], sets those that are fixed, and keeps sums within."""
        bounds = jnp.asarray(self.bounds)
        planned = jnp.clip(planned, -bounds, bounds)
        planned = self._fix(planned)
        if self.close_from is not None:
            closing = jnp.arange(planned.shape[-2]) >= self.close_from
            planned = planned.at[..., -1].set(jnp.where(closing, 1.0, planned[..., -1]))
        for i, walls in enumerate(self.within):
            if walls is not None:
                planned = planned.at[..., i].set(_within(planned[..., i], *walls))
        return planned

    def _fix(self, planned: jax.Array) -> jax.Array:
        for index, value in self.fixed:
            planned = planned.at[..., index].set(value)
        return planned

    def start(self, horizon: int) -> tuple[jax.Array, jax.Array]:
        """Mean and deviation [H, P] of the first samples."""
        mean = self._fix(jnp.zeros((horizon, len(self.planned))))
        return mean, jnp.broadcast_to(jnp.asarray(self.std), mean.shape)

    def whole(self, planned: jax.Array) -> jax.Array:
        """Planned numbers [..., P] -> actions [..., U]."""
        actions = jnp.zeros((*planned.shape[:-1], self.width), planned.dtype)
        return actions.at[..., jnp.asarray(self.planned)].set(planned)

    def finish(self, planned: jax.Array) -> jax.Array:
        """The plan [H, P] as actions [H, U], the dead zone applied."""
        if self.dead_zone:
            planned = jnp.where(jnp.abs(planned) < jnp.asarray(self.dead_zone), 0.0, planned)
        return self.whole(planned)


def _within(steps: jax.Array, least: float, most: float) -> jax.Array:
    """Steps [..., H] from 0 of which one that would leave ends at the wall, and the next goes on
    from there."""

    def walk(place: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        end = jnp.clip(place + step, least, most)
        return end, end - place

    along = jnp.moveaxis(steps, -1, 0)
    return jnp.moveaxis(jax.lax.scan(walk, jnp.zeros_like(along[0]), along)[1], 0, -1)


def end_effector(
    max_step: float = 0.05,
    *,
    workspace: Sequence[float] = (),
    start: Sequence[float] = (),
    **settings,
) -> ActionSpace:
    """The released planner's: x, y, z within +- max_step metres and the gripper; no rotation.
    (reference: vjepa2 §8.2)

    Args:
      workspace: x0, x1, y0, y1, z0, z1 in metres, a box that the plan does not leave: steps end at
        its walls. (): none.
      start: state or place from which plans begin, within the workspace.

    Raises:
      ValueError: max_step is not finite and more than 0; a workspace that is none, or a start
        outside of it or left out.
    """
    if not 0 < max_step < math.inf:
        raise ValueError(f'max_step {max_step:g}: must be finite and more than 0 metres')
    if len(workspace):
        check_box(workspace)
        if len(start) < 3:
            raise ValueError(f'start has {len(start)} numbers: a workspace needs x, y, z')
        within = []
        for name, at, low, high in zip('xyz', start, workspace[::2], workspace[1::2]):
            if not low <= at <= high:
                raise ValueError(
                    f'workspace: the plan would begin at {name} = {at:.4g}, outside of {low:g} to '
                    f'{high:g} m'
                )
            within.append((float(low - at), float(high - at)))
        settings['within'] = (*within, None)
    return ActionSpace(
        width=7,
        planned=(0, 1, 2, 6),
        bounds=(max_step,) * 3 + (0.75,),
        std=(max_step,) * 3 + (1.0,),
        dead_zone=(0.0, 0.0, 0.0, 0.25),
        **settings,
    )


def check_box(workspace: Sequence[float]) -> None:
    """Raises ValueError for one that is no box."""
    if len(workspace) != 6 or not all(a < b for a, b in zip(workspace[::2], workspace[1::2])):
        words = ','.join(f'{value:g}' for value in workspace)
        raise ValueError(f'workspace {words}: must be x0,x1,y0,y1,z0,z1, each pair ascending')


class _Planner:
    """What planners that search one action space have in common."""

    def within(self, space: ActionSpace) -> Self:
        """The same planner in another action space."""
        return dataclasses.replace(self, space=space)


@dataclasses.dataclass(frozen=True)
class CEM(_Planner):
    """The cross-entropy method: sample, keep the best, sample around them. (reference: vjepa2
    §8.2)"""

    space: ActionSpace
    cost: Cost = Cost()
    horizon: int = 2
    samples: int = 400
    iterations: int = 10
    elites: int = 10
    # share of the mean and of the deviation that stays as it was in an iteration, one or P numbers
    momentum_mean: float | tuple[float, ...] = 0.15
    momentum_std: float | tuple[float, ...] = 0.15

    def __post_init__(self):
        _check(self)
        if not 2 <= self.elites <= self.samples:
            raise ValueError(f'elites {self.elites}: must be from 2 to samples = {self.samples}')

    def solve(
        self,
        world_model: WorldModel,
        context: Context,
        goal: Goal,
        key: jax.Array,
        *,
        noise: jax.Array | None = None,
        first: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """-> actions [H, U] and diagnostics: `energies` [J] the elites' mean, `best` [J] the least,
        `elites` [J, K] their indices, `costs` [J, S] of all samples, `std` [J, H, P], and `energy`
        [] of the returned actions.

        noise [J, H, S, P]: standard normal numbers in place of those that the key would give.
        first [H, P]: planned numbers around which the search begins, such as what is left of the
          plan before; None: doing nothing.
        """

        def update(mean, std, planned, costs):
            lowest, chosen = jax.lax.top_k(-costs, self.elites)
            best = planned[chosen]
            mean = _blend(best.mean(0), mean, self.momentum_mean)
            std = _blend(best.std(0, ddof=1), std, self.momentum_std)
            return mean, std, {'energies': -lowest.mean(), 'best': -lowest[0], 'elites': chosen}

        return _search(self, update, world_model, context, goal, key, noise, first)


@dataclasses.dataclass(frozen=True)
class MPPI(_Planner):
    """Model predictive path integral: like CEM, but samples weigh exp(-energy / temperature)."""

    space: ActionSpace
    cost: Cost = Cost()
    horizon: int = 2
    samples: int = 400
    iterations: int = 10
    temperature: float = 0.1  # in deviations of the samples' energies, which have no natural unit
    min_std: float = 0.1  # the search never narrows below this share of the first deviation

    def __post_init__(self):
        _check(self)
        if self.temperature <= 0:
            raise ValueError(f'temperature {self.temperature}: must be more than 0')

    def solve(
        self,
        world_model: WorldModel,
        context: Context,
        goal: Goal,
        key: jax.Array,
        *,
        noise: jax.Array | None = None,
        first: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As CEM.solve; `energies` is the weighted mean, and there are no `elites`."""
        least = self.min_std * self.space.start(self.horizon)[1]

        def update(mean, std, planned, costs):
            spread = jnp.maximum(costs.std(), 1e-12)
            weights = jax.nn.softmax(-costs / (self.temperature * spread))
            mean = jnp.tensordot(weights, planned, 1)
            variance = jnp.tensordot(weights, jnp.square(planned - mean), 1)
            std = jnp.maximum(jnp.sqrt(variance), least)
            return mean, std, {'energies': weights @ costs, 'best': costs.min()}

        return _search(self, update, world_model, context, goal, key, noise, first)


@dataclasses.dataclass(frozen=True)
class Adam(_Planner):
    """Descends the gradient of the energy with Adam from several starts, and takes the best."""

    space: ActionSpace
    cost: Cost = Cost()
    horizon: int = 2
    samples: int = 16  # starts: one is to do nothing, or `first`, the others are random
    iterations: int = 40
    rate: float = 0.1  # step size, as a share of each bound

    def __post_init__(self):
        _check(self)

    def solve(
        self,
        world_model: WorldModel,
        context: Context,
        goal: Goal,
        key: jax.Array,
        *,
        noise: jax.Array | None = None,
        first: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As CEM.solve; noise [1, H, S, P]; `energies` is the mean over the starts."""
        starts = _starts(self, key, noise, first)
        return self.descend(world_model, context, goal, starts)

    def descend(self, world_model, context: Context, goal: Goal, starts: jax.Array):
        """From plans [S, H, P]; clipped to the bounds after every step."""
        space, bounds = self.space, jnp.asarray(self.space.bounds)
        optimizer = optax.adam(self.rate)

        @functools.partial(jax.value_and_grad, has_aux=True)
        def total(scaled):
            planned = space.restrict(scaled * bounds)
            costs = energies(world_model, context, goal, space.whole(planned), self.cost)
            return costs.sum(), costs

        def step(carry, _):
            scaled, state, best, least = carry
            (_, costs), grads = total(scaled)
            better = costs < least
            best = jnp.where(better[:, None, None], scaled, best)
            least = jnp.minimum(costs, least)
            updates, state = optimizer.update(grads, state)
            scaled = jnp.clip(scaled + updates, -1, 1)
            metrics = {'energies': costs.mean(), 'best': least.min()}
            return (scaled, state, best, least), metrics

        scaled = jnp.clip(starts / bounds, -1, 1)
        carry = scaled, optimizer.init(scaled), scaled, jnp.full(len(starts), jnp.inf)
        (scaled, _, best, least), diagnostics = jax.lax.scan(step, carry, length=self.iterations)
        # a step is judged when the next begins, so where the last one led is never looked at
        chosen = space.restrict(best[jnp.argmin(least)] * bounds)
        return _finish(self, world_model, context, goal, chosen, diagnostics)


@dataclasses.dataclass(frozen=True)
class CEMAdam:
    """CEM, then Adam from the mean that CEM ends with."""

    cem: CEM
    adam: Adam

    @property
    def space(self) -> ActionSpace:
        return self.cem.space

    def within(self, space: ActionSpace) -> CEMAdam:
        """As that of its parts."""
        return CEMAdam(self.cem.within(space), self.adam.within(space))

    def solve(
        self,
        world_model: WorldModel,
        context: Context,
        goal: Goal,
        key: jax.Array,
        *,
        noise: jax.Array | None = None,
        first: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As CEM.solve; `energies` and `best` are those of both, one after the other, and `energy`
        is never more than CEM's."""
        actions, before = self.cem.solve(world_model, context, goal, key, noise=noise, first=first)
        start = actions[None, :, jnp.asarray(self.cem.space.planned)]
        refined, after = self.adam.descend(world_model, context, goal, start)
        better = after['energy'] < before['energy']
        diagnostics = {k: jnp.concatenate([before[k], after[k]]) for k in ('energies', 'best')}
        diagnostics['energy'] = jnp.minimum(before['energy'], after['energy'])
        return jnp.where(better, refined, actions), diagnostics


@dataclasses.dataclass(frozen=True)
class Collocation(_Planner):
    """Descends the gradient over plans and the frames between together: each frame is to be what is
    predicted from the one before, by a weight that grows, and the cost is that of the frames. No
    gradient passes through more than one prediction, and those of a plan are made side by side.

    For world models whose next frame depends on the frame before alone.
    """

    space: ActionSpace
    cost: Cost = Cost()
    horizon: int = 2
    samples: int = 8  # starts, as Adam's; frames start where their rollouts lead
    iterations: int = 40
    rate: float = 0.1  # step size, as a share of each bound
    rate_frames: float = 0.05  # of features, whose deviation is about 1
    # of the mean squared miss of predictions in units of the cost, in the first iteration and in
    # the last
    weights: tuple[float, float] = (1.0, 100.0)

    def __post_init__(self):
        _check(self)
        if not 0 < self.weights[0] <= self.weights[1]:
            raise ValueError(f'weights {self.weights}: must be more than 0 and ascend')

    def solve(
        self,
        world_model: WorldModel,
        context: Context,
        goal: Goal,
        key: jax.Array,
        *,
        noise: jax.Array | None = None,
        first: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As Adam.solve; `energies` and `best` are those of the frames, `misses` [J] how far
        predictions miss them; the plan is the one whose rollout has the least energy.

        Raises:
          ValueError: a world model whose predictions are no frames from which it could predict
            the next.
        """
        space, bounds = self.space, jnp.asarray(self.space.bounds)
        starts = _starts(self, key, noise, first)
        now = context.features[-1]

        def states_of(actions: jax.Array) -> jax.Array | None:  # what is unused is not computed
            return world_model.rollout(context, actions)[1]

        def step(frame: jax.Array, state: jax.Array | None, action: jax.Array) -> jax.Array:
            alone = Context(frame[None], None if state is None else state[None])
            return world_model.rollout(alone, action[None, None])[0][0, 0]

        def before(path: jax.Array, place: jax.Array) -> jax.Array:
            place = jnp.broadcast_to(place, path[:, :1].shape)
            return jnp.concatenate([place, path[:, :-1]], axis=1)

        def judge(variables, weight: jax.Array):
            scaled, frames = variables
            actions = space.whole(space.restrict(scaled * bounds))
            states = states_of(actions)
            shown = None if states is None else before(states, context.states[-1])
            predicted = jax.vmap(jax.vmap(step))(before(frames, now), shown, actions)
            costs = self.cost(frames, states, goal)
            misses = jnp.square(predicted - frames).mean(range(1, frames.ndim))
            return (costs + weight * misses).sum(), (costs, misses)

        frames = world_model.rollout(context, space.whole(space.restrict(starts)))[0]
        if frames.shape[2:] != now.shape:
            raise ValueError(
                f'collocation: predictions are {frames.shape[2:]}, frames {now.shape}: the world '
                'model shows them through a view'
            )
        scaled = jnp.clip(starts / bounds, -1, 1)
        optimizers = optax.adam(self.rate), optax.adam(self.rate_frames)
        begin = (scaled, frames), tuple(o.init(x) for o, x in zip(optimizers, (scaled, frames)))

        def iterate(carry, weight: jax.Array):
            variables, memories = carry
            grads, (costs, misses) = jax.grad(judge, has_aux=True)(variables, weight)
            moved = [o.update(g, m) for o, g, m in zip(optimizers, grads, memories)]
            scaled, frames = (x + change for x, (change, _) in zip(variables, moved))
            variables = jnp.clip(scaled, -1, 1), frames
            metrics = {'energies': costs.mean(), 'best': costs.min(), 'misses': misses.mean()}
            return (variables, tuple(m for _, m in moved)), metrics

        weights = jnp.geomspace(*self.weights, self.iterations)
        ((scaled, _), _), diagnostics = jax.lax.scan(iterate, begin, weights)
        plans = space.restrict(scaled * bounds)
        reached = energies(world_model, context, goal, space.whole(plans), self.cost)
        diagnostics['best'] = jax.lax.cummin(diagnostics['best'])
        return _finish(self, world_model, context, goal, plans[reached.argmin()], diagnostics)


def _starts(planner, key: jax.Array, noise: jax.Array | None, first: jax.Array | None) -> jax.Array:
    """Planned numbers [S, H, P] of a planner's starts: one is to do nothing, or `first`, the others
    are random."""
    mean, std = planner.space.start(planner.horizon)
    mean = mean if first is None else planner.space.restrict(first)
    if noise is None:
        noise = jax.random.normal(key, (1, planner.horizon, planner.samples, std.shape[-1]))
    return mean + std * jnp.moveaxis(noise[0], 1, 0).at[0].set(0.0)


# name -> the planner of that name, with the settings that all share
PLANNERS = {
    'cem': lambda elites, **own: CEM(elites=elites, **own),
    'mppi': lambda elites, **own: MPPI(**own),
    'adam': lambda elites, **own: Adam(**own),
    'cem_adam': lambda elites, **own: CEMAdam(
        CEM(elites=elites, **own), Adam(**{**own, 'samples': 1})
    ),
    'collocation': lambda elites, **own: Collocation(**own),
}


def solver(
    name: str,
    space: ActionSpace,
    cost: Cost,
    *,
    samples: int,
    iterations: int,
    horizon: int,
    elites: int,
):
    """The planner of a name, a key of PLANNERS; elites: for CEM.

    Raises:
      ValueError: no such planner, or a setting that cannot be.
    """
    if name not in PLANNERS:
        raise ValueError(f"planner '{name}': allowed are {', '.join(PLANNERS)}")
    return PLANNERS[name](
        elites, space=space, cost=cost, samples=samples, iterations=iterations, horizon=horizon
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames='at_once')
def plan(
    planner,
    world_model: WorldModel,
    contexts: Context,
    goals: Goal,
    keys: jax.Array,
    *,
    at_once: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Several episodes as one compiled program: contexts, goals and keys have a leading axis of E
    episodes -> actions [E, H, U], diagnostics with that axis.

    Episodes do not touch: rows that only fill up a batch change nothing. at_once: episodes computed
    side by side. 1: each is what it is alone, bit for bit; more keeps an accelerator busy with a
    small model, and is equal up to rounding.
    """

    def solve(episode):
        return planner.solve(world_model, *episode)

    return jax.lax.map(solve, (contexts, goals, keys), batch_size=at_once if at_once > 1 else None)


def _check(planner) -> None:
    for name in ('horizon', 'samples', 'iterations'):
        if getattr(planner, name) < 1:
            raise ValueError(f'{name} {getattr(planner, name)}: must be at least 1')


def _blend(new: jax.Array, old: jax.Array, momentum) -> jax.Array:
    momentum = jnp.asarray(momentum)
    return new * (1 - momentum) + old * momentum


def _search(planner, update, world_model, context, goal, key, noise, first):
    """Sample, judge, `update(mean, std, planned, costs) -> mean, std, diagnostics`, again."""
    space = planner.space
    mean, std = space.start(planner.horizon)
    mean = mean if first is None else space.restrict(first)
    shape = planner.horizon, planner.samples, mean.shape[-1]

    def iterate(carry, source):
        mean, std = carry
        drawn = source if noise is not None else jax.random.normal(source, shape)
        planned = space.restrict(jnp.moveaxis(drawn, 1, 0) * std + mean)
        costs = energies(world_model, context, goal, space.whole(planned), planner.cost)
        mean, std, metrics = update(mean, std, planned, costs)
        return (mean, std), {**metrics, 'costs': costs, 'std': std}

    sources = noise if noise is not None else jax.random.split(key, planner.iterations)
    (mean, _), diagnostics = jax.lax.scan(iterate, (mean, std), sources)
    return _finish(planner, world_model, context, goal, mean, diagnostics)


def _finish(planner, world_model, context, goal, planned, diagnostics):
    if planner.space.within:  # a mean of plans that stay within does, up to rounding
        planned = planner.space.restrict(planned)
    actions = planner.space.finish(planned)
    (energy,) = energies(world_model, context, goal, actions[None], planner.cost)
    return actions, {**diagnostics, 'energy': energy}
