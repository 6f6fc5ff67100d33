"""What recomputation keeps, against a count by hand."""

import dataclasses

import jax

from jepa_jax import nets
from jepa_jax.config import DataListConfig, MaskedVideoConfig
from tools.steps import programs
from tools.traced import policies, trace


def test_kept_and_computed_again(monkeypatch):
    monkeypatch.setattr(nets, 'platform', lambda: 'gpu')  # a CPU computes scores again for `none`
    config = MaskedVideoConfig(name='remat')
    config.data.lists = [DataListConfig(kind='synthetic')]
    config.encoder.width, config.encoder.depth, config.encoder.heads = 96, 3, 4
    config.predictor.width, config.predictor.depth, config.predictor.heads = 48, 2, 2
    config.data.crop, config.data.frames, config.optim.batch = 64, 8, 16
    config.compute_dtype = 'float32'
    rows = policies(config, jax.devices()[:2])
    assert list(rows) == ['full', 'dots', 'none']
    largest = max(programs(config, 2), key=lambda program: program.total)
    pairs = [(m.context.shape[1], m.target.shape[1]) for m in largest.shapes.groups[0].masks]
    inputs = sum(3 * k * 96 + 2 * (k + m) * 48 for k, m in pairs)
    assert rows['full']['kept_bytes_per_device'] == inputs * 4 * 8  # float32, clips a device
    kept = [row['kept_bytes_per_device'] for row in rows.values()]
    flops = [row['flops'] for row in rows.values()]
    assert kept == sorted(kept) and len(set(kept)) == 3
    assert flops == sorted(flops, reverse=True) and flops[-1] == largest.total
    optim = dataclasses.replace(config.optim, accumulate=2)
    halves = trace(dataclasses.replace(config, optim=optim), jax.devices()[:2])
    assert halves['kept_bytes_per_device'] == inputs * 4 * 4
