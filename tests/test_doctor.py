"""`python -m jepa_jax.doctor` on models in order and out of order, and its golden numbers."""

import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models.test_golden import FULL
from torch_fill import fill
from weights import originals

from jepa_jax import golden
from jepa_jax.models import rope
from jepa_jax.models.vit import ViT
from jepa_jax.nets import Net

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A tiny model, one with an array too many, and one that is cut off."""
    folder = tmp_path_factory.mktemp('doctor')
    content = {'target_encoder': originals.fill(originals.encoder(192, 12, 768), sigma=0.02)}
    torch.save(content, folder / 'good.pt')
    content['target_encoder']['blocks.3.norm9.weight'] = torch.zeros(3)
    torch.save(content, folder / 'extra.pt')
    data = (folder / 'good.pt').read_bytes()
    (folder / 'cut.pt').write_bytes(data[: len(data) // 2])
    return folder


def doctor(folder, *arguments):
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'JEPA_JAX_CACHE': str(folder / 'cache'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    return subprocess.run(
        [sys.executable, '-m', 'jepa_jax.doctor', *arguments], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_good_model(folder):
    done = doctor(folder, '--model', 'good.pt')
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        'jax ', 'devices: ', 'memory: ', 'ok      decoder: PyAV', 'attention, vitl', 'by_head',
        'size tiny, format torch', 'ok      files and arrays', 'ok      golden forward: size tiny',
        'ok      own forward', 'all checks passed',
    ):  # fmt: skip
        assert words in done.stdout, words
    sha = subprocess.run(['sha256sum', folder / 'good.pt'], capture_output=True, text=True).stdout
    assert f'sha256: {sha.split()[0]}' in done.stdout


@pytest.mark.parametrize('name, words', [('extra.pt', 'norm9.weight is not known'), ('cut.pt', '')])
def test_a_model_out_of_order(folder, name, words):
    done = doctor(folder, '--model', name)
    assert done.returncode == 1
    assert f'FAILED  files and arrays: {name}' in done.stdout and words in done.stdout
    assert done.stderr.strip() == 'error: 1 check failed: files and arrays'


def test_rows_are_the_originals():
    assert {name: golden.ROWS[name] for name in FULL} == {
        name: golden.Row(*numbers, first, last) for name, (numbers, first, last) in FULL.items()
    }


def test_weights_are_the_formulas():
    """Through the conversion table here, through the tests' own mapping there."""
    config = golden.config_of('tiny')
    expected = fill(Net(lambda rngs: ViT(config, rngs=rngs)).abstract, sigma=golden.SIGMA)
    result = golden.weights(config)
    assert result.keys() == expected.keys()
    for part in ('patch_embed', 'norm'):
        for name, value in expected[part].items():
            np.testing.assert_array_equal(result[part][name], value)
    np.testing.assert_array_equal(
        result['blocks']['attn']['qkv']['kernel'], expected['blocks']['attn']['qkv']['kernel']
    )


@pytest.fixture(scope='module')
def tiny():
    return golden.forward('tiny')


def test_numbers_hold_and_catch_small_faults(tiny):
    assert golden.problems('tiny', tiny) == []
    rng = np.random.default_rng(0)
    assert golden.problems('tiny', tiny + rng.normal(size=tiny.shape) * 3e-3)
    assert golden.problems('tiny', tiny[..., ::-1])
    one = tiny.copy()
    one[0, 0, 1] += 2e-4
    assert golden.problems('tiny', one) and 'feature 1 is' in golden.problems('tiny', one)[0]
    assert golden.problems('tiny', np.full_like(tiny, np.nan))


def test_numbers_catch_the_usual_rotary_embedding(monkeypatch):
    """The fault that users met most: pairs of channels turned by one angle."""
    real = rope.angles

    def paired(positions, head_dim, flavour):
        cos, sin = real(positions, head_dim, flavour)
        d, sign = rope.part(head_dim), np.resize([-1.0, 1.0], head_dim)
        order = np.concatenate(
            [i * d + np.repeat(np.arange(d // 2), 2) for i in range(3)]
            + [np.arange(3 * d, head_dim)]
        )
        return cos[..., order], (sin * sign)[..., order] * jnp.asarray(sign, jnp.float32)

    monkeypatch.setattr('jepa_jax.models.vit.angles', paired)
    assert golden.problems('tiny', golden.forward('tiny'))
