"""The accelerator memory of a pretraining step, estimated by counting; nothing is compiled.

The state is exact. Activations are counted for attention that never stores its scores, and as many
tokens as the masks can ask for. Fragmentation and the compiler's workspace come on top: an
estimate, no measurement.
"""

from __future__ import annotations

import math

import jax

from jepa_jax.config import ConfigError, MaskBlocks, TrainConfig, frame_counts
from jepa_jax.objectives.masked_video import MaskedVideo, predictor_config, vit_config

GIB = 2**30
FLOAT = 4  # bytes of parameters, moments, predictor stream and targets
BYTES = {'bfloat16': 2, 'float32': 4}  # of the encoder's stream and of matmul inputs


def context_share(mask: MaskBlocks) -> float:
    """Expected share of tokens that no block covers, for blocks that fall anywhere.

    An upper bound of what is kept: every clip is cut to the shortest of its batch.
    """
    space, time = max(mask.spatial_scale), max(mask.temporal_scale)
    return (1 - space * time) ** mask.num_blocks


def estimate(config: TrainConfig, devices: int = 1) -> dict[str, float]:
    """GiB a device by use, and their `total`.

    Raises:
      ConfigError: the batch does not split over the devices.
    """
    c, parts = config.optim, devices * config.optim.accumulate
    if c.batch % parts:
        raise ConfigError(f'optim.batch = {c.batch}: must be a multiple of {parts} parts')
    objective = MaskedVideo.of(config)
    params = {name: _size(getattr(objective, name).abstract) for name in ('encoder', 'predictor')}
    trained = sum(params.values())
    vit, predictor = vit_config(config), predictor_config(config)
    compute, kept = BYTES[config.compute_dtype], KEPT[config.mesh.remat]

    rows = c.batch // parts / len(frame_counts(config.data))  # clips of a group at a time
    saved = inputs = features = 0
    peak = 0
    for frames in frame_counts(config.data):
        tokens = math.prod(vit.grid(frames, config.data.crop, config.data.crop))
        pixels = frames * config.data.crop**2 * 3
        inputs += rows * pixels * (c.accumulate + FLOAT)  # all parts as uint8, one as floats
        features += 2 * rows * tokens * vit.width * FLOAT  # before and after standardising
        peak = max(peak, rows * tokens * _values(vit, compute, compute))
        for mask in config.masks:
            context = context_share(mask) * tokens
            saved += rows * context * kept(vit, compute, compute) * vit.depth
            saved += rows * tokens * kept(predictor, compute, FLOAT) * predictor.depth
            features += 2 * rows * (tokens - context) * vit.width * FLOAT  # predicted, wanted
            # in the backward pass, with their gradients
            peak = max(
                peak,
                2 * rows * context * _values(vit, compute, compute),
                2 * rows * tokens * _values(predictor, compute, FLOAT),
            )
    sizes = {
        'parameters, moments, target': (3 * trained + params['encoder']) * FLOAT / config.mesh.fsdp,
        # the update happens in place; adding up parts takes a sum besides
        'gradients': (2 if c.accumulate > 1 else 1) * trained * FLOAT / config.mesh.fsdp,
        'clips': inputs,
        'kept for the backward pass': saved,
        'targets and predictions': features,
        'largest block': peak,
    }
    sizes = {use: size / GIB for use, size in sizes.items()}
    return {**sizes, 'total': sum(sizes.values())}


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
