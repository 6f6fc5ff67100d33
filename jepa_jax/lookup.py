"""How tables are read whose rows name what they load."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jepa_jax.errors import ConfigError, allowed


def shipped(folder: str) -> pathlib.Path:
    """`configs` or `tools`: within the package where it is installed, beside it in a clone."""
    package = pathlib.Path(__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def load(name: str) -> Any:
    """`module:attribute` -> what it names."""
    module, _, attribute = name.partition(':')
    return getattr(importlib.import_module(module), attribute)


def import_file(path: str, again: bool = False) -> ModuleType:
    """Runs a Python file of the user's, which may add rows to tables, and returns its module; one
    that was run before only if `again`.

    Rows of its own are best named f'{__name__}:FUNCTION'.

    Raises:
      ConfigError: there is no such file.
      Exception: whatever the file raises.
    """
    name = os.path.splitext(os.path.basename(path))[0]
    if (known := sys.modules.get(name)) is not None:
        same = os.path.abspath(getattr(known, '__file__', None) or '') == os.path.abspath(path)
        if same and not again:
            return known
        if not same:
            name = f'{name}_config_file'  # a module of that name is in use
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or not os.path.isfile(path):
        raise ConfigError(f'{path}: no such Python file')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def row(table: Mapping[str, Any], key: str, name: str) -> Any:
    """The row of a name that stands in field `key`.

    Raises:
      ConfigError: there is none.
    """
    if name not in table:
        raise ConfigError(f"{key} = '{name}': {allowed(name, table)}")
    return table[name]
