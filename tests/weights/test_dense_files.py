"""Files of V-JEPA 2.1: which model they are, there and back bit for bit, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest
import torch
from PIL import Image
from test_own import arrays, optimizer, stored
from test_shapes import count, fits, reader

import jepa_jax
from jepa_jax import build, checkpoint, convert
from jepa_jax.config import DenseVideoConfig
from jepa_jax.errors import ConvertError, InputError, ZooError
from jepa_jax.model import Encoder, Fill, Future, Loaded, Model
from jepa_jax.models import VERSIONS
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights import names, own, shapes, zoo
from jepa_jax.weights.contents import StoredNet, Weights

TINY = dict(crop=64, frames=4, heads=4, predictor_heads=2)
# size -> width, depth, hidden width, heads, parameters of encoder and predictor, and the levels
# and the width of what the predictor says (reference: vjepa2_1 §1)
RELEASED = {
    'vitb': (768, 12, 3072, 12, 86_833_152, 22_874_752, 1, 1664),
    'vitl': (1024, 24, 4096, 16, 304_680_960, 22_973_056, 1, 1664),
    'vitg': (1408, 40, 6144, 22, 1_013_267_968, 55_400_704, 4, 0),
    'gigantic': (1664, 48, 8192, 26, 1_845_216_768, 59_433_472, 4, 0),
}


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize('size', RELEASED)
def test_released_sizes(size):
    """Names, order and shapes of the real files, and no value."""
    width, depth, hidden, heads, of_encoder, of_predictor, levels, out = RELEASED[size]
    read, forms = reader(), originals.dense_encoder(width, depth, hidden)
    encoder = shapes.encoder(read, 'target', forms, None)
    assert count(forms) == of_encoder
    assert (shapes.size_of(encoder), encoder.heads, encoder.rope) == (size, heads, 'paired')
    assert (encoder.interpolate, encoder.modalities, encoder.image_size) == (True, True, 384)
    assert encoder.levels == VERSIONS['2.1'].blocks(depth)
    fits('encoder', encoder, forms)
    forms = originals.dense_predictor(width, 384, 24 if levels > 1 else 12, 8, levels, out)
    assert count(forms) == of_predictor
    predictor = shapes.predictor(read, 'predictor', forms, encoder)
    assert (predictor.heads, predictor.mask_tokens) == (12, 8)
    assert (predictor.levels, predictor.out_width) == (levels, out)
    assert (predictor.grid, predictor.interpolate) == ((32, 24, 24), True)
    assert [note.split()[0] for note in read.notes] == ['crop', 'frames', 'raw_positions']
    fits('predictor', predictor, forms)


@pytest.fixture(scope='module', params=[False, True], ids=['levels', 'distilled'])
def files(request, tmp_path_factory):
    """A file with the real names, what it holds, and what it became here and again there."""
    folder = tmp_path_factory.mktemp('dense')
    content = originals.dense_released(request.param)
    torch.save(content, folder / 'start.pt')
    convert.write(convert.read(folder / 'start.pt', **TINY), folder / 'ours', 'jax')
    convert.write(convert.read(folder / 'ours'), folder / 'back.pt', 'torch')
    return folder, content


def assert_same(ours: dict, theirs: dict) -> None:
    for name, state in theirs.items():
        assert list(ours[name]) == list(state), name  # also the order
        assert all(torch.equal(ours[name][key], value) for key, value in state.items()), name


def test_there_and_back(files):
    folder, content = files
    assert_same(torch.load(folder / 'back.pt', weights_only=True), content)
    weights = convert.read(folder / 'back.pt')
    assert weights.version == '2.1' and weights.encoder.heads == 4
    assert 'V-JEPA 2.1' in weights.summary()[0]
    with pytest.raises(ConvertError, match='V-JEPA 2.1, which a VJEPA2Model cannot have'):
        convert.write(weights, folder / 'hf', 'hf')


@pytest.mark.slow
@pytest.mark.parametrize('size', ['vitb', 'vitg', 'gigantic'])
def test_there_and_back_at_full_width(tmp_path, size):
    """B whole; g and G by their real names at depth 2."""
    width, depth, hidden, heads, *_, levels, out = RELEASED[size]
    whole = size == 'vitb'
    entry = 'ema_encoder' if out else 'target_encoder'
    encoder = originals.dense_encoder(width, depth if whole else 2, hidden)
    predictor = originals.dense_predictor(width, 384, 12 if whole else 2, 8, levels, out)
    content = {
        entry: originals.fill(encoder, 'module.backbone.'),
        'predictor': originals.fill(predictor, 'module.backbone.'),
    }
    torch.save(content, tmp_path / 'start.pt')
    weights = convert.read(tmp_path / 'start.pt')
    assert weights.size == (size if whole else 'custom') and weights.encoder.heads == heads
    convert.write(weights, tmp_path / 'ours', 'jax')
    convert.write(convert.read(tmp_path / 'ours'), tmp_path / 'back.pt', 'torch')
    assert_same(torch.load(tmp_path / 'back.pt', weights_only=True), content)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp('model') / 'a.pt'
    content = originals.dense_released(False, depth=2)
    torch.save(content, path)
    return jepa_jax.load(path, crop=64, frames=4, heads=4)


def test_images_go_through_their_own_patchifier(model):
    picture = noise(1, 64, 64, 3)
    features = model.embed(picture, preprocess='none')
    assert features.grid == (1, 4, 4) and not features.coords[:, 0].any()
    clip = model.embed(np.repeat(picture, 2, axis=0), preprocess='none')
    assert clip.grid == (1, 4, 4) and clip.coords[0, 0] == 1 / 8
    assert np.abs(features.tokens - clip.tokens).max() > 0.1
    # with the same weights and embeddings a still of two frames is the image at half the weight
    params = model.encoder.params
    kernel, bias = (params['patch_embed_image'][name] for name in ('kernel', 'bias'))
    image = params['modality']['image']
    alike = {
        **params,
        'patch_embed': {'kernel': jnp.tile(kernel / 2, (2, 1)), 'bias': bias},
        'modality': {'image': image, 'video': image},
    }
    still = Encoder(model.config, alike)(np.repeat(picture, 2, axis=0)[None])
    np.testing.assert_allclose(still, features.tokens, rtol=0, atol=1e-4)


def test_mixed_inputs_from_files(tmp_path, model):
    """One frame of a picture whatever `frames` says, and as many as that of an array."""
    Image.fromarray(noise(80, 90, 3)).save(tmp_path / 'a.png')
    np.save(tmp_path / 'b.npy', noise(4, 64, 64, 3))
    windows = [w for name in ('a.png', 'b.npy') for w in model.windows(tmp_path / name, frames=4)]
    assert [window.clip.shape for window in windows] == [(1, 64, 64, 3), (4, 64, 64, 3)]


def test_predict(model):
    """Targets and context by a head each: with the heads exchanged both are what the exchange of
    weights alone explains."""
    clip, task = noise(4, 64, 64, 3), Fill.box((2, 4, 4), slice(0, 2), slice(0, 2))
    said = model.predict(clip, task)
    assert said.tokens.shape == (1, 8, 4 * 96) and said.context_tokens.shape == (1, 24, 4 * 96)
    assert said.context.shape == (1, 24, 4 * 96)
    params = model.predictor.params
    heads = params['proj'], params['proj_context']
    exchanged = {**params, 'proj': heads[1], 'proj_context': heads[0]}
    other = Model(model.encoder, predictor=Loaded(model.predictor.config, exchanged))
    other._answers = model._answers  # the same program
    other = other.predict(clip, task)
    for ours, theirs, (before, after) in (
        (said.tokens, other.tokens, heads),
        (said.context_tokens, other.context_tokens, heads[::-1]),
    ):
        x = solve(ours[0], np.asarray(before['kernel']), np.asarray(before['bias']))
        expected = x @ np.asarray(after['kernel']) + after['bias']
        np.testing.assert_allclose(theirs[0], expected, rtol=0, atol=1e-3)


def test_predict_of_an_image(model):
    image = model.predict(noise(1, 64, 64, 3), Fill.box((1, 4, 4), slice(0, 1), slice(0, 4)))
    assert image.tokens.shape == (1, 4, 4 * 96) and not image.coords[:, 0].any()
    with pytest.raises(InputError, match='an image has no future'):
        model.predict(noise(1, 64, 64, 3), Future(1.0))


def solve(y, kernel, bias):
    return np.linalg.lstsq(kernel.T, (y - bias).T, rcond=None)[0].T


def test_versions_do_not_mix(tmp_path):
    """One line that says what is of which version."""
    new, old = originals.dense_released(False), originals.released()
    mixed = {
        'a': ({**new, 'predictor': old['predictor']}, 'predictor is of V-JEPA 2.0, the encoder'),
        'b': ({**old, 'predictor': new['predictor']}, 'predictor is of V-JEPA 2.1, the encoder'),
        'c': ({**new, 'encoder': old['encoder']}, 'target is of V-JEPA 2.1, the encoder beside it'),
    }
    lacking = dict(new['target_encoder'])
    del lacking['module.backbone.norms_block.2.bias']
    mixed['d'] = ({'target_encoder': lacking}, 'target of V-JEPA 2.1: norms_block.2.bias is missi')
    for name, (content, words) in mixed.items():
        torch.save(content, tmp_path / f'{name}.pt')
        with pytest.raises(ConvertError, match=words):
            convert.read(tmp_path / f'{name}.pt', **TINY)


def test_a_run_becomes_a_file_of_the_original(tmp_path):
    """With its optimizer and its loss guard, of videos alone: what is of images has no moments."""
    config = DenseVideoConfig(name='mine', compute_dtype='float32')
    e, p = config.encoder, config.predictor
    e.width, e.depth, e.heads = p.width, p.depth, p.heads = 24, 2, 2
    config.data.crop, config.data.frames = 64, 4
    objective = build.dense_video(config)
    trained = {
        net: arrays(net, objective.nets[net].config, f'params/{net}', seed)
        for seed, net in enumerate(('encoder', 'predictor'))
    }
    average = arrays('encoder', objective.nets['encoder'].config, 'ema/encoder', 2)
    moments = optimizer(trained, 7)
    idle = {*objective.unused, 'predictor/mask_tokens/0'}
    for name in moments:
        if name.split('/', 3)[-1] in idle:
            moments[name] = np.zeros_like(moments[name])
    guard = dict(zip(own.GUARD, (np.ones(300, np.float32), np.int32(7), np.int32(0))))
    everything = {**trained['encoder'], **trained['predictor'], **average, **moments}
    extra = {'config': json.loads(json.dumps(dataclasses.asdict(config)))}
    checkpoint.write(tmp_path / 'run', everything | guard, step=7, extra=extra)

    convert.write(convert.read(tmp_path / 'run'), tmp_path / 'a.pt', 'torch')
    content = torch.load(tmp_path / 'a.pt', weights_only=True)
    shapes_of = {k: tuple(v.shape) for k, v in content['target_encoder'].items()}
    prefix = 'module.backbone.'
    expected = originals.dense_encoder(24, 2, 96)
    assert shapes_of == {prefix + name: shape for name, shape in expected.items()}
    expected = originals.dense_predictor(24, 24, 2, 8)
    assert [*content['predictor']] == [prefix + name for name in expected]
    # two ways of images in the encoder, one in the predictor, and eight mask tokens
    groups = sum(len(group['params']) for group in content['opt']['param_groups'])
    assert len(content['opt']['state']) == groups - 4 - 8
    convert.write(convert.read(tmp_path / 'a.pt'), tmp_path / 'back', 'jax')
    back = stored(tmp_path / 'back')
    assert back.keys() == everything.keys()
    for name, array in everything.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_released_names(tmp_path, monkeypatch):
    """reference: vjepa2_1 §1; g and G differ by case alone there, and not here."""
    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path))
    rows = {name: row for name, row in zoo.RELEASED.items() if row.version == '2.1'}
    assert list(rows) == ['vitb-21', 'vitl-21', 'vitg-21', 'vitgigantic-21']
    local = [zoo.local_name(row).lower() for row in zoo.RELEASED.values()]
    assert len(set(local)) == len(local)
    sizes = ('base', 'large', 'giant', 'gigantic')
    assert {names.ALIASES[f'vjepa2_1_vit_{size}_384'] for size in sizes} == set(rows)
    # a file of 2.0 under a name of 2.1, and the other way round
    (tmp_path / 'weights').mkdir()
    for version, content in (
        ('2.1', originals.released()),
        ('2.0', originals.dense_released(False)),
    ):
        monkeypatch.setitem(
            zoo.RELEASED, 'mine', zoo.Released('a.pt', 'custom', 64, version=version)
        )
        torch.save(content, tmp_path / 'weights/a.pt')
        with pytest.raises(ZooError, match=f'should be mine of size custom, V-JEPA {version}, hol'):
            zoo.find('mine')
        (tmp_path / 'weights/a.pt.json').unlink()


def test_random_weights_of_the_version():
    from jepa_jax.pretrained import random_configs

    encoder, predictor = random_configs('gigantic-21')
    assert encoder.mlp_ratio == 64 / 13 and encoder.levels == (11, 23, 37, 47)
    assert (predictor.depth, predictor.levels, predictor.predict_context) == (24, 4, True)
    with pytest.raises(ZooError, match="size 'vitx-21'"):
        random_configs('vitx-21')


def test_golden_forward_of_the_doctor():
    from jepa_jax import golden

    assert golden.problems('tiny-21', golden.forward('tiny-21')) == []
    assert jax.tree.leaves(golden.weights(golden.config_of('tiny-21')))[0].dtype == jnp.float32


def test_a_model_of_actions_is_of_its_encoders_version():
    encoder = ViTConfig(48, 4, 2, image_size=32, rope='paired', modalities=True, levels=(3,))
    predictor = ACPredictorConfig(48, width=48, depth=1, heads=2, grid=(2, 2))
    nets = {
        'ac_predictor': StoredNet('ac_predictor', predictor, {}),
        'target': StoredNet('encoder', encoder, {}),
    }
    assert Weights(None, 'jax', nets).version == '2.1'
    plain = dataclasses.replace(encoder, rope='tiled', modalities=False, levels=())
    nets['target'] = StoredNet('encoder', plain, {})
    assert Weights(None, 'jax', nets).version == '2.0'
