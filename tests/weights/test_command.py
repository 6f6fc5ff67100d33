"""`python -m jepa_jax.convert` as a user types it."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import originals
import pytest
import torch

from jepa_jax import convert
from jepa_jax.errors import ConvertError
from jepa_jax.weights import zoo

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(*arguments, module='jepa_jax.convert', cwd=ROOT):
    return subprocess.run(
        [sys.executable, '-m', module, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )


def test_help():
    done = command('--help')
    assert done.returncode == 0 and '--allow-missing' in done.stdout


def test_defaults_and_what_was_dropped_are_printed(tmp_path):
    torch.save(originals.released(), tmp_path / 'a.pt')
    done = command(tmp_path / 'a.pt', tmp_path / 'hf', '--to=hf', '--heads=4', '--frames', 8)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert 'V-JEPA 2.0, size custom, format torch' in out
    assert 'crop 256 (shapes do not tell; the -384 files have 384; --crop to change)' in out
    assert 'heads 4' not in out and 'frames 8' not in out  # told, not taken
    assert 'predictor_heads 1' in out and '--predictor-heads' in out
    assert 'the encoder is the target' in out and 'dropped: online encoder' in out
    assert 'GiB of memory at the most' in out or sys.platform != 'linux'
    assert done.stderr == ''
    weights = convert.read(tmp_path / 'hf')
    assert (weights.encoder.heads, weights.encoder.image_size, weights.encoder.frames) == (
        4,
        256,
        8,
    )

    done = command(tmp_path / 'hf', module='tools.inspect_checkpoint')
    assert done.returncode == 0 and 'size custom, format hf' in done.stdout, done.stderr


def test_probe_of_another_file(tmp_path):
    torch.save(originals.released(), tmp_path / 'a.pt')
    torch.save({'classifiers': [originals.fill(originals.probe())]}, tmp_path / 'probe.pt')
    done = command(
        tmp_path / 'a.pt', tmp_path / 'out', '--probe', tmp_path / 'probe.pt', '--probe-heads=4'
    )
    assert done.returncode == 0, done.stderr
    weights = convert.read(tmp_path / 'out')
    assert set(weights.trees) == {'online', 'target', 'predictor', 'probe'}
    torch.save({'classifiers': [originals.fill(originals.probe(d=64))]}, tmp_path / 'other.pt')
    with pytest.raises(ConvertError, match='width 64, .* has 96'):
        convert.add_probe(weights, convert.read(tmp_path / 'other.pt'))
    # names of the classes of another probe go with it; how a model was asked stays
    named = dataclasses.replace(
        weights, labels={'linear': ('a', 'b')}, reads={'segments': 2, 'system': 'Be brief.'}
    )
    other = convert.add_probe(named, convert.read(tmp_path / 'probe.pt', probe_heads=4))
    assert (other.labels, other.reads) == ({}, {'system': 'Be brief.'})


def test_names_are_converted_as_load_takes_them(tmp_path):
    done = command('tiny', 'tiny.pt', '--to=torch', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bundled = zoo.find('tiny').params('target')
    assert_same(convert.read(tmp_path / 'tiny.pt', crop=32, frames=8).params('target'), bundled)
    # what lies here is meant, as ever: the names of the release are those one gives to folders
    done = command('tiny.pt', 'vitl', '--crop=32', '--frames=8', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = command('vitl', 'again.pt', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'vitl' is what lies here, not the model of that name" in done.stdout
    assert_same(convert.read(tmp_path / 'again.pt', crop=32, frames=8).params('target'), bundled)


def assert_same(tree, expected) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), tree, expected)


@pytest.mark.parametrize(
    'arguments, status, words',
    [
        (['text.pt', 'out'], 1, 'text.pt is not a checkpoint'),
        (
            ['nothing.pt', 'out'],
            1,
            "'nothing.pt': no such file or folder, and no name; `jepa models`",
        ),
        (['tixt.pt', 'out'], 1, 'no such file or folder, and no name; did you mean text.pt?; '),
        (['vitll', 'out'], 1, "model 'vitll': no such file or folder, and no name; did you mean"),
        (['text.pt', 'out', '--probe=ssv2-vitl'], 1, "model 'ssv2-vitl': no such file or folder"),
        (['random:tiny', 'out'], 1, "load('random:tiny').save_pretrained(DIR) writes such weights"),
        (['tiny', 'out', '--crop=64'], 1, "'tiny' is a name: its crop cannot be chosen"),
        (['text.pt', 'out', '--to=onnx'], 2, 'onnx'),
        (['text.pt', 'out', '--crops=3'], 2, '--crop'),
        (['text.pt'], 2, 'DST'),
    ],
)
def test_errors_are_one_line(tmp_path, arguments, status, words):
    (tmp_path / 'text.pt').write_text('hello')
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert words in done.stderr and done.stderr.count('\n') == 1 and done.stdout == ''
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow  # 40 s; run by hand after a change of start.py or convert
def test_a_run_starts_from_a_hugging_face_folder(runs, tmp_path):
    """One encoder and a predictor: the target starts as a copy, as it does from scratch."""
    convert.write(convert.read(runs.finished()), tmp_path / 'hf', 'hf')
    convert.write(convert.read(tmp_path / 'hf'), tmp_path / 'ours', 'jax')
    workdir = runs.workdir()
    done = runs.run(workdir, f'checkpoints.init_from={tmp_path / "ours"}')
    assert done.returncode == 0, done.stderr
    assert f'starts with the weights of {tmp_path / "ours"}' in done.stderr
    assert 'the target starts as a copy of its only encoder' in done.stderr
