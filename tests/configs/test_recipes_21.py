"""The recipes of V-JEPA 2.1 hold the values of its public files (reference: vjepa2_1 §9)."""

import pathlib

import pytest

from jepa_jax import cli, optim
from jepa_jax.config import encoder_shape
from jepa_jax.data.videos import split_rows
from jepa_jax.errors import ConfigError, UsageError
from jepa_jax.models import VERSIONS
from jepa_jax.recipes import validate

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'
SIZES = {
    'vitb_21': (768, 12, 12, 3072),
    'vitl_21': (1024, 24, 16, 4096),
    'vitg_21': (1408, 40, 22, 6144),
    'vitgigantic_21': (1664, 48, 26, 8192),
}
ALL = [f'{name}:{phase}' for name in SIZES for phase in ('pretrain', 'cooldown')]


def recipe(name):
    file, _, arg = name.partition(':')
    return cli.load(f'{CONFIGS / file}.py' + (f':{arg}' if arg else ''))


@pytest.mark.parametrize('name', ALL)
def test_released_values(name):
    c = recipe(name)
    shape = encoder_shape(c.encoder)
    hidden = int(shape.width * shape.mlp_ratio)
    assert (shape.width, shape.depth, shape.heads, hidden) == SIZES[name.split(':')[0]]
    e, p, o, loss = c.encoder, c.predictor, c.optim, c.context_loss
    assert (e.version, e.patch, e.tubelet, e.position, e.mlp) == ('2.1', 16, 2, 'rope', 'gelu')
    assert (p.width, p.depth, p.heads, p.mlp_ratio, p.mask_tokens) == (384, 24, 12, 4.0, 8)
    assert (o.beta1, o.beta2, o.eps, c.loss_exponent, c.seed) == (0.9, 0.999, 1e-8, 1.0, 239)
    assert (o.weight_decay, o.final_weight_decay) == (0.04, 0.04)
    assert (o.momentum, o.final_momentum, o.guard.deviations) == (0.99925, 0.99925, 0)
    assert (c.data.crop, c.data.fps, c.compute_dtype) == (256, 4, 'bfloat16')
    a = c.data.augment
    assert (a.scale, a.ratio, a.flip) == ((0.3, 1.0), (0.75, 1.35), True)
    masks = [(m.num_blocks, m.spatial_scale, m.aspect_ratio) for m in [*c.masks, *c.image_masks]]
    scales = ((8, 0.15), (2, 0.7), (10, 0.15))
    assert masks == [(n, (scale, scale), (0.75, 1.5)) for n, scale in scales]
    assert (loss.weight, loss.image_weight, c.image_share) == (0.5, 0.5, 0.5)
    rate = optim.learning_rate(o)
    rates = [float(rate(0)), float(rate(o.steps - 1))]
    if name.endswith('pretrain'):
        assert (c.data.frames, o.steps, o.warmup) == (16, 300_000, 12_000)
        assert rates == pytest.approx([1e-4 + 5e-4 / 12_000, 6e-4], rel=1e-6)
        assert (loss.begin, loss.full, loss.by_distance) == (15_000, 30_000, True)
        images = 4608
    else:
        assert (c.data.frames, o.steps, c.checkpoints.restart_schedule) == (64, 12_000, True)
        assert rates[1] == pytest.approx(1.21e-4, rel=5e-3)
        assert (loss.begin, loss.full, loss.by_distance) == (0, 0, False)
        images = 9216
    # clips and images a step, also on each of 128 devices
    assert split_rows(c, o.batch) == {c.data.frames: 3072, 1: images}
    assert split_rows(c, o.batch // 128) == {c.data.frames: 24, 1: images // 128}
    assert [x.weight for x in c.data.lists[:3]] == [0.335, 0.1, 0.565]


@pytest.mark.parametrize('name', [*ALL, 'tiny_21:pretrain'])
def test_valid_and_small_as_a_trial(name):
    c = recipe(name)
    if name.endswith('cooldown'):
        with pytest.raises(ConfigError, match='checkpoints.resume_from is empty'):
            validate(c)
        c.checkpoints.resume_from = 'runs/x'
    validate(c)
    small = recipe(f'{name},smoke')
    validate(small)
    assert small.name == f'{c.name}-smoke' and small.optim.steps == 24
    assert [x.frames == 1 for x in small.data.lists] == [x.frames == 1 for x in c.data.lists]
    assert small.context_loss.full <= 4 and (small.context_loss.full > 0) == (
        c.context_loss.full > 0
    )


def test_tiny_has_the_budget_of_the_main_job():
    """What differs is what V-JEPA 2.1 changed."""
    c, before = recipe('tiny_21'), recipe('tiny')
    for part in ('data', 'optim', 'mesh', 'masks', 'checkpoints', 'logging', 'probe'):
        assert getattr(c, part) == getattr(before, part), part
    c.encoder.version, c.predictor.mask_tokens = '2.0', before.predictor.mask_tokens
    assert (c.encoder, c.predictor) == (before.encoder, before.predictor)


def test_names():
    names = [recipe(name).name for name in ALL]
    assert len({name.lower() for name in names}) == len(names)
    assert {*SIZES} == {path.stem for path in CONFIGS.glob('vit*_21.py')}
    assert VERSIONS['2.1'].sizes.keys() == VERSIONS['2.0'].sizes.keys()
    with pytest.raises(UsageError, match='allowed are pretrain, cooldown, smoke'):
        recipe('vitg_21:paper')
