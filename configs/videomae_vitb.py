"""VideoMAE, ViT-B, 94 million parameters with its decoder (reference: family §3.2; public files).

    python -m jepa_jax.train --config=configs/videomae_vitb.py

The list is that of Kinetics-400, a text file of `path label` lines in the working folder; see
docs/family_pixels.md. `videomae_vitb.py:smoke` is a minute on two cores, with self-made videos.

1,600 epochs at batch 2,048 (64 GPUs), as released, which reach 81.5 % on Kinetics-400 fine-tuned.
"""

from jepa_jax.config import MaskedPixelsConfig
from jepa_jax.released import videomae_recipe


def get_config(arg: str = '') -> MaskedPixelsConfig:
    return videomae_recipe('videomae_vitb', arg)
