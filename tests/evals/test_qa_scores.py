"""Figures of answers: the benchmarks' paired and grouped accuracies by hand, chance, intervals."""

import numpy as np
import pytest

from jepa_jax.evals import qa_scores
from jepa_jax.evals.intervals import mean_of_shares
from jepa_jax.language.chat import Media
from jepa_jax.language.items import HIDDEN, Answer, Item


def item(number, gold, group='', video='', rule='mvp', choices=('A', 'B'), **more):
    media = Media('video', video or f'{number}.mp4')
    return Item(
        str(number), media, 'q', choices, choices.index(gold), group=group, rule=rule, **more
    )


def figures(items, said, together, likelihoods=None):
    answers = {
        i.id: Answer(text, likelihoods[n] if likelihoods else ())
        for n, (i, text) in enumerate(zip(items, said))
    }
    result = qa_scores.figures(qa_scores.score(items, answers), together, 50)
    return {name: figure.value for name, figure in result.items()}


def test_pairs_as_mvp_counts_them():
    """Ratings (1,1), (1,0), (0,0): single 50.0, pair 33.33."""
    items = [item(n, 'AB'[n % 2], f'p{n // 2}', subset='t') for n in range(6)]
    result = figures(items, ['A', 'B', 'A', 'A', 'B', 'B? no: A'], 'pairs')
    assert result['official'] == 0.5 and result['official, pairs'] == pytest.approx(1 / 3)
    assert result['official, pairs answered alike'] == pytest.approx(1 / 3)
    assert result['official, no rule matched'] == 0
    # a constant answer has half of the items and no pair
    result = figures(items, ['A'] * 6, 'pairs')
    assert result['official'] == 0.5 and result['official, pairs'] == 0
    assert result['official, pairs answered alike'] == 1
    result = figures(items, ['?'] * 6, 'pairs')  # no choice at all
    assert result['official, pairs answered alike'] == 0
    assert result['official, no rule matched'] == 1


def test_videos_as_temporalbench_counts_them():
    """BA 85.71, MBA 75.0."""
    rows = [
        ('v1', 'A', 'A. yes'), ('v1', 'B', 'b'), ('v2', 'A', '(A)'), ('v2', 'B', 'B'),
        ('v3', 'A', 'Answer: A'), ('v3', 'A', 'a cat'), ('v4', 'B', 'B'),
    ]  # fmt: skip
    items = [item(n, g, v, v, 'temporalbench') for n, (v, g, _) in enumerate(rows)]
    result = figures(items, [text for *_, text in rows], 'videos')
    assert result['official'] == pytest.approx(6 / 7) and result['official, videos'] == 0.75
    assert result['official, no rule matched'] == pytest.approx(1 / 7)


def test_questions_as_causalvqa_counts_them():
    """Scores (1,1), (1,0), (0,0), (1,1): single 62.5, paired 50.0; subsets count alike."""
    letters = ('A', 'B', 'C')
    items = [
        item(n, 'A', f'q{n // 2}', 'v', 'causalvqa', letters, subset='ab'[n > 5]) for n in range(8)
    ]
    said = ['A', 'A', 'A', 'B', 'B', 'C', 'A', 'A']
    flat = [item(n, 'A', f'q{n // 2}', 'v', 'causalvqa', letters) for n in range(8)]
    result = figures(flat, said, 'pairs')
    assert result['official'] == 0.625 and result['official, pairs'] == 0.5
    result = figures(items, said, 'pairs')  # a: 3 of 6 and 1 of 3, b: 2 of 2 and 1 of 1
    assert result['official'] == 0.75 and result['official, pairs'] == pytest.approx(2 / 3)


def test_both_columns_and_what_is_left_out():
    items = [
        item(0, 'A', rule='mvbench', kinds=('x',)), item(1, 'B', rule='mvbench', kinds=('y',)),
        item(2, 'B', rule='mvbench', kinds=('y',)), item(3, 'A', rule='mvbench'),
    ]  # fmt: skip
    hidden = Item('h', Media('video', 'h'), 'q', ('A', 'B'), HIDDEN, rule='mvbench')
    scores = [(-1.0, -2.0), (-2.0, -1.0), (-1.0, -2.0), (-1.0, -1.0), (-1.0, -2.0)]
    result = figures([*items, hidden], ['A', 'B', '', 'dunno', 'A'], '', scores)
    assert result['official'] == pytest.approx(2 / 3)  # the empty one is out of the denominator
    assert result['notebook'] == 0.75 and result['choice'] == 0.5
    assert result['official, x'] == result['official, y'] == 1 and result['choice, y'] == 0.5
    assert result['choice, no rule matched'] == 0.25
    without = figures(items, ['A'] * 4, '', [(-1.0, -2.0)] * 3 + [()])
    assert 'choice' not in without  # not in silence a column of some of the items
    assert not qa_scores.figures(qa_scores.score([hidden], {'h': Answer('A')}), '', 50)


def test_chance_is_that_of_the_choices():
    pairs = [item(n, 'A', f'p{n // 2}') for n in range(4)]
    result = {k: v.value for k, v in qa_scores.chance(pairs, 'pairs').items()}
    assert result == {'chance': 0.5, 'chance, pairs': 0.25}
    more = [item(0, 'A', subset='a'), item(1, 'A', choices=('A', 'B', 'C', 'D'), subset='b')]
    assert qa_scores.chance([*more, more[0]], '')['chance'].value == pytest.approx(0.375)


def test_intervals_are_over_videos_and_over_pairs_of_videos():
    """One video with many questions is one observation: against the normal approximation."""
    rng = np.random.default_rng(0)
    wins = (rng.random((400, 1)) < 0.7) * 10.0
    value, low, high = mean_of_shares(wins, np.full((400, 1), 10.0), 2000)
    spread = 1.96 * np.sqrt(value * (1 - value) / 400)
    assert abs((high - low) / (2 * spread) - 1) < 0.1 and low < value < high
    two = np.array([[3.0, 0], [0, 1], [1, 1]]), np.array([[4.0, 0], [0, 1], [1, 2]])
    assert mean_of_shares(*two, 10)[0] == pytest.approx((4 / 5 + 2 / 3) / 2)
    one = [item(n, 'A', video='same.mp4') for n in range(20)]
    ends = qa_scores.figures(
        qa_scores.score(one, {i.id: Answer('AB'[int(i.id) % 2]) for i in one}), '', 50
    )['official']
    assert (ends.value, ends.low, ends.high) == (0.5, 0, 1)  # it says nothing of other videos
    pairs = [item(n, 'A', f'p{n // 2}', f'{n % 4}.mp4') for n in range(20)]
    assert len(set(qa_scores._units(pairs))) == 10
