"""LeRobot sets whose features are named, numbered or stored in other ways than ours are read by
options, or what they have is said in one line."""

import dataclasses
import io
import json
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from jepa_jax.config import RobotConfig
from jepa_jax.data import robot, synthetic
from jepa_jax.errors import BadFile, ConfigError

COUNT, FPS = 24, 10
NAMES = ['x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper']


def states(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(count).uniform(0, 1, (count, 7)).astype(np.float32)


def encoded(grey: int, kind: str = 'PNG') -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (48, 32), (grey, grey, grey)).save(file, kind)
    return file.getvalue()


def write(
    folder: pathlib.Path, features: dict, columns: dict, *, version='v2.1', images='', video_fps=FPS
) -> RobotConfig:
    """An episode of the columns, whose pictures tell their number by their grey, 10 times it: a
    video, or images encoded as `images`."""
    (folder / 'meta').mkdir(parents=True)
    (folder / 'data').mkdir()
    camera = {'dtype': 'image' if images else 'video', 'shape': [32, 48, 3], 'names': None}
    info = {
        'codebase_version': version, 'fps': FPS, 'chunks_size': 1000,
        'features': {**features, 'top': camera},
        'data_path': 'data/{episode_index:06d}.parquet', 'video_path': '{video_key}/v.mp4',
    }  # fmt: skip
    greys = 10 * np.arange(COUNT, dtype=np.uint8)
    table = {**columns, 'episode_index': np.zeros(COUNT, int)}
    if images:
        table['top'] = [{'bytes': encoded(g, images), 'path': 'frame.png'} for g in greys.tolist()]
    else:
        (folder / 'top').mkdir()
        frames = np.broadcast_to(greys[:, None, None, None], (COUNT, 32, 48, 3))
        synthetic.write(folder / 'top/v.mp4', frames, video_fps)
    if version[:2] == 'v3':
        info['data_path'] = 'data/{chunk_index:03d}{file_index:03d}.parquet'
        other = {key: [*value, *value] for key, value in table.items()}
        other['episode_index'] = [7] * COUNT + [0] * COUNT  # the second of the file
        pyarrow.parquet.write_table(pyarrow.table(other), folder / 'data/000000.parquet')
        entry = {'episode_index': [0], 'length': [COUNT], 'data/chunk_index': [0],
                 'data/file_index': [0]}  # fmt: skip
        (folder / 'meta/episodes/chunk-000').mkdir(parents=True)
        path = folder / 'meta/episodes/chunk-000/file-000.parquet'
        pyarrow.parquet.write_table(pyarrow.table(entry), path)
    else:
        pyarrow.parquet.write_table(pyarrow.table(table), folder / 'data/000000.parquet')
        line = {'episode_index': 0, 'length': COUNT}
        (folder / 'meta/episodes.jsonl').write_text(json.dumps(line) + '\n')
    (folder / 'meta/info.json').write_text(json.dumps(info))
    return RobotConfig('lerobot', str(folder), camera='top')


def numbers(names, width: int = 7) -> dict:
    return {'dtype': 'float32', 'shape': [width], 'names': names}


def check(data: RobotConfig, expected: np.ndarray) -> robot.Episode:
    episode = robot.open_recordings(data).episode(0)
    np.testing.assert_array_equal(episode.states, expected.astype(np.float64))
    piece = robot.cut(episode, 3, 4.0, lambda n: 5)  # every third of 10 a second
    np.testing.assert_array_equal(piece.numbers, [5, 8, 11])
    np.testing.assert_allclose(piece.frames.mean((1, 2, 3)), 10 * piece.numbers, atol=2.5)
    np.testing.assert_array_equal(piece.states, expected[piece.numbers])
    return episode


@pytest.mark.parametrize(
    'names', [NAMES, {'motors': NAMES}, {'pose': NAMES[:6], 'hand': [NAMES[6]]}], ids=str
)
def test_names_and_lists_of_names(names, tmp_path):
    data = write(tmp_path / 'set', {'state': numbers(names)}, {'state': list(states())})
    check(dataclasses.replace(data, state='state'), states())


@pytest.mark.parametrize('names', [None, [None] * 7, ['a'] * 7, {}, 'words', ['x']], ids=str)
def test_columns_by_number(names, tmp_path):
    data = write(
        tmp_path / 'set',
        {'observation.state': numbers(names)},
        {'observation.state': list(states())},
    )
    with pytest.raises(ConfigError, match=r'no x, .*numbers, 0 to 6') as error:
        robot.open_recordings(data)
    assert len(str(error.value).splitlines()) == 1
    check(dataclasses.replace(data, columns='0,1,2,3,4,5,6'), states())
    swapped = dataclasses.replace(data, columns='1, 0,2,3,4,5,6')
    check(swapped, states()[:, [1, 0, 2, 3, 4, 5, 6]])
    with pytest.raises(ConfigError, match='no 7; must name'):
        robot.open_recordings(dataclasses.replace(data, columns='0,1,2,3,4,5,7'))


def test_doubled_names_are_named(tmp_path):
    names = ['x', 'y', 'x', 'roll', 'pitch', 'yaw', 'gripper', 'z']
    wide = np.c_[states(), states()[:, :1]]
    data = write(
        tmp_path / 'set',
        {'observation.state': numbers(names, 8)},
        {'observation.state': list(wide)},
    )
    with pytest.raises(ConfigError, match="'x' is there 2 times, as 0 and 2; must name"):
        robot.open_recordings(data)
    check(
        dataclasses.replace(data, columns='2,y,z,roll,pitch,yaw,gripper'),
        wide[:, [2, 1, 7, 3, 4, 5, 6]],
    )


def test_split_features_are_joined(tmp_path):
    """As DROID's port to LeRobot has them; the gripper is a number, not a list of one."""
    keys = 'observation.state.cartesian_position', 'observation.state.gripper_position'
    features = {keys[0]: numbers(NAMES[:6], 6), keys[1]: numbers(None, 1)}
    columns = {keys[0]: list(states()[:, :6]), keys[1]: states()[:, 6]}
    data = write(tmp_path / 'set', features, columns)
    with pytest.raises(ConfigError) as error:
        robot.open_recordings(data)
    assert "no feature 'observation.state'" in str(error.value)
    assert f'{keys[0]} float32 [6], {keys[1]} float32 [1], top video [32, 48, 3]' in str(
        error.value
    )
    joined = dataclasses.replace(data, state=','.join(keys), columns='x,y,z,roll,pitch,yaw,6')
    check(joined, states())


@pytest.mark.parametrize('version', ['v2.0', 'v2.1', 'v3.0'])
def test_images_in_the_data(version, tmp_path):
    data = write(
        tmp_path / 'set', {'observation.state': numbers(NAMES)},
        {'observation.state': list(states())}, version=version, images='PNG',
    )  # fmt: skip
    check(data, states())
    recordings = robot.open_recordings(data)
    assert '000000.parquet' in recordings.state(0)


def test_images_that_are_none(tmp_path):
    data = write(
        tmp_path / 'set', {'observation.state': numbers(NAMES)},
        {'observation.state': list(states())}, images='JPEG',
    )  # fmt: skip
    check(data, states())
    path = tmp_path / 'set/data/000000.parquet'
    table = pyarrow.parquet.read_table(path)
    for cells, reason in (
        ([{'bytes': None, 'path': 'a.png'}] * COUNT, 'no_camera'),
        ([1] * COUNT, 'no_camera'),
        ([{'bytes': b'PNG', 'path': ''}] * COUNT, 'corrupt'),
    ):
        other = table.set_column(table.column_names.index('top'), 'top', [cells])
        pyarrow.parquet.write_table(other, path)
        with pytest.raises(BadFile) as error:
            robot.cut(robot.open_recordings(data).episode(0), 3, 4.0, lambda n: 0)
        assert error.value.reason in (reason, 'not_image')


def test_the_rate_is_that_of_the_set(tmp_path):
    """Its video says 30."""
    data = write(
        tmp_path / 'set', {'observation.state': numbers(NAMES)},
        {'observation.state': list(states())}, video_fps=30,
    )  # fmt: skip
    episode = check(data, states())
    assert episode.notes == [
        "the video says 30 frames a second, the recording's own clock 10: the clock is believed"
    ]
    before = robot.open_recordings(data).state(0)
    path = tmp_path / 'set/meta/info.json'
    path.write_text(path.read_text().replace('"fps": 10', '"fps": 20'))
    assert robot.open_recordings(data).state(0) != before


@pytest.mark.parametrize(
    'column, message',
    [
        ([None] + [[0.0] * 7] * (COUNT - 1), 'is empty in 1 rows'),
        ([[0.0] * 6 + [None]] * COUNT, f'has {COUNT} empty places'),
        ([[0.0] * 6] * COUNT, 'has 6 columns, fewer than meta/ says'),
        ([[0.0] * 7] * (COUNT - 1) + [[0.0] * 6], 'must be lists of numbers'),
        ([[0.0] * 8, [0.0] * 6] * (COUNT // 2), 'must be lists of numbers'),
        (['x'] * COUNT, 'must be lists of numbers'),
        ([[float('nan')] * 7] * COUNT, 'x of frame 0 is nan'),
    ],
    ids=range(7),
)
def test_states_that_cannot_be_used_are_one_line(column, message, tmp_path):
    data = write(
        tmp_path / 'set', {'observation.state': numbers(NAMES)},
        {'observation.state': list(states())},
    )  # fmt: skip
    table = {'observation.state': column, 'episode_index': np.zeros(COUNT, int)}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / 'set/data/000000.parquet')
    with pytest.raises(BadFile, match=message) as error:
        robot.open_recordings(data).episode(0)
    assert error.value.reason == 'bad_state'


def test_a_version_that_is_not_read_is_said(tmp_path):
    data = write(
        tmp_path / 'set', {'observation.state': numbers(NAMES)},
        {'observation.state': list(states())}, version='v1.6',
    )  # fmt: skip
    with pytest.raises(ConfigError, match="codebase_version 'v1.6': allowed are v2 and v3"):
        robot.open_recordings(data)


@pytest.mark.parametrize('version', ['v2.1', 'v3.0'])
def test_recorded_actions(tmp_path, version):
    """Commanded poses by their own key and columns: an action leads from the measured state to the
    pose that was commanded in the row before the next frame, by rotation matrices."""
    rng = np.random.default_rng(0)
    commanded = np.round(states() + rng.uniform(-0.1, 0.1, (COUNT, 7)), 6).astype(np.float32)
    commanded[:, 6] = np.clip(commanded[:, 6], 0, 1)
    data = write(
        tmp_path / 'set',
        {'observation.state': numbers(NAMES), 'action': numbers([f'goal.{n}' for n in NAMES])},
        {'observation.state': list(states()), 'action': list(commanded[:, ::-1])},
        version=version,
        images='PNG' if version == 'v3.0' else '',
    )
    plain = robot.cut(robot.open_recordings(data).episode(0), 3, 4.0, lambda n: 5)
    data = dataclasses.replace(data, action='action', action_columns='6,5,4,3,2,1,0')
    episode = check(data, states())
    piece = robot.cut(episode, 3, 4.0, lambda n: 5)
    start, end = states()[[5, 8]].astype(np.float64), commanded[[7, 10]].astype(np.float64)
    apart = (end - start)[:, [0, 1, 2, 6]]
    np.testing.assert_allclose(piece.actions[:, [0, 1, 2, 6]], apart, atol=1e-6)
    a, b, turn = (
        Rotation.from_euler('xyz', poses[:, 3:6]).as_matrix()
        for poses in (start, end, piece.actions)
    )
    np.testing.assert_allclose(turn @ a, b, atol=1e-6)
    np.testing.assert_array_equal(piece.states, plain.states)
    assert np.abs(piece.actions - plain.actions).max() > 0.05
    own, theirs = robot.Contract.of(data), robot.Contract.of(dataclasses.replace(data, action=''))
    with pytest.raises(ConfigError, match='action: .*measured states.* commanded pose'):
        own.check(dataclasses.asdict(theirs))


@pytest.mark.parametrize(
    'settings, words',
    [
        ({'action': 'acton'}, r"robot.action = 'acton': no feature 'acton'; did you mean action"),
        ({'action': 'action'}, r"robot.action_columns = '': no x.*columns of action that are x, y"),
        ({'action': 'action', 'action_columns': '0,1,2,3,4,5,x'}, 'no x; must name.*numbers, 0 to'),
        ({'action': 'action', 'kind': 'npz'}, 'only recordings of LeRobot'),
    ],
)
def test_actions_that_are_not_there(tmp_path, settings, words):
    features = {'observation.state': numbers(NAMES), 'action': numbers(None)}
    columns = {'observation.state': list(states()), 'action': list(states())}
    data = write(tmp_path / 'set', features, columns)
    with pytest.raises(ConfigError, match=words) as error:
        robot.open_recordings(dataclasses.replace(data, **settings))
    assert len(str(error.value).splitlines()) == 1
