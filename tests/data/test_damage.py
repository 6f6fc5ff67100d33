"""Damaged, cut and joined videos: frame i is grey 16 + i, so every frame tells its number."""

import functools
import itertools
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest

from jepa_jax.data import clips, decode, robot, windows
from jepa_jax.errors import BadFile

RATE, SIZE = 25, (96, 64)


def write(path, first=0, count=100, offset=0.0, codec='libx264', **options):
    """Frames `first` and on; offset: seconds at which the clock begins."""
    kind = {'.ts': 'mpegts', '.vob': 'vob', '.mpg': 'mpeg'}.get(path.suffix)
    more = {'output_ts_offset': str(offset)} if offset else {}
    if codec == 'libx264':
        options = {'x264-params': 'keyint=25:bframes=2:scenecut=0'} | options
    with av.open(str(path), 'w', kind, options=more) as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = 'yuv420p'
        for i in range(first, first + count):
            plane = np.full((96, 96), 128, np.uint8)
            plane[:40] = 16 + i
            plane[40:64] = np.random.default_rng(i).integers(0, 255, (24, 96))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plane, 'yuv420p')))
        container.mux(stream.encode())
    return path.read_bytes()


def greys(frames):
    """Frame numbers by their grey: luma 16 to 235 is shown as 0 to 255."""
    return np.rint(frames[:, 4:36].mean((1, 2, 3)) * 219 / 255).astype(int)


def opencv(path):
    """Frame numbers as OpenCV's reader gives them, in its order."""
    reader, frames = cv2.VideoCapture(str(path)), []
    while (result := reader.read())[0]:
        frames.append(result[1])
    return greys(np.stack(frames))


def near(numbers, expected):
    np.testing.assert_allclose(numbers, expected, rtol=0, atol=1)


def everything(path):
    return greys(decode.read_frames(path, lambda timing: np.arange(timing.frames)))


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    """a: frames 0 to 99 at 10 s; the others: 100 to 199 on other clocks."""
    folder = tmp_path_factory.mktemp('parts')
    offsets = {'back': 8.013, 'hours': 36_000, 'overlap': 13.99, 'same': 10, 'wrap': 95_443.0}
    pieces = {name: write(folder / f'{name}.ts', 100, 100, at) for name, at in offsets.items()}
    return {'a': write(folder / 'a.ts', 0, 100, 10)} | pieces


def counted(data):
    """The stream with continuity counters that go on, as a recorder writes it."""
    last, out = {}, bytearray()
    for k in range(0, len(data), 188):
        packet = bytearray(data[k : k + 188])
        pid, full = (packet[1] & 31) << 8 | packet[2], packet[3] & 16
        last[pid] = (last.get(pid, -1) + 1) % 16 if full else last.get(pid, 0)
        packet[3] = packet[3] & 0xF0 | last[pid]
        out += packet
    return bytes(out)


@pytest.mark.parametrize('mend', [bytes, counted], ids=['joined', 'recorded'])
@pytest.mark.parametrize('other', ['back', 'hours', 'same', 'wrap', 'overlap'])
def test_pieces_stay_in_order(tmp_path, parts, other, mend):
    path = tmp_path / 'v.ts'
    path.write_bytes(mend(parts['a'] + parts[other]))
    info = decode.probe(path)
    assert info.frames == 200 and not info.variable and info.seconds == pytest.approx(8, abs=0.1)
    choice = np.arange(200)
    if (other, mend) == ('overlap', bytes):  # no gap in the clock: is it a joint or a loss?
        choice = np.flatnonzero(decode.damage(path).good)
        assert len(choice) >= 197
    else:
        decode.check(path)
        assert not info.missing
    near(greys(decode.read_frames(path, lambda timing: choice)), choice)
    assert len(opencv(path)) == 200
    near(opencv(path), np.arange(200))


def test_three_pieces(tmp_path, parts):
    path = tmp_path / 'v.ts'
    path.write_bytes(parts['hours'] + parts['a'] + parts['back'])
    near(everything(path), [*range(100, 200), *range(200)][:300])
    assert decode.probe(path).seconds == pytest.approx(12, abs=0.1)


def test_program_streams_joined(tmp_path):
    pieces = [
        write(tmp_path / f'{i}.vob', 100 * i, 100, codec='mpeg2video', g='12', bf='2', qscale='2')
        for i in range(2)
    ]
    path = tmp_path / 'v.vob'
    path.write_bytes(b''.join(pieces))
    near(everything(path), opencv(path))
    assert len(opencv(path)) == decode.probe(path).frames == 200


def test_a_piece_of_a_damaged_recording_has_its_own_states(tmp_path):
    """The first choice meets the damage, the second does not: states are those of the second."""
    path = tmp_path / 'v.mp4'
    write(path)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for pos, size in packets[50:53]:
        data[pos + 5 : pos + size] = bytes(size - 5)
    path.write_bytes(data)
    states = np.zeros((100, 7))
    states[:, 0] = np.arange(100) / 1000
    draws = [45, 5]
    piece = robot.cut(
        robot.Episode('v', states, str(path), fps=RATE), 8, RATE, lambda n: draws.pop(0)
    )
    assert not draws and piece.numbers.tolist() == list(range(5, 13))
    np.testing.assert_allclose(piece.states[:, 0], piece.numbers / 1000)
    near(greys(piece.frames), piece.numbers)


@pytest.mark.parametrize('cut', [1, 2])
def test_a_joint_after_a_cut_frame(tmp_path, parts, cut):
    """The first stream ends within a frame, which only the decoder knows."""
    a = parts['a']
    places = [k for k in range(0, len(a), 188) if a[k + 1] & 31 == 1 and not a[k + 2]]
    path = tmp_path / 'v.ts'
    path.write_bytes(a[: places[-cut]] + parts['back'])
    good = np.flatnonzero(decode.damage(path).good)
    assert len(good) >= 195
    numbers = greys(decode.read_frames(path, lambda timing: good))
    expected = good + (200 - len(decode.damage(path).good)) * (good > 99)
    near(numbers, expected)


def lose(parts, share):
    a = parts['a']
    k = next(
        k for k in range(int(len(a) * share) // 188 * 188, len(a), 188)
        if a[k + 1] == 1 and not a[k + 2]
    )  # fmt: skip
    begun = sum(a[p + 1] & 95 == 65 and not a[p + 2] for p in range(0, k, 188))
    return a[:k] + a[k + 188 :], begun - 1  # and the frame, in the order of the file


@pytest.mark.parametrize('share', [0.1, 0.3, 0.5, 0.62, 0.8, 0.97])
def test_lost_packet(tmp_path, parts, share):
    path = tmp_path / 'v.ts'
    data, hit = lose(parts, share)
    path.write_bytes(data)
    good = np.flatnonzero(decode.damage(path).good)
    assert hit not in good and len(good) >= 70
    near(greys(decode.read_frames(path, lambda timing: good)), good)
    assert set(range(hit - 4)) <= set(good)  # and what follows the next keyframe
    with pytest.raises(BadFile) as caught:
        decode.read_frames(path, lambda timing: np.array([0, hit]))
    assert caught.value.reason == 'corrupt' and 'are missing' in str(caught.value)
    with pytest.raises(BadFile, match='are missing'):
        decode.check(path)


def test_training_takes_the_good_part(tmp_path, parts):
    path = tmp_path / 'v.ts'
    path.write_bytes(lose(parts, 0.5)[0])
    seen = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        choose = functools.partial(
            clips.frame_indices, frames=8, sampling=clips.Sampling(fps=5), rng=rng
        )
        seen.append(greys(decode.read_frames(path, choose)))
    assert all((np.diff(row) > 3).all() for row in seen)
    assert len({row[0] for row in seen}) > 3


def test_damage_that_only_the_decoder_sees(tmp_path):
    """Bytes of an mp4 overwritten: a random clip is drawn again, from what is good."""
    write(tmp_path / 'w.mp4')
    with av.open(str(tmp_path / 'w.mp4')) as container:
        entry = container.streams.video[0].index_entries[60]
    data = bytearray((tmp_path / 'w.mp4').read_bytes())
    data[entry.pos : entry.pos + 20] = b'\xff' * 20
    path = tmp_path / 'v.mp4'
    path.write_bytes(data)
    good = decode.damage(path).good
    assert good[:57].all() and good[75:].all() and not good[60:70].any()

    def choose(timing):
        first = timing.good[0] if timing.good else 55
        return np.arange(first, first + 10)

    near(greys(decode.read_frames(path, choose)), np.arange(10))
    with pytest.raises(BadFile, match=r'frames \d+ to 74 of 100 are missing'):
        decode.read_frames(path, lambda timing: np.arange(55, 65))


@pytest.mark.parametrize('codec', ['libx264', 'mpeg2video', 'libx265'])
def test_starts_within_a_group(tmp_path, codec):
    """Frames that need one before the beginning have no number, as in ffmpeg and OpenCV."""
    options = {'g': '25', 'bf': '2', 'qscale': '2'} if codec == 'mpeg2video' else {}
    if codec == 'libx265':
        options = {'x265-params': 'keyint=25:min-keyint=25:open-gop=1:bframes=3:log-level=none'}
    data = write(tmp_path / 'w.ts', codec=codec, **options)
    k = next(k for k in range(len(data) // 10 // 188 * 188, len(data), 188) if data[k + 1] & 64)
    path = tmp_path / 'v.ts'
    path.write_bytes(data[:564] + data[k:])
    reference = opencv(path)
    good = np.flatnonzero(decode.damage(path).good)
    numbers = greys(decode.read_frames(path, lambda timing: good))
    assert (np.diff(numbers[2:]) >= 0).all() and numbers[-1] >= 98 and len(good) >= 70
    if codec != 'libx265':  # OpenCV shows what lacks its references there
        near(numbers, reference)


@pytest.mark.parametrize('suffix', ['ts', 'mkv', 'mp4', 'flv'])
@pytest.mark.parametrize('share', [0.4, 0.77])
def test_cut_end(tmp_path, suffix, share):
    path = tmp_path / f'v.{suffix}'
    with av.open(str(path), 'w', options={'movflags': 'faststart'} if suffix == 'mp4' else {}) as c:
        stream = c.add_stream('libx264', rate=RATE, options={'g': '25', 'bf': '2'})
        stream.width, stream.height, stream.pix_fmt = *SIZE, 'yuv420p'
        for i in range(100):
            plane = np.full((96, 96), 128, np.uint8)
            plane[:40] = 16 + i
            plane[40:64] = np.random.default_rng(i).integers(0, 255, (24, 96))
            c.mux(stream.encode(av.VideoFrame.from_ndarray(plane, 'yuv420p')))
        c.mux(stream.encode())
    data = path.read_bytes()
    end = int(len(data) * share)
    if suffix == 'ts':  # within a frame: between two, what is left is a shorter video, and whole
        end = next(k for k in range(end // 188 * 188, len(data), 188) if not data[k + 1] & 64) + 60
    path.write_bytes(data[:end])
    whole = decode.damage(path)
    good = np.flatnonzero(whole.good)
    near(greys(decode.read_frames(path, lambda timing: good)), good)
    assert 100 * share - 8 < len(good) < 100 * share + 8
    assert (good == np.arange(len(good))).all()
    if suffix != 'flv':  # which says nothing of its length that one could rely on
        with pytest.raises(BadFile) as caught:
            decode.check(path)
        assert suffix == 'ts' or caught.value.reason == 'truncated'
    if suffix in ('mkv', 'mp4'):
        source = windows.open_input(path, RATE)
        taken = []
        with pytest.raises(BadFile, match='truncated'):
            for window in windows.windows(source, 8, 8, lambda frames: frames):
                taken.append(greys(window.clip))
        near(np.concatenate(taken)[: 8 * (len(good) // 8)], np.arange(8 * (len(good) // 8)))


def test_an_end_between_two_frames_of_a_stream(tmp_path):
    """Where a packet would have begun the next frame, nothing of those before is missing."""
    data = write(tmp_path / 'w.ts')
    starts = (k for k in range(len(data) * 2 // 5 // 188 * 188, len(data), 188) if data[k + 1] & 64)
    for k in itertools.islice(starts, 5):
        path = tmp_path / f'{k}.ts'
        path.write_bytes(data[: k + 60])
        decode.check(path)


def test_windows_before_the_damage(tmp_path, parts):
    path = tmp_path / 'v.ts'
    data, hit = lose(parts, 0.6)
    path.write_bytes(data)
    taken = []
    with pytest.raises(BadFile, match='are missing'):
        for window in windows.windows(windows.open_input(path, RATE), 4, 4, lambda f: f):
            taken.append(greys(window.clip))
    assert hit - 12 < 4 * len(taken) <= hit
    near(np.concatenate(taken), np.arange(4 * len(taken)))


@pytest.mark.slow
def test_embed(tmp_path, parts):
    data, hit = lose(parts, 0.5)
    (tmp_path / 'v.ts').write_bytes(data)
    (tmp_path / 'bad.ts').write_bytes(b'G' * 1880)
    command = '-m jepa_jax.embed --model random:tiny --frames 4 --crop 32 --out o.npz --input'
    done = subprocess.run(
        [sys.executable, *command.split(), 'v.ts', 'bad.ts'],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
    assert 'windows, those before: v.ts: corrupt: frames ' in done.stderr
    assert 'left out: bad.ts' in done.stderr
    result = np.load(tmp_path / 'o.npz')
    assert result['files'].tolist() == ['v.ts']
    assert result['numbers'][0].tolist() == [0, 6, 12, 18]
    assert hit - 36 < result['numbers'].max() < hit  # whole windows of a second
