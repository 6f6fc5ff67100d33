"""Growing .npz files as numpy reads them."""

import gc
import sys

import numpy as np
import pytest

from jepa_jax.data import npz
from jepa_jax.data.npz import NpzRows
from jepa_jax.data.workers import side_by_side


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
    rows = NpzRows(tmp_path / 'x.npz')
    for i in range(5):
        rows.add(a=a[i], b=b[i])
        if i == 2:  # what broke off is taken back, and written again
            rows.cut(1)
            rows.add(a=a[1], b=b[1])
            rows.add(a=a[2], b=b[2])
    assert not (tmp_path / 'x.npz').exists()
    assert rows.close(names=np.array(['p', 'q'])) == {'a': (5, 3, 2), 'b': (5,)}
    with np.load(tmp_path / 'x.npz') as arrays:
        np.testing.assert_array_equal(arrays['a'], a)
        np.testing.assert_array_equal(arrays['b'], b)
        assert arrays['names'].tolist() == ['p', 'q'] and arrays['a'].dtype == np.float32
    assert [p.name for p in tmp_path.iterdir()] == ['x.npz']


def test_rows_of_another_shape_and_giving_up(tmp_path):
    rows = NpzRows(tmp_path / 'x.npz')
    rows.add(a=np.zeros(3))
    with pytest.raises(ValueError, match='x.npz: a row of'):
        rows.add(a=np.zeros(4))
    rows.drop()
    assert not list(tmp_path.iterdir())
