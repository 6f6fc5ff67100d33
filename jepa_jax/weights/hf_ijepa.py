"""`IJepaModel` of `transformers`: an encoder of images, no predictor. (reference: family §1.9)

The folders that I-JEPA's authors published hold the online encoder, and the processor's file in
them scales pixels to mean and deviation .5, though the model was trained with ImageNet's. Ours
always takes ImageNet's; folders that we write say so.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

from jepa_jax import files
from jepa_jax.errors import ConvertError
from jepa_jax.models.vit import ViTConfig
from jepa_jax.weights import parts
from jepa_jax.weights.shapes import Shapes

MODEL, KIND = 'IJepaModel', 'ijepa'
PREFIX = 'ijepa.'  # of the model within IJepaForImageClassification
PROCESSOR = 'preprocessor_config.json'
# what our nets fix and `transformers` leaves open
FIXED = {'num_channels': 3, 'layer_norm_eps': 1e-6, 'qkv_bias': True, 'hidden_act': 'gelu'}
DEFAULTS = {
    'num_channels': 3,
    'layer_norm_eps': 1e-12,  # which no released weights have
    'qkv_bias': True,
    'hidden_act': 'gelu',
    'patch_size': 16,
    'image_size': 224,
    'hidden_size': 768,
    'num_attention_heads': 12,
    'num_hidden_layers': 12,
    'intermediate_size': 3072,
}
# names since transformers 5 -> those of its files before, which it writes again
OLD = (
    (r'attention\.q_proj', 'attention.attention.query'),
    (r'attention\.k_proj', 'attention.attention.key'),
    (r'attention\.v_proj', 'attention.attention.value'),
    (r'attention\.o_proj', 'attention.output.dense'),
    (r'mlp\.fc1', 'intermediate.dense'),
    (r'mlp\.fc2', 'output.dense'),
)


def read_config(path: pathlib.Path, stored: dict[str, Any]) -> dict[str, Any]:
    """config.json, already read, with the defaults of `transformers` for what it lacks.

    Raises:
      ConvertError: an option that ours does not have.
    """
    config = {**DEFAULTS, **stored}
    for key, value in FIXED.items():
        if config[key] != value:
            raise ConvertError(f'{path}: {key} = {repr(config[key])[:50]}, must be {value!r}')
    for key in ('patch_size', 'image_size'):
        if isinstance(config[key], list) and len(set(map(str, config[key]))) == 1:
            config[key] = config[key][0]
    for key in DEFAULTS.keys() - FIXED.keys():
        if not (type(config[key]) is int and 0 < config[key] <= parts.LARGEST):
            raise ConvertError(
                f'{path}: {key} = {repr(config[key])[:50]}: must be a whole number up to '
                f'{parts.LARGEST:,}'
            )
    return config


def short(name: str) -> str:
    """An array's name as files before transformers 5 have it, without a classifier's prefix."""
    name = name.removeprefix(PREFIX)
    layer = re.fullmatch(r'layers\.(\d+)\.(.+)', name)
    if not layer:
        return name
    rest = layer[2]
    for new, old in OLD:
        rest = re.sub(f'^{new}', old, rest)
    return f'encoder.layer.{layer[1]}.{rest}'


def net_of(path: pathlib.Path, name: str) -> str | None:
    """The net that an array is of.

    Raises:
      ConvertError: of a classifier, whose place is a linear probe.
    """
    if name.startswith('classifier.'):
        raise ConvertError(
            f'{path}: {name}: a linear classifier on the mean of all tokens, which no net here '
            'has; save its `.ijepa` alone'
        )
    return 'online' if name.startswith(('embeddings.', 'encoder.', 'layernorm.')) else None


def encoder(values: dict[str, Any], forms: Shapes) -> ViTConfig:
    return ViTConfig(
        values['hidden_size'],
        values['num_hidden_layers'],
        values['num_attention_heads'],
        values['intermediate_size'] / values['hidden_size'],
        values['patch_size'],
        tubelet=1,
        position='sincos',
        axes='xy',
        image_size=values['image_size'],
        frames=1,
    )


def other_pixels(folder: pathlib.Path) -> str:
    """What the folder's processor does to pixels that the model was not trained with."""
    if not (folder / PROCESSOR).exists():
        return ''
    said = files.read_json(folder / PROCESSOR)
    if said.get('image_mean', [0.5] * 3) == [0.5] * 3:
        return (
            f"pixels are normalised by ImageNet's mean and deviation, as in training; {PROCESSOR} "
            'has .5 and .5'
        )
    return ''


def write_config(folder: pathlib.Path, config_name: str, which: dict, encoder: ViTConfig) -> None:
    """config.json, and preprocessor_config.json with the mean and deviation of the training."""
    hidden = int(encoder.width * encoder.mlp_ratio)
    config = {
        'architectures': [MODEL],
        'model_type': KIND,
        'dtype': 'float32',
        **which,
        **FIXED,
        'patch_size': encoder.patch,
        'image_size': encoder.image_size,
        'hidden_size': encoder.width,
        'num_attention_heads': encoder.heads,
        'num_hidden_layers': encoder.depth,
        'intermediate_size': hidden,
    }
    side = {'height': encoder.image_size, 'width': encoder.image_size}
    processor = {
        'image_processor_type': 'ViTImageProcessor',
        'do_resize': True,
        'size': side,
        'resample': 2,
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': [0.485, 0.456, 0.406],
        'image_std': [0.229, 0.224, 0.225],
    }
    for name, value in ((config_name, config), (PROCESSOR, processor)):
        (folder / name).write_text(json.dumps(value, indent=2) + '\n')
