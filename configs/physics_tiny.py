"""A small V-JEPA on lawful videos of a world with laws, to be asked what surprises it.

    python -m jepa_jax.train --config=configs/physics_tiny.py --workdir=runs/physics
    python -m jepa_jax.evaluate --config=configs/eval/physics.py --model runs/physics

Makes its videos the first time and trains on two CPU cores in under ten minutes (three minutes of
processor time). Half of the masks hide what is to come: all tokens of the first half of a clip but
a few are context, the second half is to be predicted, which is what an evaluation of surprise asks
for. `physics_tiny.py:smoke` is a minute.
"""

from jepa_jax.config import DataListConfig, MaskConfig, MaskedVideoConfig, cache_root, parse_arg
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> MaskedVideoConfig:
    _, small = parse_arg(arg, 'pretrain')
    c = MaskedVideoConfig(name='physics_tiny')
    c.compute_dtype = 'float32'
    c.encoder.size = 'tiny'
    c.encoder.width, c.encoder.depth, c.encoder.heads = 64, 4, 4
    c.encoder.patch = 8
    c.predictor.width, c.predictor.depth, c.predictor.heads = 48, 2, 4
    c.mesh.remat = 'none'  # memory is no concern at this size
    c.mask_sampler = 'single'  # one program to compile
    c.masks = [
        MaskConfig(num_blocks=4, spatial_scale=(0.2, 0.2)),
        MaskConfig(
            num_blocks=1,
            spatial_scale=(0.1, 0.1),
            temporal_scale=(0.2, 0.2),
            max_temporal_keep=0.5,
        ),
    ]
    c.data.lists = [DataListConfig(kind='lawful')]
    c.data.cache = str(cache_root() / 'clips')
    c.data.crop = 32
    c.data.frames = 12
    c.data.fps = 8
    c.data.augment.scale = c.data.augment.ratio = (1.0, 1.0)  # things keep their size
    c.optim.batch = 32
    c.optim.steps = 850
    c.optim.warmup = 100
    c.optim.start_lr, c.optim.lr, c.optim.final_lr = 2e-4, 1e-3, 1e-5
    c.optim.ipe_scale = 1.0
    c.optim.momentum, c.optim.final_momentum = 0.997, 0.997
    c.checkpoints.every = 500
    c.logging.health_every = 100
    return smoke(c) if small else c
