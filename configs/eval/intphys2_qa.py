"""IntPhys 2, whether what a video shows is possible, asked in words.

    python -m jepa_jax.evaluate --config=configs/eval/intphys2_qa.py --model RUN \
        --config.data.path=DIR

DIR holds Main/metadata.csv and Main/Videos. `:Debug` is the small part; `:one_zero` and `:possible`
ask in other words. What surprises the encoder itself is configs/eval/physics.py:intphys2.
--config.data.videos names another folder of videos, `smoke` asks a few questions.
"""

from jepa_jax.config.qa import QAConfig, question_set


def get_config(arg: str = '') -> QAConfig:
    return question_set('intphys2', arg)
