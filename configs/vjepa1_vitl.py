"""V-JEPA 1, ViT-L, 304 million parameters (reference: family §2; public files).

    python -m jepa_jax.train --config=configs/vjepa1_vitl.py

`videomix2m.csv` is the lists of `path label` lines of K710, SSv2 and HowTo100M in one file, as the
original mixes them; see docs/family.md. `vjepa1_vitl.py:smoke` is a minute on two cores, with
self-made videos.

Published: 80.8 % on Kinetics-400, 69.5 % on Something-Something v2 (attentive probes).
"""

from jepa_jax.config import MaskedVideoConfig
from jepa_jax.released_jepa import first_recipe


def get_config(arg: str = '') -> MaskedVideoConfig:
    return first_recipe('vjepa1_vitl', arg)
