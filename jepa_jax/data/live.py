"""Frames of a stream as they come, from a pipe: bytes of any container that can be read from its
beginning without going back.

    ffmpeg -i rtsp://camera -f mpegts - | python -m ... --watch -

Which containers, and which sizes of a frame, is as for files (see `containers`); nothing but the
pipe is read. What a stream holds is found out from its first bytes, of which there must be a second
or so.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator

import av
import numpy as np

from jepa_jax import files
from jepa_jax.data.containers import FORMATS, STREAMS
from jepa_jax.data.upright import Pictures
from jepa_jax.errors import BadFile

CLOCKLESS = ('mjpeg', 'h264', 'hevc', 'm4v', 'mpegvideo', 'obu')  # rates that libav makes up
PROBED = 2**19  # bytes from which libav finds out what a stream holds, and microseconds
PIXELS = 2**25  # of a frame: 8,192 x 4,096
PATIENCE = 1.0  # seconds without a byte after which it is asked whether to wait on


class _Pipe:
    """What libav reads from: no more than is there; it is at its end once it is stopped, though
    nothing comes. An exception would not do: libav's caller may drop it and read on."""

    def __init__(self, descriptor: int, stopped: Callable[[], bool]) -> None:
        self._descriptor, self._stopped = descriptor, stopped

    def read(self, count: int) -> bytes:
        try:
            while not select.select([self._descriptor], [], [], PATIENCE)[0]:
                if self._stopped():
                    return b''
            return os.read(self._descriptor, count)
        except KeyboardInterrupt:
            if self._stopped():
                return b''
            raise


class Stream:
    """A stream of frames.

    Attributes:
      name: for messages.
      rate: frames a second.

    Raises:
      BadFile: it holds no video that can be read.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        rate: float,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """rate: frames a second of streams that do not say it; stopped: whether to wait no longer
        for what does not come: the stream is at its end then."""
        self.name = name
        most = min(files.limits().pixels, PIXELS)
        options = {
            'format_whitelist': ','.join(FORMATS),
            'protocol_whitelist': 'none',  # nothing but the pipe
            'max_streams': str(STREAMS),
            'max_pixels': str(most),
            'probesize': str(PROBED),
            'analyzeduration': str(PROBED),
        }
        with files.reading(name, 'not_video'):
            self._container = av.open(_Pipe(descriptor, stopped), options=options)
            streams = self._container.streams.video
            if not streams:
                raise BadFile(name, 'no_video_stream')
            self._video = max(streams, key=lambda s: s.width * s.height)
            self._video.codec_context.options = {'max_pixels': str(most)}
            own = float(self._video.average_rate or self._video.guessed_rate or 0)
            clocked = self._container.format.name not in CLOCKLESS
        self._timed = clocked
        self.rate = own if own and clocked else rate

    def frames(self) -> Iterator[tuple[float, np.ndarray] | BadFile]:
        """Seconds since the first frame, and a frame uint8 [H, W, 3]; or what is wrong with one.

        Raises:
          BadFile: the stream breaks off.
        """
        count, first = 0, None
        packets = self._container.demux(self._video)
        while True:
            with files.reading(self.name):
                packet = next(packets, None)
            if packet is None:
                return
            try:
                with files.reading(self.name):
                    decoded = packet.decode()
            except BadFile as error:
                yield error
                continue
            for frame in decoded:
                pictures = Pictures(self.name, 1, files.FREE)
                try:
                    pictures.put(0, frame)
                except BadFile as error:
                    yield error
                    continue
                seconds = count / self.rate
                if self._timed and frame.time is not None:
                    first = frame.time if first is None else first
                    seconds = frame.time - first
                count += 1
                yield seconds, pictures.frames[0]

    def close(self) -> None:
        self._container.close()
