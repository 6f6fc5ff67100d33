"""I-JEPA, ViT-g/16 on ImageNet-22K, 1,011 million parameters (reference: family §1.7; files).

    python -m jepa_jax.train --config=configs/ijepa_vitg16.py \\
        --config.data.lists[0].path=FOLDER_OF_IMAGES

Images are in any folders below; a list of kind `videos` gives single frames of videos. See
docs/family.md. `ijepa_vitg16.py:smoke` is a minute on two cores, with frames of self-made videos.

Published, 44 epochs: 59.1 % on Places205 and 55.3 % on iNaturalist 2018 (linear probes).
"""

from jepa_jax.config import MaskedImageConfig
from jepa_jax.released_jepa import image_recipe


def get_config(arg: str = '') -> MaskedImageConfig:
    return image_recipe('ijepa_vitg16', arg)
