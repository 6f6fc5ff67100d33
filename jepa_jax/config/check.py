"""Whether a config can work, as far as it alone tells.

Types and ranges are judged here, for every part wherever it stands, and what all runs have in
common. What fields of one recipe say together is judged by its `check` (see jepa_jax.recipes), a
generator of complaints. Files, kinds of source, devices and the geometry of masks are checked where
they are made.
"""

import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jepa_jax.config import benchmark, labelled, parts
from jepa_jax.config.derived import horizon
from jepa_jax.config.parts import REMAT, EncoderConfig
from jepa_jax.config.runs import EvalConfig, RunConfig
from jepa_jax.errors import ConfigError, allowed, nearest
from jepa_jax.models import SIZE_ALIASES, SIZES, VERSIONS


@dataclass(frozen=True)
class Rule:
    """A test of one value, and its words."""

    holds: typing.Callable[[Any], bool]
    words: str

    def complaint(self, value: Any) -> str:
        return f'must be {self.words}'


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]
    aliases: tuple[str, ...] = ()  # also allowed, and not offered

    def holds(self, value: Any) -> bool:
        return value in self.words or value in self.aliases

    def complaint(self, value: Any) -> str:
        return allowed(value, self.words)


@dataclass(frozen=True)
class SomeOf:
    """Some of a few words, as `a,b`; none if empty."""

    words: tuple[str, ...]

    def holds(self, value: str) -> bool:
        return self._wrong(value) is None

    def _wrong(self, value: str) -> str | None:
        entries = value.split(',') if value else []
        return next((w for w in entries if w not in self.words or entries.count(w) > 1), None)

    def complaint(self, value: str) -> str:
        return allowed(self._wrong(value), self.words)


def _range(low: float, high: float, what: str) -> Rule:
    """An ascending pair above `low`, up to and including `high`."""
    return Rule(lambda v: low < v[0] <= v[1] <= high, f'a pair LOW, HIGH, {what}, LOW <= HIGH')


def _numbers(text: str) -> list[float]:
    """Those that commas separate; one that nothing allows where a word is none that is finite."""
    try:
        numbers = [float(word) for word in text.split(',')]
    except ValueError:
        return [-math.inf]
    return numbers if all(map(math.isfinite, numbers)) else [-math.inf]


POSITIVE = Rule(lambda v: v > 0, 'more than 0')
NOT_NEGATIVE = Rule(lambda v: v >= 0, 'at least 0')
AT_LEAST_ONE = Rule(lambda v: v >= 1, 'at least 1')
SHARE = Rule(lambda v: 0 <= v <= 1, 'from 0 to 1')
BELOW_ONE = Rule(lambda v: 0 <= v < 1, 'from 0 to less than 1')
SHARES = _range(0, 1, 'above 0 and at most 1')
RATIOS = _range(0, math.inf, 'above 0')
MLPS = OneOf(('gelu', 'swiglu', 'swiglu_full'))
MIN_ROPE = 12  # channels a head that three axes of RoPE need (reference: vjepa2 §1.3)
MAX_FSDP = 128  # every width of the family divides by it, and uneven shards are refused

# Of a part and of what extends it; recipes add rows for their own configs. Every number and pair of
# the schema has a row (a test says so), and every word of a fixed choice.
RULES: dict[type, dict[str, Rule | OneOf]] = {
    RunConfig: {
        'name': Rule(
            lambda v: not set(v) & set('/\\'), 'a name without slashes: it names a folder'
        ),
        'seed': Rule(lambda v: 0 <= v < 2**32, 'from 0 to 4294967295'),
        'compute_dtype': OneOf(('bfloat16', 'float32')),
    },
    parts.MaskConfig: {
        'num_blocks': POSITIVE,
        'spatial_scale': SHARES,
        'temporal_scale': SHARES,
        'aspect_ratio': RATIOS,
        'max_temporal_keep': Rule(lambda v: 0 < v <= 1, 'above 0 and at most 1'),
        'max_keep': NOT_NEGATIVE,
        'tube': BELOW_ONE,
    },
    parts.EncoderConfig: {
        'size': OneOf(tuple(SIZES), tuple(SIZE_ALIASES)),
        'version': OneOf(tuple(VERSIONS)),
        'width': NOT_NEGATIVE,
        'depth': NOT_NEGATIVE,
        'heads': NOT_NEGATIVE,
        'mlp_ratio': NOT_NEGATIVE,
        'patch': POSITIVE,
        'tubelet': POSITIVE,
        'position': OneOf(('rope', 'sincos')),
        'axes': OneOf(('yx', 'xy', 'flat')),
        'shorter': OneOf(('first', 'resized')),
        'mlp': MLPS,
    },
    parts.MaskedPredictorConfig: {
        'width': POSITIVE,
        'depth': POSITIVE,
        'heads': POSITIVE,
        'mlp_ratio': POSITIVE,
        'mask_tokens': POSITIVE,
        'tokens_of': OneOf(('frames', 'masks')),
        'mlp': MLPS,
    },
    parts.DataListConfig: {'weight': POSITIVE, 'frames': NOT_NEGATIVE},
    parts.AugmentConfig: {'scale': SHARES, 'ratio': RATIOS},
    parts.LoaderConfig: {
        'workers': NOT_NEGATIVE,
        'prefetch': POSITIVE,
        'attempts': POSITIVE,
        'max_failure_share': SHARE,
        'worker_timeout': POSITIVE,
    },
    parts.ViewConfig: {'crop': POSITIVE},
    parts.DataConfig: {
        'frames': POSITIVE,
        'fps': NOT_NEGATIVE,
        'frame_step': NOT_NEGATIVE,
        'duration': NOT_NEGATIVE,
        'cache_gib': POSITIVE,
    },
    parts.OptimConfig: {
        'batch': POSITIVE,
        'accumulate': NOT_NEGATIVE,
        'steps': POSITIVE,
        'schedule': OneOf(('warmup_cosine', 'linear_decay', 'wsd', 'half_cosine')),
        'warmup': NOT_NEGATIVE,
        'anneal': NOT_NEGATIVE,
        'start_lr': NOT_NEGATIVE,
        'lr': POSITIVE,
        'final_lr': NOT_NEGATIVE,
        'weight_decay': NOT_NEGATIVE,
        'final_weight_decay': NOT_NEGATIVE,
        'ipe_scale': AT_LEAST_ONE,
        'beta1': BELOW_ONE,
        'beta2': BELOW_ONE,
        'eps': POSITIVE,
        'clip': NOT_NEGATIVE,
        'clip_from': NOT_NEGATIVE,
        'layer_decay': Rule(lambda v: 0 < v <= 1, 'above 0 and at most 1'),
    },
    parts.GuardConfig: {
        'deviations': NOT_NEGATIVE,
        'window': Rule(lambda v: v >= 2, 'at least 2'),
        'after': NOT_NEGATIVE,
        'most': POSITIVE,
    },
    parts.EmaOptimConfig: {'momentum': BELOW_ONE, 'final_momentum': SHARE},
    parts.MeshConfig: {
        'fsdp': Rule(lambda v: 0 <= v <= MAX_FSDP, f'from 1 to {MAX_FSDP}, or 0 to choose'),
        'remat': OneOf(REMAT),
    },
    parts.CheckpointsConfig: {'every': POSITIVE, 'keep': POSITIVE, 'keep_every': NOT_NEGATIVE},
    parts.LoggingConfig: {
        'every': POSITIVE,
        'health_every': NOT_NEGATIVE,
        'pictures': NOT_NEGATIVE,
        'sinks': SomeOf(parts.SINKS),
    },
    parts.ProbeConfig: {
        'steps': POSITIVE,
        'batch': POSITIVE,
        'lr': POSITIVE,
        'weight_decay': NOT_NEGATIVE,
        'depth': POSITIVE,
        'heads': POSITIVE,
        'seeds': POSITIVE,
        'bootstrap': POSITIVE,
    },
    parts.LabelledListConfig: {
        # of parts of equal size one is for testing
        'test_share': Rule(lambda v: 0 < v <= 0.5, 'above 0 and at most 0.5'),
        'target': OneOf(('auto', 'class', 'number', 'labels')),
    },
    parts.PeriodicEvalConfig: {
        'every': NOT_NEGATIVE,
        'name': Rule(lambda v: v.isidentifier() or not v, 'letters, digits and underscores'),
        'clips': NOT_NEGATIVE,
    },
    labelled.LabelledDataConfig: {
        'ahead': NOT_NEGATIVE,
        'frames': POSITIVE,
        'fps': POSITIVE,
        'crop': NOT_NEGATIVE,
        'segments': POSITIVE,
        'tokens': NOT_NEGATIVE,
    },
    labelled.AttentiveConfig: {
        'rates': Rule(lambda v: min(_numbers(v)) > 0, 'numbers above 0, as 1e-3,3e-4'),
        'decays': Rule(lambda v: min(_numbers(v)) >= 0, 'numbers, none below 0, as 0.01,0.4'),
        'depth': POSITIVE,
        'heads': NOT_NEGATIVE,
        'epochs': POSITIVE,
        'batch': POSITIVE,
        'least_steps': POSITIVE,
    },
    labelled.OwnConfig: {'batch': POSITIVE},
    benchmark.BenchmarkDataConfig: {
        'frames': POSITIVE,
        'step': POSITIVE,
        'segments': POSITIVE,
        'views': POSITIVE,
        'levels': Rule(
            lambda v: all(x.strip().isdecimal() for x in v.split(',') if v), 'blocks, as 17,19,21'
        ),
        'crop': NOT_NEGATIVE,
        'tokens': NOT_NEGATIVE,
    },
    benchmark.HeadsConfig: {
        'depth': POSITIVE,
        'heads': POSITIVE,
        'epochs': POSITIVE,
        'batch': POSITIVE,
        'warmup': NOT_NEGATIVE,
        'chosen_on': Rule(lambda v: 0 < v <= 0.5, 'above 0 and at most a half'),
    },
    benchmark.LabelledSetConfig: {'batch': POSITIVE},
    benchmark.BenchmarkConfig: {'protocol': OneOf(('exact', 'upstream'))},
    benchmark.AnticipationConfig: {
        'protocol': OneOf(('upstream', 'before_start')),
        'classes': OneOf(('filtered', 'official')),
        'head': OneOf(('training', 'validation')),
        'parts': Rule(
            lambda v: v and {*v.split(',')} <= {'both', 'encoder', 'predictor'},
            'both, encoder, predictor or several, with commas',
        ),
    },
    EvalConfig: {'bootstrap': POSITIVE},
    parts.RobotConfig: {
        'frame': OneOf(('base', 'camera')),
        'gripper': OneOf(('closed', 'open')),
        'metres': POSITIVE,
        'frames': Rule(lambda v: v >= 2, 'at least 2'),
        'fps': POSITIVE,
        'recorded_fps': NOT_NEGATIVE,
        'angles': OneOf(('radians', 'degrees')),
        'gripper_range': Rule(
            lambda v: v[0] != v[1] or not any(v),
            'the values when open and when closed, which differ',
        ),
    },
    parts.ActionPredictorConfig: {
        'width': POSITIVE,
        'depth': POSITIVE,
        'heads': POSITIVE,
        'mlp_ratio': POSITIVE,
        'conditioning': OneOf(('tokens', 'adaln')),
        'action_scale': Rule(lambda v: all(x > 0 for x in v), '7 numbers above 0'),
        'state_scale': Rule(lambda v: all(x >= 0 for x in v), '7 numbers, none below 0'),
    },
    parts.RolloutConfig: {'steps': POSITIVE, 'prefix': OneOf(('first', 'random'))},
}


def rules_of(kind: type) -> dict[str, Rule | OneOf]:
    """The rows of a part and of those that it extends."""
    return {key: rule for base in kind.__mro__[::-1] for key, rule in RULES.get(base, {}).items()}


def types_and_ranges(config: Any) -> None:
    """Refuses values of another type than annotated, unknown fields, and what breaks a rule.

    Raises:
      ConfigError: one line with the first field at fault, what was found and what is allowed.
    """
    _types(config)
    for name, part, key in _leaves(config):
        value, rule = getattr(part, key), rules_of(type(part)).get(key)
        if rule and not rule.holds(value):
            raise ConfigError(f'{name} = {value!r}: {rule.complaint(value)}')


def _leaves(config: Any, prefix: str = '') -> Iterator[tuple[str, Any, str]]:
    """(name, the part that has it, its field) of every field that holds no part itself."""
    for f in dataclasses.fields(config):
        name, value = f'{prefix}{f.name}', getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f'{name}.')
        elif isinstance(value, list):
            for i, item in enumerate(value):
                yield from _leaves(item, f'{name}[{i}].')
        else:
            yield name, config, f.name


def _types(config: Any, prefix: str = '') -> None:
    """Types as annotated, finite numbers, no field beyond the schema's: a dataclass takes any."""
    schema = dataclasses.fields(config)
    names = [f.name for f in schema]
    if extra := sorted(set(vars(config)) - set(names)):
        raise ConfigError(f'{prefix}{extra[0]}: no such field{nearest(extra[0], names)}')
    hints = typing.get_type_hints(type(config))
    for f in schema:
        value = getattr(config, f.name)
        if not (value == [] and f.default_factory is list):  # a list that may be empty
            _type(f'{prefix}{f.name}', hints[f.name], value)


def _type(name: str, kind: Any, value: Any) -> None:
    inner = typing.get_args(kind)
    origin = typing.get_origin(kind) or kind
    if dataclasses.is_dataclass(origin) and isinstance(value, origin):
        return _types(value, name + '.')
    if origin in (list, tuple) and isinstance(value, origin):
        if origin is tuple and len(value) != len(inner):
            raise ConfigError(f'{name} = {value!r}: must hold {len(inner)} values')
        if origin is list and not value:
            raise ConfigError(f'{name} = []: must hold at least one {inner[0].__name__}')
        for i, item in enumerate(value):
            _type(f'{name}[{i}]', inner[i] if origin is tuple else inner[0], item)
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


def transformer(
    config: RunConfig, name: str, width: int, heads: int, position: str = 'rope'
) -> Iterator[str]:
    """What is wrong with the shape of a transformer, whose fields begin with `name`."""
    if width % heads:
        yield f'{name}.width = {width}: must be a multiple of {name}.heads = {heads}'
    if position == 'rope' and (width // heads < MIN_ROPE or width // heads % 2):
        yield (
            f'{name}: {width // heads} channels a head (width {width} over {heads} heads), '
            f"must be an even number of at least {MIN_ROPE} for position 'rope'"
        )
    fsdp = config.mesh.fsdp or 1
    if width % fsdp:
        yield f'mesh.fsdp = {fsdp}: must divide {name}.width = {width}'


def crop_fits(crop: int, encoder: EncoderConfig) -> Iterator[str]:
    if crop % encoder.patch:
        yield f'data.crop = {crop}: must be a multiple of encoder.patch = {encoder.patch}'


def knows_time(encoder: EncoderConfig, frames: int) -> Iterator[str]:
    """What is wrong with an encoder that masks clips of so many frames."""
    if encoder.position == 'sincos' and encoder.tubelet == 1 and frames > 1:
        yield (
            "encoder.tubelet = 1: must be 2 or more with encoder.position 'sincos' and clips of "
            f'{frames} frames: it is then a model of images, whose positions know no time'
        )


def schedule(config: RunConfig) -> Iterator[str]:
    """What is wrong with what all runs have in common."""
    optim = config.optim
    if optim.accumulate and optim.batch % optim.accumulate:
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
            f'ipe_scale * steps = {horizon(optim)}'
        )

    saved = config.checkpoints
    if saved.resume_from and saved.init_from:
        yield 'checkpoints.resume_from and checkpoints.init_from are both set: set one of them'
    if saved.restart_schedule and not saved.resume_from:
        yield (
            'checkpoints.resume_from is empty: a cooldown (restart_schedule) continues a '
            'pretraining run, --config.checkpoints.resume_from=WORKDIR'
        )
