"""Frames of video files, with PyAV: exact, quick, and plain about what is wrong with a file.

Reading 16 frames of a 10-second video is mostly waiting for its decoder, so what saves time is
decoding less:
  - the header is believed where it suffices (libav by itself decodes some frames to learn more);
  - decoding starts at the last keyframe before a chosen frame and ends with the last chosen one;
  - in between, frames that no other refers to are skipped, and only chosen ones become RGB.
None of it may change a pixel. Chosen frames are known by their presentation time, and if one does
not come out, or the decoder complains, the file is decoded again from its beginning, every frame;
if that fails too, the file is bad.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import errno
import itertools
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator

import av
import numpy as np
from av.stream import Discard, Disposition
from av.video.reformatter import VideoReformatter

from jepa_jax import files
from jepa_jax.data.clips import Timing
from jepa_jax.errors import BadFile, Unsuitable


@dataclasses.dataclass(frozen=True)
class VideoInfo(Timing):
    """A video's timing and the look of its frames."""

    width: int = 0  # pixels of an upright frame
    height: int = 0
    rotation: int = 0  # degrees clockwise from the stored to the upright frame: 0, 90, 180, 270
    codec: str = ''
    pixel_format: str = ''
    stream: int = 0  # index within the container


def probe(path: str | os.PathLike) -> VideoInfo:
    """What a video holds, by its header, one frame, and its packets if the header does not say.

    Raises BadFile.
    """
    with _opened(path, skim=False) as (container, stream):
        table = _table(path, container, stream)
    with _opened(path, skim=False) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise BadFile(path, 'corrupt', 'no frame comes out of the decoder')
        turn = _turn(frame)
        height, width = _upright_size(frame, turn)
        timing = {f.name: getattr(table.timing, f.name) for f in dataclasses.fields(Timing)}
        return VideoInfo(
            **timing,
            width=width,
            height=height,
            rotation=_DEGREES[turn],
            codec=stream.codec_context.codec.canonical_name,
            pixel_format=frame.format.name,
            stream=stream.index,
        )


def read_frames(path: str | os.PathLike, choose: Callable[[Timing], np.ndarray]) -> np.ndarray:
    """Frames of a video, upright, RGB uint8 `[T, H, W, 3]`, or another shape for `[T]`.

    Args:
      path: of the video. Of several video streams the one with the largest picture is read.
      choose: from the timing to frame numbers in presentation order, `[T]` or any shape, in any
        order, with repeats. Called once, so it may draw random numbers. May raise Unsuitable, which
        becomes BadFile.

    Raises:
      BadFile: the file cannot be read, or not up to the last frame chosen.
      IndexError: a chosen frame is not in `[0, timing.frames)`.
    """
    with _opened(path, skim=True) as (container, stream):
        table = _table(path, container, stream)
        try:
            numbers = np.asarray(choose(table.timing))
        except Unsuitable as error:
            raise BadFile(path, error.reason, error.detail) from error
        if not numbers.size or numbers.min() < 0 or numbers.max() >= table.timing.frames:
            allowed = f'0 to {table.timing.frames - 1}'
            raise IndexError(f'{path}: chose frames {numbers.tolist()}, there are {allowed}')
        unique, where = np.unique(numbers, return_inverse=True)
        frames = _read_quickly(path, container, stream, table, unique.tolist())
    if frames is None:
        frames = _read_slowly(path, unique.tolist())
    if len(unique) < numbers.size or (np.diff(numbers.ravel()) < 0).any():
        frames = frames[where.ravel()]
    return frames.reshape(*numbers.shape, *frames.shape[1:])


def check(path: str | os.PathLike) -> None:
    """Decodes every frame; raises BadFile if one of them does not come out whole."""
    frames = probe(path).frames
    count = sum(1 for _ in _numbered(path))
    if count < frames:
        raise BadFile(path, 'corrupt', f'{count} of {frames} frames come out of the decoder')


# Opening


# metadata that is no UTF-8 fails PyAV unless told otherwise; from 19 on it never does
_BAD_METADATA = {} if int(av.__version__.split('.')[0]) >= 19 else {'metadata_errors': 'replace'}


@contextlib.contextmanager
def _opened(path, skim: bool) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its best video stream; libav's errors become BadFile.

    skim: take the header's word and decode nothing to learn more (2 to 7 ms of a small video's 50).
    """
    files.size(path)
    options = {'protocol_whitelist': 'file'}  # a playlist must not reach for the network
    if skim and not os.fspath(path).lower().endswith('.avi'):  # see `_gather`
        options['skip_frame'] = 'all'  # of the decoders that libav opens while it looks at a file
    try:
        container = av.open(f'file:{os.fspath(path)}', options=options, **_BAD_METADATA)
    except (av.FFmpegError, OSError) as error:
        raise _unopened(path, error) from error
    with container:
        try:
            stream = _best_stream(path, container)
            stream.codec_context.thread_count = 1  # workers are parallel, and skipping needs it
            yield container, stream
        except av.FFmpegError as error:
            raise BadFile(path, 'corrupt', error.strerror or '') from error


def _unopened(path, error) -> BadFile:
    try:
        with open(path, 'rb') as file:
            file.read(2**16)
        # libav's word for a header that ends too soon, now that reading works: EOF, or EIO.
        if isinstance(error, EOFError) or error.errno == errno.EIO:
            return BadFile(path, 'truncated', 'it ends within its header')
        if isinstance(error, OSError):
            return files.refused(path, error)
        reason = 'truncated' if _mp4_is_cut(path) else 'not_video'
    except OSError as refused:
        return files.refused(path, refused)
    return BadFile(path, reason, error.strerror or '')


def _mp4_is_cut(path) -> bool:
    """Whether a file that begins as an mp4 or mov ends before its boxes do, or has no index."""
    size, place, boxes = os.path.getsize(path), 0, []
    with open(path, 'rb') as file:
        while place + 8 <= size:
            file.seek(place)
            length, kind, large = struct.unpack('>I4sQ', file.read(16).ljust(16, b'\0'))
            boxes.append(kind)
            if boxes[0] not in (b'ftyp', b'wide', b'mdat', b'moov', b'skip', b'free'):
                return False
            place += max(large if length == 1 else length or size - place, 8)
    return place > size or b'moov' not in boxes


# Demuxers that make a "video" out of a text or an image file.
_STILL = {'image2', 'tty', 'bin', 'xbin', 'adf', 'idf', 'ansi'}


def _best_stream(path, container) -> av.VideoStream:
    """The stream with the largest picture, then the most frames; cover pictures do not count."""
    name = container.format.name
    if name in _STILL or name.endswith('_pipe'):
        raise BadFile(path, 'not_video', f'libav reads it as {name}')
    cover = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    streams = [s for s in container.streams.video if not s.disposition & cover]
    decodable = [s for s in streams if s.codec_context is not None]
    if not decodable:
        reason = 'unsupported' if streams else 'no_video_stream'
        raise BadFile(path, 'truncated' if _mp4_is_cut(path) else reason)
    best = max(decodable, key=lambda s: (s.width * s.height, s.frames, s.duration or 0, -s.index))
    for stream in container.streams:
        if stream.index != best.index:
            stream.discard = Discard.all
    return best


# Which packet holds which frame

KEEP = 64 * 2**20  # bytes of packets held from counting to decoding; a larger file is read twice
REORDER = 32  # packets; codecs show a frame at most 16 places before or after its place in the file


@dataclasses.dataclass
class _Packets:
    """A run of a stream's packets, in file order."""

    first: int  # number of frames before the run
    times: list[int | None]  # pts of each; None: shows no frame
    keys: list[int]  # places in the run where decoding can start, ascending
    held: list[av.Packet] | None  # None: too many bytes, read them again
    timed: bool  # whether the times tell the frames apart


@dataclasses.dataclass
class _Table:
    """A video's timing, and where that came from: the header's index or all packets."""

    timing: Timing
    index: list[tuple[int, bool]] | None = None  # (dts, is a keyframe) of every packet
    packets: _Packets | None = None


def _table(path, container, stream) -> _Table:
    entries = stream.index_entries
    if stream.frames and len(entries) == stream.frames:
        entries = [(e.timestamp, e.is_keyframe, e.is_discard, e.pos + e.size) for e in entries]
        size, end = os.path.getsize(path), max(end for *_, end in entries)
        if end > size:
            raise BadFile(path, 'truncated', f'{size} of at least {end} bytes')
        index = [(dts, key) for dts, key, _, _ in entries]
        timing = _timing(stream, [dts for dts, _ in index])
        # Decoding times suffice if all frames are shown (no edit list hides some) at an even rate.
        if index[0][1] and not timing.variable and not any(hidden for _, _, hidden, _ in entries):
            return _Table(timing, index=index)
    packets = _gather(path, container, stream, _full_packets(container, stream))
    shown = sorted(time for time in packets.times if time is not None)
    if not shown:
        raise BadFile(path, 'no_frames')
    timing = _timing(stream, shown if packets.timed else list(range(len(shown))), packets.timed)
    end, expected = shown[-1] * stream.time_base + 1 / timing.fps, _declared_end(container, stream)
    if packets.timed and end + 2.5 / timing.fps + 0.1 < expected:
        raise BadFile(path, 'truncated', f'ends after {end:.2f} of {expected:.2f} s')
    return _Table(timing, packets=packets)


def _timing(stream, stamps: list[int], timed: bool = True) -> Timing:
    """From ascending stamps in the stream's time base; `timed` False: they only count frames."""
    count = len(stamps)
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    if not timed or stamps[-1] == stamps[0]:
        return Timing(count, fps or 1.0, count / (fps or 1.0))
    times = (np.asarray(stamps) - stamps[0]) * float(stream.time_base)
    if fps and np.abs(times * fps - np.arange(count)).max() <= 1:
        return Timing(count, fps, count / fps)
    # Rounded, for Matroska counts milliseconds, and `clips.Sampling.step` takes 24.0001 for 25.
    fps = max(round((count - 1) / float(times[-1]), 2), 0.01)
    return Timing(count, fps, float(times[-1]) + 1 / fps, times)


def _declared_end(container, stream) -> float:
    """When the last frame ends according to a Matroska header, seconds; 0 if it does not say."""
    if 'matroska' not in container.format.name:
        return 0.0  # other containers without an index in the header only estimate it
    tag = re.fullmatch(r'(\d+):(\d+):(\d+(?:\.\d+)?)', stream.metadata.get('DURATION', ''))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


def _full_packets(container, stream) -> Iterator[av.Packet]:
    """Packets of the stream, without those of no bytes: the end, and repeats of a frame in AVI."""
    return (packet for packet in container.demux(stream) if packet.size)


def _gather(path, container, stream, packets: Iterable[av.Packet], first: int = 0) -> _Packets:
    shows = _SHOWS.get(stream.codec_context.codec.canonical_name, lambda packet: True)
    times, keys, held, total = [], [], [], 0
    # AVI has no presentation times: those that libav makes up are wrong where frames are reordered.
    timed = container.format.name != 'avi' or not stream.codec_context.has_b_frames
    packets = iter(packets)
    for packet in packets:
        if packet.is_corrupt:
            reason = 'corrupt' if next(packets, None) else 'truncated'
            raise BadFile(path, reason, f'packet {first + len(times)} is incomplete')
        if packet.is_keyframe:
            keys.append(len(times))
        if packet.is_discard or not shows(packet):
            times.append(None)
        elif packet.pts is None:
            timed = False
            times.append(len(times))
        else:
            times.append(packet.pts)
        total += packet.size
        held.append(packet)
        if total > KEEP:
            held.clear()
    shown = [time for time in times if time is not None]
    timed &= len(set(shown)) == len(shown)
    return _Packets(first, times, keys, held if total <= KEEP else None, timed)


# VP8 in Matroska: packets that only refine a reference show nothing, says a bit of the first byte.
_SHOWS: dict[str, Callable[[av.Packet], bool]] = {
    'vp8': lambda packet: bool(memoryview(packet)[0] & 0x10),
}


# Decoding

# Decoders that can skip a frame that nothing refers to, and decide anew for each packet.
_SKIPPING = {'h264', 'hevc', 'mpeg4'}


class _Doubt(Exception):
    """The quick way gave not what it should; the slow way tells whether the file is to blame."""


def _read_quickly(path, container, stream, table: _Table, numbers: list[int]) -> np.ndarray | None:
    """Frames `[len(numbers), H, W, 3]` by decoding no more than they need; None if in doubt."""
    packets = table.packets
    pictures = _Pictures(path, len(numbers))
    try:
        if packets is None:
            first, run = _seek(container, stream, table.index, numbers[0])
            count = min(numbers[-1] + 1 + REORDER, len(table.index)) - first
            packets = _gather(path, container, stream, itertools.islice(run, count), first)
            if len(packets.times) < count:
                held = f'{first + len(packets.times)} of {len(table.index)} packets'
                raise BadFile(path, 'truncated', held)
        if not packets.timed:
            return None
        order = sorted(time for time in packets.times if time is not None)
        rows = {order[number - packets.first]: row for row, number in enumerate(numbers)}
        if packets.held is not None:
            _decode(stream, packets, iter(packets.held), rows, pictures)
        else:
            with _opened(path, skim=True) as (container, stream):
                run = _full_packets(container, stream)
                if table.index:
                    _, run = _seek(container, stream, table.index, numbers[0])
                _decode(stream, packets, run, rows, pictures)
    except _Doubt:
        return None
    return pictures.frames if not rows else None


def _seek(container, stream, index, number: int) -> tuple[int, Iterator[av.Packet]]:
    """A keyframe's place before a frame, and the packets from it on. Raises _Doubt.

    A keyframe's place in the file is its number in presentation order, but for the frames that
    follow it in the file and are shown before it. So packets from a keyframe on, sorted by time,
    are numbered from its place on; and as such frames need the keyframe before, that is taken.
    """
    keys = [place for place, (_, key) in enumerate(index) if key]
    before = max(bisect.bisect_right(keys, number) - 2, 0)
    first, *later = keys[before : before + 2]
    packets = _full_packets(container, stream)
    if not first:
        return 0, packets
    # libav takes it for a presentation time, which lies later: aim at the end of the group.
    container.seek(index[later[0] - 1 if later else first][0], stream=stream)
    head = next(packets, None)
    if head is None or head.dts is None:
        raise _Doubt
    place = bisect.bisect_left(index, head.dts, key=lambda entry: entry[0])
    if place > first or index[place] != (head.dts, True):
        raise _Doubt
    return place, itertools.chain([head], packets)


def _decode(stream, packets: _Packets, run: Iterator, rows: dict[int, int], pictures) -> None:
    """Decodes the chosen frames, `rows` by time, and takes them out of `rows`.

    `run` gives the packets again. Raises _Doubt.
    """
    codec, times, latest = stream.codec_context, packets.times, -math.inf
    idle = 'NONREF' if codec.codec.canonical_name in _SKIPPING else 'DEFAULT'

    def take(packet):
        nonlocal latest
        try:
            frames = codec.decode(packet)
        except av.FFmpegError as error:
            raise _Doubt from error
        for frame in frames:
            if frame.is_corrupt or frame.pts is None or frame.pts <= latest:
                raise _Doubt
            latest = frame.pts
            if (row := rows.pop(frame.pts, None)) is not None:
                pictures.put(row, frame)

    place = 0
    for start, end in _stretches(times, packets.keys, rows):
        if place:
            codec.flush_buffers()
        for packet in itertools.islice(run, start - place, end + 1 - place):
            if packet.pts is not None and packet.pts < times[start]:
                continue  # refers to what is before the keyframe
            codec.skip_frame = 'DEFAULT' if packet.pts in rows else idle
            take(packet)
        take(None)
        place = end + 1


def _stretches(times, keys: list[int], chosen: Iterable[int]) -> list[tuple[int, int]]:
    """Disjoint `(first, last)` places to decode: from a keyframe to the last chosen frame."""
    places = {time: place for place, time in enumerate(times) if time is not None}
    stretches = []
    for last in sorted(places[time] for time in chosen):
        before = keys[: bisect.bisect_right(keys, last)]
        shown = (k for k in reversed(before) if times[k] is not None and times[k] <= times[last])
        first = next(shown, None)
        if first is None:
            raise _Doubt
        while stretches and first <= stretches[-1][1] + 1:
            first, last = min(first, stretches[-1][0]), max(last, stretches.pop()[1])
        stretches.append((first, last))
    return stretches


def _read_slowly(path, numbers: list[int]) -> np.ndarray:
    """Frames `[len(numbers), H, W, 3]` by decoding every frame from the start of the file."""
    rows = {number: row for row, number in enumerate(numbers)}
    pictures = _Pictures(path, len(numbers))
    for number, frame in _numbered(path):
        if (row := rows.pop(number, None)) is not None:
            pictures.put(row, frame)
        if not rows:
            return pictures.frames
    raise BadFile(path, 'corrupt', f'frame {min(rows)} does not come out of the decoder')


def _numbered(path) -> Iterator[tuple[int, av.VideoFrame]]:
    """All frames, numbered in presentation order. Raises BadFile at the first broken one."""
    with _opened(path, skim=False) as (container, stream):
        packets = _gather(path, container, stream, _full_packets(container, stream))
    order = sorted(time for time in packets.times if time is not None)
    numbers = {time: number for number, time in enumerate(order)}
    with _opened(path, skim=False) as (container, stream):
        for count, frame in enumerate(container.decode(stream)):
            number = numbers.get(frame.pts) if packets.timed else count
            if frame.is_corrupt or number is None:
                raise BadFile(path, 'corrupt', f'frame {count if number is None else number}')
            yield number, frame


class _Pictures:
    """Decoded frames as upright RGB in one array, made when the first one tells the size."""

    def __init__(self, path, count: int):
        self.path, self.count = path, count
        self.frames: np.ndarray | None = None  # [count, H, W, 3] uint8
        self.reformatter = VideoReformatter()

    def put(self, row: int, frame: av.VideoFrame) -> None:
        size = frame.width, frame.height
        if self.frames is None:
            self.turn, self.size = _turn(frame), size
            self.frames = np.empty((self.count, *_upright_size(frame, self.turn), 3), np.uint8)
        if size != self.size:
            raise BadFile(self.path, 'size_change', f'from {self.size} to {size}')
        rgb = self.reformatter.reformat(frame, format='rgb24', threads=1)
        plane = rgb.planes[0]
        lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        pixels = lines[: frame.height, : 3 * frame.width].reshape(frame.height, frame.width, 3)
        self.frames[row] = _turned(pixels, self.turn)


# A display matrix that turns by right angles: (transposed, then mirrored in x, then mirrored in y).
_DEGREES = {
    (False, False, False): 0,
    (True, True, False): 90,
    (False, True, True): 180,
    (True, False, True): 270,
    (False, True, False): 0,  # the rest mirror as well
    (True, False, False): 90,
    (False, False, True): 180,
    (True, True, True): 270,
}


def _turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How to turn a frame upright: its display matrix to the right angle, a key of `_DEGREES`.

    The matrix takes a stored (x, y) to (a x + c y, b x + d y). libav: display.h.
    """
    matrix = frame.side_data.get('DISPLAYMATRIX')
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    to_x, to_y = (c, b) if transposed else (a, d)
    return transposed, to_x < 0, to_y < 0


def _upright_size(frame: av.VideoFrame, turn: tuple[bool, bool, bool]) -> tuple[int, int]:
    """Height and width once turned."""
    return (frame.width, frame.height) if turn[0] else (frame.height, frame.width)


def _turned(pixels: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """`[H, W, C]` turned: a view."""
    transposed, mirror_x, mirror_y = turn
    if transposed:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]
