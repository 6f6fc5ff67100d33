"""An encoder that shows pixels: the features of a patch are its pixels, for a predictor that is
compared with those on learned features."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import build
from jepa_jax.config import ActionConditionedConfig
from jepa_jax.nets import ONCE
from jepa_jax.weights.contents import StoredNet, Weights
from jepa_jax.weights.parts import net
from jepa_jax.weights.tables import Leaf
from jepa_jax.weights.write import write


def shape(config: ActionConditionedConfig) -> None:
    """Makes config.encoder one block, as wide as a patch of a frame has numbers."""
    encoder = config.encoder
    encoder.size = 'tiny'
    encoder.width, encoder.depth = 3 * encoder.patch**2, 1
    encoder.heads = encoder.width // 64
    encoder.mlp_ratio = 1.0


def save(config: ActionConditionedConfig, folder: Path) -> None:
    """Writes the encoder that a config describes after `shape`: the mean over a tubelet's frames,
    which are all the same frame, and a block that adds nothing."""
    encoder = net('encoder', build.frame_encoder(config))
    init = jax.jit(encoder.init, compiler_options=ONCE)
    params = jax.tree.map(np.asarray, init(jax.random.key(0)))
    patch, blocks = params['patch_embed'], params['blocks']
    width, tubelet = encoder.config.width, encoder.config.tubelet
    patch['kernel'] = np.tile(np.eye(width, dtype=np.float32), (tubelet, 1)) / tubelet
    patch['bias'] = np.zeros_like(patch['bias'])
    for part, last in (('attn', 'proj'), ('mlp', 'fc2')):
        blocks[part][last] = jax.tree.map(np.zeros_like, blocks[part][last])
    leaves = jax.tree.map(lambda a: Leaf(a.shape, a.dtype, lambda: jnp.asarray(a)), params)
    weights = Weights(
        folder, 'jax', {'target': StoredNet('encoder', encoder.config, leaves)}, origin='pixels'
    )
    write(weights, folder, to='jax')
