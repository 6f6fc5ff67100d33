"""Figures of the published benchmarks: the original's, habits included, and the exact ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax


def over_views(logits: np.ndarray) -> np.ndarray:
    """Logits [..., V, C] of the views of examples -> probabilities [..., C]: the softmax's mean."""
    x = np.asarray(logits, np.float32)
    x = np.exp(x - x.max(-1, keepdims=True))
    return (x / x.sum(-1, keepdims=True)).mean(-2)


def batch_accuracy(hits: np.ndarray, batch: int, drop_last: bool = True) -> float:
    """The original's accuracy: the mean over batches of their accuracies, hits [n] in the order of
    the loader; a short last batch is dropped, or counts as much as a full one."""
    parts = [hits[i : i + batch] for i in range(0, len(hits), batch)]
    if drop_last and len(parts) > 1 and len(parts[-1]) < batch:
        parts.pop()
    return float(np.mean([part.mean() for part in parts]))


def in_top(logits: np.ndarray, labels: np.ndarray, k: int = 5) -> np.ndarray:
    """[n] bool: whether the class is among the k largest of logits [n, C]; of equal ones the lower
    number counts as larger. A class without an output (below 0) never is."""
    own = np.take_along_axis(logits, labels.clip(0)[:, None], 1)
    number = np.arange(logits.shape[1])
    ahead = (logits > own) | ((logits == own) & (number < labels[:, None]))
    return (ahead.sum(1) < k) & (labels >= 0)


def class_recall(hits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur of the share of their examples that are hits [n]."""
    _, where = np.unique(labels, return_inverse=True)
    return float((np.bincount(where, hits) / np.bincount(where)).mean())


def focal_loss(
    logits: jax.Array, labels: jax.Array, *, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """The sigmoid focal loss of each class by itself, [B, C]: the original sums it.

    Args:
      logits: [B, C].
      labels: [B] class numbers.
      alpha: weight of the class that is there; 1 - alpha of the others; below 0: no weights.
      gamma: how much what is nearly right already counts less. (reference: vjepa2 §9.4)
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    p = jax.nn.sigmoid(logits)
    missed = p * (1 - targets) + (1 - p) * targets
    loss = optax.sigmoid_binary_cross_entropy(logits, targets) * missed**gamma
    if alpha >= 0:
        loss *= alpha * targets + (1 - alpha) * (1 - targets)
    return loss
