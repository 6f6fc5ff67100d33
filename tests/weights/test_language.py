"""Folders of language models: against `transformers`, in both forms of config.json, and an 8 B
folder (its names and layers, tiny widths, bfloat16, several files) in and out bit for bit."""

import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jepa_jax import convert
from jepa_jax.checkpoint import hash_arrays
from jepa_jax.errors import ConvertError
from jepa_jax.models.adapter import AdapterConfig
from jepa_jax.weights import hf_files, language, parts
from jepa_jax.weights.contents import StoredNet, Weights
from jepa_jax.weights.read import read
from jepa_jax.weights.tables import Leaf
from jepa_jax.weights.write import nbytes, write

# what is not asked for
CHOSEN = [
    (('encoder', 'projector'), 'jax', 'folder', 'jax'),
    (('projector', 'adapter'), 'jax', 'folder', 'jax'),
    (('encoder', 'predictor'), 'jax', 'folder', 'torch'),
    (('encoder',), 'torch', 'folder', 'jax'),
    (('encoder',), 'jax', 'a.pt', 'torch'),
]
IDS = np.random.RandomState(3).randint(0, 48, (2, 9))
# config.json of Llama-3.1-8B-Instruct, with other widths
LLAMA = {
    'architectures': ['LlamaForCausalLM'],
    'attention_bias': False,
    'attention_dropout': 0.0,
    'bos_token_id': 40,
    'eos_token_id': [41, 42, 43],
    'hidden_act': 'silu',
    'hidden_size': 64,
    'initializer_range': 0.02,
    'intermediate_size': 24,
    'max_position_embeddings': 131072,
    'mlp_bias': False,
    'model_type': 'llama',
    'num_attention_heads': 32,
    'num_hidden_layers': 32,
    'num_key_value_heads': 8,
    'pretraining_tp': 1,
    'rms_norm_eps': 1e-05,
    'rope_scaling': {
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8192,
        'rope_type': 'llama3',
    },
    'rope_theta': 500000.0,
    'tie_word_embeddings': False,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.42.3',
    'use_cache': True,
    'vocab_size': 48,
}


def arrays_of(config: dict) -> dict[str, np.ndarray]:
    """Random ones with the names and shapes that such a config asks for."""
    D, F, V = (config[k] for k in ('hidden_size', 'intermediate_size', 'vocab_size'))
    shared = D // config['num_attention_heads'] * config['num_key_value_heads']
    shapes = {'model.embed_tokens.weight': (V, D), 'model.norm.weight': (D,)}
    for i in range(config['num_hidden_layers']):
        at = f'model.layers.{i}'
        shapes |= {f'{at}.{n}_layernorm.weight': (D,) for n in ('input', 'post_attention')}
        shapes |= {f'{at}.self_attn.{n}_proj.weight': (D, D) for n in 'qo'}
        shapes |= {f'{at}.self_attn.{n}_proj.weight': (shared, D) for n in 'kv'}
        shapes |= {f'{at}.mlp.{n}_proj.weight': (F, D) for n in ('gate', 'up')}
        shapes[f'{at}.mlp.down_proj.weight'] = (D, F)
    shapes['lm_head.weight'] = (V, D)
    rng = np.random.default_rng(0)
    drawn = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {name: array.astype(ml_dtypes.bfloat16) for name, array in drawn.items()}


def folder_of(place: pathlib.Path, config: dict, arrays: dict, files: int) -> pathlib.Path:
    place.mkdir()
    (place / 'config.json').write_text(json.dumps(config))
    (place / 'tokenizer.json').write_text('{}')
    names = list(arrays)
    places = {}
    for i in range(files):
        file = f'model-{i + 1:05}-of-{files:05}.safetensors'
        mine = names[i::files]
        save_file({n: arrays[n] for n in mine}, place / file, metadata={'format': 'pt'})
        places |= dict.fromkeys(mine, file)
    index = {'metadata': {}, 'weight_map': places}
    (place / 'model.safetensors.index.json').write_text(json.dumps(index))
    return place


def stored_in(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {n: a for f in folder.glob('*.safetensors') for n, a in load_file(f).items()}


def test_an_8b_folder_in_and_out_bit_for_bit(tmp_path, monkeypatch):
    arrays = arrays_of(LLAMA)
    source = folder_of(tmp_path / 'source', LLAMA, arrays, files=4)
    weights = read(source)
    config = weights.nets['decoder'].config
    assert (config.depth, config.heads, config.kv_heads, config.stored) == (32, 32, 8, 'bfloat16')
    assert (config.theta, config.scaling) == (5e5, (8.0, 1.0, 4.0, 8192.0))
    assert nbytes(weights, 'hf') == sum(a.nbytes for a in arrays.values())
    monkeypatch.setattr(hf_files, 'SHARD', 100_000)
    write(weights, tmp_path / 'jax', to='jax')
    write(read(tmp_path / 'jax'), tmp_path / 'out', to='hf')
    out = stored_in(tmp_path / 'out')
    assert len(list((tmp_path / 'out').glob('*.safetensors'))) > 3
    assert out.keys() == arrays.keys()
    for name, array in arrays.items():
        assert out[name].dtype == array.dtype
        np.testing.assert_array_equal(out[name].view(np.uint16), array.view(np.uint16), name)
    write(weights, tmp_path / 'straight', to='hf')
    assert (tmp_path / 'straight/tokenizer.json').exists()
    again = language.decoder(
        json.loads((tmp_path / 'out/config.json').read_text())
        | {'where': '', 'stored': 'bfloat16'}, {}, None,
    )  # fmt: skip
    assert again == config


def test_frozen_models_of_16_bits_have_a_hash():
    """Of the bytes; that of other arrays is what it was."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    text = b'a float32 (2, 3) ' + array.tobytes()
    assert hash_arrays({'a': array}) == hashlib.sha256(text).hexdigest()[:32]
    short = array.astype(ml_dtypes.bfloat16)
    text = b'a bfloat16 (2, 3) ' + short.tobytes()
    assert hash_arrays({'a': short}) == hashlib.sha256(text).hexdigest()[:32]


@pytest.mark.parametrize('kind', ['llama', 'qwen2'])
def test_transformers_says_the_same(kind, tmp_path):
    """Theirs written by them and read by us, and ours written by us and read by them; one in the
    new form of config.json, tied and not."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    sizes = dict(
        vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=kind == 'qwen2',
    )  # fmt: skip
    torch.manual_seed(0)
    if kind == 'llama':
        rope = {**LLAMA['rope_scaling'], 'rope_theta': 5e5, 'original_max_position_embeddings': 4}
        config = transformers.LlamaConfig(**sizes, rope_parameters=rope)
        theirs = transformers.LlamaForCausalLM(config)
    else:
        theirs = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))
        for name, p in theirs.named_parameters():
            if name.endswith('bias'):
                torch.nn.init.normal_(p)
    theirs.save_pretrained(tmp_path / 'theirs', max_shard_size='20KB')
    weights = read(tmp_path / 'theirs')
    net = parts.net('decoder', weights.nets['decoder'].config)
    decoder = net.bind(jax.tree.map(jnp.asarray, weights.params('decoder')))
    at = jnp.broadcast_to(jnp.arange(9), (2, 9))
    ours = decoder.logits(decoder(decoder.embed(jnp.asarray(IDS)), at))
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    write(weights, tmp_path / 'ours', to='hf')
    again = type(theirs).from_pretrained(tmp_path / 'ours')
    with torch.no_grad():
        np.testing.assert_array_equal(again(torch.tensor(IDS)).logits.numpy(), expected)


def test_an_adapter_is_merged_on_export(tmp_path):
    config = LLAMA | {'num_hidden_layers': 2}
    source = read(folder_of(tmp_path / 'source', config, arrays_of(config), files=1))
    adapter = AdapterConfig.of(source.nets['decoder'].config, 2, 4.0, 'attn/q')
    rng = np.random.default_rng(1)
    shapes = {'a': (2, 64, 2), 'b': (2, 2, 64)}
    pair = {side: rng.standard_normal(shape, np.float32) for side, shape in shapes.items()}
    tree = {'attn': {'q': {s: Leaf(a.shape, a.dtype, a.copy) for s, a in pair.items()}}}
    nets = {
        'frozen/decoder': source.nets['decoder'],
        'adapter': StoredNet('adapter', adapter, tree),
    }
    write(Weights(source.source, 'jax', nets), tmp_path / 'out', to='hf')
    before, after = stored_in(tmp_path / 'source'), stored_in(tmp_path / 'out')
    for name in before:
        if not name.endswith('q_proj.weight'):
            np.testing.assert_array_equal(after[name].view(np.uint16), before[name].view(np.uint16))
    change = 2.0 * pair['b'][1].T @ pair['a'][1].T
    name = 'model.layers.1.self_attn.q_proj.weight'
    expected = before[name].astype(np.float32) + change
    np.testing.assert_allclose(after[name].astype(np.float32), expected, rtol=2**-8)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'use_sliding_window': True}, 'use_sliding_window = True, must be False'),
        ({'rope_scaling': {'rope_type': 'yarn'}}, "rope_type = 'yarn', must be 'default'"),
        ({'hidden_size': 10**12}, 'hidden_size = 1000000000000: must be a whole number up to'),
        ({'num_hidden_layers': None}, 'num_hidden_layers = None: must be a whole number'),
        ({'intermediate_size': 25}, 'must have'),
        ({'num_key_value_heads': 7}, 'heads must be a multiple of kv_heads'),
        ({'attention_bias': True}, 'attention_bias = True, must be False'),
    ],
    ids=lambda v: str(v)[:30],
)  # fmt: skip
def test_refuses(change, words, tmp_path):
    config = LLAMA | {'num_hidden_layers': 1}
    folder = folder_of(tmp_path / 'f', config, arrays_of(config), files=1)
    (folder / 'config.json').write_text(json.dumps(config | change))
    with pytest.raises(ConvertError, match=words):
        read(folder)


@pytest.mark.parametrize(('nets', 'read_as', 'destination', 'expected'), CHOSEN)
def test_the_format_that_is_written(nets, read_as, destination, expected):
    """A projector or an adapter has no place in a .pt file."""
    weights = Weights(None, read_as, {name: StoredNet(name, None, {}) for name in nets})
    assert convert._format(weights, destination) == expected


def test_a_run_without_an_average_is_no_training_checkpoint_of_the_original():
    nets = {name: StoredNet(name, None, {}) for name in ('encoder', 'predictor')}
    for training, expected in ((None, 'torch'), ({'step': 1}, 'jax')):
        weights = Weights(None, 'jax', nets, training=training)
        assert convert._format(weights, 'out') == expected
