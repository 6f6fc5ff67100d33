"""The memory estimate: exact where it can be, and near to what XLA allocates for a small step."""

import jax
import jax.numpy as jnp
import pytest

from jepa_jax import optim
from jepa_jax.config import ActionConditionedConfig, DataListConfig, MaskedVideoConfig
from jepa_jax.data import Batch, Group
from jepa_jax.data.trajectories import Trajectories
from jepa_jax.errors import ConfigError
from jepa_jax.masks import Mask
from jepa_jax.memory import GIB, context_share, estimate
from jepa_jax.objectives.action_conditioned import ActionConditioned
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.state import init_state
from jepa_jax.step import make_step


def recipe(**encoder) -> MaskedVideoConfig:
    config = MaskedVideoConfig(name='memory')
    for key, value in encoder.items():
        setattr(config.encoder, key, value)
    config.data.lists = [DataListConfig(kind='synthetic')]
    return config


@pytest.mark.parametrize(
    ('size', 'encoder', 'predictor'),  # parameters, reference: vjepa2 §1.1, §2
    [
        ('vitl', 303_885_312, 22_086_016),
        ('vith', 631_648_000, 22_282_880),
        ('vitg', 1_012_173_952, 22_381_312),
    ],
)
def test_state_is_counted_exactly(size, encoder, predictor):
    config = recipe(size=size)
    config.mesh.fsdp = 8
    found = estimate(config, devices=128)
    state = (4 * encoder + 3 * predictor) * 4 / 8 / GIB
    assert found['parameters, moments, target'] == pytest.approx(state, rel=1e-9)
    assert found['total'] == pytest.approx(sum(v for k, v in found.items() if k != 'total'))


def test_activations_grow_with_the_clips_at_a_time():
    config = recipe(size='small')
    config.optim.batch, config.optim.accumulate = 64, 2
    one, config.optim.accumulate = estimate(config), 4
    half = estimate(config)
    for use in ('kept for the backward pass', 'targets and predictions', 'largest block'):
        assert half[use] == pytest.approx(one[use] / 2)
    assert half['gradients'] == one['gradients']


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['full', 'dots'])  # none: scores, too, on a CPU
def test_near_to_what_xla_allocates(remat):
    config = recipe(width=96, depth=4, heads=4)
    config.mesh.remat = remat
    config.predictor.width, config.predictor.depth, config.predictor.heads = 48, 4, 4
    config.compute_dtype = 'float32'
    config.data.crop, config.data.frames = 64, 8
    config.optim.batch = rows = 256
    del config.masks[1]
    tokens = 4 * 4 * 4
    clips = jax.ShapeDtypeStruct((rows, 8, 64, 64, 3), jnp.uint8)
    masks = []
    for mask in config.masks:
        kept = int(context_share(mask) * tokens)
        ids = [jax.ShapeDtypeStruct((rows, n), jnp.int32) for n in (kept, tokens - kept)]
        masks.append(Mask(*ids))
    objective = MaskedVideo.of(config)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    tx = optim.optimizer(config.optim, optim.decay_mask(params, objective.unused))
    state = jax.eval_shape(lambda key: init_state(objective, tx, key), jax.random.key(0))
    step = jax.jit(make_step(objective, tx, config.optim), donate_argnums=0)
    compiled = step.lower(state, Batch((Group(clips, tuple(masks)),))).compile()
    allocated = compiled.memory_analysis().temp_size_in_bytes / GIB
    found = estimate(config)
    # the CPU stores attention scores, which the estimate leaves out: 64 x 64 a head, small here
    share = allocated / (found['total'] - found['parameters, moments, target'])
    print(f'{remat}: {share:.2f} of the estimate is allocated')
    assert 0.6 < share < 1.3


def robot_recipe() -> ActionConditionedConfig:
    config = ActionConditionedConfig(name='memory', encoder_from='random', compute_dtype='float32')
    config.encoder.width, config.encoder.depth, config.encoder.heads = 96, 2, 4
    config.ac.width, config.ac.depth, config.ac.heads = 96, 4, 4
    config.data.crop, config.optim.batch = 64, 64
    return config


def test_state_of_a_robot_run_is_counted_exactly():
    config = robot_recipe()
    objective = ActionConditioned.of(config)
    tx = optim.optimizer(config.optim, optim.decay_mask(objective.abstract, objective.unused))
    state = jax.eval_shape(lambda key: init_state(objective, tx, key), jax.random.key(0))
    held = sum(4 * leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) / GIB
    assert estimate(config)['parameters, moments, target'] == pytest.approx(held, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(('remat', 'prefix'), [('full', 'first'), ('dots', 'random')])
@pytest.mark.parametrize('features', ['', 'kept'])
def test_near_to_what_xla_allocates_for_a_robot(remat, prefix, features):
    config = robot_recipe()
    config.mesh.remat, config.features, config.rollout.prefix = remat, features, prefix
    rows, frames, tokens = config.optim.batch, config.robot.frames, 4 * 4
    objective = ActionConditioned.of(config)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    tx = optim.optimizer(config.optim, optim.decay_mask(params, objective.unused))
    state = jax.eval_shape(lambda key: init_state(objective, tx, key), jax.random.key(0))
    shape = jax.ShapeDtypeStruct
    batch = Trajectories(
        shape((rows, frames - 1, 7), jnp.float32),
        shape((rows, frames, 7), jnp.float32),
        shape((rows,), jnp.int32),
        None if features else shape((rows, frames, 64, 64, 3), jnp.uint8),
        shape((rows, frames, tokens, 96), jnp.float16) if features else None,
    )
    step = jax.jit(make_step(objective, tx, config.optim), donate_argnums=0)
    compiled = step.lower(state, batch).compile()
    allocated = compiled.memory_analysis().temp_size_in_bytes / GIB
    found = estimate(config)
    share = allocated / (found['total'] - found['parameters, moments, target'])
    print(f'{remat}, {prefix}, features {features!r}: {share:.2f} of the estimate is allocated')
    assert 0.6 < share < 1.3


def test_refuses_what_it_cannot_count():
    config = recipe(size='small')
    with pytest.raises(ConfigError, match='optim.batch = 3072: must be a multiple of 100'):
        estimate(config, devices=100)


def test_what_is_recomputed_is_not_kept():
    config, kept = recipe(size='vitl'), {}
    for config.mesh.remat in ('full', 'dots', 'none'):
        kept[config.mesh.remat] = estimate(config)['kept for the backward pass']
    assert kept['full'] < kept['dots'] / 3 and kept['dots'] < kept['none']
