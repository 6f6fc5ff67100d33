"""Mutated files of every form that these readers take: a result or a BadFile, nothing else.

Each reader gets some seconds of it, always the same; the long run, marked slow, more.
"""

import io
import json

import numpy as np
import pytest
from PIL import Image

from jepa_jax.config import DataConfig, DataListConfig
from jepa_jax.data import npz, pictures
from jepa_jax.data import windows as w
from jepa_jax.data.sources import open_source
from jepa_jax.errors import BadFile, ConfigError

COLOURS = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 4), dtype=np.uint8)


def saved(form, mode='RGB', frames=1, **options):
    images = [Image.fromarray(frame).convert(mode) for frame in COLOURS[:frames]]
    if frames > 1:
        options |= {'save_all': True, 'append_images': images[1:], 'duration': 90}
    exif = Image.Exif()
    exif[0x0112] = 6
    if form in ('JPEG', 'PNG', 'WEBP'):
        options['exif'] = exif
    file = io.BytesIO()
    images[0].save(file, form, **options)
    return file.getvalue()


PICTURES = {
    'jpeg': lambda: saved('JPEG'), 'progressive': lambda: saved('JPEG', progressive=True),
    'png': lambda: saved('PNG', 'RGBA'), 'palette': lambda: saved('PNG', 'P'),
    'bmp': lambda: saved('BMP'), 'ppm': lambda: saved('PPM'), 'jp2': lambda: saved('JPEG2000'),
    'tiff': lambda: saved('TIFF'), 'lzw': lambda: saved('TIFF', compression='tiff_lzw'),
    'webp': lambda: saved('WEBP'), 'gif': lambda: saved('GIF', 'P'),
    'mpo': lambda: saved('MPO', frames=2), 'gifs': lambda: saved('GIF', 'RGBA', 3, disposal=2),
    'webps': lambda: saved('WEBP', 'RGBA', 3), 'pngs': lambda: saved('PNG', 'RGBA', 3, disposal=2),
    'tiffs': lambda: saved('TIFF', frames=3),
}  # fmt: skip


def mutated(content, rng):
    """A few bytes changed, cut out, repeated or put in."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        # most damage goes where the structure is
        end = len(data) if rng.random() < 0.5 else min(len(data), 200)
        at, length = int(rng.integers(0, max(end, 1))), int(rng.integers(1, 9))
        kind = rng.integers(0, 5)
        if kind == 0:
            data[at : at + length] = rng.bytes(length)
        elif kind == 1:
            data[at : at + 1] = bytes(rng.choice([b'\0', b'\xff', b'\x7f', b'\x80', b'\x01']))
        elif kind == 2:
            del data[at : at + (length if rng.random() < 0.9 else len(data))]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        else:
            data[at : at + 4] = rng.choice([0, 1, 2**31 - 1, 2**32 - 1]).astype('>u4').tobytes()
    return bytes(data)


def run(path, contents, read, count, allowed=BadFile):
    rng = np.random.default_rng(1)
    bad = 0
    for number in range(count):
        path.write_bytes(mutated(contents[number % len(contents)], rng))
        try:
            read(path)
        except allowed as error:
            assert '\n' not in str(error)
            bad += 1
    assert 0 < bad <= count


def look(path):
    source = w.open_input(path, 4)
    source.read(source.numbers[:4])


@pytest.mark.parametrize('form', PICTURES)
@pytest.mark.parametrize('count', [40, pytest.param(500, marks=pytest.mark.slow)])
def test_pictures(tmp_path, form, count):
    run(tmp_path / 'a.png', [PICTURES[form]()], look, count)
    content = mutated(PICTURES[form](), np.random.default_rng(2))
    try:
        pictures.image_of('name', content)
    except BadFile as error:
        assert error.path == 'name'


@pytest.mark.parametrize('count', [150, pytest.param(4000, marks=pytest.mark.slow)])
def test_arrays(tmp_path, count):
    contents = []
    for array in (COLOURS[..., :3], np.asfortranarray(COLOURS[..., :3])):
        file = io.BytesIO()
        np.save(file, array)
        contents.append(file.getvalue())
    run(tmp_path / 'a.npy', contents, look, count)


@pytest.mark.parametrize('count', [300, pytest.param(8000, marks=pytest.mark.slow)])
def test_archives(tmp_path, count):
    contents = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, states=np.arange(14.0).reshape(2, 7), names=np.array(['a', 'b']), fps=4)
        contents.append(file.getvalue())
    run(tmp_path / 'a.npz', contents, npz.load_all, count)


LISTS = {
    'l.txt': [
        b'a.mp4 3\nb c.mp4::4\n"d e.mp4" 5\n~/f.mp4\n', b'path,label\na.mp4,3\n"b, c.mp4",4\n',
    ],
    'm.jsonl': [b'{"path": "a.mp4", "label": 3, "problem": null}\n{"path": "b", "problem": "x"}\n'],
}  # fmt: skip


@pytest.mark.parametrize('name', [*LISTS, 'l.npy', 'shard-00000.json'])
@pytest.mark.parametrize('count', [300, pytest.param(8000, marks=pytest.mark.slow)])
def test_lists(tmp_path, name, count):
    path, kind = tmp_path / name, 'shards' if name.startswith('shard') else 'videos'
    contents = LISTS.get(name, [])
    if name == 'l.npy':
        file = io.BytesIO()
        np.save(file, np.array(['a.mp4', 'b c.mp4']))
        contents = [file.getvalue()]
    elif kind == 'shards':
        record = {'path': 'a', 'label': 1, 'first': 0, 'offset': 0, 'shape': [2, 4, 4, 3], 'fps': 8}
        shard = {'version': 1, 'records': [record], 'skipped': [{'reason': 'empty'}]}
        contents = [json.dumps(shard).encode()]
        (tmp_path / 'shard-00000.rgb').write_bytes(bytes(96))

    def read(path):
        entry = DataListConfig(path=str(tmp_path if kind == 'shards' else path), kind=kind)
        source = open_source(entry, DataConfig())
        for i in range(len(source)):
            try:
                source.read(i, 2, np.random.default_rng(0))
            except (BadFile, OSError):
                assert source.name(i)

    run(path, contents, read, count, ConfigError)
