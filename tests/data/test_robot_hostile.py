"""Recordings that are damaged, or made to do harm: each is a bad file or a line about the settings,
whatever a library raises, and never another file's content."""

import dataclasses
import io
import json
import os
import pathlib
import random
import shutil
import zipfile

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from test_robot import Arm

from jepa_jax.config import RobotConfig
from jepa_jax.data import robot, synthetic
from jepa_jax.data.robot import metadata
from jepa_jax.data.robot import rlds as rlds_kind
from jepa_jax.errors import BadFile, ConfigError

FRAMES, FPS = 12, 15
VALUES = (None, True, -1, 0, 1.5, 1e308, 10**30, '', 'a\0b', '../../../etc/passwd', '/etc/passwd',
          '{episode_index.__class__}', '{episode_index:999999999d}', '{0}', [], {}, [[]],
          {'a': [1, {}]}, 'x' * 5000, '\ud800')  # fmt: skip


def states(count: int = FRAMES) -> np.ndarray:
    path = np.zeros((count, 7))
    path[:, 0], path[:, 6] = 0.4 + 0.01 * np.arange(count), np.linspace(0, 1, count)
    return path


def png(size: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (size, size), 'red').save(file, 'PNG')
    return file.getvalue()


def write_droid(folder: pathlib.Path) -> RobotConfig:
    movies = folder / 'a/recordings/MP4'
    movies.mkdir(parents=True)
    with h5py.File(folder / 'a/trajectory.h5', 'w') as file:
        file['observation/robot_state/cartesian_position'] = states()[:, :6]
        file['observation/robot_state/gripper_position'] = states()[:, 6]
        stamps = 1.6e12 + np.arange(FRAMES) * 1000 / FPS
        file['observation/timestamp/cameras/1_frame_received'] = stamps
        file['observation/camera_extrinsics'] = h5py.SoftLink('/elsewhere')  # in the file
        file.create_dataset(
            'elsewhere/1_left', data=states()[:, :6], compression='gzip', chunks=(4, 6)
        )
    synthetic.write(movies / '1.mp4', np.zeros((FRAMES, 32, 48, 3), np.uint8), FPS)
    (folder / 'a/metadata_a.json').write_text(
        json.dumps({'left_mp4_path': 'lab/recordings/MP4/1.mp4', 'uuid': 'x', 'n': 3})
    )
    return RobotConfig('droid', str(folder))


def write_lerobot(folder: pathlib.Path) -> RobotConfig:
    (folder / 'meta').mkdir(parents=True)
    (folder / 'data').mkdir()
    names = ['x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper']
    info = {
        'codebase_version': 'v2.1', 'fps': FPS, 'chunks_size': 1000,
        'data_path': 'data/{episode_chunk:03d}_{episode_index:06d}.parquet',
        'features': {
            'observation.state': {'dtype': 'float32', 'shape': [7], 'names': {'motors': names}},
            'top': {'dtype': 'image', 'shape': [16, 16, 3]},
        },
    }  # fmt: skip
    (folder / 'meta/info.json').write_text(json.dumps(info))
    (folder / 'meta/episodes.jsonl').write_text('{"episode_index": 0, "length": 12}\n')
    table = {
        'observation.state': list(states().astype(np.float32)),
        'episode_index': np.zeros(FRAMES, int),
        'top': [{'bytes': png(), 'path': None}] * FRAMES,
    }
    pyarrow.parquet.write_table(pyarrow.table(table), folder / 'data/000_000000.parquet')
    return RobotConfig('lerobot', str(folder), camera='top')


def write_npz(folder: pathlib.Path) -> RobotConfig:
    folder.mkdir(parents=True)
    pixels = np.zeros((FRAMES, 16, 16, 3), np.uint8)
    np.savez_compressed(folder / 'a.npz', states=states(), observations=pixels, fps=FPS)
    return RobotConfig('npz', str(folder))


def write_rlds(folder: pathlib.Path) -> RobotConfig:
    Arm(data_dir=folder, file_format='array_record').download_and_prepare()
    camera = 'exterior_image_1_left'
    return RobotConfig('rlds', str(folder / 'arm'), camera=camera, recorded_fps=FPS)


WRITERS = {'droid': write_droid, 'lerobot': write_lerobot, 'npz': write_npz, 'rlds': write_rlds}


def read(data: RobotConfig) -> str:
    """Reads a piece of every episode; the reason why one cannot be, 'settings', or ''."""
    try:
        recordings = robot.open_recordings(data)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
        return 'settings'
    for i in range(len(recordings)):
        recordings.state(i)
        try:
            piece = robot.cut(recordings.episode(i), 2, 4.0, lambda n: 0)
        except BadFile as error:
            assert len(str(error).splitlines()) == 1
            return error.reason
        assert np.isfinite(piece.states).all()
    return ''


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, replaced, cut or put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        at, kind = rng.randrange(len(data) or 1), rng.randrange(5)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 4] = rng.choice((b'\xff' * 4, b'\0' * 4, b'\x7f\xff\xff\xff'))
        elif kind == 2:
            data[at : at + 8] = rng.randbytes(8)
        elif kind == 3 and rng.random() < 0.2:
            del data[at:]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


def replaced(value, rng: random.Random):
    """A JSON value in which one place holds another value."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: replaced(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return [*value[:at], replaced(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


def fuzz(data: RobotConfig, seeds: range) -> dict[str, int]:
    """Damages a file of a set for every seed, reads, and puts it back; reasons -> counts."""
    files = [p for p in sorted(pathlib.Path(data.path).rglob('*')) if p.suffix not in ('', '.mp4')]
    files = [path for path in files if path.is_file()]
    counts: dict[str, int] = {}
    for seed in seeds:
        rng = random.Random(seed)
        path = rng.choice(files)
        whole = path.read_bytes()
        if path.suffix in ('.json', '.jsonl') and rng.random() < 0.7:
            path.write_text(json.dumps(replaced(json.loads(whole), rng)) + '\n')
        else:
            path.write_bytes(mutated(whole, rng))
        try:
            reason = read(data)
        except Exception as error:
            error.add_note(f'seed {seed}, {path}')
            raise
        finally:
            path.write_bytes(whole)
        counts[reason] = counts.get(reason, 0) + 1
    return counts


@pytest.mark.parametrize('kind', WRITERS)
def test_whatever_is_in_a_recording_is_a_bad_file(kind, tmp_path):
    data = WRITERS[kind](tmp_path / 'set')
    assert read(data) == ''
    assert (robot.open_recordings(data).episode(0).extrinsics is None) == (kind != 'droid')
    assert sum(n for reason, n in fuzz(data, range(60)).items() if reason) > 20


@pytest.mark.slow
@pytest.mark.parametrize('kind', WRITERS)
def test_whatever_is_in_a_recording_is_a_bad_file_at_length(kind, tmp_path):
    fuzz(WRITERS[kind](tmp_path / 'set'), range(1000, 4000))


POSE = 'observation/robot_state/cartesian_position'


def outside_h5(kind: str, h5: h5py.File, folder: pathlib.Path) -> None:
    """Puts what is in another file, or more than there is, where the poses are."""
    del h5[POSE]
    other = folder / 'other.h5'
    with h5py.File(other, 'w') as file:
        file['a'] = states()[:, :6]
    if kind == 'link':
        h5[POSE] = h5py.ExternalLink(str(other), '/a')
    elif kind == 'soft link to a link':
        h5['there'] = h5py.ExternalLink(str(other), '/')
        h5[POSE] = h5py.SoftLink('/there/a')
    elif kind == 'endless link':
        h5[POSE] = h5py.SoftLink(f'/{POSE}')
    elif kind == 'external storage':
        raw = folder / 'raw'
        raw.write_bytes(states()[:, :6].tobytes())
        place = [(str(raw), 0, h5py.h5f.UNLIMITED)]
        h5.create_dataset(POSE, (FRAMES, 6), 'f8', external=place)
    elif kind == 'virtual':
        layout = h5py.VirtualLayout((FRAMES, 6), 'f8')
        layout[:] = h5py.VirtualSource(str(other), 'a', (FRAMES, 6))
        h5.create_virtual_dataset(POSE, layout)
    elif kind == 'rows':
        h5.create_dataset(POSE, (2**40, 6), 'f8', chunks=(2**10, 6))
    elif kind == 'columns':
        h5.create_dataset(POSE, (FRAMES, 2**36), 'f8', chunks=(1, 2**10))
    elif kind == 'chunk':
        h5.create_dataset(
            POSE, (FRAMES, 6), 'f8', maxshape=(None, None), chunks=(2**14, 2**14), compression=9
        )
    elif kind == 'filter':  # zstd's number; optional, so that it can be written without it
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((4, 6))
        plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple((FRAMES, 6))
        made = h5py.h5d.create(h5.id, POSE.encode(), h5py.h5t.NATIVE_DOUBLE, space, plan)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, states()[:, :6].copy())
    elif kind == 'text':
        h5[POSE] = np.full((FRAMES, 6), b'0.1')
    elif kind == 'group':
        h5.create_group(POSE)


@pytest.mark.parametrize(
    'kind, reason',
    [
        ('link', 'outside'),
        ('soft link to a link', 'outside'),
        ('endless link', 'corrupt'),
        ('external storage', 'outside'),
        ('virtual', 'outside'),
        ('rows', 'frames'),
        ('columns', 'decoded'),
        ('chunk', 'ratio'),
        ('filter', 'unsupported'),
        ('text', 'bad_state'),
        ('group', 'corrupt'),
    ],
)
def test_the_numbers_of_a_recording_are_its_own_and_bounded(kind, reason, tmp_path):
    data = write_droid(tmp_path / 'set')
    with h5py.File(tmp_path / 'set/a/trajectory.h5', 'a') as file:
        outside_h5(kind, file, tmp_path)
    assert read(data) == reason


@pytest.mark.parametrize('name', ['gzip', 'lzf', 'fletcher32', 'scaleoffset', 'szip'])
def test_filters_of_hdf5_itself(tmp_path, name):
    data = write_droid(tmp_path / 'set')
    options = {'compression': name} if name in ('gzip', 'lzf', 'szip') else {name: True}
    if name == 'szip' and not h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
        pytest.skip('this HDF5 has no szip')
    if name == 'scaleoffset':
        options = {name: 5}  # digits after the point
    with h5py.File(tmp_path / 'set/a/trajectory.h5', 'a') as file:
        del file[POSE]
        shuffle = name != 'scaleoffset'
        file.create_dataset(POSE, data=states()[:, :6], chunks=(4, 6), shuffle=shuffle, **options)
    assert read(data) == ''
    assert np.abs(robot.open_recordings(data).episode(0).states - states()).max() < 1e-5


def test_no_filter_is_loaded(tmp_path):
    """Whatever a file asks for, there is no place where HDF5 would look for programs."""
    data = write_droid(tmp_path / 'set')
    h5py.h5pl.append(str(tmp_path).encode())
    robot.open_recordings(data).episode(0)
    assert not h5py.h5pl.size()


@pytest.fixture(scope='module')
def rlds(tmp_path_factory):
    return write_rlds(tmp_path_factory.mktemp('rlds'))


@pytest.mark.parametrize(
    'file, old, new, words',
    [
        ('features', 'tensorflow_datasets.core.features.tensor_feature', 'evil', 'not_local'),
        ('features', 'tensorflow_datasets.core.features.dataset_feature', 'os.path', 'not_local'),
        ('dataset_info', '{DATASET}-', '../{DATASET}-', 'outside'),
        ('dataset_info', '{DATASET}-', '/{DATASET}-', 'outside'),
        ('dataset_info', '{DATASET}-', '{DATASET:>99999999999}-', 'outside'),
        ('dataset_info', '{DATASET}-', '{DATASET.__class__}-', 'outside'),
    ],
)
def test_descriptions_of_rlds_import_nothing_and_stay_inside(
    rlds, tmp_path, monkeypatch, file, old, new, words
):
    shutil.copytree(rlds.path, tmp_path / 'arm')
    (tmp_path / 'evil.py').write_text(f'open({str(tmp_path / "witness")!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    path = next((tmp_path / 'arm').rglob(f'{file}.json'))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        robot.open_recordings(dataclasses.replace(rlds, path=str(tmp_path / 'arm')))
    assert not (tmp_path / 'witness').exists()


def test_records_of_rlds_are_bounded(rlds, monkeypatch):
    recordings = robot.open_recordings(rlds)
    assert len(recordings.episode(0).states) in (25, 30)  # as they were written
    monkeypatch.setenv('JEPA_JAX_LIMITS', 'frames=24')
    with pytest.raises(BadFile, match='frames: (25|30) frames: at most 24'):
        recordings.episode(0)
    monkeypatch.setenv('JEPA_JAX_LIMITS', 'decoded=2000')
    with pytest.raises(BadFile, match='decoded'):
        recordings.episode(0)
    monkeypatch.delenv('JEPA_JAX_LIMITS')
    other = dataclasses.replace(rlds, camera='gripper_position')
    words = "camera = 'gripper_position': allowed are exterior_image_1_left$"
    with pytest.raises(ConfigError, match=words):  # before training
        robot.open_recordings(other)
    texts = {'a': [b'damaged', png()], 'said': [b'pick it up'], 'width': 3.0, 'none': []}
    assert rlds_kind._cameras(texts) == ['a']
    assert metadata.no_camera('x', []) == "robot.camera = 'x': there is none"


@pytest.mark.parametrize(
    'name, reason',
    [
        ('/data/other-machine/lab/recordings/MP4/1.mp4', ''),  # as DROID has them
        ('../x/recordings/MP4/1.mp4', ''),  # of which only the end counts
        ('1.mp4', ''),
        ('recordings/MP4/../../../b/1.mp4', 'outside'),
        ('x/recordings/MP4//etc/passwd', 'outside'),
        ('/etc/passwd', 'outside'),
        ('..\\1.mp4', 'outside'),
        ('a\0.mp4', 'outside'),
        ('\ud800.mp4', 'outside'),
        ('', 'outside'),
        (3, 'not_text'),
        (None, 'not_text'),
    ],
)
def test_paths_of_metadata_stay_in_the_folder(name, reason, tmp_path):
    data = write_droid(tmp_path / 'set')
    (tmp_path / 'set/a/metadata_a.json').write_text(json.dumps({'left_mp4_path': name}))
    assert read(data) == reason


@pytest.mark.parametrize(
    'template, message',
    [
        ('/etc/passwd', 'outside'),
        ('../{episode_index:06d}.parquet', 'outside'),
        ('{episode_index.__class__}.parquet', 'fields are as'),
        ('{episode_index:99999999999d}.parquet', 'fields are as'),
        ('{other}.parquet', 'has {other}'),
        ('{video_key:03d}.parquet', 'Unknown format code'),
    ],
)
def test_templates_stay_in_the_folder(template, message, tmp_path):
    data = write_lerobot(tmp_path / 'set')
    path = tmp_path / 'set/meta/info.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'data_path': template}))
    with pytest.raises(BadFile, match=message):
        robot.open_recordings(data).episode(0)


def test_other_files_are_no_recordings(tmp_path):
    """A pipe, a device and a folder where a file should be."""
    data = write_droid(tmp_path / 'set')
    for name in ('trajectory.h5', 'metadata_a.json', 'recordings/MP4/1.mp4'):
        path = tmp_path / 'set/a' / name
        whole = path.read_bytes()
        for make in (os.mkfifo, lambda p: p.symlink_to('/dev/zero'), os.mkdir):
            path.unlink()
            make(path)
            assert read(data) == 'unreadable', (name, make)
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            path.write_bytes(whole)
    assert read(data) == ''


def npy(claim: tuple[int, ...], dtype: str = '<f8', content: bytes = b'') -> bytes:
    file = io.BytesIO()
    header = {'descr': dtype, 'fortran_order': False, 'shape': claim}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


@pytest.mark.parametrize(
    'content, reason',
    [
        (npy((2**50, 7)), 'truncated'),  # more than there is
        (npy((-1, 7)), 'not_array'),
        (npy((1, 7), '|O'), 'not_array'),
        (npy((3,), '<f8', bytes(24)), 'bad_state'),
        (npy((), '<f8', bytes(8)), 'bad_state'),
        (npy((2, 7), '<c16', bytes(224)), 'bad_state'),
        (npy((2, 7), '<U1', bytes(56)), 'bad_state'),
        (b'\x93NUMPY\x09\x00' + bytes(100), 'not_array'),
        (b'', 'not_array'),
    ],
    ids=range(9),
)
def test_an_npz_claims_no_more_than_it_holds(content, reason, tmp_path):
    data = write_npz(tmp_path / 'set')
    with zipfile.ZipFile(tmp_path / 'set/a.npz', 'w') as archive:
        archive.writestr('states.npy', content)
    assert read(data) == reason


def test_bombs_are_refused_by_what_they_claim(tmp_path, monkeypatch):
    """A small file of zeros that unpacks to 40 MiB, with less allowed than the default."""
    monkeypatch.setattr('jepa_jax.files.FREE', 2**22)
    data = write_npz(tmp_path / 'npz')
    with zipfile.ZipFile(tmp_path / 'npz/a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('states.npy', npy((5 * 2**20,), content=bytes(40 * 2**20)))
    assert read(data) == 'ratio'
    data = write_lerobot(tmp_path / 'lerobot')
    row = pyarrow.array([[0.0] * 7], pyarrow.list_(pyarrow.float64()))
    chunk = pyarrow.concat_arrays([row] * 2**10)
    table = {
        'observation.state': pyarrow.chunked_array([chunk] * 2**8),
        'episode_index': np.zeros(2**18, int),
    }
    path = tmp_path / 'lerobot/data/000_000000.parquet'
    pyarrow.parquet.write_table(pyarrow.table(table), path, compression='zstd')
    assert read(data) == 'ratio'
    monkeypatch.setenv('JEPA_JAX_LIMITS', 'frames=1000')
    assert read(data) == 'frames'


def test_a_list_of_folders_may_hold_anything(tmp_path):
    data = write_droid(tmp_path / 'set')
    listed = tmp_path / 'list.csv'
    listed.write_bytes(b'\xef\xbb\xbfset/nothing\nset/\0a x\nset/\xff\nset/a x\n' + b'/' * 5000)
    recordings = robot.open_recordings(RobotConfig('droid', str(listed)))
    for i in (0, 1, 2, 4):
        recordings.state(i)
        with pytest.raises(BadFile):
            recordings.episode(i)
    assert len(recordings.episode(3).states) == FRAMES
    assert data.path in recordings.name(3)


def test_one_bad_line_costs_one_episode(tmp_path):
    data = write_lerobot(tmp_path / 'set')
    (tmp_path / 'set/meta/episodes.jsonl').write_text(
        '{"episode_index": "x", "length": 12}\nno json\n{"episode_index": 0, "length": 12}\n'
        '{"episode_index": -1, "length": 12}\n'
    )
    recordings = robot.open_recordings(data)
    for i in (0, 1, 3):
        with pytest.raises(BadFile, match='not_text'):
            recordings.episode(i)
    assert len(recordings.episode(2).states) == FRAMES
