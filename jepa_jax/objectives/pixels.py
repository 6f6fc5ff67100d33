"""Pixels of tokens as targets. (reference: family §3)"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.models import tokens

EPS = 1e-6


def unit(values: jax.Array) -> jax.Array:
    """Values of tokens [B, N, P], uint8 or normalised -> from 0 to 1, float32."""
    if values.dtype == jnp.uint8:
        return values.astype(jnp.float32) / 255
    repeats = values.shape[-1] // 3
    mean, std = (np.tile(np.float32(x), repeats) for x in (tokens.MEAN, tokens.STD))
    return values.astype(jnp.float32) * std + mean


def patches(values: jax.Array) -> jax.Array:
    """Each token's values [B, N, P] with mean 0 and variance 1. (MAE)"""
    x = tokens.normalise(values)
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(x.var(-1, ddof=1, keepdims=True) + EPS)


def cubes(values: jax.Array) -> jax.Array:
    """Likewise each colour of a token by itself. (VideoMAE)"""
    x = unit(values)
    x = jnp.reshape(x, (*x.shape[:2], -1, 3))
    x = x - x.mean(2, keepdims=True)
    x = x / (jnp.sqrt(x.var(2, ddof=1, keepdims=True)) + EPS)
    return jnp.reshape(x, values.shape)


# what is drawn, of values of tokens as tokens.cut makes them
TARGETS = {
    'patches': patches,
    'pixels': tokens.normalise,  # MAE's weights for pictures
    'cubes': cubes,
    'unit_pixels': unit,
}


def _undo_patches(drawn: jax.Array, own: jax.Array) -> jax.Array:
    x = tokens.normalise(own)
    deviation = jnp.sqrt(x.var(-1, ddof=1, keepdims=True) + EPS)
    return unit(drawn * deviation + x.mean(-1, keepdims=True))


def _undo_cubes(drawn: jax.Array, own: jax.Array) -> jax.Array:
    x, said = (jnp.reshape(a, (*own.shape[:2], -1, 3)) for a in (unit(own), drawn))
    deviation = jnp.sqrt(x.var(2, ddof=1, keepdims=True)) + EPS
    return jnp.reshape(said * deviation + x.mean(2, keepdims=True), own.shape)


# what is drawn of tokens [B, M, P], and their own values -> pixels from 0 to 1. What is normalised
# knows neither mean nor deviation: it gets those of its own values back, as in the originals' demos
UNDONE = {
    'patches': _undo_patches,
    'pixels': lambda drawn, own: unit(drawn),
    'cubes': _undo_cubes,
    'unit_pixels': lambda drawn, own: drawn,
}
