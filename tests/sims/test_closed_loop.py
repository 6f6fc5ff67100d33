"""The whole chain as one command: stages take from those before and go on where they were."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('jepa_jax.sims.panda', reason='needs MuJoCo', exc_type=ModuleNotFoundError)

from jepa_jax import cli, studies  # noqa: E402
from jepa_jax.config import SimGatesConfig  # noqa: E402
from jepa_jax.errors import SimError  # noqa: E402
from jepa_jax.recipes import validate
from jepa_jax.sims import bench, closed_loop, evaluate  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/sim_panda.py'


def train(workdir, *overrides, arg='ci', timeout=1200):
    command = [sys.executable, '-m', 'jepa_jax.train', f'--config={CONFIG}:{arg}']
    flags = [f'--config.{override}' for override in overrides]
    return subprocess.run(
        [*command, f'--workdir={workdir}', *flags],
        cwd=ROOT,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize('size', ['ci', 'dark_ci', 'small', 'pick', 'varied', 'dark', 'full'])
def test_stages_take_from_each_other(tmp_path, size):
    config = cli.load(f'{CONFIG}:{size}', ['study'])
    first, second = closed_loop.trainings(config, tmp_path)
    for stage in (first, second):
        validate(stage)
    assert first.data.lists[0].path == second.robot.path == str(tmp_path / 'recordings')
    assert second.encoder_from == str(tmp_path / 'encoder') and second.encoder == first.encoder
    assert first.data.crop == second.data.crop == config.collection.image_size
    assert not config.pretrain.data.lists[0].path  # the config itself is left as it was


def report_of(**changed) -> dict:
    """A report of a run that passes the gates of `:ci`, but for what is changed of its planner."""
    good = {'success': 0.6, 'distance': 0.03, 'start': 0.2, 'within_8_cm': 0.9} | changed
    bad = {'success': 0.0, 'distance': 0.3, 'start': 0.2, 'within_8_cm': 0.0}
    ratio = {'error_over_copy': 0.5, 'shuffled_over_true': changed.get('ratio', 2.0)}
    return {
        'cost': {'rank_correlation': changed.get('rank', 0.9)},
        'dynamics': {'planner': ratio, 'untrained': ratio | {'shuffled_over_true': 1.0}},
        'tasks': {'reach': good | {'policies': {'planner': good, 'untrained': bad}}},
    }


def test_each_gate_closes():
    gates = cli.load(f'{CONFIG}:ci', ['study']).gates
    assert all(row['passed'] for row in closed_loop.judge(gates, report_of()))
    for changed, name in (
        ({'ratio': 1.05}, 'shuffled_over_true'),
        ({'rank': 0.1}, 'rank_correlation'),
        ({'distance': 0.19}, 'nearer'),
        ({'within_8_cm': 0.1}, 'within_8_cm'),
    ):
        rows = closed_loop.judge(gates, report_of(**changed))
        assert [row['name'] for row in rows if not row['passed']] == [name]


def test_gates_of_goals_that_tell_of_the_gripper():
    report = report_of()
    policies = report['tasks']['reach']['policies']
    told = {'gripper_told': policies['planner'] | {'success': 0.9}}
    report['tasks'] = {
        task: {'policies': policies | (told if task == 'grasp' else {})}
        for task in ('grasp', 'pick_and_place')
    }
    gates = SimGatesConfig(grasp=0.7, grasp_told=0.85)
    assert [(row['measured'], row['passed']) for row in closed_loop.judge(gates, report)] == [
        (0.6, False),
        (0.9, True),
    ]


def test_gates_of_unseen_scenes():
    """They ask for the first task in those scenes, and for how far a random encoder is behind."""
    report = report_of()
    rows = [
        {'success': won, 'distance': 0.1, 'start': 0.2, 'within_8_cm': 0} for won in (0.8, 0.55)
    ]
    policies = {'planner': rows[0], 'untrained': rows[1], 'random_encoder': rows[1]}
    other = {'policies': dict.fromkeys(policies, rows[1])}
    report['tasks'] = {
        'reach seen': other,
        'reach unseen': {'policies': policies},
        'grasp unseen': other,
    }
    gates = SimGatesConfig(unseen=0.7, over_random=0.2)
    unseen, over = closed_loop.judge(gates, report)
    assert (unseen['measured'], unseen['untrained'], unseen['passed']) == (0.8, 0.55, True)
    assert over['measured'] == pytest.approx(0.25) and over['passed']
    assert not closed_loop.judge(SimGatesConfig(over_random=0.3), report)[0]['passed']
    report['tasks'] = {'reach moderate_dark': {'policies': policies}}
    gates = SimGatesConfig(moderate_dark=0.9, over_random=0.2)
    dark, over = closed_loop.judge(gates, report)
    assert (dark['measured'], dark['passed'], over['passed']) == (0.8, False, True)


class FakeBench:
    """Plays without a simulator; remembers what it was asked for."""

    def __init__(self):
        self.played, self.judged, self.about = [], [], ()

    def __call__(self, config, folder):
        self.config = config
        return self

    def judge(self, folder):
        names = ['planner', 'untrained']
        names += ['random_encoder'] if self.config.evaluation.random_encoder else []
        self.judged.append(len(names))
        cost = {'falls': 0.9, 'energy_at_end': 0.3, 'rank_correlation': 0.9, 'others': {}}
        moving = {'error_over_copy': 0.5, 'shuffled_over_true': 2.0, 'gripper_range': 0.4}
        Image.new('RGB', (8, 8)).save(folder / 'energy.png')
        return {'cost': cost | {'depth_over_across': 0.5}, 'dynamics': dict.fromkeys(names, moving)}

    def play(self, task, kind, names):
        assert kind == 'standard'
        self.played += names
        counts = bench.episodes_of(self.config.evaluation)
        results = {}
        for name in names:
            off = np.full(counts[name], 0.01)
            won = np.arange(counts[name]) < counts[name] // 2
            shown, frames = np.zeros(1, int), np.zeros((1, 2, 8, 8, 3), np.uint8)
            pictures = shown, frames, frames[:, :1]
            results[name] = evaluate.Episodes(task, won, off + 0.2, off, 0.1, *pictures)
        return results


def test_rows_are_added_to_a_finished_run_but_none_of_another_kind(tmp_path):
    """What is asked for later is played, nothing twice, and sentences are replaced."""
    config = cli.load(f'{CONFIG}:ci', ['study'])
    start = {'tasks': {}, 'sentences': ['trained'], 'verdict': 'healthy', 'seconds': 1.0}
    (tmp_path / 'report.json').write_text(json.dumps(start))
    fake = FakeBench()

    def run() -> dict:
        fake.played.clear()
        closed_loop.measure(config, tmp_path, fake)
        return json.loads((tmp_path / 'report.json').read_text())

    first = run()
    assert fake.played == ['planner', 'untrained', 'oracle', 'random', 'no_op']
    assert len(first['sentences']) == 4 and 'random_encoder' not in str(first['tasks'])
    assert run() == first and not fake.played
    config.evaluation.random_encoder, config.evaluation.simulator_episodes = True, 3
    more = run()
    added = ['random_encoder', 'simulator_learned_cost', 'simulator_pixel_cost']
    assert fake.played == added and fake.judged == [2, 3]
    policies = more['tasks']['reach']['policies']
    assert [policies[name]['episodes'] for name in added] == [4, 3, 3]
    assert policies.items() >= first['tasks']['reach']['policies'].items()
    assert len(more['sentences']) == 4 and 'random_encoder 50 %' in ' '.join(more['sentences'])
    config.evaluation.simulator_episodes = 6  # only these are played anew
    assert run()['tasks']['reach']['policies']['simulator_pixel_cost']['episodes'] == 6
    assert fake.played == added[1:]
    assert 'random actions' in (tmp_path / 'report.html').read_text()
    config.evaluation.gripper_weight = 0.1  # a row that comes later, whose weight is kept
    assert run()['evaluation']['gripper_weight'] == 0.1 and fake.played == ['gripper_told']
    drawn = {path.name for path in tmp_path.glob('episodes_*')}
    assert drawn == {
        f'episodes_reach{p}.{kind}' for p in ('', '_gripper_told') for kind in ('png', 'gif')
    }
    assert (tmp_path / 'report.html').read_text().count('data:image/gif') == 2
    config.evaluation.gripper_weight = 0.0
    assert run()['evaluation']['gripper_weight'] == 0.1 and not fake.played
    config.evaluation.gripper_weight = 0.2
    with pytest.raises(SimError, match='with evaluation.gripper_weight 0.1, 0.2 here'):
        run()
    config.evaluation.gripper_weight = 0.1
    config.evaluation.samples = 128
    with pytest.raises(SimError, match='with evaluation.samples 64, 128 here; name another folder'):
        run()
    with pytest.raises(SimError, match='name another folder'):  # before anything takes its time
        studies.run(config, tmp_path, train=lambda *_: pytest.fail('trained'))
    assert not (tmp_path / 'recordings').exists()


@pytest.mark.slow  # two minutes
@pytest.mark.ci
def test_one_command_learns_to_reach_and_then_rests(gl, tmp_path):
    """`:ci` as it stands: what it asks for is reached, and an untrained predictor reaches none of
    it."""
    done = train(tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['verdict'] == 'passed' and len(report['gates']) == 4
    for gate in report['gates']:
        assert gate['passed'] and gate['measured'] >= gate['asked']
        assert gate['untrained'] is None or gate['untrained'] < gate['asked']
    row = report['tasks']['reach']
    assert row['oracle'] == 1 and row['no_op'] == 0 and row['episodes'] == 12
    assert row['low'] <= row['success'] <= row['high']
    assert row['success'] > max(row['untrained'], row['random'])
    assert report['cost']['energy_at_end'] < 0.5 and report['cost']['falls'] > 0.8
    page = (tmp_path / 'report.html').read_text()
    far = report['horizon']
    assert far.keys() == {'recordings', 'reach'} and len(far['reach']['ratio']) == 16
    assert far['reach']['worth'] >= 1 and far['reach']['episodes'] == 4
    assert page.count('data:image/png') >= 5
    for name in ('episodes_reach.png', 'energy.png', 'run.png', 'horizon.png', 'horizon_tasks.png'):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
    again = train(tmp_path)
    assert again.returncode == 0
    changed = [p.name for p, t in files.items() if p.stat().st_mtime_ns != t]
    assert set(changed) <= {'.lock'}
    other = train(tmp_path, 'collection.seed=1')
    assert other.returncode == 1
    assert other.stderr.splitlines()[-1].endswith('seed 0 there, 1 here; name another folder')
    # a finished run that reached too little says so however often it is asked
    asked = train(tmp_path, 'gates.rank_correlation=0.999')
    assert asked.returncode == 1
    assert 'rank_correlation' in asked.stderr.splitlines()[-1]


@pytest.mark.slow  # five minutes
@pytest.mark.ci
def test_in_poor_light_a_random_encoder_fails_what_a_trained_one_passes(gl, tmp_path):
    """`:dark_ci` as it stands."""
    done = train(tmp_path, arg='dark_ci')
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / 'report.json').read_text())
    row, (gate, over) = report['tasks']['reach moderate_dark'], report['gates']
    assert gate['name'] == 'moderate_dark' and gate['measured'] >= gate['asked']
    assert row['random_encoder'] < gate['asked'] and row['untrained'] < gate['asked']
    assert over['name'] == 'over_random' and over['measured'] >= over['asked']
    assert row['oracle'] == 1 and row['episodes'] == 60


def test_refusals(tmp_path, capsys):
    """By the command line, before anything is collected or trained."""

    def main(config, workdir, config_file):
        studies.run(config, workdir, train=lambda *_: pytest.fail(f'trained {config_file}'))

    for override, words in (
        ('evaluation.tasks=reach,juggle', "evaluation.tasks 'juggle': allowed are reach, grasp"),
        ('posttrain.rollout.steps=5', 'rollout.steps = 5: must be less than robot.frames'),
        ('evaluation.elites=65', 'evaluation.elites 65: must be from 2 to samples = 64'),
        ('evaluation.elites=1', 'evaluation.elites 1: must be from 2 to samples = 64'),
        ('evaluation.horizon=2', 'evaluation.horizon 2: must be less than posttrain.robot.frames'),
        ('evaluation.planners=cem:1x4', "evaluation.planners 'cem:1x4': elites 2: must be from 2"),
        ('evaluation.judged=1', 'evaluation.judged 1: must be at least 2'),
        ('evaluation.at_once=0', 'evaluation.at_once 0: must be at least 1'),
        ('evaluation.exponent=3', 'evaluation.exponent 3: allowed are 1, 2'),
        ('evaluation.max_step=0', 'evaluation.max_step 0: must be finite and more than 0 metres'),
        ('evaluation.scenes=standard,dark', "evaluation.scenes 'dark': allowed are standard"),
        ('evaluation.planners=adam:8', "evaluation.planners 'adam:8': must be NAME:SAMPLESxITERAT"),
        ('collection.scenes=dark', "scenes 'dark': allowed are standard, moderate, seen"),
        (
            'gates.unseen=0.5',
            "evaluation.scenes must have unseen or unseen_dark to measure it, found 'standard'",
        ),
        ('gates.grasp=0.5', "evaluation.tasks must have grasp to measure it, found 'reach'"),
        ('gates.pick_and_place_told=0.5', 'evaluation.tasks must have pick_and_place to measure'),
        ('collection.pick=0.5', 'they must add up to 1'),
        (
            'evaluation.gripper_weight=0.1 --config.posttrain.ac.use_states=False',
            'evaluation.gripper_weight 0.1: needs posttrain.ac.use_states = True',
        ),
    ):
        flags = f'--config={CONFIG}:ci', f'--workdir={tmp_path}/run'
        flags += tuple(f'--config.{override}'.split(' '))
        assert cli.run(main, doc='', tables=('study',), argv=flags) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('error: ') and words in line
    assert not (tmp_path / 'run').exists()
