"""Decodes a list of videos once and writes shards that the list kind `shards` reads.

    jepa shards clips.txt --out /data/clips_320 --short-side 320 --fps 8 [--format jpeg]
    jepa train --config=vitl \\
        --config.data.lists[0].kind=shards --config.data.lists[0].path=/data/clips_320

A shard is a pair of files: shard-00000.rgb, frames as plain bytes, or shard-00000.jpegs, a JPEG for
each frame; and shard-00000.json, which says where each record lies and what its frames' checksums
are, and is written last. Started again with the same arguments it goes on where it was. Plain
frames are large (a second of 320x240 at 8 frames a second is 1.8 MB): this pays where decoding
holds up training and disks are large. JPEGs are several times smaller, take some of a core to read,
and are not quite the same pixels; how much of each is said at the end. Before anything is written,
what it will take is estimated from a few videos and held against what is free. To remove shards,
delete the folder: nothing else refers to it, and the videos are not touched.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import functools
import hashlib
import io
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jepa_jax import cli
from jepa_jax.config import DataConfig, DataListConfig, layouts
from jepa_jax.errors import BadFile, ConfigError

if TYPE_CHECKING:
    import numpy as np

PIECE = 256  # frames decoded at a time: bounds memory, 0.7 GiB at 1280x720
LOOKED_AT = 32  # videos that the estimate of what is written is made from
MEASURED = 16  # of so many frames that become JPEGs one is decoded and compared
GIB = 2**30

Video = tuple[str, int | None]  # path and label


def make(
    path: str,
    out: str,
    *,
    short_side: int = 320,
    fps: int = 0,
    frames: int = 0,
    per_shard: int = 64,
    workers: int = 0,
    quality: int = 0,
) -> dict[str, float]:
    """Writes the shards of a list, folder or manifest of videos.

    Args:
      path: what the list kind `videos` reads.
      out: folder, made if missing.
      short_side: pixels; larger frames are shrunk to it, smaller ones kept as they are.
      fps: frames a second that are kept; 0: all.
      frames: cut videos into records of at most this many kept frames; 0: one record a video.
      per_shard: videos a shard.
      workers: processes; 0: one a core.
      quality: of JPEGs, 1 to 100; 0: plain frames.

    Returns counts: `records`, `bytes`, `skipped/REASON` for videos that cannot be read; of JPEGs
    `raw`, bytes of plain frames, and of some frames `values`, their `error` (sum of absolute
    differences) and `square`, `decoded` frames and `seconds` that took.

    Raises ConfigError for a list that cannot be read, for a folder with other shards, and where the
    disk has too little room.
    """
    from tqdm import tqdm

    from jepa_jax.data.sources import open_source

    source = open_source(DataListConfig(path=path), DataConfig())
    videos = [(source.name(i), source.label(i)) for i in range(len(source))]
    settings = {'short_side': short_side, 'fps': fps, 'frames': frames, 'per_shard': per_shard}
    settings |= {'quality': quality} if quality else {}  # plain ones are known without it
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [videos[i : i + per_shard] for i in range(0, len(videos), per_shard)]
    beyond = [p for p in folder.glob('shard-*.json') if int(p.stem[6:]) >= len(parts)]
    if beyond:
        raise ConfigError(f'--out: {beyond[0]} is of a longer list; use an empty folder')
    left = [v for i, part in enumerate(parts) if not _index(folder, i).exists() for v in part]
    _check_room(folder, left, settings)
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


def _index(folder: Path, number: int) -> Path:
    return folder / f'shard-{number:05d}.json'


def estimate(videos: Sequence[Video], settings: dict[str, int]) -> float:
    """Bytes that the shards of videos will take, from a frame of some of them."""
    from jepa_jax.data import decode, kinds, pictures

    readers = {'video': decode.read_frames, 'stack': pictures.read_frames}
    some = [videos[i * len(videos) // LOOKED_AT] for i in range(min(LOOKED_AT, len(videos)))]
    if len(videos) <= LOOKED_AT:
        some = list(videos)
    total = 0
    for path, _ in some:
        try:
            if read := readers.get(kinds.kind_of(path)):
                kept, _ = _kept(read, path, settings['fps'])
                (frame,) = read(path, lambda _, kept=kept: kept[len(kept) // 2 :][:1])
                content, _ = _stored(_shrink(frame, settings['short_side']), settings)
                total += len(kept) * len(content)
        except BadFile:
            continue  # left out of the shards, too
    return total * len(videos) / max(1, len(some))


def _check_room(folder: Path, videos: Sequence[Video], settings: dict[str, int]) -> None:
    """Raises ConfigError: the disk has less room than the videos will take."""
    if not videos:
        print('0 videos to write')
        return
    need, free = estimate(videos, settings), shutil.disk_usage(folder).free
    print(
        f'{len(videos):,} videos to write: about {need / GIB:.2f} GiB, estimated from '
        f'{min(LOOKED_AT, len(videos))} of them; {free / GIB:.2f} GiB are free'
    )
    if need > free:
        advice = '' if 'quality' in settings else ', --format jpeg'
        raise ConfigError(
            f'--out: {folder} has {free / GIB:.2f} GiB free, about {need / GIB:.2f} GiB are '
            f'needed; a smaller --short-side, a lower --fps{advice}, or another disk'
        )


def _shard(
    folder: Path, settings: dict[str, int], number: int, videos: list[Video]
) -> tuple[dict[str, float], int]:
    """Writes one shard unless it is there; its counts, and the number of videos."""
    from jepa_jax.data.sources import SHARD_VERSIONS, sum_of

    index, frames = _index(folder, number), 'jpegs' if 'quality' in settings else 'rgb'
    made_of = hashlib.sha256(json.dumps([settings, videos]).encode()).hexdigest()
    if index.exists():
        shard = json.loads(index.read_text())
        if shard['made_of'] != made_of:
            raise ConfigError(
                f'--out: {index} was made of other videos or with other settings than '
                f'{settings}; use an empty folder'
            )
    else:
        shard = {'version': SHARD_VERSIONS[frames], 'made_of': made_of, 'settings': settings}
        shard |= {'records': [], 'skipped': [], 'measured': {}}
        measured: collections.Counter[str] = collections.Counter()
        # temporary names are the same every time, so that a killed run leaves nothing behind
        part = index.with_suffix('.part')
        with open(part, 'wb') as file:
            for path, label in videos:
                start = file.tell()
                try:
                    records, of_video = _video(file, path, label, settings)
                    shard['records'] += records
                    measured.update(of_video)
                except BadFile as error:
                    file.seek(start)
                    file.truncate()
                    bad = {'path': path, 'reason': error.reason, 'detail': error.detail}
                    shard['skipped'].append(bad)
        shard['sum'], shard['measured'] = sum_of(shard['records']), dict(measured)
        os.replace(part, index.with_suffix(f'.{frames}'))
        part.write_text(json.dumps(shard))
        os.replace(part, index)
    counts = collections.Counter(f'skipped/{bad["reason"]}' for bad in shard['skipped'])
    counts['records'] = len(shard['records'])
    counts['bytes'] = index.with_suffix(f'.{frames}').stat().st_size
    counts.update(shard.get('measured', {}))
    return dict(counts), len(videos)


def _video(
    file, path: str, label: int | None, settings: dict[str, int]
) -> tuple[list[dict], dict[str, float]]:
    """Appends a video's frames to `file`; its records, and what was measured."""
    import numpy as np

    from jepa_jax.data import decode, kinds, pictures
    from jepa_jax.data.cache import checksum

    readers = {'video': decode.read_frames, 'stack': pictures.read_frames}
    if (kind := kinds.kind_of(path)) not in readers:
        raise BadFile(path, 'not_video', f'by its content an {kind}')
    read = readers[kind]
    kept, rate = _kept(read, path, settings['fps'])
    longest = settings['frames'] or len(kept)
    records, measured = [], collections.Counter()
    for first in range(0, len(kept), longest):
        record = kept[first : first + longest]
        offset, sums, sizes = file.tell(), [], []
        for start in range(0, len(record), PIECE):
            piece = record[start : start + PIECE]
            frames = read(path, lambda _, piece=piece: piece)
            for frame in frames:
                shrunk = _shrink(frame, settings['short_side'])
                content, jpeg = _stored(shrunk, settings)
                file.write(content)
                sums.append(checksum(np.frombuffer(content, np.uint8)))
                if jpeg:
                    if len(sizes) % MEASURED == 0:
                        measured.update(_compared(content, shrunk))
                    sizes.append(len(content))
                    measured['raw'] += shrunk.nbytes
        records.append(
            {
                **({'sizes': sizes} if sizes else {}),
                'path': path,
                'label': label,
                'first': first,
                'offset': offset,
                'shape': [len(record), *shrunk.shape],
                'fps': rate,
                'sums': sums,
            }
        )
    return records, dict(measured)


def _stored(frame: np.ndarray, settings: dict[str, int]) -> tuple[bytes, bool]:
    """A frame as it is written, and whether that is a JPEG."""
    from PIL import Image

    if 'quality' not in settings:
        return frame.tobytes(), False
    out = io.BytesIO()
    Image.fromarray(frame).save(out, 'JPEG', quality=settings['quality'], subsampling='4:2:0')
    return out.getvalue(), True


def _compared(content: bytes, frame: np.ndarray) -> dict[str, float]:
    """What is left of a frame in its JPEG, and how long that takes to read, on one core."""
    import numpy as np

    from jepa_jax.data.pictures import image_of

    began = time.perf_counter()
    read = image_of('', content)
    seconds = time.perf_counter() - began
    apart = np.abs(read.astype(np.int64) - frame)
    return {
        'decoded': 1, 'seconds': seconds, 'values': frame.size,
        'error': int(apart.sum()), 'square': int(np.square(apart).sum()),
    }  # fmt: skip


def _kept(read: Callable, path: str, fps: int) -> tuple[np.ndarray, float]:
    """Frame numbers to keep, evenly spaced in time, and how many that is a second."""
    import numpy as np

    from jepa_jax.data.clips import Timing

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
    import numpy as np
    from PIL import Image

    height, width = frame.shape[:2]
    short = min(height, width)
    if short <= short_side:
        return np.ascontiguousarray(frame)
    size = round(width * short_side / short), round(height * short_side / short)
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def _said(counts: dict[str, float]) -> str:
    """What JPEGs save and cost."""
    mean = counts['square'] / counts['values']
    noise = f'{10 * math.log10(255**2 / mean):.1f} dB' if mean else 'no noise'
    return (
        f'JPEG: {counts["raw"] / counts["bytes"]:.1f} times smaller than plain frames; decodes '
        f'{counts["decoded"] / counts["seconds"]:,.0f} frames a second on a core; off by '
        f'{counts["error"] / counts["values"]:.2f} of 255 on average, {noise}'
    )


def run(list: str, out: str, format: str, **options: int) -> None:
    """Writes the shards and says what was left out.

    Raises:
      ConfigError: a setting, a list or a folder that cannot be used, or no video that can be read.
    """
    for name, least in (('short_side', 1), ('per_shard', 1), ('fps', 0), ('frames', 0)):
        if options[name] < least:
            flag = name.replace('_', '-')
            raise ConfigError(f'--{flag} {options[name]}: must be at least {least}')
    if not 1 <= options['quality'] <= 100:
        raise ConfigError(f'--quality {options["quality"]}: must be from 1 to 100')
    if format == 'rgb':
        options['quality'] = 0
    if options['workers'] < 0:
        raise ConfigError(f'--workers {options["workers"]}: must be at least 0')
    if complaint := next(layouts.absent('list', list), None):
        raise ConfigError(complaint)
    counts = make(list, out, **options)
    skipped = {k.removeprefix('skipped/'): n for k, n in counts.items() if '/' in k}
    reasons = ', '.join(f'{n} {reason}' for reason, n in sorted(skipped.items()))
    left_out = f'; left out, and named in {out}/shard-*.json: {reasons}' if skipped else ''
    print(f'{counts["records"]} records, {counts["bytes"] / 2**30:.2f} GiB{left_out}')
    if counts.get('decoded'):
        print(_said(counts))
    if not counts['records']:
        raise ConfigError(f'{list}: no video of it can be read')


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('list', help='text list, .npy, manifest .jsonl or folder of videos')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the shards')
    add = functools.partial(parser.add_argument, type=int, metavar='N')
    add('--short-side', default=320, help='pixels; larger frames are shrunk to it (%(default)s)')
    add('--fps', default=0, help='frames a second to keep; 0: all (%(default)s)')
    add('--frames', default=0, help='most frames a record; 0: whole videos (%(default)s)')
    add('--per-shard', default=64, help='videos a shard (%(default)s)')
    parser.add_argument(
        '--format',
        choices=('rgb', 'jpeg'),
        default='rgb',
        help='plain frames, or JPEGs (%(default)s)',
    )
    add('--quality', default=95, help='of JPEGs, 1 to 100 (%(default)s)')
    add('--workers', default=0, help='processes; 0: one a core (%(default)s)')


def main(argv: list[str] | None = None) -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options, argv=argv)


if __name__ == '__main__':
    sys.exit(main())
