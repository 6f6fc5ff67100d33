"""Frames of video files, with PyAV: exact, quick, and plain about what is wrong with a file.

Reading 16 frames of a 10-second video is mostly waiting for its decoder, so what saves time is
decoding less:
  - the header is believed where it suffices (libav by itself decodes some frames to learn more);
  - decoding starts at the last keyframe before a chosen frame and ends with the last chosen one;
  - in between, frames that no other refers to are skipped, and only chosen ones become RGB.
None of it may change a pixel. Chosen frames are known by their presentation time, and if one does
not come out, or the decoder complains, the file is decoded again from its beginning, every frame.
If that fails too, the frame is missing, and so is all that depends on it; the other frames of the
file are read as ever.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator

import av
import numpy as np

from jepa_jax import files
from jepa_jax.data.clips import Timing
from jepa_jax.data.containers import Video, opened
from jepa_jax.data.packets import REORDER, Packets, Table, describe, gather, longest, table
from jepa_jax.data.upright import DEGREES, Pictures, turn_of, upright_size
from jepa_jax.errors import BadFile, Unsuitable


@dataclasses.dataclass(frozen=True)
class VideoInfo(Timing):
    """A video's timing and the look of its frames."""

    width: int = 0  # pixels of an upright frame
    height: int = 0
    rotation: int = 0  # degrees clockwise from the stored to the upright frame: 0, 90, 180, 270
    codec: str = ''
    stream: int = 0  # index within the container
    missing: str = ''  # what of the file is missing, as far as its packets tell, and why
    reason: str = ''  # then a key of errors.REASONS


@dataclasses.dataclass(frozen=True)
class Damage:
    """Which frames of a video come out of the decoder whole."""

    good: np.ndarray  # [frames] bool
    missing: str = ''  # what is missing, and why; empty: nothing
    reason: str = 'corrupt'  # a key of errors.REASONS


def probe(path: str | os.PathLike) -> VideoInfo:
    """What a video holds, by its header, one frame, and its packets if the header does not say.

    Raises BadFile.
    """
    deadline = files.Deadline(path, files.size(path))
    with opened(path, deadline, skim=False) as video:
        known = table(video)
    with opened(path, deadline, skim=False) as video:
        with files.reading(path):
            frame = _first(video)
            if frame is None:
                raise BadFile(path, 'corrupt', 'no frame comes out of the decoder')
            turn = turn_of(frame)
        height, width = upright_size(frame, turn)
        timing = {f.name: getattr(known.timing, f.name) for f in dataclasses.fields(Timing)}
        return VideoInfo(
            **timing,
            width=width,
            height=height,
            rotation=DEGREES[turn],
            codec=video.codec,
            stream=video.stream.index,
            missing=known.missing,
            reason=known.reason if known.missing else '',
        )


def _first(video: Video) -> av.VideoFrame | None:
    for packet in itertools.chain(video.packets(), [None]):
        if packet is not None:
            video.spend(packet)
        for frame in video.stream.codec_context.decode(packet):
            return frame
    return None


def read_frames(path: str | os.PathLike, choose: Callable[[Timing], np.ndarray]) -> np.ndarray:
    """Frames of a video, upright, RGB uint8 `[T, H, W, 3]`, or another shape for `[T]`.

    Args:
      path: of the video. Of several video streams the one with the largest picture is read.
      choose: from the timing to frame numbers in presentation order, `[T]` or any shape, in any
        order, with repeats. It may draw random numbers, for it is called once; and once more where
        the decoder does not give what it chose, with the timing's `good` then saying what it does
        give. May raise Unsuitable, which becomes BadFile.

    Raises:
      BadFile: the file cannot be read, or a chosen frame is missing.
      IndexError: a chosen frame is not in `[0, timing.frames)`.
    """
    deadline = files.Deadline(path, files.size(path))
    with opened(path, deadline, skim=True) as video:
        known = table(video)
        numbers = _chosen(path, choose, known.timing)
        try:
            return _read(path, video, known, numbers)
        except BadFile as error:
            if error.reason not in ('corrupt', 'truncated'):
                raise
            whole = damage(path, files.size(path))
            timing = dataclasses.replace(known.timing, good=longest(whole.good))
            if len(whole.good) != timing.frames or not whole.good.any():
                raise
            again = _chosen(path, choose, timing)
            if again.shape == numbers.shape and (again == numbers).all():
                raise BadFile(path, error.reason, whole.missing or error.detail) from error
    with opened(path, deadline, skim=True) as video:
        return _read(path, video, known, again)


def _chosen(path, choose: Callable[[Timing], np.ndarray], timing: Timing) -> np.ndarray:
    try:
        numbers = np.asarray(choose(timing))
    except Unsuitable as error:
        raise BadFile(path, error.reason, error.detail) from error
    if not numbers.size or numbers.min() < 0 or numbers.max() >= timing.frames:
        allowed = f'0 to {timing.frames - 1}'
        raise IndexError(f'{path}: chose frames {numbers.tolist()}, there are {allowed}')
    return numbers


def _read(path, video: Video, known: Table, numbers: np.ndarray) -> np.ndarray:
    """Frames `[*numbers.shape, H, W, 3]`. Raises BadFile."""
    unique, where = np.unique(numbers, return_inverse=True)
    if known.good is not None and not known.good[unique].all():
        raise BadFile(path, known.reason, known.missing)
    frames = _read_quickly(video, known, unique.tolist())
    if frames is None:
        frames = _read_slowly(path, video.deadline, unique.tolist())
    if len(unique) < numbers.size or (np.diff(numbers.ravel()) < 0).any():
        frames = frames[where.ravel()]
    return frames.reshape(*numbers.shape, *frames.shape[1:])


def check(path: str | os.PathLike) -> None:
    """Decodes every frame; raises BadFile if one of them does not come out whole."""
    whole = damage(path)
    if whole.missing:
        raise BadFile(path, whole.reason, whole.missing)


# What comes out of the decoder

_damages: dict[tuple[str, int, int], Damage] = {}  # by path, size and time of change


def damage(path: str | os.PathLike, packed: float = math.inf) -> Damage:
    """What is missing of a video, by decoding all of it: once in a process. Raises BadFile.

    packed: bytes of the file, if the limit of work is to hold: `files.Deadline`.
    """
    files.size(path)  # or it is no regular file
    with files.reading(path):
        status = os.stat(path)
    key = os.path.abspath(path), status.st_size, status.st_mtime_ns
    if key not in _damages:
        while len(_damages) >= 256:
            del _damages[next(iter(_damages))]
        _damages[key] = _damage(path, packed)
    return _damages[key]


def _damage(path, packed: float) -> Damage:
    sequence = _Sequence(path, files.Deadline(path, packed))
    good = np.zeros(len(sequence.packets.order), bool)
    for number, _, sound in sequence:
        if number < len(good):
            good[number] = sound
    if not good.all() and not sequence.why:
        sequence.why.append(f'{good.sum()} of {len(good)} frames come out of the decoder')
    missing = describe(good, sequence.why) if sequence.why else ''
    return Damage(good, missing, sequence.reason)


class _Sequence:
    """All frames by decoding the file from its beginning, and which of them are whole.

    Iterating gives `(number, frame, whether it is whole)`: in presentation order, but for what is
    missing. A frame is given once nothing that it refers to can turn out to be damaged.

    Attributes:
      packets: of the stream.
      why: what was wrong so far, in words.
      reason: a key of errors.REASONS.

    Raises BadFile.
    """

    def __init__(self, path: str | os.PathLike, deadline: files.Deadline) -> None:
        self._path, self._deadline = path, deadline
        with opened(path, deadline, skim=False) as video:
            known = table(video)
            self.packets = known.packets or gather(video, video.packets())
        self.why, self.reason = list(known.why), known.reason
        bad = self.packets.bad()
        self._bad = np.zeros(len(self.packets.times), bool) if bad is None else bad
        self._numbers = {place: number for number, place in enumerate(self.packets.order)}

    def __iter__(self) -> Iterator[tuple[int, av.VideoFrame, bool]]:
        packets, self._count = self.packets, itertools.count()
        self._due: dict[int, None] = {}  # places given to the decoder that are not out, in order
        self._out: list[tuple[int, av.VideoFrame]] = []  # places and frames that are
        keys, starts = set(packets.keys), set(packets.pieces[1:])
        self._places: dict[int | None, int] = {}  # by time, of this piece
        with opened(self._path, self._deadline, skim=False) as video:
            self._video, self._codec = video, video.stream.codec_context
            self._codec.copy_opaque = True  # from a packet to its frame
            for place, packet in enumerate(itertools.islice(video.packets(), len(packets.times))):
                anew = place in starts
                if anew or (place in keys and place and self._bad[place - 1]):
                    self._take(None, place - 1)
                    yield from self._sure(all_of_them=True)
                    self._codec.flush_buffers()
                if anew:
                    self._places.clear()
                packet.opaque = place
                if packets.times[place] is not None:
                    self._places[packets.times[place]] = place
                    self._due[place] = None
                self._take(packet, place)
                yield from self._sure()
            self._take(None, len(packets.times) - 1)
            yield from self._sure(all_of_them=True)

    def _take(self, packet: av.Packet | None, place: int) -> None:
        if packet is not None:
            self._video.spend(packet)
        try:
            frames = self._codec.decode(packet)
        except Exception as error:  # of the library: whatever it says, this packet is damaged
            self._hit(place, files.one_line(error))
            return
        for frame in frames:
            at = frame.opaque if isinstance(frame.opaque, int) else self._places.get(frame.pts)
            at = place if at is None else at
            self._due.pop(at, None)
            if frame.is_corrupt:
                self._hit(at, 'the decoder reports an error')
            self._out.append((at, frame))

    def _hit(self, place: int, why: str) -> None:
        """Marks what depends on a packet that the decoder cannot use."""
        self._due.pop(place, None)
        if self._bad[place] or (
            self.packets.times[place] is None and place < self.packets.order[0]
        ):
            return  # known; or of the file's beginning, which has no frames
        if self.packets.timed:
            self.packets.spread(self._bad, place)
        else:
            self._bad[place:] = True  # frames are only counted
        self.why.append(why)
        self.reason = 'corrupt'

    def _sure(self, all_of_them: bool = False) -> Iterator[tuple[int, av.VideoFrame, bool]]:
        if all_of_them:
            self._due.clear()
        while self._out:
            place, frame = self._out[0]
            if next(iter(self._due), math.inf) < place and len(self._out) <= REORDER // 2:
                return
            del self._out[0]
            number = self._numbers.get(place) if self.packets.timed else next(self._count)
            if number is not None:
                yield number, frame, not self._bad[place]


def _read_slowly(path, deadline: files.Deadline, numbers: list[int]) -> np.ndarray:
    """Frames `[len(numbers), H, W, 3]` by decoding every frame from the start of the file."""
    rows = {number: row for row, number in enumerate(numbers)}
    pictures = Pictures(path, len(numbers), files.size(path))
    sequence = _Sequence(path, deadline)
    for number, frame, sound in sequence:
        if (row := rows.pop(number, None)) is not None:
            if not sound:
                why = '; '.join(dict.fromkeys(sequence.why))
                raise BadFile(path, sequence.reason, f'frame {number}: {why}')
            pictures.put(row, frame)
        if not rows:
            return pictures.frames
    raise BadFile(path, 'corrupt', f'frame {min(rows)} does not come out of the decoder')


# Decoding no more than needed

# Decoders that can skip a frame that nothing refers to, and decide anew for each packet.
_SKIPPING = {'h264', 'hevc', 'mpeg4'}
FAR = 256  # packets that are read over rather than sought
SEEKABLE = ('matroska', 'mov')  # containers whose packets are the same from a keyframe on


class _Doubt(Exception):
    """The quick way gave not what it should; the slow way tells whether the file is to blame."""


def _read_quickly(video: Video, known: Table, numbers: list[int]) -> np.ndarray | None:
    """Frames `[len(numbers), H, W, 3]` by decoding no more than they need; None if in doubt."""
    packets = known.packets
    pictures = Pictures(video.path, len(numbers), video.size)
    try:
        if packets is None:
            first, run = _seek(video, known, numbers[0])
            count = min(numbers[-1] + 1 + REORDER, len(known.index)) - first
            packets = gather(video, itertools.islice(run, count), first)
            if len(packets.times) < count or packets.damaged:
                return None
        if not packets.timed or numbers[-1] - packets.first >= len(packets.order):
            return None
        rows = {packets.order[number - packets.first]: row for row, number in enumerate(numbers)}
        if packets.held is not None:
            _decode(video, packets, iter(packets.held), rows, pictures)
        elif not video.begun and (begin := _near(video, packets, rows)):
            _decode(video, packets, begin[1], rows, pictures, begin[0])
        else:
            with opened(video.path, video.deadline, skim=True) as video:
                run = video.packets()
                if known.index:
                    _, run = _seek(video, known, numbers[0])
                _decode(video, packets, run, rows, pictures)
    except _Doubt:
        return None
    return pictures.frames if not rows else None


def _near(
    video: Video, packets: Packets, chosen: Iterable[int]
) -> tuple[int, Iterator[av.Packet]] | None:
    """A place not long before the first to decode, and the packets from it on; None: only those
    from the start can be had, of the file opened anew. Raises _Doubt."""
    first = _stretches(packets, chosen)[0][0]
    if first < FAR:
        return 0, video.packets()
    odd = len(packets.pieces) > 1 or packets.leading or packets.damaged or packets.cut
    if odd or not any(kind in video.kind for kind in SEEKABLE):
        return None
    run = iter(())
    with contextlib.suppress(BadFile):
        video.seek(packets.times[first])
        run = video.packets()
    head = next(run, None)
    place = next((p for p in packets.keys if head and packets.times[p] == head.pts), None)
    if place is None or place > first:
        return None
    return place, itertools.chain([head], run)


def _seek(video: Video, known: Table, number: int) -> tuple[int, Iterator[av.Packet]]:
    """A keyframe's place before a frame, and the packets from it on. Raises _Doubt.

    A keyframe's place in the file is its number in presentation order, but for the frames that
    follow it in the file and are shown before it. So packets from a keyframe on, sorted by time,
    are numbered from its place on; and as such frames need the keyframe before, that is taken.
    """
    index, keys = known.index, known.keys
    before = max(bisect.bisect_right(keys, number) - 2, 0)
    first, *later = keys[before : before + 2]
    if not first:
        return 0, video.packets()
    # libav takes it for a presentation time, which lies later: aim at the end of the group.
    video.seek(index[later[0] - 1 if later else first][0])
    packets = video.packets()
    head = next(packets, None)
    if head is None or head.dts is None:
        raise _Doubt
    place = bisect.bisect_left(index, head.dts, key=lambda entry: entry[0])
    if place > first or index[place] != (head.dts, True):
        raise _Doubt
    return place, itertools.chain([head], packets)


def _decode(
    video: Video, packets: Packets, run: Iterator, rows: dict[int, int], pictures: Pictures,
    place: int = 0,
) -> None:  # fmt: skip
    """Decodes the chosen frames, `rows` by place, and takes them out of `rows`.

    `run` gives the packets from `place` on again. Raises _Doubt.
    """
    codec, times, latest = video.stream.codec_context, packets.times, -math.inf
    idle = 'NONREF' if video.codec in _SKIPPING else 'DEFAULT'
    here: dict[int, int] = {}  # row by time: of those chosen in a stretch

    def take(packet):
        nonlocal latest
        if packet is not None:
            video.spend(packet)
        try:
            frames = codec.decode(packet)
        except Exception as error:  # of the library
            raise _Doubt from error
        for frame in frames:
            if frame.is_corrupt or frame.pts is None or frame.pts <= latest:
                raise _Doubt
            latest = frame.pts
            if (row := here.pop(frame.pts, None)) is not None:
                pictures.put(row, frame)

    for number, (start, end) in enumerate(_stretches(packets, rows)):
        if number:
            codec.flush_buffers()
            video.deadline.check()
            if start in packets.pieces:
                latest = -math.inf
        here |= {times[at]: rows[at] for at in rows if start <= at <= end}
        within = itertools.islice(run, start - place, end + 1 - place)
        for at, packet in enumerate(within, start):
            if times[at] not in (None, packet.pts):
                raise _Doubt
            if packet.pts is not None and packet.pts < times[start]:
                continue  # refers to what is before the keyframe
            codec.skip_frame = 'DEFAULT' if packet.pts in here else idle
            take(packet)
        take(None)
        if here:
            raise _Doubt
        place = end + 1
    rows.clear()


def _stretches(packets: Packets, chosen: Iterable[int]) -> list[tuple[int, int]]:
    """Disjoint `(first, last)` places to decode: from a keyframe to the last chosen frame."""
    times, keys, stretches = packets.times, packets.keys, []
    for last in sorted(chosen):
        before = keys[: bisect.bisect_right(keys, last)]
        begin = packets.bounds(last)[0] if len(packets.pieces) > 1 else 0
        shown = (k for k in reversed(before) if times[k] is not None and times[k] <= times[last])
        first = next(shown, -1)
        if first < begin:
            raise _Doubt
        while stretches and first <= stretches[-1][1] + (first != begin):
            first, last = min(first, stretches[-1][0]), max(last, stretches.pop()[1])
        stretches.append((first, last))
    return stretches
