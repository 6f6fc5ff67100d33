"""Several trainings as one program."""

import jax
import numpy as np
import pytest

from jepa_jax.contrib import options


@pytest.mark.slow
def test_trainings_together_are_those_alone():
    option = options.OPTIONS['rollout-1']
    objective = options.objective_of(option, 16, 1)
    together, _ = options.train(option, objective, 3, range(4, 6), 16)
    ((alone, health),), _ = options.train(option, objective, 3, range(4, 5), 16)
    assert len(together) == 2
    (first, judged), (other, _) = together
    for a, b, c in zip(*map(jax.tree.leaves, (first, alone, other))):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
        assert a.shape == c.shape
    assert judged.keys() == health.keys()
    assert any(np.abs(a - c).max() > 0.01 for a, c in zip(*map(jax.tree.leaves, (first, other))))
