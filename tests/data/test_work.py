"""Small files that ask for much decoding: refused by the pixels that go through a decoder."""

import io
import logging
import struct

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from PIL import Image

from jepa_jax import files
from jepa_jax.data import containers, decode, pictures, pillow
from jepa_jax.data import windows as w
from jepa_jax.errors import BadFile

SIDE, FRAMES = 64, 60


def group(path, codec='libx264', frames=FRAMES, key=(0,), **options):
    """A video whose keyframes are those of `key`; frame i is of grey 20 + 3 i."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=25, options={'g': '9999', **options})
        stream.width = stream.height = SIDE
        stream.pix_fmt = 'yuv420p'
        for i in range(frames):
            picture = np.full((SIDE * 3 // 2, SIDE), 128, np.uint8)
            picture[:SIDE] = 20 + 3 * i
            frame = av.VideoFrame.from_ndarray(picture, 'yuv420p')
            frame.pict_type = PictureType.I if i in key else PictureType.NONE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def allow(monkeypatch, frames):
    monkeypatch.setenv(files.VARIABLE, f'work={frames * SIDE**2}')


def one(path, number):
    return decode.read_frames(path, lambda timing: np.array([number]))


def is_work(function, *arguments):
    with pytest.raises(BadFile, match='--limits work=') as caught:
        function(*arguments)
    assert caught.value.reason == 'work'


@pytest.mark.parametrize('name', ['v.mp4', 'v.mkv'])
def test_a_long_group_is_bounded_by_what_a_frame_needs(tmp_path, monkeypatch, name):
    path = group(tmp_path / name, preset='ultrafast', bf='0')
    allow(monkeypatch, 31)
    assert abs(int(one(path, 30)[0, 0, 0, 0]) - (20 + 90 - 16) * 255 / 219) < 4
    is_work(one, path, 31)
    assert decode.probe(path).frames == FRAMES
    decode.check(path)  # all of them were asked for: bounded by seconds alone
    path = group(tmp_path / f'keys_{name}', key=(0, 30), preset='ultrafast', bf='0')
    one(path, 55)  # and the same frame of short groups costs little


def test_damage_is_looked_for_within_the_limit(tmp_path, monkeypatch):
    path = group(tmp_path / 'v.mp4', preset='ultrafast', bf='0')
    with av.open(str(path)) as container:
        entry = container.streams.video[0].index_entries[20]
    data = bytearray(path.read_bytes())
    data[entry.pos : entry.pos + entry.size] = b'\xff' * entry.size
    path.write_bytes(data)
    allow(monkeypatch, 55)  # quickly and slowly, and then not all of it
    is_work(one, path, 25)
    allow(monkeypatch, 60)
    with pytest.raises(BadFile, match='frames 20 to 59 of 60 are missing'):
        one(path, 25)


def test_work_is_in_proportion_to_the_file():
    deadline = files.Deadline('a', 3 * files.SMALL)
    deadline.spend(3 * files.Limits().work)
    is_work(deadline.spend, 4)
    files.Deadline('a', 10).spend(files.Limits().work)
    is_work(files.Deadline('a', 10).spend, files.Limits().work + 1)


def test_hidden_frames_count(tmp_path):
    """VP9 superframes and AV1 temporal units hold frames that are not shown: ffmpeg's own parser of
    packets, through PyAV's bitstream filters, is the oracle."""
    for codec, split, options in (
        ('libvpx-vp9', 'vp9_superframe_split', {'auto-alt-ref': '1', 'lag-in-frames': '16'}),
        ('libsvtav1', 'av1_frame_split', {'preset': '8', 'svtav1-params': 'lp=1'}),
    ):
        path = tmp_path / f'{codec}.mkv'
        try:
            group(path, codec, frames=40, **options)
        except av.error.FFmpegError:  # this build has no such encoder
            continue
        own, seen = [], []
        deadline = files.Deadline(path)
        deadline.spend = own.append
        with containers.opened(path, deadline, skim=False) as video:
            name = video.stream.codec_context.name
            for packet in video.packets():
                video.spend(packet)
        with av.open(str(path)) as container:
            parts = av.BitStreamFilterContext(split, container.streams.video[0])
            for packet in container.demux(video=0):
                seen += [1 for part in parts.filter(packet) if part.size]
        assert sum(own) == len(seen) * SIDE**2, name
        assert len(seen) > 40 or name == 'vp9', name  # some are hidden


def test_slow_codecs_count_more(tmp_path, monkeypatch):
    path = group(
        tmp_path / 'v.mp4',
        'libx265',
        preset='ultrafast',
        **{'x265-params': 'log-level=0:bframes=0'},
    )
    allow(monkeypatch, 31 * containers.COST['hevc'])
    one(path, 30)
    is_work(one, path, 31)


# Pictures


def chunk(name, data):
    return name + struct.pack('<I', len(data)) + data + bytes(len(data) % 2)


def webp(side, count):
    """An animation of a canvas and many small pieces, by the container's specification."""

    def u24(*numbers):
        return b''.join(n.to_bytes(3, 'little') for n in numbers)

    def frame(size):
        file = io.BytesIO()
        Image.new('RGB', (size, size), 'red').save(file, 'WEBP', lossless=True)
        still = file.getvalue()[12:]
        return chunk(b'ANMF', u24(0, 0, size - 1, size - 1, 100) + b'\0' + still)

    body = chunk(b'VP8X', b'\2\0\0\0' + u24(side - 1, side - 1)) + chunk(b'ANIM', bytes(6))
    body = b'WEBP' + body + frame(side) + (count - 1) * frame(2)
    return b'RIFF' + struct.pack('<I', len(body)) + body


def many(form, count):
    if form == 'webp':
        return webp(SIDE, count)
    file = io.BytesIO()
    shades = [Image.new('L', (SIDE, SIDE), 5 * i) for i in range(count)]
    shades[0].save(file, form, save_all=True, append_images=shades[1:], duration=100)
    return file.getvalue()


@pytest.mark.parametrize('form', ['webp', 'gif', 'png'])
def test_animations(tmp_path, monkeypatch, form):
    path = tmp_path / f'a.{form}'
    path.write_bytes(many(form, 30))
    allow(monkeypatch, 21 * pictures.WORK[form])
    source = w.open_input(path, 10)
    assert source.read(np.array([20])).shape == (1, SIDE, SIDE, 3)
    is_work(w.open_input(path, 10).read, np.array([25]))
    for number in range(30):  # read on from where it was, as `embed` does
        source.read(np.array([number]))


def test_scans_of_a_jpeg(tmp_path, monkeypatch):
    """A progressive JPEG may go over its pixels ten thousand times."""
    file = io.BytesIO()
    Image.new('L', (SIDE, SIDE), 90).save(file, 'JPEG', progressive=True)
    data = file.getvalue()
    last = data.rindex(b'\xff\xda')
    path = tmp_path / 'a.jpg'
    path.write_bytes(data[:-2] + 200 * data[last:-2] + b'\xff\xd9')
    scans = data.count(b'\xff\xda') + 200
    allow(monkeypatch, scans)
    assert (pictures.read_image(path) == 90).all()
    allow(monkeypatch, scans - 1)
    is_work(pictures.read_image, path)
    is_work(pictures.image_of, 'name', path.read_bytes())


def test_what_pillow_warns_of(tmp_path, monkeypatch, caplog):
    """A tag of a TIFF with two values for one: said once, and no warning."""
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / 'a.tif', tiffinfo={274: 1})
    data = bytearray((tmp_path / 'a.tif').read_bytes())
    at = data.index(struct.pack('<HHI', 274, 3, 1))
    struct.pack_into('<I', data, at + 4, 2)
    (tmp_path / 'a.tif').write_bytes(data)
    monkeypatch.setattr(pillow, '_said', False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert (pictures.read_image(tmp_path / 'a.tif') == picture).all()
    (line,) = [r.getMessage() for r in caplog.records]
    assert 'a.tif: Pillow passes over damage' in line and 'tag 274 had too many entries' in line
