"""Time and memory of features, beside transformers on the same weights and frames.

    python -m tools.bench_embed [--size vitl] [--frames 16] [--crop 256] [--rounds 3]
    python -m tools.bench_embed --platform gpu --dtype bfloat16 --clips 8

Random weights of the size are written once as a Hugging Face folder. Then each side runs in a
process of its own, one after the other, with the same number of threads: it loads the folder, takes
the same clips of noise, runs once to warm up and then a few times. On a GPU, PyTorch's side is
compiled (torch.compile), clips go to the device as bytes and features stay there. Seconds are the
median of those and core seconds those of all threads. Memory is, for loading and running together,
the peak of resident memory (VmHWM), and the peak of anonymous memory, which is no page of any file
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


def bench(rounds: int, threads: int, platform: str, json_file: str | None, **of: Any) -> None:
    """Runs both sides and prints what they took; of: size, frames, crop, clips, dtype.

    Raises:
      RuntimeError: a side failed; its last line of stderr is in the message.
    """
    result: dict[str, Any] = {**of, 'threads': threads, 'platform': platform}
    options = [f'--{name}={value}' for name, value in {**of, 'rounds': rounds}.items()]
    options.append(f'--platform={platform}')
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        print(
            '{size}, {clips} clips of {frames} frames, {crop} x {crop} pixels, {dtype}'.format(**of)
            + f', {platform}, {threads} threads'
        )
        run_side('bench_embed', 'write', folder, platform, threads, options)
        for side in SIDES:
            row = run_side('bench_embed', side, folder, platform, threads, options)
            result[side] = row
            print(
                f'{side:13} {row["seconds"]:8.4g} s ({row["core_seconds"]:.4g} core seconds), '
                f'first call {row["first"]:.1f} s, loading {row["loading"]:.1f} s; peak '
                f'{row["resident"] / GIB:.2f} GiB resident, {row["anonymous"] / GIB:.2f} '
                f'anonymous, {row["device"] / GIB:.2f} of the device',
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


def run_side(
    tool: str, side: str, folder: pathlib.Path, platform: str, threads: int, options: list[str]
) -> Any:
    """What one side of a comparison of tools.`tool` measured, in a process of its own.

    Raises:
      RuntimeError: it failed; its last line of stderr is in the message.
    """
    environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_VERBOSITY': 'error'}
    limit = None
    if platform == 'cpu':
        environment |= {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
        cores = sorted(os.sched_getaffinity(0))[:threads]  # as many threads as cores, for both

        def limit():
            os.sched_setaffinity(0, cores)

    environment['OMP_NUM_THREADS'] = str(threads)
    package = __spec__.name.rpartition('.')[0]  # tools, or where it is installed
    done = subprocess.run(
        [sys.executable, '-m', f'{package}.{tool}', '--side', side, '--folder', str(folder)]
        + options,
        env=environment, capture_output=True, text=True, preexec_fn=limit,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ['nothing on stderr']
        raise RuntimeError(f'{side}: exit status {done.returncode}: {lines[-1]}')
    return json.loads(done.stdout.splitlines()[-1])


# In the processes of their own


def _write(folder: pathlib.Path, size: str, clips: int, frames: int, crop: int) -> None:
    """The Hugging Face folder, and the clips."""
    import dataclasses

    import jax
    import numpy as np

    from jepa_jax.nets import ONCE
    from jepa_jax.pretrained import random_configs
    from jepa_jax.weights.contents import StoredNet, Weights
    from jepa_jax.weights.parts import net
    from jepa_jax.weights.tables import Leaf
    from jepa_jax.weights.write import write

    config, _ = random_configs(size)
    config = dataclasses.replace(config, image_size=crop, frames=frames)
    init = jax.jit(net('encoder', config).init, compiler_options=ONCE)
    params = jax.device_get(init(jax.random.key(0)))
    # biases and scales off their initial 0 and 1, so that none is without effect
    rng = np.random.default_rng(0)

    def moved(leaf):
        leaf = np.asarray(leaf)
        if leaf.ndim < 3:
            leaf = leaf + np.float32(0.02) * rng.standard_normal(leaf.shape, np.float32)
        return Leaf(leaf.shape, leaf.dtype, lambda: leaf)

    target = StoredNet('encoder', config, jax.tree.map(moved, params))
    write(Weights(folder, 'jax', {'target': target}), folder / 'hf', to='hf')
    noise = rng.integers(0, 256, (clips, frames, crop, crop, 3), np.uint8)
    np.save(folder / 'clips.npy', noise)


def _ours(folder: pathlib.Path, dtype: str, platform: str):
    """A function that computes the features, and one that says what the device held at most."""
    import jax
    import numpy as np

    import jepa_jax

    if jax.default_backend() != platform:
        raise RuntimeError(f'JAX computes on {jax.default_backend()}, must be {platform}')
    clips = np.load(folder / 'clips.npy')
    model = jepa_jax.load(folder / 'hf', dtype=dtype)
    jax.block_until_ready(model.encoder.params)

    def peak() -> int:
        return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)

    return lambda: jax.block_until_ready(model.encode(clips)), peak


def _theirs(folder: pathlib.Path, dtype: str, platform: str):
    """As `_ours`."""
    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    clips = torch.from_numpy(np.load(folder / 'clips.npy'))
    device = torch.device('cuda' if platform == 'gpu' else 'cpu')
    model = transformers.VJEPA2Model.from_pretrained(
        folder / 'hf', attn_implementation='sdpa', dtype=getattr(torch, dtype)
    ).eval()
    model = model.to(device)
    if platform == 'gpu':
        model = torch.compile(model)
    mean, std = (torch.tensor(each, device=device) for each in (MEAN, STD))

    def run():
        with torch.inference_mode():
            pixels = (clips.to(device).float() / 255 - mean) / std
            video = pixels.movedim(-1, 2).contiguous().to(getattr(torch, dtype))
            features = model(video, skip_predictor=True).last_hidden_state
            if platform == 'gpu':
                torch.cuda.synchronize()
            return features.float()

    def peak() -> int:
        return torch.cuda.max_memory_allocated() if platform == 'gpu' else 0

    return run, peak


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


def _measure(
    side: str, folder: pathlib.Path, rounds: int, dtype: str, platform: str
) -> dict[str, float]:
    import numpy as np

    peak = _Peak()
    marks = [time.perf_counter()]
    make = {'jepa_jax': _ours, 'transformers': _theirs}[side]
    run, on_device = make(folder, dtype, platform)
    marks.append(time.perf_counter())
    output = run()
    marks.append(time.perf_counter())
    walls, cores = [], []
    for _ in range(rounds):
        wall, core = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        cores.append(time.process_time() - core)
    row = {
        'loading': marks[1] - marks[0],
        'first': marks[2] - marks[1],
        'seconds': statistics.median(walls),
        'core_seconds': statistics.median(cores),
        'anonymous': peak.stop(),
        'resident': _status('VmHWM'),
        'device': on_device(),
    }
    host = output.cpu().numpy() if side == 'transformers' else np.asarray(output)
    np.save(folder / f'{side}.npy', host.astype(np.float32))
    return row


def run(side: str | None, folder: str | None, **options: Any) -> None:
    """The tool, or one side of it."""
    if side is None:
        bench(**options)
    elif side == 'write':
        names = ('size', 'clips', 'frames', 'crop')
        _write(pathlib.Path(folder), **{name: options[name] for name in names})
        print(json.dumps({}))
    else:
        names = ('rounds', 'dtype', 'platform')
        row = _measure(side, pathlib.Path(folder), **{name: options[name] for name in names})
        print(json.dumps(row))


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--size', default='vitl', help='a named size (%(default)s)')
    add('--clips', type=int, default=1, metavar='N', help='at a time (%(default)s)')
    add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='of products')
    add('--platform', choices=('cpu', 'gpu'), default='cpu', help='what both sides run on')
    add('--frames', type=int, default=16, metavar='N', help='of the clip (%(default)s)')
    add('--crop', type=int, default=256, metavar='PIXELS', help='of the clip')
    add('--rounds', type=int, default=3, metavar='N', help='timed runs (%(default)s)')
    add('--threads', type=int, default=2, metavar='N', help='and cores (%(default)s)')
    add('--json', metavar='FILE', dest='json_file', help='write the figures (no file)')
    add('--side', choices=('write', *SIDES), help=argparse.SUPPRESS)
    add('--folder', help=argparse.SUPPRESS)


def main() -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
