"""Three-axis rotary position embedding.

A head's channels are cut into [t | y | x | rest]; the first three parts, d = 2 * (C // 3 // 2)
channels each, are turned by an angle that grows with the token's index along that axis, the rest is
left alone.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.sharding import platform

MIN_HEAD_DIM = (
    12  # below, a part has a single frequency and the original fails (reference: vjepa2 §1.3)
)
# flavour -> frequencies of the channels of a part [d] from those of its pairs [d / 2]
FLAVOURS = {'tiled': lambda omega: np.tile(omega, 2), 'paired': lambda omega: np.repeat(omega, 2)}


def part(head_dim: int) -> int:
    """Channels rotated per axis."""
    return 2 * (head_dim // 3 // 2)


def angles(
    positions: tuple[jax.Array, ...], head_dim: int, flavour: str
) -> tuple[jax.Array, jax.Array]:
    """Cosine and signed sine tables, float32.

    positions: (t, y, x), each [..., N] of any number type; flavour 'tiled': as released with V-JEPA
    2, where channel c of a part of d has the frequency of index c mod d/2 although neighbouring
    channels form the pairs; the two members of a pair then turn by different angles, so this is no
    rotation, and released weights depend on it (reference: vjepa2 §1.3, quirk 1). 'paired': as
    released with V-JEPA 2.1, both channels of a pair have its frequency (reference: vjepa2_1 §3.1).
    Returns cos, sin [..., N, C]; the sine of even channels carries the minus sign of the pair's
    rotation.
    """
    d = part(head_dim)
    if flavour not in FLAVOURS:
        raise ValueError(f"rope flavour '{flavour}': allowed are {', '.join(FLAVOURS)}")
    if head_dim < MIN_HEAD_DIM or head_dim % 2:
        raise ValueError(
            f'head dim {head_dim}: rope needs an even number of at least {MIN_HEAD_DIM}'
        )
    omega = 10000.0 ** (-np.arange(d // 2) / (d / 2))
    omega = jnp.asarray(FLAVOURS[flavour](omega), jnp.float32)
    theta = jnp.concatenate([p.astype(jnp.float32)[..., None] * omega for p in positions], axis=-1)
    theta = jnp.pad(theta, [(0, 0)] * (theta.ndim - 1) + [(0, head_dim - 3 * d)])
    sign = jnp.asarray(np.resize([-1.0, 1.0], head_dim), jnp.float32)
    return jnp.cos(theta), jnp.sin(theta) * sign


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns x [B, N, A, C] by tables of shape [N, C] or [B, N, C]; computed in float32, returned in
    x's type."""
    cos, sin = (table[..., None, :] for table in tables)
    return (x.astype(jnp.float32) * cos + _swap_pairs(x) * sin).astype(x.dtype)


def _swap_pairs(x: jax.Array) -> jax.Array:
    """Channels 1, 0, 3, 2, ... of x, float32."""
    C = x.shape[-1]
    if platform() == 'tpu':
        # a product with a permutation is exact; XLA would store the pairs, two channels in 128
        # lanes, and turn them round in HBM: twice the traffic of projection and attention together
        swap = jnp.asarray(np.eye(C)[np.arange(C) ^ 1], x.dtype)
        precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        return jnp.matmul(x, swap, precision=precision, preferred_element_type=jnp.float32)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    return pairs[..., ::-1].reshape(x.shape)
