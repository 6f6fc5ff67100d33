"""V-JEPA 2-AC: the action-conditioned predictor on a frozen ViT-g, 305 million parameters trained
(reference: vjepa2 §7, §11.1).

    python -m jepa_jax.train --config=configs/ac_vitg.py --config.robot.path=droid_train_paths.csv

The list names a raw DROID folder a line; other layouts: --config.robot.kind, see
docs/own_robot.md. Features of the frozen encoder are computed once and kept in the cache folder:
0.7 MB a frame at 4 frames a second. `ac_vitg.py:smoke` is a minute on two cores, with self-made
recordings and a random encoder. `:frames_16` trains on pieces of 16 frames in place of 8, as the
paper does besides.

Hardware of the original: 32 GPUs.
"""

from jepa_jax.config import ActionConditionedConfig, cache_root, parse_words
from jepa_jax.recipes import smoke


def get_config(arg: str = '') -> ActionConditionedConfig:
    phase, words = parse_words(arg, ('pretrain', 'frames_16'), ('smoke',))
    c = ActionConditionedConfig(name='ac-vitg' if phase == 'pretrain' else 'ac-vitg-16')
    c.encoder.size = 'vitg'
    c.encoder_from = 'vitg'
    c.features = str(cache_root() / 'features')
    c.robot.kind = 'droid'
    c.robot.camera = 'left_mp4_path'
    c.robot.frames = 8 if phase == 'pretrain' else 16
    c.robot.fps = 4.0
    c.rollout.steps = 2
    c.data.crop = 256
    c.data.workers = 12
    c.optim.batch = 256  # 4 x 8 GPUs x 8 pieces
    c.optim.steps = 94_500
    c.optim.schedule = 'wsd'
    c.optim.warmup = c.optim.anneal = 4500
    c.optim.start_lr, c.optim.lr, c.optim.final_lr = 7.5e-5, 4.25e-4, 0.0
    c.optim.weight_decay = c.optim.final_weight_decay = 0.04
    c.optim.ipe_scale = 1.0
    c.mesh.fsdp = c.optim.accumulate = 0  # chosen by devices and memory
    c.checkpoints.every = 300  # the original's epoch
    c.checkpoints.keep_every = 7500
    return smoke(c) if 'smoke' in words else c
