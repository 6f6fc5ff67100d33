"""What a language model is shown of a video: which frames, how cut, or features of them.

look = Clips(config.clips)
look(Media('video', 'a.mp4'))  # [1, T, crop, crop, 3] uint8
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jepa_jax import scratch
from jepa_jax.config.questions import ClipsConfig
from jepa_jax.data import decode, features, kinds, npz, pictures
from jepa_jax.data.clips import Timing, by_time
from jepa_jax.data.views import eval_view, resize
from jepa_jax.data.windows import ahead
from jepa_jax.errors import BadFile, DataError
from jepa_jax.language.chat import Media
from jepa_jax.workdir import write_json

VERSION = 1  # part of the hash of features: change it with anything that changes one

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Always:
    """Every medium has so many visual tokens."""

    count: int

    def __call__(self, media: Media) -> int:
        del media
        return self.count


@dataclasses.dataclass(frozen=True)
class Looked:
    """What was shown of a medium."""

    seconds: tuple[float, ...]  # in the video, of each frame shown
    length: float  # seconds of the video
    shown: int  # different frames among them
    tiles: tuple[int, int] = (1, 1)  # rows and columns that an image was cut into

    def words(self) -> str:
        if self.tiles != (1, 1):
            return f'an image, whole and in {self.tiles[0]} x {self.tiles[1]} tiles'
        if not self.length:
            return 'an image'
        return (
            f'{self.shown} different frames from {self.seconds[0]:.2f} to {self.seconds[-1]:.2f} s '
            f'of {self.length:.2f} s'
        )


def moments(timing: Timing, clips: ClipsConfig, start: float = 0.0, end: float = 0.0) -> np.ndarray:
    """Numbers of the frames that are shown, [T], ascending: evenly from the first to the last of
    those between start and end (seconds; 0: the video's), of `clips.fps` a second if that is not 0.

    Of fewer frames than T some come twice. Raises ValueError: nothing lies between them.
    """
    first, last = start * timing.fps, (end or timing.seconds) * timing.fps
    candidates = np.arange(
        int(np.ceil(first - 1e-6)), min(int(np.ceil(last - 1e-6)), timing.frames)
    )
    if not len(candidates):
        raise ValueError(f'no frame between {start:g} and {end:g} s of {timing.seconds:.2f} s')
    if 0 < clips.fps < timing.fps:
        step = timing.fps / clips.fps
        candidates = candidates[(np.arange(0, len(candidates) - 1e-6, step)).astype(int)]
    even = np.round(np.linspace(0, len(candidates) - 1, clips.frames)).astype(int)
    return by_time(candidates[even], timing)


def paced(frames: int, clips: ClipsConfig) -> Timing:
    """Of frames without a clock: as many a second as are shown, or one."""
    fps = clips.fps or 1.0
    return Timing(frames, fps, frames / fps)


def tiling(height: int, width: int, crop: int, most: int) -> tuple[int, int]:
    """Rows and columns of squares that a picture is cut into, at most so many together: those
    that show most of its pixels, of equal ones the fewest. LLaVA-NeXT's rule."""

    def worth(shape: tuple[int, int]) -> tuple[float, int]:
        scale = min(shape[0] * crop / height, shape[1] * crop / width)
        area = int(height * scale) * int(width * scale)
        return min(area, height * width), -shape[0] * shape[1]

    shapes = [(r, c) for r in range(1, most + 1) for c in range(1, most // r + 1)]
    return max(shapes, key=worth)


def tiles(picture: np.ndarray, crop: int, count: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture uint8 [H, W, 3] in so many squares [count, crop, crop, 3], and in how many rows
    and columns it was cut: the whole of it, as often as there is room, then its parts, row by row,
    of the picture squeezed to the rows and columns that fit it best."""
    rows, columns = tiling(*picture.shape[:2], crop, count - 1)
    whole = resize(picture[None], (crop, crop))
    if rows * columns == 1:
        return whole.repeat(count, axis=0), (1, 1)
    large = resize(picture[None], (rows * crop, columns * crop))
    parts = large.reshape(rows, crop, columns, crop, 3).swapaxes(1, 2).reshape(-1, crop, crop, 3)
    return np.concatenate([whole.repeat(count - len(parts), axis=0), parts]), (rows, columns)


@dataclasses.dataclass(frozen=True)
class Clips:
    """Reads what is shown."""

    config: ClipsConfig
    tubelet: int = 2  # frames that an encoder reads as one: a tile fills them

    @property
    def shape(self) -> tuple[int, ...]:
        c = self.config
        return c.frames, c.crop, c.crop, 3

    def __call__(self, media: Media) -> np.ndarray:
        """[1, T, crop, crop, 3] uint8. Raises BadFile."""
        return self.read(media)[0][None]

    def read(self, media: Media) -> tuple[np.ndarray, Looked]:
        """Frames [T, crop, crop, 3] uint8 (an image T times, or its tiles), and what they are.
        Raises BadFile."""
        c = self.config
        if media.kind != 'image':
            frames, looked = self._video(media)
            frames = self.view(frames)
            return (frames[::-1] if media.backwards else frames), looked
        picture = pictures.read_image(media.path)
        if c.images == 'tiles':
            squares, shape = tiles(picture, c.crop, c.frames // self.tubelet)
            return np.repeat(squares, self.tubelet, axis=0), Looked((0.0,), 0.0, 1, shape)
        return np.repeat(self.view(picture[None]), c.frames, axis=0), Looked((0.0,), 0.0, 1)

    def apart(self, media: Media) -> bool:
        """Whether its clip is tiles, which the encoder is to read one by one."""
        return media.kind == 'image' and self.config.images == 'tiles'

    def _video(self, media: Media) -> tuple[np.ndarray, Looked]:
        said = []

        def choose(timing: Timing) -> np.ndarray:
            timing = timing if timing.fps else paced(timing.frames, self.config)
            try:
                numbers = moments(timing, self.config, media.start, media.end)
            except ValueError as error:
                raise BadFile(media.path, 'short', str(error)) from None
            times = numbers / timing.fps if timing.times is None else timing.times[numbers]
            distinct = len(set(numbers.tolist()))
            said[:] = [Looked(tuple(map(float, times)), timing.seconds, distinct)]
            return numbers

        kind = kinds.kind_of(media.path)
        if kind == 'array':
            array = npz.load_frames(media.path)
            frames = array[choose(Timing(len(array), 0.0, 0.0))]
        else:
            read = pictures.read_frames if kind == 'stack' else decode.read_frames
            frames = read(media.path, choose)
        return frames, said[0]

    def view(self, frames: np.ndarray) -> np.ndarray:
        crop = self.config.crop
        if self.config.view == 'middle':
            return eval_view(frames, crop)
        return resize(frames, (crop, crop))


@dataclasses.dataclass(frozen=True)
class StoredClips:
    """Features of a frozen encoder, a file a medium, in a folder whose name is a hash of encoder,
    view and type; a file's name is one of the medium and the state of its file."""

    folder: Path
    dtype: str  # float16 | bfloat16
    shape: tuple[int, ...]  # [N, D]

    @classmethod
    def of(
        cls, folder: str, clips: ClipsConfig, encoder: Any, weights: str, dtype: str,
        shape: tuple[int, ...],
    ) -> StoredClips:  # fmt: skip
        """encoder: all that shapes it; weights: hash of its parameters; shape: of features."""
        about = {
            'version': VERSION,
            'weights': weights,
            'encoder': features.shape_of(encoder),
            'clips': dataclasses.asdict(clips),
            'dtype': dtype,
        }
        if clips.images == 'repeated':  # as features were named before there were tiles
            del about['clips']['images']
        place = Path(folder).expanduser().absolute() / _hash(json.dumps(about, sort_keys=True))
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / 'about.json', about)
        return cls(place, dtype, shape)

    def file(self, media: Media) -> Path:
        """Raises BadFile: there is no such file."""
        try:
            state = os.stat(media.path)
        except OSError as error:
            raise BadFile(media.path, 'missing', error.strerror or 'cannot be read') from error
        fields = (*dataclasses.astuple(media), state.st_size, state.st_mtime_ns)
        return self.folder / f'{_hash(json.dumps(fields))}.npy'

    def __call__(self, media: Media) -> np.ndarray:
        """[1, N, D]. Raises BadFile: damaged, or not there as the medium could not be read."""
        path = self.file(media)
        if not path.exists():
            raise BadFile(media.path, 'missing', f'no features in {self.folder}')
        stored = features.open_stored(path, features.DTYPES[self.dtype])
        if tuple(stored.shape) != self.shape or len(stored) != 1:
            raise BadFile(path, 'corrupt', f'features {stored.shape}, expected {self.shape}')
        return stored[0:1]

    def fill(
        self, shown: Iterable[Media], look: Clips,
        encode: Callable[[np.ndarray, np.ndarray], np.ndarray],
        batch: int, process: int = 0, processes: int = 1, threads: int = 1,
    ) -> None:  # fmt: skip
        """Computes what is not there yet; what cannot be read is said and left out. Of several
        processes each takes its share of all, whatever the others have stored when it looks.

        encode: clips [batch, T, crop, crop, 3] uint8, and which of them are tiles [batch] bool ->
          features [batch, N, D].
        threads: that read the next clips meanwhile.

        Raises:
          DataError: nothing of all can be read.
        """
        scratch.sweep(self.folder)
        left, lost, total = {}, 0, 0
        for total, media in enumerate(dict.fromkeys(shown), 1):
            try:
                path = self.file(media)
            except BadFile as error:
                log.warning('features: %s', error)
                lost += 1
                continue
            if total % processes == process and not features.is_whole(path):
                left[media] = path
        log.info(
            'features: %d of %d videos and images to encode, in %s', len(left), total, self.folder
        )
        pending: list[tuple[Path, np.ndarray, bool]] = []

        def flush() -> None:
            clips, apart = np.zeros((batch, *look.shape), np.uint8), np.zeros(batch, bool)
            for i, (_, clip, each) in enumerate(pending):
                clips[i], apart[i] = clip, each
            for (path, _, _), each in zip(pending, np.asarray(encode(clips, apart))):
                each = each.astype(features.DTYPES[self.dtype])
                features.save(path, each[None], np.zeros(1, int))
            pending.clear()

        def read(media: Media) -> np.ndarray | BadFile:
            try:
                return look(media)[0]
            except BadFile as error:
                return error

        order = list(left)
        bar = tqdm(left.items(), 'features', unit='clip', disable=None if left else True)
        with ThreadPoolExecutor(threads) as pool:
            groups = (
                list(pool.map(read, order[first : first + batch]))
                for first in range(0, len(order), batch)
            )
            for (media, path), clip in zip(bar, itertools.chain.from_iterable(ahead(groups, 2))):
                if isinstance(clip, BadFile):
                    log.warning('features: %s', clip)
                    lost += 1
                    continue
                pending.append((path, clip, look.apart(media)))
                if len(pending) == batch:
                    flush()
        if pending:
            flush()
        if total and lost == total:
            raise DataError(f'none of {total} videos and images of the conversations can be read')


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:24]
