"""How fast the program is beside PyTorch, at the same work, in the same run.

    python -m tools.bench_vs_torch                             all of it, ViT-S to ViT-L: an hour
    python -m tools.bench_vs_torch step plan --original DIR    beside the original, too
    python -m tools.bench_vs_torch --small                     tiny sizes: does it work here?

What is compared: `step` (a training step: both encoders, predictor, backward, AdamW, moving
average), `features` (against transformers), `data` (clips from disk, against decord, TorchCodec),
`plan` (an action, by the cross-entropy method), `probe` (training attentive heads on features),
`convert` (a training checkpoint to a Hugging Face folder). Each side has a process of its own, the
same weights, clips, masks and noise, the same cores, and takes its turn in every round; losses,
features, elites and files must agree, else the exit status is 1.

PyTorch's side is plain code of this repository (tools/torch_nets.py, tools/plan_with_torch.py) with
fused attention and a fused AdamW, eager, compiled, and with activation checkpointing; with
--original the networks, wrappers and planner of a checkout of facebookresearch/vjepa2, which stays
where it is. Their fastest is what ours is compared with. In bfloat16 theirs runs under autocast.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

from jepa_jax import cli
from jepa_jax.config.parts import REMAT
from jepa_jax.workdir import room_for

from . import versus

PACKAGE = __spec__.name.rpartition('.')[0]  # tools, or where it is installed
COMPARISONS = {
    'step': f'{PACKAGE}.versus_tasks:STEP',
    'features': f'{PACKAGE}.bench_embed:FEATURES',
    'plan': f'{PACKAGE}.bench_plan:PLAN',
    'probe': f'{PACKAGE}.versus_tasks:PROBE',
    'convert': f'{PACKAGE}.versus_tasks:CONVERT',
}
DATA = 'data'  # whose sides are no processes: tools.bench_data

# what is measured: the options of each comparison beside its defaults
FULL: dict[str, list[dict[str, Any]]] = {
    'step': [{}, {'config': 'configs/tiny.py', 'crop': 0, 'frames': 0, 'batch': 0}],
    'features': [{'frames': 16}, {'frames': 64}],
    'plan': [
        {'budget': 'reach'},
        {'budget': 'reach', 'samples': 128, 'iterations': 5, 'horizon': 2},
        {'budget': 'default', 'samples': 40, 'iterations': 1},
    ],
    'probe': [{}],
    'convert': [{}],
    DATA: [{}],
}
ON_GPU: dict[str, list[dict[str, Any]]] = {
    'step': [{'config': 'configs/vitl.py', 'crop': 0, 'frames': 0, 'batch': 24}],
    'features': [{'clips': 8}],
    'plan': [{'budget': 'published'}],
}
SMALL: dict[str, list[dict[str, Any]]] = {
    'step': [{'config': 'configs/tiny.py:smoke', 'crop': 0, 'frames': 4, 'batch': 2}],
    'features': [{'size': 'tiny', 'frames': 4, 'crop': 64}],
    'plan': [{'budget': 'reach', 'samples': 8, 'iterations': 2, 'elites': 2}],
    'probe': [{'width': 48, 'tokens': 16, 'pooler_heads': 2, 'depth': 2, 'clips': 16, 'heads': 2}],
    'convert': [{'size': 'tiny'}],
    DATA: [{'videos': 2, 'size': (64, 48), 'workers': [1], 'batch': 2, 'steps': 2, 'frames': 4,
            'crop': 96}],
}  # fmt: skip


def bench(
    tasks: list[str], small: bool, original: str, rounds: int, threads: int, platform: str,
    dtype: str, remat: str, sides: list[str] | None, patience: float | None,
    json_file: str | None,
) -> None:  # fmt: skip
    """Runs comparisons one after the other; the file is written anew after each.

    Raises:
      BenchError: sides disagree, or one that must run did not.
    """
    if json_file:
        room_for('--json', json_file)
    from . import bench_data

    tables = {name: versus.load(COMPARISONS[name]).peers for name in tasks or FULL if name != DATA}
    every = dict.fromkeys(peer for peers in tables.values() for peer in peers)
    versus.check_sides(sides or (), every, bool(original))
    results: dict[str, Any] = {'platform': platform, 'threads': threads, 'rounds': rounds}
    for name in tasks or FULL:
        rows = results[name] = []
        sizes = SMALL if small else FULL | (ON_GPU if platform == 'gpu' else {})
        for options in sizes[name]:
            if name == DATA:
                rows.append(bench_data.bench(**options, rounds=rounds))
            else:
                here = sides and [side for side in sides if side in tables[name]]
                settings = {**options, 'dtype': dtype, 'original': original, 'remat': remat}
                rows.append(versus.measure(
                    COMPARISONS[name], settings, peers=here, rounds=rounds, threads=threads,
                    platform=platform, patience=patience,
                ))  # fmt: skip
            if json_file:
                pathlib.Path(json_file).write_text(json.dumps(results, indent=2) + '\n')
            if name != DATA:
                versus.judge(rows[-1])
    if set(tasks or FULL) - {DATA}:
        summary(results)


def summary(results: dict[str, Any]) -> None:
    """A line a comparison, for the docs."""
    print('\n| what | ours, s | their fastest, s | ours / theirs | by core seconds | MFU |')
    print('|---|---|---|---|---|---|')
    for rows in results.values():
        for r in rows if isinstance(rows, list) else []:
            if 'best' in r:
                ours, theirs = r[versus.OURS], r[r['best']]
                mfu = f'{ours["mfu"]:.0%}' if 'mfu' in ours else ''
                print(
                    f'| {r["task"]}: {r["words"]} | {ours["seconds"]:.4g} | '
                    f'{theirs["seconds"]:.4g} ({r["best"]}) | {r["time_ratio"]:.2f} | '
                    f'{r["core_time_ratio"]:.2f} | {mfu} |'
                )


def common(parser: argparse.ArgumentParser, rounds: int = 5) -> None:
    """Flags that all comparisons have."""
    add = parser.add_argument
    add('--platform', choices=('cpu', 'gpu'), default='cpu', help='what all sides run on')
    add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='of products')
    add('--rounds', type=cli.count, default=rounds, metavar='N', help='timed runs (%(default)s)')
    add('--threads', type=cli.count, default=2, metavar='N', help='and cores (%(default)s)')
    add('--json', metavar='FILE', dest='json_file', help='write the figures (no file)')


def _options(parser: argparse.ArgumentParser) -> None:
    def task(text: str) -> str:
        if text not in FULL:
            raise argparse.ArgumentTypeError(f"'{text}': allowed are {', '.join(FULL)}")
        return text

    add = parser.add_argument
    add('tasks', nargs='*', type=task, metavar='WHAT', help=f'{", ".join(FULL)} (all)')
    add('--small', action='store_true', help='tiny sizes, to see whether it works')
    add('--original', default='', metavar='DIR', help='a checkout of the original (none)')
    add('--remat', choices=REMAT, default='none', help='of our step (%(default)s)')
    add('--patience', type=float, metavar='SECONDS',
        help='for a side of theirs to get ready, compiling included (any)')  # fmt: skip
    add('--sides', nargs='+', metavar='SIDE', help="theirs, such as 'torch, compiled' (all)")
    common(parser)


def main() -> int:
    return cli.run(bench, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
