"""What `tools.check_robot_data` says of recordings with known faults."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import tools.check_robot_data
from jepa_jax import checkpoint, cli
from jepa_jax.config import ActionConditionedConfig, RobotConfig
from jepa_jax.data import robot, scene

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def write(folder: pathlib.Path, name: str, states: np.ndarray, fps: float = 8.0) -> None:
    """Frames of 96 x 48 in which a tenth moves."""
    frames = np.zeros((len(states), 48, 96, 3), np.uint8)
    for t, frame in enumerate(frames):
        frame[:, 40 + t % 2 * 4 : 46 + t % 2 * 4] = 200
    np.savez(folder / name, states=states, observations=frames, fps=fps)


def path(count: int = 20) -> np.ndarray:
    states = np.zeros((count, 7))
    states[:, 0] = 0.4 + 0.01 * np.arange(count)
    states[:, 3] = np.pi
    states[:, 6] = np.linspace(0, 1, count)
    return states


def run(folder: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'tools.check_robot_data', *asked(folder), *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def check(capsys):
    """The tool in this process: arguments -> exit status, what it printed, errors."""

    def run(*argv: str) -> tuple[int, str, str]:
        tool = tools.check_robot_data
        options = dict(doc=tool.__doc__, tables=(), options=tool.add_options)
        status = cli.run(tool.run, **options, argv=argv)
        return status, *capsys.readouterr()

    return run


def asked(folder: pathlib.Path) -> list[str]:
    return ['--kind', 'npz', '--path', str(folder), '--crop', '64']


def test_sound_recordings_and_one_that_cannot_be_read(tmp_path):
    for i in range(3):
        write(tmp_path, f'{i}.npz', path())
    bad = path()
    bad[4, 2] = np.nan
    write(tmp_path, '3.npz', bad)
    done = run(tmp_path, '--picture', str(tmp_path / 'clip.png'))
    assert done.returncode == 0, done.stderr
    assert '3 episodes read, 1 not' in done.stdout
    assert '3.npz: bad_state: z of frame 4 is nan' in done.stdout
    assert 'the model sees 4.00 frames a second, one in 2; 30 in all' in done.stdout
    assert '2.00 times as wide as high' in done.stdout
    assert 'millimetres' not in done.stdout and 'does 1 mean open' not in done.stdout
    assert (tmp_path / 'clip.png').read_bytes().startswith(b'\x89PNG')
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    assert rows['x'] == ['0.400', '0.490', '0.580', '0.0200', '0.020']


def test_wrong_units_sense_and_pauses_are_suspected(tmp_path, check):
    states = path() * ([1000] * 3 + [1] * 4)
    states[:, 4] = 90
    states[:, 6] = 1 - states[:, 6]
    write(tmp_path, 'a.npz', states)
    _, said, _ = check(*asked(tmp_path))
    for words in ('millimetres? robot.metres = 0.001', 'degrees, not radians?',
                  'does 1 mean open here? robot.gripper = open', 'a gap, or the rate'):  # fmt: skip
        assert words in said, said
    still = path()
    still[:, 0] = 0.4
    still[:, 6] = 0.3
    write(tmp_path, 'a.npz', still)
    _, said, _ = check(*asked(tmp_path))
    assert 'the gripper never moves' in said and 'most frames are still' in said


def test_what_does_not_belong_together_is_named(tmp_path, check):
    """A camera that is not there, and half as many states as frames."""

    def refused(*argv: str) -> str:
        status, said, errors = check(*argv)
        assert status == 1 and errors.splitlines()[-1].endswith('no episode can be read')
        return said

    droid, folder = tmp_path / 'droid', tmp_path / 'npz'
    droid.mkdir()
    (droid / 'trajectory.h5').touch()
    (droid / 'metadata_a.json').write_text('{"left_mp4_path": "a.mp4", "wrist_mp4_path": "b.mp4"}')
    words = "robot.camera = 'ext1': allowed are left_mp4_path, wrist_mp4_path"
    status, _, errors = check('--kind', 'droid', '--path', str(droid), '--camera', 'ext1')
    assert status == 1 and errors.startswith(f'error: {words} (')  # before any is looked at
    folder.mkdir()
    frames = np.zeros((20, 48, 96, 3), np.uint8)
    np.savez(folder / 'a.npz', states=path(10), observations=frames, fps=8.0)
    words = '10 states for 20 frames of video (8 a second): must be one for each, so the states'
    assert words + ' are at 4 a second' in refused('--kind', 'npz', '--path', str(folder))


def test_a_scene_of_another_size_is_seen(tmp_path, check):
    """The same recordings from half the distance, on another robot."""
    near, far = tmp_path / 'near', tmp_path / 'far'
    rng = np.random.default_rng(0)
    for folder in (near, far):
        folder.mkdir()
    for i in range(4):
        states = path()
        states[:, :2] = np.cumsum(rng.normal(0, 0.03, (20, 2)), axis=0).clip(-0.2, 0.2)
        y, x = np.mgrid[:64, :64] - 31.5
        for folder, scale in ((far, 64), (near, 128)):  # pixels a metre
            apart = [np.hypot(x - scale * s[0], y - scale * s[1]) for s in states]
            inside = np.array(apart)[..., None] < 0.08 * scale
            frames = np.where(inside, 200, 40).astype(np.uint8).repeat(3, -1)
            np.savez(folder / f'{i}.npz', states=states, observations=frames, fps=4.0)
    config = ActionConditionedConfig()
    config.robot = RobotConfig('npz', str(far), camera='front')
    config.data.crop = 64
    seen = scene.look(robot.open_recordings(config.robot), config.robot, 64)
    extra = {'config': dataclasses.asdict(config), 'scene': dataclasses.asdict(seen)}
    checkpoint.write(tmp_path / 'model', {'a': np.zeros(1)}, step=1, extra=extra)

    flags = '--model', str(tmp_path / 'model'), '--camera', 'front'
    status, said, errors = check(*asked(near), *flags, '--robot', 'ur5e')
    assert status == 0, errors
    looks = [line for line in said.splitlines() if line.startswith('look:')]
    assert looks[-3].startswith(f'look: {scene.TITLES[2]}: ') and looks[-3].endswith(
        ' times more than in training'
    )
    words = rf'look: {scene.TITLES[3]}: (1.9|2.0|2.1) times less than in training'
    assert re.fullmatch(words, looks[-2]), looks
    assert "robot: 'franka' in the weights, 'ur5e' here" in looks[-1]
    (row,) = [line for line in said.splitlines() if line.startswith(scene.TITLES[3])]
    assert [float(word) for word in row.split()[-2:]] == pytest.approx([0.5, 1.0], rel=0.1)
    _, same, _ = check(*asked(far), *flags)
    assert scene.TITLES[3] in same and 'in training' not in same.partition('look:')[2]

    del extra['scene']
    checkpoint.write(tmp_path / 'old', {'a': np.zeros(1)}, step=1, extra=extra)
    status, _, errors = check(*asked(near), '--model', str(tmp_path / 'old'))
    assert status != 0 and 'what it was trained on was not measured' in errors.splitlines()[-1]


def test_nothing_readable_is_one_line(tmp_path):
    (tmp_path / 'a.npz').write_bytes(b'nothing')
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith('no episode can be read')
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--fps', '0'], 'robot.fps = 0.0: must be more than 0'),
        (['--frames', '1'], 'robot.frames = 1: must be at least 2'),
        (['--crop', '-4'], '--crop -4: must be at least 0'),
        (['--episodes', '0'], '--episodes 0: must be at least 1'),
        (['--path', ''], "robot.path is empty: kind 'npz' needs --path PATH"),
        (['--path', '/no/where'], "robot.path: '/no/where' cannot be read"),
        (['--kind', 'nps'], "robot.kind = 'nps': "),
    ],
)
def test_settings_that_cannot_work_are_one_line(check, tmp_path, flags, words):
    write(tmp_path, '0.npz', path())
    status, out, errors = check(*asked(tmp_path), *flags)
    assert status == 1 and not out
    assert errors.startswith(f'error: {words}') and errors.count('\n') == 1


def test_both_spellings_of_a_flag_are_taken(check, tmp_path):
    """`jepa plan` has --gripper-range."""
    states = path()
    states[:, 6] *= 255
    write(tmp_path, '0.npz', states)
    for flag in ('--gripper-range=0,255', '--gripper_range=0,255'):
        status, out, errors = check(*asked(tmp_path), flag)
        assert status == 0 and 'gripper 0 open, 255 closed' in out, errors


def test_pieces_longer_than_all_episodes(check, tmp_path):
    write(tmp_path, '0.npz', path())
    _, out, _ = check(*asked(tmp_path), '--frames', '30')
    assert 'look: no episode has the 30 frames of a piece at 4 a second' in out
    _, out, _ = check(*asked(tmp_path), '--frames', '5')
    assert 'look: no episode' not in out


def test_a_rate_is_compared_as_it_is_and_not_as_it_is_printed(check, tmp_path):
    write(tmp_path, '0.npz', path(), fps=30000 / 1001)
    status, out, err = check(*asked(tmp_path), '--fps', str(30000 / 1001))
    assert status == 0, err
    assert 'recorded at 29.97 frames' in out and 'sees 29.97 frames a second, one in 1' in out


def test_episodes_of_one_frame(check, tmp_path):
    """Neither `nan`, nor NumPy's warnings, which are errors here."""
    write(tmp_path, '0.npz', path()[:1])
    _, out, _ = check(*asked(tmp_path))
    assert 'no actions: no episode has two frames at that rate' in out
    assert 'nan' not in out and 'look: no episode has the 8 frames' in out


def test_a_gripper_in_other_units_that_stands_still(check, tmp_path):
    """Neither an option whose ends are the same, nor a guess at the sense of unknown units."""
    states = path()
    states[:, 6] = 300
    write(tmp_path, '0.npz', states)
    status, out, _ = check(*asked(tmp_path))
    assert status == 1 and 'set robot.gripper_range = (OPEN, CLOSED)' in out
    assert 'does 1 mean open' not in out and '(300, 300)' not in out
