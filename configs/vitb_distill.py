"""ViT-B, 86 million parameters, distilled from the released ViT-g (reference: vjepa2_1 §9.6).

    python -m jepa_jax.train --config=configs/vitb_distill.py --config.data.lists[0].path=clips.txt
    python -m jepa_jax.train --config=configs/vitb_distill.py:cooldown \\
        --config.data.lists[0].path=clips.txt \\
        --config.checkpoints.resume_from=runs/vitb_distill-pretrain

`:vitl` takes another teacher, `:21` trains a student of V-JEPA 2.1 from its ViT-G, and
`--config.teacher=RUN --config.teacher_encoder.size=SIZE` one of yours. `:salt` trains a teacher of
this size on masked pixels, in place of a released one. `vitb_distill.py:smoke` is a minute on two
cores, with self-made videos and a random teacher.

No such run has been made here: docs/training.md tells of a small one.
"""

from jepa_jax.config import MaskedVideoConfig
from jepa_jax.released import distilled_recipe


def get_config(arg: str = '') -> MaskedVideoConfig:
    return distilled_recipe('vitb_distill', arg)
