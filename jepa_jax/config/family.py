"""The study of the family: see jepa_jax.family."""

from dataclasses import dataclass, field

from jepa_jax.config.check import AT_LEAST_ONE, RULES, OneOf
from jepa_jax.config.parts import SELF_MADE, ProbeConfig
from jepa_jax.config.runs import StudyConfig


@dataclass
class FamilyConfig(StudyConfig):
    """Members of the family side by side, for the same FLOPs."""

    study: str = 'family'
    members: str = ''  # keys of jepa_jax.family.MEMBERS, with commas between; empty: all
    steps: int = 1000  # of V-JEPA 2; the others as many as cost the same
    seeds: int = 1  # runs of each member
    videos: str = 'synthetic'  # the main job's, or synthetic_few
    probe: ProbeConfig = field(default_factory=lambda: ProbeConfig(lr=3e-3))


RULES[FamilyConfig] = {
    'steps': AT_LEAST_ONE,
    'seeds': AT_LEAST_ONE,
    'videos': OneOf(SELF_MADE),
}
