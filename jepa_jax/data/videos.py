"""Lists of videos and images -> batches of clips and masks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from jepa_jax.config import MaskedVideoConfig
from jepa_jax.data import Batch, Group
from jepa_jax.data.augment import augment
from jepa_jax.data.sources import open_source
from jepa_jax.data.stream import AUGMENT, Order, Row, Stream
from jepa_jax.errors import ConfigError
from jepa_jax.masks import Mask
from jepa_jax.masks.samplers import MaskSampler, mask_sampler, pixel_sampler


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips of one frame count: from which lists, how many rows, and what draws their masks."""

    frames: int
    lists: tuple[int, ...]
    quota: int  # rows a device and accumulation part
    rows: int  # rows a step, over all devices
    sampler: MaskSampler


class VideoStream(Stream):
    """Clips of `config.data.lists` and their masks; a group of rows for each frame count.

    Args:
      prepared: nothing is.
      devices, process_index, process_count: see Stream.

    Raises ConfigError for lists that cannot be opened and batches that cannot be split.
    """

    many = 0  # grain orders lists of any length, as it always has

    def __init__(
        self,
        config: MaskedVideoConfig,
        prepared: None = None,
        *,
        devices: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        del prepared
        data = config.data
        if not data.lists:
            raise ConfigError('data.lists is empty; at least one list is needed')
        sources = [open_source(entry, data, i) for i, entry in enumerate(data.lists)]
        super().__init__(
            config,
            sources,
            devices=devices,
            process_index=process_index,
            process_count=process_count,
        )

    def plan(self) -> tuple[Order, ...]:
        config, lists = self.config, self.config.data.lists
        quotas = split_rows(config, config.optim.batch // self.parts)
        groups, orders = [], []
        for frames, quota in quotas.items():
            own = tuple(
                i for i, e in enumerate(lists) if (e.frames or config.data.frames) == frames
            )
            rows = quota * self.parts
            groups.append(Clips(frames, own, quota, rows, self.sampler(frames, rows)))
            orders.append(self.order(own, rows, [lists[i].weight for i in own]))
        self.groups = tuple(groups)
        return tuple(orders)

    @property
    def facts(self) -> dict[str, dict]:
        return {'rows': {str(group.frames): group.rows for group in self.groups}}

    def check_resumed(self, stored: Mapping[str, Any]) -> None:
        """Where clips of several frame counts are mixed, their rows are whole in every part of a
        device: other devices or parts may make another mixture."""
        before, now = stored.get('rows'), self.facts['rows']
        if before in (None, now):
            return
        words = [
            ' and '.join(f'{n} of {frames} frames' for frames, n in rows.items())
            for rows in (before, now)
        ]
        raise ConfigError(
            f'the clips of a step were {words[0]}, in {self.parts} parts (devices x '
            f'optim.accumulate) they would be {words[1]}: another mixture is another run; choose '
            'devices and optim.accumulate that give the first'
        )

    def sampler(self, frames: int, rows: int) -> MaskSampler:
        """What draws the masks of clips of `frames` frames, `rows` of them in a global batch."""
        return mask_sampler(self.config, frames, rows)

    def empty(self, step: int) -> Batch:
        crop = self.config.data.crop
        groups = []
        for group, order in zip(self.groups, self.orders):
            rows = order.share
            masks = tuple(
                Mask(np.empty((rows, k), np.int32), np.empty((rows, m), np.int32))
                for k, m in group.sampler.shapes(step)
            )
            groups.append(Group(np.empty((rows, group.frames, crop, crop, 3), np.uint8), masks))
        return Batch(tuple(groups))

    def read(self, row: Row) -> None:
        """Fills a row: reads, cuts, draws masks."""
        group, into = self.groups[row.group], row.into.groups[row.group]
        frames = self.lists[row.list].read(row.record, group.frames, row.rng())
        start = time.perf_counter()
        augment(frames, self.config.data.augment, row.rng(AUGMENT), into.clips[row.number])
        cut = time.perf_counter()
        drawn = group.sampler.sample(row.step, row.position)
        for mask, (context, target) in zip(into.masks, drawn):
            mask.context[row.number], mask.target[row.number] = context, target
        row.seconds.update(augment=cut - start, masks=time.perf_counter() - cut)

    def gather(self, step: int, into: Batch, rows: list[None]) -> Batch:
        return into

    def name(self, row: Row) -> str:
        return self.lists[row.list].name(row.record)

    def place(self, list_index: int) -> str:
        return f'data.lists[{list_index}] {self.config.data.lists[list_index].path!r}'

    def shapes(self, step: int) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Per frame count and mask the numbers of context and target tokens at a step."""
        return tuple(group.sampler.shapes(step) for group in self.groups)

    @property
    def few_shapes(self) -> bool:
        """Whether token counts come back: the original's sampler has new ones at many a step."""
        return self.config.mask_sampler != 'reference'

    @property
    def programs(self) -> list[tuple[tuple[tuple[int, int], ...], ...]]:
        if not self.few_shapes:
            return []
        # at most four, drawn with equal chance: 256 steps miss one with a chance of 1e-31
        return sorted({self.shapes(step) for step in range(256)})

    def describe(self) -> list[str]:
        lines = []
        for i, (entry, source) in enumerate(zip(self.config.data.lists, self.lists)):
            left_out = ''.join(f', {n} left out: {why}' for why, n in source.skipped.items())
            frames = entry.frames or self.config.data.frames
            path = entry.path or '(default folder)'
            lines.append(
                f'list {i}: {entry.kind} {path}: {len(source)} records{left_out}; '
                f'{frames} frames, weight {entry.weight:g}'
            )
        for i, group in enumerate(self.groups):
            lists = ', '.join(map(str, group.lists))
            lines.append(
                f'group {i}: {group.frames} frames from list {lists}: {group.quota} rows a device '
                f'and part, {group.rows} a step'
            )
        return lines


def split_rows(config: MaskedVideoConfig, rows: int) -> dict[int, int]:
    """Rows of each frame count in a device's part of the batch: largest remainder of weights.

    Frame counts come in the order in which the lists name them first: their position selects the
    mask token. Raises ConfigError when one would get no row.
    """
    weights: dict[int, float] = {}
    for i, entry in enumerate(config.data.lists):
        if not 0 < entry.weight < float('inf'):
            raise ConfigError(
                f'data.lists[{i}].weight: {entry.weight} is not above 0; drop the list instead'
            )
        frames = entry.frames or config.data.frames
        weights[frames] = weights.get(frames, 0.0) + entry.weight
    total = sum(weights.values())
    shares = {frames: rows * weight / total for frames, weight in weights.items()}
    quotas = {frames: int(share) for frames, share in shares.items()}
    by_remainder = sorted(shares, key=lambda frames: quotas[frames] - shares[frames])
    for frames in by_remainder[: rows - sum(quotas.values())]:
        quotas[frames] += 1
    for frames, quota in quotas.items():
        if not quota:
            share = weights[frames] / total
            raise ConfigError(
                f'data.lists: clips of {frames} frames weigh {share:.3g} of all, which is no row '
                f'of the {rows} that a device takes at once; raise their weight or optim.batch, or '
                'lower optim.accumulate'
            )
    return quotas


class PixelStream(VideoStream):
    """Clips or single frames of `config.data.lists`, and the masks of MAE or VideoMAE."""

    few_shapes = True  # as many tokens as the ratio says, at every step

    def sampler(self, frames: int, rows: int) -> MaskSampler:
        return pixel_sampler(self.config, frames)
