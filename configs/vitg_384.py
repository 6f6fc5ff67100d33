"""V-JEPA 2, ViT-g at 384 pixels: a cooldown of the 256-pixel run (reference: vjepa2 §11.1; paper).

    python -m jepa_jax.train --config=configs/vitg_384.py \\
        --config.checkpoints.resume_from=runs/vitg-pretrain

The lists are the original's, text files of `path label` lines in the working folder; see
docs/recipes.md. `vitg_384.py:smoke` is a minute on two cores, with self-made videos.

Hardware of the original: 512 GPUs. The paper reports 77.3 % on SSv2 (attentive probe).
"""

from jepa_jax.config import DataListConfig, MaskedVideoConfig, parse_arg
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> MaskedVideoConfig:
    phase, small = parse_arg(arg, 'cooldown')
    c = MaskedVideoConfig(name=f'vitg_384-{phase}')
    c.encoder.size = 'vitg'
    c.data.lists = [
        DataListConfig(path='k710_train_paths.csv', weight=0.335),
        DataListConfig(path='ssv2_train_paths.csv', weight=0.1),
        DataListConfig(path='howto_320p.csv', weight=0.565),
    ]
    c.data.crop = 384
    c.data.frames = 64
    c.data.workers = 96  # 12 for each of the 8 GPUs of a host
    c.optim.batch = 3072  # 64 x 8 GPUs x 6 clips
    c.optim.steps = 12_000
    c.optim.schedule = 'linear_decay'
    c.optim.warmup = 0
    c.optim.lr = 5.25e-4
    c.optim.final_lr = 1e-6  # reached at 1.25 times the run: it ends at 1.058e-4
    c.optim.ipe_scale = 1.25
    c.optim.momentum = c.optim.final_momentum = 0.99925
    c.optim.weight_decay = c.optim.final_weight_decay = 0.04
    c.mesh.fsdp = 8
    c.checkpoints.every = 300  # the original's epoch
    c.checkpoints.keep_every = 15_000
    c.checkpoints.restart_schedule = True
    return smoke(c) if small else c
