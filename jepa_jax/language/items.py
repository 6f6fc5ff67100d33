"""A question about a video, what may be answered, and what was."""

from __future__ import annotations

import dataclasses
from typing import Any

from jepa_jax.language.chat import Media

LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
HIDDEN = -1  # the right answer is not public


@dataclasses.dataclass(frozen=True)
class Item:
    """A question as it is put, and how it counts."""

    id: str
    media: Media
    question: str  # the whole prompt
    choices: tuple[str, ...]  # answers whose likelihood is compared: letters, or words
    answer: int  # which of them is right; HIDDEN
    kind: str  # task or aspect: accuracies are given by it
    group: str = ''  # items that count together, such as a pair; '': alone
    subset: str = ''  # of which an unweighted mean is the score; '': all items alike
    options: tuple[str, ...] = ()  # what the choices stand for, in words; (): themselves
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # what a rule needs beside it

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
