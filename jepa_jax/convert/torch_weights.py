"""The original's files: `.pt`, read without running what is in them, a tensor at a time."""

from __future__ import annotations

import contextlib
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jepa_jax.convert import tables
from jepa_jax.convert.tables import ConvertError

ZIP, PICKLE = b'PK\x03\x04', b'\x80'
INSTALL = "needs PyTorch: pip install 'jepa_jax[torch]'"


def _torch(path: pathlib.Path):
    try:
        import torch
    except ModuleNotFoundError:
        raise ConvertError(f'{path}: a .pt file {INSTALL}') from None
    return torch


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
        with torch.serialization.safe_globals(_allowed()):
            # the format before PyTorch 1.6 is no archive and cannot be mapped
            return torch.load(path, map_location='cpu', weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if found := re.search(r'GLOBAL ([\w.]+)', str(error)):
            raise ConvertError(
                f'{path} is refused: loading it would run {found[1]}, and weights run nothing'
            ) from None
        raise _unreadable(path, error) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: pathlib.Path, error: Exception) -> ConvertError:
    reason = re.split(r'[\n.]', str(error).strip())[0]
    return ConvertError(
        f'{path} cannot be read as a .pt file: damaged, truncated or something else '
        f'({type(error).__name__}: {reason})'
    )


ACTION = 'action_encoder.weight'  # only the action-conditioned predictor has it
PREFIX = re.compile(r'^(module\.|backbone\.)+')


def state_dict(where: str, state: Any) -> dict[str, Any]:
    """Tensors by name without the prefixes of wrappers.

    Raises:
      ConvertError: it is no dict of float tensors.
    """
    torch = _torch(pathlib.Path(where))
    if not isinstance(state, Mapping) or not state:
        raise ConvertError(f'{where}: must be a dict of tensors, found {type(state).__name__}')
    found: dict[str, Any] = {}
    for name, tensor in state.items():
        short = PREFIX.sub('', str(name))
        if not isinstance(tensor, torch.Tensor):
            raise ConvertError(f'{where}: {name} is a {type(tensor).__name__}, must be a tensor')
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ConvertError(
                f'{where}: {name} is of type {tensor.dtype}, must be float32, bfloat16 or float16'
            )
        if short in found:
            raise ConvertError(f'{where}: {short} is there twice, with and without a prefix')
        found[short] = tensor
    return found


def fetch(tensor: Any) -> np.ndarray:
    """A tensor as float32; one of 16 bits is widened, which loses nothing."""
    with contextlib.suppress(AttributeError):
        tensor = tensor.detach()
    return tensor.float().numpy()


def parts(path: str, content: Any) -> dict[str, dict[str, Any]]:
    """The nets of a file by our names of them: encoder, target, predictor, probe.

    Raises:
      ConvertError: none is there.
    """
    if not isinstance(content, Mapping):
        raise ConvertError(f'{path} is not a checkpoint: it holds a {type(content).__name__}')
    if 'ema_encoder' in content:
        raise ConvertError(f'{path} holds V-JEPA 2.1 (ema_encoder); only 2.0 can be converted')
    found = {
        ours: state_dict(f'{path}: {name}', content[name])
        for name, ours in TOP.items()
        if name in content
    }
    if 'classifiers' in content:
        heads = content['classifiers']
        if not isinstance(heads, list) or not heads:
            raise ConvertError(f'{path}: classifiers must be a list of at least one')
        found['probe'] = state_dict(f'{path}: classifiers[0]', heads[0])
    if ACTION in found.get('predictor', {}):
        found['ac_predictor'] = found.pop('predictor')
    if not found:  # a bare state dict
        state = state_dict(path, content)
        marks = {ACTION: 'ac_predictor'}
        marks |= {'patch_embed.proj.weight': 'encoder', 'predictor_embed.weight': 'predictor'}
        marks |= {'pooler.query_tokens': 'probe'}
        part = next((part for name, part in marks.items() if name in state), None)
        if part is None:
            raise ConvertError(
                f'{path} holds no known weights: its first key is {next(iter(state))}'
            )
        found[part] = state
    return found


ROWS = {
    'predictor': tables.PREDICTOR,
    'ac_predictor': tables.AC_PREDICTOR,
    'probe': tables.PROBE,
}
TOP = {'encoder': 'encoder', 'target_encoder': 'target', 'predictor': 'predictor'}


def table(part: str, config: Any):
    """The rows of a part, and the sizes of axes that its patterns do not tell."""
    if part in ROWS:
        return ROWS[part], {}
    rules = tables.ENCODER if config.tubelet > 1 else tables.IMAGE_ENCODER
    return rules, {'c': 3, 't': config.tubelet, 'y': config.patch, 'x': config.patch}
