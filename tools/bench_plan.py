"""How long a planned action takes, beside PyTorch on the same weights and the same noise.

    python -m tools.bench_plan [--budget reach|default|published] [--samples N --iterations N ...]

The part `plan` of tools.bench_vs_torch with flags for its sizes: the cross-entropy method on the
action-conditioned predictor. PyTorch is a plain predictor and planner (tools/plan_with_torch.py),
and with --original also the released code in a checkout. All are given standard normal numbers from
the same file, and must find the same energies, to 1e-4 of them, and the same elites in every
iteration, else the exit status is 1. How many samples run together decides how much of the work
stays in the caches: ours has a rule for it, PyTorch's side tries a few numbers and keeps its
fastest, unless --at-once says.

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
import pathlib
import sys
import time
from typing import Any

from jepa_jax import cli
from jepa_jax.workdir import room_for

from . import versus
from .bench_vs_torch import common
from .versus import Outputs, Task
from .versus_tasks import device_of, from_torch, platform_is, synchronised, to_torch


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
CHANGES = ('samples', 'iterations', 'horizon', 'elites')


def chosen(o: dict[str, Any]) -> Budget:
    """A budget, with what is said in place of it."""
    b = dataclasses.replace(BUDGETS[o['budget']], **{k: o[k] for k in CHANGES if o.get(k)})
    if b.elites > b.samples:
        b = dataclasses.replace(b, elites=max(2, b.samples // 4))
    return b


def compare(ours: Outputs, theirs: Outputs) -> dict[str, float]:
    """How far apart the sides' energies [J, S], elites [J, K] and actions [H, 7] are; others: of
    the iterations, those with other elites."""
    import numpy as np

    apart = np.abs(ours['energies'] - theirs['energies']) / np.abs(theirs['energies'])
    pairs = zip(ours['elites'].tolist(), theirs['elites'].tolist())
    return {
        'energies': float(apart.max()),
        'spread': float((theirs['energies'].std(1) / theirs['energies'].mean(1)).min()),
        'others': sum(set(a) != set(b) for a, b in pairs),
        'actions': float(np.abs(ours['actions'] - theirs['actions']).max()),
    }


# In the processes of their own


def _inputs(folder: pathlib.Path, name: str) -> dict[str, Any]:
    import numpy as np

    with np.load(folder / f'{name}.npz') as file:
        return dict(file)


def _predictor(b: Budget, dtype: str = 'float32'):
    import jax.numpy as jnp

    from jepa_jax.models.ac_predictor import ACPredictorConfig
    from jepa_jax.weights.parts import net

    config = ACPredictorConfig(
        b.encoder_width, width=b.width, depth=b.depth, heads=b.heads, grid=(b.side, b.side),
        dtype=jnp.dtype(dtype),
    )  # fmt: skip
    return net('ac_predictor', config)


def _write(folder: pathlib.Path, **o: Any) -> dict[str, Any]:
    """Weights by the names of the released files, inputs and noise."""
    import jax
    import numpy as np

    from jepa_jax import flops

    b, full = chosen(o), BUDGETS[o['budget']]
    net = _predictor(b)
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
    np.savez(folder / 'weights.npz', **to_torch(net, params))

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
    words = (
        f'{o["budget"]}: {b.depth} blocks of width {b.width}, {b.side**2 + 2} tokens a frame; '
        f'{b.samples} samples x {b.iterations} iterations, horizon {b.horizon}, {b.elites} elites; '
        f'{o["dtype"]}'
    )
    share = b.samples * b.iterations * b.horizon / (full.samples * full.iterations * full.horizon)
    if share != 1:
        words += f'; {share:.4g} OF THE PREDICTIONS OF THE BUDGET'
    once = flops.ac_rollout(net.config, 1, b.horizon)
    return dataclasses.asdict(b) | {
        'words': words, 'share_of_budget': share, 'flops': once * b.samples * b.iterations,
    }  # fmt: skip


def candidates(b: Budget, platform: str) -> list[int]:
    """How many samples PyTorch tries running together; 0: all."""
    if platform == 'gpu':  # no cache to stay within
        return [0, 100] if b.samples > 100 else [0]
    tokens = b.side**2 + 2
    return sorted({n for n in (1, 2, 4, 8, 16, 40) if b.samples % n == 0 and n < b.samples
                   and 250 <= n * tokens <= 5000} | {0})  # fmt: skip


def _ours(folder: pathlib.Path, **o: Any):
    import jax
    import jax.numpy as jnp

    from jepa_jax.planning.cem import CEM, end_effector
    from jepa_jax.planning.world_model import ACWorldModel, Context, Goal

    platform_is(o['platform'])
    b, inputs = chosen(o), _inputs(folder, 'inputs')
    net = _predictor(b, o['dtype'])
    params = jax.tree.map(jnp.asarray, from_torch(net, _inputs(folder, 'weights')))
    model = ACWorldModel(params, net, net.config, b.horizon, at_once=o['at_once'] or 0)
    planner = CEM(
        end_effector(b.max_step), horizon=b.horizon, samples=b.samples, iterations=b.iterations,
        elites=b.elites,
    )  # fmt: skip
    context = Context(jnp.asarray(inputs['frame'])[None], jnp.asarray(inputs['state'])[None])
    goal, noise = Goal(jnp.asarray(inputs['goal'])), jnp.asarray(inputs['noise'])
    key = jax.random.key(0)
    mark = time.perf_counter()
    solve = jax.jit(planner.solve).lower(model, context, goal, key, noise=noise).compile()
    seconds = time.perf_counter() - mark

    def run():
        actions, trace = jax.block_until_ready(solve(model, context, goal, key, noise=noise))
        return {'actions': actions, 'energies': trace['costs'], 'elites': trace['elites']}

    run.told = {'compiling': seconds}
    return run


def _theirs(folder: pathlib.Path, theirs: bool = False, **o: Any):
    import torch

    from . import plan_with_torch

    b, inputs, weights = chosen(o), _inputs(folder, 'inputs'), _inputs(folder, 'weights')
    device = device_of(o['platform'], o['threads'])
    if theirs:
        return plan_with_torch.original(o['original'], b, weights, inputs)
    numbers = candidates(b, o['platform']) if o['at_once'] is None else [o['at_once']]
    dtype, tried = getattr(torch, o['dtype']), {}
    for number in numbers:
        run = synchronised(
            plan_with_torch.plain(b, weights, inputs, number, device, dtype), o['platform']
        )
        if len(numbers) > 1:
            run()
            mark = time.perf_counter()
            run()
            tried[number] = time.perf_counter() - mark, run
    if tried:
        _, run = tried[min(tried, key=lambda number: tried[number][0])]
    run.told = {'tried': {number or 'all': seconds for number, (seconds, _) in tried.items()}}
    return run


PLAN = Task(
    _write,
    _ours,
    {'torch': _theirs, 'original': lambda folder, **o: _theirs(folder, theirs=True, **o)},
    {'float32': {'energies': 1e-4, 'others': 0}, 'bfloat16': {'energies': 2e-2}},
    {'budget': 'reach', **dict.fromkeys(CHANGES), 'at_once': None, 'original': '',
     'dtype': 'float32'},
    compare,
)  # fmt: skip


def bench(
    rounds: int, threads: int, platform: str, sides: list[str] | None, json_file: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Runs both sides, prints what they took, and compares their results.

    Raises:
      BenchError: a side failed, or they disagree.
    """
    if json_file:
        room_for('--json', json_file)
    result = versus.measure(
        f'{__spec__.name}:PLAN', options, peers=sides, rounds=rounds, threads=threads,
        platform=platform,
    )  # fmt: skip
    if json_file:
        pathlib.Path(json_file).write_text(json.dumps(result, indent=2) + '\n')
    versus.judge(result)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--budget', default='reach', choices=BUDGETS, help='how much is searched')
    for name in CHANGES:
        add(f'--{name}', type=cli.count, metavar='N', help="in place of that (the budget's)")
    add('--at-once', type=cli.at_least(0), metavar='N',
        help='samples that run together; 0: all (the fastest)')  # fmt: skip
    add('--original', default='', metavar='DIR', help='a checkout of the original (none)')
    add('--sides', nargs='+', metavar='SIDE', help='theirs: torch, original (all)')
    common(parser)


def main() -> int:
    return cli.run(bench, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
