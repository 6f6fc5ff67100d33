"""Predictions beside the truth: pictures, and report.html."""

from __future__ import annotations

import colorsys
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from jepa_jax import page
from jepa_jax.evals import Figure

SHOWN = 5  # samples in a picture: the best, the worst and between
NONE = (255, 255, 255)  # where there is no label


def spread(quality: np.ndarray) -> np.ndarray:
    """Numbers of SHOWN samples from the best to the worst, evenly by rank; NaN ranks last."""
    order = np.argsort(-np.nan_to_num(quality, nan=-np.inf), kind='stable')
    return order[np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int)]


def class_colours(count: int) -> np.ndarray:
    """[count, 3] uint8; the first is dark, neighbours differ in hue."""
    rows = [
        colorsys.hsv_to_rgb(0.618 * i % 1, 0.55 + 0.4 * (i % 3) / 2, 0.95 - 0.3 * (i // 3 % 2))
        for i in range(1, count)
    ]
    return np.array([(40, 40, 48), *(255 * np.array(rows).reshape(-1, 3))]).astype(np.uint8)


def of_classes(labels: np.ndarray, count: int, none: int = 255) -> np.ndarray:
    """Class numbers [H, W] -> RGB."""
    colours = class_colours(count)
    out = colours[np.where(labels == none, 0, labels)]
    out[labels == none] = NONE
    return out


def of_metres(metres: np.ndarray, low: float, high: float) -> np.ndarray:
    """Distances [H, W] -> RGB, near ones light; 0 has none."""
    share = np.clip((metres - low) / max(high - low, 1e-9), 0, 1)
    out = (255 * matplotlib.colormaps['viridis_r'](share)[..., :3]).astype(np.uint8)
    out[metres <= 0] = NONE
    return out


def over(frame: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """A frame [H, W, 3] with its objects [H, W] in colour."""
    colours = class_colours(int(objects.max(initial=0)) + 1)
    tint = (frame // 3 + 2 * (colours[objects] // 3)).astype(np.uint8)
    return np.where((objects > 0)[..., None], tint, frame)


def panels(path: Path, rows: Sequence[Sequence[tuple[str, np.ndarray]]], title: str) -> None:
    """Draws rows of pictures with their titles, as PNG."""
    columns = max(len(row) for row in rows)
    height, width = rows[0][0][1].shape[:2]
    figure = Canvas(
        figsize=(2.4 * columns, (2.4 * height / width + 0.3) * len(rows) + 0.4),
        layout='constrained',
    )
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(grid, rows):
        for axes, (words, image) in zip(line, row):
            axes.imshow(image, interpolation='nearest')
            axes.set_title(page.plain(words), fontsize=8)
        for axes in line:
            axes.set_axis_off()
    figure.suptitle(page.plain(title), fontsize=10)
    page.save_figure(figure, path)


def write(
    folder: Path,
    title: str,
    results: Mapping[str, Figure],
    baselines: Mapping[str, Figure],
    sentences: Sequence[str],
    picture: str,
    more: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = (),
) -> None:
    """Writes report.html: figures, sentences, a picture of the folder, and more tables, each
    with its title, head and rows."""
    rows = [
        (name, f'{f.value:.3f}', f'{f.low:.3f} to {f.high:.3f}', str(f.n))
        for name, f in [*results.items(), *baselines.items()]
    ]
    parts = [
        f'<h1>{html.escape(title)}</h1>',
        page.table(('', 'value', '95 % interval', 'n'), rows),
        *(f'<p>{html.escape(line)}</p>' for line in sentences),
        page.file(folder / picture, 'predictions beside the truth'),
    ]
    for words, head, cells in more:
        parts += [f'<h2>{html.escape(words)}</h2>', page.table(head, cells)]
    page.write(folder, title, parts)
