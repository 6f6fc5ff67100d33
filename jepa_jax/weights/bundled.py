"""Weights that come with the package: arrays of an encoder as float16 in one .npz, with its config.

    weights = read('tiny')

`python -m tools.make_bundled` wrote the files; the names are in jepa_jax.weights.names.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from jepa_jax import files
from jepa_jax.data import npz
from jepa_jax.errors import ConvertError
from jepa_jax.weights import own, parts
from jepa_jax.weights.contents import Weights
from jepa_jax.weights.tables import Leaf, flatten

FOLDER = pathlib.Path(__file__).parent.parent / 'bundled'
FPS = 8.0  # of the clips that they were trained on, configs/tiny.py
CONFIG, ORIGIN = 'config', 'origin'  # members beside the arrays, UTF-8 as uint8


def read(name: str) -> Weights:
    """The target encoder of a key of names.BUNDLED, as float32.

    Raises:
      ConvertError: the file is damaged.
    """
    path = FOLDER / f'{name}.npz'
    with files.raising(ConvertError):
        arrays = npz.load_all(path)
        with files.reading(path):
            told = {key: arrays.pop(key).tobytes().decode() for key in (CONFIG, ORIGIN)}
            config = parts.config_of('encoder', json.loads(told[CONFIG]))
    leaves = {f'ema/encoder/{name}': _leaf(array) for name, array in arrays.items()}
    nets = own.read_nets(path, leaves, {'encoder': ('encoder', config, 'target')})
    return Weights(path, 'jax', nets, origin=told[ORIGIN], fps=FPS)


def _leaf(array: np.ndarray) -> Leaf:
    return Leaf(array.shape, np.dtype('float32'), lambda: array.astype(np.float32))


def write(weights: Weights, path: pathlib.Path, origin: str) -> None:
    """Writes the target encoder of `weights`; origin: what it was trained by, a line."""
    net = weights.nets[weights.pick('target')]
    arrays = {name: np.asarray(leaf, np.float16) for name, leaf in flatten(net.tree).items()}
    told = {CONFIG: json.dumps(parts.to_json(net.config)), ORIGIN: origin}
    arrays |= {key: np.frombuffer(text.encode(), np.uint8) for key, text in told.items()}
    np.savez_compressed(path, **arrays)
