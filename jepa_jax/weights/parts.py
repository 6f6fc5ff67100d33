"""The kinds of nets that the program knows, a row each.

Rows name what they load as `module:name`, so that this table needs no JAX. A new kind of net is a
file in models/ and a row here; a file given to `--config` may add its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jepa_jax.lookup import load, row


@dataclasses.dataclass(frozen=True)
class Part:
    """A kind of net, each as `module:name`."""

    title: str  # for people
    config: str  # a frozen dataclass: all that shapes it
    module: str  # config, rngs= -> the Flax module
    sharding: str  # config -> jepa_jax.sharding.Rules


PARTS: dict[str, Part] = {
    'encoder': Part(
        title='encoder',
        config='jepa_jax.models.vit:ViTConfig',
        module='jepa_jax.models.vit:ViT',
        sharding='jepa_jax.models.vit:sharding',
    ),
    'predictor': Part(
        title='predictor',
        config='jepa_jax.models.predictor:PredictorConfig',
        module='jepa_jax.models.predictor:Predictor',
        sharding='jepa_jax.models.predictor:sharding',
    ),
    'ac_predictor': Part(
        title='action-conditioned predictor',
        config='jepa_jax.models.ac_predictor:ACPredictorConfig',
        module='jepa_jax.models.ac_predictor:ACPredictor',
        sharding='jepa_jax.models.ac_predictor:sharding',
    ),
    'probe': Part(
        title='attentive probe',
        config='jepa_jax.models.pooler:PoolerConfig',
        module='jepa_jax.models.pooler:classifier',
        sharding='jepa_jax.models.pooler:sharding',
    ),
}


def net(part: str, config: Any):
    """The jepa_jax.nets.Net of a part.

    Raises:
      ConfigError: no such part.
    """
    from jepa_jax.nets import Net

    kind = row(PARTS, 'part', part)
    module, rules = load(kind.module), load(kind.sharding)(config)
    return Net(lambda rngs: module(config, rngs=rngs), rules=rules, part=part, config=config)
