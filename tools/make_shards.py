"""Decodes a list of videos once and writes shards that the list kind `shards` reads.

    python -m tools.make_shards clips.txt --out /data/clips_320 --short-side 320 --fps 8
    python -m jepa_jax.train --config=configs/vitl.py \\
        --config.data.lists[0].kind=shards --config.data.lists[0].path=/data/clips_320

A shard is a pair of files: shard-00000.rgb, frames as plain bytes, and shard-00000.json, which says
where each record lies and what its frames' checksums are, and is written last. Started again with
the same arguments it goes on where it was. Plain frames are large (a second of 320x240 at 8 frames
a second is 1.8 MB): this pays where decoding holds up training and disks are large. To remove the
shards, delete the folder: nothing else refers to it, and the videos are not touched.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import functools
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from jepa_jax.config import DataConfig, DataListConfig
from jepa_jax.data import decode, kinds, pictures
from jepa_jax.data.cache import checksum
from jepa_jax.data.clips import Timing
from jepa_jax.data.sources import SHARD_VERSION, open_source, sum_of
from jepa_jax.errors import BadFile, ConfigError

PIECE = 256  # frames decoded at a time: bounds memory, 0.7 GiB at 1280x720


def make(
    path: str,
    out: str,
    *,
    short_side: int = 320,
    fps: int = 0,
    frames: int = 0,
    per_shard: int = 64,
    workers: int = 0,
) -> dict[str, int]:
    """Writes the shards of a list, folder or manifest of videos.

    Args:
      path: what the list kind `videos` reads.
      out: folder, made if missing.
      short_side: pixels; larger frames are shrunk to it, smaller ones kept as they are.
      fps: frames a second that are kept; 0: all.
      frames: cut videos into records of at most this many kept frames; 0: one record a video.
      per_shard: videos a shard.
      workers: processes; 0: one a core.

    Returns counts: `records`, `bytes`, and `skipped/REASON` for videos that cannot be read.

    Raises ConfigError for a list that cannot be read, and for a folder with other shards.
    """
    source = open_source(DataListConfig(path=path), DataConfig())
    videos = [(source.name(i), source.label(i)) for i in range(len(source))]
    settings = {'short_side': short_side, 'fps': fps, 'frames': frames, 'per_shard': per_shard}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [videos[i : i + per_shard] for i in range(0, len(videos), per_shard)]
    beyond = [p for p in folder.glob('shard-*.json') if int(p.stem[6:]) >= len(parts)]
    if beyond:
        raise ConfigError(f'--out: {beyond[0]} is of a longer list; use an empty folder')
    counts: collections.Counter[str] = collections.Counter()
    work = functools.partial(_shard, folder, settings)
    with (
        concurrent.futures.ProcessPoolExecutor(
            workers or os.cpu_count(), multiprocessing.get_context('spawn')
        ) as pool,
        tqdm(total=len(videos), unit='video', disable=None) as bar,
    ):
        tasks = [pool.submit(work, number, part) for number, part in enumerate(parts)]
        try:
            for task in concurrent.futures.as_completed(tasks):
                count, videos_done = task.result()
                counts.update(count)
                bar.update(videos_done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return dict(counts)


def _shard(
    folder: Path, settings: dict[str, int], number: int, videos: list[tuple[str, int | None]]
) -> tuple[dict[str, int], int]:
    """Writes one shard unless it is there; its counts, and the number of videos."""
    index = folder / f'shard-{number:05d}.json'
    made_of = hashlib.sha256(json.dumps([settings, videos]).encode()).hexdigest()
    if index.exists():
        shard = json.loads(index.read_text())
        if shard['made_of'] != made_of:
            raise ConfigError(
                f'--out: {index} was made of other videos or with other settings than '
                f'{settings}; use an empty folder'
            )
    else:
        shard = {'version': SHARD_VERSION, 'made_of': made_of, 'settings': settings}
        shard |= {'records': [], 'skipped': []}
        # temporary names are the same every time, so that a killed run leaves nothing behind
        part = index.with_suffix('.part')
        with open(part, 'wb') as file:
            for path, label in videos:
                start = file.tell()
                try:
                    shard['records'] += _video(file, path, label, settings)
                except BadFile as error:
                    file.seek(start)
                    file.truncate()
                    bad = {'path': path, 'reason': error.reason, 'detail': error.detail}
                    shard['skipped'].append(bad)
        shard['sum'] = sum_of(shard['records'])
        os.replace(part, index.with_suffix('.rgb'))
        part.write_text(json.dumps(shard))
        os.replace(part, index)
    counts = collections.Counter(f'skipped/{bad["reason"]}' for bad in shard['skipped'])
    counts['records'] = len(shard['records'])
    counts['bytes'] = index.with_suffix('.rgb').stat().st_size
    return dict(counts), len(videos)


def _video(file, path: str, label: int | None, settings: dict[str, int]) -> list[dict]:
    """Appends a video's frames to `file`; its records."""
    if (kind := kinds.kind_of(path)) not in _READERS:
        raise BadFile(path, 'not_video', f'by its content an {kind}')
    read = _READERS[kind]
    kept, rate = _kept(read, path, settings['fps'])
    longest = settings['frames'] or len(kept)
    records = []
    for first in range(0, len(kept), longest):
        record = kept[first : first + longest]
        offset, sums = file.tell(), []
        for start in range(0, len(record), PIECE):
            piece = record[start : start + PIECE]
            frames = read(path, lambda _, piece=piece: piece)
            for frame in frames:
                shrunk = _shrink(frame, settings['short_side'])
                file.write(shrunk.data)
                sums.append(checksum(shrunk))
        records.append(
            {
                'path': path,
                'label': label,
                'first': first,
                'offset': offset,
                'shape': [len(record), *shrunk.shape],
                'fps': rate,
                'sums': sums,
            }
        )
    return records


_READERS = {'video': decode.read_frames, 'stack': pictures.read_frames}


def _kept(read: Callable, path: str, fps: int) -> tuple[np.ndarray, float]:
    """Frame numbers to keep, evenly spaced in time, and how many that is a second."""
    seen: list[Timing] = []

    def choose(timing: Timing) -> np.ndarray:
        seen.append(timing)
        return np.zeros(1, np.int64)

    read(path, choose)
    timing = seen[0]
    if not timing.fps:
        raise BadFile(path, 'not_video', 'pages without a clock')
    rate = min(fps or timing.fps, timing.fps)
    count = max(1, int(timing.frames * rate / timing.fps))
    at = (np.arange(count) + 0.5) / rate  # the frame on screen in the middle of each interval
    if timing.times is None:
        numbers = (at * timing.fps).astype(np.int64)
    else:
        numbers = np.searchsorted(timing.times, at, side='right') - 1
    return np.clip(numbers, 0, timing.frames - 1), rate


def _shrink(frame: np.ndarray, short_side: int) -> np.ndarray:
    """A frame `[H, W, 3]` with at most `short_side` pixels on its shorter side, antialiased."""
    height, width = frame.shape[:2]
    short = min(height, width)
    if short <= short_side:
        return np.ascontiguousarray(frame)
    size = round(width * short_side / short), round(height * short_side / short)
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m tools.make_shards',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('list', help='text list, .npy, manifest .jsonl or folder of videos')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the shards')
    add = functools.partial(parser.add_argument, type=int, metavar='N')
    add('--short-side', default=320, help='pixels; larger frames are shrunk to it (%(default)s)')
    add('--fps', default=0, help='frames a second to keep; 0: all (%(default)s)')
    add('--frames', default=0, help='most frames a record; 0: whole videos (%(default)s)')
    add('--per-shard', default=64, help='videos a shard (%(default)s)')
    add('--workers', default=0, help='processes; 0: one a core (%(default)s)')
    options = vars(parser.parse_args(argv))
    for name in ('short_side', 'per_shard'):
        if options[name] < 1:
            parser.error(f'--{name.replace("_", "-")} {options[name]}: must be at least 1')
    for name in ('fps', 'frames', 'workers'):
        if options[name] < 0:
            parser.error(f'--{name} {options[name]}: must not be negative')
    try:
        counts = make(options.pop('list'), options.pop('out'), **options)
    except (ConfigError, OSError) as error:
        print(f'make_shards: {error}', file=sys.stderr)
        return 1
    skipped = {k.removeprefix('skipped/'): n for k, n in counts.items() if '/' in k}
    reasons = ', '.join(f'{n} {reason}' for reason, n in sorted(skipped.items()))
    print(
        f'{counts["records"]} records, {counts["bytes"] / 2**30:.2f} GiB'
        + (f'; left out: {reasons}' if skipped else '')
    )
    return 0 if counts['records'] else 1


if __name__ == '__main__':
    sys.exit(main())
