"""What a run looks like: its loss and health over time, and the features of a clip as colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import linalg

from jepa_jax import page

# Panels of the run plot: title, label of the vertical axis, fields of metrics.jsonl and their names
# in the legend.
LOSS = 'loss'
BOTH = {'target': 'target, all tokens', 'context': 'context tokens'}
PANELS = (
    ('Loss', LOSS, {'loss': 'loss'}),
    (
        'Error over that of a baseline',
        '1: no better than the baseline',
        {'health/loss_share': 'a constant', 'health/loss_share_position': "each position's mean"},
    ),
    (
        'Gradient norm',
        'L2',
        {'grad_norm': 'all'} | {f'grad_norm/{net}': net for net in ('encoder', 'predictor')},
    ),
    ('Learning rate', 'AdamW step size', {'lr': 'learning rate'}),
    *(
        (name, unit, {f'health/{of}_{key}': words for of, words in BOTH.items()})
        for name, unit, key in (
            ('Effective rank of features', 'directions', 'rank'),
            ('Deviation of features', 'std, mean over dimensions', 'std'),
            ('Least deviation of a dimension', 'std over tokens', 'std_min'),
            ('Share of features that varies', 'share of mean square; 0: constant', 'std_share'),
            ('Cosine of two tokens', 'mean over pairs', 'cosine'),
            ('Correlation of two dimensions', 'root mean square', 'covariance'),
        )
    ),
    ("Variance due to the clip", 'share; 0: position only', {'health/target_clip_share': 'target'}),
    ('Lag of the target', 'distance to the encoder', {'health/ema_lag': 'lag'}),
    ('Speed', 'clips per second', {'clips_per_s': 'clips per second'}),
    ('Time that a step takes', 'seconds', {'step_s': 'step', 'data_wait_s': 'waiting for data'}),
)  # fmt: skip


CLOCKED = ('clips_per_s', 'step_s', 'data_wait_s')  # fields that compiling spoils


def plot_run(
    records: Sequence[dict[str, Any]],
    path: str | Path,
    title: str = '',
    bands: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    loss: str = LOSS,
) -> None:
    """Draws the records of metrics.jsonl as PNG: one panel for each row of PANELS that they have
    numbers for.

    A field is drawn over the steps that have it, so records of different kinds may be mixed; gaps
    in health are no gaps in the loss. `health/*` numbers that no row knows get panels of their own,
    `evals/*` those of an evaluation and a label one together. Rows that compiling took its time of
    have no speed, unless all have.

    bands: field -> the least and the most of healthy runs, which are shaded. loss: what it is, for
    its axis.

    Raises:
      ValueError: no record has a step and a loss.
    """
    rows = sorted((r for r in records if 'step' in r), key=lambda r: r['step'])
    if not any('loss' in r for r in rows):
        raise ValueError('nothing to plot: no record has a step and a loss')
    drawn = {field for *_, fields in PANELS for field in fields}
    numbers = {
        k
        for r in rows
        for k, v in r.items()
        if isinstance(v, (int, float)) and not isinstance(v, bool)
    }
    health = sorted(k for k in numbers - drawn if k.startswith('health/'))
    extra = [(_title(k), 'value', {k: _title(k)}) for k in health]
    evals: dict[str, dict[str, str]] = {}
    for key in sorted(k for k in numbers if k.startswith('evals/') and not k.endswith('/seconds')):
        heading, _, reader = key.removeprefix('evals/').rpartition('/')
        evals.setdefault(heading, {})[key] = reader
    extra += [(f'Evaluation: {name}', 'score', fields) for name, fields in evals.items()]
    steady = [r for r in rows if not r.get('compile_s')] or rows
    panels = [p for p in (*PANELS, *extra) if numbers & p[2].keys()]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    wide, high = 4.2 * columns, 2.9 * lines + 0.3  # inches
    figure = Figure(figsize=(wide, high))
    # margins by hand: a layout engine draws every panel once more, which took half the time
    figure.subplots_adjust(
        left=0.85 / wide, right=1 - 0.2 / wide, wspace=0.9 / 3.3,
        bottom=0.5 / high, top=1 - 0.6 / high, hspace=0.8 / 2.1,
    )  # fmt: skip
    for i, (name, unit, fields) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, i + 1)
        for field, label in fields.items():
            those = steady if field in CLOCKED else rows
            points = [
                (r['step'], r[field]) for r in those if isinstance(r.get(field), (int, float))
            ]
            if points:
                marker = '.' if len(points) < 60 else None
                axes.plot(*zip(*points), label=label, linewidth=1.2, marker=marker, markersize=4)
        for least, most in {bands[field] for field in fields if field in bands}:
            bottom, top = axes.get_ylim()
            if least > top:  # all outside: show where it would be healthy
                top = least + 0.1 * (least - bottom)
            if most < bottom:
                bottom = most - 0.1 * (top - most)
            span = max(least, bottom), min(most, top)
            axes.axhspan(*span, color='tab:green', alpha=0.1, linewidth=0)
            axes.set_ylim(bottom, top)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel('step')
        axes.set_ylabel(loss if unit is LOSS else unit, fontsize=9)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize=8)
    if title:
        figure.suptitle(page.plain(title), fontsize=11, y=1 - 0.08 / high)
    page.save_figure(figure, path)


def _title(field: str) -> str:
    return field.removeprefix('health/').replace('_', ' ').replace('/', ' of ').capitalize()


def plot_features(
    frames: np.ndarray,
    tokens: np.ndarray | Mapping[str, np.ndarray],
    path: str | Path,
    title: str = '',
) -> None:
    """Draws a clip and below each of its times the features as colours, as PNG.

    The three leading principal components of all tokens of the clip become red, green and blue, by
    one projection and one scale for all times: the same colour is the same feature wherever it
    appears.

    Args:
      frames: uint8 `[T, H, W, 3]`.
      tokens: features `[t, h, w, D]`, D at least 3; T is a multiple of t. Or those of several
        models on the same grid, by name: a row and a projection each.

    Raises:
      ValueError: the numbers of frames and of token times do not fit, or a feature is not finite.
    """
    rows = tokens if isinstance(tokens, Mapping) else {'features': tokens}
    T, (t, h, w, _) = len(frames), next(iter(rows.values())).shape
    if T % t:
        raise ValueError(f'{T} frames cannot be shown beside {t} token times: not a multiple')
    drawn = {name: feature_colours(each) for name, each in rows.items()}
    figure = Figure(figsize=(1.5 * t + 0.9, 2.2 + 1.8 * len(rows)), layout='constrained')
    grid = figure.subplots(1 + len(rows), t, squeeze=False)
    for i in range(t):
        first, last = i * (T // t), (i + 1) * (T // t) - 1
        grid[0, i].imshow(frames[first])
        grid[0, i].set_title(
            f'frame {first}' if first == last else f'frames {first}-{last}', fontsize=9
        )
        for row, (colours, _) in enumerate(drawn.values(), 1):
            grid[row, i].imshow(colours[i], interpolation='nearest')
        for axes in grid[:, i]:
            axes.set_xticks([])
            axes.set_yticks([])
    grid[0, 0].set_ylabel('first frame of each')
    for row, name in enumerate(drawn, 1):
        grid[row, 0].set_ylabel(name)
    shown = '; '.join(', '.join(f'{100 * s:.0f} %' for s in shares) for _, shares in drawn.values())
    figure.supxlabel(
        f'{h} x {w} tokens a time; red, green, blue: the first three principal components over\n'
        f'all tokens of this clip (one projection for all times), {shown} of their variance',
        fontsize=8,
    )
    figure.suptitle(page.plain(title) or 'Features of one clip over time', fontsize=11)
    page.save_figure(figure, path)


def plot_similarity(
    frames: np.ndarray,
    tokens: np.ndarray,
    path: str | Path,
    title: str = '',
    at: tuple[int, int, int] | None = None,
) -> None:
    """Draws a clip and below each of its times how alike every token is to one of them, as PNG.

    Likeness is the cosine after the mean over the clip's tokens is taken out, which else makes all
    alike. The one token is marked.

    Args:
      frames: uint8 `[T, H, W, 3]`.
      tokens: features `[t, h, w, D]`; T is a multiple of t.
      at: place of the one token (t, y, x); None: the middle of the first time.

    Raises:
      ValueError: frames and token times do not fit, a feature is not finite, no such place.
    """
    T, (t, h, w, _) = len(frames), tokens.shape
    if T % t:
        raise ValueError(f'{T} frames cannot be shown beside {t} token times: not a multiple')
    at = (0, h // 2, w // 2) if at is None else at
    if not all(0 <= place < size for place, size in zip(at, (t, h, w))):
        raise ValueError(f'token {at}: must lie in a grid of {(t, h, w)}')
    likeness = token_similarity(tokens, at)
    figure = Figure(figsize=(1.5 * t + 1.5, 4.0), layout='constrained')
    grid = figure.subplots(2, t, squeeze=False)
    for i in range(t):
        grid[0, i].imshow(frames[i * (T // t)])
        grid[0, i].set_title(f'frame {i * (T // t)}', fontsize=9)
        shown = grid[1, i].imshow(
            likeness[i], interpolation='nearest', cmap='RdBu_r', vmin=-1, vmax=1
        )
        for axes in grid[:, i]:
            axes.set_xticks([])
            axes.set_yticks([])
    patch = frames.shape[1] / h
    grid[0, at[0]].plot((at[2] + 0.5) * patch - 0.5, (at[1] + 0.5) * patch - 0.5, 'rx')
    grid[1, at[0]].plot(at[2], at[1], 'kx')
    figure.colorbar(shown, ax=list(grid[1]), label='cosine')
    figure.supxlabel(
        f'cosine of every token with the one at the cross (time {at[0]}, row {at[1]}, column '
        f'{at[2]}),\nthe mean over the clip taken out',
        fontsize=8,
    )
    figure.suptitle(page.plain(title) or 'Likeness of tokens over time', fontsize=11)
    page.save_figure(figure, path)


def plot_sheet(
    pictures: Sequence[tuple[np.ndarray | None, str]], path: str | Path, title: str = ''
) -> None:
    """Draws a contact sheet, as PNG: pictures uint8 `[H, W, 3]` with their captions, six a row, the
    first one framed. None: a picture that cannot be had, which is said in its place."""
    columns = min(6, len(pictures))
    lines = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.2 * lines + 0.4), layout='constrained')
    for place, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        axes.set_xticks([])
        axes.set_yticks([])
        if place >= len(pictures):
            axes.set_axis_off()
            continue
        picture, caption = pictures[place]
        axes.set_title(page.plain(caption), fontsize=7)
        if picture is None:
            axes.text(0.5, 0.5, 'cannot be read', ha='center', va='center', fontsize=8)
        else:
            axes.imshow(_thin(picture))
        if not place:
            for spine in axes.spines.values():
                spine.set(color='tab:red', linewidth=2.5)
    figure.suptitle(page.plain(title), fontsize=9)
    page.save_figure(figure, path)


def _thin(picture: np.ndarray, most: int = 320) -> np.ndarray:
    """Every n-th pixel, so that at most so many are left a side: a tile is smaller than that."""
    step = max(1, max(picture.shape[:2]) // most)
    return picture[::step, ::step]


def token_similarity(tokens: np.ndarray, at: tuple[int, int, int]) -> np.ndarray:
    """Cosine of each token `[t, h, w, D]` with the one at a place, less the mean of all:
    `[t, h, w]`; 0 where a token is the mean.

    Raises:
      ValueError: a feature is not finite.
    """
    if not np.isfinite(tokens).all():
        raise ValueError('features hold values that are not finite: nothing to show')
    x = tokens.astype(np.float64) - tokens.mean(axis=(0, 1, 2), dtype=np.float64)
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    x = np.divide(x, size, out=np.zeros_like(x), where=size > 1e-6 * size.max())
    return x @ x[at]


def feature_colours(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features `[..., D]` as RGB in 0..1 `[..., 3]`, and the share of the variance `[3]` that each
    colour holds.

    Components are scaled to two standard deviations each way; their signs make the largest weight
    positive, so that the picture does not depend on the linear algebra library. Constant features
    come out grey.

    Raises:
      ValueError: a feature is not finite.
    """
    mean, axes, shares = principal(tokens)
    parts = (tokens - mean) @ axes.T
    return painted(parts / deviations(parts)), shares


def principal(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [D], the three leading principal axes [3, D] and their shares of the variance [3] of
    features `[..., D]`; axes and shares of constant ones are 0.

    Raises:
      ValueError: a feature is not finite.
    """
    flat = np.asarray(tokens, np.float64).reshape(-1, tokens.shape[-1])
    if not np.isfinite(flat).all():
        raise ValueError('features hold values that are not finite: nothing to show')
    mean = flat.mean(0)
    flat = flat - mean
    width = flat.shape[1]
    gram = flat.T @ flat  # far cheaper than the SVD of many tokens
    total = np.trace(gram)
    if total < 1e-12 * flat.size:
        return mean, np.zeros((3, width)), np.zeros(3)
    size, axes = linalg.eigh(gram, subset_by_index=(width - 3, width - 1))
    axes = axes.T[::-1]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    return mean, axes, size[::-1].clip(0) / total


def deviations(parts: np.ndarray) -> np.ndarray:
    """[3] of components `[..., 3]` around 0, the largest first; infinite where nothing varies."""
    spread = np.sqrt(np.square(parts).mean(tuple(range(parts.ndim - 1))))
    return np.where(spread > 1e-6 * spread[0], spread, np.inf)


def painted(parts: np.ndarray) -> np.ndarray:
    """Components `[..., 3]` in deviations as RGB in 0..1: two deviations each way."""
    return np.clip(0.5 + parts / 4, 0, 1)
