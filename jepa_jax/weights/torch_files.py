"""The original's files: `.pt`, read without running what is in them, written a tensor at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jepa_jax import scratch
from jepa_jax.checkpoint import check_room
from jepa_jax.errors import ConvertError
from jepa_jax.models.tokens import sincos_table
from jepa_jax.weights import parts
from jepa_jax.weights.tables import NEWER_TARGET, TORCH_NETS, TORCH_PROBES, Leaf

ZIP, PICKLE = b'PK\x03\x04', b'\x80'
INSTALL = "needs PyTorch: pip install 'jepa_jax[torch]'"
PREFIX = re.compile(r'^(module\.|backbone\.)+')
ACTION = 'action_encoder.weight'  # only the action-conditioned predictor has it
OURS = 'jepa_jax'  # entry of files that we write, JSON: what the original's entries cannot say
# entries of training checkpoints that are plain values (reference: vjepa2 §5.5)
PLAIN = ('epoch', 'loss', 'batch_size', 'world_size', 'lr', 'scaler')


def _torch(path: os.PathLike):
    try:
        import torch
    except ModuleNotFoundError:
        raise ConvertError(f'{path}: a .pt file {INSTALL}') from None
    return torch


# Reading


def _allowed() -> list[Any]:
    """What a file may hold besides tensors: numpy scalars, which training checkpoints have as loss
    and lr. numpy 1 and 2 name their maker differently."""
    scalar = np._core.multiarray.scalar
    kinds = {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    return [np.dtype, *kinds, scalar, (scalar, 'numpy.core.multiarray.scalar')]


def load(path: pathlib.Path) -> Any:
    """What a `.pt` file holds; tensors stay on disk until they are used.

    Raises:
      ConvertError: no checkpoint, a truncated one, or one that would run code.
    """
    with path.open('rb') as file:
        head = file.read(4)
    zipped = zipfile.is_zipfile(path)
    if head == ZIP and not zipped:
        raise ConvertError(f'{path} is truncated: it begins as a .pt file, its end is not there')
    if not zipped and head[:1] != PICKLE:
        raise ConvertError(
            f'{path} is not a checkpoint: must be a .pt file, a Hugging Face folder or a checkpoint'
            ' of jepa_jax'
        )
    torch = _torch(path)
    try:
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            # a pickle that is not PyTorch's; whether it holds weights is seen below
            warnings.filterwarnings('ignore', 'Detected pickle protocol', UserWarning)
            # the format before PyTorch 1.6 is no archive and cannot be mapped
            return torch.load(path, map_location='cpu', weights_only=True, mmap=zipped)
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
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: pathlib.Path, error: Exception) -> ConvertError:
    reason = (str(error).strip() or 'no more is known').splitlines()[0]
    return ConvertError(
        f'{path} cannot be read as a .pt file: damaged, truncated or something else '
        f'({type(error).__name__}: {reason})'
    )


@dataclasses.dataclass
class Content:
    """A `.pt` file taken apart."""

    nets: dict[str, dict[str, Leaf]]  # net -> arrays by the original's names without prefixes
    opt: Mapping | None  # state dict of the optimizer
    plain: dict[str, Any]  # the entries of PLAIN that are there
    ours: dict[str, Any]  # what we wrote beside them; empty in files of others
    notes: list[str]


def take_apart(path: pathlib.Path) -> Content:
    """The nets of a file and what lies beside them.

    Raises:
      ConvertError: as `load`; no net in it; an entry with tensors that nobody knows.
    """
    content = load(path)
    if not isinstance(content, Mapping) or not content:
        raise ConvertError(f'{path} is not a checkpoint: it holds a {type(content).__name__}')
    if NEWER_TARGET in content:
        raise ConvertError(f'{path} holds V-JEPA 2.1 ({NEWER_TARGET}); only 2.0 can be converted')
    nets = {
        net: _arrays(f'{path}: {entry}', content[entry])
        for entry, net in TORCH_NETS.items()
        if entry in content
    }
    notes = []
    if TORCH_PROBES in content:
        probes = content[TORCH_PROBES]
        if not isinstance(probes, list | tuple) or not probes:
            raise ConvertError(f'{path}: {TORCH_PROBES} must be a list of at least one')
        nets['probe'] = _arrays(f'{path}: {TORCH_PROBES}[0]', probes[0])
        if len(probes) > 1:
            notes.append(f'probe: the first of {len(probes)} is taken')
    if not nets:
        return Content(_bare(path, content), None, {}, {}, notes)
    if ACTION in nets.get('predictor', {}):
        nets['ac_predictor'] = nets.pop('predictor')
    for name, value in content.items():
        if name in (*TORCH_NETS, *PLAIN, TORCH_PROBES, 'opt', OURS):
            continue
        if not isinstance(value, str | int | float | np.generic | None):
            raise ConvertError(f'{path}: entry {name} ({type(value).__name__}) is not known')
        notes.append(f'entry {name} is dropped')
    opt = content.get('opt')
    if opt is not None and 'probe' in nets:
        opt, _ = None, notes.append("probe: its optimizer's state is dropped")
    plain = {name: _plain(content[name]) for name in PLAIN if name in content}
    return Content(nets, opt, plain, _ours(path, content.get(OURS, '{}')), notes)


def _ours(path: pathlib.Path, text: Any) -> dict[str, Any]:
    try:
        entry = json.loads(text)
        if isinstance(entry, dict):
            return entry
    except (TypeError, ValueError):
        pass
    raise ConvertError(f'{path}: entry {OURS} is not what jepa_jax writes there')


def _plain(value: Any) -> Any:
    """Numbers, also in dicts, as JSON holds them; a float32 becomes the float of the same value."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value.item() if hasattr(value, 'item') else value


def _bare(path: pathlib.Path, content: Mapping) -> dict[str, dict[str, Leaf]]:
    """A state dict with nothing around it."""
    arrays = _arrays(str(path), content)
    marks = {
        ACTION: 'ac_predictor',
        'patch_embed.proj.weight': 'online',
        'predictor_embed.weight': 'predictor',
        'pooler.query_tokens': 'probe',
    }
    net = next((net for name, net in marks.items() if name in arrays), None)
    if net is None:
        raise ConvertError(
            f'{path} holds no weights of V-JEPA: its first key is {next(iter(arrays))}'
        )
    return {net: arrays}


def _arrays(where: str, state: Any) -> dict[str, Leaf]:
    """Arrays by name without the prefixes of wrappers; 16 bits are widened, which loses nothing.

    Raises:
      ConvertError: it is no dict of float tensors.
    """
    torch = _torch(pathlib.Path(where))
    if not isinstance(state, Mapping) or not state:
        raise ConvertError(f'{where}: must be a dict of tensors, is a {type(state).__name__}')
    leaves: dict[str, Leaf] = {}
    for name, tensor in state.items():
        short = PREFIX.sub('', str(name))
        if not isinstance(tensor, torch.Tensor):
            raise ConvertError(f'{where}: {name} is a {type(tensor).__name__}, must be a tensor')
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ConvertError(
                f'{where}: {name} is of type {tensor.dtype}, must be float32, bfloat16 or float16'
            )
        if short in leaves:
            raise ConvertError(f'{where}: {short} is there twice, with and without a prefix')
        leaves[short] = _leaf(tensor)
    return leaves


def _leaf(tensor: Any) -> Leaf:
    def read() -> np.ndarray:
        return tensor.detach().float().numpy()

    return Leaf(tuple(tensor.shape), np.dtype('float32'), read)


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
        sizes = [len(row['params']) for row in rows]
    except (KeyError, TypeError, IndexError) as error:
        raise ConvertError(f'{where} is no state of an optimizer ({error!r})') from None
    expected = groups(forms)
    if sizes != [len(group) for group in expected]:
        raise ConvertError(
            f'{where}: groups of {sizes} parameters, must be of {[len(g) for g in expected]}; '
            '--weights-only leaves it out'
        )
    mu: dict = {net: {} for net in forms}
    nu: dict = {net: {} for net in forms}
    counts = set()
    for row, group in zip(rows, expected):
        for index, (net, name) in zip(row['params'], group):
            if index not in stored:
                continue  # no gradient ever reached it
            state, shape = stored[index], forms[net][name]
            for key, moment in (('exp_avg', mu), ('exp_avg_sq', nu)):
                if key not in state or tuple(state[key].shape) != shape:
                    form = list(state[key].shape) if key in state else 'nothing'
                    raise ConvertError(
                        f'{where}: {key} of {net} {name} is {form}, must be {list(shape)}'
                    )
                moment[net][name] = _leaf(state[key])
            counts.add(int(state['step']))
    if len(counts) != 1:
        raise ConvertError(
            f'{where}: parameters were updated {sorted(counts)} times, must be one number; '
            '--weights-only leaves the optimizer out'
        )
    first = rows[0]
    hyper = {key: _plain(first[key]) for key in ('lr', 'weight_decay', 'eps')}
    hyper['betas'] = [_plain(beta) for beta in first['betas']]
    return Moments(mu, nu, counts.pop(), hyper)


# Writing


# Arrays of the original that we compute: the tables of models with sin-cos positions


def encoder_table(config: Any) -> dict[str, np.ndarray]:
    if config.position != 'sincos':
        return {}
    grid = config.grid(config.frames, config.image_size, config.image_size)
    if config.tubelet == 1:
        grid = (0, *grid[1:])
    return {'pos_embed': sincos_table(grid, config.width, config.uniform_power)[None]}


def predictor_table(config: Any) -> dict[str, np.ndarray]:
    if config.position != 'sincos':
        return {}
    table = sincos_table(config.grid, config.width, config.uniform_power)
    return {'predictor_pos_embed': table[None]}


# options of ours -> the only value that the original has
ONLY = {
    'rope': parts.FLAVOURS['2.0'],
    'residual': False,
    'action_scale': (),
    'state_scale': (),
}


def beyond(net: str, config: Any) -> list[str]:
    """What the original would not know of a net from its arrays: it would compute another one."""
    notes = [
        f'{net}: {option} = {getattr(config, option)}, which the original does not have: it would '
        'compute something else from these weights'
        for option, value in ONLY.items()
        if getattr(config, option, value) != value
    ]
    if getattr(config, 'state_width', 1) == 0:
        notes.append(f'{net}: no states, which the original needs: it cannot load this file')
    return notes


class Scratch:
    """Tensors in an unnamed file: as many as the disk holds, without memory of their own."""

    def __init__(self, torch, folder: pathlib.Path, nbytes: int):
        self._torch = torch
        with tempfile.TemporaryFile(dir=folder) as file:  # the mapping outlives it
            file.truncate(max(nbytes, 1))
            self._bytes = np.memmap(file, np.uint8, 'r+')
        self._used = 0

    def put(self, array: np.ndarray) -> Any:
        """A tensor with the values of an array."""
        stop = self._used + array.nbytes
        place = self._bytes[self._used : stop].view(array.dtype).reshape(array.shape)
        place[...] = array
        self._used = stop
        return self._torch.from_numpy(place)


def save(content: Any, dst: pathlib.Path) -> None:
    """A `.pt` file, whole or not at all."""
    torch = _torch(dst)
    scratch.sweep(dst.parent)
    with tempfile.TemporaryDirectory(dir=dst.parent, prefix=scratch.prefix(dst)) as folder:
        path = pathlib.Path(folder) / dst.name
        torch.save(content, path)
        path.rename(dst)


def prepare(dst: pathlib.Path, nbytes: int) -> Scratch:
    """Room for the tensors of a file to be written.

    Raises:
      ConvertError: no PyTorch.
      CheckpointError: the disk has not the room for them and for the file.
    """
    torch = _torch(dst)
    dst.parent.mkdir(parents=True, exist_ok=True)
    check_room(dst.parent, 2 * nbytes)
    return Scratch(torch, dst.parent, nbytes)


def optimizer(
    scratch: Scratch,
    forms: Mapping[str, Mapping[str, tuple[int, ...]]],
    mu: Mapping[tuple[str, str], Any],
    nu: Mapping[tuple[str, str], Any],
    count: int,
    hyper: Mapping[str, Any],
) -> dict[str, Any]:
    """The state dict of the original's AdamW. (reference: vjepa2 §5.4)

    Args:
      forms: as for `groups`.
      mu, nu: tensors by (net, name); parameters without are those that got no gradient.
    """
    import torch

    names = groups(forms)
    nothing = [torch.nn.Parameter(torch.zeros(())) for _ in names]
    settings = dict(lr=hyper['lr'], betas=tuple(hyper['betas']), eps=hyper['eps'])
    rest = {'WD_exclude': True, 'weight_decay': 0}
    adam = torch.optim.AdamW(
        [
            {
                'params': [p],
                **(rest if i >= len(names) // 2 else {'weight_decay': hyper['weight_decay']}),
            }
            for i, p in enumerate(nothing)
        ],
        **settings,
    )
    rows = adam.state_dict()['param_groups']
    state, index = {}, 0
    for row, group in zip(rows, names):
        row['params'] = list(range(index, index + len(group)))
        for number, key in zip(row['params'], group):
            if key in mu:
                state[number] = {
                    'step': torch.tensor(float(count)),
                    'exp_avg': mu[key],
                    'exp_avg_sq': nu[key],
                }
        index += len(group)
    return {'state': state, 'param_groups': rows}


def fresh_scaler() -> dict[str, Any]:
    """State of a gradient scaler that has scaled nothing yet, as the original makes one."""
    return {
        'scale': 65536.0,
        'growth_factor': 2.0,
        'backoff_factor': 0.5,
        'growth_interval': 2000,
        '_growth_tracker': 0,
    }
