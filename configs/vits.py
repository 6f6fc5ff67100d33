"""ViT-S, 22 million parameters, on one GPU of 24 GB: our recipe, for own video.

    python -m jepa_jax.train --config=configs/vits.py --config.data.lists[0].path=clips.txt
    python -m jepa_jax.train --config=configs/vits.py:cooldown \\
        --config.data.lists[0].path=clips.txt --config.checkpoints.resume_from=runs/vits-pretrain

`vits.py:smoke` is a minute on two cores, with self-made videos.

V-JEPA 2 was not released at this size, and this recipe has not been run to its end: it is the
released one at a twelfth of the batch. Rate and momentum are what to vary first. Memory estimates:
docs/recipes.md; the parts of a batch follow from the memory, which
leaves the update the same.
"""

from jepa_jax.config import MaskedVideoConfig
from jepa_jax.released import recipe


def get_config(arg: str = '') -> MaskedVideoConfig:
    return recipe('vits', arg, 'pretrain', 'cooldown')
