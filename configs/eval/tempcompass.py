"""TempCompass, what happens in which order, direction and speed.

    python -m jepa_jax.evaluate --config=configs/eval/tempcompass.py --model RUN \
        --config.data.path=DIR

DIR holds questions/TASK.json and videos/. `:yes_no` and `:caption_matching` are the other tasks;
captioning needs a judge model and is left out. --config.data.videos names another folder of videos,
`smoke` asks a few questions.
"""

from jepa_jax.config.qa import QAConfig, question_set


def get_config(arg: str = '') -> QAConfig:
    return question_set('tempcompass', arg)
