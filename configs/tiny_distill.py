"""A small student of a small teacher, on the main job's videos, and what the teacher is worth.

    python -m jepa_jax.train --config=configs/tiny_distill.py        # of the bundled encoder `tiny`
    python -m jepa_jax.train --config=configs/tiny_distill.py --config.teacher=runs/tiny
    python -m jepa_jax.train --config=configs/tiny_distill.py:21     # V-JEPA 2.1, of runs/tiny_21
    python -m jepa_jax.train --config=configs/tiny_distill.py:salt   # a teacher, on pixels
    python -m jepa_jax.train --config=configs/tiny_distill.py:study  # all of it, compared

The student is narrower than its teacher and has fewer blocks; the teacher is a run of
configs/tiny.py, or the one that comes with the package, `tiny`. `:21` learns from a run of
configs/tiny_21.py, also where tokens are in sight, in 300 steps; `--config.teacher=` is the same
without a teacher. `:salt` trains a teacher on masked pixels (SALT). `:study` trains the student
with teachers and without, six runs and half an hour on two cores, and says what came of it:
docs/training.md; there a teacher is `--config.student.teacher=runs/tiny`.
`tiny_distill.py:smoke` is a minute, `:study,smoke` six.
"""

import dataclasses

from jepa_jax import cli
from jepa_jax.config import (
    ContextLossConfig,
    DenseVideoConfig,
    DistillationConfig,
    MaskedVideoConfig,
    parse_arg,
)
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> MaskedVideoConfig | DistillationConfig:
    phase, small = parse_arg(arg, 'distill', '21', 'salt', 'study')
    runs = {'distill': student(), '21': student_21(), 'salt': salt()}
    if small:
        runs = {name: smoke(c) for name, c in runs.items()}
    if phase == 'study':
        return DistillationConfig(
            name='tiny_distill-study' + '-smoke' * small, student=runs['distill'], salt=runs['salt']
        )
    return runs[phase]


def student() -> MaskedVideoConfig:
    c = cli.load('tiny')
    c.name = 'tiny_distill'
    c.teacher, c.teacher_encoder = 'tiny', dataclasses.replace(c.encoder)
    c.encoder.width, c.encoder.depth, c.encoder.heads = 64, 3, 4
    c.optim.steps, c.optim.warmup = 1300, 30  # after 300 no student knows motion: docs/training.md
    # without a teacher .99 knows more than .97; half-life 69 steps
    c.optim.momentum = c.optim.final_momentum = 0.99
    return c


def student_21() -> DenseVideoConfig:
    c = cli.load('tiny_21')
    c.name = 'tiny_distill-21'
    c.teacher, c.teacher_encoder = 'runs/tiny_21', dataclasses.replace(c.encoder)
    c.encoder.width, c.encoder.depth, c.encoder.heads = 64, 3, 4
    # as much as the prediction's, from the first step: a teacher says what each token is
    c.context_loss = ContextLossConfig(weight=1.0, begin=0, full=1, by_distance=False)
    c.optim.batch, c.optim.steps, c.optim.warmup = 128, 300, 60
    c.optim.lr, c.optim.clip = 3e-3, 1.0
    c.optim.momentum = c.optim.final_momentum = 0.99
    return c


def salt() -> MaskedVideoConfig:
    c = cli.load('tiny')
    c.name = 'tiny_distill-salt'
    c.target, c.loss_exponent = 'pixels', 2.0
    c.optim.steps = 1000
    c.optim.momentum = c.optim.final_momentum = 0.99
    return c
