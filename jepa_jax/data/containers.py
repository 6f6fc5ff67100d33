"""Opening a video: local files of a closed list of containers, bounded before libav allocates."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import re
from collections.abc import Iterator

import av
from av.stream import Discard, Disposition

from jepa_jax import files
from jepa_jax.data import boxes
from jepa_jax.errors import BadFile

# libav's demuxers of what holds moving pictures and refers to nothing else: no playlist, script,
# manifest or device, whatever a file is called.
FORMATS = (
    'matroska avi mpegts mpeg flv asf ogg dv ivf obu h264 hevc m4v mpegvideo mjpeg yuv4mpegpipe '
    'gif apng'
).split()
CLOCKED = ('mpegts', 'mpeg')  # transport and program streams: times of a recorder's clock
WRAP = 2**33  # ticks of that clock
HELD = 16  # frames that a decoder may keep at a time
STREAMS = 256  # of a container

# metadata that is no UTF-8 fails PyAV unless told otherwise; from 19 on it never does
_BAD_METADATA = {} if int(av.__version__.split('.')[0]) >= 19 else {'metadata_errors': 'replace'}

# What a pixel counts of the limit `work`, where it takes longer than H.264's: 4K pictures of one
# group of HEVC decoded at 370 to 520 million pixels a second of one core, of H.264 at 1,600. VVC
# was not timed, for nothing here writes it: twice as much.
COST = {'hevc': 3, 'vvc': 6}


@dataclasses.dataclass
class Video:
    """An opened container and its best video stream."""

    path: str | os.PathLike
    container: av.container.InputContainer
    stream: av.VideoStream
    deadline: files.Deadline
    size: int  # bytes of the file
    kind: str  # of the container: libav's name
    codec: str
    fps: float  # as the header says or libav makes out; 0 if they do not
    tick: float  # seconds of the stream's time base
    skim: bool  # see `opened`
    cost: int = 1  # of a pixel, in those of H.264
    clock: int | None = None  # dts of the last packet, if its container is one of CLOCKED
    wraps: int = 0  # ticks by which that clock was corrected
    ahead: list[av.Packet] = dataclasses.field(default_factory=list)  # that were peeked at
    begun: bool = False  # packets were taken, which `packets` does not give again

    def peek(self, count: int) -> list[av.Packet]:
        """The first packets, which `packets` gives again. At least one, or BadFile."""
        self.ahead = list(itertools.islice(self.packets(), count))
        self.begun = False
        if not self.ahead:
            raise no_frames(self.path)
        return self.ahead

    def seek(self, dts: int) -> None:
        """To the keyframe before; raises BadFile."""
        self.ahead = []
        with files.reading(self.path, reasons=_REASONS):
            self.container.seek(dts, stream=self.stream)

    def packets(self) -> Iterator[av.Packet]:
        """Of the stream, without those of no bytes: the end, and repeats of a frame in AVI."""
        ahead, self.ahead = self.ahead, []
        self.begun = True
        yield from ahead
        clocked = self.kind in CLOCKED
        with files.reading(self.path, reasons=_REASONS):
            for number, packet in enumerate(self.container.demux(self.stream)):
                if not number % 256:
                    self.deadline.check()
                if packet.size:
                    if clocked:
                        self._unwrap(packet)
                    yield packet

    def spend(self, packet: av.Packet) -> None:
        """Before a packet is decoded. Raises BadFile, see files.Deadline."""
        codec, count = self.stream.codec_context, self.cost
        if self.codec == 'vp9' and (last := memoryview(packet)[-1]) & 0xE0 == 0xC0:
            count += count * (last & 7)  # a superframe
        elif self.codec == 'av1':
            count *= max(1, _frames_of_av1(memoryview(packet)))
        self.deadline.spend(codec.width * codec.height * count)

    def _unwrap(self, packet: av.Packet) -> None:
        """Lets the clock of 33 bits go on where it wraps, every 26 hours."""
        if packet.dts is None:
            return
        if self.clock is not None and packet.dts + self.wraps < self.clock - WRAP // 2:
            self.wraps += WRAP
        packet.dts = self.clock = packet.dts + self.wraps
        if packet.pts is not None:
            packet.pts += self.wraps + WRAP * (packet.pts + self.wraps < packet.dts - WRAP // 2)


def _frames_of_av1(data: memoryview) -> int:
    """Frames, hidden ones too, of a temporal unit. Source: AV1 specification, 5.3."""
    count = place = 0
    while place < len(data):
        head = data[place]
        count += (head >> 3 & 15) in (3, 6)  # a header of its own, or with the frame
        place += 1 + (head >> 2 & 1)
        if not head & 2:  # the last, without a size
            break
        length = shift = 0
        while place < len(data) and shift < 56:
            byte = data[place]
            length |= (byte & 127) << shift
            place, shift = place + 1, shift + 7
            if byte < 128:
                break
        place += length
    return count


def no_frames(path: str | os.PathLike) -> BadFile:
    """Of a stream without any: they may have been in the part that is cut off."""
    if boxes.is_mp4(path) and boxes.is_cut(path):
        return BadFile(path, 'truncated', 'it ends before its first frame')
    return BadFile(path, 'no_frames')


_REASONS = {av.error.ExitError: 'seconds'}  # what libav says when it is interrupted


@contextlib.contextmanager
def opened(path: str | os.PathLike, deadline: files.Deadline, skim: bool) -> Iterator[Video]:
    """A video, to be read until the deadline.

    Args:
      path: of a local file.
      deadline: of all that is done with it.
      skim: take the header's word and decode nothing to learn more (2 to 7 ms of a small video's
        50).

    Raises:
      BadFile: it cannot be read, or asks for more than the limits allow.
    """
    size = files.size(path)
    formats = FORMATS
    if boxes.is_mp4(path):
        boxes.check(path, deadline)
        formats = ['mov']  # nothing that was not looked at is read as one
    options = {
        'protocol_whitelist': 'file',
        'format_whitelist': ','.join(formats),
        'max_streams': str(STREAMS),
        'max_pixels': str(_most_pixels(size)),
    }
    if skim and not os.fspath(path).lower().endswith('.avi'):  # see `packets.gather`
        options['skip_frame'] = 'all'  # of the decoders that libav opens while it looks at a file
    try:
        name = f'file:{os.fspath(path)}'  # a name, whatever protocol or option it looks like
        container = av.open(name, options=options, timeout=deadline.left, **_BAD_METADATA)
    except Exception as error:
        raise _unopened(path, error) from error
    with container:
        video = _video(path, container, deadline, size, skim)
        if not video.stream.codec_context.width:  # libav forgets a size above its bound
            del options['max_pixels']
            options['skip_frame'] = 'all'
            with files.reading(path, reasons=_REASONS):
                again = av.open(name, options=options, timeout=deadline.left, **_BAD_METADATA)
            with again:
                _video(path, again, deadline, size, skim)  # which refuses it
        yield video


def _most_pixels(size: int) -> int:
    """Of a frame, so that as many as a decoder holds are within the limits for a file's size."""
    limits = files.limits()
    unpacked = min(limits.decoded, max(files.FREE, limits.ratio * size))
    return int(min(limits.pixels, unpacked / (3 * HELD), 2**31 - 1))


def _video(path, container, deadline: files.Deadline, size: int, skim: bool) -> Video:
    with files.reading(path, reasons=_REASONS):
        stream = _best_stream(path, container)
        codec = stream.codec_context
        codec.thread_count = 1  # workers are parallel, and skipping needs it
        codec.options = {'max_pixels': str(_most_pixels(size))}
        pixels = codec.width * codec.height
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        tick = float(stream.time_base or 0)
        name = codec.codec.canonical_name
    files.bound(path, 'pixels', pixels)
    files.bound_decoded(path, 3 * HELD * pixels, size)
    kind = container.format.name
    cost = COST.get(name, 1)
    return Video(path, container, stream, deadline, size, kind, name, fps, tick, skim, cost)


def _unopened(path, error: Exception) -> BadFile:
    """What is wrong with a file that libav does not open."""
    try:
        with files.reading(path, reasons=_REASONS):
            raise error
    except BadFile as refused:
        if refused.reason in ('missing', 'unreadable', 'seconds', 'decoded'):
            return refused
        detail = refused.detail
    with files.reading(path), open(path, 'rb') as file:
        head = file.read(2**16)
    if what := _refers_to(head):
        return BadFile(path, 'not_local', what)
    # libav's word for a header that ends too soon, now that reading works: EOF, or EIO.
    if isinstance(error, EOFError) or getattr(error, 'errno', None) == errno.EIO:
        return BadFile(path, 'truncated', 'it ends within its header')
    detail = getattr(error, 'strerror', None) or detail
    return BadFile(path, 'truncated' if boxes.is_cut(path) else 'not_video', detail)


# How texts begin that name other files, for all players that follow them.
_LISTS = re.compile(
    rb'#EXTM3U|ffconcat\b|file +[\'"/\w]|<\?xml|<(?:MPD|smil|asx|SmoothStreamingMedia)\b'
    rb'|v=0\r?\n|\[(?:playlist|reference)\]|rtsptext|(?:AVI|DirectShow|FF\w*)Source\b'
    rb'|\w+://|concat:|subfile,|webm_dash_manifest',
    re.IGNORECASE,
)


def _refers_to(head: bytes) -> str:
    """What a text that names other files is, in words; '' for all else."""
    if head.startswith((b'\xff\xfe', b'\xfe\xff')):
        head = head.decode('utf-16', 'replace').encode()
    head = head.removeprefix(b'\xef\xbb\xbf').lstrip()
    match = _LISTS.match(head)
    if not match:
        return ''
    return f'a list or script that begins {files.one_line(head[:40].decode(errors="replace"))!r}'


def _best_stream(path, container) -> av.VideoStream:
    """The stream with the largest picture, then the most frames; cover pictures do not count."""
    cover = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    streams = [s for s in container.streams.video if not s.disposition & cover]
    decodable = [s for s in streams if s.codec_context is not None]
    if not decodable:
        reason = 'unsupported' if streams else 'no_video_stream'
        raise BadFile(path, 'truncated' if boxes.is_mp4(path) and boxes.is_cut(path) else reason)
    best = max(decodable, key=lambda s: (s.width * s.height, s.frames, s.duration or 0, -s.index))
    for stream in container.streams:
        if stream.index != best.index:
            stream.discard = Discard.all
    return best
