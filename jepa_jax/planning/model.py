"""A model to plan with: an encoder for frames and a world model of their features."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jepa_jax import checkpoint, pretrained
from jepa_jax.config import RobotConfig
from jepa_jax.config.store import from_dict
from jepa_jax.data.robot import Contract, Measured, metadata, view
from jepa_jax.errors import PlanError
from jepa_jax.models.ac_predictor import ACPredictor, ACPredictorConfig, encode_frames
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import ONCE, Net
from jepa_jax.planning.world_model import ACWorldModel

FRAMES = 7  # that the released predictor was shown: all but the last of 8 (reference: vjepa2 §7.4)
DEPENDS = 0.005  # of the energy of doing nothing, by which those of actions must differ
RANDOM_TINY = dict(width=96, depth=2, heads=4)  # the predictor of random:tiny


@dataclasses.dataclass(frozen=True)
class PlanningModel:
    """An encoder, the world model of its features, and lines that say where they are from."""

    encoder: dict  # parameters
    encoder_config: ViTConfig
    world_model: ACWorldModel
    about: tuple[str, ...]

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
    world_model = ACWorldModel(params, _net(config), config, trained_frames(name))
    return PlanningModel(model.encoder.params, model.config, world_model, tuple(about))


def trained_frames(name: str) -> int:
    """How many frames a model was shown at once in training: a run's own, else the released."""
    trained = recordings(name)
    return trained.frames - 1 if trained else FRAMES


def check_contract(name: str, data: RobotConfig) -> None:
    """Refuses recordings of another robot than the run at `name` was trained on; of models that are
    no runs of ours nothing is known.

    Raises:
      ConfigError: names every difference.
    """
    if trained := recordings(name):
        Contract.of(data).check(dataclasses.asdict(Contract.of(trained)))


def measured(name: str) -> Measured | None:
    """What the recordings held that the run at `name` was trained on; None: nothing is known."""
    values = _extra(name).get('measured')
    return Measured.stored(values) if values else None


def verdict(name: str) -> tuple[str, str] | None:
    """The word that the run at `name` ended with, and its sentence; None: it is no run of ours, or
    has not ended.

    Raises:
      BadFile: its report cannot be read.
    """
    path = pathlib.Path(name).expanduser()
    if not path.is_dir():
        return None
    report = path / 'report.json'
    if not report.exists() and path.absolute().parent.name == 'checkpoints':
        report = path.absolute().parents[1] / 'report.json'
    if not report.exists():
        return None
    values = metadata.read_json(report)
    sentences = metadata.field(report, values, 'sentences', list) if 'sentences' in values else []
    word = metadata.field(report, values, 'verdict', str)
    return word, str(sentences[0]) if sentences else word


def recordings(name: str) -> RobotConfig | None:
    """The recordings that the run at `name` was trained on; None: it is no run of ours."""
    values = _extra(name).get('config', {}).get('robot')
    return from_dict(values, RobotConfig) if values else None


def _extra(name: str) -> dict:
    """What a run's checkpoint says beside its arrays; {}: it is none."""
    path = pathlib.Path(name).expanduser()
    return checkpoint.read_manifest(checkpoint.find(path))['extra'] if path.is_dir() else {}


@functools.cache
def _net(config: ACPredictorConfig) -> Net:
    """One for each config, so that what was compiled with it is reused."""
    return Net(lambda rngs: ACPredictor(config, rngs=rngs))
