"""The recipes of MAE and VideoMAE hold the released values (reference: family §3)."""

import pathlib

import pytest

from jepa_jax import cli, optim
from jepa_jax.config import encoder_shape
from jepa_jax.memory import estimate
from jepa_jax.recipes import validate

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'


def recipe(name: str, arg: str = ''):
    return cli.load(f'{CONFIGS / name}.py' + (f':{arg}' if arg else ''))


@pytest.mark.parametrize(
    'name, shape, batch, decoder',
    [
        ('mae_vitb', (768, 12, 12), 4096, (512, 8, 16)),
        ('mae_vitl', (1024, 24, 16), 4096, (512, 8, 16)),
        ('videomae_vitb', (768, 12, 12), 2048, (384, 4, 6)),
    ],
)
def test_released_values(name, shape, batch, decoder):
    c = recipe(name)
    validate(c)
    s, d, o, a = encoder_shape(c.encoder), c.decoder, c.optim, c.data.augment
    assert (s.width, s.depth, s.heads) == shape and (d.width, d.depth, d.heads) == decoder
    assert (o.batch, o.beta1, o.beta2, o.eps) == (batch, 0.9, 0.95, 1e-8)
    assert (o.weight_decay, o.final_weight_decay, c.data.crop) == (0.05, 0.05, 224)
    assert o.warmup * 1600 == 40 * o.steps and o.lr == pytest.approx(1.5e-4 * batch / 256)
    rate = optim.learning_rate(o)
    images = name.startswith('mae')
    first, last = (0.0, 0.0) if images else (8e-6, 8e-5)
    assert float(rate(0)) == pytest.approx(first)
    assert float(rate(o.steps)) == pytest.approx(last, abs=1e-9)
    assert float(rate(o.warmup)) == pytest.approx(o.lr)
    if images:
        assert (c.mask_ratio, c.target, c.data.frames) == (0.75, 'patches', 1)
        assert (a.scale, a.ratio, a.flip) == ((0.2, 1.0), (0.75, 4 / 3), True)
        assert a.antialias and a.bicubic
    else:
        assert (c.mask_ratio, c.target, c.data.frames) == (0.9, 'cubes', 16)
        assert (c.data.frame_step, a.flip) == (4, False)
    c.optim.accumulate, c.mesh.fsdp = 1, 1
    c.optim.batch = 64
    assert 1 < estimate(c)['total'] < 80


@pytest.mark.parametrize('name', ['mae_vitb', 'mae_vitl', 'videomae_vitb'])
def test_smoke_is_small_and_valid(name):
    big, c = recipe(name), recipe(name, 'smoke')
    validate(c)
    assert c.name == f'{big.name}-smoke' and c.optim.steps <= 48
    assert {item.kind for item in c.data.lists} == {'synthetic_few'}
    assert (c.kind, c.target, c.mask_ratio) == (big.kind, big.target, big.mask_ratio)
    assert c.data.crop // c.encoder.patch == 4
