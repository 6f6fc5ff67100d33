"""Pooler and classifier against arrays computed by the original (tests/golden/README.md), and how
they start.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from torch_fill import normal, tensor

from jepa_jax.models.pooler import AttentiveClassifier, AttentivePooler, PoolerConfig
from jepa_jax.nets import Net
from jepa_jax.sharding import path_name

POOLER = 1e-5  # design: pooler against golden arrays, float32 on CPU
GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/pooler.npz'
# our path -> name in the original's state dict; first match wins
NAMES = (
    (r'heads/(\w+)/kernel', r'\1.weight'),
    (r'heads/(\w+)/bias', r'\1.bias'),
    (r'(pooler/query_tokens)', r'\1'),
    (r'(pooler/.*)/(?:kernel|scale)', r'\1.weight'),
    (r'(pooler/.*/bias)', r'\1'),
)


def original_name(path: str) -> str:
    pattern, name = next(row for row in NAMES if re.fullmatch(row[0], path))
    return re.sub(pattern, name, path).replace('/', '.')


def fill(abstract: dict) -> dict:
    def leaf(path, a):
        path = path_name(path)

        def one(name, shape):  # torch keeps kernels transposed
            return tensor(name, shape[::-1], 0.05).T

        if '/blocks/' not in path:
            name = original_name(path)
            return tensor(name, a.shape, 0.05) if a.ndim == 3 else one(name, a.shape)
        name = original_name(path)
        return np.stack(
            [one(name.replace('.blocks.', f'.blocks.{i}.'), a.shape[1:]) for i in range(len(a))]
        )

    return jax.tree.map_with_path(leaf, abstract)


def classifier(depth: int, **settings) -> Net:
    config = PoolerConfig(96, heads=4, depth=depth, dtype=jnp.float32, **settings)
    return Net(lambda rngs: AttentiveClassifier(config, {'linear': 7}, rngs=rngs))


@pytest.mark.parametrize(
    'case, depth', [('C1_attentive_classifier_d4', 4), ('C2_attentive_classifier_d1', 1)]
)
def test_golden(case, depth):
    net = classifier(depth)
    out = net(fill(net.abstract), jnp.asarray(normal(8, 2, 30, 96)))['linear']
    np.testing.assert_allclose(out, np.load(GOLDEN)[case], rtol=0, atol=POOLER)


@pytest.mark.parametrize('width, expected', [(1024, 49_514_670), (1408, 93_494_190)])
def test_released_sizes(width, expected):
    """Parameters of the released probes for 174 classes (reference: vjepa2 §9.1)."""
    net = Net(lambda rngs: AttentiveClassifier(PoolerConfig(width), {'linear': 174}, rngs=rngs))
    assert sum(a.size for a in jax.tree.leaves(net.abstract)) == expected


@pytest.mark.parametrize('depth, cross', [(1, 2**0.5), (4, 6**0.5)])
def test_initialisation(depth, cross):
    config = PoolerConfig(256, heads=4, depth=depth, dtype=jnp.float32)
    net = Net(lambda rngs: AttentiveClassifier(config, {'linear': 64}, rngs=rngs))
    params = jax.jit(net.init)(jax.random.key(0))
    pooler, head = params['pooler'], params['heads']['linear']
    stds = {
        0.02: [pooler['query_tokens'], pooler['cross_attention_block']['xattn']['kv']['kernel']],
        0.02 / cross: [pooler['cross_attention_block']['mlp']['fc2']['kernel']],
    }
    for layer in range(depth - 1):
        block = jax.tree.map(lambda a, i=layer: a[i], pooler['blocks'])
        rescaled = [block['attn']['proj']['kernel'], block['mlp']['fc2']['kernel']]
        stds.setdefault(0.02 / (2 * (layer + 1)) ** 0.5, []).extend(rescaled)
    for std, arrays in stds.items():
        for a in arrays:
            assert abs(float(a.std()) / std - 1) < 4 / (2 * a.size) ** 0.5  # four standard errors
    for a in (head['kernel'], head['bias']):
        assert float(jnp.abs(a).max()) <= 1 / 16
        assert abs(float(a.std()) * 16 * 3**0.5 - 1) < 0.3
    assert all(
        not leaf.any()
        for path, leaf in jax.tree_util.tree_leaves_with_path(pooler)
        if path_name(path).endswith('bias')
    )


def test_order_of_tokens_does_not_matter():
    net = classifier(2)
    params, net = jax.jit(net.init)(jax.random.key(1)), jax.jit(net)
    x = normal(1, 2, 30, 96)
    shuffled = x[:, np.random.default_rng(0).permutation(30)]
    a, b = (net(params, jnp.asarray(v))['linear'] for v in (x, shuffled))
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert not np.allclose(a, net(params, jnp.asarray(x + normal(2, 2, 30, 96)))['linear'])


@pytest.mark.parametrize('settings', [dict(depth=0), dict(queries=0), dict(heads=5)])
def test_impossible_settings(settings):
    with pytest.raises(ValueError, match='at least 1|not a multiple'):
        Net(lambda rngs: AttentivePooler(PoolerConfig(96, **settings), rngs=rngs))


def test_one_head_a_query():
    with pytest.raises(ValueError, match='1 queries for 2 heads'):
        config = PoolerConfig(96, heads=4)
        Net(lambda rngs: AttentiveClassifier(config, {'verb': 3, 'noun': 4}, rngs=rngs))
    config = PoolerConfig(96, heads=4, queries=2, depth=2)
    net = Net(lambda rngs: AttentiveClassifier(config, {'verb': 3, 'noun': 4}, rngs=rngs))
    params = jax.eval_shape(net.init, jax.random.key(0))
    out = jax.eval_shape(net, params, jnp.ones((5, 6, 96)))
    assert {k: v.shape for k, v in out.items()} == {'verb': (5, 3), 'noun': (5, 4)}


def test_heads_of_a_grid_share_the_tokens():
    """Nothing as large as the tokens is made for each head, forwards or backwards."""
    heads, clips, tokens, width = 7, 5, 11, 96
    net = classifier(1)
    keys = jax.random.split(jax.random.key(0), heads)
    params = jax.eval_shape(jax.vmap(net.init), keys)
    x = jnp.ones((clips, tokens, width))

    def loss(params):
        return sum(jax.vmap(net, (0, None))(params, x)['linear'].ravel())

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (value.aval.size for value in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    largest = max(
        size for size in sizes(jax.make_jaxpr(jax.grad(loss))(params).jaxpr) if size % tokens == 0
    )
    assert largest <= max(x.size, heads * clips * 4 * tokens)  # the scores of 4 heads of attention
