"""What people are to see of any objective that hides tokens of clips or images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import health as judge
from jepa_jax.data import Batch
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives import HIDDEN, LEFT_OUT, SEEN, Objective, Sample
from jepa_jax.sharding import batch_spec


class MaskedClips(Objective):
    """An objective whose batches are `Batch`, and whose encoder is of `config`."""

    config: ViTConfig

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
        """What the encoder that evaluations read makes of them."""
        net, weights = self.encoder(params, ema, frozen)
        x = net(weights, shown)
        shape = (len(shown), *self.config.grid(*shown.shape[1:4]), x.shape[-1])
        name = 'target encoder' if self.ema else 'encoder'
        return {name: jnp.reshape(x, shape, out_sharding=batch_spec(x))}
