"""The config with which the tests resume the run in `masked`."""

from jepa_jax.config import DataList, MaskBlocks, TrainConfig


def get_config(_: str = '') -> TrainConfig:
    c = TrainConfig(name='old-masked', seed=3, compute_dtype='float32')
    c.encoder.width, c.encoder.depth, c.encoder.heads, c.encoder.patch = 24, 1, 2, 8
    c.predictor.width, c.predictor.depth, c.predictor.heads = 24, 1, 2
    # small files
    c.encoder.tubelet, c.encoder.mlp_ratio, c.predictor.mlp_ratio = 1, 1.0, 1.0
    c.predictor.mask_tokens = 2
    # blocks of one shape: one program to compile
    c.masks = [MaskBlocks(num_blocks=2, spatial_scale=(0.25, 0.25), aspect_ratio=(1.0, 1.0))]
    c.data.lists = [DataList(path='videos')]
    c.data.crop, c.data.frames, c.data.fps = 32, 4, 8
    c.optim.batch, c.optim.steps, c.optim.warmup = 4, 8, 4
    c.optim.momentum = 0.9  # so that eight steps move the average
    c.checkpoints.every = 4
    c.logging.every, c.logging.health_every = 1, 4
    return c
