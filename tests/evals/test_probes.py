"""A grid of heads against each head trained by itself, with optax and no vmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import log_loss

from jepa_jax.evals import probes
from jepa_jax.models.pooler import PoolerConfig

STEPS, BATCH, WARMUP = 12, 4, 3
GRID = [probes.Setting(lr, decay) for decay in (0.01, 0.4) for lr in (1e-2, 1e-3)]


@pytest.fixture(scope='module')
def probe():
    pooler = PoolerConfig(8, 2, 1, dtype=jnp.dtype('float32'), remat='none')
    return probes.Probe(pooler, (('label', 3),))


@pytest.fixture(scope='module')
def features():
    return np.random.default_rng(0).normal(size=(20, 5, 8)).astype(np.float16)


@pytest.fixture(scope='module')
def labels():
    return np.random.default_rng(1).integers(0, 3, 20).astype(np.int32)


def fit(probe, features, labels, **options):
    return probes.train(
        probe, probes.cross_entropy, features.__getitem__, {'label': labels}, GRID,
        steps=STEPS, batch=BATCH, warmup=WARMUP, seed=5, **options,
    )  # fmt: skip


def test_each_head_is_as_if_trained_alone(probe, features, labels, monkeypatch):
    monkeypatch.setattr(probes, 'CHUNK', 4 * BATCH * 5 * 8 * 5)  # 5 steps at a time
    trained = fit(probe, features, labels)
    plan = probes.orders(20, STEPS, BATCH, 5)
    adamw = functools.partial(optax.adamw, b1=0.9, b2=0.999, eps=1e-8)
    net = probe.net  # another each time that it is asked for, and another program
    init = jax.jit(net.init)

    @jax.jit
    def step(params, state, x, y, lr, decay):
        def rate(n):
            falls = optax.cosine_decay_schedule(lr, STEPS - WARMUP)
            return jnp.where(n < WARMUP, lr * (n + 1) / WARMUP, falls(n - WARMUP))

        def loss(p):
            logits = net(p, x)['label']
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = adamw(rate, weight_decay=decay).update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for number, setting in enumerate(GRID):
        params = init(jax.random.key(5))
        state = adamw(lambda n: 0.0).init(params)
        for k, rows in enumerate(plan):
            x = features[rows].astype(np.float32)
            params, state, value = step(
                params, state, x, labels[rows], setting.lr, setting.weight_decay
            )
            assert abs(float(value) - trained.losses[number, k]) < 1e-5
        ours = probes.one(trained.params, number)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(params)):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_heads_are_the_same_wherever_they_lie(probe, features, labels, monkeypatch):
    """Four heads on four devices, and two by two on one of two processes each."""
    spread = fit(probe, features, labels)
    devices = jax.local_devices()
    monkeypatch.setattr(jax, 'local_devices', lambda: devices[:1])
    alone = fit(probe, features, labels)
    for ours, theirs in zip(jax.tree.leaves(spread.params), jax.tree.leaves(alone.params)):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(spread.losses, alone.losses, atol=1e-6)


@pytest.mark.parametrize(('heads', 'processes', 'devices'), [(20, 1, 8), (20, 3, 4), (1, 2, 4)])
def test_every_head_is_trained_and_comes_back(monkeypatch, heads, processes, devices):
    local = jax.local_devices()[:devices]
    monkeypatch.setattr(jax, 'local_devices', lambda: local)
    monkeypatch.setattr(jax, 'process_count', lambda: processes)
    parts = []
    for index in range(processes):
        monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
        own, mesh = probes._share(heads)
        assert len(own) % mesh.size == 0 and len(own) == len(parts[0] if parts else own)
        parts.append(own)
    assert np.concatenate(parts)[probes._places(heads, len(parts[0]))].tolist() == [*range(heads)]


def test_orders_take_every_row_once_an_epoch():
    plan = probes.orders(10, 6, 5, 0).ravel()
    for epoch in plan.reshape(3, 10):
        assert sorted(epoch) == list(range(10))
    assert (plan[:10] != plan[10:20]).any()


def test_outputs_of_all_heads_in_batches(probe, features, labels):
    trained, net = fit(probe, features, labels, rows=np.arange(15)), jax.jit(probe.net)
    rows = np.array([3, 19, 0, 7, 11])
    ours = probes.outputs(probe, trained.params, features.__getitem__, rows, batch=2)['label']
    assert ours.shape == (4, 5, 3)
    for number in range(4):
        alone = net(probes.one(trained.params, number), jnp.asarray(features[rows], 'f4'))
        np.testing.assert_allclose(ours[number], alone['label'], atol=1e-5)


def test_a_head_that_runs_away_is_known(probe, features, labels):
    wild = [probes.Setting(1e-3, 0.0), probes.Setting(1e30, 0.0)]
    trained = probes.train(
        probe, probes.cross_entropy, features.__getitem__, {'label': labels}, wild, steps=6, batch=4
    )
    assert trained.finite.tolist() == [True, False]


def test_losses(labels):
    rng = np.random.default_rng(2)
    logits, y = rng.normal(size=(20, 3)), labels
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def ours(loss, targets):
        return float(loss({'a': jnp.asarray(logits)}, {'a': targets}))

    theirs = log_loss(y, p, labels=[0, 1, 2])
    assert ours(probes.cross_entropy, y) == pytest.approx(theirs, abs=1e-6)
    several = rng.integers(0, 2, (20, 3))
    each = [log_loss(several[:, c], 1 / (1 + np.exp(-logits[:, c]))) for c in range(3)]
    assert ours(probes.binary_cross_entropy, several) == pytest.approx(np.mean(each), abs=1e-6)
    numbers = rng.normal(size=(20, 3))
    mean = np.square(logits - numbers).mean()
    assert ours(probes.squared_error, numbers) == pytest.approx(mean, abs=1e-6)
