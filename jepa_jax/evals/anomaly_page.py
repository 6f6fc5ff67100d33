"""What is left to be looked at of an evaluation of anomalies: report.html and scores.png."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas

from jepa_jax import page
from jepa_jax.config.anomaly import AnomalyConfig
from jepa_jax.data import windows
from jepa_jax.errors import BadFile
from jepa_jax.evals import normality
from jepa_jax.evals.physics import view_of

SHOWN = 12  # videos whose scores are drawn, and windows that are shown
OF_ONE = 2  # windows of one video at most
COLOURS = {'surprise': 'tab:blue', 'density': 'tab:red', 'pixels': 'tab:grey'}


def write(
    folder: Path, judged: Sequence, detector: normality.Detector, config: AnomalyConfig, crop: int,
    results: dict, baselines: dict, sentences: Sequence[str],
) -> None:  # fmt: skip
    """judged: of jepa_jax.evals.anomaly.Judged; the rest as reported."""
    parts = [
        '<h1>What the camera does not usually show</h1>',
        f'<p>{len(judged)} test videos. Intervals are 95 %, over videos.</p>',
        *(f'<p>{html.escape(line)}</p>' for line in sentences),
        page.table(
            ('', 'value', '95 % interval', 'videos'),
            [
                (name, f'{f.value:.3f}', f'{f.low:.3f} to {f.high:.3f}', str(f.n))
                for name, f in [*results.items(), *baselines.items()]
            ],
        ),
    ]
    if judged:
        drawn = plot(judged, detector, config, folder / 'scores.png')
        parts += [
            '<h2>Score over time</h2>',
            f'<p>{drawn} of {len(judged)} videos, those with the highest scores; every frame of '
            'all stands in scores.csv. A score of 1 is the threshold, 0 the middle of normal '
            'frames. Shaded: labelled as abnormal.</p>',
            page.file(folder / 'scores.png', 'scores over time'),
        ]
        for name in [n for n in ('density', 'surprise') if n in detector.thresholds]:
            parts += [
                f'<h2>Highest windows by {name}</h2>',
                _highest(judged, detector, config, crop, name),
            ]
    page.write(folder, 'anomalies', parts)


def plot(judged: Sequence, detector: normality.Detector, config: AnomalyConfig, path: Path) -> int:
    """Scores of the videos that have the highest, in units of the threshold, as PNG; how many."""
    ranked = sorted(judged, key=lambda j: -float(j.frames[config.judge].max()))[:SHOWN]
    columns = min(3, len(ranked))
    lines = -(-len(ranked) // columns)
    figure = Canvas(figsize=(4.2 * columns, 2.3 * lines + 0.4), layout='constrained')
    middle = {
        n: float(np.median(np.concatenate([j.frames[n] for j in judged])))
        for n in COLOURS
        if n in detector.thresholds
    }
    for number, j in enumerate(ranked, 1):
        axes = figure.add_subplot(lines, columns, number)
        at = j.shown.seconds
        if j.wrong is not None:
            axes.fill_between(
                at, 0, 1, where=j.wrong, step='mid', color='gold', alpha=0.35, linewidth=0,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        for name, low in middle.items():
            unit = max(detector.thresholds[name] - low, 1e-9)
            axes.plot(
                at, (j.frames[name] - low) / unit, color=COLOURS[name], linewidth=1.2, label=name
            )
        axes.axhline(1, color='k', linestyle='--', linewidth=0.8)
        axes.set_title(page.plain(_name(j.video)), fontsize=9)
        axes.set_xlabel('seconds', fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if number == 1:
            axes.legend(fontsize=7)
    figure.suptitle('Scores in units of the threshold (dashed)', fontsize=10)
    page.save_figure(figure, path)
    return len(ranked)


def _name(video) -> str:
    name = Path(video.path).name
    return f'{name} ({video.kind})' if video.kind else name


def _highest(judged: Sequence, detector, config: AnomalyConfig, crop: int, name: str) -> str:
    """The windows with the highest scores, with four frames of each."""
    ranked = sorted(
        ((float(v), i, w) for i, j in enumerate(judged) for w, v in enumerate(j.windows[name])),
        reverse=True,
    )
    used: dict[int, list[int]] = {}
    rows = []
    for value, i, w in ranked:
        near = used.setdefault(i, [])
        if len(near) == OF_ONE or any(abs(w - other) < 2 for other in near):
            continue
        near.append(w)
        rows.append(_row(judged[i], w, value, detector.thresholds[name], config, crop))
        if len(rows) == SHOWN:
            break
    head = (
        '<tr><th>last frame seen, then three of those judged</th><th>video</th><th>seconds</th>'
        '<th>score</th><th></th></tr>'
    )
    return f'<table>{head}{"".join(rows)}</table>'


def _row(j, window: int, value: float, threshold: float, config: AnomalyConfig, crop: int) -> str:
    first, end = j.shown.covers[window]
    chosen = j.shown.numbers[[first - 1, first, (first + end) // 2, end - 1]]
    try:
        source, _ = normality.opened(j.video.path, config.data)
        picture = page.strip(_enlarged(view_of(config.data.view, crop)(_read(source, chosen))))
    except BadFile as error:
        picture = html.escape(str(error))
    a, b = (j.shown.seconds[j.shown.numbers[k]] for k in (first, end - 1))
    words = 'above the threshold' if value > threshold else 'below the threshold'
    if j.wrong is not None:
        inside = j.wrong[j.shown.numbers[first] : j.shown.numbers[end - 1] + 1].any()
        words += '; labelled abnormal' if inside else '; labelled normal'
    return (
        f'<tr><td>{picture}</td><td>{html.escape(_name(j.video))}</td><td>{a:.1f} to {b:.1f}</td>'
        f'<td>{value:.3g}</td><td>{words}</td></tr>'
    )


def _read(source: windows.Input, numbers: np.ndarray) -> np.ndarray:
    unique, where = np.unique(numbers, return_inverse=True)
    return source.read(unique)[where]


def _enlarged(frames: np.ndarray) -> np.ndarray:
    factor = max(1, page.THUMBNAIL // frames.shape[1])
    return frames.repeat(factor, 1).repeat(factor, 2)
