"""Readers of one vector a clip against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from jepa_jax.evals import linear


@pytest.fixture(scope='module')
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    x = (rng.normal(size=(3, 12))[y] + 1.5 * rng.normal(size=(90, 12))).astype(np.float32)
    return x[:60], np.eye(3, dtype=np.float32)[y[:60]], x[60:], y[60:]


def accuracy(targets):
    return lambda scores, rows: (scores.argmax(1) == targets[rows].argmax(1)).mean()


@pytest.mark.parametrize('k', linear.NEIGHBOURS)
def test_neighbours_are_scikit_learns(data, k, monkeypatch):
    train, targets, test, _ = data
    monkeypatch.setattr(linear, 'NEIGHBOURS', (k,))
    ours = linear.nearest(train, targets, test, [], accuracy(targets))
    model = KNeighborsClassifier(
        k, metric='cosine', weights=lambda d: np.exp(-d / linear.TEMPERATURE)
    ).fit(train, targets.argmax(1))
    np.testing.assert_allclose(ours.scores, model.predict_proba(test), atol=1e-5)
    assert ours.setting == f'k {k} of {k}'


@pytest.mark.parametrize('rows', [60, 8])  # more clips than features, and fewer
def test_ridge_is_scikit_learns(data, rows, monkeypatch):
    train, targets, test, _ = data
    train, targets = train[:rows], targets[:rows]
    monkeypatch.setattr(linear, 'RIDGE', (0.3,))
    ours = linear.ridge(train, targets, test, [], accuracy(targets)).scores
    middle = train.astype(np.float64) - train.mean(0)
    wide = rows < train.shape[1]
    power = np.square(middle).sum() / rows / (rows if wide else train.shape[1])
    theirs = Ridge(alpha=0.3 * power * rows).fit(train.astype(np.float64), targets).predict(test)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize('rows', [60, 9])
def test_logistic_regression_is_scikit_learns(data, rows, monkeypatch):
    train, targets, test, _ = data
    train, targets = train[:rows], targets[:rows]
    monkeypatch.setattr(linear, 'STRENGTHS', (0.1,))
    ours = linear.logistic(train, targets, test, [], accuracy(targets)).scores
    model = LogisticRegression(C=0.1, tol=1e-8, max_iter=2000)
    theirs = model.fit(train.astype(np.float64), targets.argmax(1)).predict_proba(test)
    np.testing.assert_allclose(ours[:, model.classes_], theirs, atol=2e-3)


def test_several_labels_are_several_regressions(data, monkeypatch):
    train, targets, test, _ = data
    both = np.concatenate([targets, targets.max(1, keepdims=True) * (train[:, :1] > 0)], 1)
    monkeypatch.setattr(linear, 'STRENGTHS', (0.1,))
    ours = linear.logistic(train, both, test, [], lambda scores, rows: 0.0).scores
    for column in range(4):
        model = LogisticRegression(C=0.1, tol=1e-8, max_iter=2000).fit(train, both[:, column])
        np.testing.assert_allclose(ours[:, column], model.predict_proba(test)[:, 1], atol=2e-3)


@pytest.mark.parametrize('reader', [linear.nearest, linear.ridge, linear.logistic])
def test_the_setting_is_chosen_on_training_clips(data, reader):
    """By brute force: each setting alone, learnt without a part and judged on it."""
    train, targets, test, _ = data
    sources = np.arange(60) // 2
    parts = linear.folds(sources, targets.argmax(1), 0)
    assert len(parts) == linear.FOLDS and np.sum(parts, 0).tolist() == [1] * 60
    for part in parts:
        assert not set(sources[part]) & set(sources[~part])
    name = {'nearest': 'NEIGHBOURS', 'ridge': 'RIDGE', 'logistic': 'STRENGTHS'}[reader.__name__]
    settings, values = getattr(linear, name), []
    with pytest.MonkeyPatch.context() as patch:
        for setting in settings:
            patch.setattr(linear, name, (setting,))
            values.append(
                np.mean([
                    accuracy(targets)(
                        reader(train[~p], targets[~p], train[p], [], None).scores,
                        np.flatnonzero(p),
                    )
                    for p in parts
                ])
            )  # fmt: skip
    best = settings[int(np.argmax(np.round(values, 9)))]
    answer = reader(train, targets, test, parts, accuracy(targets))
    assert answer.setting.split()[1] == f'{best:g}', values


def test_one_class_in_a_part_is_no_error(data):
    train, _, test, _ = data
    targets = np.eye(3, dtype=np.float32)[np.repeat([0, 1], [59, 1])]
    parts = [np.arange(60) == 59]
    scores = linear.logistic(train, targets, test, parts, accuracy(targets)).scores
    assert scores.shape == (30, 3) and (scores[:, 2] == 0).all()


def test_large_sets_choose_on_one_part():
    sources = np.arange(linear.ONE_FOLD)
    (part,) = linear.folds(sources, None, 0)
    assert abs(part.mean() - 1 / 3) < 0.01
    assert linear.folds(np.zeros(5), None, 0) == []


def test_standardised_leaves_constants_out():
    train = np.stack([np.arange(4.0), np.full(4, 7.0)], 1)
    ours, other = linear.standardised(train, np.array([[1.5, 9.0]]))
    np.testing.assert_allclose(ours.std(0), [1, 0])
    np.testing.assert_allclose(other, [[0, 0]], atol=1e-7)


def test_parts_of_clips_that_are_few():
    """Two clips a class cannot be spread over three parts: sources are still kept apart."""
    sources, classes = np.arange(6), np.repeat(np.arange(3), 2)
    parts = linear.apart(sources, classes, 3, 0)
    np.testing.assert_array_equal(np.sum(parts, 0), 1)
    assert all(part.any() for part in parts)
