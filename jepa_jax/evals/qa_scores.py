"""From answers to figures: by each benchmark's own rule, and by likelihood.

A column is a way to read an answer: `official`, what the benchmark's own scorer makes of the text,
and `choice`, the likeliest of the choices, which no way of phrasing an answer can spoil. Items of a
group (a pair, the questions about a video) are also counted together: a group is right if all of it
is. Intervals are over videos, or over groups where one has several videos.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jepa_jax.evals import Figure
from jepa_jax.evals.intervals import mean_of_shares, wilson
from jepa_jax.language.items import HIDDEN, Answer, Item
from jepa_jax.language.rules import OTHER, RULES, Verdict, likeliest

CHOICE = 'choice'


@dataclasses.dataclass(frozen=True)
class Scored:
    """Verdicts on items whose answers are known, and what came of them."""

    items: tuple[Item, ...]
    columns: dict[str, tuple[Verdict, ...]]


def score(items: Sequence[Item], answers: Mapping[str, Answer]) -> Scored:
    """Verdicts by column on the answers that there are.

    Args:
      items: with hidden answers, or without one by the model, are left out.
      answers: by the items' ids.

    Raises:
      ValueError: likelihoods that are no numbers, or not one a choice.
    """
    known = [item for item in items if item.answer != HIDDEN and item.id in answers]
    columns: dict[str, list[Verdict]] = collections.defaultdict(list)
    names = {name for item in known for name in RULES[item.rule]}
    for name in sorted(names, key=lambda n: (n != 'official', n)):
        for item in known:
            rule = RULES[item.rule].get(name, RULES[item.rule]['official'])
            columns[name].append(rule(item, answers[item.id].text))
    if known and all(answers[item.id].likelihoods for item in known):
        columns[CHOICE] = [likeliest(item, answers[item.id].likelihoods) for item in known]
    return Scored(tuple(known), {name: tuple(each) for name, each in columns.items()})


def figures(scored: Scored, together: str, resamples: int, seed: int = 0) -> dict[str, Figure]:
    """Accuracies of every column: of items and of groups, and of each kind.

    Args:
      scored: of one model.
      together: what a group is called, 'pairs' or 'videos'; '': groups are not counted.
      resamples, seed: of the intervals.
    """
    out: dict[str, Figure] = {}
    items = scored.items
    kinds = list(dict.fromkeys(kind for item in items for kind in item.kinds))
    for column, verdicts in scored.columns.items():
        right = np.array([v.right for v in verdicts])
        counted = np.array([v.counted for v in verdicts])
        masks = {'': np.ones(len(items), bool)}
        masks |= {f', {kind}': np.array([kind in i.kinds for i in items]) for kind in kinds}
        for kind, mask in masks.items():
            if together:
                out[f'{column}, {together}{kind}'] = _groups(
                    items, right, mask, bool(kind), resamples, seed
                )
            out[f'{column}{kind}'] = _singles(
                items, right, mask & counted, bool(kind), resamples, seed
            )
        matched = np.array([v.matched for v in verdicts])
        low, high = wilson((~matched).sum(), len(items))
        out[f'{column}, no rule matched'] = Figure(
            float((~matched).mean()) if len(items) else math.nan, low, high, len(items)
        )
        if together:
            same = _constant(items, verdicts)
            low, high = wilson(sum(same), len(same))
            share = float(np.mean(same)) if same else math.nan
            out[f'{column}, {together} answered alike'] = Figure(share, low, high, len(same))
    return {name: figure for name, figure in out.items() if figure.n}


def chance(items: Sequence[Item], together: str) -> dict[str, Figure]:
    """The baseline: one of the choices, each as likely, drawn for every item by itself."""
    known = [item for item in items if item.answer != HIDDEN]
    each = {item.id: 1 / len(item.choices) for item in known}
    subsets = collections.defaultdict(list)
    for item in known:
        subsets[item.subset].append(each[item.id])
    value = float(np.mean([np.mean(v) for v in subsets.values()])) if known else math.nan
    out = {'chance': Figure(value, value, value, len(known))}
    if together:
        subsets = collections.defaultdict(list)
        groups = members([item for item in known if item.group])
        for group in groups.values():
            subsets[group[0].subset].append(math.prod(each[item.id] for item in group))
        value = float(np.mean([np.mean(v) for v in subsets.values()])) if groups else math.nan
        out[f'chance, {together}'] = Figure(value, value, value, len(groups))
    return {name: figure for name, figure in out.items() if figure.n}


def members(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Group -> its items; an item without a group is its own."""
    groups: dict[str, list[Item]] = collections.defaultdict(list)
    for item in items:
        groups[item.group or item.id].append(item)
    return groups


def _units(items: Sequence[Item]) -> np.ndarray:
    """What is drawn anew, [n]: the video, or the group if its videos are several."""
    videos = {g: {i.media.path for i in each} for g, each in members(items).items()}
    several = any(len(paths) > 1 for paths in videos.values())
    keys = [i.group or i.id if several else i.media.path for i in items]
    return np.unique(keys, return_inverse=True)[1].ravel()


def _singles(items, right, mask, plain: bool, resamples: int, seed: int) -> Figure:
    """Share of items; plain: whatever subset they are of."""
    rows = np.flatnonzero(mask)
    own = [items[i] for i in rows]
    return _figure(_units(own), own, right[rows], plain, len(rows), resamples, seed)


def _groups(items, right, mask, plain: bool, resamples: int, seed: int) -> Figure:
    """Share of groups that are right as a whole."""
    rows = {item.id: i for i, item in enumerate(items)}
    own = [item for item, kept in zip(items, mask) if kept and item.group]
    groups = list(members(own).values())
    first = [group[0] for group in groups]
    whole = np.array([all(right[rows[item.id]] for item in group) for group in groups], bool)
    units = _units([item for group in groups for item in group])
    starts = np.cumsum([0, *map(len, groups)])[:-1].astype(int)
    return _figure(units[starts], first, whole, plain, len(groups), resamples, seed)


def _figure(
    units: np.ndarray, items: Sequence[Item], right: np.ndarray, plain: bool, n: int,
    resamples: int, seed: int,
) -> Figure:  # fmt: skip
    if not n:
        return Figure(math.nan, math.nan, math.nan, 0)
    names = ['' if plain else item.subset for item in items]
    subsets = np.unique(names, return_inverse=True)[1].ravel()
    units = np.unique(units, return_inverse=True)[1].ravel()
    counts = np.zeros((units.max() + 1, subsets.max() + 1))
    wins = np.zeros_like(counts)
    np.add.at(counts, (units, subsets), 1)
    np.add.at(wins, (units, subsets), right)
    value, low, high = mean_of_shares(wins, counts, resamples, seed)
    return Figure(value, low, high, n)


def _constant(items: Sequence[Item], verdicts: Sequence[Verdict]) -> list[bool]:
    """Of groups of several, whether all of it was answered with the same choice."""
    picked = {item.id: v.picked for item, v in zip(items, verdicts)}
    groups = [group for group in members(items).values() if len(group) > 1]
    said = [{picked[item.id] for item in group} for group in groups]
    return [len(each) == 1 and each != {OTHER} for each in said]
