"""What `convert.read` returns."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from jepa_jax.convert.tables import flatten
from jepa_jax.errors import ConvertError
from jepa_jax.models.ac_predictor import ACPredictor, ACPredictorConfig
from jepa_jax.models.pooler import AttentiveClassifier, PoolerConfig
from jepa_jax.models.predictor import Predictor, PredictorConfig
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import Net

ENCODERS = ('encoder', 'target')
PREDICTORS = ('predictor', 'ac_predictor')


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run needs to go on, beside its weights."""

    step: int  # updates that the schedules count
    count: int  # updates that Adam counts; more than `step` after a cooldown began
    # first and second moments: part (encoder, predictor, ac_predictor) -> the net's nested dict
    mu: dict[str, dict]
    nu: dict[str, dict]
    hyper: dict[str, Any]  # of the last update: lr, weight_decay, betas, eps
    # what only the original's files have: epoch, loss, batch_size, world_size, lr, scaler
    original: dict[str, Any]
    config: dict[str, Any] | None  # what only our runs have: MaskedVideoConfig as in JSON


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file or folder of weights holds."""

    source: pathlib.Path
    format: str  # torch | hf | jax
    version: str  # of V-JEPA: '2.0'
    size: str  # a key of models.SIZES, or 'custom'
    encoder: ViTConfig | None
    predictor: PredictorConfig | ACPredictorConfig | None
    probe: tuple[PoolerConfig, dict[str, int]] | None  # and the classes of each head
    # parts among encoder (online), target (its moving average), predictor, ac_predictor, probe: the
    # net's nested dict, of `Leaf`s: arrays that are read by np.asarray
    trees: dict[str, dict]
    training: Training | None = None
    labels: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # head -> names
    notes: tuple[str, ...] = ()  # defaults taken and arrays dropped, a line each, to be printed

    def pick(self, encoder: str = 'target') -> str:
        """The part that holds the encoder asked for; a source with one serves either choice.

        Raises:
          ConvertError: there is no encoder.
        """
        if encoder not in ('target', 'online'):
            raise ConvertError(f"encoder '{encoder}': allowed are target, online")
        order = ENCODERS if encoder == 'online' else ENCODERS[::-1]
        part = next((name for name in order if name in self.trees), None)
        if part is None:
            raise ConvertError(f'{self.source} holds {", ".join(self.trees)}, but no encoder')
        return part

    def params(self, part: str) -> dict:
        """A part with all of its arrays read: nested dicts of float32 numpy arrays.

        Args:
          part: a key of `trees`, or 'target' or 'online' for whichever encoder there is.

        Raises:
          ConvertError: no such part.
        """
        if part in ('target', 'online'):
            part = self.pick(part)
        if part not in self.trees:
            raise ConvertError(f'{self.source} holds {", ".join(self.trees)}, but no {part}')
        return jax.tree.map(np.asarray, self.trees[part])

    def config(self, part: str) -> Any:
        """The config of a part: encoder's, predictor's, or the probe's pair."""
        if part in ENCODERS:
            return self.encoder
        return self.probe if part == 'probe' else self.predictor

    def summary(self) -> list[str]:
        """Lines that say what this is, for people."""
        found = [f'{self.source}: V-JEPA {self.version}, size {self.size}, format {self.format}']
        alone = sum(part in self.trees for part in ENCODERS) == 1
        for part, tree in self.trees.items():
            count = sum(int(np.prod(leaf.shape)) for leaf in flatten(tree).values())
            name = 'encoder (the only one)' if alone and part in ENCODERS else NAMES[part]
            found.append(f'  {name}: {count:,} parameters')
        if self.training:
            t = self.training
            found.append(f'  optimizer: Adam moments after {t.count:,} updates, step {t.step:,}')
        return found + [f'  {note}' for note in self.notes]


NAMES = {
    'encoder': 'encoder (online)',
    'target': 'target encoder (moving average)',
    'predictor': 'predictor',
    'ac_predictor': 'action-conditioned predictor',
    'probe': 'attentive probe',
}


def net(part: str, config: Any) -> Net:
    """The net of a part, for its names and shapes."""
    if part == 'probe':
        pooler, classes = config
        config = pooler, tuple(classes.items())
    return _net('encoder' if part in ENCODERS else part, config)


@functools.lru_cache(16)  # both encoders, reading and writing, ask for the same
def _net(part: str, config: Any) -> Net:
    if part == 'predictor':
        return Net(lambda rngs: Predictor(config, rngs=rngs))
    if part == 'ac_predictor':
        return Net(lambda rngs: ACPredictor(config, rngs=rngs))
    if part == 'probe':
        return Net(lambda rngs: AttentiveClassifier(config[0], dict(config[1]), rngs=rngs))
    return Net(lambda rngs: ViT(config, rngs=rngs))
