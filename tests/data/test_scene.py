"""Measures of a scene, on discs that are moved a known way in front of a known camera."""

import numpy as np
import pytest

from jepa_jax.config import RobotConfig
from jepa_jax.data import robot, scene

SIZE, RADIUS = 96, 8


def recording(pixels_a_metre: float, seed: int, frames: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A disc that follows x and y of the states; a ground of little noise."""
    rng = np.random.default_rng(seed)
    states = np.zeros((frames, 7))
    states[:, :2] = np.cumsum(rng.normal(0, 0.05, (frames, 2)), axis=0).clip(-0.3, 0.3)
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    pictures = rng.integers(60, 66, (frames, SIZE, SIZE, 3), np.uint8)
    for picture, state in zip(pictures, states):
        apart = np.hypot(x - pixels_a_metre * state[0], y - pixels_a_metre * state[1])
        picture[apart < RADIUS] = 220
    return pictures, states


@pytest.mark.parametrize('pixels_a_metre', [60, 120])
def test_a_disc(pixels_a_metre):
    pieces = [recording(pixels_a_metre, seed) for seed in range(6)]
    motions = [scene.Motion.of(*one) for one in pieces]
    seen = scene.Scene.of([(48, 64), (SIZE, SIZE), (SIZE, SIZE)], motions, SIZE)
    assert (seen.height, seen.width, seen.episodes) == (SIZE, SIZE, 6)
    assert seen.span == pytest.approx(SIZE / pixels_a_metre, rel=0.06)
    # what changes is as large as the disc and the way it goes; less its thinnest tips
    ways = [np.abs(np.diff(states[:, :2], axis=0)).max(1) for _, states in pieces]
    expected = 2 * RADIUS + np.median(np.concatenate(ways)) * pixels_a_metre
    assert expected - 4 < seen.extent < expected + 1
    grey = [pictures.mean(-1) for pictures, _ in pieces]
    shares = [(abs(b - a) > 20).mean() for g in grey for a, b in zip(g, g[1:])]
    assert seen.moving == pytest.approx(np.median(shares))


def test_what_cannot_be_measured_is_none():
    pictures, states = recording(60, 0)
    still = scene.Motion.of(np.repeat(pictures[:1], 16, 0), states)
    seen = scene.Scene.of([(SIZE, SIZE)], [still], SIZE)
    assert (seen.moving, seen.extent, seen.span) == (0.0, None, None)
    slow = scene.Motion.of(pictures, states * 1e-3)  # metres too small to be believed
    seen = scene.Scene.of([(SIZE, SIZE)], [slow], SIZE)
    assert seen.extent is not None and seen.span is None


def test_the_self_made_recordings_are_a_metre_wide():
    """By how they are drawn."""
    data = RobotConfig('synthetic')
    seen = scene.look(robot.open_recordings(data), data, 64)
    assert seen.span == pytest.approx(1.0, rel=0.1) and seen.episodes == scene.EPISODES


def test_apart():
    a = scene.Scene(60, 80, 64, 5, 0.04, 16.0, 1.0)
    b = scene.Scene(60, 80, 128, 5, 0.02, 64.0, None)
    assert scene.apart(a, b) == {scene.TITLES[1]: 2.0, scene.TITLES[2]: 0.5}
