"""The models of a closed loop in the simulator: judged, each part apart, and made to play."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jepa_jax.config import SimConfig, SimEvaluationConfig
from jepa_jax.data.robot import actions_between
from jepa_jax.data.trajectories import Trajectories
from jepa_jax.errors import SimError
from jepa_jax.evals import horizon
from jepa_jax.nets import ONCE
from jepa_jax.objectives.action_conditioned import ACLoss, ActionConditioned
from jepa_jax.planning import model
from jepa_jax.planning.cem import PLANNERS, end_effector, solver
from jepa_jax.planning.world_model import ACWorldModel, Cost
from jepa_jax.sharding import make_mesh
from jepa_jax.sims import evaluate
from jepa_jax.sims.panda import RATE
from jepa_jax.sims.variation import SCENES, Pair

RANDOM = 'random_encoder'  # folder of the predictor on one, and its name in reports
PIXELS = 'pixel_encoder'  # likewise, of the predictor that is shown pixels
# the planner, when goals tell how far the gripper is closed
TOLD = 'gripper_told'
# the simulator in place of the predictor, with the distance of features and with that of pixels
SIMULATED = 'simulator_learned_cost', 'simulator_pixel_cost'


def episodes_of(settings: SimEvaluationConfig) -> dict[str, int]:
    """How many episodes of a task each policy plays, by its name."""
    compared = settings.compared or settings.episodes
    counts = {'planner': settings.episodes, 'untrained': settings.untrained or compared}
    if settings.random_encoder:
        counts[RANDOM] = compared
    if settings.pixel_encoder:
        counts[PIXELS] = compared
    if settings.gripper_weight:
        counts[TOLD] = settings.episodes
    counts |= dict.fromkeys(others_of(settings), compared)
    if settings.simulator_episodes:
        counts |= dict.fromkeys(SIMULATED, settings.simulator_episodes)
    return counts | dict.fromkeys(('oracle', 'random', 'no_op'), settings.episodes)


def others_of(settings: SimEvaluationConfig) -> dict[str, tuple[str, int, int]]:
    """Other planners that are asked for, as they are written -> name, samples, iterations.

    Raises:
      SimError: what is written is none.
    """
    others = {}
    for words in filter(None, (word.strip() for word in settings.planners.split(','))):
        match = re.fullmatch(r'(\w+):([1-9]\d{0,6})x([1-9]\d{0,6})', words)
        if not match or match[1] not in PLANNERS:
            raise SimError(
                f"evaluation.planners '{words}': must be NAME:SAMPLESxITERATIONS, NAME one of "
                f'{", ".join(PLANNERS)}'
            )
        others[words] = match[1], int(match[2]), int(match[3])
    return others


def planners_of(settings: SimEvaluationConfig) -> dict[str, Any]:
    """The `planner`, and others that are asked for, as they are written.

    Raises:
      SimError: what is written is none, or has a setting that cannot be.
    """
    asked = {'planner': ('cem', settings.samples, settings.iterations), **others_of(settings)}
    planners = {}
    for words, (name, samples, iterations) in asked.items():
        own = words == 'planner'
        try:
            planners[words] = solver(
                name, end_effector(settings.max_step), Cost(settings.exponent), samples=samples,
                iterations=iterations, horizon=settings.horizon,
                elites=settings.elites if own else max(2, samples // 8),
            )  # fmt: skip
        except ValueError as error:
            where = 'evaluation.' if own else f"evaluation.planners '{words}': "
            raise SimError(f'{where}{error}') from error
    return planners


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
        asked = {RANDOM: config.evaluation.random_encoder, PIXELS: config.evaluation.pixel_encoder}
        self._others = {
            name: model.load(str(folder / name), size=size) for name, is_asked in asked.items()
            if is_asked
        }  # fmt: skip
        self._cost = Cost(exponent=config.evaluation.exponent)
        self.about = self._own.about

    def judge(self, folder: Path) -> dict[str, Any]:
        """Cost and dynamics, each apart from the other and from the planner, as report.json holds
        them; energy.png goes into the folder."""
        config, cost, own = self._config, self._cost, self._own
        seeds = self._seeds(config.evaluation.judged)
        kind = config.evaluation.scenes.split(',')[0].strip()
        place = {'image_size': self._size, 'variations': [a for a, _ in scenes_of(kind, seeds)]}
        learned = evaluate.in_parts(own.encode)
        encoders = {'learned features': learned, 'pixels': evaluate.pixels}
        if RANDOM in self._others:
            encoders['random features'] = evaluate.in_parts(self._others[RANDOM].encode)
        judged = evaluate.judge_cost(encoders, cost, seeds, **place)
        depths = evaluate.judge_depth(encoders, cost, seeds, **place)
        ways = {name: way for name, (_, way) in judged.items()}
        rows = {
            name: row | {'depth_over_across': depths[name]} for name, (row, _) in judged.items()
        }
        title = f'{config.name}: cost on the way to the goal'
        evaluate.plot_energy(ways, folder / 'energy.png', title)
        worlds = {'planner': own.world_model, 'untrained': _untrained(own.world_model)}
        pairs = [(worlds, learned)]
        for name, other in self._others.items():
            pairs.append(({name: other.world_model}, evaluate.in_parts(other.encode)))
        dynamics = {}
        for models, encode in pairs:
            scenes = models, encode, cost, seeds
            moving = evaluate.judge_dynamics(*scenes, **place)
            gripper = evaluate.judge_gripper(*scenes, **place)
            dynamics |= {name: moving[name] | gripper[name] for name in models}
        return {
            'cost': {
                **rows['learned features'],
                'energy_at_end': float(ways['learned features'][:, -1].mean()),
                'others': {name: row for name, row in rows.items() if name != 'learned features'},
            },
            'dynamics': dynamics,
            'horizon': self._far(folder, learned, seeds, place),
        }

    def _far(self, folder: Path, encode: evaluate.Encode, seeds: range, place: dict) -> dict:
        """Error over the horizon while the script is at each task: see evals/horizon.py."""
        config, world, rows = self._config, self._own.world_model, {}
        ahead, known = config.posttrain.horizon, world.frames
        if not ahead:
            return rows
        loss = ACLoss(exponent=config.posttrain.loss_exponent)
        objective = ActionConditioned(None, world.config, loss, features=True)
        for task in (word.strip() for word in config.evaluation.tasks.split(',')):
            images, states = evaluate.noisy_script(task, seeds, known + ahead, **place)
            E, T = images.shape[:2]
            features = np.asarray(encode(images.reshape(E * T, *images.shape[2:])))
            batch = Trajectories(
                np.stack([actions_between(s) for s in states]).astype(np.float32),
                states if world.config.state_width else None,
                np.ones(E, np.int32),
                features=features.reshape(E, T, *features.shape[1:]),
            )
            with jax.set_mesh(make_mesh(1, jax.devices()[:1])):
                params = {'predictor': world.params}
                errors = horizon.errors(objective, params, {}, batch, known, E)
            rows[task] = horizon.tabulate(*errors, known, 1 / RATE)
        title = f'{config.name}: new scenes, the script at work'
        horizon.plot(rows, folder / 'horizon_tasks.png', title)
        return rows

    def _seeds(self, count: int) -> range:
        """Of episodes that are measured: scenes that no recording began with."""
        first = self._config.evaluation.first
        return range(first, first + count)

    def play(self, task: str, kind: str, names: Sequence[str]) -> dict[str, evaluate.Episodes]:
        """Episodes of one task in scenes of one kind by the policies named."""
        settings, key = self._config.evaluation, jax.random.key(self._config.seed)
        own = self._own
        others = planners_of(settings)
        planner = others.pop('planner')
        together = functools.partial(evaluate.plan_with, episodes_at_once=settings.at_once)
        learned = evaluate.in_parts(own.encode)
        looking: dict[str, evaluate.Policy] = {
            'planner': together(planner, own.world_model, learned),
            'untrained': together(planner, _untrained(own.world_model), learned),
        }
        for name, other in self._others.items():
            looking[name] = together(planner, other.world_model, evaluate.in_parts(other.encode))
        told = dataclasses.replace(self._cost, gripper_weight=settings.gripper_weight)
        looking[TOLD] = together(dataclasses.replace(planner, cost=told), own.world_model, learned)
        for words, other in others.items():
            looking[words] = together(other, own.world_model, learned)
        for name, encode in zip(SIMULATED, (own.encode, evaluate.pixels)):
            looking[name] = evaluate.plan_in_simulator(planner, encode)
        blind: dict[str, evaluate.Policy] = {
            'oracle': evaluate.follow_script,
            'random': evaluate.act_at_random(planner.space),
            'no_op': evaluate.do_nothing,
        }
        policies, counts = looking | blind, episodes_of(settings)
        results = {}
        for name in names:
            seeds = self._seeds(counts[name])
            scenes, shown = zip(*scenes_of(kind, seeds))
            results[name] = evaluate.measure(
                policies[name],
                task,
                seeds,
                image_size=self._size,
                variations=scenes,
                shown=shown,
                key=key,
                title=f'{task}, {kind} scenes, {name}',
                pictures=name in looking,
            )
        return results


def scenes_of(kind: str, seeds: Sequence[int]) -> list[Pair]:
    """The scene of each episode, and what its goal images show; `unseen_relit` are the scenes of
    `unseen`."""
    return [SCENES[kind](np.random.default_rng([seed, 1])) for seed in seeds]


def _untrained(world: ACWorldModel) -> ACWorldModel:
    init = jax.jit(world.net.init, compiler_options=ONCE)
    return dataclasses.replace(world, params=init(jax.random.key(1)))
