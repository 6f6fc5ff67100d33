"""V-JEPA: predict the features of masked tokens from those in sight.

Whose features: of a moving average of the encoder; of a frozen teacher (distillation); or no
features but pixels, which makes a teacher of SALT (arXiv 2509.24317).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa_jax import health as judge
from jepa_jax.data import Batch, Group
from jepa_jax.health import positions
from jepa_jax.masks import Mask
from jepa_jax.models import tokens
from jepa_jax.models.layers import standardise
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig, pick_rows
from jepa_jax.nets import Net
from jepa_jax.objectives import error_words
from jepa_jax.objectives.masked_clips import MaskedClips
from jepa_jax.objectives.pixels import cubes
from jepa_jax.sharding import batch_spec
from jepa_jax.weights.parts import TEACHER, net


class MaskedVideo(MaskedClips):
    """Nets and loss of V-JEPA pretraining. (reference: vjepa2 §5)"""

    ema = ('encoder',)  # whose average is the target, without a teacher, and what is released

    def __init__(
        self,
        encoder: ViTConfig,
        predictor: PredictorConfig,
        *,
        groups: int,
        exponent: float = 1.0,
        variance_weight: float = 0.0,
        tokens_of_masks: int = 0,
        pixels: bool = False,
        teacher: ViTConfig | None = None,
    ):
        """groups: frame-count groups in a batch; exponent p of the loss |z - h|^p / p;
        variance_weight: of V-JEPA 1's regulariser; tokens_of_masks: masks a clip, each with a mask
        token of its own, as in V-JEPA 1; 0: each group has one; pixels: are predicted; teacher: the
        frozen encoder whose features are, in place of the average's."""
        self.nets = {
            'encoder': net('encoder', encoder),
            'predictor': net('predictor', predictor),
        }
        self.frozen = {TEACHER: net('encoder', teacher)} if teacher else {}
        self.config = encoder
        self.groups, self.exponent, self.variance_weight = groups, exponent, variance_weight
        self.loss_words = error_words(exponent)
        self.tokens_of_masks, self.pixels = tokens_of_masks, pixels
        # mask tokens no group reaches get no gradient, and the original leaves them undecayed
        self.unused = frozenset(
            f'predictor/mask_tokens/{i}'
            for i in range(tokens_of_masks or groups, predictor.mask_tokens)
        )
        if encoder.stored_table:
            self.unused |= {'encoder/table'}

    def encoder(self, params: dict, ema: dict, frozen: dict) -> tuple[Net, dict]:
        """The target encoder, which all published evaluations use."""
        return self.nets['encoder'], self.target(params, ema)

    def target(self, params: dict, ema: dict) -> dict:
        """Parameters of the encoder whose features are targets, without a teacher."""
        del params
        return ema['encoder']

    def above(self, params: dict, ema: dict, frozen: dict) -> tuple[Net, dict]:
        """The encoder whose features are predicted, and its parameters."""
        if TEACHER in self.frozen:
            return self.frozen[TEACHER], frozen[TEACHER]
        return self.nets['encoder'], self.target(params, ema)

    def targets(self, ema: dict, frozen: dict, clips: jax.Array) -> jax.Array:
        """What the predictor has to meet, of all tokens [B, N, D]: standardised features, or
        normalised pixels; no gradient passes."""
        if self.pixels:
            return cubes(tokens.cut(clips, self.config.tubelet, self.config.patch))
        net, params = self.above({}, ema, frozen)
        return jax.lax.stop_gradient(self.met({}, net(params, clips)))

    def loss(
        self, params: dict, ema: dict, frozen: dict, batch: Batch, step: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Mean over groups and masks of the mean of |prediction - target feature|^p / p; metrics:
        each part of it."""
        del step
        parts, said = {}, []
        for g, group in enumerate(batch.groups):
            with jax.named_scope('target'):
                h = self.targets(ema, frozen, group.clips)
            errors, predictions = self.errors(params, group, g, h)
            parts |= errors
            said += [(g, z) for z in predictions]
        loss = sum(parts.values()) / len(parts)
        if self.variance_weight:
            parts['loss/variance'] = too_alike(said)
            loss = loss + self.variance_weight * parts['loss/variance']
        return loss, parts

    def errors(
        self, params: dict, group: Group, g: int, h: jax.Array
    ) -> tuple[dict[str, jax.Array], list[jax.Array]]:
        """The loss of every mask of group `g`, whose targets are among h [B, N, D], and what was
        predicted."""
        encoder, predictor = self.nets['encoder'], self.nets['predictor']
        parts, predictions = {}, []
        for m, mask in enumerate(group.masks):
            with jax.named_scope('context'):
                x = encoder(params['encoder'], group.clips, mask.context)
            with jax.named_scope('predict'):
                token = self.token(g, m)
                z = predictor(params['predictor'], x, mask.context, mask.target, token)
            targets = jnp.take_along_axis(h, mask.target[..., None], axis=1)
            error = jnp.abs(self.said(params, z) - targets) ** self.exponent / self.exponent
            parts[f'loss/group{g}_mask{m}'] = error.mean()
            predictions.append(z)
        return parts, predictions

    def met(self, params: dict, features: jax.Array) -> jax.Array:
        """Targets that features of the target encoder [B, N, D] make, [B, N, P]."""
        del params
        return standardise(features)

    def said(self, params: dict, predictions: jax.Array) -> jax.Array:
        """What of predictions [B, M, D] is held against targets, [B, M, P]."""
        del params
        return predictions

    def token(self, group: int, mask: int) -> int:
        """The index of a mask token."""
        return mask if self.tokens_of_masks else group

    def trace(self, params: dict, ema: dict, frozen: dict, batch: Batch) -> dict:
        """Activations of a step by name, in order of computation; encoder features after every
        block."""
        encoder, predictor = self.nets['encoder'], self.nets['predictor']
        target, theirs = self.above(params, ema, frozen)
        activations = {}
        every = tuple(range(self.config.depth))
        for g, group in enumerate(batch.groups):
            if not self.pixels:
                levels = target(theirs, group.clips, levels=tuple(range(target.config.depth)))
                for layer, x in enumerate(levels):
                    activations[f'group{g}: target encoder block {layer:02d}'] = x
            for m, mask in enumerate(group.masks):
                levels = encoder(params['encoder'], group.clips, mask.context, levels=every)
                for layer, x in enumerate(levels):
                    activations[f'group{g}, mask{m}: encoder block {layer:02d}'] = x
                activations[f'group{g}, mask{m}: prediction'] = predictor(
                    params['predictor'], levels[-1], mask.context, mask.target, self.token(g, m)
                )
        return activations

    def health(self, params: dict, ema: dict, frozen: dict, batch: Batch) -> dict:
        """Features to judge collapse by, from the first group and mask, of some positions: see
        health.measure.

        Returns what `looked_at` does.
        """
        group = batch.groups[0]
        mask = group.masks[0]
        h = self.nets['encoder'](self.target(params, ema), group.clips)
        x, z = self.seen(params, group, mask)

        own = not (self.pixels or self.frozen)
        expected = self.met(params, h) if own else self.targets(ema, frozen, group.clips)
        return looked_at(h, expected, x, self.said(params, z), mask.target)

    def seen(self, params: dict, group: Group, mask: Mask) -> tuple[jax.Array, jax.Array]:
        """Features of the context [B, K, D] and what is predicted of the targets [B, M, D], of the
        first group."""
        encoder, predictor = self.nets['encoder'], self.nets['predictor']
        x = encoder(params['encoder'], group.clips, mask.context)
        return x, predictor(params['predictor'], x, mask.context, mask.target, 0)

    def measure(self, health: dict) -> dict[str, float]:
        return judge.measure(health)

    def verdict(self, records) -> tuple[str, str]:
        return judge.verdict(records)


def looked_at(
    target: jax.Array, expected: jax.Array, context: jax.Array, said: jax.Array, ids: jax.Array
) -> dict[str, jax.Array]:
    """Some positions of features of all tokens `target` [B, N, D], of those in sight `context`
    [B, K, D], and of what is `said` [B, M, P] of the tokens `ids` [B, M] in place of `expected`
    [B, N, P].

    Returns target and context [B, n, D], prediction and expected [B, m, P], and for two clips or
    more baseline [B, m, P], what the other clips have at those positions on average.
    """

    def some(a: jax.Array) -> jax.Array:  # [B, N, ...], which stays on its devices
        at = positions(a.shape[1], len(a))
        return a.at[:, at].get(out_sharding=batch_spec(a))

    ids = some(ids)
    targets = jnp.take_along_axis(expected, ids[..., None], axis=1)
    features = {'target': some(target), 'context': some(context), 'prediction': some(said)}
    features['expected'] = targets
    if len(target) > 1:
        total = pick_rows(expected.sum(0), ids, targets)
        features['baseline'] = (total - targets) / (len(target) - 1)
    return features


def too_alike(predictions: list[tuple[int, jax.Array]]) -> jax.Array:
    """V-JEPA 1's regulariser: how far predictions [B, M, D], each with its group, fall short of a
    standard deviation of 1 over the tokens of a clip, the mean over masks. It says nothing of
    differences between clips. (reference: family §2)"""
    short = []
    for group in dict.fromkeys(group for group, _ in predictions):
        own = [z for g, z in predictions if g == group]
        deviation = sum(jnp.sqrt(z.var(axis=1, ddof=1) + 1e-4) for z in own) / len(own)
        short.append(jax.nn.relu(1 - deviation).mean())
    return sum(short) / len(short)
