"""Lists of every make: what is read, what is said of the rest."""

import json
import logging
import os

import numpy as np
import pytest
from PIL import Image

from jepa_jax import files
from jepa_jax.config import DataConfig, DataListConfig
from jepa_jax.data import lists
from jepa_jax.data.sources import open_source
from jepa_jax.errors import BadFile, ConfigError


def read(folder, text, encoding='utf-8'):
    path = folder / 'list.csv'
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    here = f'{folder}/'
    return [(name.removeprefix(here), label) for name, label in lists.read_list(path)]


@pytest.mark.parametrize(
    'text, records',
    [
        ('a.mp4,3\nb c.mp4,0\n', [('a.mp4', 3), ('b c.mp4', 0)]),
        ('a.mp4;3\nb c.mp4;-1\n', [('a.mp4', 3), ('b c.mp4', -1)]),
        ('a.mp4\t3\nb c.mp4\t0\n', [('a.mp4', 3), ('b c.mp4', 0)]),
        ('3,a.mp4\n0,b c.mp4\n', [('a.mp4', 3), ('b c.mp4', 0)]),
        ('"a, b.mp4",3\n"say ""c"".mp4",4\n', [('a, b.mp4', 3), ('say "c".mp4', 4)]),
        ('"a b.mp4" 3\n"c d.mp4"\n', [('a b.mp4', 3), ('c d.mp4', None)]),
        ('path,label\na.mp4,3\n', [('a.mp4', 3)]),
        ('path label\na.mp4 3\n', [('a.mp4', 3)]),
        ('video_path\na.mp4\n', [('a.mp4', None)]),
        ('id,label,path,split\n1,3,a.mp4,train\n2,4,b.mp4,test\n', [('a.mp4', 3), ('b.mp4', 4)]),
        ('a.mp4, 3.0\nb.mp4, 4\n', [('a.mp4', 3), ('b.mp4', 4)]),
        ('a.mp4,\nb.mp4,4\n', [('a.mp4', None), ('b.mp4', 4)]),
        ('a.mp4,cat\nb.mp4,dog\n', [('a.mp4', None), ('b.mp4', None)]),
        ('a.mp4 cat\nb.mp4 3\n', [('a.mp4 cat', None), ('b.mp4', 3)]),
        ('1,a.mp4,x\n2,b.mp4,y\n', [('a.mp4', None), ('b.mp4', None)]),
        ('a, b.mp4 3\nc.mp4 4\nd.mp4 5\n', [('a, b.mp4', 3), ('c.mp4', 4), ('d.mp4', 5)]),
        ('a.mp4 99999999999999999999\n', [('a.mp4', None)]),
        ('a\0b.mp4 3\nb.mp4 4\n', [('a\0b.mp4', 3), ('b.mp4', 4)]),
        ('~a\0b 3\n', [('~a\0b', 3)]),
    ],
)  # fmt: skip
def test_tables(tmp_path, text, records):
    assert read(tmp_path, text) == records
    for encoding in ('utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'):
        if '\0' not in text:
            assert read(tmp_path, text, encoding) == records
    assert read(tmp_path, text.replace('\n', '\r\n')) == records


def test_a_line_that_is_a_file(tmp_path):
    """What names a file as it stands keeps its meaning."""
    for name in ('a.mp4,3', 'b,c.mp4', '"d.mp4"', 'path'):
        (tmp_path / name).touch()
    assert read(tmp_path, 'a.mp4,3\nb,c.mp4 5\n') == [('a.mp4,3', None), ('b,c.mp4', 5)]
    assert read(tmp_path, '"d.mp4" 4\n') == [('"d.mp4"', 4)]
    assert read(tmp_path, 'path\nx.mp4\n') == [('path', None), ('x.mp4', None)]


def test_what_is_not_used_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read(tmp_path, 'path,label\na.mp4,3\nb.mp4,cat\nc.mp4,dog\n')
    assert '2 lines: a label that is no whole number' in caplog.text
    assert 'line 3: b.mp4,cat' in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read(tmp_path, 'a.mp4 3\nb.mp4 cat\n')
    assert '1 lines: more after the name' in caplog.text and 'line 2: b.mp4 cat' in caplog.text
    caplog.clear()
    read(tmp_path, 'a.mp4 3\nb c.mp4\nb\n')
    assert not caplog.text


def test_what_is_no_list(tmp_path, monkeypatch):
    for start in (b'PK\x03\x04', b'PAR1', b'\x1f\x8b\x08'):
        with pytest.raises(BadFile, match='must be text'):
            read(tmp_path, start + bytes(100))
    os.mkfifo(tmp_path / 'fifo.txt')
    with pytest.raises(BadFile, match='not a regular file'):
        lists.read_list(tmp_path / 'fifo.txt')
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.txt', 'PNG')
    for name in ('fifo.txt', 'a.txt'):
        with pytest.raises(ConfigError, match=r'data.lists\[0\].path') as caught:
            open_source(DataListConfig(path=str(tmp_path / name)), DataConfig())
        assert '\n' not in str(caught.value)
    monkeypatch.setenv(files.VARIABLE, 'index=100')
    with pytest.raises(BadFile, match='index: 300 bytes of a list: at most 100'):
        read(tmp_path, 'a' * 300)


@pytest.mark.parametrize(
    'row, words',
    [
        ('[]', 'path is null'), ('{"path": 3}', 'path is int, must be str'), ('null', 'path'),
        ('{"path": "a", "label": "cat"}', 'label is str, must be int or null'),
        ('{"path": "a", "label": true}', 'label is bool'), ('{"path": "a", "label": 1e9}', 'float'),
        ('{"path": "a", "problem": 3}', 'problem is int'), ('{"path": ["a"]}', 'path is list'),
        ('[' * 100_000, 'line 1'), ('{"path": "a", "label": %s}' % ('9' * 30), '64 bits'),
        ('{"path": "a", "label": %s}' % ('9' * 5000), 'line 1'), ('\0', 'line 1'),
    ],
)  # fmt: skip
def test_wrong_types_in_a_manifest(tmp_path, row, words):
    (tmp_path / 'm.jsonl').write_text(row + '\n')
    with pytest.raises(ConfigError, match=words) as caught:
        open_source(DataListConfig(path=str(tmp_path / 'm.jsonl')), DataConfig())
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


def test_scan(tmp_path):
    """Every suffix of a video; what is passed over is counted; links."""
    outside = tmp_path / 'outside'
    outside.mkdir()
    folder = tmp_path / 'videos'
    (folder / 'deep').mkdir(parents=True)
    named = [f'deep/a{suffix}' for suffix in ('.mts', '.M2TS', '.vob', '.divx', '.mp4')]
    for name in [*named, '.hidden.mp4', '._a.mp4', 'n.txt', 'm.txt', 'x', 'broken.gif']:
        (folder / name).touch()
    images = [Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue')]
    for suffix in ('gif', 'webp', 'png', 'tif'):
        images[0].save(folder / f's.{suffix}', save_all=True, append_images=images[1:])
        images[0].save(folder / f'i.{suffix}')
    (folder / 'link.mp4').symlink_to(outside / 'gone.mp4')
    (folder / 'loop').symlink_to(folder)
    (folder / 'self.mp4').symlink_to(folder / 'self.mp4')
    source = open_source(DataListConfig(path=str(folder)), DataConfig())
    names = [os.path.relpath(source.name(i), folder) for i in range(len(source))]
    stacks = ['s.gif', 's.png', 's.tif', 's.webp']
    assert names == sorted([*named, '.hidden.mp4', 'link.mp4', 'self.mp4', *stacks])
    assert source.skipped == {
        '.txt': 2, 'linked folders': 1, 'companions of macOS': 1, 'files without suffix': 1,
        '.gif empty': 1, '.gif of one frame': 1, '.png of one frame': 1, '.tif of one frame': 1,
        '.webp of one frame': 1,
    }  # fmt: skip
    deep = folder
    for _ in range(30):
        deep = deep / ('d' * 50)
    os.makedirs(deep)
    assert lists.scan(folder, lists.VIDEOS)[0] == [source.name(i) for i in range(len(source))]


def test_kinds_in_one_list(tmp_path):
    """What each line names is read as what it is: all of frames whose number is their value."""
    frames = np.repeat(np.arange(24, dtype=np.uint8), 8 * 8 * 3).reshape(24, 8, 8, 3)
    images = [Image.fromarray(frame) for frame in frames]
    options = {'save_all': True, 'append_images': images[1:]}
    images[0].save(tmp_path / 'a.mp4', 'WEBP', duration=125, lossless=True, **options)
    images[0].save(tmp_path / 'b.jpg', 'TIFF', **options)
    np.save(tmp_path / 'c.npy', frames)
    images[9].save(tmp_path / 'd.avi', 'PNG')
    (tmp_path / 'l.txt').write_text('a.mp4\nb.jpg\nc.npy\nd.avi\n')
    source = open_source(DataListConfig(path=str(tmp_path / 'l.txt')), DataConfig(fps=4))
    values = [source.read(i, 4, np.random.default_rng(0))[:, 0, 0, 0].tolist() for i in range(4)]
    # 8 a second at 4: four in a row span 8 frames, as linspace cuts them; without a clock 4 frames
    start = np.random.default_rng(0).integers(8, 24) - 8
    assert values[0] == np.linspace(start, start + 8, 4).clip(start, start + 7).astype(int).tolist()
    start = np.random.default_rng(0).integers(4, 24) - 4
    expected = np.linspace(start, start + 4, 4).clip(start, start + 3).astype(int).tolist()
    assert values[1] == values[2] == expected
    assert values[3] == [9] * 4


def test_shards_index(tmp_path):
    record = {'path': 'a', 'label': None, 'first': 0, 'offset': 0, 'shape': [2, 4, 4, 3], 'fps': 8}
    good = {'version': 1, 'records': [record], 'skipped': [{'reason': 'empty'}]}
    (tmp_path / 'shard-00000.rgb').write_bytes(bytes(96))

    def opened(shard):
        text = shard if isinstance(shard, str) else json.dumps(shard)
        (tmp_path / 'shard-00000.json').write_text(text)
        return open_source(DataListConfig(path=str(tmp_path), kind='shards'), DataConfig())

    assert len(opened(good)) == 1
    bad = [{'path': 3}, {'label': 'x'}, {'label': 2**70}, {'offset': -1}, {'offset': 1.5}]
    bad += [{'shape': [2, 4, 3]}, {'shape': [-2, 4, 4, 3]}, {'shape': [2, 4, 4, 1]}, {'shape': 7}]
    bad += [{'shape': [2, 2**20, 2**20, 3]}, {'fps': 0}, {'fps': 'a'}, {'fps': float('nan')}]
    shards = [good | {'records': [record | change]} for change in bad]
    shards += [good | {'records': 7}, good | {'skipped': [{}]}, {'version': 1}, [], 'nonsense', '']
    for shard in shards:
        with pytest.raises(
            ConfigError, match=r'data.lists\[0\].path: .*shard-00000.json'
        ) as caught:
            opened(shard)
        assert '\n' not in str(caught.value)


def test_paths_of_windows(tmp_path):
    """Read where the file is there; else they are names, as any other."""
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/b c.mp4').write_bytes(b'x')
    (tmp_path / 'd\\e.mp4').write_bytes(b'x')  # a name that holds a backslash
    text = 'a\\b c.mp4 3\r\n.\\a\\b c.mp4 4\r\nd\\e.mp4 5\r\nC:\\gone.mp4 6\r\n'
    (tmp_path / 'l.txt').write_bytes(text.encode())
    names = ['a/b c.mp4', 'a/b c.mp4', 'd\\e.mp4', 'C:\\gone.mp4']
    assert lists.read_list(tmp_path / 'l.txt') == [
        (str(tmp_path / name), label) for name, label in zip(names, (3, 4, 5, 6))
    ]
