"""Our own checkpoints: those of runs, and those that `convert` writes, which are alike.

Both keep arrays as `params/encoder/...`, `params/predictor/...`, `target/...` and, with training
state, `step` and `opt_state/...`. What the nets are is in the manifest: a run has its config there,
a converted checkpoint `model`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import checkpoint
from jepa_jax.config import from_dict
from jepa_jax.convert.tables import ConvertError, Leaf, nest
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives.masked_video import predictor_config, vit_config

# part -> where its arrays are
PLACES = {
    'encoder': 'params/encoder',
    'target': 'target',
    'predictor': 'params/predictor',
    'probe': 'params/probe',
}
CONFIGS = {'encoder': ViTConfig, 'predictor': PredictorConfig}


def describe(configs: dict[str, Any]) -> dict[str, Any]:
    """Configs of parts as JSON holds them."""
    found = {}
    for part, config in configs.items():
        pooler, *classes = config if part == 'probe' else (config,)
        row = dataclasses.asdict(pooler) | {'dtype': jnp.dtype(pooler.dtype).name}
        found[part] = [row, *classes] if classes else row
    return found


def _config(part: str, row: Any) -> Any:
    if part == 'probe':
        row, classes = row
        return PoolerConfig(**{**row, 'dtype': jnp.dtype(row['dtype'])}), dict(classes)
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
    return CONFIGS[part](**{**values, 'dtype': jnp.dtype(values['dtype'])})


def configs_of(folder: pathlib.Path, extra: dict[str, Any]) -> dict[str, Any]:
    """Configs of the nets in a checkpoint.

    Raises:
      ConvertError: its manifest tells nothing of them.
    """
    if 'model' in extra:
        return {part: _config(part, row) for part, row in extra['model'].items()}
    if 'config' in extra:
        config = from_dict(extra['config'])
        return {'encoder': vit_config(config), 'predictor': predictor_config(config)}
    raise ConvertError(f'{folder}: the manifest has neither config nor model: nets unknown')


def trees(folder: pathlib.Path, names: dict[str, Any]) -> dict[str, dict]:
    """The parts that a checkpoint holds, as leaves that are read when wanted.

    Args:
      names: the manifest's `leaves`.
    """
    found = {}
    for part, place in PLACES.items():
        leaves = {
            name.removeprefix(place + '/'): leaf(folder, name, row)
            for name, row in names.items()
            if name.startswith(place + '/')
        }
        if leaves:
            found[part] = nest(leaves)
    return found


def leaf(folder: pathlib.Path, name: str, row: dict[str, Any]) -> Leaf:
    """One array of a checkpoint whose files are known to be whole."""
    shape, dtype = tuple(row['shape']), np.dtype(row['dtype'])

    def read() -> np.ndarray:
        abstract = nest({name: jax.ShapeDtypeStruct(shape, dtype)})
        found, _ = checkpoint.restore(folder, abstract, only=(name,), verify=False)
        return np.asarray(jax.tree.leaves(found)[0])

    return Leaf(shape, dtype, read)
