"""A model to plan with: an encoder for frames and a world model of their features."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import pretrained
from jepa_jax.config import RobotConfig
from jepa_jax.config.check import types_and_ranges
from jepa_jax.config.store import from_dict
from jepa_jax.data.robot import Contract, Measured, view
from jepa_jax.errors import ConfigError, ConvertError, PlanError
from jepa_jax.models.ac_predictor import ACPredictor, ACPredictorConfig, encode_frames
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import ONCE, Net
from jepa_jax.planning.world_model import ACWorldModel
from jepa_jax.weights import zoo

log = logging.getLogger(__name__)

FRAMES = 7  # that the released predictor was shown: all but the last of 8 (reference: vjepa2 §7.4)
DEPENDS = 0.005  # of the energy of doing nothing, by which those of actions must differ
RANDOM_TINY = dict(width=96, depth=2, heads=4)  # the predictor of random:tiny


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of the robot on whose recordings a model was trained."""

    recordings: RobotConfig | None = None  # None: nothing says which they were
    measured: Measured | None = None  # what they held; None: it is not known
    ended: tuple[str, str] | None = None  # the word that the run ended with, and its sentence

    @classmethod
    def of(cls, name: str, told: dict[str, Any]) -> Known:
        """told: as jepa_jax.weights.robot has it. Raises ConvertError: it is not understood."""
        try:
            recordings = (
                from_dict(told['recordings'], RobotConfig) if 'recordings' in told else None
            )
            if recordings:
                types_and_ranges(recordings)
            measured = Measured.stored(told['measured']) if 'measured' in told else None
            word, sentence = map(str, told.get('verdict', ('', '')))
        except (ConfigError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConvertError(
                f'{name}: what it says of its robot is not understood ({error})'
            ) from None
        return cls(recordings, measured, (word, sentence) if word else None)

    @property
    def frames(self) -> int:
        """How many the model was shown at once in training: the run's own, else the released."""
        return self.recordings.frames - 1 if self.recordings else FRAMES

    @property
    def by_camera(self) -> bool:
        """Whether poses were shown to it as the camera sees them."""
        return self.recordings is not None and self.recordings.frame == 'camera'

    def check(self, data: RobotConfig) -> None:
        """Refuses recordings of another robot; where none is known, none.

        Raises:
          ConfigError: names every difference.
        """
        if self.recordings:
            Contract.of(data).check(dataclasses.asdict(Contract.of(self.recordings)))


@dataclasses.dataclass(frozen=True)
class PlanningModel:
    """An encoder, the world model of its features, and lines that say where they are from."""

    encoder: dict  # parameters
    encoder_config: ViTConfig
    world_model: ACWorldModel
    about: tuple[str, ...]
    known: Known = Known()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames, pixels."""
        h, w = self.world_model.config.grid
        return h * self.encoder_config.patch, w * self.encoder_config.patch

    def encode(self, images: np.ndarray) -> jax.Array:
        """Frames uint8 [T, H, W, 3] of the model's size -> features [T, N, D], each frame alone."""
        if images.shape[1:3] != self.size:
            raise PlanError(
                f'frames of {images.shape[1]} x {images.shape[2]} pixels: must have '
                f'{self.size[0]} x {self.size[1]}'
            )
        return self.features(self.encoder, jnp.asarray(images))

    def features(self, params: dict, images: jax.Array) -> jax.Array:
        """The same as a function of the encoder's parameters, for use inside of a program."""
        return _encode(self.encoder_config, params, images)

    def fit(self, images: np.ndarray) -> np.ndarray:
        """Frames uint8 [T, H, W, 3] of any size -> of the model's, as in training."""
        return view(images, self.size)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: ViTConfig, params: dict, images: jax.Array) -> jax.Array:
    net = Net(lambda rngs: ViT(config, rngs=rngs))
    return encode_frames(net, params, images[None], config.tubelet)[0]


def load(
    name: str,
    *,
    size: tuple[int, int],
    encoder: str = 'target',
    dtype: str = 'float32',
    seed: int = 0,
) -> PlanningModel:
    """A name or path of a model with an action-conditioned predictor, or `random:SIZE`.

    size: height and width of the frames in pixels; a random model is made for it, others have
    their own.
    random:tiny has a predictor of 2 layers and width 96, the others the released one's shape.

    Raises:
      PlanError: a model without such a predictor; frames smaller than a patch.
      ZooError, ConvertError, CheckpointError: as pretrained.load.
    """
    model = pretrained.load(name, encoder=encoder, dtype=dtype, seed=seed)
    about = list(model.about)
    if name.startswith('random:'):
        grid = size[0] // model.config.patch, size[1] // model.config.patch
        if 0 in grid:
            raise PlanError(
                f'frames of {size[0]} x {size[1]} pixels are smaller than a patch of '
                f'{model.config.patch}'
            )
        shape = RANDOM_TINY if name == 'random:tiny' else {}
        config = ACPredictorConfig(model.config.width, grid=grid, dtype=jnp.dtype(dtype), **shape)
        params = jax.jit(_net(config).init, compiler_options=ONCE)(jax.random.key(seed + 1))
        about.append(
            f'predictor: RANDOM weights, {config.depth} blocks, width {config.width}; '
            'energies mean nothing'
        )
    elif model.ac_predictor is None:
        raise PlanError(
            f"model '{name}' predicts no actions' effects: must have an action-conditioned "
            'predictor, as ac-vitg has'
        )
    else:
        config, params = model.ac_predictor.config, model.ac_predictor.params
        if config.action_width != 7 or config.state_width not in (0, 7):
            raise PlanError(
                f"model '{name}' takes actions of {config.action_width} and states of "
                f'{config.state_width} numbers: planning for an end effector needs 7, and 7 or none'
            )
        if config.use_extrinsics:
            raise PlanError(f"model '{name}' needs camera poses, which plan has no way to give")
        about.append(f'predictor: {config.depth} blocks, width {config.width}')
    h, w = config.grid
    patch = model.config.patch
    about.append(f'frames of {h * patch} x {w * patch} pixels, {h} x {w} tokens')
    if size != (h * patch, w * patch):
        about.append(
            f'of frames of {size[0]} x {size[1]} pixels the middle, at most 1.35 times as wide as '
            'high, is squeezed to that size, as in training'
        )
    told = model.robot or {}
    known = Known.of(name, told)
    if not (known.recordings or 'released' in told or name.startswith('random:')):
        log.warning(
            "model '%s' does not say on which robot it was trained: where nothing else is said, "
            'metres, radians, closedness, %g frames a second and %d at once are assumed, as of the '
            'released weights', name, RobotConfig().fps, FRAMES + 1,
        )  # fmt: skip
    world_model = ACWorldModel(params, _net(config), config, known.frames)
    return PlanningModel(model.encoder.params, model.config, world_model, tuple(about), known)


def known(name: str) -> Known:
    """What is known of the robot of a model, by name or path, without a look at its arrays.

    Raises:
      ZooError, ConvertError, CheckpointError, BadFile: it cannot be read.
    """
    return Known.of(name, zoo.robot_of(name))


@functools.cache
def _net(config: ACPredictorConfig) -> Net:
    """One for each config, so that what was compiled with it is reused."""
    return Net(lambda rngs: ACPredictor(config, rngs=rngs))
