"""Where a run starts: at a checkpoint of its own, at another run's, or at nothing."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
import pathlib
from typing import Any

from jepa_jax import recipes
from jepa_jax.checkpoint import Checkpoints, find, read_manifest
from jepa_jax.config import RunConfig, store
from jepa_jax.errors import ConfigError

log = logging.getLogger(__name__)


# Fields that may differ when a run is resumed, and why it is the same run (to rounding where so
# said).
FREE = {
    'name': 'a label',
    'data.workers': 'the order of records does not depend on who decodes them',
    'data.prefetch': 'only how early batches are ready',
    'data.attempts': 'only when a run gives up; a replacement is a function of its attempt',
    'data.max_failure_share': 'only when a run gives up',
    'data.worker_timeout': 'only when a run gives up',
    'data.confine': 'what workers may do, not what they read',
    'data.cache': 'holds what decoding gives',
    'data.cache_gib': 'holds what decoding gives',
    'optim.accumulate': 'the same update to rounding; streams compare the rows of a mixture',
    'mesh.*': 'checkpoints restore onto any mesh; the same values to rounding',
    'checkpoints.*': 'when to save, and where a run without a checkpoint starts',
    'logging.*': 'what is written down',
    'optim.guard.most': 'only when a run gives up',
    'heldout*': 'what health is measured on',
    'answer_tokens': 'how much health lets a model say',
    'probe.*': 'runs on the finished features',
    'evals*': 'read features and change nothing',
    'labels.*': 'what probes and evaluations read',
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """The checkpoint that a run starts from."""

    folder: pathlib.Path | None = None  # None: from scratch
    same_run: bool = False  # it is a checkpoint of this run
    weights_only: bool = False  # its optimizer stays behind


def origin_of(config: RunConfig, checkpoints: Checkpoints) -> Origin:
    """The first of: this run's newest intact checkpoint, `resume_from`, `init_from`, scratch.

    Raises:
      ConfigError: this run was started with another config and that is not allowed.
      CheckpointError: a checkpoint is damaged, or there is none where one was named.
    """
    settings = config.checkpoints
    if (step := checkpoints.latest()) is not None:
        folder = checkpoints.directory / str(step)
        stored = read_manifest(folder)['extra']['config']
        check_config(stored, config, allow=settings.allow_config_change)
        return Origin(folder, same_run=True)
    if settings.resume_from:
        return Origin(find(settings.resume_from))
    if settings.init_from:
        return Origin(find(settings.init_from), weights_only=True)
    return Origin()


def check_config(stored: dict[str, Any], new: RunConfig, allow: bool) -> None:
    """Refuses to resume with a config that would make this another run; logs what changed.

    Args:
      stored: the config of the run so far, from JSON; read through today's schema, so that fields
        it lacks have their defaults and renamed ones their new names.
      new: the config asked for now.
      allow: resume all the same (`checkpoints.allow_config_change`).

    Raises:
      ConfigError: fields outside `FREE` differ; one line, each as `field: old -> new`. Or the
        workdir holds a run of another objective.
    """
    before = recipes.read_config(stored)
    if before.objective != new.objective:
        raise ConfigError(
            f"the run in this workdir is of objective '{before.objective}', this config of "
            f"'{new.objective}': take another workdir"
        )
    old, now = (store.upgrade(dataclasses.asdict(config)) for config in (before, new))
    lines = store.differences(old, now)
    free = [line for line in lines if _is_free(line)]
    bound = [line for line in lines if not _is_free(line)]
    if free:
        log.info('the config changed where the run stays the same: %s', '; '.join(free))
    if bound and not allow:
        raise ConfigError(
            f'the run in this workdir has another config: {"; ".join(bound)}. Take the old values, '
            'another workdir, or --config.checkpoints.allow_config_change=True'
        )
    if recipes.models(before) != recipes.models(new):
        names = ' -> '.join(', '.join(map(repr, recipes.models(c))) for c in (before, new))
        raise ConfigError(
            f'{names}: this run keeps the nets that it began with; take the old name, or another '
            'workdir with --config.checkpoints.resume_from'
        )
    if bound:
        log.warning('resuming with another config, as allowed: %s', '; '.join(bound))


def _is_free(line: str) -> bool:
    return any(fnmatch.fnmatchcase(line.split(':', 1)[0], pattern) for pattern in FREE)
