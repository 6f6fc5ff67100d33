"""CausalVQA, why things happen and what would: pairs of questions with five options.

    python -m jepa_jax.evaluate --config=configs/eval/causalvqa.py --model RUN \
        --config.data.path=DIR

DIR holds a csv with qid, type, question, choices1, correct1, choices2, correct2, difficulty and
renamed_video, and videos/. Needs EgoExo4D's licence; answers of the test set are not public.
--config.data.videos names another folder of videos, `smoke` asks a few questions.
"""

from jepa_jax.config.qa import QAConfig, question_set


def get_config(arg: str = '') -> QAConfig:
    return question_set('causalvqa', arg)
