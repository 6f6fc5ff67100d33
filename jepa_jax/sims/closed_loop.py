"""The whole way in one resumable run: play in the simulator, pretrain an encoder on the recordings,
keep its features, train the action-conditioned predictor, plan with it in the simulator.

The workdir is that of the predictor's run, with `recordings/`, `encoder/` (a run of its own) and
`features/` below it. What is there already is not made again, whatever died.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jepa_jax.config import DataList, RobotTrainConfig, SimConfig, TrainConfig, validate
from jepa_jax.metrics import read
from jepa_jax.planning import robot
from jepa_jax.planning.cem import CEM, end_effector
from jepa_jax.planning.world_model import ACWorldModel, Cost
from jepa_jax.report import FILE
from jepa_jax.sims import collect, evaluate
from jepa_jax.sims.panda import SimError
from jepa_jax.sims.tasks import TASKS
from jepa_jax.workdir import lock, write_json

log = logging.getLogger(__name__)

SEED = 10_000  # of the first episode that is measured: scenes that no recording began with


def run(config: SimConfig, workdir: str | Path, train: Callable[[TrainConfig, str], None]) -> None:
    """Runs `config` in `workdir`; train: jepa_jax.train.train.

    Raises:
      SimError, ConfigError: settings that cannot work.
    """
    validate(config)
    if wrong := [task for task in _tasks(config) if task not in TASKS]:
        raise SimError(f"evaluation.tasks '{wrong[0]}': allowed are {', '.join(TASKS)}")
    collect.check(config.collection)
    pretrain, posttrain = stages(config, Path(workdir).absolute())
    for stage in (pretrain, posttrain):  # all before the first one takes its time
        validate(stage)
    folder = Path(posttrain.robot.path)
    with lock(folder):
        collect.collect(folder, config.collection, config.workers)
    train(pretrain, posttrain.encoder_from)
    train(posttrain, str(workdir))
    with lock(workdir) as path:
        _measure(config, path)


def stages(config: SimConfig, folder: Path) -> tuple[TrainConfig, RobotTrainConfig]:
    """The two trainings, with the paths and sizes that follow from each other."""
    recordings, size = folder / 'recordings', config.collection.image_size
    first, second = config.pretrain, config.posttrain
    pretrain = dataclasses.replace(
        first,
        name=f'{config.name}-encoder',
        seed=config.seed,
        data=dataclasses.replace(
            first.data, crop=size, lists=[DataList(kind='videos', path=str(recordings))]
        ),
    )
    posttrain = dataclasses.replace(
        second,
        name=config.name,
        seed=config.seed,
        compute_dtype=first.compute_dtype,
        encoder=first.encoder,
        encoder_from=str(folder / 'encoder'),
        features=str(folder / 'features'),
        robot=dataclasses.replace(
            second.robot, kind='npz', path=str(recordings), robot='panda-sim', camera='outside'
        ),
        data=dataclasses.replace(second.data, crop=size),
    )
    return pretrain, posttrain


def _tasks(config: SimConfig) -> list[str]:
    return [name.strip() for name in config.evaluation.tasks.split(',')]


def _measure(config: SimConfig, folder: Path) -> None:
    """Adds `tasks` and `cost` to report.json, a task at a time, and draws the episodes."""
    path, settings = folder / FILE, config.evaluation
    report = json.loads(path.read_text())
    left = [task for task in _tasks(config) if task not in report['tasks']]
    if not left and 'cost' in report:
        return
    size = config.collection.image_size
    own = robot.load(str(folder), size=(size, size))
    for line in own.about:
        log.info('%s', line)

    def encode(frames):
        return own.encode(frames)

    cost = Cost(exponent=settings.exponent)
    if 'cost' not in report:
        measured = [r for r in read(folder) if 'health/shuffled_actions' in r]
        report['cost'] = {
            **evaluate.judge_cost(
                encode, cost, range(SEED, SEED + settings.episodes), image_size=size
            ),
            'shuffled_over_true_actions': measured[-1]['health/shuffled_actions'],
        }
        report['sentences'].append(_cost_words(report['cost']))
        log.info('%s', report['sentences'][-1])
        write_json(path, report)
    for task in left:
        results = _play(config, task, own.world_model, encode, cost)
        report['tasks'][task] = evaluate.row(results, 'planner')
        report['sentences'].append(evaluate.verdict(task, report['tasks'][task]))
        log.info('%s', report['sentences'][-1])
        evaluate.plot_episodes(
            results['planner'], folder / f'episodes_{task}.png', f'{config.name}, {task}'
        )
        write_json(path, report)


def _play(
    config: SimConfig, task: str, world: ACWorldModel, encode: evaluate.Encode, cost: Cost
) -> dict[str, evaluate.Episodes]:
    """Episodes of one task by the planner and by what it is compared with."""
    settings, key = config.evaluation, jax.random.key(config.seed)
    space = end_effector(settings.max_step)
    planner = CEM(
        space,
        cost,
        horizon=settings.horizon,
        samples=settings.samples,
        iterations=settings.iterations,
        elites=settings.elites,
    )
    untrained = dataclasses.replace(world, params=jax.jit(world.net.init)(jax.random.key(1)))
    together = functools.partial(evaluate.plan_with, episodes_at_once=settings.at_once)
    policies: dict[str, evaluate.Policy] = {
        'planner': together(planner, world, encode),
        'untrained': together(planner, untrained, encode),
        'oracle': evaluate.follow_script,
        'random': evaluate.act_at_random(space),
        'no_op': evaluate.do_nothing,
    }
    counts = dict.fromkeys(policies, settings.episodes)
    if settings.simulator_episodes:
        simulated = evaluate.plan_in_simulator
        policies['simulator_learned_cost'] = simulated(planner, encode)
        policies['simulator_pixel_cost'] = simulated(planner, evaluate.pixels)
        for name in ('simulator_learned_cost', 'simulator_pixel_cost'):
            counts[name] = settings.simulator_episodes
    return {
        name: evaluate.measure(
            policy,
            task,
            range(SEED, SEED + counts[name]),
            image_size=config.collection.image_size,
            key=key,
            title=f'{task}, {name}',
        )
        for name, policy in policies.items()
    }


def _cost_words(cost: Mapping[str, Any]) -> str:
    return (
        f'the distance of features falls in {100 * cost["falls"]:.0f} % of steps towards the goal; '
        f'rank correlation with the distance in metres {cost["rank_correlation"]:.2f}; with '
        f"another clip's actions the predictor's error is "
        f'{cost["shuffled_over_true_actions"]:.2f} times as large'
    )
