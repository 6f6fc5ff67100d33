"""V-JEPA 2.1, ViT-g, 1,013 million parameters (reference: vjepa2_1 §9; public files).

    python -m jepa_jax.train --config=configs/vitg_21.py:pretrain
    python -m jepa_jax.train --config=configs/vitg_21.py:cooldown \\
        --config.checkpoints.resume_from=runs/vitg_21-pretrain

The lists are the original's: text files of `path label` lines, and a folder of images, in the
working folder; see docs/recipes.md. `vitg_21.py:smoke` and `:cooldown,smoke` are a minute on
two cores, with self-made videos and single frames of them.

Hardware of the original: 128 GPUs for `pretrain`, 256 for `cooldown`.
"""

from jepa_jax.config import DenseVideoConfig
from jepa_jax.released import dense_recipe


def get_config(arg: str = '') -> DenseVideoConfig:
    return dense_recipe('vitg_21', arg)
