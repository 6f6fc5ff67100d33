"""V-JEPA 2.1, ViT-L, 305 million parameters (reference: vjepa2_1 §9; public files).

    python -m jepa_jax.train --config=configs/vitl_21.py:pretrain
    python -m jepa_jax.train --config=configs/vitl_21.py:cooldown \\
        --config.checkpoints.resume_from=runs/vitl_21-pretrain

The lists are the original's: text files of `path label` lines, and a folder of images, in the
working folder; see docs/recipes.md. `vitl_21.py:smoke` and `:cooldown,smoke` are a minute on
two cores, with self-made videos and single frames of them.

The released weights of this size were distilled from G; this is the recipe from scratch.
Hardware of the original: 128 GPUs for `pretrain`, 256 for `cooldown`.
"""

from jepa_jax.config import DenseVideoConfig
from jepa_jax.released import dense_recipe


def get_config(arg: str = '') -> DenseVideoConfig:
    return dense_recipe('vitl_21', arg)
