"""TemporalBench, captions that differ in one detail of time; a video counts as a whole.

    python -m jepa_jax.evaluate --config=configs/eval/temporalbench.py --model RUN \
        --config.data.path=DIR

DIR holds temporalbench_short_qa.json and the folders of videos that it names. `:long_qa` is the
other part. --config.data.videos names another folder of videos, `smoke` asks a few questions.
"""

from jepa_jax.config.qa import QAConfig, question_set


def get_config(arg: str = '') -> QAConfig:
    return question_set('temporalbench', arg)
