"""Random masks: each token of an image by itself (MAE), or tubes through all of a clip (VideoMAE).

Every clip keeps as many tokens, so that there is one program, whose rows are all real, and the
shares that are kept are the originals'. (reference: family §3)
"""

from __future__ import annotations

import numpy as np

from jepa_jax.masks.multiblock import Pair


def kept(tokens: int, ratio: float) -> int:
    """Of so many tokens, as MAE counts."""
    return int(tokens * (1 - ratio))


def kept_cells(cells: int, ratio: float) -> int:
    """Of the cells of a frame, as VideoMAE counts."""
    return cells - int(ratio * cells)


def from_noise(noise: np.ndarray, ratio: float) -> Pair:
    """MAE's mask: the tokens of the least noise [N] are context, in the order of their noise; the
    others follow likewise."""
    order = np.argsort(noise, kind='stable').astype(np.int32)
    count = kept(len(noise), ratio)
    return order[:count], order[count:]


def tubes(shuffle, grid: tuple[int, int, int], ratio: float) -> Pair:
    """VideoMAE's mask: the same cells of every frame of a grid (t, h, w); ids ascend.

    shuffle: of a numpy random generator, by whose state the original's mask is given.
    """
    t, h, w = grid
    hidden = np.ones(h * w, bool)
    hidden[: kept_cells(h * w, ratio)] = False
    shuffle(hidden)
    ids = np.arange(t * h * w, dtype=np.int32).reshape(t, h * w)
    return ids[:, ~hidden].ravel(), ids[:, hidden].ravel()


class RandomSampler:
    """Masks as a pure function of (seed, position), behind the interface of samplers.MaskSampler.

    tube: VideoMAE's, else MAE's with context and targets in the order of their ids.
    """

    def __init__(self, grid: tuple[int, int, int], ratio: float, tube: bool, seed: int):
        self._grid, self._ratio, self._tube, self._seed = grid, ratio, tube, seed
        self._shapes = tuple(len(ids) for ids in self._draw(0))

    def shapes(self, step: int) -> tuple[tuple[int, int], ...]:
        return (self._shapes,)

    def sample(self, step: int, position: int) -> tuple[Pair, ...]:
        return (self._draw(position),)

    def _draw(self, position: int) -> Pair:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, position))))
        if self._tube:
            return tubes(rng.shuffle, self._grid, self._ratio)
        context, target = from_noise(rng.random(int(np.prod(self._grid))), self._ratio)
        return np.sort(context), np.sort(target)
