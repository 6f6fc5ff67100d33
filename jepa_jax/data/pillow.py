"""What Pillow is allowed, and what becomes of its errors and warnings."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from jepa_jax import files
from jepa_jax.errors import REASONS, BadFile, printable

Image.init()  # AVIF is not in every Pillow
FORMATS = [
    name
    for name in ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF')
    if name in Image.OPEN
]
# Pillow's own bound warns, which threads cannot keep to themselves; `files.bound` stands for it
Image.MAX_IMAGE_PIXELS = None


class _Heard(threading.local):
    """What Pillow warns of in this thread while `reading`, in place of the module `warnings`, whose
    filters all threads share: damage that it passes over, in tags of a TIFF and in EXIF."""

    def __init__(self) -> None:
        self.words: list[str] | None = None  # None: nothing is read here

    def warn(self, message: object, *more: object, **options: object) -> None:
        if self.words is None:
            warnings.warn(message, *more, **options)
        elif len(self.words) < MOST:
            self.words.append(str(message))

    def __getattr__(self, name: str) -> object:
        return getattr(warnings, name)


MOST = 8  # that are kept of a file
_heard = _Heard()
for _module in [module for name, module in sys.modules.items() if name.startswith('PIL.')]:
    if getattr(_module, 'warnings', None) is warnings:
        _module.warnings = _heard


_said = False


def _say(path: str | os.PathLike, heard: list[str]) -> None:
    global _said
    if not _said:
        _said = True
        words = 'Pillow passes over damage that is not of the pixels'
        logging.warning(
            '%s: %s: %s; other files like it are not named', printable(path), words, _joined(heard)
        )


_REASONS = {
    UnidentifiedImageError: 'not_image',
    Image.DecompressionBombError: 'pixels',
    EOFError: 'truncated',
}


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """`files.reading` with reasons for what Pillow raises; what it warns of is part of the reason,
    or said once."""
    outer, _heard.words = _heard.words, (heard := [])
    try:
        with files.reading(path, reasons=_REASONS):
            yield
    except BadFile as error:
        reason, detail = error.reason, error.detail
        if reason == 'corrupt' and 'truncated' in detail.lower():
            reason = 'truncated'
        elif reason == 'not_image':
            detail = ''  # Pillow names an object
        if heard:
            detail = f'{detail or REASONS[reason]}; {_joined(heard)}'
        raise BadFile(path, reason, detail) from error
    finally:
        _heard.words = outer
    if heard:
        _say(path, heard)


def _joined(heard: list[str]) -> str:
    return files.one_line(ValueError('; '.join(dict.fromkeys(heard))))
