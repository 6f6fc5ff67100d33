"""How long a planned action takes, beside PyTorch on the same weights and the same noise.

    python -m tools.bench_plan [--budget reach|default|published] [--samples N --iterations N ...]

Random weights and frames of noise are written once. Then each side runs in a process of its own,
one after the other, with the same number of threads and cores: the cross-entropy method in float32
on the action-conditioned predictor, once to warm up and then a few times. Seconds are the median of
those; compiling (ours) and the first call are apart. PyTorch is a plain predictor and planner
(tools/plan_with_torch.py), or with --original the released code in a checkout. Both are given
standard normal numbers from the same file, and must find the same energies, to 1e-4 of them, and
the same elites in every iteration, else the exit status is 1. How many samples run together decides
how much of the work stays in the caches: ours has a rule for it, PyTorch's side tries a few numbers
and keeps its fastest, unless --at-once says.

Budgets are those of the closed loop's `:ci` (reach), of `jepa_jax.plan --model random:tiny`
(default) and of the paper (published: 24 blocks of width 1,024, 258 tokens a frame, 800 samples, 10
iterations, one action). --platform gpu --dtype bfloat16 runs both sides there; energies in bfloat16
may differ by 2 % of themselves, and elites are not compared. With --samples or --iterations a part
of a budget is measured, and said to be. The floor is the predictor's FLOPs over the rate of a large
matrix product in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

from jepa_jax import cli

from .bench_embed import run_side

SIDES = ('jepa_jax', 'torch')
CLOSE = {'float32': 1e-4, 'bfloat16': 2e-2}  # by which energies may differ, of themselves


@dataclasses.dataclass(frozen=True)
class Budget:
    """A predictor's shape and what is tried with it."""

    encoder_width: int
    width: int
    depth: int
    heads: int
    side: int  # tokens of a frame along an edge
    samples: int
    iterations: int
    horizon: int
    elites: int = 10
    max_step: float = 0.05


BUDGETS = {
    'reach': Budget(96, 96, 2, 4, 4, samples=64, iterations=4, horizon=1, elites=8),
    'default': Budget(192, 96, 2, 4, 16, samples=400, iterations=10, horizon=2),
    # (reference: world_models §1.7)
    'published': Budget(
        1408, 1024, 24, 16, 16, samples=800, iterations=10, horizon=1, max_step=0.075
    ),
}


class BenchError(RuntimeError):
    """A side failed, or the sides disagree."""


def bench(
    budget: str,
    rounds: int,
    threads: int,
    at_once: int | None,
    original: str,
    platform: str,
    dtype: str,
    json_file: str | None,
    **changes: int | None,
) -> None:
    """Runs both sides, prints what they took, and compares their results.

    Raises:
      BenchError: see there.
    """
    full = BUDGETS[budget]
    b = dataclasses.replace(full, **{k: v for k, v in changes.items() if v is not None})
    if b.elites > b.samples:
        b = dataclasses.replace(b, elites=max(2, b.samples // 4))
    result: dict[str, Any] = {'budget': budget, **dataclasses.asdict(b), 'threads': threads}
    result |= {'platform': platform, 'dtype': dtype}
    print(
        f'{budget}: {b.depth} blocks of width {b.width}, {b.side**2 + 2} tokens a frame; '
        f'{b.samples} samples x {b.iterations} iterations, horizon {b.horizon}, {b.elites} elites; '
        f'{dtype}, {platform}, {threads} threads'
    )
    share = b.samples * b.iterations * b.horizon / (full.samples * full.iterations * full.horizon)
    if share != 1:
        print(f'PART OF THE BUDGET: {share:.4g} of its predictions; times below are of this part')
    result['share_of_budget'] = share
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        (folder / 'budget.json').write_text(json.dumps(dataclasses.asdict(b)))
        options = [f'--rounds={rounds}', f'--original={original}']
        options += [f'--platform={platform}', f'--dtype={dtype}']
        if at_once is not None:
            options.append(f'--at-once={at_once}')
        result['flops'] = run_side('bench_plan', 'write', folder, platform, threads, options)
        for side in SIDES:
            result[side] = measured = run_side(
                'bench_plan', side, folder, platform, threads, options
            )
            tried = ', '.join(f'{n}: {s:.3g} s' for n, s in measured['tried'].items())
            chosen = measured['at_once'] or ('all' if side == 'torch' else 'by our rule')
            print(
                f'{side:9} {measured["seconds"]:9.4f} s an action '
                f'({measured["core_seconds"]:.4f} core seconds), first call '
                f'{measured["first"]:.2f} s, compiling {measured["compiling"]:.1f} s; '
                f'samples at once: {chosen}'
                + (f' (tried {tried})' if len(measured['tried']) > 1 else ''),
                flush=True,
            )
        result |= compare(folder)
    ours, theirs = (result[side] for side in SIDES)
    result['ratio'] = theirs['seconds'] / ours['seconds']
    floor = result['flops']['plan'] / result['flops']['matmul_per_s']
    result['floor_seconds'] = floor
    print(
        f'ours is {result["ratio"]:.2f} times as fast; floor {floor:.4f} s: '
        f'{result["flops"]["plan"]:.4g} FLOPs at {result["flops"]["matmul_per_s"]:.3g} a second, '
        f'of which ours reaches {floor / ours["seconds"]:.0%}'
    )
    print(
        f'energies differ by at most {result["difference"]:.1e} of themselves, their spread in an '
        f'iteration is {result["spread"]:.1e}; elites alike in {result["alike"]} of '
        f'{b.iterations} iterations; actions differ by at most {result["actions"]:.1e}'
    )
    if json_file:
        pathlib.Path(json_file).write_text(json.dumps(result, indent=2) + '\n')
    apart = dtype == 'float32' and result['alike'] < b.iterations
    if apart or result['difference'] > CLOSE[dtype]:
        raise BenchError('the sides disagree: the times mean nothing')


def compare(folder: pathlib.Path) -> dict[str, float]:
    """How far apart the sides' energies [J, S], elites [J, K] and actions [H, 7] are."""
    import numpy as np

    ours, theirs = (np.load(folder / f'{side}.npz') for side in SIDES)
    apart = np.abs(ours['energies'] - theirs['energies']) / np.abs(theirs['energies'])
    pairs = zip(ours['elites'].tolist(), theirs['elites'].tolist())
    return {
        'difference': float(apart.max()),
        'spread': float((theirs['energies'].std(1) / theirs['energies'].mean(1)).min()),
        'alike': sum(set(a) == set(b) for a, b in pairs),
        'actions': float(np.abs(ours['actions'] - theirs['actions']).max()),
    }


# In the processes of their own


def _read(folder: pathlib.Path) -> tuple[Budget, dict[str, Any]]:
    import numpy as np

    with np.load(folder / 'inputs.npz') as file:
        return Budget(**json.loads((folder / 'budget.json').read_text())), dict(file)


def _predictor(b: Budget, dtype: str = 'float32'):
    import jax.numpy as jnp

    from jepa_jax.models.ac_predictor import ACPredictorConfig
    from jepa_jax.weights.parts import net

    config = ACPredictorConfig(
        b.encoder_width, width=b.width, depth=b.depth, heads=b.heads, grid=(b.side, b.side),
        dtype=jnp.dtype(dtype),
    )  # fmt: skip
    return config, net('ac_predictor', config)


def _write(folder: pathlib.Path, dtype: str) -> dict[str, float]:
    """Weights by the names of the released files, inputs and noise; -> FLOPs."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jepa_jax import flops
    from jepa_jax.weights import tables

    from .steps import matmul_peak

    b = Budget(**json.loads((folder / 'budget.json').read_text()))
    config, net = _predictor(b)
    rng = np.random.default_rng(0)

    def draw(path, a):
        # so large that what is planned matters: at the start of training it hardly does
        name = jax.tree_util.keystr(path)
        size = a.shape[-2] ** -0.5 if 'kernel' in name else 0.1
        if 'action_encoder' in name:
            size = 20.0
        drawn = np.float32(size) * rng.standard_normal(a.shape, np.float32)
        return drawn + 1 if 'scale' in name else drawn

    params = jax.tree.map_with_path(draw, net.abstract)
    links = tables.bind(tables.table('ac_predictor', config, 'torch')[0], params)
    np.savez(folder / 'weights.npz', **dict(tables.to_file(links, params)))

    def features(*shape):
        x = rng.standard_normal(shape, np.float32)
        return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

    np.savez(
        folder / 'inputs.npz',
        frame=features(b.side**2, b.encoder_width),
        goal=features(b.side**2, b.encoder_width),
        state=np.float32([0.58, 0.0, 0.25, -3.07, 0.03, -1.91, 0.5]),
        noise=rng.standard_normal((b.iterations, b.horizon, b.samples, 4), np.float32),
    )
    once = flops.ac_rollout(config, 1, b.horizon)
    return {
        'plan': once * b.samples * b.iterations,
        'matmul_per_s': matmul_peak(jnp.dtype(dtype)),
    }


def candidates(b: Budget, platform: str) -> list[int]:
    """How many samples PyTorch tries running together; 0: all."""
    if platform == 'gpu':  # no cache to stay within
        return [0, 100] if b.samples > 100 else [0]
    tokens = b.side**2 + 2
    return sorted({n for n in (1, 2, 4, 8, 16, 40) if b.samples % n == 0 and n < b.samples
                   and 250 <= n * tokens <= 5000} | {0})  # fmt: skip


def _ours(folder: pathlib.Path, at_once: int, platform: str, dtype: str):
    """-> a function that plans, and seconds of compiling."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jepa_jax.planning.cem import CEM, end_effector
    from jepa_jax.planning.world_model import ACWorldModel, Context, Goal
    from jepa_jax.weights import tables
    from jepa_jax.weights.tables import Leaf

    if jax.default_backend() != platform:
        raise BenchError(f'JAX computes on {jax.default_backend()}, must be {platform}')
    b, given = _read(folder)
    config, net = _predictor(b, dtype)
    with np.load(folder / 'weights.npz') as file:
        stored = {k: Leaf(file[k].shape, file[k].dtype, lambda a=file[k]: a) for k in file}
        links = tables.bind(tables.table('ac_predictor', config, 'torch')[0], net.abstract)
        params = jax.tree.map(jnp.asarray, tables.from_file(links, stored))
    model = ACWorldModel(params, net, config, b.horizon, at_once=at_once)
    planner = CEM(
        end_effector(b.max_step), horizon=b.horizon, samples=b.samples, iterations=b.iterations,
        elites=b.elites,
    )  # fmt: skip
    context = Context(jnp.asarray(given['frame'])[None], jnp.asarray(given['state'])[None])
    goal, noise = Goal(jnp.asarray(given['goal'])), jnp.asarray(given['noise'])
    key = jax.random.key(0)
    mark = time.perf_counter()
    solve = jax.jit(planner.solve).lower(model, context, goal, key, noise=noise).compile()
    seconds = time.perf_counter() - mark

    def run():
        actions, trace = jax.device_get(solve(model, context, goal, key, noise=noise))
        return actions, trace['costs'], trace['elites']

    return run, seconds


def _theirs(folder: pathlib.Path, at_once: int, original: str, platform: str, dtype: str):
    import numpy as np
    import torch

    from . import plan_with_torch

    b, given = _read(folder)
    with np.load(folder / 'weights.npz') as file:
        weights = dict(file)
    threads = int(os.environ['OMP_NUM_THREADS'])
    if original:
        return plan_with_torch.original(original, b, weights, given, threads), 0.0
    device = 'cuda' if platform == 'gpu' else 'cpu'
    form = {'device': torch.device(device), 'dtype': getattr(torch, dtype)}
    return plan_with_torch.plain(b, weights, given, threads, at_once, **form), 0.0


def _measure(
    side: str,
    folder: pathlib.Path,
    rounds: int,
    at_once: int | None,
    original: str,
    platform: str,
    dtype: str,
) -> dict[str, Any]:
    import numpy as np

    b, _ = _read(folder)
    tried: dict[int | str, float] = {}
    best: tuple | None = None
    numbers = [at_once or 0]
    if side == 'torch' and at_once is None and not original:
        numbers = candidates(b, platform)
    for number in numbers:
        if side == 'jepa_jax':
            run, compiling = _ours(folder, number, platform, dtype)
        else:
            run, compiling = _theirs(folder, number, original, platform, dtype)
        mark = time.perf_counter()
        output = run()
        first = time.perf_counter() - mark
        if len(numbers) > 1:
            mark = time.perf_counter()
            run()
            tried[number or 'all'] = time.perf_counter() - mark
        if best is None or tried[number or 'all'] < tried[best[0] or 'all']:
            best = number, run, output, compiling, first
    number, run, output, compiling, first = best
    walls, cores = [], []
    for _ in range(rounds):
        wall, core = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        cores.append(time.process_time() - core)
    np.savez(folder / f'{side}.npz', **dict(zip(('actions', 'energies', 'elites'), output)))
    return {
        'seconds': statistics.median(walls),
        'core_seconds': statistics.median(cores),
        'first': first,
        'compiling': compiling,
        'at_once': number,
        'tried': tried,
    }


def run(side: str | None, folder: str | None, **options: Any) -> None:
    """The tool, or one side of it."""
    if side is None:
        bench(**options)
    elif side == 'write':
        print(json.dumps(_write(pathlib.Path(folder), options['dtype'])))
    else:
        names = ('rounds', 'at_once', 'original', 'platform', 'dtype')
        row = _measure(side, pathlib.Path(folder), **{name: options[name] for name in names})
        print(json.dumps(row))


def _options(parser: argparse.ArgumentParser) -> None:
    def count(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f'{text}: must be at least 1')
        return int(text)

    add = parser.add_argument
    add('--budget', default='reach', choices=BUDGETS, help='how much is searched')
    for name in ('samples', 'iterations', 'horizon', 'elites'):
        add(f'--{name}', type=count, metavar='N', help="in place of that (the budget's)")
    add('--at-once', type=int, metavar='N', help='samples that run together; 0: all (the fastest)')
    add('--platform', choices=('cpu', 'gpu'), default='cpu', help='what both sides run on')
    add('--dtype', choices=CLOSE, default='float32', help='of products')
    add(
        '--original',
        default='',
        metavar='DIR',
        help='a checkout of the original (a plain one)',
    )
    add('--rounds', type=count, default=5, metavar='N', help='timed plans (%(default)s)')
    add('--threads', type=count, default=2, metavar='N', help='and cores (%(default)s)')
    add('--json', metavar='FILE', dest='json_file', help='write the figures (no file)')
    add('--side', choices=('write', *SIDES), help=argparse.SUPPRESS)
    add('--folder', help=argparse.SUPPRESS)


def main() -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
