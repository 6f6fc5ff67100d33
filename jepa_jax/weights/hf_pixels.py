"""Folders of `transformers` with MAE or VideoMAE: ViTMAEModel, ViTMAEForPreTraining,
VideoMAEModel, VideoMAEForPreTraining, VideoMAEForVideoClassification. (reference: family §3)"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from jepa_jax import files
from jepa_jax.errors import ConvertError
from jepa_jax.models.pixel_decoder import PixelDecoderConfig
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights import hf_files, hf_ijepa, parts, pixel_files, shapes
from jepa_jax.weights.pixel_tables import KEYS
from jepa_jax.weights.tables import Leaf

CLASSIFIER = 'fc_norm.', 'classifier.'  # names of VideoMAEForVideoClassification
EPS = 1e-6  # of the originals; the classes' default, which released folders have, is 1e-12
PROCESSOR = 'preprocessor_config.json'
MEAN, STD = hf_files.PROCESSOR['image_mean'], hf_files.PROCESSOR['image_std']
# names that some versions of the library write -> those of the rest
ALIASES = (
    (r'^decoder\.decoder_encoder\.layer\.', 'decoder.decoder_layers.'),  # 5.24
    # of modules since 5, which `save_pretrained` does not write
    (r'^layers\.', 'encoder.layer.'),
    *((rf'(?<=\d\.){new}', old) for new, old in hf_ijepa.OLD),
)
_COMMON = {
    'num_channels': 3,
    'patch_size': 16,
    'image_size': 224,
    'hidden_size': 768,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'intermediate_size': 3072,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-12,
}
# model_type -> values of config.json that the library takes where there are none
DEFAULTS = {
    'vit_mae': {
        **_COMMON,
        'qkv_bias': True,
        'decoder_hidden_size': 512,
        'decoder_num_hidden_layers': 8,
        'decoder_num_attention_heads': 16,
        'decoder_intermediate_size': 2048,
    },
    'videomae': {
        **_COMMON,
        'qv_bias': True,
        'num_frames': 16,
        'tubelet_size': 2,
        'use_mean_pooling': True,
        'decoder_hidden_size': 384,
        'decoder_num_hidden_layers': 4,
        'decoder_num_attention_heads': 6,
        'decoder_intermediate_size': 1536,
    },
}
FIXED = {'num_channels': 3, 'hidden_act': 'gelu', 'qkv_bias': True, 'qv_bias': True}


# Reading


def read_config(folder: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    """config.json with the defaults of `transformers` for what it lacks.

    Raises:
      ConvertError: an option that ours does not have, or a number that cannot be.
    """
    path = folder / hf_files.CONFIG
    stored = files.read_json(path)
    defaults = DEFAULTS[stored['model_type']]
    config = {**defaults, **stored}
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise ConvertError(f'{path}: {key} = {config[key]!r}, must be {value!r}')
    for key in ('patch_size', 'image_size'):
        if isinstance(config[key], list) and len(set(map(str, config[key]))) == 1:
            config[key] = config[key][0]
    for key, usual in defaults.items():
        value = config[key]
        whole = type(value) is int and 0 < value <= parts.LARGEST
        if type(usual) is int and not whole:
            raise ConvertError(
                f'{path}: {key} = {str(value)[:50]!r}: must be a number up to {parts.LARGEST:,}'
            )
    if config['layer_norm_eps'] not in (EPS, 1e-12):
        raise ConvertError(f'{path}: layer_norm_eps = {config["layer_norm_eps"]!r}, must be {EPS}')
    if config['layer_norm_eps'] != EPS:
        notes.append(
            f'layer_norm_eps is {config["layer_norm_eps"]} there; the original, and this program, '
            f'have {EPS}'
        )
    if (folder / PROCESSOR).exists():
        said = files.read_json(folder / PROCESSOR)
        told = {key: said.get(key) for key in ('image_mean', 'image_std')}
        if told not in ({'image_mean': MEAN, 'image_std': STD}, dict.fromkeys(told)):
            notes.append(
                f'{PROCESSOR} scales pixels by mean {str(told["image_mean"])[:50]} and deviation '
                f'{str(told["image_std"])[:50]}; the model was trained with those of ImageNet, '
                'which are used here'
            )
    return config


def take_apart(
    folder: pathlib.Path, values: dict[str, Any], notes: list[str]
) -> dict[str, dict[str, Leaf]]:
    """Net -> arrays by their names in files, read when needed; values: of `read_config`.

    Raises:
      ConvertError: no safetensors in the folder, a damaged file, or an array twice.
    """
    nets: dict[str, dict[str, Leaf]] = {}
    for path, name, leaf in hf_files.stored(folder):
        short = re.sub(r'^(vit|videomae)\.', '', name)
        for pattern, other in ALIASES:
            short = re.sub(pattern, other, short)
        if values['model_type'] == 'videomae':
            short = re.sub(
                r'attention\.attention\.([qv])\w+\.bias$', r'attention.attention.\1_bias', short
            )
        inner = short.startswith('decoder.') or short in KEYS
        kind = 'pixel_decoder' if inner else 'probe' if short.startswith(CLASSIFIER) else 'online'
        net = nets.setdefault(kind, {})
        if short in net:
            raise ConvertError(f'{path}: {name} is there twice, under two names')
        net[short] = leaf
    mean, head = bool(values.get('use_mean_pooling')), nets.get('probe', {})
    if head and not any(name.startswith('classifier.') for name in head):  # num_labels = 0
        head = nets.pop('probe')
        notes.append('fc_norm is dropped: it is of a classifier, which is not there')
    if head and not mean:
        raise ConvertError(
            f'{folder}: a classifier without use_mean_pooling reads the first token, which no net '
            'here does'
        )
    if mean and 'layernorm.weight' in nets.get('online', {}):  # of a model with a decoder
        values['use_mean_pooling'] = False
    return nets


# The readers of jepa_jax.weights.parts.PARTS, as in `hf_files`


def encoder(values: dict[str, Any], forms: shapes.Shapes, beside: ViTConfig | None) -> ViTConfig:
    """Of any encoder."""
    kind = values.get('model_type')
    if kind not in DEFAULTS:
        return hf_files.encoder(values, forms, beside)
    mae, width = kind == 'vit_mae', values['hidden_size']
    return ViTConfig(
        width,
        values['num_hidden_layers'],
        values['num_attention_heads'],
        shapes.mlp_ratio(width, values['intermediate_size']),
        values['patch_size'],
        1 if mae else values['tubelet_size'],
        position='sincos',
        axes='xy' if mae else 'flat',
        image_size=values['image_size'],
        frames=1 if mae else values['num_frames'],
        class_token=mae,
        key_bias=mae,
        glorot=True,
        last_norm=not values.get('use_mean_pooling', False),
    )


def probe(
    values: dict[str, Any], forms: shapes.Shapes, beside: ViTConfig
) -> tuple[PoolerConfig, dict[str, int]]:
    """Of any probe."""
    if values.get('model_type') not in DEFAULTS:
        return hf_files.probe(values, forms, beside)
    form = forms.get('classifier.weight', (0,))
    return pixel_files.mean_probe(hf_files.CONFIG, form[0], beside.width)


def decoder(values: dict[str, Any], forms: shapes.Shapes, beside: ViTConfig) -> PixelDecoderConfig:
    width = values['decoder_hidden_size']
    return pixel_files.decoder_config(
        beside,
        width,
        values['decoder_num_hidden_layers'],
        values['decoder_num_attention_heads'],
        shapes.mlp_ratio(width, values['decoder_intermediate_size']),
    )


# Writing


def is_of_these(encoder: ViTConfig) -> bool:
    """Whether `transformers` has an encoder as MAE's or VideoMAE's."""
    return encoder.class_token or not encoder.key_bias


def prefixes(encoder: ViTConfig, nets: dict[str, Any]) -> dict[str, str]:
    """Net -> what its names begin with: models with a decoder have the encoder within."""
    inner = 'vit.' if encoder.class_token else 'videomae.'
    others = 'pixel_decoder', 'probe'
    return {name: inner if name not in others and len(nets) > 1 else '' for name in nets}


def write_config(
    folder: pathlib.Path,
    dst: pathlib.Path,
    encoder: ViTConfig,
    decoder: PixelDecoderConfig | None,
    probe: tuple[PoolerConfig, dict[str, int]] | None,
    labels: Sequence[str],
) -> None:
    """config.json and preprocessor_config.json; labels: of the probe's classes, if known.

    Raises:
      ConvertError: `transformers` has no option for something in the configs.
    """
    for part in filter(None, (encoder, decoder)):
        if part.mlp != 'gelu':
            raise ConvertError(f"{dst}: mlp '{part.mlp}', which transformers has not here")
    mae = encoder.class_token
    if mae and not encoder.last_norm:
        raise ConvertError(
            f'{dst}: an encoder of MAE without a last norm, as fine-tuning leaves it, which '
            'transformers has no class for: use torch or jax'
        )
    kind = 'ForPreTraining' if decoder else 'ForVideoClassification' if probe else 'Model'
    config = {
        'architectures': [('ViTMAE' if mae else 'VideoMAE') + kind],
        'model_type': 'vit_mae' if mae else 'videomae',
        'dtype': 'float32',
        'num_channels': 3,
        'hidden_act': 'gelu',
        'layer_norm_eps': EPS,
        'patch_size': encoder.patch,
        'image_size': encoder.image_size,
        'hidden_size': encoder.width,
        'num_hidden_layers': encoder.depth,
        'num_attention_heads': encoder.heads,
        'intermediate_size': int(encoder.width * encoder.mlp_ratio),
    }
    if mae:
        config['qkv_bias'] = True
    else:
        config |= {
            'qv_bias': True,
            'num_frames': encoder.frames,
            'tubelet_size': encoder.tubelet,
            'use_mean_pooling': not encoder.last_norm,
        }
    if decoder:
        config |= {
            'decoder_hidden_size': decoder.width,
            'decoder_num_hidden_layers': decoder.depth,
            'decoder_num_attention_heads': decoder.heads,
            'decoder_intermediate_size': int(decoder.width * decoder.mlp_ratio),
        }
    if probe:
        config |= hf_files.named(probe[1]['linear'], labels)
    crop = encoder.image_size
    processor = {
        'image_processor_type': 'ViTImageProcessor' if mae else 'VideoMAEImageProcessor',
        'do_resize': True,
        'do_rescale': True,
        'do_normalize': True,
        'resample': 3 if mae else 2,
        'rescale_factor': 1 / 255,
        'size': {'height': crop, 'width': crop} if mae else {'shortest_edge': crop},
        'image_mean': MEAN,
        'image_std': STD,
    }
    if not mae:
        processor |= {'do_center_crop': True, 'crop_size': {'height': crop, 'width': crop}}
    for name, value in ((hf_files.CONFIG, config), (PROCESSOR, processor)):
        (folder / name).write_text(json.dumps(value, indent=2) + '\n')
