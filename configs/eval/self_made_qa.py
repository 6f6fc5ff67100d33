"""Questions about the self-made videos, which are made the first time: a minute.

    python -m jepa_jax.evaluate --config=configs/eval/self_made_qa.py --model RUN

`:few` asks about 80 videos instead of 400. `smoke` asks a few questions.
"""

from jepa_jax.config.qa import QAConfig, question_set


def get_config(arg: str = '') -> QAConfig:
    return question_set('self_made', arg)
