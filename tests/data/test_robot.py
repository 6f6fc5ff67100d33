"""Recordings in each layout, written here as their makers write them, read back and compared."""

import dataclasses
import io
import json
import os
import pathlib
import pickle
import shutil
from fractions import Fraction

import av
import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy.spatial.transform import Rotation

from jepa_jax.config import RobotConfig
from jepa_jax.data import robot, synthetic
from jepa_jax.errors import BadFile, ConfigError

FRAMES, FPS = 40, 15


def states(seed: int = 0, count: int = FRAMES) -> np.ndarray:
    """A smooth path whose gripper points down: its roll crosses from pi to -pi."""
    rng = np.random.default_rng(seed)
    path = np.cumsum(rng.normal(0, 0.01, (count, 7)), axis=0) + [0.5, 0, 0.3, np.pi, 0, 1, 0.5]
    path[:, 3] = (path[:, 3] + np.pi) % (2 * np.pi) - np.pi
    path[:, 6] = np.clip(path[:, 6], 0, 1)
    return path


def pixels(count: int = FRAMES, seed: int = 0) -> np.ndarray:
    """Frames that tell their number: grey of 5 times it."""
    grey = (5 * np.arange(count) + seed).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (count, 32, 48, 3))


def numbers_in(frames: np.ndarray) -> np.ndarray:
    return np.round(frames.reshape(len(frames), -1).mean(1) / 5).astype(int)


def write_droid(folder: pathlib.Path, count: int = FRAMES, seed: int = 0, video: int = FRAMES):
    """The raw layout of DROID: trajectory.h5, metadata_*.json, recordings/MP4/SERIAL.mp4."""
    movies = folder / 'recordings/MP4'
    movies.mkdir(parents=True)
    path, camera = states(seed, count), states(seed + 9, count)[:, :6]
    with h5py.File(folder / 'trajectory.h5', 'w') as file:
        file['observation/robot_state/cartesian_position'] = path[:, :6]
        file['observation/robot_state/gripper_position'] = path[:, 6]
        file['observation/camera_extrinsics/23404442_left'] = camera
    synthetic.write(movies / '23404442.mp4', pixels(video), FPS)
    metadata = {'uuid': 'x', 'left_mp4_path': 'success/day/recordings/MP4/23404442.mp4'}
    (folder / 'metadata_x.json').write_text(json.dumps(metadata))
    return path, camera


def write_timed(path: pathlib.Path, frames: np.ndarray, times: np.ndarray) -> None:
    """An mp4 whose frames are shown at `times`, seconds."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=FPS, options={'preset': 'veryfast'})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        stream.codec_context.time_base = stream.time_base = Fraction(1, 3000)
        for picture, time in zip(frames, times):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format='rgb24')
            frame.pts, frame.time_base = round(3000 * time), Fraction(1, 3000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_lerobot(folder: pathlib.Path, version: str, gaps=(0.0, 0.0)) -> list[np.ndarray]:
    """Two episodes; version 3 has both in one data file and one video."""
    paths = [states(1, 30), states(2, 25)]
    names = ['gripper', 'x', 'y', 'z', 'roll', 'pitch', 'yaw', 'torque']
    info = {
        'codebase_version': version,
        'fps': FPS,
        'chunks_size': 1000,
        'features': {
            'observation.state': {'dtype': 'float32', 'shape': [8], 'names': names},
            'observation.images.top': {'dtype': 'video', 'shape': [32, 48, 3]},
        },
    }
    rows = [np.concatenate([p[:, 6:], p[:, :6], p[:, :1] * 0], axis=1) for p in paths]

    def table(episodes):
        flat = [list(map(float, row)) for e in episodes for row in rows[e]]
        index = [e for e in episodes for _ in rows[e]]
        return pyarrow.table({'observation.state': flat, 'episode_index': index})

    def parquet(name, content):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(content, folder / name)

    def video(name, frames):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        synthetic.write(folder / name, frames, FPS)

    (folder / 'meta').mkdir(parents=True, exist_ok=True)
    if version.startswith('v2'):
        info['data_path'] = 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet'
        info['video_path'] = (
            'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'
        )
        lines = [json.dumps({'episode_index': e, 'length': len(p)}) for e, p in enumerate(paths)]
        (folder / 'meta/episodes.jsonl').write_text('\n'.join(lines) + '\n')
        for e, p in enumerate(paths):
            parquet(f'data/chunk-000/episode_{e:06d}.parquet', table([e]))
            name = f'videos/chunk-000/observation.images.top/episode_{e:06d}.mp4'
            video(name, pixels(len(p), 2 * e))
    else:
        info['data_path'] = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
        info['video_path'] = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
        camera = 'videos/observation.images.top'
        content = {
            'episode_index': [0, 1],
            'length': [30, 25],
            'dataset_from_index': [0, 30],
            'data/chunk_index': [0, 0],
            'data/file_index': [0, 0],
            f'{camera}/chunk_index': [0, 0],
            f'{camera}/file_index': [0, 0],
            f'{camera}/from_timestamp': [0.0, 30 / FPS + gaps[0]],
        }
        parquet('meta/episodes/chunk-000/file-000.parquet', pyarrow.table(content))
        parquet('data/chunk-000/file-000.parquet', table([0, 1]))
        frames = np.concatenate([pixels(30, 0), pixels(25, 2)])
        name = 'videos/observation.images.top/chunk-000/file-000.mp4'
        video(name, frames)
        if any(gaps):
            later = gaps[0] * (np.arange(55) >= 30) + gaps[1] * (np.arange(55) >= 40)
            write_timed(folder / name, frames, np.arange(55) / FPS + later)
    (folder / 'meta/info.json').write_text(json.dumps(info))
    return paths


def check_piece(episode: robot.Episode, path: np.ndarray, first: int, seed: int = 0) -> None:
    """A piece of 3 frames at 4 a second: every fourth of 15, states and actions beside them."""
    piece = robot.cut(episode, 3, 4.0, lambda places: min(first, places - 1))
    expected = first + 4 * np.arange(3)
    np.testing.assert_array_equal(piece.numbers, expected)
    np.testing.assert_array_equal(numbers_in(np.float32(piece.frames) - seed), expected)
    np.testing.assert_allclose(piece.states, path[expected], rtol=0, atol=1e-6)
    for t, (a, b) in enumerate(zip(path[expected], path[expected[1:]])):
        turn = Rotation.from_euler('xyz', b[3:6]) * Rotation.from_euler('xyz', a[3:6]).inv()
        action = piece.actions[t]
        np.testing.assert_allclose(action[3:6], turn.as_euler('xyz'), rtol=0, atol=1e-6)
        np.testing.assert_allclose(action[[0, 1, 2, 6]], (b - a)[[0, 1, 2, 6]], atol=1e-6)
        assert np.abs(action[3:6]).max() < 0.5  # though the roll of the states jumps by 2 pi


def test_droid(tmp_path):
    paths = [write_droid(tmp_path / f'lab/success/{i}', seed=i)[0] for i in range(2)]
    listed = tmp_path / 'list.csv'
    listed.write_text('lab/success/1 x\nlab/success/0\n')
    by_list = robot.open_recordings(RobotConfig(path=str(listed)))
    by_folder = robot.open_recordings(RobotConfig(path=str(tmp_path / 'lab')))
    assert len(by_list) == len(by_folder) == 2
    check_piece(by_list.episode(0), paths[1], 5)
    check_piece(by_folder.episode(0), paths[0], 28)  # the last place: 40 - 3 x 4
    assert np.ptp(paths[0][:, 3]) > 6  # the trap is in the data
    folder = tmp_path / 'lab/success/0'
    files = ('trajectory.h5', 'metadata_x.json', 'recordings/MP4/23404442.mp4')
    check_state(by_folder, 0, *(folder / name for name in files))


def check_state(recordings: robot.Recordings, index: int, *files: pathlib.Path) -> None:
    """The episode's state is another if any of the files is, and the other episode's is not."""
    states = {recordings.state(index)}
    other = recordings.state(1 - index)
    for file in files:
        os.utime(file, (1, 1))
        states.add(recordings.state(index))
    assert len(states) == 1 + len(files) and recordings.state(1 - index) == other


def test_droid_in_the_frame_of_the_camera(tmp_path):
    path, camera = write_droid(tmp_path / 'a')
    data = RobotConfig(path=str(tmp_path), frame='camera')
    result = robot.open_recordings(data).episode(0).states

    def matrix(pose):
        m = np.eye(4)
        m[:3, :3], m[:3, 3] = Rotation.from_euler('xyz', pose[3:6]).as_matrix(), pose[:3]
        return m

    for i in (0, 17):
        expected = np.linalg.inv(matrix(camera[i])) @ matrix(path[i])
        np.testing.assert_allclose(matrix(result[i]), expected, atol=1e-9)
    np.testing.assert_array_equal(result[:, 6], path[:, 6])


@pytest.mark.parametrize('version', ['v2.1', 'v3.0'])
def test_lerobot(version, tmp_path):
    paths = write_lerobot(tmp_path / 'set', version)
    data = RobotConfig('lerobot', str(tmp_path / 'set'), camera='observation.images.top')
    recordings = robot.open_recordings(data)
    assert len(recordings) == 2
    for e, path in enumerate(paths):
        check_piece(recordings.episode(e), path, 3, seed=2 * e)
    if version == 'v2.1':
        check_state(recordings, 1, *(tmp_path / 'set').rglob('*_000001.*'))
    else:  # of one file, so they tell each other by where they are in it
        assert recordings.state(0) != recordings.state(1)


def test_lerobot_episodes_of_one_video_are_found_by_time(tmp_path):
    """Two seconds without frames between the episodes; then half a second within the second, too;
    then a video that is not of the rate that was written down."""
    paths = write_lerobot(tmp_path / 'set', 'v3.0', gaps=(2.0, 0.0))
    data = RobotConfig('lerobot', str(tmp_path / 'set'), camera='observation.images.top')
    for e, path in enumerate(paths):
        check_piece(robot.open_recordings(data).episode(e), path, 3, seed=2 * e)
    write_lerobot(tmp_path / 'set', 'v3.0', gaps=(2.0, 0.5))
    check_piece(robot.open_recordings(data).episode(0), paths[0], 3)
    with pytest.raises(BadFile, match='frame 10 of the episode should be shown at 4.667 s, .* 5.1'):
        check_piece(robot.open_recordings(data).episode(1), paths[1], 3, seed=2)
    paths = write_lerobot(tmp_path / 'set', 'v3.0')
    info = tmp_path / 'set/meta/info.json'
    info.write_text(json.dumps({**json.loads(info.read_text()), 'fps': 16}))
    with pytest.raises(BadFile, match='the video has 15 frames a second, the recordings 16: which'):
        check_piece(robot.open_recordings(data).episode(1), paths[1], 3, seed=2)


def test_npz_with_frames_or_a_video_beside(tmp_path):
    path = states(3)
    np.savez(tmp_path / 'a.npz', states=path, observations=pixels(), fps=FPS)
    np.savez(tmp_path / 'b.npz', states=path[None])
    synthetic.write(tmp_path / 'b.mp4', pixels(), FPS)
    recordings = robot.open_recordings(RobotConfig('npz', str(tmp_path)))
    for i in range(2):
        check_piece(recordings.episode(i), path, 7)
    check_state(recordings, 1, tmp_path / 'b.npz', tmp_path / 'b.mp4')


def test_units_and_the_sense_of_the_gripper_are_brought_to_the_contract(tmp_path):
    path = states(3)
    recorded = path * ([1000] * 3 + [1] * 4)
    recorded[:, 6] = 1 - path[:, 6]
    np.savez(tmp_path / 'a.npz', states=recorded, observations=pixels(), fps=FPS)
    data = RobotConfig('npz', str(tmp_path), metres=0.001, gripper='open')
    np.testing.assert_allclose(robot.open_recordings(data).episode(0).states, path, atol=1e-12)


def test_a_path_from_home(tmp_path, monkeypatch):
    np.savez(tmp_path / 'a.npz', states=states(0, 12), observations=pixels(12), fps=FPS)
    monkeypatch.setenv('HOME', str(tmp_path.parent))
    recordings = robot.open_recordings(RobotConfig('npz', f'~/{tmp_path.name}'))
    assert len(recordings) == 1 and recordings.episode(0).states.shape == (12, 7)


def test_pieces_start_anywhere_that_fits(tmp_path):
    np.savez(tmp_path / 'a.npz', states=states(0, 12), observations=pixels(12), fps=FPS)
    episode = robot.open_recordings(RobotConfig('npz', str(tmp_path))).episode(0)
    seen = []
    robot.cut(episode, 3, 4.0, lambda places: seen.append(places) or 0)
    assert seen == [1]
    with pytest.raises(BadFile, match='12 frames, a piece takes 4 x 4 = 16'):
        robot.cut(episode, 4, 4.0, lambda places: 0)
    with pytest.raises(BadFile, match='15 frames a second, 20 are needed'):
        robot.cut(episode, 3, 20.0, lambda places: 0)


def broken(tmp_path, **changes) -> RobotConfig:
    arrays = {'states': states(), 'observations': pixels(), 'fps': FPS, **changes}
    np.savez(tmp_path / 'a.npz', **{k: a for k, a in arrays.items() if a is not None})
    return RobotConfig('npz', str(tmp_path))


NAN = states()
NAN[7, 4] = np.nan


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'states': NAN}, 'pitch of frame 7 is nan'),
        ({'states': states()[:, :6]}, r'states have shape \[40, 6\], must have \[T, 7\]'),
        ({'actions': np.zeros((39, 9))}, r'actions have shape \[39, 9\], must have \[T - 1, 7\]'),
        ({'states': None}, 'no array states; it holds observations, fps'),
        ({'fps': None}, 'observations need fps'),
        ({'observations': None}, 'neither observations nor a video .*a.mp4'),
        (
            {'states': states(0, 13)},
            r'13 states for 40 frames of video \(15 a second\): .* are at 4.88 a second',
        ),
    ],
)
def test_what_is_wrong_with_an_episode_is_said(changes, message, tmp_path):
    with pytest.raises(BadFile, match=message):
        robot.cut(
            robot.open_recordings(broken(tmp_path, **changes)).episode(0), 3, 4.0, lambda n: 0
        )


def test_states_of_another_rate_than_the_video_are_refused(tmp_path):
    write_droid(tmp_path / 'a', count=13)
    episode = robot.open_recordings(RobotConfig(path=str(tmp_path))).episode(0)
    with pytest.raises(BadFile, match='13 states for 40 frames of video'):
        robot.cut(episode, 3, 4.0, lambda n: 0)


def test_damaged_npz_is_named(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez_compressed(path, states=np.random.default_rng(0).normal(size=(90, 7)))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    np.save(tmp_path / 'one.npy', np.zeros(3))
    one = (tmp_path / 'one.npy').read_bytes()
    for data in (b'', b'no npz', one, whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(data)
        with pytest.raises(BadFile, match='corrupt' if data else 'empty') as error:
            robot.open_recordings(RobotConfig(kind='npz', path=str(tmp_path))).episode(0)
        assert 'a.npz' in str(error.value)


def test_what_is_missing_in_a_droid_folder_is_said(tmp_path):
    write_droid(tmp_path / 'a')
    data = RobotConfig(path=str(tmp_path))
    with pytest.raises(ConfigError, match="robot.camera = 'wrist': allowed are left_mp4_path"):
        robot.open_recordings(dataclasses.replace(data, camera='wrist'))
    (tmp_path / 'a/recordings/MP4/23404442.mp4').unlink()
    with pytest.raises(BadFile, match='missing'):
        robot.cut(robot.open_recordings(data).episode(0), 3, 4.0, lambda n: 0)
    (tmp_path / 'a/trajectory.h5').write_bytes(b'no h5')
    with pytest.raises(BadFile, match='corrupt'):
        robot.open_recordings(data).episode(0)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'kind': 'droids'}, "robot.kind = 'droids': allowed are .*did you mean droid"),
        ({'path': '/no/where'}, "robot.path = '/no/where'.*No such file"),
        ({'kind': 'npz', 'path': '/no/where'}, 'no such folder'),
    ],
)
def test_what_cannot_be_opened_is_said(changes, message):
    with pytest.raises(ConfigError, match=message):
        robot.open_recordings(RobotConfig(**changes))


def test_cameras_of_droid_are_named_before_training(tmp_path):
    """All of them, with the one meant; and one that only some recordings have is taken."""
    for name, more in (('a', {}), ('b', {'wrist_mp4_path': 'recordings/MP4/1.mp4'})):
        write_droid(tmp_path / name)
        file = tmp_path / name / 'metadata_x.json'
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    data = RobotConfig(path=str(tmp_path))
    robot.open_recordings(dataclasses.replace(data, camera='wrist_mp4_path'))
    shutil.rmtree(tmp_path / 'a')
    words = 'allowed are left_mp4_path, wrist_mp4_path; did you mean {}_mp4_path[?] .*metadata_x'
    for typed, meant in (('wrist', 'wrist'), ('left_mp4', 'left')):
        with pytest.raises(ConfigError, match=f"robot.camera = '{typed}': {words.format(meant)}"):
            robot.open_recordings(dataclasses.replace(data, camera=typed))


def test_lerobot_names_what_it_has(tmp_path):
    write_lerobot(tmp_path / 'set', 'v2.1')
    data = RobotConfig('lerobot', str(tmp_path / 'set'), camera='observation.images.top')
    with pytest.raises(ConfigError, match="'wrist': allowed are observation.images.top"):
        robot.open_recordings(dataclasses.replace(data, camera='wrist'))
    with pytest.raises(ConfigError, match='no elbow; must name the 7 columns .* among gripper, x'):
        robot.open_recordings(dataclasses.replace(data, columns='x,y,z,roll,pitch,yaw,elbow'))


def test_weights_of_another_robot_are_refused():
    own = robot.Contract.of(RobotConfig())
    own.check(dataclasses.asdict(own))
    other = dataclasses.asdict(robot.Contract.of(RobotConfig(robot='ur5e', fps=5.0)))
    with pytest.raises(
        ConfigError, match="another robot: robot: 'ur5e' in the weights, 'franka' here; rate: 5.0"
    ):
        own.check(other)


def png(picture: np.ndarray) -> io.BytesIO:
    """As a file, which tfds stores as it is; arrays it would encode with TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, 'PNG')
    file.seek(0)
    return file


class Arm(tfds.core.GeneratorBasedBuilder):
    """Two episodes, steps as DROID has them in RLDS."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        observation = {
            'exterior_image_1_left': tfds.features.Image(shape=(32, 48, 3), encoding_format='png'),
            'cartesian_position': tfds.features.Tensor(shape=(6,), dtype=np.float64),
            'gripper_position': tfds.features.Tensor(shape=(1,), dtype=np.float64),
        }
        steps = tfds.features.Dataset({'observation': observation, 'is_last': np.bool_})
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({'steps': steps})
        )

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        for e, count in enumerate((30, 25)):
            steps = [
                {
                    'observation': {
                        'exterior_image_1_left': png(picture),
                        'cartesian_position': state[:6],
                        'gripper_position': state[6:],
                    },
                    'is_last': i == count - 1,
                }
                for i, (picture, state) in enumerate(zip(pixels(count, 2 * e), states(e, count)))
            ]
            yield e, {'steps': steps}


def test_rlds(tmp_path):
    Arm(data_dir=tmp_path, file_format='array_record').download_and_prepare()
    data = RobotConfig(
        'rlds', str(tmp_path / 'arm'), camera='exterior_image_1_left', recorded_fps=FPS
    )
    recordings = robot.open_recordings(data)
    for copy in (recordings, pickle.loads(pickle.dumps(recordings))):  # as workers get them
        assert len(copy) == 2
        for i in range(2):  # tfds mixes them
            episode = copy.episode(i)
            e = {30: 0, 25: 1}[len(episode.states)]
            check_piece(episode, states(e, len(episode.states)), 3, seed=2 * e)
    state = recordings.state(0)
    os.utime(next((tmp_path / 'arm').rglob('*array_record*')), (1, 1))
    assert robot.open_recordings(data).state(0) != state
    with pytest.raises(ConfigError, match='recorded_fps = 0: RLDS recordings do not say'):
        robot.open_recordings(dataclasses.replace(data, recorded_fps=0.0))
    words = r'allowed are exterior_image_1_left; did you mean exterior_image_1_left\?$'
    with pytest.raises(ConfigError, match=f"robot.camera = 'exterior': {words}"):
        robot.open_recordings(dataclasses.replace(data, camera='exterior'))
    with pytest.raises(ConfigError, match="robot.columns = 'pose': allowed are"):
        robot.open_recordings(dataclasses.replace(data, columns='pose,gripper_position'))
    with pytest.raises(ConfigError, match='robot.path: .*holds no prepared dataset'):
        robot.open_recordings(dataclasses.replace(data, path=str(tmp_path / 'none')))
    with pytest.raises(ConfigError, match="split 'test'"):
        robot.open_recordings(dataclasses.replace(data, path=f'{data.path}:test'))
