"""Labelled clips as users write them down."""

import numpy as np
import pytest
from PIL import Image

from jepa_jax.config import LabelledDataConfig
from jepa_jax.errors import ConfigError
from jepa_jax.evals import examples


def read(path, **data):
    return examples.read(str(path), LabelledDataConfig(**data))


def text(folder, content, name='list.csv', code='utf-8'):
    (folder / name).write_bytes(content.encode(code))
    return folder / name


def rows(listed, folder):
    return [(e.path.removeprefix(f'{folder}/'), e.label) for e in listed]


def test_a_folder_a_class(tmp_path):
    for name in ('run/b.mp4', 'run/a.MOV', 'run/.c.mp4', 'run/notes.txt', 'sit/deep/d.webm'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    for name in ('sit/frames/1.png', 'sit/frames/2.png', 'sit/alone.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(tmp_path / name)
    assert sorted(rows(read(tmp_path), tmp_path)) == [
        ('run/a.MOV', 'run'), ('run/b.mp4', 'run'), ('sit/alone.png', 'sit'),
        ('sit/deep/d.webm', 'sit'), ('sit/frames', 'sit'),
    ]  # fmt: skip


@pytest.mark.parametrize('code', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('separator', [',', ';', '\t'])
def test_a_table(tmp_path, code, separator):
    content = separator.join(['Path', 'label', 'group', 'split', 'start', 'end'])
    content += '\r\n' + separator.join(['"a, b;c.mp4"', 'größe', 'g1', 'train', '1.5', '3'])
    content += '\r\n\r\n' + separator.join(['/x/d.mp4', '2', '', 'val', '', '']) + '\r\n'
    one, two = read(text(tmp_path, content, code=code))
    assert (one.path, one.label, one.source) == (f'{tmp_path}/a, b;c.mp4', 'größe', 'g1')
    assert (one.split, one.start, one.end) == ('train', 1.5, 3)
    assert (two.path, two.source, two.split) == ('/x/d.mp4', '/x/d.mp4', 'test')
    assert np.isnan([two.start, two.end, two.time]).all()


@pytest.mark.parametrize(
    'content',
    ['a b.mp4 walk\n# no\n\nc.mp4 run\n', 'a b.mp4::walk\nc.mp4::run', 'a b.mp4,walk\nc.mp4,run\n'],
)
def test_a_list(tmp_path, content):
    assert rows(read(text(tmp_path, content)), tmp_path) == [('a b.mp4', 'walk'), ('c.mp4', 'run')]


def test_sources(tmp_path):
    path = text(tmp_path, 'path,label,camera\nv1_c2.mp4,a,7\nv1_c3.mp4,b,8\n')
    assert [e.source for e in read(path, source=r'(.+)_c\d')] == ['v1', 'v1']
    assert [e.source for e in read(path, group='camera')] == ['7', '8']


@pytest.mark.parametrize(
    'content, data, message',
    [
        ('path,label\na.mp4,x\na.mp4,y\n', {}, "a.mp4 is listed twice, as 'x' and 'y'"),
        ('path,kind\na.mp4,x\n', {}, 'none is called label or class.*data.label=COLUMN'),
        ('path,kind\na.mp4,x\n', {'label': 'kin'}, "data.label = 'kin'.*did you mean kind"),
        ('path,label\na.mp4,x,y\n', {}, 'line 2 has 3 columns, the header 2.*in quotes'),
        ('path,label\na.mp4,\n', {}, 'line 2: no label'),
        ('path,label\n,x\n', {}, 'line 2: no path'),
        ('path,label,split\na.mp4,x,dev\n', {}, "split 'dev': allowed are"),
        ('path,label,time\na.mp4,x,soon\n', {}, "time 'soon' is no number of seconds"),
        ('path,label,start,end\na.mp4,x,3,2\n', {}, 'ends at 2 s, before its start'),
        ('path,label,label\na.mp4,x,y\n', {}, "two columns 'label'"),
        ('a,b,c\nd,e,f\n', {}, 'line 1 is no header: 3 columns'),
        ('name,number\na.mp4,1.5\n', {}, "line 1: 'name' is no file: of a header"),
        ('a.mp4\n', {}, 'line 1 is no `path label`'),
        ('path,label\n"a.mp4,x\n', {}, 'not_text'),
        ('path,label\na.mp4,x\n', {'source': '('}, 'no pattern'),
        ('path,label\na.mp4,x\n', {'source': 'b(.)'}, 'does not occur in .*a.mp4'),
        ('\n', {}, 'lists no clips'),
        (',\n,\n', {}, 'lists no clips'),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, content, data, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(text(tmp_path, content), **data)
    assert '\n' not in str(caught.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match='data.train is empty'):
        read('')
    with pytest.raises(ConfigError, match='missing'):
        read(tmp_path / 'gone.csv')
    with pytest.raises(ConfigError, match='has no folders'):
        read(tmp_path)
    (tmp_path / 'train').mkdir()
    with pytest.raises(ConfigError, match='train=DIR/train'):
        read(tmp_path)


@pytest.mark.parametrize(
    'labels, kind, names',
    [
        (['1', '0', '10', '2'], 'class', ('0', '1', '2', '10')),
        (['b', 'a', 'b', '3'], 'class', ('3', 'a', 'b')),
        (['1', '0.5', '2', '7'], 'number', ('value',)),
        (['a|b', 'b', 'c', 'a| c'], 'labels', ('a', 'b', 'c')),
    ],
)
def test_labels(labels, kind, names):
    assert [examples.kind_of(['1', '2', odd]) for odd in ('nan', 'inf')] == ['number'] * 2
    listed = [examples.Example(f'{i}.mp4', label, str(i)) for i, label in enumerate(labels)]
    assert examples.kind_of(labels) == kind
    values, columns = examples.targets(listed, kind)
    assert columns == names
    if kind == 'number':
        assert values[:, 0].tolist() == [1, 0.5, 2, 7]
    else:
        for row, label in zip(values, labels):
            own = {names[i] for i in np.flatnonzero(row)}
            assert own == {word.strip() for word in label.split('|')}


def test_a_label_that_is_no_number():
    with pytest.raises(ConfigError, match="0.mp4: label 'wide' is no number"):
        examples.targets([examples.Example('0.mp4', 'wide', '0')], 'number')


def test_no_source_is_on_both_sides():
    rng = np.random.default_rng(0)
    listed = [
        examples.Example(f'{i}.mp4', 'ab'[rng.integers(2)], f'source {rng.integers(20)}')
        for i in range(200)
    ]
    test, how = examples.split(listed, LabelledDataConfig(), 0, 'class')
    sides = [{e.source for e, t in zip(listed, test) if t == side} for side in (True, False)]
    assert not sides[0] & sides[1] and how == 'one in 4 of 20 sources, drawn'
    assert 0.15 < test.mean() < 0.35
    assert (test == examples.split(listed, LabelledDataConfig(), 0, 'class')[0]).all()


@pytest.mark.parametrize(
    'splits, sources, message',
    [
        (['train', ''], 'ab', '1.mp4: no split, as other rows have'),
        (['train', 'train'], 'ab', 'no clip is left for testing'),
        (['test', 'test'], 'ab', 'no clip is left for training'),
        (['train', 'test'], 'aa', "source 'a' has clips for training and for testing"),
        (['', ''], 'aa', 'all 2 clips are of one source'),
    ],
)
def test_splits_that_prove_nothing(splits, sources, message):
    listed = [
        examples.Example(f'{i}.mp4', 'x', source, split)
        for i, (split, source) in enumerate(zip(splits, sources))
    ]
    with pytest.raises(ConfigError, match=message):
        examples.split(listed, LabelledDataConfig(), 0, 'class')


def test_one_file_is_on_one_side_whatever_it_is_called(tmp_path):
    """By another path, by a link, and as pieces in two groups."""
    (tmp_path / 'v.mp4').write_bytes(b'x')
    (tmp_path / 'link.mp4').symlink_to(tmp_path / 'v.mp4')
    for name in ('v.mp4', 'link.mp4', f'../{tmp_path.name}/v.mp4'):
        listed = [
            examples.Example(str(tmp_path / 'v.mp4'), 'x', 'a', 'train'),
            examples.Example(str(tmp_path / name), 'x', 'b', 'test'),
        ]
        with pytest.raises(ConfigError, match='v.mp4 is a clip for training and for testing'):
            examples.split(listed, LabelledDataConfig(), 0, 'class')


@pytest.mark.parametrize(
    'values, message',
    [
        ([0.5, 0.5, 1.5, 2.0], 'all 2 clips for training have the value 0.5'),
        ([1.0, 2.0, 1.5, 1.5], 'all 2 clips for testing have the value 1.5'),
    ],
)
def test_numbers_that_are_all_the_same(values, message):
    """There R2 is 0 / 0."""
    test = np.array([False, False, True, True])
    with pytest.raises(ConfigError, match=message):
        examples.refuse_unlearnt('number', np.array(values)[:, None], ('value',), test)
    examples.refuse_unlearnt('number', np.arange(4.0)[:, None], ('value',), test)
