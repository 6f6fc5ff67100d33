"""Files as the original writes them, with weights by formula (reference: vjepa2 §10.1, §13)."""

import numpy as np
import torch
from torch_fill import tensor


def linear(name: str, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
    return {f'{name}.weight': (d_out, d_in), f'{name}.bias': (d_out,)}


def norm(name: str, d: int) -> dict[str, tuple[int, ...]]:
    return {f'{name}.weight': (d,), f'{name}.bias': (d,)}


def block(name: str, d: int, hidden: int, swiglu: bool = False) -> dict[str, tuple[int, ...]]:
    mlp = linear(f'{name}.mlp.fc1', d, hidden) | linear(f'{name}.mlp.fc2', hidden, d)
    if swiglu:
        mlp = linear(f'{name}.mlp.fc1', d, hidden) | linear(f'{name}.mlp.fc2', d, hidden)
        mlp |= linear(f'{name}.mlp.fc3', hidden, d)
    return (
        norm(f'{name}.norm1', d)
        | linear(f'{name}.attn.qkv', d, 3 * d)
        | linear(f'{name}.attn.proj', d, d)
        | norm(f'{name}.norm2', d)
        | mlp
    )


def blocks(name: str, depth: int, d: int, hidden: int, **more) -> dict[str, tuple[int, ...]]:
    return {k: v for i in range(depth) for k, v in block(f'{name}.{i}', d, hidden, **more).items()}


def encoder(d=96, depth=3, hidden=384, patch=16, tubelet=2, **more) -> dict[str, tuple[int, ...]]:
    kernel = (d, 3, tubelet, patch, patch) if tubelet > 1 else (d, 3, patch, patch)
    return {
        'patch_embed.proj.weight': kernel,
        'patch_embed.proj.bias': (d,),
        **blocks('blocks', depth, d, hidden, **more),
        **norm('norm', d),
    }


def predictor(d_encoder=96, d=48, depth=2, tokens=3) -> dict[str, tuple[int, ...]]:
    return {
        **linear('predictor_embed', d_encoder, d),
        **{f'mask_tokens.{i}': (1, 1, d) for i in range(tokens)},
        **blocks('predictor_blocks', depth, d, 4 * d),
        **norm('predictor_norm', d),
        **linear('predictor_proj', d, d_encoder),
    }


def dense_encoder(d=96, depth=4, hidden=384) -> dict[str, tuple[int, ...]]:
    """Of V-JEPA 2.1. (reference: vjepa2_1 §8)"""
    return {
        'img_mod_embed': (1, 1, d),
        'video_mod_embed': (1, 1, d),
        'patch_embed.proj.weight': (d, 3, 2, 16, 16),
        'patch_embed.proj.bias': (d,),
        'patch_embed_img.proj.weight': (d, 3, 1, 16, 16),
        'patch_embed_img.proj.bias': (d,),
        **blocks('blocks', depth, d, hidden),
        **{k: v for j in range(4) for k, v in norm(f'norms_block.{j}', d).items()},
    }


def dense_predictor(
    d_encoder=96, d=48, depth=2, tokens=8, levels=4, out=0
) -> dict[str, tuple[int, ...]]:
    """Likewise; one level: as of the distilled B and L."""
    embed = linear('predictor_embed', d_encoder, d)
    if levels > 1:
        embed = linear('predictor_embed.0', levels * d_encoder, d_encoder)
        embed |= linear('predictor_embed.2', d_encoder, d)
    return {
        'img_mod_embed': (1, 1, d),
        'video_mod_embed': (1, 1, d),
        **{f'mask_tokens.{i}': (1, 1, d) for i in range(tokens)},
        **embed,
        **blocks('predictor_blocks', depth, d, 4 * d),
        **norm('predictor_norm', d),
        **linear('predictor_proj', d, out or levels * d_encoder),
        **linear('predictor_proj_context', d, out or levels * d_encoder),
    }


def ac_predictor(d_encoder=96, d=64, depth=2) -> dict[str, tuple[int, ...]]:
    return {
        **linear('predictor_embed', d_encoder, d),
        **linear('action_encoder', 7, d),
        **linear('state_encoder', 7, d),
        **linear('extrinsics_encoder', 6, d),
        **blocks('predictor_blocks', depth, d, 4 * d),
        **norm('predictor_norm', d),
        **linear('predictor_proj', d, d_encoder),
    }


def probe(d=96, depth=4, heads={'linear': 7}) -> dict[str, tuple[int, ...]]:  # noqa: B006
    cross = 'pooler.cross_attention_block'
    return {
        'pooler.query_tokens': (1, len(heads), d),
        **norm(f'{cross}.norm1', d),
        **linear(f'{cross}.xattn.q', d, d),
        **linear(f'{cross}.xattn.kv', d, 2 * d),
        **norm(f'{cross}.norm2', d),
        **linear(f'{cross}.mlp.fc1', d, 4 * d),
        **linear(f'{cross}.mlp.fc2', 4 * d, d),
        **blocks('pooler.blocks', depth - 1, d, 4 * d),
        **{k: v for name, count in heads.items() for k, v in linear(name, d, count).items()},
    }


def fill(shapes: dict, prefix: str = '', sigma: float = 0.05, seed: str = '') -> dict:
    """A state dict; `seed` is put before each name to get other values."""
    return {
        prefix + name: torch.from_numpy(tensor(seed + name, shape, sigma))
        for name, shape in shapes.items()
    }


def released(**more) -> dict:
    """The top level of a released file, tiny: online and EMA encoder differ."""
    return {
        'encoder': fill(encoder(), 'module.backbone.', seed='online.'),
        'predictor': fill(predictor(), 'module.backbone.'),
        'target_encoder': fill(encoder(), 'module.backbone.'),
        'epoch': 3,
        'loss': np.float64(0.5),
        'batch_size': 24,
        'world_size': 128,
        'lr': np.float32(1e-3),
        **more,
    }


def dense_released(distilled: bool, **sizes) -> dict:
    """The top level of a released file of V-JEPA 2.1."""
    encoder = dense_encoder(**sizes)
    d = sizes.get('d', 96)
    student = dict(levels=1, out=2 * d) if distilled else {}
    return {
        'ema_encoder' if distilled else 'target_encoder': fill(encoder, 'module.backbone.'),
        'predictor': fill(dense_predictor(d, **student), 'module.backbone.'),
    }
