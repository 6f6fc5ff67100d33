"""`.pt` archives without PyTorch: what torch.load reads is read, and nothing is believed."""

import collections
import os
import pickle
import resource
import struct
import zipfile

import ml_dtypes
import numpy as np
import originals
import pytest
import torch

from jepa_jax import convert
from jepa_jax.errors import BadFile
from jepa_jax.weights import torch_pickle, torch_zip

TINY = dict(crop=64, frames=8, heads=4, predictor_heads=2)
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16, torch.float8_e4m3fn,
]  # fmt: skip


def numbers(tensor: torch.Tensor) -> np.ndarray:
    """By PyTorch; what numpy has no type for, widened."""
    odd = tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn)
    return (tensor.float() if odd else tensor).detach().numpy()


def assert_equal(ours: torch_zip.Tensor, theirs: torch.Tensor) -> None:
    result, expected = ours.read(), numbers(theirs)
    result = result.astype(expected.dtype) if result.dtype.kind == 'V' or ours.dtype in (
        'bfloat16', 'float8_e4m3fn') else result  # fmt: skip
    np.testing.assert_array_equal(result, expected, strict=True)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_types(tmp_path, dtype):
    tensor = torch.arange(-3, 21).reshape(4, 6).to(dtype)
    torch.save({'a': tensor}, tmp_path / 'a.pt')
    content = torch_zip.load(tmp_path / 'a.pt')
    assert content['a'].dtype == str(dtype).removeprefix('torch.')
    assert_equal(content['a'], torch.load(tmp_path / 'a.pt', weights_only=True)['a'])


def test_views_of_shared_storages(tmp_path):
    base = torch.arange(120.0).reshape(4, 5, 6)
    tensors = {
        'transposed': base.permute(2, 0, 1),
        'offset': base[1:, 2:, ::3],
        'row': base[2, 3],
        'last': base[3, 4, 5],
        'expanded': base[0, 0, :1].expand(7, 3, 1),
        'none': base[:0],
        'windows': base.reshape(-1).unfold(0, 5, 3),
        'own': torch.nn.Parameter(torch.ones(2, 3)),
    }
    torch.save(tensors, tmp_path / 'a.pt')
    ours, theirs = torch_zip.load(tmp_path / 'a.pt'), torch.load(tmp_path / 'a.pt')
    assert list(ours) == list(tensors)
    for name, tensor in theirs.items():
        assert_equal(ours[name], tensor)


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_containers_and_numbers(tmp_path, protocol):
    content = {
        'dict': {1: 'one', 'two': [2.5, None, True, -(2**70)]},
        'ordered': collections.OrderedDict([('b', (1, 2)), ('a', b'bytes')]),
        'scalars': [np.float32(0.1), np.int64(-7), np.bool_(True), np.array(2, '>f8')[()]],
        'size': torch.Size([2, 3]),
        'device': torch.device('cpu'),
        'state': torch.nn.Linear(1, 1).state_dict(),  # an OrderedDict with attributes
        'text': 'é' * 300,
    }
    torch.save(content, tmp_path / 'a.pt', pickle_protocol=protocol)
    ours = torch_zip.load(tmp_path / 'a.pt')
    assert not list(torch_pickle.foreign(ours))
    assert list(ours.pop('state')) == ['weight', 'bias']
    del content['state']
    assert ours.pop('size') == (2, 3) and ours.pop('device') == 'cpu'
    del content['size'], content['device']
    assert ours == content
    for one, other in zip(ours['scalars'], content['scalars']):
        assert type(one) is type(other)


def test_big_endian(tmp_path):
    """As PyTorch writes on such a machine: bytes of numbers turned, and a member that says so."""
    tensors = {'a': torch.arange(5.0), 'b': torch.arange(5).to(torch.int16)}
    torch.save(tensors, tmp_path / 'a.pt')
    with zipfile.ZipFile(tmp_path / 'a.pt') as old, zipfile.ZipFile(tmp_path / 'b.pt', 'w') as new:
        for row in old.infolist():
            data = old.read(row.filename)
            data = {'a/byteorder': b'big'}.get(row.filename, data)
            if row.filename in ('a/data/0', 'a/data/1'):
                data = np.frombuffer(data, ('f4', 'i2')[int(row.filename[-1])]).byteswap().tobytes()
            new.writestr(row.filename, data)
    ours, theirs = torch_zip.load(tmp_path / 'b.pt'), torch.load(tmp_path / 'b.pt')
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor)
        assert_equal(ours[name], tensor)


def repacked(tmp_path, *, change=lambda name, data: (name, data), **how):
    """A good file packed anew."""
    torch.save(originals.released(), tmp_path / 'a.pt')
    with zipfile.ZipFile(tmp_path / 'a.pt') as old:
        with zipfile.ZipFile(tmp_path / 'b.pt', 'w', **how) as new:
            for row in old.infolist():
                new.writestr(*change(row.filename, old.read(row.filename)))
    return tmp_path / 'b.pt'


def refused(path, *words):
    with pytest.raises(ValueError) as caught:
        convert.read(path, **TINY)
    message = str(caught.value)
    assert '\n' not in message and str(path) in message and all(w in message for w in words), (
        message
    )


def test_packed_by_others(tmp_path):
    assert convert.read(repacked(tmp_path), **TINY).trees
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        refused(repacked(tmp_path, compression=method), 'is compressed', 'zip -0')


def renamed(old, new):
    return lambda name, data: (new if name == old else name, data)


@pytest.mark.parametrize(
    'change, words',
    [
        (renamed('a/data/3', 'a/../../x'), 'leads elsewhere'),
        (renamed('a/data/3', '/a/data/3'), 'leads elsewhere'),
        (renamed('a/data/3', 'b/data/3'), 'is not in a/'),
        (renamed('a/data/3', 'a/data/x'), 'data/3 is missing'),
        (renamed('a/data.pkl', 'a/x/data.pkl'), '0 members'),
        (lambda name, data: (name, data + b'1234' * (name == 'a/data/3')), 'another number of'),
        (lambda name, data: (name, data[4:] if name == 'a/data/3' else data), 'another number of'),
        (lambda name, data: (name, b'pdp' if name == 'a/byteorder' else data), 'byteorder'),
        (lambda name, data: (name, data[:-9] if name == 'a/data.pkl' else data), 'corrupt'),
    ],
)
def test_members_that_lie(tmp_path, change, words):
    refused(repacked(tmp_path, change=change), words)


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_a_name_twice(tmp_path):
    path = repacked(tmp_path)
    with zipfile.ZipFile(path, 'a') as file:
        file.writestr('a/data/0', b'other')
    refused(path, 'twice')


def test_overlap_encryption_and_sizes(tmp_path):
    """In the list of members, field by field."""
    path = repacked(tmp_path)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        rows, start = file.infolist(), file.start_dir
    second = good.index(b'PK\x01\x02', start + 4)
    for field, form, value, words in [
        (8, '<H', 1, 'encrypted'),
        (10, '<H', 8, 'compressed'),
        (16, '<L', 1, 'header differs'),
        (20, '<L', 10**6, ''),
        (24, '<L', 2**31, ''),
        (42, '<L', rows[0].header_offset, ''),
        (42, '<L', rows[2].header_offset, ''),
        (42, '<L', 2**31, ''),
    ]:
        data = bytearray(good)
        struct.pack_into(form, data, second + field, value)
        path.write_bytes(data)
        refused(path, words)


def test_every_flipped_bit_of_a_member_is_noticed(tmp_path):
    path = tmp_path / 'a.pt'
    torch.save({'a': torch.arange(8.0), 'b': 3}, path)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        for row in file.infolist():
            head = row.header_offset
            name, more = struct.unpack_from('<2H', good, head + 26)
            start = head + 30 + name + more
            for at in {start, start + row.file_size // 2, start + row.file_size - 1}:
                data = bytearray(good)
                data[at] ^= 1 << at % 8
                path.write_bytes(data)
                with pytest.raises(BadFile, match='CRC-32'):
                    torch_zip.load(path)


def pickled(tmp_path, tensor: bytes, storage: bytes = bytes(16)):
    """An archive whose pickle has one tensor of a storage of four floats, as `tensor` says."""
    head = b'\x80\x02}X\x01\0\0\0ac' + b'torch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage'
    head += b'ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ'
    with zipfile.ZipFile(tmp_path / 'a.pt', 'w') as file:
        file.writestr('a/data.pkl', head + tensor + b'\x89}tRs.')
        file.writestr('a/data/0', storage)
    return tmp_path / 'a.pt'


def test_shapes_that_claim_more_than_there_is(tmp_path):
    def form(offset, shape, strides):
        return b''.join(pickle.dumps(v, 2)[2:-1] for v in (offset, shape, strides))

    assert torch_zip.load(pickled(tmp_path, form(1, (3,), (1,))))['a'].read().shape == (3,)
    assert torch_zip.load(pickled(tmp_path, form(0, (2, 2), (2, 1))))['a'].shape == (2, 2)
    for offset, shape, strides, words in [
        (1, (4,), (1,), 'its storage has 4'),
        (0, (2, 2), (3, 1), 'its storage has 4'),
        (-1, (2,), (1,), 'no such numbers'),
        (0, (2,), (-1,), 'no such numbers'),
        (0, (-2,), (1,), 'no such numbers'),
        (0, (2, 2), (1,), 'no such numbers'),
        (0, (1,) * 65, (1,) * 65, 'no such numbers'),
        (0, (2**62, 2**62), (0, 0), 'decoded'),
        (0, (2**40,), (0,), 'decoded'),  # 4 TiB out of 4 bytes
        (0, (2**30,), (0,), 'ratio'),
        (0, (2**25,), (0,), 'ratio'),  # 128 MiB
        (0, (10**400,), (0,), 'no such numbers'),
        (0, (True,), (1,), 'no such numbers'),
        (2**63, (0,), (1,), 'no such numbers'),
    ]:
        with pytest.raises(BadFile, match=words):
            torch_zip.load(pickled(tmp_path, form(offset, shape, strides)))


HOSTILE = {
    'names far apart': b'\x80\x02Nr\xff\xff\xff\x7f.',
    'a text of 4 GiB': b'\x80\x04\x8d' + struct.pack('<Q', 2**32) + b'x.',
    'nested': b'\x80\x02' + b']' * 50_000 + b'a' * 49_999 + b'.',
    'nested tuples as a key': b'\x80\x02}' + b')' + b'\x85' * 50_000 + b'Ns.',
    'nested tuples in a set': b'\x80\x04\x8f(' + b')' + b'\x85' * 50_000 + b'\x90.',
    'shown without end': b'\x80\x02(X\x07\0\0\0storagecx\ny\n]q\0'
    + b''.join(b'](h' + bytes([i]) + b'h' + bytes([i]) + b'eq' + bytes([i + 1]) for i in range(60))
    + b'X\x03\0\0\0cpuK\x01tQ.',
    'itself': b'\x80\x02}q\0X\x05\0\0\0modelh\0s.',
    'a function changed': b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\0\0\0ah\0sb.',
    'no mark': b'\x80\x02t.',
    'no end': b'\x80\x02}',
    'extension': b'\x80\x02\x82\x01.',
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_pickles_cost_nothing(tmp_path, name):
    with zipfile.ZipFile(tmp_path / 'a.pt', 'w') as file:
        file.writestr('a/data.pkl', HOSTILE[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / 'a.pt')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_an_entry_that_would_run_code_may_be_ignored(tmp_path):
    """It is never run, ignored or not."""
    witness = tmp_path / 'witness'

    class Hostile:
        def __reduce__(self):
            return os.system, (f'touch {witness}',)

    torch.save({**originals.released(), 'callbacks': [Hostile()]}, tmp_path / 'a.pt')
    refused(tmp_path / 'a.pt', 'would run posix.system', 'entry callbacks', '--ignore')
    weights = convert.read(tmp_path / 'a.pt', **TINY, ignore=['call*'])
    assert 'ignored: callbacks' in weights.notes and weights.params('target')
    assert not witness.exists()


def mutations(good: bytes, seed: int, count: int):
    """Bytes changed, cut out, doubled, and put to values that fields dislike."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            at, kind = int(rng.integers(len(data))), rng.integers(5)
            if kind == 0:
                data[at] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                data[at : at + 4] = rng.bytes(4)
            elif kind == 2:
                del data[at : at + int(rng.integers(1, 40))]
            elif kind == 3:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
            else:
                value = [0, 1, 2**31 - 1, 2**32 - 1][int(rng.integers(4))]
                data[at : at + 4] = value.to_bytes(4, 'little')
        yield bytes(data)


def fuzz(tmp_path, seed: int, count: int) -> int:
    """How many mutated archives were accepted; all of those hold what the good one holds."""
    path = tmp_path / 'a.pt'
    a, c = torch.arange(40.0).reshape(5, 8).T, torch.ones(3).bfloat16()
    torch.save({'a': a, 'b': {'c': c}, 'd': 2}, path)
    good, accepted = path.read_bytes(), 0
    for data in mutations(good, seed, count):
        path.write_bytes(data)
        try:
            ours = torch_zip.load(path)
            assert ours['d'] == 2 and not list(torch_pickle.foreign(ours))
            np.testing.assert_array_equal(ours['a'].read(), a.numpy(), strict=True)
            np.testing.assert_array_equal(
                ours['b']['c'].read(), np.ones(3, ml_dtypes.bfloat16), strict=True
            )
            accepted += 1
        except BadFile:
            pass
    return accepted


def fuzz_pickle(tmp_path, seed: int, count: int) -> None:
    """Mutated pickles in archives whose CRC is right: refused, or something that can do nothing."""
    torch.save(originals.released(epoch=1), tmp_path / 'a.pt')
    with zipfile.ZipFile(tmp_path / 'a.pt') as file:
        members = {name: file.read(name) for name in file.namelist()}
    for data in mutations(members['a/data.pkl'], seed, count):
        with zipfile.ZipFile(tmp_path / 'b.pt', 'w') as file:
            for name, content in members.items():
                file.writestr(name, data if name == 'a/data.pkl' else content)
        try:
            assert convert.read(tmp_path / 'b.pt', **TINY).trees
        except ValueError as error:
            assert '\n' not in str(error)


def test_fuzz(tmp_path):
    assert fuzz(tmp_path, 0, 300) > 0  # the padding between members says nothing
    fuzz_pickle(tmp_path, 1, 40)


@pytest.mark.slow
def test_fuzz_long(tmp_path):
    fuzz(tmp_path, 2, 20_000)
    fuzz_pickle(tmp_path, 3, 2_000)
