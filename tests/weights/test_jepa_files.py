"""Files of I-JEPA and V-JEPA 1, and folders of `IJepaModel`, there and back bit for bit."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import originals
import pytest
import torch
from originals import blocks, fill, linear, norm

import jepa_jax
from jepa_jax import convert, doctor
from jepa_jax.errors import ConvertError, InputError, ZooError
from jepa_jax.models.tokens import sincos_table
from jepa_jax.weights import parts, zoo
from jepa_jax.weights.names import RELEASED, Released

D, HIDDEN, PATCH, SIDE = 48, 24, 8, 4  # widths of encoder and predictor, pixels, patches a side


def table(width: int, grid=(0, SIDE, SIDE), axes='xy') -> torch.Tensor:
    return torch.from_numpy(sincos_table(grid, width, True, axes)[None])


def image_file(axes='xy', drift=0.0, **more) -> dict:
    """A file of I-JEPA (reference: family §1.8), tiny; drift: of the target's table, which its
    average rounds at every step."""
    encoder = originals.encoder(D, 2, 4 * D, PATCH, tubelet=1)

    def state(seed: str, drift: float) -> dict:
        first = {'module.pos_embed': table(D, axes=axes) + drift}
        return first | fill(encoder, 'module.', seed=seed)

    predictor = fill({'mask_token': (1, 1, HIDDEN)}, 'module.')
    predictor['module.predictor_pos_embed'] = table(HIDDEN, axes=axes)
    rest = {
        **linear('predictor_embed', D, HIDDEN),
        **blocks('predictor_blocks', 2, HIDDEN, 4 * HIDDEN),
        **norm('predictor_norm', HIDDEN),
        **linear('predictor_proj', HIDDEN, D),
    }
    return {
        'encoder': state('online.', 0.0),
        'predictor': predictor | fill(rest, 'module.'),
        'target_encoder': state('', drift),
        'epoch': 3,
        'loss': 0.5,
        **more,
    }


def saved(tmp_path, content, name='a.pth.tar'):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def same(path, content, *names) -> None:
    result = torch.load(path, weights_only=True)
    for name in names:
        assert list(result[name]) == list(content[name]), name  # also the order
        for key, value in content[name].items():
            assert torch.equal(result[name][key], value), key


def there_and_back(tmp_path, content, *names, **choices):
    weights = convert.read(saved(tmp_path, content), **choices)
    convert.write(weights, tmp_path / 'ours', 'jax')
    convert.write(convert.read(tmp_path / 'ours'), tmp_path / 'b.pt', 'torch')
    same(tmp_path / 'b.pt', content, *names)
    again = convert.read(tmp_path / 'b.pt')  # which says itself what it is
    assert {n: net.config for n, net in again.nets.items()} == {
        n: net.config for n, net in weights.nets.items()
    }
    return weights


NETS = 'encoder', 'predictor', 'target_encoder'


def test_file_of_ijepa(tmp_path):
    """The table tells pixels and axes; the predictor has as many heads as the encoder."""
    weights = there_and_back(tmp_path, image_file(), *NETS, heads=4)
    c, p = weights.encoder, weights.predictor
    assert (c.image_size, c.frames, c.axes, c.stored_table) == (32, 1, 'xy', False)
    assert (p.heads, p.mask_tokens, p.grid, p.axes) == (4, 1, (0, 4, 4), 'xy')
    assert weights.version == parts.IMAGES and 'I-JEPA' in weights.summary()[0]
    assert any('--encoder' not in note and 'crop 32' in note for note in weights.notes)


@pytest.mark.parametrize('drift', [1e-7, 0.3], ids=['rounded', 'another'])
def test_a_table_that_is_not_the_formulas_is_kept_and_said(tmp_path, drift):
    weights = there_and_back(tmp_path, image_file(drift=drift), *NETS)
    assert any('pos_embed is not what the formula gives' in note for note in weights.notes)
    for name in ('online', 'target'):  # alike, and each with its own
        assert weights.nets[name].config.stored_table
        expected = table(D)[0] + (drift if name == 'target' else 0)
        np.testing.assert_array_equal(weights.nets[name].tree['table'], expected)
    assert not weights.predictor.stored_table


def test_a_table_with_y_first_is_of_vjepa(tmp_path):
    """Which is another model: without a look at the numbers its features would be wrong."""
    content = image_file(axes='yx')
    del content['predictor']
    assert convert.read(saved(tmp_path, content)).encoder.axes == 'yx'


def test_a_table_of_another_size_is_refused(tmp_path):
    with pytest.raises(ConvertError, match='crop 40'):
        convert.read(saved(tmp_path, image_file()), crop=40)


def test_optimizer_of_ijepa(tmp_path):
    """Its parameters are in the order of the modules, tables among them, which never move."""
    content = image_file()
    nets = [content['encoder'], content['predictor']]
    still = 'pos_embed'
    named = [[(k, torch.nn.Parameter(v, still not in k)) for k, v in net.items()] for net in nets]
    decays = [[p for k, p in net if p.ndim != 1 and 'bias' not in k] for net in named]
    others = [[p for k, p in net if p.ndim == 1 or 'bias' in k] for net in named]
    opt = torch.optim.AdamW([{'params': each} for each in (*decays, *others)], lr=1e-3)
    torch.manual_seed(0)
    for net in named:
        for key, p in net:
            p.grad = torch.randn_like(p) if still not in key else None
    opt.step()
    content['opt'] = opt.state_dict()
    weights = convert.read(saved(tmp_path, content))
    convert.write(weights, tmp_path / 'b.pt', 'torch')
    state = torch.load(tmp_path / 'b.pt', weights_only=True)['opt']
    assert state['param_groups'][1]['params'] == content['opt']['param_groups'][1]['params']
    assert state['state'].keys() == content['opt']['state'].keys()
    for index, moments in content['opt']['state'].items():
        assert torch.equal(state['state'][index]['exp_avg'], moments['exp_avg']), index
    assert weights.training.count == 1


# --- V-JEPA 1 -------------------------------------------------------------------------------------


def video_file() -> dict:
    """A file of V-JEPA 1 of 16 frames and 224 pixels, which its table says."""
    tables = {width: table(width, (8, 14, 14)) for width in (D, HIDDEN)}
    start = 'module.backbone.'
    encoder = {f'{start}pos_embed': tables[D]} | fill(originals.encoder(D, 1, 4 * D), start)
    predictor = fill(originals.predictor(D, HIDDEN, 1, 2), start)
    return {
        'encoder': encoder,
        'predictor': {f'{start}predictor_pos_embed': tables[HIDDEN]} | predictor,
        'target_encoder': dict(encoder),
    }


def test_file_of_vjepa1(tmp_path):
    weights = there_and_back(tmp_path, video_file(), *NETS, heads=4)
    c, p = weights.encoder, weights.predictor
    assert (c.image_size, c.frames, c.position, c.shorter) == (224, 16, 'sincos', 'resized')
    assert (p.heads, p.mask_tokens, p.grid) == (4, 2, (8, 14, 14))
    assert weights.version == '1'
    told = convert.read(tmp_path / 'a.pth.tar', shorter='first')
    assert told.encoder.shorter == 'first'


def test_a_drifted_table_of_vjepa1(tmp_path):
    """As after many rounded averages: announced, used, and back bit for bit."""
    content = video_file()
    key = 'module.backbone.pos_embed'
    drift = torch.linspace(0, 1, D)  # one alike in all dimensions is gone after the first norm
    content['target_encoder'][key] = content['target_encoder'][key] + drift
    weights = there_and_back(tmp_path, content, *NETS, heads=4)
    assert any('pos_embed is not what the formula gives' in note for note in weights.notes)
    usual, moved = (weights.params(name)['table'] for name in ('online', 'target'))
    np.testing.assert_allclose(moved - usual, [drift] * len(moved), rtol=0, atol=1e-6)
    clip = np.random.default_rng(0).integers(0, 256, (1, 4, 32, 32, 3), np.uint8)
    features = [
        jepa_jax.load(tmp_path / 'ours', encoder=name, dtype='float32').encoder(clip)
        for name in ('target', 'online')
    ]
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_doctor_on_vjepa1(tmp_path, capsys):
    weights = convert.read(saved(tmp_path, video_file()), heads=4)
    convert.write(weights, tmp_path / 'ours', 'jax')
    report = doctor._Report()
    doctor._model(report, str(tmp_path / 'ours'), 'target')
    said = capsys.readouterr().out
    assert not report.failed and 'ok      own forward: features of noise are finite' in said


@pytest.mark.parametrize('depth', [1, 2])
def test_probe_of_vjepa1(tmp_path, depth):
    """With the layer that it does not use; with two blocks, the cross-attention comes first."""
    unused = linear('pooler.cross_attention_block.xattn.proj', D, D)
    shapes, rows = originals.probe(D, depth), {}
    for key, shape in shapes.items():
        rows[key] = shape
        if key == 'pooler.cross_attention_block.xattn.kv.bias':
            rows |= unused
    content = {'classifier': fill(rows, 'module.'), 'epoch': 20}
    weights = there_and_back(tmp_path, content, 'classifier', probe_heads=4)
    pooler = weights.probe[0]
    assert (pooler.spare_projection, pooler.cross_first) == (True, depth > 1)


# --- transformers ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def theirs():
    from transformers import IJepaConfig, IJepaModel

    config = IJepaConfig(
        hidden_size=D, num_hidden_layers=2, num_attention_heads=4, intermediate_size=4 * D,
        patch_size=PATCH, image_size=PATCH * SIDE, layer_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    model = IJepaModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(table(D) if 'position' in name else p + 0.05 * torch.randn_like(p))
    return model


def images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-2, 2, (2, 1, height, width, 3)).astype(np.float32)


def features(model, x: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(x[:, 0].transpose(0, 3, 1, 2))
    with torch.no_grad():
        return model(pixels, interpolate_pos_encoding=True).last_hidden_state.numpy()


def test_folder_of_transformers(tmp_path, theirs, capsys):
    """Theirs is loaded, said to be the online encoder, embeds as theirs does, also images that are
    not square, and is judged; ours is loaded by theirs. Not a bit changes."""
    theirs.save_pretrained(tmp_path / 'theirs')
    scaled = json.dumps({'image_mean': [0.5] * 3, 'image_std': [0.5] * 3})
    (tmp_path / 'theirs/preprocessor_config.json').write_text(scaled)
    model = jepa_jax.load(tmp_path / 'theirs')
    assert any('online' in line for line in model.about)
    assert model.config.still
    for x in (images(32, 32), images(40, 24)):
        larger = pytest.warns(UserWarning, match='40 x 24 pixels: the model was trained on at most')
        with contextlib.nullcontext() if x.shape[2] == 32 else larger:
            result = model.embed(x, preprocess='none', normalised=True).tokens
        np.testing.assert_allclose(result, features(theirs, x), rtol=0, atol=1e-5)
    video = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    result = model.embed(video, preprocess='none')
    assert result.clips.shape[:2] == (3, 1)  # frame by frame
    # pixels are ImageNet's, whatever the folder says
    x = ((video / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
    np.testing.assert_allclose(result.tokens, features(theirs, x[:, None]), rtol=0, atol=1e-4)
    for several, more in ((video, {'frames': 2}), (video[None, :2], {})):
        with pytest.raises(InputError, match='frames 2: must be 1'):
            model.embed(several, **more)

    convert.write(convert.read(tmp_path / 'theirs'), tmp_path / 'ours', 'hf')
    again = type(theirs).from_pretrained(tmp_path / 'ours')
    for (name, a), (_, b) in zip(theirs.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    said = json.loads((tmp_path / 'ours/preprocessor_config.json').read_text())
    assert said['image_mean'] == [0.485, 0.456, 0.406]
    assert again.config.layer_norm_eps == 1e-6
    doctor._own_forward(doctor._Report(), str(tmp_path / 'ours'), 'target')
    assert 'features of noise are finite' in capsys.readouterr().out


def test_folder_with_new_names_another_table_and_other_pixels(tmp_path, theirs):
    """Names since transformers 5; a table that no formula gives; the processor's means."""
    from safetensors.torch import save_file

    state = {k: v.clone() for k, v in theirs.state_dict().items()}
    assert any(k.startswith('layers.0.attention.q_proj') for k in state)
    state['embeddings.position_embeddings'] += 0.25
    folder = tmp_path / 'new'
    folder.mkdir()
    save_file(state, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(theirs.config.to_dict()))
    (folder / 'preprocessor_config.json').write_text(json.dumps({'image_mean': [0.5] * 3}))
    weights = convert.read(folder)
    notes = '; '.join(weights.notes)
    assert 'not what the formula gives' in notes and 'has .5 and .5' in notes
    convert.write(weights, tmp_path / 'b', 'hf')
    again = type(theirs).from_pretrained(tmp_path / 'b').state_dict()
    assert all(torch.equal(again[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    'change, words',
    [
        ({'layer_norm_eps': 1e-12}, 'layer_norm_eps = 1e-12, must be 1e-06'),
        ({'patch_size': [8, 4]}, 'patch_size'),
        ({'hidden_size': -1}, 'hidden_size'),
    ],
)
def test_configs_that_ours_cannot_be(tmp_path, theirs, change, words):
    (tmp_path / 'config.json').write_text(json.dumps(theirs.config.to_dict() | change))
    with pytest.raises(ConvertError, match=words):
        convert.read(tmp_path)


def test_a_file_of_ijepa_to_transformers(tmp_path):
    """Which one encoder it holds is said and stands in the folder; what has no place is said."""
    weights = convert.read(saved(tmp_path, image_file()), heads=4)
    for encoder, name in (('target', 'target_encoder'), ('online', 'encoder')):
        notes = convert.write(weights, tmp_path / encoder, 'hf', encoder=encoder)
        assert f'the encoder is the {encoder} one' in notes and 'dropped: predictor' in notes
        again = convert.read(tmp_path / encoder)
        assert list(again.nets) == [encoder]
        assert not any('taken for the online' in note for note in again.notes)
        convert.write(again, tmp_path / f'{encoder}.pt', 'torch')
        same(tmp_path / f'{encoder}.pt', {name: image_file()[name]}, name)


# --- names ----------------------------------------------------------------------------------------


def test_released_names():
    files = {name: row for name, row in RELEASED.items() if row.version in ('1', parts.IMAGES)}
    assert len(files) == 4 + 3 + 15
    row = files['ijepa-vitg16-22k']
    address = zoo.download.address(row.file, row.folder)
    assert address == 'https://dl.fbaipublicfiles.com/ijepa/IN22K-vit.g.16-600e.pth.tar'
    row = files['k400-vjepa1-vith-384']
    address = zoo.download.address(row.file, row.folder)
    assert address == 'https://dl.fbaipublicfiles.com/jepa/vith16-384/k400-probe.pth.tar'
    names = [zoo.local_name(row) for row in RELEASED.values()]
    assert len(names) == len(set(names))  # in one folder


def test_a_released_file_is_found_by_its_name(tmp_path, monkeypatch):
    """Converted once; its table says pixels and frames. Another model's file is refused."""
    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path))
    row = Released('a.pth.tar', 'custom', 32, version=parts.IMAGES, folder='ijepa', patch=PATCH)
    monkeypatch.setitem(RELEASED, 'mine', row)
    (tmp_path / 'weights').mkdir()
    torch.save(image_file(), tmp_path / 'weights/a.pth.tar')
    weights = zoo.find('mine')
    assert set(weights.nets) == {'online', 'target', 'predictor'}
    assert weights.encoder.image_size == 32 and (tmp_path / 'weights/mine').is_dir()
    monkeypatch.setitem(RELEASED, 'other', dataclasses.replace(row, version='1', local='a.pth.tar'))
    with pytest.raises(ZooError, match='should be other of size custom, V-JEPA 1, holds .*I-JEPA'):
        zoo.find('other')


# with the table (reference: family §1.1, §2)
COUNTS = {
    'ijepa-vith14': 630_762_240,
    'ijepa-vith16-448': 631_668_480,
    'ijepa-vitg16-22k': 1_011_368_576,
    'vjepa1-vitl': 305_490_944,
    'vjepa1-vith': 633_655_040,
    'vjepa1-vith-384': 637_546_240,
}


@pytest.mark.parametrize('name', COUNTS)
def test_sizes_of_released_encoders(name):
    from jepa_jax.pretrained import released_configs

    encoder, predictor = released_configs(RELEASED[name])
    t, h, w = encoder.home
    leaves = jax.tree.leaves(parts.net('encoder', encoder).abstract)
    assert sum(leaf.size for leaf in leaves) + max(t, 1) * h * w * encoder.width == COUNTS[name]
    count = sum(leaf.size for leaf in jax.tree.leaves(parts.net('predictor', predictor).abstract))
    expected = {'ijepa-vith14': 22_279_424, 'ijepa-vitg16-22k': 29_475_712}
    expected['vjepa1-vith'] = 22_279_808
    assert count == expected.get(name, count)
