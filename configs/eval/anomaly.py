"""What a camera does not usually show, frame by frame.

    python -m jepa_jax.evaluate --config=configs/eval/anomaly.py --model vitl \
        --config.data.train=normal/ --config.data.test=today/ [--config.data.labels=labels.csv]
    ... --watch arriving/        (or a camera, /dev/video0; or -, a stream on standard input)

`data.train` is video of the camera in which nothing happens. `:ped2`, `:avenue` and `:shanghaitech`
read these sets, --config.data.path=DIR. `:self_made` makes videos of a camera of its own, for
models of configs/physics_tiny.py; `smoke` makes few, and of an official set tries short windows.
"""

from jepa_jax.config import parse_words
from jepa_jax.config.anomaly import AnomalyConfig


def get_config(arg: str = '') -> AnomalyConfig:
    kind, words = parse_words(
        arg, ('own', 'ped2', 'avenue', 'shanghaitech', 'self_made'), ('smoke',)
    )
    c = AnomalyConfig(name='anomaly' if kind == 'own' else f'anomaly-{kind}')
    c.data.kind = kind
    if kind == 'ped2':
        c.data.rate, c.data.fps = 10.0, 10.0
    elif kind == 'avenue':
        c.data.fps = 12.5
    elif kind == 'shanghaitech':  # 13 cameras: what is usual at a place of one is not of another
        c.data.rate, c.data.fps, c.by_place = 24.0, 12.0, False
    if kind == 'self_made' or 'smoke' in words:
        c.data.frames, c.batch = 12, 32
    if kind == 'self_made' or kind == 'own' and 'smoke' in words:
        c.data.kind = 'self_made_few' if 'smoke' in words else 'self_made'
        c.data.fps, c.data.crop = 8.0, 32
    if 'smoke' in words:
        c.name += '-smoke'
        c.bootstrap = 100
    return c
