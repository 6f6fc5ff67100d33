"""The training transform against torch, against numbers of the original, and by its own rules."""

import random

import numpy as np
import pytest
import torch

from jepa_jax.config import AugmentConfig
from jepa_jax.data.augment import Crop, augment, resize, sample_crop, shift

MEAN = np.array([0.485, 0.456, 0.406]) * 255
STD = np.array([0.229, 0.224, 0.225]) * 255


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def torch_resize(frames, crop, size):
    top, left, height, width = crop
    window = torch.from_numpy(frames[:, top : top + height, left : left + width].astype(np.float32))
    window = window.permute(0, 3, 1, 2)
    done = torch.nn.functional.interpolate(
        window, size=(size, size), mode='bilinear', align_corners=False
    )
    return done.permute(0, 2, 3, 1).numpy()


class OriginalDraws:
    """The original's streams: Python's `random`, and numpy's for the draws nobody uses."""

    def __init__(self, seed=0):
        self.python, self.numpy = random.Random(seed), np.random.RandomState(seed)
        self.uniform, self.integer = self.python.uniform, self.python.randint

    def crop(self, height, width):
        self.numpy.uniform()  # a switch of height and width that is never taken
        settings = AugmentConfig()
        return sample_crop(
            height, width, settings.scale, settings.ratio, self.uniform, self.integer
        )


def test_crops_of_the_original():
    draws = OriginalDraws()
    crops = [tuple(draws.crop(240, 320)) for _ in range(4)]
    assert crops == [(8, 62, 229, 200), (19, 61, 194, 231), (13, 64, 183, 231), (6, 158, 194, 158)]


def test_transform_of_the_original():
    """Reference: vjepa2 §13, row Transforms; the std there is torch's, with one degree less."""
    frames = np.random.RandomState(5).randint(0, 256, (4, 48, 64, 3)).astype(np.uint8)
    draws = OriginalDraws()
    crop = draws.crop(48, 64)
    out = np.empty((4, 32, 32, 3), np.float32)
    resize(frames, [crop], out, flip=draws.numpy.uniform() < 0.5)
    out = ((out - MEAN) / STD).astype(np.float64)
    assert out.mean() == pytest.approx(0.219558075, abs=1e-6)
    assert out.std(ddof=1) == pytest.approx(0.846423149, abs=1e-6)
    np.testing.assert_allclose(out[0, 0, :3, 0], [0.2229696, 0.7934380, 0.7527667], atol=1e-6)


@pytest.mark.parametrize(
    'shape, crop, size',
    [
        ((240, 320), Crop(19, 61, 194, 231), 256),  # larger both ways
        ((360, 640), Crop(3, 100, 350, 486), 256),  # smaller both ways: no antialiasing
        ((48, 64), Crop(1, 2, 31, 44), 40),
        ((30, 20), Crop(29, 19, 1, 1), 16),  # a single pixel
        ((17, 200), Crop(0, 0, 17, 200), 72),  # the last band of rows is not full
        ((64, 64), Crop(0, 0, 64, 64), 64),  # nothing to do
    ],
)
def test_resize_equals_torch(shape, crop, size):
    frames = noise(3, *shape, 3)
    expected = torch_resize(frames, crop, size)
    out = resize(frames, [crop], np.empty((3, size, size, 3), np.float32))
    np.testing.assert_allclose(out, expected, atol=5e-4)  # of 255: 2e-6
    rounded = resize(frames, [crop], np.empty((3, size, size, 3), np.uint8))
    assert np.abs(rounded - expected).max() <= 0.501  # the nearest integer
    mirrored = resize(frames, [crop], np.empty((3, size, size, 3), np.uint8), flip=True)
    np.testing.assert_array_equal(mirrored[:, :, ::-1], rounded)


def test_motion_shift_moves_the_window():
    first, last = Crop(0, 4, 40, 30), Crop(10, 30, 20, 34)
    crops = shift(first, last, 5)
    assert crops[0] == first and crops[-1] == last
    assert crops[1] == (2, 10, 35, 31) and crops[2] == (5, 17, 30, 32)  # cut, not rounded
    frames = noise(5, 48, 64, 3)
    out = resize(frames, crops, np.empty((5, 32, 32, 3), np.float32))
    for i, crop in enumerate(crops):
        np.testing.assert_allclose(out[i], torch_resize(frames[i : i + 1], crop, 32)[0], atol=5e-4)
    settings = AugmentConfig(motion_shift=True)
    still = np.broadcast_to(frames[0], frames.shape)
    moved = augment(still, settings, np.random.default_rng(3), np.empty((5, 32, 32, 3), np.uint8))
    assert (moved[0] != moved[-1]).any()


@pytest.mark.parametrize(
    'shape, expected',
    [
        ((100, 400), Crop(0, 132, 100, 135)),  # too wide
        ((400, 100), Crop(133, 0, 133, 100)),  # too tall
        ((100, 120), Crop(0, 0, 100, 120)),
    ],
)
def test_centre_crop_when_no_try_fits(shape, expected):
    """A scale above 1 fits nothing, as for the original's robot videos."""
    rng = np.random.default_rng(0)
    tried = []

    def uniform(low, high):
        tried.append(low)
        return rng.uniform(low, high)

    crop = sample_crop(*shape, (1.777, 1.777), (0.75, 1.35), uniform, rng.integers)
    assert crop == expected and len(tried) == 20


def test_draws_cover_the_settings():
    """All crops within the frame and the ranges, both flips, the same for every frame."""
    rng = np.random.default_rng(0)
    frames = np.broadcast_to(noise(1, 60, 80, 3), (3, 60, 80, 3)).copy()
    flips = set()
    ramp = np.broadcast_to(np.arange(80, dtype=np.uint8)[:, None] * 3, (2, 60, 80, 3)).copy()
    for _ in range(100):
        crop = sample_crop(
            60, 80, (0.3, 1.0), (0.75, 1.35), rng.uniform, lambda a, b: rng.integers(a, b + 1)
        )
        assert 0 <= crop.top <= 60 - crop.height and 0 <= crop.left <= 80 - crop.width
        assert 0.28 <= crop.height * crop.width / 4800 <= 1
        assert 0.72 <= crop.width / crop.height <= 1.4
        out = augment(frames, AugmentConfig(), rng, np.empty((3, 32, 32, 3), np.uint8))
        assert (out == out[0]).all()
        ramped = augment(ramp, AugmentConfig(), rng, np.empty((2, 32, 32, 3), np.uint8))
        flips.add(bool(ramped[0, 0, 0, 0] > ramped[0, 0, -1, 0]))
    assert flips == {True, False}
    never = augment(ramp, AugmentConfig(flip=False), rng, np.empty((2, 32, 32, 3), np.uint8))
    assert (np.diff(never[0, 0, :, 0].astype(int)) >= 0).all()


def test_a_repeated_frame_and_the_same_seed():
    frame = noise(40, 50, 3)
    out = np.empty((4, 32, 32, 3), np.uint8)
    repeated = augment(
        np.broadcast_to(frame, (4, 40, 50, 3)), AugmentConfig(), np.random.default_rng(1), out
    ).copy()
    copied = augment(np.stack([frame] * 4), AugmentConfig(), np.random.default_rng(1), out)
    np.testing.assert_array_equal(repeated, copied)
    other = augment(
        np.stack([frame] * 4), AugmentConfig(), np.random.default_rng(2), np.empty_like(out)
    )
    assert (other != copied).any()


@pytest.mark.parametrize('size', [(24, 20), (90, 70)])
@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
def test_antialias_equals_torch(size, mode):
    """Smaller, each pixel is the mean of what it covers; larger, as without."""
    frames = np.random.default_rng(0).integers(0, 256, (1, 60, 50, 3), np.uint8)
    crop = Crop(5, 3, 48, 40)
    out = np.empty((1, *size, 3), np.uint8)
    resize(frames, [crop], out, flip=True, antialias=True, bicubic=mode == 'bicubic')
    window = frames[:, 5:53, 3:43].transpose(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(window), size, mode=mode, antialias=True
    )  # of bytes, which torch and Pillow round and clip after either axis
    expected = expected.numpy().transpose(0, 2, 3, 1)[:, :, ::-1]
    off = abs(out.astype(int) - expected)  # weights are whole numbers of another size there
    assert off.max() <= 2 and off.mean() < 0.1
