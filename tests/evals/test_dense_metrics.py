"""Figures of dense predictions against the original programs' and against counting by hand."""

import numpy as np
import pytest

from jepa_jax.evals import dense_metrics as metrics
from jepa_jax.evals.dense_metrics import IGNORE


def wave(shape, phase: float) -> np.ndarray:
    """Inputs of the golden rows."""
    i = np.arange(np.prod(shape), dtype=np.float64)
    return np.sin(0.37 * i + 0.011 * (i % 1009) + phase).reshape(shape)


def ints(shape, below: int, start: int) -> np.ndarray:
    i = np.arange(np.prod(shape))
    return ((7 * i * i + 3 * i + start) % below).reshape(shape)


def test_objects(golden_tasks):
    g = golden_tasks
    values = metrics.objects(g['vos_pred_index'], g['vos_gt_index'], 3)
    np.testing.assert_array_equal(values[0], g['vos_J'])
    np.testing.assert_array_equal(values[1], g['vos_F'])
    stats = [[metrics.over_time(row) for row in kind] for kind in values]
    np.testing.assert_allclose(stats, g['vos_stats'], atol=1e-12)


def test_outline_radius_and_void(golden_tasks):
    g = golden_tasks
    said, true = g['vos_pred_index'] == 1, g['vos_gt_index'] == 1
    np.testing.assert_array_equal(metrics.outline(true[0]), g['vos_boundary_example'] > 0)
    wide = [metrics.contour(s, t, radius=2) for s, t in zip(said, true)]
    np.testing.assert_array_equal(wide, g['vos_F_th2'])
    void = np.zeros(said.shape[1:], bool)
    void[:30, :20] = True
    J, F = (
        [figure(s, t, void) for s, t in zip(said, true)]
        for figure in (metrics.region, metrics.contour)
    )
    np.testing.assert_array_equal(J, g['vos_J_void'])
    np.testing.assert_array_equal(F, g['vos_F_void'])
    marked = np.where(void, IGNORE, g['vos_gt_index'])
    np.testing.assert_array_equal(metrics.objects(g['vos_pred_index'], marked, 1)[0, 0], J)


def test_over_time(golden_tasks):
    values = 0.5 * wave(300, 0.2) + 0.5
    np.testing.assert_allclose(metrics.over_time(values[:40]), golden_tasks['vos_stats_40'])
    # the original counts frames in 8 bits, and has no decay for so many
    stats = metrics.over_time(values)
    np.testing.assert_allclose(stats[:2], golden_tasks['vos_stats_300'][:2])
    assert stats[2] == pytest.approx(0.05184, abs=1e-5)


def test_empty_masks():
    none, some = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    some[2:5, 2:5] = True
    for figure in (metrics.region, metrics.contour):
        assert [figure(none, none), figure(none, some), figure(some, none)] == [1, 0, 0]
        assert figure(some, some) == 1
    shifted = np.roll(some, 1, axis=1)
    assert metrics.region(shifted, some) == 6 / 12


def test_classes(golden_tasks):
    labels = ints((3, 20, 24), 7, 4)  # 0 has no class
    others = ints((3, 20, 24), 6, 1)
    said = np.where(wave((3, 20, 24), 0.3) > -0.2, (labels - 1) % 6, others)
    true = np.where(labels == 0, IGNORE, labels - 1)
    counts = np.stack([metrics.overlap(s, t, 6) for s, t in zip(said, true)])
    np.testing.assert_allclose(
        metrics.of_overlap(counts), golden_tasks['seg_metrics'], atol=1e-6
    )  # fmt: skip


def test_classes_are_summed_over_pictures_and_absent_ones_do_not_count():
    said, true = np.array([[[0, 0, 1]], [[1, 1, 1]]]), np.array([[[0, 1, 1]], [[1, 1, IGNORE]]])
    counts = np.stack([metrics.overlap(s, t, 3) for s, t in zip(said, true)])
    # class 0: 1 of 2; class 1: 3 of 4; class 2 is nowhere
    mean, accuracy, pixels = metrics.of_overlap(counts)
    assert (mean, accuracy, pixels) == ((1 / 2 + 3 / 4) / 2, (1 + 3 / 4) / 2, 4 / 5)
    np.testing.assert_array_equal(metrics.class_iou(counts), [1 / 2, 3 / 4, np.nan])


def test_distances(golden_tasks):
    shape = (15, 17)
    true = np.where(wave(shape, 1) > 0.8, 0, 3 + 2.5 * wave(shape, 0.2))
    said = np.maximum(3 + 2.5 * wave(shape, 0.25) + 0.2 * wave(shape, 2), 0.05)
    values = metrics.distances(said, true, (true > 0.001) & (true < 10))
    np.testing.assert_allclose(values, golden_tasks['depth_metrics'], atol=1e-6)
    assert np.isnan(metrics.distances(said, true, np.zeros(shape, bool))).all()
