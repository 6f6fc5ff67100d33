"""Scores of frames that are not normal: figures by golden row, scikit-learn and brute force, a run
on small videos, and what --watch says of what arrives."""

import csv
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jepa_jax import evaluate
from jepa_jax.config.anomaly import AnomalyConfig
from jepa_jax.data import cameras, live, synthetic
from jepa_jax.errors import BadFile, ConfigError, UsageError
from jepa_jax.evals import anomaly, anomaly_page, normality, of, surprise, watch
from jepa_jax.evals.normality import Detector, Shown
from jepa_jax.model import Loaded, Model
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import ONCE
from jepa_jax.weights.parts import net

HERE = pathlib.Path(__file__).resolve()
ROOT = HERE.parents[2]
AREAS = ('micro', 'micro, each video from 0 to 1', 'macro', 'macro, padded')


def get_config(arg=''):
    path = ROOT / 'configs/eval/anomaly.py'
    spec = importlib.util.spec_from_file_location('c', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


# --- Figures --------------------------------------------------------------------------------------


def test_areas_are_the_golden_row():
    """As evaluations.md §6 makes its input; the four figures that are all called AUC."""
    expected = np.load(HERE.parents[1] / 'golden/evaluations_anomaly.npz')['vad_auc']
    labels = [[0] * 12 + [1] * 18, [0] * 10 + [1] * 8 + [0] * 6, [1] * 18]
    scores = []
    for i, own in enumerate(labels):
        n = np.arange(len(own))
        wave = np.sin(0.37 * n + 0.011 * (n % 1009) + 0.4 + i)
        scores.append(2 * i + wave + 0.8 * np.array(own))
    ours = anomaly.areas(scores, [np.array(own, bool) for own in labels])
    np.testing.assert_allclose([ours[name] for name in AREAS], expected, rtol=0, atol=1e-12)


def test_auc_is_scikit_learns_with_ties():
    rng = np.random.default_rng(0)
    scores, wrong = rng.integers(0, 9, 300).astype(float), rng.random(300) < 0.3
    assert anomaly.auc(scores, wrong) == pytest.approx(roc_auc_score(wrong, scores), abs=1e-12)
    assert np.isnan(anomaly.auc(scores, np.zeros(300, bool)))


def test_figures_of_videos():
    """Of videos 1, 0 and 1 again, against scikit-learn and counting."""
    rng = np.random.default_rng(1)
    scores = [rng.normal(size=n) for n in (30, 20, 25)]
    wrong = [rng.random(30) < 0.5, rng.random(20) < 0.3, np.zeros(25, bool)]
    measure = anomaly.Measure(
        {'density': scores, 'surprise': [-s for s in scores]}, {'density': 0.5}, wrong,
        ['fast', 'stop', 'normal'],
    )  # fmt: skip
    rows = np.array([1, 0, 1, 2])
    values = measure(rows)
    s, w = (np.concatenate([x[i] for i in rows]) for x in (scores, wrong))
    assert values['density'] == pytest.approx(roc_auc_score(w, s))
    each = [roc_auc_score(wrong[i], scores[i]) for i in (1, 0, 1)]
    assert values['density, macro'] == pytest.approx(np.mean(each))
    assert values['density: stop'] == pytest.approx(each[0])
    assert values['surprise - density'] == pytest.approx(1 - 2 * values['density'])
    assert values['density, hits'] == pytest.approx((s[w] > 0.5).mean())
    assert values['density, false alarms'] == pytest.approx((s[~w] > 0.5).mean())
    assert 'density: normal' not in values
    none = anomaly.Measure({'density': scores}, {'density': 0.5}, [None] * 3, [''] * 3)
    share = none(np.arange(3))['density, above the threshold']
    assert share == pytest.approx((np.concatenate(scores) > 0.5).mean())


def test_a_name_that_is_no_text_has_scores(tmp_path):
    odd = types.SimpleNamespace(path=os.fsdecode(b'a\xff.mp4'))
    shown = types.SimpleNamespace(seconds=np.zeros(1))
    judged = anomaly.Judged(odd, shown, {}, {'density': np.zeros(1)}, None)
    detector = types.SimpleNamespace(thresholds={'density': 1.0})
    anomaly.write_scores(tmp_path / 'scores.csv', [judged], detector)
    assert (tmp_path / 'scores.csv').read_bytes().splitlines()[1].startswith(b'a\xff.mp4,0,')


def test_scores_of_frames_by_hand():
    """Windows of 4 that judge 2 of 9 sampled frames, the last at the end; every third was
    sampled."""
    covers = np.array([[2, 4], [4, 6], [6, 8], [7, 9]])
    shown = Shown({}, np.empty(0), covers, np.arange(0, 27, 3), np.arange(28) / 10)
    scores = normality.by_frame(np.array([1.0, 2.0, 3.0, 5.0]), shown)
    sampled = [1, 1, 1, 1, 2, 2, 3, 4, 5]  # the first two take the first that is judged
    assert scores.tolist() == np.repeat(sampled, 3).tolist() + [5]
    smooth = normality.by_frame(np.array([1.0, 2.0, 3.0, 5.0]), shown, 2.0)
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    middle = (scores[6:23] * kernel).sum() / kernel.sum()
    assert smooth[14] == pytest.approx(middle, abs=1e-9)


@pytest.mark.parametrize('rate', [0.01, 0.05, 0.3])
def test_no_lower_threshold_has_as_few_alarms(rate):
    scores = np.random.default_rng(2).integers(0, 40, 90).astype(float)
    limit = normality.threshold(scores, rate)
    assert (scores > limit).mean() <= rate
    lower = scores[scores < limit].max()
    assert (scores > lower).mean() > rate


def test_places_and_the_highest_tokens_by_hand():
    errors = [{'copy': np.array([[1.0, 10, 5], [3, 10, 5]])}]
    middle, spread = normality.places(errors, by_place=True)
    assert middle['copy'].tolist() == [2, 10, 5]
    assert spread['copy'].tolist() == [1, 1e-6, 1e-6]  # the middle deviation is 0
    errors = [{'copy': np.array([[1.0, 10, 4], [3, 10, 8]])}]
    assert normality.places(errors, True)[1]['copy'].tolist() == [1, 1, 2]
    middle, spread = normality.places(errors, by_place=False)
    assert middle['copy'].tolist() == [6] * 3  # of 1, 10, 4, 3, 10, 8: off by 5, 4, 2, 3, 4, 2
    assert spread['copy'] == pytest.approx([(74 / 6) ** 0.5] * 3)
    values = np.array([[1.0, 4, 2, 3], [8, 5, 6, 7]])
    assert normality.highest(values, 0.5).tolist() == [3.5, 7.5]
    assert normality.highest(values, 0.01).tolist() == [4, 8]


def test_density_by_brute_force():
    rng = np.random.default_rng(3)
    bank, features = rng.normal(size=(20, 6)).astype(np.float32), rng.normal(size=(2, 3, 6))
    detector = Detector(bank, 3, 1.0, {}, {})
    ours = detector.errors({}, features.astype(np.float32))['density']
    distances = np.sqrt(np.square(features[:, :, None] - bank).mean(-1))
    np.testing.assert_allclose(ours, np.sort(distances, -1)[..., :3].mean(-1), atol=1e-5)


def test_pieces_of_normal_video():
    """No piece has two uses; of few videos pieces in time are taken."""
    config = AnomalyConfig(held_out=0.5)
    parts = anomaly.split([f'{i}.mp4' for i in range(8)], config)
    assert [len(part) for part in parts] == [4, 2, 2]
    assert len({piece for part in parts for piece in part}) == 8
    parts = anomaly.split(['one.mp4'], config)
    assert [len(part) for part in parts] == [2, 1, 1]
    assert sorted(share for part in parts for _, share in part) == [
        (0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)
    ]  # fmt: skip


def test_surprise_by_token_adds_up():
    clips = np.random.default_rng(4).integers(0, 255, (2, 8, 16, 24, 3), np.uint8)

    def tokens(x):
        B, T, H, W, C = np.shape(x)
        x = np.asarray(x, np.float32).reshape(B, T // 2, 2, H // 8, 8, W // 8, 8, C)
        return x.mean((2, 4, 6)).reshape(B, -1, C)

    def again(seen, grid, token):
        return np.tile(seen[:, -6:], (1, grid[0] - seen.shape[1] // 6, 1)) / 255 + token

    model = surprise.Expects(tokens, tokens, again, tubelet=2, patch=8)
    targets = surprise.standardise(tokens(clips))
    rows = surprise.by_token(model, clips, targets, 4, 4, (0, 1))
    assert rows.model.shape == (2, 2, 12) and rows.pixels.shape == (2, 12)
    whole = surprise.surprise(model, clips, [4], mask_tokens=(0, 1))
    np.testing.assert_allclose(rows.model.mean(-1), whole.model[..., 0], atol=1e-6)
    # token 7: frames 4 and 5, rows 0 to 7, columns 8 to 15, against frame 3
    box = clips[:, :, :8, 8:16].astype(float) / 255
    one = np.abs(box[:, 4:6] - box[:, 3:4]).mean((1, 2, 3, 4))
    np.testing.assert_allclose(rows.pixels[:, 1], one, atol=1e-6)
    seen = clips[:, 2:4, :8, 8:16].astype(float).mean((1, 2, 3))
    said = targets[:, 13] - seen / 255
    np.testing.assert_allclose(rows.model[:, 0, 1], np.abs(said).mean(-1), atol=1e-5)


# --- A camera of our own --------------------------------------------------------------------------


def test_self_made_videos(tmp_path, monkeypatch):
    """What is odd is so in the frames that are said, and nothing else is: all else is one view."""
    monkeypatch.setitem(cameras.COUNTS, 'camera_few', {'train': (0, 1), 'test': (1, 1)})
    monkeypatch.setattr(cameras, 'ODDITIES', ('colour', 'jump'))
    folder = cameras.ensure('camera_few', tmp_path / 'camera')
    rows = list(csv.reader((folder / 'test.csv').read_text().splitlines()))
    assert rows[0] == ['path', 'kind', 'first', 'last'] and len(rows) == 4
    assert rows[1][1:] == ['normal', '', ''] and {row[1] for row in rows[2:]} == {*cameras.ODDITIES}
    videos = {kind: cameras.video('test', 0, kind) for kind in ('', 'colour')}
    corner = [frames[0, :4, :4] / frames[0, :4, :4].mean() for frames, _ in videos.values()]
    assert np.ptp(corner, axis=0).max() < 0.05  # the same ground, whatever the light
    frames, (first, last) = videos['colour']
    assert last - first + 1 == cameras.ODD
    r, g, b = (frames[..., i].astype(int) for i in range(3))
    foreign = ((r > 1.6 * g) & (b > 1.6 * g)).any((1, 2))
    assert not foreign[:first].any() and not foreign[last + 1 :].any()
    assert foreign[first : last + 1].mean() > 0.5


# --- A run ----------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def model():
    rest = dict(dtype=jnp.float32, remat='none')
    encoder = ViTConfig(24, 1, 2, image_size=16, frames=4, patch=8, **rest)
    predictor = PredictorConfig(24, 24, 1, 2, mask_tokens=1, grid=(2, 2, 2), **rest)
    nets = {
        name: Loaded(
            config, jax.jit(net(name, config).init, compiler_options=ONCE)(jax.random.key(i))
        )
        for i, (name, config) in enumerate((('encoder', encoder), ('predictor', predictor)))
    }
    return Model(nets['encoder'], predictor=nets['predictor'], name='random:small', which='target')


def shifted(model) -> Model:
    """The same model with other weights."""
    params = jax.tree.map(lambda a: a + 1, model.encoder.params)
    return Model(Loaded(model.config, params), predictor=model.predictor, name='random:other')


def stream(seed: int, odd: tuple[int, int] | None = None, count: int = 24) -> np.ndarray:
    """Dim noise, a frame after the other; odd: first and last frame with a bright corner."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(60, 90, (count, 16, 16, 3)).astype(np.uint8)
    if odd:
        frames[odd[0] : odd[1] + 1, :8, :8, 0] = 220
    return frames


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    for part in ('normal', 'test'):
        (folder / part).mkdir()
    for i in range(4):
        np.save(folder / f'normal/{i}.npy', stream(i))
    spans = {'a': (8, 13), 'b': (12, 23), 'c': None}
    for i, (name, odd) in enumerate(spans.items()):
        np.save(folder / f'test/{name}.npy', stream(10 + i, odd))
    (folder / 'labels.csv').write_text(
        'path,first,last,kind\ntest/a.npy,8,13,early\ntest/b.npy,12,23,late\ntest/c.npy,,,\n'
    )
    return folder


def small(videos, **data) -> AnomalyConfig:
    config = AnomalyConfig(name='anomaly', bootstrap=20, batch=4, bank=100, false_alarms=0.1)
    chosen = {'train': str(videos / 'normal'), 'test': str(videos / 'test')}
    chosen |= {'frames': 4, 'ahead': 2, 'fps': 0.0, 'rate': 10.0} | data
    config.data = dataclasses.replace(config.data, **chosen)
    return config


@pytest.fixture(scope='module')
def finished(model, videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    config = small(videos, labels=str(videos / 'labels.csv'))
    return anomaly.run(model, config, folder), folder, config


def test_a_run(finished, videos):
    results, folder, config = finished
    assert {'surprise', 'density', 'surprise, macro', 'density: early', 'surprise - density',
            'density, false alarms', 'surprise, hits'} <= {*results.results}  # fmt: skip
    assert {'copy', 'pixels', 'random surprise', 'random density'} <= {*results.baselines}
    assert results.results['density'].value > 0.95 and results.results['density'].n == 3
    assert results.results['density: early'].n == 1
    assert (results.results['density: early'].low, results.results['density: early'].high) == (0, 1)
    assert results.data['expected'] == results.data['read'] == 7
    rows = list(csv.DictReader((folder / 'scores.csv').read_text().splitlines()))
    assert len(rows) == 72 and rows[24]['video'].endswith('b.npy') and rows[25]['frame'] == '1'
    wrong = np.array([row['label'] == '1' for row in rows])
    scores = np.array([float(row['density']) for row in rows])
    assert wrong.sum() == 18
    own = roc_auc_score(wrong, scores)
    assert results.results['density'].value == pytest.approx(own, abs=1e-3)
    assert results.data['auc']['density']['micro'] == results.results['density'].value
    alarm = scores > results.data['thresholds']['density']
    assert alarm.tolist() == [row['density alarm'] == '1' for row in rows]
    assert results.results['density, hits'].value == pytest.approx(alarm[wrong].mean())
    page = (folder / 'report.html').read_text()
    assert page.count('data:image/jpeg') >= 6 and 'labelled abnormal' in page
    assert 'above the threshold' in page and (folder / 'scores.png').stat().st_size > 10_000
    assert set(results.outcomes) == {'surprise', 'density'} and len(results.sources) == 2
    json.dumps(results.data, allow_nan=False)


@pytest.fixture
def no_page(monkeypatch):
    """Drawing takes as long as all the rest."""
    monkeypatch.setattr(anomaly_page, 'write', lambda *_: None)


def test_started_again_it_reads_what_is_damaged(finished, model, monkeypatch, no_page):
    results, folder, config = finished
    path = sorted(folder.glob('windows/*/*.npz'))[0]
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    made, look = [], normality.look
    monkeypatch.setattr(normality, 'look', lambda *a: made.append(a) or look(*a))
    assert anomaly.run(model, config, folder).results == results.results
    assert len(made) == 1


def test_what_a_cache_is_of(model, videos, tmp_path):
    """Weights, the view, and the state of the file."""
    config, known = small(videos), anomaly.nets(model)[1]
    other = anomaly.nets(shifted(model))[1]
    places = {
        normality.Cache(tmp_path, facts, c, crop).place
        for facts, c, crop in (
            (known, config, 16), (other, config, 16), (known, config, 32),
            (known, small(videos, ahead=1), 16), (known, small(videos, view='square'), 16),
        )
    }  # fmt: skip
    assert len(places) == 5
    cache = normality.Cache(tmp_path, known, config, 16)
    np.save(tmp_path / 'v.npy', stream(0))
    made = []

    def make() -> Shown:
        made.append(1)
        return Shown({'copy': np.ones((1, 2))}, *[np.ones(3)] * 4)

    for stamp in (1e9, 1e9, 2e9):
        os.utime(tmp_path / 'v.npy', (stamp, stamp))
        cache.get(str(tmp_path / 'v.npy'), (0.0, 1.0), make)
    assert len(made) == 2


def test_without_labels_and_without_a_predictor(finished, model, videos, tmp_path, no_page):
    config = small(videos, cache=str(finished[1] / 'windows'))
    config.random_baseline = False
    alone = Model(Loaded(model.config, model.encoder.params), name='random:small', which='target')
    results = anomaly.run(alone, config, tmp_path)
    assert {*results.results} == {'density, above the threshold'}
    assert {*results.baselines} == {'copy, above the threshold', 'pixels, above the threshold'}
    assert 'no labels' in results.sentences[0] and not results.data['auc']['density']


@pytest.mark.parametrize(
    ('kind', 'rows'),
    [
        ('normal', 'test/a.npy,,\ntest/b.npy,,\ntest/c.npy,,\n'),
        ('abnormal', 'test/a.npy,0,23\ntest/b.npy,0,23\ntest/c.npy,0,23\n'),
    ],
)
def test_one_class_has_no_auc(finished, model, videos, tmp_path, kind, rows, no_page):
    (videos / f'{kind}.csv').write_text('path,first,last\n' + rows)
    config = small(videos, labels=str(videos / f'{kind}.csv'), cache=str(finished[1] / 'windows'))
    config.random_baseline = False
    results = anomaly.run(model, config, tmp_path)
    rate = {'normal': 'false alarms', 'abnormal': 'hits'}[kind]
    assert {*results.results} == {f'surprise, {rate}', f'density, {rate}'}
    assert results.sentences[0] == f'no AUC: all 72 test frames are {kind}'


def test_videos_that_cannot_be_used(finished, model, videos, tmp_path, no_page):
    """Named and left out; refused where nothing is left, or labels do not fit."""
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test/bad.npy').write_bytes(b'\x93NUMPY no')
    np.save(tmp_path / 'test/short.npy', stream(0, count=3))
    np.save(tmp_path / 'test/whole.npy', stream(5))
    cache = {'cache': str(finished[1] / 'windows')}
    config = small(videos, test=str(tmp_path / 'test'), **cache)
    config.random_baseline = False
    results = anomaly.run(model, config, tmp_path)
    assert results.data['read'] == 5 and results.data['expected'] == 7
    bad, short = results.data['problems']
    assert 'bad.npy: ' in bad
    assert 'short.npy: short: 3 sampled frames, and a window has 4' in short
    (tmp_path / 'test/whole.npy').unlink()
    with pytest.raises(ConfigError, match='none of 2 test videos can be used: .*bad.npy'):
        anomaly.run(model, config, tmp_path)
    config = small(videos, train=str(tmp_path / 'test/short.npy'), **cache)
    with pytest.raises(ConfigError, match='no normal video can be read: .*short.npy'):
        anomaly.run(model, config, tmp_path)
    np.save(tmp_path / 'a.npy', np.zeros(23, bool))
    np.save(tmp_path / 'b.npy', np.zeros(24, bool))
    np.save(tmp_path / 'c.npy', np.zeros(24, bool))
    config = small(videos, labels=str(tmp_path), **cache)
    with pytest.raises(ConfigError, match='23 labels, and .*a.npy has 24 frames'):
        anomaly.run(model, config, tmp_path)


def test_settings_that_cannot_work(model, videos):
    for data, words in (
        ({'train': ''}, 'data.train is empty: no normal video'),
        ({'ahead': 4}, 'data.ahead = 4: must be below data.frames = 4'),
        ({'kind': 'ped2', 'train': '', 'test': ''}, "data.path is empty: kind 'ped2'"),
        ({'kind': 'self_made_few', 'test': ''}, "data.train = '.*': goes with data.kind 'own'"),
        ({'test': '', 'labels': 'x.csv'}, 'labels of what'),
    ):
        with pytest.raises(ConfigError, match=words):
            of(small(videos, **data))
    for data, words in (({'crop': 12}, 'multiple of 8'), ({'ahead': 1}, 'multiple of 2')):
        with pytest.raises(ConfigError, match=words):
            normality.crop_of(model, small(videos, **data))


@pytest.mark.parametrize(
    'arg', ['', 'ped2', 'avenue', 'shanghaitech', 'self_made', 'self_made,smoke', 'smoke']
)
def test_configs(arg):
    config = get_config(arg)
    config.data.path, config.data.train = 'x', 'y' if config.data.kind == 'own' else ''
    of(config)


# --- What arrives ---------------------------------------------------------------------------------


def lines_of(folder: pathlib.Path) -> list[dict]:
    path = folder / watch.LINES
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def expected(model, config, folder, path) -> dict[str, np.ndarray]:
    """Scores of the windows of a file, as the evaluation has them."""
    expects, known = anomaly.nets(model)
    shown = normality.look(expects, str(path), config, 16, True)
    return Detector.load(folder / anomaly.DETECTOR, known).scores(shown.errors, shown.features)


@pytest.fixture
def ctrl_c():
    """Python's own handler: a run of the tests in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_callback_is_not_lost(finished, model, tmp_path, monkeypatch, ctrl_c, number):
    """What is raised while garbage is collected, Python drops; so the watch looks for itself."""
    _, folder, config = finished

    class Last:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0.01)  # the signal's handler runs here

    def files(place):
        Last()
        yield from ()

    dropped = []
    monkeypatch.setattr(sys, 'unraisablehook', dropped.append)
    monkeypatch.setattr(watch, 'POLL', 0.01)
    monkeypatch.setattr(watch, '_files', files)
    watch.run(model, config, folder, str(tmp_path))
    assert [one.exc_type for one in dropped] == [KeyboardInterrupt]


def test_files_that_arrive(finished, model, tmp_path, monkeypatch, ctrl_c):
    """A half-written file is waited for, a bad one is a line, SIGTERM ends it; started again it
    judges nothing twice."""
    _, folder, config = finished
    config = dataclasses.replace(config, settle=1.0)
    monkeypatch.setattr(watch, 'POLL', 0.02)
    place = tmp_path / 'arriving'
    place.mkdir()
    np.save(place / 'there.npy', stream(20, (8, 13)))
    os.utime(place / 'there.npy', (1e9, 1e9))
    (folder / watch.LINES).unlink(missing_ok=True)

    def wait(count: int) -> None:
        until = time.monotonic() + 60
        while len(lines_of(folder)) < count and time.monotonic() < until:
            time.sleep(0.02)

    def arrive() -> None:
        try:
            wait(1)
            np.save(tmp_path / 'whole.npy', stream(21))
            data = (tmp_path / 'whole.npy').read_bytes()
            with open(place / 'grows.npy', 'wb') as file:
                for part in np.array_split(np.frombuffer(data, np.uint8), 6):
                    file.write(part.tobytes())
                    file.flush()
                    time.sleep(0.1)
            wait(2)
            (place / 'bad.mp4').write_bytes(b'\0\0\0\x18ftypisom')
            wait(3)
            np.save(place / 'later.npy', stream(22, (8, 13)))
            wait(4)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=arrive)
    helper.start()
    watch.run(model, config, folder, str(place))
    helper.join()
    there, grown, bad, later = lines = lines_of(folder)
    names = [os.path.basename(line['source']) for line in lines]
    assert names == ['there.npy', 'grows.npy', 'bad.mp4', 'later.npy']
    assert there['alarm'] and later['alarm'] and not grown.get('error')
    assert 'bad.mp4: truncated' in bad['error'] and 'score' not in bad
    own = expected(model, config, folder, place / 'there.npy')['density']
    worst = int(own.argmax())
    assert there['score'] == pytest.approx(own[worst], abs=1e-3) and there['windows'] == len(own)
    assert there['seconds'] == [(2 + 2 * worst) / 10, (3 + 2 * worst) / 10]
    assert there['threshold'] < there['score'] and there['delay'] > 1e8
    assert 1.0 <= later['delay'] < 60
    stop = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    stop.start()
    watch.run(model, config, folder, str(place))
    assert len(lines_of(folder)) == 4


def piped(tmp_path, data: bytes):
    """A pipe that gives bytes and ends."""
    reading, writing = os.pipe()

    def feed() -> None:
        with open(writing, 'wb') as file:
            file.write(data)

    threading.Thread(target=feed, daemon=True).start()
    return os.fdopen(reading)


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp('film') / 'film.mkv'
    frames = stream(30, (8, 13)).repeat(4, 1).repeat(4, 2)  # 64 pixels
    synthetic.write(path, frames, 10)
    return path


def test_a_stream_is_judged_as_a_file_is(finished, model, film, tmp_path, monkeypatch):
    _, folder, config = finished
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, fps=5.0))
    (folder / watch.LINES).unlink(missing_ok=True)
    monkeypatch.setattr(sys, 'stdin', piped(tmp_path, film.read_bytes()))
    watch.run(model, config, folder, '-')
    sys.stdin.close()
    lines, own = lines_of(folder), expected(model, config, folder, film)
    assert len(lines) == len(own['density']) == 5
    for i, line in enumerate(lines):
        for name, values in own.items():
            assert line['scores'][name] == pytest.approx(values[i], abs=2e-3, rel=1e-4)
        assert line['seconds'] == pytest.approx([0.4 + 0.4 * i, 0.6 + 0.4 * i], abs=2e-3)
        assert line['alarm'] == (line['score'] > line['threshold'])
        assert 0 <= line['delay'] < 60 and line['judge'] == 'density'


def test_a_signal_ends_a_stream_that_stands_still(finished, model, film, monkeypatch):
    _, folder, config = finished
    (folder / watch.LINES).unlink(missing_ok=True)
    reading, writing = os.pipe()

    def feed() -> None:
        os.write(writing, film.read_bytes())  # and then nothing, without an end
        until = time.monotonic() + 60
        while len(lines_of(folder)) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=feed)
    monkeypatch.setattr(sys, 'stdin', os.fdopen(reading))
    helper.start()
    watch.run(model, config, folder, '-')
    helper.join()
    os.close(writing)
    sys.stdin.close()
    assert len(lines_of(folder)) >= 3


def test_a_stream_that_stands_still_ends_though_the_exception_was_dropped(film):
    """As in a callback of the garbage collector: what is left of the signal is that it came."""
    reading, writing = os.pipe()
    threading.Thread(target=os.write, args=(writing, film.read_bytes())).start()
    told = threading.Event()
    stream = live.Stream(reading, 'a camera', 5.0, told.is_set)
    frames = stream.frames()
    next(frames)
    threading.Timer(0.3, told.set).start()
    assert len(list(frames)) > 10  # and then an end
    stream.close()
    os.close(reading)
    os.close(writing)


def test_a_camera_by_ffmpeg(finished, model, film, tmp_path, monkeypatch):
    """Of a program that stands in for ffmpeg: what it is told, and what becomes of its pictures."""
    _, folder, config = finished
    (tmp_path / 'ffmpeg').write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\nexec cat {film}\n')
    (tmp_path / 'ffmpeg').chmod(0o755)
    (folder / watch.LINES).unlink(missing_ok=True)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    watch.run(model, config, folder, '/dev/null')
    assert '-f v4l2 -i /dev/null' in (tmp_path / 'told').read_text()
    assert len(lines_of(folder)) == len(expected(model, config, folder, film)['density'])
    monkeypatch.setenv('PATH', '/nowhere')
    with pytest.raises(ConfigError, match='by the program ffmpeg, which is not there'):
        watch.run(model, config, folder, '/dev/null')


def test_what_cannot_be_watched(finished, model, tmp_path, monkeypatch):
    _, folder, config = finished
    monkeypatch.setattr(sys, 'stdin', piped(tmp_path, b'no video at all' * 99))
    with pytest.raises(BadFile, match='standard input: not_video'):
        watch.run(model, config, folder, '-')
    sys.stdin.close()
    for place, words in (('nowhere', 'nothing of that name'), (__file__, 'a file, which')):
        with pytest.raises(ConfigError, match=words):
            watch.run(model, config, folder, place)
    with pytest.raises(ConfigError, match='looks ahead in time'):
        watch.run(model, dataclasses.replace(config, smooth=2.0), folder, str(tmp_path))
    fresh = shifted(model)
    with pytest.raises(ConfigError, match='made with another model'):
        watch.run(fresh, config, folder, str(tmp_path))
    with pytest.raises(ConfigError, match='has no detector'):
        watch.run(model, config, tmp_path, str(tmp_path))


@pytest.mark.parametrize('kind', ['ped2', 'avenue', 'shanghaitech'])
def test_a_trial_reads_the_set_that_is_named(kind):
    """`:ped2,smoke` made videos of its own, and its report was called anomaly-ped2-smoke."""
    whole, trial = get_config(kind), get_config(f'{kind},smoke')
    assert trial.data.kind == kind and trial.data.crop == whole.data.crop
    assert (trial.data.fps, trial.data.rate) == (whole.data.fps, whole.data.rate)
    assert trial.data.frames < whole.data.frames
    for arg in ('smoke', 'self_made,smoke'):
        assert get_config(arg).data.kind == 'self_made_few'


def test_the_command_refuses_what_cannot_watch(tmp_path):
    from jepa_jax.config import RetrievalConfig

    config = RetrievalConfig(name='r')
    with pytest.raises(UsageError, match="evaluation 'retrieval' judges nothing that arrives"):
        evaluate.evaluate(config, str(tmp_path / 'w'), '', ['random:tiny'], 'target', '-')
    config = get_config('self_made,smoke')
    with pytest.raises(UsageError, match='--watch takes one --model, found 2'):
        evaluate.evaluate(
            config, str(tmp_path / 'w'), '', ['random:tiny', 'random:vits'], 'target', '-'
        )


@pytest.mark.slow
def test_made_judged_and_watched_by_command(film, tmp_path):
    """The evaluation as it is typed, and then a stream."""
    env = os.environ | {'JEPA_JAX_CACHE': str(tmp_path / 'cache'), 'PYTHONPATH': str(ROOT)}
    command = [
        sys.executable, '-m', 'jepa_jax.evaluate', '--config=configs/eval/anomaly.py:smoke',
        '--model=random:tiny', f'--workdir={tmp_path}/asked',
    ]  # fmt: skip
    for more in ([], ['--watch=-']):
        with film.open('rb') as file:
            done = subprocess.run(
                command + more, cwd=ROOT, env=env, stdin=file, capture_output=True, text=True
            )
        assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / 'asked/report.json').read_text())
    assert report['evaluation'] == 'anomaly' and report['results']['density']['n'] == 7
    assert len(lines_of(tmp_path / 'asked')) == 4  # windows of 12 frames, every 4, of 24
