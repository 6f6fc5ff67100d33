"""The files of MAE and VideoMAE: which arrays are of which net, and what shapes the nets.

Both write one flat state dict, of encoder and decoder or of the encoder alone. (reference: family
§3)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jepa_jax.errors import ConvertError
from jepa_jax.models import SIZES
from jepa_jax.models.pixel_decoder import PixelDecoderConfig
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.vit import ViTConfig, position_table
from jepa_jax.weights import hf_files, shapes, torch_files
from jepa_jax.weights.pixel_tables import MAE, VIDEOMAE, VIDEOMAE_TUNED

CROP, FRAMES = 224, 16  # of VideoMAE's released models
# width of a decoder -> heads (reference: family §3)
MAE_HEADS = {512: 16}
VIDEOMAE_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}


# The readers of jepa_jax.weights.parts.PARTS, as in `shapes`


def encoder(reader: shapes.Reader, name: str, forms: shapes.Shapes, beside: Any) -> ViTConfig:
    """Of any encoder."""
    if VIDEOMAE in forms:
        return _videomae(reader, name, forms, 'encoder.')
    if VIDEOMAE_TUNED in forms:
        return _videomae(reader, name, forms, '')
    if MAE in forms:
        return _mae(reader, name, forms)
    return shapes.encoder(reader, name, forms, beside)


def _mae(reader: shapes.Reader, name: str, forms: shapes.Shapes) -> ViTConfig:
    width, _, _, patch = reader.shape(name, forms, 'patch_embed.proj.weight', 4)
    _, rows, _ = reader.shape(name, forms, 'pos_embed', 3)
    side = _side(reader, name, rows - 1, patch)
    shape = _shape(reader, name, forms, width, 'blocks')
    return ViTConfig(
        **shape, patch=patch, tubelet=1, position='sincos', axes='xy', image_size=side, frames=1,
        class_token=True, glorot=True, last_norm='norm.weight' in forms,
    )  # fmt: skip


def _side(reader: shapes.Reader, name: str, tokens: int, patch: int) -> int:
    """Pixels of a side, of an image of so many tokens."""
    side = math.isqrt(max(0, tokens))
    if side < 1 or side**2 != tokens:
        raise ConvertError(
            f'{reader.where}: {name}: a table of {tokens} positions is of no square of patches'
        )
    return side * patch


def _videomae(reader: shapes.Reader, name: str, forms: shapes.Shapes, prefix: str) -> ViTConfig:
    """prefix: of its names; '' in fine-tuned files."""
    array = f'{prefix}patch_embed.proj.weight'
    width, _, tubelet, _, patch = reader.shape(name, forms, array, 5)
    crop = reader.default('crop', CROP, 'shapes do not tell; as all that were released')
    frames = reader.default('frames', FRAMES, 'shapes do not tell; as all that were released')
    return ViTConfig(
        **_shape(reader, name, forms, width, f'{prefix}blocks'),
        patch=patch, tubelet=tubelet, position='sincos', axes='flat', image_size=crop,
        frames=frames, key_bias=False, glorot=True,
        last_norm=f'{prefix}norm.weight' in forms,
    )  # fmt: skip


def _shape(
    reader: shapes.Reader, name: str, forms: shapes.Shapes, width: int, blocks: str
) -> dict[str, Any]:
    """Width, depth, heads and MLP ratio of an encoder."""
    depth = shapes.count(forms, blocks)
    hidden, _ = reader.shape(name, forms, f'{blocks}.0.mlp.fc1.weight', 2)
    known = [s.heads for s in SIZES.values() if (s.width, s.depth) == (width, depth)]
    if known and reader.choices.heads in (None, known[0]):
        heads = known[0]
    else:
        usual = shapes.usual_heads(width)
        heads = reader.default('heads', usual, '64 channels or fewer a head')
    ratio = shapes.mlp_ratio(width, hidden)
    return {'width': width, 'depth': depth, 'heads': heads, 'mlp_ratio': ratio}


def decoder(
    reader: shapes.Reader, name: str, forms: shapes.Shapes, beside: ViTConfig | None
) -> PixelDecoderConfig:
    """Of a decoder of pixels, which only the encoder beside it tells the grid of."""
    if beside is None:
        raise ConvertError(f'{reader.where}: {name}: a decoder without its encoder')
    mae = 'decoder_embed.weight' in forms
    embed, blocks, head, known = (
        ('decoder_embed.weight', 'decoder_blocks', 'decoder_pred.weight', MAE_HEADS)
        if mae
        else ('encoder_to_decoder.weight', 'decoder.blocks', 'decoder.head.weight', VIDEOMAE_HEADS)
    )
    width, encoder_width = reader.shape(name, forms, embed, 2)
    hidden, _ = reader.shape(name, forms, f'{blocks}.0.mlp.fc1.weight', 2)
    values, _ = reader.shape(name, forms, head, 2)
    if width in known and reader.choices.predictor_heads is None:
        heads = known[width]
    else:
        usual = shapes.usual_heads(width)
        heads = reader.default('predictor_heads', usual, '64 channels or fewer a head')
    if (encoder_width, values) != (beside.width, beside.tubelet * beside.patch**2 * 3):
        raise ConvertError(
            f'{reader.where}: {name} reads features of width {encoder_width} and draws {values} '
            f'values a token, the encoder beside it has width {beside.width} and '
            f'{beside.tubelet * beside.patch**2 * 3} values'
        )
    return decoder_config(
        beside, width, shapes.count(forms, blocks), heads, shapes.mlp_ratio(width, hidden)
    )


def decoder_config(
    encoder: ViTConfig, width: int, depth: int, heads: int, ratio: float
) -> PixelDecoderConfig:
    """Of the decoder beside an encoder."""
    mae = encoder.class_token
    return PixelDecoderConfig(
        encoder.width, encoder.tubelet * encoder.patch**2 * 3, width, depth, heads, ratio,
        axes=encoder.axes, grid=encoder.home, class_token=mae, embed_bias=mae, key_bias=mae,
    )  # fmt: skip


def probe(
    reader: shapes.Reader, name: str, forms: shapes.Shapes, beside: ViTConfig | None
) -> tuple[PoolerConfig, dict[str, int]]:
    """Of any probe."""
    if 'fc_norm.weight' not in forms:
        return shapes.probe(reader, name, forms, beside)
    return mean_probe(reader.where, *reader.shape(name, forms, 'head.weight', 2))


def mean_probe(where: str, classes: int, width: int) -> tuple[PoolerConfig, dict[str, int]]:
    """Of a classifier of the mean; raises ConvertError if it has no class."""
    if classes < 1:
        raise ConvertError(f'{where}: probe: its head has no class')
    return PoolerConfig(width, heads=1, depth=1, mean=True), {'linear': classes}


# Arrays that files have and we compute: MAE's tables


def table(config: ViTConfig) -> dict[str, np.ndarray]:
    """Of any encoder."""
    return {} if config.axes == 'flat' else torch_files.encoder_table(config)


def decoder_table(config: PixelDecoderConfig) -> dict[str, np.ndarray]:
    if not config.class_token or config.stored_table:
        return {}
    return {'decoder_pos_embed': position_table(config, config.grid)[None]}


def hf_table(config: ViTConfig) -> dict[str, np.ndarray]:
    """Of any encoder."""
    if not config.class_token:
        return hf_files.encoder_table(config)
    tables = table(config)
    return {'embeddings.position_embeddings': tables['pos_embed']} if tables else {}


def hf_decoder_table(config: PixelDecoderConfig) -> dict[str, np.ndarray]:
    return {f'decoder.{name}': array for name, array in decoder_table(config).items()}
