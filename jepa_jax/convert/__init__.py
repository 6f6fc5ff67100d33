"""Weights both ways: the original's `.pt`, Hugging Face folders, our checkpoints.

    weights = convert.read('vitl.pt')
    params = weights.params('target')          # ready for Net(ViT(weights.encoder))
    convert.write(weights, 'vitl', to='jax')

`read` takes anything, finds out what it is from names and shapes, and refuses what it does not know
completely. Arrays are read when they are wanted.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jepa_jax import checkpoint
from jepa_jax.convert import orbax_weights, shapes, tables, torch_weights
from jepa_jax.convert.tables import ConvertError as ConvertError
from jepa_jax.convert.tables import Leaf
from jepa_jax.models.ac_predictor import ACPredictor, ACPredictorConfig
from jepa_jax.models.pooler import AttentiveClassifier, PoolerConfig
from jepa_jax.models.predictor import Predictor, PredictorConfig
from jepa_jax.models.vit import ViT, ViTConfig
from jepa_jax.nets import Net

ENCODERS = ('encoder', 'target')


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
    training: Any = None
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


def read(
    path: str | os.PathLike,
    *,
    crop: int | None = None,
    frames: int | None = None,
    heads: int | None = None,
    predictor_heads: int | None = None,
    probe_heads: int | None = None,
    position: str | None = None,
    extrinsics: bool | None = None,
    allow_missing: Iterable[str] = (),
) -> Weights:
    """Weights of the original's `.pt`, of a Hugging Face folder, or of one of our checkpoints.

    Args:
      path: a file; or a folder, which may be a workdir.
      crop, frames, heads, predictor_heads, probe_heads, position, extrinsics: what shapes cannot
        say; a default taken in their place is in `notes`.
      allow_missing: names in the file, or patterns like `norm.*`, that may be missing; they get
        their initial values.

    Raises:
      ConvertError: not a checkpoint, damaged, unsafe, not understood completely, or of V-JEPA 2.1.
    """
    path = pathlib.Path(path).expanduser()
    choices = shapes.Choices(
        crop, frames, heads, predictor_heads, probe_heads, position, extrinsics
    )
    if not path.exists():
        raise ConvertError(f'{path} does not exist')
    if path.is_file():
        return _read_torch(path, choices, tuple(allow_missing))
    return _read_checkpoint(path)


def _read_checkpoint(path: pathlib.Path) -> Weights:
    folder = checkpoint.find(path)
    manifest = checkpoint.read_manifest(folder)
    if found := checkpoint.problems(folder):
        raise checkpoint.Damaged(found[0])
    configs = orbax_weights.configs_of(folder, manifest['extra'])
    trees = orbax_weights.trees(folder, manifest['leaves'])
    for part, tree in trees.items():
        config = configs['encoder' if part == 'target' else part]
        expected = {
            n: tuple(a.shape) for n, a in tables.flatten(_net(part, config).abstract).items()
        }
        stored = {n: leaf.shape for n, leaf in tables.flatten(tree).items()}
        wrong = [n for n in expected | stored if expected.get(n) != stored.get(n)]
        if wrong:
            raise ConvertError(
                f'{folder}: {part}: {wrong[0]} has shape {stored.get(wrong[0])}, must have '
                f'{expected.get(wrong[0])}'
            )
    encoder = configs.get('encoder')
    return Weights(
        path, 'jax', '2.0', shapes.size_of(encoder), encoder,
        configs.get('predictor') if 'predictor' in trees else None,
        configs.get('probe') if 'probe' in trees else None,
        trees,
    )  # fmt: skip


def _net(part: str, config: Any) -> Net:
    """The net of a part, for its names and shapes."""
    if part == 'predictor':
        return Net(lambda rngs: Predictor(config, rngs=rngs))
    if part == 'probe':
        return Net(lambda rngs: AttentiveClassifier(*config, rngs=rngs))
    if part == 'ac_predictor':
        return Net(lambda rngs: ACPredictor(config, rngs=rngs))
    return Net(lambda rngs: ViT(config, rngs=rngs))


def _read_torch(path, choices, allow_missing) -> Weights:
    content = torch_weights.load(path)
    states = torch_weights.parts(str(path), content)
    reader = shapes.Reader(str(path), choices)
    for part, state in states.items():
        if name := shapes.newer(state):
            raise ConvertError(
                f'{path} holds V-JEPA 2.1 ({part}: {name}); only 2.0 can be converted so far'
            )
    forms = {part: {n: tuple(t.shape) for n, t in state.items()} for part, state in states.items()}
    size, configs = 'custom', {}
    for part in ENCODERS:
        if part in forms:
            size, configs[part] = reader.encoder(part, forms[part])
    encoder = configs.get('target') or configs.get('encoder')
    if 'ac_predictor' in forms:
        configs['ac_predictor'] = reader.ac_predictor(forms['ac_predictor'])
    if 'predictor' in forms:
        configs['predictor'] = reader.predictor(forms['predictor'], encoder)
    if 'probe' in forms:
        configs['probe'] = reader.probe(forms['probe'])
    trees = {}
    for part, state in states.items():
        config = configs[part]
        rules, sizes = torch_weights.table(part, config)
        net = _net(part, config)
        links = tables.bind(rules, net.abstract, sizes)
        where = f'{path}: {part}'
        missing = tables.compare(where, links, rules, forms[part], allow_missing)
        for name in sorted(missing):
            reader.notes.append(f'{part}: {name} is missing and gets its initial value')
        initial = _initial(net, links, missing)
        for name, why in tables.dropped(rules, state).items():
            reader.notes.append(f'{part}: {name} is dropped: {why}')
        trees[part] = tables.nest({link.path: _leaf(link, state, initial) for link in links})
    return Weights(
        path, 'torch', '2.0', size, encoder,
        configs.get('predictor') or configs.get('ac_predictor'), configs.get('probe'),
        trees, None, tuple(reader.notes),
    )  # fmt: skip


def _initial(net: Net, links: list[tables.Link], names: set[str]) -> dict[str, np.ndarray]:
    """What a fresh net has, seed 0, for arrays by their names in the file."""
    if not names:
        return {}
    fresh = tables.flatten(net.init(jax.random.key(0)))
    arrays = {n: a for link in links for n, a in link.theirs(np.asarray(fresh[link.path]))}
    return {name: arrays[name] for name in names}


def _leaf(link: tables.Link, state: dict, initial: dict[str, np.ndarray]) -> Leaf:
    def fetch(name: str) -> np.ndarray:
        return initial[name] if name in initial else torch_weights.fetch(state[name])

    return Leaf(link.shape, np.dtype('float32'), lambda: link.ours(fetch))
