"""What Pillow is allowed, and what becomes of its errors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from jepa_jax import files
from jepa_jax.errors import BadFile

Image.init()  # AVIF is not in every Pillow
FORMATS = [
    name
    for name in ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF')
    if name in Image.OPEN
]
# Pillow's own bound warns, which threads cannot keep to themselves; `files.bound` stands for it
Image.MAX_IMAGE_PIXELS = None

_REASONS = {
    UnidentifiedImageError: 'not_image',
    Image.DecompressionBombError: 'pixels',
    EOFError: 'truncated',
}


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """`files.reading` with reasons for what Pillow raises."""
    try:
        with files.reading(path, reasons=_REASONS):
            yield
    except BadFile as error:
        if error.reason == 'corrupt' and 'truncated' in error.detail.lower():
            raise BadFile(path, 'truncated', error.detail) from error
        if error.reason == 'not_image':
            raise BadFile(path, 'not_image') from error
        raise
