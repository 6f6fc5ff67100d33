"""The evaluation of surprise: halves, choice of settings, baselines and their figures."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whole_series import series

from jepa_jax.config.physics import PhysicsConfig
from jepa_jax.data import Batch, Group, synthetic, violations
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.evals import of, physics, surprise
from jepa_jax.evals.physics import Setting
from jepa_jax.evals.physics_sets import Pair, Pairs
from jepa_jax.evals.surprise import Expects
from jepa_jax.masks import Mask
from jepa_jax.model import Loaded, Model
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import ONCE
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.weights.parts import net

ROOT = pathlib.Path(__file__).resolve().parents[2]


def get_config(arg=''):
    spec = importlib.util.spec_from_file_location('c', ROOT / 'configs/eval/physics.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def pair(kind='stop', group='g', more=''):
    return Pair(pathlib.Path('a'), pathlib.Path('b'), kind, group, more=more)


def tokens(x):
    """Means of 2 x 8 x 8 as tokens of three channels, 0..1."""
    B, T, H, W, C = np.shape(x)
    x = np.asarray(x, np.float32).reshape(B, T // 2, 2, H // 8, 8, W // 8, 8, C) / 255
    return x.mean((2, 4, 6)).reshape(B, -1, C)


def steady(seen, grid, token):
    """Expects that nothing changes."""
    place = grid[1] * grid[2]
    again = surprise.standardise(seen[:, -place:])
    return np.tile(again, (1, grid[0] - seen.shape[1] // place, 1))


STEADY = Expects(tokens, tokens, steady, tubelet=2, patch=8)


def test_halves_never_divide_a_group():
    rng = np.random.default_rng(0)
    pairs = [
        pair(kind, f'{kind} {rng.integers(12)}') for kind in ('stop', 'wall') for _ in range(40)
    ]
    calibration, reported = physics.split(pairs)
    assert (calibration ^ reported).all()
    physics.split([pair('stop', os.fsdecode(b'\xff')), pair('stop', 'b')])  # no text
    sides = {}
    for p, side in zip(pairs, calibration):
        assert sides.setdefault(p.group, side) == side
    for kind in ('stop', 'wall'):
        ours = [side for group, side in sides.items() if group.startswith(kind)]
        assert abs(sum(ours) - len(ours) / 2) <= 1


def test_one_group_cannot_be_halved(small, monkeypatch, tmp_path):
    """Before anything is measured: nothing would be left to report."""
    pairs = Pairs(tuple(pair(group='a') for _ in range(3)))
    monkeypatch.setattr(physics, 'load', lambda config: pairs)
    monkeypatch.setattr(physics, 'measure', lambda *_: pytest.fail('measured'))
    with pytest.raises(ConfigError, match='all 3 pairs are of one group, a'):
        physics.run(small, get_config('smoke'), tmp_path)


def test_settings_are_chosen_on_calibration_pairs_alone():
    pairs = [pair('stop', str(i)) for i in range(8)]
    rows = np.arange(8) < 4
    good, bad = Setting(1, 8, 4, 0, 'mean'), Setting(1, 8, 4, 0, 'max')
    won = np.stack([np.zeros((1, 8)), np.ones((1, 8))])
    lost = won[::-1]
    scores = {good: np.where(rows, won, lost), bad: np.where(rows, lost, won)}
    assert physics.choose(scores, pairs, rows) == good
    assert physics.choose(scores, pairs, ~rows) == bad


def test_a_kind_counts_once_and_controls_do_not():
    pairs = [pair('stop', str(i)) for i in range(6)] + [pair('wall', 'w'), pair('harmless', 'h')]
    first, second = Setting(1, 8, 2, 0, 'mean'), Setting(1, 8, 4, 0, 'mean')
    better = np.array([[0] * 4 + [1] * 2, [0] * 3 + [1] * 3])  # two and three of six lost
    scores = {}
    for setting, lost, wall, control in ((first, better[0], 1, 0), (second, better[1], 0, 1)):
        row = np.array([*lost, wall, control], float)
        scores[setting] = np.stack([row, np.full(8, 0.5)])[:, None]
    rows = np.ones(8, bool)
    # 4/6 and 0 against 3/6 and 1: the mean over kinds decides, not that over pairs (4 each)
    assert physics.choose(scores, pairs, rows) == second


def test_swapped_labels_mirror_and_a_tie_is_never_won():
    rng = np.random.default_rng(1)
    scores = rng.random((2, 3, 500))
    assert np.allclose(physics.wins(scores) + physics.wins(scores[::-1]), 1)
    assert not physics.wins(np.ones((2, 3, 5))).any()
    swap = rng.random(500) < 0.5
    mixed = np.where(swap, scores[::-1], scores) + np.array([0, 0.3])[:, None, None] * ~swap
    random = np.where(swap, mixed[::-1], mixed)
    assert abs(physics.wins(random).mean() - 0.5) < 0.2
    assert physics.wins_half(np.array([1.0, 1, 0]), np.array([1.0, 0, 1])) == 0.5


@pytest.mark.parametrize(
    ('F', 'tubelet', 'shares', 'expected'),
    [
        (16, 2, (2, 4, 6, 8, 10), (2, 4, 6, 8, 10)),
        (32, 2, (2, 4, 6, 8, 10), (4, 8, 12, 16, 20)),  # the paper's
        (48, 2, (4, 6, 8, 10, 12, 14), (12, 18, 24, 30, 36, 42)),  # that of IntPhys 2
        (12, 2, (1, 3, 6, 8, 11), (2, 4, 6, 8)),
        (15, 2, (8,), ()),
        (2, 2, (8,), ()),
    ],
)
def test_contexts(F, tubelet, shares, expected):
    assert physics.contexts_of(F, tubelet, shares) == expected


def test_views():
    frames = np.zeros((1, 8, 16, 3), np.uint8)
    frames[:, :, 4:12] = 200  # the middle square
    assert (physics.view_of('square', 8)(frames) == 200).all()
    squeezed = physics.view_of('squeeze', 8)(frames)
    assert squeezed.shape == (1, 8, 8, 3)
    assert (squeezed[0, 0, :, 0] == [0, 0, 200, 200, 200, 200, 0, 0]).all()


def test_frames_of_a_video(tmp_path):
    frames = np.repeat(np.arange(0, 200, 10, dtype=np.uint8), 16 * 16 * 3).reshape(20, 16, 16, 3)
    synthetic.write(tmp_path / 'a.mp4', frames, lossless=True)

    def values(**options):
        settings = dict(step=1, skip=0, most=0) | options
        return physics.frames_of(tmp_path / 'a.mp4', lambda x: x, **settings)[:, 0, 0, 0] // 10

    assert values(step=3).tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert values(step=3, skip=4, most=12).tolist() == [4, 7, 10]
    assert len(values(step=2, most=9)) == 4  # as the original counts: 99 // 2 = 49
    with pytest.raises(BadFile, match='20 frames, of which 20 are left out'):
        values(skip=20)


def moving(tmp_path, name, events, length=16):
    """A video whose ground changes at frames."""
    frames = np.full((length, 16, 16, 3), (40, 120, 200), np.uint8)
    for event in events:
        frames[event:] = frames[event:, :, :, ::-1]
    path = tmp_path / f'{name}.mp4'
    synthetic.write(path, frames, lossless=True)
    return path


@pytest.fixture
def config():
    c = PhysicsConfig(
        steps=(1, 1, 1), frames=(8, 8), contexts=(4, 8, 12, 12, 12, 12), random_seeds=0
    )
    c.mask_tokens = (0, 0)
    return c


def test_surprise_of_pairs_by_brute_force(tmp_path, config):
    still, changed = moving(tmp_path, 'still', []), moving(tmp_path, 'changed', [9])
    short = moving(tmp_path, 'short', [], length=6)
    pairs = Pairs((
        Pair(still, changed, 'colour', 'a', 9),
        Pair(still, tmp_path / 'gone.mp4', 'colour', 'b'),
        Pair(still, short, 'colour', 'c'),
    ))  # fmt: skip
    result = physics.measure({'model': [STEADY], 'random': []}, pairs, config, 16)
    assert result.kept == [0]
    assert 'gone.mp4: missing' in result.problems[0] and 'too short' in result.problems[1]
    setting = Setting(1, 8, 4, 0, 'mean')
    assert {s.context for s in result.scores['model']} == {2, 4, 6, 0}
    possible, impossible = result.scores['model'][setting][:, 0, 0]
    assert possible == pytest.approx(0, abs=1e-5)
    # windows begin at 0, 2, ... 8. Of a frame pair before the event the features are the ground's,
    # of one after it those turned round, of frames 8 and 9 their mean. Standardised the first two
    # differ by 2 a, 0 and 2 a with a = sqrt(3 / 2), the mean is constant and gives 0
    a = np.sqrt(1.5)

    def feature(pair_of_frames):
        return {True: -a, False: a}[pair_of_frames > 4] if pair_of_frames != 4 else 0.0

    expected = []
    for first in range(0, 10, 2):
        times = np.arange(first // 2, first // 2 + 4)
        last = feature(times[1])
        expected.append(np.mean([2 * abs(feature(t) - last) / 3 for t in times[2:]]))
    assert impossible == pytest.approx(np.mean(expected), abs=1e-3)
    highest = dataclasses.replace(setting, sum='max')
    assert result.scores['model'][highest][1, 0, 0] == pytest.approx(max(expected), abs=1e-3)
    # pixels: of three channels two change by 160 / 255 in frame 9 and no other. After contexts that
    # end at frames 3, 5, 7, 9, 11 that is 0, 1 (frame 9 of 6 to 9), 3, 0, 0 frames of four
    change = (0 + 1 + 3 + 0 + 0) / 20 * 2 / 3 * 160 / 255
    assert result.scores['pixels'][setting][1, 0, 0] == pytest.approx(change, abs=1e-4)


def test_unequal_lengths_are_masked_and_padded_only_upstream(tmp_path, config):
    long, short = moving(tmp_path, 'l', [9], 16), moving(tmp_path, 's', [9], 12)
    pairs = Pairs((Pair(long, short, 'x', 'a'),))
    at = Setting(1, 8, 4, 0, 'mean')
    readers = {'model': [STEADY], 'random': []}
    masked = physics.measure(readers, pairs, config, 16).scores['model'][at][:, 0, 0]
    config.protocol = 'upstream'
    padded = physics.measure(readers, pairs, config, 16).scores['model'][at][:, 0, 0]
    assert padded[0] == pytest.approx(masked[0])
    assert padded[1] == pytest.approx(masked[1] * 3 / 5)  # 3 windows of 5


def test_what_was_primed_is_left_out_and_ends_are_aligned(tmp_path, config):
    a, b = moving(tmp_path, 'a', [4], 16), moving(tmp_path, 'b', [6], 16)
    pairs = Pairs((Pair(a, b, 'x', 'a', primed=(5, 7)),))
    scores = physics.measure({'model': [STEADY], 'random': []}, pairs, config, 16).scores
    # 11 and 9 frames are left, of which the last 9 of each hold nothing but a steady ground
    assert scores['model'][Setting(1, 8, 4, 0, 'max')].ravel() == pytest.approx([0, 0], abs=1e-5)


def test_series_begin_with_shorter_contexts(tmp_path, config):
    a, b = moving(tmp_path, 'a', [3]), moving(tmp_path, 'b', [5])
    config.warm_up = True
    result = physics.measure(
        {'model': [STEADY], 'random': []}, Pairs((Pair(a, b, 'x', 'a'),)), config, 16
    )
    view = physics.view_of('square', 16)
    for C in (2, 4, 6):
        for member, path in enumerate((a, b)):
            frames = physics.frames_of(path, view, 1, 0, 0)
            (expected,) = series(STEADY, frames, 8, (C,), warm_up=True)
            ours = result.over_time[1, 8, C, 0][0][member]
            np.testing.assert_allclose(ours[np.isfinite(ours)], expected, atol=1e-6)


def test_no_window_fits(tmp_path, config):
    video = moving(tmp_path, 'a', [])
    pairs = Pairs((Pair(video, video, 'x', 'a'),))
    config.frames = (9, 9)
    with pytest.raises(ConfigError, match='multiples of 2, the tubelet'):
        physics.measure({'model': [STEADY], 'random': []}, pairs, config, 16)
    config.frames = (32, 32)
    with pytest.raises(ConfigError, match='too short'):
        physics.measure({'model': [STEADY], 'random': []}, pairs, config, 16)


@pytest.mark.parametrize(
    'arg', ['', 'intphys1', 'intphys2', 'grasp', 'inflevel', 'pairs', 'self_made,smoke', 'smoke']
)
def test_configs(arg):
    config = get_config(arg)
    if not config.data.kind.startswith('self_made'):
        with pytest.raises(ConfigError, match='data.path is empty'):
            of(config)
        config.data.path = 'x'
    of(config)


@pytest.mark.parametrize('kind', ['intphys1', 'intphys2', 'grasp', 'inflevel', 'pairs'])
def test_a_trial_reads_the_set_that_is_named(kind):
    """`:intphys2,smoke` made pairs of its own, and its report was called physics-intphys2-smoke."""
    config = get_config(f'{kind},smoke')
    assert (config.data.kind, config.name) == (kind, f'physics-{kind}-smoke')
    assert config.frames == (12, 12)
    assert get_config('smoke').data.kind == 'self_made_few'


@pytest.fixture(scope='module')
def small():
    """A model for the self-made pairs, never trained."""
    rest = dict(dtype=jnp.float32, remat='none')
    encoder = ViTConfig(24, 1, 2, image_size=32, frames=12, patch=8, **rest)
    predictor = PredictorConfig(24, 24, 1, 2, mask_tokens=1, grid=(6, 4, 4), **rest)
    configs = {'encoder': encoder, 'predictor': predictor}
    nets = {
        name: Loaded(
            config, jax.jit(net(name, config).init, compiler_options=ONCE)(jax.random.key(i))
        )
        for i, (name, config) in enumerate(configs.items())
    }
    return Model(nets['encoder'], predictor=nets['predictor'], name='random:small')


def test_targets_of_a_model_are_those_of_training(small):
    """Beside the objective's own words: the error of MaskedVideo.loss on a mask of the future."""
    clips = np.random.default_rng(0).integers(0, 255, (2, 12, 32, 32, 3), np.uint8)
    rows = surprise.surprise(physics.expects(small, small), clips, [4])
    objective = MaskedVideo(small.config, small.predictor.config, groups=1)
    ids = np.tile(np.arange(96, dtype=np.int32), (2, 1))
    mask = Mask(ids[:, :32], ids[:, 32:])
    batch = Batch((Group(clips, (mask,)),))
    params = {'encoder': small.encoder.params, 'predictor': small.predictor.params}
    loss, _ = jax.jit(objective.loss)(params, {'encoder': small.encoder.params}, {}, batch, 0)
    assert rows.model.mean() == pytest.approx(float(loss), abs=1e-5)


def test_the_evaluation_of_self_made_pairs(small, tmp_path, monkeypatch):
    monkeypatch.setitem(violations.PAIRS, 'violations_few', 2)
    monkeypatch.setattr(violations, 'KINDS', ('vanish', 'colour'))
    config = get_config('smoke')
    config.data.path = os.fsdecode(os.fsencode(tmp_path / 'pairs') + b'\xff')  # no text
    config.contexts = (6,) * 6  # one, so that little is compiled
    results = physics.run(small, config, tmp_path)
    assert set(results.results) >= {'all kinds', 'vanish', 'colour, occluded', 'harmless', 'lawful'}
    assert set(results.baselines) >= {f'vanish: {name}' for name in ('copy', 'pixels', 'random')}
    assert results.data['read'] == 16 and results.data['reported'] == 8
    assert results.results['all kinds'].n == 4 and results.results['vanish'].n == 2
    assert (tmp_path / 'surprise.png').stat().st_size > 10_000
    swapped = [*results.results.values(), *results.baselines.values()]
    assert all(f.low <= f.value + 1e-9 and f.value <= f.high + 1e-9 for f in swapped)


def test_a_model_without_predictor(small, tmp_path):
    alone = Model(Loaded(small.config, small.encoder.params))
    with pytest.raises(ConfigError, match='no predictor'):
        physics.run(alone, get_config('smoke'), tmp_path)


@pytest.mark.slow
def test_trained_and_asked(tmp_path):
    """From lawful videos to a report, by the commands that a user types."""
    env = os.environ | {'JEPA_JAX_CACHE': str(tmp_path / 'cache'), 'PYTHONPATH': str(ROOT)}

    def run(module, *args):
        command = [sys.executable, '-m', module, *args]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    run(
        'jepa_jax.train', '--config=configs/physics_tiny.py', f'--workdir={tmp_path}/run',
        '--config.optim.steps=20', '--config.optim.warmup=5',
        '--config.data.lists[0].kind=lawful_few',
    )  # fmt: skip
    run(
        'jepa_jax.evaluate', '--config=configs/eval/physics.py:smoke', f'--model={tmp_path}/run',
        f'--workdir={tmp_path}/asked',
    )  # fmt: skip
    report = json.loads((tmp_path / 'asked/report.json').read_text())
    assert report['evaluation'] == 'physics' and report['results']['vanish']['n'] == 2
