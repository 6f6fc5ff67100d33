"""I-JEPA's linear probe: LARS and heads against originals, and the evaluation on tiny pictures."""

import dataclasses
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import official_sets as made
import optax
import pytest
import torch
from torch_fill import normal

from jepa_jax.data.labelled import Record
from jepa_jax.errors import ConfigError
from jepa_jax.evals import benchmark, image_linear, linear, of
from jepa_jax.evals.image_linear import Reader, advance, grid_of, lars, mean_encoder, side_by_side
from jepa_jax.model import Loaded, Model
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights.parts import net

FILE = Path(__file__).resolve().parents[2] / 'configs/eval/in1k_linear.py'
ENCODER = ViTConfig(
    24, 2, 2, patch=16, tubelet=1, frames=1, position='sincos', axes='xy', image_size=32,
    dtype=np.dtype('float32'), remat='none',
)  # fmt: skip


def config(path='', **fields):
    c = runpy.run_path(str(FILE))['get_config']('smoke')
    c.data.path = str(path)
    return dataclasses.replace(c, **fields)


@pytest.fixture(scope='module')
def model():
    return Model(Loaded(ENCODER, jax.jit(net('encoder', ENCODER).init)(jax.random.key(0))))


def test_lars(golden_pixels):
    """Of MAE and VICReg: two steps on a matrix and a vector, rate .3, decay .01."""
    params = {'w': jnp.asarray(normal(80, 4, 6)), 'b': jnp.asarray(normal(81, 4))}
    tx = lars(0.001, 0.9, 0.01)
    state = tx.init(params)
    for it in range(2):
        grads = {'w': jnp.asarray(normal(82 + it, 4, 6)), 'b': jnp.asarray(normal(84 + it, 4))}
        updates, state = tx.update(grads, state, params)
        params = optax.tree.add_scale(params, -0.3, updates)
    for name in 'wb':
        np.testing.assert_allclose(
            params[name], golden_pixels[f'M8_lars_{name}'], rtol=0, atol=1e-5
        )


def test_two_steps_are_those_of_torch():
    """One head with a batch norm and one without, and a rate that drops between the two; the
    momentum of the first step is multiplied by the rate of the second, as in the originals."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 5)).astype(np.float32) * 3 + 1
    labels = np.array([0, 1, 2, 0, 1, 2])
    params = image_linear.fresh(jax.random.key(0), 2, 5, 3)
    state = {
        'params': params,
        'trace': jax.tree.map(jnp.zeros_like, params),
        'mean': jnp.zeros(5),
        'variance': jnp.ones(5),
    }
    flags, decays = np.array([False, True]), np.float32([0.1, 0.1])
    for i, rate in enumerate((2.0, 0.2)):
        state = advance(
            state, flags, x[i], labels, np.float32([rate, rate]), decays, trust=0.1, momentum=0.9
        )
    for number, flag in enumerate(flags):
        norm, layer = torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.array(params['kernel'][number].T)))
            layer.bias.zero_()
        every = [*layer.parameters(), *(norm.parameters() if flag else ())]
        moments = [torch.zeros_like(p) for p in every]
        for i, rate in enumerate((2.0, 0.2)):
            seen = torch.from_numpy(x[i])
            loss = torch.nn.functional.cross_entropy(
                layer(norm(seen) if flag else seen), torch.from_numpy(labels)
            )
            for p, m, g in zip(every, moments, torch.autograd.grad(loss, every)):
                if p.ndim > 1:
                    g = g + 0.1 * p.detach()
                    g = g * 0.1 * p.detach().norm() / g.norm()
                m.mul_(0.9).add_(g)
                p.data -= rate * m
        ours = {k: v[number] for k, v in state['params'].items()}
        np.testing.assert_allclose(ours['kernel'], layer.weight.detach().T, atol=2e-6)
        np.testing.assert_allclose(ours['bias'], layer.bias.detach(), atol=2e-6)
        np.testing.assert_allclose(ours['scale'], norm.weight.detach(), atol=2e-6)
    np.testing.assert_allclose(state['mean'], norm.running_mean, atol=1e-6)
    np.testing.assert_allclose(state['variance'], norm.running_var, rtol=1e-5)


def test_the_grid_is_the_papers():
    c = runpy.run_path(str(FILE))['get_config']('')
    of(c)  # its settings can work
    grid = grid_of(c, 32)
    assert len(grid) == len(set(grid)) == 2 * 2 * 3 * 2
    assert {(s.lr, s.decay) for s in grid} == {
        (lr, decay) for lr in (0.01, 0.05, 0.001) for decay in (5e-4, 0)
    }
    assert {s.last for s in grid} == {1, 4} and {s.norm for s in grid} == {True, False}
    assert (c.batch, c.epochs, c.every, c.drop) == (16_384, 50, 15, 0.1)
    assert {s.last for s in grid_of(c, 2)} == {1, 2}
    with pytest.raises(ConfigError, match='every = 0'):
        of(dataclasses.replace(c, every=0))


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Classes are colours; one training picture is broken, and one of validation."""
    root = made.imagenet(tmp_path_factory.mktemp('in1k'), each=4)
    for path in ('train/n01440764/n01440764_train0', 'val/n15075141/n15075141_val1'):
        (root / f'{path}.JPEG').write_bytes(b'\0' * 99)
    return root


def test_pictures_are_cut_anew_in_every_epoch(pictures, model):
    """Those of a step and epoch are always the same; one that is broken has another in its place;
    features are means of the last blocks."""
    encode, devices = mean_encoder(model, 2)
    c = config(batch=8)
    c.data.augment.flip = False
    reader = Reader(encode, devices, 32, c)
    records = [
        Record(str(path), (label,))
        for label, name in enumerate(('n01440764', 'n01443537', 'n15075141'))
        for path in sorted((pictures / 'train' / name).iterdir())
    ]
    ((x, labels),) = reader.batches(records, 3)  # 12 pictures, the last four are no batch
    ((again, _),) = reader.batches(records, 3)
    ((other, _),) = reader.batches(records, 4)
    np.testing.assert_array_equal(x, again)
    assert x.shape == (8, 2, 24) and labels.shape == (8,) and not np.array_equal(x, other)
    cut, label = reader.cut(records, 0, 0)
    assert cut.shape == (32, 32, 3) and label in (0, 1, 2)
    clip = jnp.asarray(cut[None, None])
    means = [np.asarray(level).mean(1)[0] for level in model.encode(clip, (0, 1))]
    np.testing.assert_allclose(reader.features([cut])[0], means, atol=1e-5)
    np.testing.assert_array_equal(side_by_side(x, 2)[0], np.concatenate(x[0]))
    np.testing.assert_array_equal(side_by_side(x, 1), x[:, 1])


def test_in1k_linear(pictures, model, tmp_path, monkeypatch):
    """It learns colours, says what it chose by, and resumes after the last whole epoch."""
    c = config(pictures, epochs=6, last=1)
    stop, keep = [], image_linear._keep

    def once(path, epoch, states):
        keep(path, epoch, states)
        if epoch == 3 and not stop:
            stop.append(path)
            raise KeyboardInterrupt

    monkeypatch.setattr(image_linear, '_keep', once)
    with pytest.raises(KeyboardInterrupt):
        image_linear.run(model, c, tmp_path)
    results = image_linear.run(model, c, tmp_path)
    accuracy = results.results['accuracy']
    assert accuracy.n == 11 and accuracy.value > 0.9 > results.baselines['majority'].value
    (broken,) = results.data['problems']
    assert broken.endswith('n15075141_val1.JPEG') and len(results.data['heads']) == 12
    assert 'training pictures that none learns from' in results.sentences[0]
    json.dumps(results.data)
    (kept,) = tmp_path.glob('heads-*.npz')
    whole = tmp_path / 'whole'
    whole.mkdir()
    image_linear.run(model, c, whole)
    resumed, straight = (dict(np.load(p)) for p in (kept, next(whole.glob('heads-*.npz'))))
    assert resumed['epoch'] == 6
    for name, array in straight.items():
        np.testing.assert_array_equal(resumed[name], array)


def test_every_picture_is_a_source_of_its_own():
    """Names of ImageNet's end as those of Diving48's pieces do, and were taken for such."""
    pieces = [Record(f'clips/v_{i:05d}.mp4', (0,)) for i in range(2)]
    pictures = [Record(f'train/n01440764/n01440764_{i:05d}.JPEG', (0,)) for i in range(2)]
    assert len(set(benchmark.columns(pieces)[1])) == 1
    assert len(set(benchmark.columns(pictures)[1])) == 2


def test_parts_of_many_pictures_are_even():
    classes = np.arange(3000) % 1000
    parts = linear.apart(np.arange(3000).astype(str), classes, 3, 0)
    assert (np.sum(parts, 0) == 1).all()
    assert all((np.bincount(classes[part], minlength=1000) == 1).all() for part in parts)
