"""Weights from anything: the original's `.pt`, Hugging Face folders, our checkpoints.

    weights = read('vitl.pt')
    params = weights.params('target')  # of parts.net('encoder', weights.encoder)

`read` finds out what it is from names and shapes, and refuses what it does not know completely.
Arrays are read when they are needed, so that files may be larger than memory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jepa_jax import checkpoint, files
from jepa_jax.errors import ConvertError
from jepa_jax.lookup import load
from jepa_jax.weights import hf_files, language, own, parts, shapes, tables, torch_files
from jepa_jax.weights.contents import ENCODERS, PREDICTORS, StoredNet, Training, Weights
from jepa_jax.weights.tables import Leaf


def read(
    path: str | os.PathLike,
    *,
    crop: int | None = None,
    frames: int | None = None,
    heads: int | None = None,
    predictor_heads: int | None = None,
    probe_heads: int | None = None,
    position: str | None = None,
    extrinsics: bool | None = None,
    raw_positions: bool | None = None,
    steps_per_epoch: int | None = None,
    weights_only: bool = False,
    allow_missing: Iterable[str] = (),
    ignore: Iterable[str] = (),
    allow_nonfinite: bool = False,
) -> Weights:
    """Weights of the original's `.pt`, of a Hugging Face folder, or of one of our checkpoints.

    Args:
      path: a file; or a folder, which may be a workdir.
      crop, frames, heads, predictor_heads, probe_heads, position, extrinsics, raw_positions: what
        shapes cannot say; a default taken in their place is in `notes`. Only for `.pt`: the others
        tell.
      steps_per_epoch: of the run that wrote a training checkpoint; its step is then epochs times
        this, else Adam's count.
      weights_only: leave training state out.
      allow_missing: names in the file, or patterns like `norm.*`, that may be missing; they get
        their initial values, which is in `notes`.
      ignore: entries and arrays of a `.pt` file to leave out, or patterns; what they match is in
        `notes`.
      allow_nonfinite: else an array with NaN or infinity raises ConvertError when it is read.

    Raises:
      ConvertError: not a checkpoint, unsafe, or not understood completely.
      CheckpointError: one of ours that is damaged or of a newer format.
    """
    path = pathlib.Path(path).expanduser()
    choices = shapes.Choices(
        crop, frames, heads, predictor_heads, probe_heads, position, extrinsics, raw_positions
    )
    with files.raising(ConvertError):
        weights = _read(path, choices, tuple(allow_missing), tuple(ignore), steps_per_epoch,
                        weights_only, not allow_nonfinite)  # fmt: skip
    _agree(weights, choices)
    return weights


def _read(path, choices, allow_missing, ignore, steps_per_epoch, weights_only, finite) -> Weights:
    if not path.exists():
        raise ConvertError(f'{files.one_line(ValueError(path), 500)} does not exist')
    if not path.is_dir():
        return _read_torch(
            path, choices, allow_missing, ignore, steps_per_epoch, weights_only, finite
        )
    if ignore:
        raise ConvertError(f'{path}: --ignore is for .pt files')
    if (path / '.metadata').exists():
        raise ConvertError(
            f'{path} is of torch.distributed.checkpoint: `python -m '
            f'torch.distributed.checkpoint.format_utils dcp_to_torch {path} FILE.pt` makes a .pt'
        )
    if (
        (path / hf_files.CONFIG).exists()
        and not (path / checkpoint.MANIFEST).exists()
        and not (path / 'checkpoints').exists()
    ):
        if language.is_language(path):
            return language.read(path, finite)
        return _read_hf(path, allow_missing, finite)
    return own.read(path, weights_only, finite)


def _agree(weights: Weights, choices: shapes.Choices) -> None:
    """Refuses a choice that contradicts what the source itself says."""
    said: dict[str, Any] = {}
    if e := weights.encoder:
        said |= {'crop': e.image_size, 'frames': e.frames, 'heads': e.heads, 'position': e.position}
    if weights.predictor:
        said['predictor_heads'] = weights.predictor.heads
        said['extrinsics'] = getattr(weights.predictor, 'use_extrinsics', None)
        said['raw_positions'] = not getattr(weights.predictor, 'interpolate', False)
    if weights.probe:
        said['probe_heads'] = weights.probe[0].heads
    for option, value in said.items():
        told = getattr(choices, option)
        if told is not None and told != value:
            raise ConvertError(f'{weights.source} says {option} {value}, which {told} contradicts')


def _part_of(name: str) -> str:
    """The row of PARTS of a net in a foreign file."""
    return 'encoder' if name in ENCODERS else name


def _net(
    where: str,
    name: str,
    config: Any,
    format: str,
    arrays: Mapping[str, Leaf],
    allow_missing: tuple[str, ...],
    notes: list[str],
    finite: bool,
) -> tuple[StoredNet, list[tables.Link]]:
    """A net's leaves, strictly by its table, and the links to the file's arrays."""
    part = _part_of(name)
    rules, sizes = tables.table(part, config, format)
    forms = {key: leaf.shape for key, leaf in arrays.items()}
    abstract = parts.abstract(f'{where}: {name}', part, config, forms)
    links = tables.bind(rules, abstract, sizes)
    newer = ' of V-JEPA 2.1' if parts.version_of(part, config) == '2.1' else ''
    missing = tables.compare(f'{where}: {name}{newer}', links, rules, forms, allow_missing)
    if missing:
        initial = parts.shared_net(part, config).init(jax.random.key(0))
        fresh = dict(tables.to_file(links, initial))
        for key in sorted(missing):
            notes.append(f'{name}: {key} is missing and gets its initial value')
            value = np.ascontiguousarray(fresh[key])
            arrays = {
                **arrays,
                key: Leaf(value.shape, value.dtype, functools.partial(np.asarray, value)),
            }
    for key, why in tables.dropped(rules, forms).items():
        notes.append(f'{name}: {key} is dropped: {why}')
    arrays = tables.finite(f'{where}: {name}', arrays) if finite else arrays
    return StoredNet(part, config, tables.from_file(links, arrays)), links


def _read_torch(
    path, choices, allow_missing, ignore, steps_per_epoch, weights_only, finite
) -> Weights:
    content = torch_files.take_apart(path, ignore)
    reader = shapes.Reader(str(path), choices)
    reader.notes += content.notes
    forms = {name: {k: a.shape for k, a in net.items()} for name, net in content.nets.items()}
    configs = _configs(path, reader, content, forms)
    nets, links = {}, {}
    for name, arrays in content.nets.items():
        config = _with_table(f'{path}: {name}', _part_of(name), configs[name], arrays)
        nets[name], links[name] = _net(
            str(path), name, config, 'torch', arrays, allow_missing, reader.notes, finite
        )
    training = None
    if content.opt is not None and not weights_only:
        training = _training(path, content, links, steps_per_epoch, reader.notes, finite)
    return Weights(
        path,
        'torch',
        nets,
        training,
        {head: tuple(names) for head, names in content.ours.get('labels', {}).items()},
        content.ours.get('reads', {}),
        content.ours.get('origin', ''),
        tuple(reader.notes),
    )


def _configs(path, reader: shapes.Reader, content, forms) -> dict[str, Any]:
    """Of each net: as we wrote beside it, else as the shapes and the user say."""
    configs: dict[str, Any] = {}
    if content.ours:
        own.check_extra(str(path), content.ours)
        known = own.nets_of(str(path), content.ours, rows=False)
        for name in forms:
            part, config, _ = known.get(own.net_called(name), ('', None, ''))
            if part != _part_of(name):
                raise ConvertError(f'{path}: entry {torch_files.OURS} says nothing of {name}')
            configs[name] = config
        return configs
    order = sorted(forms, key=lambda name: name not in ENCODERS)  # the encoders first
    for name in order:
        beside = next((configs[n] for n in ENCODERS if n in configs), None)
        version = shapes.version_of(forms[name])
        if _part_of(name) in ('encoder', 'predictor') and beside:
            if (other := parts.version_of('encoder', beside)) != version:
                raise ConvertError(
                    f'{path}: {name} is of V-JEPA {version}, the encoder beside it of {other}'
                )
        from_shapes = load(parts.PARTS[_part_of(name)].files['torch'].config)
        configs[name] = from_shapes(reader, name, forms[name], beside)
        if name in ENCODERS and beside not in (None, configs[name]):
            raise ConvertError(f'{path}: the two encoders are of different sizes')
    return configs


def _with_table(where: str, part: str, config: Any, arrays: Mapping[str, Leaf]) -> Any:
    """The config that computes the sin-cos table of a file, of the two ways to share the width.

    Raises:
      ConvertError: neither does, or a model with such positions has no table.
    """
    if getattr(config, 'position', 'rope') != 'sincos':
        return config
    computed = load(parts.PARTS[part].files['torch'].computed)
    name = next((name for name in arrays if name.endswith('pos_embed')), None)
    if name is None:
        raise ConvertError(f'{where}: pos_embed is missing, which sin-cos positions need')
    side = getattr(config, 'image_size', 0)
    grid = config.grid if isinstance(config.grid, tuple) else config.grid(config.frames, side, side)
    grid = grid[1:] if getattr(config, 'tubelet', 2) == 1 else grid
    if math.prod(grid) * config.width > 2 * math.prod(arrays[name].shape):  # before it is computed
        raise ConvertError(f'{where}: {name} is smaller than a table of these crop and frames')
    for uniform in (True, False):
        tried = dataclasses.replace(config, uniform_power=uniform)
        ((name, table),) = computed(tried).items()
        if name not in arrays:
            raise ConvertError(f'{where}: {name} is missing, which sin-cos positions need')
        if arrays[name].shape == table.shape and np.allclose(
            arrays[name], table, rtol=0, atol=1e-6
        ):
            return tried
    raise ConvertError(f'{where}: {name} is no sin-cos table of these crop and frames: say them')


def _training(path, content, links, steps_per_epoch, notes: list[str], finite: bool) -> Training:
    names = [name for name in ('online', *PREDICTORS) if name in content.nets]
    order = {n: {k: a.shape for k, a in content.nets[n].items()} for n in names}
    moments = torch_files.moments(str(path), content.opt, order)
    mu, nu = {}, {}
    for name in names:
        if not moments.mu[name]:
            notes.append(f'{name}: frozen in training, no optimizer state')
            continue
        for stored, tree_of in ((moments.mu, mu), (moments.nu, nu)):
            arrays = {}
            for key, shape in tables.expected(links[name]).items():
                arrays[key] = stored[name].get(key) or _zeros(shape)
            if finite:
                kind = 'exp_avg' if tree_of is mu else 'exp_avg_sq'
                arrays = tables.finite(f'{path}: opt: {kind} of {name}', arrays)
            tree_of[name] = tables.from_file(links[name], arrays)
        idle = [k for k in tables.expected(links[name]) if k not in moments.mu[name]]
        if wrong := [k for k in idle if not k.startswith(tables.MAYBE_IDLE)]:
            raise ConvertError(
                f'{path}: opt: nothing for {name} {wrong[0]}; --weights-only leaves it out'
            )
    epoch = content.plain.get('epoch')
    if not isinstance(epoch, int | None):
        raise ConvertError(f'{path}: epoch is a {type(epoch).__name__}, must be a whole number')
    counted = epoch * steps_per_epoch if steps_per_epoch and epoch is not None else None
    step = content.ours.get('step', moments.count if counted is None else counted)
    if counted not in (None, step):
        raise ConvertError(
            f'{path} is of step {step}, which {epoch} epochs of {steps_per_epoch} steps contradict'
        )
    if counted is None and 'step' not in content.ours:
        notes.append(f"step {step} (Adam's count; --steps-per-epoch N makes it epochs x N)")
    return Training(
        step, moments.count, mu, nu, moments.hyper, content.plain, content.ours.get('config')
    )


def _zeros(shape: tuple[int, ...]) -> Leaf:
    return Leaf(shape, np.dtype('float32'), lambda: np.zeros(shape, np.float32))


def _read_hf(path: pathlib.Path, allow_missing, finite: bool) -> Weights:
    values = hf_files.read_config(path)
    arrays = hf_files.take_apart(path, values)
    encoder = next((name for name in ENCODERS if name in arrays), None)
    if encoder is None:
        raise ConvertError(f'{path}: no array of the encoder')
    notes: list[str] = []
    nets: dict[str, StoredNet] = {}
    for name in sorted(arrays, key=lambda name: name != encoder):
        forms = {key: leaf.shape for key, leaf in arrays[name].items()}
        beside = nets[encoder].config if nets else None
        config = load(parts.PARTS[_part_of(name)].files['hf'].config)(values, forms, beside)
        nets[name], _ = _net(
            str(path), name, config, 'hf', arrays[name], allow_missing, notes, finite
        )
    if other := hf_files.other_crop(path, values['crop_size']):
        notes.append(other)
    labels, reads = {}, {}
    if 'probe' in nets:
        notes.append(
            'probe: transformers has eps 1e-6 in the pooler, here it is 1e-5 as in the original: '
            'logits differ in the fifth digit'
        )
        reads = {'frames': values['frames_per_clip']}
        names = values.get('id2label') or {}
        labels = {'linear': tuple(names[key] for key in sorted(names, key=int))}
    return Weights(path, 'hf', nets, labels=labels, reads=reads, notes=tuple(notes))
