"""The recipes that differ in a few numbers, a row each; `configs/*.py` name them.

Values of the public V-JEPA 2 files (reference: vjepa2 §11.1), with the paper's step counts where
those files hold placeholders, and what the paper has and they lack. ViT-S and ViT-B are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from jepa_jax.config.dense_video import DenseVideoConfig
from jepa_jax.config.masked_pixels import MaskedPixelsConfig
from jepa_jax.config.masked_video import MaskedVideoConfig
from jepa_jax.config.parts import DataListConfig, EncoderConfig
from jepa_jax.config.trials import parse_words
from jepa_jax.errors import ConfigError
from jepa_jax.recipes import smoke

# of the public files: text files of `path label` lines, by their names there
PUBLIC = (
    DataListConfig(path='k710_train_paths.csv', weight=0.335),
    DataListConfig(path='ssv2_train_paths.csv', weight=0.1),
    DataListConfig(path='howto_320p.csv', weight=0.565),
)
# of the paper, VM22M: curated YT-1B and images besides, each a clip of one repeated frame
PAPER = (
    DataListConfig(path='ssv2_train_paths.csv', weight=0.056),
    DataListConfig(path='k710_train_paths.csv', weight=0.188),
    DataListConfig(path='howto_320p.csv', weight=0.318),
    DataListConfig(path='yt1b_curated_paths.csv', weight=0.188),
    DataListConfig(path='imagenet_train', kind='images', weight=0.25),
)


@dataclass(frozen=True)
class Scale:
    """What a size's recipes have in common."""

    size: str  # a key of jepa_jax.models.SIZES
    batch: int
    steps: int
    warmup: int  # a twentieth of the run
    start_lr: float
    lr: float
    cooldown: int  # steps
    every: int  # steps between saves
    keep_every: int
    workers: tuple[int, int]  # on a host: pretraining, cooldown
    smoke_accumulate: int = 1  # of trials, as they were when the first of them were stored
    remat: str = 'full'


def _large(size: str) -> Scale:
    # 3,072 clips: 16 nodes x 8 GPUs x 24; saves every 300 steps, the original's epoch; 8 and 12
    # workers for each of the 8 GPUs of a host
    return Scale(size, 3072, 240_000, 12_000, 1e-4, 5.25e-4, 12_000, 300, 15_000, (64, 96))


def _ours(size: str) -> Scale:
    # 5.25e-4 at 3,072 clips, scaled by the square root of the batch, which suits Adam; not measured
    # beside a small encoder the predictor's attention is most of a step (docs/performance.md)
    return Scale(size, 256, 60_000, 3_000, 3e-5, 1.5e-4, 3_000, 1000, 0, (8, 8), 2, 'attention')


SCALES = {
    'vits': _ours('vits'),
    'vitb': _ours('vitb'),
    'vitl': _large('vitl'),
    'vith': _large('vith'),
    'vitg': _large('vitg'),
}


def recipe(name: str, arg: str, *phases: str, crop: int = 256) -> MaskedVideoConfig:
    """The config of `configs/NAME.py:ARG`.

    Args:
      name: of the file; a key of SCALES with at most a suffix, `vitg_384`.
      arg: a comma list of a phase, `paper` (large sizes) and `smoke`, all optional.
      phases: allowed: pretrain, cooldown; the first is the default.
      crop: pixels.

    Raises:
      ConfigError: another word.
    """
    scale = SCALES[name.partition('_')[0]]
    large = scale.keep_every > 0
    phase, words = parse_words(arg, phases, ('paper', 'smoke') if large else ('smoke',))
    paper = 'paper' in words
    c = MaskedVideoConfig(name='-'.join([name, phase, *(['paper'] if paper else [])]))
    c.encoder.size = scale.size
    lists = (PAPER if paper else PUBLIC) if large else (DataListConfig(path=''),)
    c.data.lists = [DataListConfig(**vars(entry)) for entry in lists]
    c.data.crop, c.data.frames = crop, 16
    c.data.workers = scale.workers[0]
    c.optim.batch, c.optim.steps, c.optim.warmup = scale.batch, scale.steps, scale.warmup
    c.optim.start_lr, c.optim.lr, c.optim.final_lr = scale.start_lr, scale.lr, scale.lr
    c.optim.momentum = c.optim.final_momentum = 0.99925
    c.optim.weight_decay = c.optim.final_weight_decay = 0.04
    c.optim.ipe_scale = 1.25
    c.mesh.fsdp = c.optim.accumulate = 0  # chosen by devices and memory
    c.mesh.remat = scale.remat
    c.checkpoints.every, c.checkpoints.keep_every = scale.every, scale.keep_every
    if phase == 'cooldown':
        c.data.frames = 64
        c.data.workers = scale.workers[1]
        c.optim.steps, c.optim.warmup = scale.cooldown, 0
        c.optim.schedule = 'linear_decay'
        c.optim.final_lr = 1e-6
        # the public files reach it at 1.25 times the run, which ends a fifth of the way above
        c.optim.ipe_scale = 1.0 if paper else 1.25
        c.checkpoints.restart_schedule = True
    return smoke(c, accumulate=scale.smoke_accumulate) if 'smoke' in words else c


# --- V-JEPA 2.1 (reference: vjepa2_1 §9) ----------------------------------------------------------

# files -> sizes that there are of the version
DENSE = {'vitb_21': 'vitb', 'vitl_21': 'vitl', 'vitg_21': 'vitg', 'vitgigantic_21': 'gigantic'}
# Where paper and public files differ (§9.5), these are the files' values: 300,000 steps (paper:
# 135,000), a peak rate of 6e-4 (5.25e-4), 0.5 for the context of images (0.7), 3,072 clips and
# 4,608 images (128 and 2,304), a cooldown at 256 pixels (384 for videos, 512 for images) that ends
# at 1.21e-4 (1e-6) and does not weigh by distance (not told), predictors of 24 blocks at all sizes
# (12 where the encoder was distilled); the levels of G are the code's, 12, 24, 38, 48. Nobody knows
# which of the two the released weights come from. Only the mask tokens are as in those, 8 instead
# of 6: a run's file then has the same arrays.
CLIPS = 3072


def dense_recipe(name: str, arg: str) -> DenseVideoConfig:
    """The config of `configs/NAME.py:ARG`, a comma list of pretrain or cooldown, and smoke.

    Raises:
      ConfigError: another word.
    """
    phase, words = parse_words(arg, ('pretrain', 'cooldown'), ('smoke',))
    c = DenseVideoConfig(name=f'{name}-{phase}')
    c.encoder.size = DENSE[name]
    images, c.data.frames, c.data.workers = 4608, 16, 64
    c.optim.steps, c.optim.warmup = 300_000, 12_000
    c.optim.start_lr, c.optim.lr, c.optim.final_lr = 1e-4, 6e-4, 6e-4
    c.optim.momentum = c.optim.final_momentum = 0.99925
    c.optim.weight_decay = c.optim.final_weight_decay = 0.04
    c.optim.ipe_scale = 1.25
    if phase == 'cooldown':
        images, c.data.frames, c.data.workers = 9216, 64, 96
        c.optim.steps, c.optim.warmup = 12_000, 0
        c.optim.schedule, c.optim.final_lr = 'linear_decay', 1e-6
        c.context_loss.begin = c.context_loss.full = 0
        c.context_loss.by_distance = False
        c.checkpoints.restart_schedule = True
    c.optim.batch = CLIPS + images
    c.data.lists = [DataListConfig(**vars(entry)) for entry in PUBLIC]  # whose weights add up to 1
    c.data.lists.append(
        DataListConfig('imagenet_train', kind='images', weight=images / CLIPS, frames=1)
    )
    c.mesh.fsdp = c.optim.accumulate = 0  # chosen by devices and memory
    c.checkpoints.every, c.checkpoints.keep_every = 300, 15_000
    return smoke(c, accumulate=1) if 'smoke' in words else c


# --- MAE and VideoMAE (reference: family §3) ------------------------------------------------------


def mae_recipe(name: str, arg: str) -> MaskedPixelsConfig:
    """The config of `configs/NAME.py:ARG`, `mae_vitb` or `mae_vitl`; arg: pretrain, smoke.

    Raises:
      ConfigError: another word.
    """
    _, words = parse_words(arg, ('pretrain',), ('smoke',))
    c = MaskedPixelsConfig(name=name)
    c.encoder.size = name.removeprefix('mae_')
    c.data.lists = [DataListConfig('imagenet_train', kind='images')]
    c.data.crop, c.data.workers = 224, 64
    a = c.data.augment
    a.scale, a.ratio, a.antialias, a.bicubic = (0.2, 1.0), (0.75, 4 / 3), True, True
    epoch = 312  # steps, of 1,281,167 images
    _pixels_optim(c, 4096, epoch, 1600)
    c.optim.start_lr, c.optim.final_lr = 0.0, 0.0
    return smoke(c, accumulate=1) if 'smoke' in words else c


def videomae_recipe(name: str, arg: str) -> MaskedPixelsConfig:
    """The config of `configs/videomae_vitb.py:ARG`; arg: pretrain, smoke.

    The original cuts squares and oblongs of sides 1, .875, .75 and .66 of the short one out of the
    middle and corners; here windows of such areas and aspect ratios fall anywhere.

    Raises:
      ConfigError: another word.
    """
    _, words = parse_words(arg, ('pretrain',), ('smoke',))
    c = MaskedPixelsConfig(name=name, kind='videomae', target='cubes', mask_ratio=0.9)
    c.encoder = EncoderConfig(size='vitb', position='sincos', axes='flat')
    c.decoder.width, c.decoder.depth, c.decoder.heads = 384, 4, 6
    c.data.lists = [DataListConfig('k400_train_paths.csv')]
    c.data.crop, c.data.frames, c.data.workers = 224, 16, 64
    c.data.fps, c.data.frame_step = 0, 4
    a = c.data.augment
    a.scale, a.ratio, a.flip = (0.44, 1.0), (0.75, 4 / 3), False
    epoch = 117  # steps, of about 240,000 videos; how many one has depends on the copy
    _pixels_optim(c, 2048, epoch, 1600)
    c.optim.start_lr, c.optim.final_lr = 8e-6, 8e-5  # 1e-6 and 1e-5, as the rate
    return smoke(c, accumulate=1) if 'smoke' in words else c


def _pixels_optim(c: MaskedPixelsConfig, batch: int, epoch: int, epochs: int) -> None:
    """What both have in common: 40 epochs of warm-up, half a cosine, 1.5e-4 for every 256."""
    o = c.optim
    o.batch, o.steps, o.warmup = batch, epochs * epoch, 40 * epoch
    o.schedule, o.ipe_scale, o.lr = 'half_cosine', 1.0, 1.5e-4 * batch / 256
    o.beta1, o.beta2, o.weight_decay, o.final_weight_decay = 0.9, 0.95, 0.05, 0.05
    c.mesh.fsdp = o.accumulate = 0  # chosen by devices and memory
    c.checkpoints.every, c.checkpoints.keep_every = 20 * epoch, 200 * epoch


# --- Distillation (reference: vjepa2_1 §9.6) ------------------------------------------------------

TEACHERS = {'vits': 'vitl', 'vitb': 'vitg'}  # by size of the student, unless another is asked for


def distilled_recipe(name: str, arg: str) -> MaskedVideoConfig:
    """The config of `configs/NAME.py:ARG`, a comma list of

    pretrain, cooldown or salt, which trains a teacher of the student's size on pixels;
    vitl, vith or vitg, the teacher; or 21: V-JEPA 2.1, from its ViT-G;
    smoke.

    What the paper leaves open is as in the recipes without a teacher. Nobody has published the code
    or the batch; no such run has been made here.

    Raises:
      ConfigError: another word, two teachers, or a phase that has none.
    """
    phases, teachers = ('pretrain', 'cooldown', 'salt'), ('vitl', 'vith', 'vitg', '21')
    phase, words = parse_words(arg, phases, (*teachers, 'smoke'))
    chosen, size = sorted(words & {*teachers}), name.partition('_')[0]
    if len(chosen) > (phase != 'salt'):
        raise ConfigError(
            f"config argument '{arg}': choose at most one of {', '.join(teachers)}, none with salt"
        )
    above = (chosen or [TEACHERS[size]])[0]
    if above == '21':
        c = dense_recipe('vitb_21', phase)
        c.encoder.size, c.predictor.depth = size, 12
        # released after a cooldown at 384 pixels, where this student has yet to come to
        c.teacher, c.teacher_encoder.size, c.teacher_other_view = 'vitgigantic-21', 'gigantic', True
    else:
        c = recipe(size, '' if phase == 'salt' else phase, 'pretrain', 'cooldown')
        if phase == 'salt':
            c.target, c.loss_exponent = 'pixels', 2.0  # as VideoMAE, to a factor
        else:
            c.teacher = c.teacher_encoder.size = above
    c.name = '-'.join([name, phase, *chosen])
    return smoke(c, accumulate=2) if 'smoke' in words else c
