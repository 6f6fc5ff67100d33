"""How cost grows with tokens, batch, devices, list length, samples and horizon of a plan.

    python -m tools.growth --out DIR [--what tokens list ...] [--quick]

Each quantity is doubled while the rest stays, on a small model, and the seconds of all cores are
measured (what else the machine does counts for little in them); beside each stands what its model
says, by FLOPs or in proportion, through the first point. The exponents are slopes of log seconds
over the log of the quantity: over all points, and over the last two. Writes growth.json, and
growth.png with a panel each. On CPUs, devices share the cores: twice as many with twice the clips
should take twice the core seconds, not more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from jepa_jax import cli

Point = tuple[float, float, float]  # quantity, core seconds, what the model says in any unit


def step(devices: int = 1, **flags: Any) -> tuple[float, float]:
    """Core seconds and model FLOPs of a step of the main job's model, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'step.json'
        options = [f'--config.{name.replace("__", ".")}={value}' for name, value in flags.items()]
        package = __spec__.name.rpartition('.')[0]
        done = subprocess.run(
            [sys.executable, '-m', f'{package}.bench_step', '--config=configs/tiny.py',
             '--config.mask_sampler=single', '--steps=3', '--warmup=1', f'--json={path}', *options],
            env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ['nothing on stderr']
            raise RuntimeError(f'bench_step with {flags}: {lines[-1]}')
        (program,) = json.loads(path.read_text())['programs']
    return program['step_core_seconds'], program['model_flops']['total']


def tokens(quick: bool) -> list[Point]:
    """Of a clip, from its pixels and frames; two clips a step."""
    sizes = [(8, 32), (8, 64), (8, 128), (8, 256), (32, 256), (64, 256)][: 3 if quick else None]
    return [
        (frames // 2 * (crop // 8) ** 2,
         *step(data__frames=frames, data__crop=crop, optim__batch=2, mesh__remat='full'))
        for frames, crop in sizes
    ]  # fmt: skip


def batch(quick: bool) -> list[Point]:
    """Clips of a step."""
    return [(n, *step(optim__batch=n)) for n in ((4, 16) if quick else (4, 8, 16, 32, 64))]


def devices(quick: bool) -> list[Point]:
    """That share the clips, eight on each."""
    counts = (1, 2) if quick else (1, 2, 4, 8)
    return [(n, *step(n, optim__batch=8 * n)) for n in counts]


def list_(quick: bool) -> list[Point]:
    """Lines of a list of videos, opened and asked for the records of 100 steps."""
    from jepa_jax.config import DataListConfig, MaskedVideoConfig
    from jepa_jax.data.videos import VideoStream

    points = []
    for power in range(3, 5 if quick else 8):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / 'list.txt'
            with path.open('w') as file:
                for start in range(0, 10**power, 1000):
                    file.writelines(f'clips/{i:08}.mp4\n' for i in range(start, start + 1000))
            config = MaskedVideoConfig()
            config.optim.batch, config.data.lists = 8, [DataListConfig(path=str(path))]
            began = time.process_time()
            with VideoStream(config) as stream:
                opened = time.process_time() - began
                for order in stream.orders:
                    for number in range(100):
                        order[number]
            points.append((10**power, time.process_time() - began, 10**power))
            print(f'  {10**power:,} lines: {opened:.3g} s to open', flush=True)
    return points


def _plan(**changes: int) -> tuple[float, float]:
    import statistics

    from .bench_plan import PLAN

    o = {**PLAN.defaults, 'platform': 'cpu', 'threads': 1, **changes}
    with tempfile.TemporaryDirectory() as folder:
        flops = PLAN.write(pathlib.Path(folder), **o)['flops']
        run = PLAN.ours(pathlib.Path(folder), **o)
        run()
        times = []
        for _ in range(5):
            mark = time.process_time()
            run()
            times.append(time.process_time() - mark)
    return statistics.median(times), flops


def samples(quick: bool) -> list[Point]:
    """Of a plan, of 4 iterations."""
    return [(n, *_plan(samples=n)) for n in ((32, 128) if quick else (32, 64, 128, 256, 512))]


def horizon(quick: bool) -> list[Point]:
    """Actions of a plan, of 64 samples: what is attended to grows, so the cost is above linear."""
    return [(n, *_plan(horizon=n)) for n in ((1, 2) if quick else (1, 2, 4, 8))]


MEASURES: dict[str, Callable[[bool], list[Point]]] = {
    'tokens': tokens, 'batch': batch, 'devices': devices, 'list': list_, 'samples': samples,
    'horizon': horizon,
}  # fmt: skip


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Slope of log y over log x, by least squares."""
    x, y = ([math.log(value) for value in each] for each in zip(*points))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y))
    return above / sum((a - mean_x) ** 2 for a in x)


def fits(points: Sequence[Point]) -> dict[str, float]:
    """Exponents, measured and modelled, over all points and at the end."""
    measured, modelled = [p[:2] for p in points], [(p[0], p[2]) for p in points]
    return {
        'measured': exponent(measured), 'modelled': exponent(modelled),
        'measured_last': exponent(measured[-2:]), 'modelled_last': exponent(modelled[-2:]),
    }  # fmt: skip


def grow(what: list[str] | None, quick: bool, out: str) -> None:
    """Measures, prints a table, writes the files; anew after each quantity."""
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    print('| what grows | from, to | core seconds | exponent (modelled) | at the end (modelled) |')
    print('|---|---|---|---|---|')
    for name in what or MEASURES:
        points = MEASURES[name](quick)
        f = fits(points)
        result[name] = {'points': points, **f}
        (x0, y0, _), *_, (x1, y1, _) = points
        print(
            f'| {name} | {x0:,} to {x1:,} | {y0:.3g} to {y1:.3g} | {f["measured"]:.2f} '
            f'({f["modelled"]:.2f}) | {f["measured_last"]:.2f} ({f["modelled_last"]:.2f}) |',
            flush=True,
        )
        (folder / 'growth.json').write_text(json.dumps(result, indent=2) + '\n')
        _draw(result, folder / 'growth.png')


def _draw(result: dict[str, Any], path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    from jepa_jax.page import save_figure

    rows = 1 if len(result) < 4 else 2
    columns = -(-len(result) // rows)
    figure = Figure(figsize=(3.6 * columns, 2.9 * rows), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, row) in zip(panels, result.items()):
        x, y, model = zip(*row['points'])
        axes.loglog(x, y, 'o-', label=f'measured, {row["measured"]:.2f}')
        scaled = [value * y[0] / model[0] for value in model]
        axes.loglog(x, scaled, '--', label=f'modelled, {row["modelled"]:.2f}')
        axes.set(xlabel=name, ylabel='core seconds')
        axes.set_xticks(x, [f'{value:,.0f}' for value in x], fontsize=7, rotation=30)
        axes.tick_params('x', which='minor', bottom=False, labelbottom=False)
        axes.legend(title='exponent')
    save_figure(figure, path, dpi=90, colours=64)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--what', nargs='+', choices=MEASURES, help='(all)')
    add('--quick', action='store_true', help='two or three points each')
    add('--out', required=True, metavar='DIR', help='for growth.json and growth.png')


def main() -> int:
    return cli.run(grow, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
