"""Error over the horizon: where predictions stop being worth more than a copy."""

import numpy as np
import pytest

from jepa_jax.evals import horizon


def episodes(ratios, count=40, spread=0.1):
    """Errors [E, H] whose means are in these ratios, and copies."""
    rng = np.random.default_rng(0)
    copied = rng.uniform(0.5, 1.5, (count, len(ratios)))
    noise = 1 + spread * rng.standard_normal((count, len(ratios)))
    return np.array(ratios) * copied * noise, copied


def test_a_row_says_where_predictions_stop_being_worth_more_than_a_copy():
    own, copied = episodes([0.5, 0.8, 1.2, 0.6])
    row = horizon.tabulate(own, copied, 1, 0.25)
    np.testing.assert_allclose(row['ratio'], own.mean(0) / copied.mean(0), rtol=1e-4)
    np.testing.assert_allclose(row['error'], own.mean(0), rtol=1e-4)
    # the delta method's interval of a ratio of means
    rest = own - own.mean(0) / copied.mean(0) * copied
    half = 1.96 * rest.std(0, ddof=1) / np.sqrt(len(own)) / copied.mean(0)
    np.testing.assert_allclose(np.subtract(row['high'], row['low']) / 2, half, rtol=0.25)
    assert row['worth'] == 2  # what comes after a step that is worth nothing does not count
    words = horizon.words_of('the recordings', row)
    assert 'a copy of the last frame up to 2 steps ahead (0.5 s) and no further' in words
    assert words.startswith('in the recordings') and '1.2' in words.split('at 2,')[1]


@pytest.mark.parametrize(
    'ratios, worth, words',
    [([0.5, 0.7], 2, 'at every step up to 2 (0.5 s)'), ([1.1, 0.5], 0, 'at no step ahead')],
)
def test_words_of_all_and_of_none(ratios, worth, words):
    row = horizon.tabulate(*episodes(ratios), 1, 0.25)
    assert row['worth'] == worth and words in horizon.words_of('x', row)


def test_a_ratio_that_may_be_chance_is_worth_nothing():
    row = horizon.tabulate(*episodes([0.9], count=6, spread=0.5), 1, 0.25)
    assert row['ratio'][0] < 1 < row['high'][0] and row['worth'] == 0
