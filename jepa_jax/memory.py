"""The accelerator memory of a training step, estimated by counting; nothing is compiled.

The state is exact. Activations are counted for attention that never stores its scores, and as many
tokens as masks and rollouts can ask for. Fragmentation and the compiler's workspace come on top: an
estimate, no measurement.
"""

from __future__ import annotations

import dataclasses
import math

import jax

from jepa_jax.config import ActionConditionedConfig, MaskConfig, MaskedVideoConfig, frame_counts
from jepa_jax.errors import ConfigError
from jepa_jax.objectives.action_conditioned import ActionConditioned, ac_predictor_config
from jepa_jax.objectives.masked_video import MaskedVideo, predictor_config, vit_config

GIB = 2**30
FLOAT = 4  # bytes of parameters, moments, predictor stream and targets
STORED = 2  # of features in a batch
BYTES = {'bfloat16': 2, 'float32': 4}  # of the encoder's stream and of matmul inputs


def context_share(mask: MaskConfig) -> float:
    """Expected share of tokens that no block covers, for blocks that fall anywhere.

    An upper bound of what is kept: every clip is cut to the shortest of its batch.
    """
    space, time = max(mask.spatial_scale), max(mask.temporal_scale)
    return (1 - space * time) ** mask.num_blocks


@dataclasses.dataclass
class _Activations:
    """Bytes of what a step holds of one part of the batch on a device, besides state and
    gradients."""

    inputs: float = 0.0  # all parts of the batch
    saved: float = 0.0
    features: float = 0.0
    peak: float = 0.0


def estimate(config: MaskedVideoConfig, devices: int = 1) -> dict[str, float]:
    """GiB a device by use, and their `total`.

    Raises:
      ConfigError: the batch does not split over the devices.
    """
    c, parts = config.optim, devices * config.optim.accumulate
    if c.batch % parts:
        raise ConfigError(f'optim.batch = {c.batch}: must be a multiple of {parts} parts')
    objective, count = TASKS[type(config)]
    nets = objective(config)
    trained, target = _size(nets.abstract), _size(nets.encoder.abstract)
    found = count(config, c.batch // parts)
    sizes = {
        'parameters, moments, target': (3 * trained + target) * FLOAT / config.mesh.fsdp,
        # the update happens in place; adding up parts takes a sum besides
        'gradients': (2 if c.accumulate > 1 else 1) * trained * FLOAT / config.mesh.fsdp,
        'clips': found.inputs,
        'kept for the backward pass': found.saved,
        'targets and predictions': found.features,
        'largest block': found.peak,
    }
    sizes = {use: size / GIB for use, size in sizes.items()}
    return {**sizes, 'total': sum(sizes.values())}


def _video(config: MaskedVideoConfig, rows: int) -> _Activations:
    """Of clips with masked parts, `rows` at a time."""
    vit, predictor = vit_config(config), predictor_config(config)
    compute, kept = BYTES[config.compute_dtype], KEPT[config.mesh.remat]
    found = _Activations()
    rows /= len(frame_counts(config.data))  # of a group
    for frames in frame_counts(config.data):
        tokens = math.prod(vit.grid(frames, config.data.crop, config.data.crop))
        pixels = frames * config.data.crop**2 * 3
        # all parts as uint8, one as floats
        found.inputs += rows * pixels * (config.optim.accumulate + FLOAT)
        found.features += 2 * rows * tokens * vit.width * FLOAT  # before and after standardising
        found.peak = max(found.peak, rows * tokens * _values(vit, compute, compute))
        for mask in config.masks:
            context = context_share(mask) * tokens
            found.saved += rows * context * kept(vit, compute, compute) * vit.depth
            found.saved += rows * tokens * kept(predictor, compute, FLOAT) * predictor.depth
            # predicted, wanted
            found.features += 2 * rows * (tokens - context) * vit.width * FLOAT
            # in the backward pass, with their gradients
            found.peak = max(
                found.peak,
                2 * rows * context * _values(vit, compute, compute),
                2 * rows * tokens * _values(predictor, compute, FLOAT),
            )
    return found


def _robot(config: ActionConditionedConfig, rows: int) -> _Activations:
    """Of pieces of a robot's recordings, `rows` at a time."""
    vit, c, rollout = vit_config(config), ac_predictor_config(config), config.rollout
    compute, frames = BYTES[config.compute_dtype], config.robot.frames
    kept = KEPT[config.mesh.remat](c, compute, compute)
    frame = rows * math.prod(c.grid) * vit.width * FLOAT  # features of one
    found = _Activations()
    if config.features:
        found.inputs = STORED / FLOAT * frames * frame * config.optim.accumulate
    else:
        pixels = rows * frames * config.data.crop**2 * 3
        found.inputs = pixels * (config.optim.accumulate + vit.tubelet * FLOAT)  # a tubelet of each
        tokens = rows * frames * math.prod(c.grid)
        found.features = frames * frame  # before standardising
        found.peak = tokens * _values(vit, compute, compute)
    found.features += frames * frame
    # predictions from true frames, then one a frame; before and after standardising
    predicted = frames - 1 + rollout.steps - 1
    found.features += 2 * predicted * frame

    size = rows * c.tokens_per_frame  # tokens of a frame
    past = 2 * compute * c.width  # keys and values of a token
    prefix = 1 if rollout.prefix == 'first' else frames - rollout.steps
    # the rollout takes keys and values of all layers, and they have gradients
    found.saved = c.depth * size * (frames - 1) * (kept + 2 * past)
    for before in range(prefix, prefix + rollout.steps - 1):
        found.saved += c.depth * size * (kept + 2 * past * (before + 1))
    values = _values(c, compute, compute)
    found.peak = max(found.peak, 2 * size * (frames - 1) * values)
    return found


def _size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _input(c, compute: int, stream: int) -> float:
    """Bytes a token of a block's input; `compute` and `stream` are bytes of a matmul's input and of
    the residual stream."""
    return stream * c.width


def _products(c, compute: int, stream: int) -> float:
    """Bytes a token of a block's input and of its products with weights."""
    return stream * c.width + compute * (5 * c.width + c.width * c.mlp_ratio)


def _values(c, compute: int, stream: int) -> float:
    """Bytes a token of what a block has at a time: norms, qkv, attention, MLP, stream."""
    return compute * (6 * c.width + 2 * c.width * c.mlp_ratio) + 2 * stream * c.width


def _everything(c, compute: int, stream: int) -> float:
    """Bytes a token of all that a block's gradients ask for, as the traced step has it: norms and
    stream in float32, attention, GELU and its derivative."""
    return FLOAT * 6 * c.width + compute * (7 * c.width + 4 * c.width * c.mlp_ratio)


KEPT = {'full': _input, 'dots': _products, 'none': _everything}  # by mesh.remat


def _robot_nets(config: ActionConditionedConfig) -> ActionConditioned:
    """Without the encoder's weights, which `ActionConditioned.of` reads."""
    return ActionConditioned(vit_config(config), ac_predictor_config(config))


# by the type of the config: its nets, and what counts activations
TASKS = {
    MaskedVideoConfig: (MaskedVideo.of, _video),
    ActionConditionedConfig: (_robot_nets, _robot),
}
