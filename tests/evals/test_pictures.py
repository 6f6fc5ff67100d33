"""Pictures are written, show what they are given, and refuse what cannot be shown."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from sklearn.decomposition import PCA

from jepa_jax.evals import pictures


def records(steps: int) -> list[dict]:
    rows = []
    for step in range(1, steps + 1):
        row = {'step': step, 'loss': 1 / step, 'lr': 1e-3, 'grad_norm': 0.1, 'clips_per_s': 80.0}
        if step % 5 == 0:
            row |= {
                'health/rank': 10.0 + step,
                'health/target/std': 0.9,
                'health/verdict': 'healthy',
            }
        rows.append(row)
    return rows


def ink(path) -> float:
    """Share of the picture that is not white."""
    return float((imread(path)[..., :3].min(-1) < 0.9).mean())


def test_run_plot(tmp_path):
    pictures.plot_run(records(40), tmp_path / 'a.png', title='tiny')
    pictures.plot_run([{'step': 1, 'loss': 0.5}, {'event': 'resumed'}], tmp_path / 'b.png')
    assert ink(tmp_path / 'a.png') > 0.01 and ink(tmp_path / 'b.png') > 0.003
    assert imread(tmp_path / 'a.png').shape[1] > imread(tmp_path / 'b.png').shape[1]  # more panels
    with pytest.raises(ValueError, match='no record has a step and a loss'):
        pictures.plot_run([{'step': 1}], tmp_path / 'c.png')
    assert not (tmp_path / 'c.png').exists()


def test_healthy_ranges_are_shaded_and_compiling_is_left_out(tmp_path, monkeypatch):
    rows, lines, spans = records(8), {}, []
    rows[0] |= {'compile_s': 60.0, 'clips_per_s': 0.01}
    for row in rows:
        row |= {'health/loss_share': 1.2, 'evals/linear/side/knn': 0.5, 'evals/linear/seconds': 3.0}
    plot, span = Axes.plot, Axes.axhspan

    def noted(axes, steps, values, label, **style):
        lines[label] = list(steps), list(values)
        return plot(axes, steps, values, label=label, **style)

    def shaded(axes, low, high, **style):
        spans.append((low, high))
        return span(axes, low, high, **style)

    titles, labels = [], []
    suptitle, label_axis = Figure.suptitle, Axes.set_ylabel

    def titled(figure, text, y, **style):
        titles.append((text, y))
        return suptitle(figure, text, y=y, **style)

    def labelled(axes, words, **style):
        if axes.get_title() == 'Loss':
            labels.append(words)
        return label_axis(axes, words, **style)

    monkeypatch.setattr(Figure, 'suptitle', titled)
    monkeypatch.setattr(Axes, 'set_ylabel', labelled)
    monkeypatch.setattr(Axes, 'plot', noted)
    monkeypatch.setattr(Axes, 'axhspan', shaded)
    bands = {'health/loss_share': (0.0, 0.85), 'loss': (0.0, np.inf), 'health/none': (0.0, 1.0)}
    pictures.plot_run(rows, tmp_path / 'a.png', bands=bands)
    assert lines['clips per second'] == ([2, 3, 4, 5, 6, 7, 8], [80.0] * 7)
    assert len(lines['loss'][0]) == 8 and lines['knn'][1] == [0.5] * 8
    assert len(spans) == 2 and all(np.isfinite(s).all() for s in spans)  # of what is drawn
    (share,) = [s for s in spans if s[1] == 0.85]  # although all of the curve lies above
    assert share[0] < 0.85
    pictures.plot_run(rows, tmp_path / 'c.png', bands=bands, title='mine', loss='half of it')
    (title,) = titles  # above all panels, whatever is shaded
    assert title[0] == 'mine' and title[1] > 0.95
    assert labels[-1] == 'half of it' and len(labels) == 2  # else 'loss'
    for row in rows:
        row['compile_s'] = 1.0
    pictures.plot_run(rows, tmp_path / 'b.png')
    assert len(lines['clips per second'][0]) == 8  # else there were none


def test_colours_are_the_principal_components():
    tokens = np.random.default_rng(0).standard_normal((4, 5, 6, 8)) * np.arange(8, 0, -1)
    colours, shares = pictures.feature_colours(tokens)
    pca = PCA(3).fit(tokens.reshape(-1, 8))
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, rtol=1e-6)
    parts = pca.transform(tokens.reshape(-1, 8))
    inside = np.abs(parts) < 1.9 * parts.std(0)
    for i in range(3):
        seen = colours.reshape(-1, 3)[inside[:, i], i]
        assert abs(np.corrcoef(seen, parts[inside[:, i], i])[0, 1]) > 0.9999
    assert colours.min() >= 0 and colours.max() <= 1


def test_one_projection_for_all_times():
    """The same feature has the same colour wherever and whenever it appears."""
    tokens = np.random.default_rng(1).standard_normal((3, 4, 4, 8))
    tokens[2, 3, 3] = tokens[0, 0, 0]
    colours, _ = pictures.feature_colours(tokens)
    np.testing.assert_allclose(colours[2, 3, 3], colours[0, 0, 0], atol=1e-12)


def colourful(image: np.ndarray) -> float:
    return float((np.ptp(image[..., :3], axis=-1) > 0.2).mean())


def test_feature_picture(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    pictures.plot_features(frames, rng.standard_normal((4, 4, 4, 16)), tmp_path / 'a.png')
    pictures.plot_features(frames, np.ones((4, 4, 4, 16)), tmp_path / 'b.png')
    a, b = imread(tmp_path / 'a.png'), imread(tmp_path / 'b.png')
    assert ink(tmp_path / 'a.png') > 0.3 and colourful(a) > colourful(b) + 0.1
    both = {name: rng.standard_normal((4, 4, 4, 16)) for name in ('2.0', '2.1')}
    pictures.plot_features(frames, both, tmp_path / 'd.png')
    assert imread(tmp_path / 'd.png').shape[0] > a.shape[0] + 100  # a row more
    with pytest.raises(ValueError, match='8 frames cannot be shown beside 3 token times'):
        pictures.plot_features(frames, np.ones((3, 4, 4, 16)), tmp_path / 'c.png')
    with pytest.raises(ValueError, match='not finite'):
        pictures.plot_features(frames, np.full((4, 4, 4, 16), np.nan), tmp_path / 'c.png')
    assert not (tmp_path / 'c.png').exists()
