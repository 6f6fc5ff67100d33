"""What features tell of the self-made videos: motion, side and digit, beside untrained encoders of
the same shape, pixels, and shuffled frames.

    python -m jepa_jax.evaluate --config=configs/eval/self_made.py --model runs/tiny

The videos are 32 pixels small: this is for models of configs/tiny.py, and shows how an evaluation
reads. `:smoke` takes 160 videos and a few steps.
"""

from jepa_jax.config import SelfMadeConfig, parse_arg


def get_config(arg: str = '') -> SelfMadeConfig:
    _, small = parse_arg(arg, 'all')
    c = SelfMadeConfig(name='self_made')
    c.probe.lr = 3e-3
    if small:
        c.name = 'self_made-smoke'
        c.data.lists[0].kind = 'synthetic_few'
        c.probe.steps, c.probe.batch, c.probe.seeds, c.probe.bootstrap = 20, 32, 2, 100
    return c
