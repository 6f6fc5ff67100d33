"""Linear heads on an encoder of images, as I-JEPA was judged."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jepa_jax.config.check import (
    AT_LEAST_ONE,
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    RULES,
    OneOf,
    Rule,
)
from jepa_jax.config.parts import AugmentConfig
from jepa_jax.config.runs import EvalConfig


@dataclass
class ImageSetConfig:
    """Pictures in ImageNet's layout, and how the encoder sees them."""

    path: str = ''  # folder with `train` and `val`, a folder a class in either
    official: bool = True  # refuse files that hold other counts than ImageNet-1k's
    crop: int = 0  # pixels; 0: as the model was trained
    augment: AugmentConfig = field(  # of training pictures
        default_factory=lambda: AugmentConfig((0.08, 1.0), (3 / 4, 4 / 3), antialias=True)
    )


@dataclass
class ImageLinearConfig(EvalConfig):
    """See jepa_jax.evals.image_linear. Values are those of I-JEPA's paper; a value that stands
    twice counts once. (reference: family §1.10)"""

    places = ('data.path',)

    evaluation: str = 'image_linear'
    # exact: the head chosen on training pictures that none learns from | upstream: on validation
    protocol: str = 'exact'
    data: ImageSetConfig = field(default_factory=ImageSetConfig)
    epochs: int = 50
    batch: int = 16_384
    rates: tuple[float, float, float] = (0.01, 0.05, 0.001)
    decays: tuple[float, float] = (5e-4, 0.0)
    # batch that rates are of: they grow with it, as in VISSL; the paper does not say; 0: `batch`
    rates_of: int = 256
    drop: float = 0.1  # factor on the rate
    every: int = 15  # epochs between two drops
    momentum: float = 0.9
    trust: float = 0.001  # of LARS
    last: int = 4  # blocks whose means are read side by side, beside the last one alone
    chosen_on: float = 0.01  # share of the training pictures that the head is chosen on
    encoded: int = 64  # pictures that go through the encoder together, on each device
    random_baseline: bool = False  # an untrained encoder of the same shape: all of it again


RULES[ImageSetConfig] = {'crop': NOT_NEGATIVE}
RULES[ImageLinearConfig] = {
    'protocol': OneOf(('exact', 'upstream')),
    'epochs': POSITIVE,
    'batch': Rule(lambda v: v > 1, 'more than 1'),
    'rates': Rule(lambda v: min(v) > 0, '3 numbers above 0'),
    'decays': Rule(lambda v: min(v) >= 0, '2 numbers, none below 0'),
    'rates_of': NOT_NEGATIVE,
    'drop': POSITIVE,
    'every': POSITIVE,
    'momentum': BELOW_ONE,
    'trust': POSITIVE,
    'last': AT_LEAST_ONE,
    'chosen_on': Rule(lambda v: 0 < v <= 0.5, 'above 0 and at most a half'),
    'encoded': POSITIVE,
}


def check(config: ImageLinearConfig) -> Iterator[str]:
    if config.data.augment.motion_shift:
        yield 'data.augment.motion_shift: must be false, a picture does not move'
