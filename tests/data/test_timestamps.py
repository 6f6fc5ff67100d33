"""Matroska and mp4 whose clocks are odd: frames and their order as ffmpeg gives them, through
OpenCV or PyAV; times are those that were written."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from test_damage import greys, near, opencv

from jepa_jax.data import clips, decode
from jepa_jax.errors import BadFile

COUNT, SIZE = 60, (96, 64)


def write(path, ticks, base=Fraction(1, 1000), codec='libx264', options=(), rate=25, **muxer):
    """Frame i, of grey 16 + i, at ticks[i]."""
    options = {'x264-params': 'keyint=20:min-keyint=20:bframes=2:scenecut=0'} | dict(options)
    with av.open(str(path), 'w', options={k: str(v) for k, v in muxer.items()}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt, stream.time_base = 'yuv420p', base
        stream.codec_context.time_base = base
        for i, tick in enumerate(ticks):
            plane = np.full((96, 96), 128, np.uint8)
            plane[:40] = 16 + i
            plane[40:64] = np.random.default_rng(i).integers(0, 255, (24, 96))
            frame = av.VideoFrame.from_ndarray(plane, 'yuv420p')
            frame.pts, frame.time_base = int(tick), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remuxed(source, path, change, **muxer):
    """The packets of a video with other clocks: change(packet, number) changes one, False drops
    it."""
    with (
        av.open(str(source)) as old,
        av.open(str(path), 'w', options={k: str(v) for k, v in muxer.items()}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            if change(packet, number) is not False:
                packet.stream = stream
                new.mux(packet)
    return path


def pyav(path):
    """Frame numbers as PyAV decodes them, in order, and the seconds at which each is shown."""
    with av.open(str(path)) as container:
        shown = [(f.to_ndarray(format='rgb24'), f.time) for f in container.decode(video=0)]
    return greys(np.stack([f for f, _ in shown])), np.array([t for _, t in shown])


def check(path, times=None):
    """All frames, some of them, and the last alone are those of ffmpeg, and shown when it says."""
    info = decode.probe(path)
    expected, shown = pyav(path)
    assert info.frames == len(expected) and not info.missing
    near(opencv(path), expected)
    for numbers in (np.arange(len(expected)), np.arange(3, len(expected), 9), [len(expected) - 1]):
        read = greys(decode.read_frames(path, lambda timing, n=numbers: np.asarray(n)))
        near(read, expected[numbers])
    decode.check(path)
    own = np.arange(info.frames) / info.fps if info.times is None else info.times
    slack = 0.002 if info.variable else 1 / info.fps
    assert np.abs(own - (shown - shown[0])).max() <= slack
    if times is not None:
        assert np.abs(own - (np.asarray(times) - times[0])).max() <= slack
    return info, expected


OPEN_GROUPS = 'keyint=12:min-keyint=12:bframes=3:b-adapt=0:open-gop=1:repeat-headers=1:'
OPEN = {
    'libx264': {'x264-params': OPEN_GROUPS + 'scenecut=0'}.items(),
    'libx265': {'x265-params': OPEN_GROUPS + 'no-scenecut=1:log-level=none'}.items(),
}
EVEN = 40 * np.arange(COUNT)
CLOCKS = {
    'gap': np.where(np.arange(COUNT) < 30, EVEN, EVEN + 7000),
    'gaps': EVEN + 500 * (np.arange(COUNT) // 7),
    'late': EVEN + 3_600_000,
    'jitter': EVEN + np.random.default_rng(0).integers(-15, 16, COUNT) + 20,
    'slower': np.cumsum(np.where(np.arange(COUNT) < 40, 20, 200)),
    'near': np.where(np.arange(COUNT) % 2, EVEN - 39, EVEN),  # pairs, a tick apart
    '59.94': np.rint(np.arange(COUNT) * 1001 / 60).astype(int),
}


@pytest.mark.parametrize('suffix', ['mkv', 'mp4'])
@pytest.mark.parametrize('clock', CLOCKS)
def test_clocks(tmp_path, clock, suffix):
    ticks = CLOCKS[clock]
    rate = Fraction(60_000, 1001) if clock == '59.94' else 25
    path = write(tmp_path / f'v.{suffix}', ticks, rate=rate)
    info, numbers = check(path, ticks / 1000)
    near(numbers, np.arange(COUNT))
    assert info.variable == (clock not in ('late', 'jitter', 'near', '59.94'))
    if clock == 'gap':  # a clip at 5 a second across the pause shows the frame before it for long
        chosen = clips.by_time(np.arange(0, COUNT, 1), info)
        assert (np.diff(chosen) >= 0).all() and np.bincount(chosen).max() > 20


@pytest.mark.parametrize('shift', [-200, -410, 1000])
def test_clocks_of_an_mp4_that_begin_elsewhere(tmp_path, shift):
    """Below 0: an edit list hides what comes before; above it, nothing is shown until then."""
    source = write(tmp_path / 'w.mp4', EVEN)

    def move(packet, number):
        by = round(shift / 1000 / packet.time_base)
        packet.pts, packet.dts = packet.pts + by, packet.dts + by

    path = tmp_path / 'v.mp4'
    remuxed(source, path, move, use_editlist=1, avoid_negative_ts='disabled')
    info, numbers = check(path)
    hidden = max(0, -(shift // 40)) if shift < 0 else 0
    assert 0 <= len(numbers) - (COUNT - hidden) <= 1
    near(numbers, np.arange(COUNT - len(numbers), COUNT))


def test_a_clock_of_matroska_that_begins_below_0(tmp_path):
    def move(packet, number):
        packet.pts -= 200
        packet.dts = 40 * (number - 7)

    path = remuxed(write(tmp_path / 'w.mkv', EVEN), tmp_path / 'v.mkv', move,
                   avoid_negative_ts='disabled')  # fmt: skip
    info = decode.probe(path)  # libav has no times for what is below 0
    assert info.frames == COUNT and info.fps == pytest.approx(25, rel=0.05)
    assert info.seconds == pytest.approx(2.4, rel=0.05)
    near(greys(decode.read_frames(path, lambda timing: np.arange(COUNT))), np.arange(COUNT))
    near(opencv(path), np.arange(COUNT))


@pytest.mark.parametrize('suffix', ['mkv', 'mp4'])
def test_one_time_for_two_frames(tmp_path, suffix):
    """Whatever ffmpeg shows of them: both, in the order of the file."""
    options = {'x264-params': 'keyint=20:bframes=0:scenecut=0'}
    source = write(tmp_path / f'w.{suffix}', EVEN, options=options.items())

    def double(packet, number):
        step = round(Fraction(40, 1000) / packet.time_base)
        packet.dts = step * (number - 2)
        packet.pts = step * (number - (number in (11, 31, 32)))

    path = remuxed(source, tmp_path / f'v.{suffix}', double)
    expected, _ = pyav(path)
    info = decode.probe(path)
    assert info.frames == len(expected) == COUNT
    near(greys(decode.read_frames(path, lambda timing: np.arange(COUNT))), expected)
    for number in (10, 11, 12, 31, 59):
        near(greys(decode.read_frames(path, lambda timing, n=number: np.array([n]))), number)


@pytest.mark.parametrize('suffix', ['mkv', 'mp4', 'ts'])
@pytest.mark.parametrize('codec', ['libx264', 'libx265'])
def test_an_open_group_at_a_cut(tmp_path, codec, suffix):
    """The file begins with a keyframe that frames shown before it follow, which refer to what was
    cut off: a player drops them."""
    source = write(tmp_path / 'w.mkv', EVEN, codec=codec, options=OPEN[codec])
    keys = []

    def cut(packet, number):
        keys.extend([number] if packet.is_keyframe else [])
        return len(keys) > 2

    path = remuxed(source, tmp_path / f'v.{suffix}', cut)
    reader = cv2.VideoCapture(str(path))
    assert reader.isOpened()
    good = np.flatnonzero(decode.damage(path).good)
    numbers = greys(decode.read_frames(path, lambda timing: good))
    expected, _ = pyav(path)
    assert COUNT - 26 <= len(numbers) <= len(expected)
    near(numbers, expected[-len(numbers) :])
    near(numbers, np.arange(COUNT - len(numbers), COUNT))  # none of them is a guess


@pytest.mark.parametrize('codec', ['libx264', 'libx265'])
def test_an_open_group_at_a_joint(tmp_path, codec):
    """Two recordings one after the other, the second of which begins so."""
    source = write(tmp_path / 'w.mkv', EVEN, codec=codec, options=OPEN[codec])
    keys = []

    def second(packet, number):
        keys.extend([number] if packet.is_keyframe else [])
        return len(keys) > 2

    first = remuxed(source, tmp_path / 'a.ts', lambda packet, number: True)
    rest = remuxed(source, tmp_path / 'b.ts', second)
    path = tmp_path / 'v.ts'
    path.write_bytes(first.read_bytes() + rest.read_bytes())
    good = np.flatnonzero(decode.damage(path).good)
    numbers = greys(decode.read_frames(path, lambda timing: good))
    near(numbers[:COUNT], np.arange(COUNT))
    after = numbers[COUNT:]
    assert len(after) >= COUNT - 26
    near(after, np.arange(COUNT - len(after), COUNT))


def test_a_time_lapse(tmp_path):
    """A frame every ten minutes is no frame every hundred seconds."""
    info = decode.probe(write(tmp_path / 'v.mkv', 600_000 * np.arange(12)))
    assert info.fps == pytest.approx(1 / 600, rel=0.01)
    assert info.seconds == pytest.approx(12 * 600, rel=0.01)


def test_an_mp4_that_ends_before_its_first_frame(tmp_path):
    data = write(tmp_path / 'w.mp4', EVEN, movflags='faststart').read_bytes()
    (tmp_path / 'v.mp4').write_bytes(data[: data.index(b'mdat') + 6])
    for read in (decode.probe, decode.check):
        with pytest.raises(BadFile, match='truncated: it ends before its first frame'):
            read(tmp_path / 'v.mp4')
