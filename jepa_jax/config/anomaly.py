"""The evaluation of what a camera does not usually show."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from jepa_jax.config.check import NOT_NEGATIVE, POSITIVE, RULES, OneOf, Rule
from jepa_jax.config.runs import EvalConfig

SETS = ('own', 'self_made', 'self_made_few', 'ped2', 'avenue', 'shanghaitech')


@dataclass
class CameraConfig:
    """Normal video to learn from, video to judge, and how they are seen."""

    kind: str = 'own'  # one of SETS
    path: str = ''  # folder of an official set; of self-made videos: where they lie or are to lie
    # own video: a file, a folder of videos or of folders of frames, a list, or a csv with `path`
    train: str = ''  # nothing but normal
    test: str = ''  # to be judged; its csv may have labels: kind, and first, last or start, end
    labels: str = ''  # such a csv, or a folder with NAME.npy or NAME.txt, a 0 or 1 for each frame
    split: str = 'test'  # of self-made videos: test | validation, to choose settings on
    frames: int = 16  # sampled frames of a window
    ahead: int = 4  # of them to be predicted, and judged; as many from one window to the next
    fps: float = 4.0  # frames a second to sample at; 0: every frame
    rate: float = 25.0  # frames a second of folders of frames, and of streams without a clock
    view: str = 'squeeze'  # squeeze: all of the frame, made square | square: the middle
    crop: int = 0  # pixels; 0: as the model was trained
    cache: str = ''  # folder of what was computed; empty: `windows` in the workdir


@dataclass
class AnomalyConfig(EvalConfig):
    """What a camera does not usually show: see jepa_jax.evals.anomaly."""

    places = 'data.train', 'data.test', 'data.path'

    evaluation: str = 'anomaly'
    data: CameraConfig = field(default_factory=CameraConfig)
    held_out: float = 0.5  # of the normal video: half for places, half for the threshold
    by_place: bool = True  # errors in units of what each place of the picture usually has
    top: float = 0.05  # share of a window's tokens, those with the highest errors, that is averaged
    neighbours: int = 1  # normal features whose mean distance is the density's
    bank: int = 10_000  # normal features that are kept
    false_alarms: float = 0.01  # share of normal frames above the threshold
    smooth: float = 0.0  # frames of the file: deviation of a Gaussian over time, which looks ahead
    judge: str = 'density'  # whose verdict --watch gives
    random_baseline: bool = True  # untrained nets of the same shape: encodes all again
    mask_token: int = 0  # that the predictor asks with
    batch: int = 8  # windows that go through the nets together
    settle: float = 2.0  # seconds that a file in a watched folder must be left alone


RULES[CameraConfig] = {
    'kind': OneOf(SETS),
    'split': OneOf(('test', 'validation')),
    'frames': POSITIVE,
    'ahead': POSITIVE,
    'fps': NOT_NEGATIVE,
    'rate': POSITIVE,
    'view': OneOf(('squeeze', 'square')),
    'crop': NOT_NEGATIVE,
}
RULES[AnomalyConfig] = {
    'held_out': Rule(lambda v: 0 < v < 1, 'above 0 and below 1'),
    'top': Rule(lambda v: 0 < v <= 1, 'above 0 and at most 1'),
    'neighbours': POSITIVE,
    'bank': POSITIVE,
    'false_alarms': Rule(lambda v: 0 < v < 1, 'above 0 and below 1'),
    'smooth': NOT_NEGATIVE,
    'judge': OneOf(('surprise', 'density')),
    'mask_token': NOT_NEGATIVE,
    'batch': POSITIVE,
    'settle': NOT_NEGATIVE,
}


def check(config: AnomalyConfig) -> Iterator[str]:
    data = config.data
    if data.kind == 'own' and not data.train:
        yield 'data.train is empty: no normal video to learn from, --config.data.train=PATH'
    if data.kind == 'own' and data.labels and not data.test:
        yield f'data.labels = {data.labels!r}: labels of what? data.test is empty'
    for name in ('train', 'test', 'labels') if data.kind != 'own' else ():
        if path := getattr(data, name):
            yield (
                f"data.{name} = {path!r}: goes with data.kind 'own', '{data.kind}' has its videos"
            )
    if data.kind in SETS[3:] and not data.path:
        yield f"data.path is empty: kind '{data.kind}' needs its folder, --config.data.path=DIR"
    if data.ahead >= data.frames:
        yield f'data.ahead = {data.ahead}: must be below data.frames = {data.frames}'
