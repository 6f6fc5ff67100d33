"""TVBench, ten tasks that text alone does not solve.

    python -m jepa_jax.evaluate --config=configs/eval/tvbench.py --model RUN \
        --config.data.path=DIR

DIR holds json/TASK.json and video/TASK. --config.data.videos names another folder of videos,
`smoke` asks a few questions.
"""

from jepa_jax.config.qa import QAConfig, question_set


def get_config(arg: str = '') -> QAConfig:
    return question_set('tvbench', arg)
