"""Weights from anything: the original's `.pt`, Hugging Face folders, our checkpoints.

    weights = read('vitl.pt')
    params = weights.params('target')  # of parts.net('encoder', weights.encoder)

`read` finds out what it is from names and shapes, and refuses what it does not know completely.
Arrays are read when they are needed, so that files may be larger than memory.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jepa_jax import checkpoint, files
from jepa_jax.errors import ConvertError
from jepa_jax.lookup import load
from jepa_jax.weights import (
    hf_files,
    hf_ijepa,
    hf_pixels,
    language,
    own,
    parts,
    robot,
    shapes,
    tables,
    torch_files,
)
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
    shorter: str | None = None,
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
      crop, frames, heads, predictor_heads, probe_heads, position, shorter, extrinsics,
        raw_positions: what shapes cannot say; a default taken in their place is in `notes`. Only
        for `.pt`: the others tell.
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
    numbers = dict(crop=crop, frames=frames, heads=heads, predictor_heads=predictor_heads)
    numbers |= dict(probe_heads=probe_heads, steps_per_epoch=steps_per_epoch)
    for option, number in numbers.items():
        shapes.check_number(path, option, number)
    choices = shapes.Choices(
        crop,
        frames,
        heads,
        predictor_heads,
        probe_heads,
        position,
        extrinsics,
        shorter,
        raw_positions,
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
    if is_hf(path):
        if language.is_language(path):
            return language.read(path, finite)
        return _read_hf(path, allow_missing, finite)
    return own.read(path, weights_only, finite)


def is_hf(path: pathlib.Path) -> bool:
    """Whether a folder is of Hugging Face's libraries. A run has a config.json, too, before it has
    a checkpoint.

    Raises BadFile: it has a config.json that is none.
    """
    ours = (path / checkpoint.MANIFEST).exists() or (path / 'checkpoints').exists()
    config = path / hf_files.CONFIG
    return not ours and config.exists() and 'model_type' in files.read_json(config)


def robot_in(path: str | os.PathLike) -> dict[str, Any]:
    """As `read(path).robot`, without a look at arrays. Raises as `read`."""
    path = pathlib.Path(path).expanduser()
    with files.raising(ConvertError):
        if path.is_dir():
            return {} if is_hf(path) else own.robot_of(path)
        entry = torch_files.ours(path)
        own.check_extra(str(path), entry)
        return robot.told(entry)


def _agree(weights: Weights, choices: shapes.Choices) -> None:
    """Refuses a choice that contradicts what the source itself says."""
    said: dict[str, Any] = {}
    if e := weights.encoder:
        said |= {'crop': e.image_size, 'frames': e.frames, 'heads': e.heads, 'position': e.position}
        said |= {'shorter': e.shorter}
    if weights.predictor:
        said['predictor_heads'] = weights.predictor.heads
        masked, actions = weights.of_part('predictor'), weights.of_part('ac_predictor')
        said['extrinsics'] = actions.use_extrinsics if actions else None
        said['raw_positions'] = not (masked and masked.interpolate)
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
    configs = _with_tables(str(path), 'torch', content.nets, configs, reader.notes)
    nets, links = {}, {}
    for name, arrays in content.nets.items():
        nets[name], links[name] = _net(
            str(path), name, configs[name], 'torch', arrays, allow_missing, reader.notes, finite
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
        fps=own.rate(content.ours),
        robot=robot.told(content.ours),
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
            other = '2.1' if beside.modalities else '2.0'
            if other != version:
                raise ConvertError(
                    f'{path}: {name} is of V-JEPA {version}, the encoder beside it of {other}'
                )
        from_shapes = load(parts.PARTS[_part_of(name)].files['torch'].config)
        configs[name] = from_shapes(reader, name, forms[name], beside)
        if name in ENCODERS and beside not in (None, configs[name]):
            raise ConvertError(f'{path}: the two encoders are of different sizes')
        if name in ENCODERS:
            shapes.check_clips(f'{path}: {name}', configs[name])
    return configs


def _with_tables(
    where: str, format: str, nets: Mapping[str, Mapping[str, Leaf]], configs: dict, notes: list[str]
) -> dict[str, Any]:
    """The configs of nets with sin-cos positions, by the tables that a file holds: computed where
    the formula gives them bit for bit, else weights, which is noted. Both encoders alike.

    Raises:
      ConvertError: such a net has no table, or one of another size.
    """
    configs = {
        name: _with_table(f'{where}: {name}', format, _part_of(name), configs[name], arrays, notes)
        for name, arrays in nets.items()
    }
    stored = any(configs[name].stored_table for name in ENCODERS if name in configs)
    for name in ENCODERS:
        if name in configs and stored:
            configs[name] = dataclasses.replace(configs[name], stored_table=True)
    return configs


def _with_table(where, format, part, config, arrays, notes: list[str]) -> Any:
    """Likewise, of one net; of the ways to fill a table the nearest is taken."""
    row = parts.PARTS[part].files.get(format)
    if not (row and row.computed) or config.position != 'sincos' or config.stored_table:
        return config
    if config.axes == 'flat':
        return config  # VideoMAE's files have none
    computed, nearest = load(row.computed), (LIKE, config)
    name = next((name for name in arrays if name in TABLES), None)
    if name is None:
        raise ConvertError(
            f'{where}: a table of positions is missing, which sin-cos positions need'
        )
    t, h, w = config.home
    rows = max(t, 1) * h * w + config.class_token
    shape = (1, rows, config.width)
    if arrays[name].shape != shape:  # before it is computed
        raise ConvertError(
            f'{where}: {name} has shape {list(arrays[name].shape)}, crop and frames ask for '
            f'{list(shape)}: say them'
        )
    table = np.asarray(arrays[name])
    ways = WAYS_OF_IMAGES if t == 0 else WAYS
    for change in ways if format == 'torch' else ({},):
        tried = dataclasses.replace(config, **change)
        formula = computed(tried)[name]
        if table.tobytes() == formula.tobytes():
            return tried
        off = float(np.nan_to_num(np.abs(table - formula), nan=np.inf).max())
        nearest = min(nearest, (off, tried), key=lambda pair: pair[0])
    off, config = nearest
    far = f'by up to {off:.2g}' if off < LIKE else 'far from it'
    notes.append(
        f'{where.rpartition(": ")[2]}: {name} is not what the formula gives, {far}: it is used as '
        'it is, a weight'
    )
    return dataclasses.replace(config, stored_table=True)


# the ways to fill a table; names of tables
WAYS = {'uniform_power': True}, {'uniform_power': False}
WAYS_OF_IMAGES = {'axes': 'xy'}, {'axes': 'yx'}
LIKE = 1e-2  # a table is filled in a way if no number is so far off
TABLES = 'pos_embed', 'predictor_pos_embed', 'embeddings.position_embeddings'
TABLES += 'decoder_pos_embed', 'decoder.decoder_pos_embed'


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
    notes: list[str] = []
    pixels = files.read_json(path / hf_files.CONFIG).get('model_type') in hf_pixels.DEFAULTS
    if pixels:
        values = hf_pixels.read_config(path, notes)
        arrays = hf_pixels.take_apart(path, values, notes)
    else:
        values = hf_files.read_config(path)
        arrays = hf_files.take_apart(path, values)
    encoder = next((name for name in ENCODERS if name in arrays), None)
    if encoder is None:
        raise ConvertError(f'{path}: no array of the encoder')
    nets: dict[str, StoredNet] = {}
    for name in sorted(arrays, key=lambda name: name != encoder):
        forms = {key: leaf.shape for key, leaf in arrays[name].items()}
        beside = nets[encoder].config if nets else None
        config = load(parts.PARTS[_part_of(name)].files['hf'].config)(values, forms, beside)
        config = _with_tables(str(path), 'hf', {name: arrays[name]}, {name: config}, notes)[name]
        nets[name], _ = _net(
            str(path), name, config, 'hf', arrays[name], allow_missing, notes, finite
        )
    if hf_files.of_images(nets[encoder].config):
        if values.get(hf_files.OURS) is None:
            notes.append(
                "the encoder is taken for the online one, as in the folders of I-JEPA's authors; "
                'the paper evaluates the target'
            )
        other = hf_ijepa.other_pixels(path)
    elif pixels:
        other = ''  # which is noted by now
    else:
        other = hf_files.other_crop(path, values['crop_size'])
    notes += [other] if other else []
    labels, reads = {}, {}
    if 'probe' in nets:
        theirs, original = ('1e-5', '1e-6') if pixels else ('1e-6', '1e-5')
        notes.append(
            f'probe: transformers has eps {theirs} in the pooler, here it is {original} as in the '
            'original: logits differ in the fifth digit'
        )
        reads = {} if pixels else {'frames': values['frames_per_clip']}
        labels = hf_files.labels(values, nets['probe'].config[1]['linear'], notes)
    return Weights(path, 'hf', nets, labels=labels, reads=reads, notes=tuple(notes))
