"""Says during a run, not at its end, that it has left its own range or goes wrong."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

WATCHED = ('loss', 'grad_norm')  # and grad_norm/NET
WINDOW, LEAST = 50, 10  # rows that a range is taken from, and how many there must be
# how far out is out: a factor, and deviations of the logarithms. Of ten healthy runs (300 rows of
# the main job, the physics recipe, two of the simulated arm) no row was
FOLD, DEVIATIONS = 3.0, 6.0
WORSE = 1.5  # times the error of a constant, of a predictor that does harm
BAD = ('collapsed', 'partial collapse', 'ignores actions')
ADVICE = 'what to try: a lower optim.lr, a longer optim.warmup, then data that changed'
FELL = 'features that are predicted may have collapsed: see the next health check'


class Watch:
    """Reads the rows of a run as they are written."""

    def __init__(
        self,
        verdict: Callable[[Sequence[Mapping[str, float]]], tuple[str, str]],
        records: Iterable[Mapping[str, float]] = (),
    ):
        """verdict: an objective's, of rows; records: those that the run has already."""
        self._verdict = verdict
        self._known: dict[str, deque[float]] = {}  # logarithms of what was seen
        self._out: set[str] = set()
        self._health: list[Mapping[str, float]] = []
        self._word = ''
        for row in records:
            self.see(row)

    def see(self, row: Mapping[str, float]) -> list[str]:
        """What is to be said of a row: once when it begins, and again after it was over."""
        said = [words for name in row if (words := self._range(name, row[name]))]
        if any(name.startswith('health/') for name in row):
            self._health.append(row)
            share = row.get('health/loss_share', 0.0)
            if self._once('share', share > WORSE):
                said.append(
                    f"the predictor's error is {share:.2f} times that of a constant: {ADVICE}"
                )
            word, facts = self._verdict(self._health)
            if word != self._word and word in BAD:
                said.append(f'{word} so far: {facts}')
            self._word = word
        return said

    def _range(self, name: str, value: float) -> str:
        if name.partition('/')[0] not in WATCHED or name.startswith('loss/'):
            return ''
        if not (value > 0 and math.isfinite(value)):
            return ''  # a step that is not finite ends the run; 0 has no logarithm
        known = self._known.setdefault(name, deque(maxlen=WINDOW))
        if len(known) < LEAST:
            known.append(math.log(value))
            return ''
        middle = float(np.median(known))
        spread = 1.4826 * float(np.median(np.abs(np.array(known) - middle)))
        apart = math.log(value) - middle
        known.append(math.log(value))
        out = abs(apart) > max(math.log(FOLD), DEVIATIONS * spread)
        fell = name == 'loss' and apart < 0
        if fell:  # of labels, words or pixels a loss cannot fall too far
            out = out and any('health/target_rank' in row for row in self._health)
        if not self._once(name, out):
            return ''
        return (
            f'{name} is {value:.4g}, {math.exp(abs(apart)):.3g} times '
            f'{"above" if apart > 0 else "below"} the middle of the last {len(known) - 1} rows, '
            f'{math.exp(middle):.4g}: {FELL if fell else ADVICE}'
        )

    def _once(self, name: str, holds: bool) -> bool:
        """Whether it holds and did not before."""
        new = holds and name not in self._out
        self._out = self._out | {name} if holds else self._out - {name}
        return new
