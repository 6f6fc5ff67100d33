"""What a predictor is asked for, and what it says."""

from __future__ import annotations

import dataclasses

import numpy as np

from jepa_jax.described import Described


@dataclasses.dataclass(frozen=True, repr=False)
class Fill(Described):
    """Task: fill in tokens that the encoder does not see.

    mask: bool [t, h, w] on the clip's token grid, True where features are to be predicted.
    """

    mask: np.ndarray

    @classmethod
    def after(cls, grid: tuple[int, int, int], t: int) -> Fill:
        """All tokens from time t of the grid on."""
        return cls(np.broadcast_to(np.arange(grid[0])[:, None, None] >= t, grid))

    @classmethod
    def box(cls, grid: tuple[int, int, int], rows: slice, columns: slice) -> Fill:
        """A box of the token grid, through all times."""
        mask = np.zeros(grid, bool)
        mask[:, rows, columns] = True
        return cls(mask)


@dataclasses.dataclass(frozen=True)
class Future:
    """Task: what follows a clip of the past.

    seconds: how much of the future; skip: seconds between the clip's end and its beginning. Both
    are cut to whole tubelets, of which there is at least one.
    """

    seconds: float
    skip: float = 0.0


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction(Described):
    """Features that a predictor expects where the encoder did not look."""

    tokens: np.ndarray  # [B, M, D] float32; where several levels are predicted, one after the other
    ids: np.ndarray  # [M] token ids, row-major on the grid and beyond its end in time
    coords: np.ndarray  # [M, 3] float32: seconds, y, x as in Features
    context: np.ndarray  # [B, K, D] float32: the features it had to go by
    context_ids: np.ndarray  # [K]
    grid: tuple[int, int, int]  # of the clips: tokens in time, y, x
    clips: np.ndarray  # [B, T, H, W, 3]: what was fed, of which the encoder saw `context_ids`
    # [B, K, D] float32, as `tokens`: what V-JEPA 2.1 expects the target to say of the tokens in
    # sight, by a head of its own; None: the predictor has none
    context_tokens: np.ndarray | None = None
