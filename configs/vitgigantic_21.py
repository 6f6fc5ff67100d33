"""V-JEPA 2.1, ViT-G, 1,845 million parameters (reference: vjepa2_1 §9; public files).

    python -m jepa_jax.train --config=configs/vitgigantic_21.py:pretrain
    python -m jepa_jax.train --config=configs/vitgigantic_21.py:cooldown \\
        --config.checkpoints.resume_from=runs/vitgigantic_21-pretrain

The lists are the original's: text files of `path label` lines, and a folder of images, in the
working folder; see docs/recipes.md. `vitgigantic_21.py:smoke` and `:cooldown,smoke` are a minute on
two cores, with self-made videos and single frames of them.

Hardware of the original: 256 GPUs for `pretrain`, 512 for `cooldown`.
"""

from jepa_jax.config import DenseVideoConfig
from jepa_jax.released import dense_recipe


def get_config(arg: str = '') -> DenseVideoConfig:
    return dense_recipe('vitgigantic_21', arg)
