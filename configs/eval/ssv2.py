"""Something-Something v2, classes of clips by attentive probes on frozen features.

    python -m jepa_jax.evaluate --config=configs/eval/ssv2.py:vitl --model vitl \
        --config.data.path=DIR

DIR holds labels/{train,validation,labels}.json and the .webm files;
--config.data.videos names another folder for those. `:vitg_384` has the values for --model
vitg-384. --config.probe=NAME takes a released probe instead of training one, and
--config.protocol=upstream counts as the original does. `:smoke` is a trial on any part of the set.
"""

from jepa_jax.config import BenchmarkConfig, labelled_set


def get_config(arg: str = '') -> BenchmarkConfig:
    return labelled_set('ssv2', arg)
