"""Masks of I-JEPA: one context and several targets, blocks of a grid of patches (h, w).

Of every image the targets are blocks of one size, which may overlap; the context is a larger block
without what the targets cover. Blocks never touch the last row and column, as in the original.
(reference: family §1.3)

`ReferenceSampler` is the original bit for bit: its contexts are cut to the fewest tokens in a
batch, another shape nearly every step.

`StaticSampler` has at most four shapes, a function of the step. The one number that shapes the
targets is cut into four equal ranges; of each it takes one size, so that no target is cut, and
their mean area is nearest the original's. The context of such a step is cut to what the original
cuts it to on average. An image whose blocks leave less is drawn anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from jepa_jax.config import ImageMaskConfig
from jepa_jax.errors import ConfigError
from jepa_jax.masks.draws import (
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
from jepa_jax.masks.multiblock import Pair

Grid = tuple[int, int]

FAILURES = 20  # draws in a row without enough context, after which a target counts no more
REDRAWS = 100  # such rounds after which a setting is called impossible
TRIES = 16  # draws of an image's blocks, until one leaves enough context
RECORDED = 8192  # images a size of target whose contexts are counted
FINE = 4096  # steps in which the range of the size is gone through


def _sizes(area: tuple[float, float], ratio: tuple[float, float], grid: Grid, u) -> np.ndarray:
    """Block sizes `[n, 2]` (h, w) for uniforms `[n]`: one number for area and ratio."""
    u = np.asarray(u, np.float64).reshape(-1)
    tokens = (grid[0] * grid[1] * (area[0] + u * (area[1] - area[0]))).astype(np.int64)
    ratios = ratio[0] + u * (ratio[1] - ratio[0])
    sides = np.rint(np.sqrt(np.stack([tokens * ratios, tokens / ratios], 1)))  # halves to even
    return np.minimum(sides, np.subtract(grid, 1)).astype(np.int64)


def _target_sizes(settings: ImageMaskConfig, grid: Grid, u) -> np.ndarray:
    return _sizes(settings.target_scale, settings.aspect_ratio, grid, u)


def _context_sizes(settings: ImageMaskConfig, grid: Grid, u) -> np.ndarray:
    return _sizes(settings.context_scale, (1.0, 1.0), grid, u)


def check(settings: ImageMaskConfig, grid: Grid, name: str = 'masks') -> None:
    """Refuses blocks that cannot work on a grid (h, w).

    Raises:
      ConfigError: one line with the field, what was found and what is allowed.
    """
    shown = 'x'.join(map(str, grid))
    if min(grid) < 2:
        raise ConfigError(f'{name}: a grid of {shown} patches, must be at least 2x2')
    u = (np.arange(FINE) + 0.5) / FINE
    for field, sizes in (
        ('target_scale', _target_sizes(settings, grid, u)),
        ('context_scale', _context_sizes(settings, grid, u)),
    ):
        if (least := int(sizes.prod(1).min())) <= settings.min_keep:
            raise ConfigError(
                f'{name}.{field} = {getattr(settings, field)}: blocks of {least} patches of a '
                f'{shown} grid, must be more than min_keep = {settings.min_keep}: larger images, '
                'smaller patches, or a lower min_keep'
            )


class ReferenceSampler:
    """The original's collator: same ids from the same torch seeds.

    contexts: of an image; more than one is for tests alone.
    """

    def __init__(
        self, settings: ImageMaskConfig, grid: Grid, name: str = 'masks', contexts: int = 1
    ):
        """Raises ConfigError as `check` does."""
        check(settings, grid, name)
        self.settings, self.grid, self.contexts = settings, tuple(grid), contexts

    def sizes(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(h, w) of all targets and of all contexts of a call; seed: the original's counter."""
        u = torch_uniforms(torch_stream(seed), 2)
        return (
            _target_sizes(self.settings, self.grid, u[0])[0],
            _context_sizes(self.settings, self.grid, u[1])[0],
        )

    def __call__(
        self, seed: int, rng: np.random.RandomState, batch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """One call of the original's collator.

        Args:
          seed: Call counter, from 0, seeds the sizes of the blocks.
          rng: Global torch stream that places them, from `torch_stream`; advanced.
          batch: Images, B.

        Returns:
          Contexts `[contexts, B, K]` and targets `[targets, B, M]`, int32, ascending in each row.

        Raises:
          RuntimeError: No context after many draws, where the original would not return.
        """
        s = self.settings
        target, context = self.sizes(seed)
        contexts, targets = [], []
        for _ in range(batch):
            blocks = [self._block(rng, target) for _ in range(s.targets)]
            hidden = [] if s.allow_overlap else blocks
            targets.append([block.ravel().nonzero()[0] for block in blocks])
            contexts.append([self._context(rng, context, hidden) for _ in range(self.contexts)])
        return _cut(contexts), _cut(targets)

    def _block(self, rng: np.random.RandomState, size: np.ndarray) -> np.ndarray:
        """Bool `[h, w]` of a block anywhere but in the last row and column."""
        top, left = words(rng, 2) % np.subtract(self.grid, size)
        mask = np.zeros(self.grid, bool)
        mask[top : top + size[0], left : left + size[1]] = True
        return mask

    def _context(
        self, rng: np.random.RandomState, size: np.ndarray, hidden: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Ids of a context; after FAILURES draws one target fewer is kept out of it, from the
        last."""
        for rounds in range(REDRAWS):
            out = hidden[: max(len(hidden) - rounds, 0)]
            for _ in range(FAILURES):
                mask = self._block(rng, size)
                for block in out:
                    mask &= ~block
                ids = mask.ravel().nonzero()[0]
                if len(ids) > self.settings.min_keep:
                    return ids
        raise RuntimeError(f'no context of more than {self.settings.min_keep} patches')


def _cut(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Ids `[B][n]` of any lengths -> `[n, B, shortest]`: the first of each."""
    shortest = min(len(ids) for row in rows for ids in row)
    cut = [[ids[:shortest] for ids in row] for row in rows]
    return np.asarray(cut, np.int32).swapaxes(0, 1)


class ReferenceMasks:
    """The original's masks of a whole global batch behind the interface of StaticSampler."""

    def __init__(
        self, settings: ImageMaskConfig, grid: Grid, seed: int, rows: int, name: str = 'masks'
    ):
        self._sampler, self._seed, self._rows = ReferenceSampler(settings, grid, name), seed, rows
        self._last: tuple[int, tuple[np.ndarray, np.ndarray] | None] = (-1, None)

    def shapes(self, step: int) -> tuple[tuple[int, int], ...]:
        context, targets = self._batch(step)
        return ((context.shape[-1], targets.shape[-1]),)

    def sample(self, step: int, position: int) -> tuple[Pair, ...]:
        context, targets = self._batch(step)
        row = position % self._rows
        return ((context[0, row], targets[:, row]),)

    def _batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        last, batch = self._last
        if last != step:
            rng = np.random.RandomState([self._seed, step, *self._sampler.grid])
            batch = self._sampler(step, rng, self._rows)
            self._last = step, batch
        return batch


class StaticSampler:
    """Masks whose shapes are a function of the step, at most `budgets` in a run, no padding."""

    def __init__(
        self,
        settings: ImageMaskConfig,
        grid: Grid,
        seed: int,
        budgets: int = 4,
        name: str = 'masks',
    ):
        """Raises ConfigError as `check` does."""
        check(settings, grid, name)
        self.settings, self.grid, self.seed = settings, tuple(grid), seed
        self._targets = self._representatives(budgets)
        self._contexts = self._kept()

    def _representatives(self, budgets: int) -> list[np.ndarray]:
        """A size of target of each equal range of the number that shapes it: of all choices the one
        with the best mean area, then with the areas nearest those of the ranges."""
        sizes = _target_sizes(self.settings, self.grid, (np.arange(FINE) + 0.5) / FINE)
        ranges = np.array_split(sizes, budgets)
        means = [part.prod(1).mean() for part in ranges]
        some = [np.unique(part, axis=0) for part in ranges]
        some = [
            part[np.abs(part.prod(1) - mean).argsort(kind='stable')[:4]]
            for part, mean in zip(some, means)
        ]

        def off(choice) -> tuple[float, float]:
            far = [size.prod() - mean for size, mean in zip(choice, means)]
            return abs(sum(far)), sum(map(abs, far))

        return list(min(itertools.product(*some), key=off))

    def _kept(self) -> list[int]:
        """Context tokens of each budget: what the original keeps on average where the targets have
        that size, moved so that the mean is the original's."""
        if self.settings.allow_overlap:  # contexts are whole blocks, of which the smallest fits
            return [int(self._minima(size, 0).min()) for size in self._targets]
        means = [self._minima(size, i).mean() for i, size in enumerate(self._targets)]
        shift = self._minima(None, len(means), 4).mean() - np.mean(means)
        return [max(1, round(float(mean + shift))) for mean in means]

    def _minima(self, target: np.ndarray | None, stream: int, times: int = 1) -> np.ndarray:
        """The fewest context tokens in groups of `settings.group` images whose targets have a size,
        or None: one drawn for each group."""
        s, rng = self.settings, rng_of(0, 0, RECORD, stream)
        groups = max(1, times * RECORDED // s.group)
        u, v = (np.repeat(uniforms(rng.random_raw(groups)), s.group) for _ in range(2))
        if target is None:
            target = _target_sizes(s, self.grid, v)[:, None]
        raw = rng.random_raw(len(u) * (s.targets + 1) * 2).reshape(len(u), s.targets + 1, 2)
        counts = self._masks(raw, target, _context_sizes(s, self.grid, u))[0]
        counts = counts.reshape(len(u), -1).sum(1)
        # the original draws those anew
        least = np.where(counts > s.min_keep, counts, self.grid[0] * self.grid[1])
        return least.reshape(groups, s.group).min(1)

    def _masks(self, raw: np.ndarray, target: np.ndarray, context: np.ndarray):
        """Bools `[n, h, w]` of contexts and `[n, targets, h, w]` of targets, for words `[n, targets
        + 1, 2]` (top, left) and sizes `[2]` or `[n, 1, 2]`, and `[n or 1, 2]`."""
        many = len(raw), self.settings.targets, 2
        sizes = np.concatenate(
            [np.broadcast_to(target, many), np.broadcast_to(context[:, None], (many[0], 1, 2))], 1
        )
        start = (raw % np.subtract(self.grid, sizes).astype(raw.dtype)).astype(np.int64)
        rows, columns = (
            (np.arange(side) >= start[..., axis, None])
            & (np.arange(side) < (start + sizes)[..., axis, None])
            for axis, side in enumerate(self.grid)
        )
        blocks = rows[..., :, None] & columns[..., None, :]
        targets, contexts = blocks[:, :-1], blocks[:, -1]
        if not self.settings.allow_overlap:
            contexts = contexts & ~targets.any(1)
        return contexts, targets

    @property
    def all_shapes(self) -> frozenset[tuple[tuple[int, int], ...]]:
        """Everything that `shapes` can return: one compiled program each."""
        return frozenset(map(self._shapes, range(len(self._targets))))

    def shapes(self, step: int) -> tuple[tuple[int, int], ...]:
        """(K, M) at `step`, the same on every device and process; M of each target."""
        return self._shapes(self._budget(step))

    def _shapes(self, budget: int) -> tuple[tuple[int, int], ...]:
        return ((self._contexts[budget], int(self._targets[budget].prod())),)

    def _budget(self, step: int) -> int:
        """n steps in a row visit all n budgets."""
        n = len(self._targets)
        return int(rng_of(self.seed, step // n, ORDER).random_raw(n).argsort()[step % n])

    def sample(self, step: int, position: int) -> tuple[Pair, ...]:
        """The masks of one image, a pure function of (seed, step, position).

        Returns:
          Context ids `[K]` and target ids `[targets, M]`, int32, ascending; one pair.
        """
        s, budget = self.settings, self._budget(step)
        keep, target = self._contexts[budget], self._targets[budget]
        u = uniforms(rng_of(self.seed, step, SIZE).random_raw(1))
        raw = rng_of(self.seed, step, CLIP, position).random_raw(TRIES * (s.targets + 1) * 2)
        raw = raw.reshape(TRIES, s.targets + 1, 2)
        size, most = _context_sizes(s, self.grid, u), -1
        for draw in raw:
            drawn = self._masks(draw[None], target, size)
            if (count := np.count_nonzero(drawn[0])) > most:
                most, (contexts, targets) = count, drawn
            if count >= keep:
                break
        context, hidden = contexts.ravel(), targets.reshape(s.targets, -1)
        ids = context.nonzero()[0]
        if len(ids) < keep:  # beside the block, and at last in a target, as the original does
            others = np.argsort(hidden.any(0)[~context], kind='stable')
            more = (~context).nonzero()[0][others[: keep - len(ids)]]
            ids = np.sort(np.concatenate([ids, more]))
        pair = ids[:keep].astype(np.int32), np.stack([row.nonzero()[0] for row in hidden])
        return ((pair[0], pair[1].astype(np.int32)),)


SAMPLERS = {
    'static': lambda settings, grid, seed, rows, name: StaticSampler(settings, grid, seed, 4, name),
    'single': lambda settings, grid, seed, rows, name: StaticSampler(settings, grid, seed, 1, name),
    'reference': ReferenceMasks,
}
