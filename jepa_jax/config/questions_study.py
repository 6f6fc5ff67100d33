"""The study of questions about self-made videos: does a pretrained encoder help when clips are
few?"""

from dataclasses import dataclass, field

from jepa_jax.config.check import NOT_NEGATIVE, POSITIVE, RULES, Rule
from jepa_jax.config.masked_video import MaskedVideoConfig
from jepa_jax.config.questions import QuestionsConfig
from jepa_jax.config.runs import StudyConfig


def counts(text: str) -> list[int]:
    """'40,80' -> [40, 80]."""
    return [int(word) for word in text.split(',')]


@dataclass
class QuestionsStudyConfig(StudyConfig):
    """Runs on the questions of few and many clips, with a trained encoder and a random one, over
    several seeds."""

    study: str = 'video_questions'
    encoder_from: str = ''  # a finished run of `pretrain`; empty: the study trains it
    pretrain: MaskedVideoConfig = field(default_factory=MaskedVideoConfig)
    answer: QuestionsConfig = field(default_factory=QuestionsConfig)  # of every run on questions
    clips: str = '40,80,800'  # training clips, each a row of the table
    seeds: int = 1
    questions: int = 20_000  # conversations of a run
    words_steps: int = 200  # language alone, on what videos show told in words
    align_steps: int = 200  # projector alone, on captions, at least
    # at least, that each view is captioned and asked about: many clips take more steps
    align_times: int = 0
    ask_times: int = 0
    words_lr: float = 5e-3
    align_lr: float = 5e-3
    test_clips: int = 400
    bootstrap: int = 2000


RULES[QuestionsStudyConfig] = {
    'clips': Rule(
        lambda v: all(w.strip().isdecimal() and 0 < int(w) <= 800 for w in v.split(',')),
        'numbers from 1 to 800 with commas between',
    ),
    'seeds': POSITIVE,
    'questions': POSITIVE,
    'words_steps': POSITIVE,
    'align_steps': POSITIVE,
    'align_times': NOT_NEGATIVE,
    'ask_times': NOT_NEGATIVE,
    'words_lr': POSITIVE,
    'align_lr': POSITIVE,
    'test_clips': Rule(lambda v: 1 <= v <= 400, 'from 1 to 400'),
    'bootstrap': POSITIVE,
}
