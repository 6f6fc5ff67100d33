"""What is known of the robot on whose recordings a model was trained, beside its weights.

A run has it in its config, in its manifests and in its report. What is converted or saved from it
has it in one entry, `robot`: `recordings`, a RobotConfig without its path; `measured`, what they
held; `verdict`, the word that the run ended with, and its sentence. Of released weights it has
`released`, their name.
"""

from __future__ import annotations

import pathlib
from typing import Any

from jepa_jax.data.robot import metadata


def told(extra: dict[str, Any], folder: pathlib.Path | None = None) -> dict[str, Any]:
    """That entry, gathered if what describes a checkpoint is a run's; {}: nothing is known.

    folder: of the checkpoint, whose run may have a report.

    Raises:
      BadFile: the report cannot be read.
    """
    known = dict(extra.get('robot', {}))
    recordings = extra.get('config', {}).get('robot')
    if isinstance(recordings, dict):
        known.setdefault('recordings', {**recordings, 'path': ''})
    if 'measured' in extra:
        known.setdefault('measured', extra['measured'])
    if folder and (verdict := _verdict(folder)):
        known['verdict'] = verdict
    return known


def _verdict(folder: pathlib.Path) -> list[str]:
    """The word of a report beside a checkpoint, or in its run's workdir, and the sentence; [] if
    there is none."""
    report = folder / 'report.json'
    if not report.exists() and folder.parent.name == 'checkpoints':
        report = folder.parents[1] / report.name
    if not report.exists():
        return []
    values = metadata.read_json(report)
    sentences = metadata.field(report, values, 'sentences', list) if 'sentences' in values else []
    word = metadata.field(report, values, 'verdict', str)
    return [word, str(sentences[0]) if sentences else word]
