"""The ready model: its features against the bare net, its tasks against the original's numbers."""

import dataclasses
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_fill
from models.test_pooler import fill as fill_pooler
from PIL import Image

import jepa_jax
from jepa_jax import catalogue, inputs, pretrained
from jepa_jax.data import decode
from jepa_jax.data.views import eval_view
from jepa_jax.errors import BadFile, ConvertError, InputError
from jepa_jax.model import Encoder, Fill, Future, Loaded, ProbeHead
from jepa_jax.models.pooler import AttentiveClassifier, AttentivePooler, PoolerConfig
from jepa_jax.models.predictor import Predictor, PredictorConfig
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import Net
from jepa_jax.pretrained import Model

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
WHOLE = 1e-4  # design: whole encoder or predictor, float32 on CPU
VIT = ViTConfig(96, 3, 4, image_size=64, frames=8, dtype=jnp.float32)
PREDICTOR = PredictorConfig(96, 48, 2, 2, mask_tokens=3, grid=(4, 4, 4), dtype=jnp.float32)
POOLER = PoolerConfig(96, heads=4, depth=2, queries=3, dtype=jnp.float32)
CLASSES = {'verb': 3, 'noun': 4, 'action': 5}


def net_of(module, *config):
    return Net(lambda rngs: module(*config, rngs=rngs))


@pytest.fixture(scope='module')
def model():
    """A tiny model of the golden arrays: weights filled by the formula."""
    encoder, predictor = net_of(ViT, VIT), net_of(Predictor, PREDICTOR)
    named = {f'{head}_classifier': count for head, count in CLASSES.items()}
    probe = fill_pooler(net_of(AttentiveClassifier, POOLER, named).abstract)
    probe['heads'] = {head: probe['heads'][f'{head}_classifier'] for head in CLASSES}
    return Model(
        Loaded(VIT, torch_fill.fill(encoder.abstract, sigma=0.05)),
        predictor=Loaded(
            PREDICTOR, torch_fill.fill(predictor.abstract, sigma=0.05, predictor=True)
        ),
        probe=ProbeHead(POOLER, CLASSES, probe, reads='future', frames=8),
    )


def run(net, params, *inputs, **static):
    """A net's output, compiled as a whole: a tenth of the time that operations one by one take."""
    return jax.jit(lambda p, *x: net(p, *x, **static))(params, *inputs)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_features_are_the_nets(model):
    video = noise(20, 70, 90, 3)
    result = model.embed(video, frames=8, stride=5, fps=10, crop=32, layers=[0, 2])
    clips = np.stack([eval_view(video[s : s + 8], 32) for s in (0, 5, 10, 12)])
    np.testing.assert_array_equal(result.clips, clips)
    assert result.grid == (4, 2, 2) and result.numbers[3].tolist() == list(range(12, 20))
    np.testing.assert_allclose(result.seconds[3], np.arange(12, 20) / 10)
    pixels = jnp.asarray((clips.astype(np.float32) / 255 - MEAN) / STD)
    first, last = run(net_of(ViT, VIT), model.encoder.params, pixels, levels=(0, 2))
    np.testing.assert_allclose(result.tokens, last, rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.levels[:, 0], first, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(result.levels[:, 1], result.tokens)


def test_coordinates(model):
    features = model.embed(noise(8, 32, 48, 3), fps=4, preprocess='none')
    expected = [
        ((2 * t + 0.5) / 4, 16 * y + 8, 16 * x + 8)
        for t in range(4)
        for y in range(2)
        for x in range(3)
    ]
    np.testing.assert_allclose(features.coords, expected)
    assert features.tokens.shape == (1, 24, 96)


def test_batches_change_nothing(model):
    video = noise(18, 32, 32, 3)
    one, three = (
        model.embed(video, frames=4, preprocess='none', batch=n, pool='mean') for n in (1, 3)
    )
    assert one.pooled.shape == (5, 96) and one.tokens is None
    np.testing.assert_allclose(one.pooled, three.pooled, rtol=0, atol=1e-5)
    tokens = model.embed(video, frames=4, preprocess='none').tokens
    np.testing.assert_allclose(one.pooled, tokens.mean(1), rtol=0, atol=1e-5)


def test_a_batch_is_filled_up_to_what_was_asked_for_and_no_further(model, monkeypatch):
    video, sizes = noise(18, 32, 32, 3), []
    encode = model.encode
    monkeypatch.setattr(model, 'encode', lambda x, *a: sizes.append(len(x)) or encode(x, *a))
    for batch in (4, 1, 3):
        model.embed(video, frames=4, preprocess='none', batch=batch)
    assert sizes == [4, 4, *[1] * 5, 3, 3]


def test_a_rate_that_is_none_is_refused(model):
    video = noise(8, 32, 32, 3)
    calls = (
        lambda fps: model.embed(video, fps=fps, **NONE),
        lambda fps: model.embed(video[None], fps=fps, **NONE),
        lambda fps: model.predict(video, Future(1.0), fps=fps),
    )
    for fps, call in itertools.product((0, -1, float('nan'), float('inf')), calls):
        with pytest.raises(InputError, match=f'fps {fps}: must be a number above 0'):
            call(fps)


def test_clips_and_normalised_floats(model):
    clips = noise(2, 8, 32, 32, 3)
    raw = model.embed(clips, preprocess='none').tokens
    floats = (clips.astype(np.float32) / 255 - MEAN) / STD
    normalised = model.embed(floats, preprocess='none', normalised=True).tokens
    np.testing.assert_allclose(raw, normalised, rtol=0, atol=2e-5)


def test_arrays_of_others_and_lists(model):
    """torch's, Pillow's and jax's arrays, and lists of frames, are the same video; a list of videos
    gives a list."""
    torch = pytest.importorskip('torch')
    video = noise(4, 32, 32, 3)
    expected = model.embed(video, **NONE).tokens
    for same in (
        torch.from_numpy(video), jnp.asarray(video), list(video), list(torch.from_numpy(video)),
        tuple(Image.fromarray(frame) for frame in video),
    ):  # fmt: skip
        np.testing.assert_array_equal(model.embed(same, **NONE).tokens, expected)
    both = model.embed([video[::-1], torch.from_numpy(video)], **NONE)
    np.testing.assert_array_equal(both[1].tokens, expected)
    np.testing.assert_array_equal(both[0].clips[0], video[::-1])
    for bad, words in (
        ([], 'an empty list'), ([video[0], video[1, :16]], r'not of one size: \(16, 32, 3\)'),
        ({'a': 1}, 'video is dict'), ([video[0], 'a.mp4'], 'not of one size'),
        (torch.zeros(4, 32, 32, 3, requires_grad=True), 'torch.Tensor gives no array'),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            model.embed(bad, **NONE)


def test_layers_from_the_end(model):
    video = noise(2, 32, 32, 3)
    for asked, same in (([-1], [2]), ([-3, -1], [0, 2]), ([0, -1], [0, 2])):
        own, other = (model.embed(video, layers=layers, **NONE) for layers in (asked, same))
        np.testing.assert_array_equal(own.levels, other.levels)
    np.testing.assert_array_equal(own.levels[:, -1], own.tokens)
    for layers in ([-4], [3], [-1, 2], [2, 0]):
        with pytest.raises(InputError, match='0 to 2, or -3 to -1'):
            model.embed(video, layers=layers, **NONE)


def test_the_encoder_in_jit_and_grad():
    """Against differences: the gradient along a direction, of parameters and of pixels."""
    config = ViTConfig(24, 1, 2, patch=8, dtype=jnp.float32)
    encoder = Encoder(config, jax.jit(net_of(ViT, config).init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    clips = rng.uniform(-2, 2, (1, 2, 16, 16, 3)).astype(np.float32)
    weight = jnp.asarray(rng.normal(size=24).astype(np.float32))

    @jax.jit
    def both(params, clips):
        def loss(params, clips):
            return (encoder.apply(params, clips) @ weight).mean()

        return jax.value_and_grad(loss, (0, 1))(params, clips)

    trees = (encoder.params, clips)
    _, gradients = both(*trees)
    for i in range(2):
        step = [jax.tree.map(np.zeros_like, tree) for tree in trees]
        step[i] = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), trees[i])
        ends = [
            both(*jax.tree.map(lambda a, d, s=sign: a + s * 2e-3 * d, trees, tuple(step)))[0]
            for sign in (1, -1)
        ]
        pairs = zip(jax.tree.leaves(gradients[i]), jax.tree.leaves(step[i]))
        slope = sum(float((g * d).sum()) for g, d in pairs)
        assert slope == pytest.approx(float(ends[0] - ends[1]) / 4e-3, rel=0.01, abs=1e-3)
    with pytest.raises(ValueError, match='do not fit'):
        encoder.apply({}, clips)


TRAINED = inputs.Trained(8, 64, 4.0)
BEYOND = {  # settings -> what of them is beyond
    'as trained': ((8, (64, 64), 4.0), ''),
    'less': ((2, (32, 64), 4.0), ''),
    'frames': ((16, (64, 64), 4.0), '16 frames'),
    'pixels': ((8, (48, 80), 4.0), '48 x 80 pixels'),
    'rate': ((8, (64, 64), 8.0), '8 frames a second'),
    'a picture': ((2, (64, 64), 0), ''),
}


@pytest.mark.parametrize('case', BEYOND)
def test_beyond_what_was_trained(case):
    settings, words = BEYOND[case]
    line = TRAINED.exceeded(*settings)
    assert line.partition(':')[0] == words
    assert not words or line.endswith('trained on at most 8 frames of 64 x 64 pixels at 4 a second')
    other = dataclasses.replace(TRAINED, fps=0.0).exceeded(*settings)  # a rate that is not known
    assert other.partition(':')[0] == (words if case != 'rate' else '')


def test_what_is_beyond_is_said(model, tmp_path):
    known = Model(model.encoder, predictor=model.predictor, trained=TRAINED)
    np.save(tmp_path / 'a.npy', noise(4, 32, 32, 3))
    with pytest.warns(UserWarning, match='^5 frames a second: the model was trained'):
        known.embed(noise(1, 2, 32, 32, 3), fps=5, **NONE)
    with pytest.warns(UserWarning, match='^80 x 80 pixels, 5 frames a second'):
        next(known.windows(tmp_path / 'a.npy', fps=5, crop=80))
    next(known.windows(tmp_path / 'a.npy', crop=32))  # nothing is said of what it knows


def test_image_is_doubled(model, tmp_path):
    picture = noise(40, 50, 3)
    Image.fromarray(picture).save(tmp_path / 'p.png')
    result = model.embed(tmp_path / 'p.png', crop=32)
    assert result.clips.shape == (1, 2, 32, 32, 3) and result.grid == (1, 2, 2)
    np.testing.assert_array_equal(result.clips[0, 0], result.clips[0, 1])
    assert result.coords[:, 0].tolist() == [0] * 4


FLOATS = np.linspace(0, 1, 8 * 32 * 32 * 3, dtype=np.float32).reshape(8, 32, 32, 3)
NONE = dict(preprocess='none')
REFUSED = {
    '0 and 1': (FLOATS, NONE, 'between 0 and 1'),
    '0 to 255': (FLOATS * 255, NONE, 'cast to uint8'),
    'normalised': (FLOATS * 4 - 2, NONE, 'normalised=True'),
    'normalised twice': (FLOATS * 20 - 10, dict(normalised=True, **NONE), r'-2.12 to 2.64'),
    'not finite': (FLOATS * np.nan, NONE, 'finite'),
    'whole numbers': (np.zeros((8, 32, 32, 3), int), NONE, 'int64: must be uint8'),
    'bytes called normalised': (noise(8, 32, 32, 3), dict(normalised=True, **NONE), 'uint8'),
    'normalised to resize': (FLOATS, dict(normalised=True), "preprocess 'none'"),
    'channels first': (noise(3, 8, 32, 32), NONE, 'channels last'),
    'not pixels': ([1, 2], {}, 'list'),
    'pool': (noise(8, 32, 32, 3), dict(pool='max'), 'none, mean, attentive'),
    'layer': (noise(8, 32, 32, 3), dict(layers=[3]), '0 to 2'),
    'frames': (noise(8, 32, 32, 3), dict(frames=5), 'multiple of 2'),
    'crop': (noise(8, 32, 32, 3), dict(crop=40), 'multiple of 16'),
    'crop of nothing': (noise(8, 32, 32, 3), dict(crop=32, **NONE), 'nothing is cut'),
    'frames of windows': (noise(2, 8, 32, 32, 3), dict(frames=4), 'frames 4: must be 8, as window'),
    'stride of windows': (noise(2, 8, 32, 32, 3), dict(stride=4), 'stride 4: must be 8, as window'),
    'stride': (noise(8, 32, 32, 3), dict(stride=0), 'at least 1'),
    'fps': (noise(8, 32, 32, 3), dict(fps=-1.0), 'above 0'),
    'preprocess': (noise(8, 32, 32, 3), dict(preprocess='train'), 'eval, none'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused(model, case):
    video, settings, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        model.embed(video, **settings)


def test_sizes_and_dark_pixels(model):
    with pytest.raises(BadFile, match='multiples of 16'):
        model.embed(noise(8, 30, 32, 3), preprocess='none')
    with pytest.warns(UserWarning, match='cast to bytes'):
        model.embed(np.zeros((2, 32, 32, 3), np.uint8), preprocess='none')
    with pytest.warns(UserWarning, match='0-1 pixels'):
        model.embed(FLOATS, preprocess='none', normalised=True)


# A model as people of this ecosystem use it


def test_the_encoder_is_a_function(model):
    clips = noise(2, 4, 32, 48, 3)
    tokens = model.encoder(clips)
    assert tokens.shape == (2, 12, 96) and tokens.dtype == jnp.float32
    np.testing.assert_array_equal(tokens, model.embed(clips, preprocess='none', batch=2).tokens)
    torch = pytest.importorskip('torch')
    np.testing.assert_array_equal(model.encoder(torch.from_numpy(clips)), tokens)
    expected = run(net_of(ViT, VIT), model.encoder.params, jnp.asarray(clips), levels=(0, 2))
    for level, other in zip(model.encoder(clips, levels=(0, -1)), expected):
        np.testing.assert_allclose(level, other, rtol=0, atol=1e-5)
    for pixels, words in ((clips[0], 'channels last'), (FLOATS[None] * 255, '-2.12 to 2.64')):
        with pytest.raises(InputError, match=words):
            model.encoder(pixels)


def test_the_preprocessor_is_what_embed_feeds(model):
    cv2 = pytest.importorskip('cv2')
    video = noise(4, 70, 90, 3)
    view = jepa_jax.preprocessor(crop=64)(video)
    np.testing.assert_array_equal(view, model.embed(video, frames=4).clips[0])
    assert jepa_jax.vjepa2_preprocessor is jepa_jax.preprocessor
    short = int(64 * 256 / 224)
    frame = cv2.resize(video[1], (int(short * 90 / 70), short), interpolation=cv2.INTER_LINEAR)
    y, x = (round((side - 64) / 2) for side in frame.shape[:2])
    np.testing.assert_array_equal(view[1], frame[y : y + 64, x : x + 64])
    for pixels in (FLOATS, video[0], video.transpose(3, 0, 1, 2)):
        with pytest.raises(InputError, match='must be uint8'):
            jepa_jax.preprocessor(64)(pixels)
    with pytest.raises(InputError, match='at least 1'):
        jepa_jax.preprocessor(0)


def test_a_model_says_what_it_is(model):
    lines = repr(model).splitlines()
    count = sum(leaf.size for leaf in jax.tree.leaves(model.encoder.params)) / 1e6
    for words in (f'{count:.3g} M parameters', '3 blocks', 'width 96', 'crop 64', 'float32'):
        assert words in lines[0]
    assert len(lines) == 2 and 'predictor of ' in lines[1] and 'verb 3, noun 4' in lines[1]
    # arrays show their types and shapes, and no numbers
    features = model.embed(noise(2, 32, 32, 3), **NONE)
    assert 'tokens=float32 [1, 4, 96]' in repr(features) and len(repr(features)) < 400
    assert len(repr(model.probe)) < 500 and 'M numbers' in repr(model.predictor)


def test_what_the_package_offers():
    assert set(jepa_jax.__all__) < set(dir(jepa_jax)) and 'annotations' not in dir(jepa_jax)
    assert 'example' in dir(jepa_jax)  # no lazy name
    for name in jepa_jax.__all__:
        assert getattr(jepa_jax, name) is not None
    assert jepa_jax.models.SIZES  # a package, too


def test_the_table_of_models(tmp_path, monkeypatch):
    """Parameters by hand, and those of the original's nets (reference: vjepa2 §3, §7.1, §9.1)."""
    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path))
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights/vith.pt').write_bytes(bytes(3_000_000))
    rows = {row.name: row for row in jepa_jax.models()}

    def vit(width, depth, hidden):  # a tubelet of 1,536 numbers; attention, MLP, two norms a block
        block = 4 * (width + 1) * width + (2 * width + 1) * hidden + width + 4 * width
        return 1537 * width + depth * block + 2 * width

    large, giant = vit(1024, 24, 4096), vit(1408, 40, 6144)
    counts = {'vitl': large, 'vitg-384': giant, 'random:tiny': vit(192, 12, 768)}
    assert {name: rows[name].parameters for name in counts} == counts
    assert rows['vith'].here and rows['vith'].nbytes == 3_000_000 and not rows['vitl'].here
    assert rows['vitl'].nbytes == 4 * (2 * large + 22_086_016)
    assert rows['ac-vitg'].nbytes == 4 * (giant + 305_220_992)
    assert rows['ssv2-vitl-16x2x3'].nbytes == 4 * (49_514_670 - 174 * 1025)  # without its classes
    assert 'plans' in rows['ac-vitg'].does and 'classes (ssv2)' in rows['ssv2-vitl-16x2x3'].does
    lines = repr(jepa_jax.models()).splitlines()
    assert len(lines) == 1 + len(rows) and lines[0].startswith('name ')
    (line,) = (line for line in lines if line.startswith('vitl '))
    assert '304 M' in line and 'GB or more' in line
    assert any(line.startswith('vitg ') and ' 1,010 M ' in line for line in lines)
    assert {row.licence for row in rows.values()} == {
        'Apache-2.0', "the release's", 'not stated', 'CC-BY-NC 4.0', 'none',
    }  # fmt: skip
    assert (rows['mae-vitb'].licence, rows['mae-vitb'].family) == ('CC-BY-NC 4.0', 'MAE')
    assert rows['ek100-vitg-384'].memory == rows['vitg-384'].memory == 'about 4.5 GiB'
    assert not rows['vitb-21'].memory


@pytest.mark.parametrize(
    ('pattern', 'names'),
    [
        ('ssv2-vit', ['ssv2-vitl-16x2x3', 'ssv2-vitg-384-64x2x3']),
        ('EK100-*', ['ek100-vitl-256', 'ek100-vitg-384']),
        ('vjepa2_ac', ['ac-vitg']),  # of torch.hub
        ('tiny', ['tiny', 'random:tiny', 'random:tiny-21']),
        ('facebook/vjepa2-vith*', ['vith']),  # of the Hugging Face hub
        ('base', ['vitb-21', 'random:vitb']),  # another name of a size
        ('vit?', ['vitl', 'vith', 'vitg']),
    ],
)
def test_models_by_a_part_of_their_names(pattern, names, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['jepa models', pattern])
    assert catalogue.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == 'name encoder pixels file memory licence what it is'.split()
    assert [line.split()[0] for line in lines[1:]] == names


def test_a_pattern_of_no_model_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['jepa models', 'vtil'])
    assert catalogue.main() == 1
    said = capsys.readouterr().err
    assert said == "error: no name has 'vtil'; did you mean vitl?; without it all are listed\n"


def test_saved_and_loaded_again(model, tmp_path):
    """Bit for bit, with all that the probe knows; and a card that says what it is."""
    names = dict(labels={'verb': tuple('abc')}, segments=2, step=3)
    probe = dataclasses.replace(model.probe, **names)
    whole = Model(
        model.encoder, predictor=model.predictor, probe=probe, name='vitl', which='online',
        about=('made for a test',),
    )  # fmt: skip
    whole.save_pretrained(tmp_path / 'saved')
    again = Model.from_pretrained(tmp_path / 'saved')
    for name in ('encoder', 'predictor', 'probe'):
        one, other = getattr(whole, name), getattr(again, name)
        assert one.config == other.config
        assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
        for a, b in zip(*map(jax.tree.leaves, (one.params, other.params))):
            np.testing.assert_array_equal(a, b, strict=True)
    for key in ('classes', 'reads', 'frames', 'step', 'segments', 'labels'):
        assert getattr(again.probe, key) == getattr(probe, key)
    assert again.which == 'online' and 'saved from made for a test' in again.about
    card = (tmp_path / 'saved/README.md').read_text()
    for words in (
        'https://dl.fbaipublicfiles.com/vjepa2/vitl.pt',
        "| licence of the weights | the release's |",
        '| encoder | online encoder |', 'short side to 73 pixels', 'mean (0.485, 0.456, 0.406)',
        "jepa_jax.load('saved')",
    ):  # fmt: skip
        assert words in card, words
    with pytest.raises(ConvertError, match='exists'):
        whole.save_pretrained(tmp_path / 'saved')


@pytest.mark.parametrize(
    ('name', 'licence'),
    [
        ('mae-vitb', 'CC-BY-NC 4.0'),
        ('ijepa-vith14', 'CC-BY-NC 4.0'),
        ('facebook/ijepa_vith14_1k', 'CC-BY-NC 4.0'),
        ('k400-vjepa1-vitl', 'CC-BY-NC 4.0'),
        ('tiny', 'Apache-2.0'),
        ('vitl-21', 'not stated'),
        ('random:vitb', 'none: random numbers'),
        ('hf:somebody/vit', 'not known here: see the source'),
        ('runs/mine', 'not known here: see the source'),
        ('', 'not known here: see the source'),  # whatever size it is of
    ],
)
def test_a_card_has_the_licence_of_the_weights(model, name, licence, tmp_path, monkeypatch):
    """Where a name says it; a folder of one's own may have a name of the hub."""
    monkeypatch.chdir(tmp_path)

    def line():
        card = pretrained.card(Model(model.encoder, name=name), 'saved')
        return next(x for x in card.splitlines() if 'licence' in x)

    assert line().startswith(f'| licence of the weights | {licence}')
    if '/' in name and ':' not in name:
        (tmp_path / name).mkdir(parents=True)
        assert 'not known here' in line()


# Prediction


def test_fill_is_training_s_forward(model):
    """Against the nets as the pretraining step calls them: tokens dropped before the encoder,
    and the mask token of the only frame count."""
    clip = noise(2, 8, 64, 64, 3)
    mask = np.zeros((4, 4, 4), bool)
    mask[1:3, :2] = True
    result = model.predict(clip, Fill(mask))
    keep = jnp.asarray(np.tile(np.flatnonzero(~mask), (2, 1)))
    ids = jnp.asarray(np.tile(np.flatnonzero(mask), (2, 1)))
    x = run(net_of(ViT, VIT), model.encoder.params, jnp.asarray(clip), keep)
    z = run(net_of(Predictor, PREDICTOR), model.predictor.params, x, keep, ids, mask_index=0)
    np.testing.assert_allclose(result.context, x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.tokens, z, rtol=0, atol=1e-5)
    all_coords = model.coords((4, 4, 4), 1 / 4, 8)
    np.testing.assert_array_equal(result.coords, all_coords[mask.ravel()])


@pytest.mark.parametrize('task', ['future', 'box'])
def test_nothing_leaks(model, task):
    """Perturb what is to be predicted: neither context nor prediction moves by a bit."""
    clip = noise(8, 64, 64, 3)
    other = clip.copy()
    if task == 'future':
        targets = Fill.after((4, 4, 4), 3)
        other[6:] = noise(2, 64, 64, 3, seed=1)
    else:
        targets = Fill.box((4, 4, 4), slice(1, 3), slice(0, 2))
        other[:, 16:48, :32] = 255 - other[:, 16:48, :32]
    a, b = (model.predict(c, targets) for c in (clip, other))
    np.testing.assert_array_equal(a.context, b.context)
    np.testing.assert_array_equal(a.tokens, b.tokens)
    other[0, 0, 40:] ^= 128  # and what is seen does move them
    c = model.predict(other, targets)
    assert not np.array_equal(a.context, c.context) and not np.array_equal(a.tokens, c.tokens)


@pytest.fixture
def any_pixels(monkeypatch):
    """The golden inputs are normal noise, wider than pixels can be."""
    monkeypatch.setattr(inputs, 'check_pixels', lambda *_, **__: None)


@pytest.fixture(scope='module')
def golden():
    with np.load(torch_fill.__file__.replace('torch_fill.py', 'golden/pooler.npz')) as file:
        return dict(file)


def test_future_is_the_originals(model, golden, any_pixels):
    clips = np.moveaxis(torch_fill.normal(0, 2, 3, 8, 64, 64), 1, -1)
    for i, skip in enumerate([1.0, 0.3]):
        task = Future(0.25, skip)
        result = model.predict(clips[i], task, fps=8, mask_index=1, normalised=True)
        np.testing.assert_allclose(
            result.tokens[0], golden['K1_anticip_wrapper'][i, 64:], rtol=0, atol=WHOLE
        )
        assert result.coords[0, 0] == pytest.approx((8 + int(skip * 4) * 2 + 0.5) / 8)


def test_a_second_step_is_the_originals(model, golden, any_pixels):
    """Row 0 of K2, one second ahead, where the first prediction is seen by the second."""
    clip = np.moveaxis(torch_fill.normal(0, 2, 3, 8, 64, 64), 1, -1)[:1]
    _, context = model.seen(lambda levels: model.encode(jnp.asarray(clip), levels))
    two = model.later(context, (4, 4, 4), model.predictor.params, steps=2)
    first = golden['K1_anticip_wrapper'][:1, 64:]
    expected = np.concatenate([first, golden['K2_second_step'][:1]], axis=1)
    assert abs(expected[:, :16] - expected[:, 16:]).max() > 100 * WHOLE
    np.testing.assert_allclose(two, expected, rtol=0, atol=WHOLE)


def test_anticipation_is_the_originals(model, golden, any_pixels):
    """Row 0 of K3, one second ahead, through the sigmoid that the focal loss stands for."""
    clip = np.moveaxis(torch_fill.normal(0, 2, 3, 8, 64, 64), 1, -1)[0]
    result = model.classify(clip, top=9)
    for head, rows in result.top.items():
        logits = golden[f'K3_{head}'][0].astype(np.float64)
        expected = 1 / (1 + np.exp(-logits))
        assert [row[0] for row in rows] == np.argsort(-expected).tolist()
        np.testing.assert_allclose([r[2] for r in rows], np.sort(expected)[::-1], atol=WHOLE)


def test_predictions_of_files(model, tmp_path):
    """A path is one window of it, as embed feeds it; from a second on, at the file's own rate."""
    video = noise(20, 70, 90, 3)
    np.save(tmp_path / 'a.npy', video)
    view = jepa_jax.preprocessor(64)(video)
    task = Future(0.5)
    result = model.predict(tmp_path / 'a.npy', task, frames=8)
    own = model.predict(view[:8], task)
    np.testing.assert_array_equal(result.clips[0], view[:8])
    np.testing.assert_array_equal(result.tokens, own.tokens)
    np.testing.assert_array_equal(result.coords, own.coords)
    later = model.predict(str(tmp_path / 'a.npy'), task, frames=8, start=1.5)
    np.testing.assert_array_equal(later.clips[0], view[6:14])
    assert later.grid == (4, 4, 4) and 'tokens=float32 [1, 16, 96]' in repr(later)
    with pytest.raises(InputError, match='frames from 0 to 4.75 s'):
        model.predict(tmp_path / 'a.npy', task, start=9)
    with pytest.raises(InputError, match='frames, start: for a path'):
        model.predict(view[:8], task, frames=8, start=1)
    with pytest.raises(BadFile, match='missing'):
        model.predict(tmp_path / 'none.npy', task)
    with pytest.raises(InputError, match='one clip'):
        model.predict([tmp_path / 'a.npy'], task)


def test_tasks_that_do_not_fit(model):
    clip = noise(8, 64, 64, 3)
    for context, targets, words in [
        (clip, Fill(np.ones((4, 4, 4), bool)), 'some must stay'),
        (clip, Fill(np.zeros((4, 4, 4), bool)), 'some must stay'),
        (clip, Fill(np.zeros((4, 4, 5), bool)), r'bool \[4, 4, 4\]'),
        (clip, Future(0), 'above 0'),
        (clip, Future(float('nan')), 'above 0'),
        (clip, Future(float('inf')), 'above 0'),
        (clip, Future(1.0, float('nan')), 'above 0 and skip not below'),
        (clip[..., 0], Future(1.0), 'channels last'),
        (clip[0], Future(1.0), 'channels last'),
        (clip[None][:0], Future(1.0), 'channels last'),
        (clip, 'future', 'Fill or a Future'),
        (clip[:7], Future(1.0), 'frames 7'),
        (clip[:, :60], Future(1.0), 'height 60'),
    ]:
        with pytest.raises(InputError, match=words):
            model.predict(context, targets)
    with pytest.raises(InputError, match='no predictor'):
        Model(model.encoder).predict(clip, Future(1.0))


def test_so_many_tubelets_ahead_are_so_many(model):
    """Seconds are hardly ever whole in binary: of 7 tubelets of 2 / 24 s there were 6."""
    ahead = 7 * 2 * (1 / 24)
    assert ahead * 24 / 2 < 7
    said = model.predict(noise(8, 64, 64, 3), Future(ahead, skip=ahead), fps=24)
    assert len(said.ids) == 7 * 16 and said.ids[0] == (4 + 7) * 16


# Probes


def test_a_clip_is_classified_as_a_whole_or_not(model):
    """What patches and tubelets do not fill was left out without a word."""
    clip = noise(8, 64, 64, 3)
    for part, words in (
        (clip[:7], 'clip frames 7: must be a multiple of 2'),
        (clip[:, :60], 'clip height 60: must be a multiple of 16'),
        (clip[:, :, :50], 'clip width 50: must be a multiple of 16'),
        (clip[:0], 'channels last'),
        (clip[..., :2], 'channels last'),
    ):
        with pytest.raises(InputError, match=words):
            model.classify(part)
    with pytest.raises(InputError, match='top 0: must be at least 1'):
        model.classify(clip, top=0)


def test_levels_are_read_one_after_the_other(model):
    config = PoolerConfig(96, heads=4, depth=1, dtype=jnp.float32)
    net = net_of(AttentiveClassifier, config, {'linear': 7})
    params = jax.jit(net.init)(jax.random.key(0))
    clip = noise(8, 64, 64, 3)
    probe = ProbeHead(
        config, {'linear': 7}, params, reads=(0, 2), labels={'linear': tuple('abcdefg')}
    )
    ready = Model(model.encoder, probe=probe)
    encoder = net_of(ViT, VIT)
    levels = run(encoder, model.encoder.params, jnp.asarray(clip[None]), levels=(0, 2))
    both = jnp.concatenate(levels, axis=1)
    logits = run(net, params, both)['linear'][0]
    chance = np.asarray(jax.nn.softmax(logits))
    result = ready.classify(clip)
    rows = result.top['linear']
    assert [row[0] for row in rows] == np.argsort(-chance)[:5].tolist()
    np.testing.assert_allclose([row[2] for row in rows], np.sort(chance)[::-1][:5], atol=1e-5)
    assert rows[0][1] == 'abcdefg'[rows[0][0]]
    assert str(result).count('\n') == 4 and rows[0][1] in str(result)
    pooled = ready.embed(clip, preprocess='none', frames=8, pool='attentive').pooled
    expected = run(net_of(AttentivePooler, config), params['pooler'], both)
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5)


def test_a_video_is_sampled_as_the_probe_was_trained(model, tmp_path, monkeypatch):
    from jepa_jax.data import synthetic
    from jepa_jax.data.clips import clip_indices

    path = tmp_path / 'v.mp4'
    synthetic.write(path, noise(40, 64, 64, 3))
    config = PoolerConfig(96, heads=4, depth=1, dtype=jnp.float32)
    params = jax.jit(net_of(AttentiveClassifier, config, {'linear': 2}).init)(jax.random.key(0))
    probe = ProbeHead(config, {'linear': 2}, params, frames=4, step=3, segments=2)
    chosen = []
    real = decode.read_frames

    def read(path, choose):
        return real(path, lambda timing: chosen.append(choose(timing)) or chosen[-1])

    monkeypatch.setattr(decode, 'read_frames', read)
    Model(model.encoder, probe=probe).classify(path)
    expected = clip_indices(40, 4, 3, num_clips=2, overlap=True)
    np.testing.assert_array_equal(chosen[0], expected.ravel())
    late = dataclasses.replace(probe, reads='future')
    with pytest.raises(InputError, match='no predictor'):
        Model(model.encoder, probe=late).classify(path)
    np.testing.assert_array_equal(chosen[1], np.arange(36, 40))  # the last, 8 a second of 8


def test_no_probe(model):
    for call in (
        lambda m: m.classify(noise(8, 64, 64, 3)),
        lambda m: m.embed(noise(8, 64, 64, 3), pool='attentive'),
    ):
        with pytest.raises(InputError, match='no probe'):
            call(Model(model.encoder))
