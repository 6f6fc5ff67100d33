"""V-JEPA 2 in JAX: pretrain, probe, plan, and carry weights to PyTorch and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jepa_jax.zoo import load as load

__version__ = '0.1.0'


def __getattr__(name: str):
    if name == 'load':  # not before it is wanted: it brings JAX, which takes a second
        from jepa_jax.zoo import load

        return load
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
