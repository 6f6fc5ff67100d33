"""Pretrains V-JEPA 2 on video, or post-trains its action-conditioned predictor on a robot's data;
or does both on a simulated robot, and plans with it.

    python -m jepa_jax.train --config=configs/tiny.py [--workdir=DIR] [--config.field=value ...]

The workdir gets config.json, metrics.jsonl, checkpoints/, pictures and, at the end, report.json.
The same command with the same workdir goes on where a killed run was; a finished run is left as it
is.
"""

from __future__ import annotations

import argparse
import functools
import sys

from jepa_jax import cli, distributed
from jepa_jax.config import MaskedVideoConfig, SimConfig


def train(config: MaskedVideoConfig, workdir: str, profile: bool, compilation_cache: bool) -> None:
    """Runs `config` in `workdir` to its last step, from wherever its checkpoints are. (reference:
    vjepa2 §5)"""
    from jepa_jax.recipes import validate

    validate(config)  # before the imports that take seconds
    import dataclasses
    import pathlib
    import time

    import jax

    from jepa_jax import loop, report, sharding, start, tasks
    from jepa_jax.checkpoint import Checkpoints
    from jepa_jax.data.stream import FailureLog
    from jepa_jax.metrics import Metrics
    from jepa_jax.workdir import lock, write_json

    start.logging_to_terminal()
    # first: processes that agree on something compile, and JAX looks for a cache only once
    start.compilation_cache(compilation_cache)
    begun = time.monotonic()
    folder = pathlib.Path(workdir).absolute()
    with distributed.session(), distributed.first(lock(folder)):
        if report.finished(folder, config):
            return
        mesh = sharding.make_mesh(config.mesh.fsdp)
        task = tasks.of(config)
        objective = task.objective(config)
        prepared = task.prepare(config, objective)
        with (
            jax.set_mesh(mesh),
            # refuses bad lists before the folder of checkpoints is made
            task.pipeline(config, prepared) as pipeline,
            Checkpoints(
                folder / 'checkpoints',
                keep=config.checkpoints.keep,
                keep_every=config.checkpoints.keep_every,
            ) as checkpoints,
            distributed.watch(),
        ):
            state, extra = start.initial_state(objective, config, mesh, checkpoints)
            failures = FailureLog(config.data.max_failure_share)
            if 'failures' in extra:
                failures.restore(extra['failures'])
            if jax.process_index() == 0:
                write_json(folder / 'config.json', dataclasses.asdict(config))
            start.describe(config, objective, mesh, pipeline, state)
            with Metrics(
                folder, start_step=int(jax.device_get(state.step)), total_steps=config.optim.steps
            ) as metrics:
                state, clock = loop.fit(
                    objective,
                    state,
                    pipeline,
                    config,
                    mesh=mesh,
                    workdir=folder,
                    checkpoints=checkpoints,
                    metrics=metrics,
                    failures=failures,
                    cost=task.cost(config, pipeline),
                    profile=folder / 'profile' if profile else None,
                )
        report.write(folder, config, objective, state, clock, begun)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--profile', action='store_true', help='trace a few steps into WORKDIR/profile'
    )
    parser.add_argument(
        '--no-compilation-cache', dest='compilation_cache', action='store_false',
        help='compile every program again',
    )  # fmt: skip


def run(config: MaskedVideoConfig | SimConfig, workdir: str, **options: bool) -> None:
    """One training, or the several that make a closed loop."""
    if not isinstance(config, SimConfig):
        return train(config, workdir, **options)
    from jepa_jax.sims import closed_loop

    return closed_loop.run(config, workdir, functools.partial(train, **options))


def main() -> int:
    kinds = MaskedVideoConfig, SimConfig
    return distributed.leave(cli.run(run, doc=__doc__, config=kinds, options=_options))


if __name__ == '__main__':
    sys.exit(main())
