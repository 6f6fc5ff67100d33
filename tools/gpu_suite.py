"""What the program does on one GPU, part by part, in at most nine minutes: run by tools/on_gpu.sh.

    bash tools/on_gpu.sh [--tiny] [--out FILE] [--parts NAME,NAME]

One JSON file, written anew after every part and every figure, so that a time-out loses the last
part only. Each part is a process of its own with a share of the time; one that fails is recorded
with its error, the others go on, and the exit status is 1. --tiny runs the same parts on a CPU with
tiny sizes, to try the script.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# only what Python brings: `--missing` answers before anything is installed

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 520  # of all parts together
SIZES = ('vitl', 'vitg')
CLOSE = 0.03  # by which attention in bfloat16 may differ from float32, of the largest value
BATCHES = (256, 192, 128, 96, 64, 48, 32, 24, 16, 8, 4, 2, 1)
Add = Callable[..., None]  # figures of a part, written at once

# name -> seconds that it may take, of SECONDS; what earlier parts leave over goes to the next
PARTS = {
    'machine': 25, 'attention': 35, 'step_vitg': 75, 'step_vits': 60, 'run': 110, 'plan': 75,
    'step_vitl': 60, 'embed': 80,
}  # fmt: skip
# by name alone
MORE = {'step_beside': 180}

VIDEOS = 16
RUN = """
from configs import {name}  # the folder that the command is run in
from jepa_jax.config import DataListConfig


def get_config(arg=''):
    c = {name}.get_config()
    c.name, c.probe.enabled = 'gpu', False
    c.mask_sampler = 'single'  # one program to compile
    c.masks = c.masks[:{masks}]
    c.data.lists = [DataListConfig(path={videos!r})]
    c.data.fps, c.data.frame_step, c.data.workers, c.data.cache = 0, 2, {workers}, ''
    c.mesh.fsdp, c.optim.accumulate, c.optim.batch, c.optim.steps = 1, 1, {batch}, {steps}
    c.optim.warmup = 0
    c.checkpoints.every = {steps}
    c.logging.every, c.logging.health_every = 1, 0
    return c
"""


def machine(add: Add, tiny: bool) -> None:
    """Versions, memory, and the rate of a large product."""
    import importlib.metadata

    import jax

    from jepa_jax.chips import CHIPS
    from jepa_jax.memory import device_memory

    from .steps import matmul_peak

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return ''

    device = jax.devices()[0]
    names = ('jax', 'jaxlib', 'flax', 'optax', 'grain', 'orbax-checkpoint', 'torch', 'transformers')
    chip = CHIPS.get(device.device_kind)
    add(
        device=device.device_kind, platform=device.platform, memory=device_memory(),
        published_flops_per_s=chip and chip.flops, cores=os.cpu_count(),
        versions={name: version(name) for name in names},
    )  # fmt: skip
    if not tiny and device.platform != 'gpu':
        raise RuntimeError(f'JAX computes on {device.platform}, must be gpu')
    add(matmul_flops_per_s={d: matmul_peak(jax.numpy.dtype(d)) for d in ('bfloat16', 'float32')})


# what: queries, keys, heads, channels of a head; of 16 frames at 256 pixels
ATTENTION = {
    'ViT-L, all tokens': (2048, 2048, 16, 64),
    'ViT-L, context': (576, 576, 16, 64),
    'ViT-g, all tokens': (2048, 2048, 22, 64),
    'ViT-g, context': (192, 192, 22, 64),
    'predictor': (1600, 1600, 12, 32),
    'action-conditioned, a frame': (258, 1806, 16, 64),
}


def attention(add: Add, tiny: bool) -> None:
    """The kernels that are chosen, against a softmax in float32, with gradients; and their time."""
    import jax
    import jax.numpy as jnp

    from jepa_jax.models.attention import attend, choose

    host = jax.devices('cpu')[0]  # where nothing is tuned, and products are exact

    def plain(q, k, v):
        precision = jax.lax.Precision.HIGHEST
        scores = jnp.einsum('bqhc,bkhc->bhqk', q, k, precision=precision) * q.shape[-1] ** -0.5
        return jnp.einsum('bhqk,bkhc->bqhc', jax.nn.softmax(scores), v, precision=precision)

    def with_gradients(f):
        def run(q, k, v, g):
            out, back = jax.vjp(f, q, k, v)
            return out, *back(g.astype(out.dtype))

        return jax.jit(run)

    off = {}
    for what, (N, S, A, C) in ATTENTION.items():
        if tiny:
            N, S, A = N // 16, S // 16, 2
        kinds = [('bfloat16', 8, CLOSE)]  # each takes three programs, most of this part's time
        if what == 'ViT-L, all tokens':
            kinds.append(('float32', 1, 1e-3))
        for dtype, clips, limit in kinds:
            clips = 1 if tiny else clips
            keys = jax.random.split(jax.random.key(0), 4)
            q, k, v, g = (
                jax.random.normal(key, (clips, n, A, C), jnp.float32).astype(dtype)
                for key, n in zip(keys, (N, S, S, N))
            )
            row: dict[str, Any] = {'chosen': choose(jax.default_backend(), q.dtype, N, S, C)}
            kernel = with_gradients(attend)
            ours = kernel(q, k, v, g)
            one = [jax.device_put(a[:1].astype(jnp.float32), host) for a in (q, k, v, g)]
            gaps = []
            for a, b in zip(ours, with_gradients(plain)(*one), strict=True):
                a = jax.device_put(a[:1].astype(jnp.float32), host)
                gaps.append(float(jnp.abs(a - b).max() / jnp.abs(b).max()))
            row['difference'] = dict(zip(('out', 'dq', 'dk', 'dv'), gaps))
            row['seconds'] = {
                'forward': _seconds(jax.jit(attend), q, k, v),
                'with gradients': _seconds(kernel, q, k, v, g),
            }
            row['clips'] = clips
            add(**{f'{what}, {dtype}': row})
            if not max(gaps) <= limit:  # also a NaN
                off[f'{what}, {dtype}'] = gaps
    if off:
        raise RuntimeError(f'differ from float32: {off}')


def _seconds(f: Callable, *arguments: Any, rounds: int = 5) -> float:
    """Median of a few runs after the first."""
    import jax

    jax.block_until_ready(f(*arguments))
    times = []
    for _ in range(rounds):
        mark = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        times.append(time.perf_counter() - mark)
    return statistics.median(times)


def _masks(tiny: bool) -> int | None:
    """How many of a recipe's masks are kept: a tiny step compiles for longer than it runs."""
    return 1 if tiny else None


def _config(size: str, tiny: bool) -> Any:
    """A recipe on one device, with the largest batch that the memory estimate lets in."""
    from jepa_jax import cli
    from jepa_jax.errors import ConfigError
    from jepa_jax.memory import FILLED, GIB, device_memory, estimate

    config = cli.load(str(ROOT / f'configs/{size}.py'))
    config.mesh.fsdp = config.optim.accumulate = 1
    config.masks = config.masks[: _masks(tiny)]
    for config.optim.batch in (8,) if tiny else BATCHES:
        needed = estimate(config)['total'] * GIB
        if not device_memory() or needed <= FILLED * device_memory():
            return config
    raise ConfigError(f'{size}: one clip takes {needed / GIB:.3g} GiB (estimated)')


def step(size: str, add: Add, tiny: bool) -> None:
    """A training step in bfloat16 on noise: time, MFU, memory against the estimate."""
    from .bench_step import bench

    config, full = _config('tiny' if tiny else size, tiny), []
    while True:
        try:
            row = bench(config, steps=2 if tiny else 4, warmup=1)
            break
        except Exception as error:  # jax has no class of its own for it
            if 'RESOURCE_EXHAUSTED' not in str(error) or config.optim.batch == 1:
                raise
            full.append(config.optim.batch)
            add(out_of_memory_at=full)
        config.optim.batch //= 2  # outside: an exception holds the arrays of its frames
    (program,) = row['programs']
    peak = row['peak_device_bytes']
    add(
        **row,
        batch_to_device_over_step=program['batch_to_device_seconds'] / program['step_seconds'],
        peak_over_estimate=peak and peak / row['estimated_bytes'],
    )


def embed(add: Add, tiny: bool) -> None:
    """Features beside transformers with torch.compile, on the same weights."""
    options = ['--platform=gpu', '--dtype=bfloat16', '--clips=8', '--rounds=5', '--threads=8']
    options += ['--sides', 'transformers, compiled']
    if tiny:
        options = ['--frames=4', '--crop=64', '--rounds=1', '--sides', 'transformers']
    for size in ('tiny',) if tiny else SIZES:
        add(**{size: _tool('bench_embed', f'--size={size}', *options)})


def plan(add: Add, tiny: bool) -> None:
    """A planned action beside plain PyTorch: first at a small budget in float32, where both must
    choose the same elites, then at the published one in bfloat16."""
    gpu = () if tiny else ('--platform=gpu', '--threads=8')
    part = ('--samples=16', '--iterations=2', '--rounds=1')
    # nothing is timed here: no product has to be tuned
    untuned = {} if tiny else {'XLA_FLAGS': '--xla_gpu_autotune_level=0'}
    add(agreement=_tool('bench_plan', '--budget=reach', *part, *gpu, environment=untuned))
    if not tiny:
        published = ('--budget=published', '--dtype=bfloat16', '--rounds=2')
        add(published=_tool('bench_plan', *published, *gpu))


def step_beside(add: Add, tiny: bool) -> None:
    """A training step of ViT-L beside plain PyTorch, eager, compiled and with checkpointing."""
    options = ['--platform=gpu', '--dtype=bfloat16', '--remat=full', '--rounds=4', '--threads=8']
    options += ['--patience=110', '--sides', 'torch', 'torch, checkpointing', 'torch, compiled']
    if tiny:
        options = ['--small', '--rounds=1', '--sides', 'torch']
    add(**_tool('bench_vs_torch', 'step', *options))


def _tool(name: str, *options: str, environment: Mapping[str, str] = {}) -> dict[str, Any]:
    """The JSON of a tool in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'figures.json'
        _command(f'tools.{name}', f'--json={path}', *options, environment=environment)
        return json.loads(path.read_text())


def _command(module: str, *options: str, environment: Mapping[str, str] = {}) -> str:
    """What a command of ours printed, log and all.

    Raises:
      RuntimeError: it failed.
    """
    done = subprocess.run(
        [sys.executable, '-m', module, *options],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ['nothing on stderr']
        raise RuntimeError(f'{module}: exit status {done.returncode}: {lines[-1]}')
    return done.stdout + done.stderr


def run(add: Add, tiny: bool) -> None:
    """A short run of the training command on videos: what the device waits for."""
    import numpy as np

    from jepa_jax.data import synthetic

    name, batch, steps = ('tiny', 8, 8) if tiny else ('vitl', 64, 12)
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        videos = folder / 'videos'
        videos.mkdir()
        rng = np.random.default_rng(0)
        scene = rng.integers(0, 256, (30, 40, 3), np.uint8).repeat(16, 0).repeat(16, 1)
        for i in range(VIDEOS):
            shifts = (np.roll(scene, (2 + i) * t, axis=1)[:240, :320] for t in range(64))
            synthetic.write(videos / f'{i:02}.mp4', np.stack(list(shifts)))
        workers = min(12, max(2, (os.cpu_count() or 2) - 2))
        text = RUN.format(
            name=name, videos=str(videos), workers=workers, batch=batch, steps=steps,
            masks=_masks(tiny) or '',
        )  # fmt: skip
        (folder / 'gpu_run.py').write_text(text)
        add(batch=batch, workers=workers, videos='320 x 240, 64 frames')
        workdir = folder / 'run'
        told = _command(
            'jepa_jax.train', f'--config={folder / "gpu_run.py"}', f'--workdir={workdir}'
        )
        lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines][4:]  # the first compile, and fill the queues
    keys = ('step_s', 'data_wait_s', 'overhead_s', 'clips_per_s', 'mfu', 'memory_gib')
    means = {k: statistics.mean(row[k] for row in rows) for k in keys if k in rows[0]}
    whole = means['step_s'] + means['data_wait_s'] + means['overhead_s']
    verdict = re.search(r'(?:data|compute)-bound:.*', told)
    add(
        **means,
        data_wait_share=means['data_wait_s'] / whole,
        host_to_device_and_rest_share=means['overhead_s'] / whole,
        verdict=verdict[0] if verdict else '',
        losses_finite=all(row['loss'] == row['loss'] for row in rows),
    )


# The parts one after the other


def write(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """JSON in place of what is there, at once."""
    new = path.with_name(path.name + '.new')
    new.write_text(json.dumps(content, indent=2, default=str) + '\n')
    new.replace(path)


def suite(
    out: pathlib.Path,
    parts: Mapping[str, float],
    command: Callable[[str, pathlib.Path], Sequence[str]],
    seconds: float,
    **about: Any,
) -> bool:
    """Runs parts and writes what they report; whether all succeeded.

    Args:
      parts: name -> seconds that it may take at least, unless it is too late.
      command: part, file for its figures -> what to start.
      seconds: for all of them.
      about: stands at the top of the file.
    """
    began = time.monotonic()
    result: dict[str, Any] = {**about, 'parts': {}}
    write(out, result)
    names = list(parts)
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            later = sum(parts[each] for each in names[number + 1 :])
            left = seconds - (time.monotonic() - began)
            limit = min(left, max(parts[name], left - later))
            figures = pathlib.Path(folder) / f'{name}.json'
            mark = time.monotonic()
            status, error = _part(command(name, figures), limit)
            row = {'status': status, 'seconds': time.monotonic() - mark, 'error': error}
            if figures.exists():
                row['figures'] = json.loads(figures.read_text())
            result['parts'][name] = row
            result['seconds'] = time.monotonic() - began
            write(out, result)
            print(f'{name}: {status} after {row["seconds"]:.0f} s. {error}', flush=True)
    return all(row['status'] == 'ok' for row in result['parts'].values())


def _part(command: Sequence[str], limit: float) -> tuple[str, str]:
    """ok | failed | no time, and the last lines of what it said on stderr."""
    if limit <= 0:
        return 'no time', 'not started'
    with tempfile.TemporaryFile('w+') as log:
        child = subprocess.Popen(command, cwd=ROOT, stderr=log, start_new_session=True)
        try:
            code = child.wait(limit)
            status = 'failed' if code else 'ok'
        except subprocess.TimeoutExpired:
            status = 'no time'
        finally:  # with what it started itself
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
        log.seek(0)
        said = log.read().strip().splitlines()[-12:]
    return status, '\n'.join(said) if status != 'ok' else ''


def _one(name: str, path: pathlib.Path, tiny: bool) -> None:
    """In the process of its own."""
    functions = {f.__name__: f for f in (machine, attention, plan, embed, run, step_beside)}
    functions |= {f'step_{size}': functools.partial(step, size) for size in (*SIZES, 'vits')}
    figures: dict[str, Any] = {}

    def add(**more: Any) -> None:
        figures.update(more)
        write(path, figures)

    functions[name](add, tiny)


def missing(wheels: pathlib.Path) -> list[pathlib.Path]:
    """Wheels of a folder whose packages are not here, or older."""
    import importlib.metadata

    def numbers(version: str) -> list[int]:
        return [int(n) for n in re.findall(r'\d+', version.partition('+')[0])]

    needed = []
    for path in sorted(wheels.glob('*.whl')):
        name, version, *_ = path.name.split('-')
        try:
            here = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            here = ''
        if numbers(here) < numbers(version):
            needed.append(path)
    return needed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='on_gpu.sh', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--tiny', action='store_true', help='tiny sizes on a CPU')
    add('--out', default='gpu.json', metavar='FILE', type=pathlib.Path, help='(%(default)s)')
    add('--parts', default=','.join(PARTS), metavar='NAME,NAME', help='(%(default)s)')
    add('--seconds', type=float, default=SECONDS, metavar='N', help='for all (%(default)s)')
    add('--part', choices=PARTS | MORE, help=argparse.SUPPRESS)
    add('--missing', type=pathlib.Path, metavar='DIR', help='the wheels there that are needed here')
    options = parser.parse_args(argv)
    if options.missing:
        print(*missing(options.missing), sep='\n')
        return 0
    if options.part:
        _one(options.part, options.out, options.tiny)
        return 0
    if unknown := set(options.parts.split(',')) - set(PARTS | MORE):
        parser.error(f'--parts {sorted(unknown)[0]}: allowed are {", ".join(PARTS | MORE)}')
    out = options.out.absolute()

    def command(name: str, path: pathlib.Path) -> list[str]:
        small = ['--tiny'] if options.tiny else []
        return [sys.executable, '-m', 'tools.gpu_suite', '--part', name, '--out', str(path), *small]

    parts = {name: (PARTS | MORE)[name] for name in options.parts.split(',')}
    begun = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
    return 0 if suite(out, parts, command, options.seconds, tiny=options.tiny, begun=begun) else 1


if __name__ == '__main__':
    sys.exit(main())
