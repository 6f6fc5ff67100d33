"""The command `plan` as a user meets it."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import matplotlib.image
import numpy as np
import pytest

import jepa_jax
from jepa_jax import checkpoint, cli, convert, fetched, plan
from jepa_jax.config import RobotConfig
from jepa_jax.data.robot import Measured, npz_recordings
from jepa_jax.errors import BadFile, ConvertError, PlanError, Unusable
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.planning import model as planning_model
from jepa_jax.weights import parts
from jepa_jax.weights.contents import StoredNet, Weights

ROOT = pathlib.Path(__file__).resolve().parent.parent


def trajectory(path: pathlib.Path, **changes) -> pathlib.Path:
    rng = np.random.default_rng(0)
    states = rng.uniform(0, 1, (1, 2, 7)).astype(np.float32)
    arrays = {
        'observations': rng.integers(0, 256, (1, 2, 40, 56, 3), np.uint8),
        'states': states,
        **changes,
    }
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return path


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'jepa_jax.plan', *arguments],
        cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip


def test_plans_and_writes_what_it_says(tmp_path):
    out = tmp_path / 'out'
    done = run(
        '--model', 'random:tiny', '--input', str(trajectory(tmp_path / 'a.npz')),
        '--out', str(out), '--samples', '16', '--iterations', '3', '--elites', '4',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'RANDOM' in done.stdout and '2 x 3 tokens' in done.stdout
    assert 'not usable: the predictor ignores actions' in done.stdout  # and that is no failure here
    assert 'x ' in done.stdout and 'm (no --workspace is set)' in done.stdout
    report = json.loads((out / 'plan.json').read_text())
    actions = np.asarray(report['actions'])
    assert actions.shape == (2, 7) and np.abs(actions[:, :3]).max() <= 0.05
    np.testing.assert_array_equal(actions[:, 3:6], 0)
    assert len(report['energies']) == len(report['best']) == 3
    assert all(b <= e for b, e in zip(report['best'], report['energies']))
    assert report['seconds_per_action'] > 0
    assert f'{report["seconds_per_action"]:.2f} s per action' in done.stdout
    for name in ('plan.png', 'landscape.png'):
        assert (out / name).read_bytes().startswith(b'\x89PNG')


NAN = np.zeros((1, 2, 7), np.float32)
NAN[0, 1, 3] = np.nan


def said(capsys, *arguments: str) -> str:
    """The line that the command ends with; the same process, as starting JAX takes seconds."""
    status = cli.run(
        plan.run, doc=plan.__doc__, tables=(), options=plan.add_options, argv=arguments
    )
    error = capsys.readouterr().err.strip()
    assert status == 1 and error.startswith('error: ') and len(error.splitlines()) == 1, error
    return error.removeprefix('error: ')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'states': None}, 'no array states; it holds observations'),
        ({'states': NAN}, 'states[0, 1, 3] is nan: must be finite'),
        ({'states': NAN[..., :6]}, 'states has shape [1, 2, 6], must have [1, T, 7]'),
        (
            {'actions': NAN[:, :1, :6]},
            'actions has shape [1, 1, 6], must have [1, T - 1, 7]: a plan',
        ),
        ({'states': NAN[:, :1]}, '2 observations and 1 states: must be as many'),
        ({'states': np.full((1, 2, 7), 3, np.float32)}, 'closedness of the gripper'),
        ({'observations': np.zeros((2, 40, 56, 3), np.uint8)}, 'must have [1, T, H, W, 3]'),
        ({'observations': np.zeros((1, 2, 40, 56, 3))}, 'of type float64, must be uint8'),
    ],
)
def test_bad_input_gets_one_line(changes, message, tmp_path, capsys):
    path = str(trajectory(tmp_path / 'a.npz', **changes))
    line = said(capsys, '--model', 'random:tiny', '--input', path, '--out', str(tmp_path))
    assert line.startswith(path) and message in line


def test_a_folder_that_cannot_be_written_is_told_before_any_work(tmp_path, capsys, monkeypatch):
    """Of a large model the plan takes minutes."""
    from jepa_jax.planning import model

    monkeypatch.setattr(model, 'load', lambda *a, **k: pytest.fail('work was done'))
    path = str(trajectory(tmp_path / 'a.npz'))
    options = '--model', 'random:tiny', '--input', path, '--out'
    assert said(capsys, *options, path) == (
        f'--out {path}: a file is in its place; must be a folder that can be written'
    )
    assert '; must be a folder that can be written' in said(capsys, *options, f'{path}/a')


def test_one_frame_is_enough_beside_a_goal(tmp_path, capsys):
    goal = tmp_path / 'goal.png'
    matplotlib.image.imsave(goal, np.zeros((40, 56, 3), np.uint8))
    pixels = np.zeros((1, 1, 40, 56, 3), np.uint8)
    path = trajectory(tmp_path / 'a.npz', states=np.zeros((1, 1, 7)), observations=pixels)
    options = ['--model', 'random:tiny', '--input', str(path), '--out', str(tmp_path / 'out')]
    assert '1 frame: must hold at least 2' in said(capsys, *options)
    few = ['--samples', '4', '--elites', '2', '--iterations', '1', '--horizon', '1']
    status = cli.run(
        plan.run, doc='', tables=(), options=plan.add_options,
        argv=[*options, *few, '--goal', str(goal)],
    )  # fmt: skip
    assert status == 0, capsys.readouterr().err
    assert json.loads((tmp_path / 'out/plan.json').read_text())['true_action'] is None


def test_a_goal_of_another_size_is_refused(tmp_path, capsys):
    goal = tmp_path / 'goal.png'
    matplotlib.image.imsave(goal, np.zeros((30, 56, 3), np.uint8))
    path = str(trajectory(tmp_path / 'a.npz'))
    options = '--model', 'random:tiny', '--input', path, '--out', str(tmp_path)
    assert said(capsys, *options, '--goal', str(goal)) == (
        f'{goal}: the goal has 56 x 30 pixels, must have 56 x 40 as the frames, from the same '
        'camera'
    )


@pytest.mark.parametrize(
    'flags, message',
    [
        (
            ('--horizon', '8'),
            'horizon 8: must be at most 7 for this model, whose predictor was trained on at most 7 '
            'frames before the one it predicts',
        ),
        (('--horizon', '0'), 'horizon 0: must be at least 1'),
        (('--elites', '401'), 'elites 401: must be from 2 to samples = 400'),
        (('--max-step', 'nan'), 'max_step nan: must be finite and more than 0 metres'),
        (('--max-step', '-1'), 'max_step -1: must be finite and more than 0 metres'),
        (('--at-once', '-1'), 'at_once -1: must be at least 0'),
    ],
)
def test_what_cannot_be_planned_gets_one_line(flags, message, tmp_path, capsys):
    path = str(trajectory(tmp_path / 'a.npz'))
    options = '--model', 'random:tiny', '--input', path, '--out', str(tmp_path)
    assert said(capsys, *options, *flags) == message


@pytest.mark.parametrize(
    'scale, flags, message',
    [
        ([1000] * 3 + [1] * 4, (), 'up to 999.7 m, more than 3: millimetres? --metres=0.001'),
        ([1] * 3 + [180 / np.pi] * 3 + [1], (), 'degrees, not radians? --angles=degrees'),
        ([1] * 6 + [255], (), '--gripper-range=0,255 (open, closed)?'),
        ([1] * 7, ('--workspace', '0,1,0,1,2,3'), 'workspace: the plan would begin at z = '),
        ([1] * 7, ('--workspace', '1,0,0,1,2,3'), 'workspace 1,0,0,1,2,3: must be x0,x1,y0,y1'),
        ([1] * 7, ('--metres', '-1'), '--metres -1: must be more than 0'),
        ([1] * 7, ('--gripper-range', '1,1'), '--gripper-range: the values when open and when'),
    ],
    ids=range(7),
)  # fmt: skip
def test_units_and_workspaces_are_checked(scale, flags, message, tmp_path, capsys):
    states = np.load(trajectory(tmp_path / 'a.npz'))['states']
    states[0, 0] = [0.9997, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1]
    states[0, 1, 6] = 0.9
    path = str(trajectory(tmp_path / 'a.npz', states=(states * scale).astype(np.float32)))
    options = '--model', 'random:tiny', '--input', path, '--out', str(tmp_path)
    assert message in said(capsys, *options, *flags)


def test_states_in_other_units_are_those_that_they_mean(tmp_path):
    states = np.random.default_rng(0).uniform(0, 1, (1, 12, 7)).astype(np.float32)
    pixels = np.zeros((1, 12, 8, 8, 3), np.uint8)
    recorded = states * ([1000] * 3 + [180 / np.pi] * 3 + [-0.08]) + [0, 0, 0, 0, 0, 0, 0.08]
    path = trajectory(tmp_path / 'a.npz', states=recorded, observations=pixels)
    units = RobotConfig(metres=0.001, angles='degrees', gripper_range=(0.08, 0.0))
    _, result, looks = plan.read_episode(str(path), units)
    np.testing.assert_allclose(result, states[0], rtol=0, atol=1e-6)
    assert not looks
    # the gripper alone in metres: a recording tells, a few moments only give rise to a word
    states[..., 6] = np.linspace(0.08, 0, 12)
    path = trajectory(tmp_path / 'a.npz', states=states, observations=pixels)
    with pytest.raises(BadFile, match='an opening in metres. --gripper-range=0.08,0 .open, closed'):
        plan.read_episode(str(path), RobotConfig())
    path = trajectory(tmp_path / 'a.npz', states=states[:, ::6], observations=pixels[:, ::6])
    _, _, looks = plan.read_episode(str(path), RobotConfig())
    assert 'an opening in metres?' in looks[0]


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'empty'),
        (b'PK nothing', 'corrupt'),
        ({'states': np.array([None] * 7)}, 'an array of Python objects'),
        ({'states': np.full((1, 2, 7), 'a')}, 'is of type <U1, must be float32'),
        ({'states': np.zeros(())}, 'states has shape [], must have [1, T, 7]'),
        ({'states': np.zeros((1, 0, 7))}, 'states has shape [1, 0, 7]'),
        ({'observations': np.zeros((1, 2, 0, 56, 3), np.uint8)}, 'observations has shape [1, 2, 0'),
    ],
    ids=range(7),
)
def test_hostile_input_gets_one_line(content, message, tmp_path, capsys):
    path = tmp_path / 'a.npz'
    path.write_bytes(content) if isinstance(content, bytes) else trajectory(path, **content)
    options = '--model', 'random:tiny', '--input', str(path), '--out', str(tmp_path)
    assert message in said(capsys, *options)


def zeros(model: pathlib.Path, robot: dict | None = None, **widths) -> pathlib.Path:
    """A model whose weights are all 0: what it predicts is the same whatever is done."""
    encoder = ViTConfig(48, 1, 2, image_size=32)
    config = ACPredictorConfig(48, width=48, depth=1, heads=2, grid=(2, 2), **widths)

    def net(part, config):
        abstract = parts.net(part, config).abstract
        tree = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), abstract)
        return StoredNet(part, config, tree)

    nets = {'target': net('encoder', encoder), 'ac_predictor': net('ac_predictor', config)}
    told = robot or {'recordings': dataclasses.asdict(RobotConfig())}
    convert.write(Weights(model.parent, 'jax', nets, robot=told), model, to='jax')
    return model


@pytest.mark.parametrize(
    'widths, message',
    [
        (
            dict(action_width=5),
            "model '{}' takes actions of 5 and states of 7 numbers: planning for an end effector "
            'needs 7, and 7 or none',
        ),
        (dict(state_width=0), 'state_weight 1: the model has no state'),
    ],
    ids=str,
)
def test_a_model_of_other_widths_gets_one_line(widths, message, tmp_path, capsys):
    model = zeros(tmp_path / 'model', **widths)
    options = '--model', str(model), '--input', str(trajectory(tmp_path / 'a.npz'))
    line = said(capsys, *options, '--out', str(tmp_path), '--state-weight', '1')
    assert line == message.format(model)


def test_a_predictor_that_ignores_actions_is_not_usable(tmp_path, capsys):
    """Status 3, and 0 when forced; what its run found out is said."""
    model, out = zeros(tmp_path / 'model'), tmp_path / 'out'
    verdict = {'verdict': 'ignores actions', 'sentences': ['ignores actions: 1.00 times as large']}
    (model / 'report.json').write_text(json.dumps(verdict))
    status = cli.run(
        plan.run, doc=plan.__doc__, tables=(), options=plan.add_options,
        argv=['--model', str(model), '--input', str(trajectory(tmp_path / 'a.npz')),
              '--out', str(out), '--samples', '8', '--iterations', '2', '--elites', '4',
              '--horizon', '1', '--workspace', '-1,2,-1,2,-1,2'],
    )  # fmt: skip
    done = capsys.readouterr()
    assert (out / 'plan.json').exists(), done.err
    report = json.loads((out / 'plan.json').read_text())
    assert status == 3 and not report['usable'] and len(report['problems']) == 2
    words = 'the predictor ignores actions: the energy of those tried differs by 0.00%'
    assert words in done.err and 'the run ended with the verdict: ignores actions' in done.err
    assert report['energy_range_over_doing_nothing'] < 1e-6
    assert 'the run ended: ignores actions: 1.00 times as large' in done.out
    assert 'the plan may go up to 0.05 m along an axis: x ' in done.out
    plan.conclude(report['problems'], force=True)
    assert words in capsys.readouterr().out
    plan.conclude([], force=False)
    with pytest.raises(Unusable):
        plan.conclude(['so'], force=False)


TOLD = {
    'recordings': dataclasses.asdict(
        RobotConfig(metres=0.001, angles='degrees', fps=10, frames=16, gripper_range=(0.0, 255.0))
    ),
    'measured': dataclasses.asdict(
        Measured(3, (0.0,) * 7, (1.0,) * 7, 0.1, (5.0, 15.0, 30.0), 'positions in 1 m', {'a': 1})
    ),
    'verdict': ['ignores actions', 'ignores actions: nothing moves'],
}


def test_a_robot_is_known_whatever_holds_its_model(tmp_path, caplog, monkeypatch):
    """Our folders, PyTorch files, what is saved of a model, and each of them in a bucket; what says
    nothing is told of in one line, but for released weights."""
    model = zeros(tmp_path / 'model', robot=TOLD)
    weights = convert.read(model)
    convert.write(weights, tmp_path / 'a.pt', to='torch')
    jepa_jax.load(tmp_path / 'a.pt').save_pretrained(tmp_path / 'saved')
    monkeypatch.setattr(fetched, 'model', lambda url: tmp_path / url.rpartition('/')[2])
    for name in ('model', 'a.pt', 'saved'):
        for place in (str(tmp_path / name), f's3://bucket/{name}'):
            known = planning_model.known(place)
            loaded = jepa_jax.Robot.load(place, angles='radians')
            assert known == loaded.agent.known, place
            assert known.recordings.metres == loaded.units.metres == 0.001, place
            assert (loaded.units.angles, loaded.rate) == ('radians', 7.5), place  # 15 / 2
            assert loaded.agent.world_model.frames == 15, place
            assert loaded.measured == Measured.stored(TOLD['measured']), place
            assert loaded.ended == tuple(TOLD['verdict']), place
    assert not caplog.records
    assert loaded.units.gripper_range == (0, 255)
    told = jepa_jax.Robot.load(place, gripper='open').units  # else the range would hide it
    assert (told.gripper, told.gripper_range) == ('open', (0, 0))
    with pytest.raises(PlanError, match="'open' with robot.gripper_range = .0, 2.: the range"):
        jepa_jax.Robot.load(place, gripper='open', gripper_range=(0, 2))
    convert.write(dataclasses.replace(weights, robot={}), tmp_path / 'b.pt', to='torch')
    silent = jepa_jax.Robot.load(str(tmp_path / 'b.pt'))
    assert (silent.units, silent.rate, silent.ended) == (RobotConfig(), 4, None)
    (line,) = caplog.messages
    assert 'metres, radians, closedness, 4 frames a second and 8 at once are assumed' in line
    assert planning_model.known('random:tiny') == planning_model.known('ac-vitg')
    convert.write(
        dataclasses.replace(weights, robot={'released': 'ac-vitg'}), tmp_path / 'r', 'jax'
    )
    jepa_jax.Robot.load(str(tmp_path / 'r'))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    'told',
    [
        {'recordings': [1]},
        {'recordings': {'metres': 'a'}},
        {'recordings': {'fps': -1.0}},
        {'recordings': {'beyond': 1}},
        {'measured': {}},
        {'measured': {**TOLD['measured'], 'low': ['a'] * 7}},
        {'verdict': 3},
    ],
)
def test_a_robot_that_is_not_understood_is_one_line(told):
    with pytest.raises(ConvertError, match='m: what it says of its robot is not understood') as is_:
        planning_model.Known.of('m', told)
    assert len(str(is_.value).splitlines()) == 1


def test_what_cannot_be_planned_is_one_line_and_status_1(tmp_path):
    path = str(trajectory(tmp_path / 'a.npz'))
    done = run('--model', 'random:tiny', '--input', path, '--out', str(tmp_path), '--axes', 'dx,up')
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: --axes 'dx,up': must be two of dx, dy, dz, droll, dpitch, dyaw, dgripper, as dx,dz"
    )


def test_recordings_are_read_as_in_training(tmp_path, capsys):
    """8 frames a second, of which every second is kept at 4: frames 2 and 6 of 9."""
    rng = np.random.default_rng(0)
    states = rng.uniform(0, 1, (9, 7)) * 1000
    states[:, 3:] /= 1000
    pixels = rng.integers(0, 256, (9, 32, 32, 3), np.uint8)
    for name in ('a', 'b'):
        np.savez(tmp_path / f'{name}.npz', states=states, observations=pixels, fps=8)
        states, pixels = states[::-1], pixels[::-1]
    where = dict(kind='npz', path=str(tmp_path), metres=0.001)
    frames, poses, moves = plan.read_recording('random:tiny', where, 1, 1, 3)
    np.testing.assert_array_equal(frames, pixels[::-1][[2, 6]])
    expected = states[::-1][[2, 4, 6]] * ([0.001] * 3 + [1] * 4)
    np.testing.assert_allclose(poses, expected, rtol=1e-6)
    np.testing.assert_allclose(moves[:, :3], np.diff(expected[:, :3], axis=0), atol=1e-6)
    # beside a goal elsewhere any frame will do, the last one, too
    frames, poses, _ = plan.read_recording('random:tiny', where, 0, 4, -1, alone=True)
    np.testing.assert_array_equal(frames, pixels[[8]])
    assert poses.shape == (1, 7)
    frames, *_ = plan.read_recording('random:tiny', where, 0, 0, -1)
    np.testing.assert_array_equal(frames, pixels[[0, 8]])
    options = ('--model', 'random:tiny', '--input', str(tmp_path), '--out', str(tmp_path / 'out'))
    words = said(capsys, *options, '--kind', 'npz')
    assert 'a.npz: bad_units: ' in words and words.endswith('millimetres? --metres=0.001')
    kind = (*options, '--kind', 'npz', '--metres', '0.001')
    assert '--episode 2: ' in said(capsys, *kind, '--episode', '2')
    for flags in (('--from', '3', '--to', '3'), ('--to', '5'), ('--from', '-1')):
        assert 'a.npz has frames 0 to 4 at 4 a second' in said(capsys, *kind, *flags)
    for flags, words in (
        (('--gripper', 'opened'), "robot.gripper = 'opened': allowed are closed, open"),
        (('--frame', 'basis'), "robot.frame = 'basis': allowed are base, camera"),
        (('--metres', '0'), 'robot.metres = 0.0: must be more than 0'),
        (('--metres', 'nan'), 'robot.metres = nan: must be a finite number'),
        (('--fps', '0'), 'robot.fps = 0.0: must be more than 0'),
        (('--gripper-range', '1,1'), 'robot.gripper_range = (1.0, 1.0): must be the values when'),
        (('--gripper', 'open', '--gripper-range', '0,2'), "robot.gripper = 'open' with robot.grip"),
    ):
        assert said(capsys, *options, '--kind', 'npz', *flags).startswith(words)
    assert '--camera: needs --kind, one of droid' in said(capsys, *options, '--camera', 'front')
    for flag in ('--episode', '--from', '--to'):
        assert f'{flag} 3: needs --kind, one of' in said(capsys, *options, flag, '3')


def test_recordings_of_commands_have_the_actions_of_training(tmp_path, monkeypatch):
    """They lead to what was commanded, as robot.action has it, and not to the next pose; and a
    gripper that is told takes the place of the run's range."""
    states = np.random.default_rng(0).uniform(0, 1, (3, 7))
    pixels = np.zeros((3, 32, 32, 3), np.uint8)
    np.savez(tmp_path / 'a.npz', states=states, observations=pixels, fps=4)
    run = planning_model.Known(RobotConfig(gripper_range=(0.0, 2.0)))
    monkeypatch.setattr(planning_model, 'known', lambda name: run)
    monkeypatch.setattr(
        npz_recordings.Npz, 'episode', lambda self, i, read=npz_recordings.Npz.episode:
        dataclasses.replace(read(self, i), commands=read(self, i).states + 0.25),
    )  # fmt: skip
    where = dict(kind='npz', path=str(tmp_path), gripper='open')
    _, poses, moves = plan.read_recording('run', where, 0, 0, 1)
    np.testing.assert_allclose(moves[0, :3], 0.25, atol=1e-6)
    np.testing.assert_allclose(poses[:, 6], 1 - states[:2, 6], atol=1e-6)
    run = planning_model.Known(RobotConfig(gripper='open'))  # and a range that of what 1 means
    del where['gripper']
    _, poses, _ = plan.read_recording('run', dict(where, gripper_range=(0.0, 2.0)), 0, 0, 1)
    np.testing.assert_allclose(poses[:, 6], states[:2, 6] / 2, atol=1e-6)


def test_another_robots_recordings_are_no_input(tmp_path, capsys):
    extra = {'config': {'robot': dataclasses.asdict(RobotConfig('npz', robot='mine', fps=4.0))}}
    checkpoint.write(tmp_path / 'model', {'a': np.zeros(1)}, step=1, extra=extra)
    words = said(
        capsys, '--model', str(tmp_path / 'model'), '--input', str(tmp_path), '--kind', 'npz',
        '--robot', 'yours', '--out', str(tmp_path / 'out'),
    )  # fmt: skip
    assert words == "the weights are for another robot: robot: 'mine' in the weights, 'yours' here"


def test_a_run_on_poses_of_the_camera_takes_no_file(tmp_path, capsys):
    told = {'recordings': dataclasses.asdict(RobotConfig(frame='camera'))}
    model, path = str(zeros(tmp_path / 'model', robot=told)), str(trajectory(tmp_path / 'a.npz'))
    words = said(capsys, '--model', model, '--input', path, '--out', str(tmp_path / 'out'))
    assert words.startswith(f"{path}: '{model}' was trained with robot.frame = 'camera'")
