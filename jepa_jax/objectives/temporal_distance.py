"""Features whose distance is time: how many steps it takes from one frame to another.

A planner that compares features of pictures is drawn to what looks like the goal, even where a wall
is between. Here a small head on frozen features makes new ones, in which a frame is at most 1 from
the next and all frames of a scene are as far apart as that allows: maximum variance unfolding
(Weinberger and Saul, 2006) of a scene's recordings, with a network in place of free coordinates, so
that it holds for scenes that it has not seen. METRA (Park et al., 2024) bounds steps alike.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jepa_jax.nets import Net


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The shape of the head."""

    tokens: int  # N of a frame
    encoder_width: int  # D of the features
    width: int = 384
    depth: int = 3  # layers before the last
    out: int = 16  # K numbers, in which distances are taken


class Head(nnx.Module):
    """Features of frames -> points whose distance is time."""

    def __init__(self, c: HeadConfig, *, rngs: nnx.Rngs):
        widths = (c.tokens * c.encoder_width, *(c.width,) * c.depth, c.out)
        self.layers = nnx.List(nnx.Linear(a, b, rngs=rngs) for a, b in zip(widths, widths[1:]))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., N, D] -> [..., 1, K], one token, as a planner's cost takes them."""
        x = x.reshape(*x.shape[:-2], 1, -1)
        for layer in self.layers[:-1]:
            x = jax.nn.gelu(layer(x))
        return self.layers[-1](x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scenes:
    """Pieces of recordings, sorted by scene: only frames of one scene are pushed apart."""

    features: jax.Array  # [L, M, T, N, D]: L scenes, M pieces of each, T frames, N tokens


class TemporalDistance:
    """Net and loss of the head."""

    averaged = None  # no net has a moving average: there is no target
    unused: frozenset[str] = frozenset()

    def __init__(self, config: HeadConfig, bound: float = 1000.0):
        """bound: what squared excesses over 1 count beside squared distances."""
        self.head = Net(lambda rngs: Head(config, rngs=rngs))
        self.bound = bound

    @property
    def abstract(self) -> dict:
        """Shapes of what `init` returns."""
        return {'head': self.head.abstract}

    def init(self, key: jax.Array) -> dict:
        return {'head': self.head.init(key)}

    def frozen(self, key: jax.Array) -> dict:
        """Nothing: features come with the batch."""
        return {}

    def loss(self, params: dict, target: dict, batch: Scenes) -> tuple[jax.Array, dict]:
        """Minus the mean squared distance of two frames of a scene, plus `bound` times the mean
        squared excess over 1 of the distance from a frame to the next.

        metrics: `apart` and `step`, the roots of mean squared distances, of any two frames and of
        neighbours, and `excess`.
        """
        z = self.head(params['head'], batch.features)
        # the root has no gradient at 0, where a still scene is
        steps = jnp.sqrt(jnp.square(jnp.diff(z, axis=2)).sum((-2, -1)) + 1e-6)
        excess = jnp.square(jax.nn.relu(steps - 1)).mean()
        # over all pairs of a scene: twice the variance
        apart = 2 * jnp.square(z - z.mean((1, 2), keepdims=True)).sum((-2, -1)).mean()
        metrics = {
            'apart': jnp.sqrt(apart),
            'step': jnp.sqrt(jnp.square(steps).mean()),
            'excess': excess,
        }
        return self.bound * excess - apart, metrics
