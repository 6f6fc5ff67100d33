"""How fast clips come: the whole pipeline against decord and TorchCodec reading the same frames.

    python -m tools.bench_data                      makes its own 320x240 H.264 clips
    python -m tools.bench_data --list clips.txt     your own files
    python -m tools.bench_data --memory             resident memory over 2,000 batches

All sides read the same frames of the same files, in turns within one run: the clips that training
asks for, and the same numbers of frames spread evenly over each video (uniform) and drawn from it
(random). Theirs merely decode; `pipeline` crops, resizes and draws masks besides. `clips/s/core` is
clips over processor seconds, all threads and processes together, so it does not depend on how many
cores the machine has; `clips/s` is what a training step would see. decord comes with the extra
[bench], TorchCodec is taken where it is installed and finds its FFmpeg; the table says which ran.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jepa_jax import cli
from jepa_jax.config import DataListConfig, MaskedVideoConfig
from jepa_jax.workdir import room_for

if TYPE_CHECKING:
    import numpy as np

SECONDS, FPS = 10, 30  # of self-made videos


@dataclasses.dataclass
class Speed:
    """What one way of reading needed."""

    name: str
    clips: int = 0
    wall: float = 0.0  # seconds
    cpu: float = 0.0  # processor seconds, of all processes

    @property
    def row(self) -> dict[str, float | str]:
        per_core = self.clips / self.cpu
        return {'name': self.name, 'clips/s': self.clips / self.wall, 'clips/s/core': per_core}


def make_videos(folder: Path, count: int, width: int, height: int, seed: int = 0) -> Path:
    """Moving texture with sensor noise, 10 s at 30 fps each; returns their list."""
    import av
    import numpy as np

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for number in range(count):
        waves = rng.uniform(10, 60, (3, 2)), rng.uniform(-0.2, 0.2, 3)
        noise = rng.normal(0, 4, (height + 64, width + 64, 1)).astype(np.float32)
        with av.open(str(folder / f'{number:03d}.mp4'), 'w') as container:
            stream = container.add_stream('libx264', rate=FPS)
            stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
            stream.options = {'preset': 'veryfast', 'crf': '23'}
            for t in range(SECONDS * FPS):
                image = np.stack(
                    [
                        127 + 70 * np.sin(x / a + y / b + speed * t)
                        for (a, b), speed in zip(*waves, strict=True)
                    ],
                    axis=-1,
                )
                image += noise[t % 64 :, 7 * t % 64 :][:height, :width]
                image = np.clip(image, 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
            container.mux(stream.encode(None))
    path = folder / 'list.txt'
    path.write_text(''.join(f'{number:03d}.mp4\n' for number in range(count)))
    return path


@contextlib.contextmanager
def timed(speed: Speed, clips: int) -> Iterator[None]:
    """Adds what happens within to `speed`. Workers must live from before to after."""
    wall, cpu = time.perf_counter(), _cpu()
    yield
    speed.wall += time.perf_counter() - wall
    speed.cpu += _cpu() - cpu
    speed.clips += clips


def _cpu() -> float:
    import psutil  # comes with tensorflow-datasets

    me = psutil.Process()
    times = [process.cpu_times() for process in [me, *me.children(recursive=True)]]
    return sum(t.user + t.system for t in times)


def requests(config: MaskedVideoConfig, steps: int) -> list[tuple[str, np.ndarray]]:
    """Files and frame numbers that the pipeline reads in its first steps."""
    from jepa_jax.data import decode
    from jepa_jax.data.videos import VideoStream

    seen = []
    read = decode.read_frames

    def watch(path, choose):
        def note(timing):
            seen.append((path, choose(timing)))
            return seen[-1][1]

        return read(path, note)

    decode.read_frames = watch
    try:
        with VideoStream(config) as pipeline, pipeline.batches() as batches:
            for _ in range(steps):
                next(batches)
    finally:
        decode.read_frames = read
    return seen


def _decord(path: str, frames: np.ndarray) -> None:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    reader.get_batch(frames).asnumpy()


def _torchcodec(path: str, frames: np.ndarray) -> None:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order='NHWC')
    decoder.get_frames_at(frames.tolist())


def _ours(path: str, frames: np.ndarray) -> None:
    from jepa_jax.data import decode

    decode.read_frames(path, lambda _: frames)


def peers() -> tuple[dict, dict[str, str]]:
    """Readers that are installed, and why others are not among them."""
    there, missing = {}, {}
    try:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        there['decord'] = _decord
    except ImportError as error:
        missing['decord'] = str(error).splitlines()[0]
    try:
        import torchcodec.decoders  # noqa: F401

        there['TorchCodec'] = _torchcodec
    except (ImportError, OSError, RuntimeError) as error:  # it may lack FFmpeg's libraries
        missing['TorchCodec'] = str(error).splitlines()[0]
    return there, missing


def accesses(needed: list[tuple[str, np.ndarray]]) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Which frames of which files are read: clips as training asks for them, and others as many."""
    import numpy as np

    from jepa_jax.data import decode

    rng = np.random.default_rng(0)
    lengths: dict[str, int] = {}
    for path in {path for path, _ in needed}:

        def first(timing, path=path):
            lengths[path] = timing.frames
            return np.zeros(1, int)

        decode.read_frames(path, first)
    uniform = [(p, np.linspace(0, lengths[p] - 1, len(f)).astype(int)) for p, f in needed]
    drawn = [(p, np.sort(rng.integers(0, lengths[p], len(f)))) for p, f in needed]
    return {'clips': needed, 'uniform': uniform, 'random': drawn}


def run(config: MaskedVideoConfig, workers: list[int], steps: int, rounds: int) -> dict:
    """Measures; the figures of the table."""
    from jepa_jax.data.videos import VideoStream

    batch = config.optim.batch
    theirs, missing = peers()
    readers = {**theirs, 'decode.read_frames': _ours}
    which = accesses(requests(config, steps)[: steps * batch])
    plain = {(name, how): Speed(f'{name}, {how}') for how in which for name in readers}
    pipelines = {n: Speed(f'pipeline, {n} workers') for n in workers}
    ratios: dict[int, list[float]] = {n: [] for n in workers}
    stages: dict[str, float] = {}
    for number in range(rounds):
        print(f'round {number + 1} of {rounds}', file=sys.stderr, flush=True)
        best = 0.0  # clips a core second of the fastest of theirs, in this round
        for (name, how), speed in plain.items():
            here = Speed('')
            with timed(speed, len(which[how])), timed(here, len(which[how])):
                for path, frames in which[how]:
                    readers[name](path, frames)
            if how == 'clips' and name in theirs:
                best = max(best, here.clips / here.cpu)
        for n in workers:
            config.data.workers = n
            with VideoStream(config) as pipeline, pipeline.batches(number * steps) as batches:
                warm = 1 + max(1, n) * config.data.prefetch  # workers are up, buffers are full
                for _ in range(warm):
                    next(batches)
                mine = Speed('')
                with timed(pipelines[n], steps * batch), timed(mine, steps * batch):
                    for _ in range(steps):
                        for stage, seconds in next(batches).seconds.items():
                            stages[stage] = stages.get(stage, 0.0) + seconds
                if best:
                    ratios[n].append(mine.clips / mine.cpu / best)
    del stages['batch']
    total = sum(stages.values())
    return {
        'speed': [speed.row for speed in (*plain.values(), *pipelines.values())],
        'not_run': missing,
        'against_the_better': {n: statistics.median(each) for n, each in ratios.items() if each},
        'share': {stage: seconds / total for stage, seconds in stages.items()},
        'ms_a_clip': {
            s: 1e3 * x / (rounds * steps * batch * len(workers)) for s, x in stages.items()
        },
    }


def memory(config: MaskedVideoConfig, steps: int) -> dict:
    """Resident memory of all processes, MiB, as batches go by."""
    import numpy as np
    import psutil

    from jepa_jax.data.videos import VideoStream

    points = []
    with VideoStream(config) as pipeline, pipeline.batches() as batches:
        for step in range(steps):
            next(batches)
            if (step + 1) % max(1, steps // 20) == 0:
                me = psutil.Process()
                processes = [me, *me.children(recursive=True)]
                used = sum(process.memory_info().rss for process in processes) / 2**20
                points.append((step + 1, used))
                print(f'  batch {step + 1:5d}: {used:8.1f} MiB', flush=True)
    half = points[len(points) // 2 :]
    slope = np.polyfit(*zip(*half), 1)[0] * 1000
    print(f'growth over the second half: {slope:+.2f} MiB per 1,000 batches')
    return {'memory_mib': points, 'growth_mib_per_1000_batches': slope}


def show(result: dict) -> None:
    print(f'{"":28s}{"clips/s":>10s}{"clips/s/core":>14s}')
    for row in result['speed']:
        print(f'{row["name"]:28s}{row["clips/s"]:10.1f}{row["clips/s/core"]:14.1f}')
    for name, why in result['not_run'].items():
        print(f'{name} did not run: {why}')
    for n, ratio in result['against_the_better'].items():
        print(f'{n} workers: {ratio:.2f} times the better of the others merely decoding, per core')
    for stage, share in result['share'].items():
        print(f'{stage:10s}{100 * share:5.1f} %{result["ms_a_clip"][stage]:9.2f} ms a clip')


def _size(text: str) -> tuple[int, int]:
    """`320x240` -> (320, 240), even as the chroma of H.264 wants it."""
    width, height = map(int, text.split('x'))
    if min(width, height) < 2 or width % 2 or height % 2:
        raise ValueError(text)
    return width, height


def bench(
    path: str | None = None, videos: int = 24, size: tuple[int, int] = (320, 240),
    workers: Sequence[int] = (0, 1, 2, 3, 4), batch: int = 8, steps: int = 24, rounds: int = 3,
    frames: int = 16, crop: int = 256, batches: int = 0, json_file: str | None = None,
) -> dict:  # fmt: skip
    """Makes videos if need be, measures, prints."""
    if json_file:
        room_for('--json', json_file)
    config = MaskedVideoConfig()
    config.data.frames, config.data.crop, config.optim.batch = frames, crop, batch
    with tempfile.TemporaryDirectory() as folder:
        path = path or str(make_videos(Path(folder), videos, *size))
        config.data.lists = [DataListConfig(path=path)]
        if batches:
            config.data.workers = workers[-1]
            result = memory(config, batches)
        else:
            result = run(config, list(workers), steps, rounds)
            show(result)
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=2) + '\n')
    return result


def _options(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, cli.count
    add('--list', metavar='PATH', dest='path', help='what the list kind `videos` reads (self-made)')
    add('--videos', type=count, default=24, metavar='N', help='self-made ones (%(default)s)')
    add('--size', type=_size, default=(320, 240), metavar='WxH', help='of self-made ones')
    add('--workers', type=cli.at_least(0), nargs='+', default=[0, 1, 2, 3, 4], metavar='N',
        help='processes')  # fmt: skip
    add('--batch', type=count, default=8, metavar='N', help='clips (%(default)s)')
    # many more than are under way at once, whose work may fall on either side of the clock
    add('--steps', type=count, default=24, metavar='N', help='batches a round (%(default)s)')
    add('--rounds', type=count, default=3, metavar='N', help='of all ways of reading (%(default)s)')
    add('--frames', type=count, default=16, metavar='N', help='a clip (%(default)s)')
    add('--crop', type=count, default=256, metavar='N', help='pixels (%(default)s)')
    add('--memory', type=count, nargs='?', const=2000, default=0, metavar='BATCHES', dest='batches',
        help='memory over so many batches (2000) in place of speed')  # fmt: skip
    add('--json', metavar='FILE', dest='json_file', help='write the figures (no file)')


def main() -> int:
    return cli.run(bench, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
