"""Scans videos in parallel and writes a manifest that a run can use in place of a list.

    python -m tools.index_videos LIST_OR_FOLDER... --out manifest.jsonl [--workers N] [--decode]

One JSON object a line, in the order found: path, label, frames, fps, width, height, codec, seconds,
variable (whether the frame rate varies), problem (null, or a key of `jepa_jax.data.REASONS`)
and detail. By default headers, packets and one frame are read; `--decode` decodes every frame,
which finds damage that headers do not show. A list names files, `path label` a line, the label
optional and relative paths counting from the list's folder; a folder is searched for videos; an
argument that is itself a video stands for itself. Exit status 0 whatever is found in the files.
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
from pathlib import Path

from tqdm import tqdm

from jepa_jax.errors import REASONS, BadFile


def describe(record: tuple[str, int | None], decode_all: bool) -> dict:
    """The manifest's row of one file."""
    from jepa_jax.data import decode

    path, label = record
    row = dict.fromkeys('path label frames fps width height codec seconds variable'.split())
    row |= {'path': path, 'label': label, 'problem': None, 'detail': None}
    try:
        info = decode.probe(path)
        for name in ('frames', 'fps', 'width', 'height', 'codec', 'seconds', 'variable'):
            row[name] = getattr(info, name)
        row['fps'], row['seconds'] = round(info.fps, 4), round(info.seconds, 4)
        if decode_all:
            decode.check(path)
    except BadFile as error:
        row['problem'], row['detail'] = error.reason, error.detail or REASONS[error.reason]
    return row


def gather(sources: list[str]) -> list[tuple[str, int | None]]:
    """`(absolute path, label)` of the files that lists and folders name, each once.

    Raises OSError where a list or folder cannot be read, ValueError where one is no text.
    """
    from jepa_jax.data import sources as readers

    records = {}
    for source in map(Path, sources):
        if source.is_dir():
            found = [(path, None) for path in readers.find_videos(source)]
        elif source.suffix.lower() in readers.VIDEOS:
            found = [(str(source), None)]
        else:
            found = readers.read_list(source)
        for path, label in found:
            records.setdefault((os.path.abspath(path), label))
    return list(records)


def write(rows, out: Path) -> collections.Counter:
    """Writes the manifest at once, by renaming a finished file; counts rows by problem."""
    counts = collections.Counter()
    handle, part = tempfile.mkstemp(dir=out.parent, prefix=f'.{out.name}.')
    try:
        with open(handle, 'w') as file:
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m tools.index_videos',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('source', nargs='+', help='list file, folder or video')
    parser.add_argument('--out', required=True, type=Path, help='manifest to write, .jsonl')
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count(), help='processes (default: %(default)s)'
    )
    parser.add_argument('--decode', action='store_true', help='decode every frame of every file')
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error(f'--workers is {args.workers}, must be at least 1')
    if not args.out.parent.is_dir():
        parser.error(f'--out: there is no folder {args.out.parent}')
    try:
        records = gather(args.source)
    except (OSError, ValueError) as error:
        parser.error(f'a source cannot be read: {error}')
    if not records:
        parser.error(f'no videos in {" ".join(args.source)}')

    scan = functools.partial(describe, decode_all=args.decode)
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(args.workers, context) as pool:
        chunk = max(1, min(32, len(records) // (4 * args.workers)))
        rows = tqdm(pool.map(scan, records, chunksize=chunk), total=len(records), unit='file')
        try:
            counts = write(rows, args.out)
        except concurrent.futures.BrokenExecutor:
            reason = 'a worker died: out of memory, or a decoder crashed; try fewer --workers'
            print(reason, file=sys.stderr)
            return 1
        except OSError as error:
            print(f'{args.out} cannot be written: {error.strerror or error}', file=sys.stderr)
            return 1
    good = counts.pop(None, 0)
    print(f'{good} of {len(records)} files are fine; wrote {args.out}')
    for reason, count in counts.most_common():
        print(f'{count:8d} {reason}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
