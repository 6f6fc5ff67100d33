"""Weights of the original's state dicts, filled by formula, in our layout.

Every tensor of the original with name k holds `RandomState(crc32(k)).standard_normal(shape) *
sigma`, plus 1 for norm weights (reference: vjepa2 §13), so golden outputs can be checked without
any weight file.
"""

import re
import zlib

import einops
import jax
import numpy as np

from jepa_jax.sharding import path_name

# our path (layer axis taken off) -> (name in the original, einops pattern original -> ours or None)
LINEAR = 'o i -> i o'
NAMES = (
    (r'(.*)patch_embed/kernel', r'\1patch_embed.proj.weight', 'd c t y x -> (t y x c) d'),
    (r'(.*)patch_embed/bias', r'\1patch_embed.proj.bias', None),
    (r'(.*)/kernel', r'\1.weight', LINEAR),
    (r'(.*)/scale', r'\1.weight', None),
    (r'(.*)', r'\1', None),
)
PREDICTOR = (
    (r'(embed|blocks|norm|proj)\b(.*)', r'predictor_\1\2'),
    (r'(.*)', r'\1'),
)


def original_name(path: str, predictor: bool) -> tuple[str, str | None]:
    pattern, name, layout = next(row for row in NAMES if re.fullmatch(row[0], path))
    path = re.sub(f'^{pattern}$', name, path).replace('/', '.')
    if predictor:
        for pattern, name in PREDICTOR:
            if re.fullmatch(pattern, path):
                path = re.sub(f'^{pattern}$', name, path)
                break
    return path, layout


def tensor(name: str, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    value = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape) * sigma
    if 'norm' in name and name.endswith('weight'):
        value = value + 1
    return value.astype(np.float32)


def fill(abstract: dict, *, sigma: float, predictor: bool = False, tubelet: int = 2) -> dict:
    """Parameters of the shapes of `abstract` (Net.abstract), filled by the rule."""

    def leaf(path, a):
        parts = path_name(path)
        stacked = re.match(r'(.*?)blocks/', parts) is not None
        layers = range(a.shape[0]) if stacked else [None]
        values = []
        for i in layers:
            ours = parts.replace('blocks/', f'blocks/{i}/') if stacked else parts
            name, layout = original_name(ours, predictor)
            shape = a.shape[1:] if stacked else a.shape
            if layout == LINEAR:
                shape = shape[::-1]
            elif layout:
                patch = int((shape[0] // 3 // tubelet) ** 0.5)
                shape = (shape[1], 3, tubelet, patch, patch)
                if tubelet == 1:  # the original's image model has a 2-D convolution
                    name_shape = (shape[0], 3, patch, patch)
                    value = tensor(name, name_shape, sigma)[:, :, None]
                    values.append(einops.rearrange(value, layout))
                    continue
            value = tensor(name, shape, sigma)
            values.append(einops.rearrange(value, layout) if layout else value)
        return np.stack(values) if stacked else values[0]

    return jax.tree.map_with_path(leaf, abstract)


def normal(seed: int, *shape: int) -> np.ndarray:
    """X(seed, *shape) of the reference page, float32."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def mask_pair(seed: int, batch: int, n: int, n1: int, n2: int) -> tuple[np.ndarray, np.ndarray]:
    """mk(seed, ...) of the reference page: context and target ids."""
    rng = np.random.RandomState(seed)
    rows = [rng.permutation(n) for _ in range(batch)]
    first = np.stack([np.sort(r[:n1]) for r in rows]).astype(np.int32)
    second = np.stack([np.sort(r[n1 : n1 + n2]) for r in rows]).astype(np.int32)
    return first, second


def checksum(a: np.ndarray) -> float:
    flat = np.asarray(a, np.float64).ravel()
    return float((flat * np.cos(0.001 * np.arange(flat.size))).sum())


def assert_whole(golden: dict, name: str, ours, atol: float = 1e-5) -> None:
    """Mean, mean of absolutes and checksum of all numbers of an array that is stored in samples.
    The checksum is a sum of as many errors as there are numbers: root of n times the tolerance."""
    flat = np.asarray(ours, np.float64).ravel()
    mean, size, total = golden[f'{name}/whole']
    np.testing.assert_allclose(
        (flat.mean(), np.abs(flat).mean()), (mean, size), rtol=0, atol=atol, err_msg=name
    )
    far = atol * np.sqrt(flat.size)
    np.testing.assert_allclose(checksum(flat), total, rtol=0, atol=far, err_msg=name)


STRIDE = 13  # of large golden arrays every 13th number is stored, and the means of all


def assert_golden(golden: dict, name: str, ours, atol: float) -> None:
    """An array, or of a large one a sample and means."""
    ours = np.asarray(ours)
    if f'{name}/whole' in golden:
        flat = ours.astype(np.float64).ravel()
        means = flat.mean(), np.abs(flat).mean()
        np.testing.assert_allclose(means, golden[f'{name}/whole'], rtol=0, atol=atol)
        ours = ours.ravel()[::STRIDE]
    np.testing.assert_allclose(ours, golden[name], rtol=0, atol=atol)
