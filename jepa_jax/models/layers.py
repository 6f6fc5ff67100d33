"""Linear, LayerNorm, MLPs, self-attention, block: the parts all transformers of the family
share."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jepa_jax.models.attention import attend
from jepa_jax.models.rope import rotate
from jepa_jax.nets import PRODUCT
from jepa_jax.sharding import Rules, batch_spec

# the original truncates at +-2, a hundred deviations out: a plain normal (reference: vjepa2 §1.5)
INIT_STD = 0.02


class _Linear(nnx.Linear):
    """A product that `mesh.remat=dots` keeps, by its name."""

    def __call__(self, inputs: jax.Array, **kwargs) -> jax.Array:
        return checkpoint_name(super().__call__(inputs, **kwargs), PRODUCT)


def Linear(
    d_in: int,
    d_out: int,
    *,
    dtype,
    rngs: nnx.Rngs,
    shrink: jax.Array | float = 1.0,
    bias: bool = True,
    stored=jnp.float32,
) -> nnx.Linear:
    """y = x W + b with inputs of type `dtype`; W from a normal of deviation 0.02 / shrink, b zero
    or, without bias, none; both of type `stored`."""

    def kernel_init(key, shape, param_dtype):
        return (jax.random.normal(key, shape) * INIT_STD / shrink).astype(param_dtype)

    # float32 means float32 on accelerators too, where the default would be a faster, coarser
    # product
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    return _Linear(
        d_in, d_out, use_bias=bias, dtype=dtype, param_dtype=stored, precision=precision,
        kernel_init=kernel_init, rngs=rngs,
    )  # fmt: skip


def keeping(d_in: int) -> float:
    """`shrink` of a Linear whose outputs vary as much as its inputs do: a deviation of
    d_in^-1/2, which at a width of 2,500 is the usual 0.02 and for small models matters."""
    return INIT_STD * d_in**0.5


def LayerNorm(width: int, *, eps: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Affine LayerNorm over the last axis; statistics and output in float32."""
    return nnx.LayerNorm(width, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


def redraw(module: nnx.Module, rngs: nnx.Rngs) -> None:
    """Weights of a module's products anew, uniform as Glorot's of their two widths: MAE's start.
    (reference: family §3.1)"""
    for path, kernel in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        if path[-1] == 'kernel':
            shape = kernel[...].shape
            bound = (6 / sum(shape[-2:])) ** 0.5
            kernel[...] = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)


def standardise(x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """LayerNorm without affine over the last axis, in float32."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), exact, by the error function; computed in float32 and rounded once, as in PyTorch.

    jax.nn.gelu would compute in x's type and by erfc, which on a GPU takes five passes over memory
    in place of two. Its gradient keeps x alone.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (y * _below(y)).astype(x.dtype)


def _below(y: jax.Array) -> jax.Array:
    """Phi, the share of a standard normal that lies below y."""
    return 0.5 * (1 + jax.lax.erf(y * math.sqrt(0.5)))


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, g):
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * jnp.square(y)) / math.sqrt(2 * math.pi)
    return ((g.astype(y.dtype) * (_below(y) + y * density)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


class GeluMLP(nnx.Module):
    """fc2(gelu(fc1 x)), exact (erf) GELU."""

    def __init__(self, width: int, hidden: int, *, dtype, rngs: nnx.Rngs, shrink=1.0):
        self.fc1 = Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, width, dtype=dtype, rngs=rngs, shrink=shrink)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(x)))


class SwiGLU(nnx.Module):
    """fc3(silu(fc1 x) * fc2 x).

    The depth rescale of the initialisation falls on fc2, which here is no output projection, as in
    the original (reference: vjepa2 §1.5, quirk 14).
    """

    def __init__(self, width: int, hidden: int, *, dtype, rngs: nnx.Rngs, shrink=1.0):
        self.fc1 = Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(width, hidden, dtype=dtype, rngs=rngs, shrink=shrink)
        self.fc3 = Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc3(jax.nn.silu(self.fc1(x)) * self.fc2(x))


# name -> (module, its hidden width from width * ratio)
MLPS = {
    'gelu': (GeluMLP, lambda hidden: hidden),
    'swiglu': (SwiGLU, lambda hidden: (2 * hidden // 3 + 7) // 8 * 8),
    'swiglu_full': (SwiGLU, lambda hidden: hidden),
}


def block_sharding(mlp: str, before: str = '', key_bias: bool = True) -> Rules:
    """Where the parameters of stacked blocks lie: over the model's width, which every mesh divides;
    before: pattern of what precedes `blocks/` in their paths."""
    into, out = (('fc1',), 'fc2') if mlp == 'gelu' else (('fc1', 'fc2'), 'fc3')
    ins = '|'.join(['attn/qkv', *(f'mlp/{name}' for name in into)])
    return (
        (rf'{before}blocks/({ins})/kernel', jax.P(None, 'fsdp', None)),
        (rf'{before}blocks/(attn/proj|mlp/{out})/kernel', jax.P(None, None, 'fsdp')),
        *(() if key_bias else ((rf'{before}blocks/attn/[qv]_bias', jax.P()),)),
    )


def make_mlp(
    kind: str, width: int, ratio: float, *, dtype, rngs: nnx.Rngs, shrink=1.0
) -> nnx.Module:
    if kind not in MLPS:
        raise ValueError(f"mlp '{kind}': allowed are {', '.join(MLPS)}")
    module, hidden = MLPS[kind]
    return module(width, hidden(int(width * ratio)), dtype=dtype, rngs=rngs, shrink=shrink)


def in_heads(x: jax.Array, *heads: int) -> jax.Array:
    """Channels [B, N, D] -> [B, N, *heads, C]. Where the batch lies is told: of one clip and one
    head a mesh would not know any more."""
    shape = *x.shape[:2], *heads, x.shape[2] // math.prod(heads)
    return jnp.reshape(x, shape, out_sharding=batch_spec(x))


def joined(x: jax.Array) -> jax.Array:
    """Heads [B, N, A, C] -> [B, N, A * C], likewise."""
    B, N, A, C = x.shape
    return jnp.reshape(x, (B, N, A * C), out_sharding=batch_spec(x))


class SelfAttention(nnx.Module):
    """Multi-head self-attention; the fused projection holds q, k, v one after the other, head by
    head.

    key_bias: False: keys have none, queries and values one each, as in VideoMAE. It would change
    nothing: all scores of a query move alike.
    """

    def __init__(
        self, width: int, heads: int, *, dtype, rngs: nnx.Rngs, shrink=1.0, key_bias: bool = True
    ):
        if width % heads:
            raise ValueError(f'width {width} is not a multiple of heads {heads}')
        self.heads, self.dtype, self.key_bias = heads, dtype, key_bias
        self.qkv = Linear(width, 3 * width, dtype=dtype, rngs=rngs, bias=key_bias)
        if not key_bias:
            self.q_bias = nnx.Param(jnp.zeros(width))
            self.v_bias = nnx.Param(jnp.zeros(width))
        self.proj = Linear(width, width, dtype=dtype, rngs=rngs, shrink=shrink)

    def __call__(
        self,
        x: jax.Array,
        rope=None,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, N, D] -> [B, N, D]; rope: tables from rope.angles or None; lengths [B]: valid
        tokens; segments [B, N]: a token sees those of its own."""
        q, k, v = self.split(x, rope)
        mixed = attend(q, k, v, lengths=lengths, segments=segments)
        return self.proj(joined(mixed))

    def split(self, x: jax.Array, rope=None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, N, D] -> q, k, v, each [B, N, A, C], q and k turned by rope."""
        qkv = self.qkv(x)
        if not self.key_bias:
            q, v = self.q_bias[...], self.v_bias[...]
            qkv = qkv + jnp.concatenate([q, jnp.zeros_like(q), v]).astype(self.dtype)
        q, k, v = jnp.moveaxis(in_heads(qkv, 3, self.heads), 2, 0)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q, k, v


class Block(nnx.Module):
    """Pre-norm transformer block. `layer` counts from 0 and sets how much the output projections
    start smaller, where `rescale` says so."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        mlp: str,
        eps: float,
        *,
        dtype,
        layer,
        rngs: nnx.Rngs,
        rescale: bool = True,
        key_bias: bool = True,
    ):
        shrink = jnp.sqrt(2.0 * (layer + 1)) if rescale else 1.0
        self.norm1 = LayerNorm(width, eps=eps, rngs=rngs)
        self.attn = SelfAttention(
            width, heads, dtype=dtype, rngs=rngs, shrink=shrink, key_bias=key_bias
        )
        self.norm2 = LayerNorm(width, eps=eps, rngs=rngs)
        self.mlp = make_mlp(mlp, width, mlp_ratio, dtype=dtype, rngs=rngs, shrink=shrink)

    def __call__(
        self,
        x: jax.Array,
        rope=None,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        x = x + self.attn(self.norm1(x), rope, lengths, segments).astype(x.dtype)
        return x + self.mlp(self.norm2(x)).astype(x.dtype)
