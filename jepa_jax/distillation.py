"""What a teacher is worth: the same student, trained for as many steps

- `distilled`, from the features of a teacher that was trained before;
- `ema`, without one: from those of its own moving average; and `ema_slow`, of another momentum,
  since what suits a student of so few steps may be too fast for a target;
- `salt`, from a teacher that was itself trained here, on pixels (`salt_teacher`);
- `ema_long`, without one, for the clips of `salt` and of its teacher together: what the same clips
  are worth where they are not spent on a teacher.

Each is a run with a probe of its own, on the same clips; `report.json` and `report.md` have them
side by side with an untrained encoder and pixels.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from jepa_jax.config import MaskedVideoConfig
from jepa_jax.config.distillation import DistillationConfig
from jepa_jax.ending import FILE
from jepa_jax.errors import ConfigError
from jepa_jax.studies import Stage
from jepa_jax.workdir import lock, write_json

log = logging.getLogger(__name__)

PAGE = 'report.md'
BASELINES = {'random': 'untrained', 'pixels': 'pixels'}
TAUGHT = 'distilled', 'salt'  # what is held against
UNTAUGHT = 'ema', 'ema_slow'  # the better one of these


def check(config: DistillationConfig, workdir: Path) -> None:
    """Raises ConfigError where runs could not be compared, or a student has no teacher."""
    del workdir
    if not config.student.teacher:
        raise ConfigError('student.teacher is empty: --config.student.teacher=NAME_OR_PATH')
    if config.salt.target != 'pixels':
        raise ConfigError(f"salt.target = '{config.salt.target}': must be 'pixels'")
    for name in ('student', 'salt'):
        if not getattr(config, name).probe.enabled:
            raise ConfigError(f'{name}.probe.enabled = false: must be true, probes are compared')


def stages(config: DistillationConfig, folder: Path) -> list[Stage]:
    """The runs."""
    student, salt = config.student, config.salt

    def alone(**optim: Any) -> MaskedVideoConfig:
        changed = dataclasses.replace(student.optim, **optim)
        return dataclasses.replace(student, teacher='', optim=changed)

    slow = config.slow_momentum
    clips = salt.optim.steps * salt.optim.batch
    both = student.optim.steps + -(-clips // student.optim.batch)
    runs = {
        'distilled': student,
        'ema': alone(),
        'ema_slow': alone(momentum=slow, final_momentum=slow),
        'salt_teacher': salt,
        'salt': dataclasses.replace(
            student, teacher=str(folder / 'salt_teacher'), teacher_encoder=salt.encoder
        ),
        'ema_long': alone(
            steps=both, momentum=salt.optim.momentum, final_momentum=salt.optim.final_momentum
        ),
    }
    return [
        Stage(name, folder / name, dataclasses.replace(run, name=name, seed=config.seed))
        for name, run in runs.items()
    ]


def report(config: DistillationConfig, folder: Path) -> None:
    """Puts the probes side by side: report.json, report.md."""
    with lock(folder):
        rows: dict[str, dict[str, Any]] = {}
        for stage in stages(config, folder):
            told = json.loads((stage.folder / FILE).read_text())
            if not rows:
                for name, word in BASELINES.items():
                    rows[word] = {'probes': {k: v[name] for k, v in told['probes'].items()}}
            probes = {label: probe['target'] for label, probe in told['probes'].items()}
            rows[stage.name] = _of(stage.config) | {'probes': probes, 'verdict': told['verdict']}
        sentences = [
            _sentence(name, label, rows) for name in TAUGHT for label in rows[name]['probes']
        ]
        write_json(folder / FILE, {'rows': rows, 'sentences': sentences})
        lines = [*table(rows), '', *(f'- {sentence}' for sentence in sentences)]
        (folder / PAGE).write_text('\n'.join([*lines, '']))
        for line in lines:
            log.info('%s', line)
        log.info('report: %s', folder / PAGE)


def _of(run: MaskedVideoConfig) -> dict[str, Any]:
    own = 'pixels' if run.target == 'pixels' else 'its average'
    return {
        'steps': run.optim.steps,
        'batch': run.optim.batch,
        'predicts': Path(run.teacher).name or own,
    }


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of Markdown, a row a run: accuracies of its probes with their intervals."""
    labels = [*next(iter(rows.values()))['probes']]
    heads = ['', 'predicts', 'steps', 'clips a step', *labels]
    lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    for name, row in rows.items():
        cells = (_words(row['probes'][label]) for label in labels)
        first = (name, *(str(row.get(key, '')) for key in ('predicts', 'steps', 'batch')))
        lines.append(f'| {" | ".join((*first, *cells))} |')
    return lines


def _words(figure: dict[str, float]) -> str:
    return f'{figure["mean"]:.3f} ({figure["low"]:.3f} to {figure["high"]:.3f})'


def _sentence(name: str, label: str, rows: dict[str, dict[str, Any]]) -> str:
    against = max(UNTAUGHT, key=lambda key: rows[key]['probes'][label]['mean'])
    ours, other = (rows[key]['probes'][label] for key in (name, against))
    if ours['low'] > other['high']:
        word = 'ahead of'
    elif ours['high'] < other['low']:
        word = 'behind'
    else:
        word = 'not clearly different from'
    return f'{label}: {name} {_words(ours)}, {word} {against} {_words(other)}'
