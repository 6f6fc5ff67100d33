"""An encoder as a function from clips to features; and what shapes the other nets of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import inputs
from jepa_jax.described import Described
from jepa_jax.errors import InputError
from jepa_jax.models.pooler import PoolerConfig
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import Net

FRAMES = 16  # of a window, unless asked otherwise


@dataclasses.dataclass(frozen=True, repr=False)
class Loaded(Described):
    """What shapes a net, and its weights."""

    config: Any  # ViTConfig, PredictorConfig, ...
    params: dict


@dataclasses.dataclass(frozen=True, repr=False)
class ProbeHead(Described):
    """A probe and how its clips are made. (reference: vjepa2 §9.1, §11.2)"""

    config: PoolerConfig
    classes: dict[str, int]  # head -> number of classes
    params: dict
    # 'last' block | these blocks, one after the other | 'future': the last and then what the
    # predictor expects one second later (action anticipation)
    reads: str | tuple[int, ...] = 'last'
    frames: int = FRAMES
    step: int = 4  # every n-th frame of the video; with 'future' as many as make 8 a second
    segments: int = 1  # clips of a video that are read together
    # and of those that were made here:
    fps: float = 0.0  # frames a second, in place of `step`
    crop: int = 0  # pixels; 0: as the model was trained
    tokens: int = 0  # most tokens of a clip, as means over boxes; 0: all
    several: bool = False  # a video may have several labels: a probability for each
    labels: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


class Encoder:
    """A function from clips to features.

    tokens = encoder(clips)  # uint8 [B, T, H, W, 3] -> float32 [B, N, D]
    """

    def __init__(self, config: ViTConfig, params: dict):
        self.config, self.params = config, params
        self._net = Net(lambda rngs: ViT(config, rngs=rngs))
        self._run = jax.jit(self.apply, static_argnames='levels')

    def apply(
        self,
        params: dict,
        clips: jax.Array,
        keep: jax.Array | None = None,
        *,
        levels: tuple[int, ...] = (),
    ) -> Any:
        """The encoder as a pure function, for use inside jit, grad, vmap: nothing is compiled,
        looked at or moved here, and gradients go to `params` and to float clips.

        loss = lambda params: head(encoder.apply(params, clips)).mean()
        grads = jax.jit(jax.grad(loss))(encoder.params)

        Args and result as of a call; params: a tree like `encoder.params`. Activations are computed
        again in the backward pass (config.remat).

        Raises:
          ValueError: another tree of parameters, a clip below one tubelet; while it is traced.
        """
        return self._net(params, clips, keep, levels=self.blocks(levels))

    def blocks(self, levels: Sequence[int]) -> tuple[int, ...]:
        """Blocks from 0, where -1 is the last. Raises InputError: not there, or not ascending."""
        depth = self.config.depth
        result = tuple(i + depth if -depth <= i < 0 else i for i in levels)
        if (
            result == self.config.levels
        ):  # of a shallow encoder the same block may be several levels
            return result
        if list(result) != sorted(set(result)) or not all(0 <= i < depth for i in result):
            raise InputError(
                f'layers {tuple(levels)}: must ascend within 0 to {depth - 1}, or -{depth} to -1 '
                'counted from the end'
            )
        return result

    def __call__(
        self,
        clips: np.ndarray | jax.Array,
        keep: jax.Array | None = None,
        *,
        levels: tuple[int, ...] = (),
    ) -> Any:
        """Features of the clips' tokens, row-major over time, y, x.

        Args:
          clips: [B, T, H, W, 3], uint8, or floats with ImageNet's mean and deviation taken out. Any
            multiple of the tubelet and the patch; nothing is resized.
          keep: int32 [B, K]: token ids, where the encoder is to see these alone.
          levels: blocks, from 0, or from the end, -1; then a list, the features after each.

        Returns:
          [B, N or K, D] float32.

        Raises:
          InputError: another shape, or pixels that cannot have been meant.
        """
        if not isinstance(clips, jax.Array):
            clips = inputs.as_arrays(clips)
        shape = list(getattr(clips, 'shape', ()))  # a path or a list of clips has none
        if len(shape) != 5 or shape[-1] != 3:
            raise InputError(f'clips {shape}: must be one array [B, T, H, W, 3], channels last')
        if isinstance(clips, np.ndarray):  # of those on a device the values are not looked at
            inputs.check_pixels(clips, clips.dtype != np.uint8)
        return self._run(self.params, jnp.asarray(clips), keep, levels=self.blocks(levels))

    def __repr__(self) -> str:
        return f'Encoder({shape_of(self.config, self.params)})'


def shape_of(config: Any, params: dict) -> str:
    """`303.9 M parameters, 24 blocks, width 1024, 16 heads`"""
    count = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    return (
        f'{count:.3g} M parameters, {config.depth} blocks, width {config.width}, '
        f'{config.heads} heads'
    )
