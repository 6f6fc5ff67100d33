"""Asking: what is shown, what is said, how likely choices are, and what is refused."""

import dataclasses
import functools
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax import ask as command
from jepa_jax.answers import Answerer, Fixed, Sampling, media_of
from jepa_jax.config import ClipsConfig
from jepa_jax.data import synthetic
from jepa_jax.data.clips import Timing
from jepa_jax.errors import BadFile, ConfigError, ConvertError, InputError, InputsFailed
from jepa_jax.language import questions
from jepa_jax.language.chat import Media, Turn, encode
from jepa_jax.language.sight import Clips, moments, tiling
from jepa_jax.language.stream import Sight
from jepa_jax.models.decoder import DecoderConfig
from jepa_jax.models.projector import ProjectorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights import parts
from jepa_jax.weights.contents import StoredNet, Weights
from jepa_jax.weights.own import _reads
from jepa_jax.weights.tables import Leaf

pytest.importorskip('tokenizers')
CLIPS = ClipsConfig(frames=4, crop=16)
CONFIGS = {
    'encoder': ViTConfig(24, 1, 2, patch=8, image_size=16, frames=4, dtype=jnp.float32),
    'projector': ProjectorConfig(24, 16, (2, 2, 2), dtype=jnp.float32),  # 8 tokens
    'decoder': DecoderConfig(questions.VOCABULARY, 16, 24, 2, 4, 2, 4, dtype=jnp.float32),
}


def nets(**other) -> dict[str, StoredNet]:
    made, rng = {}, np.random.default_rng(0)

    def drawn(a: jax.ShapeDtypeStruct) -> Leaf:
        value = rng.standard_normal(a.shape, np.float32) * 0.3
        return Leaf(a.shape, value.dtype, lambda: value)

    for name, config in {**CONFIGS, **other}.items():
        made[name] = StoredNet(name, config, jax.tree.map(drawn, parts.net(name, config).abstract))
    return made


@pytest.fixture(scope='module')
def video(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp('videos') / 'clip.mp4'
    frames = np.random.default_rng(0).integers(0, 256, (24, 32, 40, 3), np.uint8)
    synthetic.write(path, frames)
    return str(path)


@pytest.fixture(scope='module')
def answerer() -> Answerer:
    return Answerer(nets(), questions.tokenizer(), CLIPS, 'float32')


@functools.cache
def forward(answerer: Answerer):
    """Logits [S, V] of a whole row by one program: no cache, no prefix."""
    n = answerer._nets

    @jax.jit
    def run(p, tokens, places, clip):
        seen = n['projector'](p['projector'], n['encoder'](p['encoder'], clip[None]))[0]
        llm = n['decoder'].bind(p['decoder'])
        x = jnp.where(places[:, None] >= 0, seen[places], llm.embed(tokens))[None]
        return llm.logits(llm(x, jnp.arange(len(tokens))[None]))[0]

    return run


def whole(answerer: Answerer, clip: np.ndarray, text: str, said: str) -> np.ndarray:
    """Logarithms of the chances of the tokens of an answer and of its end, and all logits there."""
    turns = [Turn('user', (Media('video', ''), text)), Turn('assistant', (said,))]
    rows = encode(turns, answerer.tokenizer, lambda m: 8)
    pad = 0, 96 - len(rows.tokens)
    places = np.pad(rows.visual, pad, constant_values=-1)
    logits = forward(answerer)(answerer._params, np.pad(rows.tokens, pad), places, clip)
    at = np.flatnonzero(rows.labels >= 0)
    return np.asarray(jax.nn.log_softmax(logits))[at, rows.labels[at]], np.asarray(logits)[at]


def test_answers(answerer, video):
    pieces = []
    choices = 'clockwise', 'counterclockwise'
    said = answerer.ask(video, 'Which way?', choices=choices, most=6, on_text=pieces.append)
    assert said.text == ''.join(pieces)
    clip = answerer.look(Media('video', video))[0]
    # greedy: of every token that was said none is likelier
    ids = answerer.tokenizer.encode(said.text)
    if said.text and '\ufffd' not in said.text:
        _, logits = whole(answerer, clip, 'Which way?', said.text)
        assert logits.argmax(-1)[: len(ids)].tolist() == ids
    sums = np.array([whole(answerer, clip, 'Which way?', c)[0].sum() for c in choices])
    shares = np.exp(sums - sums.max())
    np.testing.assert_allclose(said.shares, shares / shares.sum(), rtol=1e-3)
    assert said.choice == choices[int(sums.argmax())]
    assert said.seen[0].shown == 4 and said.seen[0].words().endswith('of 3.00 s')
    # the same frames from an array, and the other way round
    backwards = Media('video', video, backwards=True)
    again = answerer.ask(clip, 'Which way?', choices=choices, most=1)
    turned = answerer.ask(backwards, 'Which way?', choices=choices, most=1)
    np.testing.assert_allclose(again.shares, said.shares, rtol=1e-4)
    assert not np.allclose(turned.shares, said.shares, rtol=1e-4)
    drawn = {
        answerer.ask(video, 'Hm?', most=3, sampling=Sampling(3.0), seed=s).text for s in (1, 2)
    }
    assert len(drawn) == 2
    # choices alone: the same, and nothing is generated
    silent = answerer.ask(video, 'Which way?', choices=choices, most=0)
    assert (silent.text, silent.shares, silent.choice) == ('', said.shares, said.choice)


def counted(monkeypatch, answerer: Answerer, *names: str) -> dict[str, int]:
    """Calls of its programs, by name."""
    calls = dict.fromkeys(names, 0)

    def counting(name, program, *arguments, **more):
        calls[name] += 1
        return program(*arguments, **more)

    for name in names:
        program = functools.partial(counting, name, getattr(answerer, f'_{name}'))
        monkeypatch.setattr(answerer, f'_{name}', program)
    return calls


def test_what_was_seen_is_kept_as_long_as_it_is_the_same(answerer, video, tmp_path, monkeypatch):
    """A file until it changes; frames that a caller may write to never, those of a handle always;
    a question with choices is read once."""
    calls = counted(monkeypatch, answerer, 'see', 'begin')
    shutil.copy(video, path := str(tmp_path / 'camera.mp4'))
    rows = [{'video': path, 'question': f'What {i}?', 'choices': ['a', 'b']} for i in range(4)]
    shown = lambda paths, *when: [Media('video', p, *when) for p in paths]  # noqa: E731
    command._batch(answerer, rows, tmp_path / 'out.jsonl', shown, {'most': 1})
    assert calls == {'see': 1, 'begin': 4}

    def shares(of):
        return answerer.ask(of, 'What?', choices=('a', 'b'), most=0).shares

    frames = np.zeros((4, 16, 16, 3), np.uint8)
    before = shares(frames)
    frames[:] = np.random.default_rng(3).integers(0, 256, frames.shape)
    assert shares(frames) == shares(frames.copy()) != before
    calls['see'], fixed = 0, Fixed(frames)
    assert shares(fixed) == shares(fixed) == shares(frames)
    assert calls['see'] == 2
    before = shares(path)
    synthetic.write(tmp_path / 'camera.mp4', np.full((24, 32, 40, 3), 7, np.uint8))
    assert shares(path) == shares(Media('video', path)) != before
    assert len(answerer._known) <= 4


def test_a_placeholder_may_say_where(answerer, video):
    clip = answerer.look(Media('video', video))[0]
    first = answerer.ask(clip, 'What?', choices=('a', 'b'), most=1)
    same = answerer.ask(clip, '<video>What?', choices=('a', 'b'), most=1)
    later = answerer.ask(clip, 'What?<video>', choices=('a', 'b'), most=1)
    assert first.shares == same.shares != later.shares


def test_it_is_told_what_it_was_told_in_training(answerer, tmp_path):
    def tokens(model, system=None):
        return model._asked([], 'What?', (), system)[0]['tokens'].tolist()

    config = {'clips': dataclasses.asdict(CLIPS), 'data': {'system': 'Be brief.'}}
    questions.tokenizer().save(tmp_path)
    made = nets()
    made['target'] = made.pop('encoder')
    own = Answerer.of(
        Weights(tmp_path, 'jax', made, reads=_reads({'config': config})), tokenizer=str(tmp_path)
    )
    assert tokens(own) == tokens(answerer, 'Be brief.') == tokens(own, 'Be brief.')
    assert tokens(own, '') == tokens(answerer) != tokens(own)


@pytest.mark.parametrize(
    ('question', 'more', 'words'),
    [
        ('<video> and <video>?', {}, '2 placeholders <video> or <image> for 1 videos'),
        (' ', {}, 'an empty question'),
        ('What?', {'choices': ('a', ' ')}, 'choice 2 is empty'),
        ('What?', {'choices': ('a', 'b', 'a ')}, "choices that are equal: 'a '"),
        ('What?', {'choices': ('a',)}, 'at least two'),
        ('What?', {'turns': [('And?', ' ')]}, 'an empty answer among the earlier turns'),
        ('What?', {'most': 0}, 'no choices to compare: nothing is asked for'),
        ('x' * 200_000, {}, 'the question: .* tokens: at most'),
        ('What?', {'choices': 'yes|no'}, "choices 'yes.no': must be a list of texts"),
        ('What?', {'most': -1}, 'an answer of -1 tokens: must be at least 0'),
        ('Is \ud83d?', {}, r'character 4, .ud83d, is half of a character'),
        ('What?', {'choices': ('a', '\udcff')}, r'character 1, .udcff, is half of a character'),
    ],
    ids=lambda v: str(v)[:20],
)
def test_refuses(answerer, video, question, more, words):
    with pytest.raises(InputError, match=words):
        answerer.ask(video, question, **more)


def test_nets_that_do_not_fit(tmp_path):
    tokenizer = questions.tokenizer()
    other = ViTConfig(36, 1, 3, patch=8, image_size=16, frames=4)
    with pytest.raises(ConvertError, match='an encoder of width 36: the projector is for 24'):
        Answerer(nets(encoder=other), tokenizer, CLIPS, 'float32')
    small = DecoderConfig(100, 16, 24, 2, 4, 2, 4)
    with pytest.raises(ConfigError, match='the tokenizer of another model'):
        Answerer(nets(decoder=small), tokenizer, CLIPS, 'float32')
    # one with as many tokens, of a model that ends its answers with another
    (tmp_path / 'config.json').write_text('{"eos_token_id": [7, 3]}')
    with pytest.raises(ConfigError, match='eos_token_id 7 is no special token of the tokenizer'):
        Answerer(nets(), tokenizer, CLIPS, 'float32', tmp_path)
    weights = Weights(None, 'jax', {'encoder': nets()['encoder']})
    with pytest.raises(ConvertError, match='no projector: it answers nothing'):
        Answerer.of(weights)


@pytest.mark.parametrize(
    ('stored', 'dtype', 'kept'),
    [
        ('bfloat16', 'float32', 'bfloat16'),  # as large as its files
        ('float16', 'bfloat16', 'float16'),
        ('float32', 'bfloat16', 'bfloat16'),
        ('float32', 'float32', 'float32'),
    ],
)
def test_a_language_model_keeps_its_type(stored, dtype, kept):
    decoder = dataclasses.replace(CONFIGS['decoder'], stored=stored)
    one = Answerer(nets(decoder=decoder), questions.tokenizer(), CLIPS, dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(one._params['decoder'])} == {kept}
    assert one._nets['decoder'].config.dtype == dtype


def test_a_batch_counts_what_cannot_be_read(answerer, video, tmp_path):
    rows = [
        {'video': video, 'question': 'What?'},
        {'video': str(tmp_path / 'no.mp4'), 'question': 'x'},
        {'video': video, 'question': 'Is \ud83d?'},
    ]
    out = tmp_path / 'out.jsonl'
    shown = lambda paths, *when: [Media('video', p, *when) for p in paths]  # noqa: E731
    with pytest.raises(InputsFailed, match='2 of 3 questions could not be put'):
        command._batch(answerer, rows, out, shown, {'most': 2})
    first, second, third = map(json.loads, out.read_text().splitlines())
    assert isinstance(first['answer'], str) and 'error' not in first
    assert 'missing' in second['error'] and 'answer' not in second
    assert 'half of a character' in third['error'] and third['question'] == 'Is \ud83d?'
    (tmp_path / 'q.jsonl').write_text('{"question": "x"}\n{"question": ""}\n')
    with pytest.raises(BadFile, match='line 2: no `question`'):
        command._rows(tmp_path / 'q.jsonl')
    (tmp_path / 'q.jsonl').write_text('{"question": "x"}\n{"question"\n')
    with pytest.raises(BadFile, match='line 2: Expecting .:. delimiter: column 12'):
        command._rows(tmp_path / 'q.jsonl')


@pytest.mark.parametrize(
    'flags, words',
    [
        ('--batch q --out o --choices a|b', '--choices goes with --question: a line of --batch'),
        ('--batch q --out o --video a.mp4', '--video goes with'),
        ('--batch q --out o --start 1', '--start goes with'),
        ('--batch q --out o --end 1', '--end goes with'),
        ('--question x --out o', '--out goes with --batch'),
        ('--question x --start -1', 'start -1: must be seconds of the video, from 0'),
        ('--question x --end inf', 'end inf: must be seconds'),
        ('--question x --start nan', 'start nan: must be seconds'),
        ('--question x --start 2 --end 1', 'end 1: must be after the start, 2, or 0'),
        ('--batch q --out o --backwards', '--backwards goes with'),
    ],
)
def test_flags_are_judged_before_a_model_is_loaded(monkeypatch, capsys, flags, words):
    monkeypatch.setattr(sys, 'argv', ['ask', '--model', 'random:tiny', *flags.split()])
    assert command.main() == 1
    said = capsys.readouterr().err
    assert words in said and said.count('\n') == 1


def test_a_place_for_answers_is_looked_for_before_a_model_is_loaded(monkeypatch, capsys, tmp_path):
    (questions := tmp_path / 'q.jsonl').write_text('{"question": "x"}')
    for out, words in ((tmp_path, 'a folder is in its place'), (tmp_path / 'no/a', 'No such file')):
        flags = ['--model', 'random:tiny', '--batch', str(questions), '--out', str(out)]
        monkeypatch.setattr(sys, 'argv', ['ask', *flags])
        assert command.main() == 1
        assert capsys.readouterr().err.startswith(f'error: --out {out}: {words}')


def test_moments():
    """Evenly over all of it, whatever its length; what is shorter comes twice."""
    clips = ClipsConfig(frames=4)
    assert moments(Timing(10, 5.0, 2.0), clips).tolist() == [0, 3, 6, 9]
    assert moments(Timing(100, 10.0, 10.0), clips, 2.0, 4.0).tolist() == [20, 26, 33, 39]
    second = ClipsConfig(frames=4, fps=1.0)
    assert moments(Timing(100, 10.0, 10.0), second).tolist() == [0, 30, 60, 90]
    assert moments(Timing(2, 10.0, 0.2), clips).tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match='no frame between 12 and 14 s of 10.00 s'):
        moments(Timing(100, 10.0, 10.0), clips, 12.0, 14.0)


def test_an_image_fills_all_frames(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    clip, looked = Clips(CLIPS).read(Media('image', str(tmp_path / 'a.png')))
    assert (clip == pixels).all() and clip.shape == (4, 16, 16, 3)
    assert looked.words() == 'an image'


@pytest.mark.parametrize('when', [(-1.0, 0.0), (0.0, float('inf')), (float('nan'), 0.0)])
def test_seconds_that_no_video_has(answerer, video, when):
    with pytest.raises(InputError, match='must be seconds of the video'):
        answerer.ask(Media('video', video, *when), 'What?')


@pytest.mark.parametrize('name', ['a.gif', 'a.webp', 'a.png', 'a.tif', 'a.npy', 'a.jpg'])
def test_a_file_is_what_it_holds(name, tmp_path):
    """Of ten frames in a picture's file, all that is shown; whatever the name says."""
    from PIL import Image

    frames = np.arange(0, 250, 25, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2)
    frames = frames.repeat(3, 3)
    first, *others = map(Image.fromarray, frames)
    path = tmp_path / name
    if name == 'a.npy':
        np.save(path, frames)
    elif name == 'a.jpg':
        first.save(path, format='png')
    else:
        first.save(path, save_all=True, append_images=others, duration=100, lossless=True)
    media = media_of(path)
    clip, looked = Clips(CLIPS).read(media)
    if name == 'a.jpg':
        assert media.kind == 'image'
    else:
        assert clip[:, 0, 0, 0].tolist() == [0, 75, 150, 225]
        assert looked.length == pytest.approx(1 if name in ('a.gif', 'a.webp', 'a.png') else 10)
    with pytest.raises(BadFile, match='missing'):
        media_of(tmp_path / 'no.gif')


@pytest.mark.parametrize(
    ('height', 'width', 'most', 'shape'),
    [
        (1000, 1000, 7, (2, 2)),  # at .2 of its size, as 2 x 3
        (900, 1600, 7, (2, 3)),  # at .1875, 1 x 3 at .111
        (1600, 900, 7, (3, 2)),
        (900, 1600, 3, (1, 2)),  # at .111, as 1 x 3
        (500, 1000, 4, (1, 2)),  # at .2, as 1 x 3, 1 x 4, 2 x 2
        (80, 90, 7, (1, 1)),  # smaller than a tile
    ],
)
def test_rows_and_columns_of_tiles(height, width, most, shape):
    assert tiling(height, width, 100, most) == shape


def test_an_image_in_tiles(answerer, video, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path := tmp_path / 'a.png')
    clips = Clips(ClipsConfig(frames=8, crop=16, images='tiles'))
    image, film = Media('image', str(path)), Media('video', video)
    clip, looked = clips.read(image)
    assert looked.words() == 'an image, whole and in 1 x 2 tiles'
    squares = clip[::2]
    assert (clip[1::2] == squares).all() and (squares[0] == squares[1]).all()
    assert (squares[2:] == [pixels[:, :16], pixels[:, 16:]]).all()
    sight = Sight(None, None, clips, clips.shape, np.uint8, apart=clips.apart)
    shown = sight.shown([(film, 8), (image, 8)], 3)
    assert shown['tiles'].tolist() == [False, True, False]
    assert (shown['table'][1] == clip).all() and not shown['table'][2].any()
    # asked about it, the encoder is told
    tiled = Answerer(
        nets(), questions.tokenizer(), dataclasses.replace(CLIPS, images='tiles'), 'float32'
    )
    still = tiled.look(image)[0]
    net, params = tiled._nets['encoder'], tiled._params['encoder']
    alone = net(params, still.reshape(2, 2, 16, 16, 3)).reshape(1, 8, 24)
    expected = tiled._nets['projector'](tiled._params['projector'], alone)
    np.testing.assert_allclose(tiled._seen(str(path), image)[0], expected, atol=1e-5)
