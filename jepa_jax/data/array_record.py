"""What a file of ArrayRecord claims, looked at before its library believes it.

The library unpacks a whole group of records to give one of them, and takes memory for whatever the
index at the end of the file says. All sizes stand in headers that can be read without unpacking
anything but that index. Layout: cpp/layout.proto of google/array_record, and
doc/riegeli_records_file_format.md of google/riegeli.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, NamedTuple

from jepa_jax import files
from jepa_jax.errors import BadFile

BLOCK, BLOCK_HEADER = 2**16, 24  # bytes: a header of its own begins each block of a file
CHUNK_HEADER = struct.Struct('<8xQ8xQQ')  # bytes of data, kind and records, bytes unpacked
SIMPLE = ord('r')  # the kind of a chunk; transposed ones say nothing of what they unpack to
MAGIC = 0x71930E704FDAE05E
CODECS = {ord('z'): 'zstd', ord('b'): 'brotli', ord('s'): 'snappy'}
ENTRY, ABOUT = 64, 2**16  # more bytes than a line of the index, or its first one, needs
OBJECTS = 32  # bytes in memory for one of a record of many tiny values, once tfds takes it apart


class Chunk(NamedTuple):
    """A group of records as its header describes it."""

    at: int  # byte of the file
    nbytes: int
    records: int
    unpacked: int  # bytes


def look(path: str | os.PathLike) -> int:
    """Records of a file whose index and headers agree with each other and stay within the limits.

    Raises BadFile: decoded, ratio (a group unpacks to too much), corrupt, truncated, unsupported.
    """
    size = files.size(path)
    if size < 2 * BLOCK or size % BLOCK:
        raise BadFile(path, 'truncated', f'{size:,} bytes: ArrayRecord has blocks of {BLOCK:,}')
    deadline = files.Deadline(path)
    with files.reading(path):
        file = open(path, 'rb', buffering=0)
    with file:
        postscript = _fields(path, _unpacked(file, _chunk(file, size - BLOCK, size))[0])
        if postscript.get(2) != MAGIC:
            raise BadFile(path, 'corrupt', 'no index of ArrayRecord at its end')
        end = _number(path, postscript, 1)
        about, *lines = _unpacked(file, _chunk(file, end, size - BLOCK))
        about = _fields(path, _fields(path, about).get(1))
        if _number(path, about, 2) != len(lines):
            raise BadFile(path, 'corrupt', f'its index has {len(lines):,} groups and says others')
        count, group, before = 0, 0, 0
        for number, line in enumerate(lines):
            entry = _fields(path, line)
            chunk = _chunk(file, _number(path, entry, 1), end)
            files.bound_decoded(path, OBJECTS * (chunk.unpacked + chunk.records), size)
            group = group or chunk.records
            last = number == len(lines) - 1
            if chunk.records != entry.get(3) or not (
                chunk.records == group or last and 0 < chunk.records < group
            ):
                raise BadFile(path, 'corrupt', f'group {number}: not the records its index says')
            if chunk.at < before:
                raise BadFile(path, 'corrupt', f'group {number}: begins within the one before')
            count, before = count + chunk.records, chunk.at + CHUNK_HEADER.size + chunk.nbytes
            deadline.check()
        if _number(path, about, 3) != count:
            raise BadFile(path, 'corrupt', f'its groups hold {count:,} records, its index others')
    return count


def _chunk(file: BinaryIO, at: int, end: int) -> Chunk:
    """The header at a byte of a file, of a chunk that ends before another. Raises BadFile."""
    if 0 < at % BLOCK < BLOCK_HEADER or at + CHUNK_HEADER.size > end:
        raise BadFile(file.name, 'corrupt', f'a group at byte {at:,}, where none can be')
    nbytes, word, unpacked = CHUNK_HEADER.unpack(_read(file, at, CHUNK_HEADER.size))
    if at + CHUNK_HEADER.size + nbytes > end:
        raise BadFile(file.name, 'corrupt', f'a group of {nbytes:,} bytes at byte {at:,}')
    if (kind := word & 255) != SIMPLE:
        what = f'groups of kind {chr(kind)!r}: allowed are plain ones, as tfds writes them'
        raise BadFile(file.name, 'unsupported', what)
    return Chunk(at, nbytes, word >> 8, unpacked)


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    """So many bytes from a place on, without the headers of blocks. Raises BadFile."""
    pieces = []
    while count:
        at += BLOCK_HEADER if at % BLOCK == 0 else 0
        with files.reading(file.name):
            file.seek(at)
            pieces.append(file.read(min(count, BLOCK - at % BLOCK)))
        if not pieces[-1]:
            raise BadFile(file.name, 'truncated')
        at, count = at + len(pieces[-1]), count - len(pieces[-1])
    return b''.join(pieces)


def _unpacked(file: BinaryIO, chunk: Chunk) -> list[bytes]:
    """The records of the index or the postscript: one at least. Raises BadFile."""
    path, size = file.name, os.fstat(file.fileno()).st_size
    # a line for each group, and no group is smaller than its header
    if not 0 < chunk.records <= 3 + size // CHUNK_HEADER.size:
        raise BadFile(path, 'corrupt', f'an index of {chunk.records:,} lines in {size:,} bytes')
    most = ABOUT + ENTRY * chunk.records
    if chunk.unpacked > most:
        raise BadFile(path, 'index', f'{chunk.records:,} lines of {chunk.unpacked:,} bytes')
    data = _read(file, chunk.at, CHUNK_HEADER.size + chunk.nbytes)[CHUNK_HEADER.size :]
    codec, (length, at) = data[:1], _varint(path, data, 1)
    sizes = _plain(path, codec, data[at : at + length], 10 * chunk.records)
    values = _plain(path, codec, data[at + length :], most)
    records, begin, at = [], 0, 0
    for _ in range(chunk.records):
        length, at = _varint(path, sizes, at)
        records.append(values[begin : begin + length])
        begin += length
    if begin != len(values) or begin != chunk.unpacked or at != len(sizes):
        raise BadFile(path, 'corrupt', 'the lines of its index have other sizes than it says')
    return records


def _plain(path: str, codec: bytes, data: bytes, most: int) -> bytes:
    """Bytes as they were before they were packed: at most so many. Raises BadFile."""
    if codec != b'\0':
        if (name := CODECS.get(codec[0] if codec else -1)) is None:
            raise BadFile(path, 'unsupported', f'packed by {codec!r}')
        length, at = _varint(path, data, 0)
        if length > most:
            raise BadFile(path, 'index', f'{length:,} bytes of its index')
        import pyarrow

        with files.reading(path):
            data = pyarrow.decompress(data[at:], length, name, asbytes=True)
    return data


def _varint(path: str | os.PathLike, data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place behind it. Raises BadFile."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128 and value < 2**64:
            return value, at + i + 1
    raise BadFile(path, 'corrupt', 'its index holds no numbers')


def _fields(path: str | os.PathLike, message: object) -> dict[int, int | bytes]:
    """Fields of a message of protobuf by number, each given once. Raises BadFile."""
    values: dict[int, int | bytes] = {}
    at = 0 if isinstance(message, bytes) else None
    while at is not None and at < len(message):
        tag, at = _varint(path, message, at)
        number, kind = tag >> 3, tag & 7
        value, at = _varint(path, message, at)
        if kind == 2:
            value, at = message[at : at + value], at + value
        if kind not in (0, 2) or number in values or at > len(message):
            at = None
        values[number] = value
    if at is None:
        raise BadFile(path, 'corrupt', 'a line of its index is none')
    return values


def _number(path: str | os.PathLike, fields: dict[int, int | bytes], key: int) -> int:
    """Raises BadFile: absent, or no number."""
    if not isinstance(value := fields.get(key), int):
        raise BadFile(path, 'corrupt', 'a line of its index lacks a number')
    return value
