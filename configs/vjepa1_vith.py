"""V-JEPA 1, ViT-H, 632 million parameters (reference: family §2; public files).

    python -m jepa_jax.train --config=configs/vjepa1_vith.py
    python -m jepa_jax.train --config=configs/vjepa1_vith.py:384

`videomix2m.csv` is the lists of `path label` lines of K710, SSv2 and HowTo100M in one file, as the
original mixes them; see docs/family.md. `vjepa1_vith.py:smoke` is a minute on two cores, with
self-made videos.

Published: 82.0 % on Kinetics-400, 71.4 % on Something-Something v2 (attentive probes); at 384
pixels 81.9 % and 72.2 %.
"""

from jepa_jax.config import MaskedVideoConfig
from jepa_jax.released_jepa import first_recipe


def get_config(arg: str = '') -> MaskedVideoConfig:
    return first_recipe('vjepa1_vith', arg)
