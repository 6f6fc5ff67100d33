"""Words from a language model: token by token, by the likeliest or by drawing, and how likely given
words are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jepa_jax.models.decoder import Cache, Decoder
from jepa_jax.nets import Net


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0  # 0: the likeliest
    top_p: float = 1.0  # among the likeliest that together have this share
    top_k: int = 0  # among so many; 0: all

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f'{self}: temperature must be at least 0, top_p above 0 and at most 1, top_k at '
                'least 0'
            )


def choose(logits: jax.Array, key: jax.Array, how: Sampling) -> jax.Array:
    """logits [B, V] -> tokens [B] int32."""
    if not how.temperature:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / how.temperature
    if how.top_k or how.top_p < 1:
        ranked = -jnp.sort(-logits, axis=-1)
        count = min(how.top_k or logits.shape[-1], logits.shape[-1])
        least = ranked[:, count - 1]
        if how.top_p < 1:
            chance = jax.nn.softmax(ranked, axis=-1)
            before = jnp.cumsum(chance, axis=-1) - chance  # of all that are likelier
            kept = jnp.where(before < how.top_p, ranked, jnp.inf).min(-1)
            least = jnp.maximum(least, kept)
        logits = jnp.where(logits >= least[:, None], logits, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A language model, and the adapter of which it is given the parameters."""

    net: Net  # of part `decoder`
    scale: float = 1.0  # of the adapter

    def begin(
        self, params: dict, adapter: Mapping | None, x: jax.Array, lengths: jax.Array, room: int
    ) -> tuple[jax.Array, Cache]:
        """Reads the beginnings of rows: x [B, P, D], of which lengths [B] count. -> logits [B, V]
        of what follows, and a cache with room for so many tokens more."""
        decoder = self.net.bind(params)
        places = _places(x)
        x, cache = decoder(x, places, adapter=adapter, scale=self.scale, keep=True)
        # by a sum: a mesh cannot tell where what is taken at an index lies
        last = jnp.where((places == lengths[:, None] - 1)[..., None], x, 0).sum(1)
        grow = ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))
        return decoder.logits(last), jax.tree.map(lambda a: jnp.pad(a, grow), cache)

    def follow(
        self,
        params: dict,
        adapter: Mapping | None,
        token: jax.Array,
        lengths: jax.Array,
        cache: Cache,
    ) -> tuple[jax.Array, Cache]:
        """A token [B] more behind rows of so many [B]. -> logits [B, V] of the next, the cache."""
        decoder = self.net.bind(params)
        x = decoder.embed(token[:, None])
        how = dict(adapter=adapter, scale=self.scale, keep=True)
        x, cache = decoder(x, lengths[:, None], cache=cache, places=lengths, **how)
        return decoder.logits(x[:, 0]), cache

    def generate(
        self,
        params: dict,
        adapter: Mapping | None,
        x: jax.Array,
        lengths: jax.Array,
        key: jax.Array,
        *,
        most: int,
        stop: Sequence[int],
        how: Sampling = Sampling(),
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens [B, most] int32 behind x [B, P, D], of which lengths [B] count, and how many of
        them stand before the first of `stop` [B]; what comes after has no meaning. Ends once all
        rows have stopped."""
        logits, cache = self.begin(params, adapter, x, lengths, most)
        first = choose(logits, jax.random.fold_in(key, 0), how)
        ends = functools.partial(_ends, stop=tuple(stop))
        tokens = jnp.where(jnp.arange(most) == 0, first[:, None], 0)
        done = ends(first)
        counts = jnp.where(done, 0, 1)

        def more(state) -> jax.Array:
            step, _, done, *_ = state
            return (step < most) & ~done.all()

        def one(state):
            step, tokens, done, counts, cache, last = state
            logits, cache = self.follow(params, adapter, last, lengths + step - 1, cache)
            token = choose(logits, jax.random.fold_in(key, step), how)
            tokens = jnp.where(jnp.arange(most) == step, token[:, None], tokens)
            done = done | ends(token)
            return step + 1, tokens, done, jnp.where(done, counts, counts + 1), cache, token

        state = jnp.int32(1), tokens, done, counts, cache, first
        _, tokens, _, counts, _, _ = jax.lax.while_loop(more, one, state)
        return tokens, counts

    def likelihoods(
        self,
        params: dict,
        adapter: Mapping | None,
        logits: jax.Array,
        length: jax.Array,
        cache: Cache,
        choices: jax.Array,
    ) -> jax.Array:
        """Logarithm of how likely each of several continuations of one row is, a sum over its
        tokens [n] float32.

        logits [1, V] and cache: what `begin` says of the row, of which `length` [] counts; choices
        [n, C] int32, filled up with -1.
        """
        decoder, (n, C), P = self.net.bind(params), choices.shape, cache[0].shape[2]
        how = dict(adapter=adapter, scale=self.scale)
        cache = jax.tree.map(lambda a: jnp.repeat(a, n, axis=1), cache)
        beyond = jnp.arange(P) >= length  # filled up: no choice sees it
        segments = jnp.concatenate([jnp.repeat(beyond[None], n, 0), choices < 0], axis=1)
        at = length + jnp.broadcast_to(jnp.arange(C), (n, C))
        tokens = decoder.embed(jnp.maximum(choices, 0))
        after = decoder(tokens, at, segments.astype(jnp.int32), cache=cache, **how)
        first = jax.nn.log_softmax(logits[0])[choices[:, 0]]
        return first - decoder.loss(after[:, :-1], choices[:, 1:]).sum(1)


def _places(x: jax.Array) -> jax.Array:
    """0, 1, ... for each row of x [B, P, D], int32 [B, P], lying on the devices that x lies on."""
    return jnp.zeros_like(x[..., 0], jnp.int32) + jnp.arange(x.shape[1])


def _ends(token: jax.Array, stop: tuple[int, ...]) -> jax.Array:
    return sum((token == s for s in stop), jnp.zeros_like(token, bool))


def embeddings(decoder: Decoder, tokens: jax.Array, visual: jax.Array, places: jax.Array):
    """Embeddings of tokens [B, S], those of a video [B, V, D] where places [B, S] is a row of it,
    -1 where it is text. -> [B, S, D]"""
    x = decoder.embed(jnp.where(places < 0, tokens, 0))
    seen = jnp.take_along_axis(visual, jnp.maximum(places, 0)[..., None], axis=1)
    return jnp.where((places < 0)[..., None], x, seen.astype(x.dtype))
