"""Trains what a config asks for: V-JEPA 2 on video, its action-conditioned predictor on a robot's
recordings, an objective of your own; or a study, several such runs with a report at the end.

    python -m jepa_jax.train --config=configs/tiny.py [--workdir=DIR] [--config.field=value ...]

The workdir gets config.json, metrics.jsonl, checkpoints/, pictures and, at the end, report.json.
The same command with the same workdir resumes a killed run where it was; a finished run is left as
it is.
"""

from __future__ import annotations

import argparse
import functools
import sys

from jepa_jax import cli, distributed, recipes
from jepa_jax.config import RunConfig, StudyConfig


def train(
    config: RunConfig,
    workdir: str,
    profile: bool,
    compilation_cache: bool,
    config_file: str,
    part_of: str = '',
) -> None:
    """Runs `config` in `workdir` to its last step, from wherever its checkpoints are; part_of: the
    workdir of the study that asks for it. (reference: vjepa2 §5)"""
    recipes.validate(config, workdir)  # before the imports that take seconds
    import dataclasses
    import time

    import jax

    from jepa_jax import ending, home, looks, loop, memory, optim, sharding, sinks, start
    from jepa_jax.checkpoint import Checkpoints
    from jepa_jax.data.stream import FailureLog
    from jepa_jax.evals.beside import Beside
    from jepa_jax.lookup import load
    from jepa_jax.metrics import Metrics
    from jepa_jax.origin import origin_of
    from jepa_jax.workdir import write_json

    start.logging_to_terminal()
    # first: processes that agree on something compile, and JAX looks for a cache only once
    start.compilation_cache(compilation_cache)
    begun = time.monotonic()
    with distributed.session(), home.of(workdir) as place:
        folder, recipe = place.folder, recipes.of(config)
        config = load(recipe.settle)(config, folder)
        if ending.finished(folder, config, place.name):
            return
        asked = dataclasses.asdict(config)
        config = memory.choose(config, jax.device_count(), start.smallest_memory())
        objective = load(recipe.build)(config)
        optimizer = optim.build(config.optim, objective)
        mesh = sharding.make_mesh(config.mesh.fsdp)
        with (
            jax.set_mesh(mesh),
            Checkpoints(
                folder / 'checkpoints',
                keep=config.checkpoints.keep,
                keep_every=config.checkpoints.keep_every,
                publish=place.publish,
                shared=place.shared,
            ) as checkpoints,
            distributed.watch(),
        ):
            origin = origin_of(config, checkpoints)
            prepared = load(recipe.prepare)(config, objective, origin)
            with load(recipe.stream)(config, prepared.data, **start.placement()) as stream:
                state, extra = start.initial_state(
                    objective, optimizer, config, mesh, origin, prepared.initial
                )
                if origin.same_run:
                    stream.check_resumed(extra)
                frozen = start.on_mesh(objective.frozen, prepared.frozen, mesh)
                checkpoints.keep_frozen(prepared.frozen | prepared.kept)
                failures = FailureLog(config.data.max_failure_share)
                if 'failures' in extra:
                    failures.restore(extra['failures'])
                if jax.process_index() == 0:
                    write_json(folder / 'config.json', asked)
                    for name, keep in prepared.folders.items():
                        keep(folder / name)
                data = start.describe(config, objective, mesh, stream, (state, frozen))
                steps = int(jax.device_get(state.step)), config.optim.steps
                evals = Beside(
                    load(recipe.evals)(config), objective, mesh, folder, steps=steps[1],
                    part=config.optim.batch // config.optim.accumulate,
                )  # fmt: skip
                evals.begin(steps[0])
                seen = looks.Looks(
                    objective, mesh, folder, steps=steps[1], count=config.logging.pictures,
                    examples=stream.examples,
                )  # fmt: skip
                seen.cut_back(steps[0])
                with Metrics(
                    folder, start_step=steps[0], total_steps=steps[1],
                    sinks=sinks.opened(config, folder),
                ) as metrics:  # fmt: skip
                    state, clock = loop.fit(
                        objective,
                        optimizer,
                        state,
                        frozen,
                        stream,
                        config,
                        known={'config': asked, 'config_file': config_file}
                        | ({'part_of': part_of} if part_of else {}),
                        mesh=mesh,
                        workdir=folder,
                        checkpoints=checkpoints,
                        metrics=metrics,
                        failures=failures,
                        workload=start.workload(config, stream),
                        evals=evals,
                        looks=seen,
                        profile=folder / 'profile' if profile else None,
                    )
                more = load(recipe.at_end)(config, objective, state, frozen, prepared.data, folder)
        ending.write(
            folder, config, objective, state, frozen, evals, clock, begun, failures, data, more,
            name=place.name, part_of=part_of,
        )  # fmt: skip


def study(config: StudyConfig, workdir: str, **options) -> None:
    """Runs a study: its runs one after the other, then its report."""
    from jepa_jax import start, studies

    start.logging_to_terminal()
    studies.run(config, workdir, functools.partial(train, part_of=workdir, **options))


def run(config: RunConfig | StudyConfig, workdir: str, **options) -> None:
    """One run, or the several of a study; a SIGTERM ends it to be queued again."""
    with distributed.termination():
        {'objective': train, 'study': study}[config.table](config, workdir, **options)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--profile', action='store_true', help='trace a few steps into WORKDIR/profile'
    )
    parser.add_argument(
        '--no-compilation-cache', dest='compilation_cache', action='store_false',
        help='compile every program again',
    )  # fmt: skip


def main() -> int:
    tables = 'objective', 'study'
    return distributed.leave(cli.run(run, doc=__doc__, tables=tables, options=_options))


if __name__ == '__main__':
    sys.exit(main())
