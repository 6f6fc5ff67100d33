"""The main job: a small V-JEPA on self-made videos, with a probe at the end.

    python -m jepa_jax.train --config=configs/tiny.py

Makes its videos the first time, trains on two CPU cores in minutes, and ends with a probe of frozen
features against those of a random encoder and against pixels. Own videos instead:

    python -m jepa_jax.train --config=configs/tiny.py --config.probe.enabled=false \\
        --config.data.lists[0].kind=videos --config.data.lists[0].path=clips.txt

`tiny.py:smoke` is a minute.
"""

from jepa_jax.config import DataList, TrainConfig, parse_arg, smoke


def get_config(arg: str = '') -> TrainConfig:
    _, small = parse_arg(arg, 'pretrain')
    c = TrainConfig(name='tiny')
    c.compute_dtype = 'float32'
    c.encoder.size = 'tiny'
    c.encoder.width, c.encoder.depth, c.encoder.heads = 96, 4, 4
    c.encoder.patch = 16
    c.predictor.width, c.predictor.depth, c.predictor.heads = 48, 2, 2
    c.data.lists = [DataList(kind='synthetic')]
    c.data.crop = 64
    c.data.frames = 8
    c.data.fps = 4
    c.data.workers = 1
    c.optim.batch = 64
    c.optim.steps = 1500
    c.optim.warmup = 75
    c.optim.start_lr = 2e-4
    c.optim.lr = c.optim.final_lr = 1e-3
    c.optim.momentum = c.optim.final_momentum = 0.99
    c.checkpoints.every = 250
    c.logging.health_every = 50
    c.probe.enabled = True
    return smoke(c) if small else c
