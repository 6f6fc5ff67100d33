"""What reading features costs: linear readers, and a grid of heads against one head at a time.

    python -m tools.bench_probe [--clips 10000 --width 1024 --classes 10] [--heads 20] [--json FILE]

Made-up features of classes that overlap. The linear readers choose their settings as evaluations
do. The grid of attentive heads is one program on kept features; beside it stands one head alone on
the same features, and, with --commands N, N whole commands that each encode clips of a random
model, compile and train one setting, against one such command with all N settings. Seconds are by
the clock, and of processors in brackets where they tell whole commands apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jepa_jax import cli
from jepa_jax.workdir import room_for

if TYPE_CHECKING:
    import numpy as np


def bench(
    clips: int, width: int, classes: int, heads: int, tokens: int, steps: int,
    commands: int, json_file: str | None,
) -> None:  # fmt: skip
    """Measures, prints and writes."""
    if json_file:
        room_for('--json', json_file)
    import numpy as np

    from jepa_jax.evals import linear

    rng = np.random.default_rng(0)
    true = rng.integers(0, classes, clips + clips // 5)
    x = rng.normal(size=(len(true), width)).astype(np.float32)
    x += 2.5 * width**-0.5 * rng.normal(size=(classes, width)).astype(np.float32)[true]
    targets = np.eye(classes, dtype=np.float32)[true[:clips]]
    parts = linear.folds(np.arange(clips), true[:clips], 0)
    scaled = linear.standardised(x[:clips], x[clips:])

    def judge(scores: np.ndarray, rows: np.ndarray) -> float:
        return float((scores.argmax(1) == true[:clips][rows]).mean())

    results: dict = {'clips': clips, 'width': width, 'classes': classes}
    for reader in (linear.nearest, linear.ridge, linear.logistic):
        begin = time.perf_counter()
        answer = reader(scaled[0], targets, scaled[1], parts, judge)
        seconds = time.perf_counter() - begin
        accuracy = float((answer.scores.argmax(1) == true[clips:]).mean())
        results[reader.__name__] = {'seconds': seconds, 'accuracy': accuracy}
        print(f'{reader.__name__:9} {seconds:7.2f} s, accuracy {accuracy:.3f}, {answer.setting}')
    total = sum(results[name]['seconds'] for name in ('nearest', 'ridge', 'logistic'))
    results['linear_seconds'] = total
    print(f'together  {total:7.2f} s for {clips:,} x {width:,} of {classes} classes')
    results['heads'] = _heads(heads, tokens, width, classes, steps)
    if commands:
        results['commands'] = _commands(commands)
    if json_file:
        Path(json_file).write_text(json.dumps(results, indent=2) + '\n')


def _heads(heads: int, tokens: int, width: int, classes: int, steps: int) -> dict[str, float]:
    import jax.numpy as jnp
    import numpy as np

    from jepa_jax.evals import probes
    from jepa_jax.models.pooler import PoolerConfig

    rng = np.random.default_rng(1)
    kept = rng.normal(size=(256, tokens, width)).astype(np.float16)
    labels = rng.integers(0, classes, 256).astype(np.int32)
    pooler = PoolerConfig(width, width // 64, 1, dtype=jnp.dtype('float32'), remat='none')
    probe = probes.Probe(pooler, (('label', classes),))
    rates = np.geomspace(1e-4, 5e-3, max(1, heads))
    seconds = {}
    for count in (1, heads):
        settings = [probes.Setting(float(rate), 0.01) for rate in rates[:count]]
        begin = time.perf_counter()
        probes.train(
            probe, probes.cross_entropy, kept.__getitem__, {'label': labels}, settings,
            steps=steps, batch=16, title=f'{count} heads',
        )  # fmt: skip
        seconds[str(count)] = time.perf_counter() - begin
    one, all_ = seconds['1'], seconds[str(heads)]
    print(
        f'{heads} heads of {steps} steps as one program {all_:.1f} s, one head {one:.1f} s: '
        f'{heads * one / all_:.1f} times less than one after the other'
    )
    return {'steps': steps, 'one': one, 'all': all_}


def _commands(count: int) -> dict[str, float]:
    """Seconds of one command with `count` settings, and of `count` with one of them each."""
    import numpy as np
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for name in ('a', 'b'):
            (Path(folder) / 'clips' / name).mkdir(parents=True)
            for i in range(20):
                pixels = rng.integers(0, 255, (64, 64, 3), np.uint8)
                Image.fromarray(pixels).save(f'{folder}/clips/{name}/{i}.png')

        def run(number: int, rates: Sequence[float]) -> np.ndarray:
            begin = _clocks()
            subprocess.run(
                [
                    sys.executable, '-m', 'jepa_jax.evaluate', '--config=configs/eval/own.py:smoke',
                    '--model=random:tiny', f'--config.data.train={folder}/clips',
                    '--config.data.crop=64', '--config.data.frames=2',
                    '--config.attentive.decays=0.01',
                    f'--config.attentive.rates={",".join(f"{rate:g}" for rate in rates)}',
                    f'--workdir={folder}/{number}',
                ],
                check=True, capture_output=True,
            )  # fmt: skip
            return _clocks() - begin

        rates = np.geomspace(1e-4, 5e-3, count)
        grid = run(0, rates)
        alone = sum(run(i, [rate]) for i, rate in enumerate(rates, 1))
    print(
        f'one command with {count} settings {grid[0]:.1f} s ({grid[1]:.1f}), {count} commands with '
        f'one each {alone[0]:.1f} s ({alone[1]:.1f}): {alone[0] / grid[0]:.1f} times as long'
    )
    return {
        'commands': count, 'one_command': grid[0], 'all_commands': alone[0],
        'one_command_processors': grid[1], 'all_commands_processors': alone[1],
    }  # fmt: skip


def _clocks() -> np.ndarray:
    """Seconds by the clock, and of processors in commands that have ended."""
    import numpy as np

    spent = os.times()
    return np.array([time.perf_counter(), spent.children_user + spent.children_system])


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--clips', type=cli.count, default=10_000, metavar='N', help='of the features')
    add('--width', type=cli.count, default=1024, help='of the features (%(default)s)')
    add('--classes', type=cli.at_least(2), default=10, metavar='N', help='to tell apart')
    add('--heads', type=cli.count, default=20, help='of the grid (%(default)s)')
    add('--tokens', type=cli.count, default=128, help='of a clip (%(default)s)')
    add('--steps', type=cli.count, default=20, help='of each head (%(default)s)')
    add('--commands', type=cli.at_least(0), default=0,
        help='whole commands to compare with (%(default)s)')  # fmt: skip
    add('--json', dest='json_file', metavar='FILE', help='write the figures (no file)')


def main() -> int:
    return cli.run(bench, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
