"""Is the impossible more surprising than the possible?

    python -m jepa_jax.evaluate --config=configs/eval/physics.py --model runs/physics
    python -m jepa_jax.evaluate --config=configs/eval/physics.py:intphys2 --model vith \
        --config.data.path=IntPhys2/Main

`:self_made` (default) asks a model of configs/physics_tiny.py about pairs that are made the first
time. The others are `:intphys1`, `:intphys2`, `:grasp`, `:inflevel` (data.path: the csv of pairs,
data.videos: the folder inflevel_lab), and `:pairs`, a csv with the columns possible, impossible and
if you like kind, group, variant, event. `smoke` takes few self-made pairs; of other sets it tries
short windows of every frame.
"""

from jepa_jax.config import parse_words
from jepa_jax.config.physics import PhysicsConfig


def get_config(arg: str = '') -> PhysicsConfig:
    kind, words = parse_words(
        arg, ('self_made', 'pairs', 'intphys1', 'intphys2', 'grasp', 'inflevel'), ('smoke',)
    )
    c = PhysicsConfig(name=f'physics-{kind}')
    c.data.kind = kind
    if kind == 'intphys1':
        c.data.most = 99
    elif kind == 'inflevel':
        c.steps, c.data.view = (5, 10, 20), 'squeeze'
    elif kind == 'intphys2':  # contexts of 12 to 42 of 48 frames, 4 to 14 of 16
        c.steps, c.frames, c.warm_up = (10, 10, 10), (16, 48), True
        c.contexts = (4, 6, 8, 10, 12, 14)
    if kind == 'self_made' or 'smoke' in words:
        c.steps, c.frames, c.contexts = (1, 1, 1), (12, 12), (3, 6, 8, 11, 11, 11)
        c.mask_tokens = (0, 0)  # training with one frame count knows no other
        c.batch = 14
    if 'smoke' in words:
        c.name += '-smoke'
        c.data.kind = 'self_made_few' if kind == 'self_made' else kind
        c.random_seeds, c.bootstrap = 1, 100
    return c
