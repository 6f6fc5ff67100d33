"""Tubes: random cells that are the same in every frame, V-JEPA 1's other masks. (reference: family
§2)"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jepa_jax.config import MaskConfig
from jepa_jax.masks.draws import CLIP, rng_of
from jepa_jax.masks.multiblock import Grid, Pair


def kept_cells(cells: int, ratio: float) -> int:
    """Of the cells of a frame, as the original counts: 19 of 196 at a ratio of 0.9, not 20."""
    return int(cells * (1.0 - ratio))


def tube(grid: Grid, ratio: float, shuffle: Callable[[np.ndarray], None]) -> Pair:
    """Context and target ids, ascending, of a grid (t, h, w); shuffle: in place, as numpy's, whose
    global stream draws the original's masks."""
    t, h, w = grid
    cells = h * w
    seen = np.arange(cells) >= cells - kept_cells(cells, ratio)
    shuffle(seen)
    ids = np.arange(t * cells, dtype=np.int32).reshape(t, cells)
    return ids[:, seen].ravel(), ids[:, ~seen].ravel()


@dataclasses.dataclass(frozen=True)
class TubeSampler:
    """Masks as a function of (seed, step, position), all of one shape: a samplers.MaskSampler."""

    settings: Sequence[MaskConfig]  # whose `tube` is a ratio
    grid: Grid
    seed: int

    def shapes(self, step: int) -> tuple[tuple[int, int], ...]:
        t, cells = self.grid[0], self.grid[1] * self.grid[2]
        kept = [kept_cells(cells, each.tube) for each in self.settings]
        return tuple((t * n, t * (cells - n)) for n in kept)

    def sample(self, step: int, position: int) -> tuple[Pair, ...]:
        words = rng_of(self.seed, step, CLIP, position, self.grid[0])

        def shuffle(cells: np.ndarray) -> None:
            cells[:] = cells[words.random_raw(len(cells)).argsort(kind='stable')]

        return tuple(tube(self.grid, each.tube, shuffle) for each in self.settings)
