"""From files to batches: sources, decoding, cutting, augmentation, masks, workers."""

import dataclasses

import jax
import numpy as np

from jepa_jax.masks import Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Group:
    """Clips of one frame count and their masks, one a mask setting."""

    clips: jax.Array | np.ndarray  # [B, T, H, W, 3] uint8
    masks: tuple[Mask, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What a training step sees. The position of a group selects its mask token."""

    groups: tuple[Group, ...]
