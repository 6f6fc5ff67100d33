"""The names of MAE and VideoMAE, as jepa_jax.weights.tables has those of V-JEPA: of the originals'
files, where both nets lie side by side, and of `transformers`. (reference: family §3)
"""

from __future__ import annotations

from collections.abc import Iterable

from jepa_jax.weights import tables
from jepa_jax.weights.tables import IMAGE_ENCODER, SINCOS, VIDEO, Rule, Table

MAE, VIDEOMAE = 'cls_token', 'encoder.blocks.0.attn.q_bias'  # names that only they have
VIDEOMAE_TUNED = 'blocks.0.attn.q_bias'
CLASSIFIER = 'fc_norm.', 'head.'  # of fine-tuned files, whose encoder has no norm
KEYS = 'encoder_to_decoder.weight', 'mask_token'


def net_of(name: str, names: Iterable[str]) -> str | None:
    """The net of an array of a flat state dict, by the names of all; None: no file of these two."""
    names = set(names)
    if VIDEOMAE in names:
        return 'pixel_decoder' if name in KEYS or not name.startswith('encoder.') else 'online'
    if {MAE, VIDEOMAE_TUNED} & names and name.startswith(CLASSIFIER):
        return 'probe'
    if VIDEOMAE_TUNED in names:
        inner = name in KEYS or name.startswith('decoder.')
        return 'pixel_decoder' if inner else 'online'
    if MAE in names:
        return 'pixel_decoder' if name.startswith(('decoder_', 'mask_token')) else 'online'
    return None


MAE_ENCODER = (
    Rule('cls_token', 'class_token', 'a b d -> a b d'),
    *IMAGE_ENCODER,
)
MAE_DECODER = (
    Rule('mask_token', 'mask_token', 'a b d -> a b d'),
    Rule('decoder_pos_embed', None, '', why=SINCOS),
    *tables.affine('decoder_embed', 'embed'),
    *tables.block('decoder_blocks.{i}', 'blocks'),
    *tables.norm('decoder_norm', 'norm'),
    *tables.affine('decoder_pred', 'proj'),
)


def _block(name: str, path: str) -> tuple[Rule, ...]:
    """Of VideoMAE: queries and values have a bias each, keys none."""
    rules = []
    for rule in tables.block(name, path):
        if rule.name == f'{name}.attn.qkv.bias':
            rules += [
                Rule(f'{name}.attn.{x}_bias', f'{path}/attn/{x}_bias', 'd -> d') for x in 'qv'
            ]
        else:
            rules.append(rule)
    return tuple(rules)


VIDEOMAE_ENCODER = (
    *tables.affine('encoder.patch_embed.proj', 'patch_embed', matrix=VIDEO),
    *_block('encoder.blocks.{i}', 'blocks'),
    *tables.norm('encoder.norm', 'norm'),
)
VIDEOMAE_TUNED_ENCODER = (
    *tables.affine('patch_embed.proj', 'patch_embed', matrix=VIDEO),
    *_block('blocks.{i}', 'blocks'),
)
PROBE = (*tables.norm('fc_norm', 'pooler/norm'), *tables.affine('head', 'heads/linear'))
VIDEOMAE_DECODER = (
    Rule('mask_token', 'mask_token', 'a b d -> a b d'),
    *_block('decoder.blocks.{i}', 'blocks'),
    *tables.norm('decoder.norm', 'norm'),
    *tables.affine('decoder.head', 'proj'),
    Rule('encoder_to_decoder.weight', 'embed/kernel', 'o i -> i o'),
)


# The names of `transformers` in files, without `vit.` and `videomae.`


def _hf_block(name: str, path: str, key_bias: bool) -> tuple[Rule, ...]:
    attention = f'{name}.attention.attention'
    parts = 'query', 'key', 'value'
    if key_bias:
        qkv = tables.split(f'{attention}.{{part}}', f'{path}/attn/qkv', *parts)
    else:
        kernel, _ = tables.split(f'{attention}.{{part}}', f'{path}/attn/qkv', *parts)
        biases = (Rule(f'{attention}.{x}_bias', f'{path}/attn/{x}_bias', 'd -> d') for x in 'qv')
        qkv = (kernel, *biases)
    return (
        *tables.norm(f'{name}.layernorm_before', f'{path}/norm1'),
        *qkv,
        *tables.affine(f'{name}.attention.output.dense', f'{path}/attn/proj'),
        *tables.norm(f'{name}.layernorm_after', f'{path}/norm2'),
        *tables.affine(f'{name}.intermediate.dense', f'{path}/mlp/fc1'),
        *tables.affine(f'{name}.output.dense', f'{path}/mlp/fc2'),
    )


HF_MAE_ENCODER = (
    Rule('embeddings.cls_token', 'class_token', 'a b d -> a b d'),
    *tables.HF_IJEPA,
)
HF_MAE_DECODER = (
    Rule('decoder.mask_token', 'mask_token', 'a b d -> a b d'),
    Rule('decoder.decoder_pos_embed', None, '', why=SINCOS),
    *tables.affine('decoder.decoder_embed', 'embed'),
    *_hf_block('decoder.decoder_layers.{i}', 'blocks', True),
    *tables.norm('decoder.decoder_norm', 'norm'),
    *tables.affine('decoder.decoder_pred', 'proj'),
)
HF_VIDEOMAE_ENCODER = (
    *tables.affine('embeddings.patch_embeddings.projection', 'patch_embed', matrix=VIDEO),
    *_hf_block('encoder.layer.{i}', 'blocks', False),
    *tables.norm('layernorm', 'norm'),
)
HF_VIDEOMAE_PROBE = (
    *tables.norm('fc_norm', 'pooler/norm'),
    *tables.affine('classifier', 'heads/linear'),
)
HF_VIDEOMAE_DECODER = (
    Rule('mask_token', 'mask_token', 'a b d -> a b d'),
    *_hf_block('decoder.decoder_layers.{i}', 'blocks', False),
    *tables.norm('decoder.norm', 'norm'),
    *tables.affine('decoder.head', 'proj'),
    Rule('encoder_to_decoder.weight', 'embed/kernel', 'o i -> i o'),
)


# The rules of a part in a kind of file, as in `tables`


def torch_encoder(config) -> Table:
    if not config.key_bias:
        rules = VIDEOMAE_ENCODER if config.last_norm else VIDEOMAE_TUNED_ENCODER
        return rules, tables.patch_sizes(config)
    if config.class_token:
        return tables.with_table(MAE_ENCODER, config), tables.patch_sizes(config)
    return tables.torch_encoder(config)


def torch_probe(config) -> Table:
    return (PROBE, {}) if config[0].mean else tables.torch_probe(config)


def hf_probe(config) -> Table:
    return (HF_VIDEOMAE_PROBE, {}) if config[0].mean else tables.hf_probe(config)


def torch_decoder(config) -> Table:
    if not config.key_bias:
        return VIDEOMAE_DECODER, {}
    return tables.with_table(MAE_DECODER, config), {}


def hf_encoder(config) -> Table:
    if not config.key_bias:
        return HF_VIDEOMAE_ENCODER, tables.patch_sizes(config)
    if config.class_token:
        return tables.with_table(HF_MAE_ENCODER, config), tables.patch_sizes(config)
    return tables.hf_encoder(config)


def hf_decoder(config) -> Table:
    if not config.key_bias:
        return HF_VIDEOMAE_DECODER, {}
    return tables.with_table(HF_MAE_DECODER, config), {}
