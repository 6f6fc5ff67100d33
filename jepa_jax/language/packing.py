"""Conversations side by side in sequences of one length, so that one program serves them all.

A packed example is `tokens`, `labels`, `positions`, `segments` and `visual`, int32 `[S]` each: what
`Encoded` has, positions from 0 in every conversation, segments from 1 (0: nothing stands there),
and `visual` counting through the example's table of visual tokens. (reference: video_qa.md §1.4)
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from jepa_jax.errors import ConfigError
from jepa_jax.language.chat import NO_LOSS, Encoded, Media

LOOKS = 64  # sequences with room that are tried before a new one is begun


@dataclasses.dataclass(frozen=True)
class Packed:
    """One example."""

    arrays: dict[str, np.ndarray]  # [S] int32 each
    media: tuple[tuple[Media, int], ...]  # in the order of the table's rows, and how many each has


def plan(
    lengths: Sequence[int], rows: Sequence[int], length: int, most: int, seed: int = 0
) -> list[tuple[int, ...]]:
    """Which conversations share a sequence: each goes where it leaves the least room.

    Args:
      lengths: tokens of each; those above `length` are left out.
      rows: visual tokens of each; those above `most` are left out.
      length: tokens of a sequence.
      most: visual tokens of a sequence, at most.
      seed: of the order in which they are placed, so that neighbours in a list are not always
        neighbours in a sequence.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    packs: list[list[int]] = []
    room: list[tuple[int, int, int]] = []  # tokens and rows that are free, and of which sequence
    for which in order.tolist():
        tokens, seen = int(lengths[which]), int(rows[which])
        if tokens > length or seen > most:
            continue
        start = bisect.bisect_left(room, (tokens, 0, 0))
        tried = range(start, min(start + LOOKS, len(room)))
        place = next((i for i in tried if room[i][1] >= seen), None)
        if place is None:
            packs.append([])
            free, left, pack = length, most, len(packs) - 1
        else:
            free, left, pack = room.pop(place)
        packs[pack].append(which)
        bisect.insort(room, (free - tokens, left - seen, pack))
    return [tuple(pack) for pack in packs]


def pack(conversations: Sequence[Encoded], length: int, pad: int) -> Packed:
    """Conversations one after the other, and padding.

    Args:
      conversations: whose tokens together are at most `length`.
      length: S.
      pad: the token where nothing stands.

    Raises:
      ConfigError: they do not fit.
    """
    total = sum(len(each.tokens) for each in conversations)
    if total > length:
        raise ConfigError(f'{total} tokens do not fit into a sequence of {length}')
    out = {
        name: np.full(length, fill, np.int32)
        for name, fill in (
            ('tokens', pad), ('labels', NO_LOSS), ('positions', 0), ('segments', 0), ('visual', -1),
        )
    }  # fmt: skip
    media: list[tuple[Media, int]] = []
    start = 0
    for number, each in enumerate(conversations, 1):
        n = len(each.tokens)
        own, first = slice(start, start + n), sum(count for _, count in media)
        out['tokens'][own], out['labels'][own] = each.tokens, each.labels
        out['positions'][own], out['segments'][own] = np.arange(n), number
        out['visual'][own] = np.where(each.visual >= 0, each.visual + first, -1)
        media += each.media
        start += n
    return Packed(out, tuple(media))


def shortest(lengths: Sequence[int], tokens: int) -> int:
    """The least of a few lengths that holds so many tokens: as many programs as lengths.

    Raises:
      ConfigError: none does.
    """
    fitting = [length for length in lengths if length >= tokens]
    if not fitting:
        raise ConfigError(f'{tokens} tokens: at most {max(lengths)} fit')
    return min(fitting)
