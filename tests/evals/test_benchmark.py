"""Published benchmarks end to end, on tiny replicas with real videos and a tiny random encoder."""

import csv
import functools
import json
import types

import jax
import numpy as np
import official_sets as made
import pytest

import jepa_jax
from jepa_jax.config import HeadsConfig, labelled_set
from jepa_jax.data import synthetic
from jepa_jax.data.labelled import READERS, ek100
from jepa_jax.errors import BadFile, ConfigError, InputError
from jepa_jax.evals import anticipation, benchmark, features, heads, metrics, of, probes
from jepa_jax.model import Loaded, Model, ProbeHead
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.pretrained import attach_probe, save
from jepa_jax.weights.parts import net

F32 = np.dtype('float32')
ENCODER = ViTConfig(24, 2, 2, patch=16, image_size=32, dtype=F32, remat='none')
PREDICTOR = PredictorConfig(24, 24, 1, 2, dtype=F32, remat='none')
CLASSES = 3


@functools.cache
def weights(part: str, shape) -> dict:
    shape = (shape[0], dict(shape[1])) if part == 'probe' else shape
    return jax.jit(net(part, shape).init)(jax.random.key(len(part)))


def probe(classes: dict[str, int], **options) -> ProbeHead:
    """With random weights, large enough to tell classes apart."""
    shape = PoolerConfig(24, 2, 1, queries=len(classes), dtype=F32, remat='none')
    params = jax.tree.map(lambda a: 5 * a, weights('probe', (shape, tuple(classes.items()))))
    return ProbeHead(shape, classes, params, frames=2, **options)


def model(head: ProbeHead | None = None) -> Model:
    encoder, predictor = (
        Loaded(config, weights(name, config))
        for name, config in (('encoder', ENCODER), ('predictor', PREDICTOR))
    )
    return Model(encoder, predictor=predictor, probe=head, name='tiny')


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    """Classes are colours, which any encoder tells; one clip is not there, one is broken."""
    root = made.ssv2(tmp_path_factory.mktemp('ssv2'), train=6, validation=3)
    folder = root / '20bn-something-something-v2'
    (folder / '119.webm').write_bytes(b'\0' * 99)
    (folder / '122.webm').unlink()
    return root


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """One folder of features and answers for all tests."""
    return tmp_path_factory.mktemp('work')


def config(name, folder, **fields):
    c = labelled_set(name, 'smoke')
    c.data.path, c.data.frames, c.data.step = str(folder), 2, 2
    c.data.views = min(2, c.data.views)
    c.heads.epochs = 20
    for key, value in fields.items():
        setattr(c, key, value)
    return c


def answers(folder) -> list[dict]:
    with open(folder / 'predictions.csv') as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.ci
def test_ssv2(clips, place):
    results = benchmark.run(model(), config('ssv2', clips), place)
    accuracy = results.results['accuracy']
    # 7 of 9 are left: Wilson's lower end of 7 of 7 is 1 / (1 + 1.96^2 / 7)
    assert accuracy.n == 7 and accuracy.value == 1
    assert accuracy.low == pytest.approx(1 / (1 + 1.96**2 / 7), abs=1e-3)
    assert results.baselines['majority'].value == pytest.approx(2 / 7)  # of the first class
    assert results.baselines['pixels'].value == 1  # colours
    assert (results.data['expected'], results.data['read']) == (9, 7)
    assert results.data['missing'] == {'train': 0, 'validation': 1}
    (broken,) = results.data['problems']
    assert broken.endswith('119.webm')
    assert results.data['published']['V-JEPA 2 L 256'] == 73.7
    text = '\n'.join(results.sentences)
    assert 'protocol exact' in text and 'best of 3 on 9 training clips' in text
    assert '0 Holding something next to something 2 of 2' in text and '3 classes of label' in text
    assert 'validation: 1 of 9 clips are not on disk, such as 122' in text
    rows = answers(place)
    assert len(rows) == 7 and all(row['name'] == row['said_name'] for row in rows)
    # the head is kept and classifies as it was tested
    save(model(), place / 'model')
    loaded = jepa_jax.load(place / 'model', probe=place / 'probe')
    assert loaded.probe.labels['label'] == tuple(sorted({row['name'] for row in rows}))
    for row in rows:
        ((number, name, _), *_) = loaded.classify(row['path']).top['label']
        assert (str(number), name) == (row['said'], row['said_name'])


def test_upstream_counts_otherwise(clips, place):
    c = config('ssv2', clips, protocol='upstream')
    c.heads.batch = 3
    c.heads.epochs = 1  # so that not everything is right
    results = benchmark.run(model(), c, place)
    right = np.array([int(row['right']) for row in answers(place)])
    assert results.results['accuracy'].value == pytest.approx(right.mean())
    assert results.results['accuracy, upstream'].value in np.arange(7) / 6  # 7 clips: 2 batches
    assert 'protocol upstream: head: best on validation' in results.sentences[0]
    assert 'without the last, short one' in results.sentences[0]


def test_a_probe_that_is_there(clips, place):
    """Every answer is that of softmaxes averaged over views, by hand; a second start adds nothing
    to the kept answers."""
    head = probe({'linear': CLASSES})
    tiny, c = model(head), config('ssv2', clips)
    results = benchmark.run(tiny, c, place)
    rows = answers(place)
    assert len(rows) == results.results['accuracy'].n == 7 and not results.baselines
    for i in (0, 6):
        record = types.SimpleNamespace(path=rows[i]['path'])
        two = benchmark.views_of(c, 'validation', record, 0.0, 32, 0).reshape(2, 2, 2, 32, 32, 3)
        each = []
        for view in two:
            tokens = np.concatenate([np.asarray(tiny.encode(clip[None]))[0] for clip in view])
            logits = net('probe', (head.config, head.classes))(head.params, tokens[None])['linear']
            each.append(np.exp(logits[0]) / np.exp(logits[0]).sum())
        assert int(rows[i]['said']) == int(np.mean(each, 0).argmax())
    (kept,) = place.glob('logits-*.npy')
    before = np.load(kept)
    benchmark.run(tiny, c, place)
    np.testing.assert_array_equal(np.load(kept), before)
    kept.write_bytes(kept.read_bytes()[:200])  # what is no whole file answers nothing
    benchmark.run(tiny, c, place)
    np.testing.assert_array_equal(np.load(kept), before)
    with pytest.raises(ConfigError, match='the probe has 4 classes of linear, the official files'):
        benchmark.run(model(probe({'linear': 4})), c, place)
    (place / 'none').mkdir()
    c.data.videos = str(place / 'none')
    with pytest.raises(ConfigError, match='no clip is left for validation: --config.data.videos'):
        benchmark.run(tiny, c, place)


def test_an_interval_is_over_videos():
    """Ten pieces of two videos, eight right: as wide as of 1.6 of 2, not of 8 of 10."""
    hits = np.repeat([True, True, True, True, False], 2)
    figure = benchmark.share(hits, np.repeat(['a', 'b'], 5))
    z, k, p = 1.959964, 2, 0.8
    half = z / (1 + z * z / k) * np.sqrt(p * (1 - p) / k + z * z / 4 / k / k)
    middle = (p + z * z / 2 / k) / (1 + z * z / k)
    assert (figure.value, figure.n) == (0.8, 10)
    assert (figure.low, figure.high) == pytest.approx((middle - half, middle + half), abs=1e-4)


def test_classes_and_settings_that_cannot_work(clips, tmp_path):
    rows = json.loads((clips / 'labels/train.json').read_text())
    made.write_json(tmp_path / 'train.json', [r for r in rows if r['template'] != made.SSV2[1]])
    for name in ('validation', 'labels'):
        made.write_json(
            tmp_path / f'{name}.json', json.loads((clips / f'labels/{name}.json').read_text())
        )
    c = config('ssv2', tmp_path)
    c.data.videos = str(clips)
    with pytest.raises(ConfigError, match='class 1 .*clips for validation, none for training'):
        benchmark.run(model(), c, tmp_path)
    c = config('ssv2', clips)
    for field, value, words in (
        ('crop', 40, 'data.crop = 40: must be a multiple of 16'),
        ('levels', '1,2', "data.levels = '1,2': must ascend, below 2"),
        ('official', True, 'another version: 3 classes of label'),
    ):
        changed = config('ssv2', clips)
        setattr(changed.data, field, value)
        with pytest.raises(ConfigError, match=words):
            benchmark.run(model(), changed, tmp_path)
    c.heads.grid = 'vidio'
    with pytest.raises(ConfigError, match='did you mean video'):
        benchmark.run(model(), c, tmp_path)


def test_what_is_kept_of_clips(tmp_path):
    """Tokens of several blocks, and of what the predictor expects, on eight devices, are those of
    the model itself; each reading has a folder of its own."""
    tiny = model()
    clips = np.random.default_rng(0).integers(0, 255, (3, 1, 2, 32, 32, 3)).astype(np.uint8)
    x = tiny.encode(clips[:, 0], (0, 1))
    later = tiny.later(x[1], (1, 2, 2), tiny.predictor.params)
    folders = set()
    for reads, parts in (((0, 1), x), ('future', [x[1], later])):
        table = features.compute(
            tiny, 3, lambda i: clips[i], tmp_path, about={}, clip=(2, 32, 32), tokens=0, reads=reads
        )
        np.testing.assert_allclose(table.tokens, np.concatenate(parts, 1), atol=4e-3)
        np.testing.assert_allclose(table.mean, np.asarray(x[1]).mean(1), atol=1e-5)
        folders.add(table.folder)
    assert len(folders) == 2
    alone = Model(Loaded(ENCODER, tiny.encoder.params))
    with pytest.raises(InputError, match='no predictor'):
        features.compute(
            alone, 3, lambda i: clips[i], tmp_path, about={}, clip=(2, 32, 32), reads='future'
        )


def test_a_kept_head_reads_what_it_was_trained_on(clips, tmp_path):
    """Means of tokens over boxes, of two blocks and of predictions, segment by segment, as the
    cache of features has them."""
    tiny, rng = model(), np.random.default_rng(0)
    c = config('ssv2', clips)
    clip = rng.integers(0, 255, (2, 2, 32, 32, 3)).astype(np.uint8)  # two segments
    data = types.SimpleNamespace(names={'label': ('a', 'b', 'c')})
    for number, (levels, reads) in enumerate((('0,1', (0, 1)), ('', 'future'))):
        c.data.levels, c.data.tokens, c.data.segments = levels, 2, 2
        table = features.compute(
            tiny, 1, lambda i: clip, tmp_path / str(number), about={}, clip=(2, 32, 32),
            segments=2, tokens=2, reads=reads,
        )  # fmt: skip
        head = probe({'label': 3})
        shape = probes.Probe(head.config, (('label', 3),))
        params = jax.tree.map(lambda a: np.asarray(a)[None], head.params)
        chosen = heads.Chosen(shape, params, 'rate 1')
        place = tmp_path / f'probe{number}'
        for _ in range(2):  # one that was left by an earlier start is replaced
            heads.save(place, chosen, 0, tiny, data, c, '' if levels else 'future')
        kept = model()
        attach_probe(kept, place)
        assert kept.probe.reads == reads and kept.probe.labels == data.names
        tokens = np.asarray(table.tokens[0], np.float32)[None]
        expected = net('probe', (head.config, {'label': 3}))(head.params, tokens)['label']
        np.testing.assert_allclose(kept.logits(clip[None])['label'], expected, atol=5e-3)


def test_a_kept_head_sees_pictures_and_folders_as_it_was_trained(tmp_path):
    """Every n-th picture of a folder; a picture by Pillow's antialias."""
    tiny = model(probe({'label': 3}, step=2, segments=2))
    for name, path, frames in (
        ('jester', made.jester(tmp_path / 'j', each=1) / '20bn-jester-v1/8', 12.0),
        ('in1k', next(made.imagenet(tmp_path / 'i', each=1).rglob('*.JPEG')), 0.0),
    ):
        c = config(name, tmp_path)
        c.data.views, c.data.segments = 1, 2
        record = types.SimpleNamespace(path=str(path))
        seen = benchmark.views_of(c, 'validation', record, frames, 32, 0)
        clips = tiny._probe_clips(str(path), tiny.probe)
        np.testing.assert_array_equal(clips, np.broadcast_to(seen, clips.shape))


@pytest.mark.parametrize('reads, batch', [('future', 1), ('last', 2)])
def test_a_released_probe_is_asked_on_all_devices(tmp_path, monkeypatch, reads, batch):
    """And says what it says on one; what cannot be read leaves no hole in others."""
    tiny, rng = model(probe({'label': 3}, reads=reads, segments=2)), np.random.default_rng(0)
    clips = rng.integers(0, 255, (11, 2 * 2, 2, 32, 32, 3)).astype(np.uint8)  # views, segments
    places, plain = [], Model.logits

    def spy(self, asked):
        places.append(len(asked.sharding.device_set))
        return plain(self, asked)

    def read(row: int) -> np.ndarray:
        if row == 4:
            raise BadFile('e.mp4', 'short', 'no frame')
        return clips[row]

    monkeypatch.setattr(Model, 'logits', spy)
    c = config('ssv2', tmp_path, batch=batch)
    rows, logits, problems = heads.released(
        tiny, c, 11, read, {'label': 3}, 2, tmp_path / 'logits.npy'
    )
    assert places == [jax.device_count()] * -(-20 // (batch * jax.device_count()))
    assert list(problems) == [4] and rows.tolist() == [0, 1, 2, 3, *range(5, 11)]
    for i, row in enumerate(rows):
        alone = plain(tiny, clips[row].reshape(2, 2, *clips.shape[2:]))['label']
        np.testing.assert_allclose(logits['label'][i], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_levels_of_pictures_and_folders(tmp_path):
    """Blocks one after the other, to the encoder's own; pictures repeated; folders of frames."""
    tiny = model()
    c = config('jester', made.jester(tmp_path / 'j', each=2))
    c.data.levels, c.data.views = '0,1', 1
    results = benchmark.run(tiny, c, tmp_path)
    assert results.results['accuracy'].n == 6
    tables = [np.load(p) for p in tmp_path.glob('features/*/rows.npy')]
    first = benchmark.views_of(
        c, 'train', types.SimpleNamespace(path=str(tmp_path / 'j/20bn-jester-v1/8')), 12.0, 32, 0
    )
    levels = tiny.encode(first, (0, 1))  # of two segments
    expected = np.concatenate([np.concatenate(np.asarray(x), 0) for x in zip(*levels)])
    assert any(
        t['tokens'].shape == (6, *expected.shape) and np.abs(t['tokens'][0] - expected).max() < 5e-3
        for t in tables
    )
    pictures = config('in1k', made.imagenet(tmp_path / 'i', each=2))
    assert benchmark.run(tiny, pictures, tmp_path).results['accuracy'].n == 6


def test_pictures_and_an_encoder_of_images(tmp_path):
    """One frame a picture; asked to repeat it in time, such an encoder is refused in one line."""
    vit = ViTConfig(
        24, 1, 2, patch=16, tubelet=1, frames=1, position='sincos', axes='xy', image_size=32,
        dtype=F32, remat='none',
    )  # fmt: skip
    tiny = Model(Loaded(vit, weights('encoder', vit)), name='tiny')
    c = config('in1k', made.imagenet(tmp_path / 'i', each=4))
    with pytest.raises(ConfigError, match='data.frames = 2: must be 1, this is a model of images'):
        benchmark.run(tiny, c, tmp_path)
    c.data.frames = c.data.step = 1
    accuracy = benchmark.run(tiny, c, tmp_path).results['accuracy']
    assert accuracy.n == 12 and accuracy.value > 0.9  # classes are colours


def test_clips_are_joined_by_view(golden_benchmark):
    """To the golden rows: tokens of the clips of a view follow one another."""
    x = wave((2, 3, 2, 3, 4, 4, 4), 0.5).astype(np.float32)  # clip, view, B, C, F, H, W
    cubes = x.reshape(2, 3, 2, 3, 2, 2, 2, 2, 2, 2).mean((5, 7, 9)).reshape(2, 3, 2, 3, 8)
    rows = np.empty(2, [('state', 'u1'), ('tokens', 'f4', (48, 3))])
    rows['state'] = 1
    rows['tokens'] = cubes.transpose(2, 1, 0, 4, 3).reshape(2, 48, 3)
    table = types.SimpleNamespace(read=rows['state'] == 1, tokens=rows['tokens'])
    examples = heads.of_table(table, {'label': np.zeros(2, int)}, np.arange(2), views=3)
    for view in range(3):
        joined = examples.read(np.arange(2) * 3 + view)
        np.testing.assert_allclose(joined, golden_benchmark['clips_joined'][view], atol=1e-6)


def wave(shape, phase: float) -> np.ndarray:
    i = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(0.37 * i + 0.011 * (i % 1009) + phase).reshape(shape)


def test_configs_have_the_original_values():
    import importlib

    for name in READERS:
        file = importlib.import_module(f'configs.eval.{name}')
        for arg in ('', 'vitl', 'vitg_384', 'vitg_384,smoke'):
            of(file.get_config(arg))
    video, levels = labelled_set('ssv2', 'vitg_384'), labelled_set('diving48', 'vitl')
    assert (video.data.frames, video.data.step, video.data.segments) == (64, 2, 2)
    assert (levels.data.levels, levels.heads.epochs) == ('17,19,21,23', 100)
    assert [len(heads.GRIDS[k]) for k in ('video', 'small', 'pictures', 'anticipation')] == [
        20, 3, 21, 20,
    ]  # fmt: skip
    assert heads.GRIDS['video'][6] == (3e-3, 0.1)  # decays outside, rates inside
    assert heads.GRIDS['pictures'][1:3] == ((5e-4, 0.008), (5e-4, 0.004))
    with pytest.raises(ConfigError, match='vitg_384'):
        labelled_set('ssv2', 'vitg')


# Anticipation

FPS, SPAN = 16, 4  # of the videos; a clip is 2 frames, 2 apart: it spans 4


@pytest.fixture(scope='module')
def kitchen(tmp_path_factory):
    """Before an action of verb v comes its colour, then, from a second before its start on, noise;
    a pair of verb and noun occurs in validation alone."""
    root = tmp_path_factory.mktemp('kitchen')
    rows = {'train': [], 'validation': []}
    for split, people in (('train', (1, 2, 3)), ('validation', (4,))):
        for person in people:
            video, frames = f'P{person:02d}_01', []
            for i, verb in enumerate((3, 0, 7) * 2):
                frames += [*made.frames(i % 3, person, SPAN, 32), *made.frames(9, i, 20, 32)]
                frames[-20:] = np.random.default_rng(i).integers(0, 255, (20, 32, 44, 3))
                start = 24 * i + SPAN + FPS
                rows[split].append((video, start, start + 2, verb, 5 + verb))
            path = root / f'P{person:02d}/videos/{video}.MP4'
            path.parent.mkdir(parents=True)
            made_here = path.with_suffix('.mp4')
            synthetic.write(made_here, np.uint8(frames), FPS, lossless=True)
            made_here.rename(path)
    rows['validation'].append(('P04_01', 40, 44, 3, 99))
    return made.kitchens(root, rows['train'], rows['validation'])


@pytest.mark.slow
@pytest.mark.ci
def test_anticipation(kitchen, tmp_path):
    c = config('ek100', kitchen, protocol='before_start')
    c.heads.epochs = 30
    results = anticipation.run(model(), c, tmp_path)
    assert results.results['action recall@5, both'].n == 6
    assert set(results.results) == {
        f'{head} recall@5, {part}'
        for head in ('verb', 'noun', 'action')
        for part in ('both', 'encoder', 'predictor')
    }
    # three actions: all of them are among the first five
    assert results.results['action recall@5, encoder'].value == 1
    text = '\n'.join(results.sentences)
    assert 'protocol before_start: clips end 1 s before the action' in text
    assert 'classes filtered' in text and 'g 384 by part: encoder 39.1, predictor 20.2' in text
    c.classes, c.parts = 'official', 'both'
    c.data.cache = str(tmp_path / 'features')
    results = anticipation.run(model(), c, tmp_path)
    # the fourth was never trained: always missed
    assert results.results['action recall@5, both'].value == pytest.approx(3 / 4)
    assert results.results['noun recall@5, both'].value == pytest.approx(3 / 4)
    assert results.results['verb recall@5, both'].value == 1
    assert results.results['action recall@5, both'].n == 7


def test_parts_that_the_challenge_scores(kitchen, tmp_path):
    """Official numbers of rare classes and people, in the official files."""
    for name, text in (
        ('EPIC_100_tail_verbs.csv', 'verb\n7\n'),
        ('EPIC_100_tail_nouns.csv', 'noun\n99\n'),
        ('EPIC_100_unseen_participant_ids_validation.csv', 'participant_id\nP04\n'),
    ):
        (tmp_path / name).write_text(text)
    parts = ek100.parts_of(tmp_path)
    row = functools.partial(ek100.Action, start=0, stop=1)
    assert parts.of(row('P04_01', verb=7, noun=5)) == ('unseen', 'verb tail', 'action tail')
    assert parts.of(row('P01_01', verb=3, noun=99)) == ('noun tail', 'action tail')
    assert parts.of(row('P01_01', verb=3, noun=5)) == () == parts.notes
    (tmp_path / 'EPIC_100_tail_verbs.csv').unlink()
    assert parts.of(row('P01_01', verb=3, noun=99))
    fewer = ek100.parts_of(tmp_path)
    assert fewer.of(row('P01_01', verb=7, noun=99)) == ('noun tail',)
    assert fewer.notes == ('EPIC_100_tail_verbs.csv is not there: no figures of that part',)
    (tmp_path / 'EPIC_100_tail_nouns.csv').write_text('noun\nknife\n')
    with pytest.raises(BadFile, match="line 2: noun 'knife' is no whole number"):
        ek100.parts_of(tmp_path)
    data = ek100.read(kitchen, kitchen)
    assert not any(record.among for record in data.splits['validation'])
    assert sum('no figures of that part' in note for note in data.notes) == 3


def test_nothing_after_the_observation_is_seen(kitchen, tmp_path):
    """Other frames from a second before the start on: the same clip. A frame before: another."""
    from jepa_jax.data import decode

    c = config('ek100', kitchen, protocol='before_start')
    path = kitchen / 'P04/videos/P04_01.MP4'
    frames = decode.read_frames(path, lambda timing: np.arange(timing.frames))
    action = (24 + SPAN + FPS, 24 + SPAN + FPS + 2)
    seen = anticipation.clip_of(ek100.Record(str(path), (0,), action), c, 32, 'validation', 0)
    for first, same in ((action[0] - FPS, True), (action[0] - FPS - SPAN, False)):
        changed = frames.copy()
        changed[first:] = 255 - changed[first:]
        other = tmp_path / f'{same}.mp4'
        synthetic.write(other, changed, FPS, lossless=True)
        clip = anticipation.clip_of(ek100.Record(str(other), (0,), action), c, 32, 'validation', 0)
        assert np.array_equal(clip, seen) == same
    short = ek100.Record(str(path), (0,), (9000, 9010))
    with pytest.raises(Exception, match='short: frame 8982 is asked for'):
        anticipation.clip_of(short, c, 32, 'validation', 0)


def test_anticipation_by_a_probe_that_is_there(kitchen, tmp_path):
    classes = {'verb': 3, 'noun': 3, 'action': 3}
    tiny = model(probe(classes, reads='future'))
    c = config('ek100', kitchen)
    results = anticipation.run(tiny, c, tmp_path)
    assert results.results['action recall@5, probe'].value == 1  # three of three are in the top 5
    (kept,) = tmp_path.glob('logits-*.npy')
    assert np.load(kept).shape == (6, 1, 9)
    record = ek100.Record(
        str(kitchen / 'P04/videos/P04_01.MP4'), (0,), (SPAN + FPS, SPAN + FPS + 2)
    )
    clip = anticipation.clip_of(record, c, 32, 'validation', 0)
    x = tiny.encode(clip)
    ids, later = np.arange(4)[None], (1 + 4) * 4 + np.arange(4)[None]  # one second: four tubelets
    z = tiny.fill_in((1, 2, 2))(tiny.predictor.params, x, ids, later, mask_index=1)
    tokens = np.concatenate([x, z], 1)
    logits = net('probe', (tiny.probe.config, classes))(tiny.probe.params, tokens)
    order = np.concatenate([np.asarray(logits[head])[0] for head in classes])
    np.testing.assert_allclose(np.load(kept)[0, 0], order, atol=1e-4)
    with pytest.raises(ConfigError, match='the probe has 4 classes of noun, the official files 3'):
        anticipation.run(model(probe({**classes, 'noun': 4}, reads='future')), c, tmp_path)


def test_clips_of_one_source_choose_no_head():
    """As of one long video, of a set of which nothing else is on disk."""
    labels = {'label': np.arange(6) % 2}
    one = heads.Examples(lambda rows: np.zeros((len(rows), 2, 8)), labels, np.full(6, 'P01'))
    config = HeadsConfig(grid='small', heads=2, depth=1)
    with pytest.raises(ConfigError, match='all 6 training clips are of one source, P01'):
        heads.fit(
            one, {'label': 2}, config, probes.cross_entropy, lambda *_: pytest.fail('asked'),
            upstream=False, seed=0, title='',
        )  # fmt: skip


def test_recall_of_heads_by_hand():
    """Of two heads each figure takes its best, as the original does."""
    c = labelled_set('ek100', 'smoke')
    hits = {h: np.array([[1, 0, 1, 0], [1, 1, 0, 0]], bool) for h in ek100.HEADS}
    labels = {h: np.array([0, 0, 1, 1]) for h in ek100.HEADS} | {'noun': np.array([0, 1, 1, 1])}
    among = [('verb tail', 'action tail'), ('unseen', 'action tail'), ('unseen',), ()]
    rows = anticipation.figures(hits, labels, np.array(list('abcd')), 'x', c, among)
    assert rows['verb recall@5, x'].value == pytest.approx(0.5)
    assert rows['noun recall@5, x'].value == pytest.approx((1 + 1 / 3) / 2)
    assert metrics.class_recall(hits['verb'][0], labels['verb']) == pytest.approx(0.5)
    # of the first head, the best on the whole: clip 0; clips 0 and 1; clips 1 and 2
    tail, action, unseen = (
        rows[f'{name} recall@5, x, {part}']
        for name, part in (
            ('verb', 'rare classes'), ('action', 'rare classes'), ('verb', 'unseen people'),
        )
    )  # fmt: skip
    assert (tail.value, tail.n) == (1, 1) and (action.value, action.n) == (0.5, 2)
    assert unseen.n == 2 and unseen.value == pytest.approx((0 + 1) / 2)
    assert 'noun recall@5, x, rare classes' not in rows
