"""Retrieval against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from jepa_jax.config.labelled import RetrievalConfig
from jepa_jax.errors import ConfigError
from jepa_jax.evals.retrieval import judge, run


def test_judged_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    x, classes, sources = rng.normal(size=(40, 6)), rng.integers(0, 4, 40), np.arange(40) // 2
    ours = judge(x, classes, sources)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for i in range(40):
        others = sources != sources[i]
        near = (unit @ unit[i])[others]
        right = classes[others] == classes[i]
        assert ours[i, 3] == pytest.approx(average_precision_score(right, near))
        for column, k in enumerate((1, 5, 10)):
            assert ours[i, column] == right[np.argsort(-near)[:k]].any()


def test_the_own_source_is_no_answer():
    """By hand: the twin of the first clip is of its source, the next one of another class."""
    x = np.array([[1.0, 0], [1, 0.01], [1, 0.1], [1, 0.2], [0, 1]])
    scores = judge(x, np.array([0, 0, 1, 0, 2]), np.array([0, 0, 1, 2, 3]))
    np.testing.assert_allclose(scores[0], [0, 1, 1, 0.5])
    assert np.isnan(scores[4]).all()


def test_a_second_list_is_refused(tmp_path):
    """There is no split, so that clips named as test clips would be neither asked nor answers."""
    config = RetrievalConfig()
    config.data.train, config.data.test = 'a.csv', 'b.csv'
    with pytest.raises(ConfigError, match="data.test = 'b.csv': retrieval has one list"):
        run(None, config, tmp_path)
