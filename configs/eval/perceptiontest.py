"""Perception Test, multiple choice with three options.

    python -m jepa_jax.evaluate --config=configs/eval/perceptiontest.py --model RUN \
        --config.data.path=DIR

DIR holds mc_question_valid.json (or all_valid.json), cut_frame_mapping_valid.json and videos/.
`:train` and `:test` are its other splits; answers of the test split are not public.
--config.data.videos names another folder of videos, `smoke` asks a few questions.
"""

from jepa_jax.config.qa import QAConfig, question_set


def get_config(arg: str = '') -> QAConfig:
    return question_set('perceptiontest', arg)
