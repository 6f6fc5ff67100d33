"""Weights of the original I-JEPA and V-JEPA 1, filled by their formula, in our layout.

As `torch_fill`, but by the names that the conversion tables give: what a golden array checks is
then the table, too.
"""

import jax
import numpy as np
from torch_fill import tensor

from jepa_jax.weights import parts, tables


def names(part: str, config) -> list[tables.Link]:
    """What each array of the original becomes."""
    rules, sizes = tables.table(part, config, 'torch')
    return tables.bind(rules, parts.shared_net(part, config).abstract, sizes)


def filled(part: str, config, sigma: float = 0.05) -> dict:
    """Parameters of a net: every array of the original by its formula."""
    links = names(part, config)
    arrays = {name: tensor(name, shape, sigma) for name, shape in tables.expected(links).items()}
    return jax.tree.map(np.asarray, tables.from_file(links, arrays))


def some(array: np.ndarray, most: int = 96) -> np.ndarray:
    """Numbers evenly over an array: what `tests/golden/family_jepa.npz` keeps of large ones."""
    flat = np.asarray(array).reshape(-1)
    return flat[:: len(flat) // most | 1] if len(flat) > most else flat
