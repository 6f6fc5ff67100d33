"""Which inputs the names of a command line stand for."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from jepa_jax.data import named
from jepa_jax.errors import UsageError

VIDEO = b'\0\0\0\x18ftypisom' + bytes(32)  # enough to be taken for one


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ('v/b.mp4', 'v/a/c.mkv', 'v/._b.mp4', 'one.mp4'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(VIDEO)
    picture = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for name in ('v/cover.jpg', 'frames/1.jpg', 'frames/2.jpg', 'set/x/1.png', 'set/y/1.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / name)
    (tmp_path / 'v/notes.txt').write_text('hm')
    (tmp_path / 'list.txt').write_text('v/b.mp4 3\nv/a/c.mkv\n/elsewhere/d.mp4\n')
    rows = [('v/b.mp4', None), ('one.mp4', 'corrupt')]
    lines = [json.dumps({'path': p, 'label': None, 'problem': why}) for p, why in rows]
    (tmp_path / 'm.jsonl').write_text('\n'.join(lines))
    np.save(tmp_path / 'names.npy', np.array(['one.mp4']))
    np.save(tmp_path / 'clip.npy', np.zeros((2, 4, 4, 3), np.uint8))
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES = {
    'files, missing too': (['one.mp4', 'none.mp4'], ['one.mp4', 'none.mp4']),
    'videos, at any depth': (['v'], ['a/c.mkv', 'b.mp4']),
    'frames of one video': (['frames'], ['frames']),
    'folders of frames': (['set'], ['x', 'y']),
    'list': (['list.txt'], ['v/b.mp4', 'v/a/c.mkv', 'elsewhere/d.mp4']),
    'manifest': (['m.jsonl'], ['v/b.mp4']),
    'array of names': (['names.npy'], ['one.mp4']),
    'array of frames': (['clip.npy'], ['clip.npy']),
    'pattern': (['*.mp4'], ['one.mp4']),
    'pattern of folders': (['v/**/*.m*'], ['a/c.mkv', 'b.mp4']),
    'each once': (['v/b.mp4', 'v', 'list.txt'], ['b.mp4', 'a/c.mkv', 'elsewhere/d.mp4']),
}


@pytest.mark.parametrize('case', CASES)
def test_what_names_stand_for(folder, case):
    names, expected = CASES[case]
    result, _ = named.find(names)
    assert [one.name for one in result] == expected
    assert named.paths(*names) == [one.path for one in result]
    missing = {'none.mp4', '/elsewhere/d.mp4'}
    assert all(os.path.exists(one.path) or one.path in missing for one in result)


def test_what_is_passed_over_is_counted(folder):
    _, skipped = named.find(['v', 'm.jsonl'])
    # the picture of one frame, the text, macOS's companion, and the manifest's bad row
    assert skipped == {'companions of macOS': 1, '.jpg': 1, '.txt': 1, 'corrupt': 1}
    assert 'corrupt' in named.words(skipped)


def test_nothing_is_an_error(folder):
    (folder / 'none.txt').write_text('# nothing\n')
    for name in ('*.avi', 'none.txt'):
        with pytest.raises(UsageError, match='stands for no file'):
            named.find([name])
    # who opens an empty folder says what it holds
    assert named.paths('empty') == ['empty']
