"""Files of conversations in both forms, what is refused in them, and the stream of sequences."""

import json
import pickle

import numpy as np
import pytest

from jepa_jax.answers import _parts
from jepa_jax.config import QuestionsConfig, RunConfig
from jepa_jax.config.conversations import ConversationsConfig, MixtureConfig
from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.language import questions
from jepa_jax.language.chat import Media, Turn
from jepa_jax.language.conversations import Conversations, turns_of
from jepa_jax.language.stream import ConversationStream, Sight
from jepa_jax.questions import _held, _shown, resolved


def lines(path, *rows):
    path.write_text(''.join(r if isinstance(r, str) else json.dumps(r) + '\n' for r in rows))
    return path


def talk(*said, last='gpt', **more):
    turns = [{'from': ('human', last)[i % 2], 'value': text} for i, text in enumerate(said)]
    return {**more, 'conversations': turns}


def test_both_forms_are_read(tmp_path):
    rows = [
        talk('<image>\nWhat?', 'A ball.', 'Which way?', 'Left.', video='a.mp4', id='7'),
        talk('Compare <image> and <image>', 'Same.', image=['a.png', '/b/c.png']),
        talk('1 + 1?', '2'),
    ]
    (tmp_path / 'llava.json').write_text(json.dumps(rows))
    read = Conversations(tmp_path / 'llava.json', str(tmp_path / 'videos'))
    clip = Media('video', str(tmp_path / 'videos/a.mp4'))
    pictures = Media('image', str(tmp_path / 'videos/a.png')), Media('image', '/b/c.png')
    assert read[0] == [
        Turn('user', (clip, 'What?')), Turn('assistant', ('A ball.',)),
        Turn('user', ('Which way?',)), Turn('assistant', ('Left.',)),
    ]  # fmt: skip
    assert read[1][0] == Turn('user', ('Compare ', pictures[0], ' and ', pictures[1]))
    assert read[2] == [Turn('user', ('1 + 1?',)), Turn('assistant', ('2',))]
    assert read.name(1).endswith('llava.json entry 2')

    plm = talk('What?', 'A ball.', last='assistant', video='a.mp4', start=1, end=2.5,
               backwards=True)  # fmt: skip
    plm['conversations'].insert(0, {'from': 'system', 'value': 'Be brief.'})
    lines(tmp_path / 'plm.jsonl', plm, '\n', rows[0])
    read = Conversations(tmp_path / 'plm.jsonl')
    clip = Media('video', str(tmp_path / 'a.mp4'), 1.0, 2.5, True)
    assert [turn.role for turn in read[0]] == ['system', 'user', 'assistant']
    assert read[0][1].parts == (clip, 'What?') and read.name(1).endswith('line 3')
    first = Conversations(lines(tmp_path / 'x.jsonl', rows[1], rows[0]), placeholder='first')
    assert [p if isinstance(p, str) else p.path[-5:] for p in first[0][0].parts] == [
        'a.png', 'c.png', 'Compare  and ',
    ]  # fmt: skip
    assert first[1][0].parts[1] == 'What?'
    assert pickle.loads(pickle.dumps(read))[0] == read[0]


@pytest.mark.parametrize(
    'text, parts',
    [
        ('<video>\nWhat?', (0, 'What?')),
        ('What?\n<video>', ('What?', 0)),
        ('<video>\n<image>\n\nWhat?', (0, 1, '\nWhat?')),
        ('First\n<video>\nthen\n<image>', ('First\n', 0, 'then', 1)),
        ('<video> what?', (0, ' what?')),
    ],
    ids=repr,
)
def test_the_newline_at_a_placeholder_is_no_text(text, parts):
    """A question is asked with the tokens that it was trained with, wherever its pixels stand."""
    media = [Media('video', f'/{i}') for i in range(text.count('<'))]
    expected = tuple(media[p] if isinstance(p, int) else p for p in parts)
    row = talk(text, 'A.', video=[m.path for m in media])
    assert turns_of(row, '/')[0].parts == expected == _parts(text, media)
    words = ''.join(p for p in parts if isinstance(p, str))
    assert turns_of(row, '/', first=True)[0].parts == (*media, words)


@pytest.mark.parametrize(
    'row, words',
    [
        (talk('What?', 'A.', video='a.mp4'), '0 placeholders .* for 1 video and image paths'),
        (talk('<video> <video>', 'A.', video='a.mp4'), '2 placeholders .* for 1 '),
        (talk('<video>', 'A.'), '1 placeholder <image> or <video> for 0'),
        (talk('What?', '<video>', video='a.mp4'), 'turn 2: a placeholder in what the gpt says'),
        (talk('What?', ' '), 'turn 2: an empty answer'),
        (talk('What?', 'A \ud83d.'), 'turn 2: character 3, .ud83d, is half of a character'),
        (talk('', 'A.'), 'turn 1: an empty question'),
        (talk('What?', 'A.', 'And?'), 'the last turn is the users: there is no answer'),
        (talk('What?', 'A.', last='human'), 'turn 2: the user speaks where the assistant should'),
        (talk('What?', 'A.', last='bot'), "turn 2: from 'bot': allowed are human, user, gpt"),
        ({'conversations': [{'from': 'human', 'value': 3}]}, 'turn 1: its value is no text but a'),
        ({'video': 'a.mp4'}, 'no list `conversations`'),
        (talk('<video>', 'A.', video='a.mp4', image='b.png'), 'both `video` and `image`'),
        (talk('<video>', 'A.', video=['a\0']), r"`video` holds 'a.x00'"),
        (talk('<video>', 'A.', video='a.mp4', start=2, end=1), 'ends at 1 s, before its start'),
        (talk('<video>', 'A.', video='a.mp4', end='x'), "`end` is 'x': must be seconds"),
        (talk('<video>', 'A.', video='a.mp4', backwards=1), '`backwards` is 1: must be true'),
        ([1], 'must be an object, is a list'),
        ('{"conv', 'Unterminated'),
        pytest.param('[' * 100_000, 'recursion', id='deep'),
    ],
)
def test_errors_name_file_and_line(tmp_path, row, words):
    path = lines(tmp_path / 'own.jsonl', talk('Fine?', 'Yes.'), '\n', row)
    with pytest.raises(BadFile, match=f'own.jsonl: not_text: line 3: .*{words}') as caught:
        Conversations(path)
    assert '\n' not in str(caught.value)


def test_files_that_are_none(tmp_path):
    for content, words in (('', 'empty'), ('\n\n', 'no conversation'), ('{}', 'must be a list')):
        (tmp_path / 'a.json').write_text(content)
        name = 'a.jsonl' if content == '\n\n' else 'a.json'
        (tmp_path / name).write_text(content)
        with pytest.raises(BadFile, match=words):
            Conversations(tmp_path / name)
    with pytest.raises(BadFile, match='missing'):
        Conversations(tmp_path / 'none.jsonl')


# --- Sequences ------------------------------------------------------------------------------------


def look(media):
    """Two features that tell which video they are of."""
    number = int(media.path[-5])
    if number == 9:
        raise BadFile(media.path, 'corrupt')
    return np.full((2, 3), -number if media.backwards else number, np.float32)


def rows_of(media):
    return 2


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('talks')
    rows = [
        talk(f'<video>Which? {i}', 'A ball.' * (1 + i % 3), video=f'{i % 9}.mp4') for i in range(40)
    ]
    lines(folder / 'a.jsonl', *rows, talk('Long?', 'yes ' * 200))
    lines(folder / 'b.jsonl', *[talk(f'{i} + 1?', str(i + 1)) for i in range(30)])
    lines(folder / 'bad.jsonl', *rows[:12], talk('<video>?', 'B.', video='9.mp4'))
    return folder, Sight(questions.tokenizer('qwen2'), rows_of, look, (3,))


def config(folder, *names, **more):
    c = RunConfig(seed=3)
    mixture = [MixtureConfig(str(folder / n), weight=w) for n, w in names]
    c.data = ConversationsConfig(mixture=mixture, length=160, visual=8, **more)
    c.optim.batch = 4
    return c


def read(stream, start, count):
    with stream, stream.batches(start) as batches:
        return [next(batches) for _ in range(count)]


def test_sequences_are_a_function_of_seed_and_step(made):
    folder, sight = made
    both = config(folder, ('a.jsonl', 3.0), ('b.jsonl', 1.0))
    stream = ConversationStream(both, sight)
    assert stream.dropped == [1, 0] and all(full > 0.6 for full in stream.full)
    said = stream.describe()[0]
    assert '41 conversations in' in said and '; 1 left out: up to the first answer' in said
    hosts = read(stream, 0, 8)
    for host, again in zip(read(ConversationStream(both, sight), 5, 3), hosts[5:], strict=True):
        for name, array in host.batch.items():
            np.testing.assert_array_equal(array, again.batch[name])
    tokens = np.concatenate([h.batch['tokens'] for h in hosts])
    segments = np.concatenate([h.batch['segments'] for h in hosts])
    seen = np.concatenate([h.batch['visual'] for h in hosts])
    tables = np.concatenate([h.batch['table'] for h in hosts])
    assert tokens.shape == (32, 160) and tables.shape == (32, 8, 3)
    assert (segments.max(1) > 1).any()
    of_a = seen.max(1) >= 0
    assert 0.6 < of_a.mean() < 0.9  # by weight 3 to 1
    # each conversation looks at its own video, which its text names
    row = int(np.flatnonzero(of_a)[0])
    for number in range(1, segments[row].max() + 1):
        own = segments[row] == number
        text = sight.tokenizer.decode(tokens[row][own][seen[row][own] < 0].tolist()[1:])
        places = seen[row][own & (seen[row] >= 0)]
        assert len(places) == 2 and tables[row][places].std() == 0
        name = sight.tokenizer._tokenizer.decode(tokens[row][own].tolist()).split('Which? ')[1]
        assert int(name.split()[0].rstrip('asi')) % 9 == tables[row][places[0], 0], text


def test_a_video_that_cannot_be_read_takes_its_sequence_out(made):
    folder, sight = made
    stream = ConversationStream(config(folder, ('bad.jsonl', 1.0), packed=False), sight)
    assert len(stream.lists[0]) == 13
    hosts = read(stream, 0, 4)
    failures = {f.path for h in hosts for f in h.failures}
    assert failures == {str(folder / '9.mp4')}
    assert all((h.batch['segments'].max(1) == 1).all() for h in hosts)
    with pytest.raises(ConfigError, match=r'mixture\[0\].path: .*none of 41 conversations fits'):
        small = config(folder, ('a.jsonl', 1.0))
        small.data.length = 8
        ConversationStream(small, sight)


def test_paths_of_what_is_held_out_are_relative_to_a_folder(made, tmp_path):
    folder, _ = made
    held = str(lines(tmp_path / 'held.jsonl', talk('<video>?', 'A.', video='1.mp4')))
    c = QuestionsConfig(heldout=held)

    def shown():
        return next(_shown(resolved(c), c.heldout)).path

    assert shown() == str(tmp_path / '1.mp4')
    c.data.mixture = [MixtureConfig(str(folder / 'a.jsonl'), '/train'), MixtureConfig('b', '/b')]
    assert shown() == '/train/1.mp4'
    c.heldout_folder = '/held'
    assert shown() == '/held/1.mp4'


def test_held_out_conversations_that_cannot_be_read_are_left_out(made, tmp_path, caplog):
    _, sight = made
    rows = [talk('<video>?', f'It is {i}.', video=f'{i}.mp4') for i in (9, 1, 2)]
    c = QuestionsConfig(heldout=str(lines(tmp_path / 'held.jsonl', *rows)), heldout_rows=2)
    c.data.length, c.data.visual, c.clips.frames, c.clips.crop = 160, 2, 2, 16  # two places
    c.data.system = 'Be brief.'
    held = _held(c, sight)
    whole = ConversationStream(config(tmp_path, ('held.jsonl', 1.0), system='Be brief.'), sight)
    learnt = whole._encoded(whole.talks[0][1]).tokens
    asked = held.prompts['tokens'][0][: held.prompts['lengths'][0]]
    # told the same as in training, up to the answer
    assert 'Be brief.' in sight.tokenizer._tokenizer.decode(asked.tolist())
    assert (learnt[: len(asked)] == asked).all()
    assert (held.batch['tokens'][0][: len(learnt)] == learnt).all()
    assert held.expected == ('It is 1.', 'It is 2.')
    assert held.batch['table'][..., 0].tolist() == [[1, 1], [2, 2]]
    assert 'heldout: left out: ' in caplog.text and '9.mp4' in caplog.text
    lines(tmp_path / 'held.jsonl', rows[0])
    with pytest.raises(ConfigError, match='no conversation fits into data.length and can be read'):
        _held(c, sight)
