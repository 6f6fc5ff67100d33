"""V-JEPA: predict the features of masked tokens from those in sight."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa_jax import health
from jepa_jax.config import MaskedVideoConfig, encoder_shape, frame_counts
from jepa_jax.data import Batch
from jepa_jax.health import positions
from jepa_jax.models.layers import standardise
from jepa_jax.models.predictor import Predictor, PredictorConfig
from jepa_jax.models.vit import ViT, ViTConfig, pick_rows
from jepa_jax.nets import Net
from jepa_jax.sharding import batch_spec


def vit_config(config: MaskedVideoConfig) -> ViTConfig:
    """The encoder that a run's config describes."""
    e = config.encoder
    shape = encoder_shape(e)
    return ViTConfig(
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        mlp_ratio=shape.mlp_ratio,
        patch=e.patch,
        tubelet=e.tubelet,
        mlp=e.mlp,
        position=e.position,
        uniform_power=e.uniform_power,
        image_size=config.data.crop,
        frames=max(frame_counts(config.data)),
        dtype=jnp.dtype(config.compute_dtype),
        remat=config.mesh.remat,
    )


def predictor_config(config: MaskedVideoConfig) -> PredictorConfig:
    """The predictor that a run's config describes."""
    encoder, p = vit_config(config), config.predictor
    return PredictorConfig(
        encoder_width=encoder.width,
        width=p.width,
        depth=p.depth,
        heads=p.heads,
        mlp_ratio=p.mlp_ratio,
        mask_tokens=p.mask_tokens,
        zero_init_mask_tokens=p.zero_init_mask_tokens,
        mlp=p.mlp,
        position=encoder.position,
        uniform_power=encoder.uniform_power,
        grid=encoder.grid(encoder.frames, encoder.image_size, encoder.image_size),
        dtype=encoder.dtype,
        remat=encoder.remat,
    )


class MaskedVideo:
    """Nets and loss of V-JEPA pretraining. (reference: vjepa2 §5)"""

    averaged = 'encoder'  # the net whose moving average is the target
    given = None  # no weights from elsewhere

    def __init__(
        self, encoder: ViTConfig, predictor: PredictorConfig, *, groups: int, exponent: float = 1.0
    ):
        """groups: frame-count groups in a batch; exponent p of the loss |z - h|^p / p."""
        self.encoder = Net(lambda rngs: ViT(encoder, rngs=rngs))
        self.predictor = Net(lambda rngs: Predictor(predictor, rngs=rngs))
        self.config = encoder
        self.groups, self.exponent = groups, exponent
        # mask tokens no group reaches get no gradient, and the original leaves them undecayed
        self.unused = frozenset(
            f'predictor/mask_tokens/{i}' for i in range(groups, predictor.mask_tokens)
        )

    @classmethod
    def of(cls, config: MaskedVideoConfig) -> MaskedVideo:
        return cls(
            vit_config(config),
            predictor_config(config),
            groups=len(frame_counts(config.data)),
            exponent=config.loss_exponent,
        )

    @property
    def abstract(self) -> dict:
        """Shapes of what `init` returns."""
        return {'encoder': self.encoder.abstract, 'predictor': self.predictor.abstract}

    measure = staticmethod(health.measure)
    verdict = staticmethod(health.verdict)

    def init(self, key: jax.Array) -> dict:
        e, p = jax.random.split(key)
        return {'encoder': self.encoder.init(e), 'predictor': self.predictor.init(p)}

    def targets(self, target: dict, clips: jax.Array) -> jax.Array:
        """Standardised features of all tokens [B, N, D] that the predictor has to meet; no gradient
        passes."""
        return jax.lax.stop_gradient(standardise(self.encoder(target, clips)))

    def loss(self, params: dict, target: dict, batch: Batch) -> tuple[jax.Array, dict]:
        """Mean over groups and masks of the mean of |prediction - target feature|^p / p; metrics:
        each part of it."""
        parts = {}
        for g, group in enumerate(batch.groups):
            with jax.named_scope('target'):
                h = self.targets(target, group.clips)
            for m, mask in enumerate(group.masks):
                with jax.named_scope('context'):
                    x = self.encoder(params['encoder'], group.clips, mask.context)
                with jax.named_scope('predict'):
                    z = self.predictor(params['predictor'], x, mask.context, mask.target, g)
                wanted = jnp.take_along_axis(h, mask.target[..., None], axis=1)
                error = jnp.abs(z - wanted) ** self.exponent / self.exponent
                parts[f'loss/group{g}_mask{m}'] = error.mean()
        return sum(parts.values()) / len(parts), parts

    def trace(self, params: dict, target: dict, batch: Batch) -> dict:
        """Activations of a step by name, in order of computation; encoder features after every
        block."""
        found = {}
        every = tuple(range(self.config.depth))
        for g, group in enumerate(batch.groups):
            levels = self.encoder(target, group.clips, levels=every)
            for layer, x in enumerate(levels):
                found[f'group{g}: target encoder block {layer:02d}'] = x
            for m, mask in enumerate(group.masks):
                levels = self.encoder(params['encoder'], group.clips, mask.context, levels=every)
                for layer, x in enumerate(levels):
                    found[f'group{g}, mask{m}: encoder block {layer:02d}'] = x
                found[f'group{g}, mask{m}: prediction'] = self.predictor(
                    params['predictor'], levels[-1], mask.context, mask.target, g
                )
        return found

    def health(self, params: dict, target: dict, batch: Batch) -> dict:
        """Features to judge collapse by, from the first group and mask, of some positions: see
        health.measure.

        Returns target and context [B, n, D], prediction and wanted [B, m, D], and for two clips or
        more guess [B, m, D], what the other clips have at the wanted positions on average.
        """
        group = batch.groups[0]
        mask = group.masks[0]
        h = self.encoder(target, group.clips)
        x = self.encoder(params['encoder'], group.clips, mask.context)
        z = self.predictor(params['predictor'], x, mask.context, mask.target, 0)

        def some(a: jax.Array) -> jax.Array:  # [B, N, ...], which stays on its devices
            at = positions(a.shape[1], len(a))
            return a.at[:, at].get(out_sharding=batch_spec(a))

        wanted_at, standard = some(mask.target), standardise(h)
        wanted = jnp.take_along_axis(standard, wanted_at[..., None], axis=1)
        found = {'target': some(h), 'context': some(x), 'prediction': some(z), 'wanted': wanted}
        if len(h) > 1:
            total = pick_rows(standard.sum(0), wanted_at, wanted)
            found['guess'] = (total - wanted) / (len(h) - 1)
        return found
