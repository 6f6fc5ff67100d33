"""The programs of a run of I-JEPA, and what a step of it is worth."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from jepa_jax import build, flops
from jepa_jax.config import MaskedImageConfig
from jepa_jax.data import Batch, Group
from jepa_jax.data.images import ImageStream
from jepa_jax.masks import Mask
from jepa_jax.masks.samplers import image_mask_sampler
from jepa_jax.memory import rows_at_a_time
from jepa_jax.objectives import Program
from jepa_jax.objectives.programs import STEPS


def masked_image(config: MaskedImageConfig, devices: int) -> list[Program]:
    """Of the first steps: up to four sets of token counts.

    Raises:
      ConfigError: the batch does not split over the devices.
    """
    rows_at_a_time(config.optim.batch, devices, config.optim.accumulate)
    sampler, tokens = image_mask_sampler(config, config.optim.batch), _tokens(config)
    rows, crop, targets = config.optim.batch, config.data.crop, config.masks.targets
    programs: dict[tuple, Program] = {}
    for step in range(STEPS):
        ((k, m),) = shapes = sampler.shapes(step)
        like = Batch(
            (
                Group(
                    jax.ShapeDtypeStruct((rows, 1, crop, crop, 3), np.uint8),
                    (
                        Mask(
                            jax.ShapeDtypeStruct((rows, k), np.int32),
                            jax.ShapeDtypeStruct((rows, targets, m), np.int32),
                        ),
                    ),
                ),
            )
        )
        programs.setdefault(
            shapes,
            Program(
                functools.partial(_noise_and_masks, like, sampler, step),
                worth(config, shapes),
                frozenset({tokens, k, k + m}),
                f'context -> target tokens {k} -> {targets} x {m}',
                like,
            ),
        )
    return list(programs.values())


def _tokens(config: MaskedImageConfig) -> int:
    return (config.data.crop // config.encoder.patch) ** 2


def _noise_and_masks(like: Batch, sampler, step: int, seed: int) -> Batch:
    clips = like.groups[0].clips
    noise = np.random.default_rng(seed).integers(0, 256, clips.shape, np.uint8)
    drawn = [sampler.sample(step, row)[0] for row in range(clips.shape[0])]
    return Batch((Group(noise, (Mask(*map(np.stack, zip(*drawn))),)),))


def worth(config: MaskedImageConfig, shapes: tuple[tuple[int, int], ...]) -> dict[str, int]:
    """FLOPs of a step, by what they are spent on: the predictor runs once a target."""
    ((k, m),) = shapes
    vit = build.video_encoder(config)
    predictor, rows = build.image_predictor(config, vit), config.optim.batch
    once = flops.TRAINED * flops.encoder(vit, k) - flops.patch_embed(vit, k)
    passes = flops.TRAINED * config.masks.targets
    return {
        'target': rows * flops.encoder(vit, _tokens(config)),
        'context': rows * once,  # pixels need no gradient
        'predictor': rows * passes * flops.predictor(predictor, k, m),
    }


def masked_image_workload(
    config: MaskedImageConfig, stream: ImageStream
) -> Callable[[int], tuple[int, int]]:
    """Step -> FLOPs and tokens, by its token counts."""
    of = functools.lru_cache(lambda shapes: sum(worth(config, shapes).values()))
    tokens = config.optim.batch * _tokens(config)
    return lambda step: (of(stream.shapes(step)[0]), tokens)
