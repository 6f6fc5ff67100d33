"""Configs as JSON: writing and reading them, those of older programs too, and comparing two."""

import dataclasses
import json
import typing
from collections.abc import Iterator
from typing import Any

from jepa_jax.errors import ConfigError, nearest
from jepa_jax.models import SIZE_ALIASES

# Fields by their old names; also flags under them are understood.
RENAMED = {'optim.stretch': 'optim.ipe_scale', 'optim.loss_exponent': 'loss_exponent'}
# What programs did before a field told it, where its default does something else: by the field, the
# value and the fields beside it that must be so.
BEFORE = {'against_collapse.space': ('features', {'method': ('vicreg', 'sigreg')})}
# What old runs of an objective stored though it had no meaning there.
DROPPED = {
    'action_conditioned': (
        'mask_sampler',
        'masks',
        'predictor',
        'probe',
        'data.lists',
        'data.frames',
        'data.fps',
        'data.frame_step',
        'data.duration',
        'data.cache',
        'data.cache_gib',
        'optim.momentum',
        'optim.final_momentum',
    )
}


def to_json(config: Any) -> str:
    """The config as indented JSON, stable in order."""
    return json.dumps(dataclasses.asdict(config), indent=2) + '\n'


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """A stored config as this program would store it, fields that it lacks apart: old names are
    replaced, sizes have one name, newer fields say what was done before them, what had no meaning
    is left out, and the objective is named."""
    values = json.loads(json.dumps(values))
    values['objective'] = objective_of(values)
    for old, new in RENAMED.items():
        parent, key = _holder(values, old)
        if key in parent:
            place, name = _holder(values, new)
            place[name] = parent.pop(key)
    encoder = values.get('encoder', {})
    if (size := encoder.get('size')) in SIZE_ALIASES:
        encoder['size'] = SIZE_ALIASES[size]
    for name, (value, others) in BEFORE.items():
        parent, key = _holder(values, name)
        if all(parent.get(other) in allowed for other, allowed in others.items()):
            parent.setdefault(key, value)
    for name in DROPPED.get(values['objective'], ()):
        parent, key = _holder(values, name)
        parent.pop(key, None)
    return values


def renamed(name: str, known: typing.Container[str]) -> str:
    """A field's name of today, also of one within a study's run, as `pretrain.optim.stretch`; the
    name itself if it was never another's."""
    for old, new in RENAMED.items():
        prefix = name.removesuffix(old)
        if name.endswith(old) and prefix + new in known and (not prefix or prefix.endswith('.')):
            return prefix + new
    return name


def adopt_old_names(config: Any) -> None:
    """Moves what a config file has set under old names of fields to where they are today."""
    for part in (config, *vars(config).values()):
        for old, new in RENAMED.items():
            *parents, key = old.split('.')
            holder = _walk(part, parents)
            *parents, field = new.split('.')
            place = _walk(part, parents)
            if holder is not None and place is not None and key in vars(holder):
                setattr(place, field, vars(holder).pop(key))


def _walk(part: Any, names: list[str]) -> Any:
    """The dataclass below `part` that the names lead to; None: there is none."""
    for name in names:
        part = getattr(part, name, None)
    return part if dataclasses.is_dataclass(part) else None


def objective_of(values: dict[str, Any]) -> str:
    """Which objective a stored config is of; until it stood in the config, the field `ac` told."""
    return values.get('objective', 'action_conditioned' if 'ac' in values else 'masked_video')


def on_recordings(extra: dict[str, Any]) -> bool:
    """Whether a checkpoint of format 1 is of a run on a robot's recordings, or converted of one."""
    if objective_of(extra.get('config', {})) == 'action_conditioned':
        return True
    return 'ac_predictor' in extra.get('model', {})


def _holder(values: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The dict that holds a field, and its key there."""
    *parents, key = name.split('.')
    for parent in parents:
        values = values.get(parent, {})
    return values, key


def from_dict(values: dict[str, Any], kind: type) -> Any:
    """The config of class `kind` with these values; fields that they lack have their defaults.

    Raises:
      ConfigError: a field that the schema does not have.
    """
    hints = field_types(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise ConfigError(f'{unknown[0]}: no such field{nearest(unknown[0], hints)}')

    def build(hint: Any, value: Any) -> Any:
        inner = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            return from_dict(value, hint)
        if typing.get_origin(hint) is list:
            return [build(inner[0], item) for item in value]
        return tuple(value) if typing.get_origin(hint) is tuple else value

    return kind(**{key: build(hints[key], value) for key, value in values.items()})


def field_types(kind: type) -> dict[str, Any]:
    """Field -> its annotation."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def parts(config: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """(name, part) of a config and of all that is a config in it, `data.lists[0]`."""
    yield name, config
    for key in field_types(type(config)):
        value, place = getattr(config, key), f'{name}.{key}'.lstrip('.')
        if dataclasses.is_dataclass(value):
            yield from parts(value, place)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from parts(item, f'{place}[{i}]')


def fields(config: Any, prefix: str = '') -> Iterator[tuple[str, Any, Any]]:
    """(name, type, value) of every leaf; names as flags spell them, `masks[0].num_blocks`."""
    for key, kind in field_types(type(config)).items():
        name, value = f'{prefix}{key}', getattr(config, key)
        if dataclasses.is_dataclass(kind) and isinstance(value, kind):
            yield from fields(value, name + '.')
        elif typing.get_origin(kind) is list and isinstance(value, list):
            (part,) = typing.get_args(kind)
            for i, item in enumerate(value):
                if isinstance(item, part):
                    yield from fields(item, f'{name}[{i}].')
                else:
                    yield f'{name}[{i}]', part, item
        else:
            yield name, kind, value


def begin_list(config: Any, name: str) -> None:
    """Puts a first part into an empty list whose [0] is named, as `evals[0].every` does."""
    path, first, _ = name.partition('[0].')
    *parts, last = path.split('.')
    for key in parts:
        config = getattr(config, key, None)
    if not first or not dataclasses.is_dataclass(config) or getattr(config, last, None) != []:
        return
    (part,) = typing.get_args(field_types(type(config))[last])
    if dataclasses.is_dataclass(part):
        getattr(config, last).append(part())


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = '') -> list[str]:
    """Lines `field: old -> new` for every leaf in which two config dicts (from JSON) differ."""
    lines = []
    for key in sorted(set(old) | set(new)):
        name = f'{prefix}{key}'
        a, b = old.get(key, '(absent)'), new.get(key, '(absent)')
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, name + '.')
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and _are_parts(a + b):
            for i, (x, y) in enumerate(zip(a, b)):
                lines += differences(x, y, f'{name}[{i}].')
        elif a != b:
            lines.append(f'{name}: {a} -> {b}')
    return lines


def _are_parts(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)
