"""What is learned: nets, which of them are averaged or frozen, and a loss.

`Objective` is all that the loop, the step, checkpoints, conversion and the tools ask of it. A new
one is a class like those beside this file, a config and a row of jepa_jax.recipes.RECIPES.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jepa_jax.nets import Net

LEFT_OUT, SEEN, HIDDEN = range(3)  # what a mask does with a token


def error_words(exponent: float) -> str:
    """Of the loss |prediction - target|^p / p."""
    known = {1: 'mean |prediction - target|', 2: 'half the mean squared error'}
    return known.get(exponent, f'mean |prediction - target|^{exponent:g} / {exponent:g}')


@dataclasses.dataclass(frozen=True)
class Sample:
    """A clip of a batch, for people to look at."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    # name of a mask -> int8 [t, h, w]: LEFT_OUT, SEEN or HIDDEN
    masks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    words: str = ''  # what else is to be known of it


class Objective:
    """Nets and a loss; pure functions of their arguments.

    `params`, `ema` and `frozen` are dicts of parameters by net. A batch is any pytree whose leaves
    have clips on axis 0. Randomness comes from jax.random.fold_in(key(seed), step).
    """

    nets: dict[str, Net]  # trained by gradient
    ema: tuple[str, ...] = ()  # of which a moving average is kept
    frozen: dict[str, Net] = {}  # used by the loss, never trained
    kept: dict[
        str, Net
    ] = {}  # stored with the run and on no device, as an encoder of kept features
    rates: dict[str, float] = {}  # net -> factor on its learning rate
    unused: frozenset[str] = frozenset()  # `net/path` of parameters without gradient or decay
    whole_batch: bool = False  # the loss is no mean over clips: a batch cannot be cut into parts
    # what `health` is given in place of a part of a batch: rows that every process holds, on hosts
    examined: Any = None
    loss_words: str = 'loss'  # what the loss is, for the axis of a plot

    def init(self, key: jax.Array) -> dict:
        """Fresh parameters of the nets to be trained."""
        keys = [key] if len(self.nets) == 1 else jax.random.split(key, len(self.nets))
        return {name: net.init(k) for (name, net), k in zip(self.nets.items(), keys)}

    @property
    def abstract(self) -> dict:
        """Shapes of what `init` returns."""
        return {name: net.abstract for name, net in self.nets.items()}

    @property
    def specs(self) -> dict:
        """Where what `init` returns lies on a mesh."""
        return {name: net.specs for name, net in self.nets.items()}

    def loss(
        self, params: dict, ema: dict, frozen: dict, batch: Any, step: jax.Array
    ) -> tuple[jax.Array, dict]:
        """The loss [] of a batch at a 0-based step, and scalars for the metrics.

        Nets with parameters sharded over `fsdp` gather them before use (sharding.gather), a layer
        at a time, as nets.fold does.
        """
        raise NotImplementedError

    def encoder(self, params: dict, ema: dict, frozen: dict) -> tuple[Net, dict]:
        """The net that reads clips, and its parameters: what probes and evaluations read."""
        raise NotImplementedError

    def trace(self, params: dict, ema: dict, frozen: dict, batch: Any) -> dict:
        """Activations of a step by name, in order of computation, to find what is not finite."""
        return {}

    def health(self, params: dict, ema: dict, frozen: dict, batch: Any) -> dict:
        """Arrays for `measure`, of one part of a batch, or of what is `examined`, whose rows then
        come again until they are a multiple of the devices; traced."""
        return {}

    def measure(self, health: Mapping[str, jax.Array]) -> dict[str, float]:
        """Metrics `health/...` from what `health` returns; on the host."""
        return {}

    def bands(self, records: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
        """Field of the metrics -> the least and the most that it has in healthy runs, as far as
        known: what `verdict` goes by."""
        return {}

    def samples(self, batch: Any, count: int) -> list[Sample]:
        """The first clips of a batch on the host, `count` of each kind. []: it has none."""
        return []

    def shown(self, batch: Any) -> Any:
        """What `picture` reads of a batch on the host: a tree of arrays whose shapes are the same
        at every step, clips on axis 0. None: nothing is pictured."""
        return None

    def picture(self, params: dict, ema: dict, frozen: dict, shown: Any) -> dict[str, jax.Array]:
        """Features [B, t, h, w, D] whose change over training is worth a look, by what they are;
        all are coloured as the first; traced."""
        return {}

    def verdict(self, records: Sequence[Mapping[str, float]]) -> tuple[str, str]:
        """One word and one sentence on a run, from its rows of metrics."""
        return 'finished', f'loss {records[-1]["loss"]:.4g}' if records else 'nothing was logged'


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is made or read once, before a run's first step."""

    frozen: dict[str, Any] = dataclasses.field(default_factory=dict)  # net -> parameters, on hosts
    kept: dict[str, Any] = dataclasses.field(default_factory=dict)  # likewise
    data: Any = None  # what the stream needs beside the config
    # net -> what it begins with if the run starts from nothing or from a run that has no such net,
    # on hosts; None: drawn
    initial: dict[str, Any] = dataclasses.field(default_factory=dict)
    # name of a folder kept beside the run -> writes it
    folders: dict[str, Callable[[Any], None]] = dataclasses.field(default_factory=dict)


def nothing_to_prepare(config: Any, objective: Objective, stored: Any) -> Prepared:
    """For objectives without frozen nets."""
    del config, objective, stored
    return Prepared()


@dataclasses.dataclass(frozen=True)
class Program:
    """One set of static shapes of a run: a program to compile."""

    batch: Callable[[int], Any]  # seed -> a whole batch of noise, numpy
    flops: dict[str, int]  # what a step is worth, by what it is spent on
    tokens: frozenset[int]  # lengths of the sequences that are attended to
    words: str  # for people
    like: Any = None  # shapes and types of a batch; None: those of batch(0), which is then made

    @property
    def shapes(self) -> Any:
        """A batch without values, a pytree of jax.ShapeDtypeStruct: it may exceed the memory."""
        like = self.batch(0) if self.like is None else self.like
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), like)

    @property
    def total(self) -> int:
        """FLOPs of a step over all devices."""
        return sum(self.flops.values())
