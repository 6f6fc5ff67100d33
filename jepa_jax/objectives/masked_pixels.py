"""MAE and VideoMAE: draw the pixels of masked tokens from the features of those in sight.

(reference: family §3)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa_jax import health as judge
from jepa_jax.data import Batch, Group
from jepa_jax.masks import Mask
from jepa_jax.models import tokens
from jepa_jax.models.pixel_decoder import PixelDecoderConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import Net
from jepa_jax.objectives.masked_clips import MaskedClips
from jepa_jax.objectives.masked_video import looked_at
from jepa_jax.objectives.pixels import TARGETS, UNDONE
from jepa_jax.weights.parts import net


class MaskedPixels(MaskedClips):
    """Nets and loss of MAE's and VideoMAE's pretraining; nothing is averaged, the encoder reads
    what is in sight alone."""

    loss_words = 'mean squared error'

    def __init__(self, encoder: ViTConfig, decoder: PixelDecoderConfig, *, target: str):
        """target: a key of TARGETS."""
        self.nets = {
            'encoder': net('encoder', encoder),
            'pixel_decoder': net('pixel_decoder', decoder),
        }
        self.config, self.target, self.undone = encoder, TARGETS[target], UNDONE[target]
        tables = {'encoder': encoder.stored_table, 'pixel_decoder': decoder.stored_table}
        self.unused = frozenset(f'{name}/table' for name, stored in tables.items() if stored)

    def encoder(self, params: dict, ema: dict, frozen: dict) -> tuple[Net, dict]:
        return self.nets['encoder'], params['encoder']

    def targets(self, clips: jax.Array) -> jax.Array:
        """What is to be drawn of all tokens [B, N, P]."""
        return self.target(tokens.cut(clips, self.config.tubelet, self.config.patch))

    def seen(self, params: dict, group: Group, mask: Mask) -> tuple[jax.Array, jax.Array]:
        """Features of what is in sight [B, K, D], of a class token first where there is one, and
        what is drawn of the rest [B, M, P]."""
        with jax.named_scope('context'):
            x = self.nets['encoder'](params['encoder'], group.clips, mask.context, whole=True)
        with jax.named_scope('decode'):
            return x, self.nets['pixel_decoder'](
                params['pixel_decoder'], x, mask.context, mask.target
            )

    def pictured(self, params: dict, group: Group, mask: Mask) -> jax.Array:
        """What is drawn of masked tokens as pixels from 0 to 1, [B, M, P]."""
        values = tokens.cut(group.clips, self.config.tubelet, self.config.patch)
        own = jnp.take_along_axis(values, mask.target[..., None], axis=1)
        return self.undone(self.seen(params, group, mask)[1], own)

    def loss(
        self, params: dict, ema: dict, frozen: dict, batch: Batch, step: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Mean over groups of the mean squared error over masked tokens; metrics: each group's."""
        del ema, frozen, step
        parts = {}
        for g, group in enumerate(batch.groups):
            (mask,) = group.masks
            _, drawn = self.seen(params, group, mask)
            targets = jnp.take_along_axis(self.targets(group.clips), mask.target[..., None], axis=1)
            parts[f'loss/group{g}'] = jnp.square(drawn - targets).mean()
        return sum(parts.values()) / len(parts), parts

    def trace(self, params: dict, ema: dict, frozen: dict, batch: Batch) -> dict:
        """Activations of a step by name, in order of computation."""
        del ema, frozen
        activations = {}
        every = tuple(range(self.config.depth))
        for g, group in enumerate(batch.groups):
            (mask,) = group.masks
            levels = self.nets['encoder'](
                params['encoder'], group.clips, mask.context, levels=every
            )
            for layer, x in enumerate(levels):
                activations[f'group{g}: encoder block {layer:02d}'] = x
            activations[f'group{g}: drawn'] = self.seen(params, group, mask)[1]
        return activations

    def health(self, params: dict, ema: dict, frozen: dict, batch: Batch) -> dict:
        """Features to judge collapse by, and how well pixels are drawn, of the first group: see
        health.measure."""
        del ema, frozen
        group = batch.groups[0]
        (mask,) = group.masks
        features = self.nets['encoder'](params['encoder'], group.clips)
        x, drawn = self.seen(params, group, mask)
        x = x[:, self.config.class_token :]
        return looked_at(features, self.targets(group.clips), x, drawn, mask.target)

    def measure(self, health: dict) -> dict[str, float]:
        return judge.measure(health)

    def verdict(self, records) -> tuple[str, str]:
        return judge.verdict(records)
