"""Runs made of runs: stages one after the other, each in a folder, and a report at the end.

What is there already is not made again, whatever died: a run that is finished says so and is left
as it is.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from jepa_jax import recipes
from jepa_jax.config import RunConfig, StudyConfig, check
from jepa_jax.lookup import load

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a study: a run to train, or something that later stages read."""

    name: str
    folder: Path
    config: RunConfig | None = None  # of the run
    make: Callable[[Path], None] | None = None  # folder -> nothing; for what is not trained


def run(config: StudyConfig, workdir: str, train: Callable[[RunConfig, str], None]) -> None:
    """Runs a study in `workdir`; train: jepa_jax.train.train.

    Raises:
      ConfigError: settings that cannot work, of the study or of one of its runs, before the first
        stage takes its time.
    """
    row, folder = recipes.study_of(config), Path(workdir).absolute()
    check.types_and_ranges(config)
    load(row.check)(config, folder)
    stages = load(row.stages)(config, folder)
    for stage in stages:
        if stage.config is not None:
            recipes.validate(stage.config)
    for number, stage in enumerate(stages, 1):
        log.info('stage %d of %d: %s, in %s', number, len(stages), stage.name, stage.folder)
        if stage.config is not None:
            train(stage.config, str(stage.folder))
        else:
            stage.make(stage.folder)
    load(row.report)(config, folder)
