"""Recordings: what they hold, that they do not depend on who made them, and that they resume."""

import dataclasses
import json
import subprocess
import sys

import av
import numpy as np
import pytest

pytest.importorskip('jepa_jax.sims.panda', reason='needs MuJoCo', exc_type=ModuleNotFoundError)

from jepa_jax import poses  # noqa: E402
from jepa_jax.config import CollectionConfig, RobotConfig
from jepa_jax.data import robot  # noqa: E402
from jepa_jax.errors import SimError  # noqa: E402
from jepa_jax.sims.panda import Panda  # noqa: E402
from jepa_jax.sims.recordings import collect, record  # noqa: E402

SMALL = CollectionConfig(episodes=5, frames=6, image_size=32)


@pytest.fixture(scope='module')
def folder(gl, tmp_path_factory):
    made = tmp_path_factory.mktemp('recordings')
    assert collect(made, SMALL) == 5
    return made


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_recording_is_a_video_with_its_states(folder):
    assert len(list(folder.glob('*.mp4'))) == len(list(folder.glob('*.npz'))) == 5
    with Panda(32) as panda:
        expected = record(SMALL, 2, panda)
    stored = np.load(folder / 'episode_000002.npz')
    assert stored['states'].shape == (6, 7) and stored['commands'].shape == (5, 7)
    for key in stored.files:
        np.testing.assert_array_equal(stored[key], expected[key])
    with av.open(str(folder / 'episode_000002.mp4')) as container:
        assert container.streams.video[0].average_rate == 4
        frames = [f.to_ndarray(format='rgb24') for f in container.decode(video=0)]
    np.testing.assert_array_equal(np.stack(frames), expected['frames'])


def test_processes_and_interruptions_change_nothing(folder, tmp_path, capfd):
    other = tmp_path / 'other'
    assert collect(other, SMALL, workers=1) == 5
    assert contents(other) == contents(folder)
    (other / 'episode_000001.npz').unlink()  # as if it had died before the last rename
    (other / 'episode_000004.mp4').unlink()
    (other / 'episode_000004.npz').unlink()
    assert collect(other, SMALL) == 2 and contents(other) == contents(folder)
    assert collect(other, SMALL) == 0
    assert '5/5' not in capfd.readouterr().err  # no progress bar where there is no terminal
    more = dataclasses.replace(SMALL, episodes=6)
    assert collect(other, more) == 1
    assert contents(folder).items() - contents(other).items() == {
        ('collection.json', contents(folder)['collection.json'])
    }
    # a collection of before there were kinds of scenes is one in standard scenes
    about = json.loads((other / 'collection.json').read_text())
    del about['scenes']
    (other / 'collection.json').write_text(json.dumps(about))
    assert collect(other, more) == 0


def test_another_collection_is_not_mixed_in(folder):
    for change, words in (
        ({'seed': 1}, 'seed 0 there, 1 here'),
        ({'episodes': 3}, 'holds 5 episodes, 3 are asked for'),
    ):
        with pytest.raises(SimError, match=words):
            collect(folder, dataclasses.replace(SMALL, **change))
    for change, words in (
        ({'pick': 0.9}, 'they must add up to 1'),
        ({'frames': 1}, 'frames 1: must be at least 2'),
        ({'image_size': 33}, 'image_size 33: must be even'),
    ):
        with pytest.raises(SimError, match=words):
            collect(folder / 'other', dataclasses.replace(SMALL, **change))
    assert not (folder / 'other').exists()


@pytest.mark.parametrize(
    'change, words',
    [
        ({'image_size': 1024}, 'image_size 1024: must be at most 512'),
        ({'noise': -1.0}, 'noise -1.0: must be at least 0'),
        ({'noise': float('nan')}, 'noise nan: must be at least 0'),
        ({'max_step': 0.0}, 'max_step 0: must be finite and more than 0'),
        ({'max_step': float('nan')}, 'max_step nan: must be finite and more than 0'),
        ({'seed': -1}, 'seed -1: must be at least 0'),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_claims_no_folder(change, words, tmp_path):
    with pytest.raises(SimError, match=words):
        collect(tmp_path / 'new', dataclasses.replace(SMALL, **change))
    assert not (tmp_path / 'new').exists()


def test_other_recordings_are_not_mixed_in(tmp_path):
    (tmp_path / 'mine').mkdir()
    np.savez(tmp_path / 'mine/a.npz', states=np.zeros((2, 7)))
    with pytest.raises(SimError, match=r'recordings that are no collection \(mine/a.npz\)'):
        collect(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ['mine']


def play(monkeypatch, kind, count, **change):
    """Recordings of one kind, without pictures."""
    monkeypatch.setattr(Panda, 'draw', lambda self: np.zeros((16, 16, 3), np.uint8))
    shares = {name: float(name == kind) for name in ('explore', 'reach', 'pick')}
    settings = CollectionConfig(episodes=count, frames=24, **shares, **change)
    panda = Panda(16)
    return [record(settings, i, panda) for i in range(count)]


def test_picks_lift_the_cube_and_put_it_down_elsewhere(monkeypatch):
    result = play(monkeypatch, 'pick', 10)
    lifted = [e['cube'][:, 2].max() > 0.06 for e in result]
    assert sum(lifted) >= 5
    carried = [np.linalg.norm(e['cube'][-1, :2] - e['cube'][0, :2]) for e in result]
    assert max(carried) > 0.08
    missed = play(monkeypatch, 'pick', 10, noise=0.08)  # some of the noisiest must fail
    assert sum(e['cube'][:, 2].max() > 0.06 for e in missed) < sum(lifted)


def test_exploration_covers_the_workspace_and_the_gripper(monkeypatch):
    states = np.concatenate([e['states'] for e in play(monkeypatch, 'explore', 12)])
    assert (np.ptp(states[:, :3], axis=0) > [0.2, 0.35, 0.25]).all()
    assert states[:, 6].min() < 0.05 and states[:, 6].max() > 0.8


def test_half_of_reaching_goes_to_the_cube(monkeypatch):
    result = play(monkeypatch, 'reach', 12)
    near = [np.linalg.norm(e['states'][:, :2] - e['cube'][:, :2], axis=1).min() for e in result]
    assert np.mean(np.array(near) < 0.03) > 0.5


def test_measured_differences_are_the_commands(monkeypatch):
    """What a model is trained on is what a planner asks for: to 3 mm within the workspace, unless
    fingers and cube are in each other's way."""
    free = []
    for episode in play(monkeypatch, 'explore', 6):
        states = episode['states'].astype(np.float32)
        taken = np.asarray(poses.difference(states[:-1], states[1:]))
        expected = states[:-1, :3] + episode['commands'][:, :3]
        inside = ((expected > [0.32, -0.28, 0.08]) & (expected < [0.64, 0.28, 0.40])).all(1)
        free.append(np.abs(taken - episode['commands'])[inside])
    apart = np.concatenate(free)
    assert len(apart) > 60
    assert apart[:, :3].max() < 3e-3 and apart[:, 3:6].max() < 0.02
    assert np.quantile(apart[:, 6], 0.9) < 0.03


def test_command(gl, tmp_path):
    command = [sys.executable, '-m', 'jepa_jax.sims.collect', '--out', str(tmp_path / 'out')]
    options = ['--frames', '3', '--image-size', '16', '--vary']

    def run(*more):
        return subprocess.run(command + list(more), capture_output=True, text=True, timeout=120)

    done = run('--episodes', '2', *options)
    assert done.returncode == 0 and done.stdout.endswith('out: 2 episodes, 2 of them new\n')
    assert not done.stderr  # no progress bar where there is no terminal
    wrong = run('--episodes', '0', *options)
    assert wrong.returncode == 1 and wrong.stderr == 'error: episodes 0: must be at least 1\n'


def test_the_reader_of_robot_data_takes_them(folder):
    data = RobotConfig(kind='npz', path=str(folder), robot='panda-sim', camera='outside', frames=4)
    recordings = robot.open_recordings(data)
    assert len(recordings) == 5
    piece = robot.cut(recordings.episode(2), 4, 4.0, lambda n: n - 1)
    stored = np.load(folder / 'episode_000002.npz')
    np.testing.assert_allclose(piece.states, stored['states'][2:6], atol=1e-6)
    assert piece.frames.shape == (4, 32, 32, 3) and piece.actions.shape == (3, 7)
