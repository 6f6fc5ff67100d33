"""A question about a video, what may be answered, and what was."""

from __future__ import annotations

import dataclasses

from jepa_jax.language.chat import Media

LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
HIDDEN = -1  # the right answer is not public


@dataclasses.dataclass(frozen=True)
class Item:
    """A question as it is put, and how it counts."""

    id: str  # no other of the set has it
    media: Media
    question: str  # the whole prompt
    choices: tuple[str, ...]  # answers whose likelihood is compared: letters, or words
    answer: int  # which of them is right; HIDDEN
    options: tuple[str, ...] = ()  # what letters stand for; (): the choices are words
    kinds: tuple[str, ...] = ()  # tasks and aspects that have figures of their own
    group: str = ''  # items that count together, such as a pair; '': alone
    subset: str = ''  # the score is the unweighted mean over subsets
    rule: str = 'words'  # of rules.RULES: how a generated text is judged

    def __post_init__(self) -> None:
        if len(set(self.choices)) != len(self.choices):
            raise ValueError(f'choices that are equal: {", ".join(self.choices)}')
        if not HIDDEN <= self.answer < len(self.choices):
            raise ValueError(f'answer {self.answer}: there are {len(self.choices)} choices')
        if any(not choice.strip() for choice in self.choices):
            raise ValueError('a choice without words')


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model said."""

    text: str
    likelihoods: tuple[float, ...] = ()  # log-probability of each choice; (): not asked for
