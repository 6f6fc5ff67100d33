"""The notebooks of docs/: their cells are those of the scripts, and they run offline."""

import os
import pathlib

import pytest

from tools import make_notebooks

jupytext = pytest.importorskip('jupytext')
nbformat = pytest.importorskip('nbformat')
DOCS = pathlib.Path(__file__).resolve().parent.parent / 'docs'


@pytest.mark.parametrize('name', make_notebooks.NAMES)
def test_a_notebook_is_its_script(name):
    stored = nbformat.read(DOCS / f'{name}.ipynb', as_version=4)
    made = make_notebooks.notebook(name)
    cells = [[(cell.cell_type, cell.source) for cell in book.cells] for book in (stored, made)]
    assert cells[0] == cells[1], f'run python -m tools.make_notebooks {name}'
    badge = f'colab.research.google.com/github/OWNER/jepa_jax/blob/main/docs/{name}.ipynb'
    assert badge in made.cells[0].source
    outputs = [output for cell in stored.cells for output in cell.get('outputs', ())]
    assert not any(output.output_type == 'error' for output in outputs)
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 2
    # no path of the machine that ran it
    assert not any('/root' in str(output) or '/home' in str(output) for output in outputs)


def test_pictures_are_small():
    pictures = [p for p in DOCS.rglob('*') if p.suffix in ('.png', '.gif', '.jpg', '.ipynb')]
    assert sum(path.stat().st_size for path in pictures) < 600_000


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize('name', make_notebooks.NAMES)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    """Offline: what would reach a network fails."""
    pytest.importorskip('nbclient')
    root = str(DOCS.parent)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([root, os.environ.get('PYTHONPATH', '')]))
    monkeypatch.setenv('JEPA_JAX_WEIGHTS_URL', 'http://127.0.0.1:9')
    monkeypatch.setenv('JEPA_JAX_CACHE', str(tmp_path))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    made = make_notebooks.notebook(name)
    make_notebooks.run(made, tmp_path)  # raises what a cell raises
    text = ''.join(o.get('text', '') for c in made.cells for o in c.get('outputs', ()))
    assert {'demo': 'right, +-', 'energy_landscape': 'least energy at'}[name] in text
