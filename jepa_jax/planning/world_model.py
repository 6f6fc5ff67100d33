"""What a planner plans with: where actions lead, and how far that is from the goal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from jepa_jax import poses
from jepa_jax.errors import PlanError
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.layers import standardise
from jepa_jax.nets import Net
from jepa_jax.sharding import platform

# tokens of a frame, over all samples, whose activations stay in the caches of a CPU: 400 samples of
# 258 tokens, width 96, horizon 2, take 7.2 core seconds all at once and 3.9 like this
TOGETHER = 1024

# what an action does to a state, as far as is known without a model
ADVANCE = {
    'pose': poses.apply,
    'sum': lambda state, action: state + action,
    'none': lambda state, action: state,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What is known when a plan is made: frames up to now, and the actions between them."""

    features: jax.Array  # [T, N, D] standardised features, each frame encoded alone
    states: jax.Array | None = None  # [T, V]; None where the model sees none
    actions: jax.Array | None = None  # [T - 1, U]; None for a single frame


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Goal:
    """Where to get to."""

    features: jax.Array  # [N, D] of the goal image
    state: jax.Array | None = None  # [V], for a cost that compares states


class WorldModel(Protocol):
    """Anything that says where actions lead; a pytree, so that it can be an argument of a compiled
    plan."""

    def rollout(self, context: Context, actions: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """actions [S, H, U], S sequences from one context -> features [S, H, N, D] and states
        [S, H, V] after each action."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ACWorldModel:
    """The action-conditioned predictor as a world model. (reference: vjepa2 §8.3)

    States are integrated from the actions, not predicted. A frame's keys and values are computed
    once for the whole rollout, which is exact, because no frame sees a later one; those of all
    frames before the last known one are the same for all samples and computed once for all.
    """

    params: dict
    net: Net = dataclasses.field(metadata={'static': True})
    config: ACPredictorConfig = dataclasses.field(metadata={'static': True})
    frames: int = dataclasses.field(metadata={'static': True})  # longest context trained with
    advance: str = dataclasses.field(default='pose', metadata={'static': True})  # key of ADVANCE
    normalise: bool = dataclasses.field(default=True, metadata={'static': True})
    # samples run at once; 0: on a CPU as many as have TOGETHER tokens a frame, elsewhere all
    at_once: int = dataclasses.field(default=0, metadata={'static': True})
    # predict from the newest frames alone, as many as are known at first: any horizon will do
    slide: bool = dataclasses.field(default=False, metadata={'static': True})

    def rollout(self, context: Context, actions: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """See WorldModel.

        Raises:
          PlanError: context and horizon are longer than the model was trained for.
          ValueError: at_once is negative.
        """
        if self.at_once < 0:
            raise ValueError(f'at_once {self.at_once}: must be at least 0')
        T, (S, H, _) = len(context.features), actions.shape
        seen = T if self.slide else T + H - 1
        if seen > self.frames:
            raise PlanError(
                f'horizon {H}: must be at most {max(self.frames - T + 1, 0)} for this model, whose '
                f'predictor was trained on at most {self.frames} frames before the one it predicts'
                + (f', {T} of them known here' if T > 1 else '')
            )
        count = self.at_once
        if not count:
            few = max(1, TOGETHER // self.config.tokens_per_frame)
            count = few if platform() == 'cpu' else S
        if S <= count:
            return self._rollout(context, actions)
        parts = -(-S // count)
        size = -(-S // parts)
        filled = jnp.concatenate([actions, jnp.zeros((parts * size - S, *actions.shape[1:]))])
        split = filled.reshape(parts, size, *actions.shape[1:])
        rollouts = jax.lax.map(lambda part: self._rollout(context, part), split)
        return jax.tree.map(lambda a: a.reshape(parts * size, *a.shape[2:])[:S], rollouts)

    def _rollout(self, context: Context, actions: jax.Array):
        return (self._slide if self.slide else self._remember)(context, actions)

    def _slide(self, context: Context, actions: jax.Array):
        """Each prediction computed from its frames anew: they lose their oldest and move on."""
        (T, N, D), (S, _, U) = context.features.shape, actions.shape
        stateful = self.config.state_width > 0

        def spread(a: jax.Array) -> jax.Array:
            return jnp.broadcast_to(a, (S, *a.shape))

        def move_on(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.concatenate([old[:, 1:], new[:, None]], axis=1)

        def predict(carry, action: jax.Array):
            frames, states, done = carry
            done = jnp.concatenate([done, action[:, None]], axis=1)
            inputs = (done, states) if stateful else (done,)
            z = self.net(self.params, frames.reshape(S, T * N, D), *inputs)
            frame = z.reshape(S, T, N, D)[:, -1]
            frame = standardise(frame) if self.normalise else frame
            if stateful:
                states = move_on(states, ADVANCE[self.advance](states[:, -1], action))
            carry = move_on(frames, frame), states, done[:, 1:]
            return carry, (frame, states[:, -1] if stateful else None)

        done = jnp.zeros((0, U)) if T == 1 else context.actions
        states = spread(context.states) if stateful else None
        carry = spread(context.features), states, spread(done)
        _, rollout = jax.lax.scan(predict, carry, actions.swapaxes(0, 1))
        return jax.tree.map(lambda a: a.swapaxes(0, 1), rollout)

    def _remember(self, context: Context, actions: jax.Array):
        (T, N, D), (S, H, _) = context.features.shape, actions.shape
        stateful = self.config.state_width > 0

        def spread(a: jax.Array, axis: int = 0) -> jax.Array:
            return jnp.broadcast_to(a, (*a.shape[:axis], S, *a.shape[axis + 1 :]))

        past = None
        if T > 1:
            known = context.features[:-1].reshape(1, (T - 1) * N, D)
            states = context.states[None, :-1] if stateful else None
            _, past = self.net(self.params, known, context.actions[None], states, return_past=True)
            past = jax.tree.map(lambda a: spread(a, 1), past)
        frame = spread(context.features[-1:])
        state = spread(context.states[-1:]) if stateful else None
        frames, states = [], []
        for h in range(H):
            action = actions[:, h]
            inputs = self.params, frame, action[:, None]
            inputs += () if state is None else (state[:, None],)
            if h + 1 < H:
                frame, past = self.net(*inputs, past=past, return_past=True)
            else:
                frame = self.net(*inputs, past=past)
            frame = standardise(frame) if self.normalise else frame
            frames.append(frame)
            if stateful:
                state = ADVANCE[self.advance](state, action)
                states.append(state)
        return jnp.stack(frames, axis=1), jnp.stack(states, axis=1) if stateful else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Viewed:
    """A world model whose features are seen through a function, and compared as it shows them:
    contrib/commute_time.py has one. The goal's features must be seen alike."""

    world: WorldModel
    # features [..., N, D] -> what the cost compares [..., M, K]
    view: Callable[[jax.Array], jax.Array] = dataclasses.field(metadata={'static': True})

    def rollout(self, context: Context, actions: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        features, states = self.world.rollout(context, actions)
        return self.view(features), states


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FromCamera:
    """A world model of poses and actions as a camera sees them, which stands still, planned with in
    the frame of the robot's base."""

    world: WorldModel
    camera: jax.Array  # [6] its pose in the base's frame: metres, radians

    def rollout(self, context: Context, actions: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        past = context.actions
        if past is not None:
            past = self._turned(context.states[:-1], past)
        seen = dataclasses.replace(
            context, states=poses.seen(context.states, self.camera), actions=past
        )
        states = [jnp.broadcast_to(context.states[-1], (len(actions), 7))]
        for h in range(actions.shape[1]):
            states.append(poses.apply(states[-1], actions[:, h]))
        turned = self._turned(jnp.stack(states[:-1], axis=1), actions)
        features, _ = self.world.rollout(seen, turned)
        return features, jnp.stack(states[1:], axis=1)

    def _turned(self, states: jax.Array, actions: jax.Array) -> jax.Array:
        """Actions from states, both [..., 7], as the camera sees them."""
        ends = poses.apply(states, actions)
        turned = poses.difference(*(poses.seen(state, self.camera) for state in (states, ends)))
        return jnp.concatenate([turned[..., :6], actions[..., 6:]], axis=-1)


@dataclasses.dataclass(frozen=True)
class Cost:
    """The energy of a rollout: its distance from the goal."""

    exponent: int = 1  # 1: mean absolute difference of features, as released; 2: mean square
    steps: str = 'last'  # last: where the plan ends, as released; all: the mean over its steps
    state_weight: float = 0.0  # adds this times the same distance between states
    state: str = 'pose'  # how states differ: pose (by the action between them) | sum (plainly)
    # adds this times the same distance between the last numbers of states: how far grippers are
    # closed, which a robot that has been at the goal knows and a picture hardly shows
    gripper_weight: float = 0.0

    def __post_init__(self):
        for name, value, allowed in (
            ('exponent', self.exponent, (1, 2)),
            ('steps', self.steps, ('last', 'all')),
            ('state', self.state, ('pose', 'sum')),
        ):
            if value not in allowed:
                words = ', '.join(map(str, allowed))
                raise ValueError(f"cost {name} '{value}': allowed are {words}")
        for name, weight in self.weights.items():
            if not 0 < weight < math.inf:
                raise ValueError(f'cost {name} {weight:g}: must be finite and at least 0')

    @property
    def weights(self) -> dict[str, float]:
        """Those that ask for states, by name."""
        named = {'state_weight': self.state_weight, 'gripper_weight': self.gripper_weight}
        return {name: weight for name, weight in named.items() if weight}

    def __call__(self, features: jax.Array, states: jax.Array | None, goal: Goal) -> jax.Array:
        """features [S, H, N, D], states [S, H, V] -> energies [S]."""
        if self.steps == 'last':
            features = features[:, -1:]
            states = None if states is None else states[:, -1:]
        energy = self._size(features - goal.features)
        for weight, value in self.weights.items():
            for name, state in (('goal', goal.state), ('model', states)):
                if state is None:
                    raise ValueError(f'{weight} {value:g}: the {name} has no state')
        if self.weights:
            if self.state == 'pose':
                apart = poses.difference(states, jnp.broadcast_to(goal.state, states.shape))
            else:
                apart = goal.state - states
            energy = energy + self.state_weight * self._size(apart)
            energy = energy + self.gripper_weight * self._size(apart[..., -1:])
        return energy

    def _size(self, x: jax.Array) -> jax.Array:
        return (jnp.abs(x) if self.exponent == 1 else jnp.square(x)).mean(range(1, x.ndim))


def energies(
    world_model: WorldModel, context: Context, goal: Goal, actions: jax.Array, cost: Cost
) -> jax.Array:
    """Energies [S] of action sequences [S, H, U] from one context."""
    return cost(*world_model.rollout(context, actions), goal)
