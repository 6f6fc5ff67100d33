"""The evaluation's view against OpenCV itself, and against numbers of the original's transform."""

import cv2
import numpy as np
import pytest

from jepa_jax.data.views import eval_size, eval_view, resize

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def opencv(frame: np.ndarray, crop: int) -> np.ndarray:
    """The original's steps, written with OpenCV: short side, then the middle."""
    height, width = frame.shape[:2]
    short = int(crop * 256 / 224)
    if min(height, width) != short:
        new = (int(short * width / height), short)
        if width < height:
            new = (short, int(short * height / width))
        frame = cv2.resize(frame, new, interpolation=cv2.INTER_LINEAR)
    y, x = (int(round((side - crop) / 2)) for side in frame.shape[:2])
    return frame[y : y + crop, x : x + crop]


def test_resize_is_opencvs_bit_for_bit():
    rng = np.random.default_rng(1)
    sizes = [rng.integers(2, 300, 4) for _ in range(60)]
    sizes += [(96, 130, 48, 65), (48, 64, 48, 31), (240, 320, 292, 389), (3, 3, 200, 200)]
    for height, width, h, w in sizes:
        frame = noise(height, width, 3, seed=int(height))
        expected = cv2.resize(frame, (int(w), int(h)), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(resize(frame[None], (int(h), int(w)))[0], expected)


@pytest.mark.parametrize('crop', [256, 384, 224, 32])
@pytest.mark.parametrize('size', [(240, 320), (321, 243), (720, 1280), (292, 292), (292, 517)])
def test_view_is_opencvs(size, crop):
    frames = noise(2, *size, 3)
    result = eval_view(frames, crop)
    assert result.shape == (2, crop, crop, 3) and result.dtype == np.uint8
    for frame, view in zip(frames, result):
        np.testing.assert_array_equal(view, opencv(frame, crop))


def test_released_short_sides():
    """Reference: vjepa2 §6.4."""
    assert [eval_size(1000, 1000, crop)[0] for crop in (224, 256, 384)] == [256, 292, 438]
    assert eval_size(480, 640, 256) == (292, 389) and eval_size(640, 480, 256) == (389, 292)


def test_golden_numbers():
    """Reference: vjepa2 §13, transforms: mean and first pixels of the original's output."""
    frames = np.random.RandomState(5).randint(0, 256, (4, 48, 64, 3)).astype(np.uint8)
    result = (eval_view(frames, 32).astype(np.float32) / 255 - MEAN) / STD
    assert abs(result.mean() - 0.2173344) < 1e-6
    # the original's output is channels first: three neighbouring red pixels
    expected = [0.07406463, -0.3369296, 0.5193082]
    np.testing.assert_allclose(result[0, 0, :3, 0], expected, rtol=0, atol=1e-6)
