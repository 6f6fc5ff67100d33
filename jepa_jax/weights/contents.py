"""What a file or folder of weights holds: what `read` returns and `write` takes."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from jepa_jax.errors import ConvertError
from jepa_jax.weights import parts
from jepa_jax.weights.shapes import size_of
from jepa_jax.weights.tables import flatten, not_finite

# The names of nets: the two encoders, which are one part, and what goes with them. The target is
# the moving average of the online encoder, or an encoder that was frozen.
ENCODERS = ('online', 'target')
PREDICTORS = ('predictor', 'ac_predictor')
TITLES = {'online': 'online encoder', 'target': 'target encoder (moving average)'}


@dataclasses.dataclass(frozen=True, eq=False)
class StoredNet:
    """A net of a file: what it is, and its arrays."""

    part: str  # a row of jepa_jax.weights.parts.PARTS
    config: Any  # of the class that the row names
    tree: dict  # nested dict of `Leaf`s: arrays that are read by np.asarray
    place: str = ''  # in a checkpoint of ours, as `params/encoder`; empty: the usual one


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run needs to be resumed, beside its weights."""

    step: int  # updates that the schedules count
    count: int  # updates that Adam counts; more than `step` after a cooldown began
    # first and second moments: net -> nested dict like its arrays
    mu: dict[str, dict]
    nu: dict[str, dict]
    hyper: dict[str, Any]  # of the last update: lr, weight_decay, betas, eps
    # what only the original's files have: epoch, loss, batch_size, world_size, lr, scaler
    original: dict[str, Any]
    config: dict[str, Any] | None  # what only our runs have: their config as in JSON


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file or folder of weights holds."""

    source: pathlib.Path
    format: str  # torch | hf | jax
    # by name: online, target, predictor, ac_predictor, probe; nets that users brought have theirs
    nets: dict[str, StoredNet]
    training: Training | None = None
    labels: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # head -> names
    # what the probe was trained to read, where the source says it: see jepa_jax.model.ProbeHead
    reads: dict[str, Any] = dataclasses.field(default_factory=dict)
    origin: str = ''  # one of ours that was saved from a model: what that model was
    notes: tuple[str, ...] = ()  # defaults taken and arrays dropped, a line each, to be printed
    config_file: str = ''  # one of ours: the file that may bring rows for its nets
    fps: float = 4.0  # frames a second that it was trained at, as all released; 0: not known
    robot: dict[str, Any] = dataclasses.field(default_factory=dict)  # see jepa_jax.weights.robot

    @property
    def trees(self) -> dict[str, dict]:
        """Nested dicts of leaves by net."""
        return {name: net.tree for name, net in self.nets.items()}

    @property
    def encoder(self) -> Any:
        """ViTConfig of the encoders, or None."""
        return self._first(ENCODERS)

    @property
    def predictor(self) -> Any:
        """Config of the predictor, of either kind, or None."""
        return self._first(PREDICTORS)

    @property
    def probe(self) -> Any:
        """PoolerConfig of the probe and the classes of each head, or None."""
        return self._first(('probe',))

    def of_part(self, part: str) -> Any:
        """Config of the first net of a row of PARTS, or None."""
        return next((net.config for net in self.nets.values() if net.part == part), None)

    def _first(self, names: tuple[str, ...]) -> Any:
        return next((self.nets[name].config for name in names if name in self.nets), None)

    @property
    def size(self) -> str:
        """Of the encoder: a key of models.SIZES, or 'custom'."""
        return size_of(self.encoder)

    @property
    def version(self) -> str:
        """Of V-JEPA: '2.0', or '' where nothing here has one; see parts.version_of. The encoder's,
        if there is one: a predictor of actions has the same form on each."""
        nets = sorted(self.nets.values(), key=lambda net: net.part != 'encoder')
        versions = (parts.version_of(net.part, net.config) for net in nets)
        return next(filter(None, versions), '')

    def pick(self, encoder: str = 'target') -> str:
        """The name of the encoder asked for; a source with one serves either choice.

        Raises:
          ConvertError: there is no encoder.
        """
        if encoder not in ENCODERS:
            raise ConvertError(f"encoder '{encoder}': allowed are target, online")
        other = ENCODERS[1 - ENCODERS.index(encoder)]
        name = next((name for name in (encoder, other) if name in self.nets), None)
        if name is None:
            raise ConvertError(f'{self.source} holds {", ".join(self.nets)}, but no encoder')
        return name

    @property
    def alone(self) -> bool:
        """Whether there is one encoder."""
        return sum(name in self.nets for name in ENCODERS) == 1

    def params(self, name: str) -> dict:
        """A net with all of its arrays read: nested dicts of numpy arrays.

        Args:
          name: a key of `nets`; 'target' and 'online' mean whichever encoder there is.

        Raises:
          ConvertError: no such net.
        """
        if name in ENCODERS:
            name = self.pick(name)
        if name not in self.nets:
            raise ConvertError(f'{self.source} holds {", ".join(self.nets)}, but no {name}')
        return jax.tree.map(np.asarray, self.nets[name].tree)

    def not_finite(self) -> list[str]:
        """Arrays with NaN or infinity, of nets and optimizer, a line each; reads all of them."""
        trees = {name: net.tree for name, net in self.nets.items()}
        if t := self.training:
            for moment, tree_of in (('first', t.mu), ('second', t.nu)):
                trees |= {f'{moment} moments of {name}': tree for name, tree in tree_of.items()}
        lines = []
        for name, tree in trees.items():
            for path, leaf in flatten(tree).items():
                array = np.asarray(leaf)
                if count := not_finite(array):
                    many = f'{count:,} of {array.size:,} numbers'
                    lines.append(f'{name}: {path}: {many} are NaN or infinite')
        return lines

    def summary(self) -> list[str]:
        """Lines that say what this is, for people."""
        size = f'size {self.size}' if self.encoder else ''
        called = ', '.join(
            filter(None, (parts.called(self.version), size, f'format {self.format}'))
        )
        lines = [f'{self.source}: {called}']
        for name, net in self.nets.items():
            count = sum(int(np.prod(leaf.shape)) for leaf in flatten(net.tree).values())
            only = ' (the only one)' if self.alone and name in ENCODERS else ''
            lines.append(f'  {"encoder" if only else title(name)}{only}: {count:,} parameters')
        if self.training:
            t = self.training
            lines.append(f'  optimizer: Adam moments after {t.count:,} updates, step {t.step:,}')
        return lines + [f'  {note}' for note in self.notes]


def title(name: str) -> str:
    """What a net is called for people."""
    kind = parts.PARTS.get(name)
    return TITLES.get(name) or (kind.title if kind else name)
