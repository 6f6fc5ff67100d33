"""Features whose squared distance is time: how many steps it takes from one frame to another.

A planner that compares features of pictures is drawn to what looks like the goal, even where a wall
is between. Here a small head on frozen features makes new ones that know the way round, from
recordings alone: neighbouring frames are to be near and all frames of a scene are to fill a large
volume,

    mean |z(t + 1) - z(t)|^2 - log det cov z,

with the covariance over the frames of a scene. Where z is free and as wide as there are places, the
least is where squared distances are commute times halved: the number of steps to get there, the
mean of both ways, of a walk that moves as the recordings do. A narrower z keeps the slowest
directions of that, as the commute time embedding of a graph does (Saerens et al., 2004). A network
in place of free z holds for scenes that it has not seen.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jepa_jax.nets import Net

LEAST = 1e-5  # is added to variances, so that a still scene has a volume


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The shape of the head."""

    tokens: int  # N of a frame
    encoder_width: int  # D of the features
    width: int = 384
    depth: int = 3  # layers before the last
    out: int = 8  # K numbers, in which distances are taken


class Head(nnx.Module):
    """Features of frames -> points whose squared distance is time."""

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
    """Pieces of recordings, sorted by scene: only frames of one scene are compared."""

    features: jax.Array  # [L, M, T, N, D]: L scenes, M pieces of each, T frames, N tokens


class CommuteTime:
    """Net and loss of the head."""

    averaged = None  # no net has a moving average: there is no target
    unused: frozenset[str] = frozenset()

    def __init__(self, config: HeadConfig):
        self.head = Net(lambda rngs: Head(config, rngs=rngs))
        self.config = config

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
        """See the top of this file; the mean over scenes.

        metrics: `step`, the mean squared distance of neighbours, which is K where the loss is
        least, and `apart`, that of any two frames of a scene.

        Raises ValueError where a scene has no more than K frames: their volume is 0.
        """
        z = self.head(params['head'], batch.features)
        L, M, T, _, K = z.shape
        if M * T <= K:
            raise ValueError(f'{M} x {T} frames of a scene: must be more than the {K} numbers')
        step = jnp.square(jnp.diff(z, axis=2)).sum((-2, -1)).mean()
        z = z.reshape(L, M * T, K)
        z = z - z.mean(1, keepdims=True)
        covariance = jnp.einsum('lnj,lnk->ljk', z, z) / (M * T)
        volume = jnp.linalg.slogdet(covariance + LEAST * jnp.eye(K))[1].mean()
        apart = 2 * jnp.square(z).sum(-1).mean()  # over all pairs: twice the variance
        return step - volume, {'step': step, 'apart': apart}
