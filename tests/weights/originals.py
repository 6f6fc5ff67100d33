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
