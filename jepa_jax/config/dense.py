"""Evaluations of what features tell of every place in a picture."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jepa_jax.config.check import BELOW_ONE, NOT_NEGATIVE, POSITIVE, RULES, Rule
from jepa_jax.config.runs import EvalConfig


@dataclass
class PicturesConfig:
    """Labelled pictures, and how the encoder sees them."""

    set: str = 'self_made'  # a key of jepa_jax.data.labelled.dense.READERS[evaluation]
    path: str = ''  # folder of the set
    official: bool = True  # refuse files that hold other counts than the official ones
    short: int = 512  # pixels of the short side that pictures are resized to; 0: as they are
    crop: tuple[int, int] = (512, 512)  # height and width that heads learn from, pixels
    scale: tuple[float, float] = (0.5, 2.0)  # by which training pictures are resized first
    flip: bool = True  # half of the training pictures
    # pixels from one window of the size `crop` to the next in validation; 0: all of it at once
    stride: int = 341
    frames: int = 0  # a picture is repeated so often; 0: one tubelet, or once as an image


@dataclass
class DenseConfig(EvalConfig):
    """Linear heads on frozen tokens: see jepa_jax.evals.dense."""

    places = ('data.path',)

    data: PicturesConfig = field(default_factory=PicturesConfig)
    steps: int = 40_000
    batch: int = 16
    warmup: int = 1_500  # steps
    dropout: float = 0.1  # share of the channels
    chosen_on: float = 0.1  # share of the training sources that the head is chosen on
    pixels_baseline: bool = True  # the same with patches of pixels in place of tokens
    random_baseline: bool = True  # the same with an untrained encoder


@dataclass
class SegmentationConfig(DenseConfig):
    """The class of every pixel: see jepa_jax.evals.segmentation. A value that stands twice counts
    once."""

    evaluation: str = 'segmentation'
    rates: tuple[float, float, float, float] = (1.5e-3, 8e-4, 5e-4, 8e-5)
    decays: tuple[float, float, float] = (0.1, 0.01, 1e-4)


@dataclass
class DepthConfig(DenseConfig):
    """The distance of every pixel: see jepa_jax.evals.depth. A value that stands twice counts
    once."""

    evaluation: str = 'depth'
    rates: tuple[float, float, float, float, float, float, float] = (
        1.5e-3, 1e-3, 8e-4, 3e-4, 1e-4, 8e-5, 3e-5,
    )  # fmt: skip
    decays: tuple[float, float] = (1e-3, 1e-4)
    bins: int = 256
    metres: tuple[float, float] = (0.001, 10.0)  # of the first and last bin, and what is scored
    # rows and columns that are scored: from, to; 0, 0: all
    rows: tuple[int, int] = (0, 0)
    columns: tuple[int, int] = (0, 0)
    mirror: bool = True  # the mean over a picture and its mirror image


@dataclass
class VideosConfig:
    """Videos whose objects are labelled, and how the encoder sees them."""

    set: str = 'self_made'  # a key of jepa_jax.data.labelled.dense.READERS['propagation']
    path: str = ''  # folder of the set
    official: bool = True  # refuse files that hold other counts than the official ones
    short: int = 480  # pixels of the short side, rounded up to whole patches; 0: as it is


@dataclass
class PropagationConfig(EvalConfig):
    """The first frame's labels, carried through the video: see jepa_jax.evals.propagation. Where
    several values differ, those best on training videos are taken."""

    places = ('data.path',)

    evaluation: str = 'propagation'
    data: VideosConfig = field(default_factory=VideosConfig)
    past: tuple[int, int] = (1, 1)  # frames that a clip ends with; 1: the frame alone
    radii: tuple[int, int, int] = (12, 12, 12)  # tokens, of the circle that is looked at
    square: bool = False  # a square of that half side in place of the circle
    temperatures: tuple[float, float, float] = (0.2, 0.2, 0.2)
    top: int = 5  # most alike tokens that vote; of equal ones all
    context: int = 15  # last frames that are looked at beside the first
    smooth: bool = True  # labels of tokens become those of pixels: bilinear, else the nearest
    pixels_baseline: bool = True
    random_baseline: bool = True
    batch: int = 8  # clips that go through the encoder together


RULES[PicturesConfig] = {
    'short': NOT_NEGATIVE,
    'crop': Rule(lambda v: min(v) > 0, 'height and width, more than 0'),
    'scale': Rule(lambda v: 0 < v[0] <= v[1], 'a pair LOW, HIGH, above 0, LOW <= HIGH'),
    'stride': NOT_NEGATIVE,
    'frames': NOT_NEGATIVE,
}
RULES[DenseConfig] = {
    'steps': POSITIVE,
    'batch': POSITIVE,
    'warmup': NOT_NEGATIVE,
    'dropout': BELOW_ONE,
    'chosen_on': Rule(lambda v: 0 < v <= 0.5, 'above 0 and at most a half'),
}
_GRID = {
    'rates': Rule(lambda v: min(v) > 0, 'numbers above 0'),
    'decays': Rule(lambda v: min(v) >= 0, 'numbers, none below 0'),
}
RULES[SegmentationConfig] = _GRID
RULES[DepthConfig] = {
    **_GRID,
    'bins': Rule(lambda v: v > 1, 'more than 1'),
    'metres': Rule(lambda v: 0 < v[0] < v[1], 'a pair NEAR, FAR, above 0, NEAR < FAR'),
    **{
        side: Rule(lambda v: v == (0, 0) or 0 <= v[0] < v[1], 'a pair FROM, TO, or 0, 0 for all')
        for side in ('rows', 'columns')
    },
}
RULES[VideosConfig] = {'short': NOT_NEGATIVE}
RULES[PropagationConfig] = {
    'past': Rule(lambda v: min(v) > 0, '2 numbers above 0'),
    'radii': Rule(lambda v: min(v) > 0, '3 numbers above 0'),
    'temperatures': Rule(lambda v: min(v) > 0, '3 numbers above 0'),
    'top': POSITIVE,
    'context': NOT_NEGATIVE,
    'batch': POSITIVE,
}


def check(config: DenseConfig) -> Iterator[str]:
    c = config.data
    if c.stride > min(c.crop):
        yield f'data.stride = {c.stride}: must be at most the crop {c.crop}, or places are left out'
    if config.warmup > config.steps:
        yield f'warmup = {config.warmup}: must be at most steps = {config.steps}'
