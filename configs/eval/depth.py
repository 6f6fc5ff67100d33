"""The distance of every pixel, by a linear head on frozen tokens.

    python -m jepa_jax.evaluate --config=configs/eval/depth.py --model runs/tiny
    python -m jepa_jax.evaluate --config=configs/eval/depth.py:nyuv2 --model vitl \
        --config.data.path=nyu_depth_v2

`:self_made` (default) is for a model of configs/tiny.py, on videos that are made on the spot.
`:nyuv2` takes the files of the BTS split. `smoke` takes few steps, and of the self-made videos few.
"""

from jepa_jax.config import parse_words
from jepa_jax.config.dense import DepthConfig


def get_config(arg: str = '') -> DepthConfig:
    kind, words = parse_words(arg, ('self_made', 'nyuv2'), ('smoke',))
    c = DepthConfig(name=f'depth-{kind}')
    c.data.set, c.data.short, c.data.scale, c.data.stride = kind, 0, (1.0, 1.0), 0
    if kind == 'self_made':
        c.data.crop = (80, 80)
        c.steps, c.batch, c.warmup, c.chosen_on, c.bins = 200, 8, 20, 0.25, 64
        # few steps, high rates
        c.rates, c.decays = (1e-1, 3e-2, 1e-2, 1e-2, 1e-2, 1e-2, 1e-2), (1e-3,) * 2
        c.metres = (0.5, 10.5)
    else:
        c.data.crop = (416, 544)
        c.steps = 38_400
        c.rows, c.columns = (45, 471), (41, 601)  # Eigen's
    if 'smoke' in words:
        c.name += '-smoke'
        c.data.official = False
        if kind == 'self_made':
            c.data.set = 'self_made_few'
        c.steps, c.warmup, c.batch, c.bootstrap = 20, 2, 4, 100
        c.rates, c.decays = (3e-3,) * 7, (1e-3,) * 2
    return c
