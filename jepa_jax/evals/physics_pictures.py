"""Surprise over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jepa_jax import page

MEMBERS = (('possible', 'tab:blue'), ('impossible', 'tab:red'))


def plot(
    path: Path,
    rows: Sequence[tuple[str, int | None, np.ndarray]],
    *,
    step: int,
    frames: int,
    stride: int,
    seen: int,
) -> None:
    """Draws the mean surprise of both members over pairs of each kind, as PNG, with the standard
    error; where events are known, against the frames that a window ends after the event.

    Args:
      rows: kind, frame of the event or None, series of both members [2, windows].
      step, frames, stride, seen: of the windows, in sampled frames; step in frames of the video.
    """
    kinds = list(dict.fromkeys(kind for kind, *_ in rows))
    columns = min(4, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * lines), layout='constrained')
    for number, kind in enumerate(kinds, 1):
        axes = figure.add_subplot(lines, columns, number)
        ours = [(event, series) for k, event, series in rows if k == kind]
        known = all(event is not None and event > 0 for event, _ in ours)
        values: list[dict[int, list[float]]] = [defaultdict(list), defaultdict(list)]
        for event, series in ours:
            for member in (0, 1):
                for i, value in enumerate(series[member]):
                    end = (i * stride + frames - 1) * step
                    if np.isfinite(value):
                        values[member][end - event if known else end].append(float(value))
        for (name, colour), points in zip(MEMBERS, values):
            at = sorted(points)
            mean = np.array([np.mean(points[x]) for x in at])
            error = np.array([np.std(points[x]) / len(points[x]) ** 0.5 for x in at])
            axes.plot(at, mean, label=name, color=colour, linewidth=1.3)
            axes.fill_between(at, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        if known:
            axes.axvline(0, color='k', linestyle='--', linewidth=0.9)
            # from here on the event is no longer in what is predicted
            axes.axvline((frames - seen) * step, color='grey', linestyle=':', linewidth=0.9)
        axes.set_title(page.plain(f'{kind} ({len(ours)} pairs)'), fontsize=10)
        axes.set_xlabel('last frame of the window' + (', after the event' if known else ''))
        axes.set_ylabel('surprise')
        axes.grid(alpha=0.3)
        if number == 1:
            axes.legend(fontsize=8)
    figure.suptitle(
        'Surprise over time. Dashed: the event enters what is predicted; dotted: all of it is past',
        fontsize=10,
    )
    page.save_figure(figure, path)
