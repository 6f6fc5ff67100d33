"""MVBench, 20 tasks with 200 questions each.

    python -m jepa_jax.evaluate --config=configs/eval/mvbench.py --model RUN \
        --config.data.path=DIR

DIR holds json/TASK.json and video/, with folders as in the release. --config.data.videos names
another folder of videos, `smoke` asks a few questions.
"""

from jepa_jax.config.qa import QAConfig, question_set


def get_config(arg: str = '') -> QAConfig:
    return question_set('mvbench', arg)
