"""Recordings of the simulated arm at play, for `train`: a folder of NAME.mp4 and NAME.npz, the
layout `npz` of jepa_jax/data/robot/.

An episode is one of three kinds. `explore`: the tool drifts about, the gripper opens and closes at
random. `reach`: it goes to one place after another, half of them at the cube. `pick`: it picks the
cube up, carries it and puts it down. Every episode has noise of its own strength on its actions,
so that the model also sees what misses. A model that is to plan from any state needs the first two,
one that is to grasp needs the third. (reference: world_models §5.1)

    python -m jepa_jax.sims.collect --out DIR --episodes 400

An episode is a function of (settings, number) alone: the same command started again resumes
where it was interrupted, and the files are the same for any number of processes.
"""

from __future__ import annotations

import argparse
import sys

from jepa_jax import cli
from jepa_jax.config import CollectionConfig
from jepa_jax.errors import SimError


def run(out: str, workers: int, **settings) -> None:
    """Makes the episodes that are not there."""
    from jepa_jax.sims.recordings import collect  # mujoco, of the extra [sim]

    if workers < 0:
        raise SimError(f'--workers {workers}: must not be negative')
    made = collect(out, CollectionConfig(**settings), workers)
    print(f'{out}: {settings["episodes"]} episodes, {made} of them new')


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the recordings')
    parser.add_argument('--workers', type=int, default=0, metavar='N', help='processes; 0: this')
    cli.add_fields(parser, CollectionConfig, dash='-')


def main() -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
