"""The config with which the tests resume the run in `action_conditioned`."""

from jepa_jax.config import RobotTrainConfig


def get_config(_: str = '') -> RobotTrainConfig:
    c = RobotTrainConfig(name='old-action-conditioned', seed=5, compute_dtype='float32')
    c.encoder.width, c.encoder.depth, c.encoder.heads, c.encoder.patch = 24, 1, 2, 8
    c.ac.width, c.ac.depth, c.ac.heads = 24, 1, 2
    c.encoder.tubelet, c.encoder.mlp_ratio, c.ac.mlp_ratio = 1, 1.0, 1.0  # small files
    c.encoder_from = 'converted'
    c.robot.kind, c.robot.path, c.robot.camera = 'npz', 'recordings', 'front'
    c.robot.frames, c.robot.fps = 4, 4.0
    c.data.crop = 32
    c.optim.batch, c.optim.steps = 4, 8
    c.optim.schedule, c.optim.stretch = 'wsd', 1.0
    c.optim.warmup = c.optim.anneal = 2
    c.checkpoints.every = 4
    c.logging.every, c.logging.health_every = 1, 4
    return c
