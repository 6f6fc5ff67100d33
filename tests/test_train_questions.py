"""A run on questions from its config to an answer: resumed bit for bit, continued with other parts
trained, converted, taken apart, asked."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from jepa_jax import checkpoint
from jepa_jax.answers import Answerer
from jepa_jax.config import MixtureConfig, QuestionsConfig, VisualProjectorConfig
from jepa_jax.data import synthetic
from jepa_jax.language import questions
from jepa_jax.train import train
from jepa_jax.weights.read import read
from jepa_jax.weights.write import only, write

pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('questions')
    rng = np.random.default_rng(0)
    rows = []
    for i in range(10):
        frames = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
        synthetic.write(folder / f'{i}.mp4', frames)
        talk = [('human', f'<video>\nWhich one, {i}?'), ('gpt', 'one two three'.split()[i % 3])]
        turns = [{'from': who, 'value': text} for who, text in talk]
        rows.append(json.dumps({'video': f'{i}.mp4', 'conversations': turns}))
    (folder / 'train.jsonl').write_text('\n'.join(rows[:8]))
    (folder / 'held.jsonl').write_text('\n'.join(rows[8:]))
    Image.fromarray(rng.integers(0, 256, (20, 40, 3), np.uint8)).save(folder / 'a.png')
    turns = [{'from': 'human', 'value': 'What?'}, {'from': 'assistant', 'value': 'noise'}]
    row = json.dumps({'image': 'a.png', 'conversations': turns})
    (folder / 'images.jsonl').write_text(f'{row}\n{row}\n')
    questions.tokenizer().save(folder / 'tokenizer')
    return folder


def config(place, **language) -> QuestionsConfig:
    c = QuestionsConfig(name='small', compute_dtype='float32', encoder_from='random')
    c.encoder.width, c.encoder.depth, c.encoder.heads, c.encoder.patch = 24, 1, 2, 8
    c.clips.frames, c.clips.crop = 4, 16
    c.features = str(place / 'features')
    c.projector.pool = 2
    c.data.mixture = [MixtureConfig(str(place / 'train.jsonl'))]
    c.data.length, c.data.packed, c.data.visual = 64, False, 2
    c.language.path, c.language.tokenizer = 'random', str(place / 'tokenizer')
    c.language.size, c.language.width, c.language.hidden = 'tiny', 16, 24
    c.language.head_dim, c.language.rank = 4, 2
    for name, value in language.items():
        setattr(c.language, name, value)
    c.heldout, c.heldout_rows, c.answer_tokens = str(place / 'held.jsonl'), 2, 3
    c.optim.batch, c.optim.steps, c.optim.warmup, c.optim.clip = 8, 4, 1, 1.0
    c.optim.lr = c.optim.final_lr = 1e-2
    c.checkpoints.every = 2
    c.logging.every = c.logging.health_every = 2
    return c


def run(c: QuestionsConfig, workdir) -> dict:
    train(c, str(workdir), False, False, '')
    return json.loads((workdir / 'report.json').read_text())


def arrays(folder) -> dict[str, np.ndarray]:
    tree = checkpoint.read_on_host(folder, 'params')
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.fixture(scope='module')
def finished(place):
    c = config(place, trains='adapter')
    report = run(c, place / 'lora')
    assert report['steps'] == 4 and 'perplexity' in report['sentences'][0]
    return place / 'lora'


def test_resumed_bit_for_bit(place, finished):
    cut = place / 'cut'
    shutil.copytree(finished, cut)
    shutil.rmtree(cut / 'checkpoints/4')
    (cut / 'report.json').unlink()
    run(config(place, trains='adapter'), cut)
    first, second = arrays(finished / 'checkpoints/4'), arrays(cut / 'checkpoints/4')
    assert first.keys() == second.keys() and any('adapter' in name for name in first)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], name)


def test_the_projector_goes_on_with_a_trained_model(place, finished):
    """The language model of a run that kept it frozen is trained from there; its encoder, too."""
    plain = config(place)
    run(plain, place / 'align')
    c = config(place, trains='all')
    c.features, c.train_encoder, c.optim.lr, c.optim.final_lr = '', True, 1e-9, 1e-9
    c.checkpoints.init_from = str(place / 'align')
    run(c, place / 'tune')
    before, after = (read(place / name) for name in ('align', 'tune'))
    for old, new in (('frozen/decoder', 'decoder'), ('target', 'online'), ('projector',) * 2):
        pairs = zip(*(jax.tree.leaves(w.params(n)) for w, n in ((before, old), (after, new))))
        assert all(np.abs(a - b).max() < 1e-5 for a, b in pairs), new
    with pytest.raises(ValueError, match='has an adapter, this run none'):
        c.checkpoints.init_from = str(finished)
        run(c, place / 'lost')


def test_small_files_load_alone(place, finished):
    video = str(place / '9.mp4')
    whole = read(finished)
    write(only(whole, ['projector', 'adapter']), place / 'small', to='jax')
    write(whole, place / 'language', to='hf', encoder='language')
    asked = dict(choices=('one', 'two'), most=3)
    expected = Answerer.of(whole).ask(video, 'Which?', **asked)
    parts = dict(encoder_from=str(finished), language=str(finished))
    alone = Answerer.of(read(place / 'small'), **parts).ask(video, 'Which?', **asked)
    assert (alone.text, alone.shares) == (expected.text, expected.shares)
    # the adapter merged
    names = [name for name in whole.nets if name != 'adapter']
    bare = Answerer.of(only(whole, names), language=str(place / 'language'))
    merged = bare.ask(video, 'Which?', **asked)
    np.testing.assert_allclose(merged.shares, expected.shares, rtol=1e-4)


def test_a_pooler_trains_on_videos_and_tiles(place):
    c = config(place)
    c.clips.frames, c.clips.images = 8, 'tiles'
    c.data.mixture.append(MixtureConfig(str(place / 'images.jsonl')))
    c.projector = VisualProjectorConfig('pooler', queries=2, depth=2, heads=4)
    c.optim.steps = 2
    c.features = ''
    assert run(dataclasses.replace(c), place / 'pooler')['steps'] == 2
