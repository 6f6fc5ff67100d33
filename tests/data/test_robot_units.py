"""Units of recordings: what is no metre, radian or closedness is refused with the setting that
mends it, and with that setting it is read. The right values are those that were converted here."""

import dataclasses
import pathlib

import numpy as np
import pytest

from jepa_jax import frozen
from jepa_jax.config import ActionConditionedConfig, RobotConfig
from jepa_jax.data import robot
from jepa_jax.data.trajectories import RobotStream
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.origin import Origin
from jepa_jax.recipes import smoke, validate


def path(count: int = 40, seed: int = 0) -> np.ndarray:
    """An arm that begins open and closes."""
    t = np.arange(count) + seed
    shut = np.clip((np.arange(count) - 10) / 10, 0, 1)
    columns = (
        0.4 + 0.1 * np.sin(t / 9),
        0.1 * np.cos(t / 11),
        0.3 + 0 * t,
        3.1 - t / 99,
        t / 99,
        -2.0 + 0 * t,
    )
    return np.stack([*columns, shut], axis=1)


def write(folder: pathlib.Path, *recordings: np.ndarray) -> RobotConfig:
    folder.mkdir(exist_ok=True)
    for i, states in enumerate(recordings):
        pixels = np.zeros((len(states), 64, 64, 3), np.uint8)
        np.savez(folder / f'{i}.npz', states=states, observations=pixels, fps=4.0)
    return RobotConfig('npz', str(folder), frames=4)


def with_gripper(function) -> np.ndarray:
    states = path()
    return np.concatenate([states[:, :6], function(states[:, 6:])], axis=1)


SCALES = {
    # as recorded, what is said of it, the settings that bring it back
    'millimetres': (path() * ([1000] * 3 + [1] * 4), 'robot.metres = 0.001', {'metres': 0.001}),
    'centimetres': (path() * ([100] * 3 + [1] * 4), 'robot.metres = 0.01', {'metres': 0.01}),
    'degrees': (
        np.concatenate([path()[:, :3], np.degrees(path()[:, 3:6]), path()[:, 6:]], axis=1),
        'degrees, not radians? robot.angles = degrees',
        {'angles': 'degrees'},
    ),
    'from -1 to 1': (
        with_gripper(lambda g: 2 * g - 1),
        'robot.gripper_range = (-1, 1)',
        {'gripper_range': (-1.0, 1.0)},
    ),
    'inverted, from -1 to 1': (
        with_gripper(lambda g: 1 - 2 * g),
        'robot.gripper_range = (1, -1)',
        {'gripper_range': (1.0, -1.0)},
    ),
    'a byte': (
        with_gripper(lambda g: 255 * g),
        'robot.gripper_range = (0, 255)',
        {'gripper_range': (0.0, 255.0)},
    ),
    'per cent': (
        with_gripper(lambda g: 100 - 100 * g),
        'robot.gripper_range = (100, 0)',
        {'gripper_range': (100.0, 0.0)},
    ),
    'millimetres between the fingers': (
        with_gripper(lambda g: 85 * (1 - g)),
        'robot.gripper_range = (100, 0)',  # a guess, and it is said how far it goes
        {'gripper_range': (85.0, 0.0)},
    ),
}


@pytest.mark.parametrize('name', SCALES)
def test_other_units_are_refused_and_can_be_set(name, tmp_path):
    recorded, words, settings = SCALES[name]
    data = write(tmp_path / 'set', recorded)
    with pytest.raises(BadFile) as error:
        robot.open_recordings(data).episode(0)
    assert error.value.reason == 'bad_units' and words in str(error.value)
    mended = dataclasses.replace(data, **settings)
    states = robot.open_recordings(mended).episode(0).states
    np.testing.assert_allclose(states, path(), rtol=0, atol=1e-9)
    robot.check_units(robot.open_recordings(mended), mended)
    as_is = robot.open_recordings(dataclasses.replace(data, check_units=False)).episode(0)
    np.testing.assert_array_equal(as_is.states, recorded)
    with pytest.raises(BadFile, match='all of 1 recordings looked at'):
        robot.check_units(robot.open_recordings(data), data)


def test_a_gripper_in_metres_is_seen_over_a_set(tmp_path):
    """Each number could be a closedness. Open at first, 0.08 m, and shut at 0."""
    data = write(tmp_path / 'set', *[with_gripper(lambda g: 0.08 * (1 - g))] * 3)
    recordings = robot.open_recordings(data)
    assert len(recordings.episode(0).states) == 40
    with pytest.raises(BadFile, match=r'from 0 to 0.08 .* robot.gripper_range = \(0.08, 0\)'):
        robot.check_units(recordings, data)
    mended = dataclasses.replace(data, gripper_range=(0.08, 0.0))
    states = robot.open_recordings(mended).episode(0).states
    np.testing.assert_allclose(states[:, 6], path()[:, 6], atol=1e-12)
    for honest in ({'gripper_range': (0.0, 1.0)}, {'check_units': False}):
        same = dataclasses.replace(data, **honest)
        robot.check_units(robot.open_recordings(same), same)


@pytest.mark.parametrize(
    'grippers',
    [
        [np.zeros(20)],
        [np.full(20, 0.05)],
        [np.ones(20)],
        [np.linspace(0, 0.015, 20)],  # slack
        [np.linspace(0, 0.1, 20), np.linspace(0, 0.7, 20)],  # one that hardly closes
        [np.linspace(-0.03, 1.03, 20)],
    ],
    ids=range(6),
)
def test_honest_grippers_pass(grippers, tmp_path):
    recorded = [np.c_[path(20)[:, :6], gripper] for gripper in grippers]
    data = write(tmp_path / 'set', *recorded)
    robot.check_units(robot.open_recordings(data), data)
    for i, states in enumerate(recorded):
        np.testing.assert_array_equal(robot.open_recordings(data).episode(i).states, states)


def test_training_is_refused_before_it_begins(tmp_path):
    config = smoke(ActionConditionedConfig(name='robot'))
    config.robot = write(tmp_path / 'set', SCALES['millimetres'][0])
    with pytest.raises(BadFile, match='bad_units: positions up to 500 m'):
        frozen.encoder_of_recordings(config, None, Origin(None, False, False))


def test_one_recording_in_other_units_is_replaced_and_counted(tmp_path):
    config = smoke(ActionConditionedConfig(name='robot'))
    config.data.workers = 0
    config.robot = write(tmp_path / 'set', path(), SCALES['degrees'][0], path(seed=5))
    robot.check_units(robot.open_recordings(config.robot), config.robot)
    with RobotStream(config, None) as stream, stream.batches(0) as hosts:
        host = next(hosts)
        facts, lines = stream.facts, '\n'.join(stream.describe())
    assert {failure.reason for failure in host.failures} == {'bad_units'}
    assert np.abs(host.batch.states[:, :, 3:6]).max() < 4
    # what was measured goes into the checkpoint: of the two that can be read
    kept = robot.Measured.stored(facts['measured'])
    both = np.concatenate([path(), path(seed=5)])
    assert kept.episodes == 2 and kept.rates == (4.0,) and kept.begins == 0
    np.testing.assert_allclose(kept.low, both.min(0), atol=1e-12)
    np.testing.assert_allclose(kept.high, both.max(0), atol=1e-12)
    assert 'measured on 2 recordings: x 0.3 to 0.5' in lines
    assert 'as recorded: positions in 1 m, angles in radians, gripper 1 is closed' in lines
    outside = path()
    outside[:, 2] += 2
    assert kept.beyond(path()) == []
    assert kept.beyond(outside) == ['z 2.3 to 2.3, the model was trained on 0.3 to 0.3']


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'angles': 'gradian'}, 'allowed are radians, degrees'),
        ({'gripper_range': (1.0, 1.0)}, 'which differ'),
        ({'gripper_range': (0.0, 1.0), 'gripper': 'open'}, 'the range alone says'),
    ],
    ids=str,
)
def test_settings_that_cannot_work(changes, message):
    config = smoke(ActionConditionedConfig(name='robot'))
    config.robot = dataclasses.replace(config.robot, **changes)
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_poses_of_the_camera_that_do_not_fit_are_left_out_with_a_word(tmp_path):
    data = write(tmp_path / 'set', path())
    arrays = dict(np.load(tmp_path / 'set/0.npz'))
    for wrong in (np.zeros((3, 6)), np.zeros((40, 5)), np.full((40, 6), np.nan), np.array('a')):
        np.savez(tmp_path / 'set/0.npz', **arrays, extrinsics=wrong)
        episode = robot.open_recordings(data).episode(0)
        assert episode.extrinsics is None and 'extrinsics are not used' in episode.notes[0]
        seen = dataclasses.replace(data, frame='camera')
        with pytest.raises(BadFile, match='needs extrinsics'):
            robot.open_recordings(seen).episode(0)
