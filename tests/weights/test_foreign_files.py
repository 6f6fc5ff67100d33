"""Files of other trainers, hostile folders, and numbers that are none."""

import contextlib
import json
import math
import os
import shutil

import numpy as np
import originals
import pytest
import torch
from safetensors.numpy import load_file, save_file

import jepa_jax
from jepa_jax import checkpoint, convert, doctor
from jepa_jax.checkpoint import files as stored
from jepa_jax.errors import BadFile
from jepa_jax.weights import parts

TINY = dict(crop=64, frames=8, heads=4, predictor_heads=2)
NAN = ['encoder', 'module.backbone.blocks.1.norm2.bias']


def saved(tmp_path, content, name='a.pt'):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def refused(path, *words, **choices):
    with pytest.raises(ValueError) as caught:
        convert.read(path, **{**TINY, **choices})
    message = str(caught.value)
    assert '\n' not in message and len(message) < 1000
    assert all(word in message for word in words), message


def scale_of(path, which='online', **more):
    return convert.read(path, **TINY, **more).params(which)['norm']['scale']


# Other trainers


@pytest.fixture(scope='module')
def state():
    return originals.fill(originals.encoder())


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: prefixed(s, '_orig_mod.'),  # torch.compile
        lambda s: prefixed(s, 'module._orig_mod.backbone.'),
        lambda s: {k.replace('blocks.1.', 'blocks.1._orig_mod.'): v for k, v in s.items()},
        lambda s: {k.replace('.attn.', '._checkpoint_wrapped_module.attn.'): s[k] for k in s},
        lambda s: prefixed(s, '_fsdp_wrapped_module.'),
        lambda s: {'state_dict': prefixed(s, 'model.'), 'epoch': 3, 'version': '2.4'},  # Lightning
        lambda s: {'state_dict': prefixed(s, 'net.encoder.')},
        lambda s: {'model': s, 'epoch': 2},
        lambda s: {'model': {'encoder': prefixed(s, 'module.')}},
        lambda s: {'model_state_dict': s},
        lambda s: {'encoder': prefixed(s, '_orig_mod.module.')},
    ],
)  # fmt: skip
def test_wrappers(tmp_path, state, wrap):
    expected = state['norm.weight'].numpy()
    np.testing.assert_array_equal(scale_of(saved(tmp_path, wrap(state))), expected, strict=True)


def test_a_module_of_several_nets(tmp_path):
    content = originals.released()
    flat = {
        f'model.{net}.{name}': tensor
        for net in ('encoder', 'target_encoder', 'predictor')
        for name, tensor in content[net].items()
    }
    weights = convert.read(saved(tmp_path, {'state_dict': flat}), **TINY)
    assert set(weights.nets) == {'online', 'target', 'predictor'}
    for net, which in (('encoder', 'online'), ('target_encoder', 'target')):
        expected = content[net]['module.backbone.norm.weight'].numpy()
        np.testing.assert_array_equal(weights.params(which)['norm']['scale'], expected)
    refused(
        saved(tmp_path, {**flat, 'model.head.weight': torch.ones(2)}), 'head.weight', '--ignore'
    )


def test_what_lightning_keeps_beside_needs_the_list(tmp_path, state):
    content = {
        'state_dict': {**prefixed(state, 'model.'), 'loss.weight': torch.ones(3)},
        'optimizer_states': [{'state': {0: {'exp_avg': torch.ones(3)}}}],
        'callbacks': {('tuple', 1): 2},
        'hyper_parameters': {'crop': 64},
    }
    path = saved(tmp_path, content)
    names = ['optimizer_states', 'callbacks', 'hyper_parameters', 'loss.*']
    for i, name in enumerate(names):
        refused(path, name.rstrip('.*'), ignore=names[:i])
    weights = convert.read(path, **TINY, ignore=names)
    ignored = [note for note in weights.notes if note.startswith('ignored')]
    assert [n.split()[-1] for n in ignored] == [*names[:3], 'loss.weight']
    assert weights.params('online')


@pytest.mark.parametrize(
    'content, words',
    [
        ({'module': {'a': torch.ones(2)}, 'ds_version': '0.15', 'optimizer': None}, 'zero_to_fp32'),
        ({'encoder': {'_fsdp_wrapped_module.flat_param': torch.ones(9)}}, 'FULL_STATE_DICT'),
        ({'epoch': 3, 'optimizer': {'state': {}}}, 'epoch'),
    ],
)
def test_files_of_sharded_training_are_named(tmp_path, content, words):
    refused(saved(tmp_path, content), words)


def test_a_folder_of_torch_distributed(tmp_path):
    (tmp_path / '.metadata').write_bytes(b'x')
    refused(tmp_path, 'dcp_to_torch')


# NaN and infinity


@pytest.mark.parametrize('value', [math.nan, -math.inf])
def test_numbers_that_are_none(tmp_path, value):
    content = originals.released()
    content[NAN[0]][NAN[1]][3:5] = value
    path = saved(tmp_path, content)
    words = ['online: blocks.1.norm2.bias: 2 of 96 numbers are NaN or infinite']
    with pytest.raises(ValueError, match=words[0]):
        convert.write(convert.read(path, **TINY), tmp_path / 'ours', 'jax')
    assert not (tmp_path / 'ours').exists()
    with pytest.raises(ValueError, match=words[0]):
        jepa_jax.load(path, encoder='online', crop=64, frames=8, heads=4)
    convert.write(convert.read(path, **TINY, allow_nonfinite=True), tmp_path / 'ours', 'jax')
    with pytest.raises(ValueError, match='params/encoder/blocks/norm2/bias: 2 of 288'):
        convert.read(tmp_path / 'ours').params('online')
    weights = convert.read(tmp_path / 'ours', allow_nonfinite=True)
    bias = weights.params('online')['blocks']['norm2']['bias']
    expected = np.full(2, value, np.float32)
    np.testing.assert_array_equal(bias[1, 3:5], expected, strict=True)
    assert weights.not_finite() == [
        'online: blocks/norm2/bias: 2 of 288 numbers are NaN or infinite'
    ]


def test_huge_numbers_are_numbers(tmp_path):
    content = originals.released()
    content[NAN[0]][NAN[1]][:] = 3e38
    assert convert.read(saved(tmp_path, content), **TINY).params('online')


def test_doctor_names_them(tmp_path, capsys):
    content = originals.released()
    content['predictor']['module.backbone.mask_tokens.0'][0, 0, 7] = math.nan
    path = saved(tmp_path, content)
    report = doctor._Report()
    doctor._model(report, str(path), 'target')
    assert report.failed == ['numbers']
    assert 'numbers: predictor: mask_tokens/0: 1 of 48 numbers' in capsys.readouterr().out


def test_numbers_of_an_optimizer(tmp_path):
    from test_own import VIT, arrays, optimizer

    trained = {'encoder': arrays('encoder', VIT, 'params/encoder')}
    everything = trained['encoder'] | optimizer(trained, 1)
    everything['opt_state/0/nu/encoder/norm/bias'][:2] = math.inf
    hyper = {'lr': 0.1, 'weight_decay': 0, 'eps': 1e-8, 'betas': [0.9, 0.99]}
    extra = {
        'model': {'encoder': {'part': 'encoder', 'config': parts.json_of('encoder', VIT)}},
        'training': {'hyper': hyper, 'original': {}},
    }
    checkpoint.write(tmp_path / 'run', everything, step=1, extra=extra)
    report = doctor._Report()
    doctor._model(report, str(tmp_path / 'run'), 'target')
    assert report.failed == ['numbers']
    weights = convert.read(tmp_path / 'run', allow_nonfinite=True)
    assert weights.not_finite() == [
        'second moments of online: norm/bias: 2 of 24 numbers are NaN or infinite'
    ]
    with pytest.raises(ValueError, match='nu/encoder/norm/bias: 2 of 24'):
        convert.write(convert.read(tmp_path / 'run'), tmp_path / 'a.pt', 'torch')


# Claims


def test_names_that_count_far(tmp_path, state):
    for name in ('blocks.999999999.norm1.weight', 'blocks.70000.norm1.weight'):
        refused(saved(tmp_path, {**state, name: torch.ones(96)}), 'depth')


def test_a_description_that_claims_a_large_table(tmp_path):
    """A sin-cos table of 4 billion tokens, of a file of a megabyte."""
    torch.save(originals.released(), tmp_path / 'b.pt')
    weights = convert.read(tmp_path / 'b.pt', **TINY)
    convert.write(weights, tmp_path / 'c.pt', 'torch')
    content = torch.load(tmp_path / 'c.pt')
    ours = json.loads(content['jepa_jax'])
    for row in ours['model'].values():
        if row['part'] == 'encoder':
            row['config'] |= {'position': 'sincos', 'image_size': 65536, 'patch': 1}
    for net in ('encoder', 'target_encoder'):
        content[net]['module.backbone.pos_embed'] = torch.ones(1, 64, 96)
    refused(saved(tmp_path, {**content, 'jepa_jax': json.dumps(ours)}), 'crop and frames ask for')


@pytest.mark.parametrize('shape', [[2**40], [96, 2**60], [-1], [96, 0], 'x', [1.5]])
def test_headers_of_safetensors(hf, shape):
    path = hf / 'model.safetensors'
    data = path.read_bytes()
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + size])
    header['vjepa2.encoder.layernorm.bias']['shape'] = shape
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + size :])
    refused(hf, 'model.safetensors', 'corrupt', **{name: None for name in TINY})
    path.write_bytes((2**63).to_bytes(8, 'little') + text)
    refused(hf, 'model.safetensors', 'corrupt', **{name: None for name in TINY})


# Folders


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A classifier's folder of Hugging Face, and one of our checkpoints."""
    folder = tmp_path_factory.mktemp('made')
    content = originals.released(classifiers=[originals.fill(originals.probe(), 'module.')])
    weights = convert.read(saved(folder, content), **TINY, probe_heads=4)
    convert.write(weights, folder / 'hf', 'hf')
    convert.write(weights, folder / 'ours', 'jax')
    return folder


@pytest.fixture
def hf(made, tmp_path):
    return shutil.copytree(made / 'hf', tmp_path / 'hf')


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_frames_of_a_classifier(hf):
    """transformers' own config says how many frames its classifier reads."""
    edit(hf / 'config.json', frames_per_clip=6)
    model = jepa_jax.load(hf)
    assert model.probe.frames == 6 and convert.read(hf).reads == {'frames': 6}
    video = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    assert model.classify(video)


def test_frames_go_to_transformers(made, tmp_path):
    import dataclasses

    weights = dataclasses.replace(convert.read(made / 'ours'), reads={'frames': 4})
    convert.write(weights, tmp_path / 'hf', 'hf')
    assert json.loads((tmp_path / 'hf/config.json').read_text())['frames_per_clip'] == 4


def test_a_crop_that_two_files_tell_differently(hf):
    edit(hf / 'video_preprocessor_config.json', crop_size={'height': 96, 'width': 96})
    notes = convert.read(hf).notes
    assert any('crop 64 of config.json' in note and '96' in note for note in notes)


@pytest.mark.parametrize('value', [None, 'x', [], {}, 1.5, -1, 10**9, True, 1e400, [[1]]])
@pytest.mark.parametrize('key', ['num_hidden_layers', 'mlp_ratio', 'patch_size', 'id2label'])
def test_wrong_types_in_a_config(hf, key, value):
    if (key, value) in [('mlp_ratio', 1.5), ('id2label', {}), ('id2label', None), ('id2label', [])]:
        return
    edit(hf / 'config.json', **{key: value})
    refused(hf, key.replace('patch_size', ''), **{name: None for name in TINY})


@pytest.mark.parametrize('content', ['[' * 10**5, '[]', '\ud800', '{"a": 1' * 3, 'NaN', '\0', '3'])
@pytest.mark.parametrize('name', ['config.json', 'model.safetensors.index.json'])
def test_no_json(hf, name, content):
    (hf / name).write_text(content, errors='surrogatepass')
    refused(hf, name, 'not_text')


@pytest.mark.parametrize(
    'places, words',
    [
        ([], 'no weight_map'),
        ({'a': 3}, 'is no text'),
        ({'a': ['x']}, 'is no text'),
        ({'a': '/etc/passwd'}, 'outside'),
        ({'a': '../hf2/model.safetensors'}, 'outside'),
        ({'a': 'x\0'}, 'is no text'),
        ({'a': 'link'}, 'outside'),
        ({'a': 'fifo'}, 'not a regular file'),
        ({'a': '.'}, 'a folder'),
        ({'a': 'nothing'}, 'missing'),
        ({'a': 'model.safetensors'}, 'not both'),
    ],
)
def test_places_of_an_index(hf, places, words):
    (hf / 'link').symlink_to('/etc/passwd')
    os.mkfifo(hf / 'fifo')
    (hf / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': places}))
    refused(hf, words)


def test_the_hubs_cache_with_its_links(hf, tmp_path):
    """As huggingface_hub lays it out: snapshots/REVISION/FILE -> ../../blobs/HASH."""
    root = tmp_path / 'models--some--model'
    snapshot = root / 'snapshots/abc'
    snapshot.mkdir(parents=True)
    (root / 'blobs').mkdir()
    names = list(load_file(hf / 'model.safetensors'))
    index = {'weight_map': dict.fromkeys(names, 'model.safetensors')}
    (hf / 'model.safetensors.index.json').write_text(json.dumps(index))
    for i, path in enumerate(sorted(hf.iterdir())):
        path.rename(root / f'blobs/{i}')
        (snapshot / path.name).symlink_to(f'../../blobs/{i}')
    assert convert.read(snapshot).params('target')
    (snapshot / 'model.safetensors').unlink()
    (snapshot / 'model.safetensors').symlink_to('/etc/passwd')
    refused(snapshot, 'outside', **{name: None for name in TINY})


def test_an_array_in_two_files(hf):
    arrays = load_file(hf / 'model.safetensors')
    more = {name.removeprefix('vjepa2.'): a for name, a in arrays.items() if 'layernorm' in name}
    save_file({**arrays, **more}, hf / 'model.safetensors')
    refused(hf, 'twice')


def test_devices(hf, tmp_path):
    os.mkfifo(tmp_path / 'fifo')
    for path in (tmp_path / 'fifo', '/dev/zero', '/dev/null'):
        refused(path, 'not a regular file')
    (hf / 'config.json').unlink()
    os.mkfifo(hf / 'config.json')
    refused(hf, 'not a regular file')
    refused('a\0b', 'does not exist')


# Our own checkpoints: a stranger can make the manifest's hash right


def forge(folder, change):
    path = folder / 'manifest.json'
    manifest = json.loads(path.read_text())['manifest']
    manifest = change(manifest) or manifest
    content = {'manifest': manifest, 'sha256': checkpoint.files.digest_of(manifest)}
    path.write_text(json.dumps(content))


def put(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(manifest):
        node = manifest
        for key in keys:
            node = node[key]
        node[last] = value

    return change


LEAF = 'params/encoder/norm/bias'
CONFIG = ('extra', 'model', 'encoder', 'config')


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda m: [1], 'no object'),
        (put('format', None), 'format'),
        (put('leaves', []), 'leaves'),
        (put('leaves', LEAF, 3), 'no shape and type'),
        (put('leaves', LEAF, 'shape', 'x'), 'no shape and type'),
        (put('leaves', LEAF, 'shape', [2**40]), 'decoded'),
        (put('leaves', LEAF, 'shape', [2**33]), 'ratio'),
        (put('leaves', LEAF, 'dtype', 'object'), 'no shape and type'),
        (put('files', '../../x', {'bytes': 1, 'sha256': ''}), 'outside'),
        (put('files', '/etc/passwd', {'bytes': 1, 'sha256': ''}), 'outside'),
        (put('files', 'x', {}), 'no bytes'),
        (put('frozen', {'teacher': '../../..'}), 'frozen must be hashes'),
        (put('frozen', {'teacher': 3}), 'frozen must be hashes'),
        (put('extra', 'model', 3), 'model'),
        (put('extra', 'model', 'encoder', 3), 'other types'),
        (put('extra', 'labels', {'linear': 3}), 'other types'),
        (put('extra', 'reads', {'frames': 10**9}), 'other types'),
        (put(*CONFIG, 'depth', 10**9), 'depth'),
        (put(*CONFIG, 'depth', 60_000), 'depth 60,000'),
        (put(*CONFIG, 'depth', 'x'), 'depth'),
        (put(*CONFIG, 'heads', 0), ''),
        (put(*CONFIG, 'mlp', 'x'), ''),
        (put(*CONFIG, []), ''),
    ],
)
def test_forged_manifests(made, tmp_path, change, words):
    folder = shutil.copytree(made / 'ours', tmp_path / 'ours')
    try:
        forge(folder, change)
    except ValueError:  # of the test's own last row: a config in place of an entry
        forge(folder, put('extra', 'model', 'encoder', 'config', []))
    refused(folder, words)


def test_a_small_checkpoint_claims_little():
    manifest = {'format': 2, 'step': 0, 'extra': {}}
    manifest['files'] = {'x': {'bytes': 5000, 'sha256': ''}}
    for shape, words in (([2**24], ''), ([2**24 + 1], 'ratio')):
        manifest['leaves'] = {'a': {'shape': shape, 'dtype': 'float32'}}
        with pytest.raises(BadFile, match=words) if words else contextlib.nullcontext():
            assert not stored._misshapen('a', manifest)


def test_a_description_never_runs_a_file(tmp_path):
    """That of a .pt may name a config file that brings parts; nobody runs it."""
    witness = tmp_path / 'witness'
    (tmp_path / 'evil.py').write_text(f'open({str(witness)!r}, "w")')
    for ours in (
        {'model': {'encoder': {'part': 'evil', 'config': {}}}},
        {'config': {'objective': 'evil'}},
    ):
        ours['config_file'] = str(tmp_path / 'evil.py')
        content = {**originals.released(), 'jepa_jax': json.dumps(ours)}
        refused(saved(tmp_path, content), 'a.pt')
    assert not witness.exists()


def test_what_was_converted_of_an_old_run_on_recordings(tmp_path):
    """Format 1 called its frozen encoder `target`, as runs called the moving average."""
    from test_own import AC, VIT, arrays

    everything = arrays('encoder', VIT, 'target') | arrays('ac_predictor', AC, 'params/predictor')
    rows = {
        'encoder': parts.json_of('encoder', VIT),
        'ac_predictor': parts.json_of('ac_predictor', AC),
    }
    checkpoint.write(tmp_path / 'old', everything, step=0, extra={'model': rows})
    forge(tmp_path / 'old', put('format', 1))
    weights = convert.read(tmp_path / 'old')
    assert weights.nets['target'].place == 'frozen/encoder'
    scale = weights.params('target')['norm']['scale']
    np.testing.assert_array_equal(scale, everything['target/norm/scale'], strict=True)


# Any mutation is refused in one line, or changes nothing that a checksum could see


def fuzz(path, read, seed, count):
    """Mutates a file; read: raises ValueError or returns whether what it read is right."""
    from test_torch_zip import mutations

    good = path.read_bytes()
    for data in mutations(good, seed, count):
        path.write_bytes(data)
        try:
            assert read()
        except ValueError as error:
            assert '\n' not in str(error)
    path.write_bytes(good)


def fuzz_all(made, tmp_path, counts):
    hf = shutil.copytree(made / 'hf', tmp_path / 'hf')
    ours = shutil.copytree(made / 'ours', tmp_path / 'ours')
    names = list(load_file(hf / 'model.safetensors'))

    def is_read(folder):
        return bool(convert.read(folder).nets)

    fuzz(hf / 'config.json', lambda: is_read(hf), 0, counts[0])
    fuzz(hf / 'model.safetensors', lambda: is_read(hf), 1, counts[0])
    index = hf / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': dict.fromkeys(names, 'model.safetensors')}))
    fuzz(index, lambda: is_read(hf), 2, counts[0])
    expected = convert.read(ours).params('target')['norm']['scale']
    fuzz(
        ours / 'manifest.json',
        lambda: np.array_equal(convert.read(ours).params('target')['norm']['scale'], expected),
        3,
        counts[1],
    )
    # the manifest forged: one value replaced, its hash made right
    rng = np.random.default_rng(4)
    good = (ours / 'manifest.json').read_bytes()
    values = [
        None,
        'x',
        -1,
        0,
        2**31,
        10**12,
        1.5,
        [],
        {},
        [1],
        {'a': 1},
        True,
        '../x',
        '/dev/zero',
    ]
    for _ in range(counts[1]):
        (ours / 'manifest.json').write_bytes(good)

        def change(manifest):
            node = manifest
            while True:
                keys = list(node) if isinstance(node, dict) else range(len(node))
                key = keys[rng.integers(len(keys))]
                if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.1:
                    node[key] = values[rng.integers(len(values))]
                    return
                node = node[key]

        forge(ours, change)
        try:
            convert.read(ours).params('target')
        except ValueError as error:
            assert '\n' not in str(error)


def test_fuzz(made, tmp_path):
    fuzz_all(made, tmp_path, (20, 15))


@pytest.mark.slow
def test_fuzz_long(made, tmp_path):
    fuzz_all(made, tmp_path, (1000, 500))
