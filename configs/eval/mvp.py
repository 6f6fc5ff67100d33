"""MVP (MVPBench), minimal video pairs: two videos that hardly differ, one question, two answers.

    python -m jepa_jax.evaluate --config=configs/eval/mvp.py --model RUN \
        --config.data.path=DIR

DIR holds the rows of the four subsets, such as human_object_interactions/mini*.parquet (needs
pyarrow) or human_object_interactions_mini.jsonl, and videos/ with a folder a source. `:full` is the
whole set. --config.data.videos names another folder of videos, `smoke` asks a few questions.
"""

from jepa_jax.config.qa import QAConfig, question_set


def get_config(arg: str = '') -> QAConfig:
    return question_set('mvp', arg)
