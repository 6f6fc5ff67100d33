"""Files of MAE and VideoMAE, of the originals and of `transformers`: there and back without a
changed bit, and the same outputs."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jepa_fill import names
from safetensors.torch import save_file
from torch_fill import normal, tensor

import jepa_jax
from jepa_jax import convert, doctor
from jepa_jax.errors import ConvertError, ZooError
from jepa_jax.masks.random import from_noise, tubes
from jepa_jax.models.pixel_decoder import PixelDecoderConfig
from jepa_jax.models.tokens import MEAN, STD
from jepa_jax.models.vit import ViTConfig, position_table
from jepa_jax.pretrained import released_configs
from jepa_jax.weights import download, tables, zoo
from jepa_jax.weights.names import RELEASED
from jepa_jax.weights.parts import net
from jepa_jax.weights.write import add_probe

transformers = pytest.importorskip('transformers')
FILE = 'model.safetensors'
MAE = ViTConfig(
    48, 1, 4, patch=8, tubelet=1, position='sincos', axes='xy', image_size=48, frames=1,
    class_token=True,
)  # fmt: skip
MAE_DECODER = PixelDecoderConfig(48, 192, 32, 1, 4, grid=(0, 6, 6))
VIDEO = ViTConfig(
    48, 1, 4, patch=8, position='sincos', axes='flat', image_size=32, frames=16, key_bias=False
)
VIDEO_DECODER = PixelDecoderConfig(
    48, 384, 24, 1, 2, axes='flat', grid=(8, 4, 4), class_token=False, embed_bias=False,
    key_bias=False,
)  # fmt: skip
BOTH = {'mae': (MAE, MAE_DECODER), 'videomae': (VIDEO, VIDEO_DECODER)}
HEADS = {
    'mae': dict(heads=4, predictor_heads=4),
    'videomae': dict(heads=4, predictor_heads=2, crop=32, frames=16),
}


def original(kind: str) -> dict[str, torch.Tensor]:
    """A state dict as the original writes it."""
    encoder, decoder = BOTH[kind]
    arrays = {}
    for part, config in (('encoder', encoder), ('pixel_decoder', decoder)):
        shapes = tables.expected(names(part, config))
        arrays |= {name: tensor(name, shape, 0.05) for name, shape in shapes.items()}
    if kind == 'mae':
        arrays['pos_embed'] = position_table(encoder, encoder.home)[None]
        arrays['decoder_pos_embed'] = position_table(decoder, decoder.grid)[None]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def saved(folder, kind: str, **changed) -> str:
    path = folder / 'original.pth'
    torch.save({'model': original(kind) | changed}, path)
    return path


@pytest.fixture(scope='module', params=list(BOTH))
def through(request, tmp_path_factory):
    """An original's file and what became of it in every format."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    weights = convert.read(saved(folder, kind), **HEADS[kind])
    read = {}
    for to in ('jax', 'hf', 'torch'):
        convert.write(weights, folder / to, to)
        weights = read[to] = convert.read(folder / to)
    return kind, folder, read


def test_there_and_back(through):
    kind, folder, read = through
    back = torch.load(folder / 'torch', weights_only=True)['model']
    first = original(kind)
    assert sorted(back) == sorted(first)
    for name, array in first.items():
        assert torch.equal(back[name], array), name
    for weights in read.values():
        assert set(weights.nets) == {'online', 'pixel_decoder'}
        assert not weights.encoder.class_token or not weights.encoder.stored_table
        assert (
            weights.encoder.heads == 4
            and weights.version == {'mae': 'MAE', 'videomae': 'VideoMAE'}[kind]
        )
        assert weights.nets['pixel_decoder'].config.heads == BOTH[kind][1].heads


def strict(kind, folder):
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def ours(read, *inputs):
    weights = read['hf']
    made = [
        net(part, dataclasses.replace(weights.nets[name].config, dtype=jnp.float32))
        for part, name in (('encoder', 'online'), ('pixel_decoder', 'pixel_decoder'))
    ]
    x, context, target = inputs

    @jax.jit
    def run(encoder, decoder):
        latent = made[0](encoder, x, context, whole=True)
        return made[1](decoder, latent, context, target, return_all=True)

    return run(weights.params('online'), weights.params('pixel_decoder'))


def test_transformers_computes_the_same(through):
    """And what it writes is read again."""
    kind, folder, read = through
    if kind == 'mae':
        model = strict(transformers.ViTMAEForPreTraining, folder / 'hf')
        images = normal(0, 2, 3, 48, 48)
        noise = np.random.RandomState(7).uniform(size=(2, 36)).astype(np.float32)
        context, target = (np.stack(x) for x in zip(*(from_noise(row, 0.75) for row in noise)))
        with torch.no_grad():
            theirs = model(torch.from_numpy(images), noise=torch.from_numpy(noise)).logits
        x = np.moveaxis(images, 1, -1)[:, None]
        np.testing.assert_allclose(ours(read, x, context, target), theirs, rtol=0, atol=1e-5)
    else:
        model = strict(transformers.VideoMAEForPreTraining, folder / 'hf')
        video = normal(0, 2, 16, 3, 32, 32)
        context, target = (
            np.stack([ids] * 2) for ids in tubes(np.random.RandomState(3).shuffle, (8, 4, 4), 0.75)
        )
        hidden = torch.zeros(2, 128, dtype=torch.bool)
        hidden[:, torch.from_numpy(target[0]).long()] = True
        with torch.no_grad():
            theirs = model(torch.from_numpy(video), bool_masked_pos=hidden).logits
        drawn = ours(read, np.moveaxis(video, 2, -1), context, target)[:, target[0]]
        # their decoder's last norm has eps 1e-5 (reference: family §3.2)
        np.testing.assert_allclose(drawn, theirs, rtol=0, atol=2e-5)
    model.save_pretrained(folder / 'theirs')
    modules = folder / 'modules'  # their own names, which `save_pretrained` makes old ones of
    modules.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, modules / FILE)
    shutil.copy(folder / 'theirs/config.json', modules)
    for again in (convert.read(folder / 'theirs'), convert.read(modules)):
        for name, array in read['hf'].nets.items():
            for path, leaf in tables.flatten(array.tree).items():
                other = tables.flatten(again.nets[name].tree)[path]
                np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other), err_msg=path)


def test_an_encoder_alone(through, tmp_path):
    """The released pretrain files have no decoder; base models of `transformers` neither."""
    kind, folder, read = through
    encoder = {n: a for n, a in original(kind).items() if not n.startswith(('decoder', 'mask_'))}
    encoder.pop('encoder_to_decoder.weight', None)
    torch.save({'model': encoder}, tmp_path / 'encoder.pth')
    choices = {k: v for k, v in HEADS[kind].items() if k != 'predictor_heads'}
    weights = convert.read(tmp_path / 'encoder.pth', **choices)
    assert set(weights.nets) == {'online'}
    convert.write(weights, tmp_path / 'hf', 'hf')
    base = {'mae': transformers.ViTMAEModel, 'videomae': transformers.VideoMAEModel}[kind]
    strict(base, tmp_path / 'hf')
    model = jepa_jax.load(tmp_path / 'hf')
    assert any('the only one there' in line for line in model.about)
    clip = np.random.default_rng(0).integers(0, 256, (1, 2, 32, 32, 3), np.uint8)
    tokens = model.encoder(clip)
    assert tokens.shape == (1, 2 * 16 if kind == 'mae' else 16, 48)
    if kind == 'mae':  # each frame by itself
        np.testing.assert_allclose(tokens[:, :16], model.encoder(clip[:, :1]), atol=1e-5)


def test_doctor(through, capsys):
    """On a folder of `transformers`, which both kinds may be."""
    kind, folder, _ = through
    report = doctor._Report()
    doctor._model(report, str(folder / 'hf'), 'target')
    said = capsys.readouterr().out
    assert not report.failed and 'ok      own forward: features of noise are finite' in said, kind


def test_another_size_is_resized_as_transformers_does(tmp_path):
    """MAE's table, to a grid that is not square."""
    convert.write(convert.read(saved(tmp_path, 'mae'), **HEADS['mae']), tmp_path / 'hf', 'hf')
    theirs = strict(transformers.ViTMAEForPreTraining, tmp_path / 'hf').vit
    theirs.config.mask_ratio = 0.0
    images = normal(0, 1, 3, 64, 40).clip(-2, 2)
    everything = torch.arange(40)[None].float()
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(images), noise=everything, interpolate_pos_encoding=True
        ).last_hidden_state
    model = jepa_jax.load(tmp_path / 'hf', dtype='float32')
    features = model.encoder(np.moveaxis(images, 1, -1)[:, None])
    np.testing.assert_allclose(features, expected[:, 1:], rtol=0, atol=1e-5)


def test_a_table_that_differs_is_announced_and_used(tmp_path):
    """As other numbers, and as transformers' zeros of a model that was made from a config."""
    usual = position_table(MAE, MAE.home)
    other = usual + np.linspace(0, 1, 48)
    weights = {}
    for name, table in (('usual', usual), ('other', other), ('zeros', 0 * usual)):
        folder = tmp_path / name
        folder.mkdir()
        changed = {'pos_embed': torch.from_numpy(table[None].astype(np.float32))}
        weights[name] = convert.read(saved(folder, 'mae', **changed), **HEADS['mae'])
        said = [
            note
            for note in weights[name].notes
            if 'pos_embed is not what the formula gives' in note
        ]
        assert len(said) == (name != 'usual')
        assert weights[name].encoder.stored_table == (name != 'usual')
    stored = weights['other']
    np.testing.assert_array_equal(stored.params('online')['table'], np.float32(other))
    convert.write(stored, tmp_path / 'hf', 'hf')
    model = strict(transformers.ViTMAEForPreTraining, tmp_path / 'hf').vit
    config = dataclasses.replace(stored.encoder, dtype=jnp.float32)
    images, everything = normal(0, 1, 3, 48, 48), np.arange(36, dtype=np.float32)[None]
    model.config.mask_ratio = 0.0
    with torch.no_grad():
        theirs = model(torch.from_numpy(images), noise=torch.from_numpy(everything))
    run = jax.jit(functools.partial(net('encoder', config), whole=True))
    features = run(stored.params('online'), np.moveaxis(images, 1, -1)[:, None])
    np.testing.assert_allclose(features, theirs.last_hidden_state, rtol=0, atol=1e-5)
    with pytest.raises(ConvertError, match='a table of 35 positions is of no square'):
        bad = tmp_path / 'bad'
        bad.mkdir()
        convert.read(saved(bad, 'mae', pos_embed=torch.zeros(1, 36, 48)), **HEADS['mae'])


def test_what_released_folders_say_otherwise_is_noted(through):
    """eps 1e-12, and pixels scaled by .5: the models were trained with neither."""
    kind, folder, read = through
    config = json.loads((folder / 'hf/config.json').read_text())
    processor = json.loads((folder / 'hf/preprocessor_config.json').read_text())
    assert processor['image_mean'] == [0.485, 0.456, 0.406]
    assert config['layer_norm_eps'] == 1e-6
    other = folder / f'other_{kind}'
    other.mkdir()
    (other / 'model.safetensors').symlink_to(folder / 'hf/model.safetensors')
    processor |= {'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}
    (other / 'preprocessor_config.json').write_text(json.dumps(processor))

    def notes(**changed) -> list[str]:
        (other / 'config.json').write_text(json.dumps(config | changed))
        return list(convert.read(other).notes)

    words = ' '.join(notes(layer_norm_eps=1e-12))
    assert 'layer_norm_eps is 1e-12 there' in words
    assert 'trained with those of ImageNet' in words
    with pytest.raises(ConvertError, match='layer_norm_eps = 0.001'):
        notes(layer_norm_eps=1e-3)
    with pytest.raises(ConvertError, match="hidden_act = 'relu'"):
        notes(hidden_act='relu')
    with pytest.raises(ConvertError, match="hidden_size = '-1'"):
        notes(hidden_size=-1)


def theirs(kind: str, **more) -> transformers.VideoMAEForVideoClassification:
    config = transformers.VideoMAEConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=192,
        image_size=32, patch_size=8, layer_norm_eps=1e-6, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f'VideoMAE{kind}')(config)
    with torch.no_grad():  # norms that do something
        for name, array in model.named_parameters():
            array += torch.from_numpy(tensor(name, array.shape, 0.05))
    return model.eval()


def test_a_classifier_of_transformers(tmp_path):
    """VideoMAEForVideoClassification: its logits and classes, and back without a changed bit."""
    names = {0: 'falls', 1: 'rolls', 2: 'stays'}
    model = theirs('ForVideoClassification', use_mean_pooling=True, id2label=names)
    model.save_pretrained(tmp_path / 'theirs')
    read = jepa_jax.load(tmp_path / 'theirs', dtype='float32')
    assert any('transformers has eps 1e-5 in the pooler' in line for line in read.about)
    clips = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 32, 32, 3), np.uint8)
    pixels = (clips[:, 0] / 255 - MEAN) / STD
    with torch.no_grad():
        expected = model(torch.from_numpy(np.moveaxis(pixels, -1, 2)).float()).logits
    np.testing.assert_allclose(read.logits(clips)['linear'], expected, rtol=0, atol=2e-5)
    likeliest = read.classify(clips[0, 0]).top['linear']
    assert likeliest[0][1] == names[int(expected[0].argmax())]
    weights = convert.read(tmp_path / 'theirs')
    for to in ('torch', 'jax', 'hf'):
        convert.write(weights, tmp_path / to, to)
        weights = convert.read(tmp_path / to)
    back = strict(transformers.VideoMAEForVideoClassification, tmp_path / 'hf')
    assert back.config.id2label == names and back.config.use_mean_pooling
    for name, array in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], array), name


def test_a_folder_whose_encoder_has_no_last_norm(tmp_path):
    """As VideoMAEModel has it by default: features as the last block leaves them."""
    model = theirs('Model', use_mean_pooling=True)
    model.save_pretrained(tmp_path / 'theirs')
    read = jepa_jax.load(tmp_path / 'theirs', dtype='float32')
    clip = np.random.default_rng(0).integers(0, 256, (1, 16, 32, 32, 3), np.uint8)
    with torch.no_grad():
        pixels = torch.from_numpy(np.moveaxis((clip / 255 - MEAN) / STD, -1, 2)).float()
        expected = model(pixels).last_hidden_state
    np.testing.assert_allclose(read.encoder(clip), expected, rtol=0, atol=2e-5)
    weights = convert.read(tmp_path / 'theirs')
    for to in ('torch', 'hf'):
        convert.write(weights, tmp_path / to, to)
        weights = convert.read(tmp_path / to)
    back = strict(transformers.VideoMAEModel, tmp_path / 'hf').state_dict()
    for name, array in model.state_dict().items():
        assert torch.equal(back[name], array), name


def test_pretraining_whose_encoder_has_no_last_norm(tmp_path):
    """As VideoMAEForPreTraining has it by default: with its decoder, there and back."""
    model = theirs('ForPreTraining', use_mean_pooling=True, decoder_num_hidden_layers=1,
                   decoder_hidden_size=24, decoder_num_attention_heads=2,
                   decoder_intermediate_size=96)  # fmt: skip
    model.save_pretrained(tmp_path / 'theirs')
    weights = convert.read(tmp_path / 'theirs')
    for to in ('torch', 'jax', 'hf'):
        convert.write(weights, tmp_path / to, to)
        weights = convert.read(tmp_path / to)
        assert set(weights.nets) == {'online', 'pixel_decoder'}
    back = strict(transformers.VideoMAEForPreTraining, tmp_path / 'hf').state_dict()
    for name, array in model.state_dict().items():
        assert torch.equal(back[name], array), name


def test_names_of_classes_that_do_not_fit_are_left_out(tmp_path):
    model = theirs('ForVideoClassification', num_labels=3)
    model.save_pretrained(tmp_path / 'theirs')
    path = tmp_path / 'theirs/config.json'
    config = json.loads(path.read_text())
    for labels in (['a', 'b', 'c'], {'0': 'a', 'x': 'b', '2': 'c'}, {'0': 'a', '1': 'b', '7': 'c'}):
        path.write_text(json.dumps(config | {'id2label': labels}))
        weights = convert.read(tmp_path / 'theirs')
        assert not weights.labels and 'id2label does not name 3 classes' in ' '.join(weights.notes)


def test_a_classifier_of_the_first_token_is_refused(tmp_path):
    theirs('ForVideoClassification', use_mean_pooling=False).save_pretrained(tmp_path / 'theirs')
    with pytest.raises(ConvertError, match='without use_mean_pooling reads the first token'):
        convert.read(tmp_path / 'theirs')


def test_what_a_file_has_beside_weights_is_named_at_once(tmp_path):
    more = {'optimizer': {'state': {}}, 'scaler': {'scale': 1.0}, 'epoch': 3}
    torch.save({'model': original('mae'), **more}, tmp_path / 'a.pth')
    words = r'entries optimizer \(dict\), scaler \(dict\) are not known: '
    with pytest.raises(ConvertError, match=words + '--ignore optimizer --ignore scaler leaves'):
        convert.read(tmp_path / 'a.pth', **HEADS['mae'])
    weights = convert.read(tmp_path / 'a.pth', ignore=('optimizer', 'scaler'), **HEADS['mae'])
    assert set(weights.nets) == {'online', 'pixel_decoder'}


def tuned(kind: str) -> dict[str, torch.Tensor]:
    """Names as their fine-tuning writes them: VideoMAE's without `encoder.`"""
    arrays = {
        n.removeprefix('encoder.'): a
        for n, a in original(kind).items()
        if 'decoder' not in n or n.startswith('encoder.')
    }
    for name in ('norm.weight', 'norm.bias', 'mask_token', 'encoder_to_decoder.weight'):
        arrays.pop(name, None)
    shapes = {'fc_norm.weight': (48,), 'fc_norm.bias': (48,), 'head.weight': (10, 48)}
    shapes['head.bias'] = (10,)
    return arrays | {n: torch.from_numpy(tensor(n, form, 0.05)) for n, form in shapes.items()}


@pytest.mark.parametrize('kind', list(BOTH))
def test_a_fine_tuned_file(tmp_path, kind):
    """It classifies, and comes back bit for bit; of MAE transformers has no such class."""
    torch.save({'model': tuned(kind)}, tmp_path / 'a.pth')
    choices = {k: v for k, v in HEADS[kind].items() if k != 'predictor_heads'}
    weights = convert.read(tmp_path / 'a.pth', **choices)
    assert set(weights.nets) == {'online', 'probe'} and not weights.encoder.last_norm
    convert.write(weights, tmp_path / 'jax', 'jax')
    convert.write(convert.read(tmp_path / 'jax'), tmp_path / 'b.pth', 'torch')
    back = torch.load(tmp_path / 'b.pth', weights_only=True)['model']
    first = tuned(kind)
    assert sorted(back) == sorted(first)
    assert all(torch.equal(back[name], array) for name, array in first.items())
    model = jepa_jax.load(tmp_path / 'jax', dtype='float32')
    frames = {'mae': 1, 'videomae': 16}[kind]
    assert model.probe.frames == frames
    clip = np.random.default_rng(0).integers(0, 256, (frames, 32, 32, 3), np.uint8)
    tokens = np.asarray(model.encoder(clip[None])[0], np.float64).mean(0)
    normed = (tokens - tokens.mean()) / np.sqrt(tokens.var() + 1e-6)
    normed = normed * first['fc_norm.weight'].numpy() + first['fc_norm.bias'].numpy()
    logits = normed @ first['head.weight'].numpy().T + first['head.bias'].numpy()
    result = model.logits(clip[None, None])['linear'][0]
    np.testing.assert_allclose(result, logits, rtol=0, atol=1e-5)
    if kind == 'mae':
        with pytest.raises(ConvertError, match='which transformers has no class for'):
            convert.write(weights, tmp_path / 'hf', 'hf')


@pytest.mark.parametrize('kind', list(BOTH))
def test_files_that_are_fine_tuned_otherwise(tmp_path, kind):
    """A classifier of the class token, two norms, none: what is said, and what is advised works."""
    choices = {k: v for k, v in HEADS[kind].items() if k != 'predictor_heads'}

    def read(ignore=(), **changed):
        arrays = {n: a for n, a in {**tuned(kind), **changed}.items() if a is not None}
        torch.save({'model': arrays}, tmp_path / 'a.pth')
        return convert.read(tmp_path / 'a.pth', ignore=ignore, **choices)

    norm = {'norm.weight': torch.ones(48), 'norm.bias': torch.zeros(48)}
    gone = {'fc_norm.weight': None, 'fc_norm.bias': None}
    with pytest.raises(ConvertError, match="head.weight, but no fc_norm.weight: .*--ignore 'head"):
        read(**norm, **gone)
    for weights in (
        read(('head.*',), **norm, **gone),
        read(('head.*', 'fc_norm.*'), **norm),
    ):
        assert set(weights.nets) == {'online'} and weights.encoder.last_norm
    with pytest.raises(ConvertError, match='norm.weight and fc_norm.weight, must have one'):
        read(**norm)
    for ignore, words in (
        (('head.*',), 'fc_norm is dropped: it is of a classifier'),
        (('head.*', 'fc_norm.*'), 'the encoder has no last norm'),
    ):
        weights = read(ignore)
        assert set(weights.nets) == {'online'} and not weights.encoder.last_norm
        assert any(words in note for note in weights.notes)
        file = tmp_path / f'{len(ignore)}.pth'  # and is read again
        convert.write(weights, file, 'torch')
        back = convert.read(file).params('online')
        jax.tree.map(np.testing.assert_array_equal, back, weights.params('online'))
    with pytest.raises(ConvertError, match='its head has no class'):
        read(**{'head.weight': torch.zeros(0, 48), 'head.bias': torch.zeros(0)})


def test_a_classifier_reads_no_other_encoder(tmp_path):
    torch.save({'model': tuned('mae')}, tmp_path / 'tuned.pth')
    choices = {'heads': 4}
    convert.write(convert.read(tmp_path / 'tuned.pth', **choices), tmp_path / 'tuned', 'jax')
    other = convert.read(saved(tmp_path, 'mae'), **HEADS['mae'])
    convert.write(other, tmp_path / 'other', 'jax')
    with pytest.raises(ZooError, match='trained with an encoder of its own: load that alone'):
        jepa_jax.load(tmp_path / 'other', probe=tmp_path / 'tuned')
    with pytest.raises(ConvertError, match='trained with an encoder of its own'):
        add_probe(other, convert.read(tmp_path / 'tuned'))


def test_a_decoder_for_another_encoder_is_refused(tmp_path):
    changed = {'decoder_embed.weight': torch.zeros(32, 24)}
    with pytest.raises(ConvertError, match='reads features of width 24 .* has width 48'):
        convert.read(saved(tmp_path, 'mae', **changed), **HEADS['mae'])


def test_names_of_the_release():
    for name in ('mae-vitb', 'mae-vitl', 'mae-vith', 'mae-vitb-full', 'mae-vitl-in1k'):
        row = RELEASED[name]
        url = download.address(row.file, row.folder)
        assert url.startswith('https://dl.fbaipublicfiles.com/mae/') and url.endswith('.pth')
        assert zoo.local_name(row) == url.rpartition('/')[2]
    encoder, _ = released_configs(RELEASED['mae-vith'])
    count = sum(a.size for a in jax.tree.leaves(net('encoder', encoder).abstract))
    assert count == 630_764_800 - 257 * 1280  # without the table (reference: family §3.1)
