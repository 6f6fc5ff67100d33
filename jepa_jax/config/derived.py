"""What follows from fields of a config, and from the environment."""

import dataclasses
import math
import os
import pathlib

from jepa_jax.config.parts import DataConfig, EncoderConfig, OptimConfig
from jepa_jax.errors import ConfigError, allowed
from jepa_jax.models import SIZE_ALIASES, VERSIONS, Size


def cache_root() -> pathlib.Path:
    """Where everything that can be made again lies: $JEPA_JAX_CACHE, or ~/.cache/jepa_jax."""
    return pathlib.Path(os.environ.get('JEPA_JAX_CACHE') or pathlib.Path.home() / '.cache/jepa_jax')


def encoder_shape(encoder: EncoderConfig) -> Size:
    """Width, depth, heads and MLP ratio of the encoder: those set, the others as its size says.

    Raises:
      ConfigError: no such version, or no size of it and no alias of one.
    """
    name, version = SIZE_ALIASES.get(encoder.size, encoder.size), encoder.version
    if version not in VERSIONS:
        raise ConfigError(f"encoder.version = '{version}': {allowed(version, VERSIONS)}")
    sizes = VERSIONS[version].sizes
    if name not in sizes:
        raise ConfigError(f"encoder.size = '{encoder.size}': {allowed(encoder.size, sizes)}")
    size = sizes[name]
    names = (f.name for f in dataclasses.fields(Size))
    return Size(*(getattr(encoder, name) or getattr(size, name) for name in names))


def frame_counts(data: DataConfig) -> list[int]:
    """The distinct frame counts of the lists, in order: one group of a batch each."""
    return list(dict.fromkeys(item.frames or data.frames for item in data.lists))


def horizon(optim: OptimConfig) -> int:
    """T: the step over which schedules are laid out. (reference: vjepa2 §5.3)"""
    return int(optim.ipe_scale * optim.steps)


def half_life(momentum: float) -> float:
    """Steps after which half of a moving average has been replaced: log(1/2) / log(momentum)."""
    if not 0 < momentum < 1:
        return 0.0 if momentum <= 0 else math.inf
    return math.log(0.5) / math.log(momentum)
