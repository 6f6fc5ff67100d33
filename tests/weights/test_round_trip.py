"""There and back through every kind of file, without a changed bit."""

import gc
import json
import pathlib

import jax
import numpy as np
import originals
import pytest
import torch
from torch_fill import tensor

from jepa_jax import checkpoint, convert
from jepa_jax.errors import ConvertError
from jepa_jax.weights.tables import flatten

TINY = dict(crop=64, frames=8, heads=4, predictor_heads=2, probe_heads=4)


def content_of(path):
    return torch.load(path, weights_only=True)


def assert_same_states(ours: dict, theirs: dict, *names: str) -> None:
    for name in names:
        assert list(ours[name]) == list(theirs[name]), name  # also the order
        for key, value in theirs[name].items():
            assert ours[name][key].dtype == torch.float32
            assert torch.equal(ours[name][key], value), key


def through(tmp_path, content: dict, *formats: str, **choices):
    """A `.pt` file converted through formats, one after the other; the last one's path."""
    path = tmp_path / 'start.pt'
    torch.save(content, path)
    weights = convert.read(path, **{**TINY, **choices})
    for i, to in enumerate(formats):
        path = tmp_path / f'{i}.{to}'
        convert.write(weights, path, to)
        weights = convert.read(path)
    return path, weights


def test_released_file(tmp_path):
    content = originals.released()
    path, weights = through(tmp_path, content, 'jax', 'torch')
    assert_same_states(content_of(path), content, 'encoder', 'target_encoder', 'predictor')
    assert weights.encoder.heads == 4 and weights.encoder.image_size == 64
    assert weights.predictor.heads == 2 and weights.predictor.grid == (4, 4, 4)


def test_hugging_face_holds_the_target_and_the_predictor(tmp_path):
    content = originals.released()
    path, weights = through(tmp_path, content, 'hf', 'jax', 'hf', 'torch')
    assert 'target' in convert.read(tmp_path / '0.hf').nets
    result = content_of(path)
    assert_same_states(result, content, 'target_encoder', 'predictor')
    assert_same_states(result, {'encoder': content['target_encoder']}, 'encoder')
    assert weights.encoder.heads == 4


def test_hugging_face_of_the_online_encoder(tmp_path):
    torch.save(originals.released(), tmp_path / 'a.pt')
    notes = convert.write(
        convert.read(tmp_path / 'a.pt', **TINY), tmp_path / 'hf', 'hf', encoder='online'
    )
    assert 'the encoder is the online one' in notes
    assert 'dropped: target encoder (moving average)' in notes
    weights = convert.read(tmp_path / 'hf')
    assert 'online' in weights.nets and 'target' not in weights.nets
    params = weights.params('target')  # one encoder serves either choice
    expected = tensor('online.norm.weight', (96,), 0.05)
    np.testing.assert_array_equal(params['norm']['scale'], expected, strict=True)


@pytest.mark.parametrize('to, file', [('torch', ''), ('hf', 'model.safetensors')])
def test_arrays_have_nothing_to_do_with_the_file_any_more(tmp_path, to, file):
    """Neither does it stay in memory for their sake, nor do they show what is written into it."""
    path, weights = through(tmp_path, originals.released(), to)
    file = path / file
    params = flatten(weights.params('target'))
    copies = {name: array.copy() for name, array in params.items()}
    maps = pathlib.Path('/proc/self/maps')
    if to == 'hf' and maps.exists():  # each array was read by itself
        assert str(file) not in maps.read_text()
    size = file.stat().st_size
    with file.open('r+b') as opened:
        opened.write(bytes(size))
    for name, array in params.items():
        np.testing.assert_array_equal(array, copies[name], err_msg=name)
    del weights
    gc.collect()
    if maps.exists():
        assert str(file) not in maps.read_text()


def test_action_conditioned_file(tmp_path):
    content = {
        'encoder': originals.fill(originals.encoder(), 'module.'),
        'target_encoder': originals.fill(originals.encoder(), 'module.'),
        'predictor': originals.fill(originals.ac_predictor(), 'module.'),
    }
    path, weights = through(tmp_path, content, 'jax', 'torch', predictor_heads=4)
    assert_same_states(content_of(path), content, *content)
    assert weights.predictor.heads == 4 and 'ac_predictor' in weights.trees


@pytest.mark.parametrize(
    'heads',
    [{'linear': 7}, {'verb_classifier': 3, 'noun_classifier': 4, 'action_classifier': 5}],
    ids=['one head', 'three heads'],
)
def test_probe_file(tmp_path, heads):
    states = [
        originals.fill(originals.probe(heads=heads, depth=3), 'module.', seed=s) for s in 'ab'
    ]
    path, weights = through(tmp_path, {'classifiers': states, 'epoch': 2}, 'jax', 'torch')
    result = content_of(path)['classifiers']
    assert len(result) == 1  # the first one
    assert_same_states({'probe': result[0]}, {'probe': states[0]}, 'probe')
    assert list(weights.probe[1].values()) == list(heads.values())


def test_classifier_of_hugging_face(tmp_path):
    """An encoder and a probe, which the original has in two files, are one folder there."""
    content = originals.released()
    content['classifiers'] = [originals.fill(originals.probe(), 'module.')]
    path, weights = through(tmp_path, content, 'hf', 'torch')
    result = content_of(path)
    assert_same_states(result, content, 'target_encoder', 'predictor')
    assert_same_states(
        {'probe': result['classifiers'][0]}, {'probe': content['classifiers'][0]}, 'probe'
    )
    config = json.loads((tmp_path / '0.hf/config.json').read_text())
    assert config['architectures'] == ['VJEPA2ForVideoClassification']
    assert weights.labels['linear'] == tuple(f'LABEL_{i}' for i in range(7))


@pytest.mark.parametrize('uniform', [True, False])
def test_sincos_model(tmp_path, uniform, golden_models):
    """Its table is computed here; the file gets it back."""
    from jepa_jax.models.tokens import sincos_table

    def table(width):
        return torch.from_numpy(sincos_table((4, 4, 4), width, uniform)[None])

    encoder = {'module.backbone.pos_embed': table(96)}
    encoder |= originals.fill(originals.encoder(), 'module.backbone.')
    predictor = {'module.backbone.predictor_pos_embed': table(48)}
    predictor |= originals.fill(originals.predictor(), 'module.backbone.')
    content = {'encoder': encoder, 'target_encoder': encoder, 'predictor': predictor}
    path, weights = through(tmp_path, content, 'jax', 'torch')
    assert_same_states(content_of(path), content, *content)
    assert weights.encoder.position == weights.predictor.position == 'sincos'
    assert weights.encoder.uniform_power == weights.predictor.uniform_power == uniform
    with pytest.raises(ConvertError, match="position 'sincos'"):
        convert.write(weights, tmp_path / 'hf', 'hf')


def test_a_left_over_table_is_dropped_and_said(tmp_path):
    content = originals.released()
    for name in ('encoder', 'target_encoder'):
        content[name]['module.backbone.pos_embed'] = torch.ones(1, 64, 96)
    torch.save(content, tmp_path / 'a.pt')
    weights = convert.read(tmp_path / 'a.pt', **TINY, position='rope')
    assert any('target: pos_embed is dropped' in note for note in weights.notes)
    assert weights.encoder.position == 'rope'


@pytest.mark.parametrize(
    'more', [dict(swiglu=True, hidden=256), dict(tubelet=1)], ids=['swiglu', 'image']
)
def test_other_encoders(tmp_path, more):
    state = originals.fill(originals.encoder(**more))
    path, weights = through(tmp_path, state, 'jax', 'torch', frames=1 if 'tubelet' in more else 8)
    result = {k.removeprefix('module.backbone.'): v for k, v in content_of(path)['encoder'].items()}
    assert_same_states({'encoder': result}, {'encoder': state}, 'encoder')
    assert weights.encoder.mlp == ('swiglu' if 'swiglu' in more else 'gelu')
    assert weights.encoder.tubelet == more.get('tubelet', 2)


@pytest.mark.parametrize('kind', [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_widened(tmp_path, kind):
    state = {k: v.to(kind) for k, v in originals.fill(originals.encoder()).items()}
    torch.save(state, tmp_path / 'a.pt', _use_new_zipfile_serialization=False)  # the old format too
    result = convert.read(tmp_path / 'a.pt', **TINY).params('online')
    expected = state['norm.weight'].float().numpy()
    np.testing.assert_array_equal(result['norm']['scale'], expected, strict=True)


def test_what_only_ours_has_is_said_and_comes_back(tmp_path):
    import dataclasses

    state = originals.fill(originals.ac_predictor(), 'module.')
    path, weights = through(tmp_path, {'predictor': state}, 'jax', predictor_heads=4)
    ours = dataclasses.replace(weights.predictor, residual=True, action_scale=(2.0,) * 7)
    net = dataclasses.replace(weights.nets['ac_predictor'], config=ours)
    weights = dataclasses.replace(weights, nets={'ac_predictor': net})
    notes = convert.write(weights, tmp_path / 'b.pt', 'torch')
    assert [n.split(' = ')[0] for n in notes] == [
        'ac_predictor: residual',
        'ac_predictor: action_scale',
    ]
    assert all('the original does not have' in note for note in notes)
    assert convert.read(tmp_path / 'b.pt').predictor == ours


@pytest.mark.parametrize('rate', [8.0, 0.0, 4.0])
def test_the_rate_of_frames_comes_back(tmp_path, rate):
    """Else a model warns of the very rate that it was trained at."""
    import dataclasses

    state = originals.fill(originals.ac_predictor(), 'module.')
    _, weights = through(tmp_path, {'predictor': state}, 'jax', predictor_heads=4)
    convert.write(dataclasses.replace(weights, fps=rate), tmp_path / 'b.pt', 'torch')
    assert convert.read(tmp_path / 'b.pt').fps == rate


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_of_ours(runs, tmp_path):
    """Weights and training state come back to the last bit; the config travels along."""
    workdir = runs.finished()
    weights = convert.read(workdir)
    assert weights.training.step == weights.training.count == 16 and weights.fps == 8
    convert.write(weights, tmp_path / 'a.pt', 'torch', steps_per_epoch=4)
    result = content_of(tmp_path / 'a.pt')
    assert result['epoch'] == 4 and result['opt']['state'][0]['step'] == 16
    # one mask token has no frame count of its own: PyTorch keeps no state of it
    names = [k for part in ('encoder', 'predictor') for k in result[part]]
    assert len(result['opt']['state']) == len(names) - 1
    assert convert.read(tmp_path / 'a.pt').fps == 8  # as the config beside it says
    with pytest.raises(ConvertError, match='step 16, which 4 epochs of 5'):
        convert.read(tmp_path / 'a.pt', steps_per_epoch=5)
    convert.write(convert.read(tmp_path / 'a.pt'), tmp_path / 'back', 'jax')
    ours, theirs = (
        flatten(checkpoint.restore(f, checkpoint.stored_abstract(f))[0])
        for f in (tmp_path / 'back', checkpoint.find(workdir))
    )
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name, strict=True)
    assert jax.tree.leaves(ours)


def test_training_goes_on_after_the_journey(runs, tmp_path):
    """A run cut in two, its first half carried to PyTorch and back, ends as the unbroken one."""
    from small_run import STEPS, arrays, assert_same_arrays

    half = runs.cut(8)
    convert.write(convert.read(half), tmp_path / 'half.pt', 'torch')
    convert.write(convert.read(tmp_path / 'half.pt'), tmp_path / 'half', 'jax')
    workdir = runs.workdir()
    done = runs.run(workdir, f'checkpoints.resume_from={tmp_path / "half"}')
    assert done.returncode == 0, done.stderr
    assert f'resumes from {tmp_path / "half"}' in done.stderr
    assert_same_arrays(arrays(workdir, STEPS), arrays(runs.finished(), STEPS))
