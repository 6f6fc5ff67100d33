"""Folders of language models as `transformers` writes them: Llama 3.x and Qwen2 / Qwen2.5.

Arrays keep the type that they are stored with, mostly bfloat16, and are read one by one: from a
folder onto a mesh, or into another folder, no model is ever in memory twice. (reference: video_qa
§3.3)
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jepa_jax import checkpoint, files
from jepa_jax.errors import ConvertError
from jepa_jax.models.adapter import merged
from jepa_jax.models.decoder import DecoderConfig
from jepa_jax.weights import hf_files, parts, tables
from jepa_jax.weights.contents import StoredNet, Weights
from jepa_jax.weights.tables import Leaf, flatten, nest

# model_type -> whether q, k and v have biases, and the class of transformers
KINDS = {'llama': (False, 'LlamaForCausalLM'), 'qwen2': (True, 'Qwen2ForCausalLM')}
# what our decoder fixes and `transformers` leaves open
FIXED = {
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'use_sliding_window': False,
}
SIZES = {
    'vocab_size': 'vocabulary',
    'hidden_size': 'width',
    'intermediate_size': 'hidden',
    'num_hidden_layers': 'depth',
    'num_attention_heads': 'heads',
}
SCALING = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
# small files beside the weights, which belong to them
COMPANIONS = (
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'generation_config.json',
)
TOKENIZER = 'tokenizer'  # folder of a run, and of what is made of it, with its tokenizer
LANGUAGE = ('decoder', 'adapter')  # parts that a folder is made of
LARGEST = parts.LARGEST_OF_DECODERS  # number of a foreign config


# Reading


def is_language(folder: pathlib.Path) -> bool:
    """Whether config.json says so."""
    return files.read_json(folder / hf_files.CONFIG).get('model_type') in KINDS


def decoder(values: Mapping[str, Any], forms: Mapping, beside: Any) -> DecoderConfig:
    """What config.json says; values: its content, and under `stored` the type of the arrays.

    Raises:
      ConvertError: a field that is missing, or an option that our decoder does not have.
    """
    del forms, beside
    where = values['where']
    for key, value in FIXED.items():
        if values.get(key, value) != value:
            raise ConvertError(f'{where}: {key} = {values[key]!r}, must be {value!r}')
    sizes = {ours: _whole(where, key, values.get(key)) for key, ours in SIZES.items()}
    heads = values.get('num_key_value_heads')
    heads = sizes['heads'] if heads is None else _whole(where, 'num_key_value_heads', heads)
    channels = values.get('head_dim')
    if channels is None:
        channels = sizes['width'] // sizes['heads']
    theta, scaling = _rope(where, values)
    if not isinstance(values.get('tie_word_embeddings', False), bool):
        raise ConvertError(f'{where}: tie_word_embeddings must be true or false')
    return DecoderConfig(
        **sizes,
        kv_heads=heads,
        head_dim=_whole(where, 'head_dim', channels),
        eps=_real(where, 'rms_norm_eps', values.get('rms_norm_eps', 1e-6)),
        theta=theta,
        scaling=scaling,
        bias=KINDS[values['model_type']][0],
        tied=values.get('tie_word_embeddings', False),
        dtype=jnp.dtype(values['stored']),
        stored=values['stored'],
    )


def _whole(where: str, key: str, value: Any) -> int:
    if type(value) is not int or not 0 < value <= LARGEST:
        raise ConvertError(
            f'{where}: {key} = {str(value)[:50]}: must be a whole number up to {LARGEST:,}'
        )
    return value


def _real(where: str, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value <= LARGEST:
        raise ConvertError(
            f'{where}: {key} = {str(value)[:50]}: must be a number up to {LARGEST:,}'
        )
    return float(value)


def _rope(where: str, values: Mapping[str, Any]) -> tuple[float, tuple[float, ...]]:
    """Base and scaling, in the older form (rope_theta, rope_scaling) or that of transformers 5
    (rope_parameters)."""
    told = values.get('rope_parameters') or values.get('rope_scaling') or {}
    if not isinstance(told, dict):
        raise ConvertError(f'{where}: rope_parameters, rope_scaling: must be an object')
    theta = told.get('rope_theta', values.get('rope_theta', 10_000.0))
    theta = _real(where, 'rope_theta', theta)
    kind = told.get('rope_type', told.get('type', 'default'))
    if kind == 'default':
        return theta, ()
    if kind != 'llama3':
        raise ConvertError(f"{where}: rope_type = {kind!r}, must be 'default' or 'llama3'")
    scaling = tuple(_real(where, key, told.get(key)) for key in SCALING)
    if not scaling[1] < scaling[2]:
        raise ConvertError(f'{where}: {SCALING[1]} {scaling[1]}: must be less than {SCALING[2]}')
    return theta, scaling


def read(folder: pathlib.Path, finite: bool = True) -> Weights:
    """The language model of a folder; arrays are read when they are needed.

    Raises:
      ConvertError: another model, an option that ours does not have, files that are not whole, or
        arrays of several types.
    """
    where = str(folder / hf_files.CONFIG)
    arrays: dict[str, Leaf] = {}
    for path, name, leaf in hf_files.stored(folder, as_stored=True):
        if name in arrays:
            raise ConvertError(f'{path}: {name} is there twice')
        arrays[name] = leaf
    types = sorted({leaf.dtype.name for leaf in arrays.values()})
    if len(types) != 1:
        raise ConvertError(f'{folder}: arrays of types {", ".join(types)}, must be of one')
    values = files.read_json(folder / hf_files.CONFIG)
    values |= {'where': where, 'stored': types[0]}
    forms = {name: leaf.shape for name, leaf in arrays.items()}
    config = decoder(values, forms, None)
    rules, sizes = tables.table('decoder', config, 'hf')
    links = tables.bind(rules, parts.abstract(where, 'decoder', config, forms), sizes)
    tables.compare(str(folder), links, rules, forms)
    notes = [f'{n} is dropped: {why}' for n, why in tables.dropped(rules, forms).items()]
    if finite:
        arrays = tables.finite(str(folder), arrays)
    net = StoredNet('decoder', config, tables.from_file(links, arrays))
    return Weights(folder, 'hf', {'decoder': net}, notes=tuple(notes))


def name_of(weights: Weights) -> str:
    """The key of the language model among `weights.nets`; '': there is none."""
    return next((name for name, net in weights.nets.items() if net.part == 'decoder'), '')


def tokenizer_of(source: pathlib.Path) -> pathlib.Path | None:
    """Where the tokenizer of a run, of one of its checkpoints, or of a converted folder lies."""
    run = source.absolute().parents[1] if source.absolute().parent.name == 'checkpoints' else source
    return next((p / TOKENIZER for p in (source, run) if (p / TOKENIZER).is_dir()), None)


# Writing


def export(weights: Weights) -> StoredNet:
    """The language model alone, the changes of its adapter added to it.

    Raises:
      ConvertError: there is none.
    """
    name = name_of(weights)
    if not name:
        raise ConvertError(f'{weights.source} holds {", ".join(weights.nets)}, no language model')
    net = weights.nets[name]
    adapter = next((n for n in weights.nets.values() if n.part == 'adapter'), None)
    if adapter is None:
        return net
    config, pairs, tree = adapter.config, flatten(adapter.tree), flatten(net.tree)

    def changed(kernel: str, leaf: Leaf) -> Leaf:
        def make() -> np.ndarray:
            group, product = kernel.split('/')
            pair = {side: np.asarray(pairs[f'{kernel}/{side}']) for side in ('a', 'b')}
            whole = {'blocks': {group: {product: {'kernel': np.asarray(leaf)}}}}
            whole = merged(whole, {group: {product: pair}}, config.scale)
            return whole['blocks'][group][product]['kernel']

        return Leaf(leaf.shape, leaf.dtype, make)

    for kernel in config.kernels:
        path = f'blocks/{kernel}/kernel'
        tree[path] = changed(kernel, tree[path])
    return dataclasses.replace(net, tree=nest(tree))


def to_json(config: DecoderConfig) -> dict[str, Any]:
    """config.json, in the form that transformers 4 and 5 read."""
    kind = next(name for name, (bias, _) in KINDS.items() if bias == config.bias)
    rope: dict[str, Any] = {'rope_theta': config.theta, 'rope_type': 'default'}
    if config.scaling:
        rope |= {'rope_type': 'llama3', **dict(zip(SCALING, config.scaling))}
        rope[SCALING[3]] = int(config.scaling[3])
    old = {key: value for key, value in rope.items() if key != 'rope_theta'}
    return {
        'architectures': [KINDS[kind][1]],
        'model_type': kind,
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        'num_key_value_heads': config.kv_heads,
        'head_dim': config.head_dim,
        'rms_norm_eps': config.eps,
        'hidden_act': 'silu',
        'tie_word_embeddings': config.tied,
        'rope_theta': config.theta,
        'rope_scaling': old if config.scaling else None,
        'rope_parameters': rope,
        'dtype': config.stored,
        'torch_dtype': config.stored,
    }


def write(weights: Weights, dst: pathlib.Path, progress) -> list[str]:
    """A folder that `transformers` reads, with the small files of the source beside the weights.

    Raises:
      ConvertError: no language model.
      CheckpointError: the disk has not enough room.
    """
    net = export(weights)
    rules, sizes = tables.table('decoder', net.config, 'hf')
    links = tables.bind(rules, parts.shared_net('decoder', net.config).abstract, sizes)
    dst.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.check_room(dst.parent, sum(leaf.nbytes for leaf in flatten(net.tree).values()))
    item = jnp.dtype(net.config.stored).itemsize
    nbytes = {n: item * int(np.prod(form)) for n, form in tables.expected(links).items()}
    used = {name: each.part for name, each in weights.nets.items()}
    notes = [f'dropped: {name}' for name, part in used.items() if part not in LANGUAGE]
    if 'adapter' in used.values():
        notes.append('the adapter is merged into the language model')
    with hf_files.folder_at(dst) as folder:
        text = json.dumps(to_json(net.config), indent=2)
        (folder / hf_files.CONFIG).write_text(text + '\n')
        beside = tokenizer_of(weights.source) or weights.source
        for name in COMPANIONS:
            if (source := beside / name).is_file():
                files.size(source)
                shutil.copyfile(source, folder / name)
        shards = hf_files.Shards(folder, nbytes)
        for name, array in tables.to_file(links, net.tree, dtype=None):
            shards.put(name, array)
            progress(array.nbytes)
        shards.close()
    return notes
