"""Which tokens the encoder sees and which the predictor fills in."""

import dataclasses

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """One mask of a batch. Ids count tokens `t * (h * w) + y * w + x`, ascending in each row,
    int32."""

    context: jax.Array | np.ndarray  # [B, K]
    target: jax.Array | np.ndarray  # [B, M]; of I-JEPA [B, targets, M]
