"""ViT-S, 22 million parameters, on one GPU of 24 GB: our recipe, for own video.

    python -m jepa_jax.train --config=configs/vits.py --config.data.lists[0].path=clips.txt
    python -m jepa_jax.train --config=configs/vits.py:cooldown \\
        --config.data.lists[0].path=clips.txt --config.checkpoints.resume_from=runs/vits-pretrain

`vits.py:smoke` is a minute on two cores, with self-made videos.

V-JEPA 2 was not released at this size, and this recipe has not been run to its end: it is the
released one at a twelfth of the batch. Rate and momentum are what to vary first. Memory estimates:
docs/recipes.md; with less memory raise `optim.accumulate`, which leaves the update the same.
"""

from jepa_jax.config import DataListConfig, MaskedVideoConfig, parse_arg
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> MaskedVideoConfig:
    phase, small = parse_arg(arg, 'pretrain', 'cooldown')
    c = MaskedVideoConfig(name=f'vits-{phase}')
    c.encoder.size = 'small'
    c.data.lists = [DataListConfig(path='')]
    c.data.crop = 256
    c.data.frames = 16
    c.data.workers = 8
    c.optim.batch = 256
    c.optim.accumulate = 8
    c.optim.steps = 60_000
    c.optim.warmup = 3_000  # a twentieth of the run, as released
    # 5.25e-4 at 3,072 clips, scaled by the square root of the batch, which suits Adam; not measured
    c.optim.start_lr = 3e-5
    c.optim.lr = c.optim.final_lr = 1.5e-4
    c.optim.momentum = c.optim.final_momentum = 0.99925
    c.checkpoints.every = 1000
    if phase == 'cooldown':
        c.data.frames = 64
        c.optim.accumulate = 16
        c.optim.steps = 3_000
        c.optim.schedule = 'linear_decay'
        c.optim.warmup = 0
        c.optim.final_lr = 1e-6
        c.checkpoints.restart_schedule = True
    return smoke(c) if small else c
