"""Growing .npz files as numpy reads them."""

import gc
import sys
import zipfile

import numpy as np
import pytest

from jepa_jax import files
from jepa_jax.data import npz
from jepa_jax.data.npz import Rows
from jepa_jax.data.workers import side_by_side
from jepa_jax.errors import BadFile


def test_many_threads_read(tmp_path):
    """Up to Python 3.11.7 two threads in `ast` at once raise SystemError. What lets the other one
    in is a callback of the garbage collector, such as JAX's."""
    np.savez(tmp_path / 'x.npz', states=np.arange(21.0).reshape(3, 7), cube=np.ones(3))
    np.save(tmp_path / 'x.npy', np.arange(5))
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()

    def spend(phase, info):
        sum(range(300))

    def read(number):
        for _ in range(60):
            arrays = npz.load_all(tmp_path / 'x.npz')
            assert arrays['states'][2, 6] == 20 and arrays['cube'].shape == (3,)
            assert npz.load(tmp_path / 'x.npy', mmap_mode='r')[4] == 4

    gc.callbacks.append(spend)
    sys.setswitchinterval(1e-6)
    gc.set_threshold(1)
    try:
        side_by_side(read, [(i,) for i in range(4)], threads=4)
    finally:
        gc.callbacks.remove(spend)
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)


def test_rows(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3, 2)).astype(np.float32), np.arange(5)
    rows = Rows(tmp_path / 'x.npz')
    for i in range(5):
        rows.add(a=a[i], b=b[i])
        if i == 2:  # what broke off is taken back, and written again
            rows.cut(1)
            rows.add(a=a[1], b=b[1])
            rows.add(a=a[2], b=b[2])
    assert not (tmp_path / 'x.npz').exists()
    assert rows.npz(names=np.array(['p', 'q'])) == {'a': (5, 3, 2), 'b': (5,)}
    with np.load(tmp_path / 'x.npz') as arrays:
        np.testing.assert_array_equal(arrays['a'], a)
        np.testing.assert_array_equal(arrays['b'], b)
        assert arrays['names'].tolist() == ['p', 'q'] and arrays['a'].dtype == np.float32
    assert [p.name for p in tmp_path.iterdir()] == ['x.npz']


def test_rows_of_another_shape_and_giving_up(tmp_path):
    rows = Rows(tmp_path / 'x.npz')
    rows.add(a=np.zeros(3))
    with pytest.raises(ValueError, match='x.npz: a row of'):
        rows.add(a=np.zeros(4))
    rows.drop()
    assert not list(tmp_path.iterdir())


def npy(shape, descr='|u1', fortran=False, values=b'', version=(1, 0)):
    head = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    length = len(head).to_bytes(2 if version[0] == 1 else 4, 'little')
    return b'\x93NUMPY' + bytes(version) + length + head + values


BAD = {
    'claims': (npy((2**40, 8, 8, 3), values=bytes(99)), 'truncated'),
    'one too few': (npy((2, 4, 4, 3), values=bytes(95)), 'truncated'),
    'negative': (npy((-1, 4, 4, 3), values=bytes(99)), 'not_array'),
    'overflow': (npy((2**62, 2**62), values=bytes(99)), 'truncated'),
    'nothing wide': (npy((2**60,), '|S0'), 'not_array'),
    'objects': (npy((1,), '|O', values=b'cos\nsystem\n(S"true"\ntR.'), 'not_array'),
    'deep': (npy('(' * 5000 + ')' * 5000), 'not_array'),
    'long': (npy((1,) * 9000, values=b'0'), 'not_array'),
    'version': (npy((1,), values=b'0', version=(9, 0)), 'not_array'),
    'code': (npy("__import__('os').system('true')"), 'not_array'),
    'empty': (b'', 'empty'),
}


@pytest.mark.parametrize('name', BAD)
def test_headers_that_lie(tmp_path, name):
    content, reason = BAD[name]
    (tmp_path / 'a.npy').write_bytes(content)
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.npy', content)
    for mmap in (None, 'r'):
        with pytest.raises(BadFile) as caught:
            npz.load(tmp_path / 'a.npy', mmap)
        assert caught.value.reason == reason
    with pytest.raises(BadFile, match='a.npz'):
        npz.load_all(tmp_path / 'a.npz')


def test_arrays_of_all_kinds(tmp_path):
    arrays = {
        'fortran': np.asfortranarray(np.arange(24, dtype='>f4').reshape(2, 3, 4)),
        'none': np.zeros((0, 3)),
        'one': np.float64(3),
        'names': np.array(['a', 'bc']),
        'bytes': np.array([b'a', b'']),
        'records': np.array([(1, 2.0)], 'i4,f8'),
        'flags': np.array([True, False]),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / 'a.npz', **arrays)
        result = npz.load_all(tmp_path / 'a.npz')
        assert list(result) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(result[name], array)
            assert result[name].dtype == array.dtype and result[name].flags.writeable
    video = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    for array in (np.asfortranarray(video), video.astype('>u1')):
        np.save(tmp_path / 'v.npy', array)
        np.testing.assert_array_equal(npz.load_frames(tmp_path / 'v.npy'), video)


def test_archives_that_lie(tmp_path, monkeypatch):
    """Zeros of a thousand times the file; a directory that says other sizes than there are."""
    path = tmp_path / 'a.npz'
    monkeypatch.setattr(files, 'FREE', 2**20)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.npy', npy((2**24,), values=bytes(2**24)))
    with pytest.raises(BadFile, match='ratio'):
        npz.load_all(path)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.npy', npy((1000,), values=bytes(1000)))
    whole = path.read_bytes()
    place, size = whole.rindex(b'PK\x01\x02'), 1000 + len(npy((1000,)))
    for claim in (size - 1, 2**31, 0):
        content = bytearray(whole)
        content[place + 24 : place + 28] = claim.to_bytes(4, 'little')
        path.write_bytes(content)
        with pytest.raises(BadFile):
            npz.load_all(path)
    path.write_bytes(whole.replace(b'a.npy', b'a.txt'))
    assert npz.load_all(path)['a.txt'].shape == (1000,)
    path.write_bytes(whole[:-3])
    with pytest.raises(BadFile, match='corrupt'):
        npz.load_all(path)
    for kind in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(path, 'w', kind) as archive:
            archive.writestr('a.npy', npy((1,), values=b'0'))
        with pytest.raises(BadFile, match='neither stored nor deflated'):
            npz.load_all(path)
