"""The original's files, read, give the features that the original computed from them."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import originals
import pytest
import torch
from torch_fill import assert_golden, mask_pair, normal

from jepa_jax import convert
from jepa_jax.evals import metrics
from jepa_jax.models.ac_predictor import ACPredictor
from jepa_jax.models.pooler import AttentiveClassifier
from jepa_jax.models.predictor import Predictor
from jepa_jax.models.vit import ViT
from jepa_jax.nets import Net

WHOLE, PART = 1e-4, 1e-5  # design §5: nets, and pooler
TINY = dict(crop=64, frames=8, heads=4, predictor_heads=2, probe_heads=4)
GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def float32(config):
    return dataclasses.replace(config, dtype=jnp.float32)


def saved(path: pathlib.Path, content) -> pathlib.Path:
    torch.save(content, path)
    return path


def test_encoder_and_predictor(tmp_path, golden_models):
    weights = convert.read(saved(tmp_path / 'a.pt', originals.released()), **TINY)
    vit, net = float32(weights.encoder), float32(weights.predictor)
    x = jnp.asarray(normal(0, 2, 3, 8, 64, 64)).transpose(0, 2, 3, 4, 1)
    out = Net(lambda rngs: ViT(vit, rngs=rngs))(weights.params('target'), x)
    assert_golden(golden_models, 'E1_encoder_rope', out, WHOLE)
    other = Net(lambda rngs: ViT(vit, rngs=rngs))(weights.params('online'), x)
    assert float(jnp.abs(other - out).max()) > 0.1

    context, target = mask_pair(1, 2, 64, 20, 30)
    z = Net(lambda rngs: Predictor(net, rngs=rngs))(
        weights.params('predictor'), jnp.asarray(normal(3, 2, 20, 96)), context, target, 0
    )
    assert_golden(golden_models, 'P1_predictor_mask_index=0', z, WHOLE)


@pytest.mark.parametrize(
    'depth, case', [(4, 'C1_attentive_classifier_d4'), (1, 'C2_attentive_classifier_d1')]
)
def test_probe(tmp_path, depth, case):
    content = {'classifiers': [originals.fill(originals.probe(depth=depth), 'module.')], 'epoch': 1}
    weights = convert.read(saved(tmp_path / 'a.pt', content), **TINY)
    config, classes = weights.probe
    assert classes == {'linear': 7} and config.depth == depth and weights.encoder is None
    net = Net(lambda rngs: AttentiveClassifier(float32(config), classes, rngs=rngs))
    out = net(weights.params('probe'), jnp.asarray(normal(8, 2, 30, 96)))['linear']
    np.testing.assert_allclose(out, np.load(GOLDEN / 'pooler.npz')[case], rtol=0, atol=PART)


@pytest.mark.parametrize('extrinsics', [False, True])
def test_action_conditioned(tmp_path, extrinsics):
    content = {
        'encoder': originals.fill(originals.encoder(), 'module.'),
        'target_encoder': originals.fill(originals.encoder(), 'module.'),
        'predictor': originals.fill(originals.ac_predictor(), 'module.'),
    }
    choices = {**TINY, 'predictor_heads': 4, 'extrinsics': extrinsics}
    weights = convert.read(saved(tmp_path / 'a.pt', content), **choices)
    config = float32(weights.predictor)
    net = Net(lambda rngs: ACPredictor(config, rngs=rngs))
    inputs = [normal(4, 2, 48, 96), normal(5, 2, 3, 7), normal(6, 2, 3, 7)]
    inputs += [normal(7, 2, 3, 6)] if extrinsics else []
    out = net(weights.params('ac_predictor'), *map(jnp.asarray, inputs))
    golden = np.load(GOLDEN / 'ac.npz')[f'A1_ac_use_extrinsics={extrinsics}']
    np.testing.assert_allclose(out, golden, rtol=0, atol=WHOLE)


def test_anticipation_probe(tmp_path):
    """Each query has its own head, in the order verb, noun, action."""
    heads = {'verb_classifier': 3, 'noun_classifier': 4, 'action_classifier': 5}
    shapes = originals.probe(depth=2, heads=heads)
    content = {'classifiers': [originals.fill(shapes, 'module.')]}
    weights = convert.read(saved(tmp_path / 'a.pt', content), **TINY)
    config, classes = weights.probe
    assert list(classes.items()) == [('verb', 3), ('noun', 4), ('action', 5)]
    net = Net(lambda rngs: AttentiveClassifier(float32(config), classes, rngs=rngs))
    golden = np.load(GOLDEN / 'pooler.npz')
    out = net(weights.params('probe'), jnp.asarray(golden['K1_anticip_wrapper']))
    for head in classes:
        np.testing.assert_allclose(out[head], golden[f'K3_{head}'], rtol=0, atol=PART)
    loss = metrics.focal_loss(out['action'], jnp.array([1, 4]))
    np.testing.assert_allclose([loss.sum(), loss.mean()], [1.0449054, 0.10449054], atol=PART)
