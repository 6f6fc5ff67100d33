"""Published benchmarks end to end, on tiny replicas with real videos and a tiny random encoder."""

import csv
import json

import jax
import numpy as np
import official_sets as made
import pytest

import jepa_jax
from jepa_jax.config import labelled_set
from jepa_jax.data.labelled import read
from jepa_jax.errors import ConfigError
from jepa_jax.evals import benchmark, features, heads, probes
from jepa_jax.model import Loaded, Model, ProbeHead
from jepa_jax.models.pooler import AttentiveClassifier, PoolerConfig
from jepa_jax.nets import Net


@pytest.fixture(scope='module')
def model():
    return jepa_jax.load('random:tiny')


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    """Classes are colours, which any encoder tells."""
    return made.ssv2(tmp_path_factory.mktemp('ssv2'), train=6, validation=3)


def config(name, folder, **fields):
    c = labelled_set(name, 'smoke')
    c.data.path, c.data.crop, c.data.frames, c.data.step = str(folder), 32, 2, 2
    c.data.views = min(2, c.data.views)
    for key, value in fields.items():
        setattr(c, key, value)
    return c


def test_ssv2(model, clips, tmp_path):
    results = benchmark.run(model, config('ssv2', clips), tmp_path)
    accuracy = results.results['accuracy']
    assert accuracy.n == 9 and accuracy.value == 1 and accuracy.low < 0.8
    assert results.baselines['majority'].value == pytest.approx(1 / 3)
    assert results.data['expected'] == results.data['read'] == 9
    assert results.data['published']['V-JEPA 2 L 256'] == 73.7
    text = '\n'.join(results.sentences)
    assert 'best of 3 on 9 training clips' in text and '0 Holding something next to' in text
    with open(tmp_path / 'predictions.csv') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and all(row['name'] == row['said_name'] for row in rows)
    # the second start reads no clip
    mean = np.load(next(tmp_path.glob('features/*/rows.npy')))['mean']
    assert np.abs(mean).max() > 0
    c = config('ssv2', clips, protocol='upstream')
    c.data.cache = str(tmp_path / 'features')
    upstream = benchmark.run(model, c, tmp_path)
    assert set(upstream.results) == {'accuracy', 'accuracy, top 5', 'accuracy, upstream'}
    assert 'best on validation' in upstream.sentences[0]
