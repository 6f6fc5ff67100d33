"""Pictures and stacks of them: pixels against OpenCV, ffmpeg, or the arrays that were written."""

import io
import os
import struct
import subprocess
import tracemalloc
import zlib

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from jepa_jax import files
from jepa_jax.data import kinds, pictures
from jepa_jax.data import windows as w
from jepa_jax.errors import BadFile

RAMP = np.tile(np.arange(256), (96, 1))


def noise(*shape, high=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def fails(path, reason, read=pictures.read_image, words=None):
    with pytest.raises(BadFile, match=words) as caught:
        read(path)
    assert caught.value.reason == reason and str(path) in str(caught.value)


# --- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize('orientation', range(1, 9))
def test_image_orientation(tmp_path, orientation):
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[:10, :20] = 255, 0, 0  # a red corner at the stored top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / 'a.jpg', exif=exif, quality=95)
    got = pictures.read_image(tmp_path / 'a.jpg')
    # EXIF 2.32, table of orientations: where the stored first row and first column are seen.
    row, column = {
        1: ('top', 'left'), 2: ('top', 'right'), 3: ('bottom', 'right'), 4: ('bottom', 'left'),
        5: ('left', 'top'), 6: ('right', 'top'), 7: ('right', 'bottom'), 8: ('left', 'bottom'),
    }[orientation]  # fmt: skip
    assert got.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    y = 3 if 'top' in (row, column) else -3
    x = 3 if 'left' in (row, column) else -3
    assert got[y, x, 0] > 200 and got[-y, -x, 0] < 50
    assert got.dtype == np.uint8 and got.flags.c_contiguous


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'LA', 'P', '1', 'CMYK', 'I;16'])
def test_image_modes(tmp_path, mode):
    y, x = np.mgrid[:48, :64]
    grey = ((x + y) // 16 * 30).astype(np.uint8)
    if mode == 'I;16':
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert('RGB').convert(mode)
    path = tmp_path / ('a.tif' if mode == 'CMYK' else 'a.png')
    image.save(path)
    got = pictures.read_image(path)
    assert got.shape == (48, 64, 3)
    if mode not in ('1', 'P'):  # few colours
        np.testing.assert_array_equal(got, np.repeat(grey[..., None], 3, -1))


def test_bad_images(tmp_path):
    fails(tmp_path / 'none.png', 'missing', pictures.read_image)
    (tmp_path / 'empty.png').touch()
    fails(tmp_path / 'empty.png', 'empty', pictures.read_image)
    (tmp_path / 'text.jpg').write_text('no image')
    fails(tmp_path / 'text.jpg', 'not_image', pictures.read_image)
    for suffix in ('png', 'jpg'):
        path = tmp_path / f'a.{suffix}'
        Image.fromarray(noise(96, 128, 3)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        fails(path, 'truncated', pictures.read_image)


def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def png(width, height, depth, colour, rows, *more):
    head = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    body = chunk(b'IHDR', head) + b''.join(more) + chunk(b'IDAT', zlib.compress(rows))
    return b'\x89PNG\r\n\x1a\n' + body + chunk(b'IEND', b'')


def by_opencv(path):
    """8 bits, RGB, as stored; of 16 bits a channel the upper half."""
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imread(str(path), flags)
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image[..., 2::-1]


@pytest.mark.parametrize('suffix', ['png', 'tif', 'ppm', 'pgm', 'grey.png', 'grey.tif'])
def test_sixteen_bits(tmp_path, suffix):
    grey = suffix.startswith(('grey', 'pgm'))
    image = noise(*((20, 30) if grey else (20, 30, 3)), high=65536, dtype=np.uint16)
    path = tmp_path / f'a.{suffix}'
    assert cv2.imwrite(str(path), image)
    difference = pictures.read_image(path).astype(int) - by_opencv(path)
    # Pillow scales a PPM's colours by its largest value and rounds
    assert np.abs(difference).max() <= (1 if suffix == 'ppm' else 0)


def tiff(path, values, bits, form, photometric=1, order='<'):
    """A grey TIFF of one strip; form: 1 whole numbers, 2 with a sign, 3 floats."""
    height, width = values.shape
    data = values.tobytes()
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, form),
    ]  # fmt: skip
    ifd = struct.pack(f'{order}H', len(tags))
    for tag, kind, value in tags:
        packed = struct.pack(order + 'HI'[kind - 3], value).ljust(4, b'\0')
        ifd += struct.pack(f'{order}HHI', tag, kind, 1) + packed
    start = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}I', 8 + len(data))
    path.write_bytes(start + data + ifd + bytes(4))
    return path


def test_grey_of_many_forms(tmp_path):
    """Against the ramp that was written."""
    path = tmp_path / 'a.tif'
    right = np.repeat(RAMP.astype(np.uint8)[..., None], 3, -1)
    for order in '<>':
        for values, bits, form in (
            (RAMP * 257, 16, 1), (RAMP / 255, 32, 3),
        ):  # fmt: skip
            kind = f'{order}{"f4" if form == 3 else "u2"}'
            got = pictures.read_image(tiff(path, values.astype(kind), bits, form, order=order))
            np.testing.assert_array_equal(got, right)
    got = pictures.read_image(tiff(path, (RAMP * 257).astype('<u2'), 16, 1, photometric=0))
    np.testing.assert_array_equal(got, 255 - right)  # white is zero
    for values, bits, form, reason in (
        (RAMP * 257, 32, 1, 'bad_units'), (RAMP * 257, 32, 2, 'bad_units'),
        (RAMP * 128 - 9, 16, 2, 'bad_units'), (RAMP * 1.0, 32, 3, 'bad_units'),
        (RAMP / 255 - 0.1, 32, 3, 'bad_units'),
        (np.where(RAMP == 7, np.nan, 0), 32, 3, 'not_finite'),
    ):  # fmt: skip
        kind = {1: '<u4', 2: f'<i{bits // 8}', 3: '<f4'}[form]
        fails(tiff(path, values.astype(kind), bits, form), reason)


def test_what_lies_on_black(tmp_path):
    colour, alpha = noise(20, 30, 3), noise(20, 30)
    right = np.rint(colour * (alpha[..., None] / 255)).astype(int)
    for suffix, options in (('png', {}), ('webp', {'lossless': True, 'exact': True}), ('tif', {})):
        path = tmp_path / f'a.{suffix}'
        Image.fromarray(np.dstack([colour, alpha])).save(path, **options)
        np.testing.assert_array_equal(pictures.read_image(path), right)
    Image.fromarray(np.dstack([colour[..., 0], alpha])).save(tmp_path / 'la.png')
    got = pictures.read_image(tmp_path / 'la.png')
    np.testing.assert_array_equal(got, np.repeat(right[..., :1], 3, -1))
    # colours of a palette, and one of RGB, that are clear: PNG, third edition, 11.3.1
    table, numbers = noise(4, 3), noise(5, 8, high=4)
    rows = np.insert(numbers, 0, 0, axis=1).tobytes()
    palette = chunk(b'PLTE', table.tobytes()), chunk(b'tRNS', bytes([255, 0, 100]))
    (tmp_path / 'p.png').write_bytes(png(8, 5, 8, 3, rows, *palette))
    opaque = np.array([255, 0, 100, 255])[numbers, None] / 255
    right = np.rint(table[numbers] * opaque).astype(int)
    np.testing.assert_array_equal(pictures.read_image(tmp_path / 'p.png'), right)
    image = colour.copy()
    image[:4] = 10, 20, 30
    rows = np.insert(image.reshape(20, 90), 0, 0, axis=1).astype(np.uint8).tobytes()
    key = chunk(b'tRNS', struct.pack('>HHH', 10, 20, 30))
    (tmp_path / 'key.png').write_bytes(png(30, 20, 8, 2, rows, key))
    image[:4] = 0
    np.testing.assert_array_equal(pictures.read_image(tmp_path / 'key.png'), image)


def test_other_colours(tmp_path):
    Image.new('LAB', (8, 8)).save(tmp_path / 'lab.tif')
    fails(tmp_path / 'lab.tif', 'bad_units', words='L.a.b.')
    picture = cv2.resize(noise(4, 4, 3), (64, 48))
    for mode in ('YCbCr', 'CMYK'):
        path = tmp_path / f'{mode}.jpg'
        Image.fromarray(picture).convert(mode).save(path, quality=98, progressive=True)
        assert np.abs(pictures.read_image(path).astype(int) - picture).max() < 24
        got = pictures.image_of('x', path.read_bytes())
        np.testing.assert_array_equal(got, pictures.read_image(path))
    first, second = (Image.fromarray(noise(16, 16, 3) // n) for n in (1, 2))
    first.save(tmp_path / 'two.mpo', save_all=True, append_images=[second])
    assert kinds.kind_of(tmp_path / 'two.mpo') == 'image'
    np.testing.assert_array_equal(
        pictures.read_image(tmp_path / 'two.mpo'), by_opencv(tmp_path / 'two.mpo')
    )


# --- what is refused -----------------------------------------------------------------------------


def test_nothing_is_started(tmp_path, monkeypatch):
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n'

    def start(*arguments, **options):
        raise AssertionError(f'started {arguments}')

    monkeypatch.setattr(subprocess, 'Popen', start)
    monkeypatch.setattr(os, 'system', start)
    for suffix in ('eps', 'png', 'mp4', 'jpg'):
        for start in (b'', b'\xc5\xd0\xd3\xc6' + struct.pack('<7I', 32, len(eps), 0, 0, 0, 0, 0)):
            path = tmp_path / f'a.{suffix}'
            path.write_bytes(start.ljust(32 if start else 0, b'\0') + eps)
            fails(path, 'not_local', lambda path: w.open_input(path, 4), 'PostScript')
    fails(tmp_path / 'a.jpg', 'not_local')
    with pytest.raises(BadFile, match='not_image'):
        pictures.image_of('x', eps)


def bombs(folder):
    """Files of a few KB that ask for gigabytes: name -> reason."""
    wide = png(40_000, 40_000, 1, 0, b'')
    (folder / 'wide.png').write_bytes(wide)
    (folder / 'zeros.png').write_bytes(png(11_000, 11_000, 8, 2, bytes(11_000 * 330)))
    text = chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(2**25)))
    (folder / 'text.png').write_bytes(png(8, 8, 8, 0, bytes(72), text))
    # 4,000 values of EXIF that each claim the same bytes
    entries = b''.join(struct.pack('<HHII', i, 7, 48_000, 8) for i in range(4_000))
    exif = b'II*\0' + struct.pack('<IH', 8, 4_000) + entries + bytes(4)
    (folder / 'exif.png').write_bytes(png(8, 8, 8, 0, bytes(72), chunk(b'eXIf', exif)))
    (folder / 'values.tif').write_bytes(exif)
    # directories over each other
    chain = b'II*\0' + b''.join(struct.pack('<I', 8 + 4 * i) for i in range(3_000))
    (folder / 'chain.tif').write_bytes(chain)
    gif = b'GIF89a\xff\xff\xff\xff\0\0\0' + b',' + bytes(4) + b'\xff\xff\xff\xff\0\x02\x01\0\0' * 2
    (folder / 'wide.gif').write_bytes(gif + b';')
    still = b',' + bytes(4) + b'\1\0\1\0\0\x02\x02\x44\x01\0'  # a pixel, of 20 million
    (folder / 'clip.gif').write_bytes(gif[:6] + b'\x88\x13\xa0\x0f\x80\0\0' + bytes(6) + still * 40)
    return {
        'clip.gif': 'ratio', 'wide.png': 'pixels', 'zeros.png': 'ratio', 'text.png': None,
        'exif.png': 'index', 'values.tif': 'index', 'chain.tif': None, 'wide.gif': 'pixels',
    }  # fmt: skip


def test_bombs(tmp_path):
    for name, reason in bombs(tmp_path).items():
        tracemalloc.start()
        with pytest.raises(BadFile) as caught:
            source = w.open_input(tmp_path / name, 4)
            source.read(source.numbers[:16])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert reason in (None, caught.value.reason), name
        assert peak < 2**25, name


def test_limits(tmp_path, monkeypatch):
    path = tmp_path / 'a.png'
    Image.fromarray(noise(96, 128, 3)).save(path)
    monkeypatch.setenv(files.VARIABLE, 'pixels=4000')
    fails(path, 'pixels')
    monkeypatch.setenv(files.VARIABLE, 'seconds=1e-9')
    fails(path, 'seconds')
    animate(tmp_path / 'a.gif')
    fails(tmp_path / 'a.gif', 'seconds', lambda path: w.open_input(path, 4))
    monkeypatch.setenv(files.VARIABLE, 'frames=3')
    fails(tmp_path / 'a.gif', 'frames', lambda path: w.open_input(path, 4))
    monkeypatch.delenv(files.VARIABLE)
    assert Image.MAX_IMAGE_PIXELS is None  # its warning would come first


# --- stacks --------------------------------------------------------------------------------------


def drawn(count=8, alpha=False):
    """A box that moves over black, or over nothing."""
    result = np.zeros((count, 40, 60, 4), np.uint8)
    for i, frame in enumerate(result):
        frame[5 * i % 30 : 5 * i % 30 + 10, 4 * i : 4 * i + 12] = (
            40 * i % 256,
            200 - 20 * i,
            90,
            255,
        )
    if not alpha:
        result[..., 3] = 255
    return result


def animate(path, frames=None, **options):
    images = [Image.fromarray(frame) for frame in (drawn() if frames is None else frames)]
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


def by_ffmpeg(path):
    """Frames over black, and their times."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    rgba = np.stack([frame.to_ndarray(format='rgba') for frame in frames])
    over = np.rint(rgba[..., :3] * (rgba[..., 3:] / 255)).astype(np.uint8)
    return over, np.array([frame.time for frame in frames])


@pytest.mark.parametrize('alpha', [False, True])
@pytest.mark.parametrize('disposal', range(4))
def test_gif(tmp_path, disposal, alpha):
    frames = drawn(alpha=alpha)
    path = animate(tmp_path / 'a.mp4.gif', frames, disposal=disposal, duration=[70] * 4 + [150] * 4)
    stack = pictures.Stack(path)
    right, times = by_ffmpeg(path)
    np.testing.assert_array_equal(stack.read(np.arange(8)), right)
    if not alpha or disposal > 1:  # others cannot be undone
        np.testing.assert_array_equal(right, frames[..., :3])
    np.testing.assert_array_equal(stack.read(np.array([2, 5])), right[[2, 5]])
    np.testing.assert_array_equal(stack.read(np.array([6])), right[[6]])
    chosen = pictures.read_frames(path, lambda timing: np.array([[7, 0], [3, 3]]))
    np.testing.assert_array_equal(chosen, right[[[7, 0], [3, 3]]])
    assert stack.timing.frames == 8 and stack.timing.fps == pytest.approx(8 / 0.88, abs=1e-4)
    np.testing.assert_allclose(stack.timing.times, times)


def test_clear_frames_of_a_gif(tmp_path):
    """By hand: a red screen; a clear frame over it; a green dot that is taken back; nothing."""
    table = bytes([255, 0, 0, 0, 255, 0])
    head = b'GIF89a' + struct.pack('<HHBBB', 4, 3, 0x80, 0, 0) + table

    def frame(disposal, clear, place, value):
        """One colour, by LZW of 2 bits that clears before each pixel."""
        codes = sum(([4, value] for _ in range(place[2] * place[3])), []) + [5]
        bits = sum(code << 3 * i for i, code in enumerate(codes))
        data = bits.to_bytes(-(-3 * len(codes) // 8), 'little')
        flags = disposal << 2 | (clear is not None)
        control = b'!\xf9\x04' + struct.pack('<BHB', flags, 0, clear or 0) + b'\0'
        place = b',' + struct.pack('<4HB', *place, 0)
        return control + place + b'\x02' + bytes([len(data)]) + data + b'\0'

    path = tmp_path / 'a.gif'
    path.write_bytes(
        head + frame(1, None, (0, 0, 4, 3), 0) + frame(1, 0, (0, 0, 4, 3), 0)
        + frame(3, None, (1, 1, 1, 1), 1) + frame(2, None, (2, 0, 9, 1), 1)
        + frame(1, 1, (0, 0, 1, 1), 1) + b';'
    )  # fmt: skip
    red = np.zeros((3, 4, 3), np.uint8)
    red[..., 0] = 255
    dot, bar, hole = red.copy(), red.copy(), red.copy()
    dot[1, 1] = bar[0, 2:] = 0, 255, 0
    hole[0, 2:] = 0
    got = pictures.read_frames(path, lambda timing: np.arange(timing.frames))
    np.testing.assert_array_equal(got, [red, red, dot, bar, hole])
    assert pictures.Stack(path).timing.fps == 10  # 0 is 0.1 s


@pytest.mark.parametrize('blend', [0, 1])
@pytest.mark.parametrize('disposal', range(3))
@pytest.mark.parametrize('default', [False, True])
def test_png(tmp_path, disposal, blend, default):
    path = animate(
        tmp_path / 'a.png', drawn(alpha=True), disposal=disposal, blend=blend,
        default_image=default, duration=[40, 300, 40, 40, 40, 40, 300, 40],
    )  # fmt: skip
    right, times = by_ffmpeg(path)
    stack = pictures.Stack(path)
    assert stack.timing.frames == len(right) == 8 - default
    np.testing.assert_array_equal(stack.read(np.arange(len(right))), right)
    np.testing.assert_allclose(stack.timing.times, times, atol=0.006)  # of ffmpeg's ticks


def test_webp_and_tiff(tmp_path):
    frames = drawn()
    path = animate(
        tmp_path / 'a.webp', frames, lossless=True, duration=[50, 5, 200, 50, 50, 50, 50, 50]
    )
    stack = pictures.Stack(path)
    np.testing.assert_array_equal(stack.read(np.arange(8)), frames[..., :3])
    # what asks for 5 ms gets 100
    assert stack.timing.seconds == pytest.approx(0.6, rel=1e-4)
    path = animate(tmp_path / 'a.tif', frames)
    stack = pictures.Stack(path)
    pages = np.stack(cv2.imreadmulti(str(path))[1])[..., ::-1]
    np.testing.assert_array_equal(stack.read(np.arange(8)), pages)
    assert not stack.timing.fps  # no clock


def test_pages_that_are_no_frames(tmp_path):
    full = Image.fromarray(noise(40, 60, 3))
    small = full.resize((15, 10))
    full.save(tmp_path / 'a.tif', save_all=True, append_images=[small])
    assert kinds.kind_of(tmp_path / 'a.tif') == 'image'
    full.save(tmp_path / 'a.tif', save_all=True, append_images=[small, full])
    source = w.open_input(tmp_path / 'a.tif', 5)
    assert source.kind == 'array' and len(source.numbers) == 2
    np.testing.assert_array_equal(source.read(np.arange(2)), [np.asarray(full)] * 2)


def test_damage_costs_what_follows(tmp_path):
    path = animate(tmp_path / 'a.gif')
    path.write_bytes(path.read_bytes()[:-40])  # within the last frame
    stack = pictures.Stack(path)
    np.testing.assert_array_equal(stack.read(np.arange(7)), drawn()[:7, ..., :3])
    fails(path, 'truncated', lambda path: stack.read(np.array([7])))
    np.testing.assert_array_equal(stack.read(np.array([1])), drawn()[1:2, ..., :3])


# --- kinds ---------------------------------------------------------------------------------------


def test_content_decides(tmp_path):
    still = Image.fromarray(noise(16, 16, 3))
    for suffix in ('gif', 'webp', 'png', 'tif', 'jpg', 'bmp', 'ppm', 'jp2'):
        for name in (f'a.{suffix}', 'a.mp4'):
            file = io.BytesIO()
            still.save(file, Image.registered_extensions()[f'.{suffix}'])
            (tmp_path / name).write_bytes(file.getvalue())
            assert kinds.kind_of(tmp_path / name) == 'image'
        assert w.open_input(tmp_path / 'a.mp4', 4).kind == 'image'
    for suffix in ('gif', 'webp', 'png', 'tif'):
        animate(tmp_path / f'b.{suffix}').rename(tmp_path / 'b.jpg')
        assert kinds.kind_of(tmp_path / 'b.jpg') == 'stack'
    for container in 'mp4 mov matroska avi mpegts flv asf ogg mpeg nut'.split()[:-1]:
        codec = {'ogg': 'libtheora', 'mpeg': 'mpeg2video', 'flv': 'flv', 'asf': 'msmpeg4v3'}
        path = tmp_path / 'c.jpg'
        try:
            with av.open(path, 'w', container) as out:
                stream = out.add_stream(codec.get(container, 'mpeg4'), rate=25)
                stream.width, stream.height, stream.pix_fmt = 32, 32, 'yuv420p'
                for frame in noise(9, 32, 32, 3):
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
                out.mux(stream.encode(None))
        except av.codec.codec.UnknownCodecError:
            continue
        assert kinds.kind_of(path) == 'video', container
    np.save(tmp_path / 'd.npy', np.zeros((2, 4, 4, 3), np.uint8))
    (tmp_path / 'd.npy').rename(tmp_path / 'd.avi')
    assert kinds.kind_of(tmp_path / 'd.avi') == 'array'
    (tmp_path / 'e.bin').write_bytes(b'nothing')
    assert kinds.kind_of(tmp_path / 'e.bin') == 'video'  # to be refused as one
    os.mkfifo(tmp_path / 'f.png')
    fails(tmp_path / 'f.png', 'unreadable', kinds.kind_of)
