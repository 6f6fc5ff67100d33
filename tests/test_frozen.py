"""Nets that a run uses and never trains: which encoder is refused, where its arrays lie on a mesh,
and on which devices the features of recordings are computed."""

import dataclasses

import jax
import numpy as np
import pytest

from jepa_jax import build, frozen, memory, start
from jepa_jax.config import ActionConditionedConfig, EncoderConfig, RobotConfig
from jepa_jax.data.features import FeatureStore
from jepa_jax.data.robot import open_recordings
from jepa_jax.errors import ConfigError
from jepa_jax.models.ac_predictor import encode_frames
from jepa_jax.nets import ONCE
from jepa_jax.origin import Origin
from jepa_jax.sharding import make_mesh, path_name
from jepa_jax.weights import zoo


def of_tiny(**changes) -> ActionConditionedConfig:
    """On the encoder that comes with the package."""
    config = ActionConditionedConfig(encoder_from='tiny', compute_dtype='float32')
    config.robot, config.data.crop = RobotConfig('synthetic'), 32
    config.encoder = EncoderConfig('tiny', width=96, depth=4, heads=4, patch=8)
    config.ac.width, config.ac.depth, config.ac.heads = 48, 1, 2
    config.encoder = dataclasses.replace(config.encoder, **changes)
    return config


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'heads': 2}, 'heads 4 and 2'),
        ({'heads': 2, 'mlp_ratio': 2.0}, 'heads 4 and 2; mlp_ratio 4 and 2'),
        ({'version': '2.1'}, 'rope tiled and paired'),
        ({'position': 'sincos'}, 'position rope and sincos'),
    ],
)
def test_an_encoder_of_the_same_shapes_that_computes_otherwise_is_refused(changes, words):
    """Heads and positions have no arrays: shapes alone would let wrong features through."""
    config = of_tiny()
    prepared = frozen.encoder_of_recordings(config, build.action_conditioned(config), Origin())
    expected = zoo.find('tiny').params('target')
    jax.tree.map(np.testing.assert_array_equal, prepared.frozen, {'encoder': expected})
    other = of_tiny(**changes)
    with pytest.raises(ConfigError, match=f"encoder_from = 'tiny': another encoder .*{words}"):
        frozen.encoder_of_recordings(other, build.action_conditioned(other), Origin())


def test_a_frozen_encoder_lies_on_the_mesh_in_shards():
    """Half of every kernel on each of two devices, vectors whole; the estimate counts a half."""
    config = of_tiny()
    nets = build.action_conditioned(config).frozen
    abstract = nets['encoder'].abstract
    params = {'encoder': jax.tree.map(lambda a: np.ones(a.shape, a.dtype), abstract)}
    placed = start.on_mesh(nets, params, make_mesh(2, jax.devices()[:2]))['encoder']
    shapes = {  # of the second device
        path_name(path): leaf.addressable_shards[1].data.shape
        for path, leaf in jax.tree.leaves_with_path(placed)
    }
    assert {name: shape for name, shape in shapes.items() if name.endswith('kernel')} == {
        'patch_embed/kernel': (384, 48),
        'blocks/attn/qkv/kernel': (4, 48, 288),
        'blocks/attn/proj/kernel': (4, 96, 48),
        'blocks/mlp/fc1/kernel': (4, 48, 384),
        'blocks/mlp/fc2/kernel': (4, 384, 48),
    }
    assert shapes['norm/scale'] == (96,)
    one, config.mesh.fsdp = memory.estimate(config), 2
    two = memory.estimate(config, devices=2)
    assert two['frozen nets'] == pytest.approx(one['frozen nets'] / 2) and two['frozen nets'] > 0


def test_features_of_recordings_are_computed_on_all_devices(monkeypatch, tmp_path):
    """Each of eight devices takes an eighth of the frames; what is stored is what one gives."""
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    np.savez(tmp_path / 'a.npz', states=np.zeros((9, 7)), fps=4, observations=frames)
    config = of_tiny(width=24, depth=1, heads=2)
    config.encoder_from, config.features = frozen.RANDOM, str(tmp_path / 'features')
    config.robot = RobotConfig('npz', str(tmp_path))
    objective, seen = build.action_conditioned(config), []

    def watched(net, params, frames, tubelet):
        seen.append(jax.typeof(frames).sharding)
        return encode_frames(net, params, frames, tubelet)

    monkeypatch.setattr(frozen, 'encode_frames', watched)
    prepared = frozen.encoder_of_recordings(config, objective, Origin())
    assert [(s.mesh.size, s.spec[0]) for s in seen] == [(8, ('data', 'fsdp'))]
    assert isinstance(prepared.data, FeatureStore)
    numbers, stored = prepared.data.read(open_recordings(config.robot), 0)
    net = objective.kept['encoder']
    alone = jax.jit(lambda p, x: encode_frames(net, p, x[:, None], 2)[:, 0], compiler_options=ONCE)
    expected = alone(prepared.kept['encoder'], frames[numbers])
    np.testing.assert_allclose(stored[:], np.float16(expected), rtol=0, atol=2e-3)
    assert len(numbers) == 9
