"""Time and memory of features, beside transformers on the same weights and frames.

    python -m tools.bench_embed [--size vitl] [--frames 16] [--crop 256] [--rounds 3]

Random weights of the size are written once as a Hugging Face folder. Then each side runs in a
process of its own, one after the other, with the same number of threads: it loads the folder, takes
the same clip of noise in float32, runs once to warm up and then a few times. Seconds are the median
of those and core seconds those of all threads. Memory is, for loading and running together, the
peak of resident memory (VmHWM), and the peak of anonymous memory, which is no page of any file
(RssAnon, looked at 50 times a second): PyTorch uses its weights where they lie in the mapped file,
so they are resident there and not anonymous; ours are rearranged, so they are both. The largest
difference of the features is printed. Needs torch and transformers (extra [test]); Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from jepa_jax import cli

GIB = 2**30
SIDES = ('jepa_jax', 'transformers')
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bench(size: str, frames: int, crop: int, rounds: int, threads: int, json_file: str | None):
    """Runs both sides and prints what they took.

    Raises:
      RuntimeError: a side failed; its last line of stderr is in the message.
    """
    result: dict[str, Any] = {'size': size, 'frames': frames, 'crop': crop, 'threads': threads}
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        print(f'{size}, {frames} frames of {crop} x {crop} pixels, float32, {threads} threads')
        _child('write', folder, threads, size, frames, crop, rounds)
        for side in SIDES:
            result[side] = found = _child(side, folder, threads, size, frames, crop, rounds)
            print(
                f'{side:13} {found["seconds"]:8.2f} s ({found["core_seconds"]:.2f} core seconds), '
                f'first call {found["first"]:.1f} s, loading {found["loading"]:.1f} s; peak '
                f'{found["resident"] / GIB:.2f} GiB resident, {found["anonymous"] / GIB:.2f} '
                'anonymous',
                flush=True,
            )
        import numpy as np

        ours, theirs = (np.load(folder / f'{side}.npy') for side in SIDES)
        result['difference'] = float(np.abs(ours - theirs).max())
    a, b = (result[side] for side in SIDES)
    result['time_ratio'] = a['seconds'] / b['seconds']
    result['core_time_ratio'] = a['core_seconds'] / b['core_seconds']
    result['resident_ratio'] = a['resident'] / b['resident']
    result['anonymous_ratio'] = a['anonymous'] / b['anonymous']
    print(
        f'ours / theirs: time {result["time_ratio"]:.3f}, core seconds '
        f'{result["core_time_ratio"]:.3f}, resident memory {result["resident_ratio"]:.3f}, '
        f'anonymous {result["anonymous_ratio"]:.3f}; largest difference of {ours.size:,} features '
        f'{result["difference"]:.2e}'
    )
    if json_file:
        pathlib.Path(json_file).write_text(json.dumps(result, indent=2) + '\n')


def _child(side: str, folder: pathlib.Path, threads: int, *arguments: Any) -> dict[str, Any]:
    environment = {
        **os.environ, 'OMP_NUM_THREADS': str(threads), 'JAX_PLATFORMS': 'cpu',
        'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_VERBOSITY': 'error',
    }  # fmt: skip
    names = ('size', 'frames', 'crop', 'rounds')
    options = [f'--{name}={value}' for name, value in zip(names, arguments)]
    cores = sorted(os.sched_getaffinity(0))[:threads]  # as many threads as cores, for both
    done = subprocess.run(
        [sys.executable, '-m', __spec__.name, '--side', side, '--folder', str(folder), *options],
        env=environment, capture_output=True, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ['nothing on stderr']
        raise RuntimeError(f'{side}: exit status {done.returncode}: {lines[-1]}')
    return json.loads(done.stdout.splitlines()[-1])


# In the processes of their own


def _write(folder: pathlib.Path, size: str, frames: int, crop: int) -> None:
    """The Hugging Face folder, and the clip."""
    import dataclasses

    import jax
    import numpy as np

    from jepa_jax import convert, zoo
    from jepa_jax.convert.tables import Leaf
    from jepa_jax.models.vit import ViT
    from jepa_jax.nets import Net

    config, _ = zoo.random_configs(size)
    config = dataclasses.replace(config, image_size=crop, frames=frames)
    params = Net(lambda rngs: ViT(config, rngs=rngs)).init(jax.random.key(0))
    # biases and scales off their initial 0 and 1, so that none is without effect
    rng = np.random.default_rng(0)

    def moved(leaf):
        leaf = np.asarray(leaf)
        return leaf + rng.normal(0, 0.02, leaf.shape).astype(np.float32) * (leaf.ndim < 3)

    tree = jax.tree.map(moved, params)
    tree = jax.tree.map(lambda a: Leaf(a.shape, a.dtype, lambda a=a: a), tree)
    weights = convert.Weights(
        folder, 'jax', convert.VERSION, size, config, None, None, {'target': tree}
    )
    convert.write(weights, folder / 'hf', to='hf')
    clip = rng.integers(0, 256, (1, frames, crop, crop, 3), np.uint8)
    np.save(folder / 'clip.npy', clip)


def _ours(folder: pathlib.Path):
    import jax
    import numpy as np

    from jepa_jax import zoo

    clip = np.load(folder / 'clip.npy')
    model = zoo.load(folder / 'hf')
    jax.block_until_ready(model.encoder.params)
    return lambda: np.asarray(model.encode(clip))


def _theirs(folder: pathlib.Path):
    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    clip = np.load(folder / 'clip.npy')
    model = transformers.VJEPA2Model.from_pretrained(
        folder / 'hf', attn_implementation='sdpa', dtype=torch.float32
    ).eval()

    def run():
        pixels = (clip.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        with torch.inference_mode():
            video = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 2)))
            return model(video, skip_predictor=True).last_hidden_state.numpy()

    return run


class _Peak:
    """The largest RssAnon seen by a thread."""

    def __init__(self):
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.bytes = max(self.bytes, _status('RssAnon'))

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return max(self.bytes, _status('RssAnon'))


def _status(key: str) -> int:
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
        if line.startswith(key + ':'):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f'/proc/self/status has no {key}')


def _measure(side: str, folder: pathlib.Path, rounds: int) -> dict[str, float]:
    import numpy as np

    peak = _Peak()
    marks = [time.perf_counter()]
    run = {'jepa_jax': _ours, 'transformers': _theirs}[side](folder)
    marks.append(time.perf_counter())
    output = run()
    marks.append(time.perf_counter())
    walls, cores = [], []
    for _ in range(rounds):
        wall, core = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        cores.append(time.process_time() - core)
    found = {
        'loading': marks[1] - marks[0],
        'first': marks[2] - marks[1],
        'seconds': statistics.median(walls),
        'core_seconds': statistics.median(cores),
        'anonymous': peak.stop(),
        'resident': _status('VmHWM'),
    }
    np.save(folder / f'{side}.npy', output)
    return found


def run(side: str | None, folder: str | None, **options: Any) -> None:
    """The tool, or one side of it."""
    if side is None:
        bench(**options)
    elif side == 'write':
        _write(pathlib.Path(folder), options['size'], options['frames'], options['crop'])
        print(json.dumps({}))
    else:
        print(json.dumps(_measure(side, pathlib.Path(folder), options['rounds'])))


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--size', default='vitl', help='a named size (%(default)s)')
    add('--frames', type=int, default=16, metavar='N', help='of the clip (%(default)s)')
    add('--crop', type=int, default=256, metavar='PIXELS', help='(%(default)s)')
    add('--rounds', type=int, default=3, metavar='N', help='timed runs (%(default)s)')
    add('--threads', type=int, default=2, metavar='N', help='and cores (%(default)s)')
    add('--json', metavar='FILE', dest='json_file', help='write the figures')
    add('--side', choices=('write', *SIDES), help=argparse.SUPPRESS)
    add('--folder', help=argparse.SUPPRESS)


def main() -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
