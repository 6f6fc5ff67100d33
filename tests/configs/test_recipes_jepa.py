"""The recipes of I-JEPA and V-JEPA 1 hold the released values (reference: family §1.7, §2)."""

import pathlib

import numpy as np
import pytest

from jepa_jax import build, cli, describe, optim
from jepa_jax.config import encoder_shape
from jepa_jax.errors import ConfigError
from jepa_jax.memory import choose, estimate
from jepa_jax.recipes import validate

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'
ALL = ('ijepa_vith14', 'ijepa_vitg16', 'vjepa1_vitl', 'vjepa1_vith', 'vjepa1_vith:384')


def recipe(name):
    file, _, arg = name.partition(':')
    return cli.load(f'{CONFIGS / file}.py' + (f':{arg}' if arg else ''))


@pytest.mark.parametrize(
    ('name', 'row'), [('ijepa_vith14', 'I6_h14_in1k'), ('vjepa1_vitl', 'V8_vitl16')]
)
def test_schedules_are_the_originals(name, row, golden_jepa):
    """Learning rate, weight decay and momentum at steps of the released runs."""
    o = recipe(name).optim
    schedules = optim.learning_rate(o), optim.weight_decay(o), optim.ema_rate(o)
    rows = golden_jepa[row]
    assert rows[-1, 0] == o.steps
    for k, *expected in rows:
        rate, decay, change = (float(schedule(int(k) - 1)) for schedule in schedules)
        np.testing.assert_allclose((rate, decay, 1 - change), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ('name', 'shape', 'patch', 'depth', 'steps', 'warmup', 'group'),
    [
        ('ijepa_vith14', (1280, 32, 16), 14, 12, 187_500, 25_000, 128),
        ('ijepa_vitg16', (1408, 40, 16), 16, 16, 305_008, 20_796, 16),
    ],
)
def test_recipes_of_ijepa(name, shape, patch, depth, steps, warmup, group):
    c = recipe(name)
    s, e, p = encoder_shape(c.encoder), c.encoder, c.predictor
    assert (s.width, s.depth, s.heads) == shape
    assert (e.patch, e.tubelet, e.position, e.axes) == (patch, 1, 'sincos', 'xy')
    assert (p.width, p.depth, p.heads, p.mask_tokens) == (384, depth, 16, 1)
    assert not p.zero_init_mask_tokens
    m, a = c.masks, c.data.augment
    assert (m.targets, m.target_scale, m.aspect_ratio) == (4, (0.15, 0.2), (0.75, 1.5))
    assert (m.context_scale, m.min_keep, m.allow_overlap, m.group) == ((0.85, 1), 10, False, group)
    assert (a.scale, a.ratio, a.flip, a.antialias) == ((0.3, 1), (3 / 4, 4 / 3), False, True)
    o = c.optim
    assert (o.batch, o.steps, o.warmup, o.clip) == (2048, steps, warmup, 0)
    assert (c.data.crop, c.data.frames, c.loss_beta, c.compute_dtype) == (224, 1, 1.0, 'bfloat16')
    assert build.masked_image(c).nets['predictor'].config.grid == (0, 224 // patch, 224 // patch)


@pytest.mark.parametrize(
    ('name', 'width', 'crop', 'batch'),
    [
        ('vjepa1_vitl', 1024, 224, 3072),
        ('vjepa1_vith', 1280, 224, 3072),
        ('vjepa1_vith:384', 1280, 384, 2400),
    ],
)
def test_recipes_of_vjepa1(name, width, crop, batch):
    c = recipe(name)
    e, p, o = c.encoder, c.predictor, c.optim
    assert (encoder_shape(e).width, c.data.crop, o.batch) == (width, crop, batch)
    assert (e.position, e.uniform_power, e.shorter) == ('sincos', True, 'resized')
    assert (p.width, p.depth, p.heads, p.mask_tokens) == (384, 12, 16, 2)
    assert p.zero_init_mask_tokens
    assert (c.loss_exponent, c.variance_weight, o.clip, o.clip_from) == (1, 0, 10, 12_300)
    assert (c.data.frames, c.data.frame_step, c.data.fps) == (16, 4, 0)
    assert [(m.num_blocks, m.spatial_scale) for m in c.masks] == [(8, (0.15,) * 2), (2, (0.7,) * 2)]
    a = c.data.augment
    assert (a.scale, a.ratio, a.flip) == ((0.3, 1.0), (0.75, 1.35), True)
    objective = build.masked_video(c)
    assert objective.nets['predictor'].config.grid == (8, crop // 16, crop // 16)
    assert not objective.unused  # a token for each mask setting


@pytest.mark.parametrize('name', ALL)
def test_recipes_and_their_trials_are_valid(name):
    validate(recipe(name))
    trial = recipe(f'{name},smoke' if ':' in name else f'{name}:smoke')
    validate(trial)
    assert trial.optim.steps == 24 and trial.optim.clip_from <= 4


def test_a_momentum_of_one_is_said_in_words():
    lines = describe.masked_image(recipe('ijepa_vith14'))
    assert lines[-1] == 'EMA momentum 1 at the end: the target no longer follows'
    assert not any('inf' in line for line in lines)


def test_memory_of_a_recipe():
    """A ViT-H/14 at the batch of a GPU of the original fits its 80 GB, and needs more than its
    state."""
    c = recipe('ijepa_vith14')
    c.optim.batch = 128
    chosen = choose(c, 1, 80e9)
    sizes = estimate(chosen)
    state = sizes['parameters, moments, averages'] + sizes['gradients']
    assert state < sizes['total'] < 75


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: setattr(c.encoder, 'tubelet', 2), 'encoder.tubelet = 2: must be 1'),
        (lambda c: setattr(c.data, 'frames', 4), 'data.frames = 4: must be 1'),
        (lambda c: setattr(c.data, 'crop', 225), 'data.crop = 225'),
        (lambda c: setattr(c.data.lists[0], 'path', ''), 'path is empty'),
        (lambda c: setattr(c.encoder, 'version', '2.1'), "must be '2.0'"),
        (lambda c: setattr(c.data.augment, 'motion_shift', True), 'motion_shift'),
        (lambda c: setattr(c.predictor, 'width', 390), 'predictor.width = 390'),
    ],
)
def test_what_cannot_work_is_refused(change, words):
    c = recipe('ijepa_vith14')
    change(c)
    with pytest.raises(ConfigError, match=words):
        validate(c)
