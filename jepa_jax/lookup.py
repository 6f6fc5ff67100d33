"""How tables are read whose rows name what they load."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from jepa_jax.errors import ConfigError, allowed


def load(name: str) -> Any:
    """`module:attribute` -> what it names."""
    module, _, attribute = name.partition(':')
    return getattr(importlib.import_module(module), attribute)


def row(table: Mapping[str, Any], key: str, name: str) -> Any:
    """The row of a name that stands in field `key`.

    Raises:
      ConfigError: there is none.
    """
    if name not in table:
        raise ConfigError(f"{key} = '{name}': {allowed(name, table)}")
    return table[name]
