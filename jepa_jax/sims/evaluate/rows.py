"""What is told of episodes: rows of report.json, sentences and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from jepa_jax import page
from jepa_jax.sims.evaluate.episodes import Episodes
from jepa_jax.sims.panda import RATE

# pixels about a picture, of these colours: of an episode that ended well, badly, or goes on
BORDER = 3
GOOD, BAD, DARK = (40, 170, 60), (205, 40, 40), (24, 24, 24)

# fields of a row of `tasks` that are the policy's own; others are shares of success by policy
OWN = (
    'success', 'low', 'high', 'distance', 'start', 'within_8_cm', 'episodes', 'seconds_per_action',
    'policies',
)  # fmt: skip


def row(summaries: Mapping[str, Mapping[str, float]], policy: str) -> dict[str, Any]:
    """A task's row of report.json (`tasks`): the summary of a policy, the share of success of every
    other policy by its name, and all summaries under `policies`."""
    others = {name: s['success'] for name, s in summaries.items() if name != policy}
    return {**summaries[policy], **others, 'policies': dict(summaries)}


def plot_episodes(episodes: Episodes, path: str | Path, title: str = '', columns: int = 7) -> None:
    """Draws the kept episodes as a contact sheet, PNG: a row each, from the first frame to the
    last, and the last goal. What is kept is no sample: see Episodes."""
    count, T = episodes.frames.shape[:2]
    times = np.unique(np.linspace(0, T - 1, min(columns, T)).round().astype(int))
    figure = Figure(figsize=(1.5 * (len(times) + 1), 1.75 * count + 0.5), layout='constrained')
    grid = figure.subplots(count, len(times) + 1, squeeze=False)
    for i in range(count):
        for axes, t in zip(grid[i], times):
            axes.imshow(episodes.frames[i, t])
            axes.set_title(f'step {t}', fontsize=8)
        grid[i, -1].imshow(episodes.goals[i, -1])
        grid[i, -1].set_title('goal', fontsize=8)
        number = episodes.shown[i]
        word = 'success' if episodes.success[number] else 'failure'
        grid[i, 0].set_ylabel(f'{word}\n{100 * episodes.distance[number]:.1f} cm off', fontsize=8)
        for axes in grid[i]:
            axes.set_xticks([])
            axes.set_yticks([])
    summary = episodes.summary()
    figure.suptitle(
        f'{title or episodes.task}: {100 * summary["success"]:.0f} % of {summary["episodes"]} '
        f'episodes end well ({100 * summary["low"]:.0f} to {100 * summary["high"]:.0f})',
        fontsize=10,
    )
    page.save_figure(figure, path)


def animate_episodes(episodes: Episodes, path: str | Path, title: str = '') -> None:
    """Draws the kept episodes at play side by side, their last goals below, as a GIF: as fast as
    they are, then for a second how each ended, framed in green or red."""
    wins, goals = episodes.success[episodes.shown], episodes.goals[:, -1]
    pictures = []
    for t in range(episodes.frames.shape[1] + 1):
        over = t == episodes.frames.shape[1]
        columns = [
            np.concatenate([_framed(now, (GOOD if won else BAD) if over else DARK), _framed(goal)])
            for now, goal, won in zip(episodes.frames[:, t - over], goals, wins)
        ]
        pictures.append(Image.fromarray(np.concatenate(columns, axis=1)))
    # one palette for all, of the last: it has both frames and what they frame
    last = pictures[-1].quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    first, *others = (p.quantize(palette=last, dither=Image.Dither.NONE) for p in pictures)
    times = [round(1000 / RATE)] * len(others) + [1000]
    first.save(
        path, 'GIF', save_all=True, append_images=others, loop=0, duration=times, comment=title
    )


def _framed(image: np.ndarray, colour: tuple[int, int, int] = DARK) -> np.ndarray:
    height, width, _ = image.shape
    framed = np.full((height + 2 * BORDER, width + 2 * BORDER, 3), colour, np.uint8)
    framed[BORDER:-BORDER, BORDER:-BORDER] = image
    return framed


def plot_energy(ways: Mapping[str, np.ndarray], path: str | Path, title: str = '') -> None:
    """Draws costs along the script's way [E, T] (see judge_cost) by name, PNG: their mean, and
    where the middle half of the episodes is."""
    figure = Figure(figsize=(5.5, 3.8), layout='constrained')
    axes = figure.subplots()
    for name, way in ways.items():
        steps = np.arange(way.shape[1])
        (line,) = axes.plot(steps, way.mean(0), marker='.', label=name)
        axes.fill_between(
            steps, *np.quantile(way, (0.25, 0.75), axis=0), color=line.get_color(), alpha=0.2
        )
    axes.set_xlabel("the script's step towards the goal")
    axes.set_ylabel('cost over the first')
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.set_title(title or 'Cost on the way to the goal', fontsize=10)
    page.save_figure(figure, path)


def verdict(task: str, row: Mapping[str, Any]) -> str:
    """One sentence on a row of `tasks`."""

    def share(x: float) -> str:
        return f'{100 * x:.0f} %'

    others = ', '.join(f'{k} {share(v)}' for k, v in row.items() if k not in OWN)
    return (
        f'{task} (simulated): {share(row["success"])} of '
        f'{row["episodes"]:.0f} episodes end well ({share(row["low"])} to {share(row["high"])}), '
        f'{100 * row["distance"]:.1f} cm off from {100 * row["start"]:.1f}; {others}'
    )
