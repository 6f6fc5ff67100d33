"""What is opened at all: local files of a closed list, within bounds; whatever is in them is a
video or a bad file."""

import os
import struct
import time

import av
import numpy as np
import pytest

from jepa_jax import files
from jepa_jax.data import decode
from jepa_jax.errors import BadFile

CONTAINERS = ('mp4', 'mkv', 'webm', 'avi', 'ts', 'mpg', 'flv')


def small(path, count=12, size=(64, 48), **options):
    codec = {'.webm': 'libvpx', '.mpg': 'mpeg2video', '.avi': 'mpeg4'}.get(path.suffix, 'libx264')
    with av.open(str(path), 'w', options=options) as container:
        stream = container.add_stream(codec, rate=25, options={'g': '6'})
        stream.width, stream.height = size
        stream.pix_fmt = 'yuv420p'
        for i in range(count):
            image = np.random.default_rng(i).integers(0, 255, (size[1], size[0], 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image // 8 + 8 * i, 'rgb24')))
        container.mux(stream.encode())
    return path


def read(path):
    return decode.read_frames(
        path, lambda t: np.unique(np.linspace(0, t.frames - 1, 4).astype(int))
    )


def refused(path, *reasons):
    for attempt in (read, decode.probe, decode.check):
        with pytest.raises(BadFile) as caught:
            attempt(path)
        assert caught.value.reason in reasons and '\n' not in str(caught.value)


LISTS = {
    'hls': '#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nv.ts\n#EXT-X-ENDLIST\n',
    'concat': 'ffconcat version 1.0\nfile v.ts\n',
    'dash': '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    'sdp': 'v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 4567 RTP/AVP 96\n',
    'pls': '[playlist]\nFile1=http://127.0.0.1:9/a.ts\n',
    'script': 'AviSource("v.avi")\n',
    'address': 'http://127.0.0.1:9/a.mp4\n',
    'marked': '\ufeff#EXTM3U\nv.ts\n',
}


@pytest.mark.parametrize('suffix', ['mp4', 'm3u8', 'ts', 'avi'])
@pytest.mark.parametrize('name', LISTS)
def test_lists_are_not_followed(tmp_path, name, suffix):
    small(tmp_path / 'v.ts')
    path = tmp_path / f'list.{suffix}'
    path.write_text(LISTS[name])
    refused(path, 'not_local')


@pytest.mark.parametrize(
    'name',
    ['http://127.0.0.1:9/v.ts', 'concat:v.ts|v.ts', 'subfile,,start,0,end,0,,:v.ts', 'pipe:0', '-',
     'crypto:v.ts', 'data:video/mp4;base64,AAAA', 'lavfi:testsrc', '%d.ts', 'v.ts\0', 'a' * 300],
)  # fmt: skip
def test_addresses_are_only_names(tmp_path, monkeypatch, name):
    small(tmp_path / 'v.ts')
    monkeypatch.chdir(tmp_path)
    refused(name, 'missing')


@pytest.mark.parametrize(
    'name', ['%03d.ts', '-i.ts', 'a\nb.ts', 'concat:x|y.ts', 'q\'"\\.ts', 'pipe:0', 'ä?#&.ts']
)
def test_such_names_are_read(tmp_path, monkeypatch, name):
    small(tmp_path / 'v.ts').rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read(name).shape == (4, 48, 64, 3)


def test_pictures_elsewhere(tmp_path):
    """A data reference of an mp4 that names another file."""
    path = small(tmp_path / 'v.mp4')
    data = path.read_bytes()
    at = data.index(b'url \0\0\0\1')
    name = b'file:///etc/passwd\0'
    entry = struct.pack('>I4sI', 12 + len(name), b'url ', 0) + name
    for outer in (b'moov', b'trak', b'mdia', b'minf', b'dinf', b'dref'):
        place = data.index(outer) - 4
        length = int.from_bytes(data[place : place + 4], 'big') + len(name)
        data = data[:place] + struct.pack('>I', length) + data[place + 4 :]
    path.write_bytes(data[: at - 4] + entry + data[at + 8 :])
    refused(path, 'not_local')


@pytest.mark.parametrize('table', [b'stsz', b'stts'])
def test_index_that_claims_more_than_the_file_holds(tmp_path, table):
    path = small(tmp_path / 'v.mp4')
    data = bytearray(path.read_bytes())
    at = data.index(table) + 4
    if table == b'stsz':
        struct.pack_into('>II', data, at + 4, 1, 40_000_000)  # each of one byte
    else:
        struct.pack_into('>II', data, at + 8, 40_000_000, 512)
    path.write_bytes(data)
    begin = time.monotonic()
    refused(path, 'index')
    assert time.monotonic() - begin < 5


def test_pixels_are_bounded(tmp_path, monkeypatch):
    path = small(tmp_path / 'v.mp4')
    monkeypatch.setenv(files.VARIABLE, 'pixels=3000')
    refused(path, 'pixels')
    monkeypatch.setenv(files.VARIABLE, 'decoded=20000')
    refused(path, 'decoded')
    monkeypatch.setenv(files.VARIABLE, 'frames=5')
    refused(path, 'frames')
    monkeypatch.setenv(files.VARIABLE, 'seconds=1e-9')
    refused(path, 'seconds')


def test_a_large_black_video_in_a_small_file(tmp_path):
    path = tmp_path / 'v.mov'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('png', rate=8)
        stream.width = stream.height = 6000
        stream.pix_fmt = 'gray'
        frame = av.VideoFrame.from_ndarray(np.zeros((6000, 6000), np.uint8), 'gray')
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    refused(path, 'ratio')


def mutated(data, rng):
    data = bytearray(data)
    kind = rng.integers(5)
    if kind == 0:
        return bytes(data[: rng.integers(1, len(data))])
    place = int(rng.integers(len(data) if kind < 3 else min(1200, len(data))))
    if kind == 4:  # a length or count
        data[place : place + 4] = rng.bytes(4) if rng.integers(2) else b'\xff\xff\xff\xff'
        return bytes(data)
    for at in rng.integers(max(0, place - 40), place + 1, rng.integers(1, 12)):
        data[at] = rng.integers(256)
    return bytes(data)


def fuzz(tmp_path, count, seed=0):
    """Every mutation is read or refused; the longest time of one, seconds."""
    rng, longest = np.random.default_rng(seed), 0.0
    seeds = []
    for name in CONTAINERS:
        seeds.append((name, small(tmp_path / f'seed.{name}').read_bytes()))
    seeds.append(('mp4', small(tmp_path / 'f.mp4', movflags='frag_keyframe').read_bytes()))
    seeds.append(('mp4', small(tmp_path / 's.mp4', movflags='faststart').read_bytes()))
    for number in range(count):
        suffix, data = seeds[number % len(seeds)]
        path = tmp_path / f'v.{suffix}'
        path.write_bytes(mutated(data, rng))
        begin = time.monotonic()
        for attempt in (read, decode.probe, decode.check):
            try:
                attempt(path)
            except BadFile as error:
                assert str(error).isprintable()
        longest = max(longest, time.monotonic() - begin)
    return longest


def test_fuzz(tmp_path):
    assert fuzz(tmp_path, 90) < 10


@pytest.mark.slow
def test_fuzz_long(tmp_path):
    count, seed = (int(os.environ.get(name, n)) for name, n in (('FUZZ', 2000), ('FUZZ_SEED', 1)))
    print(f'{count} mutations, the longest {fuzz(tmp_path, count, seed):.1f} s')
