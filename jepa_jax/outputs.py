"""What a model gives of a video: features, classes; and how such things show themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


class Described:
    """A dataclass that shows types and shapes of arrays, not their numbers."""

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shown = [f'{name}={_short(value)}' for name, value in values.items() if value is not None]
        return f'{type(self).__name__}({", ".join(shown)})'


def _short(value: Any) -> str:
    if hasattr(value, 'shape') and hasattr(value, 'dtype'):
        return f'{value.dtype} {list(value.shape)}'
    if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
        return f'<{_numbers(value) / 1e6:.3g} M numbers>'
    return repr(value)


def _numbers(tree: Any) -> int:
    if isinstance(tree, dict):
        return sum(map(_numbers, tree.values()))
    return getattr(tree, 'size', 0)


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
