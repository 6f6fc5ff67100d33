"""Which packet of a video holds which frame, which frames depend on damage, and when each is shown.

Frames are numbered as a decoder gives them: in the order of the file where the clock begins anew
(transport streams that were joined or recorded over a reset), and by their presentation times in
between. What a player drops at the start of a file, because the frames that it refers to were never
in it, has no number.

From a damaged packet on all frames are missing, up to the next keyframe, and those that follow that
in the file but are shown before it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence

import av
import numpy as np

from jepa_jax import files
from jepa_jax.data.clips import Timing
from jepa_jax.data.containers import CLOCKED, Video, no_frames, opened

KEEP = 64 * 2**20  # bytes of packets held from counting to decoding; a larger file is read twice
OVERHEAD = 1024  # bytes that a packet takes however small it is
REORDER = 32  # packets; codecs show a frame at most 16 places before or after its place in the file
GAP = 1.0  # seconds; no transport or program stream pauses for longer (ISO 13818-1 asks for 0.7)
# Decoders that show nothing of what lacks its references, rather than something grey.
STRICT = ('h264', 'mpeg1video', 'mpeg2video')


@dataclasses.dataclass
class Packets:
    """A run of a stream's packets, in file order."""

    first: int  # number of frames before the run
    times: list[int | None]  # pts of each; None: shows no frame
    keys: list[int]  # places in the run where decoding can start, ascending
    pieces: list[int]  # places where the clock begins anew; the first is 0
    held: list[av.Packet] | None  # None: too many bytes, read them again
    timed: bool  # whether the times tell the frames of a piece apart
    leading: list[int]  # places that lack the keyframe before them, in this piece
    damaged: list[int]  # places of packets that the container calls so
    dts: list[int | None]  # of each packet
    lost: list[int] = dataclasses.field(default_factory=list)  # places at which some may be missing
    cut: str = ''  # in words, if the end is missing
    # frames a tick by those that have a time, where `timed` is False; 0: unknown
    rate: float = 0.0

    def __post_init__(self) -> None:
        self.number()

    def number(self) -> None:
        """Finds the places in presentation order."""
        places = [place for place, time in enumerate(self.times) if time is not None]
        if self.timed and len(self.pieces) == 1:
            places.sort(key=self.times.__getitem__)
        elif self.timed:
            piece = np.searchsorted(self.pieces, np.arange(len(self.times)), 'right').tolist()
            places.sort(key=lambda place: (piece[place], self.times[place]))
        self.order = places

    def bounds(self, place: int) -> tuple[int, int]:
        """First place of the piece around one, and that of the next."""
        ends = [*self.pieces, len(self.times)]
        return next((a, b) for a, b in itertools.pairwise(ends) if place < b)

    def spread(self, bad: np.ndarray, place: int) -> None:
        """Marks all places that depend on one."""
        end = self.bounds(place)[1]
        keys = [key for key in self.keys if place < key < end]
        stop = keys[0] if keys else end
        bad[place:stop] = True
        for later in range(stop + 1, keys[1] if len(keys) > 1 else end):
            if self.times[later] is not None and self.times[later] < (self.times[stop] or 0):
                bad[later] = True

    def uncertain(self, bad: np.ndarray, place: int) -> None:
        """Marks what is shown after a frame that may be lost: its number is not certain."""
        dts = self.dts[min(place, len(bad) - 1)]
        if dts is not None:
            for before in range(
                max(self.bounds(min(place, len(bad) - 1))[0], place - REORDER), place
            ):
                if (self.times[before] or -math.inf) > dts:
                    bad[before] = True

    def bad(self) -> np.ndarray | None:
        """Places whose frames are missing, by what the packets tell, bool; None: none."""
        if not (self.leading or self.damaged or self.cut):
            return None
        bad = np.zeros(len(self.times), bool)
        bad[self.leading] = True
        count = len(self.times)
        for place in self.damaged:
            self.spread(bad, place)
        for place in self.lost:
            self.uncertain(bad, place)
        if self.cut:
            self.uncertain(bad, count)
        if not self.timed and bad.any():  # then frames are only counted
            bad[max(0, int(bad.argmax()) - REORDER) :] = True
        return bad


@dataclasses.dataclass
class Table:
    """A video's timing, and where that came from: the header's index or all packets."""

    timing: Timing
    index: list[tuple[int, bool]] | None = None  # (dts, is a keyframe) of every packet
    packets: Packets | None = None
    good: np.ndarray | None = None  # [frames] bool, by what the packets tell; None: all
    why: tuple[str, ...] = ()  # what is wrong with the rest, or with the end
    reason: str = 'corrupt'  # a key of errors.REASONS

    @property
    def missing(self) -> str:
        """What is missing, and why; '' if nothing is."""
        good = np.ones(1, bool) if self.good is None else self.good
        return describe(good, self.why) if self.why else ''

    @functools.cached_property
    def keys(self) -> list[int]:
        """Places of keyframes in the index."""
        return [place for place, (_, key) in enumerate(self.index) if key]


KNOWN = 2**18  # packets of all tables that a process keeps, if the last one leaves room for others
_tables: dict[tuple, Table] = {}  # the one that was asked for last is last
_turn = threading.Lock()


def table(video: Video) -> Table:
    """Made once in a process as long as the file stays as it is; packets are held only by a table
    that was just made. Raises BadFile."""
    with files.reading(video.path):
        status = os.stat(video.path)
    key = (
        os.path.abspath(video.path), status.st_size, status.st_mtime_ns, video.skim, files.limits(),
    )  # fmt: skip
    with _turn:
        if (kept := _tables.pop(key, None)) is not None:
            _tables[key] = kept
            return kept
    made = _table(video)
    kept = made
    if made.packets:  # what it holds would add up
        kept = dataclasses.replace(made, packets=copy.copy(made.packets))
        kept.packets.held = None
    with _turn:
        _tables[key] = kept
        while len(_tables) > 1 and sum(t.timing.frames for t in _tables.values()) > KNOWN:
            del _tables[next(iter(_tables))]
    return made


def _table(video: Video) -> Table:
    if (fast := _by_index(video)) is not None:
        return fast
    packets = gather(video, video.packets())
    if packets.leading and packets.leading[0] < packets.bounds(0)[1]:
        _drop_undecodable(video, packets)
    if not packets.order:
        raise no_frames(video.path)
    files.bound(video.path, 'frames', len(packets.order))
    times = _stamps(video, packets)
    timing = timing_of(video, times, packets.timed, packets.rate / (video.tick or 1.0))
    if packets.timed and not packets.cut:
        end = max(filter(None, packets.times), default=0) * video.tick + 1 / timing.fps
        expected = _declared_end(video)
        if end + 2.5 / timing.fps + 0.1 < expected:
            packets.cut = f'it ends after {end:.2f} of {expected:.2f} s'
    why = [packets.cut] if packets.cut else []
    if packets.damaged and packets.damaged != [len(packets.times) - 1]:
        why.append(f'incomplete packets: {", ".join(map(str, packets.damaged[:3]))}')
    if packets.leading:
        why.append('a piece begins without the frames that it refers to')
    reason = 'truncated' if packets.cut and len(why) == 1 else 'corrupt'
    bad = packets.bad()
    if bad is None or not (lost := bad[packets.order]).any():
        return Table(timing, packets=packets, why=tuple(why), reason=reason)
    timing = dataclasses.replace(timing, good=longest(~lost))
    return Table(timing, None, packets, ~lost, tuple(why), reason)


def _by_index(video: Video) -> Table | None:
    """By the header's index alone, if that tells what all packets would."""
    with files.reading(video.path):
        entries = video.stream.index_entries
        if not video.stream.frames or len(entries) != video.stream.frames:
            return None
        files.bound(video.path, 'frames', len(entries))
        entries = [(e.timestamp, e.is_keyframe, e.is_discard, e.pos + e.size) for e in entries]
    if max(end for *_, end in entries) > video.size:
        return None
    index = [(dts, key) for dts, key, _, _ in entries]
    stamps = (np.asarray([dts for dts, _ in index]) - index[0][0]) * video.tick
    timing = timing_of(video, stamps)
    # Decoding times suffice if all frames are shown (no edit list hides some) at an even rate.
    if not index[0][1] or timing.variable or any(hidden for _, _, hidden, _ in entries):
        return None
    if video.stream.codec_context.has_b_frames:  # frames that lack the one before the first?
        head, *after = video.peek(3)
        if any(packet.pts is None or packet.pts < (head.pts or 0) for packet in after):
            return None
    return Table(timing, index=index)


def timing_of(video: Video, times: np.ndarray, timed: bool = True, rate: float = 0.0) -> Timing:
    """From ascending seconds since the first frame; `timed` False: they only count frames, of which
    the times of some give a rate, frames a second, believed where the header is far off it."""
    count, fps = len(times), video.fps
    if not timed and rate and not abs(fps / rate - 1) < 0.1:
        fps = round(rate, 2) or rate
    if not timed or times[-1] == times[0]:
        return Timing(count, fps or 1.0, count / (fps or 1.0))
    if fps and np.abs(times * fps - np.arange(count)).max() <= 1:
        return Timing(count, fps, count / fps)
    # Rounded, for Matroska counts milliseconds, and `clips.Sampling.step` takes 24.0001 for 25.
    fps = (count - 1) / float(times[-1])
    fps = round(fps, 2) or fps
    return Timing(count, fps, float(times[-1]) + 1 / fps, times)


def _stamps(video: Video, packets: Packets) -> np.ndarray:
    """When each frame is shown, seconds since the first, in presentation order.

    A piece whose clock begins anew follows the one before it after one frame, whatever its clock
    says: pauses between pieces are not in the file.
    """
    if not packets.timed:
        return np.arange(len(packets.order)) * video.tick
    ticks = np.asarray([packets.times[place] for place in packets.order])
    times = (ticks - ticks[0]) * video.tick
    if len(packets.pieces) > 1:
        piece = np.searchsorted(packets.pieces, packets.order, 'right')
        within = np.diff(times)[np.diff(piece) == 0]
        step = float(np.median(within)) if len(within) else 1 / (video.fps or 1.0)
        for joint in np.flatnonzero(np.diff(piece)) + 1:
            times[joint:] += times[joint - 1] + step - times[joint]
    return times


def longest(good: np.ndarray) -> tuple[int, int]:
    """The longest run of good frames, `(first, end)`; `(0, 0)` if there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
    runs = edges.reshape(-1, 2)
    return tuple(runs[np.argmax(runs[:, 1] - runs[:, 0])].tolist()) if len(runs) else (0, 0)


def describe(good: np.ndarray, why: Sequence[str]) -> str:
    """`frames 48 to 71 of 100 are missing: ...`"""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ~good, [0]]).astype(np.int8)))
    runs = edges.reshape(-1, 2).tolist()
    words = [f'{a} to {b - 1}' if b - a > 1 else str(a) for a, b in runs[:3]]
    more = f' and {len(runs) - 3} more stretches' if len(runs) > 3 else ''
    cause = '; '.join(dict.fromkeys(filter(None, why)))
    if not runs:
        return cause
    return f'frames {", ".join(words)}{more} of {len(good)} are missing: {cause}'


def _declared_end(video: Video) -> float:
    """When the last frame ends according to a Matroska header, seconds; 0 if it does not say."""
    if 'matroska' not in video.kind:
        return 0.0  # other containers without an index in the header only estimate it
    with files.reading(video.path):
        tag = re.fullmatch(
            r'(\d+):(\d+):(\d+(?:\.\d+)?)', video.stream.metadata.get('DURATION', '')
        )
        if tag:
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
        alone = len(video.container.streams) == 1
        return (video.container.duration or 0) / av.time_base if alone else 0.0


def gather(video: Video, packets: Iterable[av.Packet], first: int = 0) -> Packets:
    """What a run of packets tells. Raises BadFile."""
    shows = _SHOWS.get(video.codec, lambda packet: True)
    times, keys, pieces, leading, held, damaged, stamps = [], [], [0], [], [], [], []
    total, known = 0, []  # known: times of all packets that have one
    # AVI has no presentation times: those that libav makes up are wrong where frames are reordered.
    timed = video.kind != 'avi' or not video.stream.codec_context.has_b_frames
    clocked, gap = video.kind in CLOCKED, GAP / (video.tick or 1.0)
    dts, latest, head = None, -math.inf, None  # head: time of the piece's first keyframe
    for packet in packets:
        place, time, key, before = len(times), packet.pts, packet.is_keyframe, dts
        dts = packet.dts
        stamps.append(dts)
        if packet.is_corrupt:
            damaged.append(place)
        if time is None:
            timed, time = False, place
        else:
            known.append(time)
        if head is None and key:
            head = time
        if packet.is_discard or not shows(packet):
            times.append(None)
        else:
            # a keyframe is shown after all that is before it in the file
            anew = time <= latest if key else False
            if dts is not None and before is not None:
                anew |= dts < before - gap or (clocked and dts > before + gap)
            if anew and timed and place:
                pieces.append(place)
                latest, head = time, time if key else None
            elif time > latest:
                latest = time
            if head is None or time < head:
                leading.append(place)
            times.append(time)
        if key:
            keys.append(place)
        total += packet.size + OVERHEAD
        held.append(packet)
        if total > KEEP:
            held.clear()
        if not place % 4096:
            files.bound(video.path, 'packets', place)
    if timed and len(pieces) == 1:
        shown = [time for time in times if time is not None]
        timed = len(set(shown)) == len(shown)
    elif timed:
        ends = [*pieces, len(times)]
        parts = [times[a:b] for a, b in itertools.pairwise(ends)]
        parts = [[time for time in part if time is not None] for part in parts]
        timed = all(len(set(part)) == len(part) for part in parts)
    rate = 0.0
    if not timed:
        if video.kind not in (*CLOCKED, 'avi') and pieces == [0] and len(known) > len(times) // 2:
            rate = (len(known) - 1) / max(max(known, default=0) - min(known, default=0), 1)
        pieces, leading = [0], []
    kept = held if total <= KEEP else None
    result = Packets(first, times, keys, pieces, kept, timed, leading, damaged, stamps, rate=rate)
    if damaged:
        _judge(video, result)
    if not first and result.pieces == [0] and video.stream.frames > len(times) and _is_cut(video):
        result.cut = f'it ends after {len(times)} of {video.stream.frames} frames'
    return result


def _is_cut(video: Video) -> bool:
    """Whether the header's index, if there is one, leads beyond the end of the file."""
    with files.reading(video.path):
        return any(e.pos + e.size > video.size for e in video.stream.index_entries)


def _judge(video: Video, packets: Packets) -> None:
    """What of the packets that the container calls incomplete is so.

    Of a transport stream libav marks the packet in the making when the counter of its pieces skips,
    and what the parser gives out then is the one before. So it may be either; and where the clock
    begins anew right after them, two streams were joined there, and whether the last frame of the
    first is whole, the decoder tells (it reports every one whose end is missing).
    """
    count = len(packets.times)
    if packets.damaged[-1] == count - 1:
        packets.cut = f'packet {count - 1}, the last one, is incomplete'
    if video.kind != 'mpegts':
        return
    joints = set(packets.pieces)
    damaged = [p for p in packets.damaged if not {p + 1, p + 2} & joints]
    packets.lost = [place + 1 for place in damaged if place + 1 < count]
    packets.damaged = sorted({*damaged, *packets.lost})


def _drop_undecodable(video: Video, packets: Packets) -> None:
    """Takes what a decoder does not show of the file's beginning out of the frames."""
    end = packets.bounds(0)[1]
    suspects = [place for place in packets.leading if place < end]
    first = next(iter(packets.keys), end)
    places = {time: place for place, time in enumerate(packets.times[:end])}
    shown = set()
    with opened(video.path, video.deadline, skim=False) as again:
        run = itertools.islice(again.packets(), max(first, suspects[-1]) + 1)
        for packet in itertools.chain(run, [None]):
            if packet is not None:
                again.spend(packet)
            with contextlib.suppress(Exception):  # of the decoder: that frame is not shown
                frames = again.stream.codec_context.decode(packet)
                shown.update(places.get(frame.pts) for frame in frames if not frame.is_corrupt)
    for place in suspects:
        if place not in shown:
            packets.times[place] = None
    # of those shown, what precedes the first keyframe may be anything
    doubtful = [p for p in suspects if p in shown and p < first < end and video.codec not in STRICT]
    packets.leading = doubtful + [place for place in packets.leading if place >= end]
    packets.number()


# VP8 in Matroska: packets that only refine a reference show nothing, says a bit of the first byte.
_SHOWS: dict[str, Callable[[av.Packet], bool]] = {
    'vp8': lambda packet: bool(memoryview(packet)[0] & 0x10),
}
