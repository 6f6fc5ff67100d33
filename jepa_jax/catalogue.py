"""The names that `jepa_jax.load` takes, and every command with --model: parameters, size of the
file, memory to run, licence of the weights, what they are.

    jepa models [vitl]

With a word, those that have it in their name; with *, ? or [...], those that are such a name, as
'ek100-*'. Nothing is downloaded. Paths, and names of the Hugging Face hub as hf:OWNER/MODEL, are
taken, too. Memory is what is resident on a CPU, float32, with 16 frames of 256 pixels (tiny: 8 of
32). In Python: `jepa_jax.models()`.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import functools
import math
import sys
from typing import TYPE_CHECKING

from jepa_jax import cli
from jepa_jax.errors import ZooError, nearest
from jepa_jax.models import NEWER, SIZE_ALIASES, SIZES, VERSIONS
from jepa_jax.weights import names

if TYPE_CHECKING:
    from jepa_jax.models.predictor import PredictorConfig
    from jepa_jax.models.vit import ViTConfig

TRIAL = 'to try things'


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
    memory: str  # to run; empty: not known
    licence: str  # of the weights
    family: str  # V-JEPA 2, I-JEPA, ...
    does: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """As text."""
        file = f'{self.nbytes / 1e9:.2g} GB' if self.nbytes else 'none'
        file += ', here' if self.here else ' or more' if self.nbytes else ''
        count = f'{float(f"{self.parameters / 1e6:.3g}"):,g} M'
        what = f'{self.family}: {", ".join(self.does)}'
        return self.name, count, f'{self.crop}', file, self.memory or '-', self.licence, what


class Table(list[Row]):
    """Rows, which show as a table."""

    def __repr__(self) -> str:
        head = ('name', 'encoder', 'pixels', 'file', 'memory', 'licence', 'what it is')
        lines = [head, *(row.cells() for row in self)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return '\n'.join(
            '  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
            for line in lines
        )


def models() -> Table:
    """Weights that come with the package, released models and probes, and random weights of each
    size: parameters, size of the file, memory, licence, what each can do. Nothing is downloaded.
    Paths and names of the Hugging Face hub are taken by `load`, too."""
    return Table(map(_row, _names()))


def _names() -> list[str]:
    sizes = [*SIZES, *(size + NEWER for size in VERSIONS['2.1'].sizes)]
    return [*names.BUNDLED, *names.RELEASED, *(names.RANDOM + size for size in sizes)]


def matching(pattern: str) -> list[str]:
    """The names that have a pattern in them, or that are what it stands for if it has *, ? or [;
    also by the names of the original's torch.hub and the Hugging Face hub, and by other names of
    sizes. Upper and lower case are alike.

    Raises:
      ZooError: there is none.
    """
    glob = pattern.lower() if set('*?[') & set(pattern) else f'*{pattern.lower()}*'
    every = _names()
    others = [*names.ALIASES.items(), *names.PUBLISHED.items()]
    others += [(alias, f'{names.RANDOM}{size}') for alias, size in SIZE_ALIASES.items()]
    also = {name for alias, name in others if fnmatch.fnmatchcase(alias.lower(), glob)}
    result = [name for name in every if name in also or fnmatch.fnmatchcase(name.lower(), glob)]
    if not result:
        near = nearest(pattern, (*every, *(alias for alias, _ in others)))
        raise ZooError(f"no name has '{pattern}'{near}; without it all are listed")
    return result


def _row(name: str) -> Row:
    if name in names.BUNDLED:
        return _bundled(name)
    if name in names.RELEASED:
        return _released(name, names.RELEASED[name])
    from jepa_jax.pretrained import random_configs

    size = name.removeprefix(names.RANDOM)
    version = '2.1' if size.endswith(NEWER) else '2.0'
    does = 'features without meaning: nothing is trained', TRIAL
    # the bundled model of a size's name is a smaller one
    memory = '' if size in names.BUNDLED else names.MEMORY.get(size, '')
    return Row(
        name, _size(*random_configs(size), 'encoder'), 256, 0, False, memory, names.licence(name),
        f'random weights, {_family(version)}', does,
    )  # fmt: skip


def _bundled(name: str) -> Row:
    import jax

    from jepa_jax.weights import bundled

    weights = bundled.read(name)
    net = weights.nets[weights.pick('target')]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(net.tree))
    memory, licence = names.MEMORY.get(name, ''), names.licence(name)
    nbytes = (bundled.FOLDER / f'{name}.npz').stat().st_size
    return Row(
        name, count, net.config.image_size, nbytes, True, memory, licence,
        f'{_family(weights.version)}, from {names.BUNDLED[name]}', ('features', TRIAL),
    )  # fmt: skip


def _released(name: str, row: names.Released) -> Row:
    from jepa_jax.pretrained import released_configs
    from jepa_jax.weights import parts, zoo

    configs = released_configs(row)
    encoder = _size(*configs, 'encoder')
    if row.probe_of:
        reads = {'future': 'actions one second ahead'}.get(row.reads, 'classes')
        does = f'{reads} ({name.split("-")[0]})', f'with {row.probe_of}'
        numbers = _size(*configs, 'pooler')
    elif name.startswith('ac-'):
        does, numbers = ('features', 'plans'), encoder + _size(*configs, 'ac_predictor')
    elif row.version == parts.MAE:
        more = 'classes (in1k)' if row.tuned else 'with its decoder' * name.endswith('-full')
        does = ('features', more) if more else ('features',)
        numbers = encoder
    else:
        does = 'features', 'predictions'
        numbers = 2 * encoder + _size(*configs, 'predictor')
    folder = zoo.cache_folder()
    file, converted = folder / zoo.local_name(row), folder / name
    nbytes = file.stat().st_size if file.is_file() else 4 * numbers
    here = file.is_file() or converted.is_dir()
    family = _family(row.version) + (', probe' if row.probe_of else '')
    memory = names.MEMORY.get(row.probe_of or name, '')
    licence = names.licence(name)
    return Row(name, encoder, row.crop, nbytes, here, memory, licence, family, does)


def _family(version: str) -> str:
    """A version for people."""
    from jepa_jax.weights import parts

    return parts.called(version).removesuffix('.0')


@functools.cache
def _size(encoder: ViTConfig, predictor: PredictorConfig, name: str) -> int:
    """Parameters of a net, itself or beside these; of a probe without its classes."""
    import jax

    from jepa_jax.models.ac_predictor import ACPredictorConfig
    from jepa_jax.models.pooler import AttentivePooler, PoolerConfig
    from jepa_jax.nets import Net
    from jepa_jax.weights import parts

    pooler = PoolerConfig(encoder.width)
    net = {
        'encoder': lambda: parts.net('encoder', encoder),
        'predictor': lambda: parts.net('predictor', predictor),
        'ac_predictor': lambda: parts.net('ac_predictor', ACPredictorConfig(encoder.width)),
        'pooler': lambda: Net(lambda rngs: AttentivePooler(pooler, rngs=rngs)),
    }[name]()
    return sum(leaf.size for leaf in jax.tree.leaves(net.abstract))


def run(pattern: str) -> None:
    """Prints the table. Raises ZooError: no name is like that."""
    chosen = matching(pattern)  # before the imports that take seconds
    print(Table(map(_row, chosen)))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'pattern', metavar='PATTERN', nargs='?', default='',
        help='part of the names, or with *, ? or [...] all of them (every name)',
    )  # fmt: skip


def main() -> int:
    return cli.run(run, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
