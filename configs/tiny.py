"""The main job: a small V-JEPA on self-made videos, with a probe at the end.

    python -m jepa_jax.train --config=configs/tiny.py

Makes its videos the first time, trains on two CPU cores in about ten minutes, and ends with a probe
of frozen features against those of a random encoder and against pixels. Expected: which way digit
and ball circle, and on which side of the digit the ball lies, is read far better from the trained
features than from a random encoder's or from pixels; figures: docs/numbers.md. Own videos instead:

    python -m jepa_jax.train --config=configs/tiny.py --config.probe.enabled=false \\
        --config.data.lists[0].kind=videos --config.data.lists[0].path=clips.txt

`tiny.py:smoke` is a minute.
"""

from jepa_jax.config import (
    DataListConfig,
    MaskedVideoConfig,
    PeriodicEvalConfig,
    cache_root,
    parse_arg,
)
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> MaskedVideoConfig:
    _, small = parse_arg(arg, 'pretrain')
    c = MaskedVideoConfig(name='tiny')
    c.compute_dtype = 'float32'
    c.encoder.size = 'tiny'
    c.encoder.width, c.encoder.depth, c.encoder.heads = 96, 4, 4
    c.encoder.patch = 8
    c.predictor.width, c.predictor.depth, c.predictor.heads = 48, 2, 2
    c.mesh.remat = 'none'  # memory is no concern at this size
    c.data.lists = [DataListConfig(kind='synthetic')]
    c.data.cache = str(cache_root() / 'clips')  # 0.4 GB; decoding would take a third of the time
    c.data.crop = 32
    c.data.frames = 8
    c.data.fps = 8
    c.data.augment.scale = (0.5, 1.0)
    c.data.augment.flip = False  # a mirrored circle turns the other way
    c.optim.batch = 32
    c.optim.steps = 3000
    c.optim.warmup = 100
    c.optim.start_lr, c.optim.lr, c.optim.final_lr = 2e-4, 1e-3, 1e-5
    c.optim.ipe_scale = 1.0  # to the end of the cosine: annealed features read better
    # a faster average forgets the inputs within the first few hundred steps
    c.optim.momentum = c.optim.final_momentum = 0.998
    c.checkpoints.every = 500
    c.logging.health_every = 100
    c.evals = [PeriodicEvalConfig()]  # neighbours and ridge: metrics.jsonl, evals/linear/...
    c.probe.enabled = True
    c.probe.lr = 3e-3
    return smoke(c) if small else c
