"""Outputs of the original for weights filled by a formula: a forward that needs no weight file.

Every array of the original with name k is `RandomState(crc32(k)).standard_normal(shape) * SIGMA`,
plus 1 for the scales of norms; the input is `RandomState(0).standard_normal([1, 3, 4, 64, 64])`.
V-JEPA 2.1 has one row, of a tiny encoder, with sines in their place (reference: vjepa2_1 §13).
The weights go through the table that converts released files, so table and model are checked.
"""

from __future__ import annotations

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.models import SIZES, VERSIONS
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights import parts, tables

SIGMA = 0.02
TOLERANCE = 1e-4  # of a feature, float32


@dataclasses.dataclass(frozen=True)
class Row:
    """An output in short, seven digits."""

    mean: float
    absolute: float  # mean of absolutes
    check: float  # sum of x_i cos(0.001 i) over the flat output
    first: tuple[float, ...]
    last: tuple[float, ...]


# tiny, vits, vitb: computed with transformers 5.23 on weights of the same formula; the others with
# the original (reference: vjepa2 §13, F rows)
ROWS = {
    'tiny': Row(
        -0.0003758067, 0.7973522, -0.4789565,
        (-0.2208665, -1.299417, 1.42986), (0.4302407, -0.2865612),
    ),
    'vits': Row(
        0.0006300148, 0.7951625, -9.381792,
        (-0.2378789, -2.067542, 1.36577), (1.00156, 0.2458546),
    ),
    'vitb': Row(
        0.0005098254, 0.798232, -14.57563,
        (0.2328775, -0.0902535, 0.09975966), (0.8797672, -1.564387),
    ),
    'vitl': Row(
        0.0002800735, 0.7989535, -0.8021115,
        (-0.056882, -0.346927, 1.9502), (-0.829558, -1.0707),
    ),
    'vith': Row(
        -0.00085667, 0.7988726, 51.6779,
        (-0.294611, 0.0918626, -0.150373), (-0.877847, -0.963147),
    ),
    'vitg': Row(
        -0.0001336284, 0.7980009, 14.73782,
        (3.17088, 0.338373, 0.404523), (-0.335839, 1.09716),
    ),
    'tiny-21': Row(
        0.001233574, 0.7910084, 0.958791,
        (-0.5660609, -1.153606, -0.1821359), (0.04423133, 0.4966187),
    ),
}  # fmt: skip
DENSE = 'tiny-21'  # the row of V-JEPA 2.1


def config_of(size: str) -> ViTConfig:
    """The encoder of a row, in float32."""
    s = SIZES[size.removesuffix('-21')]
    version, pixels = (VERSIONS['2.1'], 96) if size == DENSE else (VERSIONS['2.0'], 64)
    return ViTConfig(
        s.width, s.depth, s.heads, s.mlp_ratio, image_size=pixels, frames=4, dtype=jnp.float32,
        **version.encoder(s.depth),
    )  # fmt: skip


def sines(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of V-JEPA 2.1's original, float32."""
    s, i = sum(map(ord, name)) % 97, np.arange(np.prod(shape), dtype=np.float64)
    matrix = len(shape) > 1 and shape[0] != 1
    a = 1.5 / np.sqrt(np.prod(shape[1:])) if matrix else 0.1
    value = a * np.sin(0.7 * i + 0.013 * (i % 251) * (s + 1) + s)
    value += 'norm' in name and name.endswith('weight')
    return value.astype(np.float32).reshape(shape)


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of the original, float32."""
    draws = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape) * SIGMA
    if 'norm' in name and name.endswith('weight'):
        draws = draws + 1
    return draws.astype(np.float32)


def weights(config: ViTConfig) -> dict:
    """An encoder's parameters by its formula, array by array on the device."""
    made = sines if config.modalities else formula
    rules, sizes = tables.table('encoder', config, 'torch')
    links = tables.bind(rules, parts.shared_net('encoder', config).abstract, sizes)
    leaves = {}
    for link in links:
        _, shape = link.form()
        leaves[link.path] = jnp.asarray(link.ours(lambda name, shape=shape: made(name, shape)))
    return tables.nest(leaves)


def forward(size: str) -> np.ndarray:
    """The encoder's output for the formula's weights and input, float32: [1, 32, D], of V-JEPA
    2.1 [2, 72, D]."""
    config = config_of(size)
    net = parts.net('encoder', config)
    if size == DENSE:
        i = np.arange(2 * 3 * 4 * 96 * 96, dtype=np.float64)
        video = np.sin(0.37 * i + 0.011 * (i % 1009) + 0.3).reshape(2, 3, 4, 96, 96)
    else:
        video = np.random.RandomState(0).standard_normal((1, 3, 4, 64, 64))
    video = video.astype(np.float32)
    return np.asarray(jax.jit(net)(weights(config), jnp.asarray(np.moveaxis(video, 1, -1))))


def problems(size: str, output: np.ndarray) -> list[str]:
    """In what an output differs from the row, a line each."""
    row, flat = ROWS[size], np.asarray(output, np.float64).ravel()
    check = (flat * np.cos(0.001 * np.arange(flat.size))).sum()
    # the sum runs over all features: what each may be off adds up like a random walk
    reach = TOLERANCE * np.sqrt(flat.size / 2)
    pairs = [
        ('mean', flat.mean(), row.mean, 1e-6),
        ('mean of absolutes', np.abs(flat).mean(), row.absolute, 1e-5),
        ('sum over all with weights', check, row.check, reach),
    ]
    pairs += [(f'feature {i}', flat[i], v, TOLERANCE) for i, v in enumerate(row.first)]
    count = len(row.last)
    pairs += [
        (f'feature {i - count}', flat[i - count], v, TOLERANCE) for i, v in enumerate(row.last)
    ]
    return [
        f'{name} is {value:.7g}, must be {expected:.7g} (to {tolerance:.1g})'
        for name, value, expected, tolerance in pairs
        if not abs(value - expected) <= tolerance
    ]


def memory(size: str) -> int:
    """Bytes that `forward` takes, about: parameters, and one of them twice while it is made."""
    config = config_of(size)
    abstract = parts.shared_net('encoder', config).abstract
    sizes = [leaf.size for leaf in jax.tree.leaves(abstract)]
    return 4 * (sum(sizes) + 2 * max(sizes)) + 2**29
