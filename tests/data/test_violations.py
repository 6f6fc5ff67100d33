"""The world with laws: what members of a pair share, and that its laws hold."""

import csv

import av
import numpy as np
import pytest

from jepa_jax.data import synthetic, violations
from jepa_jax.data.violations import FRAMES, KINDS, SIZE, VARIANTS

BOTH = [(kind, variant) for kind in (*KINDS, 'harmless') for variant in VARIANTS]


def decode(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format='rgb24') for f in container.decode(video=0)])


@pytest.fixture(scope='module')
def pairs():
    return {key: violations.pair(*key, seed=5) for key in BOTH}


@pytest.mark.parametrize('key', BOTH, ids='-'.join)
def test_decoded_members_are_equal_up_to_the_event(tmp_path, pairs, key):
    """As mp4, which PyAV alone reads back."""
    *members, event = pairs[key]
    read = []
    for i, frames in enumerate(members):
        synthetic.write(tmp_path / f'{i}.mp4', frames, violations.FPS, causal=True)
        read.append(decode(tmp_path / f'{i}.mp4'))
    assert violations.EVENTS[0] <= event <= violations.EVENTS[1] + 1
    assert read[0].shape == (FRAMES, SIZE, SIZE, 3)
    np.testing.assert_array_equal(read[0][:event], read[1][:event])
    differ = (abs(read[0][event:].astype(int) - read[1][event:]) > 8).any((1, 2, 3))
    assert differ.any()
    if key[1] == 'visible' and key[0] != 'wall':  # the first steps through a wall are small
        assert np.argmax(differ) <= 1


def test_without_causal_encoding_later_frames_change_earlier_ones(tmp_path, pairs):
    """What the option is for: the encoder looks ahead."""
    unequal = 0
    for *members, event in pairs.values():
        read = []
        for i, frames in enumerate(members):
            synthetic.write(tmp_path / f'{i}.mp4', frames, violations.FPS)
            read.append(decode(tmp_path / f'{i}.mp4')[:event])
        unequal += not np.array_equal(*read)
    assert unequal


def test_a_pair_is_a_function_of_its_seed():
    for kind in ('vanish', 'lawful'):
        first, again, other = (violations.pair(kind, 'visible', seed) for seed in (1, 1, 2))
        assert all(np.array_equal(a, b) for a, b in zip(first, again))
        assert not np.array_equal(first[0], other[0])


def test_occluded_changes_happen_out_of_sight(pairs):
    """Nothing but the screen hides them: in the frame of the event members look the same."""
    for kind in ('vanish', 'appear', 'shape', 'colour', 'teleport'):
        possible, impossible, event = pairs[kind, 'occluded']
        np.testing.assert_array_equal(possible[event], impossible[event])


@pytest.mark.parametrize('gravity', [0.0, violations.GRAVITY])
@pytest.mark.parametrize('wall', [None, 16.0])
def test_things_keep_to_their_laws(gravity, wall):
    radius, speed = 3.5, 2.0
    start = (radius, (8.0, 6.0), (0.0, speed), gravity)
    path = violations.trajectory(start, wall)
    low, high = radius, (SIZE if wall is None else wall - violations.WALL_HALF) - radius
    slack = speed / 8
    assert path[:, 1].min() > low - slack and path[:, 1].max() < high + slack
    steps = np.abs(np.diff(path[:, 1]))
    assert (
        np.isclose(steps, speed).mean() > 0.5 and steps.max() < speed + 1e-9
    )  # less where it turns
    if gravity:
        assert path[:, 0].max() < violations.FLOOR - radius + 1
        down = np.diff(path[:, 0], 2)[:5]  # until it meets the floor
        np.testing.assert_allclose(down, gravity, atol=1e-9)
    else:
        assert np.ptp(path[:, 0]) == 0
    if wall is not None:
        through = violations.trajectory(start, wall, solid=False)
        assert through[:, 1].max() > wall + violations.WALL_HALF + radius


def test_what_is_drawn_is_where_it_should_be():
    """A white square on a grey ground, its corner and size read off the pixels."""
    ones = np.ones(FRAMES)
    thing = violations.Thing(
        np.stack([12 * ones, 8 + np.arange(FRAMES) % 8], 1), 4.0,
        (1 * ones).astype(int), (4 * ones).astype(int), np.arange(FRAMES) != 3,
    )  # fmt: skip
    scene = violations.Scene(
        np.full((SIZE, SIZE, 3), 0.3), (thing,), None, None, (), 0.5 * ones, (0 * ones).astype(int)
    )
    frames = violations.draw(scene)
    assert (frames[3] == round(0.3 * 0.5 * 255)).all()
    for t in (0, 5):
        rows, columns = np.nonzero(frames[t, :, :, 0] > 100)
        assert (rows.min() + rows.max() + 1) / 2 == 12
        assert (columns.min() + columns.max() + 1) / 2 == 8 + t
        assert frames[t].max() == round(0.95 * 0.5 * 255)


def test_sets_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setitem(violations.PAIRS, 'violations_few', 1)
    monkeypatch.setitem(violations.COUNTS, 'lawful_few', 3)
    listed = violations.ensure('lawful_few', tmp_path / 'lawful')
    assert listed.read_text().splitlines() == [f'videos/000{i}.mp4' for i in range(3)]
    path = violations.ensure_pairs('violations_few', tmp_path / 'pairs')
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (len(KINDS) + 2)
    assert all((path.parent / row[m]).exists() for row in rows for m in ('possible', 'impossible'))
    assert len({row['group'] for row in rows}) == len(rows)
    before = path.stat().st_mtime_ns
    assert (
        violations.ensure_pairs('violations_few', tmp_path / 'pairs').stat().st_mtime_ns == before
    )
    (path.parent / rows[0]['possible']).unlink()
    with pytest.raises(ValueError, match='holds 35 of the 36 videos'):
        violations.ensure_pairs('violations_few', tmp_path / 'pairs')
