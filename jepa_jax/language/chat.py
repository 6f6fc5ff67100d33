"""Conversations as language models were taught to read them.

A turn is who speaks and what: text and, where they stand, videos and images. A template writes
turns between special tokens: Llama 3's headers, or ChatML as Qwen2 has it. Only what the assistant
says, and the end of its turn, is to be learnt. (reference: video_qa.md §1.4)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jepa_jax.errors import ConfigError, allowed

if TYPE_CHECKING:
    from jepa_jax.language.tokenizer import Tokenizer

ROLES = ('system', 'user', 'assistant')
NO_LOSS = -1  # label of what is not to be learnt


@dataclasses.dataclass(frozen=True)
class Media:
    """A video or image in a text."""

    kind: str  # video | image
    path: str
    start: float = 0.0  # seconds of the video
    end: float = 0.0  # seconds; 0: to its end
    backwards: bool = False  # the last frame first


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one speaker says at a time."""

    role: str  # one of ROLES
    parts: tuple[str | Media, ...]


@dataclasses.dataclass(frozen=True)
class Template:
    """How turns are written. Names of special tokens stand in `special`."""

    special: tuple[str, ...]
    begin: tuple[str, ...]  # before all turns
    head: tuple[str, ...]  # before a turn; {role} is who speaks
    end: str  # the special token after a turn
    after: str  # text between two turns
    strip: bool  # blanks at both ends of what is said are left out
    system: str  # said first where no system turn is; '': none


_CHATML = Template(
    special=('<|im_start|>', '<|im_end|>'),
    begin=(),
    head=('<|im_start|>', '{role}\n'),
    end='<|im_end|>',
    after='\n',
    strip=False,
    system='You are a helpful assistant.',
)
_QWEN25 = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.'
TEMPLATES: dict[str, Template] = {
    # of 3.1 and 3.2, without the two lines with dates that their own template puts first
    'llama3': Template(
        special=('<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'),
        begin=('<|begin_of_text|>',),
        head=('<|start_header_id|>', '{role}', '<|end_header_id|>', '\n\n'),
        end='<|eot_id|>',
        after='',
        strip=True,
        system='',
    ),
    'qwen2': _CHATML,
    'qwen2.5': dataclasses.replace(_CHATML, system=_QWEN25),
}


def family_of(special: Collection[str], chat_template: object = None) -> str:
    """The key of TEMPLATES whose special tokens these are.

    Args:
      special: names of a tokenizer's special tokens.
      chat_template: of its tokenizer_config.json, by which Qwen2 and Qwen2.5 are told apart.

    Raises:
      ConfigError: no family's.
    """
    for name, template in TEMPLATES.items():
        if all(token in special for token in template.special):
            return 'qwen2.5' if name == 'qwen2' and _QWEN25 in str(chat_template) else name
    families = '; '.join(f'{n}: {" ".join(t.special)}' for n, t in TEMPLATES.items())
    raise ConfigError(f'no known chat format by its special tokens: allowed are {families}')


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of a conversation: text, a special token, or a medium."""

    what: str | Media
    special: bool = False
    learnt: bool = False  # the assistant's


def told(turns: Sequence[Turn], system: str) -> list[Turn]:
    """The turns, and before them what the system says where it says nothing; '': as they are."""
    told_already = bool(turns) and turns[0].role == 'system'
    return [*turns] if told_already or not system else [Turn('system', (system,)), *turns]


def write(turns: Sequence[Turn], family: str, answer: bool = False) -> list[Piece]:
    """The pieces of a conversation, texts that follow each other joined unless one is learnt.

    Args:
      turns: in their order; the system's only first.
      family: a key of TEMPLATES.
      answer: ends with the head of a turn that the assistant is to fill.

    Raises:
      ConfigError: no turn, or an order that no template can write.
    """
    if family not in TEMPLATES:
        raise ConfigError(f'chat format {family!r}: {allowed(family, TEMPLATES)}')
    template = TEMPLATES[family]
    turns = list(turns)
    _check(turns)
    if template.system and turns[0].role != 'system':
        turns.insert(0, Turn('system', (template.system,)))
    pieces: list[Piece] = []

    def add(what: str | Media, special: bool = False, learnt: bool = False) -> None:
        last = pieces[-1] if pieces else Piece('', special=True)
        if isinstance(what, Media) or special:
            pieces.append(Piece(what, special, learnt))
        elif isinstance(last.what, Media) or last.special or last.learnt != learnt:
            pieces.extend([Piece(what, special, learnt)] if what else ())
        else:
            pieces[-1] = Piece(last.what + what, special, learnt)

    def head(role: str) -> None:
        for word in template.head:
            add(word.format(role=role), word in template.special)

    for word in template.begin:
        add(word, True)
    for turn in turns:
        head(turn.role)
        learnt = turn.role == 'assistant'
        for part in _stripped(turn.parts) if template.strip else turn.parts:
            add(part, False, learnt)  # a text that spells a special token is no token for that
        add(template.end, True, learnt)
        add(template.after)
    if answer:
        head('assistant')
    return pieces


def _check(turns: Sequence[Turn]) -> None:
    if not turns:
        raise ConfigError('a conversation without turns')
    for number, turn in enumerate(turns, 1):
        if turn.role not in ROLES:
            raise ConfigError(f'turn {number}: role {turn.role!r}: {allowed(turn.role, ROLES)}')
        if turn.role == 'system' and number > 1:
            raise ConfigError(f'turn {number}: the system speaks first or not at all')
        if turn.role != 'user' and any(isinstance(part, Media) for part in turn.parts):
            raise ConfigError(f'turn {number}: a video or image in what the {turn.role} says')


def _stripped(parts: Sequence[str | Media]) -> list[str | Media]:
    parts = list(parts)
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return parts


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A conversation in tokens, n of them."""

    tokens: np.ndarray  # [n] int32
    labels: np.ndarray  # [n] int32: the token after each where it is learnt, else NO_LOSS
    visual: np.ndarray  # [n] int32: row in the conversation's table of visual tokens; -1: text
    media: tuple[tuple[Media, int], ...]  # in the order of their rows, and how many each has
    ends: tuple[int, ...]  # n after each of the assistant's turns: where it may be cut

    def cut(self, length: int) -> Encoded | None:
        """What fits into so many tokens, turns whole; None if not even the first answer fits."""
        fitting = [end for end in self.ends if end <= length]
        if not fitting:
            return None
        end = fitting[-1]
        if len(self.tokens) <= length or end == len(self.tokens):
            return self
        labels = self.labels[:end].copy()
        labels[-1] = NO_LOSS
        rows = 1 + int(self.visual[:end].max(initial=-1))
        starts = np.cumsum([0, *(count for _, count in self.media)])
        media = tuple(m for m, start in zip(self.media, starts) if start < rows)
        return Encoded(
            self.tokens[:end], labels, self.visual[:end], media,
            tuple(e for e in self.ends if e <= end),
        )  # fmt: skip


def encode(
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    rows: Callable[[Media], int],
    answer: bool = False,
) -> Encoded:
    """Tokens of a conversation.

    Args:
      turns: what is said.
      tokenizer: whose family's template is used.
      rows: how many visual tokens a medium has.
      answer: ends where the assistant is to answer.

    Raises:
      ConfigError: as `write`.
    """
    tokens: list[int] = []
    learnt: list[bool] = []
    visual: list[int] = []
    media: list[tuple[Media, int]] = []
    ends: list[int] = []
    for piece in write(turns, tokenizer.family, answer):
        if isinstance(piece.what, Media):
            count, first = rows(piece.what), sum(n for _, n in media)
            media.append((piece.what, count))
            ids, seen = [tokenizer.pad] * count, list(range(first, first + count))
        else:
            ids = [tokenizer.special(piece.what)] if piece.special else tokenizer.encode(piece.what)
            seen = [-1] * len(ids)
        tokens += ids
        visual += seen
        learnt += [piece.learnt] * len(ids)
        if piece.special and piece.learnt:
            ends.append(len(tokens))
    labels = np.full(len(tokens), NO_LOSS, np.int32)
    after = np.asarray(tokens[1:], np.int32)
    labels[:-1] = np.where(learnt[1:], after, NO_LOSS)
    return Encoded(
        np.asarray(tokens, np.int32), labels, np.asarray(visual, np.int32), tuple(media),
        tuple(ends),
    )  # fmt: skip
