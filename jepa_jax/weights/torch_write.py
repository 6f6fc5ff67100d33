"""`.pt` files written without PyTorch, a tensor at a time: an archive of numbers, and the pickle
that names them, as `torch.load(..., weights_only=True)` reads both."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jepa_jax import scratch
from jepa_jax.checkpoint import check_room
from jepa_jax.weights import tables
from jepa_jax.weights.torch_files import groups

NAME = 'archive'  # of the folder in the archive, as PyTorch calls it where it has no other
ALIGNED = 64  # bytes: where PyTorch begins its tensors, so that they can be mapped
ZIP64 = 2**31 - 1  # bytes of a member above which sizes need more than 32 bits
HEADER, ZIP64_EXTRA = 30, 20  # bytes of a member's header without its name


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor that is in the archive: the name of its member, and its shape."""

    key: str
    shape: tuple[int, ...]


class Writer:
    """An archive that is being written."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive, self._count = archive, 0

    def put(self, array: np.ndarray) -> Stored:
        """Writes numbers, as float32; what it returns stands for them in the content."""
        array = tables.contiguous(np.asarray(array, '<f4'))
        key = str(self._count)
        self._count += 1
        info = zipfile.ZipInfo(f'{NAME}/data/{key}')
        large = array.nbytes > ZIP64
        start = self._archive.fp.tell() + HEADER + len(info.filename) + large * ZIP64_EXTRA
        info.extra = b'FB' + struct.pack('<H', pad := -(start + 4) % ALIGNED) + b'Z' * pad
        with self._archive.open(info, 'w', force_zip64=large) as member:
            member.write(array.reshape(-1).view(np.uint8).data)
        return Stored(key, array.shape)

    def finish(self, content: Any) -> None:
        """Writes what the file holds: dicts, lists, tuples, numbers, text, None and `Stored`."""
        pickle = b'\x80\x02' + b''.join(_pickled(content)) + b'.'
        for name, data in (('data.pkl', pickle), ('byteorder', b'little'), ('version', b'3\n')):
            self._archive.writestr(zipfile.ZipInfo(f'{NAME}/{name}'), data)


@contextlib.contextmanager
def writing(dst: pathlib.Path, nbytes: int) -> Iterator[Writer]:
    """A file that is there at the end, whole or not at all.

    Raises:
      CheckpointError: the disk has not the room for tensors of so many bytes.
    """
    dst.parent.mkdir(parents=True, exist_ok=True)
    check_room(dst.parent, nbytes)
    scratch.sweep(dst.parent)
    with tempfile.TemporaryDirectory(dir=dst.parent, prefix=scratch.prefix(dst)) as folder:
        path = pathlib.Path(folder) / dst.name
        with zipfile.ZipFile(path, 'w') as archive:
            yield Writer(archive)
        path.rename(dst)


def _pickled(value: Any) -> Iterator[bytes]:
    """The opcodes (protocol 2) that make a value."""
    match value:
        case None | bool():
            yield {None: b'N', True: b'\x88', False: b'\x89'}[value]
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
            yield b'\x8a' + bytes([len(data)]) + data
        case float():
            yield b'G' + struct.pack('>d', value)
        case str():
            data = value.encode()
            yield b'X' + struct.pack('<L', len(data)) + data
        case Mapping():
            yield b'}('
            for key, item in value.items():
                yield from (*_pickled(key), *_pickled(item))
            yield b'u'
        case list() | tuple():
            yield b'](' if isinstance(value, list) else b'('
            for item in value:
                yield from _pickled(item)
            yield b'e' if isinstance(value, list) else b't'
        case Stored(key, shape):
            strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
            yield b'ctorch._utils\n_rebuild_tensor_v2\n(('
            yield from (*_pickled('storage'), b'ctorch\nFloatStorage\n', *_pickled(key))
            yield from (*_pickled('cpu'), *_pickled(math.prod(shape)), b'tQ')
            yield from (*_pickled(0), *_pickled(shape), *_pickled(strides), *_pickled(False))
            yield b'ccollections\nOrderedDict\n)RtR'
        case _:
            raise TypeError(f'{type(value).__name__} has no place in a .pt file')


def optimizer(
    writer: Writer,
    forms: Mapping[str, Mapping[str, tuple[int, ...]]],
    mu: Mapping[tuple[str, str], Stored],
    nu: Mapping[tuple[str, str], Stored],
    count: int,
    hyper: Mapping[str, Any],
) -> dict[str, Any]:
    """The state dict of the original's AdamW. (reference: vjepa2 §5.4)

    Args:
      forms: as for `groups`.
      mu, nu: tensors by (net, name); parameters without are those that got no gradient.
    """
    names = groups(forms)
    rows, state, index = [], {}, 0
    for i, group in enumerate(names):
        decay = {'weight_decay': hyper['weight_decay']}
        if i >= len(names) // 2:
            decay = {'WD_exclude': True, 'weight_decay': 0}
        settings = {'lr': hyper['lr'], 'betas': tuple(hyper['betas']), 'eps': hyper['eps']}
        numbers = list(range(index, index + len(group)))
        rows.append({**settings, **decay, **UNUSED, 'params': numbers})
        for number, key in zip(numbers, group):
            if key in mu:
                step = writer.put(np.float32(count))
                state[number] = {'step': step, 'exp_avg': mu[key], 'exp_avg_sq': nu[key]}
        index += len(group)
    return {'state': state, 'param_groups': rows}


# what PyTorch's AdamW keeps of options that the original leaves as they are
UNUSED = {
    'amsgrad': False,
    'foreach': None,
    'maximize': False,
    'capturable': False,
    'differentiable': False,
    'fused': None,
    'decoupled_weight_decay': True,
}


def fresh_scaler() -> dict[str, Any]:
    """State of a gradient scaler that has scaled nothing yet, as the original makes one."""
    return {
        'scale': 65536.0,
        'growth_factor': 2.0,
        'backoff_factor': 0.5,
        'growth_interval': 2000,
        '_growth_tracker': 0,
    }
