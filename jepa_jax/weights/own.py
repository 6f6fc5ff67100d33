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
from jepa_jax.config import ActionConditionedConfig, MaskedVideoConfig
from jepa_jax.convert import weights
from jepa_jax.convert.tables import Leaf, flatten, nest
from jepa_jax.convert.weights import ENCODERS, Training
from jepa_jax.errors import ConfigError, ConvertError
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives.action_conditioned import ac_predictor_config
from jepa_jax.objectives.masked_video import predictor_config, vit_config
from jepa_jax.optim import learning_rate, weight_decay
from jepa_jax.recipes import read_config

# part -> where its arrays are; there is one predictor, of either kind
PLACES = {
    'encoder': 'params/encoder',
    'target': 'target',
    'predictor': 'params/predictor',
    'ac_predictor': 'params/predictor',
    'probe': 'params/probe',
}
CONFIGS = {'encoder': ViTConfig, 'predictor': PredictorConfig, 'ac_predictor': ACPredictorConfig}
# where AdamW of `optim.optimizer` keeps its state: Adam's count and moments, and the counts of the
# schedules of weight decay and learning rate
COUNT, MU, NU = 'opt_state/0/count', 'opt_state/0/mu', 'opt_state/0/nu'
STEPS = ('step', 'opt_state/1/inner_state/count', 'opt_state/2/count')


# The manifest's `model`


def describe(found: weights.Weights) -> dict[str, Any]:
    """Configs of the nets as JSON holds them."""
    rows: dict[str, Any] = {}
    for part in found.trees:
        config = found.config(part)
        pooler, *classes = config if part == 'probe' else (config,)
        row = dataclasses.asdict(pooler) | {'dtype': jnp.dtype(pooler.dtype).name}
        if classes:  # pairs: their order is that of the queries, and JSON's may change
            row = {'pooler': row, 'classes': [[k, v] for k, v in classes[0].items()]}
        rows['encoder' if part in ENCODERS else part] = row
    return rows


def configs_of(where: str, extra: dict[str, Any]) -> dict[str, Any]:
    """Configs of nets by part ('encoder' for both encoders), from what describes a checkpoint.

    Raises:
      ConvertError: nothing does.
    """
    if 'model' in extra:
        return {part: _config(part, row) for part, row in extra['model'].items()}
    if 'config' in extra:
        try:
            config = read_config(extra['config'])
        except ConfigError as error:
            raise ConvertError(f'{where}: not the config of one of our runs ({error})') from None
        if isinstance(config, ActionConditionedConfig):
            return {'encoder': vit_config(config), 'ac_predictor': ac_predictor_config(config)}
        return {'encoder': vit_config(config), 'predictor': predictor_config(config)}
    raise ConvertError(f'{where}: the manifest has neither config nor model: nets unknown')


def _config(part: str, row: Any) -> Any:
    if part == 'probe':
        pooler = row['pooler']
        return PoolerConfig(**{**pooler, 'dtype': jnp.dtype(pooler['dtype'])}), dict(row['classes'])
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
    return CONFIGS[part](**{**values, 'dtype': jnp.dtype(values['dtype'])})


# Reading


def trees(folder: pathlib.Path, rows: dict[str, Any], configs: dict[str, Any]) -> dict[str, dict]:
    """The parts that a checkpoint holds, as leaves that are read when wanted.

    Args:
      rows: the manifest's `leaves`.

    Raises:
      ConvertError: arrays are not those of the nets that the manifest describes.
    """
    found = {}
    for part, place in PLACES.items():
        config = configs.get('encoder' if part in ENCODERS else part)
        tree = subtree(folder, rows, place)
        if config is None or not tree:
            continue
        expected = {
            n: tuple(a.shape) for n, a in flatten(weights.net(part, config).abstract).items()
        }
        stored = {n: leaf.shape for n, leaf in flatten(tree).items()}
        for name in expected | stored:
            if expected.get(name) != stored.get(name):
                raise ConvertError(
                    f'{folder}: {place}/{name} has shape {stored.get(name)}, must have '
                    f'{expected.get(name)}'
                )
        found[part] = tree
    if not found:
        raise ConvertError(f'{folder} holds none of the nets that its manifest describes')
    return found


def subtree(folder: pathlib.Path, rows: dict[str, Any], place: str) -> dict:
    """Leaves below a name, nested."""
    prefix = place + '/'
    return nest(
        {
            n.removeprefix(prefix): leaf(folder, n, r)
            for n, r in rows.items()
            if n.startswith(prefix)
        }
    )


def leaf(folder: pathlib.Path, name: str, row: dict[str, Any]) -> Leaf:
    """One array of a checkpoint whose files are known to be whole."""
    shape, dtype = tuple(row['shape']), np.dtype(row['dtype'])

    def read() -> np.ndarray:
        abstract = nest({name: jax.ShapeDtypeStruct(shape, dtype)})
        found, _ = checkpoint.restore(folder, abstract, only=(name,), verify=False)
        return np.asarray(jax.tree.leaves(found)[0])

    return Leaf(shape, dtype, read)


def training(
    folder: pathlib.Path, rows: dict[str, Any], extra: dict[str, Any], parts: dict[str, dict]
) -> Training | None:
    """Adam's state and the schedules' position, if the checkpoint has them."""
    if COUNT not in rows:
        return None
    mu, nu = ({p: subtree(folder, rows, place) for p, place in _moments(m)} for m in (MU, NU))
    step = int(np.asarray(leaf(folder, 'step', rows['step'])))
    hyper = extra.get('training', {}).get('hyper')
    if 'config' in extra:
        optim = read_config(extra['config']).optim
        last = max(step - 1, 0)
        hyper = {
            'lr': float(learning_rate(optim)(last)),
            'weight_decay': float(weight_decay(optim)(last)),
            'eps': optim.eps,
            'betas': [optim.beta1, optim.beta2],
        }
    if hyper is None:
        raise ConvertError(f'{folder}: the manifest does not tell learning rate and betas')
    return Training(
        step,
        int(np.asarray(leaf(folder, COUNT, rows[COUNT]))),
        {part: tree for part, tree in mu.items() if tree and part in parts},
        {part: tree for part, tree in nu.items() if tree and part in parts},
        hyper,
        extra.get('training', {}).get('original', {}),
        extra.get('config'),
    )


def _moments(place: str) -> list[tuple[str, str]]:
    return [(p, f'{place}/{at.removeprefix("params/")}') for p, at in PLACES.items() if '/' in at]


# Writing


def arrays(found: weights.Weights) -> dict[str, Leaf]:
    """Every array of a checkpoint by name."""
    all_trees = {PLACES[part]: tree for part, tree in found.trees.items()}
    if 'encoder' not in found.trees and 'target' in found.trees:
        all_trees['params/encoder'] = all_trees.pop('target')  # one encoder, for either use
    numbers: dict[str, int] = {}
    if t := found.training:
        numbers = {**dict.fromkeys(STEPS, t.step), COUNT: t.count}
        for tree_of, place in ((t.mu, MU), (t.nu, NU)):
            all_trees |= {at: tree_of[p] for p, at in _moments(place) if p in tree_of}
    named = {name: _number(value) for name, value in numbers.items()}
    for place, tree in all_trees.items():
        named |= {f'{place}/{name}': leaf for name, leaf in flatten(tree).items()}
    return named


def _number(value: int) -> Leaf:
    return Leaf((), np.dtype('int32'), lambda: np.int32(value))


def extra(found: weights.Weights) -> dict[str, Any]:
    """What goes into the manifest besides the arrays."""
    more: dict[str, Any] = {'model': describe(found), 'version': found.version}
    if found.labels:
        more['labels'] = {head: list(names) for head, names in found.labels.items()}
    if t := found.training:
        more['training'] = {'hyper': t.hyper, 'original': t.original}
        if t.config is not None:
            more['config'] = dataclasses.asdict(read_config(t.config, MaskedVideoConfig))
    return more


def write(found: weights.Weights, dst: pathlib.Path, progress) -> None:
    step = found.training.step if found.training else 0
    checkpoint.write(dst, arrays(found), step=step, extra=extra(found), progress=progress)
