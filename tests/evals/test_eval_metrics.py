"""Figures of benchmarks against the original's and against counting by hand."""

import jax
import numpy as np

from jepa_jax.data.views import eval_view, side_views
from jepa_jax.evals import metrics
from jepa_jax.models.tokens import MEAN, STD


def wave(shape, phase: float) -> np.ndarray:
    """Inputs of the golden rows."""
    i = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(0.37 * i + 0.011 * (i % 1009) + phase).reshape(shape)


def test_recall(golden_benchmark):
    g = golden_benchmark
    logits = (3 * wave((4, 9, 23), 0.3)).astype(np.float32)
    labels = g['recall_labels'].astype(int)
    for i in range(4):
        hits = metrics.in_top(logits[: i + 1].reshape(-1, 23), labels[: i + 1].ravel())
        recall = 100 * metrics.class_recall(hits, labels[: i + 1].ravel())
        assert abs(recall - g['recall_running'][i]) < 1e-4
        assert abs(100 * hits.mean() - g['recall_accuracy_running'][i]) < 1e-4
    tp, every = np.bincount(labels.ravel(), hits, 23), np.bincount(labels.ravel(), minlength=23)
    np.testing.assert_array_equal(tp, g['recall_tp'])
    np.testing.assert_array_equal(every - tp, g['recall_fn'])
    others = np.setdiff1d(np.arange(23), g['recall_valid_set'])
    scores = 1 / (1 + np.exp(-logits.reshape(-1, 23)))
    scores[:, others] = 0
    hits = metrics.in_top(scores, labels.ravel())
    values = [100 * metrics.class_recall(hits, labels.ravel()), 100 * hits.mean()]
    np.testing.assert_allclose(values, g['recall_valid'], atol=1e-4)


def test_top_by_hand():
    """Of equal scores the lower number comes first; a class without an output is never there."""
    logits = np.array([[3.0, 1.0, 1.0, 0.0]] * 4)
    np.testing.assert_array_equal(
        metrics.in_top(logits, np.array([0, 1, 2, -1]), 2), [True, True, False, False]
    )
    # two of class 0, one hit; one of class 3, hit; one never trained: (1/2 + 1 + 0) / 3
    hits, labels = np.array([1, 0, 1, 0]), np.array([0, 0, 3, -1])
    assert abs(metrics.class_recall(hits, labels) - 0.5) < 1e-12


def test_focal_loss(golden_benchmark):
    g = golden_benchmark
    x, y = (4 * wave((6, 11), 0.7)).astype(np.float32), g['focal_labels'].astype(int)
    rows = (
        metrics.focal_loss(x, y).sum(),
        metrics.focal_loss(x, y).mean(),
        metrics.focal_loss(x, y, alpha=-1).sum(),
        metrics.focal_loss(x, y, gamma=0).sum(),
        metrics.focal_loss(x, y, alpha=0.5, gamma=1).sum(),
    )
    np.testing.assert_allclose(np.array(rows), g['focal'], rtol=1e-6, atol=1e-4)
    grad = jax.grad(lambda a: metrics.focal_loss(a, y).sum())(x)
    np.testing.assert_allclose(grad, g['focal_grad'], atol=1e-4)


def test_accuracy_of_views_and_batches(golden_benchmark):
    """The original's loop: softmax averaged over views, mean of batches, best of three heads; and
    the share of hits, which is another number."""
    g, labels, reported, exact = golden_benchmark, golden_benchmark['probe_labels'], [], []
    for head in range(3):
        weights, hits = 2.5 * wave((5, 7), 1.1 + head), []
        for b, n in enumerate((4, 4, 3)):
            features = wave((2, 3, n, 5), 2 + b).astype(np.float32).mean(0)  # views, n, 5
            logits = np.moveaxis(features @ weights, 0, 1)
            own = labels[sum((4, 4, 3)[:b]) :][:n]
            hits.append(metrics.over_views(logits).argmax(-1) == own)
        hits = np.concatenate(hits)
        reported.append(100 * metrics.batch_accuracy(hits, 4, drop_last=False))
        exact.append(100 * hits.mean())
    np.testing.assert_allclose([max(reported), *reported], g['probe_reported'], atol=1e-5)
    np.testing.assert_allclose(exact, g['probe_exact'], atol=1e-5)
    assert metrics.batch_accuracy(np.array([1, 0, 1, 1, 0]), 2) == 0.75  # the fifth is dropped


def test_views(golden_benchmark):
    for name in ('wide', 'tall'):
        frames = golden_benchmark[f'views_in_{name}']
        for views, golden in (
            (side_views(frames, 16, 3), golden_benchmark[f'views_{name}']),
            (eval_view(frames, 16)[None], golden_benchmark[f'view1_{name}'][None]),
        ):
            pixels = (views / 255 - np.array(MEAN)) / np.array(STD)
            np.testing.assert_allclose(pixels.transpose(0, 4, 1, 2, 3), golden, atol=1e-5)
