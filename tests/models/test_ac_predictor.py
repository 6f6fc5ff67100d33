"""The action-conditioned predictor against arrays of the original, and that it is causal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_golden import SLOW, WHOLE, assert_summary
from torch_fill import fill, normal

from jepa_jax.models.ac_predictor import ACPredictorConfig, attend_frames
from jepa_jax.nets import Net
from jepa_jax.sharding import make_mesh, place, put_batch
from jepa_jax.weights import parts

TINY = ACPredictorConfig(
    encoder_width=96, width=64, depth=2, heads=4, grid=(4, 4), dtype=jnp.float32
)


def make(**settings) -> tuple[Net, dict]:
    config = dataclasses.replace(TINY, **settings)
    net = parts.net('ac_predictor', config)
    return net, fill(net.abstract, sigma=0.05, predictor=True)


def inputs(extrinsics: bool = False) -> list[jax.Array]:
    result = [normal(4, 2, 48, 96), normal(5, 2, 3, 7), normal(6, 2, 3, 7)]
    return [jnp.asarray(a) for a in [*result, normal(7, 2, 3, 6)][: 3 + extrinsics]]


@pytest.mark.parametrize('extrinsics', [False, True])
def test_golden(extrinsics, golden_ac):
    net, params = make(use_extrinsics=extrinsics)
    out = net(params, *inputs(extrinsics))
    np.testing.assert_allclose(
        out, golden_ac[f'A1_ac_use_extrinsics={extrinsics}'], rtol=0, atol=WHOLE
    )


@SLOW
def test_full_size():
    config = ACPredictorConfig(1408, grid=(4, 4), dtype=jnp.float32)
    net = parts.net('ac_predictor', config)
    assert sum(a.size for a in jax.tree.leaves(net.abstract)) == 305_220_992
    params = fill(net.abstract, sigma=0.02, predictor=True)
    out = net(params, normal(4, 1, 48, 1408), normal(5, 1, 3, 7), normal(6, 1, 3, 7))
    assert_summary(
        out,
        ((0.0007478671, 0.5005446, -86.20442), (1.05221, -0.589633, 0.742538),
         (-0.0217419, 0.725977)),
    )  # fmt: skip


def test_attention_over_frames_equals_a_masked_one():
    q, k, v = (jnp.asarray(normal(i, 2, 5 * 6, 3, 16)) for i in range(3))
    frame = np.arange(30) // 6
    logits = np.einsum('bnac,bsac->bans', q, k) / 4
    logits = np.where(frame[:, None] >= frame, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum('bans,bsac->bnac', weights, v)
    run = jax.jit(attend_frames, static_argnums=3)
    np.testing.assert_allclose(run(q, k, v, 5), expected, rtol=0, atol=1e-5)
    # the last two frames alone, with the keys of all
    np.testing.assert_allclose(run(q[:, 18:], k, v, 2), expected[:, 18:], rtol=0, atol=1e-5)


VARIANTS = [{}, {'use_extrinsics': True}, {'conditioning': 'adaln'}, {'state_width': 0}]


@pytest.mark.parametrize('settings', VARIANTS, ids=str)
def test_no_frame_sees_a_later_one(settings):
    net, params = make(**settings)
    if 'conditioning' in settings:  # its modulation starts at zero
        key = jax.random.key(1)
        shape = params['blocks']['modulation']['kernel'].shape
        params['blocks']['modulation']['kernel'] = 0.1 * jax.random.normal(key, shape)
    result = inputs('use_extrinsics' in settings)
    if settings.get('state_width') == 0:
        result[2] = None
    run = jax.jit(lambda *a: net(params, *a).reshape(2, 3, 16, 96))
    before = run(*result)
    for i, a in enumerate(result):
        if a is None:
            continue
        frames = a.reshape(2, 3, -1)
        after = run(*result[:i], frames.at[:, 2].add(1.0).reshape(a.shape), *result[i + 1 :])
        np.testing.assert_array_equal(after[:, :2], before[:, :2])
        assert np.abs(after[:, 2] - before[:, 2]).max() > 1e-3, f'input {i} has no effect'
        after = run(*result[:i], frames.at[:, 1].add(1.0).reshape(a.shape), *result[i + 1 :])
        np.testing.assert_array_equal(after[:, :1], before[:, :1])
        for frame in (1, 2):  # and the last frame sees the one before it
            assert np.abs(after[:, frame] - before[:, frame]).max() > 1e-3


@pytest.mark.parametrize('settings', [{}, {'residual': True, 'action_scale': (25.0,) * 7}], ids=str)
def test_frames_one_by_one_equal_all_at_once(settings):
    net, params = make(**settings)
    x, actions, states = inputs()
    whole = net(params, x, actions, states)
    past, parts = None, []
    for t in range(3):
        at = slice(t, t + 1)
        part, past = net(
            params, x[:, 16 * t : 16 * t + 16], actions[:, at], states[:, at],
            past=past, return_past=True,
        )  # fmt: skip
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=0, atol=1e-5)
    _, past = net(params, x[:, :32], actions[:, :2], states[:, :2], return_past=True)
    last = net(params, x[:, 32:], actions[:, 2:], states[:, 2:], past=past)
    np.testing.assert_allclose(last, whole[:, 32:], rtol=0, atol=1e-5)


def test_action_scale_is_a_factor_of_the_actions():
    plain, params = make()
    scaled, _ = make(action_scale=(2.0, 1, 1, 1, 1, 1, 0.5), state_scale=(3.0,) * 7)
    x, actions, states = inputs()
    factor = jnp.asarray([2.0, 1, 1, 1, 1, 1, 0.5])
    np.testing.assert_array_equal(
        scaled(params, x, actions, states), plain(params, x, actions * factor, states * 3)
    )


@pytest.mark.parametrize('settings', VARIANTS[1:3], ids=str)
def test_on_a_mesh_it_computes_the_same(settings):
    net, params = make(**settings)
    result = [jnp.tile(a, (2, 1, 1)) for a in inputs('use_extrinsics' in settings)]

    def loss(params, *result):
        return jnp.square(net(params['predictor'], *result)).mean()

    alone, expected = jax.jit(jax.value_and_grad(loss))({'predictor': params}, *result)
    mesh = make_mesh(fsdp=2, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = place({'predictor': params}, {'predictor': net.specs})
        batch = [a if a is None else put_batch(np.asarray(a), mesh) for a in result]
        spread, grads = jax.jit(jax.value_and_grad(loss))(placed, *batch)
    assert abs(float(alone) - float(spread)) < 1e-6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), grads, expected)


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'conditioning': 'film'}, "conditioning 'film': allowed are tokens, adaln"),
        ({'action_scale': (1.0,)}, 'action_scale has 1 factors: action_width is 7'),
        ({'conditioning': 'adaln', 'use_extrinsics': True}, 'needs conditioning'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
