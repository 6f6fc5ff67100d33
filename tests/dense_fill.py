"""V-JEPA 2.1 with weights and inputs by formula (reference: vjepa2_1 §13), and how its arrays are
compared.

Every parameter of the original, by its name k without prefixes: a sin(0.7 i + 0.013 (i mod 251)
(s + 1) + s) over the flat index i, s being the sum of k's character codes modulo 97, plus 1 for
the scales of norms.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.models import VERSIONS
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights import parts, tables

FLAVOUR = dict(rope='paired', interpolate=True, modalities=True)
ENCODER = ViTConfig(
    192, 12, 3, image_size=96, frames=4, levels=VERSIONS['2.1'].blocks(12), dtype=jnp.float32,
    **FLAVOUR,
)  # fmt: skip
PREDICTOR = PredictorConfig(
    192, 96, 12, 3, mask_tokens=8, grid=(2, 6, 6), levels=4, predict_context=True,
    dtype=jnp.float32, **FLAVOUR,
)  # fmt: skip


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    s = sum(map(ord, name)) % 97
    i = np.arange(math.prod(shape), dtype=np.float64)
    wide = len(shape) > 1 and shape[0] != 1
    a = 1.5 / math.sqrt(math.prod(shape[1:])) if wide else 0.1
    value = a * np.sin(0.7 * i + 0.013 * (i % 251) * (s + 1) + s)
    value += 'norm' in name and name.endswith('weight')
    return value.astype(np.float32).reshape(shape)


def wave(shape: tuple[int, ...], phase: float) -> np.ndarray:
    """An input of the original, which has channels second; ours has them last."""
    i = np.arange(math.prod(shape), dtype=np.float64)
    value = np.sin(0.37 * i + 0.011 * (i % 1009) + phase)
    return np.moveaxis(value.astype(np.float32).reshape(shape), 1, -1)


def fill(part: str, config) -> dict:
    """Parameters of a net, through the table that converts released files."""
    rules, sizes = tables.table(part, config, 'torch')
    links = tables.bind(rules, parts.shared_net(part, config).abstract, sizes)
    forms = tables.expected(links)
    arrays = {name: formula(name, shape) for name, shape in forms.items()}
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf)),
        tables.nest({link.path: link.ours(arrays.__getitem__) for link in links}),
    )
