"""Evaluations on clips that a user labelled."""

from dataclasses import dataclass, field

from jepa_jax.config.parts import LabelledListConfig
from jepa_jax.config.runs import EvalConfig


@dataclass
class LabelledDataConfig(LabelledListConfig):
    """Labelled clips and how they are seen."""

    ahead: float = 0.0  # seconds before `time`, or `start`, at which the clip ends: a forecast
    frames: int = 16  # a clip
    fps: float = 4.0  # frames a second to sample at
    crop: int = 0  # pixels; 0: as the model was trained
    segments: int = 1  # clips of an example, spread over it and read together
    tokens: int = 128  # most tokens of a clip that are kept, as means over boxes; 0: all
    cache: str = ''  # folder of the features; empty: `features` in the workdir


@dataclass
class AttentiveConfig:
    """A grid of attentive heads; the one that does best on part of the training clips is taken."""

    rates: str = '3e-3,1e-3,3e-4'  # peak learning rates; a head for each of them and each decay
    decays: str = '0.01,0.4'  # weight decays
    depth: int = 1  # blocks, the last of them with the query; the original has 4
    heads: int = 0  # 0: one for 64 channels; the original has 16
    epochs: int = 20
    batch: int = 32
    least_steps: int = 200  # where so many epochs have fewer


@dataclass
class OwnConfig(EvalConfig):
    """What features tell of own labelled clips: see jepa_jax.evals.own."""

    places = 'data.train', 'data.test'

    evaluation: str = 'own'
    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    random_baseline: bool = True  # an untrained encoder of the same shape: encodes all clips again
    estimate: bool = False  # first time a batch and a few steps of the heads, and say the hours
    batch: int = 1  # clips that go through the encoder together, on each device


@dataclass
class RetrievalConfig(OwnConfig):
    """Which own clips lie next to each other: see jepa_jax.evals.retrieval."""

    evaluation: str = 'retrieval'
