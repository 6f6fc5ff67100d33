"""An objective, a kind of net, an evaluation and a study of a user's own, in one config file.

Clips of drifting waves are squeezed through a bottleneck of a few numbers and drawn again. Nothing
of the package is edited: this file adds its rows to the tables and says what they load.

    python -m jepa_jax.train --config=toy.py:study
"""

import dataclasses
import functools
import json
import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax.config import EmaOptimConfig, EvalConfig, LoaderConfig, RunConfig, StudyConfig
from jepa_jax.data.stream import Stream
from jepa_jax.evals import EVALS, Evaluation, Figure, Results
from jepa_jax.memory import Activations
from jepa_jax.models.layers import Linear
from jepa_jax.objectives import Objective, Program
from jepa_jax.recipes import RECIPES, STUDIES, Recipe, Study
from jepa_jax.sharding import VECTORS, gather
from jepa_jax.studies import Stage
from jepa_jax.weights.parts import PARTS, Part, net
from jepa_jax.workdir import write_json

FRAMES, SIDE = 4, 8


# A kind of net


@dataclass(frozen=True)
class CodecConfig:
    values: int  # of a clip
    width: int  # numbers that it is squeezed into
    dtype: jnp.dtype = jnp.float32


class Codec(nnx.Module):
    """Clips [B, T, H, W, 3] uint8 -> the same, drawn again [B, values]."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        self.squeeze = Linear(config.values, config.width, dtype=config.dtype, rngs=rngs)
        self.draw = Linear(config.width, config.values, dtype=config.dtype, rngs=rngs)

    def __call__(self, clips):
        x = flat(clips)
        return gather(self.draw)(jnp.tanh(gather(self.squeeze)(x)))


def flat(clips):
    return clips.reshape(len(clips), -1).astype(jnp.float32) / 128 - 1


def sharding(config: CodecConfig):
    del config
    return (
        ('squeeze/kernel', jax.P('fsdp', None)),
        ('draw/kernel', jax.P(None, 'fsdp')),
        *VECTORS,
    )


PARTS['codec'] = Part(
    title='clip codec',
    config=f'{__name__}:CodecConfig',
    module=f'{__name__}:Codec',
    sharding=f'{__name__}:sharding',
)


# An objective


@dataclass
class AutoencoderConfig(RunConfig):
    objective: str = 'autoencoder'
    width: int = 6
    noise: float = 0.1  # of the bottleneck's input, drawn anew at every step
    data: LoaderConfig = field(default_factory=LoaderConfig)
    optim: EmaOptimConfig = field(default_factory=EmaOptimConfig)


def check(config: AutoencoderConfig):
    if config.width < 1:
        yield f'width = {config.width}: must be at least 1'


def codec(config: AutoencoderConfig) -> CodecConfig:
    return CodecConfig(FRAMES * SIDE * SIDE * 3, config.width)


class Autoencoder(Objective):
    ema = ('codec',)

    def __init__(self, config: AutoencoderConfig):
        self.nets = {'codec': net('codec', codec(config))}
        self.seed, self.noise = config.seed, config.noise

    def loss(self, params, ema, frozen, batch, step):
        del ema, frozen
        clips = batch['clips']
        error = jnp.square(self.nets['codec'](params['codec'], clips) - flat(clips)).mean()
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        shake = self.noise * jax.random.normal(key)  # randomness is a function of the step
        return error * (1 + 0.01 * shake), {'error': error}


def build(config: AutoencoderConfig) -> Autoencoder:
    return Autoencoder(config)


class Waves(Stream):
    def __init__(self, config, prepared, **place):
        super().__init__(config, [range(64)], **place)

    def read(self, row):
        rng = row.rng()
        x = np.arange(SIDE) / SIDE + rng.random() + row.record / 7
        frames = np.stack([np.sin(2 * np.pi * (x + t * rng.random() / 4)) for t in range(FRAMES)])
        clip = np.broadcast_to(frames[:, None, :, None], (FRAMES, SIDE, SIDE, 3))
        return {'clips': (128 + 100 * clip).astype(np.uint8)}


def flops(config: AutoencoderConfig) -> int:
    return config.optim.batch * 5 * 2 * codec(config).values * config.width


def noise(config: AutoencoderConfig, seed: int):
    shape = (config.optim.batch, FRAMES, SIDE, SIDE, 3)
    return {'clips': np.random.default_rng(seed).integers(0, 256, shape, np.uint8)}


def programs(config: AutoencoderConfig, devices: int) -> list[Program]:
    del devices
    batch = functools.partial(noise, config)
    return [Program(batch, {'codec': flops(config)}, frozenset(), 'one clip, one vector')]


def workload(config: AutoencoderConfig, stream: Waves):
    del stream
    return lambda step: (flops(config), config.optim.batch)


def activations(config: AutoencoderConfig, rows: int) -> Activations:
    values = codec(config).values
    return Activations(inputs=rows * values, saved=rows * (values + config.width) * 4)


RECIPES['autoencoder'] = Recipe(
    config=f'{__name__}:AutoencoderConfig',
    check=f'{__name__}:check',
    build=f'{__name__}:build',
    stream=f'{__name__}:Waves',
    programs=f'{__name__}:programs',
    workload=f'{__name__}:workload',
    activations=f'{__name__}:activations',
)


# A study: one run, and another that starts with its weights


@dataclass
class TwoRunsConfig(StudyConfig):
    study: str = 'two_runs'
    run: AutoencoderConfig = field(default_factory=AutoencoderConfig)


def check_study(config: TwoRunsConfig, workdir) -> None:
    del config, workdir


def stages(config: TwoRunsConfig, workdir) -> list[Stage]:
    first = dataclasses.replace(config.run, name='first', seed=config.seed)
    after = dataclasses.replace(first.checkpoints, init_from=str(workdir / 'first'))
    second = dataclasses.replace(first, name='second', checkpoints=after)
    return [Stage('first', workdir / 'first', first), Stage('second', workdir / 'second', second)]


def report(config: TwoRunsConfig, workdir) -> None:
    losses = {}
    for name in ('first', 'second'):
        lines = (workdir / name / 'metrics.jsonl').read_text().splitlines()
        losses[name] = json.loads(lines[-1])['loss']
    write_json(workdir / 'report.json', {'losses': losses})


STUDIES['two_runs'] = Study(
    config=f'{__name__}:TwoRunsConfig',
    check=f'{__name__}:check_study',
    stages=f'{__name__}:stages',
    report=f'{__name__}:report',
)


# An evaluation


@dataclass
class SpreadConfig(EvalConfig):
    evaluation: str = 'spread'
    clips: int = 3


def spread(model, config: SpreadConfig, workdir) -> Results:
    """How far features of noise differ from clip to clip."""
    rng = np.random.default_rng(config.seed)
    clips = rng.integers(0, 256, (config.clips, 2, 32, 32, 3), np.uint8)
    tokens = np.asarray(model.encode(clips))
    apart = tokens.std(axis=0).mean(axis=(1,))
    (workdir / 'apart.txt').write_text('\n'.join(f'{x:.4f}' for x in apart))
    value, n = float(apart.mean()), len(apart)
    half = 1.96 * float(apart.std()) / math.sqrt(n)
    zero = Figure(0.0, 0.0, 0.0, n)
    return Results(
        {'spread': Figure(value, value - half, value + half, n)},
        {'constant features': zero},
        {'expected': config.clips, 'read': config.clips, 'hash': ''},
    )


EVALS['spread'] = Evaluation(config=f'{__name__}:SpreadConfig', run=f'{__name__}:spread')


def get_config(arg: str = 'run'):
    if arg == 'evaluation':
        return SpreadConfig(name='spread')
    c = AutoencoderConfig(name='toy', compute_dtype='float32')
    c.data.workers = 2
    c.optim.batch, c.optim.steps, c.optim.warmup = 8, 12, 2
    c.optim.lr, c.optim.momentum, c.optim.final_momentum = 1e-2, 0.9, 0.9
    c.optim.accumulate = c.mesh.fsdp = 0
    c.checkpoints.every, c.checkpoints.keep = 4, 5
    c.logging.every = 1
    return TwoRunsConfig(name='toys', seed=5, run=c) if arg == 'study' else c
