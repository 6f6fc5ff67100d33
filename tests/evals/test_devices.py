"""Examples shared out among the devices of a process."""

import jax
import numpy as np

import jepa_jax
from jepa_jax.evals.devices import everywhere, in_shares


def test_every_device_has_a_share():
    """Five examples on eight devices: filled up, and no more than five come back."""
    placed, local = everywhere(jepa_jax.load('random:tiny'))
    weights = jax.tree.leaves(placed.encoder.params)
    assert {len(leaf.sharding.device_set) for leaf in weights} == {len(jax.local_devices())} == {8}
    seen = []

    def call(x, y):
        seen.append([shard.data.shape for shard in x.addressable_shards])
        return {'sum': x + y, 'first': x[:, 0]}

    x, y = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    result = in_shares(local, call)(x, y)
    assert seen == [[(1, 3)] * 8]
    np.testing.assert_array_equal(result['sum'], x + y)
    np.testing.assert_array_equal(result['first'], x[:, 0])
