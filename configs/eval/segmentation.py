"""The class of every pixel, by a linear head on frozen tokens.

    python -m jepa_jax.evaluate --config=configs/eval/segmentation.py --model runs/tiny
    python -m jepa_jax.evaluate --config=configs/eval/segmentation.py:ade20k --model vitl \
        --config.data.path=ADEChallengeData2016

`:self_made` (default) is for a model of configs/tiny.py, on videos that are made on the spot. The
others are `:ade20k`, `:voc12` (the official lists) and `:voc12_aug` (trainaug.txt and
SegmentationClassAug). `smoke` takes few steps, and of the self-made videos few.
"""

from jepa_jax.config import parse_words
from jepa_jax.config.dense import SegmentationConfig


def get_config(arg: str = '') -> SegmentationConfig:
    kind, words = parse_words(arg, ('self_made', 'ade20k', 'voc12', 'voc12_aug'), ('smoke',))
    c = SegmentationConfig(name=f'segmentation-{kind}')
    c.data.set = kind
    if kind == 'self_made':
        c.data.short, c.data.crop, c.data.scale, c.data.stride = 0, (80, 80), (1.0, 1.0), 0
        c.steps, c.batch, c.warmup, c.chosen_on = 200, 8, 20, 0.25
        c.rates, c.decays = (1e-1, 3e-2, 1e-2, 1.5e-3), (0.01,) * 3  # few steps, high rates
    if 'smoke' in words:
        c.name += '-smoke'
        c.data.official = False
        if kind == 'self_made':
            c.data.set = 'self_made_few'
        c.steps, c.warmup, c.batch, c.bootstrap = 20, 2, 4, 100
        c.rates, c.decays = (3e-2,) * 4, (0.01,) * 3
    return c
