"""EPIC-KITCHENS-100, action anticipation: verb, noun and action a second ahead.

    python -m jepa_jax.evaluate --config=configs/eval/ek100.py:vitl --model vitl \
        --config.data.path=ANNOTATIONS --config.data.videos=VIDEOS

ANNOTATIONS holds EPIC_100_{train,validation}.csv and, for names, EPIC_100_verb_classes.csv and
EPIC_100_noun_classes.csv; VIDEOS holds P01/videos/P01_01.MP4 or P01/P01_01.MP4. --config.protocol
is `upstream` or `before_start`, --config.classes `filtered` or `official`.
--config.probe=ek100-vitl-256 takes the released probe. `:vitg_384` has the values for --model
vitg-384, `:smoke` is a trial on any part of the set.
"""

from jepa_jax.config import AnticipationConfig, labelled_set


def get_config(arg: str = '') -> AnticipationConfig:
    return labelled_set('ek100', arg)
