"""Our own checkpoints: those of runs, and the self-contained folders that `convert` writes.

Both keep arrays as `params/NET/...`, `ema/NET/...` (moving averages), `frozen/NET/...` and, with
training state, `step` and `opt_state/...`. What the nets are is in the manifest: a run has its
config there, a folder made by `convert` a row in `model` for each net.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jepa_jax import checkpoint, lookup, recipes
from jepa_jax.config import RunConfig, store
from jepa_jax.errors import ConfigError, ConvertError, Damaged
from jepa_jax.weights import parts, robot, tables, torch_files
from jepa_jax.weights.contents import ENCODERS, PREDICTORS, StoredNet, Training, Weights
from jepa_jax.weights.tables import Leaf, flatten, nest

# where the arrays of a net usually are; there is one predictor, of either kind
PLACES = {
    'online': 'params/encoder',
    'target': 'ema/encoder',
    'predictor': 'params/predictor',
    'ac_predictor': 'params/predictor',
}
ROLES = ('params', 'ema', 'frozen')
# where AdamW of `optim.optimizer` keeps its state: Adam's count and moments, and the counts of the
# schedules of weight decay and learning rate
OPTIMIZER = 'opt_state/'
COUNT, MU, NU = 'opt_state/0/count', 'opt_state/0/mu', 'opt_state/0/nu'
STEPS = ('step', 'opt_state/1/inner_state/count', 'opt_state/2/count')
# of optim.guarded, whose losses no other program would know: left behind
GUARD = tuple(f'opt_state/3/{name}' for name in ('losses', 'seen', 'skipped'))

# what describes a checkpoint: entry -> its type
KINDS = {
    'model': dict,
    'config': dict,
    'labels': dict,
    'reads': dict,
    'training': dict,
    'robot': dict,
    'origin': str,
    'config_file': str,
    'part_of': str,
    'version': str,
    'step': int,
    'fps': float,
}


# Reading


def read(path: pathlib.Path, weights_only: bool = False, finite: bool = True) -> Weights:
    """The weights of a checkpoint, a workdir, or its checkpoints folder.

    Raises:
      ConvertError: the arrays are not those of the nets that the manifest describes.
      CheckpointError: it is damaged, or of a newer format.
    """
    folder = checkpoint.find(path)
    extra = checkpoint.read_manifest(folder)['extra']
    whole = folder != path.absolute()  # of a run, `find` takes the newest that it found intact
    if not whole and (problems := checkpoint.problems(folder)):
        raise Damaged(problems[0])
    check_extra(str(folder), extra)
    leaves = stored_leaves(folder)
    if finite:
        leaves = tables.finite(str(folder), leaves)
    nets, notes = read_nets(folder, leaves, nets_of(str(folder), extra)), ()
    # of a distilled encoder; a user's objective may freeze a net of that name, too
    name = extra.get('config', {}).get('teacher')
    if name and nets.pop(f'frozen/{parts.TEACHER}', None):
        notes = (f'distilled from {name}, which stays behind',)
    return Weights(
        path,
        'jax',
        nets,
        None if weights_only else training(folder, leaves, extra, nets),
        {head: tuple(names) for head, names in extra.get('labels', {}).items()},
        _reads(extra),
        extra.get('origin', ''),
        notes,
        config_file=extra.get('config_file', ''),
        fps=rate(extra),
        robot=robot.told(extra, folder) if 'ac_predictor' in nets else {},
    )


def robot_of(path: pathlib.Path) -> dict[str, Any]:
    """As `read(path).robot`, without a look at arrays. Raises as `read`."""
    folder = checkpoint.find(path)
    extra = checkpoint.read_manifest(folder)['extra']
    check_extra(str(folder), extra)
    return robot.told(extra, folder)


def _reads(extra: dict[str, Any]) -> dict[str, Any]:
    """As written, and of a run on questions how it shows videos and what the system says first."""
    config, reads = extra.get('config', {}), extra.get('reads', {})
    if isinstance(clips := config.get('clips'), dict):
        reads = reads | {'clips': clips}
        data = config.get('data')
        if isinstance(data, dict) and isinstance(system := data.get('system'), str) and system:
            reads['system'] = system
    return reads


def rate(extra: dict[str, Any]) -> float:
    """Frames a second of the clips of a run; 0 where it samples otherwise."""
    data = extra.get('config', {}).get('data')
    value = data.get('fps') if isinstance(data, dict) else extra.get('fps', Weights.fps)
    return float(value) if type(value) in (int, float) and 0 <= value < 1e6 else 0.0


def stored_leaves(folder: pathlib.Path) -> dict[str, Leaf]:
    """Every array of a checkpoint whose files are known to be whole, and of the frozen nets that it
    refers to, by name."""
    return {name: _leaf(folder, name, row) for name, (_, row) in checkpoint.leaves(folder).items()}


def _leaf(folder: pathlib.Path, name: str, row: dict[str, Any]) -> Leaf:
    shape, dtype = tuple(row['shape']), jax.numpy.dtype(row['dtype'])

    def read() -> np.ndarray:
        abstract = nest({name: jax.ShapeDtypeStruct(shape, dtype)})
        tree, _ = checkpoint.restore(folder, abstract, only=(name,), verify=False)
        return np.asarray(jax.tree.leaves(tree)[0])

    return Leaf(shape, dtype, read)


def check_extra(where: str, extra: Any) -> None:
    """Refuses entries of another type than ours have; what they say is looked at where it is used.

    Raises ConvertError.
    """
    for key, kind in KINDS.items():
        if isinstance(extra, dict) and isinstance(extra.get(key, kind()), kind):
            continue
        raise ConvertError(f'{where}: {key} of what describes it is no {kind.__name__}')
    rows = [*extra.get('model', {}).values(), *extra.get('training', {}).values()]
    names = extra.get('labels', {}).values()
    numbers = {key: extra.get('reads', {}).get(key, 1) for key in ('frames', 'step', 'segments')}
    blocks = extra.get('reads', {}).get('reads', 'last')
    hyper = extra.get('training', {}).get('hyper', {})
    betas = hyper.get('betas', [0, 0]) if isinstance(hyper, dict) else ''
    rates = [hyper.get(key, 0) for key in torch_files.HYPER] if isinstance(hyper, dict) else []
    right = (
        all(isinstance(row, dict) for row in rows)
        and all(isinstance(n, list) and all(isinstance(x, str) for x in n) for n in names)
        and all(type(n) is int and 0 < n <= parts.LARGEST for n in numbers.values())
        and (blocks in ('last', 'future') or all(type(b) is int for b in blocks))
        and isinstance(betas, list | tuple)
        and len(betas) == 2
        and all(type(n) in (int, float) and abs(n) < 1e9 for n in [*betas, *rates])
    )
    if not right:
        raise ConvertError(f'{where}: what describes it is of other types than ours writes')


def nets_of(
    where: str, extra: dict[str, Any], rows: bool = True
) -> dict[str, tuple[str, Any, str]]:
    """NET -> its part, its config, and for an encoder that is alone which one it is, from what
    describes a checkpoint; rows: whether the config file that it names may be run to bring more.

    Raises:
      ConvertError: nothing does, or it is not understood.
    """
    try:
        if 'model' in extra:
            nets = extra['model'].items()
            known = (described.get('part', net) in parts.PARTS for net, described in nets)
            if rows and not all(known):
                recipes.add_rows(extra, where)
            return dict(_described(net, row) for net, row in nets)
        if 'config' in extra and rows:
            return _of_run(recipes.read_stored(extra, where))
    except (ConfigError, TypeError, KeyError, AttributeError, ValueError, ArithmeticError) as error:
        what = 'the nets' if 'model' in extra else 'the config of one of our runs'
        raise ConvertError(f'{where}: this does not describe {what} ({error})') from None
    raise ConvertError(f'{where}: the manifest has neither config nor model: nets unknown')


def _described(net: str, row: dict[str, Any]) -> tuple[str, tuple[str, Any, str]]:
    if 'part' not in row:  # format 1: a row a part, and just its config
        row = {'part': net, 'config': row}
        net = 'predictor' if net in PREDICTORS else net
    return net, (row['part'], parts.config_of(row['part'], row['config']), row.get('which', ''))


def _of_run(config: RunConfig) -> dict[str, tuple[str, Any, str]]:
    objective = lookup.load(recipes.of(config).build)(config)
    nets = {**objective.nets, **objective.frozen, **objective.kept}
    return {name: (net.part, net.config, '') for name, net in nets.items()}


def net_called(name: str) -> str:
    """NET of the usual place of a net."""
    return PLACES.get(name, f'params/{name}').partition('/')[2]


def read_nets(
    folder: pathlib.Path, leaves: Mapping[str, Leaf], nets: dict[str, tuple[str, Any, str]]
) -> dict[str, StoredNet]:
    """The nets that a checkpoint holds, by the names of `Weights.nets`.

    Raises:
      ConvertError: arrays are not those of the nets that the manifest describes.
    """
    stored: dict[str, StoredNet] = {}
    for net, (part, config, which) in nets.items():
        for role in ROLES:
            place = f'{role}/{net}'
            if tree := subtree(leaves, place):
                _compare(f'{folder}: {place}', part, config, tree)
                stored[_name(role, net, part, which)] = StoredNet(part, config, tree, place)
    places = tuple(net.place + '/' for net in stored.values())
    for name in leaves:
        if name.split('/')[0] in ROLES and not name.startswith(places):
            raise ConvertError(f'{folder}: {name} is of no net that the manifest describes')
    if not stored:
        raise ConvertError(f'{folder} holds none of the nets that its manifest describes')
    return stored


def _name(role: str, net: str, part: str, which: str) -> str:
    if (net, part) == ('encoder', 'encoder'):
        return which or ('online' if role == 'params' else 'target')
    if (role, net) == ('params', 'predictor') and part in PREDICTORS:
        return part
    return net if role == 'params' else f'{role}/{net}'


def _compare(where: str, part: str, config: Any, tree: dict) -> None:
    stored = {n: leaf.shape for n, leaf in flatten(tree).items()}
    abstract = flatten(parts.abstract(where, part, config, stored))
    expected = {n: tuple(a.shape) for n, a in abstract.items()}
    for name in expected | stored:
        if expected.get(name) != stored.get(name):
            raise ConvertError(
                f'{where}/{name} has shape {stored.get(name)}, must have {expected.get(name)}'
            )


def subtree(leaves: Mapping[str, Leaf], place: str) -> dict:
    """Leaves below a name, nested."""
    prefix = place + '/'
    return nest({n.removeprefix(prefix): a for n, a in leaves.items() if n.startswith(prefix)})


def training(
    folder: pathlib.Path,
    leaves: Mapping[str, Leaf],
    extra: dict[str, Any],
    nets: dict[str, StoredNet],
) -> Training | None:
    """Adam's state and the schedules' position, if the checkpoint has them.

    Raises:
      ConvertError: an optimizer's state that is not understood completely.
    """
    state = [name for name in leaves if name.startswith(OPTIMIZER)]
    if not state:
        return None
    trained = {
        name: net.place.removeprefix('params/')
        for name, net in nets.items()
        if net.place.startswith('params/')
    }
    mu, nu = (
        {name: tree for name, net in trained.items() if (tree := subtree(leaves, f'{m}/{net}'))}
        for m in (MU, NU)
    )
    known = (*STEPS, *GUARD, COUNT, *(f'{m}/{net}/' for m in (MU, NU) for net in trained.values()))
    if unknown := [name for name in state if not name.startswith(known)]:
        raise ConvertError(
            f'{folder}: {unknown[0]} is not known here: --weights-only leaves the optimizer out'
        )
    for name in (COUNT, 'step'):
        if name not in leaves or leaves[name].shape:
            raise ConvertError(f'{folder}: {name} must be a number beside an optimizer')
    step = int(np.asarray(leaves['step']))
    hyper = extra.get('training', {}).get('hyper')
    if hyper is None and 'config' in extra:
        from jepa_jax.optim import learning_rate, weight_decay

        optim = recipes.read_stored(extra, folder).optim
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
        int(np.asarray(leaves[COUNT])),
        mu,
        nu,
        hyper,
        extra.get('training', {}).get('original', {}),
        extra.get('config'),
    )


# Writing


def places(weights: Weights) -> dict[str, str]:
    """Net -> where its arrays go: where they were, else the usual place."""
    usual = {name: PLACES.get(name, f'params/{name}') for name in weights.nets}
    if weights.alone and 'target' in usual:
        usual['target'] = PLACES['online']  # one encoder, for either use
    return {name: net.place or usual[name] for name, net in weights.nets.items()}


def arrays(weights: Weights) -> dict[str, Leaf]:
    """Every array of a checkpoint by name."""
    at = places(weights)
    trees = {at[name]: net.tree for name, net in weights.nets.items()}
    numbers: dict[str, int] = {}
    if t := weights.training:
        numbers = {**dict.fromkeys(STEPS, t.step), COUNT: t.count}
        for moments, place in ((t.mu, MU), (t.nu, NU)):
            trees |= {
                f'{place}/{at[name].removeprefix("params/")}': tree
                for name, tree in moments.items()
            }
    named = {name: _number(value) for name, value in numbers.items()}
    for place, tree in trees.items():
        named |= {f'{place}/{name}': leaf for name, leaf in flatten(tree).items()}
    return named


def _number(value: int) -> Leaf:
    return Leaf((), np.dtype('int32'), lambda: np.int32(value))


def describe(weights: Weights) -> dict[str, Any]:
    """The rows of `model`: NET -> part and config."""
    rows: dict[str, Any] = {}
    for name, place in places(weights).items():
        net = weights.nets[name]
        row = {'part': net.part, 'config': parts.json_of(net.part, net.config)}
        if weights.alone and name in ENCODERS:
            row['which'] = name
        rows[place.partition('/')[2]] = row
    return rows


def extra(weights: Weights) -> dict[str, Any]:
    """What goes into the manifest besides the arrays."""
    more: dict[str, Any] = {'model': describe(weights), 'version': weights.version}
    if weights.labels:
        more['labels'] = {head: list(names) for head, names in weights.labels.items()}
    if weights.reads:
        more['reads'] = weights.reads
    if weights.origin:
        more['origin'] = weights.origin
    if weights.config_file:
        more['config_file'] = weights.config_file
    if weights.fps != Weights.fps:
        more['fps'] = weights.fps
    if weights.robot:
        more['robot'] = weights.robot
    if t := weights.training:
        more['training'] = {'hyper': t.hyper, 'original': t.original}
        if t.config is not None:
            more['config'] = store.upgrade(t.config)
    return more


def write(weights: Weights, dst: pathlib.Path, progress, beside: pathlib.Path | None) -> None:
    step, more = weights.training.step if weights.training else 0, extra(weights)
    checkpoint.write(dst, arrays(weights), step=step, extra=more, progress=progress, beside=beside)
