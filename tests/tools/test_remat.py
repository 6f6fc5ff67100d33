"""What recomputation keeps, against a count by hand."""

import dataclasses

import jax

from jepa_jax import nets
from jepa_jax.config import DataListConfig, MaskedVideoConfig
from tools.steps import programs
from tools.traced import policies, trace


def test_kept_and_computed_again(monkeypatch):
    config = MaskedVideoConfig(name='remat')
    config.data.lists = [DataListConfig(kind='synthetic')]
    config.encoder.width, config.encoder.depth, config.encoder.heads = 96, 3, 4
    config.predictor.width, config.predictor.depth, config.predictor.heads = 48, 2, 2
    config.data.crop, config.data.frames, config.optim.batch = 64, 8, 16
    config.compute_dtype = 'float32'
    with monkeypatch.context() as gpu:  # a CPU has a `none` of its own
        gpu.setattr(nets, 'platform', lambda: 'gpu')
        rows = policies(config, jax.devices()[:2])
    assert list(rows) == ['full', 'attention', 'dots', 'none']
    largest = max(programs(config, 2), key=lambda program: program.total)
    pairs = [(m.context.shape[1], m.target.shape[1]) for m in largest.shapes.groups[0].masks]
    inputs = sum(3 * k * 96 + 2 * (k + m) * 48 for k, m in pairs)
    assert rows['full']['kept_bytes_per_device'] == inputs * 4 * 8  # float32, clips a device
    # and with the weights of a softmax, which are computed again, what they give
    assert rows['attention']['kept_bytes_per_device'] == 2 * inputs * 4 * 8
    kept = [row['kept_bytes_per_device'] for row in rows.values()]
    flops = [row['flops'] for row in rows.values()]
    assert kept == sorted(kept) and len(set(kept)) == 4
    assert flops == sorted(flops, reverse=True) and flops[-1] == largest.total
    optim = dataclasses.replace(config.optim, accumulate=2)
    halves = trace(dataclasses.replace(config, optim=optim), jax.devices()[:2])
    assert halves['kept_bytes_per_device'] == inputs * 4 * 4
    # on a CPU `none` keeps a block's input, queries, keys, values, attention before and after its
    # projection, and the MLP's first product, and computes the rest again: 1 + 3 + 2 + 4 widths
    # in wide blocks; in narrow ones that is slower than to keep nothing
    mesh = dataclasses.replace(config.mesh, remat='none')
    narrow = trace(dataclasses.replace(config, mesh=mesh), jax.devices()[:2])
    assert narrow['kept_bytes_per_device'] == rows['full']['kept_bytes_per_device']
    monkeypatch.setattr(nets, 'WIDE', 48)
    on_cpu = trace(dataclasses.replace(config, mesh=mesh), jax.devices()[:2])
    assert on_cpu['kept_bytes_per_device'] == 10 * inputs * 4 * 8
    scores = sum(3 * k * k * 96 + 2 * (k + m) ** 2 * 48 for k, m in pairs)
    assert on_cpu['flops'] == largest.total + 2 * 16 * scores
