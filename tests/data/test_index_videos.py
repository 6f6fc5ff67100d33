"""The manifest of a folder of good and bad files, made by the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tools import index_videos

ROOT = Path(__file__).parents[2]


def make(path, count=30, size=(64, 48)):
    rng = np.random.default_rng(0)
    with av.open(path, 'w') as container:
        stream = container.add_stream('libx264', rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, 'yuv420p'
        for _ in range(count):
            image = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
        container.mux(stream.encode(None))
    return path


def index(*arguments, status=0):
    command = [sys.executable, '-m', 'tools.index_videos', *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def rows(path):
    return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    make(folder / 'a good one.mp4')
    (folder / 'deeper').mkdir()
    make(folder / 'deeper/b.mkv', 20, (96, 64))
    (folder / 'empty.mp4').touch()
    (folder / 'text.avi').write_text('no video ' * 100)
    data = bytearray(make(folder / 'damaged.mp4').read_bytes())
    with av.open(folder / 'damaged.mp4') as container:
        entry = container.streams.video[0].index_entries[15]
    data[entry.pos : entry.pos + 20] = b'\xff' * 20  # a length of 4 GB
    (folder / 'damaged.mp4').write_bytes(data)
    (folder / 'cut.mp4').write_bytes((folder / 'a good one.mp4').read_bytes()[:3000])
    (folder / 'list.txt').write_text(
        'a good one.mp4 3\ndeeper/b.mkv\n\ngone.mp4 4\na good one.mp4 3\n'
    )
    return folder


def test_folder(folder, tmp_path):
    done = index(
        folder, '--out', tmp_path / 'm.jsonl', '--workers', 2, '--decode', '--config', 'vits'
    )
    manifest = {Path(row['path']).name: row for row in rows(tmp_path / 'm.jsonl')}
    assert {name: row['problem'] for name, row in manifest.items()} == {
        'a good one.mp4': None,
        'b.mkv': None,
        'empty.mp4': 'empty',
        'text.avi': 'not_video',
        'damaged.mp4': None,
        'cut.mp4': 'truncated',
    }
    good = manifest['b.mkv']
    assert (good['frames'], good['width'], good['height'], good['codec']) == (20, 96, 64, 'h264')
    assert (good['fps'], good['seconds'], good['variable']) == (30, 0.6667, False)
    assert good['label'] is None
    assert all(row['detail'] for row in manifest.values() if row['problem'])
    assert manifest['damaged.mp4']['missing'].startswith('frames 15 to ')
    assert [name for name, row in manifest.items() if row['missing']] == ['damaged.mp4']
    assert '3 of 6 files are fine' in done.stdout and '1 truncated' in done.stdout
    assert '6/6' not in done.stderr  # no progress bar where there is no terminal
    # 30, 20 and 30 frames, 30 a second, where a clip of 16 at 4 a second spans 16 * 7
    assert (
        'vits, clips of 16 frames (fps 4): 3 of 6 passed over, 1 empty, 1 not_video, 1 truncated; '
        '3 shorter than a clip, whose last frame is repeated\n'
    ) in done.stdout
    bad = [line for line in done.stdout.splitlines() if line.startswith('bad: ')]
    assert len(bad) == 3 and f'bad: {folder}/empty.mp4: empty (' in done.stdout
    assert f'{2:10d}  64x48            {"#" * 27}\n' in done.stdout  # two of three, of 40
    assert f'{2:10d}  1 to 2           {"#" * 27}\n' in done.stdout
    assert f'{3:10d}  h264             {"#" * 40}\n' in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ['m.jsonl']


def test_list_and_headers_only(folder, tmp_path):
    out = tmp_path / 'm.jsonl'
    index(folder / 'list.txt', folder / 'damaged.mp4', '--out', out, '--workers', 1)
    manifest = rows(out)
    seen = [(Path(row['path']).name, row['label'], row['problem']) for row in manifest]
    assert seen == [
        ('a good one.mp4', 3, None),
        ('b.mkv', None, None),
        ('gone.mp4', 4, 'missing'),
        ('damaged.mp4', None, None),
    ]
    assert all(Path(row['path']).is_absolute() for row in manifest)


def test_refusals(folder, tmp_path):
    old = tmp_path / 'm.jsonl'
    old.write_text('before')
    for arguments, text in [
        ((tmp_path / 'none.txt', '--out', old), 'none.txt'),
        ((folder / 'deeper', '--out', tmp_path / 'no/m.jsonl'), 'there is no folder'),
        ((folder / 'deeper', '--out', old, '--workers', 0), 'at least 1'),
        ((tmp_path, '--out', old), 'no videos in'),
    ]:
        error = index(*arguments, status=1).stderr.splitlines()[-1]
        assert text in error
    assert old.read_text() == 'before'


def test_help():
    assert '--decode' in index('--help').stdout


def test_a_row_for_whatever_has_a_videos_suffix(folder, tmp_path):
    """Kinds by content, names that no file can have, and a process that dies on one file."""
    files = tmp_path / 'files'
    files.mkdir()
    good = (folder / 'a good one.mp4').read_bytes()
    images = [Image.new('RGB', (32, 16), colour) for colour in ('red', 'blue', 'red')]
    options = {'save_all': True, 'append_images': images[1:]}
    (files / 'good.mp4').write_bytes(good)
    images[0].save(files / 'animated.mp4', 'WEBP', duration=125, **options)
    images[0].save(files / 'pages.mp4', 'TIFF', **options)
    images[0].save(files / 'still.mp4', 'JPEG')
    np.save(files / 'array.npy', np.zeros((2, 16, 32, 3), np.uint8))
    (files / 'array.npy').rename(files / 'array.avi')
    (files / 'script.mp4').write_text('%!PS-Adobe-3.0\n')
    (files / 'folder.txt').mkdir()
    os.mkfifo(files / 'fifo.ts')
    name = os.fsencode(files) + b'/not utf-8 \xff.mp4'
    with open(name, 'wb') as file:
        file.write(good)
    lines = ['files/folder.txt', 'files/nul\0.mp4', 'files/' + 'long' * 9999 + '.mp4', '/dev/zero']
    (tmp_path / 'l.txt').write_text('\n'.join(lines))
    out = tmp_path / 'm.jsonl'
    done = index(files, tmp_path / 'l.txt', '--out', out, '--workers', 1)
    manifest = [json.loads(line) for line in out.read_text('utf-8', 'surrogateescape').splitlines()]
    problems = {os.path.basename(row['path'])[:12]: row['problem'] for row in manifest}
    assert problems == {
        'good.mp4': None, 'animated.mp4': None, 'pages.mp4': None, 'still.mp4': None,
        'array.avi': None, 'script.mp4': 'not_local', 'fifo.ts': 'unreadable',
        'not utf-8 \udcff.': None, 'folder.txt': 'unreadable', 'nul\0.mp4': 'missing',
        'longlonglong': 'missing', 'zero': 'unreadable',
    }  # fmt: skip
    rows = {os.path.basename(row['path']): row for row in manifest}
    animated = rows['animated.mp4']
    assert (animated['frames'], animated['fps'], animated['codec']) == (3, 8, 'webp')
    assert [rows[name]['frames'] for name in ('pages.mp4', 'still.mp4', 'array.avi')] == [3, 1, 2]
    assert 'passed over' not in done.stdout


def test_a_process_that_dies(folder, monkeypatch):
    monkeypatch.setattr(index_videos, 'describe', _die_on_gone)
    records = [(f'{i}.mp4', i) for i in range(9)] + [('gone', None)] + [('x.mp4', None)]
    rows = list(index_videos.scanned(records, False, 2))
    assert [row['path'] for row in rows] == [path for path, _ in records]
    assert [row['problem'] for row in rows] == [None] * 9 + ['corrupt', None]


def test_what_a_config_makes_of_videos():
    """At 4 frames a second, 30 a second become 7 apart: 16 frames span 112. (vjepa2, quirk 10)"""
    fits = index_videos.Fits('vits')
    row = {'problem': None, 'fps': 30.0}
    for frames in (112, 113, 113):
        fits.add(row | {'frames': frames})
    fits.add({'problem': None, 'fps': 2.5, 'frames': 400})  # below 4 a second
    fits.add({'problem': 'corrupt'})
    fits.add({'problem': None, 'fps': None, 'frames': 1})  # a picture has no clock
    (line,) = fits.lines(6)
    assert '2 of 6 passed over, 1 corrupt, 1 slow; 1 shorter than a clip' in line


def test_tables_are_short_and_in_order():
    summary = index_videos.Summary()
    for number in range(40):
        row = {
            'problem': None,
            'fps': 25.0,
            'width': 10 + number % 20,
            'height': 8,
            'codec': 'h264',
        }
        summary.add(row | {'seconds': 90.0 if number % 4 else 0.5})
    for number in range(30):
        summary.add({'problem': 'missing', 'path': f'{number}.mp4', 'detail': 'No\nsuch'})
    lines = list(summary.lines())
    at = lines.index('seconds:')
    assert [line.split()[:4] for line in lines[at + 1 : at + 3]] == [
        ['10', 'below', '1', '##########'], ['30', '60', 'to', '300'],
    ]  # fmt: skip
    sizes = lines[lines.index('size:') + 1 : lines.index('codec:')]
    assert len(sizes) == 11 and sizes[-1].split()[:2] == ['20', 'others']
    assert len(summary.bad) == 20 and summary.bad[0].startswith('0.mp4: missing (No')


def _die_on_gone(record, decode_all):
    if record[0] == 'gone':
        os._exit(9)
    return {'path': record[0], 'problem': None}
