"""Files of ArrayRecord that claim what they do not hold, or unpack to gigabytes: refused by their
headers, before the library takes memory for what they say."""

import dataclasses
import random
import shutil
import struct

import numpy as np
import pytest
from array_record.python import array_record_module
from test_robot_hostile import mutated, write_rlds

from jepa_jax.data import array_record, robot
from jepa_jax.errors import BadFile

FIRST, SECOND = 64, 148  # bytes where the groups of `plain` begin, and its index
INDEX = 295


def write(path, records, options: str) -> str:
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return str(path)


@pytest.fixture(scope='module')
def plain(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp('plain') / 'a'
    write(path, [bytes([65 + i]) * 20 for i in range(5)], 'group_size:2,uncompressed')
    return path.read_bytes()


@pytest.mark.parametrize('packed', ['zstd', 'uncompressed', 'brotli', 'snappy'])
@pytest.mark.parametrize(
    'count, group, nbytes', [(0, 1, 1), (1, 1, 10), (5, 2, 70_000), (3000, 1, 50), (3, 1, 65_448)]
)
def test_good_files_hold_what_was_written(packed, count, group, nbytes, tmp_path):
    rng = np.random.default_rng(0)
    path = write(tmp_path / 'a', map(rng.bytes, [nbytes] * count), f'group_size:{group},{packed}')
    assert array_record.look(path) == count


@pytest.mark.parametrize(
    'at, what, reason',
    [
        (FIRST + 32, struct.pack('<Q', 2**50), 'decoded'),  # unpacks to a petabyte
        (FIRST + 24, struct.pack('<Q', 2**48 | ord('r')), 'decoded'),  # that many empty records
        (FIRST + 24, struct.pack('<Q', 3 << 8 | ord('r')), 'corrupt'),  # another number of them
        (FIRST + 24, b't', 'unsupported'),
        (FIRST + 8, struct.pack('<Q', 2**40), 'corrupt'),  # more bytes than the file
        (INDEX + 24, struct.pack('<Q', 2**48 | ord('r')), 'corrupt'),
        (INDEX + 32, struct.pack('<Q', 2**40), 'index'),
        ((b'\x08\x94\x01', 0), b'\x08\xc0\x00', 'corrupt'),  # the second group lies on the first
        ((b'\x08\x94\x01', 0), b'\x08\x80\x00', 'unsupported'),  # where the file's own begins
        ((b'\x08\x94\x01', 0), b'\x08\xff\x7f', 'corrupt'),  # or behind the index
        ((b'\x08\x94\x01', 0), b'\x0a\x94\x01', 'corrupt'),  # a text of more than there is
        ((b'\x18\x02', 0), b'\x18\x00', 'corrupt'),  # groups of no record: a division by zero
        ((b'\x10\x03\x18\x05', 1), b'\x7f', 'corrupt'),  # so many groups
        ((b'\x10\x03\x18\x05', 3), b'\x06', 'corrupt'),  # so many records
        ((b'\x08\xa7\x02\x10', 1), b'\xff\x7f', 'unsupported'),  # the index elsewhere
        ((b'\x08\xa7\x02\x10', 4), b'\0', 'corrupt'),  # no postscript of theirs
    ],
)  # fmt: skip
def test_claims_are_refused_by_their_headers(plain, tmp_path, at, what, reason):
    if isinstance(at, tuple):
        assert (start := plain.find(at[0])) > 0
        at = start + at[1]
    (tmp_path / 'a').write_bytes(plain[:at] + what + plain[at + len(what) :])
    with pytest.raises(BadFile) as error:
        array_record.look(tmp_path / 'a')
    assert error.value.reason == reason and str(tmp_path / 'a') in str(error.value)


def test_any_bytes_are_a_file_or_a_bad_one(plain, tmp_path):
    path, rng = tmp_path / 'a', random.Random(0)
    write(path, [bytes(100)] * 9, 'group_size:4')
    for content in (plain, path.read_bytes()):
        head, tail = content[:600], content[-(2**16) :][:200]
        for _ in range(150):
            pieces = mutated(head, rng)[:600].ljust(600, b'\0'), content[600 : -(2**16)]
            path.write_bytes(b''.join(pieces) + mutated(tail, rng)[:200].ljust(2**16, b'\0'))
            try:
                assert array_record.look(path) in range(10)
            except BadFile as error:
                assert len(str(error).splitlines()) == 1
    path.write_bytes(plain[: -(2**16)])
    with pytest.raises(BadFile, match='truncated'):
        array_record.look(path)


def test_a_group_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path, monkeypatch):
    data = write_rlds(tmp_path)
    shard = next((tmp_path / 'arm').rglob('*array_record*'))
    shutil.copy(shard, tmp_path / 'good')
    write(shard, [bytes(17 * 2**20)] * 2, 'group_size:1')  # of 131 kB
    with monkeypatch.context() as patch:
        patch.setattr(array_record_module, 'ArrayRecordReader', None)  # is not asked
        with pytest.raises(BadFile, match=f'{shard}: ratio: 131,072 bytes that unpack to'):
            robot.open_recordings(data).episode(1)
    shutil.copy(tmp_path / 'good', shard)
    assert len(robot.open_recordings(data).episode(1).states) in (25, 30)
    part = robot.open_recordings(dataclasses.replace(data, path=f'{data.path}:train[1:]'))
    assert len(part) == 1 and len(part.episode(0).states) in (25, 30)
