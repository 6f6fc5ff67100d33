"""How a run ends: probe, verdicts, pictures, report.json."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jepa_jax import distributed, recipes
from jepa_jax.config import MaskedVideoConfig, RunConfig
from jepa_jax.evals import pictures, self_made, video
from jepa_jax.lookup import load
from jepa_jax.loop import Clock
from jepa_jax.metrics import read
from jepa_jax.objectives import Objective
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.origin import check_config
from jepa_jax.state import TrainState
from jepa_jax.workdir import write_json

log = logging.getLogger(__name__)
FILE = 'report.json'


def finished(workdir: Path, config: RunConfig) -> bool:
    """Whether the run in `workdir` has its report and goes no further under this config; says so.

    Raises:
      ConfigError: it is finished, under another config.
    """
    path = workdir / FILE
    if not path.exists():
        return False
    report = json.loads(path.read_text())
    if report['steps'] < config.optim.steps:
        return False
    stored = json.loads((workdir / 'config.json').read_text())
    check_config(stored, config, allow=config.checkpoints.allow_config_change)
    log.info('%s is finished: %s', workdir, report['verdict'])
    return True


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a recipe measures at the end of a run."""

    probes: dict[str, dict] = dataclasses.field(default_factory=dict)
    sentences: list[str] = dataclasses.field(default_factory=list)


def nothing(*_: Any) -> Findings:
    """For recipes that measure nothing at the end."""
    return Findings()


def write(
    workdir: Path,
    config: RunConfig,
    objective: Objective,
    state: TrainState,
    frozen: dict,
    clock: Clock,
    begun: float,
) -> None:
    """Measures what the recipe says, draws the run, writes report.json and says in words how it
    went; process 0 does, the others give it their part of the encoder.

    begun: time.monotonic() at the start of this process's run.
    """
    findings = load(recipes.of(config).finish)(workdir, config, objective, state, frozen)
    if jax.process_index():
        return
    records = read(workdir)
    word, facts = objective.verdict(records)
    sentences = [f'{word}: {facts}', clock.verdict(), *findings.sentences]
    pictures.plot_run(records, workdir / 'run.png', title=config.name)
    report = {
        'steps': int(jax.device_get(state.step)),
        'processes': jax.process_count(),
        'devices': jax.device_count(),
        'seconds': round(time.monotonic() - begun, 1),
        'verdict': word,
        'sentences': sentences,
        'probes': findings.probes,
        'tasks': {},
    }
    write_json(workdir / FILE, report)
    for line in sentences:
        log.info('%s', line)
    log.info('report: %s', workdir / FILE)


def masked_video(
    workdir: Path,
    config: MaskedVideoConfig,
    objective: MaskedVideo,
    state: TrainState,
    frozen: dict,
) -> Findings:
    """Probes the target encoder on the self-made videos if the config says so, and draws its
    features of one clip."""
    if not config.probe.enabled:
        return Findings()
    net, params = objective.encoder(state.params, state.ema, frozen)
    target = distributed.whole(params)
    if jax.process_index():
        return Findings()
    train, test = self_made.labelled(config.data)
    encode = jax.jit(net)
    seeds = jax.random.split(jax.random.key(config.seed + 1), config.probe.seeds)
    probes = video.measure(
        functools.partial(encode, target),
        [functools.partial(encode, net.init(seed)) for seed in seeds],
        train,
        test,
        config.probe,
        say=log.info,
    )
    clip = test.clips[:1]
    tokens = np.asarray(encode(target, clip))[0]
    grid = objective.config.grid(*clip.shape[1:4])
    pictures.plot_features(
        clip[0],
        tokens.reshape(*grid, -1),
        workdir / 'features.png',
        title='target features of one test clip',
    )
    return Findings(probes, [video.verdict(label, rows) for label, rows in probes.items()])
