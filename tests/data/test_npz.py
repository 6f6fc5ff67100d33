"""Growing .npz files as numpy reads them."""

import numpy as np
import pytest

from jepa_jax.data.npz import NpzRows


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
    with np.load(tmp_path / 'x.npz') as found:
        np.testing.assert_array_equal(found['a'], a)
        np.testing.assert_array_equal(found['b'], b)
        assert found['names'].tolist() == ['p', 'q'] and found['a'].dtype == np.float32
    assert [p.name for p in tmp_path.iterdir()] == ['x.npz']


def test_rows_of_another_shape_and_giving_up(tmp_path):
    rows = NpzRows(tmp_path / 'x.npz')
    rows.add(a=np.zeros(3))
    with pytest.raises(ValueError, match='x.npz: a row of'):
        rows.add(a=np.zeros(4))
    rows.drop()
    assert not list(tmp_path.iterdir())
