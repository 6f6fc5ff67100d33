"""The schema of a run: what `configs/*.py:get_config` builds, flags override and `validate` checks.

Mutable dataclasses, so that `--config.optim.lr=3e-4` or `--config.data.lists[0].path=clips.txt` can
set any field. Defaults are the released V-JEPA 2 values (reference: vjepa2 §11.1); what has no
sensible default is empty and refused by `validate`. A field that says "0: ..." derives its value
from the named rule. Nothing here needs JAX, so commands answer `--help` and bad settings at once.
"""

import dataclasses
import difflib
import itertools
import json
import math
import os
import pathlib
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jepa_jax.models import SIZES, Size

# kinds of lists that need no path: `data.synthetic` makes the videos; `_few` is for trials
SELF_MADE = ('synthetic', 'synthetic_few')


@dataclass
class Encoder:
    """The vision transformer. Width, depth, heads and MLP ratio come from `size` unless set."""

    size: str = 'vitl'  # a key of jepa_jax.models.SIZES: tiny small base vitl ...
    width: int = 0  # 0: as the size says
    depth: int = 0  # 0: as the size says
    heads: int = 0  # 0: as the size says
    mlp_ratio: float = 0.0  # 0: as the size says
    patch: int = 16  # pixels, square
    tubelet: int = 2  # frames
    position: str = 'rope'  # rope | sincos
    uniform_power: bool = True  # sincos only: equal shares of the width for t, y and x
    mlp: str = 'gelu'  # gelu | swiglu (two thirds of the hidden width) | swiglu_full


@dataclass
class Predictor:
    """The narrow transformer that fills in the features of masked tokens."""

    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    mask_tokens: int = 10  # as the released files; frame-count group i of a batch uses token i
    zero_init_mask_tokens: bool = True
    mlp: str = 'gelu'  # gelu | swiglu | swiglu_full


@dataclass
class MaskBlocks:
    """One multi-block mask: every block hides a box of the token grid, the rest is context."""

    num_blocks: int = 8
    spatial_scale: tuple[float, float] = (0.15, 0.15)  # share of the frame that a block covers
    temporal_scale: tuple[float, float] = (1.0, 1.0)  # share of the clip's length, likewise
    aspect_ratio: tuple[float, float] = (0.75, 1.5)  # height over width
    max_temporal_keep: float = 1.0  # context only from this first share of the clip
    max_keep: int = 0  # most context tokens; 0: no bound
    full_complement: bool = False  # targets are all tokens that are not context
    pred_full_complement: bool = False  # context is all tokens that are not targets
    inverse: bool = False  # swap context and target


@dataclass
class DataList:
    """One list of records and its share of the batch."""

    path: str = ''  # what `kind` reads: a list file, a folder, a manifest, a prepared dataset
    kind: str = 'videos'  # a key of jepa_jax.data.SOURCES
    weight: float = 1.0  # sampling weight, relative to the other lists
    frames: int = 0  # frames a clip; 0: data.frames


@dataclass
class Augment:
    """Random resized crop and flip, the same for all frames of a clip."""

    scale: tuple[float, float] = (0.3, 1.0)  # share of the frame's area
    ratio: tuple[float, float] = (0.75, 1.35)  # width over height
    flip: bool = True  # horizontally, with probability one half
    motion_shift: bool = False  # crop window moves linearly from one random crop to another


@dataclass
class Data:
    """Where clips come from and how they are cut."""

    lists: list[DataList] = field(default_factory=lambda: [DataList()])
    crop: int = 256  # pixels, square
    frames: int = 16  # frames a clip
    fps: int = 4  # frames a second to sample at; exactly one of fps, frame_step, duration is not 0
    frame_step: int = 0  # take every n-th frame
    duration: float = 0.0  # seconds that a clip spans
    augment: Augment = field(default_factory=Augment)
    workers: int = 0  # processes that decode; 0: decode in threads of the main process
    prefetch: int = 2  # batches that each worker holds ready
    attempts: int = 16  # records tried in place of an unreadable one before the run stops
    max_failure_share: float = 0.2  # unreadable share of records tried, above which the run stops
    cache: str = ''  # folder for decoded clips; empty: no cache
    cache_gib: float = 20.0  # size at which the cache stops growing, GiB
    worker_timeout: float = 300.0  # seconds without a batch after which the run stops and says so


@dataclass
class Optim:
    """AdamW and its schedules. k is the 1-based step, T = int(stretch * steps)."""

    batch: int = 3072  # clips a step, over all devices
    accumulate: int = 1  # parts of a batch, run one by one: same update, less memory
    steps: int = 240_000
    schedule: str = 'warmup_cosine'  # warmup_cosine | linear_decay | wsd
    warmup: int = 12_000  # steps
    anneal: int = 0  # wsd only: steps of the final decline
    start_lr: float = 1e-4
    lr: float = 5.25e-4
    final_lr: float = 5.25e-4
    weight_decay: float = 0.04
    final_weight_decay: float = 0.04
    stretch: float = 1.25  # schedules are laid out over this multiple of `steps` (ipe_scale)
    momentum: float = 0.99925  # of the target's moving average, at the first step
    final_momentum: float = 0.99925  # at step T
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    loss_exponent: float = 1.0  # 1: L1; 2: half the squared error


@dataclass
class Mesh:
    """Devices as a grid; parameters are sharded over `fsdp`, the batch over both axes."""

    fsdp: int = 1  # at most 128; `data` takes the remaining devices
    remat: str = 'full'  # what the backward pass recomputes: full | dots | none


@dataclass
class Checkpoints:
    every: int = 1000  # steps between saves
    keep: int = 3  # newest ones kept
    keep_every: int = 0  # also keep those at multiples of this step; 0: none
    resume_from: str = ''  # workdir or checkpoint to go on from where this workdir has none
    init_from: str = ''  # likewise, but the weights only, not the optimizer
    restart_schedule: bool = False  # with resume_from: steps from 0, moments kept: a cooldown
    allow_config_change: bool = False  # go on although the stored config differs


@dataclass
class Logging:
    every: int = 10  # steps between lines of metrics.jsonl
    health_every: int = 100  # steps between health checks; 0: never


@dataclass
class Probe:
    """An attentive probe on frozen features at the end of the run; needs a source with labels."""

    enabled: bool = False
    steps: int = 400
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    depth: int = 1  # blocks of the pooler
    heads: int = 4
    seeds: int = 3  # of the probe, and of the random encoder
    bootstrap: int = 1000  # resamples of the test clips behind each interval


@dataclass
class RobotData:
    """Recordings of a robot and what their numbers mean; see jepa_jax.data.robot."""

    kind: str = 'droid'  # a key of jepa_jax.data.robot.READERS: droid | lerobot | rlds | npz
    path: str = ''  # what `kind` reads: a list of folders, or a folder
    robot: str = 'franka'  # its name; weights trained for another are refused
    # droid: key of the metadata; lerobot: video key; rlds: image of the observation; npz: any name
    camera: str = 'left_mp4_path'
    frame: str = 'base'  # of positions and angles: base | camera, which needs extrinsics
    gripper: str = 'closed'  # what 1 means in the recordings: closed | open
    metres: float = 1.0  # that a unit of the recorded positions is: 0.001 for millimetres
    columns: str = ''  # lerobot: names of x,y,z,roll,pitch,yaw,gripper in observation.state; rlds:
    # the observations that are these seven numbers one after the other
    recorded_fps: float = 0.0  # rlds: frames a second of the recordings, which do not say it
    frames: int = 8  # of a piece
    fps: float = 4.0  # frames a second; recordings of a higher rate are thinned out


@dataclass
class ACPredictor:
    """The transformer that predicts the next frame's features from actions. (reference: vjepa2
    §7.1)"""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    # tokens: action and state tokens before each frame's, as released | adaln: they shift, scale
    # and gate every block
    conditioning: str = 'tokens'
    use_states: bool = True  # show it the measured states
    use_extrinsics: bool = False  # and camera poses; conditioning 'tokens' only
    residual: bool = False  # predict the change of the features instead of the features
    # factors of the numbers of an action: metres are small beside the first layer's weights
    action_scale: tuple[float, float, float, float, float, float, float] = (1.0,) * 7
    # of a state; 0: not seen
    state_scale: tuple[float, float, float, float, float, float, float] = (1.0,) * 7


@dataclass
class Rollout:
    """How predictions that follow from predictions are trained. (reference: vjepa2 §7.4)"""

    steps: int = 2  # predictions in a row; 1: none follows from another
    # after which true frames a rollout starts. first: the first, as released | random: one or
    # more, another number every step
    prefix: str = 'first'
    stop_gradient: bool = False  # no gradient through one prediction into the one before
    normalise: bool = True  # standardise predictions, as their targets are


@dataclass
class TrainConfig:
    """One run of `python -m jepa_jax.train`."""

    name: str = ''
    seed: int = 239
    compute_dtype: str = 'bfloat16'  # of matmul inputs: bfloat16 | float32; the rest is float32
    # static: four compiled shapes | single: one, for trials | reference: one a step, for parity
    mask_sampler: str = 'static'
    masks: list[MaskBlocks] = field(
        default_factory=lambda: [
            MaskBlocks(num_blocks=8, spatial_scale=(0.15, 0.15)),
            MaskBlocks(num_blocks=2, spatial_scale=(0.7, 0.7)),
        ]
    )
    encoder: Encoder = field(default_factory=Encoder)
    predictor: Predictor = field(default_factory=Predictor)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    mesh: Mesh = field(default_factory=Mesh)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    logging: Logging = field(default_factory=Logging)
    probe: Probe = field(default_factory=Probe)


@dataclass
class Collection:
    """Recordings of the simulated arm at play; see jepa_jax.sims.collect. Two collections that
    differ in the seed share no episode."""

    episodes: int = 400
    frames: int = 20  # of an episode, four a second; one more than actions
    image_size: int = 64  # pixels, square; even
    seed: int = 0
    explore: float = 0.3  # shares of the kinds: the tool drifts about,
    reach: float = 0.3  # goes to places, half of them at the cube,
    pick: float = 0.4  # picks the cube up and puts it down
    noise: float = 0.02  # metres; each episode draws its strength from 0 to this
    max_step: float = 0.05  # metres along an axis
    vary: bool = False  # each episode in a scene of its own colour, size, light and camera


@dataclass
class RobotTrainConfig(TrainConfig):
    """A run that post-trains an action-conditioned predictor on a frozen encoder.

    Of the parts of TrainConfig `masks`, `predictor`, `probe`, `data.lists` and the rates of `data`
    have no meaning here.
    """

    encoder_from: str = ''  # name or path of the frozen encoder; 'random': for tests of the pipes
    features: str = ''  # folder for its features, computed once; empty: anew in every step
    features_dtype: str = 'float16'  # as stored: float16 | bfloat16
    # draw the crop of every piece as data.augment says, in place of the middle; the encoder then
    # runs in every step
    augment: bool = False
    robot: RobotData = field(default_factory=RobotData)
    ac: ACPredictor = field(default_factory=ACPredictor)
    rollout: Rollout = field(default_factory=Rollout)


@dataclass
class SimEvaluation:
    """Planning in the simulator, and what it is compared with; see jepa_jax.sims.evaluate."""

    tasks: str = 'reach'  # keys of jepa_jax.sims.tasks.TASKS, with commas between
    episodes: int = 50  # of each task
    # of an untrained predictor, and of one on a random encoder, which plan as long; 0: as many
    compared: int = 0
    judged: int = 20  # scenes in which cost and dynamics are judged, without a closed loop
    samples: int = 128  # of the cross-entropy method
    iterations: int = 6
    elites: int = 12
    horizon: int = 1
    max_step: float = 0.05  # metres along an axis
    exponent: int = 1  # of the distance of features: 1 | 2
    at_once: int = 1  # episodes that are planned side by side; more keeps an accelerator busy
    # episodes that are also planned with the simulator itself in place of the predictor, once with
    # the distance of features and once with that of pixels; slow
    simulator_episodes: int = 0
    # also post-train on an encoder of random weights, as long, and plan with that
    random_encoder: bool = False


@dataclass
class SimGates:
    """What a run must reach at least, or it ends as failed; 0 asks for nothing."""

    # predictions' error with another episode's actions over that with their own; 1: ignores actions
    shuffled_over_true: float = 0.0
    rank_correlation: float = 0.0  # of the cost with the distance in metres
    nearer: float = 0.0  # share of the way that the median episode of `reach` covers
    within_8_cm: float = 0.0  # share of episodes of `reach` that end so near
    reach: float = 0.0  # shares of success
    grasp: float = 0.0


@dataclass
class SimConfig:
    """A run in the simulator: play, pretrain an encoder, post-train a predictor, plan.

    What one stage takes from another (paths, crop, encoder) is filled in; see
    jepa_jax.sims.closed_loop.
    """

    name: str = ''
    seed: int = 239
    workers: int = 2  # processes that play
    collection: Collection = field(default_factory=Collection)
    pretrain: TrainConfig = field(default_factory=TrainConfig)
    posttrain: RobotTrainConfig = field(default_factory=RobotTrainConfig)
    evaluation: SimEvaluation = field(default_factory=SimEvaluation)
    gates: SimGates = field(default_factory=SimGates)


class ConfigError(ValueError):
    """A setting that cannot work: names the field, what was found and what is allowed."""


def cache_root() -> pathlib.Path:
    """Where everything that can be made again lies: $JEPA_JAX_CACHE, or ~/.cache/jepa_jax."""
    return pathlib.Path(os.environ.get('JEPA_JAX_CACHE') or pathlib.Path.home() / '.cache/jepa_jax')


def to_json(config: TrainConfig) -> str:
    """The config as indented JSON, stable in order."""
    return json.dumps(dataclasses.asdict(config), indent=2) + '\n'


def from_dict(values: dict[str, Any], kind: type | None = None) -> Any:
    """The config that `to_json` or a checkpoint stored; fields that it lacks have their defaults.

    Raises:
      ConfigError: a field that the schema does not have.
    """
    if kind is None:
        kind = RobotTrainConfig if 'ac' in values else TrainConfig
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise ConfigError(f'{unknown[0]}: no such field{nearest(unknown[0], hints)}')

    def build(hint: Any, value: Any) -> Any:
        parts = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            return from_dict(value, hint)
        if typing.get_origin(hint) is list:
            return [build(parts[0], item) for item in value]
        return tuple(value) if typing.get_origin(hint) is tuple else value

    return kind(**{key: build(hints[key], value) for key, value in values.items()})


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = '') -> list[str]:
    """Lines `field: old -> new` for every leaf in which two config dicts (from JSON) differ."""
    lines = []
    for key in sorted(set(old) | set(new)):
        name = f'{prefix}{key}'
        a, b = old.get(key, '(absent)'), new.get(key, '(absent)')
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, name + '.')
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and _are_parts(a + b):
            for i, (x, y) in enumerate(zip(a, b)):
                lines += differences(x, y, f'{name}[{i}].')
        elif a != b:
            lines.append(f'{name}: {a} -> {b}')
    return lines


def _are_parts(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


RELEASED = Optim()  # what runs of another batch are compared with


def encoder_shape(encoder: Encoder) -> Size:
    """Width, depth, heads and MLP ratio of the encoder: those set, the others as its size says.

    Raises:
      ConfigError: `size` is no key of jepa_jax.models.SIZES.
    """
    if encoder.size not in SIZES:
        raise ConfigError(f"encoder.size = '{encoder.size}': {_allowed(encoder.size, SIZES)}")
    size = SIZES[encoder.size]
    names = (f.name for f in dataclasses.fields(Size))
    return Size(*(getattr(encoder, name) or getattr(size, name) for name in names))


def frame_counts(data: Data) -> list[int]:
    """The distinct frame counts of the lists, in order: one group of a batch each."""
    return list(dict.fromkeys(item.frames or data.frames for item in data.lists))


def horizon(optim: Optim) -> int:
    """T: the step over which schedules are laid out. (reference: vjepa2 §5.3)"""
    return int(optim.stretch * optim.steps)


def half_life(momentum: float) -> float:
    """Steps after which half of a moving average has been replaced: log(1/2) / log(momentum)."""
    if not 0 < momentum < 1:
        return 0.0 if momentum <= 0 else math.inf
    return math.log(0.5) / math.log(momentum)


def fields(config: Any, prefix: str = '') -> Iterator[tuple[str, Any, Any]]:
    """(name, type, value) of every leaf; names as flags spell them, `masks[0].num_blocks`."""
    hints = typing.get_type_hints(type(config))
    for key, kind in hints.items():
        name, value = f'{prefix}{key}', getattr(config, key)
        if dataclasses.is_dataclass(kind) and isinstance(value, kind):
            yield from fields(value, name + '.')
        elif typing.get_origin(kind) is list and isinstance(value, list):
            (part,) = typing.get_args(kind)
            for i, item in enumerate(value):
                if isinstance(item, part):
                    yield from fields(item, f'{name}[{i}].')
                else:
                    yield f'{name}[{i}]', part, item
        else:
            yield name, kind, value


@dataclass(frozen=True)
class Rule:
    """A test of one value, and its words."""

    holds: typing.Callable[[Any], bool]
    allowed: str

    def complaint(self, value: Any) -> str:
        return f'must be {self.allowed}'


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        return value in self.words

    def complaint(self, value: Any) -> str:
        return _allowed(value, self.words)


def _range(low: float, high: float, what: str) -> Rule:
    """An ascending pair above `low`, up to and including `high`."""
    return Rule(lambda v: low < v[0] <= v[1] <= high, f'a pair LOW, HIGH, {what}, LOW <= HIGH')


POSITIVE = Rule(lambda v: v > 0, 'more than 0')
NOT_NEGATIVE = Rule(lambda v: v >= 0, 'at least 0')
SHARE = Rule(lambda v: 0 <= v <= 1, 'from 0 to 1')
BELOW_ONE = Rule(lambda v: 0 <= v < 1, 'from 0 to less than 1')
SHARES = _range(0, 1, 'above 0 and at most 1')
RATIOS = _range(0, math.inf, 'above 0')
MLPS = OneOf(('gelu', 'swiglu', 'swiglu_full'))
MIN_ROPE = 12  # channels a head that three axes of RoPE need (reference: vjepa2 §1.3)
MAX_FSDP = 128  # every width of the family divides by it, and uneven shards are refused

# Every number and pair of the schema has a row (a test says so), and every word of a fixed choice.
RULES: dict[str, Rule | OneOf] = {
    'name': Rule(lambda v: not set(v) & set('/\\'), 'a name without slashes: it names a folder'),
    'seed': Rule(lambda v: 0 <= v < 2**32, 'from 0 to 4294967295'),
    'compute_dtype': OneOf(('bfloat16', 'float32')),
    'mask_sampler': OneOf(('static', 'single', 'reference')),
    'masks[].num_blocks': POSITIVE,
    'masks[].spatial_scale': SHARES,
    'masks[].temporal_scale': SHARES,
    'masks[].aspect_ratio': RATIOS,
    'masks[].max_temporal_keep': Rule(lambda v: 0 < v <= 1, 'above 0 and at most 1'),
    'masks[].max_keep': NOT_NEGATIVE,
    'encoder.size': OneOf(tuple(SIZES)),
    'encoder.width': NOT_NEGATIVE,
    'encoder.depth': NOT_NEGATIVE,
    'encoder.heads': NOT_NEGATIVE,
    'encoder.mlp_ratio': NOT_NEGATIVE,
    'encoder.patch': POSITIVE,
    'encoder.tubelet': POSITIVE,
    'encoder.position': OneOf(('rope', 'sincos')),
    'encoder.mlp': MLPS,
    'predictor.width': POSITIVE,
    'predictor.depth': POSITIVE,
    'predictor.heads': POSITIVE,
    'predictor.mlp_ratio': POSITIVE,
    'predictor.mask_tokens': POSITIVE,
    'predictor.mlp': MLPS,
    'data.lists[].weight': POSITIVE,
    'data.lists[].frames': NOT_NEGATIVE,
    'data.crop': POSITIVE,
    'data.frames': POSITIVE,
    'data.fps': NOT_NEGATIVE,
    'data.frame_step': NOT_NEGATIVE,
    'data.duration': NOT_NEGATIVE,
    'data.augment.scale': SHARES,
    'data.augment.ratio': RATIOS,
    'data.workers': NOT_NEGATIVE,
    'data.prefetch': POSITIVE,
    'data.attempts': POSITIVE,
    'data.max_failure_share': SHARE,
    'data.cache_gib': POSITIVE,
    'data.worker_timeout': POSITIVE,
    'optim.batch': POSITIVE,
    'optim.accumulate': POSITIVE,
    'optim.steps': POSITIVE,
    'optim.schedule': OneOf(('warmup_cosine', 'linear_decay', 'wsd')),
    'optim.warmup': NOT_NEGATIVE,
    'optim.anneal': NOT_NEGATIVE,
    'optim.start_lr': NOT_NEGATIVE,
    'optim.lr': POSITIVE,
    'optim.final_lr': NOT_NEGATIVE,
    'optim.weight_decay': NOT_NEGATIVE,
    'optim.final_weight_decay': NOT_NEGATIVE,
    'optim.stretch': Rule(lambda v: v >= 1, 'at least 1'),
    'optim.momentum': BELOW_ONE,
    'optim.final_momentum': SHARE,
    'optim.beta1': BELOW_ONE,
    'optim.beta2': BELOW_ONE,
    'optim.eps': POSITIVE,
    'optim.loss_exponent': Rule(lambda v: v >= 1, 'at least 1'),
    'mesh.fsdp': Rule(lambda v: 1 <= v <= MAX_FSDP, f'from 1 to {MAX_FSDP}'),
    'mesh.remat': OneOf(('full', 'dots', 'none')),
    'checkpoints.every': POSITIVE,
    'checkpoints.keep': POSITIVE,
    'checkpoints.keep_every': NOT_NEGATIVE,
    'logging.every': POSITIVE,
    'logging.health_every': NOT_NEGATIVE,
    'probe.steps': POSITIVE,
    'probe.batch': POSITIVE,
    'probe.lr': POSITIVE,
    'probe.weight_decay': NOT_NEGATIVE,
    'probe.depth': POSITIVE,
    'probe.heads': POSITIVE,
    'probe.seeds': POSITIVE,
    'probe.bootstrap': POSITIVE,
    'features_dtype': OneOf(('float16', 'bfloat16')),
    'robot.frame': OneOf(('base', 'camera')),
    'robot.gripper': OneOf(('closed', 'open')),
    'robot.metres': POSITIVE,
    'robot.frames': Rule(lambda v: v >= 2, 'at least 2'),
    'robot.fps': POSITIVE,
    'robot.recorded_fps': NOT_NEGATIVE,
    'ac.width': POSITIVE,
    'ac.depth': POSITIVE,
    'ac.heads': POSITIVE,
    'ac.mlp_ratio': POSITIVE,
    'ac.conditioning': OneOf(('tokens', 'adaln')),
    'ac.action_scale': Rule(lambda v: all(x > 0 for x in v), '7 numbers above 0'),
    'ac.state_scale': Rule(lambda v: all(x >= 0 for x in v), '7 numbers, none below 0'),
    'rollout.steps': POSITIVE,
    'rollout.prefix': OneOf(('first', 'random')),
}


def validate(config: TrainConfig | SimConfig) -> None:
    """Refuses what cannot work, as far as the config alone tells.

    Files, kinds of source, devices and the geometry of masks are checked where they are made.

    Raises:
      ConfigError: one line with the first field at fault, what was found and what is allowed.
    """
    _check_types(config)
    if isinstance(config, SimConfig):
        return  # its stages are validated when they know each other's paths
    for name, _, value in fields(config):
        rule = RULES.get(_row(name))
        if rule and not rule.holds(value):
            raise ConfigError(f'{name} = {value!r}: {rule.complaint(value)}')
    robot = isinstance(config, RobotTrainConfig)
    found = itertools.chain(
        _robot_conflicts(config) if robot else _conflicts(config), _schedule_conflicts(config)
    )
    if conflict := next(found, None):
        raise ConfigError(conflict)


def _row(name: str) -> str:
    """`data.lists[2].path` -> `data.lists[].path`."""
    return '.'.join(part.split('[')[0] + '[]' * ('[' in part) for part in name.split('.'))


def _allowed(found: Any, words: typing.Iterable[str]) -> str:
    words = list(words)
    return f'allowed are {", ".join(words)}{nearest(str(found), words)}'


def nearest(found: str, words: typing.Iterable[str]) -> str:
    """`; did you mean X?` for a word near to the one found, else nothing."""
    near = difflib.get_close_matches(found, list(words), n=1)
    return f'; did you mean {near[0]}?' if near else ''


def _check_types(config: Any, prefix: str = '') -> None:
    """Types as annotated, finite numbers, no field beyond the schema's: a dataclass takes any."""
    names = [f.name for f in dataclasses.fields(config)]
    if extra := sorted(set(vars(config)) - set(names)):
        raise ConfigError(f'{prefix}{extra[0]}: no such field{nearest(extra[0], names)}')
    hints = typing.get_type_hints(type(config))
    for key in names:
        _check_type(f'{prefix}{key}', hints[key], getattr(config, key))


def _check_type(name: str, kind: Any, value: Any) -> None:
    parts = typing.get_args(kind)
    origin = typing.get_origin(kind) or kind
    if dataclasses.is_dataclass(origin) and isinstance(value, origin):
        return _check_types(value, name + '.')
    if origin in (list, tuple) and isinstance(value, origin):
        if origin is tuple and len(value) != len(parts):
            raise ConfigError(f'{name} = {value!r}: must hold {len(parts)} values')
        if origin is list and not value:
            raise ConfigError(f'{name} = []: must hold at least one {parts[0].__name__}')
        for i, item in enumerate(value):
            _check_type(f'{name}[{i}]', parts[i] if origin is tuple else parts[0], item)
        return None
    # a bool is an int to Python, but not to a reader; a whole number serves as a float
    fits = isinstance(value, (int, float) if origin is float else origin)
    if not fits or (isinstance(value, bool) and origin is not bool):
        raise ConfigError(
            f'{name} = {value!r}: must be of type {origin.__name__}, found {type(value).__name__}'
        )
    if origin is float and not math.isfinite(value):
        raise ConfigError(f'{name} = {value!r}: must be a finite number')
    return None


def _conflicts(config: TrainConfig) -> Iterator[str]:
    """What no single field is to blame for."""
    encoder, predictor, data = config.encoder, config.predictor, config.data
    shape = encoder_shape(encoder)
    for name, width, heads in (
        ('encoder', shape.width, shape.heads),
        ('predictor', predictor.width, predictor.heads),
    ):
        if width % heads:
            yield f'{name}.width = {width}: must be a multiple of {name}.heads = {heads}'
        if encoder.position == 'rope' and width // heads < MIN_ROPE:
            yield (
                f'{name}: {width // heads} channels a head (width {width} over {heads} heads), '
                f"must be at least {MIN_ROPE} for position 'rope'"
            )
        if encoder.position == 'sincos' and not encoder.uniform_power and width % 8:
            yield f"{name}.width = {width}: must be a multiple of 8 for position 'sincos'"
        if width % config.mesh.fsdp:
            yield f'mesh.fsdp = {config.mesh.fsdp}: must divide {name}.width = {width}'
    if config.probe.enabled and shape.width % config.probe.heads:
        yield f'probe.heads = {config.probe.heads}: must divide encoder.width = {shape.width}'

    if data.crop % encoder.patch:
        yield f'data.crop = {data.crop}: must be a multiple of encoder.patch = {encoder.patch}'
    for i, item in enumerate(data.lists):
        frames = item.frames or data.frames
        if frames % encoder.tubelet:
            name = f'data.lists[{i}].frames' if item.frames else 'data.frames'
            yield f'{name} = {frames}: must be a multiple of encoder.tubelet = {encoder.tubelet}'
        if not item.path and item.kind not in SELF_MADE:
            yield (
                f"data.lists[{i}].path is empty: kind '{item.kind}' needs a file or folder, "
                f'--config.data.lists[{i}].path=PATH'
            )
    rates = {key: getattr(data, key) for key in ('fps', 'frame_step', 'duration')}
    if sum(value > 0 for value in rates.values()) != 1:
        found = ', '.join(f'{key} = {value}' for key, value in rates.items())
        yield f'data: exactly one of fps, frame_step, duration must be more than 0, found {found}'
    counts = frame_counts(data)
    if len(counts) > predictor.mask_tokens:
        yield (
            f'predictor.mask_tokens = {predictor.mask_tokens}: must be at least {len(counts)}, '
            f'one for each frame count in data.lists: {", ".join(map(str, counts))}'
        )
    tokens = min(counts) // encoder.tubelet * (data.crop // encoder.patch) ** 2
    for i, mask in enumerate(config.masks):
        # one token at least is left to predict
        if mask.max_keep >= tokens:
            yield (
                f'masks[{i}].max_keep = {mask.max_keep}: must be less than the {tokens} tokens of '
                f'a clip of {min(counts)} frames and {data.crop} pixels; 0 means no bound'
            )
        if mask.full_complement and mask.pred_full_complement:
            yield f'masks[{i}]: full_complement and pred_full_complement exclude each other'


def _robot_conflicts(config: RobotTrainConfig) -> Iterator[str]:
    encoder, ac, robot = config.encoder, config.ac, config.robot
    shape = encoder_shape(encoder)
    for name, width, heads in (
        ('encoder', shape.width, shape.heads),
        ('ac', ac.width, ac.heads),
    ):
        if width % heads:
            yield f'{name}.width = {width}: must be a multiple of {name}.heads = {heads}'
        if width // heads < MIN_ROPE:
            yield (
                f'{name}: {width // heads} channels a head (width {width} over {heads} heads), '
                f'must be at least {MIN_ROPE}'
            )
        if width % config.mesh.fsdp:
            yield f'mesh.fsdp = {config.mesh.fsdp}: must divide {name}.width = {width}'
    if config.data.crop % encoder.patch:
        yield (
            f'data.crop = {config.data.crop}: must be a multiple of encoder.patch = {encoder.patch}'
        )
    if config.rollout.steps >= robot.frames:
        yield (
            f'rollout.steps = {config.rollout.steps}: must be less than robot.frames = '
            f'{robot.frames}'
        )
    if config.augment and config.features:
        yield (
            f'augment = true with features = {config.features!r}: features are computed once, of '
            "one crop; set features = ''"
        )
    if config.augment and config.data.augment.flip:
        yield 'augment = true: set data.augment.flip = false, a mirrored arm moves the other way'
    if ac.use_extrinsics and ac.conditioning != 'tokens':
        yield f"ac.use_extrinsics: needs ac.conditioning = 'tokens', found {ac.conditioning!r}"
    if not config.encoder_from:
        yield (
            'encoder_from is empty: name the frozen encoder, --config.encoder_from=NAME_OR_PATH '
            "('random' tests the pipes)"
        )
    if not robot.path and robot.kind != 'synthetic':
        yield f"robot.path is empty: kind '{robot.kind}' needs --config.robot.path=PATH"
    if config.probe.enabled:
        yield 'probe.enabled: a run on recordings of a robot has no probe'


def _schedule_conflicts(config: TrainConfig) -> Iterator[str]:
    """What all runs have in common."""
    optim = config.optim
    if optim.batch % optim.accumulate:
        yield (
            f'optim.batch = {optim.batch}: must be a multiple of optim.accumulate = '
            f'{optim.accumulate}'
        )
    # warmup_cosine may end inside its warm-up, as the public ViT-L and ViT-H files do
    if optim.schedule == 'linear_decay' and optim.warmup:
        yield f"optim.warmup = {optim.warmup}: must be 0 with schedule 'linear_decay'"
    if optim.schedule != 'wsd' and optim.anneal:
        yield f"optim.anneal = {optim.anneal}: must be 0 with schedule '{optim.schedule}'"
    if optim.schedule == 'wsd' and optim.warmup + optim.anneal > horizon(optim):
        yield (
            f'optim.warmup + optim.anneal = {optim.warmup + optim.anneal}: must be at most '
            f'stretch * steps = {horizon(optim)}'
        )

    saved = config.checkpoints
    if saved.resume_from and saved.init_from:
        yield 'checkpoints.resume_from and checkpoints.init_from are both set: set one of them'
    if saved.restart_schedule and not saved.resume_from:
        yield (
            'checkpoints.resume_from is empty: a cooldown (restart_schedule) goes on from a '
            'pretraining run, --config.checkpoints.resume_from=WORKDIR'
        )


def parse_arg(arg: str, *phases: str) -> tuple[str, bool]:
    """The argument of a config file, `PHASE,smoke` with both parts optional -> (phase, smoke).

    The first of `phases` is the default.

    Raises:
      ConfigError: another word, or a second phase.
    """
    words = [word.strip() for word in arg.split(',') if word.strip()]
    chosen = [word for word in words if word != 'smoke']
    for word in chosen:
        if word not in phases:
            raise ConfigError(f"config argument '{word}': {_allowed(word, (*phases, 'smoke'))}")
    if len(chosen) > 1:
        raise ConfigError(f"config argument '{arg}': choose one of {', '.join(phases)}")
    return (chosen or phases)[0], 'smoke' in words


def smoke(config: TrainConfig) -> TrainConfig:
    """Shrinks a run to a minute on two cores: 24 steps of a tiny model on self-made videos.

    Widths, depths, pixels, frames and batch shrink; masks (but for the number of their shapes), the
    lists' weights and relative frame counts, schedules, accumulation and saving keep their form. A
    cooldown starts from nothing unless `checkpoints.resume_from` and `checkpoints.restart_schedule`
    are given again.
    """
    if isinstance(config, RobotTrainConfig):
        return _robot_smoke(config)
    encoder, data = config.encoder, config.data
    before = frame_counts(data), data.crop
    config.name = f'{config.name}-smoke'
    encoder.width, encoder.depth, encoder.heads, encoder.mlp_ratio = 48, 2, 2, 4.0
    config.predictor.width, config.predictor.depth, config.predictor.heads = 24, 2, 2

    def shrink(size: int, unit: int, least: int) -> int:
        return max(least, round(size / 4 / unit)) * unit

    # four tokens a side are the fewest on which blocks of the released shares leave some context
    data.crop = shrink(data.crop, encoder.patch, 4)
    data.frames = shrink(data.frames, encoder.tubelet, 2)
    for item in data.lists:
        item.kind, item.path = 'synthetic_few', ''
        item.frames = item.frames and shrink(item.frames, encoder.tubelet, 2)
    data.fps, data.frame_step, data.duration = 8, 0, 0.0  # the rate of the self-made videos
    data.workers = 2
    config.mask_sampler = 'single'  # one program to compile, not four
    share = data.crop**2 * min(frame_counts(data)) / (before[1] ** 2 * min(before[0]))
    for mask in config.masks:
        mask.max_keep = mask.max_keep and max(2, int(mask.max_keep * share))

    _few_steps(config)
    probe = config.probe
    probe.steps, probe.batch, probe.seeds, probe.bootstrap, probe.heads = 20, 32, 2, 100, 2
    return config


def _few_steps(config: TrainConfig) -> None:
    optim = config.optim
    share, optim.steps = 24 / optim.steps, 24
    optim.warmup, optim.anneal = math.ceil(optim.warmup * share), math.ceil(optim.anneal * share)
    optim.batch, optim.accumulate = 16, min(optim.accumulate, 2)
    config.mesh.fsdp = 1
    saved = config.checkpoints
    saved.every, saved.keep_every = 6, 12 if saved.keep_every else 0
    saved.resume_from, saved.restart_schedule = '', False
    config.logging.every, config.logging.health_every = 1, 8


def _robot_smoke(config: RobotTrainConfig) -> RobotTrainConfig:
    """24 steps of a tiny predictor on self-made recordings and a random encoder."""
    config.name = f'{config.name}-smoke'
    encoder, ac = config.encoder, config.ac
    encoder.width, encoder.depth, encoder.heads, encoder.mlp_ratio = 48, 2, 2, 4.0
    ac.width, ac.depth, ac.heads = 48, 2, 2
    config.encoder_from = 'random'
    config.data.crop = 4 * encoder.patch
    config.data.workers = 2
    robot = config.robot
    robot.kind, robot.path, robot.frames, robot.fps = 'synthetic', '', 4, 4.0
    config.rollout.steps = min(config.rollout.steps, 3)
    _few_steps(config)
    return config


def describe(config: TrainConfig) -> list[str]:
    """What batch, schedule and moving average mean in clips, beside the released recipe."""
    from jepa_jax.optim import learning_rate  # here, because it needs JAX

    c, released = config.optim, RELEASED
    if isinstance(config, RobotTrainConfig):
        rate = [f'{float(learning_rate(c)(step)):.3g}' for step in (0, c.steps - 1)]
        return [
            f'batch {c.batch:,} pieces of {config.robot.frames} frames, {c.steps:,} steps '
            '(released: 256 of 8, 94,500)',
            f'learning rate {rate[0]} at the first step, at most {max(c.lr, c.start_lr):.3g}, '
            f'{rate[1]} at the last ({c.schedule})',
        ]
    parts = f' in {c.accumulate} parts of {c.batch // c.accumulate:,}' if c.accumulate > 1 else ''
    rate = [f'{float(learning_rate(c)(step)):.3g}' for step in (0, c.steps - 1)]
    lines = [
        f'batch {c.batch:,} clips{parts}, {c.steps:,} steps = {c.batch * c.steps:,} clips '
        f'(released: {released.batch:,} x {released.steps:,} = '
        f'{released.batch * released.steps:,})',
        f'learning rate {rate[0]} at the first step, at most {max(c.lr, c.start_lr):.3g}, '
        f'{rate[1]} at the last ({c.schedule})',
    ]
    if c.warmup:
        lines[1] += (
            f'; warm-up {c.warmup:,} steps = {c.batch * c.warmup:,} clips '
            f'(released: {released.batch * released.warmup:,})'
        )
    if c.warmup >= c.steps:
        lines.append('the run ends inside its warm-up, as in the public ViT-L and ViT-H files')
    if c.batch != released.batch:
        lines.append(
            f'batch differs from the released {released.batch:,}: the authors do not advise '
            'scaling the learning rate linearly with it; '
            f'theirs is {released.lr:.3g}; rate and EMA momentum are what to vary first'
        )
    ends = dict.fromkeys((c.momentum, c.final_momentum))  # one if constant
    for momentum, where in zip(ends, ('', ' at the end')):
        steps = half_life(momentum)
        lines.append(
            f'EMA momentum {momentum:.8g}{where}: half-life {steps:,.0f} steps = '
            f'{steps * c.batch:,.0f} clips = {steps / c.steps:.1%} of the run'
        )
    if c.batch != released.batch:
        same = released.momentum ** (c.batch / released.batch)
        lines.append(
            f'EMA as released: half-life {half_life(released.momentum):,.0f} steps = '
            f'{half_life(released.momentum) * released.batch:,.0f} clips; the same number of clips '
            f'at batch {c.batch:,} takes momentum {same:.8g}'
        )
    return lines
