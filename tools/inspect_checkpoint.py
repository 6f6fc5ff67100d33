"""What is in a checkpoint, and is it whole?

    python -m tools.inspect_checkpoint PATH [--verify] [--params]

PATH is a workdir, its checkpoints folder, or one checkpoint. Of several, all are listed and the
newest is described. Exit status 1 if a file that was checked is damaged. Of a `.pt` file or a
Hugging Face folder: what `python -m jepa_jax.convert` would make of it.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
import time
from typing import Any

from jepa_jax import cli
from jepa_jax.errors import Damaged


def inspect(path: str, verify: bool, params: bool) -> None:
    """Prints it.

    Raises:
      CheckpointError: no checkpoint there, or (`verify`) a damaged one.
    """
    from jepa_jax import checkpoint  # jax and orbax: not for --help
    from jepa_jax.weights.read import is_hf

    place = pathlib.Path(path)
    if place.is_file() or is_hf(place):
        _foreign(place, params)
        return
    directory = place / 'checkpoints' if (place / 'checkpoints').is_dir() else place
    folders = [directory / str(step) for step in checkpoint.complete_steps(directory)] or [place]
    damaged = []
    for folder in folders:
        manifest = _manifest(checkpoint, folder)
        line = f'{folder}  {_summary(manifest)}' if isinstance(manifest, dict) else manifest
        if verify:
            began = time.perf_counter()
            problems = checkpoint.problems(folder)
            seconds = time.perf_counter() - began
            damaged += problems
            line += (
                '  damaged: ' + '; '.join(problems) if problems else f'  intact ({seconds:.1f} s)'
            )
        elif not isinstance(manifest, dict):
            damaged.append(manifest)
        print(line)
    if isinstance(manifest, dict):  # the newest
        _describe(folders[-1], manifest, params)
    if damaged:
        raise Damaged(damaged[0])


def _foreign(path: pathlib.Path, params: bool) -> None:
    from jepa_jax import convert
    from jepa_jax.weights.tables import flatten

    weights = convert.read(path)
    print(*weights.summary(), sep='\n')
    if params:
        leaves = {f'{p}/{n}': a for p, t in weights.trees.items() for n, a in flatten(t).items()}
        width = max(map(len, leaves))
        for name, leaf in leaves.items():
            print(f'  {name:<{width}}  {leaf.dtype.name:<9}  {list(leaf.shape)}')


def _manifest(checkpoint: Any, folder: pathlib.Path) -> dict[str, Any] | str:
    try:
        return checkpoint.read_manifest(folder)
    except Damaged as error:
        return str(error)


def _summary(manifest: dict[str, Any]) -> str:
    size = sum(file['bytes'] for file in manifest['files'].values())
    return f'step {manifest["step"]:,}  {_bytes(size)}  saved {manifest["saved"]}'


def _describe(folder: pathlib.Path, manifest: dict[str, Any], params: bool) -> None:
    config = manifest['extra'].get('config') or {}
    leaves = manifest['leaves']
    print(f'\n{folder}')
    print(f'  format   {manifest["format"]}')
    print(f'  config   {config.get("name") or "(no name)"}')
    print(f'  extra    {", ".join(manifest["extra"]) or "nothing"}')
    print(f'  files    {len(manifest["files"])}')
    for part in dict.fromkeys(name.split('/')[0] for name in leaves):
        shapes = [row['shape'] for name, row in leaves.items() if name.split('/')[0] == part]
        print(f'  {part:<10} {len(shapes):>4} arrays {sum(map(math.prod, shapes)):>15,} numbers')
    if params:
        width = max(map(len, leaves))
        for name, row in leaves.items():
            print(f'  {name:<{width}}  {row["dtype"]:<9}  {row["shape"]}')


def _bytes(size: float) -> str:
    for unit in ('bytes', 'KiB', 'MiB'):
        if size < 1024:
            return f'{size:.4g} {unit}'
        size /= 1024
    return f'{size:.4g} GiB'


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('path', metavar='PATH', help='workdir, checkpoints folder or checkpoint')
    parser.add_argument('--verify', action='store_true', help='hash every file')
    parser.add_argument('--params', action='store_true', help='list every array')


def main() -> int:
    return cli.run(inspect, doc=__doc__, tables=(), options=_options)


if __name__ == '__main__':
    sys.exit(main())
