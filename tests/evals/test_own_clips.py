"""Own clips from files to figures, with a model small enough to run in a second."""

import csv
import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score, r2_score

import jepa_jax
from jepa_jax import cli, evaluate
from jepa_jax.config import LabelledDataConfig, OwnConfig, RetrievalConfig
from jepa_jax.config.check import types_and_ranges
from jepa_jax.errors import BadFile, ConfigError, ZooError
from jepa_jax.evals import (
    EVALS,
    Figure,
    Results,
    examples,
    features,
    heads,
    linear,
    own,
    own_page,
    probes,
    retrieval,
)
from jepa_jax.evals.examples import Example
from jepa_jax.model import Loaded, Model, ProbeHead
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.pretrained import save
from jepa_jax.weights.parts import net

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
COLOURS = {'red': (220, 30, 30), 'green': (30, 220, 30), 'blue': (30, 30, 220)}


@pytest.fixture(scope='module')
def model():
    config = ViTConfig(24, 1, 2, 2.0, patch=8, image_size=32, frames=2, dtype=jnp.dtype('float32'))
    params = jax.jit(net('encoder', config).init)(jax.random.key(0))
    return Model(Loaded(config, params), which='online')


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    """12 pictures a colour: what they show is easy to tell by colour and by nothing else."""
    folder, rng = tmp_path_factory.mktemp('clips'), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(12):
            pixels = np.clip(rng.normal(colour, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f'{i}.png')
    return folder


def small_config(path, **data) -> OwnConfig:
    c = OwnConfig(name='own', bootstrap=100)
    c.data = LabelledDataConfig(train=str(path), frames=2, crop=32, **data)
    c.attentive.least_steps, c.attentive.epochs, c.attentive.batch = 60, 1, 8
    c.batch = 8
    return c


@pytest.fixture(scope='module')
def finished(model, clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp('own')
    return own.run(model, small_config(clips), folder), folder


def test_figures(finished):
    results, _ = finished
    for name in ('knn', 'ridge', 'logistic', 'attentive'):
        figure = results.results[name]
        assert figure.value > 0.8 and figure.n == 9, name
        assert 0 < figure.low < figure.value and f'{name}, macro-F1' in results.results
    assert set(results.baselines) >= {'majority', 'pixels', 'random'}
    assert results.baselines['majority'].value == pytest.approx(1 / 3)
    assert results.data['read'] == results.data['expected'] == 36
    assert results.data['train'] == 27 and results.data['classes'] == ['blue', 'green', 'red']


def test_what_is_left_to_be_looked_at(finished):
    results, folder = finished
    with (folder / 'confusion.csv').open() as file:
        head, *rows = csv.reader(file)
    assert head[1:] == [row[0] for row in rows] == ['blue', 'green', 'red']
    matrix = np.array([row[1:] for row in rows], int)
    assert matrix.sum() == 9
    assert matrix.trace() / 9 == pytest.approx(results.results['attentive'].value)
    page = (folder / 'report.html').read_text()
    assert 'attentive' in page and 'Worst errors' in page
    assert (folder / 'confusion.png').stat().st_size > 1000


def test_classes_whose_names_are_no_text(tmp_path):
    """Folders may be called by any bytes, and by what a formula would be."""
    names = ('co$t_$x^{', os.fsdecode(b'cl\xff'))
    targets = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    listed = [Example(f'{names[i % 2]}/{i}.mp4', names[i % 2], str(i)) for i in range(4)]
    task = own.Task(listed, 'class', targets, names, np.arange(4) > 1, 0, 10)
    own_page.write(
        tmp_path, 'm', task, targets[:2, ::-1], {}, {}, {}, [names[1]],
        clip_of=lambda e: np.zeros((1, 2, 8, 8, 3), np.uint8),
    )  # fmt: skip
    with (tmp_path / 'confusion.csv').open(encoding='utf-8', errors='surrogateescape') as file:
        assert next(csv.reader(file))[1:] == [*names]
    page = (tmp_path / 'report.html').read_text('utf-8')
    assert r'cl\udcff/3.mp4' in page and 'co$t_$x^{/2.mp4' in page
    assert (tmp_path / 'confusion.png').stat().st_size > 1000


def test_the_probe_classifies_as_it_was_tested(finished, model, clips, tmp_path):
    results, folder = finished
    save(model, tmp_path / 'model')
    loaded = jepa_jax.load(tmp_path / 'model', probe=folder / 'probe')
    assert loaded.probe.labels == {'label': ('blue', 'green', 'red')}
    tested = set(results.sources)
    right = []
    for path in sorted(tested):
        ((_, name, _), *_) = loaded.classify(path).top['label']
        right.append(name == path.split('/')[-2])
    assert np.mean(right) == results.results['attentive'].value
    other = Model(Loaded(model.config, jax.tree.map(lambda a: a + 1, model.encoder.params)))
    save(other, tmp_path / 'other')
    with pytest.raises(ZooError, match='trained on features of another encoder'):
        jepa_jax.load(tmp_path / 'other', probe=folder / 'probe')


def test_started_again_it_reads_no_clip(finished, model, clips, monkeypatch):
    results, folder = finished
    monkeypatch.setattr(own, 'clip', lambda *_: pytest.fail('a clip was read'))
    monkeypatch.setattr(own_page, '_thumbnail', lambda clips: '')
    monkeypatch.setattr(own_page, 'WORST', 0)
    (folder / 'probe').rename(folder / 'before')
    again = own.run(model, small_config(clips), folder)
    assert again.results == results.results
    (folder / 'probe').rename(folder / 'again')
    (folder / 'before').rename(folder / 'probe')


@pytest.mark.parametrize('arg, grid', [('full', heads.GRIDS['video']), ('', None)])
def test_the_grid_of_heads(arg, grid):
    """`:full` has the original's, setting by setting; any other is typed as a list."""
    c = cli.load(f'{ROOT}/configs/eval/own.py:{arg}', ('evaluation',))
    ours = [(s.lr, s.weight_decay) for s in own.settings_of(c.attentive)]
    assert ours == list(grid) if grid else len(ours) == 6
    assert c.estimate == bool(grid)
    c.attentive.rates, c.attentive.decays = '1e-4, 3e-4', '0'
    types_and_ranges(c)
    assert own.settings_of(c.attentive) == [probes.Setting(1e-4, 0.0), probes.Setting(3e-4, 0.0)]
    for wrong in ('', '1e-4,', '0', 'nan', 'high', '1e-4;1e-3'):
        c.attentive.rates = wrong
        with pytest.raises(ConfigError, match='attentive.rates = .*: must be numbers above 0'):
            types_and_ranges(c)


def test_hours_are_said_before_the_work(finished, model, clips, tmp_path, monkeypatch, caplog):
    c = small_config(clips)
    c.estimate, c.attentive.rates = True, '1e-3'

    def stop(*_, **__):
        raise ConfigError('the work begins')

    with monkeypatch.context() as patch:
        patch.setattr(features, 'compute', stop)
        with caplog.at_level('INFO'), pytest.raises(ConfigError, match='the work begins'):
            own.run(model, c, tmp_path)
    (line,) = [x for x in caplog.messages if x.startswith('about ')]
    assert ': features of 72 clips ' in line and ', 2 attentive heads ' in line
    listed = examples.listed(c.data)
    with monkeypatch.context() as patch:  # 60 steps to choose, 60 on all training clips
        patch.setattr(features, 'seconds_each', lambda *_, **__: 50.0)
        patch.setattr(probes, 'seconds_a_step', lambda *_, **__: 0.25)
        words = 'about 1:00:30: features of 72 clips 1:00:00, 2 attentive heads 00:30'
        assert own.hours(model, listed, 'class', c, tmp_path) == words
        # those of model and untrained encoder are there
        words = 'about 00:30: features of 0 clips 00:00, 2 attentive heads 00:30'
        assert own.hours(model, listed, 'class', c, finished[1]) == words


@pytest.mark.slow
@pytest.mark.ci
def test_numbers_and_several_labels(model, clips, tmp_path):
    rng = np.random.default_rng(1)
    rows = [(f'{clips}/{c}/{i}.png', c) for c in COLOURS for i in range(12)]
    red = {path: np.asarray(Image.open(path))[..., 0].mean() for path, _ in rows}
    (tmp_path / 'numbers.csv').write_text(
        'path,label\n' + ''.join(f'{p},{red[p]:.3f}\n' for p, _ in rows)
    )
    results = own.run(model, small_config(tmp_path / 'numbers.csv'), tmp_path / 'n')
    assert set(results.results) >= {'knn', 'ridge', 'attentive'}
    assert 'logistic' not in results.results
    assert results.results['ridge'].value > 0.7 > results.baselines['majority'].value
    assert not (tmp_path / 'n/probe').exists()
    (tmp_path / 'labels.csv').write_text(
        'path,label\n'
        + ''.join(f'{p},{c}{"|odd" if rng.random() < 0.4 else ""}\n' for p, c in rows)
    )
    results = own.run(model, small_config(tmp_path / 'labels.csv'), tmp_path / 'l')
    assert results.results['logistic'].value > results.baselines['majority'].value
    assert (tmp_path / 'l/probe/manifest.json').exists()


def test_measures_are_scikit_learns():
    rng = np.random.default_rng(0)
    scores, true = rng.normal(size=(50, 4)), rng.integers(0, 3, 50)
    accuracy, f1 = own.measure('class', scores, np.eye(4)[true])
    said = scores.argmax(1)
    assert accuracy == (said == true).mean()
    assert f1 == pytest.approx(f1_score(true, said, labels=[0, 1, 2], average='macro'))
    ours = own_page.confusion(said, true, 4)
    assert (ours == confusion_matrix(true, said, labels=range(4))).all()
    several = rng.integers(0, 2, (50, 4))
    f1 = own.measure('labels', scores, several)[1]
    assert f1 == pytest.approx(f1_score(several, scores > 0.5, average='macro'))
    numbers = rng.normal(size=(50, 1))
    r2, error = own.measure('number', scores[:, :1], numbers)
    assert r2 == pytest.approx(r2_score(numbers, scores[:, :1]))
    assert error == pytest.approx(np.abs(numbers - scores[:, :1]).mean())


def test_the_probe_answers_several_labels_with_probabilities(model, clips, tmp_path):
    """As the other readers do, which are judged at one half; logits below 0 are below one half."""
    rows = [(f'{clips}/{c}/{i}.png', c) for c in COLOURS for i in range(12)]
    (tmp_path / 'list.csv').write_text('path,label\n' + ''.join(f'{p},{c}|seen\n' for p, c in rows))
    config = small_config(tmp_path / 'list.csv')
    listed = examples.read(config.data.train, config.data)
    targets, names = examples.targets(listed, 'labels')
    test, _ = examples.split(listed, config.data, 0, 'labels')
    task = own.Task(listed, 'labels', targets, names, test, 0, 10)
    table = own.clip_features(model, listed, config, tmp_path, 'features')
    _, scores, _ = own.attend(task, table, np.arange(len(listed)), config)
    assert 0 <= scores.min() and scores.max() <= 1
    assert scores[:, names.index('seen')].min() > 0.5
    wrong = own_page.errors(
        'labels', np.array([[0.9, 0.4], [0.2, 0.9]]), np.array([[1, 0], [1, 1]])
    )
    np.testing.assert_allclose(wrong, [-0.1, 0.3])


@pytest.mark.parametrize(
    'example, data, frames',
    [
        ({}, {}, [9, 10, 11, 12]),  # the middle
        ({}, {'segments': 2}, [0, 1, 2, 3, 18, 19, 20, 21]),
        ({'start': 1.0, 'end': 1.5}, {}, [5, 6, 7, 7]),
        ({'time': 2.0}, {}, [7, 8, 9, 10]),
        ({'time': 2.0}, {'ahead': 1.0}, [2, 3, 4, 5]),
        ({'start': 2.0, 'end': 3.0}, {'ahead': 1.0}, [2, 3, 4, 5]),
        ({'time': 0.3}, {}, [0, 0, 0, 1]),
    ],
)
def test_which_frames_a_clip_has(tmp_path, example, data, frames):
    """Frame i is grey i; 22 frames at 5 a second."""
    video = np.repeat(np.arange(22, dtype=np.uint8), 64 * 64 * 3).reshape(22, 64, 64, 3)
    np.save(tmp_path / 'a.npy', video)
    config = small_config('', **data)
    config.data.frames, config.data.fps = 4, 5.0
    ours = own.clip(Example(str(tmp_path / 'a.npy'), 'x', 'a', **example), config, 32)
    assert ours.shape == (config.data.segments, 4, 32, 32, 3)
    assert ours[..., 0, 0, 0].ravel().tolist() == frames


def test_nothing_before_the_label_is_a_bad_file(tmp_path):
    np.save(tmp_path / 'a.npy', np.zeros((8, 64, 64, 3), np.uint8))
    with pytest.raises(BadFile, match=r'a.npy at 0.5 s is there, 1 s before it .data\.ahead'):
        own.clip(
            Example(str(tmp_path / 'a.npy'), 'x', 'a', time=0.5), small_config('', ahead=1.0), 32
        )


def tasked(labels, test, sources=None) -> own.Task:
    listed = [
        Example(f'{i}.mp4', label, (sources or range(99))[i]) for i, label in enumerate(labels)
    ]
    names = tuple(sorted(set(labels)))
    targets = np.eye(len(names))[[names.index(x) for x in labels]]
    return own.Task(listed, 'class', targets, names, np.asarray(test, bool), 0, 100)


def refuse(task: own.Task) -> None:
    examples.refuse_unlearnt(task.kind, task.targets, task.names, task.test)


def test_a_share_for_testing_that_cannot_be_drawn():
    """One of several equal parts is drawn, so more than a half was a half."""
    types_and_ranges(small_config('x', test_share=0.5))
    with pytest.raises(ConfigError, match='test_share = 0.9: must be above 0 and at most 0.5'):
        types_and_ranges(small_config('x', test_share=0.9))


def test_complaints():
    task = tasked('aaaaaabb', [0, 0, 0, 0, 1, 1, 0, 1], ['s', 't', 'u', 'v', 'w', 'x', 'y', 'y'])
    means = np.eye(8)
    means[5] = means[1] * 3
    few, alone, alike = own.complaints(task, means)
    assert few == 'classes with fewer than 5 clips: b (2)'
    assert 'classes of one source' in alone and alone.endswith(': b')
    assert '1 test clips look like a training clip' in alike and '5.mp4 and 1.mp4' in alike
    with pytest.raises(ConfigError, match="class 'b': 2 clips for testing, none for training"):
        refuse(tasked('aabb', [0, 1, 1, 1]))
    with pytest.raises(ConfigError, match="one class alone, 'a'"):
        refuse(tasked('aaa', [0, 1, 1]))


def test_all_test_clips_of_one_source_are_said():
    task = tasked('aabbaabb', [0] * 4 + [1] * 4, [*'stuvwwww'])
    (line,) = [x for x in own.complaints(task, np.eye(8)) if x.startswith('all 4 test clips')]
    assert 'of one source, w' in line
    row = own.figures(task, {'knn': np.eye(2)[[0, 1, 1, 1]]})['knn, macro-F1']
    assert row.high - row.low > 0.3


def test_settings_of_numbers_are_chosen_where_each_part_has_one_number():
    """A source has one number, as of a person: of a part that is one source R2 is not defined, and
    would choose nothing."""
    rng = np.random.default_rng(0)
    values = np.repeat([20.0, 40.0, 60.0, 30.0, 50.0], 8)
    listed = [Example(f'{i}.mp4', f'{v}', f'{v}') for i, v in enumerate(values)]
    task = own.Task(
        listed, 'number', values[:, None], ('value',), np.arange(40) >= 24, 0, 10
    )  # fmt: skip
    means = rng.standard_normal((40, 12))  # which tell nothing
    learn = ~task.test
    parts = linear.folds(task.sources[learn], None, 0)
    assert len(parts) == 3 and all(len(np.unique(values[learn][p])) == 1 for p in parts)
    x, _ = linear.standardised(means[learn], means[task.test])
    y, errors = task.targets[learn], []
    for penalty in linear.RIDGE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear, 'RIDGE', (penalty,))
            off = [
                linear.ridge(x[~p], y[~p], x[p], [], None).scores - y[p] for p in parts
            ]  # fmt: skip
        errors.append(np.mean(np.square(off)))
    best = linear.RIDGE[int(np.argmin(errors))]
    assert best > linear.RIDGE[0]
    assert own.ask(task, means)[1]['ridge'].startswith(f'penalty {best:g} ')


def constant(model, config, workdir) -> Results:
    """An evaluation that takes no time."""
    return Results({'knn': Figure(0.5, 0.4, 0.6, 9)}, {}, {'hash': ''})


def test_a_finished_report_is_that_of_the_same_files_and_weights(
    model, clips, tmp_path, monkeypatch
):
    row = dataclasses.replace(EVALS['own'], run=f'{__name__}:constant')
    monkeypatch.setitem(EVALS, 'own', row)
    monkeypatch.setattr(jepa_jax, 'load', lambda name, **how: model)
    folder = tmp_path / 'clips'
    shutil.copytree(clips, folder)
    c = small_config(folder)

    def asked() -> dict:
        return evaluate._evaluate(c, tmp_path, 'tiny', 'target')[0]

    first = asked()
    monkeypatch.setattr(f'{__name__}.constant', lambda *_: pytest.fail('made again'))
    assert asked() == first
    frames, c.data.frames = c.data.frames, c.data.frames + 2
    words = rf'other settings \(config.data.frames: {frames} -> {frames + 2}\); name another'
    with pytest.raises(ConfigError, match=words):
        asked()
    c.data.frames = frames
    last, moved = folder / 'red/11.png', folder / 'green/99.png'
    kept, times = last.read_bytes(), last.stat().st_mtime_ns

    def restore() -> None:
        if moved.exists():
            moved.rename(last)
        last.write_bytes(kept)
        os.utime(last, ns=(times, times))

    for change in (
        lambda: last.rename(moved),
        lambda: (last.write_bytes(kept + b'0'), os.utime(last, ns=(times, times))),
        lambda: os.utime(last, ns=(times, times + 1)),
    ):
        change()
        with pytest.raises(ConfigError, match='the files have changed since; name another'):
            asked()
        restore()
        assert asked() == first
    stamp = dict(first)
    del stamp['contents'], stamp['nets']  # of an older program
    (tmp_path / 'report.json').write_text(json.dumps(stamp))
    os.utime(last)
    assert asked()['results'] == first['results']
    restore()
    probe = ProbeHead(PoolerConfig(24, 2, 1), {'a': 2}, {'w': np.zeros(3)})
    monkeypatch.setattr(model, 'probe', probe)
    (tmp_path / 'report.json').write_text(json.dumps(first))
    with pytest.raises(ConfigError, match='holds an evaluation of other weights'):
        asked()


def test_two_models_are_compared_clip_by_clip(tmp_path):
    """The difference is that of the means, its interval that of paired sources."""
    rng = np.random.default_rng(0)
    one = (rng.random(60) < 0.5).astype(float)
    two = np.maximum(one, rng.random(60) < 0.3)
    folders, reports = [], []
    for name, values in (('A', one), ('B', two)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        np.savez(folders[-1] / evaluate.OUTCOMES, sources=np.arange(60).astype(str), knn=values)
        figure = {'value': values.mean(), 'low': 0.0, 'high': 1.0, 'n': 60}
        reports.append({
            'model': {'name': name}, 'protocol': '', 'config': {}, 'data': {}, 'seconds': 1.0,
            'results': {'knn': figure}, 'baselines': {}, 'sentences': ['fine'],
        })  # fmt: skip
    both = evaluate._together(reports, folders, OwnConfig(bootstrap=2000))
    row = both['results']['B over A: knn']
    gain = two - one
    assert row['value'] == pytest.approx(gain.mean()) and row['n'] == 60
    half = 1.96 * gain.std() / 60**0.5
    assert row['low'] == pytest.approx(gain.mean() - half, abs=0.03)
    assert row['high'] == pytest.approx(gain.mean() + half, abs=0.03)
    json.dumps(both)
    (folders[0] / 'report.html').write_text('')
    evaluate._page(both, folders, tmp_path)
    page = (tmp_path / 'report.html').read_text()
    assert '<h1>A and B</h1>' in page and '<a href="A/report.html">A</a>.' in page  # B has none
    assert f'<td>B over A: knn</td><td>{gain.mean():.3f}</td>' in page
    gaps = np.where(np.arange(60) < 3, np.nan, two)  # depth, of pictures without a pixel in range
    np.savez(folders[1] / evaluate.OUTCOMES, sources=np.arange(60).astype(str), knn=gaps)
    fewer = evaluate._together(reports, folders, OwnConfig())
    json.dumps(fewer, allow_nan=False)
    row = fewer['results']['B over A: knn']
    assert row['value'] == pytest.approx(gain[3:].mean()) and row['n'] == 57
    np.savez(folders[1] / evaluate.OUTCOMES, sources=np.arange(1, 61).astype(str), knn=two)
    with pytest.raises(ConfigError, match='B was tested on other clips than A'):
        evaluate._together(reports, folders, OwnConfig())


def test_retrieval_of_the_same_clips(model, clips, tmp_path):
    """R@1 by hand from the encoder's own features; untrained nets and pixels beside it."""
    c = RetrievalConfig(name='retrieval', bootstrap=50, data=small_config(clips).data)
    results = retrieval.run(model, c, tmp_path)
    listed = examples.read(c.data.train, c.data)
    seen = np.concatenate([own.clip(e, c, 32) for e in listed])
    means = np.asarray(model.encode(seen)).mean(1)
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    near = unit @ unit.T - 9 * np.eye(len(unit))
    labels = np.array([e.label for e in listed])
    figure = results.results['R@1']
    assert figure.value == pytest.approx((labels[near.argmax(1)] == labels).mean())
    assert figure.n == 36 and figure.low <= figure.value <= figure.high
    assert {*results.results} == {*retrieval.NAMES}
    assert {*results.baselines} == {
        f'{k}, {b}' for k in retrieval.NAMES for b in ('random', 'pixels')
    }
    assert results.baselines['mAP, pixels'].value > 0.8  # colours are what pixels tell


def test_a_clip_is_no_neighbour_of_its_own_link(model, clips, tmp_path):
    for name in COLOURS:
        (tmp_path / 'in' / name).mkdir(parents=True)
        shutil.copy(clips / name / '0.png', tmp_path / 'in' / name / 'a.png')
        (tmp_path / 'in' / name / 'b.png').symlink_to('a.png')
    c = RetrievalConfig(name='retrieval', bootstrap=5, random_baseline=False)
    c.data = small_config(tmp_path / 'in').data
    with pytest.raises(ConfigError, match='no clip has another of its class from another source'):
        retrieval.run(model, c, tmp_path / 'out')


def test_the_command_compares_two_models(model, clips, tmp_path):
    other = Model(Loaded(model.config, jax.tree.map(lambda a: -a, model.encoder.params)))
    for name, each in (('a', model), ('b', other)):
        save(each, tmp_path / name)
    c = small_config(clips)
    c.random_baseline, c.attentive.least_steps = False, 5
    names = [str(tmp_path / 'a'), str(tmp_path / 'b')]
    evaluate.evaluate(c, str(tmp_path / 'w'), '', names, 'target', '')
    both, *each = (
        json.loads((tmp_path / 'w' / part / 'report.json').read_text())
        for part in ('.', 'model1', 'model2')
    )
    first, second = (report['results']['ridge']['value'] for report in each)
    gain = both['results'][f'{names[1]} over {names[0]}: ridge']
    assert gain['value'] == pytest.approx(second - first) and gain['n'] == 9
    assert gain['low'] <= gain['value'] <= gain['high']
    page = (tmp_path / 'w/report.html').read_text()
    assert 'model1/report.html' in page and 'model2/report.html' in page
    # the report of one model is no place for that of two
    with pytest.raises(ConfigError, match='holds an evaluation of one model, which that of 2'):
        evaluate.evaluate(c, str(tmp_path / 'w/model1'), '', names, 'target', '')
    assert json.loads((tmp_path / 'w/model1/report.json').read_text()) == each[0]
    for content in ('', '[1]', '{"model": {}}'):
        (tmp_path / 'w/model1/report.json').write_text(content)
        with pytest.raises(ConfigError, match='report.json: .*; delete it, and the evaluation is'):
            evaluate.evaluate(c, str(tmp_path / 'w/model1'), '', names[:1], 'target', '')


@pytest.mark.slow
def test_two_processes_find_what_one_finds(model, clips, tmp_path):
    """The real command, alone and as two processes of two devices each: the same figures."""
    save(model, tmp_path / 'model')
    flags = [
        '--config=configs/eval/own.py:smoke', f'--model={tmp_path}/model',
        f'--config.data.train={clips}', '--config.data.frames=2', '--config.data.crop=32',
        '--config.random_baseline=false',
    ]  # fmt: skip
    ports = socket.socket()
    ports.bind(('localhost', 0))
    address = f'localhost:{ports.getsockname()[1]}'
    ports.close()

    def start(workdir, devices: int, **more: str) -> subprocess.Popen:
        environment = {
            **os.environ, 'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': str(devices),
            'JEPA_JAX_CACHE': str(tmp_path), 'JAX_COMPILATION_CACHE_DIR': '', **more,
        }  # fmt: skip
        command = [sys.executable, '-m', 'jepa_jax.evaluate', *flags, f'--workdir={workdir}']
        return subprocess.Popen(command, cwd=ROOT, env=environment)

    assert start(tmp_path / 'one', 1).wait(600) == 0
    pair = [
        start(
            tmp_path / 'two',
            2,
            JEPA_JAX_COORDINATOR=address,
            JEPA_JAX_PROCESSES='2',
            JEPA_JAX_PROCESS=str(i),
        )  # fmt: skip
        for i in range(2)
    ]
    assert [each.wait(600) for each in pair] == [0, 0]
    one, two = (json.loads((tmp_path / n / 'report.json').read_text()) for n in ('one', 'two'))
    for name, figure in one['results'].items():
        assert two['results'][name] == pytest.approx(figure, abs=1e-6), name
    assert two['data']['read'] == 36
    loaded = jepa_jax.load(tmp_path / 'model', probe=tmp_path / 'two/probe')
    assert loaded.probe.labels == {'label': ('blue', 'green', 'red')}
