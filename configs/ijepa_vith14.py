"""I-JEPA, ViT-H/14 on ImageNet-1K, 631 million parameters (reference: family §1.7; public files).

    python -m jepa_jax.train --config=configs/ijepa_vith14.py \\
        --config.data.lists[0].path=FOLDER_OF_IMAGES

Images are in any folders below; a list of kind `videos` gives single frames of videos. See
docs/family.md. `ijepa_vith14.py:smoke` is a minute on two cores, with frames of self-made videos.

Published, 300 epochs on 16 A100 GPUs, less than 72 hours: 79.3 % on ImageNet (linear probe).
"""

from jepa_jax.config import MaskedImageConfig
from jepa_jax.released_jepa import image_recipe


def get_config(arg: str = '') -> MaskedImageConfig:
    return image_recipe('ijepa_vith14', arg)
