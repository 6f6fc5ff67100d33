"""Low-rank changes of a language model's products: LoRA.

y = x W becomes x W + x A B alpha / rank, with A drawn and B zero at the start, so that nothing
changes before the first step. (reference: video_qa §3.3)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax.models.decoder import KERNELS, DecoderConfig
from jepa_jax.sharding import Rules

SIDES = ('a', 'b')


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """All that shapes an adapter: of which products, and those of the language model."""

    width: int
    hidden: int
    depth: int
    inner: int  # of all heads together
    shared: int  # of all heads of keys
    rank: int = 16
    alpha: float = 32.0
    kernels: tuple[str, ...] = KERNELS

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @classmethod
    def of(cls, c: DecoderConfig, rank: int, alpha: float, rule: str) -> AdapterConfig:
        """rule: a pattern of whole names out of decoder.KERNELS, as 'attn/.*'.

        Raises:
          ValueError: it matches none.
        """
        kernels = tuple(name for name in KERNELS if re.fullmatch(rule, name))
        if not kernels:
            raise ValueError(f"kernels '{rule}': matches none of {', '.join(KERNELS)}")
        inner, shared = c.heads * c.head_dim, c.kv_heads * c.head_dim
        return cls(c.width, c.hidden, c.depth, inner, shared, rank, alpha, kernels)

    def form(self, kernel: str) -> tuple[int, int]:
        """Inputs and outputs of a product."""
        w, h, i, s = self.width, self.hidden, self.inner, self.shared
        forms = ((w, i), (w, s), (w, s), (i, w), (w, h), (w, h), (h, w))
        return dict(zip(KERNELS, forms, strict=True))[kernel]


class _Pair(nnx.Module):
    def __init__(self, c: AdapterConfig, kernel: str, *, rngs: nnx.Rngs):
        into, out = c.form(kernel)
        drawn = jax.random.normal(rngs.params(), (c.depth, into, c.rank))
        self.a = nnx.Param(drawn * into**-0.5)
        self.b = nnx.Param(jnp.zeros((c.depth, c.rank, out)))


class Adapter(nnx.Module):
    """A pair [L, in, rank], [L, rank, out] a product; `Decoder` takes the parameters themselves."""

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        if c.rank < 1:
            raise ValueError(f'rank {c.rank}: must be at least 1')
        if unknown := set(c.kernels) - set(KERNELS):
            raise ValueError(f'kernels {sorted(unknown)}: allowed are {", ".join(KERNELS)}')
        for group in sorted({name.split('/')[0] for name in c.kernels}):
            names = [n.split('/')[1] for n in c.kernels if n.startswith(f'{group}/')]
            pairs = {name: _Pair(c, f'{group}/{name}', rngs=rngs) for name in names}
            setattr(self, group, nnx.Dict(pairs))


def sharding(config: AdapterConfig) -> Rules:
    """Small, and whole on every device: `nets.fold` takes slices beside the blocks as they are."""
    return ((r'(attn|mlp)/\w+/[ab]', jax.P()),)


def merged(decoder: Mapping, adapter: Mapping, scale: float) -> dict:
    """The language model's parameters with the changes added, on the host: nested dicts of arrays
    of the same types. Arrays without a change are taken as they are."""
    blocks = dict(decoder['blocks'])
    for group, pairs in adapter.items():
        blocks[group] = dict(blocks[group])
        for name, pair in pairs.items():
            layer = dict(blocks[group][name])
            kernel = np.asarray(layer['kernel'])
            a, b = (np.asarray(pair[side], np.float32) for side in SIDES)
            layer['kernel'] = (kernel.astype(np.float32) + scale * (a @ b)).astype(kernel.dtype)
            blocks[group][name] = layer
    return {**decoder, 'blocks': blocks}
