"""V-JEPA 2, ViT-g at 384 pixels: a cooldown of the 256-pixel run (reference: vjepa2 §11.1; paper).

    python -m jepa_jax.train --config=configs/vitg_384.py \\
        --config.checkpoints.resume_from=runs/vitg-pretrain

The lists are the original's, text files of `path label` lines in the working folder; see
docs/recipes.md. `vitg_384.py:smoke` is a minute on two cores, with self-made videos; `:paper`
takes the mixture and final rate of the paper.

Hardware of the original: 512 GPUs. The paper reports 77.3 % on SSv2 (attentive probe).
"""

from jepa_jax.config import MaskedVideoConfig
from jepa_jax.released import recipe


def get_config(arg: str = '') -> MaskedVideoConfig:
    return recipe('vitg_384', arg, 'cooldown', crop=384)
