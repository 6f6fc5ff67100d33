"""From pixels to tokens and where they lie: tubelets, pixel scale, token coordinates, sin-cos
tables."""

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax.sharding import batch_spec

MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1] over ImageNet
STD = (0.229, 0.224, 0.225)


def cut(video: jax.Array, tubelet: int, patch: int) -> jax.Array:
    """Video [B, T, H, W, 3] -> tubelets [B, N, tubelet * patch * patch * 3], values in (frame, y,
    x, colour) order.

    Frames and pixels that do not fill a tubelet are dropped, as a strided convolution does.
    """
    B, T, H, W, _ = video.shape
    t, h, w = T // tubelet, H // patch, W // patch
    # einops' 'b (t f) (h p) (w q) c -> b (t h w) (f p q c)', which is refused on an explicit mesh:
    # a reshape of several axes at once must be told there how its result is sharded
    spec = batch_spec(video)
    x = video[:, : t * tubelet, : h * patch, : w * patch]
    x = jnp.reshape(x, (B, t, tubelet, h, patch, w, patch * 3), out_sharding=spec)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6)
    return jnp.reshape(x, (B, t * h * w, tubelet * patch * patch * 3), out_sharding=spec)


def normalise(tubelets: jax.Array) -> jax.Array:
    """uint8 tubelets [..., P] -> float32 with ImageNet mean 0 and standard deviation 1; floats
    pass: they are normalised."""
    if tubelets.dtype != jnp.uint8:
        return tubelets.astype(jnp.float32)
    repeats = tubelets.shape[-1] // 3
    mean = jnp.asarray(np.tile(np.float32(MEAN) * 255, repeats))
    std = jnp.asarray(np.tile(np.float32(STD) * 255, repeats))
    return (tubelets.astype(jnp.float32) - mean) / std


def coordinates(ids: jax.Array, h: int, w: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Token ids of any shape -> their (t, y, x) indices, the same shape."""
    return ids // (h * w), ids // w % h, ids % w


SIDE = 16  # tokens a side of the grid that positions are spread over: that of 256 pixels


def spread(
    coordinates: tuple[jax.Array, jax.Array, jax.Array], h: int, w: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Token indices (t, y, x) on a grid of h x w -> positions: y and x from 0 to 15 whatever the
    grid, time as it is. (reference: vjepa2_1 §3.1)"""
    t, y, x = coordinates
    return t, y * ((SIDE - 1) / max(1, h - 1)), x * ((SIDE - 1) / max(1, w - 1))


def _sincos(positions: np.ndarray, width: int) -> np.ndarray:
    angle = positions[:, None] * 10000.0 ** (-np.arange(width // 2) / (width / 2))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def sincos_table(
    grid: tuple[int, int, int], width: int, uniform: bool, axes: str = 'yx'
) -> np.ndarray:
    """Fixed position embedding [N, D] float32 of a (t, h, w) grid (reference: vjepa2 §1.6).

    uniform: equal shares of the width for t, y and x, cut off at D; else half for t and a quarter
    each for y and x. A grid with t = 0 is an image: half of the width each for y and x, in the
    order of `axes`; I-JEPA and MAE have x first (reference: family §1.1). `axes` flat: one line of
    tokens, sines and cosines in turn, as VideoMAE (§3.2).
    """
    t, h, w = grid
    if axes == 'flat':
        line = _sincos(np.arange(max(t, 1) * h * w, dtype=np.float64), width)
        return line.reshape(len(line), 2, -1).swapaxes(1, 2).reshape(line.shape).astype(np.float32)
    ids = np.arange(max(t, 1) * h * w)
    places = [ids // (h * w), ids // w % h, ids % w]
    if t == 0:
        places, widths = places[1:] if axes == 'yx' else places[:0:-1], [width // 2] * 2
    elif uniform:
        widths = [2 * -(-width // 6)] * 3
    else:
        widths = [width // 2, width // 4, width // 4]
    parts = [_sincos(at.astype(np.float64), m) for at, m in zip(places, widths)]
    table = np.concatenate(parts, axis=1)
    return table[:, :width].astype(np.float32)


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(distance))


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _resize_matrix(size: int, new: int, kernel, reach: int) -> np.ndarray:
    """[new, size] weights of a resize without antialias whose samples lie at pixel centres, edges
    repeated."""
    source = (np.arange(new) + 0.5) * size / new - 0.5
    if kernel is _linear:
        source = np.maximum(source, 0)
    matrix = np.zeros((new, size))
    for tap in range(-reach + 1, reach + 1):
        index = np.floor(source).astype(int) + tap
        np.add.at(matrix, (np.arange(new), index.clip(0, size - 1)), kernel(source - index))
    return matrix


def resize_table(
    table: np.ndarray | jax.Array,
    grid: tuple[int, int, int],
    new: tuple[int, int, int],
    first: bool = True,
) -> np.ndarray | jax.Array:
    """A sin-cos table [N, D] made for `grid`, interpolated to the grid `new`.

    Video: trilinear, but if only the clip is shorter its first rows, where `first` says so.
    (reference: vjepa2 §1.6; V-JEPA 1 always interpolates: family §2) Image (t = 0): bicubic
    (a = -0.75), each axis by its own scale, as `transformers` does where the originals, which know
    squares at most, cannot.
    """
    if new == grid:
        return table
    if grid[0] == 0:
        axes, kernel, reach = (1, 2), _cubic, 2
    elif first and new[1:] == grid[1:] and new[0] < grid[0]:
        return table[: new[0] * new[1] * new[2]]
    else:
        axes, kernel, reach = (0, 1, 2), _linear, 1
    library = jnp if isinstance(table, jax.Array) else np
    cells = table if library is jnp else table.astype(np.float64)
    cells = cells.reshape(max(grid[0], 1), grid[1], grid[2], -1)
    for axis in axes:
        matrix = _resize_matrix(grid[axis], new[axis], kernel, reach)
        if library is jnp:
            cells = jnp.tensordot(jnp.float32(matrix), cells, (1, axis), precision='highest')
        else:
            cells = np.tensordot(matrix, cells, (1, axis))
        cells = library.moveaxis(cells, 0, axis)
    return cells.reshape(-1, table.shape[-1]).astype(np.float32)
