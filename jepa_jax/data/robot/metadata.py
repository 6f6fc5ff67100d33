"""What describes recordings: JSON files, the paths in them, names of cameras."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jepa_jax import files
from jepa_jax.errors import BadFile, allowed


def read_json(path: Path, kind: type = dict) -> Any:
    """The content of a JSON file, of type `kind`. Raises BadFile."""
    return parse(path, read_text(path), kind)


def read_text(path: Path, errors: str = 'strict') -> str:
    """The text of a regular file, UTF-8 with or without a byte order mark; errors: of decoding, as
    `open` has them. Raises BadFile."""
    size = files.size(path)
    files.bound(path, 'index', size, f'{size:,} bytes of text')
    with files.reading(path, 'not_text'):
        return path.read_text('utf-8-sig', errors)


def parse(path: Path, text: str, kind: type = dict, place: str = '') -> Any:
    """JSON text of a file as a value of type `kind`; place: where in the file. Raises BadFile."""
    with files.reading(path, 'not_text', {RecursionError: 'index'}):
        value = json.loads(text)
    if not isinstance(value, kind):
        words = f'{place}a JSON {type(value).__name__}, must be a {kind.__name__}'
        raise BadFile(path, 'not_text', words)
    return value


def field(path: Path, values: dict, key: str, kind: type | tuple[type, ...]) -> Any:
    """A value of a JSON object, by its key. Raises BadFile: it is absent or of another type."""
    value = values.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        state = 'is missing' if key not in values else f'is {str(value)!r:.60}'
        words = ' or '.join(k.__name__ for k in kinds)
        raise BadFile(path, 'not_text', f"'{key}' {state}, must be of type {words}")
    return value


def inside(path: Path, folder: Path, name: str) -> Path:
    """A file by the name that `path`, which describes recordings, has for it below a folder.

    Raises:
      BadFile: the name leads out of the folder, or no file can have it.
    """
    parts = name.replace('\\', '/').split('/')
    plain = '\0' not in name and not any('\ud800' <= c <= '\udfff' for c in name)
    if os.path.isabs(name) or '..' in parts or not name or not plain:
        raise BadFile(path, 'outside', f'{name!r:.80} is no path below {folder}')
    return folder / name


def no_camera(camera: str, cameras: Iterable[str]) -> str:
    """Words on a camera that recordings do not have, and those that they have."""
    cameras = list(cameras)
    if not cameras:
        return f"robot.camera = '{camera}': there is none"
    words = f"robot.camera = '{camera}': {allowed(camera, cameras)}"
    part = [name for name in cameras if camera.lower() in name.lower()]  # wrist: wrist_mp4_path
    if camera and len(part) == 1 and 'did you mean' not in words:
        words += f'; did you mean {part[0]}?'
    return words
