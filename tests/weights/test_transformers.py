"""`transformers` loads the folders that we write, and computes what we compute from them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import originals
import pytest
import torch
from torch_fill import mask_pair, normal

from jepa_jax import convert
from jepa_jax.models.pooler import AttentiveClassifier
from jepa_jax.models.predictor import Predictor
from jepa_jax.models.vit import ViT
from jepa_jax.nets import Net
from jepa_jax.weights import hf_files

transformers = pytest.importorskip('transformers')
WHOLE, PART = 1e-4, 1e-5  # design §5: nets, and pooler
TINY = dict(crop=64, frames=8, heads=4, predictor_heads=2, probe_heads=4)


def float32(config):
    return dataclasses.replace(config, dtype=jnp.float32)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A model and a classifier in the format of Hugging Face, and their weights."""
    folder = tmp_path_factory.mktemp('hf')
    content = originals.released()
    torch.save(content, folder / 'a.pt')
    content['classifiers'] = [originals.fill(originals.probe(), 'module.')]
    torch.save(content, folder / 'b.pt')
    for name in 'ab':
        convert.write(convert.read(folder / f'{name}.pt', **TINY), folder / name, 'hf')
    return folder / 'a', folder / 'b', convert.read(folder / 'b.pt', **TINY)


def load(kind, folder):
    """Strict: their loader tells of every key that it missed or did not know."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    return model.eval()


def clip(seed: int = 0) -> np.ndarray:
    return normal(seed, 2, 8, 64, 64, 3)


def theirs(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 1, 4, 2, 3))


def test_encoder_and_predictor(folders):
    model = load(transformers.VJEPA2Model, folders[0])
    weights = folders[2]
    encoder, predictor = float32(weights.encoder), float32(weights.predictor)
    context, target = mask_pair(1, 2, 64, 20, 30)
    with torch.no_grad():
        out = model(
            theirs(clip()),
            context_mask=[torch.from_numpy(context).long()],
            target_mask=[torch.from_numpy(target).long()],
        )
    features = Net(lambda rngs: ViT(encoder, rngs=rngs))(
        weights.params('target'), jnp.asarray(clip())
    )
    np.testing.assert_allclose(features, out.last_hidden_state.numpy(), rtol=0, atol=WHOLE)
    # theirs masks the features of the whole clip, where training masks the encoder's input, and
    # always takes mask token 1
    seen = jnp.take_along_axis(features, jnp.asarray(context)[..., None], axis=1)
    made = Net(lambda rngs: Predictor(predictor, rngs=rngs))(
        weights.params('predictor'), seen, context, target, 1
    )
    expected = out.predictor_output.last_hidden_state.numpy()
    np.testing.assert_allclose(made, expected, rtol=0, atol=WHOLE)


def test_classifier(folders):
    """Logits agree once their pooler has the original's eps, and differ by little before."""
    model = load(transformers.VJEPA2ForVideoClassification, folders[1])
    weights = folders[2]
    pooler, classes = weights.probe
    features = Net(lambda rngs: ViT(float32(weights.encoder), rngs=rngs))(
        weights.params('target'), jnp.asarray(clip())
    )
    ours = Net(lambda rngs: AttentiveClassifier(float32(pooler), classes, rngs=rngs))(
        weights.params('probe'), features
    )['linear']
    with torch.no_grad():
        as_is = model(theirs(clip())).logits.numpy()
        for module in model.pooler.modules():
            if isinstance(module, torch.nn.LayerNorm):
                assert module.eps == 1e-6
                module.eps = 1e-5
        fixed = model(theirs(clip())).logits.numpy()
    np.testing.assert_allclose(ours, fixed, rtol=0, atol=PART)
    assert 0 < np.abs(as_is - fixed).max() < 1e-3


def test_what_they_save_we_read(folders, tmp_path):
    model = load(transformers.VJEPA2ForVideoClassification, folders[1])
    model.save_pretrained(tmp_path / 'theirs', max_shard_size='300KB')
    assert (tmp_path / 'theirs/model.safetensors.index.json').exists()
    ours = convert.read(tmp_path / 'theirs')
    convert.write(ours, tmp_path / 'a.pt', 'torch')
    result = torch.load(tmp_path / 'a.pt', weights_only=True)
    content = originals.released()
    for name in ('target_encoder', 'predictor'):
        for key, value in content[name].items():
            assert torch.equal(result[name][key], value), key
    assert ours.encoder.heads == 4 and ours.labels['linear'][6] == 'LABEL_6'


def test_sixteen_bit_folder(folders, tmp_path):
    model = load(transformers.VJEPA2Model, folders[0]).bfloat16()
    model.save_pretrained(tmp_path / 'half')
    scale = convert.read(tmp_path / 'half').params('target')['norm']['scale']
    expected = model.encoder.layernorm.weight.detach().float().numpy()
    np.testing.assert_array_equal(scale, expected, strict=True)


def test_several_files(folders, tmp_path, monkeypatch):
    """What is larger than a file may be goes into several, with an index that they read."""
    monkeypatch.setattr(hf_files, 'SHARD', 200_000)
    convert.write(convert.read(folders[0]), tmp_path / 'many', 'hf')
    assert len(list((tmp_path / 'many').glob('model-*.safetensors'))) > 3
    one, many = (
        load(transformers.VJEPA2Model, f).state_dict() for f in (folders[0], tmp_path / 'many')
    )
    assert one.keys() == many.keys()
    assert all(torch.equal(one[key], many[key]) for key in one)
