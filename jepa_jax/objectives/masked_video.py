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
from jepa_jax.objectives import Objective
from jepa_jax.sharding import batch_spec
from jepa_jax.weights.parts import TEACHER, net


class MaskedVideo(Objective):
    """Nets and loss of V-JEPA pretraining. (reference: vjepa2 §5)"""

    ema = ('encoder',)  # whose average is the target, without a teacher, and what is released

    def __init__(
        self,
        encoder: ViTConfig,
        predictor: PredictorConfig,
        *,
        groups: int,
        exponent: float = 1.0,
        pixels: bool = False,
        teacher: ViTConfig | None = None,
    ):
        """groups: frame-count groups in a batch; exponent p of the loss |z - h|^p / p; pixels: are
        predicted; teacher: the frozen encoder whose features are, in place of the average's."""
        self.nets = {
            'encoder': net('encoder', encoder),
            'predictor': net('predictor', predictor),
        }
        self.frozen = {TEACHER: net('encoder', teacher)} if teacher else {}
        self.config = encoder
        self.groups, self.exponent, self.pixels = groups, exponent, pixels
        # mask tokens no group reaches get no gradient, and the original leaves them undecayed
        self.unused = frozenset(
            f'predictor/mask_tokens/{i}' for i in range(groups, predictor.mask_tokens)
        )

    def encoder(self, params: dict, ema: dict, frozen: dict) -> tuple[Net, dict]:
        """The target encoder, which all published evaluations use."""
        return self.nets['encoder'], ema['encoder']

    def above(self, ema: dict, frozen: dict) -> tuple[Net, dict]:
        """The encoder whose features are predicted, and its parameters."""
        if TEACHER in self.frozen:
            return self.frozen[TEACHER], frozen[TEACHER]
        return self.nets['encoder'], ema['encoder']

    def targets(self, ema: dict, frozen: dict, clips: jax.Array) -> jax.Array:
        """What the predictor has to meet, of all tokens [B, N, D]: standardised features, or
        normalised pixels; no gradient passes."""
        if self.pixels:
            return normalised_cubes(clips, self.config.tubelet, self.config.patch)
        net, params = self.above(ema, frozen)
        return jax.lax.stop_gradient(standardise(net(params, clips)))

    def loss(
        self, params: dict, ema: dict, frozen: dict, batch: Batch, step: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Mean over groups and masks of the mean of |prediction - target feature|^p / p; metrics:
        each part of it."""
        del step
        encoder, predictor = self.nets['encoder'], self.nets['predictor']
        parts = {}
        for g, group in enumerate(batch.groups):
            with jax.named_scope('target'):
                h = self.targets(ema, frozen, group.clips)
            for m, mask in enumerate(group.masks):
                with jax.named_scope('context'):
                    x = encoder(params['encoder'], group.clips, mask.context)
                with jax.named_scope('predict'):
                    z = predictor(params['predictor'], x, mask.context, mask.target, g)
                targets = jnp.take_along_axis(h, mask.target[..., None], axis=1)
                error = jnp.abs(z - targets) ** self.exponent / self.exponent
                parts[f'loss/group{g}_mask{m}'] = error.mean()
        return sum(parts.values()) / len(parts), parts

    def trace(self, params: dict, ema: dict, frozen: dict, batch: Batch) -> dict:
        """Activations of a step by name, in order of computation; encoder features after every
        block."""
        encoder, predictor = self.nets['encoder'], self.nets['predictor']
        target, theirs = self.above(ema, frozen)
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
                    params['predictor'], levels[-1], mask.context, mask.target, g
                )
        return activations

    def health(self, params: dict, ema: dict, frozen: dict, batch: Batch) -> dict:
        """Features to judge collapse by, from the first group and mask, of some positions: see
        health.measure.

        Returns target, of the average, and context [B, n, D], prediction and expected [B, m, D],
        and for two clips or more baseline [B, m, D], what the other clips have at those positions
        on average.
        """
        group = batch.groups[0]
        mask = group.masks[0]
        h = self.nets['encoder'](ema['encoder'], group.clips)
        x, z = self.seen(params, group, mask)

        def some(a: jax.Array) -> jax.Array:  # [B, N, ...], which stays on its devices
            at = positions(a.shape[1], len(a))
            return a.at[:, at].get(out_sharding=batch_spec(a))

        own = not (self.pixels or self.frozen)
        targets_at = some(mask.target)
        standard = standardise(h) if own else self.targets(ema, frozen, group.clips)
        targets = jnp.take_along_axis(standard, targets_at[..., None], axis=1)
        features = {'target': some(h), 'context': some(x), 'prediction': some(z)}
        features['expected'] = targets
        if len(h) > 1:
            total = pick_rows(standard.sum(0), targets_at, targets)
            features['baseline'] = (total - targets) / (len(h) - 1)
        return features

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


def normalised_cubes(clips: jax.Array, tubelet: int, patch: int) -> jax.Array:
    """Pixels of every token [B, N, tubelet * patch * patch * 3] in (frame, y, x, colour) order,
    each colour of a token at mean 0 and deviation 1. (reference: family §3.2, VideoMAE)

    clips: [B, T, H, W, 3], uint8, or floats with ImageNet's mean and deviation taken out.
    """
    x = tokens.cut(clips, tubelet, patch)
    spec, shape = batch_spec(x), x.shape
    x = jnp.reshape(x.astype(jnp.float32), (*shape[:2], -1, 3), out_sharding=spec)
    whole = clips.dtype == jnp.uint8
    x = x / 255 if whole else x * jnp.asarray(tokens.STD) + jnp.asarray(tokens.MEAN)
    x = x - x.mean(2, keepdims=True)
    return jnp.reshape(x / (x.std(2, ddof=1, keepdims=True) + 1e-6), shape, out_sharding=spec)
