"""The zip archive of a `.pt` file, read without PyTorch.

    content = load(path)          # dicts, lists, numbers, and `Tensor`s that are on disk still

Before anything of it is believed, the archive's lists are compared with each other and the CRC-32
of every member is computed, members in parallel.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np

from jepa_jax import files
from jepa_jax.errors import BadFile
from jepa_jax.weights import torch_pickle

TYPES = {
    'float64': np.float64,
    'float32': np.float32,
    'float16': np.float16,
    'bfloat16': ml_dtypes.bfloat16,
    'int64': np.int64,
    'int32': np.int32,
    'int16': np.int16,
    'int8': np.int8,
    'uint8': np.uint8,
    'bool': np.bool_,
    'complex64': np.complex64,
    'complex128': np.complex128,
    'uint16': np.uint16,
    'uint32': np.uint32,
    'uint64': np.uint64,
    'float8_e4m3fn': ml_dtypes.float8_e4m3fn,
    'float8_e5m2': ml_dtypes.float8_e5m2,
}
STORAGES = {
    f'torch.{name}Storage': dtype
    for name, dtype in {
        'Double': 'float64',
        'Float': 'float32',
        'Half': 'float16',
        'BFloat16': 'bfloat16',
        'Long': 'int64',
        'Int': 'int32',
        'Short': 'int16',
        'Char': 'int8',
        'Byte': 'uint8',
        'Bool': 'bool',
        'ComplexFloat': 'complex64',
        'ComplexDouble': 'complex128',
    }.items()
} | {'torch.storage.UntypedStorage': 'uint8'}
LOCAL, DESCRIPTOR = struct.Struct('<4s5H3L2H'), struct.Struct('<4sL')
LOCAL_MAGIC, DESCRIPTOR_MAGIC = b'PK\x03\x04', b'PK\x07\x08'
LATER, ENCRYPTED, UTF8 = 0x8, 0x1, 0x800  # flags: sizes follow the data; ...; the name's encoding
AXES = 32
CHUNK = 2**23  # bytes


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the bytes of a member are in the file."""

    start: int
    nbytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """A member that holds numbers."""

    place: Place
    dtype: str  # a key of TYPES
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor that is on disk still."""

    path: pathlib.Path
    start: int  # of its first number in the file
    dtype: str  # a key of TYPES
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers
    order: str  # of bytes: < | >

    def read(self) -> np.ndarray:
        """Its numbers, contiguous."""
        kind = np.dtype(TYPES[self.dtype])
        if not math.prod(self.shape):
            return np.empty(self.shape, kind)
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides))
        with files.reading(self.path):
            flat = np.fromfile(self.path, np.uint8, span * kind.itemsize, offset=self.start)
        if flat.size != span * kind.itemsize:
            raise BadFile(self.path, 'truncated', 'it has become shorter while it was read')
        flat = flat.view(kind)
        if self.order == '>' and kind.itemsize > 1:
            # complex numbers, which this is wrong for, are used nowhere
            bits = f'u{kind.itemsize}' if kind.itemsize <= 8 else 'u8'
            flat = flat.view(bits).byteswap().view(kind)
        strides = [step * kind.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        return np.ascontiguousarray(view).reshape(self.shape)


def load(path: pathlib.Path) -> Any:
    """What the archive holds.

    Raises:
      BadFile: an archive that is damaged, compressed, encrypted, or lies about its members; or a
        pickle that is damaged or too large.
    """
    places = _members(path)
    pickles = [name for name in places if name.split('/')[1:] == ['data.pkl']]
    if len(pickles) != 1:
        raise BadFile(path, 'corrupt', f'{len(pickles)} members NAME/data.pkl, must be one')
    prefix = pickles[0].removesuffix('data.pkl')
    if strange := [name for name in places if not name.startswith(prefix)]:
        raise BadFile(path, 'corrupt', f'member {_shown(strange[0])} is not in {_shown(prefix)}')
    ends = _bytes(path, places.get(prefix + 'byteorder', Place(0, 0)))
    if ends not in (b'', b'little', b'big'):
        raise BadFile(path, 'corrupt', f'byteorder {ends[:20]!r}: must be little or big')
    order = '>' if ends == b'big' else '<'
    whole, claimed = files.size(path), 0

    def storage(kind: str, key: str, count: int) -> Storage | torch_pickle.Foreign:
        if kind not in STORAGES:
            return torch_pickle.Foreign(f'it has a {_shown(kind)}')
        place, name = places.get(f'{prefix}data/{key}'), STORAGES[kind]
        if place is None:
            raise BadFile(path, 'corrupt', f'member data/{_shown(key)} is missing')
        if count * np.dtype(TYPES[name]).itemsize != place.nbytes:
            raise BadFile(
                path, 'corrupt', f'member data/{_shown(key)} has {place.nbytes:,} bytes, which is '
                f'another number of {name} than the pickle says',
            )  # fmt: skip
        return Storage(place, name, count)

    def tensor(held: Any, offset: int, shape: Any, strides: Any, typed: str) -> Any:
        nonlocal claimed
        if isinstance(held, torch_pickle.Foreign):
            return held
        dtype = typed.removeprefix('torch.') or held.dtype
        if dtype not in TYPES:
            return torch_pickle.Foreign(f'it has a tensor of type {_shown(dtype)}')
        kind = np.dtype(TYPES[dtype])
        count, rest = divmod(held.place.nbytes, kind.itemsize)
        if len(shape) != len(strides) or len(shape) > AXES or not all(
            type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *strides)
        ):  # fmt: skip
            raise BadFile(path, 'corrupt', 'a tensor whose shape and strides are no such numbers')
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
        elements = math.prod(shape)
        if rest or (elements and last >= count):
            form = _shown(f'{list(shape)} from {offset} in steps {list(strides)}')
            raise BadFile(path, 'corrupt', f'a tensor {form}: its storage has {count:,} numbers')
        claimed += elements * kind.itemsize
        files.bound_decoded(path, claimed, whole, files.FREE_WEIGHTS)
        start = held.place.start + offset * kind.itemsize
        return Tensor(path, start, dtype, tuple(shape), tuple(strides), order)

    return torch_pickle.run(path, _bytes(path, places[pickles[0]]), storage, tensor)


def _members(path: pathlib.Path) -> dict[str, Place]:
    """The members by name, after every check of the archive.

    Raises BadFile.
    """
    whole = files.size(path)
    with files.reading(path), path.open('rb') as file, zipfile.ZipFile(file) as archive:
        rows = sorted(archive.infolist(), key=lambda row: row.header_offset)
        end = archive.start_dir
    places: dict[str, Place] = {}
    with path.open('rb') as file:
        edge = 0
        for row in rows:
            name = row.orig_filename
            where = f'member {_shown(name)}'
            if row.flag_bits & ENCRYPTED:
                raise BadFile(path, 'corrupt', f'{where} is encrypted')
            if row.compress_type != zipfile.ZIP_STORED:
                raise BadFile(
                    path, 'corrupt', f'{where} is compressed, which PyTorch never does: unpack the '
                    'archive and pack it with `zip -0`',
                )  # fmt: skip
            if name in places or name.startswith('/') or '..' in name.split('/') or '\0' in name:
                raise BadFile(path, 'corrupt', f'{where}: twice, or a path that leads elsewhere')
            if not 0 <= row.header_offset < whole:
                raise BadFile(path, 'truncated', f'{where} would begin beyond the end')
            start = _local(path, file, row, where)
            if row.file_size != row.compress_size or row.header_offset < edge:
                raise BadFile(path, 'corrupt', f'{where}: its size is not what is there')
            edge = start + row.file_size
            if edge > min(end, whole):
                raise BadFile(path, 'truncated', f'{where} reaches beyond the end')
            if not name.endswith('/'):
                places[name] = Place(start, row.file_size)
    sums = {row.orig_filename: row.CRC for row in rows}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name, crc in zip(places, pool.map(lambda p: _crc(path, p), places.values())):
            if crc != sums[name]:
                raise BadFile(path, 'corrupt', f'member {_shown(name)} differs from its CRC-32')
    return places


def _local(path: pathlib.Path, file: Any, row: zipfile.ZipInfo, where: str) -> int:
    """Where a member's bytes start, once its own header agrees with the archive's list."""
    file.seek(row.header_offset)
    head = file.read(LOCAL.size).ljust(LOCAL.size, b'\0')
    magic, _, flags, method, clock, date, crc, packed, size, name, more = LOCAL.unpack(head)
    encoded = row.orig_filename.encode('utf-8' if flags & UTF8 else 'cp437', 'replace')
    year, month, day, hour, minute, second = row.date_time
    date_here = (year - 1980) << 9 | month << 5 | day
    clock_here = hour << 11 | minute << 5 | second // 2
    pairs = [
        (magic, LOCAL_MAGIC),
        (flags, row.flag_bits),
        (method, row.compress_type),
        (date, date_here),
        (clock, clock_here),
        (file.read(name), encoded),
    ]
    later = flags & LATER
    pairs += [] if later and not crc else [(crc, row.CRC)]
    for number in (packed, size):
        pairs += [] if later and not number or number == 0xFFFFFFFF else [(number, row.file_size)]
    start = row.header_offset + LOCAL.size + name + more
    if later:
        file.seek(start + row.file_size)
        magic, crc = DESCRIPTOR.unpack(file.read(DESCRIPTOR.size).ljust(DESCRIPTOR.size, b'\0'))
        pairs += [(magic, DESCRIPTOR_MAGIC), (crc, row.CRC)]
    if any(here != there for here, there in pairs):
        raise BadFile(path, 'corrupt', f'{where}: its header differs from the list of members')
    return start


def _crc(path: pathlib.Path, place: Place) -> int:
    crc, left = 0, place.nbytes
    with path.open('rb', buffering=0) as file:
        file.seek(place.start)
        while left and (chunk := file.read(min(CHUNK, left))):
            crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    return crc


def _bytes(path: pathlib.Path, place: Place) -> bytes:
    with path.open('rb') as file:
        file.seek(place.start)
        return file.read(place.nbytes)


def _shown(text: str) -> str:
    """A word of the file's, fit to be printed."""
    return files.one_line(ValueError(text), 100)
