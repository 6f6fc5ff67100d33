"""What a run says of itself while it runs."""

import numpy as np
import pytest

from jepa_jax.watch import Watch


def rows(count: int, seed: int = 0) -> list[dict[str, float]]:
    """Of a run whose loss falls by half and whose gradients are within a factor of 1.5 or so."""
    rng = np.random.default_rng(seed)
    falls = np.geomspace(1, 0.5, count)
    return [
        {
            'step': i,
            'loss': float(falls[i] * rng.lognormal(0, 0.05)),
            'grad_norm/encoder': float(rng.lognormal(-3, 0.3)),
            'lr': 1e-3 * i,
        }
        for i in range(count)
    ]


def healthy(records):
    return 'healthy', ''


@pytest.mark.parametrize('seed', range(5))
def test_a_run_like_others_is_left_alone(seed):
    watch = Watch(healthy)
    assert not [words for row in rows(300, seed) for words in watch.see(row)]


@pytest.mark.parametrize(
    'name, factor, word', [('loss', 5.0, 'above'), ('grad_norm/encoder', 1e-3, 'below')]
)
def test_what_leaves_its_range_is_named_once_each_time(name, factor, word):
    watch, said = Watch(healthy), {}
    for i, row in enumerate(rows(100)):
        out = 40 <= i < 45 or 80 <= i < 85
        if words := watch.see(row | {name: row[name] * factor} if out else row):
            said[i] = words
    assert list(said) == [40, 80]
    (words,) = said[40]
    assert words.startswith(f'{name} is ') and f'{word} the middle of the last 40 rows' in words
    assert 'a lower optim.lr' in words


def test_a_loss_that_falls_is_said_where_it_may_be_a_collapse_alone():
    seen = rows(30)
    fall = seen[-1] | {'loss': seen[-1]['loss'] / 20}
    assert not Watch(healthy, seen).see(fall)  # of words or pixels: it has learnt
    ranked = [*seen[:-1], seen[-1] | {'health/target_rank': 20.0}]
    (words,) = Watch(healthy, ranked).see(fall)
    assert 'collapsed' in words and 'optim.lr' not in words


def test_rows_of_an_earlier_start_count():
    before = rows(30)
    jump = before[-1] | {'loss': 9.0}
    assert not Watch(healthy).see(jump)  # nothing is known yet
    assert Watch(healthy, before).see(jump)


def test_a_verdict_that_turns_bad_and_a_predictor_that_does_harm():
    def verdict(records):
        bad = records[-1]['health/target_rank'] < 2
        return ('collapsed' if bad else 'healthy'), f'rank {records[-1]["health/target_rank"]:g}'

    watch = Watch(verdict)
    ranks = (20, 1.5, 1.2, 9, 1.1)
    said = [watch.see({'loss': 0.5, 'health/target_rank': rank}) for rank in ranks]
    assert said == [[], ['collapsed so far: rank 1.5'], [], [], ['collapsed so far: rank 1.1']]
    (words,) = watch.see({'loss': 0.5, 'health/target_rank': 9, 'health/loss_share': 4.0})
    assert words.startswith("the predictor's error is 4.00 times that of a constant")
