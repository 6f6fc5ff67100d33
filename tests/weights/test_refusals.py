"""What is not fully understood is not converted: one line that names file, finding and what is
allowed."""

import collections
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import originals
import pytest
import torch

from jepa_jax import convert
from jepa_jax.errors import ConvertError
from jepa_jax.weights import zoo
from jepa_jax.weights.write import FORMATS

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = dict(crop=64, frames=8, heads=4, predictor_heads=2)


def refused(path, *words: str, **choices) -> str:
    with pytest.raises(ValueError) as caught:
        convert.read(path, **{**TINY, **choices})
    message = str(caught.value)
    assert '\n' not in message and str(path) in message
    for word in words:
        assert word in message, message
    return message


def saved(tmp_path, content, **more) -> pathlib.Path:
    path = tmp_path / 'a.pt'
    torch.save(content, path, **more)
    return path


class Hostile:
    """Would write a file when unpickled."""

    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return os.system, (f'touch {self.witness}',)


def test_hostile_pickle(tmp_path):
    witness, path = tmp_path / 'witness', tmp_path / 'a.pt'
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({'encoder': Hostile(witness)}, protocol=protocol))
        # of protocol 4 PyTorch knows not even the first opcode
        result = refused(
            path, 'refused', 'posix.system' if protocol == 2 else 'Unsupported operand'
        )
        assert 'weights_only' not in result  # no advice to load it without protection
    assert not witness.exists()
    pickle.loads(path.read_bytes())  # it does bite
    assert witness.exists()


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'before 1.6'])
def test_hostile_file_of_torch(tmp_path, zipped):
    witness = tmp_path / 'witness'
    content = {**originals.released(), 'epoch': Hostile(witness)}
    path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    refused(path, 'refused', 'posix.system', 'weights run nothing')
    assert not witness.exists()
    if zipped:
        assert zipfile.is_zipfile(path)


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'function, arguments',
    [
        (eval, ('1',)),
        (getattr, ('text', 'join')),
        (np.load, ('/nowhere',)),
        (np.frombuffer, (b'12345678',)),
        (pathlib.Path, ('/',)),
        (subprocess.check_output, ('true',)),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_nothing_but_numpy_scalars_is_allowed_besides_tensors(tmp_path, function, arguments):
    path = saved(tmp_path, {**originals.released(), 'lr': Call(function, *arguments)})
    refused(path, 'refused', 'would run')


def test_a_numpy_scalar_that_is_an_object(tmp_path):
    """The one allowed function that would unpickle, if its type were let in."""
    witness = tmp_path / 'witness'
    scalar = Call(np._core.multiarray.scalar, np.dtype('O'), pickle.dumps(Hostile(witness)))
    path = saved(tmp_path, {**originals.released(), 'lr': scalar})
    result = refused(path, 'refused', 'numpy scalar of type object')
    assert not witness.exists() and 'weights_only' not in result


@pytest.mark.parametrize('kind', [np.float64, np.float32, np.int64, np.bool_])
def test_numpy_scalars_load(tmp_path, kind):
    path = saved(tmp_path, {**originals.released(), 'loss': kind(1)})
    assert convert.read(path, **TINY).trees


def test_a_list_in_place_of_a_checkpoint(tmp_path):
    refused(saved(tmp_path, [1, 2]), 'not a checkpoint', 'list')


def test_a_state_dict_of_something_else(tmp_path):
    path = saved(tmp_path, torch.nn.Linear(2, 2).state_dict())
    refused(path, 'no weights of V-JEPA', 'weight')


@pytest.mark.parametrize('content', [b'hello, world', b'\x89PNG\r\n\x1a\n' + b'\0' * 64])
def test_not_a_checkpoint(tmp_path, content):
    path = tmp_path / 'a.pt'
    path.write_bytes(content)
    refused(path, 'not a checkpoint')


def test_a_zip_of_something_else(tmp_path):
    path = tmp_path / 'a.pt'
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('hello.txt', 'hello')
    refused(path, '0 members NAME/data.pkl')


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'before 1.6'])
@pytest.mark.parametrize('share', [0.01, 0.5, 0.999])
def test_truncated(tmp_path, share, zipped):
    path = saved(tmp_path, originals.released(), _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, 'truncated')


def test_absent_and_empty_folder(tmp_path):
    refused(tmp_path / 'nothing.pt', 'does not exist')
    refused(tmp_path, 'no complete checkpoint')
    (tmp_path / 'config.json').write_text('{"name": "a run before its first checkpoint"}')
    refused(tmp_path, 'no complete checkpoint')


def edit(**changes):
    """The released content with changes to its nets: name -> function of the state dict."""
    content = originals.released()
    for net, change in changes.items():
        change(content[net])
    return content


PREFIX = 'module.backbone.'


def lack(name: str):
    return lambda state: state.pop(PREFIX + name)


def put(name: str, value):
    return lambda state: state.update({name: value})


QKV = 'blocks.1.attn.qkv.weight'
INTEGERS = torch.ones(96, dtype=torch.int32)


@pytest.mark.parametrize(
    'net, change, words',
    [
        ('encoder', lack('norm.bias'), ['norm.bias is missing']),
        ('predictor', lack('mask_tokens.1'), ['mask_tokens.1 is missing']),
        ('encoder', lack('patch_embed.proj.weight'), ['patch_embed', 'missing']),
        ('encoder', put(PREFIX + 'dist_token', torch.ones(1, 1, 96)), ['dist_token is not known']),
        ('encoder', put(PREFIX + 'blocks.0.norm3.bias', torch.ones(96)), ['norm3', 'not known']),
        ('predictor', put(PREFIX + 'predictor_norm.bias', torch.ones(47)), ['[47]', '[48]']),
        ('encoder', put(PREFIX + QKV, torch.ones(96, 96)), ['[96, 96]', '[288, 96]']),
        ('encoder', put(PREFIX + 'norm.bias', INTEGERS), ['type int32', 'float32']),
        ('encoder', put(PREFIX + 'norm.bias', 'text'), ['is a str', 'tensor']),
        ('encoder', put('norm.bias', torch.ones(96)), ['twice']),
    ],
)
def test_names_and_shapes(tmp_path, net, change, words):
    refused(saved(tmp_path, edit(**{net: change})), *words)


def test_how_many_are_wrong_is_said(tmp_path):
    def change(state):
        for name in ('norm.bias', 'norm.weight', 'blocks.2.norm1.bias'):
            del state[PREFIX + name]

    refused(saved(tmp_path, edit(encoder=change)), 'and 2 more')


def test_a_partial_load_needs_the_list_of_what_may_be_missing(tmp_path):
    def change(state):
        del state[PREFIX + 'norm.bias'], state[PREFIX + 'blocks.2.norm1.weight']

    path = saved(tmp_path, edit(encoder=change))
    refused(path, 'blocks.2.norm1.weight is missing', allow_missing=['norm.*'])
    weights = convert.read(path, **TINY, allow_missing=['norm.*', 'blocks.2.norm1.weight'])
    missing = [note for note in weights.notes if 'is missing and gets its initial value' in note]
    assert [note.split()[1] for note in missing] == ['blocks.2.norm1.weight', 'norm.bias']
    params = weights.params('online')
    assert not params['norm']['bias'].any()
    scale = params['blocks']['norm1']['scale']
    assert (scale[2] == 1).all() and (scale[1] != 1).all()


@pytest.mark.parametrize(
    ('option', 'value', 'words'),
    [
        ('crop', 0, 'must be at least 1'),
        ('heads', -1, 'must be at least 1'),
        ('steps_per_epoch', -3, 'must be at least 1'),
        ('crop', 100, 'must be a multiple of 16, the patch; say --crop'),
        ('frames', 3, 'must be a multiple of 2, the tubelet; say --frames'),
    ],
)
def test_numbers_that_no_model_has(tmp_path, option, value, words):
    path = saved(tmp_path, originals.released())
    refused(path, f'{option} {value}: {words}', **{option: value})
    with pytest.raises(ConvertError, match=f'{option} {value}: {words}'):  # as `load` reads it
        zoo.find(path, **{**TINY, option: value})
    if option == 'steps_per_epoch':
        with pytest.raises(ConvertError, match=f'{option} {value}: {words}'):
            convert.write(convert.read(path, **TINY), tmp_path / 'b.pt', 'torch', **{option: value})


def test_a_predictor_of_another_encoder(tmp_path):
    content = {**originals.released(), 'predictor': originals.fill(originals.predictor(64))}
    refused(saved(tmp_path, content), 'predictor', '64', '96')


def test_an_unknown_entry_with_tensors(tmp_path):
    content = {**originals.released(), 'decoder': {'weight': torch.ones(2)}}
    refused(saved(tmp_path, content), 'decoder', 'not known')


@pytest.mark.parametrize(
    'net, name',
    [
        ('encoder', 'norms_block.0.weight'),
        ('encoder', 'img_mod_embed'),
        ('predictor', 'predictor_proj_context.weight'),
    ],
)
def test_newer_version_by_name(tmp_path, net, name):
    """2.0 with an array of 2.1 is neither."""
    content = edit(**{net: lambda state: state.update({PREFIX + name: torch.ones(1, 1, 96)})})
    refused(saved(tmp_path, content), 'is of V-JEPA 2.', 'the encoder beside it of 2.')
    del content['target_encoder'], content['predictor' if net == 'encoder' else 'encoder']
    refused(saved(tmp_path, content), 'V-JEPA 2.1: ', '_mod_embed is missing')


def test_distilled_file_of_the_newer_version(tmp_path):
    content = originals.released()
    content['ema_encoder'] = content.pop('target_encoder')
    refused(saved(tmp_path, content), 'ema_encoder is of V-JEPA 2.1, and its arrays of 2.0')
    content['target_encoder'] = content['ema_encoder']
    refused(saved(tmp_path, content), 'two targets', 'ema_encoder')


def test_optimizer_of_other_parameters(tmp_path):
    content = originals.released()
    content['opt'] = {
        'state': {},
        'param_groups': [
            {'params': [0, 1], **dict.fromkeys(('lr', 'weight_decay', 'eps'), 0), 'betas': [0, 0]}
        ],
    }
    refused(saved(tmp_path, content), 'opt', '[2]', '--weights-only')
    assert convert.read(saved(tmp_path, content), **TINY, weights_only=True).training is None


def test_an_entry_of_ours_that_is_not(tmp_path):
    for entry in ('{', '[]', 3):
        refused(saved(tmp_path, {**originals.released(), 'jepa_jax': entry}), 'jepa_jax')
    lacking = json.dumps({'model': {}})
    refused(saved(tmp_path, {**originals.released(), 'jepa_jax': lacking}), 'nothing of online')


# Hugging Face folders


@pytest.fixture
def folder(tmp_path):
    torch.save(originals.released(), tmp_path / 'a.pt')
    convert.write(convert.read(tmp_path / 'a.pt', **TINY), tmp_path / 'hf', 'hf')
    return tmp_path / 'hf'


@pytest.mark.parametrize(
    'change, words',
    [
        ({'model_type': 'vit'}, ["'vit'", "'vjepa2'"]),
        ({'layer_norm_eps': 1e-5}, ['layer_norm_eps', '1e-06']),
        ({'hidden_act': 'silu'}, ['hidden_act', 'gelu']),
        ({'qkv_bias': False}, ['qkv_bias']),
        ({'hidden_size': 48}, ['[96', '[48']),
        ({'num_hidden_layers': 4}, ['encoder.layer.3', 'missing']),
        ({'num_hidden_layers': 2}, ['encoder.layer.2', 'not known']),
    ],
)
def test_config_of_hugging_face(folder, change, words):
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(folder, *words)


def test_an_option_that_contradicts_the_folder(folder):
    refused(folder, 'says heads 4', '6', heads=6)
    refused(folder, 'says crop 64', '256', crop=256)
    assert convert.read(folder).encoder == convert.read(folder, **TINY).encoder


def test_files_of_hugging_face(folder):
    path = folder / 'model.safetensors'
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(folder, 'model.safetensors', 'corrupt')
    path.unlink()
    refused(folder, 'model.safetensors', 'missing')
    (folder / 'config.json').write_text('{')
    refused(folder, 'config.json')


# Our checkpoints, and writing


def test_a_damaged_checkpoint_of_ours(tmp_path):
    from small_run import flip_byte

    torch.save(originals.released(), tmp_path / 'a.pt')
    convert.write(convert.read(tmp_path / 'a.pt', **TINY), tmp_path / 'ours', 'jax')
    damaged = flip_byte(tmp_path / 'ours/state')
    refused(tmp_path / 'ours', str(damaged.name), 'SHA-256')


def test_nothing_is_written_over(tmp_path):
    torch.save(originals.released(), tmp_path / 'a.pt')
    weights = convert.read(tmp_path / 'a.pt', **TINY)
    for to in FORMATS:
        with pytest.raises(ValueError, match='exists'):
            convert.write(weights, tmp_path / 'a.pt', to)
    with pytest.raises(ValueError, match='allowed are jax, torch, hf'):
        convert.write(weights, tmp_path / 'b', 'onnx')


@pytest.mark.parametrize('to', FORMATS)
def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch, to):
    torch.save(originals.released(), tmp_path / 'a.pt')
    weights = convert.read(tmp_path / 'a.pt', **TINY)
    usage = collections.namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(10, 10, 1000))
    with pytest.raises(ValueError, match='GiB needed, .* free'):
        convert.write(weights, tmp_path / 'b', to)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pt']


@pytest.mark.parametrize('to', FORMATS)
def test_a_failure_midway_leaves_nothing(tmp_path, to):
    torch.save(originals.released(), tmp_path / 'a.pt')
    weights = convert.read(tmp_path / 'a.pt', **TINY)

    def stop(size):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.write(weights, tmp_path / 'b', to, progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pt']


def test_a_folder_without_its_tokenizer_does_not_appear(tmp_path, monkeypatch):
    weights = convert.read(saved(tmp_path, originals.released()), **TINY)
    convert.write(weights, tmp_path / 'ours', 'jax')
    (tmp_path / 'ours/tokenizer').mkdir()
    (tmp_path / 'ours/tokenizer/a.json').write_text('{}')
    weights = convert.read(tmp_path / 'ours')
    convert.write(weights, tmp_path / 'b', 'jax')
    assert (tmp_path / 'b/tokenizer/a.json').read_text() == '{}'

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(shutil, 'copytree', full)
    with pytest.raises(OSError, match='No space'):
        convert.write(weights, tmp_path / 'c', 'jax')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pt', 'b', 'ours']


def test_heads_of_a_probe_that_transformers_cannot_have(tmp_path):
    content = originals.released()
    content['classifiers'] = [originals.fill(originals.probe(), 'module.')]
    torch.save(content, tmp_path / 'a.pt')
    weights = convert.read(tmp_path / 'a.pt', **TINY, probe_heads=6)
    with pytest.raises(ValueError, match='/b: a probe of 6 heads on an encoder of 4'):
        convert.write(weights, tmp_path / 'b', 'hf')


WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, *_):
        if name.split('.')[0] == 'torch':
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from jepa_jax import convert
from jepa_jax.errors import ConvertError
folder, released, old = sys.argv[1:]
for source, to in ((folder, 'jax'), (released, 'jax'), (released, 'hf'), (released, 'torch')):
    options = {} if source == folder else dict(crop=64, frames=8, heads=4, predictor_heads=2)
    convert.write(convert.read(source, **options), f'{source}.{to}', to)
    convert.read(f'{source}.{to}').params('target')
try:
    convert.read(old)
except ConvertError as error:
    print(error)
"""


def test_nothing_but_files_before_the_zip_format_needs_torch(folder, tmp_path):
    old = tmp_path / 'old.pt'
    torch.save(originals.released(), old, _use_new_zipfile_serialization=False)
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT_TORCH, str(folder), str(tmp_path / 'a.pt'), str(old)],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 1 and "pip install 'jepa_jax[torch]'" in lines[0], done.stderr
    content = originals.released()
    for options in (dict(weights_only=True), dict(weights_only=True, mmap=True)):
        written = torch.load(tmp_path / 'a.pt.torch', **options)
        for entry in ('encoder', 'target_encoder', 'predictor'):
            assert written[entry].keys() == content[entry].keys()
            for name, tensor in content[entry].items():
                assert torch.equal(written[entry][name], tensor)
