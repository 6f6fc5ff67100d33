"""I-JEPA: predict the features of several blocks of an image, each on its own, from one context."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa_jax.data import Batch, Group
from jepa_jax.masks import Mask
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives import error_words
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.sharding import batch_spec


class MaskedImage(MaskedVideo):
    """Nets and loss of I-JEPA pretraining. (reference: family §1.4)

    A batch has one group, of images as clips of one frame, and one mask: context [B, K], target
    [B, targets, M].
    """

    def __init__(self, encoder: ViTConfig, predictor: PredictorConfig, *, beta: float = 1.0):
        """beta: where the smooth L1 loss goes from half the square to straight; 0: L1."""
        super().__init__(encoder, predictor, groups=1)
        self.beta = beta
        self.loss_words = 'smooth L1' if beta else error_words(1)

    def loss(
        self, params: dict, ema: dict, frozen: dict, batch: Batch, step: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Mean smooth L1 error of all predictions; metrics: their mean absolute error."""
        del step
        ((group, mask),) = ((group, mask) for group in batch.groups for mask in group.masks)
        with jax.named_scope('target'):
            h = self.targets(ema, frozen, group.clips)
        with jax.named_scope('context'):
            x = self.nets['encoder'](params['encoder'], group.clips, mask.context)
        with jax.named_scope('predict'):
            z = self.predicted(params, x, mask)
        B, blocks, M = mask.target.shape
        ids = jnp.reshape(mask.target, (B, blocks * M), out_sharding=batch_spec(mask.target))
        error = jnp.abs(z - jnp.take_along_axis(h, ids[..., None], axis=1))
        return smooth(error, self.beta).mean(), {'loss/l1': error.mean()}

    def predicted(self, params: dict, x: jax.Array, mask: Mask) -> jax.Array:
        """Features of the targets [B, targets * M, D], block after block: no block sees another, so
        each is a sequence of its own."""
        B, blocks, M = mask.target.shape
        spec = batch_spec(x)

        def repeated(a: jax.Array) -> jax.Array:
            shape = B, blocks, *a.shape[1:]
            wide = jnp.broadcast_to(a[:, None], shape, out_sharding=spec)
            return jnp.reshape(wide, (B * blocks, *a.shape[1:]), out_sharding=spec)

        targets = jnp.reshape(mask.target, (B * blocks, M), out_sharding=spec)
        predictor, context = self.nets['predictor'], repeated(mask.context)
        z = predictor(params['predictor'], repeated(x), context, targets, 0)
        return jnp.reshape(z, (B, blocks * M, z.shape[-1]), out_sharding=spec)

    def trace(self, params: dict, ema: dict, frozen: dict, batch: Batch) -> dict:
        return super().trace(params, ema, frozen, first_target(batch))

    def health(self, params: dict, ema: dict, frozen: dict, batch: Batch) -> dict:
        return super().health(params, ema, frozen, first_target(batch))


def first_target(batch: Batch) -> Batch:
    """The batch with the first of each image's targets alone: a mask as videos have it."""
    (group,) = batch.groups
    (mask,) = group.masks
    return Batch((Group(group.clips, (Mask(mask.context, mask.target[:, 0]),)),))


def smooth(error: jax.Array, beta: float) -> jax.Array:
    """Smooth L1 of absolute errors, as PyTorch's: error² / 2 beta below beta, error - beta / 2
    above."""
    if not beta:
        return error
    return jnp.where(error < beta, jnp.square(error) / (2 * beta), error - beta / 2)
