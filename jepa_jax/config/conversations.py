"""Conversations about videos and images, as language models are trained on them."""

from dataclasses import dataclass, field

from jepa_jax.config.check import NOT_NEGATIVE, POSITIVE, RULES, OneOf
from jepa_jax.config.parts import LoaderConfig

PLACEHOLDERS = ('where', 'first')
SELF_MADE = 'self_made'  # in place of a path: conversations and tokenizer that are made


@dataclass
class MixtureConfig:
    """One file of conversations and its share of the sequences."""

    path: str = ''  # .jsonl, a row a line, or .json, a list of rows; in LLaVA's form or PLM's
    folder: str = ''  # that paths of videos and images are relative to; empty: the file's own
    weight: float = 1.0  # share of the sequences, relative to the other files


@dataclass
class ConversationsConfig(LoaderConfig):
    """Which conversations there are, and how they are put into sequences."""

    mixture: list[MixtureConfig] = field(default_factory=lambda: [MixtureConfig()])
    length: int = 2048  # tokens of a sequence, visual ones among them
    visual: int = 0  # visual tokens of a sequence, at most; 0: as many as `length`
    packed: bool = True  # several conversations in a sequence; False: one, and padding
    system: str = ''  # what the system says first where a row has no such turn; '': as the family
    # of <image> and <video> in a text: where they stand (LLaVA) | first of all (PLM)
    placeholder: str = 'where'


RULES[MixtureConfig] = {'weight': POSITIVE}
RULES[ConversationsConfig] = {
    'length': POSITIVE,
    'visual': NOT_NEGATIVE,
    'placeholder': OneOf(PLACEHOLDERS),
}
