"""Stacked blocks run as one scan against a Python loop over the layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jepa_jax.nets import ONCE, Net, fold, stack
from jepa_jax.sharding import make_mesh, put_batch

DEPTH, BATCH, WIDTH = 3, 8, 4


class Layer(nnx.Module):
    """x + factor tanh(x W + shift); adds what it did to its cache."""

    def __init__(self, rngs: nnx.Rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (WIDTH, WIDTH)))

    def __call__(self, x, adapter, cache, factor):
        change = factor * jnp.tanh(x @ self.weight[...] + adapter['shift'])
        return x + change, {'seen': change if cache is None else cache + change, 'none': None}


class Layers(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.blocks = stack(lambda r, layer: Layer(r), DEPTH, rngs)

    def __call__(self, x, adapters, cache, **settings):
        return fold(self.blocks, x, 0.5, beside=(adapters, cache), **settings)


NET = Net(lambda rngs: Layers(rngs=rngs))


def inputs(cached: bool):
    a, b, c = jax.random.split(jax.random.key(1), 3)
    adapters = {'shift': jax.random.normal(a, (DEPTH, WIDTH))}
    cache = jax.random.normal(b, (DEPTH, BATCH, WIDTH)) if cached else None
    return NET.init(jax.random.key(0)), jax.random.normal(c, (BATCH, WIDTH)), adapters, cache


def loop(params, x, adapters, cache):
    """x after every layer, and what every layer gives."""
    after, seen = [], []
    for layer in range(DEPTH):
        shift, weight = adapters['shift'][layer], params['blocks']['weight'][layer]
        change = 0.5 * jnp.tanh(x @ weight + shift)
        x = x + change
        after.append(x)
        seen.append(change if cache is None else cache[layer] + change)
    return after, seen


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), ours, theirs)


@pytest.mark.parametrize(
    ('levels', 'cached', 'remat'),
    [((), True, 'full'), ((), False, 'none'), ((0, 1), True, 'none'), ((1, 2), False, 'full')],
)
def test_trees_beside_the_blocks(levels, cached, remat):
    def scanned(*inputs):
        x, out = NET(*inputs, levels=levels, remat=remat)
        assert out['none'] is None
        return x, out['seen']

    def looped(*inputs):
        after, seen = loop(*inputs)
        ran = levels[-1] + 1 if levels else DEPTH  # nobody asks for the layers after
        return [after[level] for level in levels] or after[-1], jnp.stack(seen[:ran])

    def program(run):
        def loss(*inputs):
            result = run(*inputs)
            return sum(jnp.sin(a).sum() for a in jax.tree.leaves(result)), result

        graded = range(4 if cached else 3)
        return jax.jit(jax.grad(loss, graded, has_aux=True), compiler_options=ONCE)

    assert_close(program(scanned)(*inputs(cached)), program(looped)(*inputs(cached)))


def test_a_cache_stays_where_its_clips_are():
    params, x, adapters, cache = inputs(cached=True)
    after, seen = loop(params, x, adapters, cache)
    mesh = make_mesh(fsdp=2)
    spec = jax.P(None, ('data', 'fsdp'))
    with jax.set_mesh(mesh):
        cache = jax.device_put(cache, jax.NamedSharding(mesh, spec))
        x = put_batch(np.asarray(x), mesh)
        run = jax.jit(lambda *inputs: NET(*inputs, levels=(0, 2)), compiler_options=ONCE)
        x, out = run(params, x, adapters, cache)
    assert out['seen'].sharding.spec == jax.P(*spec, None)
    assert_close((x, out['seen']), ([after[0], after[2]], jnp.stack(seen)))


@pytest.mark.parametrize('levels', [(), (1,)])
def test_a_tree_for_another_depth(levels):
    params, x, adapters, _ = inputs(cached=False)
    with pytest.raises(ValueError, match=r'beside: an array \(2, 8, 4\) for 3 blocks'):
        NET(params, x, adapters, jnp.zeros((2, BATCH, WIDTH)), levels=levels)
