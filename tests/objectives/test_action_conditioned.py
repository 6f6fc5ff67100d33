"""The action-conditioned loss against the original's numbers and against a loss without cached
keys."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.spatial.transform import Rotation
from torch_fill import fill, normal

from jepa_jax.data.trajectories import Trajectories
from jepa_jax.loop import _health
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives.action_conditioned import ACLoss, ActionConditioned
from jepa_jax.sharding import make_mesh, place, put_batch

TINY = ACPredictorConfig(
    96, width=64, depth=2, heads=4, grid=(4, 4), dtype=jnp.float32, remat='none'
)
ENCODER = ViTConfig(96, 2, 4, dtype=jnp.float32)
LOSS = 1e-5  # design: loss of a training step


jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def standardise(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return ((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)).astype('f')


def batch(normalise: bool = True) -> Trajectories:
    h = normal(20, 2, 64, 96).reshape(2, 4, 16, 96)
    return Trajectories(
        actions=jnp.asarray(normal(21, 2, 3, 7)),
        states=jnp.asarray(normal(22, 2, 4, 7)),
        prefix=jnp.ones(2, jnp.int32),
        features=jnp.asarray(standardise(h) if normalise else h),
    )


def make(config: ACPredictorConfig = TINY, **settings) -> tuple[ActionConditioned, dict]:
    """For batches that hold features."""
    objective = ActionConditioned(ENCODER, config, ACLoss(**settings), features=True)
    params = fill(objective.abstract['predictor'], sigma=0.05, predictor=True)
    return objective, {'predictor': params}


# settings -> teacher forcing, rollout, norm of the gradient (reference: vjepa2 §13, AC loss)
ROWS = [
    (dict(rollout_steps=1), (1.1190319, 1.1220185, 0.70305070)),
    (dict(rollout_steps=2), (1.1190319, 1.1241887, 0.57862064)),
    (dict(rollout_steps=3), (1.1190319, 1.1244720, 0.53977705)),
    (dict(exponent=2.0), (0.99317425, 0.99214441, 0.69791748)),
    (dict(normalise=False), (0.85401922, 0.85012370, 0.32755746)),
]


@pytest.mark.parametrize('settings, expected', ROWS, ids=lambda v: str(v))
def test_golden(settings, expected):
    objective, params = make(**settings)
    result = batch(settings.get('normalise', True))
    grad = jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, parts), grads = grad(params, {}, {}, result, 0)
    assert abs(float(parts['loss/teacher_forcing']) - expected[0]) < LOSS
    assert abs(float(parts['loss/rollout']) - expected[1]) < LOSS
    assert abs(float(loss) - expected[0] - expected[1]) < 2 * LOSS
    assert abs(float(optax.tree.norm(grads)) - expected[2]) < LOSS
    # no gradient reaches the encoder of camera poses, and it is named so that it does not decay
    dead = {f'predictor/extrinsics_encoder/{k}' for k in ('kernel', 'bias')}
    assert objective.unused == dead
    assert all(not g.any() for g in grads['predictor']['extrinsics_encoder'].values())


def slow_loss(objective, params, result, prefix: int, steps: int, stop: bool) -> jax.Array:
    """The rollout's loss as written in the reference: the whole sequence through the predictor
    for every new frame."""

    def predict(z):
        n = z.shape[1]
        return objective.predict(params['predictor'], z, *result.conditions(0, n))[0]

    h = result.features
    Z = h[:, :prefix]
    made = []
    for _ in range(steps):
        new = predict(Z)[:, -1:]
        made.append(new)
        Z = jnp.concatenate([Z, jax.lax.stop_gradient(new) if stop else new], 1)
    rollout = jnp.abs(jnp.concatenate(made, 1) - h[:, prefix : prefix + steps]).mean()
    return jnp.abs(predict(h[:, :-1]) - h[:, 1:]).mean() + rollout


@pytest.mark.parametrize('prefix, stop', [(2, True)])
def test_rollout_with_cached_keys_has_loss_and_gradient_of_one_without(prefix, stop):
    config = dataclasses.replace(TINY, depth=1)
    objective, params = make(config, stop_gradient=stop, prefix='random')
    result = dataclasses.replace(batch(), prefix=jnp.full(2, prefix, jnp.int32))
    grad = jit(jax.value_and_grad(lambda p: objective.loss(p, {}, {}, result, 0)[0]))
    loss, grads = grad(params)
    expected, slow = jit(
        jax.value_and_grad(lambda p: slow_loss(objective, p, result, prefix, 2, stop))
    )(params)
    assert abs(float(loss) - float(expected)) < LOSS
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), grads, slow)


def test_frames_and_their_features_give_the_same_loss():
    objective = ActionConditioned(ENCODER, TINY)
    params = {'predictor': fill(objective.abstract['predictor'], sigma=0.05, predictor=True)}
    weights = {'encoder': fill(objective.frozen['encoder'].abstract, sigma=0.05)}
    frames = np.random.RandomState(0).randint(0, 256, (2, 4, 64, 64, 3)).astype(np.uint8)
    result = dataclasses.replace(batch(), features=None, frames=jnp.asarray(frames))
    targets = jit(objective.targets)
    features = targets(weights, result)
    cached = dataclasses.replace(result, frames=None, features=features)
    assert features.shape == (2, 4, 16, 96)
    loss, cached = (
        float(jit(objective.loss)(params, {}, weights, b, 0)[0]) for b in (result, cached)
    )
    assert abs(loss - cached) < LOSS
    # no leak: what comes after a frame has no part in its features
    changed = frames.copy()
    changed[:, 3] = 255 - changed[:, 3]
    after = targets(weights, dataclasses.replace(result, frames=jnp.asarray(changed)))
    np.testing.assert_array_equal(after[:, :3], features[:, :3])
    assert np.abs(after[:, 3] - features[:, 3]).max() > 0.1


def test_on_a_mesh_the_loss_is_the_same():
    objective, params = make(prefix='random')
    result = jax.tree.map(lambda a: jnp.concatenate([a, a]), batch())
    alone = float(jit(objective.loss)(params, {}, {}, result, 0)[0])
    mesh = make_mesh(fsdp=2, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        inputs = place(params, objective.specs), {}, {}, put_batch(result, mesh)
        spread = jit(objective.loss)(*inputs, 0)[0]
        health = jit(objective.health)(*inputs)
    assert abs(float(spread) - alone) < 1e-6
    assert 0 < float(health['true']) != float(health['shuffled'])


def test_actions_of_another_clip_are_tried_where_there_is_one():
    """Parts of one clip each are taken two by two; a lone clip says nothing of ignored actions."""
    objective, params = make(prefix='random')
    two = batch()  # of two clips

    def health(parts: int, batch: Trajectories) -> dict[str, float]:
        def of(params, batch):
            state = types.SimpleNamespace(params=params, ema={})
            return _health(objective, parts)(state, {}, batch)

        return objective.measure(jit(of)(params, batch))

    pairs = health(2, two)
    assert pairs == objective.measure(jit(objective.health)(params, {}, {}, two))
    assert pairs['health/shuffled_actions'] != 1
    alone = health(1, jax.tree.map(lambda a: a[:1], two))
    assert alone.keys() == {'health/error_over_copy'}
    word, sentence = objective.verdict([alone | {'health/error_over_copy': 0.5}])
    assert word == 'unknown' and 'optim.batch = 1' in sentence


def test_bad_settings():
    with pytest.raises(ValueError, match="prefix 'last': allowed are first, random"):
        ActionConditioned(ENCODER, TINY, ACLoss(prefix='last'))
    with pytest.raises(ValueError, match='rollout_steps 0: must be at least 1'):
        ActionConditioned(ENCODER, TINY, ACLoss(rollout_steps=0))


def test_the_encoder_is_frozen_or_only_kept():
    """Of features that come with the batch the encoder is on no device, but goes with the run."""
    whole, features = ActionConditioned(ENCODER, TINY), make()[0]
    assert (set(whole.nets), set(whole.frozen), set(whole.kept)) == (
        {'predictor'},
        {'encoder'},
        set(),
    )
    assert (set(features.frozen), set(features.kept)) == (set(), {'encoder'})
    assert whole.ema == features.ema == ()
    net, params = whole.encoder({}, {}, {'encoder': 'weights'})
    assert net is whole.frozen['encoder'] and params == 'weights'
    with pytest.raises(ValueError, match='on no device'):
        features.encoder({}, {}, {})


def test_errors_ahead_are_those_of_rollouts_without_cached_keys():
    """Windows of two frames that move on over predictions, states integrated by scipy; every
    window through the predictor by itself."""
    config = dataclasses.replace(TINY, depth=1)
    objective, params = make(config)
    result = batch()
    own, copied = jit(functools.partial(objective.ahead, known=2))(params, {}, result)
    h, actions = result.features, np.asarray(result.actions)
    frames, states = [h[:, 0], h[:, 1]], [np.asarray(result.states[:, t]) for t in range(2)]
    predict = jit(lambda *window: objective.predict(params['predictor'], *window)[0])
    for k in range(2):
        window = jnp.stack(frames[-2:], 1), actions[:, k : k + 2], np.stack(states[-2:], 1)
        frames.append(predict(*window)[:, -1])
        expected = jnp.abs(frames[-1] - h[:, 2 + k]).mean((1, 2))
        np.testing.assert_allclose(own[:, k], expected, rtol=0, atol=LOSS)
        np.testing.assert_allclose(copied[:, k], jnp.abs(h[:, 1] - h[:, 2 + k]).mean((1, 2)), 1e-6)
        before, action = states[-1], actions[:, k + 1]
        turned = Rotation.from_euler('xyz', action[:, 3:6]) * Rotation.from_euler(
            'xyz', before[:, 3:6]
        )
        moved = before + action
        moved[:, 3:6] = turned.as_euler('xyz')
        moved[:, 6] = moved[:, 6].clip(0, 1)
        states.append(moved.astype(np.float32))
