"""Estimates the accelerator memory of a training step, by counting; nothing is compiled.

    python -m tools.estimate_memory --config=configs/vits.py --config.data.lists[0].path=clips.txt

The state is exact. Activations are counted for full recomputation (`mesh.remat=full`), attention
that never stores its scores, and as many tokens as the masks can ask for. In six small cases, where
clips were too short for scores to matter, XLA for the CPU allocated 8 to 28 % less. Fragmentation
and the compiler's workspace come on top: an estimate, no measurement.
"""

import math
import sys

from jepa_jax import cli
from jepa_jax.config import ConfigError, MaskBlocks, TrainConfig, frame_counts, validate

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
      ConfigError: `mesh.remat` is not full, or the batch does not split over the devices.
    """
    from jepa_jax.objectives.masked_video import MaskedVideo, predictor_config, vit_config

    if config.mesh.remat != 'full':
        raise ConfigError(f"mesh.remat = '{config.mesh.remat}': the estimate knows only full")
    c, parts = config.optim, devices * config.optim.accumulate
    if c.batch % parts:
        raise ConfigError(f'optim.batch = {c.batch}: must be a multiple of {parts} parts')
    objective = MaskedVideo.of(config)
    params = {name: _size(getattr(objective, name).abstract) for name in ('encoder', 'predictor')}
    trained = sum(params.values())
    vit, predictor = vit_config(config), predictor_config(config)
    compute = BYTES[config.compute_dtype]

    rows = c.batch // parts / len(frame_counts(config.data))  # clips of a group at a time
    saved = inputs = features = 0
    peak = 0
    for frames in frame_counts(config.data):
        tokens = math.prod(vit.grid(frames, config.data.crop, config.data.crop))
        pixels = frames * config.data.crop**2 * 3
        inputs += rows * pixels * (c.accumulate + FLOAT)  # all parts as uint8, one as floats
        features += 2 * rows * tokens * vit.width * FLOAT  # before and after standardising
        peak = max(peak, _block(rows * tokens, vit, compute, compute, backward=False))
        for mask in config.masks:
            context = context_share(mask) * tokens
            saved += rows * context * vit.width * compute * vit.depth
            saved += rows * tokens * predictor.width * FLOAT * predictor.depth
            features += 2 * rows * (tokens - context) * vit.width * FLOAT  # predicted, wanted
            peak = max(
                peak,
                _block(rows * context, vit, compute, compute, backward=True),
                _block(rows * tokens, predictor, compute, FLOAT, backward=True),
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
    import jax

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _block(tokens: float, c, compute: int, stream: int, *, backward: bool) -> float:
    """Bytes of one block's intermediate values, and of their gradients in the backward pass."""
    hidden = c.width * c.mlp_ratio
    inner = compute * (2 * c.width + 3 * c.width + c.width + 2 * hidden)  # norms, qkv, out, MLP
    return tokens * (inner + 2 * stream * c.width) * (2 if backward else 1)


def report(config: TrainConfig, workdir: str, devices: int) -> None:
    """Prints the estimate; nothing is written."""
    del workdir
    validate(config)
    clips = config.optim.batch // (devices * config.optim.accumulate)
    print(f'{config.name}: {clips} clips at a time on each of {devices} devices; GiB, estimated')
    for use, size in estimate(config, devices).items():
        print(f'{size:8.2f}  {use}')


def main() -> int:
    return cli.run(
        report,
        doc=__doc__,
        options=lambda p: p.add_argument(
            '--devices', type=int, default=1, metavar='N', help='devices of the run (default: 1)'
        ),
    )


if __name__ == '__main__':
    sys.exit(main())
