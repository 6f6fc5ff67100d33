"""What features tell of your own labelled clips.

    python -m jepa_jax.evaluate --config=configs/eval/own.py --model vitl \
        --config.data.train=clips/

`data.train` is a folder with a folder a class, a csv with a header (path, label; and if you like
group, split, start, end, time), or a list with `path label` lines. Labels are classes, numbers, or
several at once (`a|b`). A part of the sources is kept for testing, or name `data.test`. With
--config.data.ahead=1.0 the clip ends a second before the label's `time` or `start`.

`:full` trains the original's probe: 4 blocks of 16 heads on all tokens, at each of its 20 settings.
It takes hours, which are printed first, as they are of any with --config.estimate=true. `:smoke`
takes few steps.
"""

from jepa_jax.config import OwnConfig, parse_words


def get_config(arg: str = '') -> OwnConfig:
    probe, words = parse_words(arg, ('quick', 'full'), ('smoke',))
    c = OwnConfig(name='own')
    if probe == 'full':
        c.name = 'own-full'
        c.data.tokens = 0
        c.attentive.depth, c.attentive.heads = 4, 16
        c.attentive.rates, c.attentive.decays = '5e-3,3e-3,1e-3,3e-4,1e-4', '0.01,0.1,0.4,0.8'
        c.estimate = True
    if 'smoke' in words:
        c.attentive.epochs, c.attentive.least_steps, c.bootstrap = 1, 20, 100
    return c
