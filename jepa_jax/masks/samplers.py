"""What draws the masks of a run, by the name that stands in its config."""

from __future__ import annotations

import functools
import math
from typing import Protocol

from jepa_jax.config import (
    MaskConfig,
    MaskedImageConfig,
    MaskedPixelsConfig,
    MaskedVideoConfig,
)
from jepa_jax.errors import ConfigError
from jepa_jax.masks import image, multiblock
from jepa_jax.masks.random import RandomSampler
from jepa_jax.masks.tube import TubeSampler


class MaskSampler(Protocol):
    """Masks as a pure function of (seed, step, position); see StaticSampler."""

    def shapes(self, step: int) -> tuple[tuple[int, int], ...]: ...

    def sample(self, step: int, position: int) -> tuple[multiblock.Pair, ...]: ...


def mask_sampler(config: MaskedVideoConfig, frames: int, rows: int) -> MaskSampler:
    """What draws the masks of a run's clips of `frames` frames, `rows` of them in a global batch.

    Raises:
      ConfigError: no such sampler, or masks that cannot work on the clips' grid.
    """
    side = config.data.crop // config.encoder.patch
    grid = (config.tubelets(frames), side, side)
    name, masks = config.masks_of(frames)
    if config.mask_sampler not in SAMPLERS:
        raise ConfigError(f'mask_sampler: {config.mask_sampler!r} is none of {", ".join(SAMPLERS)}')
    if any(mask.tube for mask in masks):
        return TubeSampler(masks, grid, config.seed)
    samplers = OF_IMAGES if config.is_image(frames) else SAMPLERS
    return samplers[config.mask_sampler](masks, grid, config.seed, rows, name)


def pixel_sampler(config: MaskedPixelsConfig, frames: int) -> MaskSampler:
    """What draws the masks of a run of MAE or VideoMAE."""
    side = config.data.crop // config.encoder.patch
    grid = (frames // config.encoder.tubelet, side, side)
    return RandomSampler(grid, config.mask_ratio, config.kind == 'videomae', config.seed)


def image_mask_sampler(config: MaskedImageConfig, rows: int) -> MaskSampler:
    """What draws the masks of a run's images, `rows` of them in a global batch; the targets of a
    sample are [targets, M].

    Raises:
      ConfigError: masks that cannot work on the images' grid.
    """
    side = config.data.crop // config.encoder.patch
    make = image.SAMPLERS[config.mask_sampler]
    return make(config.masks, (side, side), config.seed, rows, 'masks')


class _ReferenceMasks:
    """The original's masks behind the interface of StaticSampler.

    Their shape is the minimum over the global batch, so every process draws all of its rows.
    """

    def __init__(
        self, settings: list[MaskConfig], grid: multiblock.Grid, seed: int, rows: int, name: str
    ) -> None:
        self._samplers = [
            multiblock.ReferenceSampler(each, grid, f'{name}[{i}]')
            for i, each in enumerate(settings)
        ]
        self._seed, self._rows = seed, rows
        self._last: tuple[int, tuple[multiblock.Pair, ...]] = (-1, ())

    def shapes(self, step: int) -> tuple[tuple[int, int], ...]:
        return tuple((k.shape[1], m.shape[1]) for k, m in self._batch(step))

    def sample(self, step: int, position: int) -> tuple[multiblock.Pair, ...]:
        row = position % self._rows
        return tuple((k[row], m[row]) for k, m in self._batch(step))

    def _batch(self, step: int) -> tuple[multiblock.Pair, ...]:
        last, batch = self._last
        if last != step:
            batch = multiblock.reference_batch(self._samplers, self._seed, step, self._rows)
            self._last = step, batch
        return batch


def _static_masks(
    settings: list[MaskConfig],
    grid: multiblock.Grid,
    seed: int,
    rows: int,
    name: str,
    budgets: int = 4,
    clips: int = 0,
) -> multiblock.StaticSampler:
    """Shapes must not depend on the devices, so the original's clips a GPU stand for ours."""
    del rows
    tokens = math.prod(grid)
    clips = clips or next(clips for most, clips in _CLIPS_A_GPU if tokens <= most)
    return multiblock.StaticSampler(settings, grid, seed, clips, budgets, name)


# tokens a clip, clips a GPU: 16 frames at 256 px, 64 frames at 256 px, larger (vjepa2 §11)
_CLIPS_A_GPU = ((2048, 24), (8192, 12), (float('inf'), 6))

SAMPLERS = {
    'static': _static_masks,
    'single': functools.partial(_static_masks, budgets=1),
    'reference': _ReferenceMasks,
}
# beside four programs for videos: images add none. The original's L and g have 72 of them on a GPU
# (vjepa2_1 §9.4)
_images = functools.partial(_static_masks, budgets=1, clips=72)
OF_IMAGES = {'static': _images, 'single': _images, 'reference': _ReferenceMasks}
