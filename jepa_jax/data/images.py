"""Lists of images, or of videos whose frames are taken one by one -> batches for I-JEPA."""

from __future__ import annotations

import numpy as np

from jepa_jax.data import Batch, Group
from jepa_jax.data.videos import VideoStream
from jepa_jax.masks import Mask
from jepa_jax.masks.samplers import MaskSampler, image_mask_sampler


class ImageStream(VideoStream):
    """Clips of one frame, each with a context [K] and several targets [targets, M].

    Args, Raises: as VideoStream, for a MaskedImageConfig.
    """

    def sampler(self, frames: int, rows: int) -> MaskSampler:
        return image_mask_sampler(self.config, rows)

    def empty(self, step: int) -> Batch:
        crop, targets = self.config.data.crop, self.config.masks.targets
        ((group, order),) = zip(self.groups, self.orders)
        ((k, m),), rows = group.sampler.shapes(step), order.share
        mask = Mask(np.empty((rows, k), np.int32), np.empty((rows, targets, m), np.int32))
        return Batch((Group(np.empty((rows, 1, crop, crop, 3), np.uint8), (mask,)),))
