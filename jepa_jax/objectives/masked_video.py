"""V-JEPA: predict the features of masked tokens from those in sight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import health as judge
from jepa_jax.data import Batch, Group
from jepa_jax.health import positions
from jepa_jax.masks import Mask
from jepa_jax.models.layers import standardise
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig, pick_rows
from jepa_jax.nets import Net
from jepa_jax.objectives import HIDDEN, LEFT_OUT, SEEN, Objective, Sample
from jepa_jax.sharding import batch_spec
from jepa_jax.weights.parts import net


class MaskedVideo(Objective):
    """Nets and loss of V-JEPA pretraining. (reference: vjepa2 §5)"""

    ema = ('encoder',)  # whose average is the target

    def __init__(
        self, encoder: ViTConfig, predictor: PredictorConfig, *, groups: int, exponent: float = 1.0
    ):
        """groups: frame-count groups in a batch; exponent p of the loss |z - h|^p / p."""
        self.nets = {
            'encoder': net('encoder', encoder),
            'predictor': net('predictor', predictor),
        }
        self.config = encoder
        self.groups, self.exponent = groups, exponent
        # mask tokens no group reaches get no gradient, and the original leaves them undecayed
        self.unused = frozenset(
            f'predictor/mask_tokens/{i}' for i in range(groups, predictor.mask_tokens)
        )

    def encoder(self, params: dict, ema: dict, frozen: dict) -> tuple[Net, dict]:
        """The target encoder, which all published evaluations use."""
        return self.nets['encoder'], ema['encoder']

    def targets(self, ema: dict, clips: jax.Array) -> jax.Array:
        """Standardised features of all tokens [B, N, D] that the predictor has to meet; no gradient
        passes."""
        return jax.lax.stop_gradient(standardise(self.nets['encoder'](ema['encoder'], clips)))

    def loss(
        self, params: dict, ema: dict, frozen: dict, batch: Batch, step: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Mean over groups and masks of the mean of |prediction - target feature|^p / p; metrics:
        each part of it."""
        del frozen, step
        encoder, predictor = self.nets['encoder'], self.nets['predictor']
        parts = {}
        for g, group in enumerate(batch.groups):
            with jax.named_scope('target'):
                h = self.targets(ema, group.clips)
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
        del frozen
        encoder, predictor = self.nets['encoder'], self.nets['predictor']
        activations = {}
        every = tuple(range(self.config.depth))
        for g, group in enumerate(batch.groups):
            levels = encoder(ema['encoder'], group.clips, levels=every)
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

        Returns target and context [B, n, D], prediction and expected [B, m, D], and for two clips
        or more baseline [B, m, D], what the other clips have at those positions on average.
        """
        del frozen
        group = batch.groups[0]
        mask = group.masks[0]
        h = self.nets['encoder'](ema['encoder'], group.clips)
        x, z = self.seen(params, group, mask)

        def some(a: jax.Array) -> jax.Array:  # [B, N, ...], which stays on its devices
            at = positions(a.shape[1], len(a))
            return a.at[:, at].get(out_sharding=batch_spec(a))

        targets_at, standard = some(mask.target), standardise(h)
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

    def bands(self, records) -> dict[str, tuple[float, float]]:
        return judge.bands(records)

    def samples(self, batch: Batch, count: int) -> list[Sample]:
        """Of every group, with its masks."""
        samples = []
        for group in batch.groups:
            for i in range(min(count, len(group.clips))):
                frames = np.asarray(group.clips[i])
                grid = self.config.grid(*frames.shape[:3])
                masks = {}
                for m, mask in enumerate(group.masks):
                    tokens = np.full(int(np.prod(grid)), LEFT_OUT, np.int8)
                    tokens[mask.context[i]], tokens[mask.target[i]] = SEEN, HIDDEN
                    masks[f'mask {m}'] = tokens.reshape(grid)
                samples.append(Sample(frames, masks))
        return samples

    def shown(self, batch: Batch) -> np.ndarray:
        """Clips of the first group."""
        return batch.groups[0].clips

    def picture(
        self, params: dict, ema: dict, frozen: dict, shown: jax.Array
    ) -> dict[str, jax.Array]:
        """What the target encoder makes of them."""
        del params, frozen
        x = self.nets['encoder'](ema['encoder'], shown)
        grid = self.config.grid(*shown.shape[1:4])
        shape = (len(shown), *grid, x.shape[-1])
        return {'target encoder': jnp.reshape(x, shape, out_sharding=batch_spec(x))}
