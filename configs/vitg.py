"""V-JEPA 2, ViT-g, 1,012 million parameters (reference: vjepa2 §11.1; paper).

    python -m jepa_jax.train --config=configs/vitg.py:pretrain
    python -m jepa_jax.train --config=configs/vitg.py:cooldown \\
        --config.checkpoints.resume_from=runs/vitg-pretrain

The lists are the original's, text files of `path label` lines in the working folder; see
docs/recipes.md. `vitg.py:smoke` and `vitg.py:cooldown,smoke` are a minute on two cores, with
self-made videos. `:paper`, or `:cooldown,paper`, takes the paper's mixture and final rate.

Hardware of the original: 128 GPUs for `pretrain`, 512 for `cooldown`.
"""

from jepa_jax.config import MaskedVideoConfig
from jepa_jax.released import recipe


def get_config(arg: str = '') -> MaskedVideoConfig:
    return recipe('vitg', arg, 'pretrain', 'cooldown')
