"""Verdicts of the benchmarks' own code on made-up answers, one and all.

From the reference pages, made by running the authors' and lmms-eval's functions: 1 right, 0 wrong,
- no rule matched.
"""

import pytest

from jepa_jax.language import rules
from jepa_jax.language.chat import Media
from jepa_jax.language.items import HIDDEN, LETTERS, Item

ABC = ('Up.', 'Left.', 'Right.', 'Down.')


def item(gold, options=ABC, choices=None):
    choices = tuple(choices or LETTERS[: len(options)])
    answer = choices.index(gold)
    return Item('x', Media('video', 'v'), 'q', choices, answer, tuple(options))


DUNK = item('A', ('A. dunking a basketball', 'B. dribbling', 'C. throwing', 'D. passing'))
CAPTION = item('A', ('Caption A: A man is jumping.', 'Caption B: A man is running.'))
OPTION = item('2', ('Option 1: It grows.', 'Option 2: It shrinks.'), '12')
YES, NO = item('yes', (), ('yes', 'no')), item('no', (), ('yes', 'no'))
ONE, ZERO = item('1', (), ('1', '0')), item('0', (), ('1', '0'))
FITS, FITS_NOT = (item(c, (), ('possible', 'impossible')) for c in ('possible', 'impossible'))
GOLDEN = [
    (
        rules.perceptiontest,
        item('B', ABC[:3]),
        {
            'B': '1', 'B.': '1', '(B)': '1', 'b': '-', 'two': '-', 'The answer is B': '1',
            'A cup, so B': '0', 'D': '0', '': '-',
        },
    ),
    (
        rules.mvp,
        item('A', ABC[:2]),
        {
            'A': '1', 'a': '1', '(A)': '1', 'Answer: A': '1', 'The answer is A.': '1', 'B': '0',
            'A ball rolls left. Answer: B': '0', 'Answer: B. A ball rolls': '1',
            'I think it is B, not A': '1', 'Answer: A/B': '0', 'left to right': '-', '': '-',
            'banana': '1', 'bulb': '0',
        },
    ),
    (
        rules.tempcompass_choice,
        DUNK,
        {
            'A': '1', 'A.': '1', 'A)': '1', 'A) dunking': '1', 'B': '0', 'B. dribbling': '0',
            'A.B': '1', '(A)': '-', 'a': '-', 'A: dunking': '-', 'Answer: A': '-',
            'dunking a basketball': '-', 'A. dunking a basketball': '1', ' A</s>': '1',
        },
    ),
    (
        rules.tempcompass_yes_no,
        YES,
        {'Yes': '1', 'YES.': '1', 'Yesterday': '1', 'Not sure': '0', 'None': '0', 'It is yes': '-',
         ' yes': '1'},
    ),
    (
        rules.tempcompass_matching,
        CAPTION,
        {
            'Caption A: A man is jumping.': '1', 'Caption A': '1', 'A': '1', 'A.': '1',
            'A man is jumping.': '1', 'A) A man is jumping.': '1', 'B': '0', 'Option A': '-',
            'a': '-', 'A: A man is jumping.': '-', 'The first': '-',
        },
    ),
    (rules.tempcompass_matching, OPTION, {'2': '1', '2.': '1', '1': '0', 'B': '-'}),
    (
        rules.temporalbench,
        item('A', ABC[:2]),
        {'A. yes': '1', '(A)': '-', 'Answer: A': '1', 'a cat': '1', '': '-', ' A': '-'},
    ),
    (rules.temporalbench, item('B', ABC[:2]), {'b': '1', 'B': '1', 'Answer: B': '0'}),
    (
        rules.tomato,
        item('B'),
        {
            'B': '1', 'b': '1', 'Answer is:(B)': '1', 'B. Left.': '-', 'B: Left.': '-',
            'Answer is: B': '-', 'Answer is (B)': '-', '(B)': '-', 'The answer is B': '-', '': '-',
        },
    ),
    (rules.tomato, item('B', ('UP', 'LEFT')), {'B: LEFT': '1', 'b: left': '1', 'A: UP': '0'}),
    (
        rules.tomato_lmms,
        item('B'),
        {'B': '1', 'b': '-', 'B. Left.': '1', 'Answer is: B': '0', 'Answer is (B)': '1',
         'Left.': '-', 'The hand moved to the left.': '-'},
    ),
    (
        rules.tomato_lmms,
        item('C'),
        {'C or B': '0', 'Both (A) and (C)': '1', 'It moves right as Clearly seen': '1'},
    ),
    (
        rules.mvbench,
        item('B', ('Down and to the right.', 'Up and to the left.', 'Up.', 'Left.')),
        {
            'B': '1', '(B)': '1', 'b': '1', 'B. text': '1', 'The answer is B': '1',
            'Option B is best': '1', 'It is a B': '0', 'A or B': '0', 'Up and to the left.': '-',
        },
    ),
    (
        rules.mvbench_notebook,
        item('B'),
        {'(B)': '1', 'B.': '1', 'b': '1', '(': '1', '': '1', 'Best option: (B)': '0', 'A': '0'},
    ),
    (
        rules.tvbench,
        item('B', ('Yes.', 'No.')),
        {'B': '1', 'b': '1', 'No.': '1', 'no': '-', 'A person says B': '0', 'Because': '1',
         'None': '-', '': '-'},
    ),
    (
        rules.causalvqa,
        item('C', ('a', 'b', 'c', 'd', 'e')),
        {'Your Answer Letter: C END': '1', 'C. the cup falls': '1', 'A cup falls, so C': '1',
         'the cup falls': '-'},
    ),
    (rules.causalvqa, item('A', ('a', 'b', 'c')), {'A cup falls, so C': '0'}),
    (rules.causalvqa, item('B', ('a', 'b', 'c')), {'The ball hits a wall': '0'}),
    (rules.intphys2_yes_no, YES, {'Yes, but no': '1', 'NO': '-'}),
    (rules.intphys2_yes_no, NO, {'It is unknown': '1', 'NO': '-'}),
    (rules.intphys2_one_zero, ONE, {'10': '1', '0': '0'}),
    (rules.intphys2_one_zero, ZERO, {'10': '0', '0': '1', 'no': '-'}),
    (rules.intphys2_possible, FITS, {'Possible': '1', 'not possible': '0', "It can't be": '0'}),
    (rules.intphys2_possible, FITS_NOT, {'This is impossible.': '1', 'Yes': '-', 'possible': '0'}),
    (
        rules.words,
        item('counterclockwise', (), ('clockwise', 'counterclockwise')),
        {'counterclockwise': '1', ' Counterclockwise.': '1', 'clockwise': '0', 'left': '-',
         'clockwisely': '-'},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    'rule, asked, verdicts', GOLDEN, ids=[f'{r.__name__}-{i}' for i, (r, _, _) in enumerate(GOLDEN)]
)
def test_golden_verdicts(rule, asked, verdicts):
    said = {text: rule(asked, text) for text in verdicts}
    marks = {t: '01'[v.right] if v.matched else '-' for t, v in said.items()}
    assert marks == verdicts


def test_what_counts_beside_right_and_wrong():
    assert rules.tomato_lmms(item('B'), 'b').picked == 0  # the last resort
    assert not rules.mvbench(item('B'), '').counted
    assert rules.yes_or_no(' yes') == ''  # TempCompass strips before
    hidden = Item('x', Media('video', 'v'), 'q', ('A', 'B'), HIDDEN)
    assert not rules.mvp(hidden, 'A').right and rules.mvp(hidden, 'A').picked == 0
    assert not rules.mvbench_notebook(hidden, '').right


def test_choice_by_likelihood():
    asked = item('B')
    assert rules.likeliest(asked, (-3.0, -1.0, -2.0, -9.0)) == rules.Verdict(True, True, 1)
    assert rules.likeliest(asked, (-1.0, -1.0, -2.0, -9.0)) == rules.NONE  # nothing was chosen
    for wrong in ((-1.0,), (float('nan'),) * 4):
        with pytest.raises(ValueError, match='x: likelihoods .* each of 4 choices'):
            rules.likeliest(asked, wrong)
    for choices, answer, words in (
        (('A', 'A'), 0, 'choices that are equal: A, A'),
        (('A', ' '), 0, 'a choice without words'),
        (('A', 'B'), 2, 'answer 2: there are 2 choices'),
    ):
        with pytest.raises(ValueError, match=words):
            Item('x', Media('video', 'v'), 'q', choices, answer)
