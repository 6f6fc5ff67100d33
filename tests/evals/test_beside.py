"""Evaluations beside training: what they read, what they say, and that training does not notice."""

import json
import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from small_run import arrays, assert_same_arrays, rows

from jepa_jax import build
from jepa_jax.config import DataListConfig, MaskedVideoConfig, PeriodicEvalConfig
from jepa_jax.data import synthetic
from jepa_jax.errors import ConfigError
from jepa_jax.evals import PERIODIC, Periodic, entries, linear, video
from jepa_jax.evals.beside import Beside, Measured
from jepa_jax.model import Encoder
from jepa_jax.sharding import make_mesh, place

COLOURS = {'red': (220, 30, 30), 'green': (30, 220, 30), 'blue': (30, 30, 220)}


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    """Eight videos a colour, in a folder each; one is torn."""
    folder, rng = tmp_path_factory.mktemp('clips'), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(8):
            noise = rng.normal(colour, 40, (2, 40, 48, 3))
            synthetic.write(folder / name / f'{i}.mp4', np.clip(noise, 0, 255).astype(np.uint8))
    (folder / 'red/7.mp4').write_bytes(b'\0' * 99)
    return folder


def config(train='', **fields) -> MaskedVideoConfig:
    c = MaskedVideoConfig(name='small', compute_dtype='float32')
    c.encoder.width, c.encoder.depth, c.encoder.heads, c.encoder.patch = 24, 1, 2, 8
    c.predictor.width, c.predictor.depth, c.predictor.heads = 24, 1, 2
    c.data.lists = [DataListConfig(path='nothing.txt')]
    c.data.crop, c.data.frames, c.data.fps = 32, 2, 8
    c.optim.batch, c.optim.steps = 8, 10
    c.labels.train = str(train)
    c.evals = [PeriodicEvalConfig(every=4)]
    for name, value in fields.items():
        setattr(c, name, value)
    return c


def beside(config, workdir, devices: int, fsdp: int):
    """The evaluations of a run on so many devices, and a state whose average is no copy."""
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    objective = build.masked_video(config)
    net = objective.nets['encoder']
    with jax.set_mesh(mesh):
        make = jax.jit(lambda key: place(net.init(key), net.specs))
        params, ema = make(jax.random.key(0)), make(jax.random.key(1))
    state = types.SimpleNamespace(params={'encoder': params}, ema={'encoder': ema})
    evals = Beside(
        entries.masked_video(config), objective, mesh, workdir, steps=10, part=config.optim.batch
    )
    return evals, state


def test_eight_devices_say_what_one_says_of_the_average(clips, tmp_path):
    c = config(clips)
    evals, state = beside(c, tmp_path, 8, fsdp=4)
    assert [step for step in range(1, 11) if evals.due(step)] == [4, 8, 10]
    evals.begin(0)
    values = evals.measure(4, state, {})
    assert set(values) == {
        f'evals/linear/{key}' for key in ('label/knn', 'label/ridge', 'label/majority', 'seconds')
    }
    assert values['evals/linear/label/ridge'] > 0.8 > values['evals/linear/label/majority']
    alone, same = beside(c, tmp_path, 1, fsdp=1)
    alone.begin(0)
    again = alone.measure(4, same, {})
    for key in set(values) - {'evals/linear/seconds'}:
        assert values[key] == again[key], key

    # neighbours by scikit-learn, of features by the public model with the average's weights
    labelled, pixels = alone._clips['linear']
    assert len(labelled) == 23 and 'red/7.mp4' not in '\n'.join(labelled.paths)
    encoder = Encoder(build.masked_video(c).config, jax.device_get(same.ema['encoder']))
    means = np.asarray(encoder(pixels)).mean(1)
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    learn, classes = ~labelled.test, labelled.labels['label'].words
    shares = []
    for k in linear.NEIGHBOURS[:4]:
        vote = KNeighborsClassifier(
            k, weights=lambda d: np.exp((1 - d**2 / 2) / linear.TEMPERATURE), algorithm='brute'
        ).fit(unit[learn], classes[learn])
        shares.append(vote.score(unit[~learn], classes[~learn]))
    assert any(values['evals/linear/label/knn'] == pytest.approx(s) for s in shares)


@pytest.mark.parametrize('colours', [['red'], ['red', 'green']])
def test_a_class_of_which_nothing_can_be_learned_is_left_out(clips, tmp_path, caplog, colours):
    """At the end of a run that has taken days, when its clips for training are torn by then."""
    folder = tmp_path / 'clips'
    shutil.copytree(clips, folder)
    c = config(folder, evals=[PeriodicEvalConfig(every=0)])
    evals, state = beside(c, tmp_path, 1, fsdp=1)
    (entry,) = entries.masked_video(c)
    labelled = entry.labelled()
    for path, word, test in zip(labelled.paths, labelled.labels['label'].words, labelled.test):
        if word in colours and not test:
            Path(path).write_bytes(b'torn')
    if len(colours) == 2:
        with pytest.raises(ConfigError, match="one class alone, 'blue': nothing to tell apart"):
            evals.finish(state, {})
        return
    values = evals.finish(state, {}).values
    assert values['evals/linear/label/ridge'] > 0.8 > values['evals/linear/label/majority']
    line = "2 clips for testing: no clip for training of label 'red' can be read"
    assert line in caplog.text


def mine(asked) -> Measured:
    """An evaluation of a user's own."""
    some = asked.clips[: asked.batch]
    seen, fresh = asked.tokens(some), asked.untrained(1)[0](some)
    return Measured({'apart': float(np.abs(seen - fresh).mean())}, {'label': {'n': seen.shape}}, [])


def test_an_own_evaluation_at_the_end(clips, tmp_path, monkeypatch):
    """A row of the table; it gets tokens of the average, and of encoders that were not trained."""
    monkeypatch.setitem(PERIODIC, 'mine', Periodic(run=f'{__name__}:mine'))
    c = config(clips, evals=[PeriodicEvalConfig('mine', every=0)])
    evals, state = beside(c, tmp_path, 8, fsdp=2)
    assert not any(evals.due(step) for step in range(11))
    measured = evals.finish(state, {})
    assert measured.values['evals/mine/apart'] > 0.1 and measured.values['evals/mine/seconds'] > 0
    assert measured.probes == {'label': {'n': (8, 16, 24)}}


def test_nothing_is_read_when_no_step_is_left(clips, tmp_path, monkeypatch):
    evals, _ = beside(config(clips), tmp_path, 1, fsdp=1)
    monkeypatch.setattr(video, 'read_clips', lambda *_: pytest.fail('a clip was read'))
    evals.begin(10)


def test_numbers_are_read_too_and_probes_ask_for_classes(clips, tmp_path):
    table = tmp_path / 'numbers.csv'
    table.write_text(
        'path,label\n'
        + ''.join(
            f'{clips}/{c}/{i}.mp4,{k + i / 100}\n' for k, c in enumerate(COLOURS) for i in range(7)
        )
    )
    evals, state = beside(config(table), tmp_path, 1, fsdp=1)
    evals.begin(0)
    values = evals.measure(4, state, {})
    assert values['evals/linear/label/ridge'] > 0.5 > values['evals/linear/label/majority']
    c = config(table)
    c.evals[0].evaluation = 'probe'
    with pytest.raises(ConfigError, match='the labels are numbers; probe reads classes'):
        entries.masked_video(c)


def test_labels_of_a_training_list_serve(clips, tmp_path, caplog):
    """Word labels, and a list as for training; none of them is the run's own data otherwise."""
    listed = tmp_path / 'train.txt'
    listed.write_text(''.join(f'{clips}/{c}/{i}.mp4 {c}\n' for c in COLOURS for i in range(7)))
    c = config(evals=[])
    c.data.lists[0].path, c.probe.enabled = str(listed), True
    (entry,) = entries.masked_video(c)
    assert entry.name == 'probe' and entry.clips_from == 'data.lists[0].path'
    assert entry.labelled().labels['label'].names == ('blue', 'green', 'red')
    listed.write_text(''.join(f'{clips}/{c}/{i}.mp4\n' for c in COLOURS for i in range(7)))
    with pytest.raises(ConfigError, match='probe.enabled: needs labelled clips.*no `path label`'):
        entries.masked_video(c)
    # what names no labels of its own is left out, and that is said
    c.evals, c.probe.enabled = [PeriodicEvalConfig()], False
    with caplog.at_level('INFO'):
        assert entries.masked_video(c) == []
    assert 'left out: evals[0]: needs labelled clips' in caplog.text


@pytest.mark.parametrize(
    ('lines', 'words'),
    [
        ('path,label,split\n{0},a,train\n{1},a,train\n{2},b,test\n', "class 'b': 1 clips for test"),
        ('path,label\n{0},a\n{1},a\n{2},a\n', "one class alone, 'a'"),
        ('path,label,start\n{0},a,1\n{1},b,1\n{2},b,1\n', 'pieces of videos are for'),
        ('path,label\nx.mp4,a\ny.mp4,a\nz.mp4,b\nw.mp4,b\n', 'none of 4 clips is there'),
    ],
)
def test_lists_that_cannot_work_are_refused_before_the_run(clips, tmp_path, lines, words):
    (tmp_path / 'own.csv').write_text(lines.format(*(clips / f'red/{i}.mp4' for i in range(3))))
    with pytest.raises(ConfigError, match=f'^evals.0.: .*{words}'):
        entries.masked_video(config(tmp_path / 'own.csv'))


def test_two_of_one_name(clips):
    c = config(clips, evals=[PeriodicEvalConfig(), PeriodicEvalConfig(every=0)])
    with pytest.raises(ConfigError, match=r"evals\[1\] and evals\[0\] are both called 'linear'"):
        entries.masked_video(c)
    c.evals[1].name = 'end'
    assert [e.name for e in entries.masked_video(c)] == ['linear', 'end']
    c.evals[1].labels.train = 'elsewhere'
    with pytest.raises(ConfigError, match=r'evals\[1\].labels.train: elsewhere: missing'):
        entries.masked_video(c)


def test_some_clips_are_even_over_classes_and_both_sides():
    classes = np.repeat([0, 1, 2], (60, 30, 6))
    whole = entries.Labelled(
        np.arange(96).astype(str), np.arange(96).astype(str), np.arange(96) % 3 == 0,
        {'label': entries.Label('class', np.eye(3)[classes], ('a', 'b', 'c'))},
    )  # fmt: skip
    part = entries.some(whole, 24, 0)
    assert len(part) == 24 and part.test.sum() == 8
    counts = np.unique(part.labels['label'].words, return_counts=True)[1]
    assert counts.tolist() == [9, 9, 6]  # all six of the rarest
    assert list(part.paths) == list(entries.some(whole, 24, 0).paths)
    assert entries.some(whole, 96, 0) is whole


def test_memory_bounds_the_clips(clips):
    c = config(clips)
    c.evals[0].clips = 0
    (entry,) = entries.masked_video(c)
    assert entry.most == entries.HELD // (2 * 32 * 32 * 3)


def test_self_made_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, 'load_labels', lambda folder: {
        f'videos/{split}_{i:04}.mp4': synthetic.labels(i)
        for split, count in (('train', 80), ('test', 40)) for i in range(count)
    })  # fmt: skip
    made = entries.made(DataListConfig(kind='synthetic', path=str(tmp_path)))
    assert len(made) == 120 and made.test.sum() == 40 and not made.test[:80].any()
    assert set(made.labels) == {'digit', 'motion', 'side'}
    assert made.labels['digit'].words[:12].tolist() == [str(i % 10) for i in range(12)]


@pytest.mark.slow
@pytest.mark.ci
def test_training_does_not_notice(runs, tmp_path):
    """The real command: the same losses and weights to the bit with evaluations and without, the
    same rows after a kill, and a probe on own clips with word labels at the end."""
    folder, rng = tmp_path / 'own', np.random.default_rng(0)
    for name in ('dark', 'light'):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            frames = rng.integers(0, 120, (6, 40, 48, 3)) + 120 * (name == 'light')
            synthetic.write(folder / name / f'{i}.mp4', frames.astype(np.uint8))
    small = (runs.folder / 'small.py').read_text()
    (runs.folder / 'small_evals.py').write_text(
        small.replace('MaskedVideoConfig\n', 'MaskedVideoConfig, PeriodicEvalConfig\n').replace(
            '    return c',
            '    c.evals = [PeriodicEvalConfig(every=6)]\n'
            f'    c.labels.train = {str(folder)!r}\n'
            '    c.probe.enabled, c.probe.heads, c.probe.steps, c.probe.seeds = True, 2, 20, 1\n'
            '    return c',
        )
    )

    def run(workdir) -> None:
        import subprocess

        command = [c.replace('small.py', 'small_evals.py') for c in runs.command(workdir)]
        done = subprocess.run(
            command, cwd=runs.folder, env=runs.environment, capture_output=True, text=True,
            timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    workdir, plain = runs.workdir(), runs.finished()
    run(workdir)

    def without(row: str) -> dict:
        return {k: v for k, v in json.loads(row).items() if not k.startswith('evals/')}

    assert [without(row) for row in rows(workdir)] == [json.loads(row) for row in rows(plain)]
    assert_same_arrays(arrays(workdir, 16), arrays(plain, 16))
    with_evals = [json.loads(row)['step'] for row in rows(workdir) if 'evals/' in row]
    assert with_evals == [6, 12, 16]
    report = json.loads((workdir / 'report.json').read_text())
    assert set(report['probes']['label']) == {'target', 'random', 'pixels', 'shuffled'}
    assert report['probes']['label']['pixels']['mean'] == 1
    assert 'evals/linear/label/ridge' in report['evals'] and (workdir / 'features.png').exists()

    from small_run import copy_until

    copy_until(8, workdir, copy := runs.workdir())
    run(copy)
    assert rows(copy) == rows(workdir)
    again = json.loads((copy / 'report.json').read_text())
    assert again['probes'] == report['probes']
