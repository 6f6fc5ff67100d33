"""Flax modules as pure functions over plain dicts. The only file that knows NNX state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax.sharding import Rules, gather, platform, specs_for

# Names of what may be kept for the backward pass: a layer's products with weights, and what
# attention gives
PRODUCT, ATTENTION = 'product', 'attention'

# Compiler options for a program that runs once, as init does: two thirds of the time to compile it
# on CPU, the same bits, and no slower. (At 0 it is less than half, but large weights are drawn at
# half the speed.)
ONCE = {'xla_backend_optimization_level': 1}

_named_attention = jax.checkpoint_policies.save_only_these_names(ATTENTION)


def _attention_alone(primitive, *inputs, **parameters) -> bool:
    """The policy that keeps what attention gives; cuDNN's call names nothing, so it is known by its
    primitive (held by tests/tools/test_lowered.py)."""
    kernel = primitive.name.startswith('dot_product_attention_fwd')
    return kernel or _named_attention(primitive, *inputs, **parameters)


# what the backward pass may keep from a block's forward pass instead of computing it again
REMAT = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'attention': _attention_alone,
    # by name: a policy for all products would keep rope's on TPUs, too
    'dots': jax.checkpoint_policies.save_only_these_names(PRODUCT),
    'none': jax.checkpoint_policies.everything_saveable,
}
# `none`, memory being no concern, on a CPU: a scan keeps arrays in stacks that it first fills with
# zeros and copies, so norms, GELU and scores are cheaper to compute again, and in blocks narrower
# than WIDE products, too (docs/performance.md)
ON_CPU = jax.checkpoint_policies.save_only_these_names(PRODUCT, ATTENTION)
WIDE = 256


def _policy(remat: str, x) -> Callable:
    """For blocks on x [B, N, D], the first of a tree."""
    if remat == 'none' and platform() == 'cpu':
        return ON_CPU if jax.tree.leaves(x)[0].shape[-1] >= WIDE else REMAT['full']
    return REMAT[remat]


class Net:
    """A module as two pure functions: `init(key) -> params` and `net(params, *inputs)`.

    params is a nested dict of arrays. Trees with other names than the module's are refused, because
    NNX matches leaves by their order alone.

    Args:
      make: random numbers -> the module.
      rules: where its parameters lie on a mesh; None for a net that is never trained or sharded.
      part, config: the row of jepa_jax.weights.parts.PARTS that made it, and from what.
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        *,
        rules: Rules | None = None,
        part: str = '',
        config: Any = None,
    ):
        self._make = make
        self._rules, self.part, self.config = rules, part, config
        module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        self._graph = nnx.graphdef(module)
        self.abstract = nnx.to_pure_dict(nnx.state(module, nnx.Param))
        self._tree = jax.tree.structure(self.abstract)

    @functools.cached_property
    def specs(self) -> dict:
        """Where each parameter lies, a tree like `abstract`; ValueError for rules that do not
        fit."""
        if self._rules is None:
            raise ValueError('this net has no sharding rules: it cannot be laid on a mesh')
        return specs_for(self._rules, self.abstract)

    def init(self, key: jax.Array) -> dict:
        return nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(key)), nnx.Param))

    def __call__(self, params: dict, *args, **kwargs):
        return self.bind(params)(*args, **kwargs)

    def bind(self, params: dict) -> nnx.Module:
        """The module with these parameters, for one that has several functions."""
        structure = jax.tree.structure(params)
        if structure != self._tree:
            raise ValueError(
                f'parameters do not fit the module: found {structure}, expected {self._tree}'
            )
        return nnx.merge(self._graph, params)


def stack(
    make: Callable[[nnx.Rngs, jax.Array], nnx.Module], depth: int, rngs: nnx.Rngs
) -> nnx.Module:
    """`depth` modules as one whose parameters have a leading layer axis; make(rngs, index from
    0)."""
    keys = jax.random.split(rngs.params(), depth)
    return jax.vmap(lambda key, index: make(nnx.Rngs(key), index))(keys, jnp.arange(depth))


def fold(
    blocks: nnx.Module,
    x: jax.Array,
    *args,
    beside: tuple = (),
    remat: str = 'full',
    levels: Sequence[int] = (),
) -> jax.Array | list[jax.Array] | tuple:
    """Runs stacked blocks one after the other: x = block(x, *args).

    Compiled once whatever the depth; parameters sharded over `fsdp` are gathered for one layer at a
    time, again in the backward pass. levels: block indices, ascending, after which x is asked for;
    then a list of those is returned.

    beside: trees of arrays [L, ...] of which each layer gets its slice (adapters, caches), taken
    as they are, without a gather; an empty tree, None, stays what it is. Then a step is x, out =
    block(x, *slices, *args), and the result is (x or the list of levels, the outs stacked, for as
    many layers as ran). ValueError for levels or trees beside that do not fit the blocks.
    """

    @functools.partial(jax.checkpoint, prevent_cse=False, policy=_policy(remat, x))
    def body(x, layer):
        block, slices = layer
        result = gather(block)(x, *slices, *args)
        return result if beside else (result, None)

    layers = blocks, beside
    depth = jax.tree.leaves(blocks)[0].shape[0]
    for leaf in jax.tree.leaves(beside):
        if leaf.shape[0] != depth:
            raise ValueError(f'beside: an array {leaf.shape} for {depth} blocks')
    if not levels:
        result = jax.lax.scan(body, x, layers)
        return result if beside else result[0]
    if list(levels) != sorted(set(levels)) or levels[0] < 0 or levels[-1] >= depth:
        raise ValueError(f'levels {tuple(levels)}: must ascend within 0..{depth - 1}')

    def at(x, index):  # slices of the stack as a scan's input would be copies of the weights
        return body(
            x, jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, 0, False), layers)
        )

    results, outs, start = [], [], 0
    for level in levels:
        x, out = jax.lax.scan(at, x, jnp.arange(start, level + 1))
        results.append(x)
        outs.append(out)
        start = level + 1
    if not beside:
        return results
    return results, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)


def fold_outputs(
    blocks: nnx.Module, x: jax.Array, *args, remat: str = 'full', levels: Sequence[int]
) -> list[jax.Array]:
    """What `fold` returns for levels, in one scan over all blocks whose gradient adds up nothing
    but slices: that of `fold` would add whole stacks of weights, a layer after the other.

    levels: in ascending order, and several may be the same. ValueError: they are not of the blocks.
    """
    depth = jax.tree.leaves(blocks)[0].shape[0]
    if list(levels) != sorted(levels) or not levels or levels[0] < 0 or levels[-1] >= depth:
        raise ValueError(f'levels {tuple(levels)}: must ascend within 0..{depth - 1}')
    asked = sorted(set(levels))
    # of each block, where its output is kept; what nobody asked for goes to one more place
    places = np.full(depth, len(asked), np.int32)
    places[asked] = np.arange(len(asked))

    @functools.partial(jax.checkpoint, prevent_cse=False, policy=_policy(remat, x))
    def body(x, block):
        return gather(block)(x, *args)

    def step(carry, layer):
        x, kept = carry
        block, place = layer
        x = body(x, block)
        return (x, jax.lax.dynamic_update_index_in_dim(kept, x[None], place, 0)), None

    kept = jnp.broadcast_to(jnp.zeros_like(x), (len(asked) + 1, *x.shape))
    (_, kept), _ = jax.lax.scan(step, (x, kept), (blocks, jnp.asarray(places)))
    return [kept[asked.index(level)] for level in levels]
