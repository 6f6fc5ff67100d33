"""What a model gives of a video: features, classes."""

from __future__ import annotations

import dataclasses

import numpy as np

from jepa_jax.described import Described


@dataclasses.dataclass(frozen=True, repr=False)
class Features(Described):
    """What an encoder says of the windows of one input."""

    clips: np.ndarray  # [n, T, H, W, 3]: what was fed
    numbers: np.ndarray  # [n, T] int64: which frames of the input
    seconds: np.ndarray  # [n, T] float64: when they are shown in the input
    # [N, 3] float32, in each window: seconds from its first frame to the middle of the token's
    # frames, then y and x of the middle of its patch in pixels of `clips`, where pixel i spans i to
    # i + 1
    coords: np.ndarray
    grid: tuple[int, int, int]  # tokens in time, y, x
    tokens: np.ndarray | None = None  # [n, N, D] float32, row-major on the grid; if not pooled
    pooled: np.ndarray | None = None  # [n, D], or [n, queries, D] of an attentive probe
    levels: np.ndarray | None = None  # [n, L, N or pooled, D]: after the blocks asked for


@dataclasses.dataclass(frozen=True)
class Classes:
    """The likeliest classes of a clip, by head of the probe."""

    top: dict[str, list[tuple[int, str, float]]]  # (class, its label or '', probability)

    def __str__(self) -> str:
        lines = []
        for head, rows in self.top.items():
            lines += [f'{head}:'] if len(self.top) > 1 else []
            lines += [f'{p:8.2%}  {number:5d}  {label}'.rstrip() for number, label, p in rows]
        return '\n'.join(lines)
