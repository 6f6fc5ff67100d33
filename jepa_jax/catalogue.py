"""`jepa_jax.models()`: the table of names that `jepa_jax.load` takes."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax

from jepa_jax.models import SIZES
from jepa_jax.models.ac_predictor import ACPredictorConfig
from jepa_jax.models.pooler import AttentivePooler, PoolerConfig
from jepa_jax.nets import Net
from jepa_jax.pretrained import random_configs
from jepa_jax.weights import parts, zoo


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
        count = f'{self.parameters / 1e6:.3g} M'
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
    """Released models and probes, and random weights of each size: parameters, size of the file,
    what each can do. Nothing is downloaded. Paths and names of the Hugging Face hub are taken by
    `load`, too."""
    released = [_released(name, row) for name, row in zoo.RELEASED.items()]
    does = ('features without meaning: nothing is trained', 'to try things')
    random = [Row(zoo.RANDOM + size, _nets(size)['encoder'], 256, 0, False, does) for size in SIZES]
    return Table(released + random)


def _released(name: str, row: zoo.Released) -> Row:
    nets = _nets(row.size)
    if row.probe_of:
        reads = {'future': 'actions one second ahead'}.get(row.reads, 'classes')
        does, numbers = (f'{reads} ({name.split("-")[0]})', f'with {row.probe_of}'), nets['pooler']
    elif name.startswith('ac-'):
        does, numbers = ('features', 'plans'), nets['encoder'] + nets['ac_predictor']
    else:
        does, numbers = ('features', 'predictions'), 2 * nets['encoder'] + nets['predictor']
    folder = zoo.cache_folder()
    file, converted = folder / pathlib.Path(row.file).name, folder / name
    nbytes = file.stat().st_size if file.is_file() else 4 * numbers
    here = file.is_file() or converted.is_dir()
    return Row(name, nets['encoder'], row.crop, nbytes, here, does)


@functools.cache
def _nets(size: str) -> dict[str, int]:
    """Parameters of the nets of a size; of a probe without its classes."""
    encoder, predictor = random_configs(size)
    pooler = PoolerConfig(encoder.width)
    nets = {
        'encoder': parts.net('encoder', encoder),
        'predictor': parts.net('predictor', predictor),
        'ac_predictor': parts.net('ac_predictor', ACPredictorConfig(encoder.width)),
        'pooler': Net(lambda rngs: AttentivePooler(pooler, rngs=rngs)),
    }
    return {
        name: sum(leaf.size for leaf in jax.tree.leaves(net.abstract)) for name, net in nets.items()
    }
