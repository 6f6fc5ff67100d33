"""The evaluation on the self-made videos."""

from dataclasses import dataclass, field

from jepa_jax.config.parts import SELF_MADE, DataConfig, DataListConfig, ProbeConfig
from jepa_jax.config.runs import EvalConfig


@dataclass
class SelfMadeConfig(EvalConfig):
    """What features tell of the self-made videos: see jepa_jax.evals.self_made."""

    evaluation: str = 'self_made'
    # `lists[0].kind` names the videos, crop, frames and fps how the encoder sees them
    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            lists=[DataListConfig(kind=SELF_MADE[0])], crop=32, frames=8, fps=8
        )
    )
    probe: ProbeConfig = field(default_factory=ProbeConfig)
