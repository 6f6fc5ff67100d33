"""Picture files of one frame, and of several: RGB uint8 by one rule for every kind of pixel.

Pillow reads them, of a closed list of formats: none that starts programs or refers to other files.
What pixels become:
  - 8 bits a channel as they are; 16 bits their upper half; other whole numbers are refused, because
    no file says which of them is white;
  - floats from 0 to 1 times 255, rounded; others, NaN and infinity are refused;
  - what is not opaque lies on black; grey is repeated; CMYK, YCbCr and HSV as Pillow converts them.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageOps

from jepa_jax import files
from jepa_jax.data import apng, gif, kinds, pillow
from jepa_jax.data.clips import Timing
from jepa_jax.errors import BadFile, Unsuitable

# bytes that a pixel takes while it is read and turned; stacks keep what lies below, WebP is one
HELD, HELD_STACK = 16, 24
WORK = {'gif': 16, 'png': 16, 'webp': 8, 'tiff': 8}  # times that of a video's pixel, by measurement


def read_image(path: str | os.PathLike) -> np.ndarray:
    """An image as RGB uint8 `[H, W, 3]`, turned as its EXIF orientation says; of several frames the
    first. Raises BadFile."""
    with _opened(path) as (image, _):
        with pillow.reading(path):
            _check_exif(path, image)
            ImageOps.exif_transpose(image, in_place=True)
        return rgb(path, image)


def read_values(path: str | os.PathLike) -> np.ndarray:
    """The numbers that a picture's file holds, as labels and distances are kept: indices of its
    palette, or grey of 8 or 16 bits, `[H, W]` uint8 or uint16. Raises BadFile."""
    with _opened(path) as (image, _):
        mode = image.mode
        stored = image.tile[0].args if image.tile else mode
        if mode not in ('P', 'L', '1', 'I') and not mode.startswith('I;16'):
            words = 'a palette, or grey of 8 or 16 bits'
            raise BadFile(path, 'bad_units', f'{_WORDS.get(mode, mode)}: must be {words}')
        if mode == 'L' and stored in ('L;2', 'L;4'):  # which Pillow would stretch to 8
            raise BadFile(path, 'bad_units', f'grey of {stored[2:]} bits: must be 8 or 16')
        with pillow.reading(path):
            image.load()
            values = np.array(image)
    if mode == 'I':  # grey of 16 bits in older versions of Pillow
        if values.size and not 0 <= values.min() <= values.max() < 2**16:
            raise BadFile(path, 'bad_units', 'whole numbers of 32 bits: must be 8 or 16')
        return values.astype(np.uint16)
    return values.astype(np.uint16) if mode.startswith('I;16') else values.astype(np.uint8)


def image_of(name: str, encoded: bytes) -> np.ndarray:
    """An image file's content -> RGB uint8 `[H, W, 3]` as stored. Raises BadFile of that name."""
    file = io.BytesIO(encoded)
    if not encoded:
        raise BadFile(name, 'empty')
    with _image(name, file, len(encoded)) as image:
        return rgb(name, image)


def rgb(path: str | os.PathLike, image: Image.Image) -> np.ndarray:
    """The pixels of Pillow's image by the rule above, uint8 `[H, W, 3]`. Raises BadFile."""
    with pillow.reading(path):
        image.load()
        mode = image.mode
        clear = 'transparency' in image.info and mode in ('1', 'L', 'P', 'RGB')
        if clear or mode in ('LA', 'PA', 'RGBA'):
            return _on_black(np.asarray(image.convert('RGBA')))
        if mode in ('RGB', 'L', '1', 'P', 'CMYK', 'YCbCr', 'HSV'):
            return np.array(image.convert('RGB'))
        values = np.asarray(image)
        bits = image.tag_v2.get(258, (16,))[0] if image.format == 'TIFF' else 16
        white_is_zero = image.format == 'TIFF' and image.tag_v2.get(262) == 0
    if mode.startswith('I;16'):  # Pillow would cut values at 255; of TIFF's 12 bits upper 8, too
        grey = values >> (bits - 8)
    elif mode == 'I' and image.format == 'PPM':  # scaled to 65,535 by Pillow
        grey = values >> 8
    elif mode == 'F':
        grey = _from_floats(path, values)
    else:
        raise BadFile(path, 'bad_units', f'{_WORDS.get(mode, mode)}: must be {_ALLOWED}')
    grey = grey.astype(np.uint8)
    return np.repeat((255 - grey if white_is_zero else grey)[..., None], 3, axis=-1)


_WORDS = {'I': 'whole numbers of 32 bits, or with a sign', 'LAB': 'L*a*b* colour'}
_ALLOWED = 'grey, RGB, CMYK or a palette, of 8 or 16 bits without a sign, or floats from 0 to 1'


def _from_floats(path: str | os.PathLike, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise BadFile(path, 'not_finite', 'NaN or infinity among the values of its pixels')
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise BadFile(path, 'bad_units', f'floats from {low:g} to {high:g}: must be from 0 to 1')
    return np.rint(values * 255)


def _on_black(rgba: np.ndarray) -> np.ndarray:
    """RGBA -> RGB uint8 over black: colour x alpha / 255, rounded."""
    out = rgba[..., :3].copy()
    for rows, source in zip(np.array_split(out, 64), np.array_split(rgba, 64)):
        alpha = source[..., 3:].astype(np.uint16)
        if alpha.size and alpha.min() < 255:
            rows[...] = (source[..., :3] * alpha + 127) // 255
    return out


# Opening


class _Watched(io.BufferedReader):
    """A file that is read until its time is up: Pillow's decoders come back for every 64 KiB."""

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(io.FileIO(path))
        self.deadline = files.Deadline(path, files.size(path))

    def read(self, size: int | None = -1) -> bytes:
        _ = self.deadline.left
        return super().read(size)


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[Image.Image, _Watched]]:
    size = files.size(path)
    with contextlib.ExitStack() as stack:
        with files.reading(path):
            file = stack.enter_context(_Watched(path))
            head = file.read(4)
        if head in (b'%!PS', b'\xc5\xd0\xd3\xc6'):
            raise BadFile(path, 'not_local', 'PostScript, which is a program')
        if head in kinds.TIFF:
            for _ in kinds.tiff_pages(path, file):
                pass
        file.seek(0)
        yield stack.enter_context(_image(path, file, size)), file


@contextlib.contextmanager
def _image(path: str | os.PathLike, file: io.IOBase, size: int) -> Iterator[Image.Image]:
    with pillow.reading(path):
        image = Image.open(file, formats=pillow.FORMATS)
    with image:
        width, height = image.size
        files.bound(path, 'pixels', width * height)
        with pillow.reading(path):  # a GIF looks for the next frame
            many = image.format == 'WEBP' or getattr(image, 'is_animated', False)
        held = HELD_STACK if many else HELD
        files.bound_decoded(path, width * height * held, size)
        if image.info.get('progressive'):  # JPEG: each of any number of scans goes over all pixels
            files.Deadline(path, size).spend(_scans(file) * width * height)
        yield image


def _scans(file: io.IOBase) -> int:
    """Of a JPEG: marks that cannot be within its data."""
    place, count, last = file.tell(), 0, b''
    file.seek(0)
    while piece := file.read(2**20):
        count += (last + piece).count(b'\xff\xda')
        last = piece[-1:]
    file.seek(place)
    return count


def _check_exif(path: str | os.PathLike, image: Image.Image) -> None:
    """Refuses directories of EXIF that claim more than there is; see `kinds.tiff_pages`."""
    exif = image.info.get('exif')
    if not exif and (text := image.info.get('Raw profile type exif')):  # ImageMagick's, in PNG
        exif = bytes.fromhex(''.join(text.split('\n')[3:]))
    if exif:
        for _ in kinds.tiff_pages(path, io.BytesIO(exif.removeprefix(b'Exif\0\0'))):
            pass


# Stacks


class Stack:
    """Frames of an animated GIF, WebP or PNG, or pages of a TIFF.

    Attributes:
      timing: of the frames; its `fps` is 0 where the format has no clock: they are as far apart as
        the reader says.
      size: height and width, pixels.
      codec: the format's name.

    Raises:
      BadFile: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = path
        self._numbers, seconds = kinds.frames_of(path)
        self.timing = timing_of(seconds) if seconds else Timing(len(self._numbers), 0.0, 0.0)
        with _opened(path) as (image, file):
            self.size, self.codec = (image.height, image.width), image.format.lower()
            if self.codec == 'gif':
                self.size = gif.screen_size(path, file)
        self._next, self._frames = 0, self._decode()

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Frames uint8 `[k, H, W, 3]` of ascending numbers `[k]`. Raises BadFile."""
        size = len(numbers) * self.size[0] * self.size[1] * 3
        files.bound_decoded(self._path, size, files.size(self._path))
        out = np.empty((len(numbers), *self.size, 3), np.uint8)
        if not self._next or numbers[0] < self._next:
            self._frames = self._decode()
            next(self._frames)
        self._deadline = files.Deadline(self._path, files.size(self._path))
        for row, number in zip(out, numbers.tolist()):
            self._next = 0  # after an error it starts anew
            row[...] = self._frames.send(number)
            self._next = number + 1
        return out

    def _spend(self, pixels: int) -> None:
        self._deadline.spend(WORK[self.codec] * pixels)

    def close(self) -> None:
        self._frames.close()

    def _decode(self) -> Iterator[np.ndarray]:
        """Takes numbers, gives frames."""
        with _opened(self._path) as (image, file):
            size = files.size(self._path)
            if self.codec == 'gif':
                canvases = gif.composed(self._path, file, size, self._spend)
                yield from self._composed(canvases, file)
            elif self.codec == 'png':
                canvases = apng.composed(self._path, file, size, rgb, self._spend)
                yield from self._composed(canvases, file)
            else:
                yield from self._pages(image, file)

    def _composed(self, canvases: Iterator[np.ndarray], file: _Watched) -> Iterator[np.ndarray]:
        number = yield
        for at, canvas in enumerate(canvases):
            file.deadline = self._deadline
            if at == number:
                number = yield _on_black(canvas)
        raise BadFile(self._path, 'truncated', f'frame {number} is not there')

    def _pages(self, image: Image.Image, file: _Watched) -> Iterator[np.ndarray]:
        number, last = (yield), 0
        while True:
            file.deadline = self._deadline
            target = self._numbers[number]
            # TIFF goes to a page at once; others show what all frames before have left
            for at in [target] if self.codec == 'tiff' else range(last + 1, target + 1):
                self._spend(self.size[0] * self.size[1])
                with pillow.reading(self._path):
                    image.seek(at)
            last = target
            if (size := image.size[::-1]) != self.size:
                sizes = f'{size}, but the first frame has {self.size}'
                raise BadFile(self._path, 'size_change', sizes)
            number = yield rgb(self._path, image)


def read_frames(path: str | os.PathLike, choose: Callable[[Timing], np.ndarray]) -> np.ndarray:
    """As `decode.read_frames`, of a stack; `timing.fps` is 0 where it has no clock."""
    stack = Stack(path)
    try:
        numbers = np.asarray(choose(stack.timing))
    except Unsuitable as error:
        raise BadFile(path, error.reason, error.detail) from error
    unique, where = np.unique(numbers, return_inverse=True)
    with contextlib.closing(stack):
        frames = stack.read(unique)
    if not np.array_equal(unique, numbers.ravel()):
        frames = frames[where.ravel()]
    return frames.reshape(*numbers.shape, *stack.size, 3)


def timing_of(seconds: list[float]) -> Timing:
    """Of frames that are each shown so long; even where no frame is off by more than one."""
    total = sum(seconds)
    fps = round(len(seconds) / total, 4)  # 10 x 0.1 s are 10 a second, not a little above
    times = np.cumsum([0.0, *seconds[:-1]])
    if np.abs(times * fps - np.arange(len(seconds))).max() <= 1:
        return Timing(len(seconds), fps, len(seconds) / fps)
    return Timing(len(seconds), fps, total, times)
