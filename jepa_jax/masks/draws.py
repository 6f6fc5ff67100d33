"""Random numbers of masks: functions of (seed, step, clip), and torch's own stream for oracles."""

from __future__ import annotations

import numpy as np

ORDER, SIZE, CLIP, CHECK, RECORD = range(5)  # what a stream of random words is for


def rng_of(seed: int, step: int, purpose: int, a: int = 0, b: int = 0) -> np.random.Philox:
    """A counter-based generator; only its raw words are used, which NumPy promises to keep."""
    key, counter = np.array([seed, step], np.uint64), np.array([0, purpose, a, b], np.uint64)
    return np.random.Philox(key=key, counter=counter)


def uniforms(raw: np.ndarray) -> np.ndarray:
    """Multiples of 2^-24 in [0, 1), the original's resolution, from 64-bit words."""
    return (raw >> np.uint64(40)) / 2.0**24


def torch_stream(seed: int) -> np.random.RandomState:
    """The generator whose raw 32-bit words are those of torch on the CPU after `manual_seed`."""
    return np.random.RandomState(seed)


def words(rng: np.random.RandomState, n: int) -> np.ndarray:
    """The next words of such a stream, int64 [n]: what torch.randint takes the remainder of."""
    return rng.randint(0, 2**32, size=n, dtype=np.uint32).astype(np.int64)


def torch_uniforms(rng: np.random.RandomState, n: int) -> np.ndarray:
    """The next numbers of torch.rand, [n]: 24 low bits of a word each."""
    return (words(rng, n) & 0xFFFFFF) / 2.0**24
