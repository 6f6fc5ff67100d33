"""How dataclasses that hold arrays show themselves."""

from __future__ import annotations

import dataclasses
from typing import Any


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
