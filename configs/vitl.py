"""V-JEPA 2, ViT-L, 304 million parameters (reference: vjepa2 §11.1; paper).

    python -m jepa_jax.train --config=configs/vitl.py:pretrain
    python -m jepa_jax.train --config=configs/vitl.py:cooldown \\
        --config.checkpoints.resume_from=runs/vitl-pretrain

The lists are the original's, text files of `path label` lines in the working folder; see
docs/recipes.md. `vitl.py:smoke` and `vitl.py:cooldown,smoke` are a minute on two cores, with
self-made videos.

Hardware of the original: 128 GPUs for `pretrain`, 256 for `cooldown`. The paper
reports 73.7 % on SSv2 (attentive probe, after both phases).
"""

from jepa_jax.config import DataListConfig, MaskedVideoConfig, parse_arg
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> MaskedVideoConfig:
    phase, small = parse_arg(arg, 'pretrain', 'cooldown')
    c = MaskedVideoConfig(name=f'vitl-{phase}')
    c.encoder.size = 'vitl'
    c.data.lists = [
        DataListConfig(path='k710_train_paths.csv', weight=0.335),
        DataListConfig(path='ssv2_train_paths.csv', weight=0.1),
        DataListConfig(path='howto_320p.csv', weight=0.565),
    ]
    c.data.crop = 256
    c.data.frames = 16
    c.data.workers = 64  # 8 for each of the 8 GPUs of a host
    c.optim.batch = 3072  # 16 x 8 GPUs x 24 clips
    c.optim.steps = 240_000  # the paper's; the public file's 10 x 300 are a placeholder
    c.optim.warmup = 12_000
    c.optim.start_lr = 1e-4
    c.optim.lr = c.optim.final_lr = 5.25e-4
    c.optim.momentum = c.optim.final_momentum = 0.99925
    c.optim.weight_decay = c.optim.final_weight_decay = 0.04
    c.optim.ipe_scale = 1.25
    c.mesh.fsdp = 8
    c.checkpoints.every = 300  # the original's epoch
    c.checkpoints.keep_every = 15_000
    if phase == 'cooldown':
        c.data.frames = 64
        c.data.workers = 96  # 12 a GPU
        c.optim.batch = 3072  # 32 x 8 GPUs x 12 clips
        c.optim.steps = 12_000
        c.optim.schedule = 'linear_decay'
        c.optim.warmup = 0
        c.optim.final_lr = 1e-6  # reached at 1.25 times the run: it ends at 1.058e-4
        c.checkpoints.restart_schedule = True
    return smoke(c) if small else c
