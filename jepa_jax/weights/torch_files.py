"""The original's files: `.pt`, and those that other trainers make of them."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jepa_jax import files, lookup
from jepa_jax.errors import ConvertError
from jepa_jax.models import VERSIONS
from jepa_jax.models.vit import position_table
from jepa_jax.weights import parts, pixel_tables, shapes, torch_pickle, torch_zip
from jepa_jax.weights.tables import DISTILLED, FIRST_PROBE, TORCH_NETS, TORCH_PROBES, Leaf

ZIP, PICKLE = b'PK\x03\x04', b'\x80'
INSTALL = "needs PyTorch: pip install 'jepa_jax[torch]'"
# what wrappers put before names: DDP, the original's own, torch.compile, Lightning, FSDP; and what
# may also stand within them
PREFIX = re.compile(r'^((module|backbone|model|net|_forward_module)\.)+')
WITHIN = re.compile(r'\b(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.')
NORM = re.compile(r'(encoder\.)?norm\.(weight|bias)')  # of MAE's and VideoMAE's encoders
ACTION = 'action_encoder.weight'  # only the action-conditioned predictor has it
OURS = 'jepa_jax'  # entry of files that we write, JSON: what the original's entries cannot say
# entries of training checkpoints that are plain values (reference: vjepa2 §5.5)
PLAIN = ('epoch', 'loss', 'batch_size', 'world_size', 'lr', 'scaler')
# entries of other trainers' files that hold the state dict
WRAPPERS = ('state_dict', 'model', 'module', 'model_state_dict')
DEEPSPEED = ('ds_version', 'ds_config', 'param_shapes')
FLAT = 'flat_param'  # in names that FSDP gives to many parameters in one
FLOATS = ('float32', 'bfloat16', 'float16')
SHOWN = 5  # entries named in an error


# Reading


def load(path: pathlib.Path) -> Any:
    """What a `.pt` file holds: containers, numbers, text, and tensors with `shape`, `dtype` (a
    name) and `read()`, which stay on disk until then. Nothing in it is run: what is not understood
    is a `torch_pickle.Foreign`.

    Raises:
      ConvertError: no checkpoint.
      BadFile: a damaged one, or one that would cost too much.
    """
    files.size(path)
    with path.open('rb') as file:
        head = file.read(4)
    if head == ZIP:
        if not zipfile.is_zipfile(path):
            raise ConvertError(f'{path} is truncated: it begins as a .pt file, its end is missing')
        return torch_zip.load(path)
    if head[:1] == PICKLE:
        return _load_old(path)
    raise ConvertError(
        f'{path} is not a checkpoint: must be a .pt file, a Hugging Face folder or a checkpoint of '
        'jepa_jax'
    )


def _load_old(path: pathlib.Path) -> Any:
    """Files of PyTorch before 1.6, which are no archives, by PyTorch's own protected reader."""
    try:
        import torch
    except ModuleNotFoundError:
        raise ConvertError(f'{path}: a .pt file from before PyTorch 1.6 {INSTALL}') from None
    scalar = np._core.multiarray.scalar  # numpy 1 and 2 name it differently
    kinds = {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    allowed = [np.dtype, *kinds, scalar, (scalar, 'numpy.core.multiarray.scalar')]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            # a pickle that is not PyTorch's; whether it holds weights is seen below
            warnings.filterwarnings('ignore', 'Detected pickle protocol', UserWarning)
            return _of_torch(torch.load(path, map_location='cpu', weights_only=True), {})
    except pickle.UnpicklingError as error:
        if name := re.search(r'GLOBAL ([\w.]+)', str(error)):
            raise ConvertError(
                f'{path} is refused: loading it would run {name[1]}, and weights run nothing'
            ) from None
        # the rest of its message is advice to load the file without protection
        reason = str(error).split('WeightsUnpickler error:')[-1].strip().splitlines() or ['']
        raise ConvertError(
            f'{path} is refused: a .pt file may hold tensors, numbers and text, nothing else '
            f'({reason[0]})'
        ) from None
    except Exception as error:  # PyTorch raises anything on bytes that it did not expect
        raise ConvertError(
            f'{path} cannot be read as a .pt file: damaged, truncated or something else '
            f'({type(error).__name__}: {files.one_line(error)})'
        ) from None


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A tensor of PyTorch's, as torch_zip.Tensor."""

    tensor: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        return str(self.tensor.dtype).removeprefix('torch.')

    def read(self) -> np.ndarray:
        tensor = self.tensor.detach()
        return (tensor.float() if self.dtype == 'bfloat16' else tensor).numpy()


def _of_torch(value: Any, seen: dict[int, Any]) -> Any:
    """With `Loaded` in place of tensors; seen: what came of a value before, by its id."""
    if id(value) not in seen:
        if isinstance(value, Mapping):
            seen[id(value)] = {key: _of_torch(item, seen) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            seen[id(value)] = [_of_torch(item, seen) for item in value]
        elif hasattr(value, 'detach'):
            seen[id(value)] = Loaded(value)
        else:
            return value
    return seen[id(value)]


@dataclasses.dataclass
class Content:
    """A `.pt` file taken apart."""

    nets: dict[str, dict[str, Leaf]]  # net -> arrays by the original's names without prefixes
    opt: Mapping | None  # state dict of the optimizer
    plain: dict[str, Any]  # the entries of PLAIN that are there
    ours: dict[str, Any]  # what we wrote beside them; empty in files of others
    notes: list[str]


def take_apart(path: pathlib.Path, ignore: tuple[str, ...] = ()) -> Content:
    """The nets of a file and what lies beside them.

    ignore: patterns of entries and arrays to leave out, each of which is in the notes.

    Raises:
      ConvertError, BadFile: as `load`; no net in it; something that nobody knows, or that only
        running code would give.
    """
    notes: list[str] = []
    whole = load(path)
    if not isinstance(whole, Mapping) or not whole:
        raise ConvertError(f'{path} is not a checkpoint: it holds a {type(whole).__name__}')
    ours = _ours(path, whole.get(OURS, '{}'))
    content = {name: value for name, value in whole.items() if name != OURS}
    content = _unwrapped(path, content, ignore, notes)
    if DISTILLED in content and 'target_encoder' in content:
        raise ConvertError(
            f'{path} holds two targets, {DISTILLED} and target_encoder: --ignore leaves one out'
        )
    states = {net: (entry, content[entry]) for entry, net in TORCH_NETS.items() if entry in content}
    nets = {
        net: _arrays(f'{path}: {entry}', _kept(state, ignore, notes, entry))
        for net, (entry, state) in states.items()
    }
    if DISTILLED in content and not shapes.newer(nets['target']):
        raise ConvertError(f'{path}: {DISTILLED} is of V-JEPA 2.1, and its arrays of 2.0')
    if FIRST_PROBE in content:  # V-JEPA 1's files hold one
        rest = {name: value for name, value in content.items() if name != FIRST_PROBE}
        content = rest | {TORCH_PROBES: [content[FIRST_PROBE]]}
    if TORCH_PROBES in content:
        probes = content[TORCH_PROBES]
        if not isinstance(probes, list | tuple) or not probes:
            raise ConvertError(f'{path}: {TORCH_PROBES} must be a list of at least one')
        state = _kept(probes[0], ignore, notes, TORCH_PROBES)
        nets['probe'] = _arrays(f'{path}: {TORCH_PROBES}[0]', state)
        if len(probes) > 1:
            notes.append(f'probe: the first of {len(probes)} is taken')
    if not nets:
        return Content(_bare(path, content, ignore, notes), None, {}, ours, notes)
    if ACTION in nets.get('predictor', {}):
        nets['ac_predictor'] = nets.pop('predictor')
    known = (*TORCH_NETS, *PLAIN, TORCH_PROBES, 'opt')
    _drop(path, {name: v for name, v in content.items() if name not in known}, notes)
    opt = content.get('opt')
    if opt is not None and 'probe' in nets:
        opt, _ = None, notes.append("probe: its optimizer's state is dropped")
    plain = {n: _plain(f'{path}: {n}', content[n]) for n in PLAIN if n in content}
    return Content(nets, opt, plain, ours, notes)


def _unwrapped(
    path: pathlib.Path, content: Any, ignore: tuple[str, ...], notes: list[str]
) -> dict[str, Any]:
    """The entries of a file, without what is ignored, out of the wrappers of other trainers; made
    of nothing but what is understood."""
    for _ in range(4):
        if any(mark in content for mark in DEEPSPEED):
            raise ConvertError(
                f'{path} is a piece of a DeepSpeed checkpoint: its zero_to_fp32.py makes one state '
                'dict of all pieces'
            )
        content = _kept(content, ignore, notes)
        known = (*TORCH_NETS, TORCH_PROBES, FIRST_PROBE)
        inner = [name for name in WRAPPERS if isinstance(content.get(name), dict)]
        if not inner or any(name in content for name in known):
            break
        _drop(path, {name: v for name, v in content.items() if name != inner[0]}, notes)
        notes.append(f'the weights are those in entry {inner[0]}')
        content = content[inner[0]]
    if words := next(torch_pickle.foreign(content), ''):
        name = next(n for n, v in content.items() if next(torch_pickle.foreign([n, v]), ''))
        raise ConvertError(
            f'{path} is refused: {words}, and weights run nothing (entry {_shown(name)}; '
            '--ignore leaves it out)'
        )
    return content


def _kept(
    entries: Any, ignore: tuple[str, ...], notes: list[str], where: str = ''
) -> dict[str, Any]:
    """What no pattern ignores; the rest is noted."""
    if not isinstance(entries, dict) or not ignore:
        return entries
    out = [
        name
        for name in entries
        if any(fnmatch.fnmatchcase(str(name), p) or _short(name) == p for p in ignore)
    ]
    notes += [f'ignored: {where and where + ": "}{_shown(name)}' for name in out]
    return {name: value for name, value in entries.items() if name not in out}


def _drop(path: pathlib.Path, entries: Mapping, notes: list[str]) -> None:
    """Notes that entries are dropped; raises ConvertError if some are more than plain values."""
    odd: dict[str, str] = {}
    for name, value in entries.items():
        if not isinstance(value, str | int | float | np.generic | None):
            foreign = isinstance(value, torch_pickle.Foreign)
            odd[_shown(name)] = value.words if foreign else type(value).__name__
    if odd:
        shown = dict(list(odd.items())[:SHOWN])
        words = ', '.join(f'{name} ({kind})' for name, kind in shown.items())
        flags = ' '.join(f'--ignore {name}' for name in shown)
        raise ConvertError(
            f'{path}: entry {words} is not known: --ignore leaves it out'
            if len(odd) == 1
            else f'{path}: entries {words} are not known: {flags} leaves them out'
        )
    notes += [f'entry {_shown(name)} is dropped' for name in entries]


def _shown(name: Any) -> str:
    """A name out of a file, fit to be printed."""
    if isinstance(name, torch_pickle.Foreign):
        return name.words
    return files.one_line(ValueError(name), 100)


def ours(path: pathlib.Path) -> dict[str, Any]:
    """What our own entry of a file says; {}: it has none. Raises as `load`."""
    whole = load(path)
    return _ours(path, whole.get(OURS, '{}')) if isinstance(whole, Mapping) else {}


def _ours(path: pathlib.Path, text: Any) -> dict[str, Any]:
    try:
        entry = json.loads(text)
        if isinstance(entry, dict):
            return entry
    except (TypeError, ValueError, RecursionError):
        pass
    raise ConvertError(f'{path}: entry {OURS} is not what jepa_jax writes there')


def _plain(where: str, value: Any) -> Any:
    """Numbers and text, also in a dict, as JSON holds them; a float32 becomes the float of the same
    value. Raises ConvertError for anything else."""
    if isinstance(value, dict):
        return {str(name): _plain(f'{where}.{_shown(name)}', v) for name, v in _flat(where, value)}
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, TENSORS) and value.shape == ():
        value = value.read().item()
    if not isinstance(value, str | int | float | None):
        raise ConvertError(f'{where} is a {type(value).__name__}, must be a number or text')
    if isinstance(value, float) and not math.isfinite(value):
        raise ConvertError(f'{where} is {value}: --ignore or --weights-only leaves it out')
    return value


def _flat(where: str, values: dict) -> list[tuple[Any, Any]]:
    if any(isinstance(value, dict) for value in values.values()):
        raise ConvertError(f'{where} holds dicts, must hold numbers')
    return list(values.items())


def _bare(
    path: pathlib.Path, content: Mapping, ignore: tuple[str, ...], notes: list[str]
) -> dict[str, dict[str, Leaf]]:
    """A state dict with nothing around it: of a net, or of a module that has several."""
    short = [_short(name) for name in content]
    if pixel_tables.net_of('', short):  # MAE, VideoMAE
        content = _tuned(path, content, notes)
        short = [_short(name) for name in content]
        flat: dict[str, dict] = {}
        for name, tensor in content.items():
            flat.setdefault(pixel_tables.net_of(_short(name), short), {})[name] = tensor
        return {net: _arrays(f'{path}: {net}', state) for net, state in flat.items()}
    split: dict[str, dict] = {}
    for name, tensor in content.items():
        entry, dot, rest = _short(name).partition('.')
        if dot and entry in TORCH_NETS:
            split.setdefault(entry, {})[rest] = tensor
        elif split:
            break
    if split:
        if sum(map(len, split.values())) != len(content):
            odd = next(n for n in content if _short(n).partition('.')[0] not in TORCH_NETS)
            raise ConvertError(
                f'{path}: {_shown(odd)} is not known beside {", ".join(split)}: --ignore leaves it '
                'out'
            )
        nets = {
            TORCH_NETS[entry]: _arrays(f'{path}: {entry}', _kept(state, ignore, notes, entry))
            for entry, state in split.items()
        }
        if ACTION in nets.get('predictor', {}):
            nets['ac_predictor'] = nets.pop('predictor')
        return nets
    arrays = _arrays(str(path), content)
    marks = {
        ACTION: 'ac_predictor',
        'patch_embed.proj.weight': 'online',
        'predictor_embed.weight': 'predictor',
        'predictor_embed.0.weight': 'predictor',
        'pooler.query_tokens': 'probe',
    }
    net = next((net for name, net in marks.items() if name in arrays), None)
    if net is None:
        raise ConvertError(
            f'{path} holds no weights of V-JEPA: its first key is {_shown(next(iter(arrays)))}'
        )
    return {net: arrays}


def _tuned(path: pathlib.Path, content: Mapping, notes: list[str]) -> Mapping:
    """What is read of MAE's and VideoMAE's files: one norm at most, before or behind the mean.

    Raises:
      ConvertError: a classifier of another kind than one of the mean, or both norms.
    """
    names = [_short(name) for name in content]
    behind, before = 'fc_norm.weight' in names, any(NORM.fullmatch(n) for n in names)
    head = next((n for n in names if n.startswith('head.')), None)
    if head and not behind:
        raise ConvertError(
            f'{path} has {_shown(head)}, but no fc_norm.weight: its classes are not told from the '
            "mean of the tokens, which no net here does; --ignore 'head.*' leaves them out"
        )
    if behind and before:
        raise ConvertError(f'{path} has norm.weight and fc_norm.weight, must have one of them')
    if before and pixel_tables.VIDEOMAE_TUNED in names:  # as pretraining names them
        return {f'encoder.{_short(name)}': tensor for name, tensor in content.items()}
    if not before:
        notes.append('the encoder has no last norm, as it is where fine-tuning left the mean to it')
    if behind and not head:
        notes.append('fc_norm is dropped: it is of a classifier, which is not there')
        return {k: v for k, v in content.items() if not _short(k).startswith('fc_norm.')}
    return content


def _short(name: Any) -> str:
    """A name without what wrappers put into it."""
    return PREFIX.sub('', WITHIN.sub('', str(name)))


def _arrays(where: str, state: Any) -> dict[str, Leaf]:
    """Arrays by name without the prefixes of wrappers; 16 bits are widened, which loses nothing.

    Raises:
      ConvertError: it is no dict of float tensors.
    """
    if not isinstance(state, Mapping) or not state:
        raise ConvertError(f'{where}: must be a dict of tensors, is a {type(state).__name__}')
    leaves: dict[str, Leaf] = {}
    for name, tensor in state.items():
        short, shown = _short(name), _shown(name)
        if FLAT in short:
            raise ConvertError(
                f'{where}: {shown} is many parameters in one, as FSDP keeps them: save a full '
                'state dict (StateDictType.FULL_STATE_DICT)'
            )
        if not isinstance(tensor, TENSORS):
            raise ConvertError(f'{where}: {shown} is a {type(tensor).__name__}, must be a tensor')
        if tensor.dtype not in FLOATS:
            raise ConvertError(
                f'{where}: {shown} is of type {tensor.dtype}, must be one of {", ".join(FLOATS)}'
            )
        if short in leaves:
            raise ConvertError(f'{where}: {_shown(short)} is there twice, under two prefixes')
        leaves[short] = _leaf(tensor)
    return leaves


TENSORS = (torch_zip.Tensor, Loaded)


def _leaf(tensor: Any) -> Leaf:
    def read() -> np.ndarray:
        with files.raising(ConvertError):
            return np.asarray(tensor.read(), np.float32)

    return Leaf(tuple(tensor.shape), np.dtype('float32'), read)


HYPER = ('lr', 'weight_decay', 'eps')


@dataclasses.dataclass
class Moments:
    """Adam's state by net and the original's names."""

    mu: dict[str, dict[str, Leaf]]
    nu: dict[str, dict[str, Leaf]]
    count: int
    hyper: dict[str, Any]


def decays(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the original's optimizer shrinks a parameter. (reference: vjepa2 §5.4)"""
    return 'bias' not in name and len(shape) != 1


def groups(forms: Mapping[str, Mapping[str, tuple[int, ...]]]) -> list[list[tuple[str, str]]]:
    """(net, name) of the parameters in each of the optimizer's four groups, in its order.

    Args:
      forms: encoder and predictor, in this order: shapes by name, as their modules register them.
    """
    return [
        [(net, name) for name, shape in form.items() if decays(name, shape) == decayed]
        for decayed in (True, False)
        for net, form in forms.items()
    ]


def moments(where: str, opt: Any, forms: Mapping[str, Mapping[str, tuple[int, ...]]]) -> Moments:
    """Adam's state of a training checkpoint.

    Raises:
      ConvertError: it is not that of AdamW over these parameters, or parameters were updated a
        different number of times, for which optax has no place.
    """
    where = f'{where}: opt'
    try:
        stored, rows = opt['state'], opt['param_groups']
        indices = [[int(index) for index in row['params']] for row in rows]
        first = {key: rows[0][key] for key in ('lr', 'weight_decay', 'eps', 'betas')}
        hyper = {key: _plain(f'{where}: {key}', first[key]) for key in HYPER}
        hyper['betas'] = [_plain(f'{where}: betas', beta) for beta in first['betas']]
    except (KeyError, TypeError, IndexError) as error:
        raise ConvertError(f'{where} is no state of an optimizer ({error!r})') from None
    sizes, expected = [len(group) for group in indices], groups(forms)
    if sizes != [len(group) for group in expected]:
        raise ConvertError(
            f'{where}: groups of {sizes} parameters, must be of {[len(g) for g in expected]}; '
            '--weights-only leaves it out'
        )
    mu: dict = {net: {} for net in forms}
    nu: dict = {net: {} for net in forms}
    counts = set()
    for numbers, group in zip(indices, expected):
        for index, (net, name) in zip(numbers, group):
            if index not in stored:
                continue  # no gradient ever reached it
            state, shape = stored[index], forms[net][name]
            if not isinstance(state, dict):
                raise ConvertError(f'{where}: state of {net} {name} is no dict')
            for key, moment in (('exp_avg', mu), ('exp_avg_sq', nu)):
                tensor = state.get(key)
                form = list(tensor.shape) if isinstance(tensor, TENSORS) else 'nothing'
                if form != list(shape) or tensor.dtype not in FLOATS:
                    raise ConvertError(
                        f'{where}: {key} of {net} {name} is {form}, must be {list(shape)} floats'
                    )
                moment[net][name] = _leaf(tensor)
            counts.add(_plain(f'{where}: step of {net} {name}', state.get('step')))
    count = next(iter(counts), None)
    if len(counts) != 1 or not isinstance(count, int | float) or count % 1:
        raise ConvertError(
            f'{where}: parameters were updated {sorted(map(str, counts))} times, must be one '
            'whole number; --weights-only leaves the optimizer out'
        )
    return Moments(mu, nu, int(count), hyper)


# Arrays of the original that we compute: the tables of models with sin-cos positions


def encoder_table(config: Any) -> dict[str, np.ndarray]:
    if config.position != 'sincos' or config.stored_table:
        return {}
    return {'pos_embed': position_table(config, config.home)[None]}


def predictor_table(config: Any) -> dict[str, np.ndarray]:
    if config.position != 'sincos' or config.stored_table:
        return {}
    return {'predictor_pos_embed': position_table(config, config.grid)[None]}


# Fields of ours, and the only values that the original computes with


def known_of_encoder(config: Any) -> dict[str, Any]:
    return VERSIONS['2.1' if config.modalities else '2.0'].encoder(config.depth)


def known_of_predictor(config: Any) -> dict[str, Any]:
    return {'rope': VERSIONS['2.1' if config.modalities else '2.0'].rope}


def known_of_ac_predictor(config: Any) -> dict[str, Any]:
    alone = {'residual': False, 'action_scale': (), 'state_scale': ()}
    return alone | {'rope': VERSIONS['2.0'].rope, 'state_width': config.state_width or 7}


def beyond(name: str, net: Any) -> list[str]:
    """What the original would not know of a net from its arrays: it would compute another one."""
    known, config = parts.PARTS[net.part].files['torch'].known, net.config
    return [
        f'{name}: {option} = {getattr(config, option)}, which the original does not have: it would '
        'compute something else from these weights'
        for option, value in (lookup.load(known)(config) if known else {}).items()
        if getattr(config, option) != value
    ]
