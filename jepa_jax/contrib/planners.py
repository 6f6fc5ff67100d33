"""Planners beside each other, each with several budgets: what is reached in how much time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from jepa_jax.evals.intervals import wilson

# planner -> budgets: samples (or starts) and iterations
SEARCH = ((8, 2), (16, 3), (32, 4), (64, 4), (128, 4), (128, 8))
DESCENT = ((1, 5), (2, 10), (4, 10), (4, 20), (8, 40))
BUDGETS: dict[str, tuple[tuple[int, int], ...]] = {
    'cem': SEARCH,
    'mppi': SEARCH,
    'adam': DESCENT,
    'cem_adam': ((8, 2), (16, 4), (32, 6)),
    'collocation': DESCENT,
}
REFERENCE = 'cem', 64, 4  # what the others are compared with
ALIKE = 1.1  # seconds up to so many times as long are equal


def elites(samples: int) -> int:
    """Of CEM with so many samples."""
    return max(2, samples // 8)


@dataclasses.dataclass(frozen=True)
class Row:
    """What a planner reached with one budget."""

    planner: str
    samples: int
    iterations: int
    won: int
    episodes: int
    seconds: float  # core seconds a plan

    @property
    def share(self) -> float:
        return self.won / self.episodes

    @property
    def words(self) -> str:
        low, high = wilson(self.won, self.episodes)
        return f'{self.won} of {self.episodes} ({low:.2f} to {high:.2f})'

    @property
    def budget(self) -> str:
        return f'{self.samples} x {self.iterations}'


def reference(rows: Iterable[Row]) -> Row:
    """The row of REFERENCE."""
    (row,) = (r for r in rows if (r.planner, r.samples, r.iterations) == REFERENCE)
    return row


def at_equal_seconds(rows: Sequence[Row], planner: str) -> Row | None:
    """A planner's best row that takes no longer than the reference; None: all take longer."""
    most = ALIKE * reference(rows).seconds
    within = [r for r in rows if r.planner == planner and r.seconds <= most]
    return max(within, key=lambda r: (r.won, -r.seconds), default=None)


def at_equal_success(rows: Sequence[Row], planner: str) -> Row | None:
    """A planner's fastest row that wins as often as the reference; None: none does."""
    least = reference(rows).share
    enough = [r for r in rows if r.planner == planner and r.share >= least]
    return min(enough, key=lambda r: r.seconds, default=None)


def tables(rows: Sequence[Row]) -> str:
    """All rows, and what each planner reaches beside the reference, as Markdown."""
    lines = [
        '| planner | samples x iterations | success (95 % interval) | core ms a plan |',
        '|---|---|---|---|',
    ]
    lines += [f'| {r.planner} | {r.budget} | {r.words} | {1000 * r.seconds:.1f} |' for r in rows]
    name, samples, iterations = REFERENCE
    lines += [
        '',
        f'Beside {name} {samples} x {iterations}:',
        '',
        '| planner | success at equal seconds | seconds at equal success |',
        '|---|---|---|',
    ]
    base = reference(rows)
    for planner in dict.fromkeys(r.planner for r in rows):
        quick, good = at_equal_seconds(rows, planner), at_equal_success(rows, planner)
        first = 'takes longer' if quick is None else f'{quick.words}, {quick.budget}'
        second = 'not reached' if good is None else (
            f'{1000 * good.seconds:.1f} ms, {good.seconds / base.seconds:.2f} times, {good.budget}'
        )  # fmt: skip
        lines.append(f'| {planner} | {first} | {second} |')
    return '\n'.join(lines)
