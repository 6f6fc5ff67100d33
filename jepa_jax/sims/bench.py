"""The models of a closed loop in the simulator: judged, each part apart, and made to play."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jepa_jax.config import SimConfig, SimEvaluationConfig
from jepa_jax.nets import ONCE
from jepa_jax.planning import model
from jepa_jax.planning.cem import CEM, end_effector
from jepa_jax.planning.world_model import ACWorldModel, Cost
from jepa_jax.sims import evaluate

RANDOM = 'random_encoder'  # folder of the predictor on one, and its name in reports
# the simulator in place of the predictor, with the distance of features and with that of pixels
SIMULATED = 'simulator_learned_cost', 'simulator_pixel_cost'
SEED = 10_000  # of the first episode that is measured: scenes that no recording began with


def episodes_of(settings: SimEvaluationConfig) -> dict[str, int]:
    """How many episodes of a task each policy plays, by its name."""
    compared = settings.compared or settings.episodes
    counts = {'planner': settings.episodes, 'untrained': compared}
    if settings.random_encoder:
        counts[RANDOM] = compared
    if settings.simulator_episodes:
        counts |= dict.fromkeys(SIMULATED, settings.simulator_episodes)
    return counts | dict.fromkeys(('oracle', 'random', 'no_op'), settings.episodes)


class Bench:
    """The trained model of a run, and what it is compared with."""

    def __init__(self, config: SimConfig, folder: Path):
        """folder: of the predictor's run.

        Raises:
          PlanError, ConvertError, CheckpointError: its model cannot be had.
        """
        self._config, self._size = config, config.collection.image_size
        size = (self._size, self._size)
        self._own = model.load(str(folder), size=size)
        self._other = None
        if config.evaluation.random_encoder:
            self._other = model.load(str(folder / RANDOM), size=size)
        self._cost = Cost(exponent=config.evaluation.exponent)
        self.about = self._own.about

    def judge(self, folder: Path) -> dict[str, Any]:
        """Cost and dynamics, each apart from the other and from the planner, as report.json holds
        them; energy.png goes into the folder."""
        config, cost, own, other = self._config, self._cost, self._own, self._other
        seeds = range(SEED, SEED + config.evaluation.judged)
        learned = evaluate.in_parts(own.encode)
        encoders = {'learned features': learned, 'pixels': evaluate.pixels}
        if other:
            encoders['random features'] = evaluate.in_parts(other.encode)
        judged = evaluate.judge_cost(encoders, cost, seeds, image_size=self._size)
        depths = evaluate.judge_depth(encoders, cost, seeds, image_size=self._size)
        ways = {name: way for name, (_, way) in judged.items()}
        rows = {
            name: row | {'depth_over_across': depths[name]} for name, (row, _) in judged.items()
        }
        title = f'{config.name}: cost on the way to the goal'
        evaluate.plot_energy(ways, folder / 'energy.png', title)
        worlds = {'planner': own.world_model, 'untrained': _untrained(own.world_model)}
        pairs = [(worlds, learned)]
        if other:
            pairs.append(({RANDOM: other.world_model}, encoders['random features']))
        dynamics = {}
        for models, encode in pairs:
            scenes = models, encode, cost, seeds
            moving = evaluate.judge_dynamics(*scenes, image_size=self._size)
            gripper = evaluate.judge_gripper(*scenes, image_size=self._size)
            dynamics |= {name: moving[name] | gripper[name] for name in models}
        return {
            'cost': {
                **rows['learned features'],
                'energy_at_end': float(ways['learned features'][:, -1].mean()),
                'others': {name: row for name, row in rows.items() if name != 'learned features'},
            },
            'dynamics': dynamics,
        }

    def play(self, task: str, names: Sequence[str]) -> dict[str, evaluate.Episodes]:
        """Episodes of one task by the policies named."""
        settings, key = self._config.evaluation, jax.random.key(self._config.seed)
        own, other = self._own, self._other
        space = end_effector(settings.max_step)
        planner = CEM(
            space,
            self._cost,
            horizon=settings.horizon,
            samples=settings.samples,
            iterations=settings.iterations,
            elites=settings.elites,
        )
        together = functools.partial(evaluate.plan_with, episodes_at_once=settings.at_once)
        learned = evaluate.in_parts(own.encode)
        looking: dict[str, evaluate.Policy] = {
            'planner': together(planner, own.world_model, learned),
            'untrained': together(planner, _untrained(own.world_model), learned),
        }
        if other:
            looking[RANDOM] = together(planner, other.world_model, evaluate.in_parts(other.encode))
        for name, encode in zip(SIMULATED, (own.encode, evaluate.pixels)):
            looking[name] = evaluate.plan_in_simulator(planner, encode)
        blind: dict[str, evaluate.Policy] = {
            'oracle': evaluate.follow_script,
            'random': evaluate.act_at_random(space),
            'no_op': evaluate.do_nothing,
        }
        policies, counts = looking | blind, episodes_of(settings)
        return {
            name: evaluate.measure(
                policies[name],
                task,
                range(SEED, SEED + counts[name]),
                image_size=self._size,
                key=key,
                title=f'{task}, {name}',
                pictures=name in looking,
            )
            for name in names
        }


def _untrained(world: ACWorldModel) -> ACWorldModel:
    init = jax.jit(world.net.init, compiler_options=ONCE)
    return dataclasses.replace(world, params=init(jax.random.key(1)))
