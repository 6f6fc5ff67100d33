"""How a run ends: last evaluations, verdicts, report.json, its page."""

from __future__ import annotations

import json
import logging
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax

from jepa_jax import run_page
from jepa_jax.config import RunConfig
from jepa_jax.data.stream import FailureLog
from jepa_jax.evals.beside import Beside
from jepa_jax.loop import Clock
from jepa_jax.metrics import read
from jepa_jax.objectives import Objective
from jepa_jax.origin import check_config
from jepa_jax.state import TrainState
from jepa_jax.workdir import write_json

log = logging.getLogger(__name__)
FILE = 'report.json'


def finished(workdir: Path, config: RunConfig, name: str) -> bool:
    """Whether the run in `workdir` has its report and goes no further under this config; says so.

    name: of the workdir, for a user.

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
    log.info('%s is finished: %s', name, report['verdict'])
    return True


def write(
    workdir: Path,
    config: RunConfig,
    objective: Objective,
    state: TrainState,
    frozen: dict,
    evals: Beside,
    clock: Clock,
    begun: float,
    failures: FailureLog,
    data: list[str],
    more: tuple[dict[str, Any], list[str]] = ({}, []),
    *,
    name: str,
    part_of: str,
) -> None:
    """Makes the evaluations of the end, writes report.json and the page, and says in words how it
    went; process 0 writes, the others have their part in the evaluations.

    begun: time.monotonic() at the start of this process's run; failures, data: what was read, and
    lines that say so; more: what the recipe's `at_end` returned; name: of the workdir, for a user;
    part_of: workdir of the study that the run is a part of, or ''.
    """
    findings = evals.finish(state, frozen)
    if jax.process_index():
        return
    records = read(workdir)
    last = records[-1] if records else {}
    evaluated = {k: v for k, v in last.items() if k.startswith('evals/')} | findings.values
    word, facts = objective.verdict(records)
    sentences = [f'{word}: {facts}', clock.verdict(), *findings.sentences, *more[1]]
    report = {
        'steps': int(jax.device_get(state.step)),
        'processes': jax.process_count(),
        'devices': jax.device_count(),
        'seconds': round(time.monotonic() - begun, 1),
        'verdict': word,
        'sentences': sentences,
        'probes': findings.probes,
        'evals': {k: v if math.isfinite(v) else str(v) for k, v in evaluated.items()},
        'tasks': {},
        **more[0],
        'data': data,
        'reading': failures.reading(),
        'command': _command(),
        **({'part_of': part_of} if part_of else {}),
    }
    write_json(workdir / FILE, report)
    for line in sentences:
        log.info('%s', line)
    log.info('report: %s/%s', name, FILE)
    began = time.monotonic()
    try:
        path = run_page.write(workdir, config, objective, report, name)
    except OSError as error:  # the run is whole without it
        log.error('no page: %s; `jepa report %s` makes it', error.strerror or error, name)
    else:
        log.info('page: %s/%s (%.1f s)', name, path.name, time.monotonic() - began)


def _command() -> str:
    """The command line of this process, as it may be typed again."""
    program, *rest = sys.argv
    words = program.split() if program.startswith('jepa ') else ['jepa', 'train']
    return shlex.join([*words, *rest])
