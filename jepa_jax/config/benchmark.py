"""Published benchmarks on their official files."""

from dataclasses import dataclass, field

from jepa_jax.config.runs import EvalConfig


@dataclass
class BenchmarkDataConfig:
    """A labelled set in its official layout, and how its clips are seen."""

    set: str = ''  # a key of jepa_jax.data.labelled.READERS
    path: str = ''  # folder with the official files
    videos: str = ''  # folder with the videos or pictures; empty: the same
    official: bool = True  # refuse files that hold other counts than the official ones
    frames: int = 16  # a clip; a picture is repeated so often
    step: int = 4  # every n-th frame of the file; ek100: as many as make 8 a second
    segments: int = 2  # clips of a video, whose tokens are read together
    views: int = 3  # squares of a frame that probabilities are averaged over
    levels: str = ''  # blocks whose features are read, as 17,19,21,23; empty: the last
    crop: int = 0  # pixels; 0: as the model was trained
    tokens: int = 128  # most tokens of a clip and level that are kept, as means; 0: all
    cache: str = ''  # folder of the features; empty: `features` in the workdir


@dataclass
class HeadsConfig:
    """A grid of attentive heads, trained side by side on the same features."""

    grid: str = 'video'  # a key of jepa_jax.evals.heads.GRIDS: rates and decays
    depth: int = 4  # blocks, the last of them with the query
    heads: int = 16  # of attention, for every model
    epochs: int = 20
    batch: int = 256
    warmup: float = 0.0  # epochs
    chosen_on: float = 0.1  # share of the training clips that the head is chosen on


@dataclass
class LabelledSetConfig(EvalConfig):
    """What evaluations of official sets have in common."""

    places = 'data.path', 'data.videos'

    protocol: str = ''
    probe: str = ''  # name or path of a probe: nothing is trained
    data: BenchmarkDataConfig = field(default_factory=BenchmarkDataConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    batch: int = 1  # clips that go through the encoder together, on each device


@dataclass
class BenchmarkConfig(LabelledSetConfig):
    """A set with one class a clip: see jepa_jax.evals.benchmark."""

    evaluation: str = 'benchmark'
    # exact: every clip once, the head chosen on training clips | upstream: as the original does it
    protocol: str = 'exact'
    random_baseline: bool = False  # an untrained encoder of the same shape: all of it again


@dataclass
class AnticipationConfig(LabelledSetConfig):
    """EPIC-KITCHENS-100, what comes next: see jepa_jax.evals.anticipation."""

    evaluation: str = 'ek100'
    # upstream: clips end 1 s before the action's end, as in the original's code | before_start:
    # before its start, as in the challenge
    protocol: str = 'upstream'
    classes: str = 'filtered'  # filtered: rows whose action training has | official: all rows
    parts: str = 'both,encoder,predictor'  # what heads read: a row each
    head: str = 'training'  # clips that it is chosen on: training | validation, as the original
