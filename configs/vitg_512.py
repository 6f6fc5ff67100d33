"""V-JEPA 2, ViT-g at 512 pixels: a cooldown of the 256-pixel run (paper).

    python -m jepa_jax.train --config=configs/vitg_512.py \\
        --config.checkpoints.resume_from=runs/vitg-pretrain

The lists are the original's, text files of `path label` lines in the working folder; see
docs/recipes.md. `vitg_512.py:smoke` is a minute on two cores, with self-made videos; `:paper`
takes the mixture and final rate of the paper.

The public files have no such run: the values are those at 384 pixels. It has not been run.
"""

from jepa_jax.config import MaskedVideoConfig
from jepa_jax.released import recipe


def get_config(arg: str = '') -> MaskedVideoConfig:
    return recipe('vitg_512', arg, 'cooldown', crop=512)
