"""Linear heads on tokens: views, windows, losses against PyTorch, choice, and whole evaluations."""

import dataclasses
import importlib.util
import json
import pathlib

import dense_sets as made
import jax
import numpy as np
import pytest
import torch

from jepa_jax.config.dense import DepthConfig, PropagationConfig, SegmentationConfig
from jepa_jax.data.labelled.dense import IGNORE, Sample
from jepa_jax.errors import ConfigError
from jepa_jax.evals import dense, depth, of, propagation, segmentation
from jepa_jax.evals.dense import Heads, PictureEncoder
from jepa_jax.evals.probes import Setting
from jepa_jax.model import Loaded, Model
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights.parts import net

ROOT = pathlib.Path(__file__).resolve().parents[2]
PIXELS = PictureEncoder(lambda x: dense.pixel_tokens(x[:, None], 8)[:, 0], 8)


def small(kind=SegmentationConfig, **options):
    """A config for pictures of 24 x 32 pixels."""
    config = kind(steps=30, batch=4, warmup=3, bootstrap=20, **options)
    c = config.data
    c.short, c.crop, c.scale, c.stride, c.official = 0, (24, 32), (1.0, 1.0), 0, False
    config.rates = (0.1,) * len(config.rates)
    config.decays = (0.01,) * len(config.decays)
    return config


def sample(name: str, seed: int = 0, source: str = '') -> Sample:
    """Left half dark and class 0, right half light and class 1."""
    pixels = np.random.default_rng(seed).integers(0, 60, (24, 32, 3))
    pixels[:, 16:] += 150
    return Sample(name, source or name, lambda: (pixels.astype(np.uint8), made.halves(0, 1)))


# Pictures


def test_views():
    rng = np.random.default_rng(0)
    picture, labels = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8), made.halves(0, 1)
    c = small().data
    one = Sample('a', 'a', lambda: (picture, labels))
    middle = dataclasses.replace(c, crop=(8, 16))
    pixels, own = dense.view(one, middle, IGNORE, None)
    np.testing.assert_array_equal(pixels, picture[8:16, 8:24])
    np.testing.assert_array_equal(own, labels[8:16, 8:24])
    # smaller than the crop: black without labels
    pixels, own = dense.view(one, dataclasses.replace(c, crop=(32, 40)), IGNORE, None)
    np.testing.assert_array_equal(pixels[:24, :32], picture)
    assert not pixels[24:].any() and (own[24:] == IGNORE).all() and (own[:, 32:] == IGNORE).all()
    # at random: labels stay with their pixels
    shown = np.repeat(100 * labels[..., None], 3, -1)
    pair = Sample('b', 'b', lambda: (shown, labels))
    varied = dataclasses.replace(c, crop=(16, 16), scale=(1.0, 2.0))
    seen = set()
    for seed in range(20):
        pixels, own = dense.view(pair, varied, IGNORE, np.random.default_rng(seed))
        assert abs(pixels[..., 0] / 100.0 - own).mean() < 0.1
        seen.add((own.mean().round(2), own[0, 0] > own[0, -1]))
    assert len(seen) > 6 and {first for _, first in seen} == {True, False}
    again = dense.view(pair, varied, IGNORE, np.random.default_rng(19))
    np.testing.assert_array_equal(again[1], own)


def test_sizes():
    assert dense.short_side(480, 640, 512) == (512, 683)
    assert dense.short_side(30, 20, 0) == (30, 20)
    assert dense.nearest(np.arange(12).reshape(3, 4), (1, 2)).tolist() == [[5, 7]]


def test_enlarging_is_that_of_torch():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), (17, 11), mode='bilinear', align_corners=False
    ).permute(0, 2, 3, 1)
    np.testing.assert_allclose(dense.enlarge(x, (17, 11)), theirs, atol=1e-6)
    strips = np.concatenate(list(dense.strips(x[0], (17, 11), rows=4)))
    np.testing.assert_allclose(strips, theirs[0], atol=1e-6)
    small_ = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), (2, 3), mode='nearest-exact'
    ).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(dense.nearest(x[0], (2, 3)), small_[0])


def test_windows_cover_a_picture_and_are_averaged():
    """Each says of every pixel how light it is, so any way of cutting gives the same."""
    config = small()
    config.data.crop, config.data.stride = (16, 16), 12
    width = 3 * 8 * 8
    params = {
        'scale': np.ones((1, width)), 'shift': np.zeros((1, width)),
        'kernel': np.full((1, width, 1), 1 / width), 'bias': np.zeros((1, 1)),
    }  # fmt: skip
    heads = Heads(jax.tree.map(np.float32, params), np.zeros(width, 'f'), np.ones(width, 'f'))
    task = dataclasses.replace(segmentation.task(2), outputs=1)
    flat = np.full((24, 40, 3), 77, np.uint8)
    whole = dataclasses.replace(config.data, stride=0)
    said = dense.predict(PIXELS, heads, task, flat, config.data)
    assert said.shape == (24, 40, 1)
    expected = dense.predict(PIXELS, heads, task, flat, whole)
    assert expected.shape == (3, 5, 1)
    np.testing.assert_allclose(said, expected[0, 0, 0], rtol=1e-5)
    # a bright corner is seen where it is, in windows too
    flat[16:, 32:] = 255
    said = dense.predict(PIXELS, heads, task, flat, config.data)[..., 0]
    assert said[-1, -1] > said[0, 0] and np.ptp(said[:8, :16]) < 1e-4


# Losses


def test_losses_are_those_of_torch():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (2, 12, 16)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    up = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), (12, 16), mode='bilinear', align_corners=False
    )
    theirs = torch.nn.functional.cross_entropy(
        up, torch.from_numpy(labels).long(), ignore_index=IGNORE
    )
    np.testing.assert_allclose(segmentation.cross_entropy(x, labels), theirs, rtol=1e-5)

    # bins: relu, a little for each, made to add up to one, and the mean of the bins
    up = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), (12, 16), mode='bilinear', align_corners=False
    )
    weights = torch.relu(up) + 0.1
    weights = weights / weights.sum(1, keepdim=True)
    metres = torch.einsum('nkhw,k->nhw', weights, torch.linspace(0.5, 10, 5))
    np.testing.assert_allclose(depth.metres_of(x, 0.5, 10.0), metres, rtol=1e-5)
    true = rng.uniform(1, 9, (2, 12, 16)).astype(np.float32)
    valid = rng.random(true.shape) < 0.7
    g = (torch.log(metres) - torch.log(torch.from_numpy(true)))[torch.from_numpy(valid)]
    theirs = torch.sqrt(torch.var(g) + 0.15 * torch.mean(g) ** 2)
    ours = depth.scale_invariant(metres.numpy(), np.where(valid, true, 0), valid)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_step_is_that_of_torch():
    """Batch norm with its running statistics, and AdamW on all parameters, two steps."""
    config = small(dropout=0.0, chosen_on=0.5)
    config = dataclasses.replace(config, steps=2, warmup=0, batch=4)
    config.data = dataclasses.replace(config.data, flip=False)
    task, setting = segmentation.task(2), Setting(0.01, 0.1)
    samples = [sample(str(i), i) for i in range(4)]
    heads, finite = dense.train(PIXELS, samples, task, [setting, Setting(0.02, 0.0)], config, 't')
    assert finite.all()
    start = dense._initial(
        jax.random.fold_in(jax.random.key(config.seed), 2), heads.mean.shape[0], 2
    )
    norm = torch.nn.BatchNorm2d(192)
    conv = torch.nn.Conv2d(192, 2, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(np.array(start['kernel'])).T[..., None, None])
        conv.bias.zero_()
    every = [*norm.parameters(), *conv.parameters()]
    adam = torch.optim.AdamW(every, lr=0.01, weight_decay=0.1)
    x = torch.from_numpy(PIXELS(np.stack([s.read()[0] for s in samples])).copy())
    labels = torch.from_numpy(np.stack([s.read()[1] for s in samples])).long()
    for factor in (1.0, 0.5):
        for group in adam.param_groups:
            group['lr'] = 0.01 * factor
        out = torch.nn.functional.interpolate(
            conv(norm(x.permute(0, 3, 1, 2))), (24, 32), mode='bilinear', align_corners=False
        )
        adam.zero_grad()
        torch.nn.functional.cross_entropy(out, labels).backward()
        torch.nn.utils.clip_grad_norm_(every, 35.0)
        adam.step()
    own = heads.params
    np.testing.assert_allclose(own['kernel'][0], conv.weight.detach()[..., 0, 0].T, atol=2e-5)
    np.testing.assert_allclose(own['bias'][0], conv.bias.detach(), atol=2e-5)
    np.testing.assert_allclose(own['scale'][0], norm.weight.detach(), atol=2e-5)
    np.testing.assert_allclose(heads.mean, norm.running_mean, atol=1e-5)
    np.testing.assert_allclose(heads.variance, norm.running_var, rtol=1e-4)
    assert np.abs(own['kernel'][1] - own['kernel'][0]).max() > 1e-3  # each head has its setting


# Choice


def test_the_head_is_chosen_on_sources_that_it_did_not_see(monkeypatch):
    config = small(chosen_on=0.34)
    config.steps = 15
    config.rates = (0.1, 1e-6, 1e-6, 1e-6)
    samples = [sample(f'{i}', i, source=f'video {i // 2}') for i in range(6)]
    seen = []
    train = dense.train
    monkeypatch.setattr(
        dense, 'train', lambda e, s, *a: seen.append([x.source for x in s]) or train(e, s, *a)
    )
    heads, how = dense.fit(PIXELS, samples, segmentation.task(2), config, 't')
    assert how.startswith('rate 0.1, decay 0.01, best of 2 on 2 training pictures (')
    first, last = map(set, seen)
    assert len(first) == 2 and len(last) == 3
    picture, labels = sample('x', 99).read()
    said = segmentation.said(PIXELS, heads, segmentation.task(2), config, picture)
    assert (said == labels).mean() > 0.95
    with pytest.raises(ConfigError, match='pictures of one source'):
        dense.fit(PIXELS, samples[:2], segmentation.task(2), config, 't')


def test_pixels_that_are_scored():
    config = small(DepthConfig)
    config.metres, config.rows, config.columns = (0.001, 10.0), (1, 3), (0, 2)
    labels = np.array([[1, 1, 1], [0, 5, 5], [11, 2, 2], [3, 3, 3]], np.float32)
    expected = np.zeros((4, 3), bool)
    expected[1, 1] = expected[2, 1] = True
    np.testing.assert_array_equal(depth.scored(labels, config), expected)


def test_mean_map():
    rows = [np.full((64, 64), v, np.float32) for v in (2, 4)]
    rows[0][:32], rows[1][:32] = 0, 0
    rows[1][:16] = 6
    usual = depth.mean_map([Sample('', '', lambda r=r: (None, r)) for r in rows])
    assert usual.shape == (32, 32)
    np.testing.assert_allclose(usual[[0, 31], 0], [6, 3])
    # between: no picture has one: the mean of all
    np.testing.assert_allclose(usual[12, 0], (8 * 6 + 16 * 2 + 16 * 4) / 40)


# Whole evaluations


@pytest.fixture(scope='module')
def model() -> Model:
    config = ViTConfig(24, 1, 2, patch=8, image_size=16, dtype=np.dtype('float32'), remat='none')
    params = jax.jit(net('encoder', config).init)(jax.random.key(0))
    return Model(Loaded(config, params), name='tiny')


def test_pictures_of_2_1_go_in_as_images():
    """By the patchifier of images, alone or in a video; not as repeated frames."""
    config = ViTConfig(
        24, 1, 2, patch=8, dtype=np.dtype('float32'), remat='none', rope='paired',
        interpolate=True, modalities=True, levels=(0, 0, 0, 0),
    )  # fmt: skip
    image = Model(Loaded(config, jax.jit(net('encoder', config).init)(jax.random.key(0))))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    expected = np.asarray(image.encode(pictures[:, None])).reshape(2, 2, 3, 24)
    options = small(pixels_baseline=False, random_baseline=False)
    options.data.crop, options.data.frames = (16, 24), 0
    ours = dense.encoders(image, options)['model'](pictures)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    encode = propagation.FrameEncoder(dense.clip_encoder(image), 2, 8, config.tubelet_of(1))
    tokens = propagation.tokens_of(encode, pictures, 1, 2)
    unit = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(tokens, unit, rtol=0, atol=1e-5)


def check(results, folder, main: str, n: int) -> None:
    """What every report has."""
    figure = results.results[main]
    assert figure.low <= figure.value <= figure.high and figure.n == n
    assert {'pixels', 'random'} <= set(results.baselines)
    assert len(results.sources) == len(next(iter(results.outcomes.values())))
    assert (folder / 'predictions.png').stat().st_size > 1000
    page = (folder / 'report.html').read_text()
    assert f'{figure.value:.3f}' in page and 'data:image/png' in page
    json.dumps(results.data, allow_nan=False)


def test_segmentation(model, tmp_path):
    """Two classes that any patch tells; a broken and an unlabelled picture are left out."""
    root = made.voc(tmp_path / 'voc', train=6, validation=4)
    (root / 'SegmentationClass/2007_val_001.png').write_bytes(b'no png')
    made.values(root / 'SegmentationClass/2007_val_003.png', made.halves(255, 255), palette=True)
    config = small()
    config.data.set, config.data.path = 'voc12', str(root)
    results = segmentation.run(model, config, tmp_path)
    check(results, tmp_path, 'mIoU', 2)
    assert results.results['mIoU'].value > 0.9 and results.baselines['pixels'].value > 0.9
    assert results.baselines['majority'].value == pytest.approx(0.25, abs=0.02)
    about = results.data
    assert (about['expected'], about['read'], about['train']) == (4, 2, 6)
    assert 'not_image' in about['problems'][0] and 'no pixel has a label' in about['problems'][1]
    with np.load(tmp_path / 'head.npz') as kept:
        assert kept['kernel'].shape == (24, 21)
    made.values(root / 'SegmentationClass/2007_val_000.png', made.halves(0, 77), palette=True)
    with pytest.raises(ConfigError, match='voc12: .*2007_val_000.png: bad_units: class 77: must'):
        segmentation.run(model, config, tmp_path)


@pytest.mark.slow
def test_depth(model, tmp_path):
    root = made.nyuv2(tmp_path / 'nyu', train=6, test=3)
    config = small(DepthConfig, bins=16, random_baseline=True)
    config.steps, config.rates = 40, (0.01,) * 7
    config.data.set, config.data.path = 'nyuv2', str(root)
    results = depth.run(model, config, tmp_path)
    check(results, tmp_path, 'RMSE', 3)
    assert results.baselines['position'].value < 0.3  # the halves are always where they are
    # so few steps tell near from far, and not yet the scale; one distance everywhere has 49
    assert results.results['SILog'].value < 25
    for path in (root / 'official_splits').rglob('*.png'):
        made.values(path, np.zeros(made.SIDE, np.uint16))
    with pytest.raises(ConfigError, match='nyuv2: validation is empty: .*no pixel has a label'):
        depth.run(model, config, tmp_path)


@pytest.mark.slow
def test_propagation(model, tmp_path):
    root = made.davis(tmp_path / 'davis', train=2, validation=3)
    made.values(root / 'Annotations/480p/val-2/00000.png', np.zeros((32, 48), np.uint8))
    config = PropagationConfig(radii=(2,) * 3, bootstrap=20, batch=5)
    config.data.set, config.data.path = 'davis17', str(root)
    config.data.short, config.data.official = 0, False
    results = propagation.run(model, config, tmp_path)
    check(results, tmp_path, 'J&F', 2)
    assert results.data['objects'] == 4 and 'no object in the first' in results.data['problems'][0]
    assert results.baselines['pixels'].value > 0.6
    assert results.data['published']['V-JEPA 2 g'] == 52.5


@pytest.mark.parametrize('name', ['segmentation', 'depth', 'propagation'])
def test_configs(name):
    spec = importlib.util.spec_from_file_location('c', ROOT / f'configs/eval/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from jepa_jax.data.labelled.dense import READERS

    for kind in READERS[name]:
        if kind != 'self_made_few':
            config = module.get_config(kind)
            assert config.data.set == kind
            of(config)
            of(module.get_config(f'{kind},smoke'))
    assert module.get_config('smoke').data.set == 'self_made_few'
    if name != 'propagation':
        config = module.get_config('')
        config.data.stride = 100
        with pytest.raises(ConfigError, match='data.stride = 100: must be at most the crop'):
            of(config)
        config.data.crop = (12, 12)
        with pytest.raises(ConfigError, match='data.crop = .12, 12.: must be multiples of 8'):
            fixed = ViTConfig(24, 1, 2, patch=8)
            dense.encoders(Model(Loaded(fixed, {})), config)


def test_published_values_of_the_paper():
    """evaluations.md and vjepa2_1.md §11: grids, windows, settings."""
    spec = importlib.util.spec_from_file_location('c', ROOT / 'configs/eval/propagation.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config('davis17')
    assert (c.context, c.top, {*c.radii}, {*c.temperatures}) == (15, 5, {12}, {0.2})
    assert (c.data.short, c.square, {*c.past}) == (480, False, {1})
    assert SegmentationConfig().rates == (1.5e-3, 8e-4, 5e-4, 8e-5)
    assert DepthConfig().rates == (1.5e-3, 1e-3, 8e-4, 3e-4, 1e-4, 8e-5, 3e-5)
