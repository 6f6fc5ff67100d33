"""MAE, ViT-L, 330 million parameters with its decoder (reference: family §3.1; public files).

    python -m jepa_jax.train --config=configs/mae_vitl.py

The list is ImageNet's folder of images, `imagenet_train` in the working folder; see
docs/family_pixels.md. `mae_vitl.py:smoke` is a minute on two cores, with single frames of self-made
videos.

1,600 epochs at batch 4,096, as the released weights were trained: 86.0 % on ImageNet fine-tuned,
76.0 % linear.
"""

from jepa_jax.config import MaskedPixelsConfig
from jepa_jax.released import mae_recipe


def get_config(arg: str = '') -> MaskedPixelsConfig:
    return mae_recipe('mae_vitl', arg)
