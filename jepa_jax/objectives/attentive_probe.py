"""What an attentive probe learns: to name what a frozen encoder's features show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jepa_jax.models.pooler import AttentiveClassifier, PoolerConfig
from jepa_jax.nets import Net


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelledFeatures:
    """Features of clips and, for each head of the probe, the class of each clip."""

    features: jax.Array  # [B, N, D]
    labels: dict[str, jax.Array]  # head -> [B] int32


def make_net(config: PoolerConfig, classes: dict[str, int]) -> Net:
    """The probe as pure functions: features [B, N, D] -> head -> logits [B, classes]."""
    return Net(lambda rngs: AttentiveClassifier(config, classes, rngs=rngs))


def make_loss(net: Net) -> Callable:
    """`loss_fn(params, target, batch) -> (loss, metrics)`; target is unused, since nothing is
    distilled.

    The loss is the cross-entropy in float32, summed over heads; metrics has the accuracy of each
    head.
    """

    def loss_fn(params: dict, target: None, batch: LabelledFeatures):
        del target
        logits = net(params, batch.features)
        losses = {
            head: optax.softmax_cross_entropy_with_integer_labels(logits[head], y).mean()
            for head, y in batch.labels.items()
        }
        metrics = {
            f'accuracy/{head}': jnp.mean(logits[head].argmax(-1) == y)
            for head, y in batch.labels.items()
        }
        return sum(losses.values()), metrics

    return loss_fn
