"""Makes `docs/*.ipynb` of the scripts of the same name: their cells, run, with small pictures.

    python -m tools.make_notebooks

Needs jupytext, nbclient, ipykernel and pillow. A script is the source; a test holds the notebook
against it.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = ('demo', 'energy_landscape')
WIDTH = 900  # pixels of pictures


def notebook(name: str):
    """The notebook of a script, not run."""
    import jupytext

    made = jupytext.read(ROOT / f'docs/{name}.py', fmt='py:percent')
    kernel = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
    made.metadata = {'kernelspec': kernel}
    for number, cell in enumerate(made.cells):
        cell.id, cell.metadata = f'cell-{number}', {}
    return made


def run(made, folder: str | os.PathLike = ROOT) -> None:
    """Runs all cells in a folder; the first error is raised."""
    from nbclient import NotebookClient
    from traitlets.config import Config

    resources = {'metadata': {'path': str(folder)}}
    with tempfile.TemporaryDirectory() as place:
        # files instead of ports, which others on the machine could reach; kernel and client look
        # from different folders, so the place is given whole
        config = Config({'KernelManager': {'transport': 'ipc', 'ip': f'{place}/kernel'}})
        NotebookClient(made, timeout=1800, resources=resources, config=config).execute()


def shrink(made) -> None:
    """Pictures of fewer pixels and colours; nothing that differs from run to run."""
    from PIL import Image

    for cell in made.cells:
        cell.metadata = {}
        if 'outputs' in cell:  # warnings name paths of this machine
            cell.outputs = [each for each in cell.outputs if each.get('name') != 'stderr']
        for output in cell.get('outputs', ()):
            if picture := output.get('data', {}).get('image/png'):
                image = Image.open(io.BytesIO(base64.b64decode(picture))).convert('RGB')
                image.thumbnail((WIDTH, WIDTH))
                small = io.BytesIO()
                # the method that keeps rare colours, such as those of a mark
                few = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
                few.save(small, 'png', optimize=True)
                output['data'] = {'image/png': base64.b64encode(small.getvalue()).decode()}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog='python -m tools.make_notebooks',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('names', nargs='*', default=NAMES, help='which (default: all)')
    import nbformat

    for name in parser.parse_args().names:
        made, path = notebook(name), ROOT / f'docs/{name}.ipynb'
        run(made)
        shrink(made)
        nbformat.write(made, path)
        print(f'wrote {path}: {path.stat().st_size:,} bytes')
    return 0


if __name__ == '__main__':
    sys.exit(main())
