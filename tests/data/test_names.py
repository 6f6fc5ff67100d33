"""Lists of many names as a mapped file: the records of the text list, and no damaged one."""

import logging
import pickle
import sys
import tracemalloc

import numpy as np
import pytest

from jepa_jax import commands
from jepa_jax.config import DataConfig, DataListConfig
from jepa_jax.data import lists, names
from jepa_jax.data.sources import open_source
from jepa_jax.errors import BadFile, ConfigError

PLAIN = ''.join(f'/data/{i % 7}/clip {i}.mp4 {i}\n/data/v{i}.MKV\n' for i in range(40))
SIMPLE = ''.join(f'/data/{i % 7}/clip_{i}.mp4 {i}\n/data/v{i}.MKV\n' for i in range(40))
TEXTS = {
    'simple': SIMPLE,
    'spaces': PLAIN,
    'no newline at the end': SIMPLE[:-1],
    'one line that nothing ends': '/data/a b.mp4 3',
    'a last line that tells no table': '"/q, r.mp4",5\n/a b c.mp4\n/a b c.mp4',
    'every oddity': SIMPLE + '\n# a remark\n../up.mp4 3\n~/home.mp4\n/a//b/./c/../d.mp4 4\n'
    '"/q, r.mp4" 5\n/w\\x.mp4 6\n/z.mp4::7\n/é\udcff.mp4 8\n  /lead.mp4\t9  \n/minus.mp4 -1\n'
    + SIMPLE,
    'a table': 'path,label\n' + SIMPLE.replace(' ', ','),
    'comments': '# one\n\n' + SIMPLE.replace('/data/3', '#'),
    'windows': SIMPLE.replace('\n', '\r\n'),
}  # fmt: skip


def together(path) -> list[tuple[str, int | None]]:
    """What `pieces` gives, as `read_list` has it; its labels below 0 are the other's None or -1."""
    records = []
    for own, labels in lists.pieces(path):
        assert len(own) == len(labels) and labels.dtype == np.int64
        pairs = zip(own, labels.tolist())
        records += [(name.decode('utf-8', 'surrogateescape'), label) for name, label in pairs]
    return records


@pytest.mark.parametrize('name', TEXTS)
def test_pieces_are_the_list(name, tmp_path, monkeypatch, caplog):
    path = tmp_path / 'l.txt'
    path.write_bytes(TEXTS[name].encode('utf-8', 'surrogateescape'))
    monkeypatch.setattr(lists, 'PIECE', 300)
    whole = lists.read_list(path)
    assert together(path) == [(p, -1 if label is None else label) for p, label in whole]
    fast = [lists._simple(piece.encode()) is not None for piece in (SIMPLE[:-1], PLAIN[:-1])]
    assert fast == [True, False]
    if name.startswith('every'):
        said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
        assert len(set(said)) == len(said) / 2  # the same of both


def test_other_encodings_and_endless_lines(tmp_path, monkeypatch):
    for encoding in ('utf-16', 'utf-8-sig'):
        (tmp_path / 'l.txt').write_text(SIMPLE, encoding)
        assert together(tmp_path / 'l.txt')[:2] == [('/data/0/clip_0.mp4', 0), ('/data/v0.MKV', -1)]
    monkeypatch.setattr(lists, 'PIECE', 300)
    (tmp_path / 'l.txt').write_text(SIMPLE + 'x' * 1000)
    with pytest.raises(BadFile, match='a line of more than 300 bytes'):
        together(tmp_path / 'l.txt')


def test_a_run_reads_the_mapped_list(tmp_path, capsys, monkeypatch):
    text, out = tmp_path / 'l.txt', tmp_path / 'l.names'
    text.write_text(SIMPLE)
    monkeypatch.setattr(sys, 'argv', ['jepa index', str(text), '--out', str(out), '--names'])
    assert commands.module('index').main() == 0
    assert capsys.readouterr().out.startswith('80 names of ')
    plain, mapped = (
        open_source(DataListConfig(path=str(path)), DataConfig()) for path in (text, out)
    )
    state = pickle.dumps(mapped)
    assert len(state) < 2000 and str(out).encode() in state  # and no name
    again = pickle.loads(state)
    for source in (mapped, again):
        assert len(source) == len(plain) == 80
        assert [source.name(i) for i in range(80)] == [plain.name(i) for i in range(80)]
        assert [source.label(i) for i in range(80)] == [plain.label(i) for i in range(80)]
    assert lists.read_list(out) == lists.read_list(text)
    names.write(out, [([b'/other.mp4'], np.array([-1]))])
    with pytest.raises(BadFile, match='written anew while it was in use'):
        pickle.loads(state)
    (other,) = [open_source(DataListConfig(path=str(out)), DataConfig())]
    assert other.name(0) == '/other.mp4' and other.label(0) is None
    for argv, words in (
        ([str(text), '--out', str(tmp_path / 'l.txt2'), '--names'], 'must end in .names'),
        ([str(tmp_path / 'no.txt'), '--out', str(out), '--names'], 'no.txt'),
    ):
        monkeypatch.setattr(sys, 'argv', ['jepa index', *argv])
        assert commands.module('index').main() == 1
        assert words in capsys.readouterr().err


def test_damage_is_refused(tmp_path):
    path = tmp_path / 'l.names'
    own = [b'/a.mp4', b'/bb.mp4', b'/c.mp4']
    assert names.write(path, [(own[:2], np.array([3, -1])), (own[2:], np.array([5]))]) == (3, 19)
    good = path.read_bytes()
    assert len(good) == 24 + 2 * 3 * 8 + names.END
    mapped = names.Mapped(path)
    assert [mapped[i] for i in range(3)] == ['/a.mp4', '/bb.mp4', '/c.mp4']
    assert mapped.labels.tolist() == [3, -1, 5]
    ends = 24  # where they begin
    for at, value, words in (
        (len(good) - names.END, 0, 'no list of names'),
        (len(good) - 24, 4, 'bytes for 4 names'),
        (len(good) - 16, 2**62, 'bytes for 3 names'),
        (ends, 30, 'end before they begin'),
        (ends + 16, 18, 'elsewhere than their text'),
    ):
        path.write_bytes(good[:at] + value.to_bytes(8, 'little') + good[at + 8 :])
        with pytest.raises((BadFile, ConfigError), match=words):
            names.Mapped(path)
    path.write_bytes(good[:20])
    with pytest.raises(BadFile, match='no list of names'):
        names.Mapped(path)


def test_mapping_takes_no_memory(tmp_path):
    path = tmp_path / 'l.names'
    names.write(path, [([b'/data/clip.mp4'] * 10**5, np.full(10**5, -1))] * 3)
    tracemalloc.start()
    mapped = names.Mapped(path)
    assert len(mapped) == 3 * 10**5 and mapped[299_999] == '/data/clip.mp4'
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10**5 and mapped.labels is None
