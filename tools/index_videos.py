"""Scans videos in parallel and writes a manifest that a run can use in place of a list.

    python -m tools.index_videos LIST_OR_FOLDER... --out manifest.jsonl [--workers N] [--decode]

One JSON object a line, in the order of the sources: path, label, frames, fps, width, height, codec,
seconds, variable (whether the frame rate varies), missing (null, or which frames of a damaged
video; a run trains on the others), problem (null, or a key of `jepa_jax.errors.REASONS`: a run
passes the file over) and detail. By default headers, packets and one frame are read; `--decode`
decodes every frame, which finds damage that headers do not show. A list names files, `path label` a
line, the label optional and relative paths counting from the list's folder; a folder is searched
for videos, and what is passed over is counted; an argument that is itself a video stands for
itself. What a file is its content says: a picture has one frame, an animated one is a video. Exit
status 0 whatever the files hold, and a row for each of them.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import functools
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jepa_jax import cli, scratch
from jepa_jax.config import layouts
from jepa_jax.errors import REASONS, BadFile, ConfigError


def describe(record: tuple[str, int | None], decode_all: bool) -> dict:
    """The manifest's row of one file."""
    from jepa_jax.data import kinds

    path, label = record
    row = dict.fromkeys('path label frames fps width height codec seconds variable'.split())
    row |= {'path': path, 'label': label, 'missing': None, 'problem': None, 'detail': None}
    try:
        row |= _LOOKS[kinds.kind_of(path)](path, decode_all)
    except BadFile as error:
        row['problem'], row['detail'] = error.reason, error.detail or REASONS[error.reason]
    return row


def _video(path: str, decode_all: bool) -> dict:
    from jepa_jax.data import decode

    info = decode.probe(path)
    missing = info.missing
    if decode_all:
        damage = decode.damage(path)
        missing = damage.missing
        if not damage.good.any():
            raise BadFile(path, damage.reason, damage.missing)
    size = {'width': info.width, 'height': info.height}
    return _timing(info) | size | {'codec': info.codec, 'missing': missing or None}


def _stack(path: str, decode_all: bool) -> dict:
    import numpy as np

    from jepa_jax.data.pictures import Stack

    stack = Stack(path)
    for number in range(stack.timing.frames if decode_all else 1):
        stack.read(np.array([number]))
    height, width = stack.size
    return _timing(stack.timing) | {'width': width, 'height': height, 'codec': stack.codec}


def _image(path: str, decode_all: bool) -> dict:
    from jepa_jax.data import pictures

    height, width, _ = pictures.read_image(path).shape
    return {'frames': 1, 'width': width, 'height': height}


def _array(path: str, decode_all: bool) -> dict:
    from jepa_jax.data import npz

    frames, height, width, _ = npz.load_frames(path).shape
    return {'frames': frames, 'width': width, 'height': height}


def _timing(timing) -> dict:
    if not timing.fps:  # no clock
        return {'frames': timing.frames}
    row = {name: getattr(timing, name) for name in ('frames', 'variable')}
    return row | {'fps': round(timing.fps, 4), 'seconds': round(timing.seconds, 4)}


_LOOKS = {'video': _video, 'stack': _stack, 'image': _image, 'array': _array}


def gather(sources: list[str]) -> tuple[list[tuple[str, int | None]], collections.Counter[str]]:
    """`(absolute path, label)` of the files that lists and folders name, each once; and what scans
    of folders pass over, counted.

    Raises OSError where a list or folder cannot be read, BadFile and ConfigError where one is none.
    """
    from jepa_jax.data import lists

    records, skipped = {}, collections.Counter()
    for source in map(Path, sources):
        if source.is_dir():
            paths, passed_over = lists.scan(source, lists.VIDEOS)
            named = [(path, None) for path in paths]
            skipped.update(passed_over)
        elif source.suffix.lower() in lists.VIDEOS:
            named = [(str(source), None)]
        else:
            named = lists.read_list(source)
        for path, label in named:
            path = path if '\0' in path else os.path.abspath(path)
            records.setdefault((path, label))
    return list(records), skipped


def scanned(records: list, decode_all: bool, workers: int) -> Iterator[dict]:
    """The row of each record in order, whatever becomes of the processes that read them."""
    scan = functools.partial(describe, decode_all=decode_all)
    context = multiprocessing.get_context('spawn')
    chunk = max(1, min(32, len(records) // (4 * workers)))
    done = 0
    while done < len(records):
        try:
            with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
                for row in pool.map(scan, records[done:], chunksize=chunk):
                    yield row
                    done += 1
        except concurrent.futures.BrokenExecutor:
            # one of those that were under way: they are read one at a time
            end = min(len(records), done + (workers + 2) * chunk)
            while done < end:
                try:
                    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
                        for record in records[done:end]:
                            yield pool.submit(scan, record).result()
                            done += 1
                except concurrent.futures.BrokenExecutor:
                    yield _died(*records[done])
                    done += 1


def _died(path: str, label: int | None) -> dict:
    detail = 'the process that read it ended: out of memory, or a crash of the decoder'
    return {'path': path, 'label': label, 'problem': 'corrupt', 'detail': detail}


def write(rows, out: Path) -> collections.Counter:
    """Writes the manifest at once, by renaming a finished file; counts rows by problem."""
    counts = collections.Counter()
    scratch.sweep(out.parent)
    handle, part = tempfile.mkstemp(dir=out.parent, prefix=scratch.prefix(out))
    try:
        with open(handle, 'w', encoding='utf-8', errors='surrogateescape') as file:
            for row in rows:
                counts[row['problem']] += 1
                file.write(json.dumps(row, ensure_ascii=False) + '\n')
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)  # temporary files are private, a manifest is not
        os.replace(part, out)
    except BaseException:
        os.unlink(part)
        raise
    return counts


def run(source: list[str], out: Path, workers: int, decode: bool) -> None:
    """Writes the manifest and says what is wrong with the files.

    Raises:
      ConfigError: a setting or a source that cannot be used.
    """
    from tqdm import tqdm

    if workers < 1:
        raise ConfigError(f'--workers {workers}: must be at least 1')
    if not out.parent.is_dir():
        raise ConfigError(f'--out: there is no folder {out.parent}')
    for path in source:
        if complaint := next(layouts.absent('source', path), None):
            raise ConfigError(complaint)
    try:
        records, skipped = gather(source)
    except (OSError, BadFile, ConfigError) as error:
        raise ConfigError(f'a source cannot be read: {error}') from error
    passed_over = ', '.join(f'{n} {why}' for why, n in skipped.items())
    if not records:
        why = f' (passed over: {passed_over})' if passed_over else ''
        raise ConfigError(f'no videos in {" ".join(source)}{why}')
    rows = scanned(records, decode, workers)
    try:
        counts = write(tqdm(rows, total=len(records), unit='file'), out)
    except OSError as error:
        raise ConfigError(f'{out} cannot be written: {error.strerror or error}') from error
    good = counts.pop(None, 0)
    print(f'{good} of {len(records)} files are fine; wrote {out}')
    if passed_over:
        print(f'passed over: {passed_over}')
    for reason, count in counts.most_common():
        print(f'{count:8d} {reason}')


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('source', nargs='+', help='list file, folder or video')
    add('--out', required=True, type=Path, metavar='FILE.jsonl', help='manifest to write')
    add('--workers', type=int, default=os.cpu_count(), metavar='N', help='processes (%(default)s)')
    add('--decode', action='store_true', help='decode every frame of every file')


def main(argv: list[str] | None = None) -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options, argv=argv)


if __name__ == '__main__':
    sys.exit(main())
