"""The benchmark of features, end to end on a tiny model."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_both_sides_agree(tmp_path):
    done = subprocess.run(
        [
            sys.executable, '-m', 'tools.bench_embed', '--size', 'tiny', '--frames', '4',
            '--crop', '64', '--rounds', '1', '--json', str(tmp_path / 'found.json'),
            '--sides', 'transformers',
        ],
        cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'found.json').read_text())
    assert result['transformers']['apart']['features'] < 1e-4
    for side in ('jepa_jax', 'transformers'):
        row = result[side]
        assert 0 < row['seconds'] and row['anonymous'] < row['resident']
        assert row['anonymous'] > 4 * 5_600_000  # the parameters are in it
    assert 'transformers differs by: features' in done.stdout
