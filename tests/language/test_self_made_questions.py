"""Questions about self-made videos: answers by the labels, pairs, the mixture, the tokenizer."""

import collections

import numpy as np
import pytest

from jepa_jax.config import QuestionsConfig
from jepa_jax.data import synthetic
from jepa_jax.errors import ConfigError
from jepa_jax.language import questions
from jepa_jax.language.conversations import Conversations
from jepa_jax.language.questions import MIXTURE, View
from jepa_jax.origin import Origin
from jepa_jax.questions import read_tokenizer


def test_a_pair_differs_in_nothing_but_the_answer(tmp_path):
    items = questions.items('test', tmp_path, 20, questions.PAIRED)
    groups = collections.defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    assert len(groups) == 60 and {len(pair) for pair in groups.values()} == {2}
    for a, b in groups.values():
        assert (a.question, a.choices) == (b.question, b.choices) and a.answer != b.answer
        assert a.media.path == b.media.path and a.media.backwards != b.media.backwards
    by_kind = collections.Counter((i.kinds[0], i.choices[i.answer]) for i in items)
    assert by_kind['motion', 'clockwise'] == by_kind['motion', 'counterclockwise'] == 20
    assert by_kind['motion_letter', 'A'] == 20  # of options too: a constant answer has no pair
    clip = synthetic.labels(10)
    assert clip['motion'] == 'counterclockwise'
    assert questions.ask('motion', View('test', 10)).said == 'counterclockwise'
    assert questions.ask('motion', View('test', 10, 0, True)).said == 'clockwise'


def test_answers_are_what_the_labels_say(tmp_path):
    view = View('train', 27)  # digit 7, counterclockwise, on the digit's lower side
    assert view.labels == {'digit': 7, 'motion': 'clockwise', 'side': 'below'}
    assert questions.ask('digit', view).said == 'seven'
    assert questions.ask('side', view).said == 'below it'
    said = questions.ask('caption', View('train', 27, 8, True)).said
    assert said == 'A seven and a ball go round counterclockwise, the ball below it.'
    for kind in ('motion_letter', 'side_letter'):
        for seed in range(8):
            question = questions.ask(kind, view, seed)
            right = f'\n{question.said}. {"clockwise" if kind[0] == "m" else "below it"}\n'
            assert right in question.text
    asked = {questions.ask('motion_yes_no', view, seed) for seed in range(9)}
    assert {(q.text, q.said) for q in asked} == {
        ('Do they go round clockwise? Answer yes or no.', 'yes'),
        ('Do they go round counterclockwise? Answer yes or no.', 'no'),
    }
    with pytest.raises(ConfigError, match="'colour': allowed are motion, motion_letter"):
        questions.ask('colour', view)


def test_the_mixture_is_written_as_conversations(tmp_path):
    path = questions.write(tmp_path / 'x/train.jsonl', tmp_path, 40, 480)
    read = Conversations(path, str(tmp_path))
    assert len(read) == 480
    drawn = list(questions.draw('train', 40, 480))
    kinds = collections.Counter(question.kind for _, question in drawn)
    for kind, share in MIXTURE.items():
        assert abs(kinds[kind] / 480 - share) < 0.04
    seen = collections.Counter(view for view, _ in drawn)
    assert len(seen) == 40 * 3 * 2 and set(seen.values()) == {2}
    for index in (0, 300):
        view, question = drawn[index]
        turns = read[index]
        assert turns[0].parts == (view.media(tmp_path), question.text)
        assert turns[1].parts == (question.said,)
    assert path.read_bytes() == questions.write(tmp_path / 'b', tmp_path, 40, 480).read_bytes()
    only = questions.draw('train', 4, 30, {'caption': 1.0})
    assert {question.kind for _, question in only} == {'caption'}


def test_told_in_words(tmp_path):
    """What a video shows stands before the same questions; no video does."""
    drawn = list(questions.draw('train', 40, 200))
    path = questions.write(tmp_path / 'told.jsonl', tmp_path, 40, 200, told=True)
    read = Conversations(str(path), str(tmp_path), 'refused')
    assert len(read) == 200
    for (view, question), turns in zip(drawn, (read[i] for i in range(200))):
        labels = view.labels
        (text,) = turns[0].parts
        first, rest = text.split('\n', 1)
        assert rest == question.text and turns[1].parts == (question.said,)
        assert f' {labels["motion"]}, ' in first
        assert first.split()[1] == questions.DIGITS[labels['digit']]
        assert first.endswith(f'{questions.PLACES[labels["side"]]}.')


def test_the_tokenizer_knows_the_words():
    made = questions.tokenizer()
    assert made.size == questions.VOCABULARY and made.family == 'llama3'
    text = questions.ask('motion_letter', View('train', 3)).text
    assert made.decode(made.encode(text)) == text
    lengths = [len(made.encode(q.text)) for _, q in questions.draw('test', 20, 200)]
    assert max(lengths) < 48 and np.mean(lengths) < 20
    assert len({tuple(made.encode(word)) for word in questions.DIGITS}) == 10


def test_a_run_that_goes_on_keeps_its_tokenizer(tmp_path):
    """That of self-made questions may have become another since the run began."""
    config = QuestionsConfig()
    config.language.path, config.language.tokenizer = 'random', 'self_made'
    assert read_tokenizer(config, Origin()).family == questions.tokenizer().family == 'llama3'
    questions.tokenizer('qwen2').save(tmp_path / 'tokenizer')
    assert read_tokenizer(config, Origin(tmp_path)).family == 'qwen2'
    config.language.tokenizer = str(tmp_path / 'other')  # what is named is taken
    questions.tokenizer('llama3').save(tmp_path / 'other')
    assert read_tokenizer(config, Origin(tmp_path)).family == 'llama3'
