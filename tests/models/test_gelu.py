"""GELU against SciPy's error function, and PyTorch's in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from scipy.special import ndtr

from jepa_jax.models.layers import gelu

X = np.linspace(-9, 9, 4001)


def test_value_and_gradient_in_float32():
    x = jnp.asarray(X, jnp.float32)
    value, slope = jax.vmap(jax.value_and_grad(gelu))(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(value, exact * ndtr(exact), atol=6e-7)
    density = np.exp(-0.5 * exact**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(slope, ndtr(exact) + exact * density, atol=3e-7)


def test_bfloat16_is_rounded_once():
    """In bfloat16 itself, as jax.nn.gelu computes, results are off by up to five of its steps."""
    x = torch.linspace(-3, 6, 4001).to(torch.bfloat16).requires_grad_()
    exact = x.detach().double().numpy()
    density = np.exp(-0.5 * exact**2) / np.sqrt(2 * np.pi)
    rows = exact * ndtr(exact), ndtr(exact) + exact * density
    theirs = torch.nn.functional.gelu(x)
    theirs.backward(torch.ones_like(x))
    ours, back = jax.vjp(gelu, jnp.asarray(x.detach().float().numpy(), jnp.bfloat16))
    (slope,) = back(jnp.ones_like(ours))
    assert ours.dtype == slope.dtype == jnp.bfloat16
    for a, b, row in ((ours, theirs.detach(), rows[0]), (slope, x.grad, rows[1])):
        a, b = np.asarray(a, np.float32), b.float().numpy()
        np.testing.assert_allclose(a, b, rtol=2**-7, atol=1e-6)
        rounded = torch.from_numpy(row).to(torch.bfloat16).float().numpy()
        assert (a == rounded).mean() > 0.995


def test_gradient_keeps_its_input_alone():
    def kept(f):
        _, back = jax.vjp(f, jnp.ones((64, 64), jnp.bfloat16))
        return sum(leaf.nbytes for leaf in jax.tree.leaves(back))

    assert kept(gelu) == 64 * 64 * 2 < kept(lambda x: jax.nn.gelu(x, approximate=False))
