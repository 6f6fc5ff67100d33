"""Readers of the official files: every layout in use, and what is wrong in one line."""

import json

import numpy as np
import official_sets as made
import pytest

from jepa_jax.data import labelled
from jepa_jax.data.labelled import ek100
from jepa_jax.data.labelled.clips import before_action, frames_of, of_video
from jepa_jax.data.labelled.records import Record
from jepa_jax.errors import BadFile, ConfigError

FPS = {1: 60000 / 1001, 2: 50.0, 3: 30000 / 1001}  # of the golden rows' videos


def read(name, folder, **options):
    return labelled.read(name, folder, official=False, **options)


def refused(name, folder, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        labelled.read(name, folder, **{'official': False, **options})
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('old', [False, True])
def test_ssv2(tmp_path, old):
    root = made.ssv2(tmp_path, old=old)
    (root / '20bn-something-something-v2/102.webm').unlink()
    data = read('ssv2', root)
    assert data.names['label'] == tuple(t.replace('[', '').replace(']', '') for t in made.SSV2)
    assert data.listed == {'train': 6, 'validation': 6}
    assert [r.label for r in data.splits['train']] == [(0,), (1,), (1,), (2,), (2,)]
    assert data.missing == {'train': ['102'], 'validation': []}
    assert any('3 classes of label' in line and '174' in line for line in data.notes)


def test_ssv2_classes_in_the_official_order(golden_benchmark):
    """174 names in plain ASCII order, by index; checkpoints of the reference."""
    names = golden_benchmark['ssv2_labels'].tolist()
    assert names == sorted(names) and len(names) == 174
    assert names[47] == 'Picking something up' and names[145].startswith('Stuffing something into')


def test_ssv2_refuses(tmp_path):
    root = made.ssv2(tmp_path)
    file = root / 'labels/train.json'
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([*rows, {**rows[0], 'template': 'Holding [something] badly'}]))
    assert "entry 7: template 'Holding [something] badly'" in refused('ssv2', root)
    file.write_text(json.dumps([*rows, {**rows[0], 'template': made.SSV2[2]}]))
    assert '101.webm is listed twice, with the labels (0,) and (2,)' in refused('ssv2', root)
    file.write_text(json.dumps([{'id': 5}]))
    assert 'entry 1 has id = 5: must be of type str' in refused('ssv2', root)
    file.write_text('{"a": [')
    assert 'train.json: not_text' in refused('ssv2', root)
    file.write_text('[' * 100_000)
    assert 'train.json: not_text' in refused('ssv2', root)
    file.unlink()
    assert 'has no train.json or labels/train.json' in refused('ssv2', root)


def test_another_version_is_told_by_counts_and_names(tmp_path):
    line = refused('ssv2', made.ssv2(tmp_path), official=True)
    assert '3 classes of label (Holding something next to something, ' in line
    assert 'the official files have 174' in line and 'data.official=false' in line
    labels = tmp_path / 'labels/labels.json'
    names = list(json.loads(labels.read_text()))
    labels.write_text(json.dumps({n: str(i) for i, n in enumerate(reversed(names))}))
    assert 'not in ASCII order' in refused('ssv2', tmp_path)


@pytest.mark.parametrize('tree', ['flat', 'classes', 'short'])
def test_kinetics(tmp_path, tree):
    """Ids that start with - and hold _; names sorted with their spaces."""
    data = read('k400', made.kinetics(tmp_path, tree))
    assert data.names['label'] == ('air drumming', 'zumba')
    assert [r.label[0] for r in data.splits['validation']] == [1, 0]
    assert not any(data.missing.values())
    file = tmp_path / 'annotations/val.csv'
    file.write_text(file.read_text() + 'yodelling,abc,0,10,val\n')
    assert "line 4: 'yodelling' is no class of the training file" in refused('k400', tmp_path)
    file.write_text('name,youtube_id\n')
    assert 'the header has no column label, time_start, time_end' in refused('k400', tmp_path)


@pytest.mark.parametrize('word', ['testing', 'validation'])
def test_coin(tmp_path, word):
    data = read('coin', made.coin(tmp_path, word))
    assert data.names['label'] == ('ChangeCarTire', '', 'WrapGiftBox')
    assert [r.label for r in data.splits['train']] == [(2,), (0,)]
    assert data.listed == {'train': 2, 'validation': 2} and not data.missing['train']
    content = json.loads((tmp_path / 'COIN.json').read_text())
    content['database']['y'] = {**content['database']['-x_0tr'], 'recipe_type': 180}
    made.write_json(tmp_path / 'COIN.json', content)
    assert 'entry 5 (y): recipe_type 180 is out of range: 0 to 179' in refused('coin', tmp_path)


def test_diving(tmp_path):
    data = read('diving48', made.diving(tmp_path / 'a'))
    assert data.names['label'] == ('Back 15som 05Twis FREE', 'Forward 45som NoTwis TUCK')
    assert data.splits['validation'][1].path.endswith('rgb/_8Vytest_00001.mp4')
    numbers = read('diving48', made.diving(tmp_path / 'b', vocabulary=False))
    assert numbers.names['label'][47] == '47' and 'numbers' in numbers.notes[0]
    rows = [{'vid_name': 'x', 'label': 2}]
    made.write_json(tmp_path / 'a/Diving48_V2_train.json', rows)
    assert 'entry 1 (x): label 2 is out of range: 0 to 1' in refused('diving48', tmp_path / 'a')


def test_jester(tmp_path):
    data = read('jester', made.jester(tmp_path))
    assert [r.label for r in data.splits['train']] == [(0,), (1,), (2,)] and data.fps == 12
    frames = of_video(data.splits['train'][1], 8, 2, 2, data.fps)
    assert frames.shape == (16, 36, 48, 3)  # nine pictures: the last one repeats
    np.testing.assert_array_equal(frames[6], frames[7])
    file = tmp_path / 'jester-v1-train.csv'
    file.write_text('8;Swiping Up\n')
    assert "line 1: 'Swiping Up' is not in jester-v1-labels.csv" in refused('jester', tmp_path)


@pytest.mark.parametrize('below', ['', 'imagenet_full_size/061417'])
def test_imagenet(tmp_path, below):
    data = read('in1k', made.imagenet(tmp_path, below))
    assert [r.label for r in data.splits['train']] == [(0,), (1,), (2,)]
    cmyk = of_video(data.splits['train'][1], 4, 1, 1)
    assert cmyk.shape == (4, 36, 48, 3) and cmyk.dtype == np.uint8
    root = tmp_path / below
    (root / 'val/n01443537').rename(root / 'val/n01443538')
    assert 'n01443537 is on one side only' in refused('in1k', tmp_path)
    (root / 'val/n01443538').rename(root / 'val/n01443537')
    (root / 'val/ILSVRC2012_val_00000001.JPEG').write_bytes(b'x')
    assert '1 pictures are in no class folder' in refused('in1k', tmp_path)


def rows(table, columns=5):
    return [ek100.Action(f'P{r[0]:02d}_{r[0]:02d}', *map(int, r[1:columns])) for r in table]


def test_frames_of_an_array(tmp_path):
    """Which `embed --classify` is asked about as any other input."""
    frames = np.random.default_rng(0).integers(0, 256, (13, 8, 6, 3), np.uint8)
    np.save(tmp_path / 'a.npy', frames)
    record = Record(str(tmp_path / 'a.npy'), (0,))
    # from the first to the end of a span of 12 (reference: vjepa2 §6.1)
    np.testing.assert_array_equal(of_video(record, 3, 4, 1, fps=1.0), frames[[0, 6, 11]])


def test_kitchens_order_and_filter(golden_benchmark, tmp_path):
    """As the original orders and filters: to its very rows, through the csv files."""
    g = golden_benchmark
    train, validation = ([
        (f'P{r[0]:02d}_0{r[0]}', *r[1:]) for r in g[f'ek_tiny_{s}'].tolist()
    ] for s in ('train', 'val'))  # fmt: skip
    for number in (1, 2, 3):
        made.video(tmp_path / f'P0{number}/videos/P0{number}_0{number}.MP4', 0, number)
    data = read('ek100', made.kitchens(tmp_path, train, validation))
    order = ek100.classes(rows(g['ek_tiny_train']))
    np.testing.assert_array_equal(order.verbs, g['ek_tiny_verbs'])
    np.testing.assert_array_equal(order.nouns, g['ek_tiny_nouns'])
    np.testing.assert_array_equal(order.actions, g['ek_tiny_actions'])
    assert data.names['verb'] == tuple(map(str, g['ek_tiny_verbs'].tolist()))
    kept = [r for r in data.splits['validation'] if r.label[2] >= 0]
    assert [(*r.frames, r.label[2]) for r in kept] == [
        (r[1], r[2], r[5]) for r in g['ek_tiny_val_kept'].tolist()
    ]
    assert len(data.splits['validation']) == 5  # the official ones too
    assert sum('numbers' in note for note in data.notes) == 2
    made.write_csv(tmp_path / 'EPIC_100_verb_classes.csv', [['id', 'key'], [3, 'open']])
    assert 'has no verb 0, which training has' in refused('ek100', tmp_path)


def test_kitchens_classes_that_training_lacks():
    """Each is a class of its own, so that a mean over classes counts each of them."""
    known = ek100.classes([ek100.Action('v', 0, 1, 3, 8)])
    asked = [ek100.Action('v', 0, 1, *pair) for pair in ((3, 8), (3, 9), (0, 8), (3, 9))]
    assert ek100.labels(asked, known) == [(0, 0, 0), (0, -1, -1), (-1, 0, -2), (0, -1, -1)]


def test_kitchens_real_order(golden_benchmark):
    """3,568 pairs in another order than that of released heads are noted; fewer are none of its."""
    order = [tuple(pair) for pair in golden_benchmark['ek100_action_order'].tolist()]
    assert not ek100.other_order(order)
    (note,) = ek100.other_order(sorted(order))
    assert 'CRC-32' in note and 'expected 4003278415' in note
    assert not ek100.other_order(order[:5])
    assert ek100.other_order([(10**30, 0), *order[1:]])  # numbers that no official file has


def test_kitchens_other_tree_and_missing_videos(tmp_path):
    made.video(tmp_path / 'P01/P01_11.MP4', 0, 1)
    train = [('P01_11', 1, 113, 0, 2), ('P02_01', 5, 9, 1, 2)]
    data = read('ek100', made.kitchens(tmp_path, train, train))
    assert data.missing['train'] == ['P02_01'] and data.listed['train'] == 2
    assert data.splits['train'][0].path.endswith('P01/P01_11.MP4')
    made.kitchens(tmp_path, [('P01_11', 113, 1, 0, 2)], train)
    assert "line 2: video 'P01_11', frames 113 to 1" in refused('ek100', tmp_path)


def test_kitchens_clips(golden_benchmark):
    g = golden_benchmark
    for row, golden in zip(g['ek_tiny_val_kept'].tolist(), g['ek_clip_val'], strict=True):
        np.testing.assert_array_equal(before_action(tuple(row[1:3]), 32, FPS[row[0]]), golden)
    train = sorted(g['ek_tiny_train'].tolist(), key=lambda row: (row[0], row[1]))
    for row, golden in zip(train, g['ek_clip_train'], strict=True):
        clip = before_action(tuple(row[1:3]), 32, FPS[row[0]], 0.6, 0.2)
        np.testing.assert_array_equal(clip, golden)
    # the challenge's rule: nothing after start - 1 s
    assert before_action((300, 900), 32, 50.0, point=1.0)[-1] < 300 - 50


def test_corrupt_clips_are_named(tmp_path):
    path = tmp_path / 'broken.mp4'
    path.write_bytes(b'\0' * 100)
    with pytest.raises(BadFile, match=r'broken\.mp4'):
        of_video(Record(str(path), (0,)), 4, 1, 1)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BadFile, match='no_images'):
        frames_of(str(tmp_path / 'empty'), lambda timing: np.zeros(1, int), 12.0)


def test_an_unknown_set_and_a_missing_folder(tmp_path):
    assert 'did you mean ssv2?' in refused('ssv3', tmp_path)
    assert 'no such folder' in refused('ssv2', tmp_path / 'none')
    assert 'data.path is empty' in refused('ssv2', '')
