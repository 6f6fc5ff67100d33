"""Readers of pictures and videos with labels for every pixel, on replicas of their layouts."""

import struct
import zlib

import dense_sets as made
import numpy as np
import pytest

from jepa_jax.data import labelled_scenes, pictures
from jepa_jax.data.labelled import dense
from jepa_jax.data.labelled.dense import IGNORE, read
from jepa_jax.errors import BadFile, ConfigError


def load(task, name, root):
    return read(task, name, root, official_only=False)


def test_ade20k(tmp_path):
    data = load('segmentation', 'ade20k', made.ade20k(tmp_path))
    assert len(data.names['label']) == 150 and data.names['label'][149] == 'thing 150'
    assert data.listed == {'train': 4, 'validation': 2} and len(data.notes) == 2
    pixels, labels = data.splits['train'][0].read()
    assert pixels.shape == (24, 32, 3) and pixels.dtype == np.uint8
    assert (labels[0] == IGNORE).all()  # 0 is none
    assert set(labels[1:, :16].ravel()) == {0} and set(labels[1:, 16:].ravel()) == {149}
    # one folder up is as good; names are not needed
    (tmp_path / 'objectInfo150.txt').unlink()
    nested = tmp_path / 'up'
    nested.mkdir()
    (nested / 'ADEChallengeData2016').symlink_to(tmp_path)
    assert load('segmentation', 'ade20k', nested).names['label'][:2] == ('1', '2')


def test_voc_keeps_palette_indices(tmp_path):
    root = made.voc(tmp_path)
    made.voc(tmp_path, train=6, list_name='trainaug')
    data = load('segmentation', 'voc12', root)
    assert len(data.splits['train']) == 4 and data.names['label'][15] == 'person'
    labels = data.splits['validation'][1].read()[1]
    assert set(labels.ravel()) == {0, 15, IGNORE}
    assert (labels[:, 15:17] == IGNORE).all()
    # of both folders that of the augmented set counts; grey pictures do as well as palettes
    made.values(root / 'SegmentationClassAug/2007_val_001.png', made.halves(3, 20))
    more = load('segmentation', 'voc12_aug', root)
    assert len(more.splits['train']) == 6
    assert set(more.splits['validation'][1].read()[1].ravel()) == {3, 20}


def test_nyuv2(tmp_path):
    root = made.nyuv2(tmp_path)
    (root / 'sync/kitchen_0001/rgb_00003.jpg').unlink()
    data = load('depth', 'nyuv2', root)
    assert data.missing == {'train': ['/kitchen_0001/rgb_00003.jpg'], 'validation': []}
    assert [s.source for s in data.splits['train']] == ['kitchen_0000'] * 2 + ['kitchen_0001']
    metres = data.splits['validation'][0].read()[1]
    assert metres.dtype == np.float32 and not metres[0].any()
    np.testing.assert_allclose(np.unique(metres[1:]), [1.5, 4.0])


def test_davis(tmp_path):
    root = made.davis(tmp_path)
    (root / 'Annotations/480p/val-1/00002.png').unlink()
    data = load('propagation', 'davis17', root)
    assert data.missing['validation'] == ['val-1']
    frames, labels = data.splits['validation'][0].read()
    assert frames.shape == (5, 32, 48, 3) and labels.dtype == np.uint8
    assert [(labels[t] == 1).nonzero()[1].min() for t in range(5)] == [0, 2, 4, 6, 8]
    assert (labels == 2).sum((1, 2)).tolist() == [256] * 5


def test_self_made():
    """What is known of every pixel fits together and is the same each time."""
    data = read('segmentation', 'self_made_few', '')
    assert data.listed == {'train': 27, 'validation': 18}
    sources = [{s.source for s in data.splits[k]} for k in ('train', 'validation')]
    assert not sources[0] & sources[1] and len(sources[1]) == 6
    scene = labelled_scenes.video('test', 1)
    pixels, classes = data.splits['validation'][4].read()
    np.testing.assert_array_equal(pixels, scene.frames[8])
    np.testing.assert_array_equal(classes, scene.classes[8])
    labelled_scenes.video.cache_clear()
    again = labelled_scenes.video('test', 1)
    np.testing.assert_array_equal(again.frames, scene.frames)
    for t in (0, 8, 23):
        own = scene.objects[t] > 0
        np.testing.assert_array_equal(own, scene.classes[t] > 0)
        assert (scene.metres[t][~own] <= labelled_scenes.BACK).all()
        for number in np.unique(scene.objects[t][own]):
            there = scene.objects[t] == number
            assert len(np.unique(scene.metres[t][there])) == 1  # a thing has one distance
            assert len(np.unique(scene.classes[t][there])) == 1
    ground = np.where(scene.objects[0] > 0, np.nan, scene.metres[0])
    assert (np.diff(np.nanmax(ground, 1)) <= 1e-5).all()  # the floor comes nearer downwards
    assert np.bincount(scene.objects[0].ravel())[1:].min() >= labelled_scenes.LEAST
    one = read('depth', 'self_made_few', '').splits['train'][0].read()[1]
    assert one.dtype == np.float32 and one.min() > 0
    video = read('propagation', 'self_made_few', '').splits['validation'][1].read()
    np.testing.assert_array_equal(video[1], scene.objects)


def test_nearer_things_hide_farther_ones_and_look_larger():
    radius = labelled_scenes.FOCAL * np.array(labelled_scenes.RADIUS)
    for index in range(3):
        scene = labelled_scenes.video('train', index)
        for t in (0, 12):
            for number in range(1, 4):  # not the digit, which has holes
                there = scene.objects[t] == number
                if there.any():
                    most = radius[1] / scene.metres[t][there][0]
                    assert there.sum() <= np.pi * (most + 1) ** 2


# What is wrong


def break_label(numbers, palette=False):
    def put(root, path):
        made.values(root / path, numbers, palette)

    return put


ADE, VOC = 'annotations/training/ADE_train_00000002.png', 'SegmentationClass/2007_train_001.png'
DEPTH, MASK = 'sync/kitchen_0000/sync_depth_00001.png', 'Annotations/480p/train-1/00002.png'
SETS = {
    'ade20k': ('segmentation', made.ade20k, ADE, 1),
    'voc12': ('segmentation', made.voc, VOC, 1),
    'nyuv2': ('depth', made.nyuv2, DEPTH, 1),
    'davis17': ('propagation', made.davis, MASK, 1),
}


@pytest.mark.parametrize(
    ('name', 'numbers', 'reason', 'words'),
    [
        ('ade20k', made.halves(1, 151), 'bad_units', 'class 151: must be 1 to 150, or 0 or 255'),
        ('voc12', made.halves(0, 21), 'bad_units', 'class 21: must be 0 to 20, or 255 for none'),
        ('voc12', made.halves(0, 300, np.uint16), 'bad_units', 'class 300: must be 0 to 20'),
        ('davis17', made.halves(0, 21), 'bad_units', 'object 21: must be 1 to 20'),
        ('nyuv2', made.halves(1, 2), 'bad_units', 'grey of 8 bits: distances must have 16'),
        ('ade20k', made.halves(1, 2, size=(24, 30)), 'mismatch', '24 x 30 pixels, ADE_train_'),
        ('nyuv2', made.halves(9, 8, np.uint16, (32, 24)), 'mismatch', '32 x 24 pixels, rgb_00001'),
        (
            'davis17',
            made.halves(0, 1, size=(32, 32)),
            'mismatch',
            '32 x 32 pixels, 00000.jpg has 32 x 48',
        ),
    ],
)
def test_labels_that_cannot_be(tmp_path, name, numbers, reason, words):
    task, make, path, row = SETS[name]
    root = make(tmp_path)
    made.values(root / path, numbers)
    with pytest.raises(BadFile) as error:
        load(task, name, root).splits['train'][row].read()
    assert error.value.reason == reason and words in str(error.value)
    assert str(root / path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('name', SETS)
@pytest.mark.parametrize('cut', [0, 60])
def test_corrupt_labels(tmp_path, name, cut):
    task, make, path, row = SETS[name]
    root = make(tmp_path)
    content = (root / path).read_bytes()
    (root / path).write_bytes(content[:cut])
    with pytest.raises(BadFile) as error:
        load(task, name, root).splits['train'][row].read()
    assert error.value.reason in ('empty', 'truncated', 'corrupt', 'not_image')
    load(task, name, root).splits['train'][0].read()  # the others are as they were


def test_first_frame_without_objects(tmp_path):
    root = made.davis(tmp_path)
    made.values(root / 'Annotations/480p/train-1/00000.png', np.zeros((32, 48), np.uint8))
    with pytest.raises(BadFile, match='no object in the first frame, nothing to follow'):
        load('propagation', 'davis17', root).splits['train'][1].read()


def grey_of_4_bits() -> bytes:
    """A PNG of 2 x 1 pixels, 3 and 5, which Pillow would read as 51 and 85."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', crc)

    header = struct.pack('>IIBBBBB', 2, 1, 4, 0, 0, 0, 0)
    parts = chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(b'\0\x35')), chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def test_colour_is_no_label(tmp_path):
    made.picture(tmp_path / 'a.png', 0)
    with pytest.raises(BadFile, match='RGB: must be a palette, or grey of 8 or 16 bits'):
        pictures.read_values(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_bytes(grey_of_4_bits())
    with pytest.raises(BadFile, match='grey of 4 bits: must be 8 or 16'):
        pictures.read_values(tmp_path / 'b.png')
    wide = np.array([[0, 1], [65535, 40000]], np.uint16)
    made.values(tmp_path / 'c.png', wide)
    np.testing.assert_array_equal(pictures.read_values(tmp_path / 'c.png'), wide)


@pytest.mark.parametrize(
    ('task', 'name', 'words'),
    [
        ('segmentation', 'ade20k', 'has no folder images, nor has ADEChallengeData2016'),
        ('segmentation', 'voc12', 'has no ImageSets/Segmentation/train.txt'),
        ('depth', 'nyuv2', 'has no nyudepthv2_train_files_with_gt.txt'),
        ('propagation', 'davis17', 'has no ImageSets/2017/train.txt'),
    ],
)
def test_another_folder(tmp_path, task, name, words):
    with pytest.raises(ConfigError, match=words):
        load(task, name, tmp_path)
    with pytest.raises(ConfigError, match='data.path is empty: the folder of'):
        load(task, name, '')
    with pytest.raises(ConfigError, match='no such folder'):
        load(task, name, tmp_path / 'gone')


def test_another_version(tmp_path):
    root = made.ade20k(tmp_path / 'ade', names=149)
    with pytest.raises(
        ConfigError, match=r'another version: 149 classes of label \(thing 1, thing 2, '
    ):
        read('segmentation', 'ade20k', root)
    made.ade20k(root)
    with pytest.raises(ConfigError) as error:
        read('segmentation', 'ade20k', root)
    assert 'lists 4 pictures for train, the official file 20,210' in str(error.value)
    assert '--config.data.official=false' in str(error.value)
    with pytest.raises(ConfigError, match='davis17: another version: train.txt lists 2 videos for'):
        read('propagation', 'davis17', made.davis(tmp_path / 'davis'))


def test_empty_split_and_bad_lists(tmp_path):
    root = made.voc(tmp_path / 'voc')
    for path in root.glob('JPEGImages/*val*'):
        path.unlink()
    with pytest.raises(ConfigError, match='validation is empty: val.txt lists 2, none of which is'):
        load('segmentation', 'voc12', root)
    (root / 'ImageSets/Segmentation/val.txt').write_text('../../etc/passwd\n')
    with pytest.raises(ConfigError, match='outside'):
        load('segmentation', 'voc12', root)
    root = made.nyuv2(tmp_path / 'nyu')
    (root / 'nyudepthv2_test_files_with_gt.txt').write_text('/a.jpg /b.png\n')
    with pytest.raises(ConfigError, match='line 1 has 2 words: must be picture, depth, focal'):
        load('depth', 'nyuv2', root)


def test_readers_are_those_of_the_configs():
    assert set(dense.READERS) == {'segmentation', 'depth', 'propagation'}
    for sets in dense.READERS.values():
        assert {'self_made', 'self_made_few'} < set(sets)
