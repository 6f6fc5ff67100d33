"""The schema of a run: what `configs/*.py:get_config` builds, flags override and `validate` checks.

Mutable dataclasses, so that `--config.optim.lr=3e-4` or `--config.data.lists[0].path=clips.txt` can set any field. Defaults
are the released V-JEPA 2 values (reference: vjepa2 configs/train, paper appendix); what has no sensible default is empty
and refused by `validate`. A field that says "0: ..." derives its value from the named rule.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Encoder:
    """The vision transformer. Width, depth, heads and MLP ratio come from `size` unless set."""

    size: str = 'vitl'  # a key of jepa_jax.models.SIZES: tiny small base vitl vith vitg ...
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
    mask_tokens: int = 10  # the released checkpoints hold 10; a frame-count group i of the batch uses token i
    zero_init_mask_tokens: bool = True
    mlp: str = 'gelu'  # gelu | swiglu | swiglu_full


@dataclass
class MaskBlocks:
    """One multi-block mask: every block hides a box of the token grid, the rest is context."""

    num_blocks: int = 8
    spatial_scale: tuple[float, float] = (0.15, 0.15)  # share of the frame that a block covers
    temporal_scale: tuple[float, float] = (1.0, 1.0)  # share of the clip's length that a block covers
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
    attempts: int = 8  # records tried in place of an unreadable one before the run stops
    max_failure_share: float = 0.2  # unreadable share of records tried, above which the run stops
    cache: str = ''  # folder for decoded clips; empty: no cache
    cache_gib: float = 20.0  # size at which the cache stops growing, GiB
    worker_timeout: float = 300.0  # seconds without a batch after which the run stops and says so


@dataclass
class Optim:
    """AdamW and its schedules. k is the 1-based step, T = int(stretch * steps)."""

    batch: int = 3072  # clips a step, over all devices
    accumulate: int = 1  # parts that a batch is cut into, one after the other; same update, less memory
    steps: int = 240_000
    schedule: str = 'warmup_cosine'  # warmup_cosine | linear_decay
    warmup: int = 12_000  # steps
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
    remat: str = 'full'  # what the backward pass recomputes: a key of jepa_jax.nets.REMAT


@dataclass
class Checkpoints:
    every: int = 1000  # steps between saves
    keep: int = 3  # newest ones kept
    keep_every: int = 0  # also keep those at multiples of this step; 0: none
    resume_from: str = ''  # workdir or checkpoint to go on from with optimizer state, when this workdir has none
    init_from: str = ''  # likewise, weights only
    restart_schedule: bool = False  # with resume_from: step counts from 0, moments are kept (a cooldown)
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
class TrainConfig:
    """One run of `python -m jepa_jax.train`."""

    name: str = ''
    seed: int = 239
    compute_dtype: str = 'bfloat16'  # of matmul inputs: bfloat16 | float32; everything else is float32
    mask_sampler: str = 'static'  # static: few compiled shapes; reference: the original's, a shape a step
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


class ConfigError(ValueError):
    """A setting that cannot work: names the field, what was found and what is allowed."""


def to_json(config: TrainConfig) -> str:
    """The config as indented JSON, stable in order."""
    return json.dumps(dataclasses.asdict(config), indent=2) + '\n'


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = '') -> list[str]:
    """Lines `field: old -> new` for every leaf in which two config dicts (from JSON) differ."""
    lines = []
    for key in sorted(set(old) | set(new)):
        name = f'{prefix}{key}'
        a, b = old.get(key, '(absent)'), new.get(key, '(absent)')
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, name + '.')
        elif isinstance(a, list) and isinstance(b, list) and a and isinstance(a[0], dict) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b)):
                lines += differences(x, y, f'{name}[{i}].')
        elif a != b:
            lines.append(f'{name}: {a} -> {b}')
    return lines
