"""Schedules against golden values of the original and float64 formulas, AdamW against PyTorch."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jepa_jax import optim
from jepa_jax.config import EmaOptimConfig, GuardConfig, OptimConfig, half_life
from jepa_jax.errors import ConfigError

PRETRAIN = EmaOptimConfig()
COOLDOWN = OptimConfig(schedule='linear_decay', warmup=0, steps=12_000, final_lr=1e-6)
DROID = OptimConfig(
    schedule='wsd',
    warmup=4500,
    anneal=4500,
    steps=94_500,
    ipe_scale=1.0,
    start_lr=7.5e-5,
    lr=4.25e-4,
    final_lr=0.0,
)
GENERIC = OptimConfig(warmup=10, steps=100, ipe_scale=1.0, start_lr=0.1, lr=1.0, final_lr=0.01)
# the public ViT-L file as it stands: longer warm-up than run
NEVER_WARM = OptimConfig(steps=3000, warmup=12_000)


@pytest.mark.parametrize(
    ('config', 'golden'),  # reference: vjepa2 §13 'Schedules', §5.3; k counts from 1
    [
        (
            PRETRAIN,
            {
                1: 1.0003541667e-4,
                6000: 3.125e-4,
                11_999: 5.2496458e-4,
                12_000: 5.25e-4,
                240_000: 5.25e-4,
            },
        ),
        (COOLDOWN, {1: 5.2496507e-4, 6000: 3.154e-4, 12_000: 1.058e-4}),
        (
            DROID,
            {
                1: 7.507778e-5,
                2250: 2.5e-4,
                4500: 4.25e-4,
                90_000: 4.25e-4,
                90_001: 4.2490556e-4,
                92_250: 2.125e-4,
                94_500: 0.0,
            },
        ),
        (
            GENERIC,
            {
                1: 0.19,
                9: 0.91,
                10: 1.0,
                11: 0.9996984594,
                50: 0.5909558479,
                100: 0.01,
                120: 0.1258080,
            },
        ),
        (NEVER_WARM, {3000: 2.0625e-4}),
    ],
    ids=['pretrain', 'cooldown', 'droid', 'generic', 'never warm'],
)
def test_learning_rate_is_the_originals(config, golden):
    schedule = jax.jit(optim.learning_rate(config))
    for k, value in golden.items():
        assert float(schedule(jnp.int32(k - 1))) == pytest.approx(value, rel=1e-6, abs=1e-12), k


def warmup_cosine(c, k):
    W, T = c.warmup, int(c.ipe_scale * c.steps)
    if k < W:
        return c.start_lr + k / max(1, W) * (c.lr - c.start_lr)
    p = (k - W) / max(1, T - W)
    return max(c.final_lr, c.final_lr + (c.lr - c.final_lr) * 0.5 * (1 + math.cos(math.pi * p)))


def linear_decay(c, k):
    return c.lr + k / max(1, int(c.ipe_scale * c.steps)) * (c.final_lr - c.lr)


@pytest.mark.parametrize(
    ('config', 'formula'),
    [
        (OptimConfig(final_lr=1e-6, steps=230_000), warmup_cosine),
        (OptimConfig(final_lr=1e-6, steps=240_000, ipe_scale=1.0), warmup_cosine),
        (OptimConfig(warmup=0, final_lr=0.0, steps=900, ipe_scale=1.1), warmup_cosine),
        (OptimConfig(start_lr=1e-5, warmup=50, steps=40, final_lr=1e-7), warmup_cosine),
        (COOLDOWN, linear_decay),
        (
            OptimConfig(schedule='linear_decay', warmup=0, steps=700, ipe_scale=1.0, lr=1e-3),
            linear_decay,
        ),
    ],
)
def test_learning_rate_holds_in_float32_over_the_whole_run(config, formula):
    k = np.unique(np.linspace(1, 1.25 * config.steps, 4000).astype(int))
    result = jax.jit(jax.vmap(optim.learning_rate(config)))(jnp.asarray(k - 1, jnp.int32))
    expected = np.array([formula(config, int(i)) for i in k])
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(('first', 'last'), [(0.04, 0.4), (0.4, 0.04), (0.04, 0.04), (0.04, 0.0)])
def test_weight_decay_is_a_cosine(first, last):
    config = OptimConfig(weight_decay=first, final_weight_decay=last, steps=16, ipe_scale=1.25)
    for k in range(1, 21):
        expected = last + (first - last) * 0.5 * (1 + math.cos(math.pi * k / 20))
        result = float(optim.weight_decay(config)(jnp.int32(k - 1)))
        assert result == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_weight_decay_of_the_golden_step():
    schedule = optim.weight_decay(OptimConfig(final_weight_decay=0.4, steps=20))
    result = [float(schedule(step)) for step in range(2)]
    np.testing.assert_allclose(result, [0.041419354, 0.045655031], rtol=1e-6)


def test_ema_rate_is_linear_from_the_0_based_step():
    config = EmaOptimConfig(momentum=0.998, final_momentum=1.0, steps=20, ipe_scale=1.25)
    rate = optim.ema_rate(config)
    result = np.array([float(rate(jnp.int32(i))) for i in range(26)])
    np.testing.assert_allclose(1 - result[:2], [0.998, 0.99808], rtol=1e-7)
    np.testing.assert_allclose(result, 0.002 * (1 - np.arange(26) / 25), rtol=1e-6, atol=1e-12)
    assert result[-1] == 0
    # 1 - float32(0.99925) would be off by 4e-5
    assert float(optim.ema_rate(PRETRAIN)(jnp.int32(7))) == pytest.approx(7.5e-4, rel=1e-6)


def test_half_life():
    assert half_life(0.5) == pytest.approx(1)
    assert 0.99925 ** half_life(0.99925) == pytest.approx(0.5)
    assert (half_life(0.0), half_life(1.0)) == (0, math.inf)


def test_unknown_schedule_lists_the_choices():
    with pytest.raises(ConfigError, match=r"'cosin'.*warmup_cosine, linear_decay, wsd"):
        optim.learning_rate(OptimConfig(schedule='cosin'))


def tree(rng):
    """Parameters as the nets name and stack them; two layers."""
    shapes = {
        'encoder': {
            'blocks': {
                'attn': {'qkv': {'kernel': (2, 6, 18), 'bias': (2, 18)}},
                'norm1': {'scale': (2, 6), 'bias': (2, 6)},
            },
            'norm': {'scale': (6,), 'bias': (6,)},
            'patch_embed': {'kernel': (12, 6), 'bias': (6,)},
        },
        'predictor': {'mask_tokens': {'0': (1, 1, 6), '1': (1, 1, 6)}},
    }
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_decay_mask_follows_the_originals_groups():
    mask = optim.decay_mask(tree(np.random.default_rng(0)), {'predictor/mask_tokens/1'})
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator='/')
        for path, decays in jax.tree_util.tree_leaves_with_path(mask)
        if decays
    }
    assert decayed == {
        'encoder/blocks/attn/qkv/kernel',
        'encoder/patch_embed/kernel',
        'predictor/mask_tokens/0',
    }


def test_decay_mask_refuses_names_that_are_not_there():
    with pytest.raises(ValueError, match='mask_tokens/7'):
        optim.decay_mask(tree(np.random.default_rng(0)), {'predictor/mask_tokens/7'})


def test_adamw_is_pytorchs_over_five_steps():
    """Scheduled rate and decay, two groups, one parameter without gradient that must not move."""
    config = OptimConfig(
        warmup=3, steps=6, start_lr=1e-3, lr=1e-2, final_lr=1e-4, weight_decay=0.3, beta2=0.95
    )
    config.final_weight_decay = 3.0  # large, so that a decay of the new value would show
    rng = np.random.default_rng(1)
    params = tree(rng)
    unused = 'predictor/mask_tokens/1'
    mask = optim.decay_mask(params, {unused})
    tx = optim.adamw(config, mask)

    leaves, structure = jax.tree.flatten(params)
    flags = jax.tree.leaves(mask)
    names = [
        jax.tree_util.keystr(path, simple=True, separator='/')
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    tensors = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in leaves]
    groups = [
        {'params': [t for t, f in zip(tensors, flags) if f == decaying], 'decays': decaying}
        for decaying in (True, False)
    ]
    reference = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps)

    @jax.jit
    def update(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = tx.init(params)
    T = int(config.ipe_scale * config.steps)
    for k in range(1, 6):
        grads = [
            np.zeros_like(p) if n == unused else rng.standard_normal(p.shape).astype(np.float32)
            for n, p in zip(names, leaves)
        ]
        decay = 3.0 - 2.7 * 0.5 * (1 + math.cos(math.pi * k / T))
        for group in reference.param_groups:
            group['lr'] = warmup_cosine(config, k)
            group['weight_decay'] = decay * group['decays']
        for name, tensor, grad in zip(names, tensors, grads):
            tensor.grad = None if name == unused else torch.tensor(grad)
        reference.step()
        params, state = update(jax.tree.unflatten(structure, grads), state, params)
        for name, ours, theirs in zip(names, jax.tree.leaves(params), tensors):
            np.testing.assert_allclose(ours, theirs.detach(), atol=1e-6, rtol=0, err_msg=name)
    np.testing.assert_array_equal(
        params['predictor']['mask_tokens']['1'], leaves[names.index(unused)]
    )


def test_lower_layers_learn_at_lower_rates():
    """Of the encoder alone; the decay is scaled with the rate."""
    rng = np.random.default_rng(0)
    params = {
        'encoder': {
            'patch_embed': {'kernel': rng.standard_normal((2, 3))},
            'blocks': {'fc': {'kernel': rng.standard_normal((2, 3, 3))}},
            'norm': {'scale': rng.standard_normal(3)},
        },
        'predictor': {'kernel': rng.standard_normal((2, 2))},
    }
    params = jax.tree.map(jnp.float32, params)
    about = dict(whole_batch=False, unused=frozenset(), rates={'predictor': 0.1}, ema=())
    objective = types.SimpleNamespace(abstract=params, nets=params, **about)

    def updates(decay):
        tx = optim.build(OptimConfig(layer_decay=decay, weight_decay=3.0), objective).tx
        return tx.update(params, tx.init(params), params)[0]

    plain, scaled = updates(1.0), updates(0.5)
    encoder, other = scaled['encoder'], plain['encoder']
    np.testing.assert_allclose(
        encoder['patch_embed']['kernel'], other['patch_embed']['kernel'] / 8, rtol=1e-6
    )
    for layer, factor in enumerate((4, 2)):
        kernels = (each['blocks']['fc']['kernel'][layer] for each in (encoder, other))
        np.testing.assert_allclose(next(kernels), next(kernels) / factor, rtol=1e-6)
    np.testing.assert_array_equal(encoder['norm']['scale'], other['norm']['scale'])
    np.testing.assert_array_equal(scaled['predictor']['kernel'], plain['predictor']['kernel'])
    objective.nets = {'predictor': None}
    with pytest.raises(ConfigError, match='layer_decay = 0.5: must be 1, no encoder is trained'):
        updates(0.5)


def test_guard_leaves_out_what_plain_statistics_say():
    """Losses of a walk with three jumps, of which a loop over lists skips those far above the mean
    of the last five; Adam must go on as if it had never seen them."""
    config = GuardConfig(deviations=2.0, window=5, after=4, most=10)
    rng = np.random.default_rng(0)
    losses = rng.normal(1.0, 0.1, 24).astype(np.float32)
    losses[[2, 9, 16]] += 3.0  # the first comes before there may be any
    grads = rng.normal(size=(24, 3)).astype(np.float32)
    skipped = []
    for i in range(4, 24):
        last = losses[max(0, i - 5) : i].astype(np.float64)
        if losses[i] > last.mean() + 2 * last.std():
            skipped.append(i)
    assert {9, 16} <= {*skipped} and len(skipped) < 8

    tx, plain = optim.guarded(optax.adam(0.1), config), optax.adam(0.1)
    update = jax.jit(lambda g, state, p, loss: tx.update(g, state, p, value=loss))
    params = expected = jnp.ones(3)
    state, reference = tx.init(params), plain.init(params)
    for i, (loss, grad) in enumerate(zip(losses, grads)):
        updates, state = update(grad, state, params, loss)
        params = optax.apply_updates(params, updates)
        if i not in skipped:
            updates, reference = plain.update(grad, reference, expected)
            expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(params, expected, rtol=0, atol=1e-6, err_msg=str(i))
    *inner, guard = state
    assert (int(guard.seen), int(guard.skipped)) == (24, len(skipped))
    assert int(inner[0].count) == 24 - len(skipped)
    assert {float(x) for x in guard.losses} == {float(x) for x in losses[-5:]}


def test_there_is_no_guard_unless_asked_for():
    """And then its state comes last, so that Adam's stays where it was."""
    params = {'net': {'kernel': jnp.ones((2, 2))}}
    tx = optim.adamw(OptimConfig(), jax.tree.map(lambda _: True, params))
    plain = jax.tree.structure(tx.init(params))
    guarded = optim.guarded(tx, GuardConfig(deviations=3.0)).init(params)
    assert isinstance(guarded[-1], optim.GuardState)
    assert jax.tree.structure(tuple(guarded[:-1])) == plain
    assert OptimConfig().guard.deviations == 0
