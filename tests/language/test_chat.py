"""Chats against literal strings and against transformers; loss, cuts and packing by hand."""

import json
import pickle

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jepa_jax.errors import BadFile, ConfigError
from jepa_jax.language import packing
from jepa_jax.language.chat import TEMPLATES, Media, Turn, encode, family_of, write
from jepa_jax.language.tokenizer import Tokenizer

CLIP = Media('video', 'clip.mp4')
TALK = [
    Turn('user', (CLIP, '\nWhat moves?')),
    Turn('assistant', ('A ball.',)),
    Turn('user', ('Which way?',)),
    Turn('assistant', ('Left.',)),
]
# as the models' own tokenizer_config.json has them, in other words
JINJA = {
    'llama3': "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + "
    "m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    '{% if add_generation_prompt %}'
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    'qwen2': "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}


def trained(*special: str) -> tokenizers.Tokenizer:
    """A byte-level BPE with special tokens."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=['<|endoftext|>', *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = 'What moves? A ball. Which way? Left.\nuser\nassistant\n'
    made.train_from_iterator([text], trainer)
    return made


@pytest.fixture(scope='module', params=['llama3', 'qwen2'])
def made(request):
    return request.param, Tokenizer(trained(*TEMPLATES[request.param].special))


def text(pieces) -> str:
    return ''.join(f'<{p.what.path}>' if isinstance(p.what, Media) else p.what for p in pieces)


def test_templates_are_those_of_the_families():
    assert text(write(TALK, 'llama3', answer=True)) == (
        '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n'
        '<clip.mp4>\nWhat moves?<|eot_id|>'
        '<|start_header_id|>assistant<|end_header_id|>\n\nA ball.<|eot_id|>'
        '<|start_header_id|>user<|end_header_id|>\n\nWhich way?<|eot_id|>'
        '<|start_header_id|>assistant<|end_header_id|>\n\nLeft.<|eot_id|>'
        '<|start_header_id|>assistant<|end_header_id|>\n\n'
    )
    own = [Turn('system', ('Be brief.',)), *TALK[:2]]
    assert text(write(own, 'qwen2')) == (
        '<|im_start|>system\nBe brief.<|im_end|>\n'
        '<|im_start|>user\n<clip.mp4>\nWhat moves?<|im_end|>\n'
        '<|im_start|>assistant\nA ball.<|im_end|>\n'
    )
    assert text(write(TALK[:1], 'qwen2.5')).startswith(
        '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.'
        '<|im_end|>\n<|im_start|>user\n'
    )


def test_tokens_are_those_of_transformers(made):
    """All ids, with a generation prompt and blanks that Llama's template strips."""
    transformers = pytest.importorskip('transformers')
    family, ours = made
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained(*TEMPLATES[family].special), chat_template=JINJA[family]
    )
    said = ['  What moves? ', 'A ball.', '\nWhich way?', 'Left.\n']
    roles = ['user', 'assistant'] * 2
    expected = fast.apply_chat_template(
        [{'role': r, 'content': s} for r, s in zip(roles, said)], add_generation_prompt=True
    )
    expected = expected if isinstance(expected, list) else expected['input_ids']
    turns = [Turn(r, (s,)) for r, s in zip(roles, said)]
    got = encode(turns, ours, lambda m: 0, answer=True)
    assert got.tokens.tolist() == expected


def test_loss_is_on_answers_and_the_end_of_their_turns(made):
    family, ours = made
    got = encode(TALK, ours, lambda m: 3)
    end = ours.special(TEMPLATES[family].end)
    learnt = [int(x) for x in got.labels if x >= 0]
    assert learnt == [*ours.encode('A ball.'), end, *ours.encode('Left.'), end]
    places = np.flatnonzero(got.labels >= 0)
    np.testing.assert_array_equal(got.labels[places], got.tokens[places + 1])
    assert got.visual[got.visual >= 0].tolist() == [0, 1, 2] and got.media == ((CLIP, 3),)
    assert ours.decode([*ours.encode('A ball.'), end, *ours.encode('Left.')]) == 'A ball.'


def test_text_never_becomes_a_special_token(made):
    family, ours = made
    end = ours.special(TEMPLATES[family].end)
    word = TEMPLATES[family].end
    for said in (word, f'a{word}b'):
        got = encode([Turn('user', (said,)), Turn('assistant', ('x',))], ours, lambda m: 0)
        assert (got.tokens == end).sum() == 2 + (family == 'qwen2')  # with the default system turn
        assert ours.decode(ours.encode(said)) == said
        assert pickle.loads(pickle.dumps(ours)).encode(said) == ours.encode(said)  # in workers, too


def test_turns_are_cut_whole(made):
    _, ours = made
    later = Media('image', 'b.png')
    talk = [*TALK[:2], Turn('user', (later, 'Which way?')), TALK[3]]
    whole = encode(talk, ours, lambda m: 2)
    first, second = whole.ends
    assert whole.cut(len(whole.tokens)) is whole and whole.cut(first - 1) is None
    for length in (first, second - 1):
        part = whole.cut(length)
        assert len(part.tokens) == first and part.ends == (first,)
        assert part.media == ((CLIP, 2),) and part.labels[-1] == -1
        np.testing.assert_array_equal(part.labels[:-1], whole.labels[: first - 1])


def test_orders_that_no_template_writes():
    for turns, words in (
        ([], 'without turns'),
        ([Turn('human', ('a',))], "role 'human'.*allowed are system, user, assistant"),
        ([*TALK, Turn('system', ('a',))], 'turn 5: the system speaks first'),
        ([Turn('assistant', (CLIP,))], 'turn 1: a video or image in what the assistant says'),
    ):
        with pytest.raises(ConfigError, match=words):
            write(turns, 'qwen2')
    with pytest.raises(ConfigError, match="'chatlm': allowed are llama3, qwen2, qwen2.5"):
        write(TALK, 'chatlm')
    assert family_of(['<|im_start|>', '<|im_end|>'], 'x You are Qwen, created by Alibaba Cloud. '
                     'You are a helpful assistant. y') == 'qwen2.5'  # fmt: skip
    with pytest.raises(ConfigError, match='no known chat format'):
        family_of(['<s>', '</s>'])


def test_packs_hold_every_conversation_once():
    rng = np.random.default_rng(0)
    lengths, rows = rng.integers(3, 60, 200), rng.integers(0, 9, 200)
    lengths[:2], rows[2] = 101, 21
    packs = packing.plan(lengths, rows, 100, 20, seed=1)
    assert sorted(i for p in packs for i in p) == list(range(3, 200))
    assert all(lengths[list(p)].sum() <= 100 and rows[list(p)].sum() <= 20 for p in packs)
    assert len(packs) * 100 < 1.15 * lengths[3:].sum()  # little is padding
    assert packs == packing.plan(lengths, rows, 100, 20, seed=1)
    assert packs != packing.plan(lengths, rows, 100, 20, seed=2)


def test_a_pack_by_hand(made):
    _, ours = made
    one = encode(TALK[:2], ours, lambda m: 2)
    two = encode([Turn('user', ('Hm', CLIP)), TALK[1]], ours, lambda m: 1)
    a, b = len(one.tokens), len(two.tokens)
    packed = packing.pack([one, two], a + b + 3, ours.pad)
    arrays = packed.arrays
    np.testing.assert_array_equal(arrays['segments'], [1] * a + [2] * b + [0] * 3)
    np.testing.assert_array_equal(arrays['positions'], [*range(a), *range(b), 0, 0, 0])
    np.testing.assert_array_equal(arrays['tokens'], [*one.tokens, *two.tokens, *[ours.pad] * 3])
    np.testing.assert_array_equal(arrays['labels'], [*one.labels, *two.labels, *[-1] * 3])
    assert arrays['visual'][arrays['visual'] >= 0].tolist() == [0, 1, 2]
    assert packed.media == ((CLIP, 2), (CLIP, 1))
    assert {v.dtype for v in arrays.values()} == {np.dtype(np.int32)}
    assert arrays['labels'][a - 1] == -1  # nothing is predicted from one conversation to the next
    with pytest.raises(ConfigError, match='do not fit into a sequence of 5'):
        packing.pack([one], 5, ours.pad)
    assert packing.shortest((64, 16, 32), 17) == 32
    with pytest.raises(ConfigError, match='65 tokens: at most 64 fit'):
        packing.shortest((64, 16, 32), 65)


def test_a_folder_with_a_tokenizer(tmp_path):
    """Ids come from the files; what belongs to another model is refused in one line."""
    trained(*TEMPLATES['qwen2'].special).save(str(tmp_path / 'tokenizer.json'))
    config = {'eos_token_id': [2, 0]}
    (tmp_path / 'generation_config.json').write_text(json.dumps(config))
    own = {'pad_token': {'content': '<|endoftext|>'}}
    own['chat_template'] = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.'
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(own))
    ours = Tokenizer.read(tmp_path)
    assert (ours.family, ours.stops, ours.pad) == ('qwen2.5', (2, 0), 0)
    ours.check(ours.size)
    with pytest.raises(ConfigError, match='tokens, the language model 100: the tokenizer of ano'):
        ours.check(100)
    ours.save(tmp_path / 'copy')
    copy = Tokenizer.read(tmp_path / 'copy')
    assert copy.encode('A ball.') == ours.encode('A ball.')
    assert (copy.family, copy.stops, copy.pad) == (ours.family, ours.stops, ours.pad)
    (tmp_path / 'config.json').write_text('{"eos_token_id": 128009}')
    with pytest.raises(ConfigError, match='tokenizer.json: eos_token_id 128009 is no special tok'):
        Tokenizer.read(tmp_path)
    (tmp_path / 'config.json').write_text('{"eos_token_id": "x"}')
    with pytest.raises(ConfigError, match='config.json: eos_token_id is x: must be a token id'):
        Tokenizer.read(tmp_path)
    for content, words in (('', 'empty'), ('{}', 'not_text: Model missing'), ('[', 'not_text')):
        (tmp_path / 'tokenizer.json').write_text(content)
        with pytest.raises(BadFile, match=f'tokenizer.json: {words}'):
            Tokenizer.read(tmp_path)
    with pytest.raises(BadFile, match='missing'):
        Tokenizer.read(tmp_path / 'nowhere')
