"""Masks of I-JEPA and V-JEPA 1 against those that the originals drew (reference: family §6)."""

import pickle
import zlib

import numpy as np
import pytest

from jepa_jax.config import ImageMaskConfig, MaskConfig, MaskedImageConfig, MaskedVideoConfig
from jepa_jax.errors import ConfigError
from jepa_jax.masks import multiblock, tube
from jepa_jax.masks.draws import torch_stream
from jepa_jax.masks.image import ReferenceSampler, StaticSampler
from jepa_jax.masks.samplers import image_mask_sampler, mask_sampler
from tools import measure_masks


def crc(ids: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(ids.astype('<i2')).tobytes())


# settings, grid, images, seed of the global stream, contexts; then of each call, K, M and CRC-32 of
# the ids of contexts [n, B, K] and targets [n, B, M] as int16
RELEASED = ImageMaskConfig()
DEFAULTS = ImageMaskConfig(2, (0.2, 0.8), (0.3, 3.0), (0.2, 0.8), 4)
TIGHT = ImageMaskConfig(6, target_scale=(0.35, 0.45), min_keep=12)
CALLS = {
    'h14_224': (
        (RELEASED, (16, 16), 6, 0, 1),
        (92, 42, 3708931571, 415534678),
        (85, 48, 2498046132, 1650806097),
        (87, 42, 2331390615, 1701400865),
    ),
    'g16_224': (
        (RELEASED, (14, 14), 6, 0, 1),
        (59, 36, 666383915, 2328650722),
        (70, 35, 1956786991, 771380337),
    ),
    'h16_448': ((RELEASED, (28, 28), 4, 0, 1), (296, 132, 2662815595, 696531959)),
    'overlap_nenc2': (
        (ImageMaskConfig(allow_overlap=True), (14, 14), 4, 5, 2),
        (169, 36, 85154098, 391571828),
        (169, 35, 85154098, 463360125),
    ),
    'defaults': (
        (DEFAULTS, (14, 14), 4, 5, 1),
        (11, 104, 941895625, 3671666516),
        (8, 91, 3658851177, 2430811604),
        (9, 104, 2177046764, 1304069741),
    ),
    'tight': (  # regions are given up 22 times
        (TIGHT, (8, 8), 3, 9, 1),
        (14, 25, 2912146305, 248376986),
        (13, 30, 1539309788, 495910014),
    ),
}


@pytest.mark.parametrize('case', CALLS)
def test_reference_equals_the_original(case):
    (settings, grid, images, seed, contexts), *calls = CALLS[case]
    sampler, stream = ReferenceSampler(settings, grid, contexts=contexts), torch_stream(seed)
    for call, (k, m, of_contexts, of_targets) in enumerate(calls):
        context, targets = sampler(call, stream, images)
        assert (context.shape, targets.shape) == (
            (contexts, images, k),
            (settings.targets, images, m),
        )
        assert (crc(context), crc(targets)) == (of_contexts, of_targets)


@pytest.fixture(scope='module')
def static():
    return StaticSampler(RELEASED, (16, 16), seed=3)


def test_static_keeps_its_promises(static):
    """At most four shapes, four steps visit them all; no target is cut, none is in sight, and the
    last row and column are never used."""
    for step in range(8):
        ((k, m),) = static.shapes(step)
        for position in range(6):
            ((context, targets),) = static.sample(step, position)
            assert (context.shape, targets.shape) == ((k,), (4, m))
            assert (np.diff(context) > 0).all() and not np.isin(context, targets).any()
            for ids in targets:
                rows, columns = ids // 16, ids % 16
                sides = np.ptp(rows) + 1, np.ptp(columns) + 1
                assert sides[0] * sides[1] == m and max(rows.max(), columns.max()) < 15
            assert max(context.max() // 16, (context % 16).max()) < 15
    assert len(static.all_shapes) == 4
    assert {static.shapes(step) for step in range(4)} == static.all_shapes


def test_static_is_a_function_of_seed_step_and_position(static):
    again = pickle.loads(pickle.dumps(static))
    one, two = static.sample(5, 7)[0], again.sample(5, 7)[0]
    assert all(np.array_equal(a, b) for a, b in zip(one, two))
    assert not np.array_equal(static.sample(5, 8)[0][1], one[1])
    other = StaticSampler(RELEASED, (16, 16), seed=4)
    assert other.all_shapes == static.all_shapes  # compiled programs serve any seed


def test_static_statistics_are_the_originals():
    """Programs, and the shares of every row that are kept, over 64 steps of 16 images."""
    settings, grid = ImageMaskConfig(group=16), (14, 14)
    ours, theirs = StaticSampler(settings, grid, seed=0), ReferenceSampler(settings, grid)
    kept, shapes = np.zeros((2, 2, 14)), [set(), set()]
    for step in range(64):
        drawn = [ours.sample(step, position)[0] for position in range(16)]
        pair = [np.stack(each) for each in zip(*drawn)]
        for i, ids in enumerate(theirs(step, np.random.RandomState([1, step]), 16)):
            for j, each in enumerate((ids, pair[i])):
                kept[j, i] += np.bincount(each.ravel() // 14, minlength=14) / (64 * 16 * 14)
                shapes[j].add((i, each.shape[-1]))
    off = kept[1] - kept[0]
    assert len(ours.all_shapes) <= 4 < len(shapes[0])
    assert abs(off.mean(1) / kept[0].mean(1)).max() < 0.03
    assert abs(off / [[1], [4]]).max() < 0.05


def test_tool(capsys):
    assert measure_masks.main(['--images', '--steps', '2']) == 0
    assert 'ViT-g/16, 224 px, 16 images, 2 steps: programs' in capsys.readouterr().out


def test_an_image_without_room_still_meets_its_shape():
    """Six large targets leave hardly anything: the context then takes what they leave beside its
    block, and at last what they cover."""
    sampler = StaticSampler(TIGHT, (8, 8), seed=0)
    for step in range(8):
        ((context, targets),) = sampler.sample(step, 0)
        assert ((len(context), targets.shape[1]),) == sampler.shapes(step)
        assert len(set(context)) == len(context)


@pytest.mark.parametrize('make', [ReferenceSampler, lambda *a: StaticSampler(*a, seed=0)])
@pytest.mark.parametrize(
    'settings, grid, words',
    [
        (RELEASED, (2, 2), 'masks.target_scale'),  # 32 pixels: the original draws for ever
        (RELEASED, (1, 9), 'at least 2x2'),
        (ImageMaskConfig(min_keep=200), (14, 14), 'blocks of 30 patches'),
        (ImageMaskConfig(context_scale=(0.01, 1.0)), (14, 14), 'masks.context_scale'),
    ],
)
def test_impossible_settings_are_refused(make, settings, grid, words):
    with pytest.raises(ConfigError, match=words):
        make(settings, grid)


def test_runs_choose_their_sampler():
    config = MaskedImageConfig()
    config.data.crop = 196
    for name, shapes in (('static', 4), ('single', 1)):
        config.mask_sampler = name
        assert len(image_mask_sampler(config, 8).all_shapes) <= shapes
    config.mask_sampler = 'reference'
    sampler = image_mask_sampler(config, 8)
    ((k, m),) = sampler.shapes(3)
    ((context, targets),) = sampler.sample(3, 9)
    assert (context.shape, targets.shape) == ((k,), (4, m))


# --- V-JEPA 1 -------------------------------------------------------------------------------------

BLOCKS = (MaskConfig(), MaskConfig(num_blocks=2, spatial_scale=(0.7, 0.7)))
VIDEO_CALLS = (
    ((544, 462324046), (936, 858272237), (48, 2347223774), (1248, 1985932442)),
    ((488, 3804205471), (912, 1916970855), (336, 1623971105), (1144, 444061733)),
)


def test_multiblock_of_vjepa1():
    """Three clips of 16 frames and 224 pixels: one generator a setting, one stream."""
    samplers = [multiblock.ReferenceSampler(each, (8, 14, 14)) for each in BLOCKS]
    stream = torch_stream(234)
    for call, expected in enumerate(VIDEO_CALLS):
        ids = [each for sampler in samplers for each in sampler(call, stream, 3)]
        assert tuple((each.shape[1], crc(each)) for each in ids) == expected


TUBE_CALLS = (
    ((16, 3401758331), (180, 1658643510), (96, 2025998447), (100, 4126499638)),
    ((16, 3699350444), (180, 2848163695), (96, 145499793), (100, 1214735100)),
)


def test_tubes_of_vjepa1():
    """Three clips of 8 frames and 112 pixels; ratios .9 and .5."""
    stream = np.random.RandomState(234)
    for expected in TUBE_CALLS:
        ids = []
        for ratio in (0.9, 0.5):
            pairs = [tube.tube((4, 7, 7), ratio, stream.shuffle) for _ in range(3)]
            ids += [np.stack(each) for each in zip(*pairs)]
        assert tuple((each.shape[1], crc(each)) for each in ids) == expected


def test_tubes_of_a_run():
    """19 of 196 cells are kept at .9, the same in every frame, another draw for every clip."""
    config = MaskedVideoConfig(masks=[MaskConfig(tube=0.9), MaskConfig(tube=0.5)])
    config.data.crop = 224
    sampler = mask_sampler(config, 16, 4)
    assert sampler.shapes(0) == ((8 * 19, 8 * 177), (8 * 98, 8 * 98))
    (context, target), half = sampler.sample(0, 1)
    assert sorted([*context, *target]) == list(range(8 * 196))
    frames = context.reshape(8, 19)
    assert (frames - frames[0] == 196 * np.arange(8)[:, None]).all()
    assert not np.array_equal(sampler.sample(0, 2)[1][0], half[0])
    assert np.array_equal(sampler.sample(0, 1)[1][0], half[0])
