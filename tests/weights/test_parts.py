"""The table of parts: configs as JSON, and what makes two encoders different."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jepa_jax import lookup
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.expander import ExpanderConfig
from jepa_jax.models.pixel_decoder import PixelDecoderConfig
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import Net
from jepa_jax.weights import parts, tables

VIT = ViTConfig(24, 1, 2, patch=8, image_size=16, frames=4, dtype=jnp.float32)
CONFIGS = {
    'encoder': VIT,
    'predictor': PredictorConfig(24, 24, 1, 2, grid=(2, 2, 2)),
    'pixel_decoder': PixelDecoderConfig(24, 192, 24, 1, 2, grid=(0, 2, 2)),
    'expander': ExpanderConfig(24, (16, 8), 4),
    'ac_predictor': ACPredictorConfig(24, 24, 1, 2, action_scale=(2.0,) * 7),
    'probe': (PoolerConfig(24, 2, 1, 2), {'verb': 3, 'noun': 2}),
}


def test_the_table_needs_no_jax():
    code = "import sys, jepa_jax.weights.parts; assert 'jax' not in sys.modules"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, '-c', code], cwd=root, timeout=60).returncode == 0


@pytest.mark.parametrize('part', parts.PARTS)
def test_every_name_of_a_row_is_there(part):
    row = parts.PARTS[part]
    names = [row.config, row.module, row.sharding, row.version, row.to_json, row.from_json]
    for kind in row.files.values():
        names += filter(None, (kind.rules, kind.config, kind.computed))
    assert all(callable(lookup.load(name)) for name in names)


@pytest.mark.parametrize('part', CONFIGS)
def test_configs_come_back_from_json(part):
    import json

    config = CONFIGS[part]
    text = json.dumps(parts.json_of(part, config), sort_keys=True)
    back = parts.config_of(part, json.loads(text))
    assert back == config
    if part == 'probe':  # the order of the queries
        assert list(back[1]) == list(config[1])


def test_versions():
    assert parts.version_of('encoder', VIT) == '2.0'
    assert parts.version_of('predictor', dataclasses.replace(CONFIGS['predictor'], rope='paired'))
    assert parts.version_of('probe', CONFIGS['probe']) == ''


CHANGES = {
    'heads': dict(heads=1),
    'rope': dict(rope='paired'),
    'interpolate': dict(interpolate=True),
    'modalities': dict(modalities=True),
    'levels': dict(levels=(0, 1)),
    'class_token': dict(class_token=True),
    'key_bias': dict(key_bias=False),
    'position': dict(position='sincos'),
    'mlp_ratio': dict(mlp_ratio=3.0),
    'mlp': dict(mlp='swiglu'),
    'patch': dict(patch=4),
    'tubelet': dict(tubelet=1),
}
NO_CHANGES = {
    'number type': dict(dtype=jnp.bfloat16),
    'recomputation': dict(remat='none'),
    'a table of RoPE': dict(image_size=64, frames=8, uniform_power=False),
    'a ratio of the same width': dict(mlp_ratio=96.5 / 24),
}


@pytest.mark.parametrize('name', CHANGES)
def test_what_changes_features_is_named(name):
    other = dataclasses.replace(VIT, **CHANGES[name])
    (line,) = parts.differences(VIT, other)
    (key,), (value,) = CHANGES[name].keys(), CHANGES[name].values()
    assert line.startswith(f'{key} ') and str(value).rstrip('0').rstrip('.') in line


@pytest.mark.parametrize('name', NO_CHANGES)
def test_what_does_not_is_not(name):
    assert parts.differences(VIT, dataclasses.replace(VIT, **NO_CHANGES[name])) == []


@pytest.mark.parametrize(
    'change',
    [dict(heads=1), dict(mlp_ratio=96.5 / 24), dict(image_size=32)],
    ids=str,
)
@pytest.mark.parametrize('position', ['rope', 'sincos'])
def test_differences_are_those_of_the_features(position, change):
    """The same weights in both: features differ just where `differences` says so."""
    one = dataclasses.replace(VIT, position=position)
    other = dataclasses.replace(one, **change)
    clip = np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32, 3), np.uint8)
    params = Net(lambda rngs: ViT(one, rngs=rngs)).init(jax.random.key(0))
    a, b = (Net(lambda rngs, c=c: ViT(c, rngs=rngs))(params, clip) for c in (one, other))
    assert bool(jnp.abs(a - b).max() > 1e-6) == bool(parts.differences(one, other))


def test_tables_of_sincos_count():
    one = dataclasses.replace(VIT, position='sincos')
    more = dict(uniform_power=False, image_size=32, stored_table=True, frames=8, shorter='resized')
    lines = parts.differences(one, dataclasses.replace(one, **more, rope='paired', axes='xy'))
    assert [line.split()[0] for line in lines] == list(more)
    image = dataclasses.replace(one, tubelet=1)
    like = dict(frames=8, shorter='resized')
    assert parts.differences(image, dataclasses.replace(image, **like)) == []
    (line,) = parts.differences(image, dataclasses.replace(image, axes='xy'))
    assert line == 'axes yx and xy'


@pytest.mark.parametrize('shape', [(1, 1), (3, 50), (50, 3), (33, 16), (0, 4), (7,), (2, 3, 5), ()])
def test_arrays_are_put_in_order(shape):
    """A transposed matrix a few columns at a time: the same numbers, whatever its sides."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        array = rng.normal(size=shape[::-1]).astype(dtype).T
        result = tables.contiguous(array)
        assert result.flags.c_contiguous and result.dtype == dtype
        np.testing.assert_array_equal(result, np.ascontiguousarray(array).reshape(shape))
        assert tables.contiguous(result) is result
