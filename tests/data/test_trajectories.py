"""Batches of pieces of recordings, and features that are computed once."""

import dataclasses
import io
import os

import numpy as np
import pytest

from jepa_jax.config import ActionConditionedConfig
from jepa_jax.data import robot
from jepa_jax.data.features import BATCH, FeatureStore
from jepa_jax.data.trajectories import RobotStream
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.models.vit import ViTConfig
from jepa_jax.recipes import smoke, validate

ENCODER = ViTConfig(48, 2, 2)


def config(**changes) -> ActionConditionedConfig:
    c = smoke(ActionConditionedConfig(name='robot'))
    c.data.workers = 0
    for name, value in changes.items():
        setattr(c, name, value)
    return c


def batches(c, steps, start=0, store=None, **process):
    with RobotStream(c, store, **process) as stream, stream.batches(start) as hosts:
        return [next(hosts) for _ in range(steps)]


def test_a_step_depends_on_neither_start_nor_process_count():
    c = config()
    whole = [host.batch for host in batches(c, 3)]
    (later,) = batches(c, 1, start=2)
    np.testing.assert_array_equal(later.batch.frames, whole[2].frames)
    np.testing.assert_array_equal(later.batch.actions, whole[2].actions)
    assert not np.array_equal(whole[0].states, whole[1].states)
    for index in range(2):
        (part,) = batches(c, 1, devices=2, process_index=index, process_count=2)
        np.testing.assert_array_equal(part.batch.states, whole[0].states[index::2])
        np.testing.assert_array_equal(part.batch.prefix, whole[0].prefix[index::2])


def test_pieces_are_those_of_the_recordings():
    c = config()
    c.rollout.prefix = 'random'
    hosts = batches(c, 4)
    recordings = robot.open_recordings(c.robot)
    known = {recordings.episode(i).states[t].astype('f').tobytes(): (i, t)
             for i in range(len(recordings)) for t in range(24)}  # fmt: skip
    prefixes = set()
    for host in hosts:
        batch = host.batch
        assert batch.frames.shape == (16, 4, 64, 64, 3) and batch.frames.dtype == np.uint8
        assert len(set(batch.prefix.tolist())) == 1
        prefixes.add(int(batch.prefix[0]))
        for states, actions, frames in zip(batch.states, batch.actions, batch.frames):
            episode, first = known[states[0].tobytes()]
            path = recordings.episode(episode)
            np.testing.assert_array_equal(states, path.states[first : first + 4].astype('f'))
            np.testing.assert_array_equal(frames, path.pixels[first : first + 4])
            expected = robot.actions_between(path.states[first : first + 4])
            np.testing.assert_allclose(actions, expected, atol=1e-6)
    assert prefixes <= {1, 2} and len(prefixes) == 2


def test_random_crops_are_those_of_the_step_and_leave_states_alone(tmp_path):
    plain, varied, again, whole = config(), config(augment=True), config(augment=True), config()
    for c in (varied, again):
        c.data.augment.flip, c.data.augment.scale = False, (0.3, 0.6)
    whole.augment, whole.data.augment.flip = True, False
    whole.data.augment.scale = whole.data.augment.ratio = (1.0, 1.0)
    first, second = (batches(c, 2) for c in (plain, varied))
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a.batch.states, b.batch.states)
        assert b.batch.frames.shape == a.batch.frames.shape
        changed = (a.batch.frames != b.batch.frames).any((1, 2, 3, 4))
        assert changed.all()
    (later,) = batches(again, 1, start=1)
    np.testing.assert_array_equal(later.batch.frames, second[1].batch.frames)
    # a crop of everything is the frames as they are
    np.testing.assert_array_equal(batches(whole, 1)[0].batch.frames, first[0].batch.frames)
    # one crop for all frames of a piece: what does not move does not move
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    np.savez(tmp_path / 'a.npz', states=np.zeros((9, 7)), fps=4, observations=picture.repeat(9, 0))
    varied.robot.kind, varied.robot.path = 'npz', str(tmp_path)
    frames = batches(varied, 1)[0].batch.frames
    np.testing.assert_array_equal(frames, np.broadcast_to(frames[:, :1], frames.shape))
    assert (frames[0] != frames[1]).any()


def encode(frames: np.ndarray) -> np.ndarray:
    """Stands for an encoder: the mean colour of each quarter of the picture."""
    assert len(frames) == BATCH
    cells = frames.reshape(len(frames), 2, 32, 2, 32, 3).mean((2, 4)) / 255
    return cells.reshape(len(frames), 4, 3).astype(np.float32)


@pytest.mark.parametrize('dtype, close', [('float16', 1e-3), ('bfloat16', 4e-3)])
def test_features_are_those_of_the_frames_and_are_computed_once(dtype, close, tmp_path):
    c = config(features=str(tmp_path), features_dtype=dtype)
    store = FeatureStore(c, ENCODER, 'abc')
    recordings = robot.open_recordings(c.robot)
    seen = []

    def counted(frames):
        seen.append(1)
        return encode(frames)

    store.fill(recordings, counted)
    assert len(seen) == 24
    store.fill(recordings, counted)
    assert len(seen) == 24
    store.file(recordings, 7).unlink()  # as if the run had been killed there
    store.fill(recordings, counted)
    assert len(seen) == 25
    (host,) = batches(c, 1, store=store)
    known = {recordings.episode(i).states[t].astype('f').tobytes(): (i, t)
             for i in range(len(recordings)) for t in range(24)}  # fmt: skip
    for states, features in zip(host.batch.states, host.batch.features):
        episode, first = known[states[0].tobytes()]
        frames = np.zeros((BATCH, 64, 64, 3), np.uint8)
        frames[:4] = recordings.episode(episode).pixels[first : first + 4]
        np.testing.assert_allclose(np.float32(features), encode(frames)[:4], rtol=0, atol=close)


def test_an_episode_that_cannot_be_read_is_replaced_and_named(tmp_path):
    np.savez(tmp_path / 'good.npz', states=np.zeros((9, 7)), fps=4,
             observations=np.zeros((9, 64, 64, 3), np.uint8))  # fmt: skip
    (tmp_path / 'bad.npz').write_bytes(b'PK nothing')
    c = config()
    c.robot.kind, c.robot.path = 'npz', str(tmp_path)
    (host,) = batches(c, 1)
    assert {f.path for f in host.failures} == {str(tmp_path / 'bad.npz')}
    assert host.batch.frames.shape[0] == 16 and host.tried == 16 + len(host.failures)
    store = FeatureStore(dataclasses.replace(c, features=str(tmp_path / 'f')), ENCODER, 'abc')
    recordings = robot.open_recordings(c.robot)
    for _ in range(2):  # a run that starts again meets it again
        store.fill(recordings, encode)
    assert [recordings.name(i)[-8:] for i in range(2)] == ['/bad.npz', 'good.npz']
    numbers, features = store.read(recordings, 1)
    assert len(numbers) == len(features) == 9
    with pytest.raises(BadFile, match='no features'):
        store.read(recordings, 0)


def two_recordings(folder):
    pixels = np.arange(9, dtype=np.uint8)[:, None, None, None] * 10 * np.ones((64, 64, 3), np.uint8)
    for name in 'ab':
        np.savez(folder / f'{name}.npz', states=np.zeros((9, 7)), fps=4, observations=pixels)
    c = config(features=str(folder / 'f'))
    c.robot.kind, c.robot.path = 'npz', str(folder)
    return FeatureStore(c, ENCODER, 'abc'), robot.open_recordings(c.robot)


def _cut(path, content):
    os.truncate(path, len(content) - 200)


def _cut_to_nothing(path, content):
    path.write_bytes(b'')


def _zeroed(path, content):
    path.write_bytes(content[:300] + bytes(8) + content[308:])


def _zeroed_with_its_time_kept(path, content):
    stamp = path.stat().st_mtime_ns
    _zeroed(path, content)
    os.utime(path, ns=(stamp, stamp))


def _without_checksums(path, content):
    np.save(path, np.load(io.BytesIO(content)))


def _no_header(path, content):
    path.write_bytes(bytes(128) + content[128:])


@pytest.mark.parametrize(
    'harm',
    [_cut, _cut_to_nothing, _zeroed, _zeroed_with_its_time_kept, _without_checksums, _no_header],
)
def test_damaged_features_are_made_again(harm, tmp_path, caplog):
    store, recordings = two_recordings(tmp_path)
    store.fill(recordings, encode)
    path, expected = store.file(recordings, 1), store.read(recordings, 1)[1][:]
    np.testing.assert_allclose(expected[:, 0, 0], np.arange(9) * 10 / 255, atol=1e-3)
    held = path.read_bytes()
    harm(path, held)
    caplog.clear()
    if harm is _zeroed_with_its_time_kept:  # noticed when they are read, made again after that
        store.fill(recordings, encode)
        with pytest.raises(BadFile, match=f'{path.name}: corrupt: frame . is not what was stored'):
            store.read(recordings, 1)[1][:]
        assert not caplog.records
    fresh = []
    store.fill(recordings, lambda frames: fresh.append(1) or encode(frames))
    assert len(fresh) == 1
    (line,) = (r.getMessage() for r in caplog.records if r.levelname == 'WARNING')
    assert line.startswith('features: made again: ') and str(path) in line
    np.testing.assert_array_equal(store.read(recordings, 1)[1][:], expected)
    assert len(path.read_bytes()) == len(held)


def test_copied_features_are_taken_and_checked_once(tmp_path):
    store, recordings = two_recordings(tmp_path)
    store.fill(recordings, encode)
    for path in store.folder.glob('*.npy'):
        os.utime(path)

    def nothing(frames):
        raise AssertionError('encoded')

    store.fill(recordings, nothing)
    assert {path.stat().st_mtime_ns % 10**9 for path in store.folder.glob('*.npy')} == {0}


def folder_of(c, encoder=ENCODER, weights='abc'):
    return FeatureStore(c, encoder, weights).folder


def test_a_set_of_features_is_of_one_encoder_as_it_is_computed(tmp_path):
    """What changes a feature makes another folder; what only spares memory does not."""
    c = config(features=str(tmp_path))
    others = [
        folder_of(c, weights='abd'),
        folder_of(config(features=str(tmp_path), features_dtype='bfloat16')),
        folder_of(config(features=str(tmp_path), compute_dtype='float32')),
        *(
            folder_of(c, dataclasses.replace(ENCODER, **{field: value}))
            for field, value in (
                ('dtype', np.float32),
                ('heads', 4),
                ('position', 'sincos'),
                ('rope', 'paired'),
                ('mlp', 'swiglu'),
                ('tubelet', 1),
            )
        ),
    ]
    assert len({folder_of(c), *others}) == 1 + len(others)
    assert folder_of(c, dataclasses.replace(ENCODER, remat='none')) == folder_of(c)


def test_features_follow_the_recordings(tmp_path):
    """One that is new or changed is encoded, and nothing else."""
    folder = tmp_path / 'recordings'
    folder.mkdir()

    def record(name, shade, frames=9):
        pixels = np.full((frames, 64, 64, 3), shade, np.uint8)
        np.savez(folder / f'{name}.npz', states=np.zeros((frames, 7)), fps=4, observations=pixels)

    record('a', 50), record('c', 70)
    c = config(features=str(tmp_path / 'f'))
    c.robot.kind, c.robot.path = 'npz', str(folder)
    seen = []

    def shades(frames):
        assert len(frames) == 4  # as told
        seen.append(int(frames[0, 0, 0, 0]))
        return frames[:, :1, :2, 0] / np.float32(2)

    def fill():
        seen.clear()
        store, recordings = FeatureStore(c, ENCODER, 'abc'), robot.open_recordings(c.robot)
        store.fill(recordings, shades, batch=4)
        kept = [store.read(recordings, i)[1][:][0, 0, 0] for i in range(len(recordings))]
        return list(seen), kept, len(list(store.folder.glob('*.npy')))

    assert fill() == ([50, 50, 50, 70, 70, 70], [25, 35], 2)
    assert fill() == ([], [25, 35], 2)
    record('b', 60)
    assert fill() == ([60, 60, 60], [25, 30, 35], 3)
    record('a', 80)  # of the same size
    assert fill() == ([80, 80, 80], [40, 30, 35], 3)  # what was there of it is gone
    status = os.stat(folder / 'c.npz')
    record('c', 90, frames=10)
    os.utime(folder / 'c.npz', ns=(status.st_atime_ns, status.st_mtime_ns))
    recordings = robot.open_recordings(c.robot)
    with pytest.raises(BadFile, match='no features'):  # none of what it is now
        FeatureStore(c, ENCODER, 'abc').read(recordings, 2)
    assert fill() == ([90, 90, 90], [40, 30, 45], 3)


def test_wide_frames_are_cut_to_the_middle_and_squeezed():
    """720 x 1280 -> columns 154 to 1126, as the reference page has it for DROID."""
    frames = np.zeros((1, 720, 1280, 3), np.uint8)
    frames[:, :, :154] = frames[:, :, 1126:] = 255
    assert robot.view(frames, (64, 64)).max() == 0
    frames[:, :, 154:164] = 255
    assert robot.view(frames, (64, 64))[0, :, 0].min() > 0
    square = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(robot.view(square, (64, 64)), square)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(encoder_from=''), 'encoder_from is empty'),
        (dict(rollout__steps=4), 'rollout.steps = 4: must be less than robot.frames = 4'),
        (dict(robot__kind='droid'), "robot.path is empty: kind 'droid'"),
        (dict(ac__heads=5), 'ac.width = 48: must be a multiple of ac.heads = 5'),
        (dict(ac__conditioning='film'), 'allowed are tokens, adaln'),
        (dict(robot__frame='world'), 'allowed are base, camera'),
        (dict(augment=True, features='x'), "augment = true with features = 'x'"),
        (dict(augment=True, features=''), 'data.augment.flip = false, a mirrored arm'),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    c = config()
    for name, value in changes.items():
        part, _, key = name.partition('__')
        setattr(getattr(c, part) if key else c, key or part, value)
    with pytest.raises(ConfigError, match=message):
        validate(c)
