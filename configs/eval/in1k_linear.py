"""ImageNet-1k, classes of pictures by linear heads on mean features: I-JEPA's linear probe.

    python -m jepa_jax.evaluate --config=configs/eval/in1k_linear.py --model ijepa-vith14 \
        --config.data.path=DIR

DIR holds train and val with a folder a class. Heads read the last block or the last four, with and
without batch norm, at three rates and two decays, and learn by LARS from pictures that are cut and
mirrored anew in each of 50 epochs. `:smoke` is a trial on any pictures in that layout. Attentive
heads: in1k.py.
"""

from jepa_jax.config import parse_words
from jepa_jax.config.image_linear import ImageLinearConfig


def get_config(arg: str = '') -> ImageLinearConfig:
    _, words = parse_words(arg, ('ijepa',), ('smoke',))
    c = ImageLinearConfig(name='in1k-linear')
    if 'smoke' in words:
        c.name += '-smoke'
        c.data.official = False
        c.epochs, c.batch, c.encoded, c.chosen_on, c.bootstrap = 10, 4, 4, 0.34, 100
        c.rates, c.rates_of, c.trust, c.every = (3.0, 1.0, 0.3), 0, 0.1, 8  # few steps, high rates
    return c
