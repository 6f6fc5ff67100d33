"""V-JEPA 2, ViT-L, 304 million parameters (reference: vjepa2 §11.1; paper).

    python -m jepa_jax.train --config=configs/vitl.py:pretrain
    python -m jepa_jax.train --config=configs/vitl.py:cooldown \\
        --config.checkpoints.resume_from=runs/vitl-pretrain

The lists are the original's, text files of `path label` lines in the working folder; see
docs/recipes.md. `vitl.py:smoke` and `vitl.py:cooldown,smoke` are a minute on two cores, with
self-made videos. `:paper`, or `:cooldown,paper`, takes the paper's mixture and final rate.

Hardware of the original: 128 GPUs for `pretrain`, 256 for `cooldown`. The paper
reports 73.7 % on SSv2 (attentive probe, after both phases).
"""

from jepa_jax.config import MaskedVideoConfig
from jepa_jax.released import recipe


def get_config(arg: str = '') -> MaskedVideoConfig:
    return recipe('vitl', arg, 'pretrain', 'cooldown')
