"""A study of what a teacher is worth."""

from dataclasses import dataclass, field

from jepa_jax.config.check import BELOW_ONE, RULES
from jepa_jax.config.masked_video import MaskedVideoConfig
from jepa_jax.config.runs import StudyConfig


@dataclass
class DistillationConfig(StudyConfig):
    """The same student with a teacher, without one, and with a teacher trained on pixels: see
    jepa_jax.distillation."""

    study: str = 'distillation'
    student: MaskedVideoConfig = field(default_factory=MaskedVideoConfig)  # and its teacher
    slow_momentum: float = 0.998  # of a second run without a teacher
    salt: MaskedVideoConfig = field(default_factory=MaskedVideoConfig)  # a teacher of its own


RULES[DistillationConfig] = {'slow_momentum': BELOW_ONE}
