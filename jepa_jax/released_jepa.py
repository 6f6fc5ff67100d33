"""The recipes of I-JEPA and V-JEPA 1, a row each; `configs/*.py` name them.

Values of the public config files (reference: family §1.7, §2). Where paper and files of I-JEPA
differ, these are the files': a warm-up of 40 epochs from 2e-4 (paper: 15 from 1e-4), weight decay
on a cosine (linear).
"""

from __future__ import annotations

from dataclasses import dataclass

from jepa_jax.config.masked_image import MaskedImageConfig
from jepa_jax.config.masked_video import MaskedVideoConfig
from jepa_jax.config.parts import DataListConfig
from jepa_jax.config.trials import parse_words
from jepa_jax.recipes import smoke


@dataclass(frozen=True)
class Images:
    """A released run of I-JEPA; all have a batch of 2,048."""

    size: str  # a key of jepa_jax.models.SIZES
    patch: int
    path: str  # of the folder of images
    count: int  # of them
    epochs: int
    warmup: int  # epochs
    predictor_depth: int
    group: int  # images on a GPU, over which the masks are cut


# ImageNet-22K was released with 14,197,122 images; how many of them the run had is not said
IMAGES = {
    'ijepa_vith14': Images('vith', 14, 'imagenet_train', 1_281_167, 300, 40, 12, 128),
    'ijepa_vitg16': Images('giant', 16, 'imagenet22k_train', 14_197_122, 44, 3, 16, 16),
}
BATCH = 2048


def image_recipe(name: str, arg: str) -> MaskedImageConfig:
    """The config of `configs/NAME.py:ARG`; ARG: smoke, or nothing.

    Raises:
      ConfigError: another word.
    """
    row = IMAGES[name]
    _, words = parse_words(arg, ('pretrain',), ('smoke',))
    epoch = row.count // BATCH  # steps; what is left over is dropped
    c = MaskedImageConfig(name=name, seed=0)
    c.encoder.size, c.encoder.patch = row.size, row.patch
    c.predictor.depth = row.predictor_depth
    c.masks.group = row.group
    c.data.lists = [DataListConfig(path=row.path, kind='images')]
    c.data.workers = 64
    c.optim.batch = BATCH
    c.optim.steps, c.optim.warmup = row.epochs * epoch, row.warmup * epoch
    c.optim.start_lr, c.optim.lr, c.optim.final_lr = 2e-4, 1e-3, 1e-6
    c.optim.weight_decay, c.optim.final_weight_decay = 0.04, 0.4
    c.optim.momentum, c.optim.final_momentum, c.optim.ipe_scale = 0.996, 1.0, 1.0
    c.mesh.fsdp = c.optim.accumulate = 0  # chosen by devices and memory
    c.checkpoints.every, c.checkpoints.keep_every = epoch, 50 * epoch
    return smoke(c, accumulate=1) if 'smoke' in words else c


EPOCH = 300  # steps, of V-JEPA 1
VIDEOS = {'vjepa1_vitl': 'vitl', 'vjepa1_vith': 'vith'}


def first_recipe(name: str, arg: str) -> MaskedVideoConfig:
    """The config of `configs/NAME.py:ARG`; ARG: a comma list of 384 (pixels, ViT-H) and smoke.

    Raises:
      ConfigError: another word.
    """
    options = ('384', 'smoke') if VIDEOS[name] == 'vith' else ('smoke',)
    _, words = parse_words(arg, ('pretrain',), options)
    larger = '384' in words
    c = MaskedVideoConfig(name=name + ('-384' if larger else ''), seed=234)
    c.encoder.size, c.encoder.position, c.encoder.shorter = VIDEOS[name], 'sincos', 'resized'
    c.encoder.rescale = False
    c.predictor.heads, c.predictor.mask_tokens, c.predictor.tokens_of = 16, 2, 'masks'
    # VideoMix2M, the lists of K710, SSv2 and HowTo100M one after the other
    c.data.lists = [DataListConfig(path='videomix2m.csv')]
    c.data.crop, c.data.frames, c.data.workers = 384 if larger else 224, 16, 96
    c.data.fps, c.data.frame_step = 0, 4
    c.optim.batch = 2400 if larger else 3072
    c.optim.steps, c.optim.warmup = 300 * EPOCH, 40 * EPOCH
    c.optim.start_lr, c.optim.lr, c.optim.final_lr = 2e-4, 6.25e-4, 1e-6
    c.optim.weight_decay, c.optim.final_weight_decay = 0.04, 0.4
    c.optim.momentum, c.optim.final_momentum, c.optim.ipe_scale = 0.998, 1.0, 1.25
    # in epochs after the one that ends the warm-up, so from the 42nd on
    c.optim.clip, c.optim.clip_from = 10.0, 41 * EPOCH
    c.mesh.fsdp = c.optim.accumulate = 0  # chosen by devices and memory
    c.checkpoints.every, c.checkpoints.keep_every = EPOCH, 50 * EPOCH
    return smoke(c, accumulate=1) if 'smoke' in words else c
