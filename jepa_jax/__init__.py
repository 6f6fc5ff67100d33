"""V-JEPA 2 in JAX: pretrain, probe, plan, and carry weights to PyTorch and back."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jepa_jax import models as models
    from jepa_jax.data.named import paths as find
    from jepa_jax.inputs import preprocessor as preprocessor
    from jepa_jax.inputs import preprocessor as vjepa2_preprocessor
    from jepa_jax.planning.controller import Robot as Robot
    from jepa_jax.predictions import Fill as Fill
    from jepa_jax.predictions import Future as Future
    from jepa_jax.pretrained import Model as Model
    from jepa_jax.pretrained import load as load

__version__ = '0.1.0'
__all__ = [
    'Fill', 'Future', 'Model', 'Robot', 'example', 'find', 'load', 'models', 'preprocessor',
    'vjepa2_preprocessor',
]  # fmt: skip

# not before they are needed: they bring JAX, which takes a second
_LAZY = {
    'load': 'jepa_jax.pretrained:load',
    'Model': 'jepa_jax.pretrained:Model',
    'Robot': 'jepa_jax.planning.controller:Robot',
    'Fill': 'jepa_jax.predictions:Fill',
    'Future': 'jepa_jax.predictions:Future',
    'find': 'jepa_jax.data.named:paths',
    'preprocessor': 'jepa_jax.inputs:preprocessor',
    'vjepa2_preprocessor': 'jepa_jax.inputs:preprocessor',  # as the original's torch.hub has it
}


def example() -> str:
    """Path of a short video that comes with the package: a self-made one, three seconds."""
    return os.path.join(os.path.dirname(__file__), 'bundled', 'clip.mp4')


def __getattr__(name: str):
    if name == 'models':  # a package that can be called
        return importlib.import_module('jepa_jax.models')
    if name in _LAZY:
        module, _, attribute = _LAZY[name].partition(':')
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted([*__all__, '__version__'])
