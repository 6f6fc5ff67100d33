"""TOMATO, what cannot be told from a few frames.

    python -m jepa_jax.evaluate --config=configs/eval/tomato.py --model RUN \
        --config.data.path=DIR

DIR holds data/TYPE.json of six types, and videos/{human,object,simulated}. --config.data.videos
names another folder of videos, `smoke` asks a few questions.
"""

from jepa_jax.config.qa import QAConfig, question_set


def get_config(arg: str = '') -> QAConfig:
    return question_set('tomato', arg)
