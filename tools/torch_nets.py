"""The family's networks and V-JEPA's training step in plain PyTorch, for the benches.

Written as one would without thinking of speed beyond the usual: fused attention, a fused AdamW, the
moving average in one call, tables of the positions once a forward pass, activation checkpointing
if asked for. Layers have the names of the released files. (reference: vjepa2 §1, §2, §5, §9.1)
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

EPS = 1e-6
Tables = tuple[torch.Tensor, torch.Tensor]


def tables(head: int, axes: Sequence[torch.Tensor]) -> Tables:
    """Cosines and signed sines [..., N, head] of the positions t, y, x, each [..., N]."""
    part = 2 * (head // 3 // 2)
    omega = 10000.0 ** (-torch.arange(part // 2, device=axes[0].device) / (part / 2))
    theta = torch.cat([p[..., None] * omega.repeat(2) for p in axes], -1)
    theta = F.pad(theta, (0, head - 3 * part))
    sign = torch.tensor([-1.0, 1.0], device=theta.device).repeat(head // 2)
    return theta.cos(), theta.sin() * sign


def grid_tables(head: int, ids: torch.Tensor, h: int, w: int) -> Tables:
    """Of ids [..., N] on a grid h x w."""
    return tables(head, (ids // (h * w), ids // w % h, ids % w))


def turn(x: torch.Tensor, tables: Tables) -> torch.Tensor:
    cos, sin = tables
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos + swapped * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, tables=None, mask=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if tables is not None:
            q, k = turn(q, tables), turn(k, tables)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, ratio: float = 4.0):
        super().__init__()
        hidden = int(width * ratio)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, ratio: float = 4.0, eps: float = EPS):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn, self.mlp = Attention(width, heads), MLP(width, ratio)

    def forward(self, x, tables=None, mask=None):
        x = x + self.attn(self.norm1(x), tables, mask)
        return x + self.mlp(self.norm2(x))


def fold(blocks: Iterable[nn.Module], x: torch.Tensor, tables: Tables | None, again: bool):
    """again: activations are computed again in the backward pass."""
    for block in blocks:
        x = checkpoint(block, x, tables, use_reentrant=False) if again else block(x, tables)
    return x


class Encoder(nn.Module):
    """clips [B, 3, T, H, W], normalised; ids [B, K] of the tokens that are kept, or all."""

    def __init__(self, c, again: bool = False):
        super().__init__()
        size = (c.tubelet, c.patch, c.patch)
        self.head, self.again = c.width // c.heads, again
        self.patch_embed = nn.ModuleDict({'proj': nn.Conv3d(3, c.width, size, size)})
        self.blocks = nn.ModuleList(
            Block(c.width, c.heads, c.mlp_ratio) for _ in range(c.depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(c.width, EPS)

    def forward(self, clips, ids=None):
        x = self.patch_embed['proj'](clips)
        h, w = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        if ids is None:
            at = grid_tables(self.head, torch.arange(x.shape[1], device=x.device), h, w)
        else:
            x = pick(x, ids)
            at = tuple(t[:, None] for t in grid_tables(self.head, ids, h, w))
        return self.norm(fold(self.blocks, x, at, self.again and torch.is_grad_enabled()))


class Predictor(nn.Module):
    """context features [B, K, D], ids [B, K] and [B, M] -> [B, M, D], with the first mask token."""

    def __init__(self, c, again: bool = False):
        super().__init__()
        self.side, self.head, self.again = c.grid[1:], c.width // c.heads, again
        self.predictor_embed = nn.Linear(c.encoder_width, c.width)
        self.mask_tokens = nn.ParameterList(
            torch.zeros(1, 1, c.width) for _ in range(c.mask_tokens)
        )  # fmt: skip
        self.predictor_blocks = nn.ModuleList(
            Block(c.width, c.heads, c.mlp_ratio) for _ in range(c.depth)
        )  # fmt: skip
        self.predictor_norm = nn.LayerNorm(c.width, EPS)
        self.predictor_proj = nn.Linear(c.width, c.encoder_width)

    def forward(self, x, context, target):
        x = self.predictor_embed(x)
        queries = self.mask_tokens[0].expand(*target.shape, -1)
        ids = torch.cat([context, target], 1)
        at = tuple(t[:, None] for t in grid_tables(self.head, ids, *self.side))
        x = fold(self.predictor_blocks, torch.cat([x.to(queries), queries], 1), at, self.again)
        return self.predictor_proj(self.predictor_norm(x[:, context.shape[1] :]))


def pick(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Tokens [B, K, D] of x [B, N, D]."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)

    def forward(self, q, x):
        q = self.q(q).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class CrossBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.xattn, self.mlp = CrossAttention(width, heads), MLP(width)

    def forward(self, q, x):
        q = q + self.xattn(q, self.norm1(x))
        return q + self.mlp(self.norm2(q))


class Pooler(nn.Module):
    def __init__(self, width: int, heads: int, depth: int):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, eps=1e-5) for _ in range(depth - 1))
        self.cross_attention_block = CrossBlock(width, heads)

    def forward(self, x):
        x = fold(self.blocks, x, None, False)
        return self.cross_attention_block(self.query_tokens.expand(len(x), -1, -1), x)


class Classifier(nn.Module):
    """An attentive probe with one linear head: tokens [B, N, D] -> logits [B, classes]."""

    def __init__(self, width: int, heads: int, depth: int, classes: int):
        super().__init__()
        self.pooler, self.linear = Pooler(width, heads, depth), nn.Linear(width, classes)

    def forward(self, x):
        return self.linear(self.pooler(x)[:, 0])


def fill(module: nn.Module, weights: dict[str, np.ndarray]) -> nn.Module:
    module.load_state_dict({k: torch.from_numpy(np.array(a)) for k, a in weights.items()})
    return module


def training_step(
    nets: dict[str, nn.Module],
    forward: Callable[[], torch.Tensor],
    average: Callable[[float], None],
    schedules: dict[str, np.ndarray],
    *,
    fused: bool = True,
) -> Callable[[], dict[str, torch.Tensor]]:
    """A function that takes the next step: loss, backward, AdamW, moving average.

    Args:
      nets: that are trained; biases and vectors do not decay.
      forward: the loss.
      average: momentum -> moves the target.
      schedules: learning rate, weight decay, momentum of every step.
      fused: the optimizer in one kernel, which the original does not ask for.
    """
    named = [each for net in nets.values() for each in net.named_parameters()]

    def free(name: str, p: nn.Parameter) -> bool:
        return 'bias' in name or p.ndim == 1

    groups: list[dict[str, Any]] = [
        {'params': [p for name, p in named if not free(name, p)]},
        {'params': [p for name, p in named if free(name, p)], 'weight_decay': 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=fused)
    steps = iter(range(len(schedules['lr'])))

    def run():
        k = next(steps)
        for group in optimizer.param_groups:
            group['lr'] = float(schedules['lr'][k])
        optimizer.param_groups[0]['weight_decay'] = float(schedules['weight_decay'][k])
        loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            average(float(schedules['momentum'][k]))
        return {'loss': loss.detach()}

    return run


def averages(online: nn.Module, target: nn.Module) -> Callable[[float], None]:
    """target <- m target + (1 - m) online."""
    pair = list(target.parameters()), list(online.parameters())
    return lambda momentum: torch._foreach_lerp_(*pair, 1 - momentum)


# The original, where a checkout of it is


def original(checkout: str) -> None:
    """Makes `src`, `app` and `notebooks` of a checkout importable.

    Its networks import one function of timm, which stands here: stochastic depth."""

    def drop_path(x, drop_prob: float = 0.0, training: bool = False):
        if not training or not drop_prob:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= drop_prob
        return x * kept / (1 - drop_prob)

    sys.path.insert(0, checkout)
    if 'timm' not in sys.modules:
        for name in ('timm', 'timm.models', 'timm.models.layers'):
            sys.modules[name] = types.ModuleType(name)
        sys.modules['timm.models.layers'].drop_path = drop_path
