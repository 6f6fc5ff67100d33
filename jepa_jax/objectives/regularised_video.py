"""V-JEPA without a moving average: targets are the encoder's own features, and a term of the whole
batch, or nothing, keeps them apart. (reference: family §4.4)"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from jepa_jax.data import Batch
from jepa_jax.models.expander import ExpanderConfig
from jepa_jax.models.layers import standardise
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.objectives.masked_video import MaskedVideo
from jepa_jax.objectives.regularisers import Sigreg, Vicreg
from jepa_jax.sharding import batch_spec
from jepa_jax.weights.parts import net


@dataclasses.dataclass(frozen=True)
class Regulariser:
    """The terms, and what they see."""

    terms: Vicreg | Sigreg | None  # None: nothing
    samples: tuple[str, ...] = ()  # clips, positions
    positions: int = 0
    stop_gradient: bool = False
    expanded: bool = False  # predictions meet their targets behind the expander


class RegularisedVideo(MaskedVideo):
    """Nets and loss of V-JEPA with terms against collapse in place of an average."""

    ema = ()

    def __init__(
        self,
        encoder: ViTConfig,
        predictor: PredictorConfig,
        regulariser: Regulariser,
        expander: ExpanderConfig | None,
        *,
        groups: int,
        exponent: float = 1.0,
        tokens_of_masks: int = 0,
        seed: int = 0,
    ):
        """seed: of SIGReg's directions; the rest as MaskedVideo."""
        super().__init__(
            encoder, predictor, groups=groups, exponent=exponent, tokens_of_masks=tokens_of_masks
        )
        if expander:
            self.nets['expander'] = net('expander', expander)
        self.regulariser, self.seed = regulariser, seed
        self.loss_words += ', and terms' if regulariser.terms else ''
        self.whole_batch = regulariser.terms is not None

    def target(self, params: dict, ema: dict) -> dict:
        del ema
        return params['encoder']

    def loss(
        self, params: dict, ema: dict, frozen: dict, batch: Batch, step: jax.Array
    ) -> tuple[jax.Array, dict]:
        """The prediction's loss as in MaskedVideo, and the terms' of projected features, averaged
        over groups and kinds of samples; metrics: each part of them."""
        del ema, frozen
        encoder, terms = self.nets['encoder'], self.regulariser.terms
        parts: dict[str, jax.Array] = {}
        seen: list[dict[str, jax.Array]] = []
        for g, group in enumerate(batch.groups):
            with jax.named_scope('target'):
                features = encoder(params['encoder'], group.clips)
                h = self.met(params, features)
                looked_at = h if self.regulariser.expanded else features
                h = jax.lax.stop_gradient(h) if self.regulariser.stop_gradient else h
            parts |= self.errors(params, group, g, h)[0]
            with jax.named_scope('regularise'):
                key = jax.random.fold_in(jax.random.key(self.seed), step)
                seen += [terms.of(z, key) for z in self.regularised(params, looked_at)]
        prediction = sum(parts.values()) / len(parts)
        if terms is None:
            return prediction, parts
        means = {name: sum(one[name] for one in seen) / len(seen) for name in seen[0]}
        metrics = {**parts, 'loss/prediction': prediction}
        metrics |= {f'loss/{name}': value for name, value in means.items()}
        return terms.total(prediction, means), metrics

    def met(self, params: dict, features: jax.Array) -> jax.Array:
        if self.regulariser.expanded:
            return self.nets['expander'](params['expander'], features)
        return standardise(features)

    def said(self, params: dict, predictions: jax.Array) -> jax.Array:
        if self.regulariser.expanded:
            return self.nets['expander'](params['expander'], predictions)
        return predictions

    def regularised(self, params: dict, features: jax.Array) -> list[jax.Array]:
        """What the terms see, samples on axis 0, [B, d] or [B, n, d], of features [B, N, D]; of
        those that are expanded for predictions to meet the very same ones, so that nothing can be
        small for one and large for the other."""
        made = []
        for kind in self.regulariser.samples:
            if kind == 'clips':
                z = features.mean(1)
            else:
                places = np.random.default_rng(0).permutation(features.shape[1])
                at = np.sort(places[: self.regulariser.positions])
                z = features.at[:, at].get(out_sharding=batch_spec(features))
            if 'expander' in self.nets and not self.regulariser.expanded:
                z = self.nets['expander'](params['expander'], z)
            made.append(z)
        return made
