"""`jepa_jax.models()`: the table of names that `jepa_jax.load` takes."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax

from jepa_jax.models import NEWER, SIZES, VERSIONS
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.pooler import AttentivePooler, PoolerConfig
from jepa_jax.models.predictor import PredictorConfig
from jepa_jax.models.vit import ViTConfig
from jepa_jax.nets import Net
from jepa_jax.pretrained import random_configs, released_configs
from jepa_jax.weights import bundled, names, parts, zoo


@dataclasses.dataclass(frozen=True)
class Row:
    """A name."""

    name: str
    parameters: int  # of the encoder that it loads
    crop: int  # pixels
    # of the file if it is here as released, else of the nets' arrays in float32, which it holds at
    # least: two encoders, of masked models
    nbytes: int
    here: bool  # in the cache folder, as released or converted
    does: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """As text."""
        file = f'{self.nbytes / 1e9:.2g} GB' if self.nbytes else 'none'
        file += ', here' if self.here else ' or more' if self.nbytes else ''
        count = f'{float(f"{self.parameters / 1e6:.3g}"):,g} M'
        return self.name, count, f'{self.crop}', file, ', '.join(self.does)


class Table(list[Row]):
    """Rows, which show as a table."""

    def __repr__(self) -> str:
        head = ('name', 'encoder', 'pixels', 'file', 'does')
        lines = [head, *(row.cells() for row in self)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return '\n'.join(
            '  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
            for line in lines
        )


def models() -> Table:
    """Weights that come with the package, released models and probes, and random weights of each
    size: parameters, size of the file, what each can do. Nothing is downloaded. Paths and names of
    the Hugging Face hub are taken by `load`, too."""
    rows = [_bundled(name) for name in names.BUNDLED]
    rows += (_released(name, row) for name, row in names.RELEASED.items())
    does = ('features without meaning: nothing is trained', 'to try things')
    sizes = [*SIZES, *(size + NEWER for size in VERSIONS['2.1'].sizes)]
    rows += (
        Row(names.RANDOM + s, _size(*random_configs(s), 'encoder'), 256, 0, False, does)
        for s in sizes
    )
    return Table(rows)


def _bundled(name: str) -> Row:
    weights = bundled.read(name)
    net = weights.nets[weights.pick('target')]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(net.tree))
    nbytes = (bundled.FOLDER / f'{name}.npz').stat().st_size
    return Row(name, count, net.config.image_size, nbytes, True, ('features', 'to try things'))


def _released(name: str, row: names.Released) -> Row:
    configs = released_configs(row)
    encoder = _size(*configs, 'encoder')
    if row.probe_of:
        reads = {'future': 'actions one second ahead'}.get(row.reads, 'classes')
        does = f'{reads} ({name.split("-")[0]})', f'with {row.probe_of}'
        numbers = _size(*configs, 'pooler')
    elif name.startswith('ac-'):
        does, numbers = ('features', 'plans'), encoder + _size(*configs, 'ac_predictor')
    elif row.version == parts.MAE:
        does = ('features', *(('classes (in1k)',) if row.tuned else ()))
        numbers = encoder
    else:
        does = 'features', 'predictions'
        numbers = 2 * encoder + _size(*configs, 'predictor')
    folder = zoo.cache_folder()
    file, converted = folder / zoo.local_name(row), folder / name
    nbytes = file.stat().st_size if file.is_file() else 4 * numbers
    here = file.is_file() or converted.is_dir()
    return Row(name, encoder, row.crop, nbytes, here, does)


@functools.cache
def _size(encoder: ViTConfig, predictor: PredictorConfig, name: str) -> int:
    """Parameters of a net, itself or beside these; of a probe without its classes."""
    pooler = PoolerConfig(encoder.width)
    net = {
        'encoder': lambda: parts.net('encoder', encoder),
        'predictor': lambda: parts.net('predictor', predictor),
        'ac_predictor': lambda: parts.net('ac_predictor', ACPredictorConfig(encoder.width)),
        'pooler': lambda: Net(lambda rngs: AttentivePooler(pooler, rngs=rngs)),
    }[name]()
    return sum(leaf.size for leaf in jax.tree.leaves(net.abstract))
