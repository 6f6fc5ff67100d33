"""Batches of packed conversations, a function of (seed, step, position) as all streams are.

Conversations of a file are put into sequences once, before the first step; the sequences are then
what the stream shuffles, mixes by weight and replaces where a video in one of them cannot be read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jepa_jax.config import RunConfig
from jepa_jax.data.stream import Order, Row, Stream
from jepa_jax.errors import ConfigError
from jepa_jax.language import packing
from jepa_jax.language.chat import Encoded, Media, Turn, encode, told
from jepa_jax.language.conversations import Conversations
from jepa_jax.language.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Sight:
    """How a model reads text and pixels; goes to the data workers."""

    tokenizer: Tokenizer
    rows: Callable[[Media], int]  # visual tokens of a medium
    # what the objective gets of a medium, [k, *shape]: its features, or a clip (k = 1); None:
    # nothing. Raises BadFile
    look: Callable[[Media], np.ndarray] | None = None
    shape: tuple[int, ...] = ()
    kind: type = np.float32
    places: int = 0  # such k of a sequence, all media together; 0: as many as visual tokens
    apart: Callable[[Media], bool] | None = None  # is it tiles, read one by one; None: nothing is

    def shown(self, media: Sequence[tuple[Media, int]], places: int) -> dict[str, np.ndarray]:
        """All that is seen one after the other, then zeros: `table`, and `tiles` where some are.
        Raises BadFile."""
        table = np.zeros((places, *self.shape), self.kind)
        if media:
            joined = np.concatenate([self.look(each) for each, _ in media])
            table[: len(joined)] = joined
        if not self.apart:
            return {'table': table}
        tiles = [self.apart(each) for each, _ in media]  # such media have one k each
        return {'table': table, 'tiles': np.array(tiles + [False] * (places - len(tiles)))}


class ConversationStream(Stream):
    """Batches `tokens`, `labels`, `positions`, `segments`, `visual` [B, S], see `packing`, and
    `table` [B, places, *shape] if there is something to look at, and `tiles` [B, places] bool if
    some of it may be tiles of an image.

    Raises:
      ConfigError: no conversation of a file fits into a sequence.
      BadFile: of a file of conversations.
    """

    def __init__(self, config: RunConfig, prepared: Sight, **place: Any) -> None:
        self.sight, self.data, self.seed = prepared, config.data, config.seed
        self.visual = self.data.visual or self.data.length
        self.talks = [
            Conversations(item.path, item.folder, self.data.placeholder)
            for item in self.data.mixture
        ]
        self.dropped: list[int] = []  # conversations of each file that do not fit
        self.full: list[float] = []  # share of the tokens of its sequences that is no padding
        packs = [self._packs(number, talks) for number, talks in enumerate(self.talks)]
        super().__init__(config, packs, **place)

    def _packs(self, number: int, talks: Conversations) -> list[tuple[int, ...]]:
        """Which conversations of a file share a sequence."""
        length, most = self.data.length, self.visual
        sizes = {}
        for index in range(len(talks)):
            if each := self._encoded(talks[index]):
                sizes[index] = len(each.tokens), sum(count for _, count in each.media)
        fitting = [index for index, (_, rows) in sizes.items() if rows <= most]
        if not fitting:
            raise ConfigError(
                f'data.mixture[{number}].path: {talks.path}: none of {len(talks)} conversations '
                f'fits into data.length = {length} tokens, at most {most} of them visual'
            )
        packs = [(index,) for index in fitting]
        tokens, rows = ([sizes[index][i] for index in fitting] for i in (0, 1))
        if self.data.packed:
            plan = packing.plan(tokens, rows, length, most, self.seed + number)
            packs = [tuple(fitting[i] for i in pack) for pack in plan]
        self.dropped.append(len(talks) - len(fitting))
        self.full.append(sum(tokens) / (len(packs) * length))
        return packs

    def _encoded(self, turns: Sequence[Turn]) -> Encoded | None:
        """What fits of a conversation."""
        turns = told(turns, self.data.system)
        return encode(turns, self.sight.tokenizer, self.sight.rows).cut(self.data.length)

    def plan(self) -> tuple[Order, ...]:
        weights = [item.weight for item in self.data.mixture]
        return (self.order(range(len(self.lists)), self.config.optim.batch, weights),)

    def read(self, row: Row) -> dict[str, np.ndarray]:
        talks, which = self.talks[row.list], self.lists[row.list][row.record]
        packed = packing.pack(
            [self._encoded(talks[index]) for index in which],
            self.data.length,
            self.sight.tokenizer.pad,
        )
        if not self.sight.look:
            return packed.arrays
        return packed.arrays | self.sight.shown(packed.media, self.sight.places or self.visual)

    def name(self, row: Row) -> str:
        talks, which = self.talks[row.list], self.lists[row.list][row.record]
        more = f' and {len(which) - 1} more' if len(which) > 1 else ''
        return f'{talks.name(which[0])}{more}'

    def place(self, list_index: int) -> str:
        return f'data.mixture[{list_index}].path = {self.data.mixture[list_index].path}'

    @property
    def facts(self) -> dict[str, dict]:
        return {'conversations': {'dropped': self.dropped}}

    def describe(self) -> list[str]:
        lines = []
        for i, (talks, packs) in enumerate(zip(self.talks, self.lists)):
            line = (
                f'{self.place(i)}: {len(talks)} conversations in {len(packs)} sequences of '
                f'{self.data.length} tokens, {self.full[i]:.0%} full'
            )
            if self.dropped[i]:
                line += f'; {self.dropped[i]} left out: up to the first answer they do not fit'
            lines.append(line)
        return lines
