"""The accelerator memory of a training step, estimated by counting; nothing is compiled.

The state is exact. Activations are counted for attention that never stores its scores, and as many
tokens as masks and rollouts can ask for. Fragmentation and the compiler's workspace come on top: an
estimate, no measurement.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os

import jax

from jepa_jax import build, recipes
from jepa_jax.config import (
    ActionConditionedConfig,
    MaskConfig,
    MaskedImageConfig,
    MaskedPixelsConfig,
    MaskedVideoConfig,
    QuestionsConfig,
    RunConfig,
)
from jepa_jax.config.questions import media_places
from jepa_jax.errors import ConfigError
from jepa_jax.lookup import load
from jepa_jax.masks.samplers import mask_sampler
from jepa_jax.models.decoder import LOGITS
from jepa_jax.nets import Net
from jepa_jax.objectives import Objective
from jepa_jax.sharding import MAX_FSDP

log = logging.getLogger(__name__)

FILLED = 0.85  # share of a device's memory that an estimate may take: fragmentation comes on top
GIB = 2**30
FLOAT = 4  # bytes of parameters, moments, predictor stream and targets
STORED = 2  # of features in a batch
DRAWN = 16  # steps whose masks are looked at: one of four shapes is missed with a chance of 4 %
BYTES = {'bfloat16': 2, 'float32': 4}  # of the encoder's stream and of matmul inputs


def context_share(mask: MaskConfig) -> float:
    """Expected share of tokens that no block covers, for blocks of one size that fall anywhere.

    An upper bound of what is kept: every clip is cut to the shortest of its batch.
    """
    if mask.tube:
        return 1 - mask.tube
    return (1 - mask.spatial_scale[0] * mask.temporal_scale[0]) ** mask.num_blocks


def _contexts(config: MaskedVideoConfig, frames: int, rows: int, tokens: int) -> list[float]:
    """The most context tokens that each mask of clips of `frames` frames leaves."""
    masks = config.masks_of(frames)[1]
    plain = (
        MaskConfig(m.num_blocks, m.spatial_scale, m.temporal_scale, m.aspect_ratio, tube=m.tube)
        for m in masks
    )
    if [*plain] == masks and all(
        len({*scale}) == 1 for m in masks for scale in (m.spatial_scale, m.temporal_scale)
    ):
        return [context_share(mask) * tokens for mask in masks]
    # sizes that are drawn, or more than blocks: only the draws themselves say
    sampler = mask_sampler(config, frames, rows)
    shapes = map(sampler.shapes, range(DRAWN))
    return [max(kept for kept, _ in each) for each in zip(*shapes)]


@dataclasses.dataclass
class Activations:
    """Bytes of what a step holds of one part of the batch on a device, besides state and
    gradients."""

    inputs: float = 0.0  # all parts of the batch
    saved: float = 0.0  # for the backward pass
    features: float = 0.0  # targets and predictions
    peak: float = 0.0  # of the largest block at work


@dataclasses.dataclass(frozen=True)
class Weights:
    """Bytes of a run's nets, each counted once."""

    trained: float
    averaged: float
    frozen: float

    @classmethod
    def of(cls, objective: Objective) -> Weights:
        averaged = [objective.nets[name] for name in objective.ema]
        groups = objective.nets.values(), averaged, objective.frozen.values()
        return cls(*(sum(map(_bytes, nets)) for nets in groups))


def estimate(
    config: RunConfig, devices: int = 1, weights: Weights | None = None
) -> dict[str, float]:
    """GiB a device by use, and their `total`; mesh.fsdp and optim.accumulate of 0 count as 1.

    weights: of the config, if known.

    Raises:
      ConfigError: the batch does not split over the devices.
    """
    config = _split(config, config.mesh.fsdp or 1, config.optim.accumulate or 1)
    fsdp, accumulate = config.mesh.fsdp, config.optim.accumulate
    rows = rows_at_a_time(config.optim.batch, devices, accumulate)
    weights = weights or Weights.of(load(recipes.of(config).build)(config))
    held = load(recipes.of(config).activations)(config, rows)
    sizes = {
        'parameters, moments, averages': (3 * weights.trained + weights.averaged) / fsdp,
        'frozen nets': weights.frozen / fsdp,
        # the update happens in place; adding up parts takes a sum besides
        'gradients': (2 if accumulate > 1 else 1) * weights.trained / fsdp,
        'clips': held.inputs,
        'kept for the backward pass': held.saved,
        'targets and predictions': held.features,
        'largest block': held.peak,
    }
    sizes = {use: size / GIB for use, size in sizes.items()}
    return {**sizes, 'total': sum(sizes.values())}


def _split(config: RunConfig, fsdp: int, accumulate: int) -> RunConfig:
    mesh = dataclasses.replace(config.mesh, fsdp=fsdp)
    optim = dataclasses.replace(config.optim, accumulate=accumulate)
    return dataclasses.replace(config, mesh=mesh, optim=optim)


def rows_at_a_time(batch: int, devices: int, accumulate: int) -> int:
    """Clips that a device takes at once.

    Raises:
      ConfigError: the batch does not split into as many equal parts.
    """
    parts = devices * accumulate
    if batch % parts:
        raise ConfigError(
            f'optim.batch = {batch}: must be a multiple of {parts} ({devices} devices x '
            f'optim.accumulate {accumulate})'
        )
    return batch // parts


def device_memory() -> float:
    """Bytes that a device of this process may use; of CPUs each its share of the machine's, 0 where
    the system does not tell."""
    device = jax.local_devices()[0]
    if stats := device.memory_stats():  # None on CPUs
        return stats.get('bytes_limit', 0)
    if device.platform != 'cpu' or not hasattr(os, 'sysconf'):
        return 0
    machine = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return machine / len(jax.local_devices())


def choose(config: RunConfig, devices: int, memory: float) -> RunConfig:
    """`config` with mesh.fsdp and optim.accumulate chosen where they are 0, and says what it chose.

    The fewest parts that fit a device of `memory` bytes to FILLED, then the fewest shards: parts
    cost time on a part too small to fill the device, shards cost communication. With memory 0
    (unknown) nothing is cut.

    Raises:
      ConfigError: nothing fits, or what the split with the fewest parts and shards is refused for,
        where all are: a field that has nothing to do with it, too.
    """
    fsdp, accumulate = config.mesh.fsdp, config.optim.accumulate
    if fsdp and accumulate:
        return config
    recipes.validate(config)
    batch = config.optim.batch
    rows_at_a_time(batch, devices, accumulate or 1)
    objective = load(recipes.of(config).build)(config)
    shards = [n for n in range(1, MAX_FSDP + 1) if devices % n == 0 and _splits(objective, n)]
    shards = [fsdp] if fsdp else shards
    parts = [1] if objective.whole_batch else _divisors(batch // devices)
    parts = [accumulate] if accumulate else parts
    weights, least, refused = Weights.of(objective), None, []
    for a in parts:
        for n in shards:
            tried = _split(config, n, a)
            try:
                recipes.validate(tried)
                needed = estimate(tried, devices, weights)['total'] * GIB
            except ConfigError as error:  # a width that n does not divide, a list without a row
                refused.append(error)
                continue
            if needed <= FILLED * memory or not memory:
                log.info(
                    'chosen: mesh.fsdp %d, optim.accumulate %d (%d clips at a time on each of %d '
                    'devices, estimated %.3g GiB of %.3g)',
                    n, a, batch // (devices * a), devices, needed / GIB, memory / GIB,
                )  # fmt: skip
                return tried
            if least is None or needed < least[0]:
                least = needed, n, a
    if least is None:
        raise refused[0]
    needed, n, a = least
    raise ConfigError(
        f'{config.name or "this run"} needs at least {needed / GIB:.3g} GiB a device (estimated, '
        f'mesh.fsdp {n}, optim.accumulate {a}), {FILLED:.0%} of {memory / GIB:.3g} GiB are there: '
        'take more devices, a smaller model or shorter clips; setting mesh.fsdp and '
        'optim.accumulate tries it all the same'
    )


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def _splits(objective: Objective, fsdp: int) -> bool:
    """Whether every parameter splits into so many equal shards."""
    nets = (*objective.nets.values(), *objective.frozen.values())
    return not any(
        size % fsdp
        for net in nets
        for leaf, spec in zip(jax.tree.leaves(net.abstract), jax.tree.leaves(net.specs))
        for size, axis in zip(leaf.shape, spec)
        if axis == 'fsdp'
    )


def masked_video(config: MaskedVideoConfig, rows: int) -> Activations:
    """Of clips with masked parts, `rows` at a time.

    Raises:
      ConfigError: some lists get none of so few.
    """
    from jepa_jax.data.videos import split_rows  # which brings libraries for data

    vit = build.video_encoder(config)
    predictor, target = build.predictor(config, vit), build.target(config)
    compute, kept = BYTES[config.compute_dtype], KEPT[config.mesh.remat]
    held, quotas = Activations(), split_rows(config, rows)
    for frames, rows in quotas.items():
        tokens = math.prod(vit.grid(frames, config.data.crop, config.data.crop))
        pixels = frames * config.data.crop**2 * 3
        # all parts as uint8, one as floats
        held.inputs += rows * pixels * (config.optim.accumulate + FLOAT)
        # before and after standardising
        held.features += 2 * rows * tokens * predictor.predicted_width * FLOAT
        if target:
            held.peak = max(held.peak, rows * tokens * _values(target, compute, compute))
        if build.through_targets(config):
            held.saved += rows * tokens * kept(vit, compute, compute) * vit.depth
            held.peak = max(held.peak, 2 * rows * tokens * _values(vit, compute, compute))
        for context in _contexts(config, frames, rows, tokens):
            held.saved += rows * context * kept(vit, compute, compute) * vit.depth
            held.saved += rows * tokens * kept(predictor, compute, FLOAT) * predictor.depth
            # predictions, targets
            said = tokens if predictor.predict_context else tokens - context
            held.features += 2 * rows * said * predictor.predicted_width * FLOAT
            # and, where there are several, the encoder's levels and what they are in
            seen = 2 * predictor.levels if predictor.levels > 1 else 0
            held.features += seen * rows * context * vit.width * compute
            # in the backward pass, with their gradients
            held.peak = max(
                held.peak,
                2 * rows * context * _values(vit, compute, compute),
                2 * rows * tokens * _values(predictor, compute, FLOAT),
            )
    _against_collapse(config, quotas, held)
    return held


def _against_collapse(config: MaskedVideoConfig, quotas: dict[int, int], held: Activations) -> None:
    """Adds what terms of the whole batch hold, for clips of some frame counts."""
    against, expander = build.regulariser(config.against_collapse), build.expander(config)
    if not against.terms:
        return
    vit, compute = build.video_encoder(config), BYTES[config.compute_dtype]
    width = expander.width if expander else vit.width
    table = against.terms.table(width) * FLOAT
    sets = [{'clips': 1, 'positions': against.positions}[kind] for kind in against.samples]
    for frames, rows in quotas.items():
        tokens = rows * math.prod(vit.grid(frames, config.data.crop, config.data.crop))
        samples = rows * sum(sets)
        if expander:  # where predictions meet targets behind it, all of them pass
            contexts = _contexts(config, frames, rows, tokens / rows)
            hidden = sum(tokens - rows * context for context in contexts)
            through = tokens + hidden if against.expanded else samples
            layer = compute + 2 * FLOAT  # what goes in; before and after the normalisation
            each = compute * vit.width + sum(layer * n for n in expander.hidden)
            held.saved += through * (each + 2 * FLOAT * expander.width)
        held.saved += samples * (width + against.terms.columns(width)) * FLOAT
        held.saved += sum(sets) * table
        held.peak = max(held.peak, 2 * max(sets) * table)  # with its gradient


def masked_pixels(config: MaskedPixelsConfig, rows: int) -> Activations:
    """Of clips or images whose masked pixels are drawn, `rows` at a time."""
    vit = build.pixel_encoder(config)
    decoder = build.pixel_decoder(config, vit)
    compute, kept = BYTES[config.compute_dtype], KEPT[config.mesh.remat]
    tokens = math.prod(vit.grid(vit.frames, config.data.crop, config.data.crop))
    context = tokens * (1 - config.mask_ratio)
    pixels = vit.frames * config.data.crop**2 * 3
    return Activations(
        inputs=rows * pixels * (config.optim.accumulate + FLOAT),
        saved=rows * context * kept(vit, compute, compute) * vit.depth
        + rows * tokens * kept(decoder, compute, FLOAT) * decoder.depth,
        features=2 * rows * (tokens - context) * decoder.values * FLOAT,
        peak=max(
            2 * rows * context * _values(vit, compute, compute),
            2 * rows * tokens * _values(decoder, compute, FLOAT),
        ),
    )


def masked_image(config: MaskedImageConfig, rows: int) -> Activations:
    """Of images with masked blocks, `rows` at a time."""
    vit = build.video_encoder(config)
    predictor, targets = build.image_predictor(config, vit), config.masks.targets
    compute, kept = BYTES[config.compute_dtype], KEPT[config.mesh.remat]
    tokens = rows * (config.data.crop // vit.patch) ** 2
    # at most: no block covers part of the context
    context = tokens * max(config.masks.context_scale)
    hidden = tokens * max(config.masks.target_scale) * targets
    pixels = rows * config.data.crop**2 * 3
    held = Activations(inputs=pixels * (config.optim.accumulate + FLOAT))
    # before and after standardising; predictions and targets
    held.features = 2 * (tokens + hidden) * vit.width * FLOAT
    seen = targets * context + hidden
    held.saved = context * kept(vit, compute, compute) * vit.depth
    held.saved += seen * kept(predictor, compute, FLOAT) * predictor.depth
    held.peak = max(
        tokens * _values(vit, compute, compute),
        2 * context * _values(vit, compute, compute),
        2 * seen * _values(predictor, compute, FLOAT),
    )
    return held


def action_conditioned(config: ActionConditionedConfig, rows: int) -> Activations:
    """Of pieces of a robot's recordings, `rows` at a time."""
    vit, rollout = build.frame_encoder(config), config.rollout
    c = build.ac_predictor(config, vit)
    compute, frames = BYTES[config.compute_dtype], config.robot.frames
    kept = KEPT[config.mesh.remat](c, compute, compute)
    frame = rows * math.prod(c.grid) * vit.width * FLOAT  # features of one
    held = Activations()
    if config.features:
        held.inputs = STORED / FLOAT * frames * frame * config.optim.accumulate
    else:
        pixels = rows * frames * config.data.crop**2 * 3
        held.inputs = pixels * (config.optim.accumulate + vit.tubelet * FLOAT)  # a tubelet of each
        tokens = rows * frames * math.prod(c.grid)
        held.features = frames * frame  # before standardising
        held.peak = tokens * _values(vit, compute, compute)
    held.features += frames * frame
    # predictions from true frames, then one a frame; before and after standardising
    predicted = frames - 1 + rollout.steps - 1
    held.features += 2 * predicted * frame

    size = rows * c.tokens_per_frame  # tokens of a frame
    past = 2 * compute * c.width  # keys and values of a token
    prefix = 1 if rollout.prefix == 'first' else frames - rollout.steps
    # the rollout takes keys and values of all layers, and they have gradients
    held.saved = c.depth * size * (frames - 1) * (kept + 2 * past)
    for before in range(prefix, prefix + rollout.steps - 1):
        held.saved += c.depth * size * (kept + 2 * past * (before + 1))
    values = _values(c, compute, compute)
    held.peak = max(held.peak, 2 * size * (frames - 1) * values)
    return held


def questions(config: QuestionsConfig, rows: int) -> Activations:
    """Of sequences of conversations and what they show, `rows` at a time."""
    objective, compute = build.questions(config), BYTES[config.compute_dtype]
    vit, c, p = objective.encoder_config, objective.decoder_config, objective.projector_config
    places, accumulate = media_places(config), config.optim.accumulate
    tokens, length = rows * places * math.prod(p.grid), rows * config.data.length
    held = Activations()
    if config.features:
        held.inputs = STORED * tokens * vit.width * accumulate
    else:
        pixels = rows * places * config.clips.frames * config.clips.crop**2 * 3
        held.inputs = pixels * (accumulate + FLOAT)
        held.peak = tokens * _values(vit, compute, compute)
        if config.train_encoder:
            held.saved += tokens * KEPT[config.mesh.remat](vit, compute, compute) * vit.depth
            held.peak *= 2
    # the encoder's tokens, the projector's hidden layer, visual tokens and their gradients
    hidden = p.hidden or p.width
    held.features = tokens * FLOAT * vit.width
    held.features += rows * places * p.read[0] * 2 * compute * hidden
    held.features += 2 * rows * places * p.tokens * p.width * FLOAT
    inner, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
    block = compute * (2 * inner + 2 * shared + 3 * c.hidden + 4 * c.width)  # of a token
    kept = {
        'full': 0,
        'attention': compute * inner + FLOAT * c.heads,
        'dots': compute * (2 * c.width + inner + 2 * shared + 2 * c.hidden),
    }
    held.saved += length * c.depth * (compute * c.width + kept.get(config.mesh.remat, 2 * block))
    # of the loss: some logits three times, the head whole, and where it is trained its gradient;
    # then the embedding likewise, if it is an array of its own
    trained = config.language.trains == 'all'
    head = c.vocabulary * c.width * (compute + trained * FLOAT)
    head *= 2 if trained and not c.tied else 1
    logits = 3 * FLOAT * min(LOGITS, length * c.vocabulary)
    held.peak = max(held.peak, 2 * length * block, logits + head + 2 * length * c.width * compute)
    return held


def _bytes(net: Net) -> int:
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(net.abstract)
    )


def _input(c, compute: int, stream: int) -> float:
    """Bytes a token of a block's input; `compute` and `stream` are bytes of a matmul's input and of
    the residual stream."""
    return stream * c.width


def _attended(c, compute: int, stream: int) -> float:
    """Bytes a token of a block's input and of what attention gives, with a number for each head."""
    return (stream + compute) * c.width + FLOAT * c.heads


def _products(c, compute: int, stream: int) -> float:
    """Bytes a token of a block's input and of its products with weights."""
    return stream * c.width + compute * (5 * c.width + c.width * c.mlp_ratio)


def _values(c, compute: int, stream: int) -> float:
    """Bytes a token of what a block has at a time: norms, qkv, attention, MLP, stream."""
    return compute * (6 * c.width + 2 * c.width * c.mlp_ratio) + 2 * stream * c.width


def _everything(c, compute: int, stream: int) -> float:
    """Bytes a token of all that a block's gradients ask for, as the traced step has it: norms and
    stream in float32, attention, GELU and its derivative. A CPU keeps less: nets.ON_CPU."""
    return FLOAT * 6 * c.width + compute * (7 * c.width + 4 * c.width * c.mlp_ratio)


# by mesh.remat
KEPT = {'full': _input, 'attention': _attended, 'dots': _products, 'none': _everything}
