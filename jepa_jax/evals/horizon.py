"""How far ahead an action-conditioned predictor is worth more than a copy of the last frame.

From known frames on, predictions are made one from the other, as a planner does, and each is held
against what was then seen. Beside it stands the error of taking the last known frame for it. Both
are of the objective's own kind; their ratio has an interval over episodes.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from jepa_jax import distributed, page
from jepa_jax.config import ActionConditionedConfig
from jepa_jax.data.features import FeatureStore
from jepa_jax.data.stream import Row
from jepa_jax.data.trajectories import RobotStream, Trajectories
from jepa_jax.errors import BadFile
from jepa_jax.evals.intervals import bootstrap
from jepa_jax.objectives.action_conditioned import ActionConditioned
from jepa_jax.sharding import BATCH
from jepa_jax.state import TrainState

log = logging.getLogger(__name__)

EPISODES = 64  # that are looked at, evenly spread over the recordings
LEAST = 0.5  # share of them that must be long enough; else fewer steps ahead are looked at
RESAMPLES = 1000
FILE = 'horizon.png'


def of_run(
    config: ActionConditionedConfig,
    objective: ActionConditioned,
    state: TrainState,
    frozen: dict,
    store: FeatureStore | None,
    folder: Path,
) -> tuple[dict[str, Any], list[str]]:
    """`horizon` of report.json, of the recordings that a run was trained on, and a sentence; the
    picture FILE goes into its folder. For all processes, under the run's mesh."""
    if not config.horizon or config.ac.use_extrinsics:  # plans know no camera poses either
        return {}, []
    known = config.robot.frames - 1
    rows, batch = _pieces(config, store, known)
    if len(rows) < 2:
        words = f'error over the horizon: no two episodes with more than {known} frames'
        return {}, [words]
    part = config.optim.batch // config.optim.accumulate
    own, copied = errors(objective, state.params, frozen, batch, known, part)
    table = tabulate(own, copied, known, 1 / config.robot.fps)
    if not jax.process_index():
        plot({'recordings': table}, folder / FILE, f'{config.name}: recordings trained on')
    return {'horizon': {'recordings': table}}, [words_of('the recordings trained on', table)]


def _pieces(
    config: ActionConditionedConfig, store: FeatureStore | None, known: int
) -> tuple[list, Trajectories | None]:
    """The same pieces in every process, of `known` frames and as many more as most episodes have,
    at most config.horizon."""
    ahead = config.horizon
    while True:
        robot = dataclasses.replace(config.robot, frames=known + ahead)
        stream = RobotStream(dataclasses.replace(config, robot=robot, augment=False), store)
        count = len(stream.recordings)
        chosen = np.unique(np.linspace(0, count - 1, min(count, EPISODES)).round().astype(int))
        rows, short = [], 0
        for number, record in enumerate(chosen.tolist()):
            row = Row(config.seed, 0, 0, number, number, 0, record)
            try:
                rows.append(stream.read(row))
            except BadFile as error:
                short += error.reason == 'short'
                if error.reason != 'short':
                    log.warning('error over the horizon leaves out: %s', error)
        if ahead == 1 or len(rows) >= LEAST * (len(rows) + short):
            return rows, stream.gather(0, None, rows) if rows else None
        # one less at first: recordings of 16 frames, of which one is known, are common
        ahead = ahead - 1 if ahead > 12 else (ahead + 1) // 2


def errors(
    objective: ActionConditioned,
    params: dict,
    frozen: dict,
    batch: Trajectories,
    known: int,
    part: int,
) -> tuple[np.ndarray, np.ndarray]:
    """objective.ahead of a batch on the host [E, H], `part` rows at a time at most; under a mesh
    that has them all."""
    mesh = jax.sharding.get_mesh()
    count = len(batch.actions)
    part = min(part, -(-count // mesh.size) * mesh.size)
    run = jax.jit(functools.partial(objective.ahead, known=known))
    sharding, outcomes = jax.NamedSharding(mesh, BATCH), []
    for first in range(0, count, part):
        own = np.minimum(np.arange(first, first + part), count - 1)  # one shape, one program

        def put(array, own=own):
            rows = np.asarray(array)[own]
            return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

        pair = run(params, frozen, jax.tree.map(put, batch))
        outcomes.append(distributed.whole(pair))
    return tuple(np.concatenate([np.asarray(p) for p in parts])[:count] for parts in zip(*outcomes))


def tabulate(own: np.ndarray, copied: np.ndarray, known: int, seconds: float) -> dict[str, Any]:
    """A row of `horizon`: errors [E, H] of predictions and of copying -> by step ahead their means
    `error` and `copy`, and `ratio` of the means with its 95 % interval `low`, `high` (bootstrap
    over episodes); and `worth`, up to how many steps ahead a prediction is worth more than a copy:
    the interval of each lies below 1.

    known: frames that predictions begin with; seconds: of a step.
    """

    def ratios(rows: np.ndarray) -> np.ndarray:
        return own[rows].mean(0) / np.maximum(copied[rows].mean(0), 1e-12)

    every = np.arange(len(own))
    low, high = np.array(bootstrap(every, ratios, RESAMPLES)).T
    below = high < 1
    numbers = {
        'error': own.mean(0), 'copy': copied.mean(0), 'ratio': ratios(every), 'low': low,
        'high': high,
    }  # fmt: skip
    return {
        'episodes': len(own),
        'known': known,
        'seconds': seconds,
        **{name: [float(f'{x:.5g}') for x in row] for name, row in numbers.items()},
        'worth': int(below.argmin()) if not below.all() else len(below),
    }


def words_of(where: str, row: Mapping[str, Any]) -> str:
    """One sentence on a row."""

    def share(step: int) -> str:
        ratio, low, high = (row[name][step - 1] for name in ('ratio', 'low', 'high'))
        return f'{ratio:.2f} ({low:.2f} to {high:.2f}) of it at {step}'

    steps, worth, seconds = len(row['ratio']), row['worth'], row['seconds']
    if worth == steps:
        words = f'at every step up to {steps} ({steps * seconds:g} s)'
        shares = [share(step) for step in sorted({1, steps})]
    elif worth:
        words = f'up to {worth} steps ahead ({worth * seconds:g} s) and no further'
        shares = [share(step) for step in (1, worth, worth + 1)]
    else:
        words, shares = 'at no step ahead', [share(step) for step in sorted({1, steps})]
    return (
        f'in {where}, predictions are worth more than a copy of the last frame {words}; their '
        f"error over the copy's: {', '.join(shares)}"
    )


def plot(rows: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws rows by name, PNG: the error of predictions over copying's with its interval, and both
    errors."""
    figure = Figure(figsize=(9, 3.8), layout='constrained')
    over, both = figure.subplots(1, 2)
    for name, row in rows.items():
        steps = np.arange(1, len(row['ratio']) + 1)
        (line,) = over.plot(steps, row['ratio'], marker='.', label=name)
        over.fill_between(steps, row['low'], row['high'], color=line.get_color(), alpha=0.2)
        both.plot(steps, row['error'], marker='.', color=line.get_color(), label=name)
        both.plot(steps, row['copy'], ls='--', color=line.get_color(), label=f'{name}, copied')
    over.axhline(1, color='grey', lw=1)
    over.set_ylabel("error of predictions over a copy's")
    both.set_ylabel('error of features')
    for axes in (over, both):
        axes.set_xlabel('steps ahead')
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    page.save_figure(figure, path)
