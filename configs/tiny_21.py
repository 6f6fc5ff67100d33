"""The main job with the dense objective of V-JEPA 2.1: same videos, same budget as configs/tiny.py.

    python -m jepa_jax.train --config=configs/tiny_21.py

Width, depth, clips, steps, rates and the moving average are those of `tiny.py`, so that what
differs is what V-JEPA 2.1 changed: the loss of the context, four supervised depths, positions,
embeddings. Videos alone: with images the same number of clips would be fewer. The loss of the
context sets in over the same share of the run as released.

`tiny_21.py:smoke` is a minute.
"""

from jepa_jax.config import (
    DataListConfig,
    DenseVideoConfig,
    PeriodicEvalConfig,
    cache_root,
    parse_arg,
)
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> DenseVideoConfig:
    _, small = parse_arg(arg, 'pretrain')
    c = DenseVideoConfig(name='tiny_21')
    c.compute_dtype = 'float32'
    c.encoder.size = 'tiny'
    c.encoder.width, c.encoder.depth, c.encoder.heads = 96, 4, 4
    c.encoder.patch = 8
    c.predictor.width, c.predictor.depth, c.predictor.heads = 48, 2, 2
    c.mesh.remat = 'none'  # memory is no concern at this size
    c.data.lists = [DataListConfig(kind='synthetic')]
    c.data.cache = str(cache_root() / 'clips')
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
    c.optim.momentum = c.optim.final_momentum = 0.998
    c.context_loss.begin, c.context_loss.full = 150, 300  # released: 15,000 and 30,000 of 300,000
    c.checkpoints.every = 500
    c.logging.health_every = 100
    c.evals = [PeriodicEvalConfig()]  # neighbours and ridge
    c.probe.enabled = True
    c.probe.lr = 3e-3
    return smoke(c) if small else c
