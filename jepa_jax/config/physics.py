"""The evaluation of what surprises a model."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jepa_jax.config.check import POSITIVE, RULES, OneOf, Rule
from jepa_jax.config.runs import EvalConfig

SETS = ('self_made', 'self_made_few', 'pairs', 'intphys1', 'intphys2', 'grasp', 'inflevel')


@dataclass
class PairsConfig:
    """Pairs of videos, and how they are seen."""

    kind: str = 'self_made'  # one of SETS
    path: str = ''  # folder or table of the set; of self-made pairs: where they lie or are to lie
    videos: str = ''  # folder that a table's paths are relative to; empty: the table's own
    view: str = 'square'  # square: the middle | squeeze: all of the frame, made square
    most: int = 0  # frames of a video that are looked at; 0: all
    crop: int = 0  # pixels; 0: as the model was trained


@dataclass
class PhysicsConfig(EvalConfig):
    """What surprises a model: see jepa_jax.evals.physics. What may be chosen is chosen on the
    calibration half; a value that stands twice counts once."""

    places = 'data.path', 'data.videos'

    evaluation: str = 'physics'
    data: PairsConfig = field(default_factory=PairsConfig)
    # held_out: settings chosen on half of the groups, the other half reported | upstream: the best
    # on all of them, and shorter series filled up with zeros
    protocol: str = 'held_out'
    steps: tuple[int, int, int] = (2, 5, 10)  # every n-th frame
    frames: tuple[int, int] = (16, 32)  # of a window, after that
    contexts: tuple[int, int, int, int, int, int] = (2, 4, 6, 8, 10, 10)  # 16ths of a window
    mask_tokens: tuple[int, int] = (0, 1)  # that the predictor may ask with
    stride: int = 2  # sampled frames from one window to the next
    warm_up: bool = False  # before its windows a series has the first one's shorter contexts
    random_seeds: int = 2  # untrained nets of the same shape; 0: none
    batch: int = 8  # windows that go through the nets together


RULES[PairsConfig] = {
    'kind': OneOf(SETS),
    'view': OneOf(('square', 'squeeze')),
    'most': Rule(lambda v: v >= 0, 'at least 0'),
    'crop': Rule(lambda v: v >= 0, 'at least 0'),
}
RULES[PhysicsConfig] = {
    'protocol': OneOf(('held_out', 'upstream')),
    'steps': Rule(lambda v: min(v) > 0, '3 numbers above 0'),
    'frames': Rule(lambda v: min(v) > 0, '2 numbers above 0'),
    'contexts': Rule(lambda v: 0 < min(v) and max(v) < 16, '6 numbers from 1 to 15'),
    'mask_tokens': Rule(lambda v: min(v) >= 0, '2 numbers, none below 0'),
    'stride': POSITIVE,
    'random_seeds': Rule(lambda v: v >= 0, 'at least 0'),
    'batch': POSITIVE,
}


def check(config: PhysicsConfig) -> Iterator[str]:
    if not config.data.path and not config.data.kind.startswith('self_made'):
        yield (
            f"data.path is empty: kind '{config.data.kind}' needs a file or folder, "
            '--config.data.path=PATH'
        )
