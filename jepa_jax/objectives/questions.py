"""Questions about videos: features of an encoder, projected, stand among the words that a language
model reads; the loss is on its answers alone. (reference: video_qa §1)
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.models.adapter import AdapterConfig
from jepa_jax.models.decoder import DecoderConfig
from jepa_jax.models.generation import Speaker, embeddings
from jepa_jax.models.projector import ProjectorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import Net
from jepa_jax.objectives import Objective
from jepa_jax.sharding import batch_spec
from jepa_jax.weights.parts import net


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Conversations that are never trained on, a row each; numpy arrays."""

    batch: dict[str, np.ndarray]  # as the stream's, [R, ...]
    prompts: dict[str, np.ndarray]  # tokens and visual [R, P], lengths [R]: up to the first answer
    expected: tuple[str, ...]  # the first answers
    stop: tuple[int, ...]  # tokens that end an answer
    most: int  # tokens of an answer


class Questions(Objective):
    """Nets and loss of a run on questions."""

    loss_words = 'nats a token of the answers'

    def __init__(
        self,
        encoder: ViTConfig,
        projector: ProjectorConfig,
        decoder: DecoderConfig,
        adapter: AdapterConfig | None = None,
        *,
        features: bool = False,
        train_encoder: bool = False,
        train_decoder: bool = False,
        rates: Mapping[str, float] | None = None,
    ):
        """features: batches hold the encoder's features, else frames. rates: net -> factor on the
        learning rate."""
        self.encoder_config, self.projector_config = encoder, projector
        self.decoder_config, self.adapter_config = decoder, adapter
        self.nets = {'projector': net('projector', projector)}
        fixed = {}
        (self.nets if train_encoder else fixed)['encoder'] = net('encoder', encoder)
        (self.nets if train_decoder else fixed)['decoder'] = net('decoder', decoder)
        if adapter:
            self.nets['adapter'] = net('adapter', adapter)
        self.kept = {'encoder': fixed.pop('encoder')} if features else {}
        self.frozen = fixed
        self.rates = {k: v for k, v in (rates or {}).items() if k in self.nets and v != 1}
        self.features = features
        self.held: HeldOut | None = None  # what health is measured on

    @property
    def examined(self) -> tuple[dict, dict] | None:
        """Held-out rows, and prompts that they begin with."""
        return self.held and (self.held.batch, self.held.prompts)

    @property
    def speaker(self) -> Speaker:
        scale = self.adapter_config.scale if self.adapter_config else 1.0
        return Speaker(self.net('decoder'), scale)

    def net(self, name: str) -> Net:
        return {**self.kept, **self.frozen, **self.nets}[name]

    def encoder(self, params: dict, ema: dict, frozen: dict) -> tuple[Net, dict]:
        """The encoder, trained or frozen.

        Raises:
          ValueError: batches hold features, and the encoder is on no device.
        """
        if self.features:
            raise ValueError('the encoder of kept features is on no device')
        return self.net('encoder'), {**frozen, **params}['encoder']

    def visual(
        self, params: dict, frozen: dict, table: jax.Array, tiles: jax.Array | None = None
    ) -> jax.Array:
        """What is read of clips: frames [B, M, T, H, W, 3] or features [B, M, N, D] -> tokens
        [B, M V, width]. tiles [B, M] bool: which clips of frames are tiles of an image."""
        (B, M), spec = table.shape[:2], batch_spec(table)
        x = jnp.reshape(table, (B * M, *table.shape[2:]), out_sharding=spec)
        if not self.features:
            encoder, weights = self.encoder(params, {}, frozen)
            if tiles is not None:
                tiles = jnp.reshape(tiles, B * M, out_sharding=spec)
            x = encoder(weights, x, apart=tiles)
        x = self.net('projector')(params['projector'], x.astype(jnp.float32))
        return jnp.reshape(x, (B, -1, x.shape[-1]), out_sharding=spec)

    def read(self, params: dict, frozen: dict, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Hidden states of the language model over packed rows, [B, S, width]."""
        weights = {**frozen, **params}
        with jax.named_scope('visual'):
            seen = self.visual(params, frozen, batch['table'], batch.get('tiles'))
        decoder = self.net('decoder').bind(weights['decoder'])
        x = embeddings(decoder, batch['tokens'], seen, batch['visual'])
        with jax.named_scope('language'):
            return decoder(
                x,
                batch['positions'],
                batch['segments'],
                adapter=params.get('adapter'),
                scale=self.speaker.scale,
            )

    def lost(self, params: dict, frozen: dict, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Cross-entropy of every place whose next token is an answer's, else 0: [B, S]."""
        hidden = self.read(params, frozen, batch)
        decoder = self.net('decoder').bind({**frozen, **params}['decoder'])
        return decoder.loss(hidden, batch['labels'])

    def loss(
        self, params: dict, ema: dict, frozen: dict, batch: Mapping[str, jax.Array], step
    ) -> tuple[jax.Array, dict]:
        """The mean over sequences of the mean over a sequence's answer tokens: it does not depend
        on how a batch is cut. Metrics: the mean over all answer tokens, of a part of the batch."""
        del ema, step
        lost, known = self.lost(params, frozen, batch), batch['labels'] >= 0
        each = lost.sum(1) / jnp.maximum(known.sum(1), 1)
        return each.mean(), {'loss/tokens': lost.sum() / jnp.maximum(known.sum(), 1)}

    def trace(self, params: dict, ema: dict, frozen: dict, batch: Mapping[str, jax.Array]) -> dict:
        """Activations of a step by name, in order of computation."""
        hidden = self.read(params, frozen, batch)
        seen = self.visual(params, frozen, batch['table'], batch.get('tiles'))
        return {'visual tokens': seen, 'hidden states': hidden}

    def health(self, params: dict, ema: dict, frozen: dict, batch: Any) -> dict:
        """Of held-out rows: what their answers cost, and what the model says itself, greedily."""
        if self.held is None:
            return {}
        rows, prompts = batch
        lost, known = self.lost(params, frozen, rows), rows['labels'] >= 0
        weights = {**frozen, **params}
        decoder = self.net('decoder').bind(weights['decoder'])
        seen = self.visual(params, frozen, rows['table'], rows.get('tiles'))
        x = embeddings(decoder, prompts['tokens'], seen, prompts['visual'])
        tokens, counts = self.speaker.generate(
            weights['decoder'], params.get('adapter'), x, prompts['lengths'], jax.random.key(0),
            most=self.held.most, stop=self.held.stop,
        )  # fmt: skip
        out = {'lost': lost.sum(1), 'known': known.sum(1), 'tokens': tokens, 'counts': counts}
        alone = jax.sharding.get_abstract_mesh().empty
        return out if alone else jax.tree.map(lambda a: jax.reshard(a, jax.P()), out)

    def measure(self, health: Mapping[str, jax.Array]) -> dict[str, float]:
        """Perplexity of held-out answers; share of rows that the model answers with nothing; share
        that get its commonest answer, and what that share is among the right answers."""
        if not health:
            return {}
        rows = len(self.held.expected)
        lost, known, tokens, counts = (
            np.asarray(health[k])[:rows] for k in ('lost', 'known', 'tokens', 'counts')
        )
        said = [tuple(row[:n].tolist()) for row, n in zip(tokens, counts)]
        return {
            'health/perplexity': math.exp(min(50.0, lost.sum() / max(1, known.sum()))),
            'health/empty_answers': sum(not words for words in said) / rows,
            'health/same_answers': _commonest(said),
            'health/same_expected': _commonest(self.held.expected),
        }

    def verdict(self, records: Sequence[Mapping[str, float]]) -> tuple[str, str]:
        """One word and one sentence on a run: unknown, silent, constant, undertrained, healthy."""
        lines = [r for r in records if 'health/perplexity' in r]
        if not lines:
            return 'unknown', 'health was not measured: heldout names no conversations'
        last = lines[-1]
        perplexity, empty, same, expected = (
            last[f'health/{k}']
            for k in ('perplexity', 'empty_answers', 'same_answers', 'same_expected')
        )
        facts = (
            f'perplexity {perplexity:.3g} of held-out answers, {empty:.0%} of its own are empty, '
            f'{same:.0%} the same ({expected:.0%} of the right ones)'
        )
        if empty > 0.5:
            return 'silent', f'most questions get no answer: {facts}'
        if same == 1 and expected < 1:
            return 'constant', f'every question gets the same answer: {facts}'
        if perplexity > self.decoder_config.vocabulary / 10:
            return 'undertrained', f'answers are hardly better than guessed: {facts}'
        return 'healthy', facts


def _commonest(answers: Sequence[Any]) -> float:
    return collections.Counter(answers).most_common(1)[0][1] / len(answers)
