"""The expander: an MLP with batch normalisation between features and what a regulariser sees.

An encoder ends in a LayerNorm, whose outputs lie on a sphere: they cannot be normally distributed,
nor can a batch statistic of theirs be set freely. Evaluations read the encoder, never this net.
(reference: family §4.1, §4.4)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jepa_jax.models.layers import Linear
from jepa_jax.sharding import VECTORS, Rules, gather

EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class ExpanderConfig:
    """Widths of what goes in, of hidden layers, and of what comes out."""

    in_width: int
    hidden: tuple[int, ...]
    width: int
    dtype: jnp.dtype = jnp.float32  # of matmul inputs


def sharding(config: ExpanderConfig) -> Rules:
    """Where the parameters of a Expander lie."""
    return ((r'layers/\d+/kernel', jax.P(None, 'fsdp')), *(VECTORS if config.hidden else ()))


class BatchNorm(nnx.Module):
    """Each dimension of x [B, ..., D] with mean 0 and deviation 1 over all other axes, all devices
    together; then scaled and shifted. No running averages: it is not used beyond training."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        x = x - x.mean(axes)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axes) + EPS)
        return x * self.scale[...] + self.bias[...]


class Expander(nnx.Module):
    """[Linear, BatchNorm, ReLU] for each hidden layer, then Linear without bias."""

    def __init__(self, config: ExpanderConfig, *, rngs: nnx.Rngs):
        c = config
        ins = (c.in_width, *c.hidden)
        self.layers = nnx.Dict(
            {
                str(i): Linear(a, b, dtype=c.dtype, rngs=rngs, bias=i < len(c.hidden))
                for i, (a, b) in enumerate(zip(ins, (*c.hidden, c.width)))
            }
        )
        self.norms = nnx.Dict({str(i): BatchNorm(width) for i, width in enumerate(c.hidden)})

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, ..., in] -> [B, ..., out] float32."""
        for i, norm in self.norms.items():
            x = jax.nn.relu(norm(gather(self.layers[i])(x)))
        return gather(self.layers[str(len(self.norms))])(x).astype(jnp.float32)
