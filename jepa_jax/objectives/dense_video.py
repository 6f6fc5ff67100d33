"""V-JEPA 2.1: predict features at several depths, of masked tokens and of those in sight, of videos
and images in one step. (reference: vjepa2_1 §5, §6)"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.data import Batch, Group
from jepa_jax.masks import Mask
from jepa_jax.models.layers import standardise
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import IMAGE, VIDEO, ViTConfig
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.sharding import BATCH


@dataclasses.dataclass(frozen=True)
class ContextLoss:
    """What the loss of tokens in sight weighs; see jepa_jax.config.ContextLossConfig."""

    video: float
    image: float
    begin: int
    full: int
    by_distance: bool

    def share(self, step: jax.Array) -> jax.Array:
        """Of its full weight at a 0-based step, from 0 to 1. (reference: vjepa2_1 §6.4)"""
        if self.full <= self.begin:
            return jnp.where(step < self.full, 0.0, 1.0)
        return jnp.clip((step - self.begin) / (self.full - self.begin), 0.0, 1.0)


class DenseVideo(MaskedVideo):
    """Nets and loss of V-JEPA 2.1's pretraining.

    A batch has groups of clips of one frame count; one frame is an image.
    """

    def __init__(
        self,
        encoder: ViTConfig,
        predictor: PredictorConfig,
        context_loss: ContextLoss,
        *,
        groups: int,
        image_share: float = 0.5,
        exponent: float = 1.0,
        teacher: ViTConfig | None = None,
    ):
        """groups: of videos in a batch; image_share: what the mean loss of images weighs beside
        that of videos, 0: there are none; exponent p of the loss |z - h|^p / p; teacher: the
        frozen encoder whose last level is predicted, from the last one here, in place of all levels
        of the average. (reference: vjepa2_1 §9.6)"""
        super().__init__(encoder, predictor, groups=groups, exponent=exponent, teacher=teacher)
        if teacher:  # nothing reads the levels before
            self.unused |= frozenset(
                f'encoder/norms/{i}/{leaf}'
                for i in range(len(encoder.levels) - 1)
                for leaf in ('scale', 'bias')
            )
        self.context_loss, self.image_share = context_loss, image_share
        self.loss_words += ', context too'
        if not image_share:
            of_images = (
                'encoder/patch_embed_image/kernel',
                'encoder/patch_embed_image/bias',
                'encoder/modality/image',
                'predictor/modality/image',
            )
            self.unused |= frozenset(of_images)

    def targets(self, ema: dict, frozen: dict, clips: jax.Array) -> jax.Array:
        """Features of all tokens at every level, each standardised, one after the other:
        [B, N, L D], of a teacher at the last; no gradient passes."""
        if self.frozen:
            return super().targets(ema, frozen, clips)
        levels = self.nets['encoder'](ema['encoder'], clips, levels=self.config.levels)
        return jax.lax.stop_gradient(jnp.concatenate([*map(standardise, levels)], axis=-1))

    def context(self, params: dict, clips: jax.Array, keep: jax.Array) -> jax.Array:
        if self.frozen:
            return self.nets['encoder'](params['encoder'], clips, keep)
        levels = self.nets['encoder'](params['encoder'], clips, keep, levels=self.config.levels)
        return jnp.concatenate(levels, axis=-1)

    def loss(
        self, params: dict, ema: dict, frozen: dict, batch: Batch, step: jax.Array
    ) -> tuple[jax.Array, dict]:
        """image_share times the mean over images' masks, the rest times that over videos' groups
        and masks, of the prediction's loss and the weighted one of the context; metrics: each part
        of them."""
        share = self.context_loss.share(step)
        metrics, sums = {'context_weight': share * self.context_loss.video}, {IMAGE: [], VIDEO: []}
        for g, (group, kind, slot) in enumerate(_kinds(batch)):
            weight = share * getattr(self.context_loss, kind)
            with jax.named_scope('target'):
                h = self.targets(ema, frozen, group.clips)
            for m, mask in enumerate(group.masks):
                with jax.named_scope('context'):
                    x = self.context(params, group.clips, mask.context)
                with jax.named_scope('predict'):
                    said = self.predict(params, x, mask, slot, kind == IMAGE)
                errors = [
                    jnp.abs(z - jnp.take_along_axis(h, ids[..., None], axis=1)) ** self.exponent
                    for z, ids in zip(said, (mask.target, mask.context), strict=True)
                ]
                if self.context_loss.by_distance:
                    T, H, W, _ = group.clips.shape[1:]
                    near = squared_distances(mask.context, mask.target, self.config.grid(T, H, W))
                    errors[1] *= near[..., None] ** -0.25
                target, context = (error.mean() / self.exponent for error in errors)
                metrics[f'loss/group{g}_mask{m}'] = target
                metrics[f'loss/group{g}_mask{m}_context'] = context
                sums[kind].append(target + weight * context)
        means = {kind: sum(parts) / len(parts) for kind, parts in sums.items() if parts}
        if len(means) == 1:
            (total,) = means.values()
        else:
            total = self.image_share * means[IMAGE] + (1 - self.image_share) * means[VIDEO]
        return total, metrics

    def predict(
        self, params: dict, x: jax.Array, mask: Mask, slot: int, image: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """What is predicted of targets [B, M, L D] and of the context [B, K, L D]."""
        predictor, ids = self.nets['predictor'], (mask.context, mask.target)
        return predictor(params['predictor'], x, *ids, slot, image=image)

    def trace(self, params: dict, ema: dict, frozen: dict, batch: Batch) -> dict:
        """As of MaskedVideo; encoder features at every level."""
        encoder, levels = self.nets['encoder'], self.config.levels
        target, theirs = self.above(params, ema, frozen)
        at = target.config.levels
        activations = {}
        for g, (group, kind, slot) in enumerate(_kinds(batch)):
            name = f'group{g}'
            for layer, x in zip(at, target(theirs, group.clips, levels=at)):
                activations[f'{name}: target encoder block {layer:02d}'] = x
            for m, mask in enumerate(group.masks):
                each = encoder(params['encoder'], group.clips, mask.context, levels=levels)
                for layer, x in zip(levels, each):
                    activations[f'{name}, mask{m}: encoder block {layer:02d}'] = x
                x = each[-1] if self.frozen else jnp.concatenate(each, axis=-1)
                said = self.predict(params, x, mask, slot, kind == IMAGE)
                for what, z in zip(('prediction', 'prediction of the context'), said):
                    activations[f'{name}, mask{m}: {what}'] = z
        return activations

    def seen(self, params: dict, group: Group, mask: Mask) -> tuple[jax.Array, jax.Array]:
        """Of both the last level."""
        x = self.context(params, group.clips, mask.context)
        image = group.clips.shape[1] == 1
        z, _ = self.predict(params, x, mask, 0, image)
        width = next(iter(self.frozen.values()), self.nets['encoder']).config.width
        return x[..., -self.config.width :], z[..., -width:]


def _kinds(batch: Batch) -> list[tuple[Group, str, int]]:
    """Each group with what it is of and its mask token: its number among its kind, as the original
    has images and videos on devices of their own."""
    kinds = [IMAGE if group.clips.shape[1] == 1 else VIDEO for group in batch.groups]
    return [
        (group, kind, kinds[:g].count(kind))
        for g, (group, kind) in enumerate(zip(batch.groups, kinds))
    ]


def squared_distances(
    context: jax.Array, target: jax.Array, grid: tuple[int, int, int]
) -> jax.Array:
    """Of every context token to the nearest target, in tokens along t, y and x, squared.

    Ids [B, K] and [B, M] on a grid (t, h, w) -> float32 [B, K], whole numbers of at least 1. Exact,
    an axis after the other: the table of all pairs would be M / (t + h + w) times as large.
    """
    tokens, far = int(np.prod(grid)), float(np.sum(np.square(grid)))

    def one(context: jax.Array, target: jax.Array) -> jax.Array:
        cells = jnp.full(tokens, far).at[target].set(0.0).reshape(grid)
        for axis, size in enumerate(grid):
            apart = np.square(np.subtract.outer(np.arange(size), np.arange(size)))
            cells = jnp.moveaxis(cells, axis, -1)[..., None, :] + apart.astype(np.float32)
            cells = jnp.moveaxis(cells.min(-1), -1, axis)
        return cells.reshape(tokens)[context]

    if jax.sharding.get_abstract_mesh().empty:
        return jax.vmap(one)(context, target)
    # clip by clip where it is: a mesh cannot tell where what is set at an index lies
    return jax.shard_map(jax.vmap(one), in_specs=BATCH, out_specs=BATCH)(context, target)
