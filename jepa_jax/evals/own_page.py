"""What an evaluation on own clips leaves to be looked at: report.html, confusion.csv and .png."""

from __future__ import annotations

import csv
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas

from jepa_jax import page
from jepa_jax.errors import BadFile
from jepa_jax.evals import Figure

WORST = 10  # clips that are shown
MOST = 60  # classes up to which the matrix has names and numbers


def write(
    folder: Path,
    model: str,
    task,
    scores: np.ndarray,
    results: Mapping[str, Figure],
    baselines: Mapping[str, Figure],
    settings: Mapping[str, str],
    warnings: Sequence[str],
    clip_of: Callable[[object], np.ndarray],
) -> None:
    """Writes the page and what it shows.

    Args:
      folder: of the page.
      model: its name.
      task: jepa_jax.evals.own.Task.
      scores: [m, C] of the attentive probe for the test clips.
      results, baselines, settings, warnings: as reported.
      clip_of: example -> uint8 [segments, T, H, W, 3].
    """
    targets = task.targets[task.test]
    parts = [
        page.heading(f'{model}: own clips', 1),
        f'<p>{int((~task.test).sum())} clips to learn from, {len(targets)} to test on. Intervals '
        'are 95 %.</p>',
        *(f'<p><b>{html.escape(line)}</b></p>' for line in warnings),
        page.table(
            ('', 'value', '95 % interval', 'setting'),
            [
                (name, f'{f.value:.3f}', f'{f.low:.3f} to {f.high:.3f}', settings.get(name, ''))
                for name, f in [*results.items(), *baselines.items()]
            ],
        ),
    ]
    if task.kind != 'number':
        learnt, asked = task.targets[~task.test].sum(0), targets.sum(0)
        rows = [(n, f'{int(a)}', f'{int(b)}') for n, a, b in zip(task.names, learnt, asked)]
        parts += ['<h2>Clips of each class</h2>', page.table(('', 'training', 'test'), rows)]
    if task.kind == 'class':
        matrix = confusion(scores.argmax(1), targets.argmax(1), len(task.names))
        path, how = folder / 'confusion.csv', {'encoding': 'utf-8', 'errors': 'surrogateescape'}
        with path.open('w', newline='', **how) as file:
            out = csv.writer(file)
            out.writerow(['true \\ answered', *task.names])
            out.writerows([name, *row] for name, row in zip(task.names, matrix.tolist()))
        plot_confusion(matrix, task.names, folder / 'confusion.png')
        parts += [
            '<h2>Confusion of the attentive probe</h2>',
            page.file(folder / 'confusion.png', 'confusion matrix'),
            page.paragraph('As numbers: confusion.csv.'),
        ]
    parts += ['<h2>Worst errors of the attentive probe</h2>', _worst(task, scores, clip_of)]
    page.write(folder, f'{model}: own clips', parts)


def confusion(said: np.ndarray, true: np.ndarray, count: int) -> np.ndarray:
    """[C, C]: how many clips of a class (row) were taken for another (column)."""
    matrix = np.zeros((count, count), int)
    np.add.at(matrix, (true, said), 1)
    return matrix


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Shares of each class's clips as colours, counts as numbers."""
    count = len(names)
    side = min(16.0, 3 + 0.4 * count)
    figure = Canvas(figsize=(side, side), layout='constrained')
    axes = figure.subplots()
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    axes.set(xlabel='answered', ylabel='true')
    if count <= MOST:
        shown = [page.plain(name) for name in names]
        axes.set_xticks(range(count), shown, rotation=90)
        axes.set_yticks(range(count), shown)
        for row, column in zip(*np.nonzero(matrix)):
            colour = 'white' if shares[row, column] > 0.5 else 'black'
            axes.text(
                column, row, matrix[row, column], ha='center', va='center', color=colour,
                fontsize=8,
            )  # fmt: skip
    page.save_figure(figure, path)


def errors(kind: str, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[m]: how wrong each clip was answered; 0 or less: right."""
    if kind == 'number':
        return np.abs(scores - targets)[:, 0]
    if kind == 'labels':
        return np.abs(scores - targets).max(1) - 0.5
    own = (scores * targets).sum(1)
    return np.where(targets > 0, -np.inf, scores).max(1) - own  # by how much another is ahead


def _worst(task, scores: np.ndarray, clip_of: Callable[[object], np.ndarray]) -> str:
    targets = task.targets[task.test]
    wrong = errors(task.kind, scores, targets)
    tested = [e for e, t in zip(task.examples, task.test) if t]
    rows = []
    for i in np.argsort(-wrong)[:WORST]:
        if wrong[i] <= 0:
            break
        if task.kind == 'class':
            said = task.names[scores[i].argmax()]
        elif task.kind == 'number':
            said = f'{scores[i, 0]:.4g}'
        else:
            said = '|'.join(n for n, s in zip(task.names, scores[i]) if s > 0.5) or 'none'
        try:
            picture = _thumbnail(clip_of(tested[i]))
        except BadFile as error:
            picture = html.escape(str(error))
        rows.append(
            f'<tr><td>{picture}</td><td>{html.escape(str(tested[i]))}</td>'
            f'<td>{html.escape(tested[i].label)}</td><td>{html.escape(said)}</td></tr>'
        )
    if not rows:
        return '<p>None.</p>'
    head = '<tr><th>three frames</th><th>clip</th><th>true</th><th>answered</th></tr>'
    return f'<table>{head}{"".join(rows)}</table>'


def _thumbnail(clips: np.ndarray) -> str:
    frames = clips[len(clips) // 2]
    return page.strip(frames[[0, len(frames) // 2, -1]])
