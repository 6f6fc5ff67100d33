"""Multi-block masks: the original sampler bit for bit, and one with few compiled shapes.

Both hide `num_blocks` boxes of one size in the token grid `(t, h, w)`: what is hidden is target,
what is left is context. A batch must be rectangular, so every clip keeps only its lowest K context
ids and its lowest M target ids.

`ReferenceSampler` takes for K and M the minimum over the batch (reference: vjepa2 §4): a new shape
nearly every step, on which devices that draw their own clips do not agree.

`StaticSampler` promises shapes that are a pure function of the step, at most four in all,
no padding:

1. It records what the original does: 2,048 groups of `reference_batch` clips and their minima.
2. Four budgets (K, M) have the mean and the covariance of these minima, and four steps in a row
   visit them all. One budget alone could not keep the fraction of every tubelet in time: when a
   clip runs out of tokens depends on how far its count lies above the minimum, so the spread
   matters. A step takes the block size of a recorded group whose minima were like its budgets.
3. A clip first draws how many context tokens it has before the cut, from chances over `[K, N - M]`
   that are the recorded ones, corrected by non-negative least squares until the mean fraction kept
   in every tubelet is the original's. The count comes first because of B clips one lies exactly on
   the minimum and keeps its last tubelet whole, which redrawing until a budget is met never hits.
4. Of `TRIES` draws of blocks it takes the one nearest to that count and moves the tokens still
   missing (1 % of the grid on average), the same cells in every tubelet. So nothing loops, and
   budgets are always met.

`python -m tools.measure_masks` measures how near that comes to the original.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from jepa_jax.config import MaskConfig
from jepa_jax.errors import ConfigError
from jepa_jax.masks.draws import (
    CHECK,
    CLIP,
    ORDER,
    RECORD,
    SIZE,
    rng_of,
    torch_stream,
    torch_uniforms,
    uniforms,
    words,
)

Grid = tuple[int, int, int]
Pair = tuple[np.ndarray, np.ndarray]

TRIES = 16  # draws of blocks a clip, of which the nearest to the count drawn is taken
RECORDED = 2048  # groups recorded: the mean of their minima is known to about 0.1 % of the tokens
LEVELS = 96  # most values that this count can take
REDRAWS = 200  # draws without context after which a setting is called impossible


# --- The block ----------------------------------------------------------------------------------


def _sizes(settings: MaskConfig, grid: Grid, u: np.ndarray) -> np.ndarray:
    """Block sizes `[n, 3]` (t, y, x) for uniforms `[n, 3]` (length, area, aspect ratio)."""
    frames, rows, columns = grid
    (t0, t1), (s0, s1) = settings.temporal_scale, settings.spatial_scale
    a0, a1 = settings.aspect_ratio
    length = np.maximum(1, (frames * (t0 + u[:, 0] * (t1 - t0))).astype(np.int64))
    area = (rows * columns * (s0 + u[:, 1] * (s1 - s0))).astype(np.int64)
    ratio = a0 + u[:, 2] * (a1 - a0)
    height = np.minimum(np.rint(np.sqrt(area * ratio)), rows)  # rint: halves to even, as Python
    width = np.minimum(np.rint(np.sqrt(area / ratio)), columns)
    return np.stack([length, height, width], axis=1).astype(np.int64)


def _context_frames(settings: MaskConfig, grid: Grid) -> int:
    """Tubelets that may hold context."""
    return max(1, int(grid[0] * settings.max_temporal_keep))


def _carve(origins: Sequence, size: Sequence, grid: Grid, context_frames: int) -> np.ndarray:
    """Bool `[t, h, w]`, True where context is left by blocks with `origins` of (y, x, t)."""
    mask = np.ones(grid, bool)
    t, h, w = size
    for y, x, start in origins:
        mask[start : start + t, y : y + h, x : x + w] = False
    mask[context_frames:] = False
    return mask


@functools.cache
def _first_cells(columns: int) -> np.ndarray:
    """Bits `[columns + 1, words]`: entry x has the first x cells of a row set."""
    bits = np.arange(64 * -(-columns // 64)) < np.arange(columns + 1)[:, None]
    return np.packbits(bits, axis=1, bitorder='little').view('<u8').astype(np.uint64)


def _counts(origins: np.ndarray, sizes: np.ndarray, grid: Grid, context_frames: int) -> np.ndarray:
    """Context tokens per tubelet `[n, t]` for origins `[n, blocks, 3]` (y, x, t), sizes `[n, 3]`.

    What `_carve` leaves, counted without building masks: a row of cells is a few 64-bit words.
    """
    frames, rows, columns = grid
    (y, x, start), (length, height, width) = origins.transpose(2, 0, 1), sizes.T[..., None]
    first, row, frame = _first_cells(columns), np.arange(rows), np.arange(frames)
    cells = (first[x + width] ^ first[x])[:, :, None]
    inside = (row >= y[..., None]) & (row < (y + height)[..., None])
    hidden = np.where(inside[..., None], cells, np.uint64(0))[:, :, None]
    if (sizes[:, 0] == frames).all():
        frame = frame[:1]  # tubes: every tubelet looks the same
    else:
        during = (frame >= start[..., None]) & (frame < (start + length)[..., None])
        hidden = np.where(during[..., None, None], hidden, np.uint64(0))
    hidden = np.bitwise_or.reduce(hidden, axis=1)
    counts = rows * columns - np.bitwise_count(hidden).sum((2, 3), dtype=np.int64)
    counts = np.repeat(counts, frames // len(frame), axis=1)
    counts[:, context_frames:] = 0
    return counts


def _origins(raw: np.ndarray, sizes: np.ndarray, grid: Grid) -> np.ndarray:
    """Origins `[n, blocks, 3]` (y, x, t) of blocks of `sizes` from raw integers, same shape."""
    room = np.asarray(grid) - sizes + 1  # (t, y, x)
    return (raw % room[:, None, [1, 2, 0]].astype(raw.dtype)).astype(np.int64)


# --- Checks -------------------------------------------------------------------------------------


def check(settings: MaskConfig, grid: Grid, name: str = 'masks') -> None:
    """Refuse a mask that cannot work on `grid` (t, h, w).

    Raises:
      ConfigError: One line that names the field, what was found and what is allowed.
    """

    def refuse(field: str, text: str):
        raise ConfigError(f'{name}.{field} = {getattr(settings, field)}: {text}')

    if len(grid) != 3 or min(grid) < 1:
        raise ConfigError(f'{name}: a grid of {grid} tokens (t, h, w) is empty')
    shown = 'x'.join(map(str, grid))
    tokens = math.prod(grid)
    for field in ('spatial_scale', 'temporal_scale', 'aspect_ratio'):
        low, high = getattr(settings, field)
        if not 0 < low <= high < math.inf:
            refuse(field, 'needs 0 < min <= max')
        if field != 'aspect_ratio' and high > 1:
            refuse(field, 'a share of the clip must be in (0, 1]')
    if settings.num_blocks < 1:
        refuse('num_blocks', 'needs at least one block')
    if not 0 < settings.max_temporal_keep <= 1:
        refuse('max_temporal_keep', 'a share of the clip must be in (0, 1]')
    if settings.max_keep > tokens:
        refuse('max_keep', f'more context asked than the {tokens} tokens of a {shown} grid')
    if settings.max_keep < 0 or settings.max_keep == 1:
        refuse('max_keep', 'needs at least 2 context tokens, or 0 for no bound')
    if settings.full_complement and settings.pred_full_complement:
        refuse('full_complement', 'and pred_full_complement exclude each other')

    ends = np.array(list(itertools.product((0.0, 1 - 2.0**-24), repeat=3)))
    inner = uniforms(rng_of(0, 0, CHECK).random_raw(3 * 256)).reshape(-1, 3)
    sizes = np.unique(_sizes(settings, grid, np.concatenate([ends, inner])), axis=0)
    if (sizes == 0).any():
        refuse('spatial_scale', f'a block covers no token of a {shown} grid')
    if (sizes == grid).all(1).any():
        refuse('spatial_scale', f'a block can cover the whole {shown} grid and leave no context')
    largest = sizes[sizes.prod(axis=1).argsort()[-16:]]
    _record(settings, grid, np.repeat(largest, 4, axis=0), rng_of(0, 0, CHECK, 1), name)


def _record(
    settings: MaskConfig, grid: Grid, sizes: np.ndarray, rng: np.random.Philox, name: str
) -> np.ndarray:
    """Context tokens per tubelet `[n, t]` of one clip for each of `sizes`, redrawn while empty."""
    counts = np.zeros((len(sizes), grid[0]), np.int64)
    left = np.arange(len(sizes))
    chunk = -(-(2**21) // (settings.num_blocks * grid[0] * grid[1]))  # bounds memory
    for _ in range(REDRAWS):
        for part in np.array_split(left, -(-len(left) // chunk)):
            raw = rng.random_raw(len(part) * settings.num_blocks * 3)
            raw = raw.reshape(len(part), settings.num_blocks, 3)
            origins = _origins(raw, sizes[part], grid)
            counts[part] = _counts(origins, sizes[part], grid, _context_frames(settings, grid))
        left = left[counts[left].sum(1) < 2]
        if not len(left):
            return counts
    block = 'x'.join(map(str, sizes[left[0]]))
    raise ConfigError(
        f'{name}.num_blocks = {settings.num_blocks}: blocks of {block} tokens left fewer than 2'
        f' context tokens of a {"x".join(map(str, grid))} grid in {REDRAWS} draws;'
        ' use fewer or smaller blocks'
    )


# --- The original -------------------------------------------------------------------------------


class ReferenceSampler:
    """The original sampler for one mask setting: same ids from the same torch seeds.

    Oracle of tests, and for parity runs (`mask_sampler = 'reference'`, see `reference_batch`).
    """

    def __init__(self, settings: MaskConfig, grid: Grid, name: str = 'masks'):
        """`grid` is (t, h, w). Raises ConfigError as `check` does."""
        check(settings, grid, name)
        self.settings, self.grid = settings, tuple(grid)

    def block_size(self, seed: int) -> tuple[int, int, int]:
        """(t, h, w) of all blocks of a call. `seed` is the original's call counter, from 0."""
        u = torch_uniforms(torch_stream(seed), 3)
        return tuple(_sizes(self.settings, self.grid, u[None])[0].tolist())

    def __call__(self, seed: int, rng: np.random.RandomState, batch: int) -> Pair:
        """One call of the original's generator.

        Args:
          seed: Call counter, seeds the block size; equal for all settings of one step.
          rng: Global torch stream that places the blocks, from `torch_stream`; advanced.
          batch: Clips, B.

        Returns:
          Context `[B, K]` and target `[B, M]`, int32, ascending in each row.

        Raises:
          RuntimeError: A clip has no context after many draws (the original would not return).
        """
        s, size = self.settings, self.block_size(seed)
        frames = _context_frames(s, self.grid)
        room = np.subtract(self.grid, size)[[1, 2, 0]] + 1
        masks = np.empty((batch, math.prod(self.grid)), bool)
        for row in masks:
            # The original draws for ever, and fails on a single token instead of drawing again.
            for _ in range(100 * REDRAWS):
                origins = words(rng, 3 * s.num_blocks).reshape(-1, 3) % room
                row[:] = _carve(origins.tolist(), size, self.grid, frames).ravel()
                if np.count_nonzero(row) > 1:
                    break
            else:
                raise RuntimeError(f'blocks of {size} left no context in {100 * REDRAWS} draws')
        keep = int(masks.sum(1).min())
        keep = min(keep, s.max_keep) if s.max_keep else keep
        return _cut(masks, keep, int((~masks).sum(1).min()), s)


def _cut(masks: np.ndarray, context: int, target: int, settings: MaskConfig) -> Pair:
    """Ids `[B, K]`, `[B, M]` of masks `[B, N]`: the lowest ids, complements and the swap."""

    def lowest(rows: np.ndarray, n: int) -> np.ndarray:
        return np.array([row.nonzero()[0][:n] for row in rows], np.int32)

    def others(ids: np.ndarray) -> np.ndarray:
        rows = np.ones_like(masks)
        np.put_along_axis(rows, ids, False, axis=1)
        return lowest(rows, masks.shape[1])

    if settings.full_complement:
        pair = lowest(masks, context)
        pair = pair, others(pair)
    elif settings.pred_full_complement:
        pair = lowest(~masks, target)
        pair = others(pair), pair
    else:
        pair = lowest(masks, context), lowest(~masks, target)
    return pair[::-1] if settings.inverse else pair


def reference_batch(
    samplers: Sequence[ReferenceSampler], seed: int, step: int, batch: int
) -> tuple[Pair, ...]:
    """The masks of a whole global batch as a pure function of (seed, step): slice it per process.

    One setting after the other takes its block positions from one stream, as in the original's
    collator. The minimum runs over the whole batch (the original's: over that of one GPU).

    Returns:
      For each sampler context `[B, K]` and target `[B, M]`, int32.
    """
    rng = np.random.RandomState([seed, step, *samplers[0].grid])
    return tuple(sampler(step, rng, batch) for sampler in samplers)


# --- Static shapes ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Budget:
    """One mask's cut to K context and M target tokens, and what the counts before it may be."""

    context: int
    target: int
    counts: np.ndarray  # [levels] context tokens before the cut, ascending
    chances: np.ndarray  # [levels] cumulative, out of 2^32


class StaticSampler:
    """Masks whose shapes are a pure function of the step: at most four kinds a run, no padding.

    Every process that builds it with equal arguments promises equal shapes. Pickles; built in
    about half a second for the usual grids.
    """

    def __init__(
        self,
        settings: Sequence[MaskConfig],
        grid: Grid,
        seed: int,
        reference_batch: int = 24,
        budgets: int = 4,
        name: str = 'masks',
    ):
        """Record the original and plan the budgets.

        Args:
          settings: One for each mask of a clip; they share the block's aspect ratio each step.
          grid: Tokens (t, h, w).
          seed: Of the run, not negative. Shapes that can occur do not depend on it.
          reference_batch: Clips over which the original takes its minimum, those of one GPU: 24 for
            16 frames at 256 px, 12 for 64 frames, 6 for 64 frames at 384 px.
          budgets: 4, or 1 for a single shape: the original's mean counts, but further from its
            share of every tubelet.
          name: Of the field that holds the settings.

        Raises:
          ConfigError: A setting cannot work on this grid, see `check`.
        """
        if seed < 0:
            raise ConfigError(f'seed = {seed}: must not be negative')
        if not settings:
            raise ConfigError(f'{name} = []: needs at least one mask setting')
        if reference_batch < 1:
            raise ConfigError(f'reference_batch = {reference_batch}: needs at least one clip')
        self.settings, self.grid, self.seed = tuple(settings), tuple(grid), seed
        for i, each in enumerate(self.settings):
            check(each, self.grid, f'{name}[{i}]')
        u = uniforms(rng_of(0, 0, RECORD).random_raw(3 * RECORDED)).reshape(-1, 3)
        recorded, minima, pairs = [], [], []
        for i, each in enumerate(self.settings):
            sizes = _sizes(each, self.grid, np.repeat(u, reference_batch, axis=0))
            counts = _record(each, self.grid, sizes, rng_of(0, 0, RECORD, 1 + i), f'{name}[{i}]')
            recorded.append(counts.reshape(RECORDED, reference_batch, -1))
            minima.append(_minima(each, recorded[i].sum(2), math.prod(self.grid)))
            pairs.append(_pairs(each, self.grid, minima[i], budgets))
        # A step takes the block of a group whose minima were like its budgets: blocks that leave
        # little context do not meet large budgets.
        seen = np.concatenate(minima, axis=1)
        far = (seen[:, None] - np.concatenate(pairs, axis=1)) / (seen.std(0) + 1e-9)
        like = np.square(far).sum(2).argmin(1) == np.arange(budgets)[:, None]
        like |= ~like.any(1, keepdims=True)
        plans = [
            _plan(each, self.grid, counts, budgets, like)
            for each, counts, budgets in zip(self.settings, recorded, pairs)
        ]
        self._plans = list(zip(*plans))  # [budgets] of [masks]
        self._blocks = [u[rows] for rows in like]
        self._last = None, None

    @property
    def all_shapes(self) -> frozenset[tuple[tuple[int, int], ...]]:
        """Everything that `shapes` can return: one compiled program each, at most four."""
        return frozenset(map(self._shapes, self._plans))

    def shapes(self, step: int) -> tuple[tuple[int, int], ...]:
        """(K, M) of every mask at `step`, the same on every device and process."""
        return self._shapes(self._step(step)[0])

    def _shapes(self, plan: Sequence[_Budget]) -> tuple[tuple[int, int], ...]:
        pairs = [(b.context, b.target) for b in plan]
        return tuple(p[::-1] if s.inverse else p for s, p in zip(self.settings, pairs))

    def _step(self, step: int) -> tuple[tuple[_Budget, ...], np.ndarray]:
        """Budgets and the block's uniforms `[1, 3]`; n steps in a row visit all n budgets."""
        last = self._last  # clips of one step come together, maybe in several threads
        if last[0] != step:
            n = len(self._plans)
            order = rng_of(self.seed, step // n, ORDER).random_raw(n).argsort()
            i = order[step % n]
            pick = int(rng_of(self.seed, step, SIZE).random_raw() % len(self._blocks[i]))
            self._last = last = step, (self._plans[i], self._blocks[i][pick, None])
        return last[1]

    def sample(self, step: int, position: int) -> tuple[Pair, ...]:
        """The masks of one clip, a pure function of (seed, step, position).

        Args:
          step: Training step, from 0.
          position: Of the clip in the global batch (or any number that is its own), from 0.

        Returns:
          For each mask context ids `[K]` and target ids `[M]`, int32, ascending, disjoint.
        """
        plan, u = self._step(step)
        rng = rng_of(self.seed, step, CLIP, position, self.grid[0])
        return tuple(self._clip(s, b, u, rng) for s, b in zip(self.settings, plan))

    def _clip(self, settings: MaskConfig, budget: _Budget, u: np.ndarray, rng) -> Pair:
        blocks, frames = settings.num_blocks, _context_frames(settings, self.grid)
        raw = rng.random_raw(2 + TRIES * blocks * 3)
        level = np.searchsorted(budget.chances, raw[0] >> np.uint64(32), side='right')
        count = int(budget.counts[level])
        sizes = np.repeat(_sizes(settings, self.grid, u), TRIES, axis=0)
        origins = _origins(raw[2:].reshape(TRIES, blocks, 3), sizes, self.grid)
        counts = _counts(origins, sizes, self.grid, frames).sum(1)
        best = np.abs(counts - count).argmin()
        mask = _carve(origins[best].tolist(), sizes[best].tolist(), self.grid, frames)
        mask = mask.reshape(self.grid[0], -1)
        _move(mask[:frames], count - int(counts[best]), int(raw[1] % mask.shape[1]))
        context, target = _cut(mask.reshape(1, -1), budget.context, budget.target, settings)
        return context[0], target[0]


def _move(mask: np.ndarray, more: int, start: int) -> None:
    """Give `mask` `[t, h * w]` `more` context tokens (fewer if negative), in place.

    Evenly over the tubelets, because the fractions kept in each depend on it, and for tubes the
    same cells in all: the first that qualify from cell `start` on, and around the end.
    """
    if not more:
        return
    change = ~mask if more > 0 else mask
    change = np.concatenate([change[:, start:], change[:, :start]], axis=1)
    rank = change.cumsum(axis=1)
    cells = mask.shape[1]
    each = -(-abs(more) // len(mask))
    while np.minimum(rank[:, -1], each).sum() < abs(more):
        each += 1
    change &= rank <= each
    surplus = int(change.sum()) - abs(more)
    if surplus:
        last = np.flatnonzero(change & (rank == each))
        change.ravel()[last[len(last) - surplus :]] = False
    mask[:, start:] ^= change[:, : cells - start]
    mask[:, :start] ^= change[:, cells - start :]


def _kept(counts: np.ndarray, budget: int) -> np.ndarray:
    """Tokens per tubelet `[..., t]` after the cut to the lowest `budget` ids."""
    before = counts.cumsum(-1) - counts
    return np.clip(budget - before, 0, counts)


def _round(values: Sequence[float], multiple: int, most: int) -> list[int]:
    """`values` in multiples: of all ways to round up or down the best mean, then the nearest."""
    ways = itertools.product(*((math.floor(v / multiple), math.ceil(v / multiple)) for v in values))
    ways = [[min(max(n, 1) * multiple, most) for n in way] for way in ways]
    return min(
        ways, key=lambda w: (abs(sum(w) - sum(values)), np.abs(np.subtract(w, values)).sum())
    )


def _minima(settings: MaskConfig, total: np.ndarray, tokens: int) -> np.ndarray:
    """What the original would cut groups to, `[groups, 2]`, from context counts `[groups, B]`."""
    context = np.minimum(total.min(1), settings.max_keep or tokens)
    return np.stack([context, (tokens - total).min(1)], axis=1)


def _pairs(
    settings: MaskConfig, grid: Grid, minima: np.ndarray, budgets: int
) -> list[tuple[int, int]]:
    """Budgets (K, M): the mean of recorded minima `[groups, 2]`, or four with their covariance."""
    tokens, room = math.prod(grid), _context_frames(settings, grid) * grid[1] * grid[2]
    # Whole cells of a tube, so that a clip on the budget is not cut; doubled, as kernels like.
    multiple = grid[0]
    while 2 * multiple <= min(tokens // 64, 128):
        multiple *= 2
    (k, m), (dk, dm) = minima.mean(0), minima.std(0)
    both = ((minima[:, 0] - k) * (minima[:, 1] - m)).mean() / max(dk * dm, 1e-9)  # correlation
    rest = math.sqrt(max(1 - both**2, 0))
    most = min(settings.max_keep or tokens - 1, room)
    # distances from the mean, in standard deviations
    signs = {1: [(0, 0)], 4: list(itertools.product((-1, 1), repeat=2))}[budgets]
    contexts = _round([k + a * dk for a in dict.fromkeys(a for a, _ in signs)], multiple, most)
    targets = _round([m + (a * both + b * rest) * dm for a, b in signs], multiple, tokens - 2)
    pairs = list(zip([k for k in contexts for _ in range(len(signs) // len(contexts))], targets))
    if settings.full_complement:
        return [(k, tokens - k) for k, _ in pairs]
    if settings.pred_full_complement:
        return [(tokens - m, m) for _, m in pairs]
    return [(k, min(m, tokens - k)) for k, m in pairs]


def _plan(
    settings: MaskConfig,
    grid: Grid,
    recorded: np.ndarray,
    pairs: list[tuple[int, int]],
    like: np.ndarray,
) -> list[_Budget]:
    """Counts before the cut and their chances for every budget.

    Args:
      settings: Of the mask.
      grid: Tokens (t, h, w).
      recorded: Context tokens per tubelet `[groups, B, t]`.
      pairs: Budgets (K, M), each for an equal share of the steps.
      like: Bool `[budgets, groups]`, the groups from which steps of a budget take their block.
    """
    tokens, cells, frames = math.prod(grid), grid[1] * grid[2], _context_frames(settings, grid)
    total = recorded.sum(2)

    def profiles(counts: np.ndarray, k: np.ndarray, m: np.ndarray) -> np.ndarray:
        """Share of each tubelet `[..., 2t]` kept as context and as target."""
        if settings.full_complement:
            context = _kept(counts, k)
            target = cells - context
        elif settings.pred_full_complement:
            target = _kept(cells - counts, m)
            context = cells - target
        else:
            context, target = _kept(counts, k), _kept(cells - counts, m)
        return np.concatenate([context, target], axis=-1) / cells

    k, m = _minima(settings, total, tokens).T[..., None, None]
    aim = profiles(recorded, k, m).mean((0, 1))
    columns, start, levels = [], [], []
    for i, (k, m) in enumerate(pairs):
        low = 2 if settings.pred_full_complement else k
        high = min(frames * cells, tokens - 1 if settings.full_complement else tokens - m)
        # Multiples of t: the counts that tubes can have.
        step = grid[0] * max(1, -(-(high - low) // (LEVELS * grid[0])))
        level = np.arange(-(-low // grid[0]) * grid[0], high + 1, step)
        level = level if len(level) else np.array([high])
        clips = recorded[like[i]].reshape(-1, grid[0])
        # A clip with another count: the recorded shapes in time, stretched to it. Exact for tubes.
        shapes = clips[:: max(1, len(clips) // 256)]
        shapes = np.unique(shapes / shapes.sum(1, keepdims=True), axis=0)
        stretched = np.minimum(level[:, None, None] * shapes, cells)
        columns.append(profiles(stretched, k, m).mean(1))
        nearest = np.abs(np.clip(clips.sum(1), low, high)[:, None] - level).argmin(1)
        start.append(np.bincount(nearest, minlength=len(level)) / len(clips))
        levels.append(level)
    return _fit(pairs, levels, columns, start, aim)


def _fit(pairs, levels, columns, start, aim) -> list[_Budget]:
    """Chances of the counts: near the recorded ones `start`, with the mean profile `aim`."""
    sizes = [len(level) for level in levels]
    own = np.repeat(np.eye(len(sizes)), sizes, axis=1)  # sums over the counts of one budget
    mean = np.concatenate(columns).T / len(sizes)
    matrix = np.concatenate([100 * mean, np.eye(sum(sizes)), 1000 * own])
    right = np.concatenate([100 * aim, *start, 1000 * np.ones(len(sizes))])
    weights = np.split(nnls(matrix, right)[0], np.cumsum(sizes)[:-1])
    budgets = []
    for (k, m), level, weight in zip(pairs, levels, weights):
        chances = np.rint(weight.cumsum() / weight.sum() * 2**32).astype(np.uint64)
        budgets.append(_Budget(k, m, level, chances))
    return budgets
