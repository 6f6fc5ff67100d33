"""The FLOPs of the formula against those of the products in the traced program."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from jepa_jax import flops, nets
from jepa_jax.data import Batch, Group
from jepa_jax.data.trajectories import Trajectories
from jepa_jax.flops import GroupShape
from jepa_jax.masks import Mask
from jepa_jax.models.ac_predictor import ACPredictor, ACPredictorConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import Net
from jepa_jax.objectives.action_conditioned import ACLoss, ActionConditioned
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.planning.world_model import ACWorldModel, Context

ENCODER = ViTConfig(48, 3, 4, 2.5, frames=8, image_size=64, remat='none')
PREDICTOR = PredictorConfig(48, 24, 2, 2, grid=(4, 4, 4), mask_tokens=2, remat='none')


@pytest.fixture(autouse=True)
def nothing_again(monkeypatch):
    """On a CPU `none` computes scores again: this is about what a step is worth."""
    monkeypatch.setattr(nets, 'platform', lambda: 'gpu')


def products(jaxpr) -> int:
    """2 m n k of every dot_general, a scanned body as often as it runs."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'dot_general':
            (contracted, _), _ = eqn.params['dimension_numbers']
            inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        times = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
        total += times * sum(map(products, jaxprs_in_params(eqn.params)))
    return total


def traced(function, *args) -> int:
    return products(jax.make_jaxpr(function)(*args).jaxpr)


def shapes(groups: list[GroupShape]) -> Batch:
    """A batch of such groups on a grid of 4 x 4 tokens, without values."""

    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    return Batch(
        tuple(
            Group(
                jax.ShapeDtypeStruct((g.clips, g.tokens // 8, 64, 64, 3), jnp.uint8),
                tuple(Mask(ids(g.clips, k), ids(g.clips, m)) for k, m in g.masks),
            )
            for g in groups
        )
    )


@pytest.mark.parametrize('mlp', ['gelu', 'swiglu', 'swiglu_full'])
def test_a_step_is_what_its_program_multiplies(mlp):
    encoder = dataclasses.replace(ENCODER, mlp=mlp)
    predictor = dataclasses.replace(PREDICTOR, mlp=mlp)
    objective = MaskedVideo(encoder, predictor, groups=2)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    groups = [GroupShape(2, 64, ((20, 30), (12, 40))), GroupShape(3, 32, ((10, 15),))]
    batch = shapes(groups)
    counted = flops.pretraining_step(encoder, predictor, groups, encoder)
    grad = jax.value_and_grad(objective.loss, has_aux=True)
    assert counted.total == traced(grad, params, {'encoder': params['encoder']}, {}, batch, 0)
    assert counted.target == sum(
        traced(objective.targets, {'encoder': params['encoder']}, {}, group.clips)
        for group in batch.groups
    )

    def features(params, clips, ids):
        return objective.nets['encoder'](params, clips, ids).sum()

    context = (
        (params['encoder'], group.clips, mask.context)
        for group in batch.groups
        for mask in group.masks
    )
    assert counted.context == sum(traced(jax.value_and_grad(features), *each) for each in context)


@pytest.mark.parametrize('conditioning', ['tokens', 'adaln'])
@pytest.mark.parametrize('cut', [False, True])
def test_a_robots_step_is_what_its_program_multiplies(conditioning, cut):
    encoder = dataclasses.replace(ENCODER, frames=1)
    config = ACPredictorConfig(
        48, 32, 2, 2, grid=(4, 4), conditioning=conditioning, action_width=5, remat='none'
    )
    objective = ActionConditioned(encoder, config, ACLoss(rollout_steps=3, stop_gradient=cut))
    params = jax.eval_shape(objective.init, jax.random.key(0))
    frozen = {'encoder': objective.frozen['encoder'].abstract}
    clips, frames = 2, 5

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((clips, *shape), dtype)

    batch = Trajectories(
        array(frames - 1, 5), array(frames, 7), array(dtype=jnp.int32),
        features=array(frames, 16, 48),
    )  # fmt: skip
    grad = jax.value_and_grad(objective.loss, has_aux=True)
    count = functools.partial(
        flops.action_conditioned_step, config, clips, frames, rollout=3, prefix=1, cut=cut
    )
    assert count() == traced(grad, params, {}, {}, batch, 0)
    pixels = dataclasses.replace(
        batch, features=None, frames=array(frames, 64, 64, 3, dtype=jnp.uint8)
    )
    assert count(encode=encoder) == traced(grad, params, {}, frozen, pixels, 0)


def test_recomputation_does_not_count():
    again = MaskedVideo(
        dataclasses.replace(ENCODER, remat='full'),
        dataclasses.replace(PREDICTOR, remat='full'),
        groups=1,
    )
    groups = [GroupShape(2, 64, ((20, 30),))]
    params = jax.eval_shape(again.init, jax.random.key(0))
    grad = jax.value_and_grad(again.loss, has_aux=True)
    counted = flops.pretraining_step(ENCODER, PREDICTOR, groups, ENCODER)
    blocks = 2 * (flops.blocks(ENCODER, 20) + flops.blocks(PREDICTOR, 50))
    executed = traced(grad, params, {'encoder': params['encoder']}, {}, shapes(groups), 0)
    # nearly all of the blocks' forward pass is run twice; a block's last product is not needed
    assert 0.6 * blocks < executed - counted.total <= blocks


def test_products_with_weights_can_be_kept():
    """mesh.remat=dots: of a block only attention is computed again."""
    again = MaskedVideo(
        dataclasses.replace(ENCODER, remat='dots'),
        dataclasses.replace(PREDICTOR, remat='dots'),
        groups=1,
    )
    groups = [GroupShape(2, 64, ((20, 30),))]
    params = jax.eval_shape(again.init, jax.random.key(0))
    grad = jax.value_and_grad(again.loss, has_aux=True)
    executed = traced(grad, params, {'encoder': params['encoder']}, {}, shapes(groups), 0)
    attention = 2 * sum(4 * n * n * c.width * c.depth for c, n in ((ENCODER, 20), (PREDICTOR, 50)))
    extra = executed - flops.pretraining_step(ENCODER, PREDICTOR, groups, ENCODER).total
    assert 0 < extra <= attention


def test_large_encoder_is_two_flops_a_weight_and_token():
    """ViT-g on 16 frames of 256 px: two a weight and token forward, attention on top."""
    config = ViTConfig(1408, 40, 22, 48 / 11)
    weights = 40 * (4 * 1408**2 + 2 * 1408 * 6144) + 1536 * 1408
    attention = 40 * 2 * 2 * 2048 * 1408
    assert flops.encoder(config, 2048) == 2048 * (2 * weights + attention)


@pytest.mark.parametrize('conditioning', ['tokens', 'adaln'])
def test_a_rollout_is_what_its_program_multiplies(conditioning):
    config = ACPredictorConfig(
        40, width=48, depth=2, heads=4, grid=(3, 2), conditioning=conditioning, remat='none'
    )
    net = Net(lambda rngs: ACPredictor(config, rngs=rngs))
    model = ACWorldModel(net.abstract, net, config, frames=5)

    def rollout(model, features, states, actions, known):
        return model.rollout(Context(features, states, known), actions)

    poses = 3 * 5 * 2 * 27  # a product of two rotations after each action
    for known in (1, 2):
        inputs = [(known, 6, 40), (known, 7), (5, 3, 7), (known - 1, 7)]
        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
        counted = traced(rollout, model, *inputs) - poses
        if known == 2:  # the frame that all samples share, once
            frame = [jax.ShapeDtypeStruct((1, *s), jnp.float32) for s in ((6, 40), (1, 7), (1, 7))]
            counted -= traced(net, net.abstract, *frame)
        assert counted == 5 * flops.ac_rollout(config, known, 3)
