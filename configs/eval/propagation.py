"""The first frame's labels, carried through a video by frozen tokens; nothing is trained.

    python -m jepa_jax.evaluate --config=configs/eval/propagation.py --model runs/tiny
    python -m jepa_jax.evaluate --config=configs/eval/propagation.py:davis17 --model vitl \
        --config.data.path=DAVIS

`:self_made` (default) is for a model of configs/tiny.py, on videos that are made on the spot; past
frames, radius and temperature are chosen on its training videos. `:davis17` has the published
settings. `smoke` takes few of the self-made videos.
"""

from jepa_jax.config import parse_words
from jepa_jax.config.dense import PropagationConfig


def get_config(arg: str = '') -> PropagationConfig:
    kind, words = parse_words(arg, ('self_made', 'davis17'), ('smoke',))
    c = PropagationConfig(name=f'propagation-{kind}')
    c.data.set = kind
    if kind == 'self_made':
        c.data.short, c.batch = 0, 24
        c.past, c.radii, c.temperatures = (1, 4), (2, 3, 12), (0.05, 0.1, 0.2)
    if 'smoke' in words:
        c.name += '-smoke'
        c.data.official, c.bootstrap = False, 100
        c.radii, c.temperatures = (3,) * 3, (0.1,) * 3
        if kind == 'self_made':
            c.data.set = 'self_made_few'
    return c
