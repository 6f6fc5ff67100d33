"""Recordings drawn on the spot."""

from __future__ import annotations

import numpy as np

from jepa_jax.config import RobotConfig
from jepa_jax.data.robot.contract import as_contract
from jepa_jax.data.robot.episodes import Episode


class SelfMade:
    """Recordings drawn on the spot, for tests of the pipes: a disc that a state moves.

    x and y are its place, z its size, closedness its shade; the angles hardly change. A pure
    function of the index.
    """

    COUNT, FRAMES, FPS, SIZE = 24, 24, 4.0, 64

    def __init__(self, data: RobotConfig) -> None:
        self._data = data

    def __len__(self) -> int:
        return self.COUNT

    def name(self, index: int) -> str:
        return f'self-made recording {index}'

    def state(self, index: int) -> str:
        return ''

    def episode(self, index: int) -> Episode:
        rng = np.random.default_rng([1, index])
        moves = rng.normal(0, [0.05, 0.05, 0.02, 0.02, 0.02, 0.02, 0.1], (self.FRAMES, 7))
        states = np.cumsum(moves, axis=0) + [0, 0, 0.3, np.pi, 0, 0, 0.5]
        # folded back, so that the disc stays in the picture
        for axis, low, high in ((0, -0.4, 0.4), (1, -0.4, 0.4), (2, 0.1, 0.5), (6, 0, 1)):
            period = (states[:, axis] - low) % (2 * (high - low))
            states[:, axis] = low + np.minimum(period, 2 * (high - low) - period)
        y, x = (np.mgrid[: self.SIZE, : self.SIZE][:, None] + 0.5) / self.SIZE - 0.5
        apart = np.hypot(y - states[:, 0, None, None], x - states[:, 1, None, None])
        inside = np.clip((0.35 * states[:, 2, None, None] - apart) * self.SIZE + 0.5, 0, 1)
        ground = rng.uniform(0.2, 0.4, (1, 1, 1, 3))
        shade = np.stack([1 - states[:, 6], states[:, 6], np.full(len(states), 0.5)], -1)
        frames = ground + inside[..., None] * (shade[:, None, None] - ground)
        return Episode(
            self.name(index),
            as_contract(self.name(index), states, self._data),
            fps=self.FPS,
            pixels=np.round(255 * frames).astype(np.uint8),
        )
