"""What `configs/eval/SET.py` hold, a row each."""

from jepa_jax.config.benchmark import AnticipationConfig, BenchmarkConfig, LabelledSetConfig
from jepa_jax.config.trials import parse_words

# The original's values, for ViT-L at 256 and ViT-g at 384 pixels (reference: vjepa2 §11.2): batches
# are those of all its GPUs together
MODELS = ('vitl', 'vitg_384')
_LEVELS = ('17,19,21,23', '24,29,34,39')
_SETS: dict[str, dict[str, tuple]] = {
    'ssv2': {'frames': (16, 64), 'step': (4, 2), 'segments': (2, 2), 'batch': (256, 256)},
    'k400': {'frames': (16, 16), 'step': (4, 4), 'segments': (8, 8), 'batch': (256, 256)},
    'coin': {'frames': (16, 16), 'step': (4, 4), 'segments': (8, 8), 'batch': (128, 128)},
    'diving48': {'frames': (32, 32), 'step': (2, 2), 'segments': (4, 4), 'batch': (128, 128)},
    'jester': {'frames': (32, 32), 'step': (2, 2), 'segments': (4, 4), 'batch': (128, 128)},
    'in1k': {'frames': (16, 18), 'step': (1, 1), 'segments': (1, 1), 'batch': (1024, 1024)},
    'ek100': {'frames': (32, 32), 'step': (1, 1), 'segments': (1, 1), 'batch': (128, 128)},
}


def labelled_set(name: str, arg: str) -> LabelledSetConfig:
    """The config of `configs/eval/NAME.py:ARG`.

    Args:
      name: of the set.
      arg: a comma list of `vitl` (default) or `vitg_384`, and `smoke`: a few small heads on a copy
        of the set of any size, with clips of 4 frames.

    Raises:
      ConfigError: another word.
    """
    model, words = parse_words(arg, MODELS, ('smoke',))
    row = {key: values[MODELS.index(model)] for key, values in _SETS[name].items()}
    c = AnticipationConfig() if name == 'ek100' else BenchmarkConfig()
    c.name = f'{name}-{model}'
    c.data.set, c.data.frames, c.data.step = name, row['frames'], row['step']
    c.data.segments, c.data.views = row['segments'], 1 if name in ('in1k', 'ek100') else 3
    c.heads.batch = row['batch']
    if name in ('diving48', 'jester'):
        c.data.levels = _LEVELS[MODELS.index(model)]
        c.heads.grid, c.heads.epochs = 'small', 100
    elif name == 'in1k':
        c.heads.grid, c.heads.warmup = 'pictures', 5
    elif name == 'ek100':
        c.heads.grid = 'anticipation'
    if 'smoke' in words:
        c.name += '-smoke'
        c.data.official = False
        c.data.frames, c.data.segments, c.data.levels = 4, min(2, c.data.segments), ''
        c.heads.depth, c.heads.heads, c.heads.epochs, c.heads.batch = 1, 2, 20, 8
        c.heads.grid, c.heads.chosen_on, c.bootstrap = 'small', 0.5, 100
    return c
