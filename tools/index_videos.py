"""Scans videos in parallel and writes a manifest that a run can use in place of a list.

    jepa index LIST_OR_FOLDER... --out manifest.jsonl [--workers N] [--decode] [--config NAME]
    jepa index LIST --out clips.names --names

One JSON object a line, in the order of the sources: path, label, frames, fps, width, height, codec,
seconds, variable (whether the frame rate varies), missing (null, or which frames of a damaged
video; a run trains on the others), problem (null, or a key of `jepa_jax.errors.REASONS`: a run
passes the file over) and detail. By default headers, packets and one frame are read; `--decode`
decodes every frame, which finds damage that headers do not show. A list names files, `path label` a
line, the label optional and relative paths counting from the list's folder; a folder is searched
for videos, and what is passed over is counted; an argument that is itself a video stands for
itself. What a file is its content says: a picture has one frame, an animated one is a video. Exit
status 0 whatever the files hold, and a row for each of them.

On the screen: the bad files, durations, frame rates, sizes and codecs of the good ones, and with
--config how many of them a run of that config would pass over, or repeat the last frame of.

--names looks at no file: it packs the names and labels of a text list of any length into one file
that a run maps and its processes share, for lists of many millions; `data.lists[0].path` takes it.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import concurrent.futures
import functools
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from jepa_jax import cli, scratch
from jepa_jax.config import DataConfig, frame_counts, layouts
from jepa_jax.errors import REASONS, BadFile, ConfigError, printable

SHOWN = 20  # bad files on the screen; all are in the manifest
ROWS = 10  # of a table
EDGES = (1, 2, 4, 8, 16, 30, 60, 300, 1800)  # seconds
SPANS = (
    f'below {EDGES[0]}',
    *(f'{a} to {b}' for a, b in zip(EDGES, EDGES[1:])),
    f'{EDGES[-1]} and more',
)
SHORT = 'short'


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


def write(rows, out: Path) -> None:
    """Writes the manifest at once, by renaming a finished file."""
    scratch.sweep(out.parent)
    handle, part = tempfile.mkstemp(dir=out.parent, prefix=scratch.prefix(out))
    try:
        with open(handle, 'w', encoding='utf-8', errors='surrogateescape') as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + '\n')
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)  # temporary files are private, a manifest is not
        os.replace(part, out)
    except BaseException:
        os.unlink(part)
        raise


class Summary:
    """What the rows of a manifest say together; of any number of them."""

    def __init__(self) -> None:
        self.problems: collections.Counter[str | None] = collections.Counter()
        self.bad: list[str] = []  # the first of them
        self.tables: dict[str, collections.Counter[str]] = {
            name: collections.Counter() for name in ('seconds', 'frames a second', 'size', 'codec')
        }

    def add(self, row: dict) -> None:
        self.problems[row['problem']] += 1
        if row['problem']:
            if len(self.bad) < SHOWN:
                detail = printable(row['detail'] or '')
                self.bad.append(f'{printable(row["path"])}: {row["problem"]} ({detail})')
            return
        seconds, fps = row['seconds'], row['fps']
        values = {
            'seconds': _span(seconds) if seconds is not None else 'no clock',
            'frames a second': f'{fps:.0f}' if fps else 'no clock',
            'size': f'{row["width"]}x{row["height"]}',
            'codec': row['codec'] or 'picture or array',
        }
        for name, value in values.items():
            self.tables[name][value] += 1

    def lines(self) -> Iterator[str]:
        """Tables with a bar for each row, the most frequent first, spans of time in their order."""
        total = max(1, self.problems[None])
        for name, counts in self.tables.items():
            if not counts:
                continue
            yield f'{name}:'
            order = counts.most_common()
            if name == 'seconds':
                order.sort(key=lambda pair: SPANS.index(pair[0]) if pair[0] in SPANS else -1)
            shown, rest = order[:ROWS], sum(count for _, count in order[ROWS:])
            for value, count in [*shown, *([('others', rest)] if rest else [])]:
                yield f'{count:10,d}  {value:16s} {"#" * -(-40 * count // total)}'


def _span(seconds: float) -> str:
    return SPANS[bisect.bisect_right(EDGES, seconds)]


@functools.singledispatch
def _lists(data: object, name: str) -> DataConfig:
    """The `data` of a config, if it reads lists of videos; name: of the config."""
    raise ConfigError(f'--config={name}: reads no lists of videos')


@_lists.register
def _(data: DataConfig, name: str) -> DataConfig:
    del name
    return data


class Fits:
    """How videos go with a config: what a run would pass over, and where it repeats frames."""

    def __init__(self, name: str) -> None:
        """Raises ConfigError for a config that reads no lists of videos."""
        from jepa_jax.data.clips import Sampling

        data = _lists(cli.load(name).data, name)
        self._name, self._sampling = name, Sampling.from_config(data)
        self._frames = sorted(frame_counts(data))
        self._counts: collections.Counter[tuple[int, str]] = collections.Counter()

    def add(self, row: dict) -> None:
        from jepa_jax.errors import Unsuitable

        for frames in self._frames:
            if row['problem']:
                self._counts[frames, row['problem']] += 1
            elif row['fps']:
                try:
                    step = self._sampling.step(row['fps'], frames)
                except Unsuitable as error:
                    self._counts[frames, error.reason] += 1
                else:
                    self._counts[frames, SHORT] += row['frames'] <= frames * step

    def lines(self, total: int) -> Iterator[str]:
        rule = ', '.join(f'{k} {v:g}' for k, v in vars(self._sampling).items() if v)
        for frames in self._frames:
            mine = {why: n for (f, why), n in self._counts.items() if f == frames and n}
            short = mine.pop(SHORT, 0)
            reasons = ''.join(f', {n:,} {why}' for why, n in sorted(mine.items()))
            yield (
                f'{self._name}, clips of {frames} frames ({rule}): {sum(mine.values()):,} of '
                f'{total:,} passed over{reasons}; {short:,} shorter than a clip, whose last frame '
                'is repeated'
            )


def pack(source: list[str], out: Path) -> None:
    """Writes the names of text lists as they stand.

    Raises:
      ConfigError: another name for the file, or a list that cannot be read.
    """
    from jepa_jax.data import lists, names

    if out.suffix != names.SUFFIX:
        raise ConfigError(f'--out {out}: must end in {names.SUFFIX} with --names')
    began = time.monotonic()
    parts = itertools.chain.from_iterable(lists.pieces(path) for path in source)
    try:
        count, size = names.write(out, parts)
    except (OSError, BadFile) as error:
        raise ConfigError(f'a source cannot be read: {error}') from error
    if not count:
        out.unlink()
        raise ConfigError(f'no names in {" ".join(source)}')
    seconds = time.monotonic() - began
    print(f'{count:,} names of {size / max(1, count):.0f} bytes, {seconds:.0f} s; wrote {out}')


def run(
    source: list[str], out: Path, workers: int, decode: bool, config: str | None, names: bool
) -> None:
    """Writes the manifest and says what the files are like and what is wrong with them.

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
    if names:
        return pack(source, out)
    fits = Fits(config) if config else None
    try:
        records, skipped = gather(source)
    except (OSError, BadFile, ConfigError) as error:
        raise ConfigError(f'a source cannot be read: {error}') from error
    passed_over = ', '.join(f'{n} {why}' for why, n in skipped.items())
    if not records:
        why = f' (passed over: {passed_over})' if passed_over else ''
        raise ConfigError(f'no videos in {" ".join(source)}{why}')
    summary = Summary()
    rows = tqdm(scanned(records, decode, workers), total=len(records), unit='file', disable=None)
    try:
        write(_told(rows, *filter(None, (summary, fits))), out)
    except OSError as error:
        raise ConfigError(f'{out} cannot be written: {error.strerror or error}') from error
    counts = summary.problems
    for line in summary.lines():
        print(line)
    for line in summary.bad:
        print(f'bad: {line}')
    good, bad = counts.pop(None, 0), sum(counts.values())
    if bad > SHOWN:
        print(f'bad: {bad - SHOWN:,} more, which have a problem in {out}')
    for line in fits.lines(len(records)) if fits else ():
        print(line)
    print(f'{good} of {len(records)} files are fine; wrote {out}')
    if passed_over:
        print(f'passed over: {passed_over}')
    for reason, count in counts.most_common():
        print(f'{count:8d} {reason}')


def _told(rows: Iterable[dict], *listeners: Summary | Fits) -> Iterator[dict]:
    """The rows, each of which the listeners get on its way."""
    for row in rows:
        for listener in listeners:
            listener.add(row)
        yield row


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('source', nargs='+', help='list file, folder or video')
    add('--out', required=True, type=Path, metavar='FILE.jsonl', help='manifest to write')
    add('--workers', type=int, default=os.cpu_count(), metavar='N', help='processes (%(default)s)')
    add('--config', metavar='NAME[:ARG]', help='what a run of it would pass over (not asked)')
    add('--names', action='store_true', help='look at no file: pack names, into FILE.names')
    add('--decode', action='store_true', help='decode every frame of every file')


def main(argv: list[str] | None = None) -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options, argv=argv)


if __name__ == '__main__':
    sys.exit(main())
